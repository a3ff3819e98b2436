from __future__ import annotations

import msgspec
import pytest

from loadgen.engine import EngineParams
from loadgen.simulate import Change, arrangement, coarser, prepare, run_arm, run_loop, simulate
from loadgen.simulate.arms import ARRANGEMENTS
from loadgen.simulate.loop import Loop
from loadgen.workloads import Closed, Fixed, Plan, Poisson, make
from router.prompt.spans import SPANS

ENGINE = coarser(EngineParams(num_blocks=18_751), 64)


def plan(name: str = "agent", rate: float = 40.0, requests: int = 400, **settings: str) -> Plan:
    return Plan(make(name, settings), Poisson(rate), requests=requests)


@pytest.mark.parametrize("name", sorted(ARRANGEMENTS))
def test_every_arm_serves_every_request(name: str) -> None:
    (arm,) = simulate(plan(), [name], replicas=4, engine=ENGINE, objectives_ms={"ttft": 1000})
    assert arm.requests == arm.completed >= 400
    assert arm.errors == {}
    assert arm.hit_rate is not None
    assert 0.2 < arm.hit_rate <= arm.upper_bound
    assert len(arm.replicas) == 4
    assert sum(replica.requests for replica in arm.replicas) == arm.requests
    assert arm.goodput is not None


@pytest.mark.parametrize("name", ["round_robin", "cache_aware", "cache_aware_exact"])
def test_the_hits_way_is_told(name: str) -> None:
    (arm,) = simulate(plan(), [name], replicas=4, engine=ENGINE)
    way = arm.reuse
    assert way is not None
    assert (way.prompt, way.delivered) == (arm.prompt_tokens, arm.cached_tokens)
    assert way.prompt > way.available >= way.chosen >= way.predicted > 0
    # Round robin does not look at who holds what; the others lose little by their choice.
    assert (way.chosen < 0.9 * way.available) == (name == "round_robin")
    assert way.predicted == pytest.approx(way.delivered, rel=0.3)


def test_same_arguments_same_result() -> None:
    def run(seed: int) -> bytes:
        return msgspec.json.encode(
            simulate(plan(), ["random", "cache_aware"], replicas=4, engine=ENGINE, seed=seed)
        )

    assert run(1) == run(1)
    assert run(1) != run(2)


def test_arms_have_the_same_arrivals() -> None:
    arms = simulate(plan("unique"), ["round_robin", "cache_aware"], replicas=4, engine=ENGINE)
    assert arms[0].requests == arms[1].requests
    assert arms[0].prompt_tokens == arms[1].prompt_tokens
    assert arms[0].upper_bound == arms[1].upper_bound == 0.0


def test_cache_aware_beats_cache_blind_where_there_is_something_to_reuse() -> None:
    blind, sticky, aware = simulate(
        plan(requests=1000),
        ["least_loaded", "consistent_hash", "cache_aware"],
        replicas=8,
        engine=ENGINE,
    )
    assert aware.hit_rate is not None
    assert blind.hit_rate is not None
    assert aware.hit_rate > 0.95 * aware.upper_bound
    assert aware.hit_rate > blind.hit_rate + 0.2
    assert aware.ttft_ms.mean < 0.4 * blind.ttft_ms.mean
    assert aware.e2e_ms.mean < sticky.e2e_ms.mean


def test_a_hot_prefix_is_spread_over_the_fleet() -> None:
    (arm,) = simulate(plan("hot", 100.0, 600), ["cache_aware"], replicas=8, engine=ENGINE)
    assert arm.balance is not None
    assert arm.balance.requests_max_over_mean < 2.0
    assert min(replica.requests for replica in arm.replicas) > 20


def test_routers_that_tell_each_other_are_as_good_as_one() -> None:
    one, told, alone = (
        simulate(
            plan(requests=1200),
            ["cache_aware"],
            replicas=8,
            engine=ENGINE,
            routers=routers,
            sync=sync,
        )[0]
        for routers, sync in ((1, 0.0), (4, 0.02), (4, None))
    )
    assert one.hit_rate is not None
    assert told.hit_rate is not None
    assert alone.hit_rate is not None
    assert told.hit_rate > one.hit_rate - 0.02
    assert alone.hit_rate < one.hit_rate - 0.05


@pytest.mark.parametrize("sync", [0.0, 0.5])
def test_all_books_are_empty_at_the_end(sync: float) -> None:
    prepared = prepare(plan(), 64, SPANS)
    loop = Loop(
        prepared,
        arrangement("cache_aware"),
        [ENGINE] * 3,
        SPANS,
        routers=3,
        sync=sync,
        seed=1,
        known_speed=False,
    )
    loop.run()
    for placer in loop.gateways.placers:
        for load in placer.loads:
            assert (load.queued_tokens, load.in_flight) == (0.0, 0)
            assert (load.context_tokens, load.kv_tokens) == (0.0, 0.0)
    assert all(engine.idle for engine in loop.engines)


def test_steps_wait_for_the_ones_before_and_their_pause() -> None:
    prepared = prepare(Plan(make("chat", {"turns": "6"}), Fixed(20.0), requests=100), 64, SPANS)
    loop = Loop(
        prepared,
        arrangement("cache_aware"),
        [ENGINE] * 2,
        SPANS,
        routers=1,
        sync=0.0,
        seed=1,
        known_speed=False,
    )
    records = loop.run()
    ended = {
        (session, step): end
        for session, step, end in zip(records.session, records.step, records.end, strict=True)
    }
    pauses = {(job.session, job.step): job.pause for _, jobs in prepared.sessions for job in jobs}
    checked = 0
    for session, step, sent in zip(records.session, records.step, records.sent, strict=True):
        if step:
            before = ended[session, step - 1]
            assert sent == pytest.approx(before + pauses[session, step])
            checked += 1
    assert checked > 20


def test_a_closed_loop_keeps_its_concurrency() -> None:
    closed = Plan(make("unique"), Closed(concurrency=5), requests=100)
    prepared = prepare(closed, 64, SPANS)
    loop = Loop(
        prepared,
        arrangement("round_robin"),
        [ENGINE],
        SPANS,
        routers=1,
        sync=0.0,
        seed=1,
        known_speed=False,
    )
    records = loop.run()
    assert len(records) == 100
    events = [(at, 1) for at in records.sent] + [(at, -1) for at in records.end]
    running = most = 0
    for _, change in sorted(events):
        running += change
        most = max(most, running)
    assert most == 5


@pytest.mark.parametrize("finish", [False, True])
def test_nothing_is_sent_after_the_duration_unless_sessions_finish(finish: bool) -> None:
    ends = Plan(make("agent"), Poisson(20.0), duration=10.0, finish=finish)
    (arm,) = simulate(ends, ["peer_llmd_precise"], replicas=2, engine=ENGINE)
    prepared = prepare(ends, 64, SPANS)
    if finish:
        assert arm.requests == prepared.requests
    else:
        assert 10 < arm.requests < 0.9 * prepared.requests
        assert arm.duration_s < 20.0


def test_prompts_no_engine_can_hold_are_errors() -> None:
    small = coarser(EngineParams(num_blocks=100), 64)
    (arm,) = simulate(plan("unique"), ["cache_aware"], replicas=2, engine=small)
    assert arm.errors["too_long"] > 10
    assert arm.completed + arm.errors["too_long"] == arm.requests


def test_keys_keep_a_session_in_place() -> None:
    prepared = prepare(plan("chat", 20.0, 200), 64, SPANS, keys=True)
    assert {job.key for _, jobs in prepared.sessions for job in jobs} > {"session-0", "session-1"}
    arm = run_arm(prepared, arrangement("consistent_hash"), [ENGINE] * 4)
    without = run_arm(
        prepare(plan("chat", 20.0, 200), 64, SPANS), arrangement("consistent_hash"), [ENGINE] * 4
    )
    assert arm.hit_rate is not None
    assert without.hit_rate is not None
    assert arm.hit_rate > without.hit_rate


def test_engines_may_differ() -> None:
    fast = msgspec.structs.replace(ENGINE, prefill_rate=40_000.0)
    slow = msgspec.structs.replace(ENGINE, prefill_rate=5_000.0)
    (arm,) = simulate(
        plan("unique", 12.0, 600), ["cache_aware"], replicas=2, engine=[fast, slow], seed=3
    )
    assert arm.replicas[0].prompt_tokens > 2 * arm.replicas[1].prompt_tokens


def test_an_engine_may_become_slow_under_way() -> None:
    slow = msgspec.structs.replace(ENGINE, prefill_rate=ENGINE.prefill_rate / 8)
    prepared = prepare(plan("unique", 8.0, 200), 64, SPANS)
    params = [ENGINE] * 2
    loops = [
        run_loop(prepared, arrangement("round_robin"), params, changes=changes)
        for changes in ([], [Change(10.0, 1, slow)])
    ]
    before, after = (
        {at: first - at for at, first in zip(r.scheduled, r.first, strict=True)}
        for r in (loop.records for loop in loops)
    )
    assert all(after[at] == before[at] for at in before if at < 9.0)
    assert sum(after[at] > 2 * before[at] for at in before if at > 10.0) > 50


def test_a_replica_that_becomes_slow_gets_less() -> None:
    """Its speeds are learned: prefill and decode."""
    slow = msgspec.structs.replace(
        ENGINE,
        prefill_rate=ENGINE.prefill_rate / 4,
        step_base_seconds=ENGINE.step_base_seconds * 4,
    )
    prepared = prepare(plan("unique", 12.0, 800), 64, SPANS)
    loop = run_loop(
        prepared, arrangement("cache_aware"), [ENGINE] * 4, changes=[Change(15.0, 3, slow)]
    )
    loads = loop.gateways.placers[0].loads
    assert loads[3].step_seconds > 2 * loads[0].step_seconds
    assert loads[0].step_seconds == loads[1].step_seconds == loads[2].step_seconds
    late = [
        name
        for at, name in zip(loop.records.scheduled, loop.records.replica, strict=True)
        if at > 40
    ]
    assert late.count("replica-3") < 0.6 * len(late) / 4


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"names": ["no_such"]}, "no policy or gateway is called 'no_such': use one of"),
        ({"names": ["no_such_package:Policy"]}, "cannot import"),
        ({"replicas": 0}, "must be at least 1"),
        ({"sync": -1.0}, "must not be negative"),
        ({"engine": [ENGINE]}, "1 sets of engine parameters for 2 replicas"),
        ({"engine": [ENGINE, coarser(ENGINE, 16)]}, "same block_size"),
    ],
)
def test_what_makes_no_sense_is_refused(arguments: dict[str, object], words: str) -> None:
    values = {"names": ["random"], "replicas": 2, **arguments}
    with pytest.raises(ValueError, match=words):
        simulate(plan(), **values)


def test_the_warm_up_is_played_but_not_counted() -> None:
    """The same run, but for which requests are counted: time starts where the warm-up ends."""
    whole = msgspec.structs.replace(plan("hot", requests=300), seed=5)
    params = [ENGINE] * 4
    runs = []
    for warmup in (0.0, 3.0):
        prepared = prepare(msgspec.structs.replace(whole, warmup=warmup), 64, SPANS)
        runs.append(run_loop(prepared, arrangement("cache_aware"), params).records)
    everything, counted = runs
    late = [at for at in everything.scheduled if at >= 3.0]
    assert 0 < len(counted) == len(late) < len(everything)
    assert sorted(counted.scheduled) == pytest.approx(sorted(at - 3.0 for at in late))
    assert max(counted.end) == pytest.approx(max(everything.end) - 3.0)
