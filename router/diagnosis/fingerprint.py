"""What is kept of a prompt: hashes of its bytes and of its parts, from which two prompts' first
difference can be told without the text of either.

Three grains of hashes answer three questions. The chain of blocks, which routing has anyway, says
in a few steps up to which block two prompts agree. A hash for each 64 canonical bytes (about an
engine's block of 16 tokens) says up to where inside that block. A hash for each part (a text, a
tool call, the tools) says which part it is, and whether the same part stands elsewhere.

A prompt that goes on with one that is kept costs time for what it adds, not for all of it.
"""

from __future__ import annotations

import os
from array import array
from itertools import pairwise
from typing import Final

import msgspec
import numpy as np
import numpy.typing as npt
import xxhash

from router.memory import RecentMemory
from router.prompt.spans import SPANS
from router.prompt.tags import MESSAGE, PARTS, TOOLS
from router.types import Chain

GRAIN: Final = 64
"""Canonical bytes of each fine hash, about 16 tokens of English text or code."""

_WORDS: Final = GRAIN // 8
# Unknown to clients, so that nobody can make two texts that look the same.
_FACTORS: Final = np.frombuffer(os.urandom(GRAIN), "<u8") | np.uint64(1)
_TAGS: Final = tuple(bytes((tag,)) for tag in sorted(PARTS))
_IS_PART: Final = np.zeros(32, dtype=bool)
_IS_PART[list(PARTS)] = True

Grains = npt.NDArray[np.uint32]


class Hashes(msgspec.Struct, eq=False, gc=False):
    """The hashes of a prompt, which those that go on with it share: they add theirs at the end."""

    grains: array[int]
    """Of each full `GRAIN` of bytes, 32 bits."""
    starts: array[int]
    """Where each part begins. What stands before the first one is its own part, at 0."""
    hashes: array[int]
    """Of each part."""
    tags: bytearray
    """The tag that each part begins with; 0 for a prompt without any."""


class Fingerprint(msgspec.Struct, eq=False, gc=False):
    """One prompt. Offsets and sizes in canonical bytes."""

    serial: int
    model: str
    owner: str
    """Whose prompt it is: prompts of different owners are never compared."""
    arguments: tuple[bytes, ...]
    """What else than messages and tools changes the prompt, as ``name=value``."""
    chain: Chain
    size: int
    end: int
    """Hash of the bytes behind the last full block."""
    shared: Hashes
    """Begins with its hashes."""
    parts: int
    """How many parts it has."""
    first: int
    """The hash of what was said first behind the system prompt, as near as tags tell."""
    last: int
    """The hash of its last part."""
    tool_set: int
    """Stands for its tools in any order; 0 without tools."""
    at: float
    """Unix time of the request."""
    tokens: int = 0
    """Prompt tokens as the engine counted them; 0 while not known."""
    points: tuple[tuple[int, int], ...] = ()
    """(bytes, tokens) of earlier prompts that this one begins with, ascending."""
    slot: int = -1
    """The replica that computed it; -1 before it was placed."""
    replica: str = ""
    restarts: int = 0
    """Of that replica until then."""
    session: str = ""
    """The session that it was found to belong to."""

    @property
    def grains(self) -> Grains:
        """A hash for each full `GRAIN` of bytes. Not to be kept: while it is, nothing can be added
        to what it looks into."""
        return np.frombuffer(self.shared.grains, np.uint32, self.size // GRAIN)

    @property
    def starts(self) -> array[int]:
        """Where each part begins."""
        return self.shared.starts[: self.parts]

    @property
    def hashes(self) -> array[int]:
        """Of each part."""
        return self.shared.hashes[: self.parts]

    @property
    def tags(self) -> bytes:
        """The tag that each part begins with."""
        return bytes(self.shared.tags[: self.parts])

    @property
    def nbytes(self) -> int:
        """Memory that it takes, estimated."""
        return _FIXED_BYTES + 8 * len(self.chain) + self.size // GRAIN * 4 + 13 * self.parts

    def tokens_of(self, offset: int) -> float:
        """The tokens of its first `offset` bytes, from the prompts in it whose tokens are known."""
        before = (0, 0)
        for point in (*self.points, (self.size, self.tokens)):
            if offset <= point[0]:
                span = point[0] - before[0]
                share = (offset - before[0]) / span if span else 0.0
                return before[1] + share * (point[1] - before[1])
            before = point
        return float(before[1])


_FIXED_BYTES: Final = 700


def hash_grains(text: bytes, start: int) -> bytes:
    """A hash of 32 bits for each full grain of the text from `start` on, a multiple of `GRAIN`.

    The high half of a sum of words times random odd factors, as in multilinear hashing (Lemire and
    Kaser, 2014, "Strongly universal string hashing is fast"). It is quick rather than strong: two
    grains taken for one would put a place `GRAIN` bytes too far back, and change no part.
    """
    count = (len(text) - start) // GRAIN
    words = np.frombuffer(text, "<u8", count * _WORDS, start).reshape(count, _WORDS)
    hashed: bytes = (words @ _FACTORS).view("<u4")[1::2].tobytes()
    return hashed


def read_parts(text: bytes, start: int) -> tuple[list[int], bytes, list[int]]:
    """The parts from `start` on, where one begins: their offsets, tags and hashes."""
    if len(text) - start < _FEW_BYTES:
        starts = []
        for tag in _TAGS:
            at = text.find(tag, start)
            while at >= 0:
                starts.append(at)
                at = text.find(tag, at + 1)
        starts.sort()
        found = bytes([text[at] for at in starts])
    else:
        view = np.frombuffer(text, np.uint8, -1, start)
        marks = np.flatnonzero(view < 32)
        tags = view[marks]
        chosen = _IS_PART[tags]
        starts = (marks[chosen] + start).tolist()
        found = tags[chosen].tobytes()
    if not starts or starts[0] != start:
        starts.insert(0, start)
        found = b"\x00" + found
    digest = xxhash.xxh3_64_intdigest
    hashes = [digest(text[one:end]) for one, end in pairwise((*starts, len(text)))]
    return starts, found, hashes


_FEW_BYTES: Final = 16_384
"""A text below this is searched tag by tag, which is quicker than an array of its bytes."""


def common_blocks(one: Chain, other: Chain) -> int:
    """How many leading blocks two chains share."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[middle - 1] == other[middle - 1]:
            low = middle
        else:
            high = middle - 1
    return low


def agree(new: Grains, old: Grains, start: int) -> int:
    """How many leading grains two prompts share, of which `start` are known to be."""
    end = min(len(new), len(old))
    if start >= end:
        return end
    differ = new[start:end] != old[start:end]
    first = int(differ.argmax())
    return start + first if differ[first] else end


def extends(text: bytes, old: Fingerprint, chain: Chain) -> bool:
    """Whether a prompt begins with the whole of an earlier one."""
    blocks, size = len(old.chain), old.size
    if size > len(text) or blocks > len(chain):
        return False
    if blocks and chain[blocks - 1] != old.chain[blocks - 1]:
        return False
    digest: int = xxhash.xxh3_64_intdigest(text[SPANS[blocks] : size])
    return digest == old.end


def _tool_set(raw: bytes) -> int:
    try:
        tools = _decode_list(raw)
    except msgspec.DecodeError:
        return 0
    return sum(xxhash.xxh3_64_intdigest(tool) for tool in tools) & _MASK


_decode_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_MASK: Final = (1 << 64) - 1
_tool_sets: Final = RecentMemory[int, int](1 << 20, lambda _, __: 120)


def tool_set(text: bytes, starts: list[int], tags: bytes, hashes: list[int]) -> int:
    """What stands for a prompt's tools in any order. Agents send the same ones in each step."""
    at = tags.find(TOOLS)
    if at < 0:
        return 0
    found = _tool_sets.get(hashes[at])
    if found is None:
        end = starts[at + 1] if at + 1 < len(starts) else len(text)
        found = _tool_set(text[starts[at] + 1 : end])
        _tool_sets.put(hashes[at], found)
    return found


def take(
    text: bytes,
    chain: Chain,
    *,
    base: Fingerprint | None,
    serial: int,
    model: str,
    owner: str,
    arguments: tuple[bytes, ...],
    at: float,
) -> Fingerprint:
    """The fingerprint of a prompt. base: one that it begins with, whose hashes it takes over."""
    end = xxhash.xxh3_64_intdigest(text[SPANS[len(chain)] :])
    size = len(text)
    if base is None:
        starts, tags, hashes = read_parts(text, 0)
        grains = array("I", hash_grains(text, 0))
        shared = Hashes(grains, array("I", starts), array("Q", hashes), bytearray(tags))
        return Fingerprint(
            serial, model, owner, arguments, chain, size, end, shared, len(starts),
            _first_said(tags, hashes), hashes[-1], tool_set(text, starts, tags, hashes), at,
        )  # fmt: skip
    points = base.points
    if base.tokens and (not points or points[-1][0] < base.size):
        points = (*points[1 - MOST_POINTS :], (base.size, base.tokens))
    shared, last, parts = base.shared, base.last, base.parts
    if size > base.size:
        shared, last = _grow(base, text)
        parts = len(shared.starts)
    return Fingerprint(
        serial, model, owner, arguments, chain, size, end, shared, parts,
        base.first, last, base.tool_set, at, points=points,
    )  # fmt: skip


def _grow(base: Fingerprint, text: bytes) -> tuple[Hashes, int]:
    """The hashes of a prompt that goes on with another, and that of its last part."""
    shared, full = base.shared, base.size // GRAIN
    if len(shared.grains) != full or len(shared.starts) != base.parts:
        # Another prompt has gone on with it already.
        shared = Hashes(
            shared.grains[:full],
            shared.starts[: base.parts],
            shared.hashes[: base.parts],
            shared.tags[: base.parts],
        )
    starts, tags, hashes = read_parts(text, base.size)
    shared.grains.frombytes(hash_grains(text, full * GRAIN))
    shared.starts.extend(starts)
    shared.hashes.extend(hashes)
    shared.tags += tags
    return shared, hashes[-1]


def _first_said(tags: bytes, hashes: list[int]) -> int:
    second = tags.find(MESSAGE, 1)
    return hashes[second + 1] if 0 <= second < len(hashes) - 1 else hashes[-1]


MOST_POINTS: Final = 16
"""Earlier prompts kept whose bytes and tokens are both known."""
