"""Where jobs are drawn: the model that was asked for last, and a watcher that tells how far a picture is."""

import time
from collections.abc import Callable, Mapping, Sequence
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safelight.app.server.gallery import Gallery
from safelight.app.server.jobs import Job, as_preview
from safelight.checkpoint.lora import parse
from safelight.errors import InputError, nearest
from safelight.pipeline.fields import parameters
from safelight.pipeline.files import file_stem
from safelight.pipeline.tasks import TASKS

if TYPE_CHECKING:
    from PIL import Image

    from safelight.diffusion.samplers import Step
    from safelight.pipeline.bundle import LatentDiffusion

PAUSE = 0.2  # seconds between two previews, at least
MOST_PREVIEWS = 8


class Darkroom:
    """Loads models and draws. One is held at a time: another's weights are read when it is asked for.

    Args:
        gallery: where pictures go.
        models: the names that may be asked for; the first is taken where none is.
        loading: further keywords of `safelight.load`. Of `loras`, files are added to every model, and in folders lie
            those that a prompt may ask for by `<lora:name:0.8>`.
        format: of the pictures' files.

    `changed` is called whenever a job tells something new; it does nothing until it is set.
    """

    def __init__(
        self,
        gallery: Gallery,
        models: Sequence[str],
        *,
        loading: Mapping[str, Any],
        format: str = "png",
    ) -> None:
        self.gallery, self.models, self.format = gallery, tuple(models), format
        self.changed: Callable[[], None] = lambda: None
        self.loading = dict(loading)
        self.tasks: dict[str, tuple[str, ...]] = {}  # of models that have been loaded: what they can be asked for
        self._held: tuple[Any, LatentDiffusion] | None = None

    def known(self, model: str | None) -> str:
        """The name of a model that may be asked for, or the first one's. Raises InputError for others."""
        if model is not None and model not in self.models:
            raise InputError(f"model {model[:80]!r} is not offered", remedy=nearest(model, self.models))
        return model or self.models[0]

    def lora_names(self) -> list[str]:
        """The names of LoRAs that a prompt may ask for."""
        folders = [Path(one[0]) for one in map(parse, self.loading.get("loras", ())) if Path(one[0]).is_dir()]
        return sorted({file.stem for folder in folders for file in folder.rglob("*.safetensors")})

    def warm(self) -> None:
        """Load the first model, so that the first picture need not wait. What is wrong with it is raised."""
        self._model(self.models[0], self._loras({})[1])

    def draw(self, job: Job) -> list[str]:
        """Draw a job, and return the names of its files. Whatever goes wrong is raised."""
        request, loras = self._loras(job.request)
        model = self._model(self.known(job.model), loras, job)
        request = job.adapt(request, model)
        watch = Watching(job, model, self.changed)
        watch.tell("beginning")
        pictures = TASKS[job.task](model, watch=watch, **request)
        job.check()
        words = request.get("prompt") or request.get("label") or job.task
        stem = file_stem(words if isinstance(words, str) else job.task)
        return [path.name for path in pictures.save(self.gallery.folder, stem, format=self.format)]

    def _loras(self, request: dict[str, Any]) -> tuple[dict[str, Any], list[Any]]:
        """A request whose `<lora:…>` are settled, and what to load for it; a folder it asks nothing of is left out."""
        from safelight.pipeline.recipes.adapters import named

        request, loras = named(request, self.loading.get("loras", ()))
        return request, [one for one in loras if not Path(one[0]).is_dir()]

    def _model(self, name: str, loras: Sequence[Any], job: Job | None = None) -> "LatentDiffusion":
        from safelight.pipeline.bundle import tasks_of
        from safelight.pipeline.loading import load

        key = (name, tuple(map(str, loras)))
        if self._held is None or self._held[0] != key:
            if job is not None:
                job.doing = f"loading {Path(name).name}"
                self.changed()
            self._held = None  # first, so that two are never held at once
            self._held = key, load(name, **{**self.loading, "loras": loras})
        self.tasks[name] = tasks_of(self._held[1])
        return self._held[1]


class Watching:
    """The watcher of one job: says how far it is, shows what is coming, and ends it if someone wants that."""

    def __init__(self, job: Job, model: "LatentDiffusion", changed: Callable[[], None]) -> None:
        self.job, self.model, self.changed = job, model, changed
        self._batches, self._batch, self._last = batches(job), 0, 0.0
        self._convert: Callable[[Any], list[Image.Image]] | None = None

    def tell(self, doing: str) -> None:
        """Say what is going on."""
        self.job.doing = doing
        self.changed()

    def __call__(self, step: "Step") -> None:
        """Note one evaluation of the network."""
        self.job.check()
        if step.index == 0:
            self._batch += 1
        total = step.total or step.index + 2  # of an adaptive sampler nobody knows
        self.job.share = min(1.0, (self._batch - 1 + (step.index + 1) / total) / max(self._batches, self._batch))
        if time.monotonic() - self._last > PAUSE:
            self.job.previews = self._previews(step)
            self._last = time.monotonic()
        done = step.index + 1 == step.total and self._batch >= self._batches
        of = f" of batch {self._batch} of {self._batches}" if self._batches > 1 else ""
        self.tell("decoding" if done else f"step {step.index + 1}/{step.total or '?'}{of}")

    def _previews(self, step: "Step") -> list[str]:
        if self._convert is None:  # the map from latents to colours may have to be fitted
            from safelight.pipeline.seeing.preview import previewer

            self._convert = previewer(self.model)
        return [as_preview(image) for image in self._convert(step.x0[:MOST_PREVIEWS])]


def batches(job: Job) -> int:
    """How many times a job walks the grid, as far as its request tells."""
    known = parameters(TASKS[job.task])

    def asked(name: str) -> int:
        return int(job.request.get(name, known[name].annotation.__metadata__[0].default))

    prompt = job.request.get("prompt")
    prompts = len(prompt) if isinstance(prompt, list | tuple) else 1
    passes = 1 if job.request.get("hires") is None else 2
    return passes * ceil(prompts * asked("count") / asked("batch_size"))
