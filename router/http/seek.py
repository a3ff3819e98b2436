"""Finding the engine that has what a request names, where the fleet's books do not settle it.

A replica that answers 404 for a model, an adapter or a stored response has not failed: another may
have it. A name nobody is known to serve gets one fresh look at the engines, and then, where they
may load adapters by themselves, the word of one engine of each kind.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

import msgspec

from router.fleet.holders import key_of
from router.http.local_reply import answer_no_replica
from router.http.paths import Treatment
from router.telemetry.record import Outcome

if TYPE_CHECKING:
    from router.http.exchange import Exchange
    from router.http.upstream import UpstreamConnection

_MOST_MISSES: Final = 8
"""Replicas that may say that they do not have it, before the client is told so."""
_LONGEST_REFUSAL: Final = 16 * 1024
"""Bytes of a refusal that are held back to be read; a longer one is passed on unread."""
_ID_REACH: Final = 1024
"""Bytes in which an answer names its id: the first field of a response, and of its first event."""
_ID: Final = re.compile(rb'"id"\s*:\s*"([^"\\]{1,256})"')
_SURE: Final = 1.15
"""Times the estimate of a prompt's tokens that must fit."""

_encode = msgspec.json.Encoder().encode


class Seek(msgspec.Struct):
    """What an exchange knows of its search. Most exchanges need none."""

    name: str = ""
    """Of the response or conversation that the request continues or asks for."""
    key: int = 0
    """What stands for that name."""
    holder: int = 0
    """The bit of the replica known to hold it, while that is not available."""
    held: bytes = b""
    """The beginning of an answer that is not on its way yet."""
    refusal: bytes = b""
    """The body of the last 404."""
    missed: int = 0
    """Mask of the replicas that answered so."""
    looked: bool = False
    passed_on: bool = False
    """It went to a replica that is not known to serve its model."""


def seek_of(name: str) -> Seek:
    """For a request that names a stored response or a conversation; or will make one: empty."""
    return Seek(name, key_of(name)) if name else Seek()


def name_in(target: bytes) -> str:
    """ID of a target /v1/responses/ID, /v1/responses/ID/cancel, ...; empty for /v1/responses."""
    parts = target.partition(b"?")[0].split(b"/")
    return parts[3].decode("latin-1") if len(parts) > 3 else ""


# -- before a choice


def fitting(exchange: Exchange, eligible: int) -> int:
    """Those of the eligible replicas in whose max_model_len the prompt fits."""
    gateway, prompt = exchange.gateway, exchange.prompt
    assert prompt is not None
    tokens = gateway.placer.estimate(exchange.model, prompt.size) * _SURE
    return gateway.fleet.fitting(exchange.model, eligible, tokens + prompt.output_limit)


def holding(exchange: Exchange, seek: Seek, serving: int, eligible: int) -> int:
    """The replica that holds what is asked for, where that is known and it was not tried. Drained,
    it still answers for what it holds."""
    gateway = exchange.gateway
    fleet = gateway.fleet
    holder = gateway.holders.find(seek.key) & serving & ~exchange.tried
    if not holder:
        return eligible
    found = holder & (fleet.usable | fleet.answering | fleet.last_resort(exchange.model))
    if not found:
        seek.holder = holder
    return found


def others(exchange: Exchange, serving: int) -> int:
    """No replica that is known to serve this can be asked: who may be asked all the same.

    0: nobody, and the client was answered, or a fresh look at the engines comes first.
    """
    gateway = exchange.gateway
    fleet, model, tried, seek = gateway.fleet, exchange.model, exchange.tried, exchange.seek
    if seek is None:
        seek = exchange.seek = Seek()
    if seek.holder:
        exchange.refuse(
            503,
            f"The replica that holds `{seek.name}` is not available just now; try again.",
            Outcome.NO_REPLICA,
        )
        return 0
    # Never one already tried, and the last resort only where nothing was.
    mask = 0 if tried else fleet.last_resort(model)
    if mask:
        return mask
    missed = seek.missed
    if model and missed.bit_count() < _MOST_MISSES:
        new = not serving and fleet.usable and not fleet.expects(model)
        if (new or missed) and not seek.looked and not exchange.failed:
            seek.looked = True
            _look(exchange)
            return 0
        if gateway.settings.lora_resolver or fleet.guarded:
            mask = fleet.hosts(model)
            if not (mask or serving or fleet.expects(model)):
                mask = fleet.usable & ~fleet.alike(missed)
            mask &= fleet.usable & ~tried
            if mask:
                seek.passed_on = True
                return mask
    if exchange.failed:
        exchange.give_up()
    elif seek.refusal and (seek.key or (serving and not serving & ~tried)):
        exchange.reply(404, seek.refusal)
    else:
        answer_no_replica(exchange, gateway, serving)
    return 0


def _look(exchange: Exchange) -> None:
    gateway = exchange.gateway
    exchange.connecting = task = gateway.loop.create_task(_look_and_place(exchange))
    gateway.tasks.add(task)
    task.add_done_callback(gateway.tasks.discard)


async def _look_and_place(exchange: Exchange) -> None:
    try:
        await exchange.gateway.fleet.look(exchange.model, exchange.tried)
    finally:
        exchange.connecting = None
    exchange.place()


# -- after an answer's first bytes


def read_first(exchange: Exchange, upstream: UpstreamConnection, body: bytes) -> bytes | None:
    """Look at an answer before it goes to the client. Returns what of its body has come, or None:
    more has to come first, or the client gets another answer."""
    seek = exchange.seek
    if seek is None:
        seek = exchange.seek = Seek()
    body = seek.held + body
    seek.held = b""
    status = upstream.status
    if status == 200:
        if exchange.request.rule.treatment is Treatment.MODELS:
            wait = not _models_told(exchange, upstream)
        else:
            wait = not _remembered(exchange, seek, upstream, body)
    elif status in (400, 404) and not upstream.until_close and len(body) <= _LONGEST_REFUSAL:
        wait = not upstream.complete or _asks_elsewhere(exchange, seek, upstream, body)
    else:
        return body
    if not wait:
        return body
    if exchange.upstream is upstream and not upstream.complete:
        seek.held = body
    return None


def _models_told(exchange: Exchange, upstream: UpstreamConnection) -> bool:
    """An engine that asks for a key has taken this client's: tell it what the fleet serves. True
    where the engine's own answer is all there is."""
    gateway = exchange.gateway
    if not gateway.fleet.all_models():
        return True
    if upstream.complete:
        exchange.set_aside()
        exchange.reply(200, gateway.fleet.models_body())
    return False


def _remembered(exchange: Exchange, seek: Seek, upstream: UpstreamConnection, body: bytes) -> bool:
    """Remember which replica made a response, or found one. False while its id has not come."""
    gateway, placement, replica = exchange.gateway, exchange.placement, exchange.replica
    assert placement is not None
    assert replica is not None
    if seek.passed_on:
        gateway.fleet.reread_models(replica)
    if not exchange.request.rule.keeps:
        return True
    found = _ID.search(body, 0, _ID_REACH)
    whole = upstream.complete or len(body) >= _ID_REACH or b"\n\n" in body
    if found is None and not (whole or upstream.until_close):
        return False
    if gateway.fleet.replicas[placement.slot] is replica:
        if seek.key:
            gateway.holders.remember(seek.key, placement.slot)
        if found is not None:
            gateway.holders.remember(key_of(found[1].decode("utf-8", "replace")), placement.slot)
    return True


def _asks_elsewhere(
    exchange: Exchange, seek: Seek, upstream: UpstreamConnection, body: bytes
) -> bool:
    """A refusal has come whole. True where another replica is asked."""
    gateway, placement, replica = exchange.gateway, exchange.placement, exchange.replica
    assert placement is not None
    assert replica is not None
    fleet, model = gateway.fleet, exchange.model
    serving = fleet.serving(model)
    if upstream.status == 400:
        longer = fleet.longer(model, placement.slot)
        if not longer & fleet.usable & ~exchange.tried:
            return False
        exchange.tried |= serving & ~longer
    elif seek.key and _encode(seek.name)[1:-1] in body:
        if not (serving & fleet.usable & ~exchange.tried and _may_miss(seek)):
            return False
        seek.refusal = body
        seek.missed |= replica.bit
    elif model and _encode(model)[1:-1] in body:
        # Its models have changed since they were read.
        fleet.reread_models(replica)
        if not _may_miss(seek):
            return False
        seek.refusal = body
        seek.missed |= replica.bit
    else:
        return False
    exchange.set_aside()
    exchange.place()
    return True


def _may_miss(seek: Seek) -> bool:
    return seek.missed.bit_count() < _MOST_MISSES
