"""What a tokenizer makes of a text, for people to read."""

from typing import NamedTuple

from safelight.text.prompt import COMMA_BACKTRACK, split_text
from safelight.text.tokenizer import Tokenizer


class TokenRow(NamedTuple):
    """One token: its row in the context (from 0), its id, its readable piece, and its chunk (from 0)."""

    position: int
    id: int
    piece: str
    chunk: int


def token_table(tokenizer: Tokenizer, text: str, *, comma_backtrack: int = COMMA_BACKTRACK) -> list[TokenRow]:
    """List the tokens that a text encoder reads for a text, begin and end of each chunk included, padding left out.

    >>> from safelight.text.tokenizer import Tokenizer
    >>> for row in token_table(Tokenizer.clip(), "a flooble"):
    ...     print(*row)
    0 49406 <|startoftext|> 0
    1 320 a</w> 0
    2 4062 floo 0
    3 1059 ble</w> 0
    4 49407 <|endoftext|> 0
    """
    rows = []
    for chunk, content in enumerate(split_text(tokenizer, text, comma_backtrack=comma_backtrack)):
        ids = [tokenizer.bos, *content, tokenizer.eos]
        start = chunk * tokenizer.max_length
        for place, (id, piece) in enumerate(zip(ids, tokenizer.pieces(ids), strict=True)):
            rows.append(TokenRow(start + place, id, piece, chunk))
    return rows
