"""The fingerprints that are kept, and how one is found: within a number of bytes, the conversation
that was used least lately goes first."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

import msgspec

from router.diagnosis.fingerprint import Fingerprint, extends
from router.types import Chain

LINES: Final = 6
"""Conversations of one session that are told apart: an agent and its helpers."""
_LAST_PARTS: Final = 16
"""Of a prompt's last parts, one is the last of the prompt before: a step with one call of a tool
adds six."""
_ENTRY_BYTES: Final = 120
"""What an entry of a dict takes, with its key."""


class Line(msgspec.Struct, eq=False, gc=False):
    """One conversation: its latest prompt, and under what it is found."""

    latest: Fingerprint
    session: str
    blocks: list[int]
    """Hashes of its blocks number 1, 2, 4, ..."""
    first: int
    """The hash of what was said first in it."""
    nbytes: int = 0


class _Shelf(msgspec.Struct, eq=False):
    """What is kept of one owner. Each dict has the latest conversation of its key."""

    by_session: dict[str, list[Line]] = msgspec.field(default_factory=dict)
    """The latest last."""
    by_tail: dict[int, Line] = msgspec.field(default_factory=dict)
    """By the hash of its last full block."""
    by_block: dict[int, Line] = msgspec.field(default_factory=dict)
    by_part: dict[int, Line] = msgspec.field(default_factory=dict)
    """By the hash of what was said first, and of its last part."""
    count: int = 0


class Memory:
    """Fingerprints of prompts, of each owner apart."""

    def __init__(self, limit: int) -> None:
        """limit: bytes, of which those that a client may name have half."""
        self._limit = limit // 2
        self._shelves: dict[str, _Shelf] = {}
        self._lines: OrderedDict[int, Line] = OrderedDict()
        """By the serial of their latest prompt; the latest used last."""
        self._named: OrderedDict[tuple[str, int], Fingerprint] = OrderedDict()
        """By owner and the hash of an answer's id."""
        self._line_bytes = self._named_bytes = 0

    def __len__(self) -> int:
        return len(self._lines)

    @property
    def nbytes(self) -> int:
        """Bytes of all that is kept, estimated."""
        return self._line_bytes + self._named_bytes

    def named(self, owner: str, name: int) -> Fingerprint | None:
        """The prompt whose answer has this id."""
        return self._named.get((owner, name))

    def base(self, owner: str, session: str, text: bytes, chain: Chain) -> Fingerprint | None:
        """A prompt that this one begins with: of its session, or else of any."""
        shelf = self._shelves.get(owner)
        if shelf is None:
            return None
        lines = shelf.by_session.get(session)
        if lines is not None:
            for line in reversed(lines):
                if extends(text, line.latest, chain):
                    return line.latest
        by_tail = shelf.by_tail
        if by_tail.keys().isdisjoint(chain):
            return None
        for block in reversed(chain):
            found = by_tail.get(block)
            if found is not None and extends(text, found.latest, chain):
                return found.latest
        return None

    def lines(self, owner: str, session: str) -> list[Fingerprint]:
        """The last prompts of a session, the latest first."""
        shelf = self._shelves.get(owner)
        if shelf is None or not session:
            return []
        return [line.latest for line in reversed(shelf.by_session.get(session, ()))]

    def alike(self, new: Fingerprint) -> list[Fingerprint]:
        """Prompts that have a part of this one that tells: what was said first, or last."""
        shelf = self._shelves.get(new.owner)
        if shelf is None:
            return []
        found: dict[int, Fingerprint] = {}
        by_part = shelf.by_part
        for part in (*new.shared.hashes[-_LAST_PARTS:], new.first):
            line = by_part.get(part)
            if line is not None:
                found[line.latest.serial] = line.latest
        return list(found.values())

    def nearest(self, new: Fingerprint) -> list[Fingerprint]:
        """The prompt that begins most like this one, none or one."""
        shelf = self._shelves.get(new.owner)
        if shelf is not None:
            for depth in reversed(_depths(0, len(new.chain))):
                line = shelf.by_block.get(new.chain[depth - 1])
                if line is not None:
                    return [line.latest]
        return []

    def keep(self, new: Fingerprint, session: str, base: Fingerprint | None) -> None:
        """Keep a prompt. base: the one that it goes on with, whose conversation it is of."""
        line = None if base is None else self._lines.pop(base.serial, None)
        if line is None or line.session != session:
            if line is not None:
                self._lines[line.latest.serial] = line
            line = self._begin(new, session)
        else:
            self._go_on(line, new)
        self._lines[new.serial] = line
        size = new.nbytes + _ENTRY_BYTES * (4 + len(line.blocks))
        self._line_bytes += size - line.nbytes
        line.nbytes = size
        while self._line_bytes > self._limit and len(self._lines) > 1:
            self._drop(self._lines.popitem(last=False)[1])

    def replaced(self, old: Fingerprint) -> None:
        """The conversation goes on with its beginning changed: what it was counts no more."""
        line = self._lines.pop(old.serial, None)
        if line is not None:
            self._drop(line)

    def name(self, new: Fingerprint, name: int) -> None:
        """Its answer has this id."""
        named = self._named
        before = named.pop((new.owner, name), None)
        if before is not None:
            self._named_bytes -= before.nbytes + _ENTRY_BYTES
        named[new.owner, name] = new
        self._named_bytes += new.nbytes + _ENTRY_BYTES
        while self._named_bytes > self._limit and len(named) > 1:
            _, gone = named.popitem(last=False)
            self._named_bytes -= gone.nbytes + _ENTRY_BYTES

    def _begin(self, new: Fingerprint, session: str) -> Line:
        shelf = self._shelves.get(new.owner)
        if shelf is None:
            shelf = self._shelves[new.owner] = _Shelf()
        shelf.count += 1
        line = Line(new, session, [], new.first)
        lines = shelf.by_session.setdefault(session, [])
        lines.append(line)
        if len(lines) > LINES:
            del lines[0]
        _index(shelf, line, 0)
        shelf.by_part[line.first] = line
        return line

    def _go_on(self, line: Line, new: Fingerprint) -> None:
        shelf, old = self._shelves[new.owner], line.latest
        if old.chain:
            _forget(shelf.by_tail, old.chain[-1], line)
        if old.last != line.first:
            _forget(shelf.by_part, old.last, line)
        line.latest = new
        lines = shelf.by_session.get(line.session, [])
        if lines and lines[-1] is not line and line in lines:
            lines.remove(line)
            lines.append(line)
        _index(shelf, line, len(old.chain))

    def _drop(self, line: Line) -> None:
        old = line.latest
        self._line_bytes -= line.nbytes
        shelf = self._shelves[old.owner]
        shelf.count -= 1
        lines = shelf.by_session.get(line.session)
        if lines is not None:
            if line in lines:
                lines.remove(line)
            if not lines:
                del shelf.by_session[line.session]
        if old.chain:
            _forget(shelf.by_tail, old.chain[-1], line)
        for block in line.blocks:
            _forget(shelf.by_block, block, line)
        for part in (old.last, line.first):
            _forget(shelf.by_part, part, line)
        if not shelf.count:
            del self._shelves[old.owner]


def _index(shelf: _Shelf, line: Line, before: int) -> None:
    """Have a conversation found by its latest prompt. before: blocks that it had already."""
    new = line.latest
    chain = new.chain
    if chain:
        shelf.by_tail[chain[-1]] = line
        if len(chain).bit_length() != before.bit_length():
            for depth in _depths(before, len(chain)):
                block = chain[depth - 1]
                shelf.by_block[block] = line
                line.blocks.append(block)
    shelf.by_part[new.last] = line


def _forget(kept: dict[int, Line], key: int, line: Line) -> None:
    if kept.get(key) is line:
        del kept[key]


def _depths(before: int, blocks: int) -> list[int]:
    """1, 2, 4, ... up to a chain's length, without those up to `before`."""
    return [1 << bit for bit in range(before.bit_length(), blocks.bit_length())]
