"""The darkroom that all tasks share: grid, noise, sampling, decode. What steers the pictures is in `steering`."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import replace
from math import ceil, hypot, inf
from secrets import randbelow
from typing import Protocol

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from safelight import kernels
from safelight.checkpoint.parts import LDM_INPAINT
from safelight.diffusion.grids import Grid
from safelight.diffusion.guidance import blending
from safelight.diffusion.noise import NoiseSource, Origin, make_noise, origins
from safelight.diffusion.samplers import Denoise, Edit, find, sample
from safelight.diffusion.windows import windowed
from safelight.errors import InputError, NonFiniteError
from safelight.models.autoencoder import Autoencoder
from safelight.models.tiny_decoder import TinyDecoder
from safelight.pipeline.bundle import LatentDiffusion, wrong_task
from safelight.pipeline.controlling import shown
from safelight.pipeline.fields import Settings
from safelight.pipeline.pictures import Pictures, to_pil
from safelight.pipeline.steering import Pair, Steering, batches, steer, steered, together
from safelight.pipeline.wording import Wording, Words, worded

BYTES_A_PIXEL = 5 * 1024  # at most, that Stable Diffusion's autoencoder takes for a whole picture in float32
TILE_ABOVE_PIXELS = 1536 * 1408  # to encode, which is 10 GB
WHOLE_UP_TO_PIXELS = 1024 * 1024  # larger pictures are decoded in strips, from 4 GB on down to half and less
TILE = 512  # side of a tile in pixels
SEEDS_END = 2**63  # so many there are


class Streams(Protocol):
    """Noise, a stream for each picture of a batch: what `make_noise` gives, or something made of it."""

    @property
    def origins(self) -> list[Origin]:
        """What each picture's noise grows from."""

    def initial(self) -> Tensor:
        """The first noise (B, C, h, w), asked for once."""

    def __call__(self, sigma: float, sigma_next: float) -> Tensor:
        """The noise of a step."""


def develop(
    model: LatentDiffusion,
    prompt: Words | Wording,
    settings: Settings,
    *,
    size: tuple[int, int] | None = None,
    latent: Tensor | None = None,
    strength: float = 1.0,
    concat: Tensor | None = None,
    beside: Callable[[Pair, int], Pair] | None = None,
    blend: Callable[[Tensor], Edit] | None = None,
    printing: bool = True,
) -> Pictures:
    """Sample and decode `count` pictures for each prompt.

    Args:
        model: the parts.
        prompt: words, or an encoded `Condition`; or what is settled of them.
        settings: complete, see `Settings`.
        size: the latent's (h, w); by default that of `latent`.
        latent: (1, C, h, w) to start from, or one for each picture, noised to where `strength` begins; None starts from
            noise alone.
        strength: the share of the grid to walk.
        concat: (1, C', h, w), further input channels of the U-Net; an inpainting model is shown a picture that is all
            hole where nothing else is given.
        beside: what else steers a picture beside the words: of its encoded prompts and its seed makes the pair it is
            drawn with.
        blend: given a batch's first noise, the `edit` that puts a known part back (see `keep_known`).
        printing: whether latents are decoded; without, the result has no images.
    """
    h, w = size if size is not None else latent.shape[-2:]  # type: ignore[union-attr]
    if concat is None and beside is None and model.sees != "nothing":
        if not model.paints_masks:
            raise wrong_task(model)
        concat = all_hole(model, (h, w), settings["tile"])
    grid = model.grid(settings["grid"], settings["steps"], **(settings["grid_options"] or {}))
    first = randbelow(2**32) if settings["seed"] is None else settings["seed"]
    words = prompt if isinstance(prompt, Wording) else worded(prompt, settings, first)
    settings = shown(model, settings, (h, w))
    seen = [min(pair) for pair in zip(window_of(model, settings) or (h, w), (h, w), strict=True)]
    encoded = [steer(model, *pair, settings, seen) for pair in words.pairs()]
    pairs = [encoded[row] for row in words.rows]
    kind = find(settings["sampler"])
    batch_size = 1 if kind.adaptive else settings["batch_size"]  # a batch would share its step sizes
    shape = (model.autoencoder.config.embed_dim, h, w)
    source = noise_source(model, settings)
    every = grown_from(first, len(pairs), source, settings)
    if beside is not None:
        pairs = [beside(pair, origin.seed) for pair, origin in zip(pairs, every, strict=True)]
    finished, places = [], []
    for numbers in batches(pairs, batch_size):
        denoise = guide(model, grid, *together([pairs[k] for k in numbers]), settings, concat)
        noise = make_noise(kind.noise, [every[k] for k in numbers], shape, source=source, device=model.device)
        own = latent if latent is None or len(latent) == 1 else latent[numbers]
        finished.append(walk(denoise, grid.last(strength), noise, settings, own, blend))
        places += [(len(numbers), place) for place in range(len(numbers))]
    latents = torch.cat(finished).cpu()
    return Pictures(
        printed(model, latents, settings["tile"]) if printing else (),
        tuple(origin.seed for origin in every),
        latents,
        words.each(words.prompts),
        words.each(words.negatives),
        tuple(every),
        tuple(places),
    )


def noise_source(model: LatentDiffusion, settings: Settings) -> NoiseSource:
    """How the seeds' noise is drawn. Raises InputError for half a size to resize the seed from."""
    width, height = settings["seed_resize_from_width"], settings["seed_resize_from_height"]
    if (width is None) != (height is None):
        what = "seed_resize_from_width and seed_resize_from_height belong together"
        raise InputError(what, remedy="give both, or neither")
    resize_from = model.latent_size(width, height) if width is not None else None
    return NoiseSource(settings["noise"], settings["noise_seed_delta"], settings["subseed_strength"], resize_from)


def grown_from(first: int, count: int, source: NoiseSource, settings: Settings) -> list[Origin]:
    """What each picture's noise grows from; a missing sub-seed is a fresh one. Raises InputError beyond the seeds."""
    last = max(first, settings["subseed"] or 0) + settings["batch_index"] + count - 1
    if last >= SEEDS_END:
        what = f"the last of {count} pictures would have the seed {last}, and seeds end at {SEEDS_END - 1}"
        raise InputError(what, remedy="begin with a smaller seed")
    subseed = randbelow(2**32) if settings["subseed"] is None else settings["subseed"]
    return origins(
        first,
        count,
        subseed=subseed if source.subseed_strength else None,
        batch_index=settings["batch_index"],
        source=source,
    )


def guide(
    model: LatentDiffusion,
    grid: Grid,
    positive: Steering,
    negative: Steering | None,
    settings: Settings,
    concat: Tensor | None = None,
) -> Denoise:
    """The guided denoiser (x, sigma) -> x0, in the user's wrapper if there is one."""
    start, end = settings["guidance_start"], settings["guidance_end"]
    acting = grid.sigmas[ceil(start * len(grid)) : ceil(end * len(grid))]  # of the whole grid, whatever the strength
    interval = (0.0 if end == 1 else acting[-1], inf if start == 0 else acting[0]) if acting else (inf, inf)
    denoise = steered(model, grid, positive, negative, settings, interval=interval, concat=concat)
    if (window := window_of(model, settings)) is not None:
        denoise = windowed(denoise, window, overlap=settings["window_overlap"])
    return settings["wrap"](denoise) if settings["wrap"] is not None else denoise


def window_of(model: LatentDiffusion, settings: Settings) -> tuple[int, int] | None:
    """The (h, w) in the latent of what the network sees at once; None for all.

    Raises InputError where it is also told of all of the picture, or keeps features of what it saw last.
    """
    if settings["window"] is None:
        return None
    others = {"a model that sees more than the latent": model.sees != "nothing",
              "control_image": settings["control_image"] is not None,
              "feature_cache (also of fast)": settings["feature_cache"] > 1}  # fmt: skip
    if other := next((name for name, there in others.items() if there), None):
        raise InputError(f"window does not go with {other}", remedy="leave one of them out")
    return model.latent_size(settings["window"], settings["window"])


@kernels.reused()
def walk(
    denoise: Denoise,
    grid: Grid,
    noise: Streams,
    settings: Settings,
    latent: Tensor | None = None,
    blend: Callable[[Tensor], Edit] | None = None,
) -> Tensor:
    """Sample one batch, a stream of noise a picture, and return its latents (B, C, h, w).

    From noise alone x starts at sqrt(1 + sigma²) * noise, which has the variance the network was trained on, or at
    sigma * noise, as k-diffusion and A1111 do it; from a latent at latent + sigma * noise.
    """
    if len(grid) == 0:
        return latent.expand(len(noise.origins), -1, -1, -1)  # type: ignore[union-attr]
    kind = find(settings["sampler"])
    options = dict(settings["sampler_options"] or {})
    if settings["eta"] is not None:
        options["eta"] = settings["eta"]
    first = noise.initial()
    sigma = grid.sigmas[0]
    if latent is not None:
        x = latent + sigma * first
    else:
        x = first * (hypot(1, sigma) if settings["initial_noise"] == "unit_variance" else sigma)
    edits = [settings["edit"], blend(first) if blend is not None else None]
    x = sample(
        denoise,
        x,
        grid.sigmas,
        sampler=kind.name,
        noise=noise,
        edit=_in_turn([edit for edit in edits if edit is not None]),
        watch=settings["watch"],
        **options,
    )
    return x / hypot(1, grid.sigmas[-1])  # a grid may end above 0, as diffusers' DDIM does: then x is a noisy x0 still


def _in_turn(edits: Sequence[Edit]) -> Edit | None:
    def edit(x: Tensor, sigma: float) -> Tensor:
        for one in edits:
            x = one(x, sigma)
        return x

    return edit if edits else None


def encode(model: LatentDiffusion, picture: Tensor, tile: str = "auto") -> Tensor:
    """The latent (1, C, h, w), float32, of a picture (1, 3, H, W): the posterior's mode.

    If it is not finite, encode again in float32, as `decode` does. Raises NonFiniteError.
    """
    network, side = model.autoencoder, _tile(picture.shape[-2:], tile)
    with torch.no_grad():
        latent = network.encode(picture.to(model.device), tile=side).mode()
        if not latent.isfinite().all() and network.dtype != torch.float32:
            latent = deepcopy(network).float().encode(picture.to(model.device), tile=side).mode()
    if not latent.isfinite().all():
        raise NonFiniteError("the encoder gave NaN or infinity, in float32 too", remedy="check the VAE's weights")
    return latent


def printed(model: LatentDiffusion, latents: Tensor, tile: str) -> tuple[Image.Image, ...]:
    """Decode latents (B, C, h, w) one by one, each in the memory of the last: not in strips, which are to save it."""
    _, strips = _parts(_pixels(model.autoencoder, latents), tile, model.device)
    if strips:
        kernels.release()
    with nullcontext() if strips else kernels.reused():
        return tuple(to_pil(decode(model, one[None], tile)[0]) for one in latents)


def decode(model: LatentDiffusion, latent: Tensor, tile: str = "auto") -> Tensor:
    """The picture (1, 3, H, W), float32, on the CPU: by the model's tiny decoder, if it has one.

    If it is not finite, decode again in float32 before giving up.

    Raises:
        NonFiniteError: when the latent or the float32 picture holds NaN or infinity: never a black picture.
    """
    network = model.autoencoder if model.decoder is None else model.decoder
    if not latent.isfinite().all():
        raise NonFiniteError("sampling gave NaN or infinity", remedy="load the model with dtype=torch.float32")
    with torch.no_grad():
        picture = _decoded(network, latent.to(model.device), tile)
        if not picture.isfinite().all() and network.dtype != torch.float32:
            picture = _decoded(deepcopy(network).float(), latent.to(model.device), tile)
    if not picture.isfinite().all():
        raise NonFiniteError("the decoder gave NaN or infinity, in float32 too", remedy="check the VAE's weights")
    return picture.cpu()


def _decoded(network: Autoencoder | TinyDecoder, latent: Tensor, tile: str) -> Tensor:
    if isinstance(network, TinyDecoder):  # it holds little more than the picture, however large
        return network(latent)
    side, strips = _parts(_pixels(network, latent), tile, latent.device)
    return network.decode(latent, tile=side, strips=strips)


def _pixels(network: Autoencoder, latent: Tensor) -> list[int]:
    return [network.config.factor * n for n in latent.shape[-2:]]


def _tile(size: Sequence[int], tile: str) -> int | None:
    """The side of a tile for a picture of this size (H, W) in pixels, or None for no tiles."""
    large = size[0] * size[1] > TILE_ABOVE_PIXELS
    return TILE if tile == "always" or (tile in ("auto", "strips") and large) else None


def _parts(size: Sequence[int], tile: str, device: torch.device) -> tuple[int | None, bool]:
    """How to decode a picture of this size: the side of a tile, or None, and whether in strips, which are exact.

    On a CUDA device strips are hundreds of times the calls, and for what its memory does not hold.
    """
    pixels = size[0] * size[1]
    if device.type == "cuda":
        large = pixels * BYTES_A_PIXEL > torch.cuda.mem_get_info(device)[0]
    else:
        large = pixels > WHOLE_UP_TO_PIXELS
    return TILE if tile == "always" else None, tile == "strips" or (tile == "auto" and large)


def keep_known(latent: Tensor, mask: Tensor) -> Callable[[Tensor], Edit]:
    """Inpainting with an ordinary model: before each evaluation, put the known part back at the current noise level.

    latent: (1, C, h, w), the picture's. mask: (1, 1, H, W), 1 is repainted; a latent pixel is repainted if any of its
    pixels is, which leaves no unpainted rim. The noise is each picture's first, as in diffusers.
    """
    unknown = F.adaptive_max_pool2d(mask, latent.shape[-2:]).to(latent)
    return lambda noise: blending(unknown, latent, noise)


def inpainting_channels(model: LatentDiffusion, picture: Tensor, mask: Tensor, tile: str = "auto") -> Tensor:
    """What an inpainting U-Net sees beside the latent: the mask, and the latent of the picture with a hole.

    The order, the numbers, the threshold of 1/2 and the nearest-neighbour reduction are those it was trained with.
    Stable Diffusion: a mask of 0 and 1, then the picture with a grey hole (runwayml/stable-diffusion,
    scripts/inpaint_st.py). Latent diffusion: the picture with a black hole, then a mask of -1 and 1
    (CompVis/latent-diffusion, scripts/inpaint.py).
    """
    hole = (mask >= 0.5).float()
    if model.family == LDM_INPAINT:
        masked = encode(model, picture * (1 - hole) - hole, tile)
        return torch.cat([masked, F.interpolate(2 * hole - 1, masked.shape[-2:]).to(masked)], dim=1)
    masked = encode(model, picture * (1 - hole), tile)
    return torch.cat([F.interpolate(hole, masked.shape[-2:]).to(masked), masked], dim=1)


def all_hole(model: LatentDiffusion, size: tuple[int, int], tile: str = "auto") -> Tensor:
    """What an inpainting U-Net sees beside a latent of this (h, w) where nothing of a picture is known.

    So A1111 draws from words and pictures with such models (`txt2img_image_conditioning`, and
    `inpainting_image_conditioning` without a mask), and diffusers' inpainting where the mask is all white.
    """
    height, width = (model.autoencoder.config.factor * n for n in size)
    hole = torch.ones(1, 1, height, width)
    return inpainting_channels(model, torch.zeros(1, 3, height, width), hole, tile)


def crop(drawn: Pictures, picture: Tensor) -> Pictures:
    """Cut the padding away that `pad` added to reach a multiple of 8 pixels."""
    height, width = picture.shape[-2:]
    return replace(drawn, images=tuple(image.crop((0, 0, width, height)) for image in drawn.images))


def composite(drawn: Pictures, picture: Tensor, mask: Tensor) -> Pictures:
    """Lay the drawn pictures over the given one through the mask: where that is black, not a bit changes."""
    original = to_pil(picture[0])
    stencil = Image.fromarray((mask[0, 0] * 255).round().to(torch.uint8).numpy())
    return replace(drawn, images=tuple(Image.composite(image, original, stencil) for image in drawn.images))
