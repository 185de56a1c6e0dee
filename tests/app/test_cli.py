"""The command line as a user meets it, in a process of its own where that matters."""

import json
import os
import signal
import subprocess
import sys
import time
from functools import partial

import pytest
import torch
from command_line import run
from PIL import Image
from safetensors.torch import save_file

from safelight.checkpoint.load import SHIPPED, load_autoencoder, load_parts
from safelight.checkpoint.save import save_autoencoder
from safelight.pipeline.recipes.reading import read_picture


def alone(*arguments, cwd=None):
    """In a process of its own."""
    command = [sys.executable, "-m", "safelight", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, timeout=300)


def test_help_lists_every_command_and_imports_no_torch():
    shown = alone("--help")
    assert shown.returncode == 0
    for command in ("text2image", "image2image", "inpaint", "variations", "convert", "models", "tokens", "doctor"):
        assert command in shown.stdout
    code = "import sys; sys.argv = ['safelight', '--help']\nimport safelight.app.cli as c\n" \
           "try: c.main()\nexcept SystemExit: pass\nassert 'torch' not in sys.modules"  # fmt: skip
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_draws_from_bare_words_and_never_overwrites(tmp_path):
    for _ in range(2):
        drawn = alone("a red fox", "--steps", 1, "--seed", 3, "--width", 64, "--height", 64, "--json", cwd=tmp_path)
        assert drawn.returncode == 0, drawn.stderr
    picture = json.loads(drawn.stdout)["pictures"][0]
    assert picture == {
        "path": "outputs/a-red-fox-3-2.png",
        "seed": 3,
        "prompt": "a red fox",
        "width": 64,
        "height": 64,
    }
    first, second = (Image.open(tmp_path / "outputs" / name) for name in ("a-red-fox-3.png", "a-red-fox-3-2.png"))
    assert first.tobytes() == second.tobytes()
    assert "untrained" not in drawn.stderr
    stand_in = run("a fox", "--model", "random", "--steps", 1, "--width", 64, "--height", 64, cwd=tmp_path)
    assert "untrained" in stand_in.stderr


def test_a_sampler_may_be_asked_for_as_a1111_calls_it(tmp_path):
    small = ("--model", "random", "--steps", 2, "--width", 64, "--height", 64)
    drawn = run("a fox", *small, "--sampler", "DPM++ 2M Exponential", "--out", "new/fox.webp", cwd=tmp_path)
    assert drawn.returncode == 0 and drawn.stdout.strip() == "new/fox.webp", drawn.stderr
    said = json.loads(run("info", drawn.stdout.strip(), "--json", cwd=tmp_path).stdout)["request"]
    assert (said["sampler"], said["grid"]) == ("dpmpp_2m", "exponential")
    refused = run("a fox", *small, "--sampler", "DPM++ 2M Exponential", "--grid", "karras", cwd=tmp_path)
    assert refused.returncode == 2 and "names the grid 'exponential'" in refused.stderr


def test_says_which_words_were_drawn(tmp_path):
    (tmp_path / "animal.txt").write_text("wolf\n")
    (tmp_path / "styles.csv").write_text("name,prompt\nink,in ink\nold,very old\n")
    words = ("--wildcards", tmp_path, "--styles", "ink", "--styles", "old")
    drawn = run("a {red|red} __animal__", *words, "--steps", 1, "--width", 64, "--height", 64, cwd=tmp_path)
    assert drawn.returncode == 0, drawn.stderr
    assert "a red wolf, in ink, very old" in drawn.stderr


def test_converts_a_model_and_puts_another_autoencoder_into_it(tmp_path):
    other = load_autoencoder(SHIPPED)
    with torch.no_grad():
        other.decoder.conv_out.bias += 0.1
    save_autoencoder(other, tmp_path / "vae")
    converted = run("convert", SHIPPED, tmp_path / "made", "--vae", tmp_path / "vae", "--dtype", "float32")
    assert converted.returncode == 0, converted.stderr
    made, was = load_parts(tmp_path / "made"), load_parts(SHIPPED)
    assert torch.equal(made.autoencoder.decoder.conv_out.bias, other.decoder.conv_out.bias)
    assert torch.equal(made.unet.conv_in.weight, was.unet.conv_in.weight.float())


def test_adds_a_lora_and_a_learned_word_and_draws_them_again(tmp_path):
    config, width = load_parts(SHIPPED).unet.config, load_parts(SHIPPED).text_encoder.config.hidden_size
    down, up = torch.randn(2, config.in_channels, 3, 3), torch.randn(config.block_out_channels[0], 2, 1, 1)
    layer = "lora_unet_conv_in.lora_{}.weight".format
    save_file({layer("down"): down, layer("up"): up}, tmp_path / "ink.safetensors")
    save_file({"emb_params": torch.randn(1, width)}, tmp_path / "word.safetensors")
    beside = ("--lora", f"{tmp_path}/ink.safetensors:0.1", "--embedding", f"<fox>={tmp_path}/word.safetensors")
    once = ("--steps", 1, "--seed", 1)
    drawn = run("a <fox>", *beside, *once, "--json", cwd=tmp_path)
    assert drawn.returncode == 0, drawn.stderr
    path = tmp_path / json.loads(drawn.stdout)["pictures"][0]["path"]
    model = read_picture(path).model
    assert model["loras"] == {"lora: ink.safetensors": 0.1} and "embedding: <fox>" in model["weights"]
    again = run("again", path, cwd=tmp_path)
    assert again.returncode == 0 and "pixels are identical" in again.stderr
    (tmp_path / "loras").mkdir()
    (tmp_path / "ink.safetensors").rename(tmp_path / "loras/Ink.safetensors")
    named = run("a <fox><lora:ink:0.1>", "--lora", "loras", *beside[2:], *once, "--out", "named.png", cwd=tmp_path)
    assert named.returncode == 0, named.stderr
    assert Image.open(tmp_path / "named.png").tobytes() == Image.open(path).tobytes()
    nobody = run("a <lora:pen:0.1>", "--lora", "loras", *once, cwd=tmp_path)
    assert nobody.returncode == 1 and "'pen' by 0.1" in nobody.stderr
    plain = run("a fox", "--lora", tmp_path / "word.safetensors", "--steps", 1, cwd=tmp_path)
    assert plain.returncode == 1 and "no part of a LoRA" in plain.stderr


def test_a_prompt_that_is_cut_is_told_in_plain_words(tmp_path):
    drawn = run("a red fox " * 30, "--long-prompts", "truncate", "--steps", 1, "--out", tmp_path)
    assert drawn.returncode == 0
    assert drawn.stderr.startswith("the prompt has 90 tokens; the last") and "Warning" not in drawn.stderr


def test_redraws_and_inpaints_files(tmp_path):
    Image.new("RGB", (64, 64), "teal").save(tmp_path / "in.png")
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, (0, 0, 32, 64))
    mask.save(tmp_path / "mask.png")
    common = ("--steps", 2, "--seed", 1, "--out", tmp_path / "out")
    for arguments in (
        ("image2image", "a fox", "in.png"),
        ("variations", "in.png"),
        ("inpaint", "a hat", "in.png", "mask.png"),
    ):
        drawn = run(*arguments, *common, cwd=tmp_path)
        assert drawn.returncode == 0, drawn.stderr
        assert Image.open(drawn.stdout.strip()).size == (64, 64)


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (("a", "--steps", "0"), 2, "steps"),
        (("a", "--stepz", "3"), 2, "--steps"),
        (("a", "--sampler", "eulr", "--model", "/nowhere"), 2, "euler"),  # before a model is looked for
        (("a", "--grid", "karas", "--model", "/nowhere"), 2, "karras"),
        (("image2image", "a", "nowhere.png"), 2, "nowhere.png"),
        (("a", "--model", "/nowhere/at/all"), 1, "nowhere"),
        (("a", "--dtype", "int7"), 2, "float32"),
        (("a", "--out", __file__), 2, "test_cli.py is a file"),
    ],
)
def test_errors_name_the_thing_and_the_exit_code_says_whose_fault(arguments, code, words, tmp_path):
    failed = run(*arguments, cwd=tmp_path)
    assert failed.returncode == code, failed.stderr
    assert words in failed.stderr and "Traceback" not in failed.stderr
    assert not list(tmp_path.iterdir())


def test_control_c_stops_cleanly(tmp_path):
    command = [sys.executable, "-m", "safelight", "a fox", "--model", "random", "--steps", "1000"]
    # A test run in the background ignores Ctrl-C, and its children would inherit that
    heed = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    with subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, preexec_fn=heed) as process:
        try:
            for line in process.stderr:  # the first remark comes once the command runs
                if "stand-in" in line:
                    break
            time.sleep(2)
            os.kill(process.pid, signal.SIGINT)
            # Python ends by the signal itself where it came within `exec`, as imports have it: 130 too, to a shell
            assert process.wait(timeout=60) in (130, -signal.SIGINT)
        finally:
            process.kill()
    assert not list(tmp_path.glob("outputs/*"))


def test_tokens_doctor_models_and_samplers_speak_json():
    read = json.loads(run("tokens", "flooble (fox:1.2) [a:b:0.5]", "--steps", 4, "--json").stdout)
    (fox,) = (row for row in read["tokens"] if row["piece"] == "fox</w>")
    assert (fox["weight"], fox["position"]) == (1.2, 3)
    assert [(row["first"], row["last"], row["text"]) for row in read["steps"]] == [
        (1, 2, "flooble (fox:1.2) a"),
        (3, 4, "flooble (fox:1.2) b"),
    ]
    assert json.loads(run("doctor", "--json").stdout)["torch"]
    assert isinstance(json.loads(run("models", "--json").stdout), list)
    assert {"euler", "karras"} <= {row["name"] for row in json.loads(run("samplers", "--json").stdout)}


def test_version():
    import safelight

    assert run("--version").stdout.strip() == safelight.__version__


def test_tokens_shows_what_steps_see_and_points_at_errors():
    shown = run("tokens", "[a|b] :x: [bold]c AND (d:1.5):0.5 <lora:x:1>", "--steps", 2)
    assert shown.returncode == 0
    assert "0.5     (d:1.5)" in shown.stdout and ":x: (boldc:0.9091)" not in shown.stdout and ":x:" in shown.stdout
    assert "<lora:x:1> stands for no file" in shown.stderr and "--lora" in shown.stderr
    failed = run("tokens", "a (red:1.3.3) fox")
    assert failed.returncode == 2
    assert "  a (red:1.3.3) fox\n         ^\n" in failed.stderr


def test_tokens_of_a_model_that_is_not_there():
    failed = run("tokens", "a fox", "--model", "nowhere")
    assert failed.returncode == 2 and "there is no folder nowhere" in failed.stderr
    assert "startoftext" in run("tokens", "a fox", "--model", "random").stdout
