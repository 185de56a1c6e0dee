import json
import struct
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from safelight.checkpoint.errors import CorruptFile, WrongModel
from safelight.checkpoint.files import DTYPES, let_go, open_file, open_shards, open_weights
from safelight.checkpoint.writing import outgoing, replacing_folder, write_safetensors, write_weights
from safelight.errors import CheckpointError, InputError
from safelight.writing import replacing

GOOD = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.float16)}


def raw(header: object, data: bytes = b"", *, length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(begin: int, end: int, shape=None, dtype="F32") -> dict[str, object]:
    return {"dtype": dtype, "shape": [(end - begin) // 4] if shape is None else shape, "data_offsets": [begin, end]}


MALFORMED = {
    "empty": b"",
    "one byte": b"\0",
    "seven bytes": b"\0" * 7,
    "no header": struct.pack("<Q", 0),
    "header of 2^63": struct.pack("<Q", 1 << 63) + b"{}",
    "header longer than the file": raw({}, length=1000),
    "header longer than 100 MB": struct.pack("<Q", 100_000_001) + b"{}",
    "not UTF-8": raw(b'{"\xff": 1}'),
    "not JSON": raw(b"{nope}"),
    "not an object": raw(b"[1, 2]"),
    "leading space": raw(b" {}"),
    "NaN for a shape": raw(b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 4]}}', b"\0" * 4),
    "duplicate key": raw(b'{"a": 1, "a": 2}'),
    "deep nesting": raw(b'{"a":' + b"[" * 100_000),
    "metadata of numbers": raw({"__metadata__": {"a": 1}}),
    "metadata that is a list": raw({"__metadata__": []}),
    "tensor that is a list": raw({"a": []}),
    "no dtype": raw({"a": {"shape": [1], "data_offsets": [0, 4]}}, b"\0" * 4),
    "unknown dtype": raw({"a": tensor(0, 4, dtype="F13")}, b"\0" * 4),
    "negative offset": raw({"a": tensor(-4, 0)}, b"\0" * 4),
    "float offset": raw({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0.0, 4.0]}}, b"\0" * 4),
    "boolean shape": raw({"a": tensor(0, 4, [True])}, b"\0" * 4),
    "three offsets": raw({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4, 8]}}, b"\0" * 8),
    "huge offset": raw({"a": tensor(0, 1 << 70)}, b"\0" * 4),
    "offsets swapped": raw({"a": tensor(4, 0, [1])}, b"\0" * 4),
    "overlap": raw({"a": tensor(0, 8), "b": tensor(4, 12)}, b"\0" * 12),
    "same place twice": raw({"a": tensor(0, 8), "b": tensor(0, 8)}, b"\0" * 8),
    "hole": raw({"a": tensor(0, 4), "b": tensor(8, 12)}, b"\0" * 12),
    "trailing bytes": raw({"a": tensor(0, 4)}, b"\0" * 8),
    "cut short": raw({"a": tensor(0, 8)}, b"\0" * 7),
    "wrong length for shape": raw({"a": tensor(0, 4, [2])}, b"\0" * 4),
    "shape that overflows 64 bits": raw({"a": tensor(0, 0, [4194305, 4194305, 211106198978564])}),
}


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_safetensors_are_refused_by_rule(kind, tmp_path):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(MALFORMED[kind])
    with pytest.raises(CorruptFile) as caught:
        open_file(path)
    assert caught.value.path == path
    assert caught.value.remedy


def test_the_error_names_tensor_and_rule(tmp_path):
    path = tmp_path / "bad.safetensors"
    path.write_bytes(MALFORMED["overlap"])
    with pytest.raises(CorruptFile, match="'b' overlaps") as caught:
        open_file(path)
    assert caught.value.key == "b"


def test_what_is_sound_is_accepted(tmp_path):
    path = tmp_path / "odd.safetensors"
    path.write_bytes(
        raw({"scalar": tensor(0, 4, []), "none": tensor(4, 4, [0, 3]), "__metadata__": {"a": "b"}}, b"\0" * 4)
    )
    file = open_file(path)
    assert file["scalar"].shape == ()
    assert file["none"].shape == (0, 3)
    assert file.metadata == {"a": "b"}


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_cut_or_altered_files_give_typed_errors_or_whole_tensors(tmp_path, data):
    path = tmp_path / "fuzz.safetensors"
    save_file(GOOD, path)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    for _ in range(data.draw(st.integers(0, 3))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        file = open_file(path)
    except CheckpointError:
        return
    assert sum(tensor.nbytes for tensor in file.values()) <= len(content)


def test_other_things_than_safetensors_are_named(tmp_path):
    pointer, page, gguf = (tmp_path / f"{name}.safetensors" for name in ("pointer", "page", "gguf"))
    pointer.write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    page.write_bytes(b"\n<!DOCTYPE html><html>")
    gguf.write_bytes(b"GGUF" + b"\0" * 60)
    with pytest.raises(CorruptFile, match="git-lfs"):
        open_file(pointer)
    with pytest.raises(CorruptFile, match="web page"):
        open_file(page)
    with pytest.raises(WrongModel, match="GGUF"):
        open_file(gguf)


def test_a_missing_file_suggests_its_neighbours(tmp_path):
    (tmp_path / "model-v1.safetensors").touch()
    with pytest.raises(CheckpointError, match=r"model-v1\.safetensors"):
        open_file(tmp_path / "model-v2.safetensors")


def test_tensors_are_views_of_the_file_not_copies(tmp_path):
    path = tmp_path / "a.safetensors"
    save_file({"big": torch.zeros(1 << 16), "small": torch.zeros(2)}, path)
    tensor = open_file(path)["big"]
    if sys.platform == "linux":
        assert str(path) in Path("/proc/self/maps").read_text()
    tensor.add_(1)  # copy-on-write: the file itself stays as it is
    assert load_file(path)["big"].sum() == 0


def test_the_writer_writes_what_the_library_writes(tmp_path):
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for i, dtype in enumerate(DTYPES.values()):
        for name in ("b", "a"):
            tensors[f"{name}{i}"] = torch.randint(0, 2, (2, 3), generator=generator).to(dtype)
    tensors["ü scalar"] = torch.tensor(1.5)
    tensors["none"] = torch.empty(0, 2)
    save_file(tensors, tmp_path / "library", {"format": "pt"})
    write_safetensors(tmp_path / "ours", outgoing(tensors), {"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "library").read_bytes()


def test_a_dtype_that_the_format_lacks_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(InputError, match="complex128"):
        write_safetensors(tmp_path / "c", outgoing({"c": torch.zeros(1, dtype=torch.complex128)}))
    assert not list(tmp_path.iterdir())


def test_views_and_strides_are_written_as_numbers(tmp_path):
    base = torch.arange(12.0).reshape(3, 4)
    write_safetensors(tmp_path / "v", outgoing({"t": base.T, "s": base[:, 1:3]}))
    assert torch.equal(load_file(tmp_path / "v")["t"], base.T)
    assert torch.equal(load_file(tmp_path / "v")["s"], base[:, 1:3])


def test_a_failed_write_leaves_the_old_file_and_no_trace(tmp_path):
    path = tmp_path / "a.safetensors"
    path.write_bytes(b"old")
    with pytest.raises(RuntimeError), replacing(path) as file:
        file.write(b"new")
        raise RuntimeError
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_failed_folder_leaves_the_old_folder_and_no_trace(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    (path / "old").touch()
    with pytest.raises(RuntimeError), replacing_folder(path, is_ours=lambda p: True) as folder:
        (folder / "new").touch()
        raise RuntimeError
    assert [p.name for p in path.iterdir()] == ["old"]
    assert list(tmp_path.iterdir()) == [path]
    with replacing_folder(path, is_ours=lambda p: True) as folder:
        (folder / "new").touch()
    assert [p.name for p in path.iterdir()] == ["new"]
    assert list(tmp_path.iterdir()) == [path]


def test_folders_of_other_things_are_never_replaced(tmp_path):
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(CheckpointError, match="other things"), replacing_folder(tmp_path, is_ours=lambda p: False):
        pass
    with (
        pytest.raises(CheckpointError, match="is a file"),
        replacing_folder(tmp_path / "holiday.jpg", is_ours=lambda p: True),
    ):
        pass


def test_shards_and_variants(tmp_path):
    tensors = {f"t{i}": torch.full((100,), float(i)) for i in range(5)}
    write_weights(tmp_path, "model", outgoing(tensors), variant="fp16", max_shard_size=800)
    assert len(list(tmp_path.glob("model.fp16-0000?-of-00003.safetensors"))) == 3
    file = open_weights(tmp_path, "fp16")
    assert {key: t[0].item() for key, t in file.items()} == {f"t{i}": i for i in range(5)}
    with pytest.raises(CheckpointError, match="variant='fp16'"):
        open_weights(tmp_path)
    with pytest.raises(InputError, match="max_shard_size"):
        write_weights(tmp_path, "model", outgoing(tensors), max_shard_size=0)


@pytest.mark.parametrize("damage", ["outside", "missing tensor", "extra tensor", "no map", "missing shard"])
def test_broken_shards(tmp_path, damage):
    write_weights(tmp_path, "model", outgoing({"a": torch.zeros(9), "b": torch.zeros(9)}), max_shard_size=40)
    index = tmp_path / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    first = content["weight_map"]["a"]
    if damage == "outside":
        content["weight_map"]["a"] = "../" + first
    elif damage == "missing tensor":
        content["weight_map"]["c"] = first
    elif damage == "extra tensor":
        del content["weight_map"]["a"]
        content["weight_map"]["z"] = first
    elif damage == "no map":
        del content["weight_map"]
    else:
        (tmp_path / first).unlink()
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError):
        open_shards(index)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere pages stay until the system takes them")
@pytest.mark.parametrize("name", ["m.safetensors", "m.pt"])
def test_what_is_let_go_is_no_longer_in_memory_and_can_be_read_again(name, tmp_path):
    def resident():
        """MiB of files that this process holds in memory."""
        line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssFile"))
        return int(line.split()[1]) / 1024

    weights = {"a": torch.arange(8 * 2**20, dtype=torch.float32), "b": torch.ones(3)}
    save_file(weights, tmp_path / name) if name.endswith("s") else torch.save(weights, tmp_path / name)
    file = open_file(tmp_path / name)
    mapped, small = file["a"], file["b"]
    assert mapped.sum() > 0 and small.sum() == 3
    before = resident()
    let_go(mapped)
    let_go(small)
    assert before - resident() == pytest.approx(32, abs=1)
    assert torch.equal(mapped, weights["a"]) and torch.equal(small, weights["b"])
