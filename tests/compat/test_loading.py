"""Loading, saving and sharing models under the peers' names, and what is said of what is not here."""

import copy
import functools
import http.server
import logging
import subprocess
import sys
import threading

import diffusers
import numpy as np
import pytest
import torch
import transformers
from PIL import Image

from safelight import compat
from safelight.checkpoint.load import load_parts
from safelight.checkpoint.save import save_single_file
from safelight.errors import CheckpointError, InputError, MissingPartError, NonFiniteError


def draw(pipe, seed=0, **options):
    pipe.set_progress_bar_config(disable=True)
    options = {"prompt": "an otter", "num_inference_steps": 3, "output_type": "np", **options}
    return pipe(generator=torch.Generator().manual_seed(seed), **options).images


@pytest.fixture
def pipe(model):
    return compat.StableDiffusionPipeline.from_pretrained(model)


def test_importing_is_lazy():
    code = "import sys, safelight.compat; sys.exit(any(name in sys.modules for name in ('torch', 'numpy', 'PIL')))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", compat.__all__)
def test_every_name_is_there(name):
    assert getattr(compat, name) is not None
    assert name in dir(compat)


def test_names_that_are_not_here_say_so():
    with pytest.raises(MissingPartError, match="MotionAdapter is not here yet"):
        from safelight.compat import MotionAdapter  # noqa: F401
    with pytest.raises(ImportError):
        from safelight.compat import StableDiffusionPipelin  # noqa: F401
    assert not hasattr(compat, "no_such_name")


def test_a_model_folder_names_its_pipeline(model, inpainting_model):
    assert type(compat.DiffusionPipeline.from_pretrained(model)).__name__ == "StableDiffusionPipeline"
    assert type(compat.DiffusionPipeline.from_pretrained(inpainting_model)).__name__ == "StableDiffusionInpaintPipeline"


def test_every_option_that_scripts_give(model):
    pipe = compat.StableDiffusionPipeline.from_pretrained(
        model, revision="main", variant=None, torch_dtype=torch.bfloat16, safety_checker=None, use_auth_token=True,
        use_safetensors=True, local_files_only=True, feature_extractor=None, requires_safety_checker=False,
        low_cpu_mem_usage=True,
    )  # fmt: skip
    assert {pipe.unet.dtype, pipe.vae.dtype, pipe.text_encoder.dtype, pipe.dtype} == {torch.bfloat16}
    assert pipe.to(torch.float32) is pipe and pipe.to("cpu", torch.float32).dtype == torch.float32
    assert compat.StableDiffusionPipeline.from_pretrained(model, dtype=torch.float16).unet.dtype == torch.float16
    assert pipe.device == torch.device("cpu")
    assert (
        compat.UNet2DConditionModel.from_pretrained(model, subfolder="unet", torch_dtype="auto").dtype == torch.float32
    )
    with pytest.raises(InputError, match="torch_dtyp"):
        compat.StableDiffusionPipeline.from_pretrained(model, torch_dtyp=torch.float16)


def test_parts_given_take_the_place_of_the_folders(model, pipe):
    scheduler = compat.EulerDiscreteScheduler.from_pretrained(model, subfolder="scheduler", use_auth_token=True)
    vae = compat.AutoencoderKL.from_pretrained(model, subfolder="vae")
    other = compat.StableDiffusionPipeline.from_pretrained(model, scheduler=scheduler, vae=vae, text_encoder=None)
    assert other.scheduler is scheduler and other.vae is vae and other.text_encoder is None
    embeds = pipe.encode_prompt("an otter", "cpu", 1, True)
    drawn = draw(other, prompt=None, prompt_embeds=embeds[0], negative_prompt_embeds=embeds[1])
    pipe.scheduler = compat.EulerDiscreteScheduler.from_config(pipe.scheduler.config)
    assert np.array_equal(drawn, draw(pipe))


def test_components_and_config(pipe):
    assert [name for name, part in pipe.components.items() if part is not None] == [
        "vae", "text_encoder", "tokenizer", "unet", "scheduler",
    ]  # fmt: skip
    assert pipe.config["unet"] == ["diffusers", "UNet2DConditionModel"]
    assert pipe.config.tokenizer == ["transformers", "CLIPTokenizer"]
    pipe.scheduler = compat.DDIMScheduler.from_config(pipe.scheduler.config)
    assert pipe.config.scheduler == ["diffusers", "DDIMScheduler"] and pipe.config.requires_safety_checker is False
    assert pipe.vae_scale_factor == 8
    with pytest.raises(TypeError, match="not written"):
        pipe.unet.config.sample_size = 9


def test_pipelines_share_parts(pipe):
    picture = Image.new("RGB", (64, 64), "teal")
    as_image = compat.AutoPipelineForImage2Image.from_pipe(pipe)
    inpaint = compat.AutoPipelineForInpainting.from_pipe(as_image)
    again = compat.AutoPipelineForText2Image.from_pipe(inpaint, scheduler=compat.DDIMScheduler(clip_sample=False))
    by_parts = compat.StableDiffusionImg2ImgPipeline(**pipe.components)
    assert as_image.unet is inpaint.unet is again.unet is by_parts.unet is pipe.unet
    assert np.array_equal(draw(as_image, image=picture), draw(by_parts, image=picture))
    assert type(again.scheduler).__name__ == "DDIMScheduler"


@pytest.mark.parametrize("task", ["Text2Image", "Image2Image", "Inpainting"])
def test_auto_pipelines_load_any_of_the_tasks(task, inpainting_model):
    pipe = getattr(compat, f"AutoPipelineFor{task}").from_pretrained(inpainting_model)
    theirs = getattr(diffusers, f"AutoPipelineFor{task}").from_pretrained(inpainting_model)
    assert type(pipe).__name__ == type(theirs).__name__


def assert_same_weights(one, other):
    for part in ("unet", "vae", "text_encoder"):
        ours, theirs = getattr(one, part).state_dict(), getattr(other, part).state_dict()
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(tensor, theirs[name]) for name, tensor in ours.items())


def test_what_is_saved_diffusers_reads_and_draws_the_same(pipe, tmp_path):
    pipe.save_pretrained(tmp_path / "saved", max_shard_size="1MB")
    theirs = diffusers.StableDiffusionPipeline.from_pretrained(tmp_path / "saved", safety_checker=None)
    assert np.abs(draw(theirs) - draw(pipe)).max() < 1e-4
    ours = compat.StableDiffusionPipeline.from_pretrained(tmp_path / "saved")
    assert_same_weights(ours, pipe)
    assert np.abs(draw(ours) - draw(pipe)).max() < 1e-5  # where weights lie in memory decides how some CPUs sum


def test_one_part_saved_is_read_by_its_peer(pipe, tmp_path):
    for name, kind in (("unet", diffusers.UNet2DConditionModel), ("vae", diffusers.AutoencoderKL),
                       ("text_encoder", transformers.CLIPTextModel)):  # fmt: skip
        getattr(pipe, name).save_pretrained(tmp_path / name)
        theirs = kind.from_pretrained(tmp_path / name).state_dict()
        for key, tensor in getattr(pipe, name).state_dict().items():
            assert torch.equal(theirs[key.removeprefix("text_model.")], tensor)
    pipe.tokenizer.save_pretrained(tmp_path / "tokenizer")
    theirs = transformers.CLIPTokenizer.from_pretrained(tmp_path / "tokenizer")
    assert theirs("an otter!").input_ids == pipe.tokenizer("an otter!").input_ids
    pipe.scheduler.save_pretrained(tmp_path / "scheduler")
    assert diffusers.PNDMScheduler.from_pretrained(tmp_path / "scheduler").config.skip_prk_steps is True


def test_networks_are_made_from_configs(pipe):
    for part in (pipe.unet, pipe.vae):
        fresh = type(part).from_config(part.config)
        assert {k: v.shape for k, v in fresh.state_dict().items()} == {k: v.shape for k, v in part.state_dict().items()}
    wide = compat.UNet2DConditionModel.from_config(pipe.unet.config, in_channels=9)
    assert wide.config.in_channels == wide.in_channels == 9
    text_encoder = compat.CLIPTextModel(
        compat.CLIPTextConfig(hidden_size=16, num_attention_heads=2, num_hidden_layers=1)
    )
    assert text_encoder(torch.tensor([[1, 2]])).last_hidden_state.shape == (1, 2, 16)


def test_a_face_shares_everything_with_its_network(pipe):
    unet = pipe.unet
    assert unet.state_dict().keys() == unet.net.state_dict().keys()
    other = copy.deepcopy(unet)
    with torch.no_grad():
        other.conv_out.bias += 1
    assert other.net.conv_out.bias is other.conv_out.bias
    assert not torch.equal(other.net.conv_out.bias, unet.net.conv_out.bias)
    unet.load_state_dict(other.state_dict())
    assert torch.equal(unet.net.conv_out.bias, other.conv_out.bias)
    assert unet.half().net.conv_in.weight.dtype == torch.float16
    unet.float().train()
    assert unet.net.training and unet.mid_block.training
    assert not any(p.requires_grad for p in unet.requires_grad_(False).net.parameters())


def test_a_compiled_unet_draws_the_same(pipe):
    expected = draw(pipe)
    pipe.unet = torch.compile(pipe.unet, backend="eager")
    assert np.allclose(draw(pipe), expected, atol=1e-5)


def test_single_files(wordy_model, tmp_path):
    pipe = compat.StableDiffusionPipeline.from_pretrained(wordy_model)
    save_single_file(load_parts(wordy_model), tmp_path / "model.safetensors")
    loaded = compat.StableDiffusionPipeline.from_single_file(tmp_path / "model.safetensors", revision="main")
    loaded.scheduler = pipe.scheduler
    assert_same_weights(loaded, pipe)
    assert np.abs(draw(loaded) - draw(pipe)).max() < 1e-5
    vae = compat.AutoencoderKL.from_single_file(tmp_path / "model.safetensors")
    assert all(torch.equal(tensor, pipe.vae.state_dict()[name]) for name, tensor in vae.state_dict().items())
    unet = compat.UNet2DConditionModel.from_single_file(str(tmp_path / "model.safetensors"), torch_dtype=torch.float16)
    assert unet.dtype == torch.float16


def test_transformers_4_calls_of_the_text_encoder(pipe):
    """`_build_causal_attention_mask`, two masks, return_dict=None: as the Deep Dive had them at first."""
    encoder, ids = pipe.text_encoder, pipe.tokenizer("a puppy", padding="max_length", return_tensors="pt").input_ids
    stages = encoder.text_model
    mask = stages._build_causal_attention_mask(1, 77, dtype=torch.float32)
    outputs = stages.encoder(
        inputs_embeds=stages.embeddings(ids), attention_mask=None, causal_attention_mask=mask, output_attentions=None,
        output_hidden_states=True, return_dict=None,
    )  # fmt: skip
    torch.testing.assert_close(stages.final_layer_norm(outputs[0]), encoder(ids)[0])
    assert len(outputs.hidden_states) == encoder.config.num_hidden_layers + 1
    seen_by_all = stages.encoder(inputs_embeds=stages.embeddings(inputs_embeds=stages.embeddings.token_embedding(ids)))
    assert not torch.allclose(stages.final_layer_norm(seen_by_all[0]), encoder(ids)[0], atol=1e-3)
    torch.testing.assert_close(stages(ids).last_hidden_state, encoder(ids).last_hidden_state)


def test_clip_skip(pipe):
    ids = pipe.tokenizer("an otter", padding="max_length", return_tensors="pt").input_ids
    states = pipe.text_encoder(ids, output_hidden_states=True).hidden_states
    expected = pipe.text_encoder.text_model.final_layer_norm(states[-3])
    positive, negative = pipe.encode_prompt("an otter", "cpu", 1, True, clip_skip=2)
    torch.testing.assert_close(positive, expected)
    torch.testing.assert_close(negative, pipe.encode_prompt("", "cpu", 1, False)[0])
    assert not np.allclose(draw(pipe, clip_skip=2), draw(pipe), atol=1e-3)


def test_ldm(tmp_path, pipe):
    """Unconditional latents through a KL stage: the same as by hand."""
    unet = compat.UNet2DModel(
        sample_size=8, in_channels=4, out_channels=4, block_out_channels=(16, 32), layers_per_block=1,
        norm_num_groups=8, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    )  # fmt: skip
    ldm = compat.LDMPipeline(vqvae=pipe.vae, unet=unet, scheduler=compat.DDIMScheduler(clip_sample=False))
    ldm.set_progress_bar_config(disable=True)
    torch.manual_seed(3)
    drawn = ldm(num_inference_steps=3, output_type="np").images
    torch.manual_seed(3)
    x = torch.randn(1, 4, 8, 8)
    ldm.scheduler.set_timesteps(3)
    with torch.no_grad():
        for t in ldm.scheduler.timesteps:
            x = ldm.scheduler.step(unet(x, t).sample, t, x).prev_sample
        expected = pipe.decode_latents(x)
    assert np.allclose(drawn, expected, atol=1e-6)


def test_the_safety_checker_is_spoken_of_once_and_not_run(model, tmp_path, caplog):
    import json
    import shutil

    folder = shutil.copytree(model, tmp_path / "with checker")
    index = json.loads((folder / "model_index.json").read_text())
    index["safety_checker"] = ["stable_diffusion", "StableDiffusionSafetyChecker"]
    (folder / "model_index.json").write_text(json.dumps(index))
    from safelight.compat.notes import explain

    explain.cache_clear()
    with caplog.at_level(logging.WARNING, logger="safelight.compat"):
        for _ in range(2):
            pipe = compat.StableDiffusionPipeline.from_pretrained(folder)
    assert len(caplog.records) == 1 and "safety checker" in caplog.text
    assert pipe.safety_checker is None
    out = pipe("an otter", num_inference_steps=1)
    assert out.nsfw_content_detected is None


def test_a_cut_prompt_is_spoken_of(pipe, caplog):
    with caplog.at_level(logging.WARNING, logger="safelight.compat"):
        draw(pipe, prompt="an otter, " * 30 + "with a hat")
    assert "with a hat" in caplog.text


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda pipe: pipe.load_ip_adapter("x"), MissingPartError),
        (lambda pipe: pipe.unet.set_attn_processor(object()), MissingPartError),
        (lambda pipe: pipe.enable_freeu(1, 1, 1, 1), MissingPartError),
        (lambda pipe: draw(pipe, cross_attention_kwargs={"gligen": {}}), MissingPartError),
        (lambda pipe: draw(pipe, ip_adapter_image=Image.new("RGB", (8, 8))), MissingPartError),
        (lambda pipe: draw(pipe, num_inference_step=3), InputError),
        (lambda pipe: draw(pipe, prompt=None), InputError),
        (lambda pipe: draw(pipe, prompt=3), InputError),
        (lambda pipe: draw(pipe, prompt_embeds=torch.zeros(1, 77, 32)), InputError),
        (lambda pipe: draw(pipe, negative_prompt=["a"]), InputError),
        (lambda pipe: draw(pipe, prompt=["a", "b"], negative_prompt=["a"]), InputError),
        (lambda pipe: draw(pipe, height=60, width=64), InputError),
        (lambda pipe: draw(pipe, output_type="jpg"), InputError),
        (lambda pipe: draw(pipe, callback_on_step_end=print, callback_on_step_end_tensor_inputs=["x"]), InputError),
        (lambda pipe: draw(pipe, callback=print, callback_steps=0), InputError),
        (lambda pipe: draw(pipe, num_images_per_prompt=2, latents=torch.zeros(1, 4, 8, 8)), Exception),
        (lambda pipe: pipe("a", generator=[torch.Generator()] * 3, num_inference_steps=1), InputError),
        (lambda pipe: pipe.unet(torch.zeros(1, 4, 8, 8), 1, torch.zeros(1, 2, 32), added_cond_kwargs={"a": 1}),
         MissingPartError),
        (lambda pipe: pipe.text_encoder(torch.tensor([[1]]), output_attentions=True), MissingPartError),
        (lambda pipe: pipe.tokenizer(["a", "b c d"], return_tensors="pt"), InputError),
        (lambda pipe: pipe.tokenizer("a", padding="longer"), InputError),
        (lambda pipe: pipe.from_pretrained("/nowhere"), CheckpointError),
        (lambda pipe: pipe.vae.from_pretrained(pipe.name_or_path, subfolder="unet"), CheckpointError),
        (lambda pipe: pipe.unet.from_pretrained(pipe.name_or_path, subfolder="unot"), CheckpointError),
        (lambda pipe: pipe.from_pretrained(pipe.name_or_path, custom_pipeline="lpw"), MissingPartError),
    ],
)  # fmt: skip
def test_errors(pipe, call, error):
    with pytest.raises(error):
        call(pipe)


def test_a_picture_that_is_not_finite_is_an_error(pipe):
    with torch.no_grad():
        pipe.vae.decoder.conv_out.bias.fill_(float("nan"))
    with pytest.raises(NonFiniteError, match="float32"):
        draw(pipe)


def test_memory_switches_change_nothing(pipe):
    expected = draw(pipe)
    for name in ("enable_attention_slicing", "enable_vae_slicing", "enable_vae_tiling", "enable_model_cpu_offload",
                 "enable_xformers_memory_efficient_attention", "enable_sequential_cpu_offload"):  # fmt: skip
        if "offload" not in name or not torch.cuda.is_available():
            getattr(pipe, name)()
    assert np.array_equal(draw(pipe), expected)
    larger = draw(pipe, height=96, width=96)
    pipe.disable_vae_tiling()
    whole = draw(pipe, height=96, width=96)
    assert 0 < np.abs(larger - whole).mean() < 0.1


def test_a_pipeline_of_ones_own(pipe):
    class Mine(compat.DiffusionPipeline):
        def __init__(self, unet, scheduler):
            super().__init__()
            self.register_modules(unet=unet, scheduler=scheduler)

        def __call__(self):
            return self.device, list(self.progress_bar([1, 2]))

    mine = Mine(unet=pipe.unet, scheduler=pipe.scheduler).to("cpu")
    mine.set_progress_bar_config(disable=True)
    assert mine() == (torch.device("cpu"), [1, 2]) and list(mine.components) == ["unet", "scheduler"]
    with pytest.raises(InputError):
        mine.progress_bar()


def test_pictures_are_loaded_from_urls(tmp_path):
    Image.new("RGBA", (5, 4), "teal").save(tmp_path / "a.png")
    handler = functools.partial(http.server.SimpleHTTPRequestHandler, directory=tmp_path)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        picture = compat.load_image(f"{address}/a.png")
        with pytest.raises(InputError, match="404"):
            compat.load_image(f"{address}/b.png")
        server.shutdown()
    assert picture.mode == "RGB" and picture.size == (5, 4)
    with pytest.raises(InputError, match="no file"):
        compat.load_image(tmp_path / "b.png")
