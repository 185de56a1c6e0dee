"""diffusers' schedulers: those of `safelight.diffusion.schedulers`, which here also load from hub ids."""

import os
from collections.abc import Mapping
from typing import Any, Self

from safelight.compat.loading import HUB, Options
from safelight.diffusion import schedulers as native
from safelight.diffusion.schedulers.config import DIFFUSERS_VERSION
from safelight.errors import MissingPartError, nearest

__all__ = ["DIFFUSERS_VERSION", "SCHEDULERS", "from_any"]


class FromHub:
    """`from_pretrained` with the options of a hub id; what else is given changes the config."""

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], subfolder: str | None = None, **options: Any
    ) -> Self:
        """Read the scheduler of a folder or hub id: `subfolder="scheduler"` of a model's."""
        hub = {name: options.pop(name) for name in HUB & options.keys()}
        folder = Options.read({**hub, "subfolder": subfolder}).locate(os.fspath(pretrained_model_name_or_path))
        return super().from_pretrained(folder, **options)  # type: ignore[misc]


# One class for each of the room's, under the same name: isinstance and configs agree
SCHEDULERS: dict[str, Any] = {
    name: type(name, (FromHub, kind), {"__doc__": kind.__doc__, "__module__": __name__})
    for name, kind in vars(native).items()
    if name.endswith("Scheduler") and name != "Scheduler"
}


def from_any(config: Mapping[str, Any]) -> Any:
    """Make the scheduler that a scheduler_config.json names; PNDM where it names none, as diffusers does."""
    name = config.get("_class_name", "PNDMScheduler")
    if name not in SCHEDULERS:
        raise MissingPartError(f"the scheduler {name!r} is not here", remedy=nearest(str(name), SCHEDULERS))
    return SCHEDULERS[name].from_config(config)


def __getattr__(name: str) -> Any:
    if name in SCHEDULERS:
        return SCHEDULERS[name]
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
