"""Where a scheduler's run goes: its grid, the timesteps its sampler will ask for, and the place it has reached."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from safelight.diffusion.grids import Grid, grid_of_sigmas
from safelight.diffusion.noise import sent
from safelight.diffusion.samplers import visited
from safelight.diffusion.schedule import noise_schedule
from safelight.diffusion.schedulers.config import Configured, bound
from safelight.diffusion.schedulers.grid import Family, grid_at_timesteps, make_grid
from safelight.errors import InputError, MissingPartError, nearest

PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")


@dataclass(frozen=True)
class Plan:
    """What set_timesteps decides: the grid, and every evaluation the sampler will ask for, as (sigma, timestep)."""

    grid: Grid
    evals: tuple[float, ...]
    timesteps: tuple[float, ...]
    options: Mapping[str, Any]  # of the sampler, where set_timesteps was given any


class Planned(Configured):
    """The half of `Scheduler` that knows the noise schedule, the grid and the place, and no sample's next step."""

    sampler: str
    family: ClassVar[Family]
    order: ClassVar[int] = 1  # evaluations in each step
    variance_exploding: ClassVar[bool] = False  # samples are x0 + sigma * noise; else that / sqrt(1 + sigma²)
    by_table: ClassVar[bool] = False  # add_noise goes by the schedule's table, not by the run
    set_options: ClassVar[Mapping[str, Any]] = {}  # set_timesteps()'s further arguments

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._configure(args, kwargs)
        self._check()
        names = ("beta_start", "beta_end", "num_train_timesteps", "trained_betas")
        self.schedule = noise_schedule(
            self.config.beta_schedule,
            rescale_betas_zero_snr=self.settings.get("rescale_betas_zero_snr", False),
            **{name: self.config[name] for name in names},
        )
        self.betas = self.schedule.betas.float()
        self.alphas = 1 - self.betas
        self.alphas_cumprod = self.schedule.alphas_cumprod.float()
        self.num_inference_steps: int | None = None
        self._plan: Plan | None = None
        self._step_index: int | None = None
        self._begin_index: int | None = None
        self._skipped = 0  # timesteps that an assignment left out
        self._forget()

    def _forget(self) -> None:
        """Drop what is under way; a new run begins."""

    def _options(self, grid: Grid, start: int) -> dict[str, Any]:
        """The sampler's options that the config decides, when begun at step `start` of the grid."""
        return {}

    def _check(self) -> None:
        prediction = self.config.prediction_type
        if self.settings.get("use_flow_sigmas") or prediction == "flow_prediction":
            raise MissingPartError("flow matching models are not Stable Diffusion 1 or 2, and not supported")
        if prediction not in PREDICTION_TYPES:
            remedy = nearest(str(prediction), PREDICTION_TYPES)
            raise InputError(f"prediction_type {prediction!r} is unknown", remedy=remedy)

    def __len__(self) -> int:
        return int(self.config.num_train_timesteps)

    def __getattr__(self, name: str) -> Any:
        config = self.__dict__.get("config", {})
        if name in config and not name.startswith("_"):
            return config[name]
        raise AttributeError(f"{type(self).__name__} has no attribute {name!r}")

    # The grid

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: torch.device | str | None = None,
        *,
        timesteps: Sequence[float] | Tensor | None = None,
        sigmas: Sequence[float] | Tensor | None = None,
        **special: Any,
    ) -> None:
        """Lay out the run: `num_inference_steps`, or your own falling `timesteps`, or `sigmas` (the last ends the run).

        `device` is where `self.timesteps` shall lie. Some schedulers take further arguments, see their `set_options`.
        Raises InputError for none or several of the three, unknown arguments, or steps the grid cannot have.
        """
        if [num_inference_steps, timesteps, sigmas].count(None) != 2:
            raise InputError("set_timesteps takes one of num_inference_steps, timesteps and sigmas")
        special = {**self.set_options, **bound(f"{type(self).__name__}.set_timesteps", self.set_options, (), special)}
        if sigmas is not None:
            grid = grid_of_sigmas(self.schedule, [float(s) for s in sigmas])
        elif timesteps is not None:
            grid = grid_at_timesteps(self.schedule, [float(t) for t in timesteps], self._final)
        else:
            grid = self._grid(int(num_inference_steps), special)  # type: ignore[arg-type]
        self.num_inference_steps = len(grid)
        self._lay_out(grid, special, device)

    def _grid(self, steps: int, special: Mapping[str, Any]) -> Grid:
        return make_grid(self.family, self.settings, self.schedule, steps, self._final)

    def _final(self, last: float) -> float:
        """The sigma at which a grid ends whose last sigma is `last`."""
        name = self.settings.get("final_sigmas_type", "zero")
        if name not in ("zero", "sigma_min"):
            raise InputError(f"final_sigmas_type {name!r} is unknown", remedy="choose 'zero' or 'sigma_min'")
        return 0.0 if name == "zero" else self.schedule.sigma_min

    def _lay_out(self, grid: Grid, special: Mapping[str, Any], device: torch.device | str | None) -> None:
        options = self._planned(grid, special)
        evals = tuple(visited(self.sampler, grid.sigmas, **self._options(grid, 0), **options))
        timesteps = torch.tensor(self._timesteps_of(grid, evals), dtype=torch.float64)
        timesteps = timesteps.round().long() if self.family.whole else timesteps.float()
        self._timesteps = timesteps.to(device)
        self._plan = Plan(grid, evals, tuple(map(float, self._timesteps.tolist())), options)
        self._skipped, self._step_index, self._begin_index = 0, None, None
        self._forget()

    def _planned(self, grid: Grid, special: Mapping[str, Any]) -> dict[str, Any]:
        """The sampler's options that set_timesteps decides."""
        return {}

    def _timesteps_of(self, grid: Grid, evals: Sequence[float]) -> list[float]:
        """The timesteps of all evaluations: the grid's own on it, the schedule's off it."""
        return [self.schedule.t(s) if (t := grid.t(s)) is None else t for s in evals]

    def _ready(self) -> Plan:
        """The plan; before set_timesteps, all timesteps of training."""
        if self._plan is None:
            everything = list(reversed(range(len(self))))
            self._lay_out(grid_at_timesteps(self.schedule, everything, self._final), dict(self.set_options), None)
        assert self._plan is not None
        return self._plan

    @property
    def timesteps(self) -> Tensor:
        """The timesteps at which the network will be asked, falling: int64 or float32, as diffusers has it.

        May be assigned: another dtype or device, the rest of the run (timesteps[k:]), or timesteps of your own.
        """
        self._ready()
        return self._timesteps

    @timesteps.setter
    def timesteps(self, value: Tensor | Sequence[float]) -> None:
        plan, new = self._ready(), torch.as_tensor(value)
        numbers = tuple(map(float, new.tolist()))
        skipped = len(plan.timesteps) - len(numbers)
        if skipped < 0 or plan.timesteps[skipped:] != numbers:
            self.set_timesteps(timesteps=numbers, device=new.device)
        else:
            self._timesteps, self._skipped = new, skipped

    @property
    def sigmas(self) -> Tensor:
        """The noise levels of `timesteps`, and the final one: (len(timesteps) + 1,) float32. May be assigned."""
        plan = self._ready()
        return torch.tensor([*plan.evals, plan.grid.sigmas[-1]])

    @sigmas.setter
    def sigmas(self, value: Tensor | Sequence[float]) -> None:
        self.set_timesteps(sigmas=[float(s) for s in value], device=self.timesteps.device)

    @property
    def init_noise_sigma(self) -> float | Tensor:
        """What to multiply unit noise by for the first sample."""
        if not self.variance_exploding:
            return 1.0
        highest = torch.tensor(max(self._ready().evals))
        return highest if self.config.timestep_spacing in ("linspace", "trailing") else (highest**2 + 1) ** 0.5

    @property
    def final_alpha_cumprod(self) -> Tensor:
        """ᾱ where the run ends; 1 is a clean picture."""
        return torch.tensor(1 / (1 + self._ready().grid.sigmas[-1] ** 2))

    # Where the run is

    @property
    def step_index(self) -> int | None:
        """The index in `timesteps` of the next step; None before the first."""
        return self._step_index

    @property
    def begin_index(self) -> int | None:
        """What `set_begin_index` was given."""
        return self._begin_index

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Begin the run at timesteps[begin_index], for image to image."""
        self._begin_index = begin_index

    def index_for_timestep(self, timestep: float | Tensor) -> int:
        """Where `timestep` is in `timesteps`. Of several places the second, where a step begins; InputError if none."""
        places = [i for i, t in enumerate(self._ready().timesteps) if t == float(timestep)]
        if not places:
            what = f"timestep {float(timestep):g} is not one of this run's {len(self._ready().timesteps)} timesteps"
            raise InputError(what, remedy="pass elements of scheduler.timesteps, not their indices")
        return places[min(1, len(places) - 1)]

    def _index(self, timestep: float | Tensor) -> int:
        """The place of the evaluation that `timestep` means: the next one, unless it says otherwise."""
        expected = self._step_index if self._step_index is not None else self._begin_index or 0
        if 0 <= expected < len(self._ready().timesteps) and self._is(timestep, expected):
            return expected
        return self.index_for_timestep(timestep)

    def _is(self, timestep: float | Tensor, index: int) -> bool:
        if isinstance(timestep, Tensor) and timestep.device.type != "cpu":
            # An element of `self.timesteps` is known by its address: to read it would wait for the device
            ours = self._timesteps
            if timestep.data_ptr() == ours.data_ptr() + (index - self._skipped) * ours.element_size():
                return True
        return float(timestep) == self._ready().timesteps[index]

    def scale_model_input(self, sample: Tensor, timestep: float | Tensor | None = None) -> Tensor:
        """The sample as the network wants it: divided by sqrt(1 + sigma²), where it is not so already."""
        if not self.variance_exploding:
            return sample
        index = (self._step_index or 0) if timestep is None else self._index(timestep)
        if self._step_index is None:
            self._step_index = index
        return sample * unit_variance(self._ready().evals[index])

    # The forward process

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """Noise x0 (B, C, H, W) to `timesteps` (B,), as a sample of this scheduler.

        Timesteps of the run have the run's sigma, others the schedule's. After `set_begin_index` all stand for the next
        step's place in the run, as in diffusers: rounded timesteps can occur twice.
        """
        x0 = original_samples
        s = column(self._sigmas_of(timesteps), x0)
        x = x0 + s * noise
        return (x if self.variance_exploding else x / (s * s + 1).sqrt()).to(x0.dtype)

    def get_velocity(self, sample: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
        """v = sqrt(ᾱ) noise - sqrt(1 - ᾱ) x0 at `timesteps` (B,), the target of v-prediction (Salimans and Ho 2022)."""
        s = column(self._sigmas_of(timesteps), sample)
        return ((noise - s * sample) / (s * s + 1).sqrt()).to(sample.dtype)

    def _sigmas_of(self, timesteps: Tensor) -> Tensor:
        if self.by_table and not timesteps.is_floating_point():  # without a word from the device, for training
            sigmas = sent(self.schedule.sigmas.float(), timesteps.device)
            return sigmas[timesteps.reshape(-1).long()]
        plan, numbers = self._ready(), timesteps.reshape(-1).tolist()
        if self._begin_index is not None and not self.by_table:
            place = self._begin_index if self._step_index is None else self._step_index
            return torch.tensor([plan.evals[min(place, len(plan.evals) - 1)]] * len(numbers), dtype=torch.float64)
        places = {} if self.by_table else dict(zip(plan.timesteps, plan.evals, strict=True))
        return torch.tensor([places.get(t, self.schedule.sigma(t)) for t in numbers], dtype=torch.float64)


def unit_variance(s: float) -> float:
    """1 / sqrt(1 + s²): from x0 + s * noise to DDPM's samples, which keep a variance of 1."""
    return float((1 + s * s) ** -0.5)


def column(sigmas: Tensor, like: Tensor) -> Tensor:
    """(B,) sigmas as (B, 1, 1, 1), to stand beside `like`, in float32 or wider."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    return sigmas.to(dtype).to(like.device).reshape(-1, *[1] * (like.ndim - 1))
