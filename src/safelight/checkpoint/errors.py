"""What can be wrong with a checkpoint, as types: every one is a `CheckpointError`, naming file, key and remedy."""

# ruff: noqa: N818  (each name says what is wrong; "Error" would say it twice)

from safelight.errors import CheckpointError, NonFiniteError


class CorruptFile(CheckpointError, ValueError):
    """The bytes break a rule of their format: cut short, overlapping, not what the header says."""


class UnsafePickle(CheckpointError):
    """A pickle asks for something that no weights file needs. `key` is the global it names. Nothing was executed."""


class WrongModel(CheckpointError, ValueError):
    """A sound file of a kind that cannot be used here: a LoRA, a ControlNet, another family of models."""


class UnknownClass(CheckpointError, ValueError):
    """A config names a class outside the closed registry. Nothing was imported."""


class KeyMismatch(CheckpointError, KeyError):
    """Tensors that the network needs are missing, or the file holds tensors that the network does not know."""

    __str__ = CheckpointError.__str__  # KeyError's would print the quoted repr


class WrongShape(CheckpointError, ValueError):
    """A tensor has another shape than the network's parameter of that name."""


class NonFiniteWeights(CheckpointError, NonFiniteError):
    """A tensor holds NaN or infinity."""
