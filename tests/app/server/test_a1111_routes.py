"""AUTOMATIC1111's routes on a real server: asked as its clients ask, answered as it answers."""

import json
import threading
import time
from urllib.error import HTTPError

import numpy as np
import pytest
from PIL import Image
from serving import opened, sent

import safelight
from safelight.pipeline.recipes.infotext import read

QUICK = {"steps": 3, "width": 64, "height": 64, "seed": 7, "cfg_scale": 5}


def test_words_to_pictures_as_a1111_draws_them(asked):
    """The picture is the one that the text in A1111's picture of this request stands for."""
    body = {"prompt": "a (red:1.3) fox", "negative_prompt": "a hat", "sampler_name": "DPM++ 2M", **QUICK}
    status, told = asked("/sdapi/v1/txt2img", body | {"scheduler": "Karras", "batch_size": 2, "save_images": True})
    assert status == 200, told
    info = json.loads(told["info"])
    assert info["all_seeds"] == [7, 8] and info["sampler_name"] == "DPM++ 2M" and len(told["images"]) == 2
    assert told["parameters"]["prompt"] == body["prompt"] and info["infotexts"][1].count("Seed: 8") == 1
    text = ("a (red:1.3) fox\nNegative prompt: a hat\nSteps: 3, Sampler: DPM++ 2M, Schedule type: Karras, "
            "CFG scale: 5, Seed: 7, Size: 64x64, Version: v1.10.1")  # fmt: skip
    again = safelight.text_to_image(safelight.load("random"), **read(text).request, count=2, batch_size=2)
    assert np.array_equal(np.asarray(opened(told["images"][0])), np.asarray(again[0]))


def test_a_prompt_that_looks_like_fields_stays_a_prompt(asked):
    prompt = "a fox\nNegative prompt: a hat\nSteps: 900, Sampler: LMS, Seed: 1"
    status, told = asked("/sdapi/v1/txt2img", {"prompt": prompt, **QUICK, "seed": -1})
    assert status == 200, told
    info = json.loads(told["info"])
    assert (info["prompt"], info["steps"], info["sampler_name"]) == (prompt, 3, "Euler") and info["seed"] >= 0


def test_hires_fix_is_what_its_text_says(asked):
    body = {"prompt": "a fox", **QUICK, "enable_hr": True, "hr_scale": 1.5, "denoising_strength": 0.7}
    status, told = asked("/sdapi/v1/txt2img", body | {"hr_second_pass_steps": 2, "hr_upscaler": "Latent (bicubic)"})
    assert status == 200, told
    assert opened(told["images"][0]).size == (96, 96)
    info = json.loads(told["info"])
    assert "Hires upscale: 1.5" in info["infotexts"][0] and "Hires steps: 2" in info["infotexts"][0]
    text = (
        "a fox\nSteps: 3, Sampler: Euler, Schedule type: Automatic, CFG scale: 5, Seed: 7, Size: 64x64, "
        "Denoising strength: 0.7, Hires upscale: 1.5, Hires steps: 2, Hires upscaler: Latent (bicubic), "
        "Version: v1.10.1"
    )
    again = safelight.text_to_image(safelight.load("random"), **read(text).request)
    assert np.array_equal(np.asarray(opened(told["images"][0])), np.asarray(again[0]))
    same = {"hr_sampler_name": "Use same sampler", "hr_scheduler": "Use same scheduler"}
    assert asked("/sdapi/v1/txt2img", body | same | {"hr_checkpoint_name": "Use same checkpoint"})[0] == 200
    own = {"hr_resize_x": 128, "hr_sampler_name": "DPM++ 2M", "hr_scheduler": "Karras", "hr_prompt": "a large fox"}
    status, told = asked("/sdapi/v1/txt2img", body | own | {"hr_upscaler": "Lanczos"})
    assert status == 200 and opened(told["images"][0]).size == (128, 128), told
    names = [one["name"] for one in asked("/sdapi/v1/upscalers")[1] + asked("/sdapi/v1/latent-upscale-modes")[1]]
    for name in names:
        assert asked("/sdapi/v1/txt2img", body | {"hr_upscaler": name})[0] == 200, name
    assert "Latent (nearest-exact)" in names and "Lanczos" in names


def test_pictures_to_pictures_and_masks(asked):
    picture = Image.effect_noise((64, 64), 60).convert("RGB")
    body = {"prompt": "a fox", "init_images": [sent(picture)], "denoising_strength": 0.6, **QUICK}
    status, told = asked("/sdapi/v1/img2img", body)
    assert status == 200 and opened(told["images"][0]).size == (64, 64)
    assert "init_images" not in told["parameters"]
    mask = Image.new("L", (64, 64))
    mask.paste(255, (0, 0, 20, 64))
    status, told = asked("/sdapi/v1/img2img", body | {"mask": sent(mask), "mask_blur": 0, "inpaint_full_res": False})
    assert status == 200, told
    kept = (32, 0, 64, 64)
    assert np.array_equal(np.asarray(opened(told["images"][0]).crop(kept)), np.asarray(picture.crop(kept)))
    part = body | {"mask": "data:image/png;base64," + sent(mask.resize((32, 32))), "inpaint_full_res_padding": 8}
    assert asked("/sdapi/v1/img2img", part)[0] == 200
    larger = body | {"mask": sent(mask), "inpaint_full_res": False, "width": 96, "height": "80"}
    assert opened(asked("/sdapi/v1/img2img", larger)[1]["images"][0]).size == (96, 80)


WRONG = {
    "a sampler": ({"sampler_name": "Ouler"}, "Ouler"),
    "a schedule": ({"scheduler": "Carras"}, "Carras"),
    "a size": ({"width": 61}, "width"),
    "steps": ({"steps": "many"}, "steps"),
    "no number": ({"cfg_scale": float("nan")}, "cfg_scale"),
    "an upscaler": ({"enable_hr": True, "hr_upscaler": "4x-UltraSharp"}, "Hires upscaler '4x-UltraSharp'"),
    "a cut picture": ({"enable_hr": True, "hr_resize_x": 96, "hr_resize_y": 128}, "Hires resize"),
    "steps below 0": ({"enable_hr": True, "hr_second_pass_steps": -3}, "below 0"),
    "no strength": ({"enable_hr": True, "denoising_strength": 0}, "Denoising strength '0'"),
    "a second sampler": ({"enable_hr": True, "hr_sampler_name": "Foo"}, "Hires sampler 'Foo'"),
    "another model": ({"enable_hr": True, "hr_checkpoint_name": "other"}, "another model"),
    "scripts": ({"alwayson_scripts": {"ControlNet": {"args": []}}}, "scripts"),
    "faces": ({"restore_faces": True}, "face restoration"),
    "many": ({"batch_size": 20, "n_iter": 20}, "400|20 times"),
    "a model": ({"override_settings": {"sd_model_checkpoint": "other"}}, "other"),
    "settings": ({"override_settings": "abc"}, "override_settings"),
    "a huge seed": ({"seed": 10**400}, "seed"),
    "a source of noise": ({"override_settings": {"randn_source": [1]}}, "randn_source"),
    "a LoRA": ({"prompt": "<lora:ink:1>"}, "ink"),
}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_is_not_here_is_refused_by_name(asked, wrong):
    import re

    body, words = WRONG[wrong]
    status, told = asked("/sdapi/v1/txt2img", {"prompt": "a fox", **QUICK, **body})
    assert status in (422, 500) and re.search(words, told["detail"]), told


def test_what_a_picture_lacks_is_told(asked):
    for body in ({}, {"init_images": []}, {"init_images": ["no picture"]}):
        status, told = asked("/sdapi/v1/img2img", {"prompt": "a fox", **QUICK, **body})
        assert status == 422 and ("init_images" in told["detail"] or "image" in told["detail"])


def test_settings_and_lists(asked):
    assert asked("/sdapi/v1/options")[1]["sd_model_checkpoint"] == "random"
    assert asked("/sdapi/v1/options", {"sd_model_checkpoint": "nobody"})[0] == 422
    assert asked("/sdapi/v1/options", {"CLIP_stop_at_last_layers": "x"})[0] == 422
    body = {"prompt": "a fox", **QUICK, "steps": "3", "eta": 1.0, "s_noise": 1, "sampler_name": "DPM++ 2M"}
    own = {"sd_model_checkpoint": None, "CLIP_stop_at_last_layers": 2.0, "randn_source": "CPU"}
    assert asked("/sdapi/v1/txt2img", body | {"override_settings": own})[0] == 200
    assert asked("/sdapi/v1/options", {"sd_model_checkpoint": "random [abc]", "CLIP_stop_at_last_layers": 2})[0] == 200
    try:
        info = json.loads(asked("/sdapi/v1/txt2img", {"prompt": "a fox", **QUICK})[1]["info"])
        assert "Clip skip: 2" in info["infotexts"][0]
    finally:
        asked("/sdapi/v1/options", {"CLIP_stop_at_last_layers": 1})
    assert asked("/sdapi/v1/sd-models")[1][0]["title"] == "random"
    names = [one["name"] for one in asked("/sdapi/v1/samplers")[1]]
    assert "Euler a" in names and "DPM++ 2M SDE" in names
    assert {"automatic", "karras"} <= {one["name"] for one in asked("/sdapi/v1/schedulers")[1]}
    for name in ("loras", "sd-vae", "prompt-styles"):
        assert asked(f"/sdapi/v1/{name}") == (200, [])
    assert asked("/sdapi/v1/embeddings")[1]["loaded"] == {} and asked("/sdapi/v1/cmd-flags")[1] == {}


def test_every_sampler_and_schedule_that_is_listed_draws(asked):
    names = [one["name"] for one in asked("/sdapi/v1/samplers")[1]]
    schedules = [one["label"] for one in asked("/sdapi/v1/schedulers")[1]]
    cases = [{"sampler_name": name} for name in names]
    cases += [{"sampler_name": "Euler", "scheduler": label} for label in schedules]
    for case in cases:
        status, told = asked("/sdapi/v1/txt2img", {"prompt": "a fox", **QUICK, **case, "steps": 4})
        assert status == 200, (case, told)


def test_progress_and_interrupting(asked):
    idle = asked("/sdapi/v1/progress")[1]
    assert idle["progress"] == 0 and idle["state"]["job_count"] == 0
    answers = []
    body = {"prompt": "a fox", **QUICK, "steps": 900, "sampler_name": "Euler a"}
    asking = threading.Thread(target=lambda: answers.append(asked("/sdapi/v1/txt2img", body)))
    asking.start()
    while not (told := asked("/sdapi/v1/progress?skip_current_image=false")[1])["current_image"]:
        time.sleep(0.02)
    assert 0 < told["progress"] < 1 and opened(told["current_image"]).format == "JPEG"
    assert asked("/sdapi/v1/interrupt", method="POST") == (200, {})
    asking.join(30)
    assert answers[0][0] == 500 and "interrupted" in answers[0][1]["detail"]


def test_how_a_picture_was_made(asked):
    drawn = asked("/sdapi/v1/txt2img", {"prompt": "a fox", **QUICK})[1]["images"][0]
    info = asked("/sdapi/v1/png-info", {"image": "data:image/png;base64," + drawn})[1]["info"]
    assert info.startswith("a fox\nSteps: 3, Sampler: Euler")
    assert asked("/sdapi/v1/png-info", {"image": sent(Image.new("RGB", (8, 8)))})[1]["info"] == ""
    assert asked("/sdapi/v1/png-info", {"image": "no picture"})[0] == 422


def test_a_page_of_another_site_is_refused_here_as_well(asked):
    with pytest.raises(HTTPError) as refused:
        asked.raw("/sdapi/v1/txt2img", {"prompt": "a fox"}, origin="http://evil.example")
    assert refused.value.code == 403
