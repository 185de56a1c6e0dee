"""What makes a function a task."""

from collections.abc import Callable
from functools import wraps
from inspect import signature
from os import PathLike
from typing import TYPE_CHECKING, Any, ParamSpec

from safelight.errors import InputError
from safelight.pipeline.fields import for_model, validate

if TYPE_CHECKING:
    from safelight.pipeline.pictures import Pictures

P = ParamSpec("P")

TASKS: dict[str, Callable[..., Any]] = {}


def task(function: Callable[P, "Pictures"]) -> Callable[P, "Pictures"]:
    """Register a task: whenever it is called, check its keywords, and note with each picture what draws it again."""

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> "Pictures":
        given = signature(function).bind(*args, **kwargs).arguments
        given |= given.pop("settings", {})
        model = given.pop("model")
        if isinstance(model, str | PathLike):
            raise InputError(f"model: {str(model)!r} is a name", remedy="load it first: safelight.load(…)")
        values = for_model(validate(function, given), model)
        from safelight.pipeline.recipes.recipe import opened, recorded

        values = opened(values)
        return recorded(function(model, **values), function, values, model)

    TASKS[function.__name__] = call
    return call
