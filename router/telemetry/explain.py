"""Why a request went where it went: the last requests, and the story of one of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping

import msgspec

from router.telemetry.record import Finished, Outcome


class Candidate(msgspec.Struct, omit_defaults=True):
    """A replica that was looked at, as it was when the choice was made."""

    replica: str
    held_tokens: int
    cost: float
    """In the policy's own unit; the least wins."""
    chosen: bool
    queued_tokens: int
    in_flight: int


class Explanation(msgspec.Struct, omit_defaults=True):
    """The answer of /explain/ID. Tokens and seconds."""

    request_id: str
    started: float
    api: str
    model: str
    status: int
    outcome: str
    replica: str
    policy: str
    reason: str
    why: str
    """In words: why this replica, and what became of the prediction."""
    candidates: list[Candidate]
    """Cheapest first."""
    prompt_tokens: int
    output_tokens: int
    available: int
    chosen: int
    predicted: int
    delivered: int | None
    uncached_tokens: int
    overhead: float | None
    ttft: float | None
    duration: float
    retries: int


class Summary(msgspec.Struct):
    """A line of the list at /explain."""

    request_id: str
    started: float
    model: str
    replica: str
    status: int
    outcome: str
    predicted: int
    delivered: int | None


class Explain:
    """The last finished requests, in memory."""

    def __init__(self, size: int) -> None:
        """size: requests kept; 0 keeps none."""
        self._kept: deque[tuple[Finished, Mapping[int, str]]] = deque(maxlen=size)
        self._names: Mapping[int, str] = {}

    def members(self, names: Mapping[int, str]) -> None:
        """The fleet changed: slot -> name. Requests kept earlier go on with the names of their
        time."""
        self._names = dict(names)

    def add(self, done: Finished) -> None:
        """Keep a request. The record must not change any more."""
        self._kept.append((done, self._names))

    def latest(self, count: int = 50) -> list[Summary]:
        """The newest first."""
        kept = list(self._kept)[-count:] if count > 0 else []
        return [
            Summary(
                done.request_id,
                done.started,
                done.model,
                done.replica,
                done.status,
                done.outcome,
                int(done.predicted),
                _known(done.delivered),
            )
            for done, _ in reversed(kept)
        ]

    def find(self, request_id: str) -> Explanation | None:
        """The newest request of this id; None when it is not, or no longer, kept."""
        for done, names in reversed(self._kept):
            if done.request_id == request_id:
                return _explain(done, names)
        return None


def _known(value: int) -> int | None:
    return value if value >= 0 else None


def _explain(done: Finished, names: Mapping[int, str]) -> Explanation:
    candidates = []
    for slot, held, cost, queued, in_flight in done.considered:
        candidates.append(
            Candidate(
                names.get(slot, f"slot {slot}"),
                int(held),
                cost,
                slot == done.slot,
                int(queued),
                in_flight,
            )
        )
    candidates.sort(key=lambda candidate: candidate.cost)
    return Explanation(
        request_id=done.request_id,
        started=done.started,
        api=done.api,
        model=done.model,
        status=done.status,
        outcome=done.outcome,
        replica=done.replica,
        policy=done.policy,
        reason=done.reason,
        why=_why(done, candidates),
        candidates=candidates,
        prompt_tokens=done.prompt_tokens,
        output_tokens=done.output_tokens,
        available=int(done.available),
        chosen=int(done.chosen),
        predicted=int(done.predicted),
        delivered=_known(done.delivered),
        uncached_tokens=int(done.uncached_tokens),
        overhead=done.overhead if done.overhead >= 0 else None,
        ttft=done.ttft if done.ttft >= 0 else None,
        duration=done.duration,
        retries=done.retries,
    )


def _why(done: Finished, candidates: list[Candidate]) -> str:
    if done.slot < 0:
        return f"It was sent to no replica: {done.outcome}."
    told = [_choice(done, candidates)]
    if done.retries:
        times = "once" if done.retries == 1 else f"{done.retries} times"
        told.append(f"It was retried {times}; this is about the last attempt.")
    told.append(_outcome(done))
    return " ".join(told)


def _choice(done: Finished, candidates: list[Candidate]) -> str:
    by = f"{done.policy or 'The router'} chose {done.replica} ({done.reason or 'no reason given'})"
    winner = next((candidate for candidate in candidates if candidate.chosen), None)
    others = [candidate for candidate in candidates if not candidate.chosen]
    if winner is None:
        return f"{by}."
    if not others:
        return f"{by}: no other replica was looked at."
    second = others[0]
    told = (
        f"{by} at a cost of {winner.cost:.3g}; the next was {second.replica} at {second.cost:.3g}."
    )
    deepest = max(others, key=lambda candidate: candidate.held_tokens)
    lead = winner.held_tokens - deepest.held_tokens
    if winner.held_tokens == 0 and deepest.held_tokens == 0:
        return f"{told} None of them held a part of the prompt."
    if lead >= 0:
        same = " as much as any other" if lead == 0 else f" {lead} more than any other"
        return f"{told} It held {winner.held_tokens} tokens of the prompt,{same}."
    told += f" {deepest.replica} held {-lead} tokens more"
    return (
        f"{told}, but had {deepest.queued_tokens} tokens queued and {deepest.in_flight} requests "
        f"in flight, against {winner.queued_tokens} and {winner.in_flight}."
    )


def _outcome(done: Finished) -> str:
    predicted = int(done.predicted)
    if done.outcome != Outcome.OK:
        return f"It ended badly: {done.outcome}."
    if done.delivered < 0:
        return f"{predicted} cached tokens were predicted; the engine did not report any number."
    off = done.delivered - predicted
    told = f"{predicted} cached tokens were predicted and {done.delivered} delivered"
    if off >= 0:
        return f"{told}." if off == 0 else f"{told}, {off} more than the index knew of."
    if done.cache_full:
        return f"{told}: {-off} had been evicted, most likely, since the cache was full."
    if done.rendered_differently:
        return f"{told}: {-off} were in a part that the model's template renders differently."
    return f"{told}: {-off} were not where the index had them."
