"""Captioned pictures as people have them: folders, zip files, tar shards; captions beside the pictures or in a table.

    folder/          cat.png + cat.txt             one caption a line
                     metadata.jsonl, captions.jsonl or metadata.csv, in any folder, naming files relative to itself
                     (Hugging Face's imagefolder: a column `file_name`, and `text`, or `caption`)
    pictures.zip     the same, inside
    shard-000.tar    webdataset: 000.jpg + 000.txt, 000.json or 000.cls; a folder, list or pattern of shards

`open_collection` finds out which, and reads no picture: `Collection.picture(i)` does.
"""

import csv
import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from io import StringIO
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from PIL import Image

from safelight.errors import InputError
from safelight.training.data.decoding import decode, header_size
from safelight.training.data.stores import BrokenFile, CollectionError, FolderStore, Store, TarStore, ZipStore

PICTURES = {".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"}
TABLES = ("metadata.jsonl", "captions.jsonl", "metadata.csv", "captions.csv")
FILE_FIELDS = ("file_name", "file", "image", "path")
CAPTION_FIELDS = ("caption", "text", "captions", "prompt")
MAX_BROKEN = 0.01
SHOWN = 5  # faults that an error lists
_MAKE_CAPTIONS = (
    "put NAME.txt beside NAME.png, or a metadata.jsonl with `file_name` and `text`; "
    "or pass captions='optional', which suits training without text"
)

Captions = Literal["required", "optional"]


@dataclass(frozen=True)
class Entry:
    """What is known of a picture without opening it.

    `name` is its file in the collection; `meta` the whole row of its table, if it has one.
    """

    name: str
    captions: tuple[str, ...] = ()
    label: str | None = None
    split: str | None = None
    meta: Mapping[str, Any] = field(default_factory=dict, hash=False)


class Faults:
    """What was skipped, and why, up to a share of all. More raises CollectionError with the first ones."""

    def __init__(self, share: float) -> None:
        if not 0 <= share <= 1:
            raise InputError(f"max_broken is {share}", remedy="give a share from 0 to 1, such as 0.01")
        self.share, self.found = share, dict[str, str]()

    def add(self, name: str, why: str, of: int) -> None:
        """Count a fault of `name` among `of` files; the same file counts once."""
        self.found.setdefault(name, why)
        if len(self.found) > self.share * of:
            first = "\n".join(f"    {name}: {why}" for name, why in list(self.found.items())[:SHOWN])
            what = f"{len(self.found)} of {of} pictures cannot be used, more than max_broken={self.share:.2%}:\n{first}"
            raise CollectionError(what, remedy=f"mend or remove them, or raise max_broken; {self.hint()}")

    def hint(self) -> str:
        """Give the remedy for the commonest fault."""
        common = Counter(self.found.values()).most_common(1)
        return _MAKE_CAPTIONS if common and common[0][0] == NO_CAPTION else "the list names the first"


NO_CAPTION = "has no caption"


class Collection(Sequence[Entry]):
    """Entries by number, and their pictures. Immutable but for `faults`, the count of what was skipped."""

    def __init__(self, store: Store, entries: Sequence[Entry], faults: Faults, path: object = None) -> None:
        if not entries:
            raise CollectionError(f"{path} holds no pictures to train on", remedy=_empty_remedy(faults))
        self.store, self.entries, self.faults, self.path = store, list(entries), faults, path

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, i: int) -> Entry:  # type: ignore[override]  # whole slices are `where`'s work
        return self.entries[i]

    def picture(self, i: int) -> Image.Image:
        """Read the i-th picture, RGB or RGBA, upright. Raises BrokenFile; `intact` skips such pictures instead."""
        name = self.entries[i].name
        return decode(self.store.read(name), name)

    def intact(self, i: int) -> tuple[int, Image.Image]:
        """Read the i-th picture, or the next one that can be read: (its number, the picture).

        Which one that is depends on the files alone. Broken ones are counted; above the share that raises
        CollectionError.
        """
        for j in chain(range(i, len(self)), range(i)):
            if self.entries[j].name in self.faults.found:
                continue
            try:
                return j, self.picture(j)
            except BrokenFile as error:
                self.faults.add(self.entries[j].name, error.what, len(self))
        raise CollectionError(f"no picture of {self.path} can be read", remedy="see the reasons in `faults.found`")

    def size(self, i: int) -> tuple[int, int]:
        """Give the width and height of the i-th picture, from its table or its header. Raises BrokenFile."""
        entry = self.entries[i]
        width, height = (entry.meta.get(key) for key in ("w", "h"))
        if isinstance(width, int) and isinstance(height, int):
            return width, height
        return header_size(self.store.read(entry.name), entry.name)

    def sizes(self) -> list[tuple[int, int]]:
        """Give every picture's width and height. Broken ones are counted, and said to be square."""
        sizes = []
        for i in range(len(self)):
            try:
                sizes.append(self.size(i))
            except BrokenFile as error:
                self.faults.add(self.entries[i].name, error.what, len(self))
                sizes.append((1, 1))
        return sizes

    def verify(self) -> Mapping[str, str]:
        """Read every picture once; give the broken ones and why. Raises CollectionError above the share."""
        for i in range(len(self)):
            self.intact(i)
        return dict(self.faults.found)

    def where(self, keep: Callable[[Entry], bool]) -> "Collection":
        """Give the collection of the entries that `keep` says yes to."""
        return Collection(self.store, [entry for entry in self.entries if keep(entry)], self.faults, self.path)

    def labelled(self) -> "Collection":
        """Give the collection with the name of its folder as each entry's label, where no entry has one of its own."""
        if self.labels:
            return self
        entries = [replace(entry, label=folder_name(entry.name)) for entry in self.entries]
        return Collection(self.store, entries, self.faults, self.path)

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels that occur, sorted: the classes of a class-conditional model."""
        return tuple(sorted({entry.label for entry in self.entries if entry.label is not None}))

    @property
    def captions(self) -> Iterator[str]:
        """Every caption of every entry."""
        return (caption for entry in self.entries for caption in entry.captions)


def open_collection(
    path: str | Path | Sequence[str | Path],
    *,
    captions: Captions = "required",
    caption_field: str | None = None,
    label: str | None = None,
    max_broken: float = MAX_BROKEN,
) -> Collection:
    """Open a folder, a zip file, a tar shard, or several shards (a folder, a list or a pattern such as `part-*.tar`).

    `captions="optional"` takes pictures without a caption too. `caption_field` names the column of captions where it is
    not `caption`, `text`, `captions` or `prompt`; a list in it, or lines in a .txt, are several captions of a picture.
    `label` names the column of class labels, or is "folder": the name of the picture's folder. Without it the column
    `label` or a webdataset's .cls is taken if there is one. Up to a share of `max_broken` pictures may be broken or
    missing or lack a caption; they are counted in `faults` and skipped.

    Raises CollectionError if there is nothing there, or too much of it is broken.
    """
    store = open_store(path)
    reader = _Reader(store, captions, caption_field, label, Faults(max_broken))
    return Collection(store, list(reader.entries()), reader.faults, path)


def open_store(path: str | Path | Sequence[str | Path]) -> Store:
    """Open what holds the files, by what it is."""
    if not isinstance(path, str | Path):
        return TarStore(map(Path, path))
    path = Path(path).expanduser()
    if path.is_file():
        return ZipStore(path) if path.suffix.lower() == ".zip" else TarStore([path])
    if path.is_dir():
        shards = sorted(path.glob("*.tar"))
        return TarStore(shards) if shards else FolderStore(path)
    if shards := sorted(path.parent.glob(path.name)) if any(c in path.name for c in "*?[") else []:
        return TarStore(shards)
    raise CollectionError(f"{path} does not exist", remedy="give a folder, a .zip, a .tar, or a pattern of .tar files")


@dataclass(frozen=True)
class _Reader:
    """Puts together what a store holds: tables, and files that share a stem."""

    store: Store
    need: Captions
    caption_field: str | None
    label_field: str | None
    faults: Faults

    def entries(self) -> Iterator[Entry]:
        """Every picture that can be used, in the order of names; the others are counted among the faults."""
        names = self.store.names()
        present = set(names)
        rows = dict(self._rows(names))
        pictures = [name for name in names if PurePosixPath(name).suffix.lower() in PICTURES]
        missing = [name for name in rows if name not in present]
        total = len(pictures) + len(missing) + len(self.store.unsafe)
        for name in (*missing, *self.store.unsafe):
            self.faults.add(
                name, "leads outside" if name in self.store.unsafe else "is in a table, but not there", total
            )
        beside = self._beside(names)
        for name in pictures:
            entry = self._entry(name, rows.get(name, {}), beside.get(self.store.stem(name), {}))
            if entry.captions or self.need == "optional":
                yield entry
            else:
                self.faults.add(name, NO_CAPTION, total)

    def _rows(self, names: Iterable[str]) -> Iterator[tuple[str, dict[str, Any]]]:
        """Every row of every table: (the picture's name, the row)."""
        for name in names:
            if PurePosixPath(name).name in TABLES:
                folder = PurePosixPath(name).parent
                for line, row in enumerate(_table(self._text(name), name), 1):
                    file = next((row[key] for key in FILE_FIELDS if isinstance(row.get(key), str)), None)
                    if file is None:
                        what = f"row {line} of {name} names no file"
                        raise CollectionError(what, remedy="give each row a `file_name`")
                    yield str(folder / file), row

    def _beside(self, names: Iterable[str]) -> dict[str, dict[str, str]]:
        """Caption files by stem: {stem: {".txt": name}}."""
        table: dict[str, dict[str, str]] = {}
        for name in names:
            suffix = PurePosixPath(name).suffix.lower()
            if suffix in (".txt", ".json", ".cls", ".caption"):
                table.setdefault(self.store.stem(name), {})[suffix] = name
        return table

    def _entry(self, name: str, row: dict[str, Any], beside: dict[str, str]) -> Entry:
        if ".json" in beside:
            row = _json_object(self._text(beside[".json"]), beside[".json"]) | row
        captions = self._captions(row)
        for suffix in (".txt", ".caption"):
            if not captions and suffix in beside:
                captions = _clean(self._text(beside[suffix]).splitlines())
        label = self._label(name, row)
        if label is None and ".cls" in beside:
            label = self._text(beside[".cls"]).strip()
        split = row.get("split")
        return Entry(name, captions, label, None if split is None else str(split), row)

    def _captions(self, row: Mapping[str, Any]) -> tuple[str, ...]:
        fields = CAPTION_FIELDS if self.caption_field is None else (self.caption_field,)
        value = next((row[key] for key in fields if row.get(key)), ())
        return _clean([value] if isinstance(value, str) else value if isinstance(value, list) else [])

    def _label(self, name: str, row: Mapping[str, Any]) -> str | None:
        if self.label_field == "folder":
            return folder_name(name)
        value = row.get(self.label_field or "label")
        return None if value is None else str(value)

    def _text(self, name: str) -> str:
        try:
            return self.store.read(name).decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise CollectionError(f"{name} is not UTF-8 text: {error.reason}", remedy="save it as UTF-8") from error


def folder_name(name: str) -> str | None:
    """The name of the folder that a file lies in, if it is in one."""
    return PurePosixPath(name).parent.name or None


def _table(text: str, name: str) -> list[dict[str, Any]]:
    if name.endswith(".csv"):
        return [dict(row) for row in csv.DictReader(StringIO(text))]
    lines = ((number, line) for number, line in enumerate(text.splitlines(), 1) if line.strip())
    return [_json_object(line, f"line {number} of {name}") for number, line in lines]


def _json_object(text: str, where: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise CollectionError(f"{where} is not JSON: {error}", remedy="mend that line") from error
    if not isinstance(value, dict):
        raise CollectionError(f"{where} holds a {type(value).__name__}, not an object", remedy="write one {…} a line")
    return value


def _clean(captions: Iterable[Any]) -> tuple[str, ...]:
    return tuple(text for caption in captions if (text := " ".join(str(caption).split())))


def _empty_remedy(faults: Faults) -> str:
    if faults.found:
        return faults.hint()
    return f"put pictures there ({', '.join(sorted(PICTURES))}), or give another path"
