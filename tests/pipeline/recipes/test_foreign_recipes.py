"""Pictures of ComfyUI, InvokeAI and of people who save diffusers' keywords, built as these programs write them."""

import json

import pytest
from PIL import Image, PngImagePlugin

from safelight.errors import InputError
from safelight.pipeline.recipes.reading import read_picture

# ComfyUI's default graph, as its server hands it to the save node
DEFAULT = {
    "3": {"class_type": "KSampler", "inputs": {
        "seed": 156680208700286, "steps": 20, "cfg": 8.0, "sampler_name": "euler", "scheduler": "normal",
        "denoise": 1.0, "model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0]}},
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "SD1.5\\v1-5-pruned.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 448, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "beautiful scenery (glass:1.2) bottle", "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "text, watermark", "clip": ["4", 1]}},
    "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
    "9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "ComfyUI", "images": ["8", 0]}},
}  # fmt: skip
UNDERSTOOD = {
    "seed": 156680208700286, "steps": 20, "guidance_scale": 8.0, "sampler": "euler", "grid": "uniform", "width": 512,
    "height": 448, "prompt": "beautiful scenery (glass:1.2) bottle", "negative_prompt": "text, watermark",
    "noise": "comfyui", "prompt_syntax": "comfyui",
}  # fmt: skip


def picture(tmp_path, **texts):
    info = PngImagePlugin.PngInfo()
    for keyword, text in texts.items():
        info.add_text(keyword, text if isinstance(text, str) else json.dumps(text))
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png", pnginfo=info)
    return tmp_path / "a.png"


def changed(**nodes):
    return {**json.loads(json.dumps(DEFAULT)), **nodes}


def test_comfyuis_default_graph(tmp_path):
    reading = read_picture(picture(tmp_path, prompt=DEFAULT, workflow="{}"))
    assert (reading.program, reading.task, reading.request) == ("ComfyUI", "text_to_image", UNDERSTOOD)
    assert reading.model == {"name": "v1-5-pruned.safetensors"}
    assert reading.kept == {} and reading.remarks == ()


def test_comfyuis_image_to_image_with_adapters_and_clip_skip(tmp_path):
    graph = changed(
        **{
            "3": {**DEFAULT["3"], "inputs": DEFAULT["3"]["inputs"] | {
                "denoise": 0.6, "model": ["10", 0], "latent_image": ["12", 0], "sampler_name": "dpmpp_2m_sde_gpu",
                "scheduler": "wonder", "positive": ["14", 0]}},
            "10": {"class_type": "LoraLoader", "inputs": {"lora_name": "x.safetensors", "strength_model": 0.8,
                                                          "model": ["4", 0], "clip": ["11", 0]}},
            "11": {"class_type": "CLIPSetLastLayer", "inputs": {"stop_at_clip_layer": -2, "clip": ["4", 1]}},
            "12": {"class_type": "VAEEncode", "inputs": {"pixels": ["13", 0], "vae": ["4", 2]}},
            "13": {"class_type": "LoadImage", "inputs": {"image": "in.png"}},
            "14": {"class_type": "CLIPTextEncode", "inputs": {"text": ["15", 0], "clip": ["11", 0]}},
            "15": {"class_type": "PrimitiveString", "inputs": {"value": "a fox"}},
        }
    )  # fmt: skip
    del graph["5"], graph["6"]
    reading = read_picture(picture(tmp_path, prompt=graph))
    assert reading.task == "image_to_image"
    assert (reading.request["steps"], reading.request["strength"]) == (33, 20 / 33)  # int(20 / 0.6), and its last 20
    assert reading.request["clip_skip"] == 1
    assert reading.request["sampler"] == "dpmpp_2m_sde" and "grid" not in reading.request
    assert reading.request["prompt"] == "a fox"
    assert reading.model == {"name": "v1-5-pruned.safetensors", "loras": {"x.safetensors": 0.8}}
    assert reading.kept == {"scheduler": "wonder"}
    graph["10"]["inputs"]["strength_clip"] = 0.5
    assert "node 10: LoraLoader" in read_picture(picture(tmp_path, prompt=graph)).kept


def test_comfyuis_custom_sampler_in_parts(tmp_path):
    graph = changed(
        **{
            "3": {"class_type": "SamplerCustomAdvanced", "inputs": {
                "noise": ["20", 0], "guider": ["21", 0], "sampler": ["22", 0], "sigmas": ["23", 0],
                "latent_image": ["24", 0]}},
            "20": {"class_type": "RandomNoise", "inputs": {"noise_seed": 77}},
            "21": {"class_type": "CFGGuider", "inputs": {"cfg": 4, "model": ["4", 0], "positive": ["6", 0],
                                                         "negative": ["7", 0]}},
            "22": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "uni_pc"}},
            "23": {"class_type": "BasicScheduler", "inputs": {"scheduler": "karras", "steps": 9, "denoise": 1,
                                                              "model": ["4", 0]}},
            "24": {"class_type": "LatentFromBatch", "inputs": {"batch_index": 3, "length": 1, "samples": ["5", 0]}},
        }
    )  # fmt: skip
    reading = read_picture(picture(tmp_path, prompt=graph))
    expected = {"seed": 77, "steps": 9, "guidance_scale": 4.0, "sampler": "unipc", "grid": "karras", "batch_index": 3}
    expected |= {"grid_options": {"final_sigma": 0.001}, "sampler_options": {"order": 3, "solver_type": "bh1"}}
    assert reading.request == UNDERSTOOD | expected
    assert reading.kept == {}


def test_comfyuis_canvas_alone(tmp_path):
    links = [[1, 4, 0, 3, 0, "MODEL"], [2, 5, 0, 3, 3, "LATENT"], [3, 6, 0, 3, 1, "CONDITIONING"],
             [4, 7, 0, 3, 2, "CONDITIONING"], [5, 3, 0, 8, 0, "LATENT"], [6, 8, 0, 9, 0, "IMAGE"]]  # fmt: skip
    slots = [{"name": "model", "link": 1}, {"name": "positive", "link": 3}, {"name": "negative", "link": 4},
             {"name": "latent_image", "link": 2}]  # fmt: skip
    nodes = [
        {"id": 3, "type": "KSampler", "inputs": slots,
         "widgets_values": [156680208700286, "randomize", 20, 8, "euler", "normal", 1]},
        {"id": 4, "type": "CheckpointLoaderSimple", "widgets_values": ["v1-5-pruned.safetensors"]},
        {"id": 5, "type": "EmptyLatentImage", "widgets_values": [512, 448, 1]},
        {"id": 6, "type": "CLIPTextEncode", "widgets_values": ["beautiful scenery (glass:1.2) bottle"]},
        {"id": 7, "type": "CLIPTextEncode", "widgets_values": ["text, watermark"]},
        {"id": 8, "type": "VAEDecode", "inputs": [{"name": "samples", "link": 5}]},
        {"id": 9, "type": "SaveImage", "inputs": [{"name": "images", "link": 6}], "widgets_values": ["ComfyUI"]},
        {"id": 10, "type": "Note", "widgets_values": ["remember the milk"]},
    ]  # fmt: skip
    reading = read_picture(picture(tmp_path, workflow={"nodes": nodes, "links": links}))
    assert reading.request == UNDERSTOOD
    assert reading.model == {"name": "v1-5-pruned.safetensors"}
    assert reading.kept == {"node 10: Note": {}}


def test_a_graph_in_circles_ends(tmp_path):
    graph = changed(**{"6": {"class_type": "ConditioningCombine", "inputs": {"a": ["6", 0], "b": ["3", 0]}}})
    reading = read_picture(picture(tmp_path, prompt=graph))
    assert reading.request["seed"] == UNDERSTOOD["seed"]


@pytest.mark.parametrize(
    "prompt",
    ["[1, 2]", '{"1": 3}', '{"1": {"class_type": "KSampler"}}', "{" * 9999, "[" * 99999, "NaN",
     '{"1": {"class_type": 1, "inputs": {}}}'],
)  # fmt: skip
def test_malformed_graphs_say_nothing(tmp_path, prompt):
    with pytest.raises(InputError, match="says nothing of how it was made; it carries 'prompt'"):
        read_picture(picture(tmp_path, prompt=prompt))


def test_a_graph_without_a_sampler_is_kept(tmp_path):
    reading = read_picture(picture(tmp_path, prompt={"1": {"class_type": "Wonder", "inputs": {"x": 1}}}))
    assert reading.kept == {"node 1: Wonder": {"x": 1}} and "no sampler" in reading.remarks[0]


def test_wrong_kinds_of_values_are_kept(tmp_path):
    inputs = DEFAULT["3"]["inputs"] | {"seed": "many", "steps": [1], "cfg": None, "sampler_name": {"a": 1}}
    graph = changed(**{"3": {"class_type": "KSampler", "inputs": inputs}})
    reading = read_picture(picture(tmp_path, prompt=graph))
    assert not reading.request.keys() & {"seed", "steps", "guidance_scale", "sampler"}
    assert reading.kept["sampler_name"] == {"a": 1}


INVOKEAI = {"generation_mode": "img2img", "positive_prompt": "a fox+", "negative_prompt": "blurry", "width": 512,
            "height": 640, "seed": 42, "rand_device": "cpu", "cfg_scale": 7.5, "cfg_rescale_multiplier": 0.1,
            "steps": 30, "scheduler": "dpmpp_2m_k", "clip_skip": 1, "strength": 0.7, "app_version": "5.0.0",
            "model": {"key": "k", "hash": "blake3:ab", "name": "Dreamshaper", "base": "sd-1"}}  # fmt: skip


def test_invokeai(tmp_path):
    reading = read_picture(picture(tmp_path, invokeai_metadata=INVOKEAI, invokeai_graph="{}"))
    assert (reading.program, reading.task) == ("InvokeAI", "image_to_image")
    assert reading.request == {
        "prompt": "a fox+", "negative_prompt": "blurry", "width": 512, "height": 640, "seed": 42, "steps": 30,
        "guidance_scale": 7.5, "guidance_rescale": 0.1, "sampler": "dpmpp_2m", "grid": "karras", "clip_skip": 1,
        "strength": 0.7, "prompt_syntax": "compel",
    }  # fmt: skip
    assert reading.model == {"name": "Dreamshaper", "hash": "blake3:ab"}
    assert reading.kept == {"rand_device": "cpu", "app_version": "5.0.0"}


def test_invokeai_of_version_2(tmp_path):
    image = {"prompt": [{"prompt": "a fox", "weight": 1}], "steps": 20, "cfg_scale": 7, "threshold": 0, "height": 512,
             "width": 512, "seed": 5, "sampler": "k_euler_a", "type": "txt2img"}  # fmt: skip
    data = {"model": "stable diffusion", "model_weights": "sd-1.5", "app_version": "2.3.0", "image": image}
    reading = read_picture(picture(tmp_path, **{"sd-metadata": data}, Dream="a fox -s 20"))
    assert reading.request["sampler"] == "euler_ancestral" and reading.request["prompt"] == "a fox"
    assert reading.request["seed"] == 5 and reading.model == {"name": "sd-1.5"}
    assert reading.kept == {"app_version": "2.3.0", "threshold": 0}


SWARMUI = {"prompt": "a fox", "negativeprompt": "blurry", "model": "mine/realDream", "images": 1, "seed": 17,
           "steps": 10, "cfgscale": 6.0, "aspectratio": "1:1", "width": 512, "height": 640,
           "sampler": "dpmpp_2m_sde_gpu", "scheduler": "karras", "variationseed": 9, "variationseedstrength": 0.2,
           "clipstopatlayer": -2, "loras": ["styles/ink", "pen"], "loraweights": ["0.4"],
           "swarm_version": "0.9.8.1"}  # fmt: skip


def test_swarmui(tmp_path):
    path = picture(tmp_path, parameters={"sui_image_params": SWARMUI, "sui_extra_data": {"date": "2026-07-18"}})
    reading = read_picture(path)
    assert (reading.program, reading.task) == ("SwarmUI", "text_to_image")
    assert reading.request == {
        "prompt": "a fox", "negative_prompt": "blurry", "seed": 17, "steps": 10, "guidance_scale": 6.0, "width": 512,
        "height": 640, "sampler": "dpmpp_2m_sde", "grid": "karras", "subseed": 9, "subseed_strength": 0.2,
        "clip_skip": 1, "noise": "comfyui", "prompt_syntax": "comfyui",
    }  # fmt: skip
    assert reading.model == {"name": "mine/realDream", "loras": {"ink": 0.4, "pen": 1.0}}
    assert reading.kept.keys() == {"images", "aspectratio", "swarm_version", "sui_extra_data"}


def test_swarmuis_defaults_and_first_pictures(tmp_path):
    bare = {"prompt": "a fox", "steps": 10, "initimagecreativity": 0.65}
    reading = read_picture(picture(tmp_path, parameters={"sui_image_params": bare}))
    assert reading.task == "image_to_image" and reading.request["strength"] == 0.6  # it begins at round(10 * 0.35) = 4
    assert (reading.request["sampler"], reading.request["grid"]) == ("euler", "uniform")


FOOOCUS = {"base_model": "juggernautXL_v8", "base_model_hash": "aeb7e9e689", "clip_skip": 2, "guidance_scale": 4,
           "full_prompt": ["cinematic still a cat"], "lora_combined_1": "offset : 0.1",
           "loras": [["offset", 0.1, "4852686128"]], "metadata_scheme": "fooocus", "negative_prompt": "",
           "prompt": "a cat", "resolution": "(512, 768)", "sampler": "dpmpp_2m_sde_gpu", "scheduler": "karras",
           "seed": "127589946317439009", "sharpness": 2, "steps": 30, "version": "Fooocus v2.5.5"}  # fmt: skip


def test_fooocus(tmp_path):
    reading = read_picture(picture(tmp_path, parameters=FOOOCUS, fooocus_scheme="fooocus"))
    assert reading.program == "Fooocus v2.5.5"
    assert reading.request == {
        "prompt": "a cat", "negative_prompt": "", "seed": 127589946317439009, "steps": 30, "guidance_scale": 4,
        "width": 512, "height": 768, "sampler": "dpmpp_2m_sde", "grid": "karras", "clip_skip": 1, "noise": "comfyui",
        "prompt_syntax": "comfyui",
    }  # fmt: skip
    assert reading.model == {"name": "juggernautXL_v8", "hash": "aeb7e9e689", "loras": {"offset": 0.1}}
    assert reading.kept.keys() == {"full_prompt", "metadata_scheme", "sharpness"}


@pytest.mark.parametrize("value", [None, [], {}, "x", -1, 1e999, True, [[1]], [["a", "b"], [{}, "nan"]]])
def test_wrong_kinds_of_values_in_either_are_kept_or_dropped(tmp_path, value):
    for said in ({"sui_image_params": dict.fromkeys(SWARMUI, value)},
                 {"sui_image_params": SWARMUI | {"initimagecreativity": value, "loraweights": value}},
                 dict.fromkeys(FOOOCUS, value) | {"metadata_scheme": "fooocus"}):  # fmt: skip
        assert read_picture(picture(tmp_path, parameters=said)).task in ("text_to_image", "image_to_image")


def test_diffusers_keywords_as_json(tmp_path):
    data = {"prompt": "a fox", "negative_prompt": "blurry", "resolution": "512 x 640", "guidance_scale": 7,
            "num_inference_steps": 28, "seed": 9, "sampler": "Euler a", "use_lora": None,
            "Model": "owner/model"}  # fmt: skip
    reading = read_picture(picture(tmp_path, parameters=data))
    assert (reading.program, reading.task) == ("diffusers", "text_to_image")
    assert reading.request == {"prompt": "a fox", "negative_prompt": "blurry", "width": 512, "height": 640, "steps": 28,
                               "guidance_scale": 7, "seed": 9, "sampler": "euler_ancestral",
                               "prompt_syntax": "plain"}  # fmt: skip
    assert reading.model == {"name": "owner/model"} and reading.kept == {}


def test_diffusers_keywords_as_texts_of_their_own(tmp_path):
    path = picture(tmp_path, prompt="a fox", num_inference_steps="20", guidance_scale="7.5", seed="3", strength="0.4",
                   scheduler="HeunDiscreteScheduler", use_karras_sigmas="True", model="/home/me/sd15")  # fmt: skip
    reading = read_picture(path)
    assert reading.task == "image_to_image"
    assert reading.request == {"prompt": "a fox", "steps": 20, "guidance_scale": 7.5, "seed": 3, "strength": 0.4,
                               "sampler": "heun", "grid": "karras", "prompt_syntax": "plain"}  # fmt: skip
    assert reading.model == {"name": "sd15"}


def test_texts_of_no_program_are_named(tmp_path):
    with pytest.raises(InputError, match="it carries 'Comment', 'Software'"):
        read_picture(picture(tmp_path, Comment="hello", Software="a camera"))


def test_a_strangers_recipe_opens_no_file_here(tmp_path):
    """What names a place in a request is dropped: a picture from elsewhere must not have files of this machine read."""
    recipe = {"safelight": "0.1.0", "torch": "2", "task": "image_to_image", "model": {"name": "/etc"}, "size": [8, 8],
              "request": {"prompt": "__passwd__", "image": "/etc/hostname", "wildcards": "/etc", "wrap": 3,
                          "styles_file": "/etc/passwd", "dynamic_prompts": True, "count": 9999, "later_option": 1},
              "batch": [1, 0], "inputs": {}, "unrecorded": []}  # fmt: skip
    reading = read_picture(picture(tmp_path, safelight=recipe))
    assert reading.request == {"prompt": "__passwd__"}
    assert reading.kept == {"later_option": 1}


def test_a_damaged_recipe_of_ours_leaves_the_parameters(tmp_path):
    path = picture(tmp_path, safelight='{"safelight"', parameters="a fox\nSteps: 3, Sampler: Euler, Seed: 1, RNG: CPU")
    reading = read_picture(path)
    assert reading.request["prompt"] == "a fox"
    assert "recipe is damaged" in reading.remarks[0] and "safelight" in reading.kept
