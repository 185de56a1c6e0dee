"""One process or many: who we are, how gradients meet, how sharded tensors become whole.

`torchrun` starts the processes and tells each its rank; without it a run is one process. Every collective here that
carries host values goes over gloo, so that no accelerator is waited for.
"""

import gc
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, Literal, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from safelight.errors import InputError

Parallel = Literal["ddp", "fsdp"]
PATIENCE = timedelta(minutes=60)  # how long a rank waits for rank 0 to draw a sheet or write a checkpoint


@dataclass(frozen=True)
class World:
    """The processes of a run, and this one's place among them."""

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @classmethod
    @contextmanager
    def entered(cls, device: str | None = None) -> Iterator[Self]:
        """The world that torchrun's environment describes, or a world of one; closed at the end of the block."""
        size, local = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("LOCAL_RANK", "0"))
        chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        if chosen.type == "cuda":  # several processes have a device each, whatever was named
            chosen = torch.device("cuda", local if size > 1 or chosen.index is None else chosen.index)
            torch.cuda.set_device(chosen)
        if size == 1:
            yield cls(device=chosen)
            return
        backend = "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo"
        dist.init_process_group(backend, timeout=PATIENCE)
        try:
            yield cls(rank=dist.get_rank(), size=size, device=chosen)
            dist.barrier()  # nobody leaves while another still talks
        finally:
            dist.destroy_process_group()

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes files and talks."""
        return self.rank == 0

    def any(self, flag: bool) -> bool:
        """Whether any process says yes. All must ask together."""
        if self.size == 1:
            return flag
        votes = torch.tensor([int(flag)])
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        return bool(votes.item())

    def mean(self, values: Mapping[str, float]) -> dict[str, float]:
        """The mean of each value over the processes. All must ask together, with the same names."""
        if self.size == 1 or not values:
            return dict(values)
        total = torch.tensor(list(values.values()), dtype=torch.float64)
        dist.all_reduce(total)
        return dict(zip(values, (total / self.size).tolist(), strict=True))

    def gathered(self, tensor: Tensor) -> list[Tensor]:
        """The CPU tensor of each process, by rank; they have equal shapes."""
        if self.size == 1:
            return [tensor]
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor.contiguous())
        return parts

    def told(self, value: Any) -> Any:
        """Rank 0's value (a string, a number or None), on every process."""
        box = [value]
        if self.size > 1:
            dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]


def once(make: Callable[[], None]) -> None:
    """Let the first process do something, while the others wait for it."""
    together = dist.is_available() and dist.is_initialized()
    if not together or dist.get_rank() == 0:
        make()
    if together:
        dist.barrier()


def replicate(
    modules: dict[str, nn.Module], optimizers: Iterable[torch.optim.Optimizer], world: World, how: Parallel
) -> None:
    """Make the modules, in their places in the dict, meet the other processes' gradients. One process: nothing to do.

    "ddp" keeps a whole copy on every process. "fsdp" keeps 1/size of weights, moments and averages on each (FSDP2); the
    optimizers are given the shards in place of the parameters, so they must not have made a step yet.
    """
    if world.size == 1:
        return
    before = {name: list(module.parameters()) for name, module in modules.items()}
    for name, module in modules.items():
        if how == "fsdp":
            for block in _blocks(module):
                fully_shard(block)
            fully_shard(module)
        else:
            # Looking for unused parameters also keeps DDP from regrouping its buckets after the first step, so that
            # sums over three and more processes round after a resume as they would have without the interruption.
            modules[name] = DistributedDataParallel(module, find_unused_parameters=True, gradient_as_bucket_view=True)
    now = {old: new for name in modules for old, new in zip(before[name], modules[name].parameters(), strict=True)}
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["params"] = [now[parameter] for parameter in group["params"]]


def release(modules: dict[str, nn.Module]) -> None:
    """Take the wrappers that `replicate` put there off again: they must be gone before the process group is."""
    modules.update({name: bare(module) for name, module in modules.items()})
    gc.collect()


def _blocks(module: nn.Module) -> Iterator[nn.Module]:
    """The parts that are gathered together: the levels of a network, the layers of a transformer."""
    lists = [part for name, part in module.named_modules() if name.rsplit(".", 1)[-1] in ("resnets", "layers")]
    for parts in lists:
        yield from parts.children()


@contextmanager
def apart(modules: Mapping[str, nn.Module], last: bool) -> Iterator[None]:
    """Within the block, gradients stay on their process, unless this is the `last` pass of a step."""
    with ExitStack() as stack:
        for module in modules.values():
            if isinstance(module, FSDPModule):
                module.set_requires_gradient_sync(last)
            elif isinstance(module, DistributedDataParallel) and not last:
                stack.enter_context(module.no_sync())
        yield


def bare(module: nn.Module) -> nn.Module:
    """The network itself, without the wrapper that `replicate` may have put around it."""
    return module.module if isinstance(module, DistributedDataParallel) else module


def sharded(modules: Mapping[str, nn.Module]) -> bool:
    """Whether a network is spread over the processes, so that all must take part in using it."""
    return any(isinstance(module, FSDPModule) for module in modules.values())


def reshard(modules: Mapping[str, nn.Module]) -> None:
    """Give back what sharded networks gathered in a forward pass without a backward pass behind it."""
    for module in modules.values():
        if isinstance(module, FSDPModule):
            for part in module.modules():
                if isinstance(part, FSDPModule):
                    part.reshard()


def whole(tensor: Tensor) -> Tensor:
    """A tensor, whole, on the CPU, copied only if it must be; a sharded one is put together by all processes."""
    full = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
    return full.detach().cpu()


def local(tensor: Tensor) -> Tensor:
    """This process's own part of a tensor, sharing its memory; all of it where it is not sharded."""
    return (tensor.to_local() if isinstance(tensor, DTensor) else tensor).detach()


@torch.no_grad()
def put(source: Tensor, target: Tensor) -> None:
    """Copy a whole tensor into one of the same shape, which may be sharded. Raises InputError for another shape."""
    if source.shape != target.shape:
        raise InputError(f"a tensor of shape {tuple(source.shape)} stands where {tuple(target.shape)} is needed")
    if isinstance(target, DTensor):
        source = distribute_tensor(source.to(target.device), target.device_mesh, target.placements, src_data_rank=None)
    target.copy_(source)
