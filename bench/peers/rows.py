"""What is measured: a part of Stable Diffusion 1, a batch, a size. A row's key is how options and results name it."""

from collections.abc import Sequence
from dataclasses import dataclass

SIZES = (256, 512, 768, 1024)
STEPS = 20  # of a picture drawn from end to end, unless others are asked for

# key -> (part, batch), in the order of the page
KINDS = {
    "text": ("text", 2),
    "unet1": ("unet", 1),
    "unet2": ("unet", 2),
    "guided": ("unet", 2),
    "encode": ("encode", 1),
    "decode": ("decode", 1),
    "draw": ("draw", 1),
}
WORDS = {
    "text": "text encoder, 2 prompts",
    "unet1": "U-Net step, batch 1",
    "unet2": "U-Net step, batch 2",
    "guided": "guidance step, one latent, two prompts",
    "encode": "VAE encode",
    "decode": "VAE decode",
    "draw": "end to end, with guidance",
}


@dataclass(frozen=True)
class Row:
    """One comparison. `side` is that of the picture in pixels, `steps` are those of one drawn from end to end.

    0 stands for what a part does not have: the text encoder has no side.
    """

    kind: str
    side: int = 0
    steps: int = 0

    @property
    def key(self) -> str:
        """Such as "unet2-512", or "draw-512-20"."""
        return "-".join([self.kind, *(str(number) for number in (self.side, self.steps) if number)])

    @property
    def part(self) -> str:
        """What of the model runs: text, unet, encode, decode, or draw for all of it."""
        return KINDS[self.kind][0]

    @property
    def batch(self) -> int:
        """How many go through the network together."""
        return KINDS[self.kind][1]

    def __str__(self) -> str:
        steps = [f"{self.steps} steps"] if self.steps else []
        return ", ".join([WORDS[self.kind], *steps, *([f"{self.side}²"] if self.side else [])])


def rows(kinds: Sequence[str], sizes: Sequence[int], steps: int = STEPS) -> list[Row]:
    """The rows of some kinds and sizes, the small ones first."""
    sized = [Row(kind, side, steps if kind == "draw" else 0) for side in sizes for kind in kinds if kind != "text"]
    return [Row("text")] * ("text" in kinds) + sized


def row_of(key: str) -> Row:
    """The row of a key."""
    kind, *numbers = key.split("-")
    return Row(kind, *map(int, numbers))
