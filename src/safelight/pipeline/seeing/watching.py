"""Whoever looks on while a picture develops.

A watcher is called with each `Step`: sigma, x as the network saw it, and the x0 it foresees. Progress bars, previews,
films and the wish to stop (raise `Cancelled`) are all watchers, and a task takes one: `text_to_image(..., watch=...)`.
"""

from dataclasses import replace

from safelight.diffusion.samplers import Step, Watch


def together(*watchers: Watch | None) -> Watch | None:
    """Several watchers as one, called in turn; None where there are none, so that nothing is done for nobody."""
    present = [watcher for watcher in watchers if watcher is not None]
    if len(present) < 2:
        return present[0] if present else None

    def watch(step: Step) -> None:
        for watcher in present:
            watcher(step)

    return watch


class Record:
    """A watcher that keeps the steps of a batch's first picture, on the CPU."""

    def __init__(self) -> None:
        self.steps: list[Step] = []

    def __call__(self, step: Step) -> None:
        """Keep one step, x and x0 (1, C, h, w)."""
        self.steps.append(replace(step, x=step.x[:1].cpu(), x0=step.x0[:1].cpu()))
