"""Between a run in memory and its `State`: every tensor whole, on the CPU, by name; sharded ones are put together."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

import safelight
from safelight.errors import CheckpointError, InputError, nearest
from safelight.training.loop.distributed import World, bare, put, whole
from safelight.training.loop.ema import Averages
from safelight.training.loop.log import Figures
from safelight.training.loop.rng import rng_state, set_rng_state
from safelight.training.loop.state import State
from safelight.training.stages.stage import Stage

SEPARATOR = "::"  # between a parameter's name and the name of its moment; in no name of either kind


def capture(step: int, seconds: float, stage: Stage, averages: Averages, figures: Figures, world: World) -> State:
    """All that the steps so far have left. Every process must call it; only the first gets all tensors."""
    tensors = {
        "modules": whole_tensors(named_tensors(stage.modules), world),
        **{f"optimizer-{name}": whole_tensors(moments(stage, name), world) for name in stage.optimizers},
        **{f"ema-{p.name}": whole_tensors(averages.tensors(p.name), world) for p in averages.profiles},
        "stage": whole_tensors(stage.state_tensors(), world),
        "counters": {"skipped": figures.skipped_steps, "in_a_row": figures.steps_in_a_row},
        "rng": gathered_rng(world),
    }
    facts = {
        "seconds": seconds,
        "stage": stage.name,
        "world": world.size,
        "averaged_updates": averages.updates,
        "torch": torch.__version__,
        "safelight": safelight.__version__,
    }
    return State(step, facts, {stem: some for stem, some in tensors.items() if some})


def restore(state: State, stage: Stage, averages: Averages, figures: Figures, world: World) -> None:
    """Put a state back where `capture` took it from.

    Random generators are set if the number of processes is the same. Raises CheckpointError where the state is of
    another network, optimizer or average.
    """
    fill(named_tensors(stage.modules), state.tensors["modules"], "modules")
    for name in stage.optimizers:
        fill_moments(stage, name, state.tensors.get(f"optimizer-{name}", {}))
    for profile in averages.profiles:
        stem = f"ema-{profile.name}"
        fill(averages.tensors(profile.name), state.tensors.get(stem, {}), stem)
    averages.updates = int(state.facts["averaged_updates"])
    stage.load_state_tensors(state.tensors.get("stage", {}))
    counters = state.tensors["counters"]
    put(counters["skipped"], figures.skipped_steps)
    put(counters["in_a_row"], figures.steps_in_a_row)
    if state.facts["world"] == world.size:
        own = f"{world.rank}{SEPARATOR}"
        states = {key.removeprefix(own): t for key, t in state.tensors["rng"].items() if key.startswith(own)}
        set_rng_state(states, world.device)


def named_tensors(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Parameters and persistent buffers of several modules: {"module.key": tensor}, not copied."""
    return {f"{name}.{key}": t for name, module in modules.items() for key, t in bare(module).state_dict().items()}


def moments(stage: Stage, optimizer: str) -> dict[str, Tensor]:
    """What an optimizer remembers of each parameter: {"module.parameter::moment": tensor}."""
    state: Mapping[Any, Mapping[str, Tensor]] = stage.optimizers[optimizer].state
    names = parameter_names(stage)
    return {
        f"{names[parameter]}{SEPARATOR}{kind}": tensor
        for parameter, kinds in state.items()
        for kind, tensor in kinds.items()
    }


def fill_moments(stage: Stage, optimizer: str, tensors: Mapping[str, Tensor]) -> None:
    """Give an optimizer what `moments` took, in each parameter's own memory layout and sharding."""
    state = stage.optimizers[optimizer].state
    parameters = {name: parameter for parameter, name in parameter_names(stage).items()}
    for key, tensor in tensors.items():
        name, _, kind = key.partition(SEPARATOR)
        if name not in parameters:
            raise _foreign(f"optimizer-{optimizer}", name, parameters)
        parameter = parameters[name]
        if tensor.shape == parameter.shape and tensor.ndim > 0:
            target = torch.zeros_like(parameter, dtype=tensor.dtype, requires_grad=False)
            put(tensor, target)
        else:  # the count of steps
            target = tensor.to(parameter.device)
        state[parameter][kind] = target


def parameter_names(stage: Stage) -> dict[nn.Parameter, str]:
    """The name of every trained parameter, with its module's in front."""
    return {p: f"{name}.{key}" for name, m in stage.modules.items() for key, p in bare(m).named_parameters()}


def fill(targets: Mapping[str, Tensor], tensors: Mapping[str, Tensor], what: str) -> None:
    """Copy tensors into others of the same names and shapes. Raises CheckpointError where they do not match."""
    for key in (*(targets.keys() - tensors.keys()), *(tensors.keys() - targets.keys())):
        raise _foreign(what, key, tensors if key in targets else targets)
    for key, target in targets.items():
        try:
            put(tensors[key], target)
        except InputError as error:
            raise CheckpointError(f"{what}: {key}: {error.what}", key=key, remedy="it is another network's") from error


def _foreign(what: str, key: str, known: Mapping[str, object]) -> CheckpointError:
    remedy = f"the checkpoint is of a run with other networks; {nearest(key, known)}"
    return CheckpointError(f"{what} and this run do not have the same tensors, such as {key!r}", key=key, remedy=remedy)


def gathered_rng(world: World) -> dict[str, Tensor]:
    """The generators of every process, by rank."""
    own = rng_state(world.device)
    return {
        f"{rank}{SEPARATOR}{key}": t for key, tensor in own.items() for rank, t in enumerate(world.gathered(tensor))
    }


def whole_tensors(tensors: Mapping[str, Tensor], world: World) -> dict[str, Tensor]:
    """Tensors whole, on the first process. The others help to put the sharded ones together, and get nothing."""
    result = {}
    for key, tensor in tensors.items():
        if world.first or isinstance(tensor, DTensor):
            full = whole(tensor)
            if world.first:
                result[key] = full
    return result
