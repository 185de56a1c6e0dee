"""From one picture to another: between two prompts, between two seeds, or both, in steps of equal size."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from secrets import randbelow
from typing import TYPE_CHECKING, Annotated, Any, Literal, Unpack

from pydantic import Field

from safelight.errors import InputError
from safelight.pipeline.fields import Height, Prompt, Settings, Width, for_model, validate

if TYPE_CHECKING:
    from torch import Tensor

    from safelight.diffusion.noise import Origin
    from safelight.pipeline.bundle import LatentDiffusion
    from safelight.pipeline.developing import Streams
    from safelight.pipeline.pictures import Pictures
    from safelight.pipeline.steering import Pair, Steering

Curve = Literal["slerp", "lerp"]
Frames = Annotated[int, Field(ge=2, le=10000, description="pictures on the way, both ends among them")]
ToSeed = Annotated[int | None, Field(ge=0, lt=2**63, description="the seed at the end; by default the same")]
OnCurve = Annotated[Curve, Field(description="how encoded prompts turn into each other: along an arc, or a line")]


def morph(
    model: "LatentDiffusion",
    prompt: Prompt,
    to_prompt: Annotated[Any, Field(description="the prompt at the end; by default the same")] = None,
    *,
    frames: Frames = 16,
    to_seed: ToSeed = None,
    curve: OnCurve = "slerp",
    width: Width = None,
    height: Height = None,
    **settings: Unpack[Settings],
) -> "Pictures":
    """Draw the way from one prompt or seed to another.

    Encoded prompts are mixed token by token, at each step what the prompts say there; noise is turned along the sphere
    (slerp) from one seed's to the other's, so that it stays noise of the same variance. The first and the last frame
    are the pictures of the two prompts and seeds.

    Args:
        model: what `safelight.load` returns.
        prompt: where it begins; a string.
        to_prompt: where it ends; a string.
        frames: pictures, both ends among them.
        to_seed: the seed at the end.
        curve: "slerp" or "lerp", for the encoded prompts.
        width: in pixels; by default the size the model was trained at.
        height: likewise.
        **settings: see `Settings`; `count` stays 1. Frames are drawn `batch_size` at a time.

    Raises:
        InputError: where both ends are the same, or for prompts of several branches (AND).
    """
    own = {"frames": frames, "to_seed": to_seed, "curve": curve, "width": width, "height": height}
    return _walked(model, settled({"prompt": prompt, "to_prompt": to_prompt, **own, **settings}))


def settled(asked: Mapping[str, Any]) -> dict[str, Any]:
    """The keywords of `morph`, checked and complete, with both ends. Raises InputError where both are the same."""
    values = validate(morph, dict(asked))
    if values["count"] != 1:
        raise InputError(f"count={values['count']}: a way has its frames", remedy="set frames instead")
    begin, end = values["prompt"], values["to_prompt"]
    seed = randbelow(2**32) if values["seed"] is None else values["seed"]
    ends = {"seed": seed, "to_seed": seed if values["to_seed"] is None else values["to_seed"],
            "to_prompt": begin if end is None else end}  # fmt: skip
    if ends["to_prompt"] == begin and ends["to_seed"] == seed:
        raise InputError("both ends are the same picture", remedy="give another prompt or another seed to end at")
    return values | ends


def check_way(path: Path, fps: float) -> None:
    """Raise where `save_way` could not write, before anything is drawn: InputError, or MissingPartError for MP4."""
    from safelight.pipeline.animation import check_animation
    from safelight.pipeline.pictures import check_folder

    if path.suffix.lower() in ("", ".png"):
        check_folder(path.parent if path.suffix else path)
    else:
        check_animation(path, fps)


def save_way(frames: "Pictures", path: Path | str, *, fps: float = 8.0, title: str = "") -> Path:
    """Write frames by the name's ending: .gif, .webp and .mp4 move, .png is a contact sheet, none is a folder of PNGs.

    A PNG says how the whole way was drawn. Files appear whole or not at all, and never over another. Returns the path
    that was written.
    """
    from safelight.pipeline.animation import save_animation
    from safelight.pipeline.contact import contact_sheet
    from safelight.pipeline.pictures import save_picture

    path = Path(path)
    check_way(path, fps)
    recipes = frames.recipes or (None,) * len(frames)
    if path.suffix.lower() == ".png":
        shares = [f"{k / (len(frames) - 1):.2g}" for k in range(len(frames))]
        return save_picture(contact_sheet(frames.images, captions=shares, title=title), path, recipes[0])
    if path.suffix:
        return save_animation(frames.images, path, fps=fps)
    for k, (image, recipe) in enumerate(zip(frames.images, recipes, strict=True)):
        save_picture(image, path / f"frame-{k:04}.png", recipe)
    return path


def _walked(model: "LatentDiffusion", values: dict[str, Any]) -> "Pictures":
    import torch

    from safelight.diffusion.noise import Origin, make_noise
    from safelight.diffusion.samplers import find
    from safelight.pipeline.bundle import wrong_task
    from safelight.pipeline.developing import decode, guide, noise_source, walk
    from safelight.pipeline.pictures import Pictures, to_pil
    from safelight.pipeline.steering import batches, together

    if model.sees != "nothing" or model.steered_by not in ("words", "nothing"):
        raise wrong_task(model)
    values = for_model(values, model)
    settings: Any = values
    shares = [k / (values["frames"] - 1) for k in range(values["frames"])]
    ends = [
        _end(values[words], settings, values[seed]) for words, seed in (("prompt", "seed"), ("to_prompt", "to_seed"))
    ]
    size = model.latent_size(values["width"], values["height"])
    pairs = between(model, ends, shares, values["curve"], settings, size)
    grid, kind = model.grid(values["grid"], values["steps"], **(values["grid_options"] or {})), find(values["sampler"])
    shape = (model.autoencoder.config.embed_dim, *size)
    source = noise_source(model, settings)
    origins = [Origin(values[name], values["subseed"], values["batch_index"]) for name in ("seed", "to_seed")]
    finished = []
    for numbers in batches(pairs, 1 if kind.adaptive else values["batch_size"]):
        denoise = guide(model, grid, *together([pairs[k] for k in numbers]), settings)
        a, b = (make_noise(kind.noise, [one], shape, source=source, device=model.device) for one in origins)
        finished.append(walk(denoise, grid, Turned(a, b, [shares[k] for k in numbers]), settings))
    latents = torch.cat(finished).cpu()
    images = tuple(to_pil(decode(model, one[None], values["tile"])[0]) for one in latents)
    middle = len(images) - 2
    words = [(ends[0][k], *[None] * middle, ends[1][k]) for k in (0, 1)]
    frames = Pictures(images, (values["seed"],) * (middle + 1) + (values["to_seed"],), latents, words[0], words[1])
    return _noted(frames, ends, origins[0], values, model)


def _noted(
    frames: "Pictures",
    ends: Sequence[tuple[str, str]],
    origin: "Origin",
    values: Mapping[str, Any],
    model: "LatentDiffusion",
) -> "Pictures":
    """The frames, each with the recipe of the whole way, words settled, and its number on it."""
    from safelight.pipeline.recipes.recipe import recorded

    count, (width, height) = len(frames), frames[0].size
    begin = replace(
        frames, prompts=(ends[0][0],) * count, negative_prompts=(ends[0][1],) * count, origins=(origin,) * count
    )
    asked = {**values, "to_prompt": ends[1][0], "width": width, "height": height}
    noted = recorded(begin, morph, asked, model).recipes
    numbered = (replace(one, request={**one.request, "frame": k}) for k, one in enumerate(noted))
    return replace(frames, recipes=tuple(numbered))


def _end(prompt: Any, settings: Settings, seed: int) -> tuple[str, str]:
    """The prompt and the negative prompt of one end, styles and choices settled."""
    from safelight.pipeline.wording import worded

    if not isinstance(prompt, str):
        raise InputError(f"prompt: {prompt!r} is not text", remedy="give a string")
    ((words, negative),) = worded(prompt, settings, seed).pairs()
    if not (isinstance(words, str) and isinstance(negative, str)):
        raise InputError("negative_prompt: it is not text", remedy="give a string")
    return words, negative


def between(
    model: "LatentDiffusion", ends: Sequence[tuple[str, str]], shares: Sequence[float], curve: Curve,
    settings: Settings, size: Sequence[int] | None = None,
) -> "list[Pair]":  # fmt: skip
    """What steers each frame: at every step the mixture of what both prompts say there, and of both negative prompts.

    ends: two prompts with their negative prompts. All four are encoded to one length.
    """
    from safelight.pipeline.steering import Steering, encoded, plan

    plans = [plan(end[0], settings) for end in ends] + [plan(end[1], settings, composable=False) for end in ends]
    if any(len(one.tracks) > 1 or one.tracks[0].weight != 1 for one in plans):
        raise InputError("prompts of several branches (AND) cannot be mixed", remedy="leave AND out of both")
    whole = encoded(model, plans, settings, size)
    if whole.condition.context is None:  # a model without text: only the seed changes
        return [(whole.pick([0]), None)] * len(shares)
    positive = [_mixed(whole, (0, 1), t, curve) for t in shares]
    if settings["guidance_scale"] == 1:
        return [(one, None) for one in positive]
    if model.force_zeros_for_empty_prompt and not any(negative.strip() for _, negative in ends):
        return [(one, Steering.of(model.silence(one.condition))) for one in positive]
    return [(one, _mixed(whole, (2, 3), t, curve)) for one, t in zip(positive, shares, strict=True)]


def _mixed(whole: "Steering", ends: tuple[int, int], t: float, curve: Curve) -> "Steering":
    """A prompt between two, with a stretch of steps for each that either has."""
    import torch

    from safelight.diffusion.condition import Condition
    from safelight.pipeline.steering import Steering
    from safelight.text.encoding import Course
    from safelight.text.mixing import between as mixed
    from safelight.text.mixing import lerp

    ((a,), (b,)) = (whole.prompts[k] for k in ends)
    lasts = sorted({last for course in (a, b) for last, _ in course.rows})
    contexts = whole.condition.context
    assert contexts is not None
    rows = [mixed(contexts[a.row(last)][None], contexts[b.row(last)][None], t, curve=curve) for last in lasts]
    course = Course(1.0, tuple((last, k) for k, last in enumerate(lasts)))
    wholes = whole.condition.pooled
    if wholes is not None:
        wholes = torch.stack([lerp(wholes[a.row(last)], wholes[b.row(last)], t) for last in lasts])
    return Steering(Condition(context=torch.cat(rows), pooled=wholes), ((course,),))


@dataclass
class Turned:
    """Noise between that of two seeds, for some shares of the way, turned along the sphere: (B, C, h, w)."""

    a: "Streams"
    b: "Streams"
    shares: Sequence[float]

    @property
    def origins(self) -> "list[Origin]":
        """One for each picture."""
        return self.a.origins * len(self.shares)

    def initial(self) -> "Tensor":
        """The first noise."""
        return self._between(self.a.initial(), self.b.initial())

    def __call__(self, sigma: float, sigma_next: float) -> "Tensor":
        """The noise of a step."""
        return self._between(self.a(sigma, sigma_next), self.b(sigma, sigma_next))

    def _between(self, a: "Tensor", b: "Tensor") -> "Tensor":
        import torch

        from safelight.text.mixing import between as mixed

        return torch.cat([mixed(a, b, t, dim=(1, 2, 3)) for t in self.shares])
