"""What several workers say of the fleet, as one."""

from __future__ import annotations

from typing import Any

import msgspec

from router.admin.console_data import OverflowReport, QueueReport, Waiting
from router.admin.joined import joined_queue, joined_replicas
from router.admin.replicas import ReplicaReport

KNOWN: dict[str, Any] = {
    "name": "a:1", "slot": 0, "url": "http://a:1", "rank": None, "engine": "vllm", "role": "both", "state": "ready",
    "usable": True, "last_error": "", "breaker": "closed", "breaker_opens": 1, "weight": 1.0, "in_flight": 5,
    "queued_tokens": 7, "prefill_rate": 100, "models": ["sim"],
    "max_loras": 4, "adapters_loaded": ["x"], "adapters_with_requests": ["x"], "any_model": False,
    "kv_cache_tokens": 10, "kv_cache_known": True, "kv_cache_assumed": None,
    "kv_offload_tokens": 0, "index_share": 0.5, "prompt_tokens": 100, "hit_rate": 0.5,
    "hit_rate_recent": 0.5, "available_rate": 0.6, "requests": 3, "errors": 1,
    "request_rate": 1.0, "error_share": 0.0, "ttft_p50": 1.0, "ttft_p95": 2.0,
    "engine_hit_rate": None, "engine_running": 1.0, "engine_waiting": 0.0, "engine_kv_usage": 0.1,
    "metrics_age": 1.0, "metrics_missing": "", "restarts": 2, "exact": None, "exact_missing": "",
    "exact_confidence": None, "exact_next": None,
    "faults": {"connect": 1, "timeout": 0, "silent": 0, "died": 0, "status": 2, "engine": 0},
}  # fmt: skip


def report(**other: Any) -> ReplicaReport:
    return msgspec.convert({**KNOWN, **other}, ReplicaReport)


def test_what_workers_count_is_added_and_shares_are_weighed() -> None:
    busy = report(prompt_tokens=300, hit_rate=0.9, request_rate=3.0, ttft_p50=2.0, requests=9)
    idle = report(name="b:1", prompt_tokens=0, hit_rate=None, request_rate=0.0, ttft_p50=None)
    first, second = joined_replicas([[report(), idle], [busy]])
    assert (first.name, second.name) == ("a:1", "b:1")
    assert (first.requests, first.errors, first.prompt_tokens) == (12, 2, 400)
    assert (first.hit_rate, first.ttft_p50, first.request_rate) == (0.8, 1.75, 4.0)
    assert (first.faults.connect, first.faults.status, first.breaker_opens) == (2, 4, 2)
    # What every worker knows of the replica is told once.
    assert (first.in_flight, first.restarts, first.kv_cache_tokens) == (5, 2, 10)
    assert (second.hit_rate, second.ttft_p50) == (None, None)


def test_a_breaker_that_is_open_in_one_worker_is_told() -> None:
    (found,) = joined_replicas([[report()], [report(breaker="open", usable=False)]])
    assert (found.breaker, found.usable) == ("open", False)


def test_adapters_that_any_worker_knows_of_are_told() -> None:
    other = report(adapters_loaded=["y", "x"], adapters_with_requests=[])
    (found,) = joined_replicas([[report()], [other]])
    assert (found.adapters_loaded, found.adapters_with_requests) == (["x", "y"], ["x"])


def test_queues_are_one() -> None:
    one = QueueReport([Waiting("normal", "door", 2)], {"direct": 3}, 4, 1, 0.5, {"a:1": 0.2})
    two = QueueReport(
        [Waiting("normal", "door", 1), Waiting("low", "lane", 5)],
        {"direct": 2, "gone": 1}, 4, 2, 0.25, {"a:1": 0.3},
    )  # fmt: skip
    found = joined_queue([one, two])
    assert found.waiting == [Waiting("normal", "door", 3), Waiting("low", "lane", 5)]
    assert found.outcomes == {"direct": 5, "gone": 1}
    assert (found.sessions_active, found.sessions_idle) == (4, 2)
    assert (found.work_seconds, found.kv_wanted) == (0.75, {"a:1": 0.3})


def test_overflow_targets_are_one_with_one_budget() -> None:
    one, two = (
        QueueReport([], {}, 0, 0, 0.0, {}, [OverflowReport("cloud", *told)])
        for told in (
            (1.0, 5.0, "closed", {"late": 2, "full": 0}, 1),
            (1.5, 5.0, "open", {"late": 1, "full": 3}, 2),
        )
    )
    expected = OverflowReport("cloud", 1.5, 5.0, "open", {"late": 3, "full": 3}, 3)
    assert joined_queue([one, two]).overflow == [expected]
