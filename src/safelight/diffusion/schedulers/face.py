"""diffusers' verbs over the samplers' coroutines: `set_timesteps`, `scale_model_input`, `step(...).prev_sample`.

No sampler's mathematics is here. A scheduler lays out a grid, learns from a dry run of its sampler which noise levels
will be asked for (its `timesteps`), and answers each `step` by resuming the suspended coroutine.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from inspect import Parameter, signature
from typing import Any, ClassVar

import torch
from torch import Tensor

from safelight.diffusion.parameterization import PARAMETERIZATIONS
from safelight.diffusion.samplers import Steps, find
from safelight.diffusion.schedulers.config import bound
from safelight.diffusion.schedulers.plan import Planned, unit_variance
from safelight.errors import InputError

Generators = torch.Generator | Sequence[torch.Generator] | None


@dataclass
class SchedulerOutput:
    """What `step` returns; also by name, `out["prev_sample"]`, and by place, `out[0]`.

    prev_sample: the latent at the next timestep, like the `sample` given. pred_original_sample: the x0 that the network
    predicts now (diffusers has it for some schedulers, here all do); `denoised` is LCM's name for it.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor

    @property
    def denoised(self) -> Tensor:
        """`pred_original_sample`, under LCM's name."""
        return self.pred_original_sample

    def to_tuple(self) -> tuple[Tensor, Tensor]:
        """(prev_sample, pred_original_sample), as with return_dict=False."""
        return self.prev_sample, self.pred_original_sample

    def __getitem__(self, key: str | int) -> Tensor:
        return getattr(self, key) if isinstance(key, str) else self.to_tuple()[key]

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.to_tuple())


class Scheduler(Planned):
    """diffusers' scheduler. The subclasses are rows of a table: what each row says is listed here.

    Samples are (B, C, H, W), of any float dtype; the arithmetic is float32 or wider. Timesteps are consumed in order.
    A timestep of the grid that is not the expected one restarts the sampler there: the same for a sampler without
    memory; one with memory begins it anew. A half-run scheduler with memory cannot be copied or pickled.
    """

    memoryless: ClassVar[bool] = False
    any_timestep: ClassVar[bool] = False  # step() accepts timesteps of training that are not on the grid
    noise_dtype: ClassVar[torch.dtype | None] = None  # None: the network's
    step_options: ClassVar[Mapping[str, Any]] = {}  # step()'s arguments after the sample, in diffusers' order

    _run: Steps | None  # the suspended coroutine,
    _awaited: tuple[int | None, dict[str, Any]] | None  # what it waits for, with its options; None before any step
    _dice: "Dice"

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        # Pipelines read the signatures to learn whether a scheduler takes eta or a generator
        _sign(cls, "__init__", cls.defaults, replaces=0)
        _sign(cls, "step", {**cls.step_options, "return_dict": True}, replaces=3)

    def step(self, model_output: Tensor, timestep: float | Tensor, sample: Tensor, *args: Any, **kwargs: Any) -> Any:
        """From the network's output at (sample, timestep), the sample at the next timestep.

        Each scheduler has its own further arguments, those of diffusers. `generator`: one, or a list with one for each
        picture; None is torch's global one. With return_dict=False a tuple (prev_sample, pred_original_sample).

        Raises InputError for a timestep that is not on the grid.
        """
        name = f"{type(self).__name__}.step"
        options = {**self.step_options, "return_dict": True}
        options |= bound(name, options, args, kwargs)
        out = self._step(model_output, timestep, sample, options)
        return out if options["return_dict"] else out.to_tuple()

    def _step(
        self, output: Tensor, timestep: float | Tensor, sample: Tensor, options: Mapping[str, Any]
    ) -> SchedulerOutput:
        index = self._place(timestep)
        plan = self._ready()
        s = self.schedule.sigma(float(timestep)) if index is None else plan.evals[index]
        dtype = torch.promote_types(sample.dtype, output.dtype)
        wide = torch.promote_types(dtype, torch.float32)
        t = float(timestep) if index is None else plan.timesteps[index]
        self._dice = Dice(sample.shape, output.device, self.noise_dtype or output.dtype, options)
        x, x0 = self._denoised(output.to(wide), sample.to(wide), s, t, options)
        x, s_next = self._advance(index, s, x, x0, options)
        if self._always_draws(t, options) and not self._dice.thrown:
            self._dice.throw()  # a script that goes on with this generator shall find it where diffusers leaves it
        self._step_index = None if index is None else index + 1
        return SchedulerOutput((x * self._scale(s_next)).to(dtype), x0.to(dtype))

    def _place(self, timestep: float | Tensor) -> int | None:
        try:
            return self._index(timestep)
        except InputError:
            if self.any_timestep and 0 <= float(timestep) < len(self):
                return None
            raise

    def _scale(self, s: float) -> float:
        """From the samplers' x, with noise of standard deviation s, to this scheduler's samples."""
        return 1.0 if self.variance_exploding else unit_variance(s)

    def _denoised(
        self, output: Tensor, sample: Tensor, s: float, t: float, options: Mapping[str, Any]
    ) -> tuple[Tensor, Tensor]:
        """(x, x0) for the sampler."""
        x = sample / self._scale(s)
        return x, self._clipped(self._unclipped(output, x, s))

    def _unclipped(self, output: Tensor, x: Tensor, s: float) -> Tensor:
        if self.settings.get("variance_type") in ("learned", "learned_range"):
            output = output[:, : x.shape[1]]  # the rest is the variance
        return PARAMETERIZATIONS[self.config.prediction_type].denoised(output, x, s)

    def _clipped(self, x0: Tensor) -> Tensor:
        config = self.settings
        if config.get("thresholding"):
            return dynamic_threshold(x0, config["dynamic_thresholding_ratio"], config["sample_max_value"])
        if config.get("clip_sample"):
            return x0.clamp(-config["clip_sample_range"], config["clip_sample_range"])
        return x0

    def _advance(
        self, index: int | None, s: float, x: Tensor, x0: Tensor, options: Mapping[str, Any]
    ) -> tuple[Tensor, float]:
        """Resume the coroutine, or start it where it is not waiting; gives its next x and that x's sigma."""
        wanted = self._sampler_options(options)
        if index is None or self._run is None or self._awaited != (index, wanted):
            self._run = self._start(index, s, x, wanted)
            next(self._run)
        try:
            x, s_next = self._run.send((x, x0))
            self._awaited = (None if index is None else index + 1, wanted)
        except StopIteration as done:
            self._run, x, s_next = None, done.value, self._ready().grid.sigmas[-1]
        if index is None:
            self._forget()
        return x, s_next

    def _start(self, index: int | None, s: float, x: Tensor, wanted: Mapping[str, Any]) -> Steps:
        plan = self._ready()
        if index is None:
            sigmas: tuple[float, ...] = (s, *(later for later in plan.grid.sigmas if later < s))
            start = 0
        else:
            start = self._start_of(index)
            sigmas = plan.grid.sigmas[start:]
        return find(self.sampler)(x, sigmas, self._noise, **self._options(plan.grid, start), **plan.options, **wanted)

    def _start_of(self, index: int) -> int:
        """The step that begins with evaluation `index`; InputError if that lies within a step."""
        if index % self.order:
            what = f"timesteps[{index}] lies within a step of {type(self).__name__}"
            raise InputError(what, remedy=f"begin at a multiple of its order, {self.order}")
        return index // self.order

    def _sampler_options(self, options: Mapping[str, Any]) -> dict[str, Any]:
        """The sampler's options that step() decides."""
        return {}

    def _noise(self, s: float, s_next: float) -> Tensor:
        return self._dice.throw()

    def _always_draws(self, t: float, options: Mapping[str, Any]) -> bool:
        """Whether diffusers draws noise at this step even where its weight is zero."""
        return False

    def _forget(self) -> None:
        self._run = self._awaited = None

    def __getstate__(self) -> dict[str, Any]:
        if self._run is not None and not self.memoryless:
            what = f"a {type(self).__name__} cannot be copied half-run: its memory is a suspended coroutine"
            raise InputError(what, remedy="copy it before the run or after it")
        return {k: v for k, v in self.__dict__.items() if k not in ("_run", "_awaited", "_dice")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()


def dynamic_threshold(x0: Tensor, ratio: float, highest: float) -> Tensor:
    """Imagen's dynamic thresholding (Saharia et al. 2022, sec. 2.3): clip each picture at its own quantile; rescale.

    The quantile of |x0| at `ratio` is held between 1 and `highest`.
    """
    level = torch.quantile(x0.flatten(1).abs(), ratio, dim=1).clamp(1, highest)
    level = level.reshape(-1, *[1] * (x0.ndim - 1))
    return x0.clamp(-level, level) / level


def randn(shape: Sequence[int], generator: Generators, device: torch.device, dtype: torch.dtype) -> Tensor:
    """Noise as diffusers draws it: on the generator's device, from one for the batch or from one for each picture."""
    if isinstance(generator, torch.Generator) or generator is None:
        where = device if generator is None else generator.device
        return torch.randn(shape, generator=generator, device=where, dtype=dtype).to(device)
    if len(generator) == 1:
        return randn(shape, generator[0], device, dtype)
    if len(generator) != shape[0]:
        raise InputError(f"{len(generator)} generators for a batch of {shape[0]}", remedy="give one for each picture")
    return torch.cat([randn((1, *shape[1:]), one, device, dtype) for one in generator])


class Dice:
    """The noise of one step."""

    def __init__(
        self, shape: Sequence[int], device: torch.device, dtype: torch.dtype, options: Mapping[str, Any]
    ) -> None:
        self.given: Tensor | None = options.get("variance_noise")
        self.generator: Generators = options.get("generator")
        if self.given is not None and self.generator is not None:
            raise InputError("step takes a generator or variance_noise, not both")
        self.shape, self.device, self.dtype, self.thrown = shape, device, dtype, False

    def throw(self) -> Tensor:
        """Unit noise of the sample's shape."""
        self.thrown = True
        if self.given is not None:
            return self.given.to(self.device)
        return randn(self.shape, self.generator, self.device, self.dtype)


def _sign(cls: type, method: str, options: Mapping[str, Any], *, replaces: int) -> None:
    """Give `cls` Scheduler's `method` with a signature of its own: self, `replaces` arguments more, and `options`."""
    plain = getattr(Scheduler, method)

    @wraps(plain)
    def signed(*args: Any, **kwargs: Any) -> Any:
        return plain(*args, **kwargs)

    kept = list(signature(plain).parameters.values())[: replaces + 1]
    own = [Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=value) for name, value in options.items()]
    signed.__signature__ = signature(plain).replace(parameters=[*kept, *own])  # type: ignore[attr-defined]
    setattr(cls, method, signed)
