"""Where the bytes of a collection lie: a folder, a zip file, tar shards. One face, and nothing is ever unpacked.

    names()      every file, as a path with forward slashes
    read(name)   the bytes of one

Each read opens the file, seeks and reads: no handle is kept, so that stores pass to worker processes as they are, and
two processes never share a file's position.
"""

import hashlib
import struct
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from safelight.errors import SafelightError

LIMIT = 1 << 30  # bytes of one file in a collection; a member that claims more is refused, not read
_AGAIN = "fetch or make the file again"


class CollectionError(SafelightError, ValueError):
    """A collection of pictures cannot be used: it is empty, damaged, or holds no captions."""


class BrokenFile(CollectionError):  # noqa: N818  (it names what is wrong)
    """One file of a collection cannot be read: a broken picture, a damaged member of an archive."""


class Store(ABC):
    """Named files, read one at a time."""

    @abstractmethod
    def names(self) -> Sequence[str]:
        """Every file, sorted as the store lists them."""

    @abstractmethod
    def read(self, name: str) -> bytes:
        """Give the bytes of a file. Raises BrokenFile."""

    unsafe: Sequence[str] = ()  # names that lead outside the archive: never read

    @abstractmethod
    def fingerprint(self) -> str:
        """Give a text that changes when a file does, by names, sizes and times, without reading the files."""

    def stem(self, name: str) -> str:
        """Give what a picture's name shares with its caption's: the name without its last extension."""
        return str(PurePosixPath(name).with_suffix(""))


class FolderStore(Store):
    """All files under a folder, hidden ones left out; links are followed, as people gather pictures with them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        paths = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        self._names = sorted(path.as_posix() for path in paths if not any(part[0] == "." for part in path.parts))

    def names(self) -> Sequence[str]:
        """See `Store`."""
        return self._names

    def read(self, name: str) -> bytes:
        """See `Store`."""
        try:
            return (self.folder / name).read_bytes()
        except OSError as error:
            raise BrokenFile(f"{name} cannot be read ({error.strerror})", remedy="check the file") from error

    def fingerprint(self) -> str:
        """See `Store`."""
        return _stamp(*(self.folder / name for name in self._names))


@dataclass(frozen=True, slots=True)
class Member:
    """Where a file lies in a tar: `size` bytes from `offset` on."""

    archive: Path
    offset: int
    size: int


class ZipStore(Store):
    """The members of a zip file, stored or deflated; others, and encrypted ones, are refused when read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            with zipfile.ZipFile(path) as file:
                members = [info for info in file.infolist() if not info.is_dir()]
        except (zipfile.BadZipFile, OSError, NotImplementedError, ValueError) as error:
            raise CollectionError(f"{path} is no sound zip file: {error}", remedy=_AGAIN) from error
        self._members = {info.filename: info for info in members if is_safe(info.filename)}
        self.unsafe = [info.filename for info in members if not is_safe(info.filename)]

    def names(self) -> Sequence[str]:
        """See `Store`."""
        return list(self._members)

    def read(self, name: str) -> bytes:
        """See `Store`."""
        info = self._members[name]
        if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise BrokenFile(
                f"{name} in {self.path} is encrypted or packed in a rare way", remedy="zip it with deflate"
            )
        if info.file_size > LIMIT:
            raise BrokenFile(f"{name} in {self.path} would unpack to {info.file_size:,} bytes", remedy="leave it out")
        with self.path.open("rb") as file:
            file.seek(info.header_offset)
            head = file.read(30)
            if len(head) < 30 or head[:4] != b"PK\3\4":
                raise BrokenFile(f"{name} in {self.path} has no header where it should", remedy=_AGAIN)
            file.seek(sum(struct.unpack("<HH", head[26:30])), 1)  # the name again, and extra fields
            data = file.read(info.compress_size)
        return _unpacked(data, info, f"{name} in {self.path}")

    def fingerprint(self) -> str:
        """See `Store`."""
        return _stamp(self.path)


def _unpacked(data: bytes, info: zipfile.ZipInfo, name: str) -> bytes:
    try:
        if info.compress_type == zipfile.ZIP_DEFLATED:
            data = zlib.decompressobj(-15).decompress(data, info.file_size + 1)
    except zlib.error as error:
        raise BrokenFile(f"{name} is damaged: {error}", remedy=_AGAIN) from error
    if len(data) != info.file_size or zlib.crc32(data) != info.CRC:
        raise BrokenFile(f"{name} is damaged: its checksum is wrong", remedy=_AGAIN)
    return data


class TarStore(Store):
    """The members of uncompressed tar files in webdataset's naming: what stands before a name's first dot is its key.

    The headers are read once, when the store is opened. With several shards each name begins with its shard's.
    """

    def __init__(self, paths: Iterable[Path]) -> None:
        self._members: dict[str, Member] = {}
        self.unsafe = []
        self.paths = paths = list(paths)
        for path in paths:
            prefix = f"{path.name}/" if len(paths) > 1 else ""
            for info in tar_members(path):
                if not is_safe(info.name):
                    self.unsafe.append(prefix + info.name)
                elif not PurePosixPath(info.name).name.startswith("."):
                    name = prefix + str(PurePosixPath(info.name))
                    self._members[name] = Member(path, info.offset_data, info.size)

    def names(self) -> Sequence[str]:
        """See `Store`."""
        return list(self._members)

    def read(self, name: str) -> bytes:
        """See `Store`."""
        member = self._members[name]
        if member.size > LIMIT:
            raise BrokenFile(f"{name} in {member.archive} has {member.size:,} bytes", remedy="leave it out")
        with member.archive.open("rb") as file:
            file.seek(member.offset)
            data = file.read(member.size)
        if len(data) != member.size:
            raise BrokenFile(f"{name} in {member.archive} is cut short", remedy=_AGAIN)
        return data

    def fingerprint(self) -> str:
        """See `Store`."""
        return _stamp(*self.paths)

    def stem(self, name: str) -> str:
        """Webdataset's rule: everything before the first dot of the last part."""
        path = PurePosixPath(name)
        return str(path.with_name(path.name.split(".", 1)[0]))


def _stamp(*paths: Path) -> str:
    found = hashlib.sha256()
    for path in paths:
        state = path.stat()
        found.update(f"{path.name}|{state.st_size}|{state.st_mtime_ns}\n".encode())
    return found.hexdigest()


def tar_members(path: Path) -> list[tarfile.TarInfo]:
    """List the plain files of an uncompressed tar. Raises CollectionError if it is packed, cut short or no tar."""
    try:
        with tarfile.open(path, "r:") as file:
            members = [info for info in file if info.isreg() and not info.issparse()]
            ended = _ends_well(path, file.offset)
    except tarfile.TarError as error:
        packed = path.name.endswith(("gz", "bz2", "xz", "zst"))
        remedy = "unpack it to a plain .tar: random access needs one" if packed else _AGAIN
        raise CollectionError(f"{path} is no sound tar file: {error}", remedy=remedy) from error
    except OSError as error:
        raise CollectionError(f"{path} cannot be read ({error})", remedy="check path and permissions") from error
    if not ended or any(info.offset_data + info.size > path.stat().st_size for info in members):
        raise CollectionError(f"{path} is cut short after {len(members)} files", remedy=_AGAIN)
    return members


def _ends_well(path: Path, offset: int) -> bool:
    """A whole tar ends with a block of zeros, where `tarfile` stopped reading; a cut one just ends."""
    with path.open("rb") as file:
        file.seek(max(offset - 512, 0))
        rest = file.read(1024)
    return len(rest) >= 512 and b"\0" * 512 in (rest[:512], rest[512:])


def is_safe(name: str) -> bool:
    """Say whether an archive's name stays inside: not absolute, no drive, no `..`."""
    path = PurePosixPath(name.replace("\\", "/"))
    return bool(name) and not path.is_absolute() and ".." not in path.parts and ":" not in path.parts[0]
