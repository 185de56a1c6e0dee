"""The worker: which model draws, with which LoRAs, and how far it says it is."""

import pytest
import torch
from safetensors.torch import save_file

from safelight.app.server.darkroom import Darkroom, batches
from safelight.app.server.gallery import Gallery
from safelight.app.server.jobs import Job
from safelight.checkpoint.load import SHIPPED, load_parts
from safelight.errors import Cancelled, InputError, MissingPartError

SMALL = {"steps": 1, "width": 64, "height": 64, "seed": 0}


def job(**request):
    return Job("text_to_image", request, request)


@pytest.fixture
def lora(tmp_path):
    """A folder with a LoRA for the default model, called ink."""
    folder = tmp_path / "loras"
    folder.mkdir()
    key = "unet.down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    generator = torch.Generator().manual_seed(0)
    width = load_parts(SHIPPED).unet.down_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q.weight.shape[0]
    down, up = torch.randn(4, width, generator=generator), torch.randn(width, 4, generator=generator)
    save_file({f"{key}.lora_A.weight": down, f"{key}.lora_B.weight": up}, folder / "ink.safetensors")
    return folder


def test_one_model_is_held_at_a_time_and_only_those_that_are_offered(tmp_path):
    darkroom = Darkroom(Gallery(tmp_path), ["random", "default"], loading={})
    darkroom.warm()
    assert "inpaint" in darkroom.tasks["random"] and "default" not in darkroom.tasks
    first = darkroom.draw(job(prompt="a fox", **SMALL))
    held = darkroom._held[1]
    darkroom.draw(job(prompt="a wolf", **SMALL))
    assert darkroom._held[1] is held
    other = job(prompt="a fox", **SMALL)
    other.model = "default"
    second = darkroom.draw(other)
    assert darkroom._held[1].name != held.name and "default" in darkroom.tasks
    pixels = [darkroom.gallery.path(name).read_bytes() for name in (*first, *second)]
    assert pixels[0] != pixels[1] and first == ["a-fox-0.png"] and second == ["a-fox-0-2.png"]
    with pytest.raises(InputError, match="not offered"):
        darkroom.known("other")


def test_a_folder_of_loras_is_searched_for_what_a_prompt_asks(tmp_path, lora):
    darkroom = Darkroom(Gallery(tmp_path / "out"), ["default"], loading={"loras": [str(lora)]})
    darkroom.warm()
    plain = darkroom.draw(job(prompt="a fox", **SMALL))[0]
    inked = darkroom.draw(job(prompt="a fox <lora:ink:0.8>", **SMALL))[0]
    assert list(darkroom._held[1].loras.values()) == [0.8]
    again = darkroom.draw(job(prompt="a fox", **SMALL))[0]
    latest = [darkroom.gallery.recipe(name)["model"].get("loras") for name in (plain, inked, again)]
    assert latest[0] == latest[2] and latest[1]
    with pytest.raises(MissingPartError, match="'chalk' by 1"):
        darkroom.draw(job(prompt="a fox <lora:chalk>", **SMALL))


def test_a_job_that_is_to_stop_writes_nothing(tmp_path):
    darkroom = Darkroom(Gallery(tmp_path), ["random"], loading={})
    one = job(prompt="a fox", **SMALL)
    one.stopping = True
    with pytest.raises(Cancelled):
        darkroom.draw(one)
    assert darkroom.gallery.names() == []


def test_the_share_goes_over_all_batches(tmp_path):
    darkroom, shares = Darkroom(Gallery(tmp_path), ["random"], loading={}), []
    one = job(prompt="a fox", **SMALL | {"steps": 2}, count=3, batch_size=2)
    darkroom.changed = lambda: shares.append((one.share, one.doing))
    assert len(darkroom.draw(one)) == 3 and batches(one) == 2
    told = [share for share, doing in shares if doing.startswith(("step", "decoding"))]
    assert told == [0.25, 0.5, 0.75, 1.0]
    assert shares[-1] == (1.0, "decoding") and shares[0][1] == "loading random"
