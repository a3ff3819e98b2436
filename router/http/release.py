"""Blocks that a prefill replica keeps for nobody: have them fetched, which is what frees them."""

from __future__ import annotations

import asyncio
from secrets import token_hex
from time import monotonic
from typing import TYPE_CHECKING

from router.disaggregation import bodies
from router.disaggregation.disaggregation import Leg
from router.http.side_request import Answer, ask, with_body
from router.telemetry.record import Outcome
from router.types import slots

if TYPE_CHECKING:
    from router.disaggregation.disaggregation import Disaggregation
    from router.http.gateway import Gateway
    from router.http.request import Request

_SECONDS = 1.0
"""What a decode replica may take. After that the request is closed: an engine that aborts a request
whose blocks it was to fetch has them freed."""
_NOT_SENT = (Outcome.CONNECT, Outcome.TIMEOUT_CONNECT)


async def release(
    gateway: Gateway,
    apart: Disaggregation,
    asked: Request,
    params: bytes,
    model: str,
    first: int,
    tried: int,
) -> None:
    """Send what the prefill replica was asked to a decode replica, which fetches the blocks.

    first: the slot to ask before others; -1 for any. tried: a mask of those that were told of the
    blocks before and failed. Whether they fetched them is not known, so that what is read now may
    be another prompt's: it must not become a cached prefix of this one.
    """
    fleet = gateway.fleet
    salt = ""
    if tried:
        salt = token_hex(8)
        if not bodies.takes_salt(asked.rule.path):
            apart.counts[Leg.STRANDED] += 1
            return
    request = with_body(asked, bodies.prefill_body(asked.body, asked.rule.path, params, salt))
    usable = fleet.serving(model) & fleet.usable & ~tried
    order = sorted(slots(usable), key=lambda slot: slot != first)
    for slot in order:
        replica = fleet.replicas[slot]
        if replica is None:
            continue
        try:
            async with asyncio.timeout(_SECONDS):
                found = await ask(gateway, replica, request)
        except TimeoutError:
            done = fleet.usable >> slot & 1
        else:
            if not isinstance(found, Answer) and found.outcome in _NOT_SENT:
                fleet.failed(slot, found.reason or "connect", monotonic())
                continue
            done = isinstance(found, Answer) and found.status == 200
        if done:
            apart.counts[Leg.RELEASED] += 1
            return
        break
    apart.counts[Leg.STRANDED] += 1
