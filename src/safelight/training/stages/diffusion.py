"""The second stage: the latent-diffusion loss (Rombach et al. 2022, eq. 2 and 3), and what it trains.

`diffusion_loss` is the mathematics, a pure function of tensors. `DiffusionStage` makes its arguments of a batch: the
latents, of pictures or of precomputed moments; timesteps, noise and the condition.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from safelight import kernels
from safelight.checkpoint.build import on_meta
from safelight.checkpoint.lora import FILE
from safelight.checkpoint.parts import Parts
from safelight.checkpoint.save import save_folder
from safelight.checkpoint.writing import replacing_folder
from safelight.diffusion.condition import Condition
from safelight.diffusion.noise import sent
from safelight.diffusion.parameterization import Parameterization
from safelight.diffusion.schedule import NoiseSchedule
from safelight.errors import InputError
from safelight.models.clip import Reading, TextEncoder
from safelight.models.conditioners import LayoutEmbedder, MapEmbedder, config_of, make_conditioner
from safelight.models.text_pair import TextEncoderPair
from safelight.models.unet import UNet
from safelight.pipeline.bundle import LatentDiffusion
from safelight.pipeline.tasks import text_to_image
from safelight.training.data.batches import Batch
from safelight.training.loop.cards import write_card
from safelight.training.loop.distributed import bare
from safelight.training.loop.optim import adamw
from safelight.training.loop.recipes import DiffusionConfig
from safelight.training.loop.sheets import contact_sheet
from safelight.training.stages import conditioning
from safelight.training.stages.examples import example_sheet
from safelight.training.stages.lora import Adapted, write_lora
from safelight.training.stages.noise import BatchNoise
from safelight.training.stages.stage import Loss, Stage, Weights


def diffusion_loss(
    network: Callable[..., Tensor],
    x0: Tensor,
    noise: Tensor,
    timesteps: Tensor,
    condition: Condition | None = None,
    *,
    schedule: NoiseSchedule,
    parameterization: Parameterization,
    snr_gamma: float | None = None,
    distance: str = "l2",
) -> Tensor:
    """The loss of each sample, (B,): weight · mean |network(x_t, t, condition) - target|², or the mean of |…| for "l1".

    x0, noise: (B, C, h, w). timesteps: (B,), on the CPU. x_t = sqrt(ᾱ)·x0 + sqrt(1 - ᾱ)·noise (Ho et al. 2020, eq. 4).
    snr_gamma: weigh by `min_snr`; None weighs all noise levels alike.
    """
    condition = condition or Condition()
    sigma = schedule.sigmas_at(timesteps)
    x = noised(x0, noise, sigma, parameterization)
    if condition.concat is not None:
        x = torch.cat([x, condition.concat.to(x)], dim=1)
    t = sent(timesteps.to(torch.float32), x0.device)
    steering = {"context": condition.context, "class_labels": condition.class_labels, "pooled": condition.pooled}
    output = network(x, t, **{name: value for name, value in steering.items() if value is not None}).float()
    target = parameterization.target(x0, noise, _to(sigma, x0))
    error = (output - target).abs() if distance == "l1" else F.mse_loss(output, target, reduction="none")
    loss = error.flatten(1).mean(1)
    return loss if snr_gamma is None else loss * _to(min_snr(sigma, snr_gamma, parameterization), loss)


def noised(x0: Tensor, noise: Tensor, sigma: Tensor, parameterization: Parameterization) -> Tensor:
    """What the network sees of x0 at noise levels sigma (B,): c_in·(x0 + sigma·noise)."""
    c_in = torch.as_tensor(parameterization.coefficients(sigma)[2])
    return _per_sample(c_in, x0) * x0 + _per_sample(c_in * sigma, x0) * noise


def _per_sample(values: Tensor, x: Tensor) -> Tensor:
    """Numbers (B,) as (B, 1, 1, 1), of x's dtype and on its device."""
    return _to(values, x).reshape(-1, *[1] * (x.ndim - 1))


def _to(values: Tensor, x: Tensor) -> Tensor:
    """Numbers from the host in x's dtype and on its device, without waiting for it."""
    return sent(values.to(x.dtype), x.device)


def min_snr(sigma: Tensor, gamma: float, parameterization: Parameterization) -> Tensor:
    """Min-SNR-γ weights (B,) (Hang et al. 2023, arXiv 2303.09556, section 3.4), for any prediction type.

    The paper weighs the squared error of x0 by min(SNR, γ), with SNR = 1/sigma². The network's own error is that of x0
    divided by c_out, hence its weight is min(SNR, γ)·c_out²: min(SNR, γ)/SNR for epsilon, min(SNR, γ)/(SNR + 1) for v.
    """
    c_out = parameterization.coefficients(sigma)[1]
    return sigma.pow(-2).clamp(max=gamma) * c_out**2


def draw_timesteps(noise: BatchNoise, config: DiffusionConfig, count: int) -> Tensor:
    """Training timesteps (B,), whole numbers from 0 to count - 1, float64, on the CPU.

    "logit_normal" is the sigmoid of a normal variable, which favours the middle (Esser et al. 2024, arXiv 2403.03206).
    """
    u = noise.stratified() if config.stratified else noise.uniform()
    if config.timesteps == "logit_normal":
        u = torch.sigmoid(config.logit_mean + config.logit_std * torch.special.ndtri(u.clamp(1e-9, 1 - 1e-9)))
    return (u * count).floor().clamp(max=count - 1)


class DiffusionStage(Stage):
    """Trains the U-Net of a model, and its text encoder along with it if asked to.

    The autoencoder, and a text encoder that is not trained, stay as they are.
    """

    name = "diffusion"

    def __init__(
        self,
        model: LatentDiffusion,
        config: DiffusionConfig,
        *,
        classes: tuple[str, ...] = (),
        examples: Batch | None = None,
    ) -> None:
        """model: its networks in float32, on the training device. classes: their names, where it is told of classes.

        examples: samples of the data to draw on sheets, for models that are not asked in words or classes alone.
        """
        self.model, self.config, self.classes, self.examples = model, config, classes, examples
        self._check()
        kernels.prepare(model.autoencoder.eval().requires_grad_(False))
        self.modules: dict[str, nn.Module] = {"unet": model.unet.train().requires_grad_(True)}
        if model.text_encoder is not None:
            model.text_encoder.train(config.train_text_encoder).requires_grad_(config.train_text_encoder)
            for part in model.text_encoder.modules():
                if isinstance(part, TextEncoder):
                    part.check_ids = False  # the host would wait for the device
            if config.train_text_encoder:
                self.modules["text_encoder"] = model.text_encoder
        if model.conditioner is not None:
            self.modules["conditioner"] = model.conditioner.train().requires_grad_(True)
        if config.lora_rank:
            self.modules = {name: self._adapted(network) for name, network in self.modules.items()}
        self.averaged = tuple(self.modules)
        rates = {"learning_rate": config.learning_rate, "weight_decay": config.weight_decay}
        betas = (config.beta1, config.beta2)
        self.optimizers: dict[str, torch.optim.Optimizer] = {"unet": adamw(self.modules.values(), betas=betas, **rates)}

    def _adapted(self, network: nn.Module) -> Adapted:
        """A network with a LoRA beside it, which is what is trained."""
        c = self.config
        return Adapted(network, rank=c.lora_rank, alpha=c.lora_alpha, layers=c.lora_layers)

    def losses(self, batch: Any, noise: BatchNoise) -> Iterator[Loss]:
        """One loss, of the U-Net."""
        config = self.config
        x0 = self.latents(batch, noise)
        condition = self.condition(batch, noise, x0.shape[-2:])
        epsilon = noise.normal(*x0.shape[1:])
        if config.offset_noise:
            epsilon = epsilon + config.offset_noise * noise.normal(x0.shape[1], 1, 1)
        timesteps = draw_timesteps(noise, config, self.model.schedule.num_train_timesteps)
        each = diffusion_loss(
            self.modules["unet"],
            x0,
            epsilon,
            timesteps,
            condition,
            schedule=self.model.schedule,
            parameterization=self.model.parameterization,
            snr_gamma=config.snr_gamma if config.weighting == "min_snr" else None,
            distance=config.distance,
        )
        yield Loss("unet", each.mean(), {"loss": each.detach().mean()})

    @torch.no_grad()
    def latents(self, batch: Any, noise: BatchNoise) -> Tensor:
        """Scaled latents (B, C, h, w) of a batch of pictures, or of posterior moments, drawn from the posterior."""
        autoencoder = self.model.autoencoder
        if (moments := getattr(batch, "moments", None)) is not None:
            posterior = autoencoder.quantize.posterior(moments.float(), autoencoder.scale)
        else:
            posterior = autoencoder.encode(batch.pictures)
        return posterior.sample(noise.normal(*posterior.mean.shape[1:]))

    def condition(
        self, batch: Any, noise: BatchNoise, size: tuple[int, ...], *, dropout: float | None = None
    ) -> Condition:
        """What steers the network: see `safelight.training.stages.conditioning`. size: the latent's (h, w).

        dropout: the share of null conditions; by default the config's.
        """
        drop = conditioning.dropped(noise, self.config.condition_dropout if dropout is None else dropout)
        steering = Condition()
        if self.config.conditioning == "text":
            steering = self._words(batch, drop, size)
        elif self.config.conditioning == "class":
            labels = conditioning.class_labels(batch, len(self.classes), drop, self.model.device)
            steering = Condition(class_labels=labels)
        elif self.config.conditioning == "layout":
            places = conditioning.layout(batch, drop, self.model.device)
            steering = Condition(context=self.modules["conditioner"](*places))
        return steering if self.config.concat == "none" else replace(steering, concat=self._concat(batch, noise, size))

    def _words(self, batch: Any, drop: Tensor, size: tuple[int, ...]) -> Condition:
        context = getattr(batch, "context", None)
        alone = not isinstance(self.model.text_encoder, TextEncoderPair)  # beside a context, a pair says more
        if context is None or self.config.train_text_encoder or not alone:
            read = self._encode(conditioning.text_ids(batch, self.model.tokenizer, self._null_ids, drop))
            pooled = None if read.pooled is None else self.model.told_size(read.pooled, size)
            return Condition(context=read.context, pooled=pooled)
        drop = sent(drop, context.device)
        return Condition(context=torch.where(drop[:, None, None], self._null_context, context.float()))

    def _encode(self, ids: Tensor) -> Reading:
        if "text_encoder" in self.modules:
            return Reading(self.modules["text_encoder"](ids).last_hidden_state)
        text_encoder = self.model.text_encoder
        assert text_encoder is not None  # `_check` has seen to it
        with torch.no_grad():
            context, pooled = text_encoder.reading(text_encoder(ids))
            return Reading(context.float(), None if pooled is None else pooled.float())

    @cached_property
    def _null_ids(self) -> Tensor:
        """The ids (L,) of the null caption, on the device."""
        assert self.model.tokenizer is not None  # likewise
        return conditioning.token_ids(self.model.tokenizer, [conditioning.NULL_CAPTION])[0].to(self.model.device)

    @cached_property
    def _null_context(self) -> Tensor:
        """What the frozen text encoder says to the null caption, (1, L, D)."""
        return self._encode(self._null_ids[None]).context

    def _concat(self, batch: Any, noise: BatchNoise, size: tuple[int, ...]) -> Tensor:
        if self.config.concat == "class_map":
            return self.modules["conditioner"](conditioning.class_maps(batch, self.model.device), size)
        return self._pictured(batch, noise, size)

    @torch.no_grad()
    def _pictured(self, batch: Any, noise: BatchNoise, size: tuple[int, ...]) -> Tensor:
        if getattr(batch, "pictures", None) is None:
            raise InputError(f"concat={self.config.concat} needs pictures", remedy="train on pictures, not on latents")
        if self.config.concat == "low_resolution":
            return conditioning.low_resolution(batch.pictures, size)
        return conditioning.mask_and_rest(
            batch.pictures, size, lambda p: self.model.autoencoder.encode(p).mode(), noise
        )

    def _check(self) -> None:
        """See that the networks and the options go together, before anything takes a while."""
        model, config, unet = self.model, self.config, self.model.unet.config
        if config.conditioning == "text" and (model.text_encoder is None or model.tokenizer is None):
            raise InputError("conditioning on text needs a text encoder", remedy="name one, or --conditioning none")
        if (config.conditioning in ("text", "layout")) != unet.conditional:
            raise InputError(f"the U-Net does not take conditioning={config.conditioning!r}",
                             remedy="a U-Net with cross-attention needs text or a layout, one without must do without"
                             )  # fmt: skip
        embedder = {"layout": LayoutEmbedder, "class_map": MapEmbedder}
        wanted = {embedder[name] for name in (config.conditioning, config.concat) if name in embedder}
        if wanted != ({type(model.conditioner)} if model.conditioner is not None else set()):
            has = "none" if model.conditioner is None else f"a {type(model.conditioner).__name__}"
            what = f"conditioning={config.conditioning!r} and concat={config.concat!r} need another embedder than {has}"
            raise InputError(what, remedy="make a new model, without --init, or train this one as it was trained")
        if config.lora_rank and model.conditioner is not None:
            raise InputError("a LoRA is for models of words", remedy="train this model itself: lora_rank=0")
        if config.train_text_encoder and isinstance(model.text_encoder, TextEncoderPair):
            what = "train_text_encoder is for one text encoder, and this model has two"
            raise InputError(what, remedy="leave it out: the U-Net is trained, or a LoRA of it")
        if config.train_text_encoder and config.conditioning != "text":
            raise InputError("train_text_encoder is for conditioning on text", remedy="leave it out")
        rows = unet.num_class_embeds
        if config.conditioning == "class" and (not self.classes or rows != len(self.classes) + 1):
            raise InputError(f"{len(self.classes)} classes do not fit a U-Net with a table of {rows}",
                             remedy="the table has one row for each class and one for none")  # fmt: skip
        latent = model.autoencoder.config.embed_dim
        beside = conditioning.channels_beside(config.concat, latent)
        if unet.in_channels != latent + beside or unet.out_channels != latent:
            raise InputError(
                f"the U-Net goes from {unet.in_channels} to {unet.out_channels} channels; the latent has {latent}, "
                f"concat={config.concat} adds {beside}",
                remedy=f"use a U-Net from {latent + beside} to {latent} channels",
            )
        if model.prediction_type == "epsilon" and model.schedule.sigma_max > 1000:
            raise InputError("with zero terminal SNR the noise cannot be told from itself at the last timestep",
                             remedy="train v_prediction or sample (Lin et al. 2023)")  # fmt: skip

    def sheet(self) -> Image.Image | None:
        """Pictures of `sheet_prompts`, or of the examples beside what is seen of them, with seeds 0, 1, 2, …"""
        config = self.config
        if self.examples is not None:
            return example_sheet(self, self.examples)
        if config.concat != "none" or config.conditioning == "layout":
            return None
        labels = config.sheet_prompts or ("",) * 4
        guided = config.conditioning != "none" and config.condition_dropout > 0
        self.model.unet.eval()
        try:
            pictures = text_to_image(
                self.model,
                self._sheet_condition(labels),
                negative_prompt=self._sheet_condition([None] * len(labels)),
                steps=config.sheet_steps,
                guidance_scale=config.sheet_guidance if guided else 1.0,
                sampler="ddim",
                grid="trailing",
                seed=0,
                batch_size=16,
            )
        finally:
            self.model.unet.train()
        return contact_sheet(list(pictures), labels)

    def _sheet_condition(self, labels: Any) -> Any:
        if self.config.conditioning == "class":
            known = {name: i for i, name in enumerate(self.classes)}
            numbers = [known.get(label, len(self.classes)) for label in labels]
            return Condition(class_labels=torch.tensor(numbers, device=self.model.device))
        return [label or "" for label in labels] if self.config.conditioning == "text" else [""] * len(labels)

    def finish(self, folder: Path, weights: Weights, record: Mapping[str, Any]) -> None:
        """Write the model in diffusers' layout, or the LoRA, with a card beside it."""
        if self.config.lora_rank:
            return self._finish_lora(folder, weights, record)
        model = self.model
        unet = on_meta(lambda: UNet(bare(model.unet).config))  # type: ignore[arg-type]
        unet.load_state_dict(dict(weights["unet"]), assign=True)
        text_encoder = model.text_encoder
        if isinstance(text_encoder, TextEncoder) and "text_encoder" in weights:
            text_config = text_encoder.config
            text_encoder = on_meta(lambda: TextEncoder(text_config))
            text_encoder.load_state_dict(dict(weights["text_encoder"]), assign=True)
        conditioner = model.conditioner
        if conditioner is not None:
            shape = config_of(conditioner)
            conditioner = on_meta(lambda: make_conditioner(shape))
            conditioner.load_state_dict(dict(weights["conditioner"]), assign=True)
        parts = Parts(
            unet=unet,
            autoencoder=model.autoencoder,
            text_encoder=text_encoder,
            tokenizer=model.tokenizer,
            conditioner=conditioner,
            classes=self.classes,
            guidance_scale=self.config.sheet_guidance,
            force_zeros_for_empty_prompt=model.force_zeros_for_empty_prompt,
            scheduler_config=model.scheduler_config,
            prediction_type=model.prediction_type,
            family=model.family,
        )
        save_folder(parts, folder)
        return write_card(folder, "diffusion", {**record, "config": self.config.model_dump()})

    def _finish_lora(self, folder: Path, weights: Weights, record: Mapping[str, Any]) -> None:
        learned = {name: (bare(module), dict(weights[name])) for name, module in self.modules.items()}
        with replacing_folder(folder, is_ours=lambda path: (path / FILE).is_file()) as new:
            write_lora(new, learned)  # type: ignore[arg-type]
            write_card(new, "lora", {**record, "config": self.config.model_dump()})
