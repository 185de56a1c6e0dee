"""The locked room in which pickles are read: a script of the standard library alone, run as a child process.

    python -I -S unpickle.py < model.ckpt > description.json

A pickle is a program. This child runs it on a machine with nothing in reach: `find_class` hands out only inert
stand-ins made below (no torch, no NumPy, no import takes place), files cannot be opened nor written, memory and
processor time are limited. It reads no tensor data either: it describes where in the file each tensor lies, and the
parent maps the bytes. That is all that ever leaves this process: names, numbers and offsets, as JSON, which the parent
checks again.

Both formats of `torch.save` are known: the zip archive (torch >= 1.6) and the older run of pickles. Stdlib only, and no
import of the package around it, so that it starts in some 30 ms.
"""

import codecs
import io
import json
import math
import pickle
import struct
import sys
import zipfile
from collections import OrderedDict

MEMORY = 2 << 30  # bytes of address space: a full SD1 training checkpoint takes about 100 MB here
SECONDS = 60  # processor time
ANSWER = 64 << 20  # characters: SD1 takes about 200,000
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
# torch's storage and dtype names -> safetensors' names
STORAGES = {"Double": "F64", "Float": "F32", "Half": "F16", "BFloat16": "BF16", "Long": "I64", "Int": "I32",
            "Short": "I16", "Char": "I8", "Byte": "U8", "Bool": "BOOL"}  # fmt: skip
DTYPES = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64", "int32": "I32",
          "int16": "I16", "int8": "I8", "uint8": "U8", "bool": "BOOL", "float8_e4m3fn": "F8_E4M3",
          "float8_e5m2": "F8_E5M2"}  # fmt: skip
SIZES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I16": 2}  # the others are one byte wide


class Refused(Exception):  # noqa: N818  (it travels to the parent as a verdict)
    """This file will not be read. `kind` is 'unsafe', 'corrupt' or 'unsupported'; `name` is the global, if one."""

    def __init__(self, kind: str, message: str, name: str = "") -> None:
        super().__init__(message)
        self.kind, self.name = kind, name


class Inert:
    """Stands where the pickle wanted an object of a harmless class: takes any arguments and state, and drops them."""

    __slots__ = ()

    def __new__(cls, *args: object, **kwargs: object) -> "Inert":
        """Ignore the arguments: there is nothing to build."""
        return object.__new__(cls)

    def __setstate__(self, state: object) -> None:
        """Ignore the state."""

    def __setitem__(self, key: object, value: object) -> None:
        """Ignore the item (pickled OmegaConf and defaultdict objects set some)."""

    def append(self, item: object) -> None:
        """Ignore the item (pickled deques append)."""

    def extend(self, items: object) -> None:
        """Ignore the items."""


class Named:
    """A dtype or a storage class: a name to compare with, nothing to call."""

    __slots__ = ("dtype",)

    def __init__(self, dtype: str) -> None:
        self.dtype = dtype

    def __setstate__(self, state: object) -> None:
        raise Refused("unsafe", "sets the state of a dtype")


class Storage:
    """A run of numbers in the file: torch's name for it, its dtype (None: raw bytes) and its length in elements."""

    __slots__ = ("dtype", "key", "length")

    def __init__(self, key: str, dtype: "str | None", length: int) -> None:
        self.key, self.dtype, self.length = key, dtype, length

    def __setstate__(self, state: object) -> None:
        raise Refused("unsafe", "sets the state of a storage")


class Tensor:
    """A view of a storage. Offsets and strides are in elements."""

    __slots__ = ("dtype", "offset", "shape", "storage", "strides")

    def __init__(self, storage: object, offset: object, shape: object, strides: object, *rest: object) -> None:
        dtype = next((named.dtype for named in rest if isinstance(named, Named)), getattr(storage, "dtype", None))
        if not isinstance(storage, Storage) or not dtype:
            raise Refused("corrupt", "a tensor is rebuilt from something that is not a storage, offset, shape, strides")
        self.storage, self.dtype = storage, str(dtype)
        self.offset, self.shape, self.strides = _sizes((offset,))[0], _sizes(shape), _sizes(strides)

    def __setstate__(self, state: object) -> None:
        """Ignore a tensor subclass's own attributes."""


def _sizes(value: object) -> "tuple[int, ...]":
    """Check that a tuple holds whole numbers, none negative."""
    if isinstance(value, tuple) and all(type(number) is int and number >= 0 for number in value):
        return value
    raise Refused("corrupt", f"{value!r:.40} stands where sizes should")


class Parameters(dict[str, object]):
    """torch.nn.ParameterDict and ParameterList, in which textual inversions may be kept: their parameters alone."""

    __slots__ = ()

    def __init__(self, *args: object) -> None:
        """Ignore the arguments: the state tells what it holds."""

    def __setstate__(self, state: object) -> None:
        inner = dict.get(state, "_parameters") if isinstance(state, dict) else None
        if not isinstance(inner, dict):
            raise Refused("corrupt", "a ParameterDict or ParameterList holds no parameters")
        dict.update(self, dict.items(inner))


class Rebuild:
    """One of torch's rebuild functions, as an object without attributes, so that no state can be set on it."""

    __slots__ = ("how",)

    def __init__(self, how: str) -> None:
        self.how = how

    def __setstate__(self, state: object) -> None:
        raise Refused("unsafe", "sets the state of a function")

    def __call__(self, *args: object) -> object:
        """Rebuild the described object from its pickled arguments."""
        if self.how == "tensor" and len(args) >= 4:  # storage, offset, shape, strides, ...; v3 names the dtype later
            return Tensor(args[0], args[1], args[2], args[3], *args[4:])
        if self.how == "parameter":
            return args[0]
        if self.how == "subclass" and isinstance(args[0], Rebuild) and isinstance(args[2], tuple):
            return args[0](*args[2])
        if self.how == "bytes" and isinstance(args[0], str):
            return args[0].encode("latin-1")
        raise Refused("unsafe", f"calls a {self.how} function with arguments that torch never writes")


TENSOR, PARAMETER = Rebuild("tensor"), Rebuild("parameter")
ALLOWED: dict[tuple[str, str], object] = {
    ("torch._utils", "_rebuild_tensor"): TENSOR,
    ("torch._utils", "_rebuild_tensor_v2"): TENSOR,
    ("torch._utils", "_rebuild_tensor_v3"): TENSOR,
    ("torch._utils", "_rebuild_parameter"): PARAMETER,
    ("torch._utils", "_rebuild_parameter_with_state"): PARAMETER,
    ("torch._tensor", "_rebuild_from_type_v2"): Rebuild("subclass"),
    ("_codecs", "encode"): Rebuild("bytes"),
    ("collections", "OrderedDict"): OrderedDict,
    **{("torch.nn.modules.container", name): Parameters for name in ("ParameterDict", "ParameterList")},
    **{(module, name): known for module in ("builtins", "__builtin__")
       for name, known in {"dict": dict, "list": list, "set": set, "frozenset": frozenset, "int": int, "float": float,
                           "bool": bool, "complex": complex}.items()},
    **{("torch", f"{name}Storage"): Named(dtype) for name, dtype in STORAGES.items()},
    **{("torch", name): Named(dtype) for name, dtype in DTYPES.items()},
    ("torch.storage", "UntypedStorage"): Named(""),
}  # fmt: skip
# Classes that training frameworks leave in checkpoints: named exactly, or by the package that they come from.
INERT_NAMES = {
    *{("torch", name) for name in ("Size", "device", "Tensor")}, ("torch.nn.parameter", "Parameter"),
    *{(f"numpy.{core}multiarray", name) for core in ("core.", "_core.") for name in ("scalar", "_reconstruct")},
    *{("numpy", name) for name in ("dtype", "ndarray", "float64", "float32", "int64", "int32", "bool_")},
    *{("collections", name) for name in ("defaultdict", "deque", "Counter")}, ("argparse", "Namespace"),
    *{("pathlib", name) for name in ("Path", "PosixPath", "WindowsPath", "PurePosixPath", "PureWindowsPath")},
    *{("pathlib._local", name) for name in ("Path", "PosixPath", "WindowsPath")}, ("typing", "Any"),
    *{("torch.optim.lr_scheduler", name) for name in ("LambdaLR", "CosineAnnealingLR", "StepLR")},
}  # fmt: skip
INERT_PACKAGES = {
    "pytorch_lightning",
    "lightning",
    "lightning_fabric",
    "lightning_utilities",
    "omegaconf",
    "ldm",
    "sgm",
}


# What a training run keeps beside the weights.
LEFT_OUT = {"optimizer_states", "optimizer", "callbacks", "loops", "lr_schedulers", "hyper_parameters"}


class Reader(pickle.Unpickler):
    """An unpickler that knows the names above and no others."""

    def find_class(self, module: str, name: str) -> object:
        """Return the stand-in for a global; never import."""
        if (module, name) in ALLOWED:
            return ALLOWED[module, name]
        if (module, name) in INERT_NAMES or module.split(".")[0] in INERT_PACKAGES:
            return type("Inert", (Inert,), {"__slots__": ()})  # its own class: state set on it harms nobody
        raise Refused("unsafe", f"asks for {module}.{name}", f"{module}.{name}")

    def persistent_load(self, reference: object) -> Storage:
        """Resolve ('storage', class, key, device, length[, view])."""
        if not (isinstance(reference, tuple) and len(reference) in (5, 6) and reference[0] == "storage"):
            raise Refused("unsupported", "holds a whole pickled module, or a persistent object other than a storage")
        _, kind, key, _, length = reference[:5]
        if len(reference) == 6 and reference[5] is not None:
            raise Refused("unsupported", "uses storage views, as torch wrote them before 0.4")
        if not isinstance(kind, Named) or not isinstance(key, str) or type(length) is not int or length < 0:
            raise Refused("corrupt", "a storage reference is malformed")
        return Storage(key, kind.dtype or None, length)


def tensors_of(tree: object) -> "tuple[dict[str, Tensor], dict[str, object]]":
    """The tensors by name, and the plain numbers and strings beside them. A `state_dict` inside is the model.

    dict.items(x) and not x.items(): a pickle may give an OrderedDict attributes of its own.
    """
    if not isinstance(tree, dict):
        raise Refused("unsupported", f"holds a {type(tree).__name__}, not a dictionary of tensors")
    inner = dict.get(tree, "state_dict", tree)
    scalars = {k: v for k, v in dict.items(tree) if type(k) is str and type(v) in (int, float, str)}
    tensors: dict[str, Tensor] = {}
    seen: set[int] = set()  # a dictionary that holds itself must not be walked for ever
    todo: list[tuple[str, object]] = [("", inner)]
    while todo:
        prefix, branch = todo.pop()
        seen.add(id(branch))
        for key, value in dict.items(branch) if isinstance(branch, dict) else ():
            name = f"{prefix}{key}" if type(key) is str else None
            if name is not None and isinstance(value, Tensor):
                tensors[name] = value
            elif name is not None and name not in LEFT_OUT and isinstance(value, dict) and id(value) not in seen:
                todo.append((f"{name}.", value))
    return tensors, scalars


def zip_spans(file: io.BufferedReader, archive: zipfile.ZipFile) -> "tuple[bytes, dict[str, tuple[int, int]]]":
    """data.pkl, and for each record of data/ where its bytes lie in the file: (start, size)."""
    entries = archive.infolist()
    names = [entry.filename for entry in entries]
    if len(set(names)) != len(names):
        raise Refused("corrupt", "two records of the archive have one name")
    pickled = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
    if len(pickled) != 1:
        raise Refused("corrupt", "the archive is not torch's: it has no data.pkl")
    root = pickled[0][: -len("data.pkl")]
    if f"{root}byteorder" in names and archive.read(f"{root}byteorder") != b"little":
        raise Refused("unsupported", "was written on a big-endian machine")
    spans = {}
    for entry in entries:
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            raise Refused("corrupt", f"record {entry.filename!r} is compressed or encrypted; torch stores its records")
        if entry.filename.startswith(f"{root}data/"):
            file.seek(entry.header_offset)
            header = file.read(30)
            if len(header) != 30 or header[:4] != b"PK\3\4":
                raise Refused("corrupt", f"record {entry.filename!r} has no local header")
            name_length, extra_length = struct.unpack("<HH", header[26:30])
            start = entry.header_offset + 30 + name_length + extra_length
            spans[entry.filename[len(root) + 5 :]] = (start, entry.file_size)
    return archive.read(pickled[0]), spans


def read_zip(file: io.BufferedReader) -> "tuple[object, dict[str, tuple[int, int]]]":
    """The object and the spans of a zip archive, as torch >= 1.6 writes it."""
    with zipfile.ZipFile(file) as archive:
        data, spans = zip_spans(file, archive)
    return Reader(io.BytesIO(data), encoding="utf-8").load(), spans


def read_legacy(file: io.BufferedReader) -> "tuple[object, dict[str, tuple[int, int]]]":
    """The object and the spans of the older format: five pickles, then for each storage its length and its bytes."""
    file.seek(0)
    if Reader(file).load() != LEGACY_MAGIC:
        raise Refused("corrupt", "is a pickle, but none that torch.save wrote")
    version, system = Reader(file).load(), Reader(file).load()
    if version != 1001 or not isinstance(system, dict) or system.get("little_endian") is not True:
        raise Refused("unsupported", "was written by an unknown version of torch, or on a big-endian machine")
    sizes: dict[str, int] = {}

    class Remembering(Reader):
        def persistent_load(self, reference: object) -> Storage:
            storage = super().persistent_load(reference)
            sizes[storage.key] = SIZES.get(storage.dtype or "U8", 1)
            return storage

    tree, keys, spans = Remembering(file, encoding="utf-8").load(), Reader(file).load(), {}
    if not isinstance(keys, list) or set(keys) != set(sizes):
        raise Refused("corrupt", "its list of storages does not match the storages in use")
    for key in keys:
        head = file.read(8)
        if len(head) != 8:
            raise Refused("corrupt", "is cut short")
        size = int.from_bytes(head, "little", signed=True) * sizes[key]
        spans[key] = (file.tell(), size)
        if size < 0:
            raise Refused("corrupt", "a storage has a negative length")
        file.seek(size, io.SEEK_CUR)
    return tree, spans


def describe(file: io.BufferedReader) -> "dict[str, object]":
    """Describe a file of `torch.save`: per tensor its dtype, shape, strides and place, and the scalars beside them."""
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    start = file.read(4)
    if size == 0:
        raise Refused("corrupt", "is empty")
    tree, spans = (read_zip if start == b"PK\3\4" else read_legacy)(file)
    tensors, scalars = tensors_of(tree)
    return {"tensors": {name: place(name, tensor, spans, size) for name, tensor in tensors.items()}, "scalars": scalars}


def place(name: str, tensor: Tensor, spans: "dict[str, tuple[int, int]]", file_size: int) -> "dict[str, object]":
    """Where a tensor's first number lies in the file, once it is known that its last one lies in its storage."""
    width, storage = SIZES.get(tensor.dtype, 1), tensor.storage
    start, available = spans.get(storage.key, (0, -1))
    declared = storage.length * SIZES.get(storage.dtype or "U8", 1)
    last = tensor.offset + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.strides, strict=False))
    numbers = math.prod(tensor.shape)
    reach = (max(last + 1, numbers) if numbers else 0) * width  # strides of 0 may not blow a few bytes up
    if len(tensor.shape) != len(tensor.strides) or available != declared or reach > available:
        raise Refused("corrupt", f"tensor {name!r} reaches beyond its storage, or the storage's size is wrong", name)
    if start + available > file_size:
        raise Refused("corrupt", f"is cut short: tensor {name!r} lies beyond its end", name)
    begin = start + tensor.offset * width
    return {"dtype": tensor.dtype, "shape": tensor.shape, "strides": tensor.strides, "start": begin}


def lock_down() -> None:
    """Give up memory, time and files. Python's audit events then turn any open, import or exec into the end."""
    try:
        import resource
    except ImportError:  # Windows: the parent's clock and the empty find_class remain
        resource = None  # type: ignore[assignment]
    if resource is not None:
        limits = {"RLIMIT_AS": MEMORY, "RLIMIT_CPU": SECONDS, "RLIMIT_FSIZE": 0, "RLIMIT_CORE": 0}
        for name, limit in limits.items():
            which = getattr(resource, name)
            hard = resource.getrlimit(which)[1]
            value = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
            resource.setrlimit(which, (value, value))
    forbidden = ("open", "import", "exec", "compile", "os.", "subprocess.", "socket.", "ctypes.", "shutil.", "glob.")

    def watch(event: str, args: object) -> None:
        if event.startswith(forbidden):
            raise Refused("unsafe", f"made Python raise the event {event!r}", event)

    sys.addaudithook(watch)


def main() -> int:
    """Describe standard input on standard output; a refusal is a description too."""
    for codec in ("cp437", "latin-1", "ascii", "utf-8"):
        codecs.lookup(codec)  # zipfile and pickle want these: load them while importing is still allowed
    file = open(0, "rb", closefd=False)  # noqa: SIM115  (a descriptor, not a path)
    lock_down()
    try:
        answer = describe(file)
    except Refused as refusal:
        answer = {"refused": refusal.kind, "message": str(refusal), "name": refusal.name}
    except MemoryError:
        answer = {"refused": "unsafe", "message": "needs more memory than any weights file", "name": ""}
    except Exception as error:
        message = f"is not a readable checkpoint ({type(error).__name__}: {error})"
        answer = {"refused": "corrupt", "message": message, "name": ""}
    text = json.dumps(answer)
    if len(text) > ANSWER:
        text = json.dumps({"refused": "unsafe", "message": "describes more tensors than any model has", "name": ""})
    sys.stdout.write(text)
    sys.stdout.flush()
    return 0


if __name__ == "__main__":
    sys.exit(main())
