"""Requests at random, drawn from the fields' own bounds: any task, any text."""

import random
from types import NoneType
from typing import Any, Literal, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MultipleOf

from safelight.diffusion.grids import GRIDS
from safelight.diffusion.samplers import SAMPLERS
from safelight.pipeline.fields import parameters
from safelight.pipeline.recipes.recipe import LEFT_OUT
from safelight.pipeline.tasks import TASKS

SIGNS = "ab (:1.2)[]|,\"\\'\n\t\r\0\x1b{}<>&%äß漢字🦊\ud800\u2028Negative prompt: Steps: 5, Seed: 1"


def text(rng):
    return "".join(rng.choice(SIGNS) for _ in range(rng.choice((0, 1, 9, 300))))


def value(rng, name, annotation) -> Any:
    """A value that the field accepts."""
    kind, info = annotation.__origin__, annotation.__metadata__[0]
    choices = get_args(kind) if get_origin(kind) is not Literal else ()
    if NoneType in choices:
        if rng.random() < 0.3:
            return None
        kind = next(one for one in choices if one is not NoneType)
    if name in ("prompt", "negative_prompt"):
        return text(rng)
    if name == "sampler":
        return rng.choice(list(SAMPLERS))
    if name == "grid":
        return rng.choice(list(GRIDS))
    if get_origin(kind) is Literal:
        return rng.choice(get_args(kind))
    if kind in (int, float):
        return number(rng, kind, info.metadata)
    if kind is bool:
        return rng.random() < 0.5
    if get_origin(kind) is dict:
        return {"s_churn": rng.random(), "name": text(rng), "list": [1, None, True]}
    return None


def number(rng, kind, bounds):
    low, high, step = -100, 100, 1
    for bound in bounds:
        low = {Ge: getattr(bound, "ge", 0), Gt: getattr(bound, "gt", 0) + 1}.get(type(bound), low)
        high = {Le: getattr(bound, "le", 0), Lt: getattr(bound, "lt", 0) - 1}.get(type(bound), high)
        step = bound.multiple_of if isinstance(bound, MultipleOf) else step
    if kind is float:
        return rng.uniform(low, high)
    return rng.randint(-(-low // step), high // step) * step


def random_request(seed) -> tuple[str, dict[str, Any]]:
    """A task's name, and a value for each keyword that a recipe holds."""
    rng = random.Random(seed)
    task = rng.choice(sorted(TASKS))
    known = {name: parameter.annotation for name, parameter in parameters(TASKS[task]).items()}
    return task, {name: value(rng, name, kind) for name, kind in known.items() if name not in LEFT_OUT}
