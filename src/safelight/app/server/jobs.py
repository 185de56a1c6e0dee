"""The queue. One thread draws, so that a job takes no memory and no core from another; everyone else only looks."""

import asyncio
import base64
import io
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from secrets import token_hex
from threading import Condition, Thread
from typing import Any, Literal

from PIL import Image

from safelight.errors import Cancelled, InputError, SafelightError

State = Literal["waiting", "drawing", "done", "failed", "stopped"]
ENDS = ("done", "failed", "stopped")
MOST_WAITING = 64
MOST_KEPT = 200  # jobs that have ended; their pictures stay in the folder
PREVIEW_SIDE = 512
LOOK_EVERY = 0.05  # seconds
log = logging.getLogger(__name__)


class QueueFullError(SafelightError):
    """No more jobs are taken until one has ended."""


@dataclass(eq=False)
class Job:
    """What was asked for, and how far it is. The worker alone writes to it, but for `stopping`.

    Attributes:
        task: such as "text_to_image"; `request` are its keywords, checked, pictures opened.
        asked: the same as it came, pictures left out: what a page shows, and may ask again.
        model: the name to load, or None for whichever the server began with.
        share: of the work that is done, 0 to 1.
        doing: what is going on, in words.
        previews: small pictures of what is coming, as JPEG in data URLs, one for each picture of the batch.
        pictures: names of files in the gallery, once it is done.
        error: what went wrong and what to do, if it failed.
        adapt: settles the request when the model is known, for programs that go by it.
        times: when it was asked for, begun and ended, in seconds since 1970.
    """

    task: str
    request: dict[str, Any]
    asked: dict[str, Any]
    model: str | None = None
    adapt: Callable[[dict[str, Any], Any], dict[str, Any]] = lambda request, model: request
    id: str = field(default_factory=lambda: token_hex(8))
    state: State = "waiting"
    share: float = 0.0
    doing: str = ""
    previews: list[str] = field(default_factory=list)
    pictures: list[str] = field(default_factory=list)
    error: dict[str, str] | None = None
    times: dict[str, float] = field(default_factory=lambda: {"asked": time.time()})
    stopping: bool = False

    def told(self, position: int | None = None, *, previews: bool = True) -> dict[str, Any]:
        """The job in JSON; `position` is how many come before it."""
        names = ("id", "task", "model", "state", "share", "doing", "pictures", "error", "times", "stopping")
        shown = {name: getattr(self, name) for name in names} | {"request": self.asked, "position": position}
        return shown | ({"previews": self.previews} if previews else {})

    def check(self) -> None:
        """Raise Cancelled if someone wants it to stop."""
        if self.stopping:
            raise Cancelled("stopped")


class Jobs:
    """Those that wait, the one that is drawn, and those that have ended. Every method may be called by any thread.

    `work(job)` draws one, in a thread of the queue's own: it sets `share`, `doing` and `previews` as it goes, calls
    `changed`, and returns the pictures' names. What it raises ends the job, and nothing else.
    """

    def __init__(self, work: Callable[[Job], Sequence[str]]) -> None:
        self.work = work
        self.version = 0  # goes up with whatever can be seen
        self.closed = False
        self._waiting: deque[Job] = deque()
        self._all: dict[str, Job] = {}
        self._news = Condition()
        self._worker = Thread(target=self._run, name="darkroom", daemon=True)

    def open(self) -> None:
        """Begin to work."""
        self._worker.start()

    def close(self) -> None:
        """Stop what is drawn, after its step, and begin nothing more; everyone who listens is told."""
        with self._news:
            self.closed = True
            for job in self._all.values():
                job.stopping = True
            self._changed()

    def join(self, patience: float = 30.0) -> None:
        """Close, and wait until the worker has left, so many seconds at most."""
        self.close()
        if self._worker.is_alive():
            self._worker.join(patience)

    def add(self, job: Job) -> int:
        """Put a job at the end, and return how many come before it. Raises QueueFullError."""
        with self._news:
            if self.closed or len(self._waiting) >= MOST_WAITING:
                what = "the server is stopping" if self.closed else f"{MOST_WAITING} jobs are waiting already"
                raise QueueFullError(what, remedy="ask again later")
            self._waiting.append(job)
            self._all[job.id] = job
            self._forget()
            self._changed()
            return self._position(job) or 0

    def get(self, name: str) -> Job:
        """The job of an id. Raises InputError where there is none."""
        if (job := self._all.get(name)) is None:
            raise InputError(f"there is no job {name[:40]!r}", remedy=f"the last {MOST_KEPT} are kept")
        return job

    def stop(self, name: str) -> Job:
        """Stop a job: at once if it waits, else after the step that it is at. What has ended stays as it is."""
        with self._news:
            job = self.get(name)
            if job.state == "waiting":
                self._waiting.remove(job)
                self._end(job, "stopped")
            elif job.state == "drawing":
                job.stopping = True
                self._changed()
        return job

    async def ended(self, job: Job, gone: Callable[[], Awaitable[bool]]) -> None:
        """Wait until a job has ended; it is stopped once whoever asked for it is gone."""
        while job.state not in ENDS:
            await asyncio.sleep(LOOK_EVERY)
            if await gone():
                self.stop(job.id)

    def told(self, *, previews: bool = True) -> list[dict[str, Any]]:
        """All jobs in JSON, in the order in which they came."""
        with self._news:
            return [job.told(self._position(job), previews=previews) for job in self._all.values()]

    def changed(self) -> None:
        """Say that there is something new to see."""
        with self._news:
            self._changed()

    def _run(self) -> None:
        while (job := self._next()) is not None:
            try:
                job.check()
                job.pictures = list(self.work(job))
                end: State = "done"
            except Cancelled:
                end = "stopped"
            except Exception as error:  # whatever it is, the next job is to be drawn
                if not isinstance(error, SafelightError):
                    log.exception("job %s failed", job.id)
                job.error, end = explained(error), "failed"
            with self._news:
                self._end(job, end)

    def _next(self) -> Job | None:
        with self._news:
            self._news.wait_for(lambda: self._waiting or self.closed)
            if self.closed:
                return None
            job = self._waiting.popleft()
            job.state, job.times["begun"] = "drawing", time.time()
            self._changed()
            return job

    def _end(self, job: Job, state: State) -> None:
        job.state, job.times["ended"], job.doing, job.previews, job.request = state, time.time(), "", [], {}
        job.share = 1.0 if state == "done" else job.share
        self._changed()

    def _forget(self) -> None:
        ended = [name for name, job in self._all.items() if job.state in ENDS]
        for name in ended[:-MOST_KEPT]:
            del self._all[name]

    def _position(self, job: Job) -> int | None:
        """How many come before a job: 0 for the one that is drawn, None for one that has ended."""
        if job.state != "waiting":
            return 0 if job.state == "drawing" else None
        drawing = sum(other.state == "drawing" for other in self._all.values())
        return drawing + self._waiting.index(job)

    def _changed(self) -> None:
        self.version += 1
        self._news.notify_all()


def explained(error: Exception) -> dict[str, str]:
    """An error for people: what is wrong, and what to do. Of what we did not foresee, the kind and the message."""
    if isinstance(error, SafelightError):
        return {"what": error.what, "remedy": error.remedy}
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return {"what": "there is not memory enough", "remedy": "draw smaller pictures, or fewer at once (batch_size)"}
    return {"what": f"{type(error).__name__}: {error}", "remedy": "the server's log says more"}


def as_preview(image: Image.Image) -> str:
    """A small picture as a data URL, JPEG."""
    image = image.copy()
    image.thumbnail((PREVIEW_SIDE, PREVIEW_SIDE))
    file = io.BytesIO()
    image.save(file, format="JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(file.getvalue()).decode()
