"""A cheap tokenizer: every four bytes are one token.

A prompt is a byte string whose length is a multiple of four; token ``i`` is bytes ``4i..4i+4``
read as a little-endian number. What a real tokenizer guarantees at its special tokens holds here at
the seams between pieces (a role, a message's content): each piece is padded with zero bytes to a
whole token, so a piece's tokens do not depend on what surrounds it. Equal leading text gives equal
leading tokens, and an answer sent back as an assistant message gives the tokens the engine
produced.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Iterable, Sequence

import xxhash

TOKEN_BYTES = 4
START = b"\xff\xff\xff\x01"
"""The token that opens a message. The bytes cannot occur in UTF-8 text."""
END = b"\xff\xff\xff\x02"
"""The token that closes a message."""
IMAGE_TOKENS = 256

_TEXT = """
the warm one and its old map was far off but now all can see how far red sun ran out for her new
day yet few men who saw him run had any way too get near set big sea let us two go by an ice pot
"""
WORDS: tuple[bytes, ...] = tuple(word.encode().ljust(TOKEN_BYTES) for word in _TEXT.split())
"""What answers are made of: one token each, plain ASCII, safe inside a JSON string."""
_CYCLE = WORDS * 2


def text_tokens(text: str) -> bytes:
    """One piece of text as tokens, padded to a whole one."""
    data = text.encode("utf-8", "surrogatepass")
    return data + bytes(-len(data) % TOKEN_BYTES)


def ids_tokens(ids: Sequence[int]) -> bytes:
    """Token ids as a client gave them. Raises OverflowError or TypeError for what is no 32-bit
    id."""
    return array("I", ids).tobytes()


def token_ids(tokens: bytes) -> list[int]:
    """The ids of a token string."""
    ids = array("I")
    ids.frombytes(tokens)
    return ids.tolist()


def image_tokens(source: str) -> bytes:
    """An image's tokens: the same for the same source, different for any other."""
    digest = hashlib.blake2b(source.encode("utf-8", "surrogatepass"), digest_size=32).digest()
    return digest * (IMAGE_TOKENS * TOKEN_BYTES // len(digest))


def tokens_text(tokens: bytes) -> str:
    """Back to text: padding goes, special tokens are shown by name."""
    shown = tokens.replace(START, b"<|im_start|>").replace(END, b"<|im_end|>")
    return shown.replace(b"\0", b"").decode("utf-8", "replace")


def block_hashes(tokens: bytes, block_size: int, parent: int, start: int = 0) -> list[int]:
    """Chained hashes of the full blocks of ``block_size`` tokens, from byte ``start`` on."""
    width = block_size * TOKEN_BYTES
    digest = xxhash.xxh3_64_intdigest
    hashes = []
    for end in range(start + width, len(tokens) + 1, width):
        parent = digest(tokens[end - width : end], parent)
        hashes.append(parent)
    return hashes


def root_hash(parts: Iterable[str]) -> int:
    """The parent of a first block: what else must be equal for two prompts to share it."""
    return xxhash.xxh3_64_intdigest("\0".join(parts).encode("utf-8", "surrogatepass"))


def answer_words(seed: int, start: int, end: int) -> Sequence[bytes]:
    """Tokens start..end of the answer that belongs to a seed."""
    first = (seed + start) % len(WORDS)
    if end - start <= len(WORDS):
        return _CYCLE[first : first + end - start]
    return [WORDS[(seed + position) % len(WORDS)] for position in range(start, end)]
