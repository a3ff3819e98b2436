"""Finding the engine that has what a request names, where the fleet's books do not settle it.

A replica that answers 404 for a model, an adapter or a stored response has not failed: another may
have it. A name nobody is known to serve gets one fresh look at the engines, and then, where they
may load adapters by themselves, the word of one engine of each kind.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import TYPE_CHECKING, Final, Protocol

import msgspec

from router.fleet.holders import key_of
from router.http.local_reply import Reply, error_reply, no_replica
from router.http.routes import Treatment
from router.telemetry.record import Outcome

if TYPE_CHECKING:
    from router.diagnosis import Diagnosis
    from router.fleet.replica import Replica
    from router.http.gateway import Gateway
    from router.http.request import Request
    from router.http.upstream import UpstreamConnection
    from router.prompt import Prompt
    from router.scheduling.placer import Placement
    from router.telemetry.record import Finished
    from router.tenants.identity import Identity

_MOST_MISSES: Final = 8
"""Replicas that may say that they do not have it, before the client is told so."""
_LONGEST_REFUSAL: Final = 16 * 1024
"""Bytes of a refusal that are held back to be read; a longer one is passed on unread."""
ID_REACH: Final = 1024
"""Bytes in which an answer names its id: the first field of a response, and of its first event."""
_ID: Final = re.compile(rb'"id"\s*:\s*"([^"\\]{1,256})"')
_SURE: Final = 1.15
"""Times the estimate of a prompt's tokens that must fit."""

LOOK: Final = -1
"""Instead of a mask: a fresh look at the engines comes first."""

_encode = msgspec.json.Encoder().encode


class Seeker(Protocol):
    """The request that seeks: what is read and changed of it here."""

    gateway: Gateway
    request: Request
    record: Finished
    identity: Identity | None
    diagnosis: Diagnosis | None
    prompt: Prompt | None
    placement: Placement | None
    replica: Replica | None
    tried: int


class Step(Enum):
    """What comes next, where an answer is not to be passed on yet."""

    WAIT = "wait"
    """More of it has to come first."""
    ASK_ELSEWHERE = "ask elsewhere"
    """Another replica may have what is asked for."""


class Seek(msgspec.Struct):
    """What an exchange knows of its search. Most exchanges need none."""

    name: str = ""
    """Of the response or conversation that the request continues or asks for."""
    key: int = 0
    """What stands for that name."""
    holder: int = 0
    """The bit of the replica known to hold it, while that is not available."""
    waited: bool = False
    """It was held until a replica would be usable."""
    held: bytes = b""
    """The beginning of an answer that is not on its way yet."""
    refusal: bytes = b""
    """The body of the last 404."""
    missed: int = 0
    """Mask of the replicas that answered so."""
    looked: bool = False
    passed_on: bool = False
    """It went to a replica that is not known to serve its model."""


def seek_of(name: str, identity: Identity | None) -> Seek:
    """For a request that names a stored response or a conversation; or will make one: empty."""
    return Seek(name, key_of(name, _tenant(identity))) if name else Seek()


def _tenant(identity: Identity | None) -> str:
    return "" if identity is None else identity.tenant


def name_in(target: bytes) -> str:
    """ID of a target /v1/responses/ID, /v1/responses/ID/cancel, ...; empty for /v1/responses."""
    parts = target.partition(b"?")[0].split(b"/")
    return parts[3].decode("latin-1") if len(parts) > 3 else ""


# -- before a choice


def fitting(books: Seeker, eligible: int) -> int:
    """Those of the eligible replicas in whose max_model_len the prompt fits."""
    gateway, prompt, model = books.gateway, books.prompt, books.record.model
    assert prompt is not None
    tokens = gateway.placer.estimate(prompt) * _SURE
    return gateway.fleet.fitting(model, eligible, tokens + prompt.output_limit)


def holding(books: Seeker, seek: Seek, serving: int, eligible: int) -> int:
    """The replica that holds what is asked for, where that is known and it was not tried. Drained,
    it still answers for what it holds."""
    gateway = books.gateway
    fleet = gateway.fleet
    holder = gateway.holders.find(seek.key) & serving & ~books.tried
    if not holder:
        return eligible
    found = holder & (fleet.usable | fleet.answering | fleet.last_resort(books.record.model))
    if not found:
        seek.holder = holder
    return found


def others(books: Seeker, seek: Seek, serving: int, *, failed: bool) -> int:
    """No replica that is known to serve this can be asked: who may be asked all the same.

    failed: an attempt has failed. Returns a mask, 0 for nobody, or LOOK.
    """
    gateway = books.gateway
    fleet, model, tried = gateway.fleet, books.record.model, books.tried
    if seek.holder:
        return 0
    # Never one already tried, and the last resort only where nothing was.
    mask = 0 if tried else fleet.last_resort(model)
    if mask:
        return mask
    missed = seek.missed
    if model and missed.bit_count() < _MOST_MISSES:
        new = not serving and fleet.usable and not fleet.expects(model)
        if (new or missed) and not seek.looked and not failed:
            seek.looked = True
            return LOOK
        if gateway.settings.lora_resolver or fleet.guarded:
            mask = fleet.hosts(model)
            if not (mask or serving or fleet.expects(model)):
                mask = fleet.serving("") & ~fleet.alike(missed)
            mask &= fleet.usable & ~tried
            if mask:
                seek.passed_on = True
                return mask
    return 0


def nobody(books: Seeker, seek: Seek, serving: int) -> Reply:
    """The answer where there is nobody to ask, and no attempt has failed."""
    form = books.request.rule.form
    if seek.holder:
        message = f"The replica that holds `{seek.name}` is not available just now; try again."
        return error_reply(form, 503, message, Outcome.NO_REPLICA)
    if seek.refusal and (seek.key or (serving and not serving & ~books.tried)):
        return Reply(404, seek.refusal)
    return no_replica(books.gateway.fleet, form, books.record.model, serving)


# -- after an answer's first bytes


def read_first(
    books: Seeker, seek: Seek, upstream: UpstreamConnection, body: bytes
) -> bytes | Reply | Step:
    """Look at an answer before it goes to the client. Returns what of its body has come, the answer
    that the client gets instead, or what comes next."""
    body = seek.held + body
    seek.held = b""
    status = upstream.status
    if status == 200:
        if books.request.rule.treatment is Treatment.MODELS:
            fleet = books.gateway.fleet
            if not fleet.all_models():
                return body
            # An engine that asks for a key has taken this client's: tell it what the fleet serves.
            if upstream.complete:
                return Reply(200, fleet.models_body())
        elif _remembered(books, seek, upstream, body):
            return body
    elif status in (400, 404) and not upstream.until_close and len(body) <= _LONGEST_REFUSAL:
        if upstream.complete:
            return Step.ASK_ELSEWHERE if _may_have_it(books, seek, upstream, body) else body
    else:
        return body
    seek.held = body
    return Step.WAIT


def id_in(body: bytes) -> str:
    """The id that the beginning of an answer gives it; empty where there is none."""
    found = _ID.search(body, 0, ID_REACH)
    return "" if found is None else found[1].decode("utf-8", "replace")


def _remembered(books: Seeker, seek: Seek, upstream: UpstreamConnection, body: bytes) -> bool:
    """Remember which replica made a response, or found one. False while its id has not come."""
    gateway, placement, replica = books.gateway, books.placement, books.replica
    assert placement is not None
    assert replica is not None
    if seek.passed_on:
        gateway.fleet.had_adapter(replica, books.record.model, had=True)
    if not books.request.rule.keeps:
        return True
    found = id_in(body)
    whole = upstream.complete or len(body) >= ID_REACH or b"\n\n" in body
    if not found and not (whole or upstream.until_close):
        return False
    if gateway.fleet.replicas[placement.slot] is replica:
        if seek.key:
            gateway.holders.remember(seek.key, placement.slot)
        if found:
            gateway.holders.remember(key_of(found, _tenant(books.identity)), placement.slot)
            if books.diagnosis is not None and gateway.diagnoser is not None:
                gateway.diagnoser.answer_named(books.diagnosis, found)
    return True


def _may_have_it(books: Seeker, seek: Seek, upstream: UpstreamConnection, body: bytes) -> bool:
    """A refusal has come whole. Whether another replica may have what this one lacks."""
    gateway, placement, replica = books.gateway, books.placement, books.replica
    assert placement is not None
    assert replica is not None
    fleet, model = gateway.fleet, books.record.model
    serving = fleet.serving(model)
    if upstream.status == 400:
        longer = fleet.longer(model, placement.slot)
        if not longer & fleet.usable & ~books.tried:
            return False
        books.tried |= serving & ~longer
    elif seek.key and _encode(seek.name)[1:-1] in body:
        if not (serving & fleet.usable & ~books.tried and _may_miss(seek)):
            return False
        seek.refusal = body
        seek.missed |= replica.bit
    elif model and _encode(model)[1:-1] in body:
        # Its models have changed since they were read, or it loads adapters and not this one.
        fleet.had_adapter(replica, model, had=False)
        if not _may_miss(seek):
            return False
        seek.refusal = body
        seek.missed |= replica.bit
    else:
        return False
    return True


def _may_miss(seek: Seek) -> bool:
    return seek.missed.bit_count() < _MOST_MISSES
