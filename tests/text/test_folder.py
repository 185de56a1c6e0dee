"""Folders of every age are read as transformers reads them, and what is written reads back equal everywhere."""

import json

import pytest
from transformers import AutoTokenizer, CLIPTokenizer

from safelight.errors import CheckpointError
from safelight.text.tokenizer import Tokenizer

TELLING = [
    "a cat!",
    "wow!! ok! !x",
    "<|ENDOFTEXT|> <|STARTOFTEXT|>! a<|endoftext|>b",
    "a <birb-style>x <BIRB-STYLE>_1 Foo Bar foo bar barn",
    "Café 👩‍👩‍👧 it's 日本",
]


def hf_ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False, verbose=False).input_ids


def assert_equal(ours, theirs, texts):
    assert (ours.bos, ours.eos, ours.pad) == (theirs.bos_token_id, theirs.eos_token_id, theirs.pad_token_id)
    assert len(ours) == len(theirs)
    for text in texts:
        assert ours.encode(text) == hf_ids(theirs, text), text
        assert ours.decode(ours.encode(text)) == theirs.decode(hf_ids(theirs, text))


def test_a_folder_is_read_as_transformers_reads_it(folder, strings):
    assert_equal(Tokenizer.load(folder), CLIPTokenizer.from_pretrained(folder), TELLING + strings[:300])


def test_what_transformers_saves_is_read(folder, strings, tmp_path):
    theirs = CLIPTokenizer.from_pretrained(folder)
    theirs.add_tokens(["<new>", "tail"])
    theirs.save_pretrained(tmp_path / "saved")
    assert not (tmp_path / "saved" / "vocab.json").exists()  # transformers 5 writes tokenizer.json alone
    again = CLIPTokenizer.from_pretrained(tmp_path / "saved")
    assert_equal(Tokenizer.load(tmp_path / "saved"), again, [*TELLING, "<new>er tails"])


@pytest.mark.parametrize("dropped", [(), ("tokenizer.json",), ("vocab.json", "merges.txt")], ids=str)
def test_what_is_saved_reads_back_everywhere(folder, strings, tmp_path, dropped):
    ours = Tokenizer.load(folder)
    ours.save(tmp_path / "ours")
    for file in dropped:
        (tmp_path / "ours" / file).unlink()
    theirs = CLIPTokenizer.from_pretrained(tmp_path / "ours")
    assert theirs.model_max_length == 77
    assert_equal(ours, theirs, TELLING + strings[:100])
    assert_equal(Tokenizer.load(tmp_path / "ours"), theirs, TELLING)


def test_what_is_saved_may_be_read_by_others(tmp_path):
    Tokenizer.clip().save(tmp_path)
    assert {file.stat().st_mode & 0o444 for file in tmp_path.iterdir()} == {0o444}


def test_what_is_saved_is_found_by_autotokenizer(tmp_path):
    ours = Tokenizer.clip(pad_token="!").add_tokens(["<birb>", "birbstyle"])
    ours.save(tmp_path)
    assert_equal(ours, AutoTokenizer.from_pretrained(tmp_path), [*TELLING, "birbstyles in birbstyle"])


def test_the_old_files_alone_tell_the_same(tmp_path):
    """transformers 4's slow tokenizer knows neither tokenizer.json nor added_tokens_decoder."""
    ours = Tokenizer.clip(pad_token="!").add_tokens(["<birb>", "<birb>_1"])
    ours.save(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    (tmp_path / "tokenizer_config.json").unlink()
    again = Tokenizer.load(tmp_path)
    assert again.encode("a <birb>! x") == ours.encode("a <birb>! x") == [320, 49408, 49409, 0, 343]
    assert json.loads((tmp_path / "added_tokens.json").read_text()) == {"<birb>": 49408, "<birb>_1": 49409}
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "added_tokens.json",
        "merges.txt",
        "special_tokens_map.json",
        "vocab.json",
    ]  # and nothing temporary


def test_from_files_and_from_json(clip_files, tmp_path):
    clip = Tokenizer.clip(pad_token="!")
    clip.add_tokens(["<birb>"]).save(tmp_path)
    files = Tokenizer.from_files(clip_files / "vocab.json", clip_files / "merges.txt", pad_token="!", max_length=20)
    fast = Tokenizer.from_json(tmp_path / "tokenizer.json", pad_token="!")
    assert files.ids("a cat!") == clip.ids("a cat!")[:20]
    assert fast.ids("a cat! <birb>")[:7] == [49406, 320, 2368, 0, 49408, 49407, 0]


def break_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_bad_folders_are_named(clip_files, tmp_path, make_folder):
    def error(folder):
        with pytest.raises(CheckpointError) as caught:
            Tokenizer.load(folder)
        assert caught.value.remedy
        return str(caught.value)

    (tmp_path / "empty").mkdir()
    assert "empty: holds no tokenizer" in error(tmp_path / "empty")
    assert "merges.txt: does not exist" in error(make_folder("half", files=("vocab.json",)))
    assert "holds no tokenizer" in error(tmp_path / "nowhere")

    folder = make_folder("broken")
    (folder / "vocab.json").write_text('{"a": 0')
    assert "vocab.json: is not JSON" in error(folder)
    (folder / "vocab.json").write_bytes(b"\xff\xfe\x00")
    assert "vocab.json: cannot be read" in error(folder)
    for table in ("[]", "{}", '{"a": "b"}', '{"a": -1}', '{"a": true}'):
        (folder / "vocab.json").write_text(table)
        assert "vocab.json: holds" in error(folder)
    (folder / "vocab.json").write_text('{"a": 0, "b": 0}')
    assert "one id to two pieces" in error(folder)

    folder = make_folder("merged")
    (folder / "merges.txt").write_text("#version: 0.2\na b\na b c\n")
    assert "merges.txt: merge 2 is 'a b c', not two pieces" in error(folder)
    (folder / "merges.txt").write_text("#version: 0.2\na flooble\n")
    assert "merges.txt: merges 'a' and 'flooble', but the vocabulary has no piece 'flooble'" in error(folder)

    assert "holds 3 for a token" in error(make_folder("token", tokenizer_config={"pad_token": 3}))
    assert "added tokens without ids" in error(make_folder("ids", tokenizer_config={"added_tokens_decoder": ["a"]}))
    gap = make_folder("gap", added_tokens={"<birb>": 50000})
    assert "gives the added token '<birb>' the id 50000, but by the vocabulary it is 49408" in error(gap)

    Tokenizer.clip().save(tmp_path / "fast")
    fast = tmp_path / "fast" / "tokenizer.json"
    break_json(fast, model={"type": "WordPiece", "vocab": {"a": 0}})
    assert "not a tokenizer like CLIP's, but WordPiece" in error(tmp_path / "fast")
    break_json(fast, model=None)
    assert "holds no tokenizer model" in error(tmp_path / "fast")
    fast.write_text("[" * 100_000)
    assert "is not JSON" in error(tmp_path / "fast")
