"""The shapes of a file's tensors, by name: all that recognising a file goes by."""

from collections.abc import Mapping

from safelight.checkpoint.errors import CorruptFile, KeyMismatch
from safelight.checkpoint.files import Tensors
from safelight.errors import nearest


class Shapes(dict[str, tuple[int, ...]]):
    """The shapes of a file's tensors by name, under a prefix. A name that is asked for and not there is a
    KeyMismatch."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]], path: object, prefix: str = "") -> None:
        super().__init__({key.removeprefix(prefix): shapes[key] for key in shapes if key.startswith(prefix)})
        self.path, self.prefix = path, prefix

    def __missing__(self, key: str) -> tuple[int, ...]:
        what = f"lacks {self.prefix + key!r}, which every model of its kind has"
        raise KeyMismatch(what, path=self.path, key=self.prefix + key, remedy=nearest(key, self))

    def under(self, prefix: str) -> "Shapes":
        """Those whose names start with a prefix, without it."""
        return Shapes(self, self.path, prefix)

    def any(self, prefix: str) -> bool:
        """Whether some name starts so."""
        return any(key.startswith(prefix) for key in self)

    def count(self, prefix: str) -> int:
        """One more than the largest number that follows a prefix: how many blocks there are."""
        numbers = [int(key[len(prefix) :].split(".")[0]) for key in self if key.startswith(prefix)]
        if numbers and max(numbers) >= 1000:
            what = f"numbers {max(numbers)} blocks {prefix!r}"
            raise CorruptFile(what, path=self.path, remedy="this is no latent diffusion model")
        return 1 + max(numbers, default=-1)


def shapes_of(file: Tensors) -> Shapes:
    """The shapes of a file's tensors, from its header."""
    return Shapes({key: entry.shape for key, entry in file.entries.items()}, file.path)
