"""ComfyUI's graphs: `prompt`, the nodes as they ran, or `workflow`, the nodes as they lay on the canvas.

A graph can be any program. What is understood is the common one: from a picture's save node back to a sampler, from its
inputs to the words, the latent's size and the model. Every other node on the way is kept by its name.
"""

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import PureWindowsPath
from typing import Any

from safelight.pipeline.recipes.recipe import Reading
from safelight.pipeline.recipes.walks import of_comfyui

Graph = dict[str, dict[str, Any]]  # node id -> {"class_type", "inputs"}; an input is a value, or [node id, slot]

SAMPLERS = {"dpm_2": "dpm2", "dpm_2_ancestral": "dpm2_ancestral", "uni_pc": "unipc", "uni_pc_bh2": "unipc"}
SAME = ("euler", "euler_ancestral", "heun", "lms", "dpm_fast", "dpm_adaptive", "dpmpp_2s_ancestral", "dpmpp_sde",
        "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_2m_sde_heun", "dpmpp_3m_sde", "ddpm", "lcm", "deis", "ddim")  # fmt: skip
SAMPLERS |= {name: name for name in SAME} | {f"{name}_gpu": name for name in SAME if name.endswith("sde")}
GRIDS = {"normal": "uniform"} | {
    name: name for name in ("karras", "exponential", "sgm_uniform", "simple", "ddim_uniform", "beta", "kl_optimal")
}
PARTLY = ("start_at_step", "end_at_step", "return_with_leftover_noise")  # of KSamplerAdvanced
# Widgets of a workflow's nodes in their order; what is not asked for is left out with ""
WIDGETS = {
    "KSampler": ("seed", "", "steps", "cfg", "sampler_name", "scheduler", "denoise"),
    "KSamplerAdvanced": ("add_noise", "noise_seed", "", "steps", "cfg", "sampler_name", "scheduler", *PARTLY),
    "CLIPTextEncode": ("text",),
    "EmptyLatentImage": ("width", "height", "batch_size"),
    "CheckpointLoaderSimple": ("ckpt_name",),
    "LoraLoader": ("lora_name", "strength_model", "strength_clip"),
    "LoraLoaderModelOnly": ("lora_name", "strength_model"),
    "CLIPSetLastLayer": ("stop_at_clip_layer",),
    "LatentFromBatch": ("batch_index", "length"),
    "KSamplerSelect": ("sampler_name",),
    "BasicScheduler": ("scheduler", "steps", "denoise"),
    "RandomNoise": ("noise_seed",),
    "CFGGuider": ("cfg",),
}
LIMIT = 20_000  # nodes


def read(prompt: str | None, workflow: str | None) -> Reading | None:
    """What a graph says, or None where there is no graph in these texts."""
    graph = _parsed(prompt)
    if not graph and (canvas := _loaded(workflow)):
        graph = _from_canvas(canvas)
    if not graph:
        return None
    sampler = next(_reached(graph, _outputs(graph), lambda node: "sampler_name" in node or "noise" in node), None)
    if sampler is None:
        sampler = next((key for key, node in graph.items() if "KSampler" in node["class_type"]), None)
    kept: dict[str, Any] = {}
    if sampler is None:
        return Reading("ComfyUI", "text_to_image", {}, {}, kept | _others(graph, set()), ("no sampler was found",))
    request, model, used = _Walk(graph, kept).request(sampler)
    task = "image_to_image" if "strength" in request else "text_to_image"
    ours = {"noise": "comfyui", "prompt_syntax": "comfyui"}
    return Reading("ComfyUI", task, ours | request, model, kept | _others(graph, used))


class _Walk:
    """From a sampler to what steers it. `kept` takes the values that have no word here."""

    def __init__(self, graph: Graph, kept: dict[str, Any]) -> None:
        self.graph, self.kept, self.used = graph, kept, set[str]()

    def request(self, sampler: str) -> tuple[dict[str, Any], dict[str, Any], set[str]]:
        """The request, the model, and the nodes that they came from."""
        around = [sampler, *self.linked(sampler, "noise", "guider", "sampler", "sigmas")]
        values: dict[str, Any] = {}
        links: dict[str, list[str]] = {}
        for key in around:
            self.used.add(key)
            for name in self.graph[key]["inputs"]:
                values.setdefault(name, self.value(key, name))
                links.setdefault(name, self.linked(key, name))
        request = self.renamed(values)
        for name, ours in (("positive", "prompt"), ("conditioning", "prompt"), ("negative", "negative_prompt")):
            if text := self.text(links.get(name, [])):
                request[ours] = text
        latent = self.latent(links.get("latent_image") or links.get("samples") or [])
        denoise, begun = values.get("denoise"), latent.pop("begun", False)
        if not isinstance(denoise, int | float) or not 0 <= denoise <= 1:
            begun = False
        elif denoise < 1 and not begun:
            self.kept["denoise"] = denoise
        own = self.graph[sampler]["class_type"].startswith("KSampler")
        walk = of_comfyui(str(values.get("sampler_name")), request, denoise if begun else None, ksampler=own)
        request |= latent | walk
        model = self.model(links.get("model", []), request)
        return request, model, self.used

    def renamed(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """The sampler's own numbers and names in our words."""
        found: dict[str, Any] = {}
        for name, ours, kind in (("seed", "seed", int), ("noise_seed", "seed", int), ("steps", "steps", int),
                                 ("cfg", "guidance_scale", float)):  # fmt: skip
            if name in values:
                with suppress(TypeError, ValueError, OverflowError):
                    found[ours] = kind(values[name])
        ends = values.get("end_at_step")
        stops = isinstance(ends, int) and ends < found.get("steps", 0)
        if values.get("start_at_step") or stops or values.get("add_noise") == "disable":
            self.kept |= {name: values[name] for name in ("add_noise", *PARTLY) if name in values}
        for name, ours, table in (("sampler_name", "sampler", SAMPLERS), ("scheduler", "grid", GRIDS)):
            value = values.get(name)
            if isinstance(value, str) and value in table:
                found[ours] = table[value]
            elif value is not None:
                self.kept[name] = value
        return {name: value for name, value in found.items() if value is not None}

    def linked(self, key: str, *names: str) -> list[str]:
        """The nodes that these inputs come from."""
        inputs = self.graph[key]["inputs"]
        return [source for name in names if (source := _link(inputs.get(name))) in self.graph]

    def value(self, key: str, name: str) -> Any:
        """An input's value; where a node gives it that holds one value, that."""
        given = self.graph[key]["inputs"].get(name)
        if (source := _link(given)) not in self.graph:
            return given if source is None else None
        values = [one for one in self.graph[source]["inputs"].values() if isinstance(one, str | int | float)]
        if len(values) != 1:
            return None
        self.used.add(source)
        return values[0]

    def text(self, start: list[str]) -> str:
        """The words of the nearest text encoder upstream."""
        for key in _reached(self.graph, start, lambda inputs: "text" in inputs):
            self.used.add(key)
            text = self.value(key, "text")
            return text if isinstance(text, str) else ""
        return ""

    def latent(self, start: list[str]) -> dict[str, Any]:
        """The size of an empty latent; whether it "begun" as a picture; the place in the batch."""
        found: dict[str, Any] = {}
        for key in _reached(self.graph, start, lambda inputs: True):
            node, inputs = self.graph[key], self.graph[key]["inputs"]
            if node["class_type"].startswith("VAEEncode"):
                self.used.add(key)
                found["begun"] = True
            elif node["class_type"] == "LatentFromBatch" and isinstance(inputs.get("batch_index"), int):
                self.used.add(key)
                found["batch_index"] = inputs["batch_index"]
            elif "width" in inputs and "height" in inputs:
                self.used.add(key)
                found |= {side: self.value(key, side) for side in ("width", "height")}
        return {name: value for name, value in found.items() if value is not None}

    def model(self, start: list[str], request: dict[str, Any]) -> dict[str, Any]:
        """The checkpoint's name, without its folders, and the LoRAs on the way to it. What else lies there is kept."""
        found: dict[str, Any] = {}
        for key in _reached(self.graph, start, lambda inputs: "ckpt_name" in inputs or "unet_name" in inputs):
            self.used.add(key)
            inputs = self.graph[key]["inputs"]
            found["name"] = PureWindowsPath(str(inputs.get("ckpt_name") or inputs.get("unet_name"))).name
        if loras := self.loras(start):
            found["loras"] = loras
        for key, node in self.graph.items():
            layer = node["inputs"].get("stop_at_clip_layer")
            if node["class_type"] == "CLIPSetLastLayer" and isinstance(layer, int):
                self.used.add(key)
                request["clip_skip"] = -1 - layer
        return found

    def loras(self, start: list[str]) -> dict[str, float]:
        """File names of LoRAs, and by how much each is added; one by another weight for the text is kept as well."""
        found: dict[str, float] = {}
        for key in _reached(self.graph, start, lambda inputs: "lora_name" in inputs):
            inputs = self.graph[key]["inputs"]
            name, weight = inputs["lora_name"], inputs.get("strength_model")
            if isinstance(name, str) and isinstance(weight, int | float) and -100 <= weight <= 100:
                found[PureWindowsPath(name).name] = float(weight)
                if inputs.get("strength_clip", weight) == weight:
                    self.used.add(key)
        return found


def _reached(graph: Graph, start: list[str], wanted: Callable[[dict[str, Any]], bool]) -> Iterator[str]:
    """The nodes at or behind `start`, nearest first, whose inputs are `wanted`."""
    queue, seen = [key for key in start if key in graph], set(start)
    for key in queue:
        if wanted(graph[key]["inputs"]):
            yield key
        for value in graph[key]["inputs"].values():
            if (source := _link(value)) in graph and source not in seen:
                seen.add(source)
                queue.append(source)


def _outputs(graph: Graph) -> list[str]:
    return [key for key, node in graph.items() if node["class_type"].startswith(("SaveImage", "PreviewImage"))]


def _others(graph: Graph, used: set[str]) -> dict[str, Any]:
    """The nodes that were not understood, with their own values; what shows, decodes or saves changes no picture."""
    plain = ("SaveImage", "PreviewImage", "VAEDecode", "VAELoader", "LoadImage")
    rest = {key: node for key, node in graph.items() if key not in used and not node["class_type"].startswith(plain)}
    return {
        f"node {key}: {node['class_type']}": {k: v for k, v in node["inputs"].items() if _link(v) is None}
        for key, node in rest.items()
    }


def _link(value: Any) -> str | None:
    good = isinstance(value, list) and len(value) == 2 and isinstance(value[0], str | int) and type(value[1]) is int
    return str(value[0]) if good else None


def _loaded(text: str | None) -> dict[str, Any]:
    try:
        value = json.loads(text or "")
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _parsed(text: str | None) -> Graph:
    """A `prompt`'s nodes; empty where any is malformed."""
    nodes = _loaded(text)
    good = all(
        isinstance(node, dict) and isinstance(node.get("class_type"), str) and isinstance(node.get("inputs"), dict)
        for node in nodes.values()
    )
    return nodes if good and len(nodes) <= LIMIT else {}


def _from_canvas(canvas: dict[str, Any]) -> Graph:
    """A `workflow`'s nodes as a `prompt`'s, of the kinds whose widgets are known; others keep their links."""
    nodes, links = canvas.get("nodes"), canvas.get("links")
    if not isinstance(nodes, list) or not isinstance(links, list) or len(nodes) > LIMIT:
        return {}
    sources = {one[0]: [str(one[1]), one[2]] for one in links if isinstance(one, list) and len(one) >= 5}
    graph: Graph = {}
    for node in nodes:
        with suppress(KeyError, TypeError, AttributeError):
            values = node.get("widgets_values")
            names = WIDGETS.get(node["type"], ())
            inputs = dict(zip(names, values, strict=False)) if isinstance(values, list) else {}
            inputs.pop("", None)
            for slot in node.get("inputs") or []:
                if slot.get("link") in sources:
                    inputs[slot["name"]] = sources[slot["link"]]
            graph[str(node["id"])] = {"class_type": str(node["type"]), "inputs": inputs}
    return graph
