"""Texts in picture files. Written so that other programs find them; read from files that anyone may have made.

A PNG's chunks are walked here, without a decoder: what is too long or broken is named and left out, and the rest is
read. JPEG and WebP keep EXIF; AUTOMATIC1111's text is its UserComment there, and our JSON its ImageDescription.
"""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from PIL import ExifTags, Image, PngImagePlugin, UnidentifiedImageError

from safelight.errors import InputError

TEXT_LIMIT = 16 << 20  # bytes of one text, unpacked; ComfyUI's largest graphs have about 1 MB
TOTAL_LIMIT = 64 << 20
FILE_LIMIT = 1 << 30  # of a JPEG or WebP, which the library reads whole
JPEG_LIMIT = 65533  # bytes of EXIF: the length of a JPEG's segment has 16 bits
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
EXIF = {"UserComment": int(ExifTags.Base.UserComment), "ImageDescription": int(ExifTags.Base.ImageDescription)}

# What the IPTC asks generated media to carry: https://cv.iptc.org/newscodes/digitalsourcetype/
SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
XMP_KEY = "XML:com.adobe.xmp"
XMP = f"""<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?>
<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">
<rdf:Description rdf:about="" xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/">
<Iptc4xmpExt:DigitalSourceType>{SOURCE_TYPE}</Iptc4xmpExt:DigitalSourceType>
</rdf:Description></rdf:RDF></x:xmpmeta>
<?xpacket end="w"?>"""


@dataclass(frozen=True)
class Texts:
    """The texts of a file by their keywords, and remarks on what could not be read."""

    found: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def note(self, keyword: str, text: str) -> None:
        """Take a text in; of two under one keyword the first counts."""
        if keyword in self.found:
            self.remarks.append(f"a second text {keyword!r} was left out")
        elif sum(map(len, self.found.values())) + len(text) > TOTAL_LIMIT:
            self.remarks.append(f"text {keyword!r} was left out: together the texts exceed {TOTAL_LIMIT >> 20} MB")
        else:
            self.found[keyword] = text


def save_options(form: str, parameters: str, recipe: str) -> dict[str, Any]:
    """What `Image.save` takes to write A1111's text, our JSON and the digital source type. form: PNG, JPEG or WEBP."""
    if form == "PNG":
        info = PngImagePlugin.PngInfo()
        for keyword, text in (("parameters", parameters), ("safelight", recipe), (XMP_KEY, XMP)):
            info.add_itxt(keyword, printable(text))
        return {"pnginfo": info}
    exif = Image.Exif()
    exif[EXIF["ImageDescription"]] = recipe  # JSON in ASCII, which is all that EXIF's strings may hold
    exif.get_ifd(ExifTags.IFD.Exif)[EXIF["UserComment"]] = b"UNICODE\0" + printable(parameters).encode("utf-16-be")
    data = exif.tobytes()
    if form == "JPEG" and len(data) > JPEG_LIMIT:
        what = f"the recipe has {len(data)} bytes, and a JPEG has room for {JPEG_LIMIT}"
        raise InputError(what, remedy="write a PNG or WebP, or leave the recipe out")
    return {"exif": data, "xmp": XMP.encode()}


def printable(text: str) -> str:
    """Text that every encoding can hold: NULs and halves of surrogate pairs become U+FFFD."""
    whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return whole.replace("\0", "\ufffd")


def read_texts(path: Path) -> Texts:
    """The texts in a PNG, JPEG or WebP. Raises InputError where there is no such file, or it is no such picture."""
    try:
        with path.open("rb") as file:
            if file.read(len(PNG_MAGIC)) == PNG_MAGIC:
                return _png(file, path)
        return _exif(path)
    except FileNotFoundError:
        raise InputError(f"no file {path}", remedy="check the path") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read: {error.strerror or error}", remedy="check the file") from None


def _png(file: BinaryIO, path: Path) -> Texts:
    texts = Texts()
    for kind, length in _chunks(file, path):
        if kind not in (b"tEXt", b"zTXt", b"iTXt", b"eXIf"):
            file.seek(length + 4, 1)
        elif length > TEXT_LIMIT:
            texts.remarks.append(f"a {kind.decode()} chunk of {length >> 20} MB was left out")
            file.seek(length + 4, 1)
        else:
            data = file.read(length)
            if zlib.crc32(kind + data) != int.from_bytes(file.read(4), "big"):
                texts.remarks.append(f"a {kind.decode()} chunk is damaged and was left out")
            elif kind == b"eXIf":
                _note_exif(texts, data)
            else:
                _note_chunk(texts, kind, data)
    return texts


def _chunks(file: BinaryIO, path: Path) -> Iterator[tuple[bytes, int]]:
    """Kind and length of each chunk, with the file at its data; the reader moves on to its end."""
    size = path.stat().st_size
    while True:
        head = file.read(8)
        kind, length = head[4:], int.from_bytes(head[:4], "big")
        if len(head) < 8 or not kind.isalpha() or file.tell() + length + 4 > size:
            raise InputError(f"{path} is a broken PNG: it ends or is damaged at byte {file.tell() - len(head)}",
                             remedy="copy or download it again")  # fmt: skip
        if kind == b"IEND":
            return
        yield kind, length


def _note_chunk(texts: Texts, kind: bytes, data: bytes) -> None:
    """A text chunk (PNG specification, 11.3.3)."""
    keyword, _, rest = data.partition(b"\0")
    name, packed, encoding = keyword.decode("latin-1"), kind == b"zTXt", "latin-1"
    if kind == b"iTXt":
        packed, encoding = rest[:1] == b"\1", "utf-8"
        rest = rest[2:].partition(b"\0")[2].partition(b"\0")[2]  # the language, and the keyword in it
    elif packed:
        rest = rest[1:]
    unpacked = _inflate(rest) if packed else rest
    if unpacked is None:
        texts.remarks.append(f"text {name!r} was left out: it is damaged, or unpacks to over {TEXT_LIMIT >> 20} MB")
    else:
        texts.note(name, unpacked.decode(encoding, "replace"))


def _inflate(data: bytes) -> bytes | None:
    """Unpack, but no more than the limit: a thousandth of the size is enough to pack zeros in."""
    unpacker = zlib.decompressobj()
    try:
        unpacked = unpacker.decompress(data, TEXT_LIMIT + 1)
    except zlib.error:
        return None
    return unpacked if unpacker.eof and len(unpacked) <= TEXT_LIMIT else None


def _exif(path: Path) -> Texts:
    if path.stat().st_size > FILE_LIMIT:
        raise InputError(f"{path} has over {FILE_LIMIT >> 30} GB", remedy="give a picture")
    try:
        with Image.open(path, formats=("JPEG", "WEBP")) as image:
            data, xmp = image.info.get("exif", b""), image.info.get("xmp", b"")
    except (UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError) as error:
        what = f"{path} is no PNG, JPEG or WebP that can be read"
        raise InputError(what, remedy="give the file as the program wrote it") from error
    texts = Texts()
    _note_exif(texts, data)
    if xmp:
        texts.note(XMP_KEY, bytes(xmp[:TEXT_LIMIT]).decode("utf-8", "replace"))
    return texts


def _note_exif(texts: Texts, data: bytes) -> None:
    exif = Image.Exif()
    try:
        exif.load(data)
        tags = {**dict(exif), **exif.get_ifd(ExifTags.IFD.Exif)}
    except Exception:  # a stranger's bytes: what the parser raises is not documented
        texts.remarks.append("its EXIF is damaged and was left out")
        return
    for tag, value in tags.items():
        text = _comment(value) if tag == EXIF["UserComment"] and isinstance(value, bytes) else value
        if not isinstance(text, str) or not text:
            continue
        keyword, _, graph = text.partition(":")
        if keyword in ("prompt", "workflow") and graph.startswith("{"):  # so ComfyUI writes WebP
            texts.note(keyword, graph)
        elif tag == EXIF["UserComment"]:
            texts.note("parameters", text)
        elif tag == EXIF["ImageDescription"]:
            texts.note("safelight" if text.startswith('{"safelight"') else "ImageDescription", text)


def _comment(value: bytes) -> str:
    """EXIF's UserComment: eight bytes that name the encoding, then the text, whose byte order nobody agrees on."""
    code, body = value[:8], value[8:]
    if code != b"UNICODE\0":
        return (body if code in (b"ASCII\0\0\0", bytes(8)) else value).decode("utf-8", "replace").strip("\0")
    big, little = (body.decode(order, "replace") for order in ("utf-16-be", "utf-16-le"))
    return max(big, little, key=lambda text: sum(map(str.isascii, text)))
