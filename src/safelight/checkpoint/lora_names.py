"""How the trainers of LoRAs call a model's layers: whatever the dialect, the network and the layer that are meant.

lora_unet_down_blocks_0_…_attn1_to_q                kohya's and LyCORIS', over diffusers' names, dots turned to _
lora_unet_input_blocks_1_1_…_attn1_to_q             the same over CompVis' names
diffusion_model.input_blocks.1.1.….attn1.to_q       ComfyUI's
text_encoders.clip_l.transformer.text_model.….q_proj
unet.down_blocks.0.….attn1.to_q                     diffusers'
text_encoder.text_model.….self_attn.to_q            diffusers' of 2023; its U-Net's .attn1.processor.to_q
base_model.model.down_blocks.0.….attn1.to_q         PEFT's, of whichever network has the layer
"""

from collections.abc import Mapping

from torch import nn

from safelight.checkpoint import layouts
from safelight.checkpoint.errors import KeyMismatch
from safelight.checkpoint.files import Tensors
from safelight.checkpoint.single import unet_keymap
from safelight.errors import MissingPartError, nearest
from safelight.models.unet import UNet

UNET, TEXT, TEXT_2, EITHER = ("unet",), ("text_encoder",), ("text_encoder_2",), ("unet", "text_encoder")
# What stands before a layer's name -> the networks that it may be in. The first that fits counts.
PREFIXES = (
    ("lora_unet_", UNET), ("lora_te_", TEXT), ("lora_te1_", TEXT), ("lycoris_", EITHER), ("unet.", UNET),
    ("text_encoder.", TEXT), ("text_encoders.clip_l.transformer.", TEXT), ("text_encoders.clip_h.transformer.", TEXT),
    ("lora_te2_", TEXT_2), ("text_encoder_2.", TEXT_2), ("text_encoders.clip_g.transformer.", TEXT_2),
    ("diffusion_model.", UNET), ("base_model.model.", EITHER), ("", EITHER),
)  # fmt: skip
# diffusers' of 2023 -> ours
OLD_TEXT = {f"self_attn_to_{letter}": f"self_attn_{letter}_proj" for letter in ("q", "k", "v", "out")}


class Names:
    """The layers of a model's networks, by all names that trainers have for them."""

    def __init__(self, networks: Mapping[str, nn.Module | None]) -> None:
        self.known = {name: _layers(network) for name, network in networks.items() if network is not None}

    def find(self, stem: str, file: Tensors) -> tuple[str, str]:
        """The network and the layer that a file calls `stem`. Raises KeyMismatch if the model has none such."""
        prefix, networks = next(pair for pair in PREFIXES if stem.startswith(pair[0]))
        flat = _flat(stem.removeprefix(prefix))
        for network in networks:
            if layer := self.known.get(network, {}).get(flat):
                return network, layer
        there = [name for network in networks for name in self.known.get(network, {})]
        what = f"changes {stem!r}, which the model's {' or '.join(networks)} has not"
        remedy = nearest(flat, there) if there else "load a model that has one, or another LoRA"
        raise KeyMismatch(what, path=file.path, key=stem, remedy=remedy)


def bare(stem: str) -> str:
    """The name of a layer without what stands before it."""
    return next(stem.removeprefix(prefix) for prefix, _ in PREFIXES if stem.startswith(prefix))


def _flat(name: str) -> str:
    return name.replace(".processor", "").replace(".", "_")


def _layers(network: nn.Module) -> dict[str, str]:
    """The layers that have a weight: their names without dots, in all dialects -> as they are."""
    ours = [name.removesuffix(".weight") for name, _ in network.named_parameters() if name.endswith(".weight")]
    known = _compvis(network) | {_flat(name): name for name in ours}
    short = {flat.removesuffix("_0"): name for flat, name in known.items() if flat.endswith("to_out_0")}
    plain = {flat.removeprefix("text_model_"): name for flat, name in known.items()}
    known = plain | short | known
    former = {flat.replace(new, old): name for flat, name in known.items() for old, new in OLD_TEXT.items()}
    return former | known


def _compvis(network: nn.Module) -> dict[str, str]:
    """CompVis' names of a U-Net's layers, dots turned to _, but of those that it fuses (qkv) -> ours."""
    try:
        links = unet_keymap(network).links if isinstance(network, UNet) else ()
    except MissingPartError:  # CompVis has no name for some layer of it
        return {}
    return {
        _flat(link.theirs.removeprefix(layouts.UNET).removesuffix(".weight")): link.ours[0].removesuffix(".weight")
        for link in links
        if len(link.ours) == 1 and link.theirs.endswith(".weight")
    }
