"""Images per second of training the second stage: Safelight's U-Net and diffusers' in the same loop and process.

    python bench/training.py                      a small U-Net on the CPU
    python bench/training.py --net sd15 --device cuda --precision bfloat16 --batch-size 16 --channels-last

Both nets have the same weights, get the same latents and contexts, and are stepped by the same trainer (fused AdamW,
clipping, EMA). Their losses of the first step are compared. Then they take turns, and the median turn counts. On a
known GPU the share of its peak is given too: model-FLOPs utilisation, the matrix products and convolutions of one
forward and backward pass over what the device could have done in the time.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("DIFFUSERS_VERBOSITY", "error")

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from safelight.diffusion.condition import Condition
from safelight.diffusion.parameterization import PARAMETERIZATIONS
from safelight.diffusion.schedule import noise_schedule
from safelight.models.presets import UNETS, levels
from safelight.models.unet import UNet, UNetConfig
from safelight.training.loop.distributed import World
from safelight.training.loop.optim import adamw
from safelight.training.loop.recipes import LoopConfig
from safelight.training.loop.train import Trainer
from safelight.training.stages.diffusion import diffusion_loss
from safelight.training.stages.noise import BatchNoise
from safelight.training.stages.stage import Loss, Stage, Weights

SMALL = UNetConfig(sample_size=16, **levels("", "CrossAttn", "CrossAttn"), block_out_channels=(64, 128, 256),
                   attention_head_dim=(2, 4, 8), cross_attention_dim=256)  # fmt: skip
NETS = {"small": SMALL, "sd15": UNETS["sd15"]}
PEAKS = {"H100": 989e12, "H200": 989e12, "A100": 312e12}  # dense bfloat16 FLOP/s, from the maker's data sheets


class Peer(nn.Module):
    """diffusers' net with the call of ours."""

    def __init__(self, config: UNetConfig, weights: dict[str, Tensor]) -> None:
        super().__init__()
        self.net = UNet2DConditionModel.from_config(config.to_diffusers())
        self.net.load_state_dict(weights)

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        """Like `UNet.forward`."""
        return self.net(x, t, encoder_hidden_states=context).sample


class Pass(Stage):
    """The loss of a net on latents and contexts as they are."""

    name, averaged = "diffusion", ("unet",)

    def __init__(self, net: nn.Module, device: torch.device) -> None:
        self.modules = {"unet": net.to(device).train()}
        self.optimizers = {"unet": adamw([net], learning_rate=1e-5)}
        self.schedule = noise_schedule()

    def losses(self, batch: tuple[Tensor, Tensor], noise: BatchNoise) -> Iterator[Loss]:
        """The loss of epsilon."""
        x0, context = batch
        timesteps = (noise.uniform() * 1000).floor()
        each = diffusion_loss(self.modules["unet"], x0, noise.normal(*x0.shape[1:]), timesteps, Condition(context),
                              schedule=self.schedule, parameterization=PARAMETERIZATIONS["epsilon"])  # fmt: skip
        yield Loss("unet", each.mean(), {"loss": each.mean()})

    def sheet(self) -> None:
        """There is nothing to look at."""

    def finish(self, folder: Path, weights: Weights, record: Mapping[str, Any]) -> None:
        """Not asked for."""
        raise NotImplementedError("a benchmark writes no model")


class Samples:
    """The same latents and contexts again and again, on the device."""

    def __init__(self, config: UNetConfig, count: int, device: torch.device) -> None:
        side, g = config.sample_size, torch.Generator().manual_seed(0)
        x0 = torch.randn(count, config.in_channels, side, side, generator=g)
        self.samples = x0.to(device), torch.randn(count, 77, config.cross_attention_dim, generator=g).to(device)

    def __len__(self) -> int:
        return len(self.samples[0])

    def batch(self, seed: int, numbers: Sequence[int], device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
        """The samples, whatever their numbers."""
        return self.samples


def turn(trainer: Trainer, batches, steps: int) -> float:
    """Seconds of some steps."""
    if trainer.world.device.type == "cuda":
        torch.cuda.synchronize()
    started = time.perf_counter()
    for _ in range(steps):
        trainer.forward_backward(batches)
        trainer.update()
    trainer.figures.read()  # waits for the device
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--net", choices=NETS, default="small")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--steps", type=int, default=4, help="of a turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--channels-last", action="store_true")
    parser.add_argument("--compile", action="store_true")
    asked = parser.parse_args()
    device, config = torch.device(asked.device), NETS[asked.net]
    options = {"channels_last": asked.channels_last, "compile": asked.compile, "precision": asked.precision}
    loop = LoopConfig(batch_size=asked.batch_size, warmup=0, sheet_every=0, **options)
    torch.manual_seed(0)
    ours = UNet(config)
    nets = {"diffusers": Peer(config, ours.state_dict()), "safelight": ours}
    samples, seconds, losses = Samples(config, asked.batch_size, device), {name: [] for name in nets}, {}
    with tempfile.TemporaryDirectory() as folder:
        running = {}
        for name, net in nets.items():
            trainer = Trainer(Pass(net, device), samples, Path(folder) / name, loop, World(device=device))
            batches = trainer.batches()
            trainer.forward_backward(batches)
            losses[name] = trainer.figures.read()["loss"]
            trainer.update()
            turn(trainer, batches, 2)
            running[name] = trainer, batches
        trainer, batches = running["diffusers"]  # whose arithmetic torch sees all of
        with FlopCounterMode(display=False) as counter:
            trainer.forward_backward(batches)
        for _ in range(asked.turns):
            for name, (trainer, batches) in running.items():
                seconds[name].append(turn(trainer, batches, asked.steps))
    rate = {name: asked.batch_size * asked.steps / statistics.median(some) for name, some in seconds.items()}
    result = {
        "loss_of_the_first_step": losses,
        "images_per_second": {name: round(value, 3) for name, value in rate.items()},
        "ratio": round(rate["safelight"] / rate["diffusers"], 3),
        "gflop_per_image": round(counter.get_total_flops() / asked.batch_size / 1e9, 1),
        **vars(asked),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }
    if device.type == "cuda":
        result["gpu"] = torch.cuda.get_device_name(device)
        peak = next((peak for name, peak in PEAKS.items() if name in result["gpu"]), None)
        if peak is not None:
            done = counter.get_total_flops() / asked.batch_size * rate["safelight"]
            result["model_flops_utilisation"] = round(done / peak, 3)
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
