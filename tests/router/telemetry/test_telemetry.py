"""Counting finished requests."""

from __future__ import annotations

from router.telemetry.histogram import Histogram
from router.telemetry.record import OUTCOMES, Finished, Outcome
from router.telemetry.series import Row
from router.telemetry.telemetry import NONE, OTHER, Telemetry


def finished(model: str = "llama", replica: str = "a:1", **more: object) -> Finished:
    base: dict[str, object] = {"api": "chat", "slot": 0 if replica else -1, "status": 200}
    return Finished("r", model=model, replica=replica, **{**base, **more})  # type: ignore[arg-type]


def names(telemetry: Telemetry) -> set[tuple[str, str]]:
    return {(series.replica, series.model) for series in telemetry.series()}


def only(telemetry: Telemetry) -> Row:
    (row,) = telemetry.rows()
    return row


def test_one_call_counts_everything() -> None:
    telemetry = Telemetry()
    telemetry.observe(
        finished(
            retries=2, overhead=6e-5, ttft=0.3, duration=4.2, prompt_tokens=3000, output_tokens=200,
            delivered=2000, available=2900, chosen=2500, predicted=2496, policy="p", reason="cost",
        )
    )  # fmt: skip
    row = only(telemetry)
    series = row.series
    assert row.codes == {200: 1}
    assert row.errors == {}
    assert (series.prompt_tokens, series.output_tokens) == (3000, 200)
    assert (series.ttft.sum, series.duration.sum, telemetry.overhead.sum) == (0.3, 4.2, 6e-5)
    assert sum(series.ttft.counts) == sum(series.duration.counts) == 1
    assert series.ledger.load_shed == 400
    assert telemetry.retries == 2
    assert telemetry.decisions == {("p", "cost"): 1}


def test_what_did_not_happen_is_not_counted() -> None:
    telemetry = Telemetry()
    telemetry.observe(finished(duration=1.0))
    series = only(telemetry).series
    assert sum(series.ttft.counts) == sum(telemetry.overhead.counts) == 0
    assert telemetry.decisions == {}
    assert series.ledger.unreported == 0


def test_a_refused_request_is_counted_and_has_no_times() -> None:
    telemetry = Telemetry()
    telemetry.observe(finished("x", "", status=404, outcome=Outcome.UNKNOWN_MODEL, duration=1e-4))
    row = only(telemetry)
    assert (row.series.replica, row.series.model) == (NONE, OTHER)
    assert row.codes == {404: 1}
    assert row.errors == {"unknown_model": 1}
    assert sum(row.series.duration.counts) == 0


def test_clients_cannot_make_labels() -> None:
    telemetry = Telemetry(max_models=3)
    for number in range(50):
        telemetry.observe(finished(f"made-up-{number}", "", status=404))
        telemetry.observe(finished(f"made-up-{number}", status=404))
        telemetry.observe(finished("", api=f"/path/{number}", outcome=f"reason-{number}"))
    assert names(telemetry) == {(NONE, OTHER), ("a:1", OTHER), ("a:1", NONE)}
    assert {reason for row in telemetry.rows() for reason in row.errors} == {OTHER}
    for number in range(50):
        telemetry.observe(finished(f"served-{number}"))
    assert len(names(telemetry)) == 3 + 3
    # Nothing that a client wrote is remembered beyond the labels there are.
    assert len(telemetry._found) < 10


def test_a_model_gets_its_name_once_it_is_served() -> None:
    telemetry = Telemetry()
    telemetry.observe(finished("llama", status=500, outcome=Outcome.UPSTREAM_5XX))
    assert names(telemetry) == {("a:1", OTHER)}
    telemetry.observe(finished("llama"))
    telemetry.observe(finished("llama", status=500, outcome=Outcome.UPSTREAM_5XX))
    by_model = {row.series.model: row for row in telemetry.rows()}
    assert by_model["llama"].codes == {200: 1, 500: 1}
    assert by_model["llama"].errors == {"upstream_5xx": 1}


def test_decisions_are_bounded() -> None:
    telemetry = Telemetry(max_decisions=5)
    for number in range(20):
        telemetry.observe(finished(policy="mine", reason=f"score {number}"))
    assert len(telemetry.decisions) == 6
    assert telemetry.decisions["mine", OTHER] == 15


def test_failed_attempts_are_counted_apart() -> None:
    telemetry = Telemetry()
    telemetry.attempt_failed("a:1", Outcome.CONNECT)
    telemetry.attempt_failed("a:1", Outcome.CONNECT)
    telemetry.attempt_failed("a:1", "odd")
    assert telemetry.attempts == {("a:1", "connect"): 2, ("a:1", OTHER): 1}


def test_replicas_that_left_are_dropped_after_a_while() -> None:
    telemetry = Telemetry(keep_seconds=100.0)
    for name in ("a:1", "b:1"):
        telemetry.observe(finished(replica=name))
        telemetry.attempt_failed(name, Outcome.CONNECT)
    telemetry.retired("a:1", now=0.0)
    telemetry.sweep(now=99.0)
    assert len(names(telemetry)) == 2
    telemetry.sweep(now=100.0)
    assert names(telemetry) == {("b:1", "llama")}
    assert telemetry.attempts == {("b:1", "connect"): 1}
    telemetry.observe(finished(replica="a:1"))  # one was still on its way
    assert len(names(telemetry)) == 2
    telemetry.sweep(now=101.0)
    assert len(names(telemetry)) == 1


def test_a_replica_that_came_back_keeps_its_counters() -> None:
    telemetry = Telemetry(keep_seconds=100.0)
    telemetry.observe(finished())
    telemetry.retired("a:1", now=0.0)
    telemetry.revived("a:1")
    telemetry.sweep(now=1e6)
    assert names(telemetry) == {("a:1", "llama")}


def test_ledgers_are_summed_over_models() -> None:
    telemetry = Telemetry()
    for model in ("x", "y"):
        telemetry.observe(finished(model, prompt_tokens=100, delivered=40))
    assert telemetry.ledgers()["a:1"].prompt == 200
    assert telemetry.ledgers()["a:1"].hit_rate == 0.4


def test_bounds_are_inclusive() -> None:
    histogram = Histogram.over((1.0, 2.0))
    for value in (0.5, 1.0, 1.5, 2.0, 2.5):
        histogram.observe(value)
    assert histogram.counts == [2, 2, 1]
    assert histogram.cumulative() == [2, 4, 5]


def test_every_outcome_is_a_word_fit_for_a_label() -> None:
    assert len(OUTCOMES) >= 18
    assert all(word.replace("_", "").isalnum() and word == word.lower() for word in OUTCOMES)
