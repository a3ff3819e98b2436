"""A replica's load: what was sent there and is not finished.

Every request charges it when it is routed, gives part of it back at its first token and the rest
at its end; this router's own requests and those of the others alike. Tokens are whole numbers
held in floats, so that the sums are exact and return to zero.

`kv_tokens` (A in the policies' cost) approximates "prompt tokens held by running requests, shared
blocks counted once" in constant time: the sum of what each running request had to compute on
arrival. What it found cached is either shared with a running request, and already counted, or was
idle, and is left out.
"""

from __future__ import annotations

from router.types import STEP_REQUEST_SECONDS, STEP_TOKEN_SECONDS, Load


def charge(load: Load, uncached: float, tokens: float, now: float) -> None:
    """A request of `tokens` prompt tokens, `uncached` of them to compute, was sent to this
    replica."""
    load.in_flight += 1
    load.context_tokens += tokens
    load.kv_tokens += uncached
    queue_up(load, uncached, now)


def queue_up(load: Load, uncached: float, now: float) -> None:
    """Tokens are to be prefilled behind what is queued."""
    load.queued_tokens += uncached
    busy = load.busy_until
    load.busy_until = (busy if busy > now else now) + uncached / load.prefill_rate


def first_token(load: Load, uncached: float, now: float) -> None:
    """Its first token came. Prefills are computed in order, so the work still queued begins now."""
    queued = load.queued_tokens - uncached
    load.queued_tokens = queued
    load.prefilled_tokens += uncached
    load.busy_until = now + queued / load.prefill_rate


def prefill_done(load: Load, uncached: float, now: float) -> None:
    """Its prefill is taken as done, or will not be done. The replica cannot be busy for longer
    than with what is still queued."""
    queued = load.queued_tokens - uncached
    load.queued_tokens = queued
    latest = now + queued / load.prefill_rate
    if load.busy_until > latest:
        load.busy_until = latest


def stop_loading(load: Load, seconds: float, ends: float, now: float) -> None:
    """What was to be loaded from a tier in so many seconds, until `ends`, is not needed: those
    behind it wait for what is left of it no longer."""
    if seconds and ends > now:
        load.loading_until = max(now, load.loading_until - min(seconds, ends - now))


def finished(load: Load, uncached: float, tokens: float) -> None:
    """Take a request that ended after its first token out of the load."""
    load.in_flight -= 1
    load.context_tokens -= tokens
    load.kv_tokens -= uncached


def refund(load: Load, uncached: float, tokens: float, now: float) -> None:
    """A request whose first token was not counted has ended: it was refused, cancelled, or lost
    with its connection."""
    prefill_done(load, uncached, now)
    finished(load, uncached, tokens)


def expected_step(load: Load) -> float:
    """Seconds that the requests in flight add to a decode step by the default constants."""
    return STEP_REQUEST_SECONDS * load.in_flight + STEP_TOKEN_SECONDS * load.context_tokens
