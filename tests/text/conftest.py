"""Strings of every kind, seeded; and folders for transformers' tokenizer, written out of the packaged vocabulary."""

import gzip
import json
import random
from importlib.resources import files

import pytest

SCRIPTS = {
    "ascii": [(0x20, 0x7E)],
    "latin": [(0x20, 0x7E), (0xA0, 0x24F), (0x1E00, 0x1EFF)],
    "combining": [(0x61, 0x7A), (0x300, 0x36F)],
    "greek and cyrillic": [(0x370, 0x52F), (0x1F00, 0x1FFF)],
    "hebrew and arabic": [(0x590, 0x6FF), (0x200E, 0x200F), (0xFB1D, 0xFDFF)],
    "devanagari and thai": [(0x900, 0x97F), (0xE00, 0xE7F), (0x200C, 0x200D)],
    "hangul": [(0x1100, 0x11FF), (0xAC00, 0xD7A3)],
    "cjk": [(0x3000, 0x30FF), (0x4E00, 0x9FFF), (0xFF01, 0xFFEF)],
    "emoji": [(0x1F300, 0x1FAFF), (0x1F3FB, 0x1F3FF), (0x200D, 0x200D), (0xFE0F, 0xFE0F), (0x2600, 0x27BF)],
    "digits": [(0x30, 0x39), (0x660, 0x669), (0x966, 0x96F), (0x2460, 0x2473), (0x2150, 0x218B)],
    "punctuation": [(0x21, 0x2F), (0x3A, 0x40), (0x5B, 0x60), (0x7B, 0x7E), (0x2010, 0x2027), (0x3001, 0x3003)],
    "controls": [(0, 0x20), (0x7F, 0xA0), (0x61, 0x63), (0x2028, 0x202E), (0xFEFF, 0xFEFF)],
    "spaces": [(0x9, 0xD), (0x20, 0x20), (0x85, 0x85), (0xA0, 0xA0), (0x2000, 0x200B), (0x3000, 0x3000), (0x61, 0x62)],
    "all planes": [(0, 0xD7FF), (0xE000, 0x10FFFF)],
    "quotes": [(0x27, 0x27), (0x2018, 0x201F), (0x17F, 0x17F), (0x53, 0x54), (0x6C, 0x6D), (0x73, 0x76), (0x20, 0x20)],
}
PLAIN = """
a photo of an astronaut riding horse on mars it's they'll WE'VE I'm you'd he're 'Tis don't 'S naïve Café ÉCOLE
STRASSE straße İstanbul ΟΔΟΣ x² ½ 3.14 1,000 2nd C++ #tag @me http://a.b/c?d=e&f &amp; &lt;b&gt; &#39; &eacute;
<br/> (word:1.2) ((very)) [less] {a|b} BREAK AND , . ! !! ... --- :) </w> Ġ <|endoftext|> <|startoftext|>
<|ENDOFTEXT|> <|x|> עברית العربية ภาษาไทย русский ελληνικά İ trending artstation 8k
"""
WORDS = [
    *PLAIN.split(),
    "\ufb01ne",
    "\U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466",
    "\U0001f44d\U0001f3fd",
    "\U0001f3f4\U000e0067\U000e0062\U000e0077\U000e006c\U000e0073\U000e007f",
    "\U0001f1e9\U0001f1ea",
    "\u65e5\u672c\u8a9e",
    "\u6771\u4eac\u30bf\u30ef\u30fc",
    "\ud55c\uad6d\uc5b4",
    "\u0939\u093f\u0928\u094d\u0926\u0940",
    "e\u0301",
    "\u212b",
]


def make_strings(count, seed=0):
    draw = random.Random(seed)

    def of_script(ranges):
        return "".join(chr(draw.randint(*draw.choice(ranges))) for _ in range(draw.randint(0, 40)))

    def of_words():
        return draw.choice([" ", " ", "  ", "\n", "", "\t"]).join(draw.choices(WORDS, k=draw.randint(1, 30)))

    def long_word():
        return draw.choice(["a", "ab", "é", "日", "(", "👍🏽", "floccinaucinihili", "1"]) * draw.randint(50, 300)

    kinds = [*((lambda ranges=ranges: of_script(ranges)) for ranges in SCRIPTS.values()), of_words, of_words, of_words]
    mixed = lambda: "".join(draw.choice(kinds)() for _ in range(3))  # noqa: E731
    kinds = [*kinds, mixed, mixed]
    return ["", " ", *(long_word() for _ in range(count // 100)), *(draw.choice(kinds)() for _ in range(count))]


@pytest.fixture(scope="session")
def strings():
    return make_strings(10_500)


@pytest.fixture(scope="session")
def clip_files(tmp_path_factory):
    """A folder with vocab.json and merges.txt, derived as OpenAI's code does it and not as ours."""
    packed = files("safelight.text").joinpath("vocabulary", "bpe_simple_vocab_16e6.txt.gz")
    merges = gzip.decompress(packed.read_bytes()).decode().split("\n")[1 : 49152 - 256 - 2 + 1]
    first = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    alphabet = [chr(c) for c in first] + [chr(256 + n) for n in range(256 - len(first))]
    pieces = [*alphabet, *(c + "</w>" for c in alphabet), *(merge.replace(" ", "") for merge in merges)]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    folder = tmp_path_factory.mktemp("clip")
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]))
    return folder


def added(content, normalized, **more):
    record = {"content": content, "lstrip": False, "normalized": normalized, "rstrip": False, "single_word": False}
    return record | more


@pytest.fixture
def make_folder(clip_files, tmp_path):
    """Make a tokenizer folder as one age or another wrote it."""

    def make(name, files=("vocab.json", "merges.txt"), **jsons):
        folder = tmp_path / name
        folder.mkdir()
        for file in files:
            (folder / file).write_bytes((clip_files / file).read_bytes())
        for stem, data in jsons.items():
            (folder / f"{stem}.json").write_text(json.dumps(data))
        return folder

    return make


# What the folders on the hub say: Stable Diffusion 1.5, 2.1, and the newer style of SDXL's second tokenizer.
SD15 = {
    "special_tokens_map": {
        "bos_token": added("<|startoftext|>", True),
        "eos_token": added("<|endoftext|>", True),
        "pad_token": "<|endoftext|>",
        "unk_token": added("<|endoftext|>", True),
    },
    "tokenizer_config": {
        "add_prefix_space": False,
        "bos_token": added("<|startoftext|>", True, __type="AddedToken"),
        "do_lower_case": True,
        "eos_token": added("<|endoftext|>", True, __type="AddedToken"),
        "model_max_length": 77,
        "pad_token": "<|endoftext|>",
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": added("<|endoftext|>", True, __type="AddedToken"),
    },
}
SD2 = {
    "special_tokens_map": SD15["special_tokens_map"] | {"pad_token": "!"},
    "tokenizer_config": SD15["tokenizer_config"],
}
DECODER = {
    "tokenizer_config": {
        "added_tokens_decoder": {
            "0": added("!", False, special=True),
            "49406": added("<|startoftext|>", True, special=True),
            "49407": added("<|endoftext|>", False, special=True),
        },
        "bos_token": "<|startoftext|>",
        "eos_token": "<|endoftext|>",
        "model_max_length": 77,
        "pad_token": "!",
        "tokenizer_class": "CLIPTokenizer",
        "unk_token": "<|endoftext|>",
    },
}
INVERTED = {
    "tokenizer_config": {"model_max_length": 77, "tokenizer_class": "CLIPTokenizer"},
    "added_tokens": {"<birb-style>": 49408, "Foo Bar": 49409},
}
FOLDERS = {"bare": {}, "sd15": SD15, "sd2": SD2, "decoder": DECODER, "inverted": INVERTED}


@pytest.fixture(params=FOLDERS)
def folder(request, make_folder):
    return make_folder(request.param, **FOLDERS[request.param])
