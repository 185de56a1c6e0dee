"""What can be asked for, each thing named, bounded and explained once.

Every task takes the keywords of `Settings` besides its own. From these annotations come the validation of a call, the
options of the command line and, later, the fields of a request over the network: to add an option, add one line here.
A field with `exclude=True` is for Python callers only: it is no option of the command line.
"""

from collections.abc import Callable, Mapping
from functools import cache
from inspect import Parameter, signature
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TypedDict, Unpack, cast, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model

from safelight.errors import InputError, nearest

if TYPE_CHECKING:
    from safelight.pipeline.bundle import LatentDiffusion

Strength = Annotated[float, Field(ge=0, le=1, description="how far the picture may move: 0 keeps it, 1 redraws it")]
Width = Annotated[int | None, Field(ge=64, le=16384, multiple_of=8, description="width in pixels, a multiple of 8")]
Height = Annotated[int | None, Field(ge=64, le=16384, multiple_of=8, description="height in pixels, a multiple of 8")]
Prompt = Annotated[Any, Field(description="what the picture should show")]
Instruction = Annotated[Any, Field(description="what to do with the picture")]
ImagePath = Annotated[Any, Field(description="the picture to start from (PNG, JPEG or WebP)")]
MaskPath = Annotated[Any, Field(description="white where the picture is to be repainted, black where it stays")]
MaskPadding = Annotated[
    int | None,
    Field(ge=0, le=16384, description="repaint what is around the mask alone, with so many pixels of the picture, at "
          "the size the model draws best; by default the whole picture"),
]  # fmt: skip
MaskBlur = Annotated[
    float, Field(ge=0, le=512, description="soften the mask's edge by a Gaussian of so many pixels, as A1111 does by 4")
]
Margin = Annotated[int, Field(ge=0, le=8192, description="pixels to add on this side")]
Label = Annotated[Any, Field(description="class of what to draw: its name or its number")]
Boxes = Annotated[
    Any, Field(description='objects and their boxes, as shares: "apple 0.1 0.2 0.5 0.6, dog …" (x0 y0 x1 y1)')
]
Hires = Annotated[
    float | None,
    Field(ge=1, le=8, description="draw again so many times as large, from what was drawn (A1111's hires fix)"),
]
HiresStrength = Annotated[float, Field(ge=0, le=1, description="of that second pass: how far it may move the first")]
HiresSteps = Annotated[
    int | None, Field(ge=1, le=1000, description="of the second pass's grid, of which it walks the last; else as many")
]
HiresUpscaler = Annotated[
    Literal["lanczos", "nearest", "latent", "latent_antialiased", "latent_bicubic", "latent_bicubic_antialiased",
            "latent_nearest", "latent_nearest_exact"],
    Field(description="how what was drawn is enlarged: the picture, or its latent, which wants more strength"),
]  # fmt: skip
HiresOptions = Annotated[
    dict[str, Any] | None,
    Field(exclude=True, description="what else the second pass does otherwise, such as its prompt or sampler"),
]
DepthMap = Annotated[Any, Field(description="grey picture of the same scene; the nearer, the lighter")]
ImageGuidance = Annotated[
    float, Field(ge=0, le=100, description="how closely to keep to the picture, beside guidance_scale for the words")
]
ClassMap = Annotated[Any, Field(description="grey or indexed PNG; each pixel's value is the number of its class")]
NoiseLevel = Annotated[
    int | None,
    Field(ge=0, le=350, description="noise on the picture, for models that know of some; by default 20, few details"),
]

# What diffusers and A1111 call our options
PEERS_WORDS = {"num_inference_steps": "steps", "num_images_per_prompt": "count", "n_iter": "count", "cfg_scale":
               "guidance_scale", "denoising_strength": "strength", "scheduler": "sampler", "mask_image": "mask",
               "generator": "seed", "callback": "watch", "init_image": "image", "ensd":
               "noise_seed_delta", "eta_noise_seed_delta": "noise_seed_delta", "variation_seed": "subseed",
               "inpaint_full_res_padding": "padding_mask_crop", "controlnet_conditioning_scale":
               "control_scale", "control_guidance_start": "control_start",
               "control_guidance_end": "control_end"}  # fmt: skip

# What has done its work once a picture's words are settled: a recipe holds those words instead, and no path
WORDING = ("dynamic_prompts", "wildcards", "styles", "styles_file")

# What `fast` chooses where nothing is said: nearly the same picture for less than half the work (docs/speed.md)
FAST: dict[str, Any] = {"steps": 15, "guidance_end": 0.8, "feature_cache": 2, "feature_cache_start": 0.5}

SEEDS = ("seed", "subseed")  # -1 is a fresh one, as in A1111

_CONFIG = ConfigDict(arbitrary_types_allowed=True, extra="forbid", allow_inf_nan=False)


class Settings(TypedDict, total=False):
    """The keywords that every task accepts, with their defaults."""

    negative_prompt: Annotated[Any, Field(default="", description="what the picture should not show")]
    steps: Annotated[int, Field(default=30, ge=1, le=1000, description="number of steps on the grid")]
    guidance_scale: Annotated[
        float | None,
        Field(
            default=None,
            ge=0,
            le=100,
            description="classifier-free guidance; 1 follows the prompt alone; by default the model's own, mostly 7.5",
        ),
    ]
    guidance_rescale: Annotated[
        float, Field(default=0.0, ge=0, le=1, description="share of rescaled guidance (Lin et al. 2023)")
    ]
    guidance_start: Annotated[
        float, Field(default=0.0, ge=0, le=1, description="share of the run after which guidance begins")
    ]
    guidance_end: Annotated[
        float, Field(default=1.0, ge=0, le=1, description="share of the run after which guidance ends")
    ]
    sampler: Annotated[
        str, Field(default="dpmpp_2m", description="how to walk from noise to picture; see `safelight samplers`")
    ]
    grid: Annotated[
        str, Field(default="karras", description="the noise levels to walk through; see `safelight samplers`")
    ]
    eta: Annotated[
        float | None,
        Field(default=None, ge=0, le=1, description="noise added by ddim and the ancestral samplers, as a share"),
    ]
    seed: Annotated[
        int | None,
        Field(
            default=None, ge=-1, lt=2**63, description="picture k is the picture of seed + k; by default, or -1, fresh"
        ),
    ]
    count: Annotated[int, Field(default=1, ge=1, le=10000, description="pictures for each prompt")]
    batch_size: Annotated[
        int, Field(default=4, ge=1, le=1024, description="pictures drawn together; changes memory and time, no picture")
    ]
    batch_index: Annotated[
        int, Field(default=0, ge=0, lt=10000, description="pictures of the batch to leave out before the first")
    ]
    noise: Annotated[
        Literal["cpu", "cuda", "comfyui"],
        Field(default="cpu", description="whose noise a seed gives: diffusers' on the CPU, A1111's, or ComfyUI's"),
    ]
    noise_seed_delta: Annotated[
        int,
        Field(default=0, gt=-(2**63), lt=2**63, description="seed + this gives the noise of the steps (A1111's ENSD)"),
    ]
    subseed: Annotated[
        int | None,
        Field(default=None, ge=-1, lt=2**63, description="variation seed, -1 a fresh one; picture k has subseed + k"),
    ]
    subseed_strength: Annotated[
        float, Field(default=0.0, ge=0, le=1, description="how far the first noise turns to the variation seed's")
    ]
    seed_resize_from_width: Annotated[
        int | None,
        Field(default=None, ge=8, le=16384, multiple_of=8, description="width at which the seed is known, in pixels"),
    ]
    seed_resize_from_height: Annotated[
        int | None,
        Field(default=None, ge=8, le=16384, multiple_of=8, description="height at which the seed is known, in pixels"),
    ]
    initial_noise: Annotated[
        Literal["unit_variance", "sigma"],
        Field(default="unit_variance", description="scale of the first noise: sqrt(1 + sigma²), or A1111's sigma"),
    ]
    clip_skip: Annotated[
        int, Field(default=0, ge=0, le=11, description="last text-encoder layers to leave out (0 is none)")
    ]
    long_prompts: Annotated[
        Literal["chunk", "error", "truncate"],
        Field(default="chunk", description="what to do with prompts of more than 75 tokens"),
    ]
    prompt_syntax: Annotated[
        Literal["a1111", "comfyui", "compel", "plain"],
        Field(default="a1111", description="whose marks the prompts are written in, such as (word:1.2) and [a:b:0.5]"),
    ]
    emphasis: Annotated[
        Literal["original", "no_norm", "ignore", "comfyui", "compel"] | None,
        Field(default=None, description="what (word:1.2) does to the encoded prompt; by default what its syntax does"),
    ]
    dynamic_prompts: Annotated[
        bool, Field(default=False, description="make the choices {a|b} and __name__ for each picture, by its seed")
    ]
    wildcards: Annotated[
        Path | None,
        Field(default=None, description="folder of .txt files for __name__; switches dynamic prompts on"),
    ]
    styles: Annotated[
        list[str] | None, Field(default=None, description="names of styles to write around the prompt, in turn")
    ]
    styles_file: Annotated[
        Path, Field(default=Path("styles.csv"), description="where styles stand: name,prompt,negative_prompt")
    ]
    prompt_delay: Annotated[
        int,
        Field(default=0, ge=0, le=1000, description="steps by which [a:b:0.5] and [a|b] come late; A1111 itself: 1"),
    ]
    extra_networks: Annotated[
        Literal["error", "ignore"], Field(default="error", description="what to do about <lora:name:0.8> in a prompt")
    ]
    control_image: Annotated[
        Any,
        Field(default=None, description="picture to follow, such as of edges, for a model loaded with a ControlNet"),
    ]
    control_scale: Annotated[float, Field(default=1.0, ge=0, le=10, description="how closely to follow it")]
    control_start: Annotated[
        float, Field(default=0.0, ge=0, le=1, description="share of the run after which it is followed")
    ]
    control_end: Annotated[
        float, Field(default=1.0, ge=0, le=1, description="share of the run after which it no longer is")
    ]
    feature_cache: Annotated[
        int,
        Field(default=1, ge=1, le=100, description="compute deep features once in so many evaluations; 1 is exact"),
    ]
    feature_cache_start: Annotated[
        float, Field(default=0.5, ge=0, le=1, description="share of the run after which feature_cache acts")
    ]
    fast: Annotated[
        bool, Field(default=False, description="nearly the same picture in less than half the time; what you give wins")
    ]
    window: Annotated[
        int | None,
        Field(
            default=None,
            ge=8,
            le=8192,
            description="side in pixels of the overlapping windows through which the network sees larger pictures",
        ),
    ]
    window_overlap: Annotated[
        float, Field(default=0.5, ge=0, le=0.9, description="share of their side that neighbouring windows overlap")
    ]
    tile: Annotated[
        Literal["auto", "strips", "always", "never"],
        Field(
            default="auto",
            description="large pictures: auto decodes in strips (exact), always in tiles (least memory, not exact)",
        ),
    ]
    sampler_options: Annotated[
        dict[str, Any] | None,
        Field(default=None, exclude=True, description="further options of the sampler, such as s_churn"),
    ]
    grid_options: Annotated[
        dict[str, Any] | None, Field(default=None, exclude=True, description="further options of the grid, such as rho")
    ]
    watch: Annotated[
        Callable[[Any], None] | None,
        Field(default=None, exclude=True, description="called after each evaluation with x_t and x0"),
    ]
    edit: Annotated[
        Callable[[Any, float], Any] | None,
        Field(default=None, exclude=True, description="called as edit(x_t, sigma) before each evaluation"),
    ]
    wrap: Annotated[
        Callable[[Any], Any] | None,
        Field(default=None, exclude=True, description="a denoise -> denoise function around the guided denoiser"),
    ]


@cache
def parameters(function: Callable[..., Any]) -> dict[str, Parameter]:
    """All keywords of a task in order, those of `Settings` included; `model` is left out."""
    own = {
        name: parameter
        for name, parameter in signature(function).parameters.items()
        if name != "model" and parameter.kind is not Parameter.VAR_KEYWORD
    }
    shared = {
        name: Parameter(name, Parameter.KEYWORD_ONLY, default=annotation.__metadata__[0].default, annotation=annotation)
        for name, annotation in get_type_hints(Settings, include_extras=True).items()
    }
    return own | shared


@cache
def request_model(function: Callable[..., Any]) -> type[BaseModel]:
    """The pydantic model of everything a task can be asked: validation, defaults, JSON schema."""
    fields = {
        name: (parameter.annotation, ... if parameter.default is Parameter.empty else parameter.default)
        for name, parameter in parameters(function).items()
    }
    return create_model(function.__name__, __config__=_CONFIG, **cast("dict[str, Any]", fields))


def for_model(values: dict[str, Any], model: "LatentDiffusion") -> dict[str, Any]:
    """What `validate` returns, with the model's own word where nothing was asked."""
    return values | ({"guidance_scale": model.guidance_scale} if values["guidance_scale"] is None else {})


def validate(function: Callable[..., Any], values: dict[str, Any]) -> dict[str, Any]:
    """Check the keywords of a call to `function`, and return them complete with defaults, or with those of `fast`.

    Raises:
        InputError: naming the field, its limit and the value that was given.
    """
    model = request_model(function)
    for name in values:
        if name not in model.model_fields:
            word = PEERS_WORDS.get(name)
            remedy = f"here it is called {word}" if word else nearest(name, model.model_fields)
            raise InputError(f"unknown option {name!r}", remedy=remedy)
    try:
        request = model(**(FAST | values if values.get("fast") is True else values))
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        name, message = str(first["loc"][0]), first["msg"]
        what = (
            f"{name}={first['input']!r}: {message[0].lower()}{message[1:]}" if name in values else f"{name} is missing"
        )
        raise InputError(what, remedy=f"{name}: {model.model_fields[name].description}") from None
    complete = {name: getattr(request, name) for name in model.model_fields}
    for one, without in (("guidance", "guidance_scale=1 goes without"), ("control", "control_scale=0 goes without")):
        start, end = complete[f"{one}_start"], complete[f"{one}_end"]
        if start > end:
            what = f"{one}_start={start:g} lies behind {one}_end={end:g}"
            raise InputError(what, remedy=f"{one} acts between them; {without}")
    complete |= {name: None for name in SEEDS if complete[name] == -1}
    return complete | _walk(complete["sampler"], complete["grid"], said="grid" in values)


def changed(settings: Settings, changes: Mapping[str, Any]) -> dict[str, Any]:
    """Complete settings with some of them changed. Raises InputError as `validate` does.

    `fast` has chosen already, and chooses nothing anew.
    """
    return validate(_settled, {**settings, **changes})


def _settled(**settings: Unpack[Settings]) -> None:
    """A call of these keywords alone."""


def _walk(sampler: str, grid: str, *, said: bool) -> dict[str, str]:
    """Our names for a sampler and a grid that may be a peer's; one name may hold both, as "DPM++ 2M Karras" does.

    said: whether the grid was asked for. Raises InputError for unknown names, and for two grids.
    """
    from safelight.diffusion import aliases, grids, samplers  # which takes a while, as whatever comes next does

    named, laid = aliases.split(sampler, samplers.SAMPLERS, grids.GRIDS) or (samplers.find(sampler).name, None)
    ours = grids.find(grid).name
    if laid is not None and said and laid != ours:
        what = f"sampler {sampler!r} names the grid {laid!r}, and grid is {grid!r}"
        raise InputError(what, remedy="give one of them")
    return {"sampler": named, "grid": ours if laid is None else laid}
