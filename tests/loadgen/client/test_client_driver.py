"""Sessions played over real sockets: order, time, answers, ends."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from typing import Any

import pytest

from loadgen.client.body import BodyMaker
from loadgen.client.driver import RATE_SECONDS, TICK, Driver, Options, Progress
from loadgen.client.target import Target
from loadgen.results.records import Records
from loadgen.workloads import Closed, Fixed, Plan, Role, Segment, Session, Step, Traced
from loadgen.workloads.text import name

PATH = "/v1/chat/completions"


class Given:
    """Sessions as a test gives them."""

    name, timed, group = "given", True, 1

    def __init__(self, *sessions: Session) -> None:
        self._sessions = sessions

    def sessions(self, seed: int) -> Iterator[Session]:
        return iter(self._sessions)


def conversation(number: int, turns: int, at: float = 0.0, pause: float = 0.0) -> Session:
    prompt: tuple[Segment, ...] = ()
    steps = []
    for turn in range(turns):
        prompt += (Segment(1000 * number + turn, 20, Role.USER),)
        output = Segment(1000 * number + 500 + turn, 2, Role.ASSISTANT)
        steps.append(Step(prompt, output, (turn - 1,) if turn else (), pause if turn else 0.0))
        prompt += (output,)
    return Session(number, tuple(steps), at)


async def drive(url: str, plan: Plan, options: Options | None = None) -> tuple[Records, Driver]:
    driver = Driver(plan, [Target(url, PATH)], BodyMaker("m"), options)
    return await asyncio.wait_for(driver.run(), 30), driver


def traced(*sessions: Session, **fields: Any) -> Plan:
    return Plan(Given(*sessions), Traced(), **fields)  # type: ignore[arg-type]


async def test_a_conversation_is_asked_in_order_with_what_was_answered(wire: Any) -> None:
    async def answer(seen: Any, writer: asyncio.StreamWriter) -> None:
        turn = len(seen.body["messages"]) // 2
        said = wire.token(f'it is "{turn}"', "stop")
        writer.write(wire.stream(said, wire.usage(50, 32, 2), wire.DONE))

    async with wire.raw_server(answer) as server:
        records, _ = await drive(server.url, traced(conversation(0, 4)))
    assert [len(seen.body["messages"]) for seen in server.seen] == [1, 3, 5, 7]
    said = [m["content"] for m in server.seen[3].body["messages"] if m["role"] == "assistant"]
    assert said == ['it is "0"', 'it is "1"', 'it is "2"']
    assert list(records.step) == [0, 1, 2, 3]
    assert list(records.cached_tokens) == [32] * 4
    for before, after in zip(records.end[:-1], records.sent[1:], strict=True):
        assert after >= before
    assert len({seen.headers["x-session-id"] for seen in server.seen}) == 1


async def test_declared_answers_are_repeated_instead_when_asked_for(wire: Any) -> None:
    async with good(wire) as server:
        plan = traced(conversation(0, 2))
        await drive(server.url, plan, Options(declared_answers=True))
    assert server.seen[1].body["messages"][1]["content"].encode() == name(500)[:8]


def good(wire: Any, data: bytes | None = None) -> Any:
    async def answer(_: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(data or wire.GOOD)

    return wire.raw_server(answer)


async def test_a_step_waits_for_all_before_it_and_its_pause(wire: Any) -> None:
    first, second, third = conversation(0, 3).steps
    fork = Session(
        0,
        (
            first,
            Step(second.prompt, second.output, (0,), 0.05, 1),
            Step(second.prompt, Segment(9, 2, Role.ASSISTANT), (0,), 0.0, 2),
            Step(third.prompt, third.output, (1, 2), 0.03),
        ),
    )
    async with good(wire) as server:
        records, _ = await drive(server.url, traced(fork))
    when = dict(zip(records.step, zip(records.scheduled, records.end, strict=True), strict=True))
    assert set(when) == {0, 1, 2, 3}
    # Timers of the event loop count in milliseconds.
    assert when[1][0] >= when[0][1] + 0.049
    assert when[2][0] < when[1][0]
    assert when[3][0] >= max(when[1][1], when[2][1]) + 0.029


async def test_after_a_failure_the_rest_of_the_session_is_not_sent(wire: Any) -> None:
    async def answer(seen: Any, writer: asyncio.StreamWriter) -> None:
        if len(seen.body["messages"]) == 3:
            writer.write(b"HTTP/1.1 500 No\r\ncontent-length: 0\r\n\r\n")
        else:
            writer.write(wire.GOOD)

    async with wire.raw_server(answer) as server:
        records, driver = await drive(server.url, traced(conversation(0, 5), conversation(1, 1)))
    reasons = [records.reasons.names[number] for number in records.reason]
    assert sorted(reasons) == ["", "", "status 500"]
    assert driver.not_sent == 3
    failed = reasons.index("status 500")
    assert math.isnan(records.first[failed])
    assert driver.progress.failed == 1


async def test_a_closed_loop_keeps_its_concurrency(wire: Any) -> None:
    open_now = most = 0

    async def answer(_: Any, writer: asyncio.StreamWriter) -> None:
        nonlocal open_now, most
        open_now += 1
        most = max(most, open_now)
        for _ in range(5):
            await asyncio.sleep(0)
        open_now -= 1
        writer.write(wire.GOOD)

    sessions = [conversation(number, 2) for number in range(12)]
    plan = Plan(Given(*sessions), Closed(3))  # type: ignore[arg-type]
    async with wire.raw_server(answer) as server:
        records, _ = await drive(server.url, plan)
    assert len(records) == 24
    assert most == 3


async def test_requests_are_sent_when_they_are_due(wire: Any) -> None:
    sessions = [conversation(number, 1) for number in range(20)]
    plan = Plan(Given(*sessions), Fixed(100.0))  # type: ignore[arg-type]
    async with good(wire) as server:
        records, _ = await drive(server.url, plan)
    for place, (due, sent) in enumerate(zip(records.scheduled, records.sent, strict=True)):
        assert due == pytest.approx(place / 100)
        assert sent > due - 0.002


async def test_nothing_is_sent_after_the_duration_unless_sessions_finish(wire: Any) -> None:
    session = conversation(0, 3, pause=0.1)
    async with good(wire) as server:
        short, _ = await drive(server.url, traced(session, duration=0.05))
        whole, _ = await drive(server.url, traced(session, duration=0.05, finish=True))
    assert (len(short), len(whole)) == (1, 3)


async def test_the_warm_up_is_sent_but_not_counted(wire: Any) -> None:
    plan = traced(conversation(0, 1), conversation(1, 1, at=0.2), warmup=0.15)
    async with good(wire) as server:
        records, driver = await drive(server.url, plan)
    assert len(server.seen) == driver.progress.ended == 2
    assert list(records.session) == [1]
    assert records.scheduled[0] == pytest.approx(0.05)
    assert records.gaps.count == 1


async def test_what_never_ends_times_out(wire: Any) -> None:
    async def answer(_: Any, writer: asyncio.StreamWriter) -> None:
        writer.write(wire.HEAD + wire.chunk(wire.token("a")))

    async with wire.raw_server(answer) as server:
        records, driver = await drive(server.url, traced(conversation(0, 2)), Options(timeout=0.1))
    assert [records.reasons.names[number] for number in records.reason] == ["timeout"]
    assert driver.not_sent == 1


async def test_cancelling_closes_everything() -> None:
    arrived = asyncio.Event()
    closed = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        arrived.set()
        while await reader.read(1 << 16):
            pass
        closed.set()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    driver = Driver(traced(conversation(0, 3)), [Target(url, PATH)], BodyMaker("m"))
    running = asyncio.create_task(driver.run())
    await arrived.wait()
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    await asyncio.wait_for(closed.wait(), 10)
    server.close()


async def test_several_targets_take_turns_and_name_themselves(wire: Any) -> None:
    sessions = [conversation(number, 1) for number in range(6)]
    async with good(wire) as one, good(wire) as other:
        targets = [Target(one.url, PATH), Target(other.url, PATH)]
        driver = Driver(traced(*sessions), targets, BodyMaker("m"))
        records = await asyncio.wait_for(driver.run(), 30)
    assert (len(one.seen), len(other.seen)) == (3, 3)
    assert records.replicas.names[1:] == [one.url, other.url]


async def test_replicas_are_shown_by_the_names_given(wire: Any) -> None:
    """Those that targets have, and those that a gateway tells; with their part so far."""
    told = wire.HEAD.replace(b"\r\n\r\n", b"\r\nx-warmroute-replica: 10.0.0.1:80\r\n\r\n")
    rest = wire.GOOD[len(wire.HEAD) :]
    async with good(wire, told + rest) as gateway, good(wire) as plain:
        targets = [Target(gateway.url, PATH), Target(plain.url, PATH)]
        names = {"idle": "zero", "10.0.0.1:80": "one", plain.url: "two"}
        sessions = [conversation(number, 1) for number in range(3)]
        driver = Driver(traced(*sessions), targets, BodyMaker("m"), names=names)
        records = await asyncio.wait_for(driver.run(), 30)
    shown = [records.replicas.names[number] for number in records.replica]
    assert sorted(shown) == ["one", "one", "two"]
    assert driver.progress.replicas == [("zero", 0, None), ("one", 2, 0.48), ("two", 1, 0.48)]


def test_the_rate_is_of_the_last_seconds() -> None:
    progress = Progress()
    assert progress.rate == 0.0
    for number in range(101):
        progress.ended = 10 * number if number < 80 else 790
        progress.tick(number * TICK)
    # Nothing ended in the last 21 ticks.
    assert progress.rate == 0.0
    progress.ended += 30
    progress.tick(101 * TICK)
    assert progress.rate == pytest.approx(30 / RATE_SECONDS)


async def test_the_upper_bound_is_in_the_engines_tokens(wire: Any) -> None:
    data = wire.stream(wire.token("a", "stop"), wire.usage(1000, 0, 1), wire.DONE)
    same = [conversation(0, 1), Session(1, conversation(0, 1).steps)]
    async with good(wire, data) as server:
        records, _ = await drive(server.url, traced(*same), Options(block_tokens=1))
    assert list(records.tokens) == [1000, 1000]
    assert records.possible_tokens[0] == 0
    assert 900 < records.possible_tokens[1] < 1000
