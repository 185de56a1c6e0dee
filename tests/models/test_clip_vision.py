"""CLIP's image encoder, against transformers'."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from safelight.errors import InputError
from safelight.models.clip_vision import MEAN, STD, VisionConfig, VisionEncoder, framed

SHAPE = {
    "hidden_size": 32, "intermediate_size": 48, "projection_dim": 24, "num_hidden_layers": 3, "num_attention_heads": 2,
    "image_size": 32, "patch_size": 8,
}  # fmt: skip


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
def test_embeddings_are_transformers(act):
    torch.manual_seed(0)
    theirs = CLIPVisionModelWithProjection(CLIPVisionConfig(**SHAPE, hidden_act=act)).eval()
    ours = VisionEncoder(VisionConfig.from_transformers(theirs.config.to_dict())).eval()
    ours.load_state_dict({k: v for k, v in theirs.state_dict().items() if not k.endswith("position_ids")})
    pictures = torch.randint(0, 256, (2, 3, 32, 32)) / 127.5 - 1
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
    wanted = theirs(pixel_values=((pictures + 1) / 2 - mean) / std).image_embeds
    assert torch.allclose(ours(pictures), wanted, rtol=1e-5, atol=1e-6)


def test_config_of_a_whole_model():
    config = {
        "projection_dim": 640,
        "vision_config": {**SHAPE, "projection_dim": 512},
        "text_config": {"hidden_size": 1},
    }
    assert VisionConfig.from_transformers(config) == VisionConfig(**{**SHAPE, "projection_dim": 640})
    with pytest.raises(InputError, match="patches of 9"):
        VisionConfig(image_size=32, patch_size=9)


@pytest.mark.parametrize("height, width", [(50, 75), (20, 16), (32, 32), (17, 45)])
def test_framing_is_pillows(height, width):
    """Within one of 256 levels: Pillow's filter has weights of 22 bits."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32, do_normalize=False, do_rescale=False)
    wanted = processor(Image.fromarray(pixels), return_tensors="pt").pixel_values.float()
    got = framed(torch.from_numpy(pixels).permute(2, 0, 1)[None] / 127.5 - 1, 32)
    assert got.shape == (1, 3, 32, 32)
    assert ((got + 1) * 127.5 - wanted).abs().max() <= 1.001
