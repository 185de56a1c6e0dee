"""What can be seen inside, as matplotlib figures. Each function returns a `Figure`; `save_figure` writes it.

schedule_figure    betas, alphas_cumprod and sigma of a noise schedule
sigmas_figure      several grids together: sigma over the steps, and where the steps lie in the training schedule
guidance_figure    what guidance adds at each step
latents_figure     a picture and the channels of its latent
attention_figure   where a picture looked at each word
roundtrip_figure   a picture before and after the autoencoder, and the error
"""

from collections.abc import Sequence
from importlib.util import find_spec
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from safelight.diffusion.grids import make_grid
from safelight.diffusion.schedule import NoiseSchedule
from safelight.errors import InputError, MissingPartError
from safelight.pipeline.files import write_new
from safelight.pipeline.pictures import check_folder, to_pil
from safelight.pipeline.seeing.attention import AttentionMaps
from safelight.pipeline.seeing.measuring import Pull, RoundTrip

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg", ".pdf")
RED, INK, GREY = "#c8321e", "#33302e", "#8a8480"
COLOURS = (RED, "#2c6fa8", "#e0912f", "#3f8f5f", "#7b5aa6", "#5b5450", "#c2739b", "#8c9a2f")
LINE = 1.8
PICTURE = 2.3  # inches on paper for the side of a picture, of 64 pixels as of 512


def schedule_figure(schedule: NoiseSchedule) -> "Figure":
    """The noise that a network was trained on, over the timesteps: three panels."""
    figure = _figure(11, 3.3)
    panels = (
        (schedule.betas, "beta", "variance added at each timestep"),
        (schedule.alphas_cumprod, "alphas_cumprod", "share of the picture that is left"),
        (schedule.sigmas, "sigma", "standard deviation of the noise"),
    )
    for k, (values, name, title) in enumerate(panels, 1):
        axes = _axes(figure, 1, 3, k, title)
        axes.plot(range(len(values)), values.tolist(), color=RED, linewidth=LINE)
        axes.set(xlabel="timestep t", ylabel=name, xlim=(0, len(values)))
        if name == "sigma":
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
        else:
            axes.set_ylim(bottom=0)
    return figure


def sigmas_figure(schedule: NoiseSchedule, grids: Sequence[str], steps: int = 20) -> "Figure":
    """Several grids of one number of steps: how fast each falls, and where in the training schedule its steps lie."""
    if not grids:
        raise InputError("no grid to plot", remedy="name some, such as karras and linspace")
    figure = _figure(11, 3.6 + 0.22 * max(0, len(grids) - 6))
    falling = _axes(figure, 1, 2, 1, f"sigma over {steps} steps")
    places = _axes(figure, 1, 2, 2, "timesteps visited")
    for k, name in enumerate(grids):
        laid, colour = make_grid(schedule, steps, name), COLOURS[k % len(COLOURS)]
        sigmas = [sigma for sigma in laid.sigmas if sigma > 0]
        falling.plot(range(len(sigmas)), sigmas, ".-", color=colour, linewidth=LINE, markersize=5, label=name)
        places.plot(laid.timesteps, [k] * len(laid), "|", color=colour, markersize=13, markeredgewidth=1.8)
    falling.set(xlabel="step", ylabel="sigma", yscale="log")
    falling.yaxis.set_major_formatter("{x:g}")
    _whole_numbers(falling)
    falling.legend(frameon=False, fontsize=9, labelcolor=INK)
    places.set(xlabel="timestep t", xlim=(schedule.num_train_timesteps, -1), ylim=(len(grids) - 0.4, -0.6))
    places.set_yticks(range(len(grids)), grids)
    places.grid(False, axis="y")
    return figure


def guidance_figure(pulls: Sequence[Pull]) -> "Figure":
    """What guidance adds at each step, beside the noise that the network sees."""
    figure = _figure(7.2, 4.0)
    axes = _axes(figure, 1, 1, 1, "the pull of guidance")
    numbers, scale = [pull.number for pull in pulls], pulls[0].term / (pulls[0].difference or 1)
    rows = (
        ("noise", "the noise under the negative prompt, |u|", GREY, "-"),
        ("difference", "what the prompt changes, |c − u|", COLOURS[1], ".-"),
        ("term", f"what guidance makes of it, {scale:g} |c − u|", RED, ".-"),
    )
    for name, label, colour, style in rows:
        values = [getattr(pull, name) for pull in pulls]
        axes.plot(numbers, values, style, color=colour, linewidth=LINE, markersize=6, label=label)
    axes.set(xlabel="evaluation of the network", ylabel="root mean square, in units of noise", yscale="log")
    axes.yaxis.set_major_formatter("{x:g}")
    _whole_numbers(axes)
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9, labelcolor=INK)
    return figure


def latents_figure(trip: RoundTrip) -> "Figure":
    """A picture and the channels of its latent, all channels on one scale of colours around 0."""
    picture, latent = to_pil(trip.picture[0]), trip.latent[0]
    columns = min(len(latent) + 1, 5)
    lines = ceil((len(latent) + 1) / columns)
    figure = _figure(PICTURE * columns + 0.7, (PICTURE + 0.75) * lines)
    limit = max(latent.abs().flatten().quantile(0.995).item(), 1e-3)
    _picture(figure, lines, columns, 1, picture, f"picture, {picture.width}×{picture.height}")
    panels = []
    for k, channel in enumerate(latent):
        axes = _picture(figure, lines, columns, k + 2, None, f"channel {k}")
        shown = axes.imshow(channel.tolist(), cmap="RdBu_r", vmin=-limit, vmax=limit, interpolation="nearest")
        axes.set_xlabel(f"mean {channel.mean():.2f}, std {channel.std():.2f}", fontsize=8.5, color=GREY)
        panels.append(axes)
    _scale(figure, shown, panels, "scaled latent")
    return figure


def attention_figure(seen: AttentionMaps, *, most: int = 12) -> "Figure":
    """Where a picture looked at each word, up to `most`: bright where it did, each on a scale of its own.

    Under each word stands its mean share of attention.
    """
    words = range(min(len(seen.words), most))
    columns = min(len(words) + 1, 5)
    lines = ceil((len(words) + 1) / columns)
    aspect = seen.picture.height / seen.picture.width
    figure = _figure(PICTURE * columns + 0.2, (PICTURE * aspect + 0.55) * lines)
    _picture(figure, lines, columns, 1, seen.picture, "picture")
    width, height = seen.picture.size
    for k in words:
        axes = _picture(figure, lines, columns, k + 2, seen.picture.convert("L").convert("RGB"), seen.words[k])
        heat = seen.maps[k]
        spread = (heat - heat.min()) / (heat.max() - heat.min()).clamp(min=1e-9)
        extent = (-0.5, width - 0.5, height - 0.5, -0.5)
        axes.imshow(spread.tolist(), cmap="inferno", alpha=0.72, extent=extent, interpolation="bicubic", vmin=0, vmax=1)
        axes.set_xlabel(f"{100 * heat.mean():.2g} %", fontsize=8.5, color=GREY)
    return figure


def roundtrip_figure(trip: RoundTrip) -> "Figure":
    """A picture, what the autoencoder makes of it, and how far apart they are."""
    figure = _figure(PICTURE * 3 + 1.2, PICTURE * trip.picture.shape[-2] / trip.picture.shape[-1] + 0.4)
    height, width = trip.picture.shape[-2:]
    channels, h, w = trip.latent.shape[1:]
    _picture(figure, 1, 3, 1, to_pil(trip.picture[0]), f"picture, {width}×{height}")
    _picture(figure, 1, 3, 2, to_pil(trip.again[0]), f"from its latent, {channels}×{h}×{w}")
    axes = _picture(figure, 1, 3, 3, None, f"error, {trip.psnr:.1f} dB")
    limit = max(trip.error.flatten().quantile(0.995).item(), 1.0)
    shown = axes.imshow(trip.error.tolist(), cmap="magma", vmin=0, vmax=limit, interpolation="nearest")
    _scale(figure, shown, [axes], "levels of 255")
    return figure


def check_figure(path: Path) -> None:
    """Raise where no figure can be written to `path`, before what it shows is computed."""
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path} is no figure", remedy=f"end its name in {', '.join(SUFFIXES)}")
    if find_spec("matplotlib") is None:
        raise _no_matplotlib()
    check_folder(path.parent)


def save_figure(figure: "Figure", path: Path | str) -> Path:
    """Write a figure as .png, .svg or .pdf: whole or not at all, and never over another file. Returns the path."""
    path = Path(path)
    check_figure(path)
    kind = path.suffix.lower()[1:]
    return write_new(path, lambda file: figure.savefig(file, format=kind, dpi=160, facecolor="white"))


def _no_matplotlib() -> MissingPartError:
    return MissingPartError("figures need matplotlib", remedy="pip install 'safelight[train]'")


def _figure(width: float, height: float) -> "Figure":
    """An empty figure of so many inches."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise _no_matplotlib() from None
    return Figure(figsize=(width, height), layout="constrained")


def _axes(figure: "Figure", lines: int, columns: int, number: int, title: str) -> "Axes":
    """A panel for curves."""
    axes = figure.add_subplot(lines, columns, number)
    axes.set_title(title, fontsize=10.5, color=INK, loc="left")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GREY)
    axes.tick_params(colors=GREY, labelcolor=INK, labelsize=9)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    axes.grid(alpha=0.22, linewidth=0.7)
    axes.set_axisbelow(True)
    return axes


def _whole_numbers(axes: "Axes") -> None:
    from matplotlib.ticker import MaxNLocator

    axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _picture(figure: "Figure", lines: int, columns: int, number: int, image: Image.Image | None, title: str) -> "Axes":
    """A panel without axes for a picture, or for what is drawn in its place."""
    axes = figure.add_subplot(lines, columns, number)
    axes.set_title(title, fontsize=10, color=INK)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    if image is not None:
        import numpy as np

        axes.imshow(np.asarray(image), interpolation="nearest" if max(image.size) < 256 else "antialiased")
    return axes


def _scale(figure: "Figure", shown: Any, panels: Sequence["Axes"], label: str) -> None:
    """A bar that tells what the colours of some panels mean."""
    bar = figure.colorbar(shown, ax=list(panels), shrink=0.86, aspect=18, pad=0.02)
    bar.set_label(label, fontsize=9, color=INK)
    bar.ax.tick_params(labelsize=8.5, colors=GREY, labelcolor=INK)
    bar.outline.set_visible(False)
