"""The configuration of a scheduler, with diffusers' keys, defaults and file: scheduler_config.json."""

import json
import os
import warnings
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, NoReturn, Self

from safelight.errors import CheckpointError, InputError, nearest
from safelight.writing import replacing

FILE_NAME = "scheduler_config.json"
DIFFUSERS_VERSION = "0.42.1"  # whose keys and defaults these are; stands in the files, as diffusers expects


class SchedulerConfig(dict[str, Any]):
    """A dictionary that cannot be changed, whose items are attributes too: `config["eta"]` is `config.eta`."""

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(f"the scheduler's config has no {name!r}; {nearest(name, self)}")

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise InputError(
            "a scheduler's config cannot be changed", remedy="make another: from_config(config, key=value)"
        )

    __setattr__ = __delattr__ = __setitem__ = __delitem__ = _refuse
    pop = popitem = update = setdefault = clear = __ior__ = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return SchedulerConfig, (dict(self),)

    def __deepcopy__(self, memo: dict[int, Any]) -> "SchedulerConfig":
        return self


class Configured:
    """What all schedulers share that is not mathematics: making one from a config, writing and reading that config.

    `defaults` are the class's keys in diffusers' order. A key given to the constructor must be one of them; a config
    may carry others, which are kept for the next `from_config` and for the file.
    """

    defaults: ClassVar[Mapping[str, Any]]
    aliases: ClassVar[Mapping[str, Mapping[str, str]]] = {}  # key -> a value meant for another class -> ours
    known: ClassVar[dict[str, type["Configured"]]] = {}
    config: SchedulerConfig

    def __init_subclass__(cls) -> None:
        if hasattr(cls, "defaults"):  # a row, and not a class between
            Configured.known[cls.__name__] = cls

    def _configure(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        name, given = type(self).__name__, bound(type(self).__name__, self.defaults, args, kwargs)
        for key, translation in self.aliases.items():
            if key in given:
                given[key] = translation.get(given[key], given[key])
        # Keys left to their default are listed, so that from_config on another class takes that class's default
        left = [key for key in self.defaults if key not in given]
        self.config = SchedulerConfig(
            {**self.defaults, **given, "_class_name": name, "_use_default_values": left},
            _diffusers_version=DIFFUSERS_VERSION,
        )

    @property
    def settings(self) -> SchedulerConfig:
        """The keys of this class: those carried for other schedulers do not count."""
        return SchedulerConfig({key: self.config[key] for key in self.defaults})

    @classmethod
    def from_config(cls, config: Mapping[str, Any], **overrides: Any) -> Self:
        """A scheduler of this class with the settings of `config` (a dictionary, or another scheduler's `.config`).

        Keys that other schedulers have are kept unused, unknown ones too but with a warning; those which stood at their
        default in the other scheduler take this class's default. `overrides` must be keys of this class.
        """
        left = config.get("_use_default_values", ())
        carried = {k: v for k, v in config.items() if k not in left and not k.startswith("_")}
        own = {k: v for k, v in carried.items() if k in cls.defaults}
        foreign = {k: v for k, v in carried.items() if k not in cls.defaults}
        cls._warn_of(foreign)
        made = cls(**{**own, **overrides})
        made.config = SchedulerConfig({**foreign, **made.config})
        return made

    @classmethod
    def _warn_of(cls, foreign: Iterable[str]) -> None:
        everywhere = {key for scheduler in Configured.known.values() for key in scheduler.defaults}
        unknown = sorted(set(foreign) - everywhere)
        if unknown:
            warnings.warn(f"{cls.__name__}: no scheduler has {', '.join(unknown)}; kept, without effect", stacklevel=3)

    @classmethod
    def from_pretrained(cls, folder: str | os.PathLike[str], subfolder: str | None = None, **overrides: Any) -> Self:
        """Read `folder`[/`subfolder`]/scheduler_config.json, whichever class wrote it. Raises CheckpointError."""
        path = Path(folder, subfolder or "", FILE_NAME)
        try:
            config = json.loads(path.read_text(encoding="utf-8"))
        except OSError as e:
            remedy = "name the model's folder, and subfolder='scheduler'"
            raise CheckpointError(f"no scheduler's config to read ({e.strerror})", path=path, remedy=remedy) from e
        except ValueError as e:
            raise CheckpointError(f"not JSON: {e}", path=path, remedy="fetch the file again") from e
        if not isinstance(config, dict):
            raise CheckpointError("not a JSON object", path=path, remedy="fetch the file again")
        return cls.from_config(config, **overrides)

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write `folder`/scheduler_config.json as diffusers writes it, whole or not at all."""
        path = Path(folder, FILE_NAME)
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            file.write(self.to_json_string().encode())

    def to_json_string(self) -> str:
        """The config as the file has it."""
        written = {key: _plain(value) for key, value in self.config.items() if key != "_use_default_values"}
        return json.dumps(written, indent=2, sort_keys=True) + "\n"

    def __repr__(self) -> str:
        return f"{type(self).__name__} {self.to_json_string()}"


def bound(name: str, defaults: Mapping[str, Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments that were given, by name. `defaults` has the names, in the order they have without names."""
    if len(args) > len(defaults):
        raise InputError(f"{name} takes at most {len(defaults)} such arguments, got {len(args)}")
    given = dict(zip(defaults, args, strict=False))
    for key, value in kwargs.items():
        if key not in defaults:
            remedy = nearest(key, defaults) if defaults else "it has none of its own"
            raise InputError(f"{name} has no argument {key!r}", remedy=remedy)
        if key in given:
            raise InputError(f"{name} got {key!r} twice", remedy="give it once, by name")
        given[key] = value
    return given


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value  # tensors and arrays
