"""Which text encoders a single file holds, and their configs in transformers' words, read from shapes alone."""

from typing import Any

from safelight.checkpoint import layouts
from safelight.checkpoint.shapes import Shapes

Config = dict[str, Any]

HEAD_WIDTH = 64  # of SD 2's and SD XL's U-Nets, and of every CLIP


def text_dialect(shapes: Shapes) -> str | None:
    """Which names the text encoder of a single file has; None where it has none that is drawn here (LDM's BERT).

    "pair" is Stable Diffusion XL's two: CLIP's in transformers' names, and OpenCLIP's.
    """
    if f"{layouts.CLIP_1}text_model.embeddings.token_embedding.weight" in shapes:
        return "pair" if f"{layouts.OPENCLIP_2}token_embedding.weight" in shapes else None
    if f"{layouts.CLIP}text_model.embeddings.token_embedding.weight" in shapes:
        return "clip"
    if f"{layouts.CLIP}embeddings.token_embedding.weight" in shapes:
        return "clip_flat"
    return "openclip" if f"{layouts.OPENCLIP}token_embedding.weight" in shapes else None


def text_configs(shapes: Shapes, dialect: str | None) -> tuple[Config | None, Config | None]:
    """The transformers configs of a single file's text encoder, and of Stable Diffusion XL's second one."""
    if dialect is None:
        return None, None
    if dialect == "pair":
        first = _of_clip(shapes.under(f"{layouts.CLIP_1}text_model."))
        return first, _of_openclip(shapes.under(layouts.OPENCLIP_2), whole=True)
    if dialect == "openclip":
        return _of_openclip(shapes.under(layouts.OPENCLIP)), None
    return _of_clip(shapes.under(layouts.CLIP + ("text_model." if dialect == "clip" else ""))), None


def _of_clip(inner: Shapes) -> Config:
    token, position = "embeddings.token_embedding.weight", "embeddings.position_embedding.weight"
    config = _config(inner, token, position, "encoder.layers.", "mlp.fc1.weight")
    return {**config, "hidden_act": "quick_gelu", "pad_token_id": config["vocab_size"] - 1}


def _of_openclip(inner: Shapes, *, whole: bool = False) -> Config:
    """OpenCLIP's last block is left out, as in every SD 2 model: the U-Net reads the penultimate layer.

    A file without text_projection has left it out already. SD XL's is `whole`: it reads what is projected as well.
    """
    config = _config(inner, "token_embedding.weight", "positional_embedding", "transformer.resblocks.",
                     "mlp.c_fc.weight")  # fmt: skip
    config |= {"hidden_act": "gelu", "pad_token_id": 0}
    if whole:
        projected = {"projection_dim": inner["text_projection"][1]}
        return {**config, **projected, "architectures": ["CLIPTextModelWithProjection"]}
    layers = config["num_hidden_layers"]
    return {**config, "num_hidden_layers": layers - (layers == 24 or "text_projection" in inner)}


def _config(inner: Shapes, token: str, position: str, blocks: str, fc1: str) -> Config:
    vocabulary, width = inner[token]
    return {
        "architectures": ["CLIPTextModel"],
        "vocab_size": vocabulary,
        "hidden_size": width,
        "projection_dim": width,
        "intermediate_size": inner[f"{blocks}0.{fc1}"][0],
        "num_hidden_layers": inner.count(blocks),
        "num_attention_heads": max(width // HEAD_WIDTH, 1),
        "max_position_embeddings": inner[position][0],
        "bos_token_id": vocabulary - 2,
        "eos_token_id": vocabulary - 1,
    }
