"""What steers the pictures of a task: prompts planned and encoded, and which of them acts at which step.

The step is known by the noise level: whatever a sampler evaluates between the grid's sigmas[k - 1] and sigmas[k]
belongs to step k, counted from 1, of the whole grid. So a prompt's schedule means the same for every sampler, and for a
task that walks only the last part of the grid. (AUTOMATIC1111 counts the calls of the network instead.)
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, chain, groupby
from math import ceil, inf
from typing import cast

from torch import Tensor

from safelight.diffusion.composition import Composition, composed, rows_of, scheduled
from safelight.diffusion.condition import Condition
from safelight.diffusion.denoiser import Denoiser
from safelight.diffusion.grids import Grid
from safelight.diffusion.samplers import Denoise
from safelight.errors import InputError
from safelight.models.run import Run, untouched
from safelight.pipeline.bundle import LatentDiffusion
from safelight.pipeline.controlling import control_of
from safelight.pipeline.fields import Settings
from safelight.pipeline.remembering import Remembering
from safelight.text.encoding import Course, encode_plans
from safelight.text.schedule import PromptPlan, plan_prompt
from safelight.text.weights import OF_SYNTAX


@dataclass(frozen=True, eq=False)
class Steering:
    """One condition for all that several prompts say at any step, and each prompt's courses through its rows."""

    condition: Condition
    prompts: tuple[tuple[Course, ...], ...]

    @classmethod
    def of(cls, condition: Condition) -> "Steering":
        """Encoded conditions, each for itself and the same at every step."""
        return cls(condition, tuple((Course(1.0, ((1, row),)),) for row in range(condition.batch)))

    def __len__(self) -> int:
        return len(self.prompts)

    @classmethod
    def joined(cls, several: Sequence["Steering"]) -> "Steering":
        """The prompts of several, one after another. Their conditions must have equal shapes."""
        starts = accumulate((one.condition.batch for one in several), initial=0)
        moved = [
            tuple(tuple(course.moved(start) for course in courses) for courses in one.prompts)
            for one, start in zip(several, starts, strict=False)
        ]
        return cls(Condition.cat([one.condition for one in several]), tuple(chain.from_iterable(moved)))

    def on(self, model: LatentDiffusion) -> "Steering":
        """Where the model's U-Net runs, and in its dtype."""
        return replace(self, condition=self.condition.to(model.device, model.dtype))

    def told(self, more: Condition) -> "Steering":
        """The same prompts, with what steers the picture whatever the words are: a condition of one row."""
        rows = more.expand(self.condition.batch).present()
        return replace(self, condition=replace(self.condition, **rows))

    def pick(self, prompts: Sequence[int]) -> "Steering":
        """The prompts of some pictures, in their order."""
        return Steering(self.condition, tuple(self.prompts[k] for k in prompts))

    def rows(self, step: int) -> tuple[int, ...]:
        """The rows that act at a step: for each picture in turn, those of its courses."""
        return tuple(course.row(step) for courses in self.prompts for course in courses)

    def composition(self, rows: Sequence[int], concat: Tensor | None = None) -> Composition:
        """The rows of a step as what a denoiser takes, further input channels beside each."""
        owners = tuple(k for k, courses in enumerate(self.prompts) for _ in courses)
        weights = tuple(course.weight for courses in self.prompts for course in courses)
        return Composition(rows_of(self.condition, rows, concat), owners, weights)


Pair = tuple[Steering, Steering | None]


def step_of(grid: Grid, sigma: float, late: int = 0) -> int:
    """The step, from 1, to which an evaluation at `sigma` belongs; schedules that come `late` see an earlier one."""
    reached = sum(level >= sigma * (1 - 1e-6) for level in grid.sigmas[:-1])
    return min(max(reached - late, 1), max(len(grid), 1))


def steer(
    model: LatentDiffusion, prompt: str | Condition, negative: str | Condition, settings: Settings,
    size: Sequence[int] | None = None,
) -> Pair:  # fmt: skip
    """A prompt and its negative prompt, encoded; the second is None where guidance would not use it.

    Both are encoded together, so that a long prompt and a short negative prompt get the same length. `size` is the
    latent's (h, w), which some models are told; by default the one they were trained at.
    """
    positive = Steering.of(prompt) if isinstance(prompt, Condition) else None
    plans = [] if isinstance(prompt, Condition) else [plan(prompt, settings)]
    composes = any(len(plan.tracks) > 1 or plan.tracks[0].weight != 1 for plan in plans)
    if settings["guidance_scale"] == 1 and not composes:
        return positive or encoded(model, plans, settings, size), None
    if isinstance(negative, Condition):
        return positive or encoded(model, plans, settings, size), Steering.of(negative)
    if not negative.strip() and model.force_zeros_for_empty_prompt:
        positive = positive or encoded(model, plans, settings, size)
        return positive, Steering.of(model.silence(positive.condition))
    both = encoded(model, [*plans, plan(negative, settings, composable=False)], settings, size)
    if both.condition.context is None and positive is None:  # a model without text has nothing to guide by
        return both, None
    return positive or both.pick([0]), both.pick([len(plans)])


def batches(pairs: Sequence[Pair], size: int) -> Iterator[list[int]]:
    """The numbers of pictures, in order, that go through the network together: at most `size`, all steered alike.

    Contexts of several lengths do not share a batch: filled up to one length they would give other pictures.
    """
    kinds = [(a.condition.shapes, b.condition.shapes if b is not None else None) for a, b in pairs]
    for _, numbers in groupby(range(len(pairs)), key=kinds.__getitem__):
        alike = list(numbers)
        yield from (alike[start : start + size] for start in range(0, len(alike), size))


def together(pairs: Sequence[Pair]) -> Pair:
    """What steers a batch of pictures, from what steers each."""
    distinct = {id(pair): pair for pair in pairs}
    rows = [list(distinct).index(id(pair)) for pair in pairs]
    negatives = [b for _, b in distinct.values() if b is not None]
    positive = Steering.joined([a for a, _ in distinct.values()]).pick(rows)
    return positive, Steering.joined(negatives).pick(rows) if negatives else None


def plan(text: str, settings: Settings, *, composable: bool = True) -> PromptPlan:
    """A prompt as the settings say it is to be read, for each of their steps."""
    syntax, extra_networks = settings["prompt_syntax"], settings["extra_networks"]
    return plan_prompt(text, settings["steps"], syntax=syntax, composable=composable, extra_networks=extra_networks)


def encoded(
    model: LatentDiffusion, plans: Sequence[PromptPlan], settings: Settings, size: Sequence[int] | None = None
) -> Steering:
    """Prompts, encoded to one length, for latents of this (h, w)."""
    if not model.unet.config.conditional or model.text_encoder is None or model.tokenizer is None:
        return Steering.of(model.condition([plan.text for plan in plans]))  # which says what is missing
    encoded = encode_plans(
        model.tokenizer,
        model.text_encoder,
        plans,
        emphasis=settings["emphasis"] or OF_SYNTAX[settings["prompt_syntax"]],
        clip_skip=settings["clip_skip"],
        long_prompts=settings["long_prompts"],
    )
    pooled = None if encoded.pooled is None else model.told_size(encoded.pooled, size)
    return Steering(Condition(context=encoded.contexts, pooled=pooled), encoded.courses)


def steered(
    model: LatentDiffusion,
    grid: Grid,
    positive: Steering,
    negative: Steering | None,
    settings: Settings,
    *,
    interval: tuple[float, float] = (0.0, inf),
    concat: Tensor | None = None,
) -> Denoise:
    """The guided denoiser (x, sigma) -> x0 of a batch of pictures, each steered by its own prompt.

    What steers is put together once for each different state of the prompts.
    """
    denoiser = running(model, grid, settings)
    positive, negative = positive.on(model), negative.on(model) if negative is not None else None
    known: dict[tuple[tuple[int, ...], tuple[int, ...]], Denoise] = {}
    scale = cast(float, settings["guidance_scale"]) if negative is not None else 1.0

    def denoise_at(sigma: float) -> Denoise:
        """The denoiser of the prompts that act at this noise level."""
        step = step_of(grid, sigma, settings["prompt_delay"])
        rows, against = positive.rows(step), negative.rows(step) if negative is not None else ()
        if (rows, against) not in known:
            known[rows, against] = composed(
                denoiser,
                positive.composition(rows, concat),
                None if negative is None else rows_of(negative.condition, against, concat),
                scale,
                rescale=settings["guidance_rescale"],
                interval=interval,
            )
        return known[rows, against]

    return scheduled(denoise_at)


def running(model: LatentDiffusion, grid: Grid, settings: Settings) -> Denoiser:
    """The model's denoiser on a grid, for one run: what its steps have in common is computed once."""
    denoiser, every = model.denoiser.on(grid), settings["feature_cache"]
    unet, memory = (
        (model.unet.network, model.unet.memory) if isinstance(model.unet, Remembering) else (model.unet, None)
    )
    timesteps = [denoiser.timestep(sigma) for sigma in grid.sigmas[:-1]]
    control = control_of(model, timesteps, settings)
    if not untouched(unet):
        if every > 1 or control is not None:
            option = "feature_cache" if every > 1 else "control_image"
            what = f"{option} needs a U-Net that is not wrapped, compiled, patched or hooked"
            raise InputError(what, remedy="leave it out, or give the U-Net as it was loaded")
        return denoiser
    early = ceil(settings["feature_cache_start"] * len(timesteps))
    below = timesteps[early - 1] if early else inf
    run = Run(unet, timesteps, every=every, below=below, control=control)
    if memory is None or every > 1 or control is not None:  # with features kept, an answer depends on those before
        return replace(denoiser, network=run)
    return replace(denoiser, network=memory.of(run, about=timesteps))
