"""Finds for each request the prompt before it, and where the two part; and at its end, why what
they share was computed again."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from time import time
from typing import Final, Protocol

import xxhash

from router.diagnosis.agents import origin_of, session_name
from router.diagnosis.divergence import Change, Divergence, diverge, tells_summary
from router.diagnosis.fingerprint import Fingerprint, take
from router.diagnosis.looks import looks_like
from router.diagnosis.memory import Memory
from router.diagnosis.sample import Sample
from router.diagnosis.verdict import (
    HIT,
    NEVER,
    REASONS,
    Diagnosis,
    Levels,
    ToolResult,
    judge,
    weigh,
)
from router.prompt.prompt import Api, Prompt
from router.prompt.tags import CALL, MEDIA, OTHER, RESULT, TEXT
from router.telemetry.record import Finished


class Replica(Protocol):
    """A replica, as far as a diagnosis needs it."""

    name: str
    slot: int
    block_tokens: int
    restarts: int


Listener = Callable[[Diagnosis, Finished], None]


class Diagnoser:
    """One for each router; called from the event loop's thread only.

    Its mutable state: the fingerprints, and the counts behind the metrics.
    """

    def __init__(
        self,
        memory: int,
        replicas: Callable[[], Sequence[Replica | None]],
        *,
        text_bytes: int = 0,
    ) -> None:
        """memory: bytes of fingerprints. replicas: by slot. text_bytes: of the prompt around a
        place to keep."""
        self.memory = Memory(memory)
        self.sample = Sample()
        """The conversations whose requests are diagnosed."""
        self._replicas = replicas
        self._text_bytes = text_bytes
        self._count = 0
        self.requests = dict.fromkeys(REASONS, 0)
        """Reason -> requests."""
        self.tokens = dict.fromkeys(REASONS, 0)
        """Reason -> prompt tokens that were computed again for it."""
        self.listener: Listener | None = None
        """Is told of each request that is over."""

    @property
    def left_out(self) -> int:
        """Requests that were not diagnosed, since too many came."""
        return self.sample.left_out

    def takes(self, prompt: Prompt, conversation: str, now: float) -> bool:
        """Whether a request is diagnosed: those that ask for it always are. now: monotonic."""
        return bool(prompt.compares_as) or self.sample.takes(conversation, now)

    def asked(
        self,
        prompt: Prompt,
        text: bytes,
        headers: Sequence[bytes],
        session: bytes,
        tenant: str,
        api: str,
    ) -> Diagnosis:
        """A request has come. text: the prompt's canonical bytes, at least one. headers: name,
        value, ... session: the session header's value. tenant: empty without tenants."""
        origin = origin_of(headers, session, prompt.key)
        name = session_name(tenant, origin.session) if origin.session else ""
        items = api == Api.RESPONSES
        memory = self.memory
        self._count += 1
        base = memory.base(tenant, name, text, prompt.chain)
        if base is not None and (base.model != prompt.model or base.arguments != prompt.arguments):
            base = None
        new = take(
            text,
            prompt.chain,
            base=base,
            serial=self._count,
            model=prompt.model,
            owner=tenant,
            arguments=prompt.arguments,
            at=time(),
        )
        old: Fingerprint | None = base
        divergence: Divergence | None = None
        diagnosis = Diagnosis(new, None, None, name, origin.agent, prompt.compares_as)
        if prompt.compares_with:
            named = memory.named(tenant, hash_of(prompt.compares_with))
            diagnosis.missing = named is None
            if named is not None:
                diagnosis.named, old = True, named
                divergence = diverge(text, new, named, items=items, named=True)
        if divergence is None and base is not None:
            divergence = Divergence(Change.NONE, "", 0, base.size)
        if divergence is None:
            found = self._nearest(text, new, memory.lines(tenant, name), items=items)
            if found is not None:
                old, divergence = found
        diagnosis.old, diagnosis.divergence = old, divergence
        self._place_in_session(diagnosis, base, weak=origin.weak)
        if divergence is not None and divergence.index >= 0 and old is not None:
            if divergence.change != Change.NEW:
                diagnosis.looks_like = looks_like(text, new, old, divergence)
            if self._text_bytes:
                half = self._text_bytes // 2
                at = divergence.common
                diagnosis.context = text[max(0, at - half) : at + half]
        before = base
        if before is None and divergence is not None and divergence.stable:
            # One part is another, and the rest goes on.
            before = old
        if before is not None and new.parts > before.parts:
            diagnosis.grown = max(0, new.size - before.size)
            self._note_growth(diagnosis, text, before.parts, api)
        return diagnosis

    def _nearest(
        self, text: bytes, new: Fingerprint, lines: list[Fingerprint], *, items: bool
    ) -> tuple[Fingerprint, Divergence] | None:
        """The earlier prompt that a prompt which goes on with none is a changed form of.

        Of several, one that it is a later step of, then the one it shares most with, then the
        latest.
        """
        best: tuple[Fingerprint, Divergence] | None = None
        order = (-1, -1, -1)
        known = {line.serial for line in lines}
        others = [each for each in self.memory.alike(new) if each.serial not in known]
        if not (lines or others) and tells_summary(text, new):
            # Of a conversation that became a summary, nothing but the system prompt is left.
            others = self.memory.nearest(new)
        for old in (*lines, *others):
            found = diverge(text, new, old, items=items, named=False)
            rank = (int(found.change != Change.NEW), found.common, old.serial)
            if rank > order:
                best, order = (old, found), rank
        return best

    def _place_in_session(
        self, diagnosis: Diagnosis, base: Fingerprint | None, *, weak: bool
    ) -> None:
        """Find the session of a request whose client names none, or names too much."""
        if not weak:
            return
        old, divergence = diagnosis.old, diagnosis.divergence
        before = base
        if before is None and divergence is not None and divergence.change != Change.NEW:
            before = old
        if before is not None and before.session:
            diagnosis.session = before.session
        else:
            diagnosis.session = session_name(
                diagnosis.new.owner, f"{diagnosis.session}#{diagnosis.new.serial}"
            )

    def _note_growth(self, diagnosis: Diagnosis, text: bytes, first: int, api: str) -> None:
        """What a step adds to the prompt before: its tool results, and the last tool called.

        first: the first part that is new.
        """
        new = diagnosis.new
        # It is the latest that these belong to: all of them are its own.
        tags, starts, hashes = new.shared.tags, new.shared.starts, new.shared.hashes
        called = tags.rfind(CALL, first)
        if called >= 0:
            end = starts[called + 1] if called + 1 < len(starts) else new.size
            name = _TOOL_NAME.search(text, starts[called], end)
            # In the Responses API a namespace may stand before it, which is null where none is.
            diagnosis.tool = name[1].decode("utf-8", "replace") if name is not None else ""
        at = tags.find(RESULT, first)
        results: list[ToolResult] = []
        while at >= 0 and len(results) < _MOST_RESULTS:
            # The chat API says whose result it is behind the text, the others before it.
            said = at - 1 if api == Api.CHAT else at + 1
            if first <= said < len(tags) and tags[said] in _SAID:
                end = starts[said + 1] if said + 1 < len(starts) else new.size
                results.append(ToolResult(end - starts[said], hashes[said]))
            at = tags.find(RESULT, at + 1)
        diagnosis.results = tuple(results)

    def answer_named(self, diagnosis: Diagnosis, name: str) -> None:
        """The answer has this id, by which a client may name it."""
        diagnosis.answer = hash_of(name)

    def foreseen(
        self, diagnosis: Diagnosis, tokens: float, available: float, held: float, block: int
    ) -> list[bytes]:
        """Headers of the answer that tell what will be computed again, as far as that is known
        before it: name, value, ... Tokens as its placement has them."""
        divergence = diagnosis.divergence
        reason, missed = NEVER, 0
        if divergence is not None and divergence.change != Change.NEW:
            levels = Levels(tokens, available, held, held)
            lost = weigh(diagnosis, levels, alive=self._alive(diagnosis.old), block=block)
            reason = max(lost, key=lambda why: lost[why]) if lost else HIT
            missed = int(sum(lost.values()))
        told = [b"x-warmroute-miss-reason", reason.encode(), b"x-warmroute-missed-tokens"]
        told.append(b"%d" % missed)
        if divergence is not None and divergence.part:
            where = f"{divergence.part}; place={divergence.place}"
            told += (b"x-warmroute-changed", where.encode())
        return told

    def ended(self, diagnosis: Diagnosis, done: Finished, replica: Replica | None) -> None:
        """The request is over. Completes its record. replica: that answered it, None for none."""
        if replica is None or done.status != 200:
            return
        new, old = diagnosis.new, diagnosis.old
        new.tokens = done.prompt_tokens
        new.slot, new.replica, new.restarts = replica.slot, replica.name, replica.restarts
        new.session = diagnosis.session
        judge(diagnosis, done, alive=self._alive(old), block=replica.block_tokens)
        base = old if old is not None and _goes_on(diagnosis) else None
        if old is not None and _is_changed_form(diagnosis, old):
            self.memory.replaced(old)
        self.memory.keep(new, diagnosis.session, base)
        if diagnosis.answer:
            self.memory.name(new, diagnosis.answer)
        self.requests[diagnosis.reason] += 1
        for reason, count in diagnosis.lost.items():
            self.tokens[reason] += count
        done.miss_reason = diagnosis.reason
        done.missed_tokens = diagnosis.missed
        divergence = diagnosis.divergence
        if divergence is not None and divergence.part:
            done.changed_part, done.changed_at = divergence.part, divergence.place
        done.lost = diagnosis.lost
        if diagnosis.context:
            done.context = diagnosis.context.decode("utf-8", "replace")
        if self.listener is not None:
            self.listener(diagnosis, done)

    def _alive(self, old: Fingerprint | None) -> bool:
        """Whether the replica that computed a prompt has the cache that it had then."""
        if old is None:
            return True
        replicas = self._replicas()
        replica = replicas[old.slot] if 0 <= old.slot < len(replicas) else None
        return (
            replica is not None and replica.name == old.replica and replica.restarts == old.restarts
        )


_MOST_RESULTS: Final = 16
"""Tool results of one step that are looked at."""
_SAID: Final = frozenset((TEXT, MEDIA, OTHER))
_TOOL_NAME: Final = re.compile(rb'\x12"([^"\\]{1,64})"')


def _goes_on(diagnosis: Diagnosis) -> bool:
    divergence = diagnosis.divergence
    old = diagnosis.old
    return (
        divergence is not None
        and old is not None
        and divergence.change == Change.NONE
        and diagnosis.new.size >= old.size
    )


def _is_changed_form(diagnosis: Diagnosis, old: Fingerprint) -> bool:
    """Whether a prompt is the next of its conversation, with its front changed. Of messages that
    changed both forms are kept: agents try several ways from one point."""
    divergence = diagnosis.divergence
    return (
        divergence is not None
        and divergence.change in (Change.SYSTEM, Change.TOOLS)
        and divergence.stable
        and diagnosis.session == old.session
    )


def hash_of(name: str) -> int:
    """What stands for the id of an answer."""
    made: int = xxhash.xxh3_64_intdigest(name.encode("utf-8", "surrogatepass"))
    return made
