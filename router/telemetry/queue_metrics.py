"""The metrics of the queue, as the catalogue lists them."""

from __future__ import annotations

from typing import Final

from router.telemetry.metric import Metric

WORTH_EXPECTING_S: Final = 0.25
"""Shorter waits that were expected are not compared with the real ones: they are steps."""
CACHE_LOST: Final = {
    "evicted": "evicted",
    "sent_elsewhere": "moved",
    "replica_lost": "replica_lost",
}
"""Those of the diagnoses' reasons that a cache which was there explains, and their word here."""

WAITING = Metric(
    "warmroute_queue_waiting",
    "gauge",
    "requests",
    "Requests that wait in the queue: at the door, or in the lane of their replica.",
    ("priority", "where"),
)
WORK = Metric(
    "warmroute_queue_work_seconds",
    "gauge",
    "seconds",
    "Prefill that waits in the queue, in seconds of one replica's time: what to scale by.",
)
WAIT = Metric(
    "warmroute_queue_wait_seconds",
    "histogram",
    "seconds",
    "How long requests waited in the queue, of those that did, whether or not they were sent.",
    ("priority",),
)
OUTCOMES = Metric(
    "warmroute_queue_outcomes_total",
    "counter",
    "requests",
    "What became of requests at the queue: sent at once (direct) or after a wait at the door "
    "(parked) or in a lane (held), refused, expired, or gone with their client.",
    ("outcome",),
)
STRETCH = Metric(
    "warmroute_queue_stretch_ratio",
    "gauge",
    "ratio",
    "Waits for first tokens in relation to what was predicted; at least 1. Predictions are "
    "multiplied by it.",
)
SESSIONS = Metric(
    "warmroute_sessions",
    "gauge",
    "sessions",
    "Sessions in progress: active ones have a request that waits or runs, idle ones may come back.",
    ("state",),
)
KV_WANTED = Metric(
    "warmroute_session_kv_wanted_ratio",
    "gauge",
    "ratio",
    "KV memory that sessions in progress are expected to want again, of the replica's; new ones "
    "wait where it would exceed queue_door. Absent where the door does nothing.",
    ("replica",),
)
WAIT_ERROR = Metric(
    "warmroute_queue_wait_to_expected_ratio",
    "histogram",
    "ratio",
    "How long requests waited in relation to what was expected when they began to, of those that "
    "were sent and of which at least 0.25 s was expected. Not at 1: do not believe Retry-After and "
    "x-warmroute-queue-expected-seconds.",
    ("where",),
)
REUSE_LOST = Metric(
    "warmroute_session_reuse_lost_tokens_total",
    "counter",
    "tokens",
    "Prompt tokens computed again for sessions that came back while their cache was worth keeping, "
    "by why: evicted, evicted while the request waited in the queue (waited), sent to another "
    "replica (moved), or lost with their replica. Needs diagnosis, and a door.",
    ("reason",),
)
OF_QUEUE = (
    WAITING, WORK, WAIT, WAIT_ERROR, OUTCOMES, STRETCH, SESSIONS, KV_WANTED, REUSE_LOST,
)  # fmt: skip
