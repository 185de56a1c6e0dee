"""Pictures in the terminal while they develop: half blocks in 24-bit colour, or the protocol of kitty or iTerm2."""

import base64
import io
import os
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from math import ceil
from types import TracebackType
from typing import TYPE_CHECKING, Self, TextIO

from PIL import Image

if TYPE_CHECKING:
    from safelight.diffusion.samplers import Step, Watch
    from safelight.pipeline.bundle import LatentDiffusion

MOST_ROWS = 32
PAUSE = 0.1  # seconds between two pictures, at least
ESCAPE = "\x1b"


def protocol(environ: Mapping[str, str]) -> str:
    """How a terminal shows pictures, from its environment: "kitty", "iterm2", "blocks", or "" for not at all.

    Within tmux and screen it is blocks, since they keep the rest from the terminal.
    """
    term, program = environ.get("TERM", ""), environ.get("TERM_PROGRAM", "")
    if term == "dumb" or environ.get("NO_COLOR"):
        return ""
    if "TMUX" in environ or term.startswith(("screen", "tmux")):
        return "blocks"
    if "KITTY_WINDOW_ID" in environ or "kitty" in term or "ghostty" in term or program == "ghostty":
        return "kitty"
    if program in ("iTerm.app", "WezTerm") or environ.get("LC_TERMINAL") == "iTerm2":
        return "iterm2"
    return "blocks"


def half_blocks(image: Image.Image) -> list[str]:
    """An RGB picture as lines of text: each character is two pixels, the upper its ink and the lower its paper."""
    even = image if image.height % 2 == 0 else image.crop((0, 0, image.width, image.height + 1))
    pixels = even.load()
    assert pixels is not None
    lines = []
    for y in range(0, even.height, 2):
        pairs = ((pixels[x, y], pixels[x, y + 1]) for x in range(even.width))
        cells = ("38;2;{};{};{};48;2;{};{};{}m▀".format(*ink, *paper) for ink, paper in pairs)  # type: ignore[misc]
        lines.append("".join(f"{ESCAPE}[{cell}" for cell in cells) + f"{ESCAPE}[0m")
    return lines


def kitty(image: Image.Image, columns: int, rows: int) -> str:
    """A picture in kitty's graphics protocol, over so many cells, in place of the last one; the cursor stays."""
    data = _png(image)
    chunks = [data[k : k + 4096] for k in range(0, len(data), 4096)]
    start = f"a=T,f=100,i=1,p=1,q=2,C=1,c={columns},r={rows},"
    return "".join(
        f"{ESCAPE}_G{start if k == 0 else ''}m={int(k < len(chunks) - 1)};{chunk}{ESCAPE}\\"
        for k, chunk in enumerate(chunks)
    )


def iterm2(image: Image.Image, columns: int, rows: int) -> str:
    """A picture in iTerm2's inline protocol, over so many cells."""
    return f"{ESCAPE}]1337;File=inline=1;width={columns};height={rows};preserveAspectRatio=1:{_png(image)}\a"


def _png(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, format="PNG")
    return base64.b64encode(file.getvalue()).decode()


class Preview:
    """Shows at each step the x0 foreseen, and a line of progress under it; both vanish at the end.

    It has the face of `console.Progress`. Nothing is computed before the first step, and nothing where the standard
    error is no terminal that shows pictures (`shown`).
    """

    def __init__(self, stream: TextIO | None = None, environ: Mapping[str, str] = os.environ) -> None:
        self.stream = sys.stderr if stream is None else stream
        self.protocol = protocol(environ) if self.stream.isatty() else ""
        self._rows = 0  # of the picture on the screen; the cursor rests at the beginning of the line below
        self._last = 0.0

    @property
    def shown(self) -> bool:
        """Whether anybody can see it."""
        return self.protocol != ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._rows:
            picture = f"{ESCAPE}_Ga=d,d=I,i=1,q=2{ESCAPE}\\" if self.protocol == "kitty" else ""
            self._write(f"{picture}{ESCAPE}[{self._rows}A\r{ESCAPE}[J{ESCAPE}[?25h")

    def watching(self, model: "LatentDiffusion") -> "Watch":
        """The watcher of a run with this model."""
        convert: list[Callable[..., list[Image.Image]]] = []

        def watch(step: "Step") -> None:
            if not self.shown:
                return
            done = step.total is not None and step.index + 1 == step.total
            if not done and time.monotonic() - self._last < PAUSE:
                return
            if not convert:  # the map from latents to colours may have to be fitted
                from safelight.pipeline.seeing.preview import previewer

                convert.append(previewer(model))
            self.show(convert[0](step.x0), f"step {step.index + 1}/{step.total or '?'}  sigma {step.sigma:.3g}")
            self._last = time.monotonic()

        return watch

    def show(self, images: Sequence[Image.Image], line: str) -> None:
        """Put pictures of one size side by side, as many as fit, in place of the last ones."""
        columns, lines = shutil.get_terminal_size()
        rows = self._rows or max(2, min(lines - 3, MOST_ROWS))
        row = _row(images, columns, 2 * rows)
        start = "\n" * rows + f"{ESCAPE}[?25l" if not self._rows else ""
        self._rows = rows
        if self.protocol == "blocks":
            body = half_blocks(row)
            drawn = "\n".join(body) + "\n" * (rows - len(body) + 1)
        else:
            encode, cells = (kitty, iterm2)[self.protocol == "iterm2"], ceil(row.height / 2)
            drawn = f"{ESCAPE}7{encode(row, row.width, cells)}{ESCAPE}8{ESCAPE}[{rows}B"
        self._write(f"{start}{ESCAPE}[{rows}A\r{drawn}\r{ESCAPE}[2K{line}\r")

    def _write(self, text: str) -> None:
        self.stream.write(text)
        self.stream.flush()


def _row(images: Sequence[Image.Image], width: int, height: int) -> Image.Image:
    """As many pictures as fit into width x height beside each other: small ones enlarged, large ones reduced."""
    first = images[0]
    scale = min(height / first.height, width / first.width)
    scale = max(1, int(scale)) if scale >= 1 else scale
    size = max(1, int(first.width * scale)), max(1, int(first.height * scale))
    resampling = Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.BOX
    count = max(1, min(len(images), (width + 1) // (size[0] + 1)))
    row = Image.new("RGB", (count * (size[0] + 1) - 1, size[1]))
    for k, image in enumerate(images[:count]):
        row.paste(image.resize(size, resampling), (k * (size[0] + 1), 0))
    return row
