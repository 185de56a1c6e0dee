"""OpenVINO: diffusers' networks converted once, compiled for fixed shapes, which is what it is fastest with.

With mode "int8" the U-Net is quantised by NNCF (post-training, SmoothQuant), calibrated on noise alone: that is enough
to measure its speed, and says little of the quality that a proper calibration would give.
"""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import openvino as ov

CALIBRATION = 2  # samples of noise
GUIDANCE, SCALE = 7.5, 0.18215  # of Stable Diffusion 1, as everyone here draws


def versions():
    return {"openvino": ov.__version__.partition("-")[0]}


def load(job):
    parts = {"text": text, "unet": unet, "encode": encode, "decode": decode, "draw": draw}
    return parts[job.part](job)


# Converting: once, by way of torch --------------------------------------------------------------------------------


def prepare(job):
    """Convert the networks that a part needs, and quantise the U-Net if that is the mode."""
    for name in NETWORKS if job.part == "draw" else [job.part]:
        if not file(job, name).exists():
            write(job, name)
    if job.mode == "int8" and job.part in ("unet", "draw") and not file(job, "unet-int8").exists():
        save(quantised(job), file(job, "unet-int8"))


def file(job, name) -> Path:
    return Path(job.cache) / "openvino" / f"{name}.xml"


def save(model, path):
    """Write it under its name only when it is whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ov.save_model(model, path.with_name(f"part-{path.name}"), compress_to_fp16=True)  # the weights are float16's
    path.with_name(f"part-{path.stem}.bin").rename(path.with_suffix(".bin"))
    path.with_name(f"part-{path.name}").rename(path)


def write(job, name):
    import torch

    network, call, example = NETWORKS[name](job.model)

    class Alone(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network.eval()

        def forward(self, *inputs):
            return call(self.network, *inputs)

    with torch.no_grad():
        save(ov.convert_model(Alone(), example_input=tuple(map(torch.from_numpy, example))), file(job, name))


def noise(*shape):
    return np.random.default_rng(0).standard_normal(shape, dtype=np.float32)


def _text(model):
    from transformers import CLIPTextModel

    network = CLIPTextModel.from_pretrained(model, subfolder="text_encoder")
    return network, lambda net, ids: net(ids).last_hidden_state, [np.ones((2, 77), np.int64)]


def _unet(model):
    from diffusers import UNet2DConditionModel

    network = UNet2DConditionModel.from_pretrained(model, subfolder="unet")
    example = [noise(2, 4, 32, 32), np.float32([500]), noise(2, 77, 768)]
    return network, lambda net, x, t, context: net(x, t, context, return_dict=False)[0], example


def _vae(model):
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(model, subfolder="vae")


def _encode(model):
    vae = _vae(model)
    return vae, lambda net, picture: net.quant_conv(net.encoder(picture))[:, :4], [noise(1, 3, 256, 256)]


def _decode(model):
    return _vae(model), lambda net, z: net.decode(z, return_dict=False)[0], [noise(1, 4, 32, 32)]


NETWORKS = {"text": _text, "unet": _unet, "encode": _encode, "decode": _decode}


def quantised(job):
    import nncf

    samples = [
        [noise(2, 4, 32, 32) * (k + 1), np.float32([900 / (k + 1)]), noise(2, 77, 768)] for k in range(CALIBRATION)
    ]
    model = ov.Core().read_model(file(job, "unet"))
    model.reshape(dict(zip((port.any_name for port in model.inputs), (s.shape for s in samples[0]), strict=True)))
    smooth = nncf.AdvancedQuantizationParameters(smooth_quant_alphas=nncf.AdvancedSmoothQuantParameters(matmul=0.15))
    return nncf.quantize(
        model,
        nncf.Dataset(samples),
        model_type=nncf.ModelType.TRANSFORMER,
        subset_size=CALIBRATION,
        advanced_parameters=smooth,
    )


# Running ----------------------------------------------------------------------------------------------------------


def compiled(job, name, *shapes):
    """A network for inputs of fixed shapes."""
    core = ov.Core()
    model = core.read_model(file(job, name))
    model.reshape(dict(enumerate(shapes)))
    settings = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": job.threads,
        "INFERENCE_PRECISION_HINT": {"float32": "f32", "bfloat16": "bf16"}[job.dtype],
    }
    network = core.compile_model(model, "CPU", settings)
    return lambda *inputs: network(inputs)[0]


def text(job):
    network = compiled(job, "text", [job.batch, 77])
    return lambda ids: network(ids)


def unet(job, batch=None):
    batch, side = batch or job.batch, job.side // 8
    name = "unet-int8" if job.mode == "int8" else "unet"
    network = compiled(job, name, [batch, 4, side, side], [1], [batch, 77, 768])
    return lambda x, t, context: network(np.repeat(x, batch // len(x), axis=0), np.float32([t]), context)


def encode(job):
    network = compiled(job, "encode", [1, 3, job.side, job.side])
    return lambda picture: network(picture)


def decode(job):
    network = compiled(job, "decode", [1, 4, job.side // 8, job.side // 8])
    return lambda latent: network(latent)


def draw(job):
    """Classifier-free guidance as diffusers' pipeline does it, with its scheduler and tokenizer."""
    import torch
    from diffusers import DDIMScheduler
    from transformers import CLIPTokenizer

    words, denoise, picture = text(SimpleNamespace(**vars(job) | {"batch": 2})), unet(job, 2), decode(job)
    tokenizer = CLIPTokenizer.from_pretrained(job.model, subfolder="tokenizer")
    scheduler = DDIMScheduler.from_pretrained(job.model, subfolder="scheduler", clip_sample=False)  # as for latents

    def drawn(prompt, seed):
        ids = tokenizer(["", str(prompt)], padding="max_length", max_length=77, truncation=True).input_ids
        context = words(np.int64(ids))
        scheduler.set_timesteps(job.steps)
        x = torch.randn(1, 4, job.side // 8, job.side // 8, generator=torch.Generator().manual_seed(int(seed)))
        for t in scheduler.timesteps:
            without, with_words = denoise(np.repeat(x.numpy(), 2, axis=0), float(t), context)
            guided = without + GUIDANCE * (with_words - without)
            x = scheduler.step(torch.from_numpy(guided)[None], t, x).prev_sample
        return (picture(x.numpy() / SCALE)[0] / 2 + 0.5).clip(0, 1).transpose(1, 2, 0)

    return drawn
