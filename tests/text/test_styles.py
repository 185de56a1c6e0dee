"""Styles from a CSV file as AUTOMATIC1111 writes it."""

import pytest

from safelight.errors import InputError
from safelight.text.styles import Style, apply_styles, read_styles

CSV = """\ufeffname,prompt,negative_prompt
ink,"ink drawing of {prompt}, fine lines","photo, colour"
moody,dark mood,
"two
lines",a,b
,unnamed,
ink2,"{prompt} and {prompt}","{prompt}, bad"
"""


def test_reading_and_applying(tmp_path):
    (tmp_path / "styles.csv").write_text(CSV, encoding="utf-8")
    styles = read_styles(tmp_path / "styles.csv")
    assert list(styles) == ["ink", "moody", "two\nlines", "ink2"]
    assert styles["ink"] == Style("ink", "ink drawing of {prompt}, fine lines", "photo, colour")
    assert apply_styles("a fox", "", ["ink"], styles) == ("ink drawing of a fox, fine lines", "photo, colour")
    both = apply_styles("a fox", "blurry", ["ink", "moody"], styles)
    assert both == ("ink drawing of a fox, fine lines, dark mood", "blurry, photo, colour")
    assert apply_styles("a", "b", ["ink2"], styles) == ("a and a", "b, bad")
    assert apply_styles("", "", ["moody"], styles) == ("dark mood", "")
    assert apply_styles("a", "b", [], styles) == ("a", "b")


def test_the_old_column(tmp_path):
    (tmp_path / "styles.csv").write_text("name,text\nink,in ink\n")
    assert read_styles(tmp_path / "styles.csv") == {"ink": Style("ink", "in ink")}


def test_errors(tmp_path):
    with pytest.raises(InputError, match="no file"):
        read_styles(tmp_path / "styles.csv")
    (tmp_path / "styles.csv").write_text("a,b\n1,2\n")
    with pytest.raises(InputError, match="has the columns a, b"):
        read_styles(tmp_path / "styles.csv")
    (tmp_path / "styles.csv").write_bytes(b"name,prompt\n\xff,x\n")
    with pytest.raises(InputError, match="cannot read"):
        read_styles(tmp_path / "styles.csv")
    with pytest.raises(InputError, match=r"no style 'inc'[^?]*ink"):
        apply_styles("a", "", ["inc"], {"ink": Style("ink")})
