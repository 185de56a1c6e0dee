"""The metadata of InvokeAI, SwarmUI and Fooocus, and pictures saved with the keywords of a call of diffusers."""

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import PureWindowsPath
from typing import Any

from safelight.diffusion import aliases
from safelight.diffusion.samplers import SAMPLERS as OURS
from safelight.pipeline.recipes import comfyui
from safelight.pipeline.recipes.recipe import Reading
from safelight.pipeline.recipes.walks import of_comfyui, share

INVOKEAI = {"positive_prompt": "prompt", "negative_prompt": "negative_prompt", "width": "width", "height": "height",
            "seed": "seed", "cfg_scale": "guidance_scale", "cfg_rescale_multiplier": "guidance_rescale",
            "steps": "steps", "clip_skip": "clip_skip", "strength": "strength", "prompt": "prompt"}  # fmt: skip
# Its schedulers but for the "_k" of the Karras grid
INVOKEAI_SAMPLERS = {"ddim": "ddim", "ddpm": "ddpm", "deis": "deis", "lms": "lms", "pndm": "pndm", "heun": "heun",
                     "euler": "euler", "euler_a": "euler_ancestral", "kdpm_2": "dpm2", "kdpm_2_a": "dpm2_ancestral",
                     "dpmpp_2s": "dpm_solver_singlestep", "dpmpp_2m": "dpmpp_2m", "dpmpp_2m_sde": "dpmpp_2m_sde",
                     "dpmpp_sde": "dpmpp_sde", "unipc": "unipc", "lcm": "lcm", "tcd": "tcd", "dpmpp_2": "dpmpp_2m",
                     "dpm_2": "dpm2", "dpm_2_a": "dpm2_ancestral", "plms": "plms"}  # fmt: skip
SWARMUI = {"prompt": "prompt", "negativeprompt": "negative_prompt", "width": "width", "height": "height",
           "seed": "seed", "steps": "steps", "cfgscale": "guidance_scale", "variationseed": "subseed",
           "variationseedstrength": "subseed_strength"}  # fmt: skip
FOOOCUS = {"prompt": "prompt", "negative_prompt": "negative_prompt", "seed": "seed", "steps": "steps",
           "guidance_scale": "guidance_scale"}  # fmt: skip
TASKS = {"img2img": "image_to_image", "inpaint": "inpaint", "txt2img": "text_to_image"}
DIFFUSERS = {"prompt": "prompt", "negative_prompt": "negative_prompt", "width": "width", "height": "height",
             "num_inference_steps": "steps", "guidance_scale": "guidance_scale", "seed": "seed", "strength": "strength",
             "guidance_rescale": "guidance_rescale", "eta": "eta", "clip_skip": "clip_skip"}  # fmt: skip
# diffusers' classes whose samplers are ours whatever their options; the others depend on these
SCHEDULERS = {"EulerDiscreteScheduler": "euler", "EulerAncestralDiscreteScheduler": "euler_ancestral",
              "DDIMScheduler": "ddim", "DDPMScheduler": "ddpm", "PNDMScheduler": "pndm",
              "HeunDiscreteScheduler": "heun",
              "LMSDiscreteScheduler": "lms", "KDPM2DiscreteScheduler": "dpm2", "DEISMultistepScheduler": "deis",
              "KDPM2AncestralDiscreteScheduler": "dpm2_ancestral", "DPMSolverMultistepScheduler": "dpm_solver",
              "DPMSolverSDEScheduler": "dpmpp_sde", "UniPCMultistepScheduler": "unipc", "LCMScheduler": "lcm",
              "TCDScheduler": "tcd", "DPMSolverSinglestepScheduler": "dpm_solver_singlestep"}  # fmt: skip


def read_invokeai(found: Mapping[str, str]) -> Reading | None:
    """`invokeai_metadata` of version 3 and later, or `sd-metadata` of version 2."""
    data = _object(found.get("invokeai_metadata"))
    if not data and (old := _object(found.get("sd-metadata"))):
        image = old.pop("image", None)
        data = old | (image if isinstance(image, dict) else {})
        data["scheduler"] = str(data.pop("sampler", "")).removeprefix("k_")
        data["model"] = data.pop("model_weights", data.get("model"))
        data["prompt"] = _joined(data.get("prompt"))
        data["generation_mode"] = data.pop("type", "txt2img")
    if not data:
        return None
    request, kept = _renamed(data, INVOKEAI)
    name = str(kept.get("scheduler", ""))
    if (sampler := INVOKEAI_SAMPLERS.get(name.removesuffix("_k"))) is not None:
        request["sampler"] = sampler
        request |= {"grid": "karras"} if name.endswith("_k") else {"grid": "leading"}
        kept.pop("scheduler")
    task = TASKS.get(str(kept.pop("generation_mode", "")).removeprefix("sd_"), "text_to_image")
    if task == "text_to_image":
        request.pop("strength", None)
    model = kept.pop("model", None)
    named = {k: v for k, v in model.items() if k in ("name", "hash")} if isinstance(model, dict) else _name(model)
    return Reading("InvokeAI", task, {"prompt_syntax": "compel"} | request, named, kept)


def _joined(prompt: Any) -> str:
    """Version 2 has a prompt as text, or as parts with weights. What stands in square brackets there is negative."""
    if isinstance(prompt, list):
        return " ".join(str(part.get("prompt", "")) for part in prompt if isinstance(part, dict))
    return str(prompt or "")


def read_swarmui(found: Mapping[str, str]) -> Reading | None:
    """`sui_image_params` of SwarmUI, which draws by ComfyUI; its first noise is a CPU generator's, a seed a picture."""
    data = _object(found.get("parameters"))
    if not isinstance(said := data.pop("sui_image_params", None), dict):
        return None
    request, kept = _renamed(said, SWARMUI)
    request |= _walk(request, kept, "normal")
    creativity = kept.pop("initimagecreativity", None)
    steps = request.get("steps")
    if isinstance(creativity, int | float) and 0 < creativity <= 1 and isinstance(steps, int) and steps > 0:
        request["strength"] = share(steps - round(steps * (1 - creativity)), steps)
    if isinstance(layer := kept.get("clipstopatlayer"), int):
        request["clip_skip"] = -1 - layer
        del kept["clipstopatlayer"]
    names, amounts = kept.pop("loras", []), kept.pop("loraweights", [])
    pairs = zip(_list(names), [*_list(amounts), *["1"] * len(_list(names))], strict=False)
    model = _name(kept.pop("model", None)) | _loras(pairs)
    task = "image_to_image" if "strength" in request else "text_to_image"
    ours = {"noise": "comfyui", "prompt_syntax": "comfyui"}
    return Reading("SwarmUI", task, ours | request, model, {**kept, **data})


def read_fooocus(found: Mapping[str, str]) -> Reading | None:
    """Fooocus' `parameters` in its own scheme. What its styles made of the prompt is kept."""
    data = _object(found.get("parameters"))
    if data.get("metadata_scheme") != "fooocus" and found.get("fooocus_scheme") != "fooocus":
        return None
    request, kept = _renamed(data, FOOOCUS)
    if isinstance(seed := request.get("seed"), str):
        request["seed"] = _plain(seed)
    request |= _walk(request, kept, "karras")
    sides = re.fullmatch(r"\((\d{1,5}), (\d{1,5})\)", str(kept.get("resolution")))
    if sides is not None:
        request |= {"width": int(sides[1]), "height": int(sides[2])}
        del kept["resolution"]
    if isinstance(kept.get("clip_skip"), int):
        request["clip_skip"] = kept.pop("clip_skip") - 1
    rows = [row for row in _list(kept.pop("loras", [])) if isinstance(row, list) and len(row) > 1]
    kept = {name: value for name, value in kept.items() if not name.startswith("lora_combined_")}  # said in `loras` too
    model = _name(kept.pop("base_model", None)) | _loras((row[0], row[1]) for row in rows)
    if (digest := kept.pop("base_model_hash", None)) is not None:
        model["hash"] = str(digest)
    program = str(kept.pop("version", "Fooocus"))
    ours = {"noise": "comfyui", "prompt_syntax": "comfyui"}
    return Reading(program, "text_to_image", ours | request, model, kept)


def _walk(request: Mapping[str, Any], kept: dict[str, Any], default: str) -> dict[str, Any]:
    """What programs on ComfyUI's samplers say of sampler and scheduler, in our words; what is understood is taken."""
    sampler, scheduler = str(kept.get("sampler", "euler")), str(kept.get("scheduler", default))
    found: dict[str, Any] = {}
    for word, name, ours, table in (("sampler", sampler, "sampler", comfyui.SAMPLERS),
                                    ("scheduler", scheduler, "grid", comfyui.GRIDS)):  # fmt: skip
        if name in table:
            found[ours] = table[name]
            kept.pop(word, None)
    steps = request.get("steps")
    if isinstance(steps, int) and "sampler" in found:
        found |= of_comfyui(sampler, {**found, "steps": steps}, None, ksampler=True)
    return found


def _list(value: Any) -> list[Any]:
    """A list; or one that is written as text with commas."""
    return value if isinstance(value, list) else value.split(",") if isinstance(value, str) and value else []


def _loras(pairs: Iterable[tuple[Any, Any]]) -> dict[str, Any]:
    """Names of LoRAs without their folders, and by how much each is added."""
    found = {}
    for name, amount in pairs:
        with suppress(TypeError, ValueError, OverflowError):
            if abs(float(amount)) <= 100:
                found[PureWindowsPath(str(name)).name] = float(amount)
    return {"loras": found} if found else {}


def read_diffusers(found: Mapping[str, str]) -> Reading | None:
    """Keywords of diffusers' pipelines: as one JSON object under any keyword, or each a text of its own."""
    objects = [value for text in found.values() if (value := _object(text)) and "prompt" in value]
    data: dict[str, Any] = next((one for one in objects if one.keys() & {"num_inference_steps", "guidance_scale"}), {})
    if not data and "prompt" in found and found.keys() & {"num_inference_steps", "guidance_scale"}:
        data = {name: _plain(text) for name, text in found.items()}
    if not data:
        return None
    if isinstance(resolution := data.get("resolution"), str) and resolution.count("x") == 1:
        with suppress(ValueError):
            width, height = (int(side) for side in data.pop("resolution").split("x"))
            data |= {"width": width, "height": height}
    request, kept = _renamed(data, DIFFUSERS)
    scheduler = str(kept.get("scheduler", kept.get("sampler", "")))
    if (sampler := SCHEDULERS.get(scheduler) or aliases.sampler(scheduler, OURS)) is not None:
        request["sampler"] = sampler
        kept.pop("scheduler" if "scheduler" in kept else "sampler")
    if kept.get("use_karras_sigmas") in (True, "True"):
        request["grid"] = "karras"
        del kept["use_karras_sigmas"]
    model = next((kept.pop(name) for name in ("model", "Model", "model_id", "base_model") if name in kept), None)
    task = "image_to_image" if "strength" in request else "text_to_image"
    return Reading("diffusers", task, {"prompt_syntax": "plain"} | request, _name(model), kept)


def _renamed(data: Mapping[str, Any], words: Mapping[str, str]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What has a word here, and the rest. None means absent."""
    request = {ours: data[theirs] for theirs, ours in words.items() if data.get(theirs) is not None}
    return request, {name: value for name, value in data.items() if name not in words and value is not None}


def _name(model: Any) -> dict[str, Any]:
    """A model's name without the folders of the machine that it was on; a hub id keeps its owner."""
    text = str(model) if isinstance(model, str) else ""
    is_place = "\\" in text or text.startswith(("/", ".", "~")) or text.count("/") > 1
    return {"name": PureWindowsPath(text).name if is_place else text} if text else {}


def _plain(text: str) -> Any:
    """A number that was written as text."""
    for kind in (int, float):
        with suppress(ValueError):
            return kind(text)
    return text


def _object(text: str | None) -> dict[str, Any]:
    try:
        value = json.loads(text) if text and text.lstrip().startswith("{") else None
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}
