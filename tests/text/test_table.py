"""The table of tokens that `safelight tokens` prints."""

from safelight.text.prompt import prompt_ids
from safelight.text.table import token_table
from safelight.text.tokenizer import Tokenizer

CLIP = Tokenizer.clip()


def test_a_short_text():
    assert [tuple(row) for row in token_table(CLIP, "a flooble")] == [
        (0, 49406, "<|startoftext|>", 0, 1.0),
        (1, 320, "a</w>", 0, 1.0),
        (2, 4062, "floo", 0, 1.0),
        (3, 1059, "ble</w>", 0, 1.0),
        (4, 49407, "<|endoftext|>", 0, 1.0),
    ]


def test_rows_stand_where_the_context_has_them():
    text = ", ".join(f"word {i}" for i in range(60))
    rows = token_table(CLIP, text)
    ids = prompt_ids(CLIP, text)[0]
    assert {row.chunk for row in rows} == set(range(len(ids))) and len(ids) > 2
    for row in rows:
        assert ids.flatten()[row.position] == row.id
        assert row.position // 77 == row.chunk
        assert CLIP.pieces([row.id]) == [row.piece]
    listed = {row.position for row in rows}
    assert all(i == CLIP.pad for position, i in enumerate(ids.flatten().tolist()) if position not in listed)
