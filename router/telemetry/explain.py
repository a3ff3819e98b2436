"""Why a request went where it went: the last requests, and the story of one of them."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Final

import msgspec

from router.telemetry.record import Finished, Outcome
from router.types import TierPart

MOST_SEARCHED: Final = 5000
"""Requests that a search looks at, the newest: a few milliseconds at most."""


class Candidate(msgspec.Struct, omit_defaults=True):
    """A replica that was looked at, as it was when the choice was made."""

    replica: str
    held_tokens: int
    cost: float
    """In the policy's own unit; the least wins."""
    chosen: bool
    queued_tokens: int
    in_flight: int
    adapter: str = ""
    """Where its LoRA adapter stood there: loaded, to be loaded, or waits for a place (others with
    requests take all of them); absent where it asked for none."""


class Wait(msgspec.Struct):
    """What a request waited for in the queue. Seconds."""

    seconds: float
    where: str
    priority: int
    ahead: int
    """Requests before it when it began to wait."""
    expected_seconds: float
    kv_wanted: float
    """At the door: the share of KV memory that sessions in progress wanted, at the replica nearest
    to having room."""


class CacheStory(msgspec.Struct, omit_defaults=True):
    """Why prompt tokens were computed again: see docs/operate/why-did-my-cache-miss.md."""

    reason: str
    missed_tokens: int
    lost: Mapping[str, int]
    """The same by reason."""
    changed_part: str = ""
    """In which part the prompt parts from the one before."""
    changed_at: int = 0
    """Where in that part: canonical bytes from its beginning."""
    context: str = ""
    """The text around that place, where `audit_text` asks for it."""


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
    """The candidates, lowest cost first."""
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
    queue: Wait | None = None
    """Its wait in the queue; absent where it was sent at once."""
    prefill_replica: str = ""
    """The other replica that computed the prompt; absent where there was none."""
    prefill_seconds: float = 0.0
    prefill_skipped: str = ""
    """Why none did, where some prefill for others."""
    tiers: Sequence[TierPart] = ()
    """What of `chosen` was expected from tiers behind GPU memory; absent where nothing was."""
    cache: CacheStory | None = None
    """Why its prompt missed the cache; absent where requests are not diagnosed."""
    overflow: str = ""
    """The target outside of the fleet that took it; absent where none did."""
    overflow_why: str = ""
    overflow_money: float = 0.0
    """What that cost, by the target's prices."""
    tenant: str = ""
    key: str = ""
    """The id of the tenant's key, which is no secret."""


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


class RequestFilter(msgspec.Struct, frozen=True):
    """What requests are asked for. Empty text and None ask for all."""

    replica: str = ""
    model: str = ""
    tenant: str = ""
    status: str = ""
    """A status, a class of them as 5xx, or an outcome's word."""
    reason: str = ""
    text: str = ""
    """What the id has in it."""

    def takes(self, done: Finished) -> bool:
        """Whether a request is one of them."""
        status = str(done.status)
        return (
            (not self.replica or done.replica == self.replica)
            and (not self.model or done.model == self.model)
            and (not self.tenant or done.tenant == self.tenant)
            and (not self.reason or done.reason == self.reason)
            and (not self.text or self.text in done.request_id)
            and (
                not self.status
                or self.status in (status, status[:1] + "xx")
                or self.status == done.outcome
            )
        )


class RequestLine(msgspec.Struct):
    """A line of the list at /requests. Tokens, bytes and seconds; null: not known."""

    request_id: str
    started: float
    api: str
    model: str
    tenant: str
    replica: str
    status: int
    outcome: str
    reason: str
    prompt_tokens: int
    output_tokens: int
    bytes_in: int
    predicted: int
    delivered: int | None
    ttft: float | None
    duration: float
    retries: int


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
        """The latest requests, newest first."""
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

    @property
    def size(self) -> int:
        """Requests kept now."""
        return len(self._kept)

    def search(self, wanted: RequestFilter, count: int) -> list[RequestLine]:
        """The latest of those that are wanted, newest first."""
        found: list[RequestLine] = []
        for done, _ in islice(reversed(self._kept), MOST_SEARCHED):
            if len(found) >= count:
                break
            if wanted.takes(done):
                found.append(_line(done))
        return found

    def find(self, request_id: str) -> Explanation | None:
        """The newest request of this id; None when it is not, or no longer, kept."""
        for done, names in reversed(self._kept):
            if done.request_id == request_id:
                return _explain(done, names)
        return None


def _line(done: Finished) -> RequestLine:
    return RequestLine(
        done.request_id,
        done.started,
        done.api,
        done.model,
        done.tenant,
        done.replica,
        done.status,
        done.outcome,
        done.reason,
        done.prompt_tokens,
        done.output_tokens,
        done.bytes_in,
        int(done.predicted),
        _known(done.delivered),
        done.ttft if done.ttft >= 0.0 else None,
        done.duration,
        done.retries,
    )


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
                _adapter_at(done, slot),
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
        prefill_replica=done.prefill_replica,
        prefill_seconds=done.prefill_seconds,
        prefill_skipped=done.prefill_skipped,
        queue=_wait(done),
        tiers=done.tiers,
        cache=_cache(done),
        overflow=done.overflow,
        overflow_why=done.overflow_why,
        overflow_money=round(done.overflow_money, 6),
        tenant=done.tenant,
        key=done.key_id,
    )


def _wait(done: Finished) -> Wait | None:
    if done.queued < 0.0:
        return None
    return Wait(
        round(done.queued, 4),
        done.waited_at,
        done.priority,
        done.queue_ahead,
        round(done.queue_expected, 4),
        round(done.queue_wanted, 4),
    )


def _cache(done: Finished) -> CacheStory | None:
    if not done.miss_reason:
        return None
    return CacheStory(
        done.miss_reason,
        done.missed_tokens,
        dict(done.lost),
        done.changed_part,
        done.changed_at,
        done.context,
    )


_LEFT: Final = {
    "no_replica": "no replica that serves its model was usable",
    "late": "the queue expected its first token too late",
    "coldest": "another would have been late or refused, and this one had least in caches here",
    "full": "as many requests waited as queue_limit allows",
    "expired": "it had waited for queue_timeout",
}


def _why(done: Finished, candidates: list[Candidate]) -> str:
    if done.slot < 0:
        waited = f" {_waited(done)}" if done.queued >= 0.0 else ""
        if done.overflow:
            return (
                f"It left the fleet for the overflow target {done.overflow}: "
                f"{_LEFT[done.overflow_why]}.{waited}"
            )
        return f"It was sent to no replica: {done.outcome}.{waited}"
    told = [_choice(done, candidates)]
    if done.adapter is not None:
        told.append(_adapter(done))
    if done.retries:
        times = "once" if done.retries == 1 else f"{done.retries} times"
        told.append(f"It was retried {times}; this is about the last attempt.")
    if done.queued >= 0.0:
        told.append(_waited(done))
    told.append(_outcome(done))
    return " ".join(told)


def _waited(done: Finished) -> str:
    told = f"It waited {done.queued:.2f} s behind {done.queue_ahead} others"
    if done.waited_at == "door":
        told += (
            f" at the door, as sessions in progress were expected to want {done.queue_wanted:.0%} "
            "of the KV memory"
        )
    elif done.waited_at == "lane":
        told += " for its replica's turn"
    return f"{told}; {done.queue_expected:.2f} s were expected."


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


def _adapter_at(done: Finished, slot: int) -> str:
    need = done.adapter
    if need is None:
        return ""
    if need.blocked >> slot & 1:
        return "waits for a place"
    return "to be loaded" if need.cold >> slot & 1 else "loaded"


def _adapter(done: Finished) -> str:
    need = done.adapter
    assert need is not None
    seconds = f"which is expected to take {need.load_seconds:.2g} s"
    match _adapter_at(done, done.slot):
        case "loaded":
            return "Its LoRA adapter was loaded there."
        case "to be loaded":
            return f"Its LoRA adapter had to be loaded there, {seconds}."
    return "Its LoRA adapter had to wait there for a place: others with requests took all of them."


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
