"""The one record of a finished request, made once, at its end.

Metrics, the access log and the explanations all read this struct and nothing else, so that a
number on a dashboard, a log line and an answer of /explain cannot disagree.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Final

import msgspec

from router.types import AdapterNeed, Considered, TierPart

APIS: Final = frozenset(
    {
        "chat",
        "completions",
        "responses",
        "messages",
        "embeddings",
        "generate",
        "rerank",
        "score",
        "classify",
        "pooling",
        "tokenize",
        "audio",
        "models",
        "health",
        "metrics",
        "engine",
        "other",
    }
)
"""Every value the label ``api`` can take; a record with another word is counted as ``other``."""


NOTHING_LOST: Final[Mapping[str, int]] = MappingProxyType({})


class Outcome:
    """How a request ended: the word of `Finished.outcome`, and the metric label ``reason`` of
    errors."""

    OK: Final = "ok"
    """The client got a whole answer of the engine, or one of the router's own that is no error. An
    engine's 4xx is ok too: it is an answer, and tells of the request, not of the replica."""
    CLIENT_GONE: Final = "client_gone"
    """The client closed its connection before its answer was complete: before the API's own end of
    a stream (``[DONE]``, ``message_stop``, ``response.completed``), or before the last byte."""
    CLIENT_SLOW: Final = "client_slow"
    """The client took too long to send its request or to read its answer."""
    BAD_REQUEST: Final = "bad_request"
    TOO_LARGE: Final = "too_large"
    REFUSED_PATH: Final = "refused_path"
    """A path the router does not forward."""
    UNAUTHORIZED: Final = "unauthorized"
    """No key, or none that is known."""
    REFUSED_TENANT: Final = "refused_tenant"
    """A tenant's limit is exceeded, or what was asked for is not allowed to it."""
    UNKNOWN_MODEL: Final = "unknown_model"
    NO_REPLICA: Final = "no_replica"
    """A known model, and no usable replica that serves it."""
    OVERLOADED: Final = "overloaded"
    """The router refused for its own load: connections, or bytes of bodies held."""
    DRAINING: Final = "draining"
    """The router is shutting down."""
    CONNECT: Final = "connect"
    """No connection to the replica: refused, reset, name not found, TLS failure."""
    TIMEOUT_CONNECT: Final = "timeout_connect"
    TIMEOUT_FIRST_BYTE: Final = "timeout_first_byte"
    TIMEOUT_SILENCE: Final = "timeout_silence"
    """The replica started an answer and then was silent for too long."""
    DIED_BEFORE_HEAD: Final = "died_before_head"
    """The replica closed the connection before its answer's head."""
    DIED_MID_STREAM: Final = "died_mid_stream"
    """The replica closed the connection inside its answer's body."""
    UPSTREAM_5XX: Final = "upstream_5xx"
    """The replica answered 5xx, and the client got that answer. 501 and 505 are none: they tell of
    the request."""
    STREAM_ERROR: Final = "stream_error"
    """The replica began a stream with 200 and sent an error as an event of it."""
    BAD_RESPONSE: Final = "bad_response"
    """The replica's answer was not HTTP."""
    INTERNAL: Final = "internal"
    """A fault of the router itself."""


OUTCOMES: Final = frozenset(
    word for name, word in vars(Outcome).items() if name.isupper() and isinstance(word, str)
)
"""Every word of `Outcome`."""


class Finished(msgspec.Struct, gc=False):
    """A finished request. Times in seconds, sizes in bytes, reuse in the engine's tokens.

    The four levels of reuse, each at most the one before unless the index was wrong:

    - *available*: leading prompt tokens that the best eligible replica held, as the index believed.
    - *chosen*: those held by the replica chosen, as the index believed.
    - *predicted*: chosen, rounded to what an engine can deliver
      (`router.telemetry.ledger.deliverable`).
    - *delivered*: what the engine reported as ``cached_tokens``.

    After a retry the levels are those of the last placement.
    """

    request_id: str
    api: str = "other"
    """One of `APIS`."""
    method: str = ""
    path: str = ""
    """The path without its query."""
    model: str = ""
    """As the client wrote it; empty when the request named none."""
    slot: int = -1
    """Of the last replica tried; -1 when none was chosen."""
    replica: str = ""
    """Its name; empty when none was chosen."""
    status: int = 0
    """The HTTP status sent to the client; 0 when none was."""
    outcome: str = Outcome.OK
    """A word of `Outcome`."""
    stream: bool = False
    """The client asked for a stream."""
    retries: int = 0
    """Attempts after the first."""
    tiers: Sequence[TierPart] = ()
    """What of the chosen tokens was expected from tiers behind GPU memory."""
    started: float = 0.0
    """Unix time at which the request's head had come."""
    overhead: float = -1.0
    """What the router added before the replica got the request: from the last byte of the request
    read to its first byte written upstream, without waiting for a connection; -1 when it was not
    sent."""
    ttft: float = -1.0
    """From the last byte of the request read to the first token of a streamed answer; -1 when the
    answer was not a stream or never began."""
    duration: float = 0.0
    """From the request's head to the last byte of the answer."""
    bytes_in: int = 0
    """Of the request's body."""
    bytes_out: int = 0
    """Of the answer's body."""
    prompt_tokens: int = 0
    """From the answer's usage, cached ones included (the Messages API counts them apart: add them);
    0 when unknown."""
    output_tokens: int = 0
    """From the answer's usage; 0 when unknown."""
    delivered: int = -1
    """Cached tokens the engine reported; -1 when it reported none, which is not the same as 0."""
    available: float = 0.0
    chosen: float = 0.0
    predicted: float = 0.0
    cache_full: bool = False
    """At choice time the replica's modelled KV cache was (nearly) full: what was missing is then
    put down to eviction rather than to a wrong index."""
    rendered_differently: bool = False
    """What was missing is put down to the model's template, which put the prompt together in
    another way than was thought."""
    policy: str = ""
    """The policy's name; empty when no policy was asked."""
    reason: str = ""
    """The policy's word for its choice."""
    uncached_tokens: float = 0.0
    """Prompt tokens the replica was expected to compute."""
    tenant: str = ""
    """Whose request it is; empty without tenants."""
    key_id: str = ""
    """Names the tenant's key: the first digits of its hash."""
    considered: Sequence[Considered] = ()
    """The candidates, as the policy saw them."""
    adapter: AdapterNeed | None = None
    """Where its LoRA adapter was loaded; None where it asked for none."""
    prefill_replica: str = ""
    """The other replica that computed the prompt; empty where there was none."""
    prefill_seconds: float = 0.0
    """What that took, until it had told where its blocks are."""
    prefill_skipped: str = ""
    """Why no other replica computed the prompt, where some prefill for others."""
    queued: float = -1.0
    """Seconds that it waited in the queue before it was sent, or until it left; -1 when it did not
    wait."""
    waited_at: str = ""
    """Where: `door`, `lane`, or both; empty when it did not wait."""
    priority: int = 0
    """-1 high, 0 normal, 1 low."""
    queue_ahead: int = 0
    """Requests before it when it began to wait."""
    queue_expected: float = 0.0
    """Seconds that it was expected to wait then."""
    queue_wanted: float = 0.0
    """At the door: the share of KV memory that sessions in progress wanted, at the replica nearest
    to having room."""
    back_in_time: bool = False
    """Its session had paused for no longer than its cache was worth keeping."""
    miss_reason: str = ""
    """Why prompt tokens were computed again (`router.diagnosis.verdict`); empty where requests are
    not diagnosed."""
    missed_tokens: int = 0
    """Prompt tokens that an earlier request had computed, and this one computed again."""
    lost: Mapping[str, int] = NOTHING_LOST
    """The same by reason."""
    changed_part: str = ""
    """The part of the prompt in which it parts from the one before; empty where it does not."""
    changed_at: int = 0
    """Where in that part: canonical bytes from its beginning."""
    context: str = ""
    """The text around that place, where `audit_text` asks for it."""
    overflow: str = ""
    """The target outside of the fleet that it was sent to; empty where it was not, or where the
    target failed before it answered."""
    overflow_why: str = ""
    """Why: `no_replica`, or the queue's `late`, `full`, `expired`."""
    overflow_money: float = 0.0
    """What that cost, by the target's prices."""
    key: str = ""
    """What names the session. A secret of the client's: hashed in logs, absent from
    explanations."""
