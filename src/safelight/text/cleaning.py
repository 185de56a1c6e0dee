"""Cleaning raw text before it is split.

CLIP was trained on text cleaned by OpenAI's rule: `ftfy.fix_text`, `html.unescape` twice, whitespace collapsed, lower
case. transformers' fast tokenizer, and so diffusers today, only normalises to NFC, collapses whitespace and
lower-cases. The two give the same tokens for plain text, and other ones for curly quotes, HTML entities, ligatures,
full-width letters and control characters.

`openai_clean` is OpenAI's rule without ftfy, which would be a dependency whose presence changes pictures
(huggingface/transformers#19118). It does what ftfy does by default except two things: it does not guess at mojibake
("Ã©" stays as it is), and it does not know entities written in the wrong case ("&EACUTE;").
"""

import html
import re
import unicodedata
from html.entities import html5

ENTITY = re.compile(r"&#?[0-9A-Za-z]{1,24};")
TERMINAL_ESCAPE = re.compile(r"\x1b\[[\d;]*[a-zA-Z]")
MAX_REPAIRS = 8  # ftfy repeats until nothing changes, which nested entities ("&amp;amp;amp;...") make quadratic

CURLY_QUOTES = dict.fromkeys([0x02BC, *range(0x2018, 0x201C)], "'") | dict.fromkeys(range(0x201C, 0x2020), '"')
LIGATURES = {
    **{ord(c): unicodedata.normalize("NFKC", c) for c in "ĲĳŉǄǅǆǇǈǉǊǋǌǱǲǳﬀﬁﬂﬃﬄﬆ"},
    ord("ﬅ"): "ſt",
}
# Full-width Latin, half-width katakana and Hangul; the ideographic space.
WIDTHS = {c: unicodedata.normalize("NFKC", chr(c)) for c in range(0xFF01, 0xFFF0)} | {0x3000: " "}
LINE_BREAKS = dict.fromkeys([0x0D, 0x85, 0x2028, 0x2029], "\n")
CONTROLS = dict.fromkeys(
    [*range(0x09), 0x0B, *range(0x0E, 0x20), 0x7F, *range(0x206A, 0x2070), 0xFEFF, *range(0xFFF9, 0xFFFD)]
)
# C1 controls are bytes of Windows-1252 that were read as Latin-1; five of them mean nothing there either.
C1_CONTROLS = {c: bytes([c]).decode("cp1252", "ignore") or chr(c) for c in range(0x80, 0xA0)}


def well_formed(text: str) -> str:
    """Join surrogate pairs to the characters they mean, and replace lone surrogates, which UTF-8 lacks, by U+FFFD."""
    if text.isascii():
        return text
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


def openai_clean(text: str) -> str:
    """Clean text as CLIP's training did, up to the two exceptions that the module names. Linear in the length."""
    text = html.unescape(html.unescape(repaired(text)))
    return " ".join(text.split()).lower()


def repaired(text: str) -> str:
    """Repair what ftfy repairs, character by character and line by line."""
    lines = text.split("\n")
    # Where text holds a "<" it may be HTML on purpose: from that line on, entities are left to html.unescape.
    markup = next((i for i, line in enumerate(lines) if "<" in line), len(lines))
    return "\n".join(_repaired_line(line, entities=i < markup) for i, line in enumerate(lines))


def _repaired_line(line: str, *, entities: bool) -> str:
    for _ in range(MAX_REPAIRS):
        before = line
        if entities and "<" not in line:
            line = ENTITY.sub(_unescape, line)
        for table in (C1_CONTROLS, LIGATURES, WIDTHS, CURLY_QUOTES, LINE_BREAKS):
            line = line.translate(table)
        line = TERMINAL_ESCAPE.sub("", well_formed(line)).translate(CONTROLS)
        line = unicodedata.normalize("NFC", line)
        if line == before:
            break
    return line


def _unescape(entity: re.Match[str]) -> str:
    name = entity[0][1:]
    return html.unescape(entity[0]) if name.startswith("#") or name in html5 else entity[0]
