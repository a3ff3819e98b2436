"""Comparisons as they go: refused at once, cut short, with what is known of each replica."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from loadgen.client.driver import Progress
from loadgen.live import compare
from loadgen.live.compare import DIRECT, Comparing, Comparison, Contender, FleetSpec
from loadgen.live.findings import Run, summary
from loadgen.live.run import RunError
from loadgen.replicas import SimulatedFleet
from loadgen.results.schema import Arm
from loadgen.workloads import Fixed, Plan, make


class Watched:
    """A stage that does something when a run goes on, or ends."""

    def __init__(
        self,
        progress: Callable[[Progress], None] = lambda _: None,
        ended: Callable[[], None] = lambda: None,
    ) -> None:
        self.progress = progress
        self._ended = ended

    def started(self, arm: str, load: float, repeat: int, plan: Plan) -> None: ...

    def ended(self, arm: Arm) -> None:
        self._ended()


def plan(requests: int = 30, **settings: str) -> Plan:
    workload = make("hot", {"output_tokens": "2", "others": "3", **settings})
    return Plan(workload, Fixed(200.0), requests=requests)


def comparing(
    urls: list[str], *contenders: Contender, stage: Watched | None = None, **fields: object
) -> Comparing:
    asked = {"plans": [(0.0, plan())], "fleet": FleetSpec(urls=tuple(urls)), **fields}
    return Comparing(
        Comparison(contenders=contenders or [Contender(DIRECT)], **asked),  # type: ignore[arg-type]
        stage or Watched(),
    )


def said(under_way: Comparing) -> list[str]:
    """Its warnings, but for that of a machine that was slow."""
    return [text for text in under_way.found().warnings if "fell behind" not in text]


@asynccontextmanager
async def nothing_but_404() -> AsyncIterator[tuple[str, asyncio.Server]]:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", server


async def test_every_replica_is_there_under_its_url() -> None:
    async with SimulatedFleet(count=6) as fleet:
        under_way = comparing(fleet.urls, plans=[(0.0, plan(3))])
        await under_way.run()
    (arm,) = under_way.found().arms
    assert [replica.name for replica in arm.replicas] == fleet.urls
    assert [replica.requests for replica in arm.replicas] == [1, 1, 1, 0, 0, 0]
    assert arm.balance is not None
    assert arm.balance.requests_max_over_mean == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("told", "names"),
    [
        ("http://a", ["http://a", "http://b"]),
        # A router that knows its replicas by names of its own.
        ("10.0.0.5:8000", ["10.0.0.5:8000"]),
        ("", []),
    ],
)
def test_only_replicas_that_are_told_are_there(told: str, names: list[str]) -> None:
    router = Contender("router", "http://router")
    comparison = Comparison(
        contenders=[router], fleet=FleetSpec(urls=("http://a", "http://b")), plans=[]
    )
    run = Run()
    run.records.add(
        session=0, step=0, scheduled=0.0, sent=0.0, first=1.0, end=1.0, tokens=100,
        possible_tokens=0, replica=told,
    )  # fmt: skip
    arm = summary(comparison, router, [run], 0.0)
    assert [replica.name for replica in arm.replicas] == names
    assert (arm.balance is not None) == bool(names)


async def test_an_arm_that_fails_leaves_those_before_it() -> None:
    async with SimulatedFleet(count=2) as fleet, nothing_but_404() as (url, server):
        asked = (Contender(DIRECT), Contender("lost", url), Contender("never", url))
        under_way = comparing(fleet.urls, *asked, stage=Watched(ended=server.close))
        with pytest.raises(RunError, match=url):
            await under_way.run()
    arms, differences, _ = under_way.found()
    assert [(arm.name, arm.completed) for arm in arms] == [(DIRECT, 30)]
    assert differences == []
    assert said(under_way) == ["lost did not run", "never did not run"]


async def test_a_run_that_is_stopped_keeps_its_answers() -> None:
    async with SimulatedFleet(count=1) as fleet:
        running: asyncio.Task[None]
        stage = Watched(progress=lambda now: running.cancel() if now.ended > 4 else False)
        under_way = comparing(fleet.urls, plans=[(0.0, plan(100_000))], stage=stage)
        running = asyncio.create_task(under_way.run())
        with pytest.raises(asyncio.CancelledError):
            await running
    (arm,), _, _ = under_way.found()
    assert 4 < arm.completed < 100_000
    assert said(under_way) == [f"{DIRECT} was cut short: these are its answers until then"]


async def test_an_arm_that_is_cut_short_is_not_compared_with_whole_ones() -> None:
    async with SimulatedFleet(count=1) as fleet:
        ended: list[None] = []
        running: asyncio.Task[None]

        def stop_in_the_second(now: Progress) -> None:
            if ended and now.ended > 4:
                running.cancel()

        stage = Watched(stop_in_the_second, lambda: ended.append(None))
        asked = (Contender(DIRECT), Contender("one", fleet.urls[0]))
        under_way = comparing(fleet.urls, *asked, stage=stage, plans=[(0.0, plan(300))])
        running = asyncio.create_task(under_way.run())
        with pytest.raises(asyncio.CancelledError):
            await running
    arms, _, _ = under_way.found()
    assert [arm.name for arm in arms] == [DIRECT]
    assert said(under_way) == ["one was cut short: its answers are left out"]


async def test_repeats_that_are_not_whole_are_left_out() -> None:
    async with SimulatedFleet(count=2) as fleet:
        ended: list[None] = []
        running: asyncio.Task[None]

        def stop_in_the_last(_: Progress) -> None:
            if len(ended) == 3:
                running.cancel()

        stage = Watched(stop_in_the_last, lambda: ended.append(None))
        asked = (Contender(DIRECT), Contender("one", fleet.urls[0]))
        under_way = comparing(fleet.urls, *asked, stage=stage, repeats=2)
        running = asyncio.create_task(under_way.run())
        with pytest.raises(asyncio.CancelledError):
            await running
    arms, differences, _ = under_way.found()
    # The order turns: "one" is first in the second round.
    assert [(arm.name, arm.repeats) for arm in arms] == [(DIRECT, 1), ("one", 2)]
    assert {each.arm for each in differences} == {"one"}
    assert said(under_way) == [f"{DIRECT}: only 1 of 2 runs came to their end"]


async def test_engines_tell_what_a_routers_answers_do_not() -> None:
    async with SimulatedFleet(count=2) as fleet:
        # A router that sends everything to the first: itself, under another name.
        router = Contender("router", fleet.urls[0] + "/")
        under_way = comparing(fleet.urls, Contender(DIRECT), router, repeats=2)
        await under_way.run()
    arms, _, _ = under_way.found()
    arm = arms[1]
    first, second = arm.replicas
    assert [first.name, second.name] == fleet.urls
    assert (first.requests, second.requests, second.hit_rate) == (60, 0, None)
    assert (first.prompt_tokens, first.cached_tokens) == (arm.prompt_tokens, arm.cached_tokens)
    assert first.hit_rate == pytest.approx(arm.hit_rate)
    assert arm.balance is not None
    assert arm.balance.work_max_over_mean == pytest.approx(2.0)
    assert said(under_way) == []


async def test_it_is_said_where_nobody_names_the_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(*_: object) -> None:
        return None

    monkeypatch.setattr(compare, "read_counters", silent)
    async with SimulatedFleet(count=1) as fleet:
        router = Contender("router", fleet.urls[0] + "/")
        under_way = comparing(fleet.urls, router)
        await under_way.run()
    (arm,), _, _ = under_way.found()
    assert (arm.replicas, arm.balance) == ([], None)
    (warning,) = said(under_way)
    assert "explain_headers" in warning


async def test_warm_caches_are_said() -> None:
    async with SimulatedFleet(count=1) as fleet:
        fleet_spec = FleetSpec(urls=tuple(fleet.urls), reset=False)
        for warm in (False, True):
            under_way = comparing([], fleet=fleet_spec)
            await under_way.run()
            (arm,), _, warnings = under_way.found()
            assert arm.hit_rate is not None
            assert (arm.hit_rate > arm.upper_bound + 0.01) == warm
            assert any("caches were warm" in warning for warning in warnings) == warm


@pytest.mark.parametrize(
    ("policy", "says"),
    [
        (DIRECT, "did not name a model"),
        ("cache_aware", "is not a vLLM that is ready: /health answers 404"),
    ],
)
async def test_servers_that_are_no_engines_are_named(policy: str, says: str) -> None:
    async with SimulatedFleet(count=1) as fleet, nothing_but_404() as (url, _):
        under_way = comparing([url, *fleet.urls], Contender(policy))
        with pytest.raises(RunError, match=f"{url}.*{says}"):
            await under_way.run()
    assert under_way.found().arms == []


async def test_urls_where_nobody_is_are_named_before_anything_runs() -> None:
    ended: list[None] = []
    stage = Watched(ended=lambda: ended.append(None))
    async with SimulatedFleet(count=1) as fleet:
        for urls, contenders in (
            ([*fleet.urls, "http://127.0.0.1:1"], (Contender(DIRECT),)),
            (fleet.urls, (Contender(DIRECT), Contender("gone", "http://127.0.0.1:1"))),
        ):
            under_way = comparing(urls, *contenders, stage=stage)
            with pytest.raises(RunError, match=r"^http://127\.0\.0\.1:1 does not answer"):
                await under_way.run()
    assert ended == []


async def test_exact_arms_need_engines_that_tell() -> None:
    exact = Contender("cache_aware_exact")
    async with SimulatedFleet(count=1) as fleet:
        under_way = comparing(fleet.urls, exact)
        with pytest.raises(RunError, match="tells no KV events"):
            await under_way.run()
    under_way = comparing([], Contender(DIRECT), exact, fleet=FleetSpec(simulated=2))
    with pytest.raises(ValueError, match="cache_aware_exact cannot be compared on simulated"):
        await under_way.run()
