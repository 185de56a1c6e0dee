"""Work that several drawings share, done once: networks that remember what they said.

A network is a pure function, so what it said before to the same numbers is what it would say again, bit for bit. Runs
that differ only late (in guidance_end, in a prompt's schedule, in how they are decoded) give the U-Net the same numbers
up to there; runs that differ in the guidance scale alone, once; equal prompts give the text encoder equal tokens.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, cast

import torch
from torch import Tensor, nn

from safelight.pipeline.bundle import LatentDiffusion

LIMIT = 2**29  # bytes of answers that each network keeps: four thousand latents of 512 x 512 pixels, both guided halves


class Memory:
    """Answers of a function by what it was asked; the longest unused are forgotten first.

    `asked` counts the questions, `answered` those that the function itself had to answer.
    """

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit, self.size, self.asked, self.answered = limit, 0, 0, 0
        self._known: OrderedDict[bytes, tuple[Any, int]] = OrderedDict()

    def of(self, function: Callable[..., Any], about: Any = ()) -> "Recalled":
        """The function, remembered; `about` is what its answers depend on beside its arguments."""
        return Recalled(function, self, about)

    def recall(self, key: bytes, answer: Callable[[], Any]) -> Any:
        """What is known under a key, or the answer, kept. What gradients may flow through is answered anew."""
        self.asked += 1
        if torch.is_grad_enabled() or key not in self._known:
            self.answered += 1
            given = answer()
            if not torch.is_grad_enabled():
                self._keep(key, given)
            return given
        self._known.move_to_end(key)
        return self._known[key][0]

    def _keep(self, key: bytes, answer: Any) -> None:
        self._known[key] = answer, _bytes(answer)
        self.size += self._known[key][1]
        while self.size > self.limit:
            self.size -= self._known.popitem(last=False)[1][1]


@dataclass(frozen=True)
class Recalled:
    """A function with a memory; in all else the function itself."""

    function: Callable[..., Any]
    memory: Memory
    about: Any

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """The answer, given or recalled."""
        key = fingerprint((self.about, args, sorted(kwargs.items())))
        return self.memory.recall(key, lambda: self.function(*args, **kwargs))

    def __getattr__(self, name: str) -> Any:
        return getattr(self.function, name)


class Remembering(nn.Module):
    """A network one of whose methods has a memory; in all else the network itself."""

    def __init__(self, network: nn.Module, method: str = "forward") -> None:
        super().__init__()
        self.network, self.memory = network, Memory()
        setattr(self, method, self.memory.of(getattr(network, method)))

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("network"), name)


def remembering(model: LatentDiffusion) -> LatentDiffusion:
    """The same model with networks that remember. It is meant for one job: the memories live as long as it does."""
    parts = {"unet": Remembering(model.unet), "autoencoder": Remembering(model.autoencoder, "encode")}
    if model.text_encoder is not None:
        parts["text_encoder"] = Remembering(model.text_encoder)
    return replace(model, **cast("dict[str, Any]", parts))


def fingerprint(value: Any) -> bytes:
    """A fingerprint of numbers and their arrangement; equal for equal ones alone."""
    digest = blake2b(digest_size=32)
    _feed(digest, value)
    return digest.digest()


def _feed(digest: Any, value: Any) -> None:
    if isinstance(value, Tensor):
        digest.update(f"tensor {value.dtype} {value.device} {tuple(value.shape)};".encode())
        digest.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    elif isinstance(value, tuple | list):
        digest.update(f"{type(value).__name__} {len(value)};".encode())
        for one in value:
            _feed(digest, one)
    else:
        digest.update(f"{type(value).__name__} {value!r};".encode())


def _bytes(value: Any) -> int:
    """The size of all tensors in an answer."""
    if isinstance(value, Tensor):
        return value.nbytes
    parts = value if isinstance(value, tuple | list) else vars(value).values() if hasattr(value, "__dict__") else ()
    return sum(map(_bytes, parts))
