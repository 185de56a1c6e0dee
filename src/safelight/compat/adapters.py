"""LoRAs and learned words in pipelines: loaded, weighed, fused and taken out again, as diffusers does it with PEFT.

PEFT computes s·B·A·x beside each layer's W·x; here W + Σ s·B·A stands in W's place, so that a step costs what it did.
What W was is kept, and comes back bit for bit.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial, wraps
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor, nn

from safelight.checkpoint.files import SUFFIXES, Entry, Tensors, open_file
from safelight.checkpoint.learned_words import bundled_words, read_words
from safelight.checkpoint.load import locate
from safelight.checkpoint.lora import FILE, put, read_lora
from safelight.checkpoint.lora_kinds import Addition
from safelight.compat.loading import Options
from safelight.compat.pipeline import DiffusionPipeline
from safelight.errors import InputError, MissingPartError, nearest
from safelight.text.embeddings import TextualInversion, add_textual_inversions, read_textual_inversions

NETWORKS = ("unet", "text_encoder", "text_encoder_2")
WORDS_FILE = "learned_embeds.safetensors"  # what diffusers looks for in a folder or a repository
Weights = float | Sequence[float] | None
R = TypeVar("R")


class Loras:
    """The LoRAs of one network, which all pipelines that share it see. `settle` makes its weights what they ask for."""

    def __init__(self, network: nn.Module) -> None:
        self.network = network
        self.known: dict[str, tuple[Addition, ...]] = {}
        self.weights: dict[str, float] = {}  # of all that are known, active or not
        self.active: list[str] = []
        self.fused: dict[str, float] = {}
        self.enabled, self.scale = True, 1.0
        self._originals: dict[str, Tensor] = {}

    @classmethod
    def of(cls, network: nn.Module) -> "Loras":
        """Those of this network, none at first."""
        return network.__dict__.setdefault("_loras", cls(network))

    def settle(self) -> None:
        """Give every parameter its sum: of what is fused or, where nothing is, of what is active."""
        shares = self.fused
        if not shares and self.enabled:
            shares = {name: self.scale * self.weights[name] for name in self.active}
        wanted: dict[str, list[tuple[Addition, float]]] = {parameter: [] for parameter in self._originals}
        for name, share in shares.items():
            for one in self.known[name] if share else ():
                wanted.setdefault(one.parameter, []).append((one, share))
        for parameter, additions in wanted.items():
            now = self.network.get_parameter(parameter)
            total = self._originals.setdefault(parameter, now.detach()).to(now.device)
            for one, share in additions:
                total = one.total(total, share)
            put(self.network, parameter, nn.Parameter(total.to(now.dtype), requires_grad=now.requires_grad))
            if not additions:
                del self._originals[parameter]

    def forget(self) -> None:
        """Take out all; what is fused stays, and is from now on the network's own."""
        if self.fused:
            self._originals.clear()
        self.known, self.weights, self.active, self.fused = {}, {}, [], {}
        self.settle()


class Adapted(DiffusionPipeline):
    """A pipeline that can be given LoRAs and learned words."""

    unet: Any
    text_encoder: Any
    tokenizer: Any

    def load_lora_weights(
        self,
        pretrained_model_name_or_path_or_dict: str | os.PathLike[str] | Mapping[str, Tensor],
        adapter_name: str | None = None,
        **options: Any,
    ) -> None:
        """Load a LoRA and draw with it alone, at weight 1; `set_adapters` weighs and joins several.

        A file, a folder or hub id (with `weight_name`, by default pytorch_lora_weights.safetensors), or tensors by
        name; all namings of `safelight.checkpoint.lora`. Words that it brings along are taught for good. Raises
        InputError for a name that is taken.
        """
        file = _tensors(pretrained_model_name_or_path_or_dict, FILE, options)
        names = self._names_of_all()
        name = adapter_name or next(free for n in range(len(names) + 1) if (free := f"default_{n}") not in names)
        if name in names:
            raise InputError(f"an adapter {name!r} is there already", remedy="give another adapter_name")
        networks = self._networks()
        additions = read_lora(file, networks)
        words, pair = bundled_words(file), getattr(self, "text_encoder_2", None) is not None
        self._teach([replace(word, vectors_2=None) if pair else word for word in words], self.tokenizer,
                    self.text_encoder)  # fmt: skip
        second = [TextualInversion(word.token, word.vectors_2) for word in words if word.vectors_2 is not None]
        if pair:
            self._teach(second, self.tokenizer_2, self.text_encoder_2)  # type: ignore[attr-defined]
        for part, network in networks.items():
            if own := tuple(one for one in additions if one.network == part):
                Loras.of(network).known[name] = own
        self.set_adapters(name)

    def set_adapters(self, adapter_names: str | Sequence[str], adapter_weights: Weights = None) -> None:
        """Draw with these LoRAs and no others, each by its weight; one weight is for all, none is 1."""
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        given = adapter_weights if isinstance(adapter_weights, Sequence) else [adapter_weights] * len(names)
        if len(given) != len(names):
            raise InputError(f"{len(given)} weights for {len(names)} adapters", remedy="give one for each")
        for weight in given:
            if weight is not None and not isinstance(weight, int | float):
                raise MissingPartError("weights by blocks are not here yet", remedy="give one number for each adapter")
        self._check(names)
        shares = {name: 1.0 if weight is None else float(weight) for name, weight in zip(names, given, strict=True)}
        for loras in self._loras():
            loras.active = [name for name in shares if name in loras.known]
            loras.weights |= {name: shares[name] for name in loras.active}
            loras.settle()

    def get_active_adapters(self) -> list[str]:
        """The names of the LoRAs that are drawn with."""
        return list(dict.fromkeys(name for loras in self._loras() for name in loras.active))

    def get_list_adapters(self) -> dict[str, list[str]]:
        """The names of all LoRAs, by the parts that they change."""
        found = {part: list(Loras.of(network).known) for part, network in self._networks().items()}
        return {part: names for part, names in found.items() if names}

    def delete_adapters(self, adapter_names: str | Sequence[str]) -> None:
        """Take out LoRAs by name. Where no active one is left, the first of the others becomes active."""
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        self._check(names)
        for loras in self._loras():
            for name in names:
                for held in (loras.known, loras.weights, loras.fused):
                    held.pop(name, None)
            loras.active = [name for name in loras.active if name in loras.known] or list(loras.known)[:1]
            loras.settle()

    def unload_lora_weights(self) -> None:
        """Take out all LoRAs but what is fused, which stays for good."""
        for loras in self._loras():
            loras.forget()

    def disable_lora(self) -> None:
        """Draw without LoRAs, until `enable_lora`."""
        self._each(enabled=False)

    def enable_lora(self) -> None:
        """Draw with the active LoRAs again."""
        self._each(enabled=True)

    def fuse_lora(
        self,
        components: Sequence[str] = NETWORKS,
        lora_scale: float = 1.0,
        safe_fusing: bool = False,
        adapter_names: Sequence[str] | None = None,
        **_: Any,
    ) -> None:
        """Fix LoRAs, by default the active ones, at `lora_scale` times their weights: `scale` no longer moves them.

        Weights that are not finite are always refused, as `safe_fusing` asks for.
        """
        self._check(adapter_names or ())
        for part, network in self._networks().items():
            loras = Loras.of(network)
            if part in components and not loras.fused:
                chosen = loras.active if adapter_names is None else adapter_names
                loras.fused = {name: lora_scale * loras.weights[name] for name in chosen if name in loras.known}
                loras.settle()

    def unfuse_lora(self, components: Sequence[str] = NETWORKS, **_: Any) -> None:
        """Undo `fuse_lora`, unless the LoRAs were unloaded since."""
        for part, network in self._networks().items():
            if part in components:
                Loras.of(network).fused = {}
                Loras.of(network).settle()

    @property
    def fused_loras(self) -> set[str]:
        """The names of the LoRAs that are fused."""
        return {name for loras in self._loras() for name in loras.fused}

    @property
    def num_fused_loras(self) -> int:
        """How many are fused."""
        return len(self.fused_loras)

    @contextmanager
    def lora_scaled(self, scale: float | None) -> Iterator[None]:
        """Within this, active LoRAs count `scale` times their weights."""
        before = [loras.scale for loras in self._loras()]
        if scale is None or all(one == scale for one in before):
            yield
            return
        self._each(scale=float(scale))
        try:
            yield
        finally:
            for loras, one in zip(self._loras(), before, strict=True):
                loras.scale = one
                loras.settle()

    def load_textual_inversion(
        self,
        pretrained_model_name_or_path: Any,
        token: str | Sequence[str] | None = None,
        tokenizer: Any = None,
        text_encoder: Any = None,
        **options: Any,
    ) -> None:
        """Teach a learned word to the tokenizer and the text encoder: diffusers' and AUTOMATIC1111's forms.

        A file, a folder or hub id (with `weight_name`), a tensor or tensors by name, or a list of such, each with its
        `token`. Of words for Stable Diffusion XL each text encoder is taught its own, with its tokenizer.
        Raises InputError for a word that is known already, or learned for another width.
        """
        several = isinstance(pretrained_model_name_or_path, Sequence) and not isinstance(
            pretrained_model_name_or_path, str
        )
        sources = list(pretrained_model_name_or_path) if several else [pretrained_model_name_or_path]
        if len(sources) == 1 and isinstance(sources[0], Tensor) and not isinstance(token, str | None):
            sources = list(sources[0].reshape(-1, sources[0].shape[-1]))  # a row each
        tokens = [token] * len(sources) if token is None or isinstance(token, str) else list(token)
        if len(tokens) != len(sources):
            raise InputError(f"{len(tokens)} tokens for {len(sources)} learned words", remedy="give one for each")
        tokenizer, text_encoder = tokenizer or self.tokenizer, text_encoder or self.text_encoder
        for source, name in zip(sources, tokens, strict=True):
            if isinstance(source, Tensor):
                source = {"emb_params": source}
            held = isinstance(source, Mapping)
            words = (
                read_textual_inversions(source, token=name)
                if held
                else read_words(_path(source, WORDS_FILE, options), name)
            )
            self._teach(words, tokenizer, text_encoder)

    @staticmethod
    def _teach(words: Sequence[TextualInversion], tokenizer: Any, text_encoder: Any) -> None:
        if words:
            learned, encoder = add_textual_inversions(tokenizer.native, text_encoder.net, words)
            tokenizer.take(learned)
            text_encoder.take(encoder)

    def _networks(self) -> dict[str, nn.Module]:
        """The networks that a LoRA may change, behind their faces and torch.compile."""
        parts = {name: getattr(self, name, None) for name in NETWORKS}
        return {name: getattr(part, "_orig_mod", part).net for name, part in parts.items() if part is not None}

    def _loras(self) -> list[Loras]:
        return [Loras.of(network) for network in self._networks().values()]

    def _names_of_all(self) -> dict[str, None]:
        return dict.fromkeys(name for loras in self._loras() for name in loras.known)

    def _check(self, names: Sequence[str]) -> None:
        for name in names:
            if name not in (known := self._names_of_all()):
                remedy = nearest(name, known) if known else "load it with load_lora_weights"
                raise InputError(f"there is no adapter {name!r}", remedy=remedy)

    def _each(self, **settings: Any) -> None:
        for loras in self._loras():
            for name, value in settings.items():
                setattr(loras, name, value)
            loras.settle()


def with_lora_scale(call: Callable[..., R]) -> Callable[..., R]:
    """Let a pipeline's call take `cross_attention_kwargs={"scale": s}`."""

    @wraps(call)
    def scaled(pipe: Adapted, *args: Any, cross_attention_kwargs: Mapping[str, Any] | None = None, **options: Any) -> R:
        told = cross_attention_kwargs or {}
        if unknown := sorted(told.keys() - {"scale"}):
            raise MissingPartError(f"cross_attention_kwargs with {unknown[0]!r} is not here yet", remedy="leave it out")
        with pipe.lora_scaled(told.get("scale")):
            return call(pipe, *args, **options)

    return scaled


def _tensors(source: Any, usual: str, options: Mapping[str, Any]) -> Tensors:
    """What `load_lora_weights` was given, as a file's tensors."""
    if not isinstance(source, Mapping):
        return open_file(_path(source, usual, options))
    path = Path("what was given")
    entries = {
        key: Entry(tensor.dtype, tuple(tensor.shape), path, partial(source.__getitem__, key))
        for key, tensor in source.items()
    }
    return Tensors(path, entries)


def _path(source: str | os.PathLike[str], usual: str, options: Mapping[str, Any]) -> Path:
    """The file that is meant: of a folder or repository the one named `weight_name`, or usually named.

    A folder without either has its only safetensors file taken.
    """
    chosen = Options.read(options, also=dict.fromkeys(("weight_name",)))
    name, path = options.get("weight_name") or usual, Path(source).expanduser()
    inside = f"{chosen.subfolder}/{name}" if chosen.subfolder else name
    if path.is_dir():
        others = list((path / inside).parent.glob("*.safetensors"))
        alone = len(others) == 1 and "weight_name" not in options
        return others[0] if alone else path / inside
    there = path.exists() or path.suffix in SUFFIXES
    what = path if there else f"{os.fspath(source)}/{inside}"
    return locate(what, revision=chosen.revision, local_files_only=chosen.local_files_only, addition=True)
