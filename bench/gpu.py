"""Safelight beside diffusers compiled, on a GPU: guided steps and pictures a second, and how much of the GPU they use.

    python bench/gpu.py                          Stable Diffusion 1 at 512², batches of 1 and 16, in float16
    python bench/gpu.py --dtype bfloat16 --batches 1 4 16 --rounds 5
    python bench/gpu.py --device cpu --small --side 64 --batches 1 --steps 4 --engines safelight diffusers

All draw with the same seeded random weights, which are kept in a cache folder (2 GB), from words to pictures on the
host, taking turns in one process; medians are printed. A step's time is what a drawing of twice the steps takes longer,
so that words and decoder are in the pictures' rate alone. Utilisation is the arithmetic of a guided step (two passes of
the U-Net, counted once for all) over its time, as a share of what one large matrix product reaches here, or of --peak.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch
from torch.utils.flop_counter import FlopCounterMode

import safelight
from peers.material import PROMPT, model_folder
from safelight.checkpoint.configs import default_scheduler
from safelight.checkpoint.parts import Parts
from safelight.checkpoint.save import save_folder
from safelight.models.unet import UNet
from safelight.pipeline.compiling import compiled
from safelight.pipeline.standin import random_model

CACHE = Path.home() / ".cache" / "safelight" / "peers"
Draw = Callable[[int, int], object]  # (steps, batch) -> pictures on the host


def ours(folder: Path, given: argparse.Namespace, compiles: bool = False) -> Draw:
    model = safelight.load(folder, device=given.device, dtype=given.dtype)
    model = compiled(model) if compiles else model
    size = {"width": given.side, "height": given.side}
    return lambda steps, batch: safelight.text_to_image(
        model, PROMPT, seed=0, steps=steps, count=batch, batch_size=batch, sampler="ddim", grid="leading", **size
    )


def diffusers(folder: Path, given: argparse.Namespace, compiles: bool = False) -> Draw:
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(folder, torch_dtype=getattr(torch, given.dtype)).to(given.device)
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, clip_sample=False)  # as for latents
    pipe.set_progress_bar_config(disable=True)
    for network in (pipe.unet, pipe.vae):
        network.to(memory_format=torch.channels_last)
    if compiles:
        pipe.unet.compile(mode=given.mode, fullgraph=True)
        pipe.vae.decode = torch.compile(pipe.vae.decode, mode=given.mode)
    size = {"width": given.side, "height": given.side}
    return lambda steps, batch: pipe(PROMPT, num_inference_steps=steps, num_images_per_prompt=batch, **size)


ENGINES = {
    "safelight": ours,
    "safelight-compiled": lambda folder, given: ours(folder, given, compiles=True),
    "diffusers": diffusers,
    "diffusers-compiled": lambda folder, given: diffusers(folder, given, compiles=True),
}


def small_folder(cache: Path) -> Path:
    """The stand-in as a diffusers folder."""
    model, folder = random_model(), cache / "small-random"
    if not folder.exists():
        save_folder(
            Parts(
                unet=model.unet,
                autoencoder=model.autoencoder,
                text_encoder=model.text_encoder,
                tokenizer=model.tokenizer,
                scheduler_config=default_scheduler("sd1"),
                family="sd1",
            ),
            folder,
        )
    return folder


def flops(folder: Path, side: int) -> int:
    """Floating-point operations of a guided step for one picture: two passes, counted on tensors without contents."""
    config = safelight.load(folder, device="cpu").unet.config
    with torch.device("meta"), FlopCounterMode(display=False) as counter, torch.no_grad():
        UNet(config)(torch.empty(2, 4, side // 8, side // 8), 500.0, torch.empty(2, 77, config.cross_attention_dim))
    return counter.get_total_flops()


def rate_of_products(device: str, dtype: torch.dtype) -> float:
    """Floating-point operations a second of one large matrix product, the best of five."""
    n = 1024 if device == "cpu" else 8192
    a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
    return 2 * n**3 / min(timed(lambda: (a @ b)[0, 0].item()) for _ in range(6))  # the number makes the host wait


def timed(call: Callable[..., object], *given: int) -> float:
    start = time.perf_counter()
    call(*given)
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"))
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 16])
    parser.add_argument("--side", type=int, default=512)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--mode", help="torch.compile's, for diffusers")
    parser.add_argument("--peak", type=float, help="of the GPU, in TFLOP/s; by default what a product reaches")
    parser.add_argument("--small", action="store_true", help="the stand-in, to see whether everything runs")
    parser.add_argument("--cache", type=Path, default=CACHE)
    given = parser.parse_args()
    given.dtype = given.dtype or ("float32" if given.device == "cpu" else "float16")
    folder = small_folder(given.cache) if given.small else model_folder(given.cache)
    peak = given.peak * 1e12 if given.peak else rate_of_products(given.device, getattr(torch, given.dtype))
    work = flops(folder, given.side)
    print(f"torch {torch.__version__} on {given.device}, {given.dtype}; 100 % is {peak / 1e12:.3g} TFLOP/s; "
          f"a guided step of {given.side}² is {work / 1e12:.3g} TFLOP")  # fmt: skip
    engines = {name: ENGINES[name](folder, given) for name in given.engines}
    for batch in given.batches:
        first = {name: timed(draw, given.steps, batch) for name, draw in engines.items()}
        turns: dict[str, list[tuple[float, float]]] = {name: [] for name in engines}
        for _ in range(given.rounds):
            for name, draw in engines.items():
                long, short = (timed(draw, n, batch) for n in (2 * given.steps, given.steps))
                turns[name].append((short, (long - short) / given.steps))
        for name, seconds in turns.items():
            whole, step = (median(each) for each in zip(*seconds, strict=True))
            print(f"batch {batch:3}  {name:20} {1 / step:8.2f} steps/s  {batch / whole:7.2f} pictures/s  "
                  f"{work * batch / step / peak:6.1%} used  {first[name]:6.1f} s the first time")  # fmt: skip


if __name__ == "__main__":
    main()
