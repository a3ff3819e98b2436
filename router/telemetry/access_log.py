"""The access log: one JSON line for each finished request, or a short one for people at a terminal.

A line is made at once, which takes a few microseconds, and queued for a thread that does nothing
but write (`router.telemetry.lines`). Were the thread to make the lines, it would hold the
interpreter while requests wait. Prompts, keys and headers are not in the log; the session's key is
hashed. docs/reference/access-log.md describes the fields.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
from array import array
from typing import Final

import numpy as np

from router.telemetry.lines import MAX_LINES, Lines
from router.telemetry.logs import clock, printable
from router.telemetry.record import Finished, Outcome
from router.types import Chain

log = logging.getLogger(__name__)

STANDARD_OUTPUT: Final = 1
_MOST_QUOTED: Final = 4096


class AccessLog:
    """Writes a share of the finished requests to a file descriptor, as JSON lines."""

    def __init__(
        self,
        share: float = 1.0,
        *,
        blocks: bool = False,
        fd: int = STANDARD_OUTPUT,
        most_waiting: int = MAX_LINES,
        people: bool = False,
    ) -> None:
        """share of the requests logged, 0 for none; people: text rather than JSON."""
        self.share = share
        self.blocks = blocks
        """Whether lines carry block ids; callers may then pass chains."""
        self._people = people
        self._lines = Lines(fd, "access-log", most=most_waiting, failed=_complain)
        self._started = False
        self._quoted: dict[str, str] = {}
        self._secret = os.urandom(16)
        # An odd factor permutes the 64-bit numbers: equal blocks stay equal, others stay different.
        self._factor = int.from_bytes(os.urandom(8), "little") | 1

    @property
    def dropped(self) -> int:
        """Lines given up."""
        return self._lines.dropped

    def start(self) -> None:
        """Start the thread, unless the share is 0 or it runs."""
        if self.share > 0 and not self._started:
            self._started = True
            self._lines.start()

    def add(self, done: Finished, chain: Chain | None = None, size: int = 0) -> None:
        """Log a request, or not, as the share has it.

        chain and size (canonical bytes) of the prompt are logged only while `blocks` is set.
        """
        share = self.share
        if share < 1.0 and random.random() >= share:
            return
        if self._lines.full():
            return
        if self._people:
            self._lines.add(_text(done))
        else:
            self._lines.add(self._line(done, chain if self.blocks else None, size))

    def close(self) -> None:
        """Write what is waiting and stop. Blocks for a while at most, where nobody reads."""
        self._lines.close()
        self._started = False

    def _line(self, done: Finished, chain: Chain | None, size: int) -> str:
        """Fields that are zero, empty, false or not known are left out."""
        quote = self._quote
        line = (
            f'{{"time":{done.started:.6f},"id":"{done.request_id}","api":"{done.api}",'
            f'"method":"{done.method}","path":{quote(done.path)},"status":{done.status},'
            f'"outcome":"{done.outcome}","duration":{done.duration:.6f}'
        )
        if done.model:
            line += f',"model":{quote(done.model)}'
        if done.slot >= 0:
            line += f',"replica":{quote(done.replica)}'
            if done.policy:
                line += (
                    f',"overhead":{done.overhead:.6f},"policy":{quote(done.policy)},'
                    f'"reason":{quote(done.reason)}'
                )
            if done.ttft >= 0.0:
                line += f',"ttft":{done.ttft:.6f}'
            if done.prompt_tokens:
                line += (
                    f',"prompt_tokens":{done.prompt_tokens},"output_tokens":{done.output_tokens}'
                )
            if done.delivered >= 0:
                line += f',"delivered":{done.delivered}'
            if done.available:
                line += f',"available":{done.available:.0f},"chosen":{done.chosen:.0f}'
            if done.predicted:
                line += f',"predicted":{done.predicted:.0f}'
        if done.bytes_in:
            line += f',"bytes_in":{done.bytes_in}'
        if done.bytes_out:
            line += f',"bytes_out":{done.bytes_out}'
        if done.stream:
            line += ',"stream":true'
        if done.retries:
            line += f',"retries":{done.retries}'
        if done.key:
            line += f',"session":"{self._session(done.key)}"'
        if chain is not None:
            line += f',"prompt_bytes":{size},"blocks":{json.dumps(self._ids(chain))}'
        return line + "}\n"

    def _quote(self, text: str) -> str:
        """A JSON string. Paths and models are few, so their spelling is remembered."""
        found = self._quoted.get(text)
        if found is None:
            found = json.dumps(text)
            if len(self._quoted) >= _MOST_QUOTED:
                self._quoted.clear()
            self._quoted[text] = found
        return found

    def _session(self, key: str) -> str:
        # surrogatepass: the key is a client's, and may hold what UTF-8 does not allow.
        raw = key.encode("utf-8", "surrogatepass")
        return hashlib.blake2b(raw, digest_size=8, key=self._secret).hexdigest()

    def _ids(self, chain: array[int]) -> list[int]:
        """Block ids of 53 bits, which every JSON reader keeps exact."""
        ids = np.frombuffer(chain, dtype=np.uint64) * np.uint64(self._factor)
        found: list[int] = (ids >> np.uint64(11)).tolist()
        return found


def _complain(error: OSError) -> None:
    log.error("cannot write the access log: %s", error)


def _text(done: Finished) -> str:
    """A line for people: what was asked, what came of it, how long it took, who answered."""
    line = f"{clock(done.started)} {done.status or '---'} {done.method} {done.path}"
    if done.model:
        line += f" {done.model}"
    if done.outcome != Outcome.OK:
        line += f", {done.outcome}"
    line += f", {done.duration:.3f} s"
    if done.slot >= 0:
        line += f", by {done.replica}"
    if done.prompt_tokens:
        cached = f", {done.delivered:,} of them cached" if done.delivered >= 0 else ""
        line += f", {done.prompt_tokens:,} tokens in{cached}, {done.output_tokens:,} out"
    return printable(line) + "\n"
