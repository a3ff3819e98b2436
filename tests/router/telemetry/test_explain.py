"""The stories of /explain."""

from __future__ import annotations

from router.telemetry.explain import Explain
from router.telemetry.record import Finished
from router.types import AdapterNeed


def finished(request_id: str = "r1", **more: object) -> Finished:
    base: dict[str, object] = {
        "slot": 0,
        "replica": "a:8000",
        "status": 200,
        "policy": "cache_aware",
        "reason": "least_cost",
        "considered": ((1, 4000.0, 2.5, 90_000.0, 12), (0, 3000.0, 1.25, 100.0, 1)),
        "prompt_tokens": 5000,
        "available": 4000.0,
        "chosen": 3000.0,
        "predicted": 2992.0,
        "delivered": 2992,
        "key": "user@example.org",
    }
    return Finished(request_id, **{**base, **more})  # type: ignore[arg-type]


def test_a_choice_is_told_with_its_candidates_and_their_loads() -> None:
    explain = Explain(10)
    explain.members({0: "a:8000", 1: "b:8000"})
    explain.add(finished())
    found = explain.find("r1")
    assert found is not None
    assert [(c.replica, c.held_tokens, c.cost, c.chosen) for c in found.candidates] == [
        ("a:8000", 3000, 1.25, True),
        ("b:8000", 4000, 2.5, False),
    ]
    assert (found.candidates[1].queued_tokens, found.candidates[1].in_flight) == (90_000, 12)
    assert "cache_aware chose a:8000 (least_cost) at a cost of 1.25" in found.why
    assert "b:8000 held 1000 tokens more, but had 90000 tokens queued and 12 requests" in found.why
    assert "2992 cached tokens were predicted and 2992 delivered." in found.why
    assert (found.available, found.chosen, found.predicted, found.delivered) == (
        4000, 3000, 2992, 2992,
    )  # fmt: skip


def test_where_the_adapter_was_is_told() -> None:
    explain = Explain(10)
    explain.members({0: "a:8000", 1: "b:8000"})
    told = {}
    for name, need in {
        "loaded": AdapterNeed(0b10, 0, 0, 0.5),
        "cold": AdapterNeed(0b11, 0b10, 0, 0.5),
        "blocked": AdapterNeed(0b11, 0b11, 0, 0.5),
        "base": None,
    }.items():
        explain.add(finished(name, adapter=need))
        told[name] = explain.find(name)
        assert told[name] is not None
    assert [[c.adapter for c in each.candidates] for each in told.values()] == [
        ["loaded", "to be loaded"],
        ["to be loaded", "waits for a place"],
        ["waits for a place", "waits for a place"],
        ["", ""],
    ]
    assert "Its LoRA adapter was loaded there." in told["loaded"].why
    assert "had to be loaded there, which is expected to take 0.5 s." in told["cold"].why
    assert "had to wait there for a place" in told["blocked"].why
    assert "adapter" not in told["base"].why


def test_a_wait_is_told_with_what_was_before_it() -> None:
    explain = Explain(10)
    explain.add(
        finished(
            "door",
            queued=2.5,
            waited_at="door",
            queue_ahead=3,
            queue_expected=2.0,
            queue_wanted=0.93,
        )
    )
    explain.add(finished("lane", queued=0.5, waited_at="lane", priority=1))
    explain.add(finished("left", slot=-1, outcome="client_gone", queued=1.0, waited_at="lane"))
    explain.add(finished("direct"))
    door, lane, left, direct = (explain.find(name) for name in ("door", "lane", "left", "direct"))
    assert door is not None
    assert door.queue is not None
    assert (door.queue.seconds, door.queue.ahead, door.queue.kv_wanted) == (2.5, 3, 0.93)
    assert "waited 2.50 s behind 3 others at the door" in door.why
    assert "want 93% of the KV memory; 2.00 s were expected" in door.why
    assert lane is not None
    assert "for its replica's turn" in lane.why
    assert left is not None
    assert "sent to no replica: client_gone. It waited 1.00 s" in left.why
    assert direct is not None
    assert direct.queue is None
    assert "waited" not in direct.why


def test_a_broken_promise_is_told_with_its_cause() -> None:
    explain = Explain(10)
    explain.add(finished("stale", delivered=992))
    explain.add(finished("full", delivered=992, cache_full=True))
    explain.add(finished("silent", delivered=-1))
    explain.add(finished("more", delivered=3008))
    why = {name: explain.find(name) for name in ("stale", "full", "silent", "more")}
    told = {name: one.why for name, one in why.items() if one is not None}
    assert "2000 were not where the index had them" in told["stale"]
    assert "2000 had been evicted" in told["full"]
    assert "did not report" in told["silent"]
    assert "16 more than the index knew of" in told["more"]
    assert why["silent"] is not None
    assert why["silent"].delivered is None


def test_a_request_sent_nowhere_has_a_story_too() -> None:
    explain = Explain(10)
    explain.add(Finished("r", status=503, outcome="no_replica"))
    found = explain.find("r")
    assert found is not None
    assert found.why == "It was sent to no replica: no_replica."


def test_failure_and_retries_are_told() -> None:
    explain = Explain(10)
    explain.add(finished(outcome="died_mid_stream", retries=2))
    found = explain.find("r1")
    assert found is not None
    assert "retried 2 times" in found.why
    assert "It ended badly: died_mid_stream." in found.why


def test_the_session_key_is_not_told() -> None:
    explain = Explain(10)
    explain.add(finished())
    assert "user@example.org" not in repr(explain.find("r1"))
    assert "user@example.org" not in repr(explain.latest())


def test_only_the_latest_are_kept_newest_first() -> None:
    explain = Explain(3)
    for number in range(5):
        explain.add(finished(f"r{number}"))
    assert [one.request_id for one in explain.latest()] == ["r4", "r3", "r2"]
    assert [one.request_id for one in explain.latest(2)] == ["r4", "r3"]
    assert explain.find("r1") is None
    explain.add(finished("r4", status=500))
    again = explain.find("r4")
    assert again is not None
    assert again.status == 500
    nothing = Explain(0)
    nothing.add(finished())
    assert nothing.latest() == []


def test_a_slot_given_to_another_replica_does_not_rewrite_the_past() -> None:
    explain = Explain(10)
    explain.members({0: "a:8000", 1: "b:8000"})
    explain.add(finished())
    explain.members({0: "a:8000", 1: "c:8000"})
    found = explain.find("r1")
    assert found is not None
    assert {c.replica for c in found.candidates} == {"a:8000", "b:8000"}
