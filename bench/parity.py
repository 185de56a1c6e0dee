"""Safelight's networks beside diffusers' and transformers', at the full size of Stable Diffusion 1.5, 2 and XL.

    python bench/parity.py [--size 512]

Memory for Stable Diffusion XL is 12 GB.

Seeded random weights are made once, in float32, and shared by both sides (so memory holds them once); inputs are seeded
too. Printed is, for each output, the relative error |ours - theirs| / |theirs| (Euclidean norms over the whole tensor)
and the largest absolute difference. float32 sums of a few thousand terms differ in their last bits when they are added
in another order: 1e-5 is the bar, and a wrong constant anywhere gives 1e-3 or more.
"""

import argparse
import gc
import os
import time

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
from torch import Tensor, nn

from safelight.models.autoencoder import Autoencoder
from safelight.models.clip import TextConfig, TextEncoder
from safelight.models.controlnet import ControlNet, ControlNetConfig
from safelight.models.embedding import beside_words
from safelight.models.presets import AUTOENCODERS, TEXT_ENCODERS, TEXT_ENCODERS_2, UNETS
from safelight.models.unet import UNet

LIMIT = 1e-5


def fill(module: nn.Module, seed: int) -> nn.Module:
    """Random weights of the size that keeps activations near 1: normal with variance 1 / fan-in, norms near 1."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        if parameter.dim() > 1:
            parameter.data.normal_(std=parameter[0].numel() ** -0.5, generator=generator)
        else:
            parameter.data.normal_(std=0.1, generator=generator)
            parameter.data += 1.0 if "norm" in name and name.endswith("weight") else 0.0
    return module.eval().requires_grad_(False)


def share(ours: nn.Module, theirs: nn.Module, seed: int) -> None:
    """Give both modules the same tensors. Strict both ways: a key that only one side has is an error."""
    fill(theirs, seed)
    state = {k: v for k, v in theirs.state_dict().items() if not k.endswith("position_ids")}
    known = ours.state_dict()
    ours.load_state_dict({k if k in known else f"text_model.{k}": v for k, v in state.items()}, assign=True)
    ours.eval().requires_grad_(False)


def report(what: str, ours: Tensor, theirs: Tensor, seconds: tuple[float, float]) -> bool:
    ours, theirs = ours.double(), theirs.double()
    relative = float((ours - theirs).norm() / theirs.norm())
    largest = float((ours - theirs).abs().max())
    verdict = "ok" if relative <= LIMIT else "TOO FAR"
    times = f"{seconds[0]:7.2f} s {seconds[1]:7.2f} s"
    print(f"{what:28} {relative:9.1e} {largest:9.1e}  {tuple(ours.shape)!s:20} {times}  {verdict}", flush=True)
    return relative <= LIMIT


def timed(function, *args, **kwargs):
    start = time.perf_counter()
    result = function(*args, **kwargs)
    return result, time.perf_counter() - start


def unet(preset: str, size: int) -> bool:
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        ours = UNet(UNETS[preset])
    theirs = UNet2DConditionModel.from_config(ours.config.to_diffusers())
    share(ours, theirs, seed=0)
    g = torch.Generator().manual_seed(1)
    x = torch.randn(1, ours.config.in_channels, size // 8, size // 8, generator=g)
    context = torch.randn(1, 77, ours.config.cross_attention_dim, generator=g)
    good, told, pooled = True, {}, None
    if ours.config.pooled_width is not None:  # the text as a whole, and sizes
        whole, sizes = torch.randn(1, 1280, generator=g), torch.tensor([[1024.0, 768, 0, 128, size, size]])
        told, pooled = {"added_cond_kwargs": {"text_embeds": whole, "time_ids": sizes}}, beside_words(whole, sizes)
    for t in (999, 1):
        b, theirs_s = timed(theirs, x, t, context, **told)
        a, ours_s = timed(ours, x, torch.tensor([t]), context, pooled=pooled)
        good &= report(f"{preset} U-Net, t = {t}", a, b.sample, (ours_s, theirs_s))
    return good


def controlnet(preset: str, size: int) -> bool:
    from diffusers import ControlNetModel

    unet = UNETS[preset]
    names = ("block_out_channels", "cross_attention_dim", "attention_head_dim", "use_linear_projection")
    theirs = ControlNetModel(**{name: getattr(unet, name) for name in names})
    with torch.device("meta"):
        ours = ControlNet(ControlNetConfig(unet=unet))
    share(ours, theirs, seed=6)
    g = torch.Generator().manual_seed(7)
    x = torch.randn(1, 4, size // 8, size // 8, generator=g)
    context, picture = (
        torch.randn(1, 77, unet.cross_attention_dim, generator=g),
        torch.rand(1, 3, size, size, generator=g),
    )
    (skips, mid), theirs_s = timed(theirs, x, 500, context, picture, return_dict=False)
    added, ours_s = timed(ours, x, 500, context, picture)
    one, another = (torch.cat([part.flatten() for part in (*a, b)]) for a, b in (added, (skips, mid)))
    return report(f"{preset} ControlNet, all it adds", one, another, (ours_s, theirs_s))


def autoencoder(size: int) -> bool:
    from diffusers import AutoencoderKL

    with torch.device("meta"):
        ours = Autoencoder(AUTOENCODERS["sd15"])
    theirs = AutoencoderKL.from_config(ours.config.to_diffusers())
    share(ours, theirs, seed=2)
    g = torch.Generator().manual_seed(3)
    picture = torch.rand(1, 3, size, size, generator=g) * 2 - 1
    latent = torch.randn(1, 4, size // 8, size // 8, generator=g)
    b, theirs_s = timed(theirs.encode, picture)
    a, ours_s = timed(ours.encode, picture)
    good = report("autoencoder, encode: mean", a.mean, b.latent_dist.mean, (ours_s, theirs_s))
    good &= report("autoencoder, encode: logvar", a.logvar, b.latent_dist.logvar, (ours_s, theirs_s))
    scale = ours.config.scaling_factor
    b, theirs_s = timed(theirs.decode, latent / scale)
    a, ours_s = timed(ours.decode, latent)
    return good & report("autoencoder, decode", a, b.sample, (ours_s, theirs_s))


def text_encoder(preset: str, config: TextConfig) -> bool:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    with torch.device("meta"):
        ours = TextEncoder(config)
    kind = CLIPTextModelWithProjection if config.projection else CLIPTextModel
    theirs = kind(CLIPTextConfig(**config.to_transformers()))
    share(ours, theirs, seed=4)
    ids = torch.randint(0, 49406, (2, 77), generator=torch.Generator().manual_seed(5))
    ids[:, 0], ids[:, 20:] = 49406, 49407
    b, theirs_s = timed(theirs, ids, output_hidden_states=True)
    a, ours_s = timed(ours, ids)
    good = report(f"{preset} text, last hidden state", a.last_hidden_state, b.last_hidden_state, (ours_s, theirs_s))
    if config.projection:
        good &= report(f"{preset} text, projected", a.projected, b.text_embeds, (ours_s, theirs_s))
    return good & report(f"{preset} text, penultimate", a.hidden_states[-2], b.hidden_states[-2], (ours_s, theirs_s))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512, help="side of the picture in pixels")
    size = parser.parse_args().size
    print(f"{'':28} {'relative':>9} {'largest':>9}  {'shape':20} {'ours':>9} {'theirs':>9}")
    good = True
    with torch.no_grad():
        for check in (
            lambda: text_encoder("sd15", TEXT_ENCODERS["sd15"]),
            lambda: text_encoder("sd2_base", TEXT_ENCODERS["sd2_base"]),
            lambda: text_encoder("sdxl second", TEXT_ENCODERS_2["sdxl"]),
            lambda: autoencoder(size),
            lambda: unet("sd15", size),
            lambda: unet("sd2_base", size),
            lambda: unet("sdxl", size),
            lambda: controlnet("sd15", size),
            lambda: controlnet("sd2_base", size),
        ):
            good &= check()
            gc.collect()
    raise SystemExit(0 if good else 1)


if __name__ == "__main__":
    main()
