"""Networks, tokenizer and helpers, each by itself: the same calls give the same in both libraries."""

import pytest
from both import compare

LOAD = """
import sys
import numpy as np
import torch
from PIL import Image
from diffusers import AutoencoderKL, UNet2DConditionModel, UNet2DModel, VQModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer
folder = sys.argv[1]
torch.manual_seed(0)
"""

TOKENIZER = """
tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
texts = ["A photo of a puppy!", "", "cafés, naïve 漢字 🎈", "it's 1234 <|endoftext|> x", "word " * 100]
for i, text in enumerate(texts):
    results[f"plain {i}"] = dict(tokenizer(text))
    results[f"full {i}"] = tokenizer(text, padding="max_length", max_length=77, truncation=True).input_ids
    tensors = tokenizer(text, padding="max_length", truncation=True, return_tensors="pt")
    results[f"tensor {i}"] = [tensors.input_ids, tensors["attention_mask"]]
    results[f"short {i}"] = tokenizer(text, truncation=True, max_length=6)["input_ids"]
    results[f"bare {i}"] = tokenizer(text, add_special_tokens=False).input_ids
    results[f"encode {i}"] = tokenizer.encode(text)
    results[f"encode tensor {i}"] = tokenizer.encode(text, return_tensors="pt")
    results[f"tokenize {i}"] = tokenizer.tokenize(text)
    ids = tokenizer(text).input_ids
    results[f"pieces {i}"] = tokenizer.convert_ids_to_tokens(ids)
    results[f"ids of pieces {i}"] = tokenizer.convert_tokens_to_ids(tokenizer.convert_ids_to_tokens(ids))
    results[f"decoded {i}"] = [tokenizer.decode(ids), tokenizer.decode(ids, skip_special_tokens=True)]
    results[f"decoded one {i}"] = [tokenizer.decode(int(x)) for x in ids]
results["longest"] = dict(tokenizer(texts[:3], padding=True))
results["longest too"] = dict(tokenizer(texts[:3], padding="longest", return_tensors="pt"))
results["list"] = dict(tokenizer(texts))
results["arrays"] = tokenizer(texts[:3], padding=True, return_tensors="np")["input_ids"]
results["no mask"] = dict(tokenizer(texts[0], return_attention_mask=False))
batch = tokenizer(texts[:3], padding="max_length", truncation=True, return_tensors="pt").input_ids
results["batch"] = tokenizer.batch_decode(batch[:, :9])
results["rows"] = tokenizer.decode(batch[:, :9].tolist())
rows = [[1, 2, 3], [4]]
results["padded"] = dict(tokenizer.pad({"input_ids": rows}, padding="max_length", max_length=5, return_tensors="pt"))
results["padded too"] = dict(tokenizer.pad([{"input_ids": row} for row in rows]))
for name in ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id", "bos_token", "eos_token", "pad_token",
             "unk_token", "model_max_length", "vocab_size", "padding_side", "truncation_side", "all_special_ids",
             "all_special_tokens", "added_tokens_encoder", "special_tokens_map", "is_fast"):
    results[name] = getattr(tokenizer, name)
results["length"] = len(tokenizer)
results["vocabulary"] = tokenizer.get_vocab()
results["unknown"] = tokenizer.convert_tokens_to_ids("no such piece")
results["added"] = [tokenizer.add_tokens(["<birb>", "<bird>"]), tokenizer.add_tokens("<birb>"), len(tokenizer)]
results["with an added one"] = tokenizer("a <birb>, a bird").input_ids
results["added, decoded"] = tokenizer.decode(tokenizer("a <birb>, a bird").input_ids)
results["added, id"] = tokenizer.convert_tokens_to_ids("<bird>")
moved = tokenizer("a cat", return_tensors="pt").to("cpu")
results["moved"] = [moved["input_ids"], moved.attention_mask]
"""

TEXT_ENCODER = """
tokenizer = CLIPTokenizer.from_pretrained(folder, subfolder="tokenizer")
encoder = CLIPTextModel.from_pretrained(folder, subfolder="text_encoder")
inputs = tokenizer(["a photo of a cat", "two small dogs and a hat"], padding="max_length", return_tensors="pt")
ids = inputs.input_ids
with torch.no_grad():
    out = encoder(ids)
    results["states"] = [out.last_hidden_state, out[0], out["last_hidden_state"], out[:1][0]]
    results["pooled"] = [out.pooler_output, out[1], out.to_tuple()[1]]
    results["keys"] = list(out.keys())
    results["length"] = len(out)
    results["tuple"] = list(encoder(ids, return_dict=False))
    results["masked"] = encoder(**inputs).last_hidden_state
    out = encoder(ids, output_hidden_states=True)
    results["hidden states"] = list(out.hidden_states)
    results["the last of the output"] = list(out[-1])
    results["short"] = encoder(ids[:, :5])[0]
    positions = torch.arange(77).flip(0)[None]
    results["other positions"] = encoder(ids, position_ids=positions).last_hidden_state
results["embeddings"] = encoder.get_input_embeddings().weight.detach().clone()
results["config"] = [encoder.config.hidden_size, encoder.config.num_hidden_layers, encoder.config.vocab_size]
results["size"] = [encoder.num_parameters(), sum(p.numel() for p in encoder.parameters()), str(encoder.device)]
results["dtype"] = str(encoder.half().dtype)
encoder.float().requires_grad_(False)
results["trainable"] = encoder.num_parameters(only_trainable=True)
results["grown"] = encoder.resize_token_embeddings(len(tokenizer) + 1).weight.shape[0]
encoder.get_input_embeddings().weight.data[-1] = torch.linspace(-1, 1, encoder.config.hidden_size)
tokenizer.add_tokens("<birb>")
with torch.no_grad():
    results["a learned word"] = encoder(tokenizer("a <birb>", return_tensors="pt").input_ids)[0]
results["vocabulary"] = encoder.config.vocab_size
"""

AUTOENCODER = """
vae = AutoencoderKL.from_pretrained(folder, subfolder="vae", torch_dtype=torch.float32)
x = torch.rand(2, 3, 64, 48) * 2 - 1
with torch.no_grad():
    posterior = vae.encode(x).latent_dist
    results["posterior"] = [posterior.mean, posterior.std, posterior.var, posterior.logvar, posterior.mode()]
    results["kl"] = posterior.kl()
    results["kl between"] = posterior.kl(vae.encode(x.flip(0)).latent_dist)
    results["nll"] = posterior.nll(torch.zeros_like(posterior.mean))
    results["one"] = posterior.sample(torch.Generator().manual_seed(1))
    results["many"] = posterior.sample([torch.Generator().manual_seed(1), torch.Generator().manual_seed(2)])
    torch.manual_seed(9)
    results["global"] = posterior.sample()
    results["by name"] = vae.encode(x)["latent_dist"].mean
    results["by place"] = vae.encode(x, return_dict=False)[0].mean
    z = torch.randn(2, 4, 5, 7)
    results["decoded"] = [vae.decode(z).sample, vae.decode(z)["sample"], vae.decode(z, return_dict=False)[0]]
    results["there and back"] = [vae(x).sample, vae(x, return_dict=False)[0]]
    results["by a sample"] = vae(x, sample_posterior=True, generator=torch.Generator().manual_seed(4)).sample
results["config"] = [vae.config.scaling_factor, vae.config["latent_channels"], list(vae.config.block_out_channels)]
results["factor"] = 2 ** (len(vae.config.block_out_channels) - 1)
results["names"] = sorted(vae.state_dict())
results["size"] = vae.num_parameters()
results["modes"] = [vae.training, vae.train().training, vae.eval().training, vae.encoder.training]
vae.enable_slicing()
vae.disable_slicing()
with torch.no_grad():
    results["sliced"] = vae.decode(z).sample
x.requires_grad_()
results["gradient"] = torch.autograd.grad(vae.encode(x).latent_dist.mean.square().sum(), x)[0]
"""

UNET = """
unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet", use_safetensors=True)
x, c = torch.randn(2, 4, 8, 6), torch.randn(2, 77, unet.config.cross_attention_dim)
with torch.no_grad():
    for t in (7, 7.5, torch.tensor(7), torch.tensor([7]), torch.tensor([7, 500])):
        results[str(t)] = unet(x, t, encoder_hidden_states=c).sample
    results["by place"] = unet(x, 3, c)[0]
    results["by name"] = unet(x, 3, c)["sample"]
    results["as a tuple"] = unet(x, 3, c, return_dict=False)[0]
results["config"] = [unet.config.in_channels, unet.config["sample_size"], unet.config.get("cross_attention_dim")]
results["directly"] = [unet.in_channels, unet.sample_size]
results["names"] = sorted(unet.state_dict())
results["parts"] = [len(unet.down_blocks), len(unet.up_blocks), tuple(unet.conv_in.weight.shape)]
results["size"] = [unet.num_parameters(), str(unet.dtype), str(unet.device), unet.training]
unet.train()
unet.enable_gradient_checkpointing()
loss = unet(x, 3, c).sample.square().mean()
loss.backward()
results["gradient"] = unet.mid_block.resnets[0].conv1.weight.grad
unet.conv_in = torch.nn.Conv2d(6, 32, 3, padding=1)
with torch.no_grad():
    for parameter in unet.conv_in.parameters():
        parameter.fill_(0.01)
    results["another first layer"] = unet(torch.cat([x, x[:, :2]], 1), 3, c).sample
"""

OTHERS = """
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler
plain = UNet2DModel.from_pretrained(folder, subfolder="plain")
x = torch.randn(2, 3, 16, 16)
with torch.no_grad():
    results["plain"] = [plain(x, 5).sample, plain(x, torch.tensor([5, 900]), return_dict=False)[0]]
vq = VQModel.from_pretrained(folder, subfolder="vq")
x = torch.rand(2, 3, 32, 32) * 2 - 1
with torch.no_grad():
    results["latents"] = [vq.encode(x).latents, vq.encode(x, return_dict=False)[0]]
    h = vq.encode(x).latents
    results["decoded"] = [vq.decode(h).sample, vq.decode(h, return_dict=False)[0], vq(x).sample]
    results["not quantized"] = vq.decode(h, force_not_quantize=True).sample
    results["loss"] = vq.decode(h).commit_loss
for name, pipe, options in (
    ("DDPM", DDPMPipeline(plain, DDPMScheduler()), {}),
    ("DDIM", DDIMPipeline(plain, DDPMScheduler()), {}),
    ("DDIM eta 1", DDIMPipeline(unet=plain, scheduler=DDIMScheduler()), {"eta": 1.0}),
):
    pipe.set_progress_bar_config(disable=True)
    generator = torch.Generator().manual_seed(0)
    out = pipe(batch_size=2, generator=generator, num_inference_steps=5, output_type="np", **options)
    results[name] = out.images
    generator = [torch.Generator().manual_seed(i) for i in range(2)]
    results[name + ", PIL"] = pipe(batch_size=2, generator=generator, num_inference_steps=3, return_dict=False)[0]
"""

IMAGES = """
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils import load_image, make_image_grid
from diffusers.utils.torch_utils import randn_tensor
numbers = np.random.RandomState(0)
noisy = Image.fromarray(numbers.randint(0, 256, (37, 53, 3), dtype=np.uint8))
mask = Image.new("L", (53, 37))
mask.paste(200, (20, 9, 31, 30))
processor = VaeImageProcessor(vae_scale_factor=8)
masks = VaeImageProcessor(vae_scale_factor=8, do_normalize=False, do_binarize=True, do_convert_grayscale=True)
results["PIL"] = processor.preprocess(noisy)
results["PIL, sized"] = processor.preprocess([noisy, noisy], height=32, width=64)
for mode in ("default", "fill", "crop"):
    results[mode] = processor.preprocess(noisy, height=40, width=32, resize_mode=mode)
    results[mode + ", wide"] = processor.preprocess(noisy, height=16, width=64, resize_mode=mode)
results["array"] = processor.preprocess(numbers.rand(2, 37, 53, 3).astype(np.float32))
results["arrays"] = processor.preprocess([numbers.rand(37, 53, 3).astype(np.float32)] * 2)
results["tensor"] = processor.preprocess(torch.rand(2, 3, 37, 53))
results["tensors"] = processor.preprocess([torch.rand(3, 37, 53)] * 2)
results["negative"] = processor.preprocess(torch.rand(1, 3, 32, 32) * 2 - 1)
results["latent"] = processor.preprocess(torch.rand(1, 4, 8, 8))
results["mask"] = masks.preprocess(mask)
results["mask, RGB"] = masks.preprocess(mask.convert("RGB"), height=32, width=32)
results["mask, array"] = masks.preprocess(numbers.rand(40, 48).astype(np.float32))
results["masks, array"] = masks.preprocess(numbers.rand(2, 40, 48).astype(np.float32))
results["mask, tensor"] = masks.preprocess(torch.rand(1, 40, 48))
results["mask, 4 axes"] = masks.preprocess(torch.rand(2, 1, 40, 48))
x = torch.randn(2, 3, 8, 8)
for kind in ("pil", "np", "pt", "latent"):
    results[kind] = processor.postprocess(x, output_type=kind)
results["conditionally"] = processor.postprocess(x, output_type="pt", do_denormalize=[True, False])
results["grey"] = processor.numpy_to_pil(numbers.rand(2, 8, 8, 1))
for width, height, pad in ((64, 64, 0), (64, 32, 5), (32, 64, 40), (16, 128, 3)):
    region = masks.get_crop_region(mask, width, height, pad)
    results[f"region {width}x{height}, {pad}"] = region
    results[f"cropped {width}x{height}"] = processor.preprocess(noisy, 32, 32, "fill", region)
    small = Image.fromarray(numbers.randint(0, 256, (32, 32, 3), dtype=np.uint8))
    results[f"overlay {width}x{height}"] = [processor.apply_overlay(mask, noisy, small, region)]
results["overlay"] = [processor.apply_overlay(mask, noisy, noisy.rotate(180))]
results["blurred"] = [masks.blur(mask, 3)]
results["resized"] = [processor.resize(x, 5, 7), processor.resize(numbers.rand(1, 9, 9, 3).astype(np.float32), 4, 6)]
noisy.convert("RGBA").save(folder + "/noisy.png")
results["loaded"] = [load_image(folder + "/noisy.png"), load_image(noisy.convert("L"))]
results["grid"] = [make_image_grid([noisy, noisy.rotate(180), noisy, noisy], 2, 2)]
results["small grid"] = [make_image_grid([noisy, noisy], rows=1, cols=2, resize=16)]
generators = [torch.Generator().manual_seed(i) for i in range(2)]
results["noise"] = randn_tensor((2, 3, 4), generator=generators, device=torch.device("cpu"), dtype=torch.float32)
results["half"] = randn_tensor((2, 3, 4), generator=generators[0], dtype=torch.float16)
results["a list of one"] = randn_tensor((2, 3), generator=generators[:1])
results["global"] = randn_tensor((2, 3), device="cpu")
"""


@pytest.fixture(scope="module")
def others(tmp_path_factory):
    """A folder with a plain U-Net and a VQ model."""
    import diffusers
    import torch

    torch.manual_seed(4)
    folder = tmp_path_factory.mktemp("others")
    diffusers.UNet2DModel(
        sample_size=16, block_out_channels=(16, 32), layers_per_block=1, norm_num_groups=8, attention_head_dim=8,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"),
    ).save_pretrained(folder / "plain")  # fmt: skip
    diffusers.VQModel(
        block_out_channels=(16, 32), down_block_types=("DownEncoderBlock2D",) * 2, norm_num_groups=8,
        up_block_types=("UpDecoderBlock2D",) * 2, num_vq_embeddings=64, latent_channels=3, vq_embed_dim=3,
    ).save_pretrained(folder / "vq")  # fmt: skip
    return str(folder)


SCRIPTS = {"tokenizer": TOKENIZER, "text encoder": TEXT_ENCODER, "autoencoder": AUTOENCODER, "unet": UNET}


@pytest.mark.parametrize("name", SCRIPTS)
def test_part(name, wordy_model, record_property):
    record_property("psnr", compare(LOAD + SCRIPTS[name], wordy_model, name=name, least=100))


def test_plain_and_vq_models_and_their_pipelines(others, record_property):
    record_property("psnr", compare(LOAD + OTHERS, others, least=80))


def test_pictures(others):
    assert compare(LOAD + IMAGES, others, name="images") == float("inf")
