"""Networks from tensors: drawn once on the meta device, then given the file's own memory, strictly."""

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from safelight.checkpoint.errors import KeyMismatch, NonFiniteWeights, WrongShape
from safelight.checkpoint.files import Tensors, let_go
from safelight.checkpoint.keymap import KeyMap, Link
from safelight.errors import nearest

Network = TypeVar("Network", bound=nn.Module)

IN_CACHE = 2**18  # numbers of float32 that a core's cache holds


class _Unfilled(TorchFunctionMode):
    """Leaves new parameters as they are. Without memory there is nothing to fill, and yet torch would import hundreds
    of modules, for two seconds, to draw random numbers there."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if getattr(func, "__module__", "") == nn.init.__name__:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def on_meta(make: Callable[[], Network]) -> Network:
    """Draw a network without memory for its parameters."""
    with torch.device("meta"), _Unfilled():
        return make()


def check(network: nn.Module, file: Tensors, keymap: KeyMap, *, known: Collection[str] = ()) -> None:
    """See that a file holds exactly the tensors a network on the meta device needs, by names and shapes alone.

    `known` are names of theirs that may be there beside them. Raises KeyMismatch, WrongShape.
    """
    allowed = keymap.by_theirs.keys() | set(known)
    unknown = [key for key in file if key not in allowed]
    missing = [key for key in keymap.by_theirs if key not in file]
    if missing:
        alike = (
            nearest(missing[0], unknown) if unknown else "the file is incomplete, or of another model than its config"
        )
        what = f"lacks {len(missing)} tensors that the network needs, such as {missing[0]!r}"
        raise KeyMismatch(what, path=file.path, key=missing[0], remedy=alike)
    if unknown:
        what = f"holds {len(unknown)} tensors that the network does not know, such as {unknown[0]!r}"
        remedy = f"the config may be of another model; {nearest(unknown[0], keymap.by_theirs)}"
        raise KeyMismatch(what, path=file.path, key=unknown[0], remedy=remedy)
    parameters = network.state_dict()
    for link in keymap.links:
        _check_shape(link, file, parameters)


def _check_shape(link: Link, file: Tensors, parameters: dict[str, Tensor]) -> None:
    entry, shape = file.entries[link.theirs], file.shape(link.theirs)
    if not entry.dtype.is_floating_point:
        what = f"tensor {link.theirs!r} holds {entry.dtype}, not floating-point weights"
        raise WrongShape(what, path=file.path, key=link.theirs, remedy="quantised files are not read: use a float one")
    needed = [tuple(parameters[name].shape) for name in link.ours]
    try:
        split = link.transform.split(torch.empty(shape, device="meta"))
        fits = [tuple(part.shape) for part in split] == needed
    except (RuntimeError, IndexError):
        fits = False
    if not fits:
        wanted = tuple(link.transform.merge([parameters[name] for name in link.ours]).shape)
        what = f"tensor {link.theirs!r} has shape {shape}, the network needs {wanted}"
        raise WrongShape(
            what, path=file.path, key=link.theirs, remedy="the config is of another model than the weights"
        )


def own_dtype(file: Tensors) -> torch.dtype:
    """The dtype of a file's weights: the widest where it mixes them. Eight-bit weights become float16 ones."""
    floats = Counter(e.dtype for e in file.entries.values() if e.dtype.is_floating_point)
    widest = max(floats, key=lambda dtype: (dtype.itemsize, floats[dtype]), default=torch.float32)
    return torch.float16 if widest.itemsize == 1 else widest


@dataclass(frozen=True)
class Plan(Generic[Network]):
    """A network on the meta device and the file that fits it: everything is checked, no tensor has been read.

    `known` are names of theirs that may be in the file beside the network's. Raises KeyMismatch, WrongShape.
    """

    network: Network
    file: Tensors
    keymap: KeyMap
    known: Collection[str] = ()

    def __post_init__(self) -> None:
        check(self.network, self.file, self.keymap, known=self.known)

    def fill(
        self, *, device: torch.device | str = "cpu", dtype: torch.dtype | None = None, check_finite: bool = True
    ) -> Network:
        """Give the network its tensors one by one, each cast and moved at once; it is returned in evaluation mode.

        A tensor that is already right stays mapped: its pages are read when first used, and changes to them stay
        private. Of others no more than one is in memory in the file's form. A CUDA device gets the file's own bytes,
        and checks and casts them itself. None as dtype keeps the file's own. Raises NonFiniteWeights unless
        `check_finite` is False.
        """
        dtype = own_dtype(self.file) if dtype is None else dtype
        place = device if torch.device(device).type == "cuda" else "cpu"  # others may lack float64 and float8
        state: dict[str, Tensor] = {}
        for link in self.keymap.links:
            mapped = self.file[link.theirs]
            tensor = mapped.to(place)
            if check_finite:
                require_finite(link.theirs, tensor, self.file)
            parts = [cast(part, device, dtype).contiguous() for part in link.transform.split(tensor)]
            state |= zip(link.ours, parts, strict=True)
            if not any(share_memory(part, mapped) for part in parts):
                let_go(mapped)  # else the file's bytes would count as this process's memory beside their copies
        self.network.load_state_dict(state, strict=True, assign=True)
        return self.network.eval()


def cast(tensor: Tensor, device: torch.device | str, dtype: torch.dtype | None) -> Tensor:
    """`tensor.to(device, dtype)`, and float16 to bfloat16 on a CPU by way of float32, some rows at a time.

    The result is the same to the bit. torch converts the one to the other number by number, which takes three times as
    long, and is a sixth of the time in which Stable Diffusion loads.
    """
    from_half = tensor.dtype == torch.float16 and dtype == torch.bfloat16 and tensor.is_contiguous()
    if not from_half or tensor.device.type != "cpu" or torch.device(device).type != "cpu":
        return tensor.to(device, dtype)
    made = torch.empty_like(tensor, dtype=dtype)
    for theirs, ours in zip(tensor.view(-1).split(IN_CACHE), made.view(-1).split(IN_CACHE), strict=True):
        ours.copy_(theirs.float())
    return made


def share_memory(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors lie in one storage."""
    return a.device == b.device and a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def require_finite(key: str, tensor: Tensor, file: Tensors) -> None:
    """Raise NonFiniteWeights if a tensor holds NaN or infinity: one pass over its numbers, no copy."""
    if tensor.is_floating_point() and tensor.numel():
        if tensor.dtype.itemsize == 1:  # float8 has no aminmax
            tensor = tensor.to(torch.float32)
        low, high = torch.aminmax(tensor)
        if not (torch.isfinite(low) and torch.isfinite(high)):
            what = f"tensor {key!r} holds NaN or infinity"
            remedy = "the file was damaged or badly merged; use another, or pass check_finite=False to look into it"
            raise NonFiniteWeights(what, path=file.path, key=key, remedy=remedy)
