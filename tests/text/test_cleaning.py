"""OpenAI's cleaning, against ftfy itself where it does not guess at encodings."""

import html

import ftfy
import pytest

from safelight.text.cleaning import openai_clean, well_formed


@pytest.mark.parametrize(
    "text, clean",
    [
        ("  A\n Cat\t", "a cat"),
        ("it’s “fine”", 'it\'s "fine"'),
        ("caf\u0065\u0301 ﬁne ｆｕｌｌ　width", "café fine full width"),
        ("&lt;b&gt; &amp;amp; R&eacute;mi", "<b> & rémi"),
        ("a\x00b\x1b[31mred\x1b[0m\ufeffc\ud800", "abredc\ufffd"),
        ("<b>&rsquo;", "<b>’"),  # a line of markup is unescaped after the quotes are straightened
        ("ΟΔΟΣ", "οδος"),
        ("Ã©", "ã©"),  # mojibake stays, unlike in ftfy
    ],
)
def test_what_is_cleaned(text, clean):
    assert openai_clean(text) == clean


def test_it_is_ftfy_that_does_not_guess_at_encodings(strings):
    def reference(text):
        text = html.unescape(html.unescape(ftfy.fix_text(text, fix_encoding=False)))
        return " ".join(text.split()).lower()

    different = [text for text in strings if openai_clean(text) != reference(text)]
    assert not different
    assert sum(openai_clean(text) != " ".join(text.split()).lower() for text in strings) > 2_000


def test_surrogates():
    assert well_formed("\ud83d\ude00 \ude00\ud83d") == "😀 \ufffd\ufffd"
    assert well_formed("plain") == "plain"
