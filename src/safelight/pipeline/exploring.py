"""`explore`: one request, drawn at every combination of some fields' values, and laid out on a sheet.

Pictures are drawn one by one, each exactly as it would be alone; what several have in common is computed once (see
`remembering`), and with a folder, what lies there already is not drawn again (see `shelf`).
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from math import prod
from pathlib import Path
from secrets import randbelow
from typing import TYPE_CHECKING, Annotated, Any, Literal, Unpack

from pydantic import Field

from safelight.errors import InputError
from safelight.pipeline.axes import PARTS, REPLACE, Axis, as_axis, checked, matrix_axes, name_of, worded
from safelight.pipeline.fields import Height, Prompt, Settings, Width, for_model, validate
from safelight.pipeline.tasks import TASKS

if TYPE_CHECKING:
    from PIL import Image

    from safelight.pipeline.bundle import LatentDiffusion
    from safelight.pipeline.shelf import Shelf

MAX_CELLS = 2000
WIDEST = 10  # pictures in a row, where there is no second axis
OWN = ("x", "y", "z", "image", "mask", "strength", "width", "height")  # keywords of which None means absent
WORDS = (REPLACE, PARTS)  # axes that change the prompt, whatever field the others set before

AnyAxis = Axis | str | tuple[str, Sequence[Any]]
SomeAxis = Annotated[Any, Field(description="field=value,value,…; or replace=word,other,… in the prompt")]
Task = Callable[..., Any]


@dataclass(frozen=True, eq=False)
class Cell:
    """One picture: its place on each axis, its complete request, its file if there is one.

    `found` says that it was there before, drawn by the same recipe.
    """

    place: tuple[int, ...]
    request: Mapping[str, Any]
    image: "Image.Image"
    path: Path | None = None
    found: bool = False


@dataclass(frozen=True, eq=False)
class Exploration:
    """The axes, and a cell for each combination of their values; the first axis changes fastest.

    `asked` is how often the U-Net was needed, `made` how often it ran: the other answers were known from other cells.
    """

    axes: tuple[Axis, ...]
    cells: tuple[Cell, ...]
    asked: int = 0
    made: int = 0

    def sheet(self) -> "Image.Image":
        """All pictures on one, labelled: the first axis from left to right, the second down, a third in blocks."""
        from safelight.pipeline.contact import LARGEST, column, contact_sheet, headed

        images, (x, *others) = [cell.image for cell in self.cells], self.axes
        if not others:
            over, under = (x.names, ()) if len(x) <= WIDEST else ((), x.names)
            return contact_sheet(images, column_labels=over, captions=under, title=self._title(), notes=self._notes())
        y, blocks, each = others[0], others[1].names if len(others) > 1 else ("",), len(x) * len(others[0])
        sheets = [
            contact_sheet(
                images[each * k : each * (k + 1)],
                column_labels=x.names,
                row_labels=y.names,
                title=name,
                margin=False,
                largest=LARGEST // len(blocks),
            )
            for k, name in enumerate(blocks)
        ]
        return headed(column(sheets, 32), self._title(), self._notes())

    def save_sheet(self, folder: Path | str) -> Path:
        """Write the sheet as sheet.png, or with the next free number; a sheet of the same pixels is left as it is."""
        from PIL import Image

        from safelight.pipeline.pictures import save_png

        sheet = self.sheet()
        for path in sorted(Path(folder).glob("sheet*.png")):
            with Image.open(path) as there:
                if there.size == sheet.size and there.convert("RGB").tobytes() == sheet.tobytes():
                    return path
        return save_png(sheet, Path(folder) / "sheet.png")

    def _title(self) -> str:
        prompt = self.cells[0].request["prompt"]
        whole = any(axis.name == "prompt" for axis in self.axes)
        return prompt if isinstance(prompt, str) and not whole else ""

    def _notes(self) -> str:
        """What all pictures have in common, of what people look for."""
        shared = {
            name: self.cells[0].request[name]
            for name in ("negative_prompt", "steps", "guidance_scale", "sampler", "grid", "strength", "seed")
            if all(cell.request.get(name, "") == self.cells[0].request.get(name, "") != "" for cell in self.cells)
        }
        return ", ".join(f"{name} {value}" for name, value in shared.items())


def explore(
    model: "LatentDiffusion",
    prompt: Prompt = "",
    *,
    x: SomeAxis = None,
    y: SomeAxis = None,
    z: SomeAxis = None,
    matrix: Annotated[
        bool, Field(description="read the prompt as start|part|part: x and y are all choices of parts")
    ] = False,
    seeds: Annotated[
        Literal["equal", "consecutive"], Field(description="one seed for all pictures, or one after another")
    ] = "equal",
    image: Annotated[Any, Field(description="the picture to start from, if any")] = None,
    mask: Annotated[Any, Field(description="white where that picture is to be repainted, if anywhere")] = None,
    strength: Annotated[float | None, Field(ge=0, le=1, description="how far the picture may move")] = None,
    width: Width = None,
    height: Height = None,
    folder: Annotated[Path | str | None, Field(exclude=True, description="where pictures are kept and found")] = None,
    each: Annotated[
        Callable[[Cell, int], None] | None,
        Field(exclude=True, description="called with each cell and how many there are"),
    ] = None,
    **settings: Unpack[Settings],
) -> Exploration:
    """Draw a request at every combination of some fields' values.

    It is an inpainting if there is a mask, image to image if there is a picture, else text to image.

    Args:
        model: what `safelight.load` returns.
        prompt: as for the task.
        x, y, z: axes: "guidance_scale=1,4,7.5" (see `axes`), or ("guidance_scale", [1, 4, 7.5]).
        matrix: AUTOMATIC1111's prompt matrix (see `axes.matrix_axes`).
        seeds: "equal" gives all the same seed, fresh if none is given; "consecutive" counts up from it.
        image, mask, strength, width, height: as for the task. Each may be an axis.
        folder: keep the pictures there as they come; what lies there by the same recipe is taken instead of drawn.
        each: called with each cell when it is there, and the number of all.
        **settings: see `Settings`; each cell is one picture, so `count` stays 1.

    Raises:
        InputError: before anything is drawn, for an axis or a value that will not do, naming field and limit.
    """
    asked = {"prompt": prompt, "x": x, "y": y, "z": z, "matrix": matrix, "seeds": seeds, "image": image, "mask": mask,
             "strength": strength, "width": width, "height": height, **settings}  # fmt: skip
    return _drawn(model, planned(asked), folder, each)


def planned(asked: Mapping[str, Any]) -> "Plan":
    """The plan of what `explore` is asked for, by its keywords: all is checked that needs no model.

    Raises InputError for an axis or a value that will not do, naming field and limit.
    """
    given = {name: value for name, value in asked.items() if not (name in OWN and value is None)}
    x, y, z, matrix, seeds = (given.pop(name, None) for name in ("x", "y", "z", "matrix", "seeds"))
    given["prompt"], axes = _axes(given.get("prompt", ""), [one for one in (x, y, z) if one is not None], bool(matrix))
    task = _task({*given, *map(name_of, axes)})
    return _checked([as_axis(axis, task) for axis in axes], task, given, seeds or "equal")


def _axes(prompt: Any, given: list[AnyAxis], matrix: bool) -> tuple[Any, list[AnyAxis]]:
    """The prompt without what belongs to an axis, and the axes."""
    if matrix:
        start, parts = matrix_axes(prompt)
        if len(parts) + len(given) > 3:
            raise InputError("a prompt matrix has two axes already", remedy="give one other at most")
        return start, [*parts, *given]
    if not given:
        raise InputError("there is no axis", remedy="give one, such as guidance_scale=1,4,7.5")
    return prompt, given


def _task(names: set[str]) -> Task:
    """The task that these fields belong to."""
    if "image" not in names and names & {"mask", "strength"}:
        raise InputError(f"{min(names & {'mask', 'strength'})}: there is no picture", remedy="give an image, too")
    return TASKS["inpaint" if "mask" in names else "image_to_image" if "image" in names else "text_to_image"]


@dataclass(frozen=True)
class Plan:
    """What is to be drawn: a complete request, and the axes along which it changes."""

    task: Task
    base: Mapping[str, Any]
    axes: tuple[Axis, ...]
    consecutive: bool

    def __len__(self) -> int:
        return prod(map(len, self.axes))

    def requests(self, seed: int, subseed: int) -> Iterator[tuple[tuple[int, ...], dict[str, Any]]]:
        """The place and the request of each cell, where no seeds are given with these; axes of words act last."""
        order = sorted(range(len(self.axes)), key=lambda k: self.axes[k].name in WORDS)
        for number, backwards in enumerate(product(*(range(len(axis)) for axis in reversed(self.axes)))):
            place, later = backwards[::-1], number if self.consecutive else 0
            request = {**self.base, "seed": later + (seed if self.base["seed"] is None else self.base["seed"])}
            for k in order:
                request = self.axes[k].applied(request, place[k])
            if request["subseed_strength"] and request["subseed"] is None:
                request["subseed"] = subseed + later
            yield place, request


def _checked(axes: Sequence[Axis], task: Task, given: Mapping[str, Any], seeds: str) -> Plan:
    names = [axis.name for axis in axes if axis.name not in WORDS]
    cells = prod(map(len, axes))
    if cells > MAX_CELLS:
        raise InputError(f"{cells} pictures are more than the {MAX_CELLS} of a grid", remedy="give fewer values")
    if len(set(names)) < len(names):
        raise InputError(f"two axes are both {max(names, key=names.count)}", remedy="leave one out")
    if given.get("count", 1) != 1 or {"count", "batch_size"} & set(names):
        raise InputError("each place of a grid has one picture", remedy="give an axis seed=1..4 for several")
    if "fast" in names:
        raise InputError("fast stands for several fields", remedy="give it to all, and axes of steps or feature_cache")
    if seeds not in ("equal", "consecutive") or (seeds == "consecutive" and "seed" in names):
        what = f"seeds={seeds!r}" + (" beside an axis of seeds" if "seed" in names else "")
        raise InputError(what, remedy="equal, or consecutive where seed is no axis")
    base = validate(task, {**given, **{axis.name: axis.values[0] for axis in axes if axis.name not in WORDS}})
    plan = Plan(task, base, tuple(checked(axis, base, task) for axis in axes), seeds == "consecutive")
    plain = replace(plan, axes=tuple(axis for axis in plan.axes if axis.name not in WORDS))
    texts = {str(request[name]) for _, request in plain.requests(0, 0) for name in worded(request)}
    for axis in axes:
        if axis.name == REPLACE and not (axis.values[0] and any(axis.values[0] in text for text in texts)):
            what = f"replace: {axis.values[0]!r} is not in the prompt"
            raise InputError(what, remedy="the first word is what is sought: replace=red,blue,green")
    return plan


def _drawn(
    model: "LatentDiffusion", plan: Plan, folder: Path | str | None, each: Callable[[Cell, int], None] | None
) -> Exploration:
    import torch

    from safelight.pipeline.rehearsing import rehearse
    from safelight.pipeline.remembering import Remembering, remembering
    from safelight.pipeline.shelf import Shelf, described, print_of

    plan = replace(plan, base=for_model(dict(plan.base), model))
    shelf, mark = (Shelf(folder), print_of(model)) if folder is not None else (None, "")
    model, cells = remembering(model), []
    with torch.no_grad():
        requests = list(plan.requests(*_seeds(plan, shelf, mark)))
        rehearse(model, [request for _, request in requests])
        for place, request in requests:
            description = described(mark, plan.task.__name__, request) if shelf is not None else {}
            found = shelf.find(description) if shelf is not None else None
            if found is not None:
                cell = Cell(place, request, found[1], found[0], found=True)
            else:
                drawn = plan.task(model, **request)
                path = shelf.keep(drawn, description, _name(plan, place, request)) if shelf is not None else None
                cell = Cell(place, request, drawn[0], path)
            cells.append(cell)
            if each is not None:
                each(cell, len(plan))
    assert isinstance(model.unet, Remembering)
    return Exploration(plan.axes, tuple(cells), model.unet.memory.asked, model.unet.memory.answered)


def _seeds(plan: Plan, shelf: "Shelf | None", mark: str) -> tuple[int, int]:
    """The seed and sub-seed where none are given: those of a grid that was begun and not finished, else fresh ones."""
    from safelight.pipeline.shelf import described

    fresh = randbelow(2**32), randbelow(2**32)
    if shelf is None:
        return fresh
    name = plan.task.__name__
    _, first = next(plan.requests(*fresh))
    for begun in shelf.alike(described(mark, name, first), "seed", "subseed"):
        seeds = begun["seed"], fresh[1] if begun["subseed"] is None else begun["subseed"]
        if not all(shelf.find(described(mark, name, request)) for _, request in plan.requests(*seeds)):
            return seeds
    return fresh


def _name(plan: Plan, place: tuple[int, ...], request: Mapping[str, Any]) -> str:
    """A file's name from the labels of a place."""
    labels = [axis.names[k] for axis, k in zip(plan.axes, place, strict=True)]
    seed = [] if any(axis.name == "seed" for axis in plan.axes) else [f"seed {request['seed']}"]
    return slug(" ".join([*labels, *seed]))


def slug(words: str) -> str:
    """Words as a part of a file's name."""
    return re.sub(r"[^\w.]+", "-", words.lower()).strip("-.")[:100].strip("-.") or "picture"
