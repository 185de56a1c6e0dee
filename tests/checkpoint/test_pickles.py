"""Pickles: what torch wrote is read to the bit, what a stranger wrote runs nothing here and nothing anywhere."""

import collections
import io
import os
import pickle
import struct
import sys
import types
import zipfile
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from safelight.checkpoint.errors import CorruptFile, UnsafePickle
from safelight.checkpoint.files import open_file
from safelight.errors import CheckpointError


def state() -> dict[str, torch.Tensor]:
    base = torch.arange(24.0).reshape(4, 6)
    return collections.OrderedDict(
        plain=base.clone(), transposed=base.T, slice=base[1:3, 2:5], shared=base, scalar=torch.tensor(2.5),
        half=torch.ones(3).half(), brain=torch.tensor([1.5, -2.0], dtype=torch.bfloat16), longs=torch.arange(77)[None],
        bools=torch.tensor([True, False]), bytes=torch.arange(5, dtype=torch.uint8), none=torch.empty(0, 3),
        parameter=torch.nn.Parameter(torch.ones(2)),
    )  # fmt: skip


@pytest.mark.parametrize("zipped", [True, False])
def test_both_formats_are_read_to_the_bit(tmp_path, zipped):
    path = tmp_path / "model.ckpt"
    tensors = state()
    rest = {
        "global_step": 470000,
        "epoch": 3,
        "optimizer_states": [{"state": {0: {"m": torch.ones(2)}}}],
        "lr_schedulers": [],
    }
    torch.save({"state_dict": tensors, **rest}, path, _use_new_zipfile_serialization=zipped)
    file = open_file(path)
    assert file.keys() == tensors.keys()
    for key, tensor in tensors.items():
        assert torch.equal(file[key], tensor), key
        assert file[key].dtype == tensor.dtype == file.entries[key].dtype
        assert file.shape(key) == tuple(tensor.shape)
    assert file.metadata == {"global_step": "470000", "epoch": "3"}


def test_flat_dictionaries_nested_ones_and_new_dtypes(tmp_path):
    torch.save({"a": torch.ones(2), "f8": torch.ones(2).to(torch.float8_e4m3fn)}, tmp_path / "flat.pth")
    assert open_file(tmp_path / "flat.pth")["f8"].float().tolist() == [1, 1]
    torch.save({"string_to_param": {"*": torch.ones(3)}, "name": "x"}, tmp_path / "embedding.pt")
    assert list(open_file(tmp_path / "embedding.pt")) == ["string_to_param.*"]


def test_records_of_a_zip_are_mapped_not_copied(tmp_path):
    torch.save({"big": torch.zeros(1 << 16)}, tmp_path / "a.ckpt")
    tensor = open_file(tmp_path / "a.ckpt")["big"]
    tensor.add_(1)  # copy-on-write
    assert open_file(tmp_path / "a.ckpt")["big"].sum() == 0
    assert tensor.sum() == 1 << 16


def test_lightning_objects_and_numpy_scalars_are_passed_over(tmp_path, monkeypatch):
    """pytorch_lightning's ModelCheckpoint stands among the callbacks of old .ckpt files."""
    import numpy

    callback = type("ModelCheckpoint", (), {"__module__": "pytorch_lightning.callbacks"})
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    sys.modules["pytorch_lightning.callbacks"].ModelCheckpoint = callback
    rest = {"callbacks": {callback: {"best": numpy.float64(1.5), "object": callback()}}, "path": Path("a"),
            "hyper_parameters": collections.defaultdict(list, a=[1])}  # fmt: skip
    torch.save({"state_dict": {"a": torch.ones(2)}, **rest}, tmp_path / "pl.ckpt")
    assert list(open_file(tmp_path / "pl.ckpt")) == ["a"]


class Call:
    """Pickles as a call of `function` with `args`."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


def programs(marker: Path) -> dict[str, bytes]:
    """Pickles that would create `marker`, were they run; by hand where Python would refuse to write them."""
    import builtins
    import runpy
    import subprocess

    touch, write = f"touch {marker}", f"open({str(marker)!r}, 'w')"
    raw = {f"protocol {p}": pickle.dumps(Call(os.system, touch), p) for p in range(6)}
    raw["eval"] = pickle.dumps(Call(builtins.eval, write))
    raw["exec"] = pickle.dumps(Call(builtins.exec, write))
    raw["open"] = pickle.dumps(Call(open, str(marker), "w"))
    raw["Popen"] = pickle.dumps(Call(subprocess.Popen, ["touch", str(marker)]))
    raw["run_path"] = pickle.dumps(Call(runpy.run_path, str(marker)))
    raw["import"] = pickle.dumps(Call(__import__, "antigravity"))
    raw["getattr chain"] = pickle.dumps(Call(getattr, Call(__import__, "os"), "system"))
    raw["torch.hub"] = b"\x80\x02ctorch.hub\nload\nX\x01\0\0\0a\x85R."
    raw["torch.load itself"] = b"\x80\x02ctorch\nload\nX\x01\0\0\0a\x85R."
    raw["numpy's runner"] = b"\x80\x02cnumpy.f2py.crackfortran\nmyeval\nX\x01\0\0\0a\x85R."
    raw["pip"] = b"\x80\x02cpip\nmain\n]X\x07\0\0\0installa\x85R."
    raw["dotted name"] = b"\x80\x04\x8c\x08builtins\x8c\x0fdict.__subclass\x93."
    raw["instance opcode"] = b"(S'" + touch.encode() + b"'\nios\nsystem\n."
    raw["object opcode"] = b"(cos\nsystem\nS'" + touch.encode() + b"'\no."
    raw["extension"] = b"\x80\x02\x82\x01."
    raw["state on a function"] = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n}X\x08\0\0\0__code__K\x01sb."
    raw["items on a number"] = b"\x80\x02K\x01K\x02K\x03s."
    raw["items on a storage"] = b"\x80\x02(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\x000X\3\0\0\0cpuK\1tQK\0K\1s."
    raw["module source"] = b"\x80\x02(X\6\0\0\0modulecos\nsystem\nX\1\0\0\0aX\1\0\0\0btQ."
    raw["memo bomb"] = b"\x80\x02Nr\xff\xff\xff\xff."
    raw["bytes bomb"] = b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"."
    raw["frame bomb"] = b"\x80\x04\x95" + struct.pack("<Q", 1 << 62) + b"."
    raw["billion laughs"] = (
        b"\x80\x02]" + b"".join(b"q%c]h%ch%ce" % (i, i, i) for i in range(60)).replace(b"e", b"") + b"."
    )
    return raw


NAMES = list(programs(Path("marker")))


def archive(data: bytes, **records: bytes) -> bytes:
    """A zip as torch writes it, with `data` for its pickle."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data.pkl", data)
        file.writestr("archive/version", "3")
        for name, content in records.items():
            file.writestr(f"archive/data/{name}", content)
    return buffer.getvalue()


@pytest.mark.parametrize("shape", ["zip", "bare", "legacy"])
@pytest.mark.parametrize("name", NAMES)
def test_hostile_pickles_run_nothing(tmp_path, name, shape):
    marker, path = tmp_path / "marker", tmp_path / "model.ckpt"
    data = programs(marker)[name]
    legacy = b"".join(pickle.dumps(part, 2) for part in (0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}))
    path.write_bytes({"zip": archive(data), "bare": data, "legacy": legacy + data}[shape])
    with pytest.raises((UnsafePickle, CorruptFile)) as caught:
        open_file(path)
    assert caught.value.path == path
    assert caught.value.remedy
    assert not marker.exists()


def test_the_error_names_the_global(tmp_path):
    path = tmp_path / "evil.bin"
    torch.save({"weight": torch.ones(1), "payload": Call(os.system, "true")}, path)
    with pytest.raises(UnsafePickle, match=r"posix\.system") as caught:
        open_file(path)
    assert caught.value.key == "posix.system"


def test_this_process_never_unpickles(tmp_path):
    path = tmp_path / "model.ckpt"
    torch.save({"a": torch.ones(2)}, path)
    heard: list[str] = []
    sys.addaudithook(lambda event, args: heard.append(event) if event.startswith("pickle.") else None)
    open_file(path)["a"].sum()
    assert not heard
    torch.load(path, weights_only=False)
    assert heard  # the ear was open


def damaged(tmp_path: Path, change) -> Path:
    path = tmp_path / "model.ckpt"
    torch.save({"a": torch.arange(100.0), "b": torch.ones(3)}, path)
    path.write_bytes(change(path.read_bytes()))
    return path


def rezipped(content: bytes, **options) -> bytes:
    source, target = zipfile.ZipFile(io.BytesIO(content)), io.BytesIO()
    with zipfile.ZipFile(target, "w", **options) as file:
        for entry in source.infolist():
            file.writestr(entry.filename, source.read(entry))
    return target.getvalue()


DAMAGE = {
    "cut in the middle": lambda c: c[: len(c) // 2],
    "cut at the end": lambda c: c[:-5],
    "compressed (a bomb, if large)": lambda c: rezipped(c, compression=zipfile.ZIP_DEFLATED),
    "a bad checksum of the pickle": lambda c: c.replace(b"ctorch._utils", b"ctorch._utilz", 1),
    "no data.pkl": lambda c: c.replace(b"data.pkl", b"data.pkm"),
    "an empty file": lambda c: b"",
    "a shorter storage": lambda c: c.replace(b"Kd", b"Kc"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_archives_are_refused(tmp_path, kind):
    with pytest.raises((CorruptFile, UnsafePickle)):
        open_file(damaged(tmp_path, DAMAGE[kind]))


def description(size: int, shape: tuple[int, ...], strides: tuple[int, ...], offset: int = 0) -> bytes:
    """data.pkl for one float tensor "a" over a storage of `size` numbers, whatever its shape claims."""

    class Storage:
        pass

    class Pickler(pickle.Pickler):
        def persistent_id(self, value):
            return ("storage", torch.FloatStorage, "0", "cpu", size) if isinstance(value, Storage) else None

    class Tensor:
        def __reduce__(self):
            return torch._utils._rebuild_tensor_v2, (
                Storage(),
                offset,
                shape,
                strides,
                False,
                collections.OrderedDict(),
            )

    buffer = io.BytesIO()
    Pickler(buffer, 2).dump({"a": Tensor()})
    return buffer.getvalue()


@pytest.mark.parametrize(("size", "shape", "strides", "offset"), [
    (4, (5,), (1,), 0),  # one too many
    (4, (2, 2), (4, 1), 0),  # strides reach beyond
    (4, (4,), (1,), 1),  # the offset pushes it out
    (4, (1 << 62, 4), (0, 1), 0),  # zero strides blow four numbers up
    (1 << 40, (1 << 40,), (1,), 0),  # a storage that is not there
    (3, (3,), (1,), 0),  # a storage of another size than its record
    (4, (2,), (1, 1), 0),  # more strides than sizes
])  # fmt: skip
def test_tensors_that_reach_beyond_their_storage(tmp_path, size, shape, strides, offset):
    path = tmp_path / "model.ckpt"
    path.write_bytes(archive(description(size, shape, strides, offset), **{"0": b"\0" * 16}))
    with pytest.raises(CorruptFile):
        open_file(path)


def test_negative_sizes_and_what_is_sound(tmp_path):
    path = tmp_path / "model.ckpt"
    path.write_bytes(archive(description(4, (-1,), (1,)), **{"0": b"\0" * 16}))
    with pytest.raises(CorruptFile):
        open_file(path)
    path.write_bytes(archive(description(4, (2, 2), (1, 2)), **{"0": struct.pack("<4f", 0, 1, 2, 3)}))
    assert open_file(path)["a"].tolist() == [[0, 2], [1, 3]]


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_mutated_pickles_give_typed_errors_or_tensors(tmp_path, data):
    path = tmp_path / "fuzz.ckpt"
    torch.save(
        {"a": torch.arange(6.0), "b": torch.ones(2)}, path, _use_new_zipfile_serialization=data.draw(st.booleans())
    )
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    for _ in range(data.draw(st.integers(0, 4))):
        if content:
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path.write_bytes(content)
    try:
        file = open_file(path)
        assert sum(tensor.nbytes for tensor in file.values()) <= len(content)
    except CheckpointError:
        pass
