"""The router fails on one request that waits: the others go on, and the books balance."""

from __future__ import annotations

import pytest
from http_world import Connect, MakeReplica, MakeRouter, ScriptedReplica, post, until
from test_http_queue import ANSWER, LOW, PATH, body, waits

from router.http.exchange import Exchange
from router.http.timeouts import TimeoutSweep
from router.queue.ticket import Refusal


@pytest.fixture
async def steps(replicas: MakeReplica) -> ScriptedReplica:
    """Answers with a head at once, a token after one step, its end after another."""
    replica = await replicas()
    replica.reply_in_steps(*ANSWER)
    return replica


def named(exchange: Exchange, name: str) -> bool:
    return exchange.record.key == name


@pytest.mark.usefixtures("quick_sweep")
async def test_one_whose_replicas_cannot_be_told(
    router: MakeRouter,
    connect: Connect,
    replicas: MakeReplica,
    steps: ScriptedReplica,
    monkeypatch: pytest.MonkeyPatch,
    complaints: list[str],
) -> None:
    complaints.append("request .* failed")
    other = await replicas()
    other.reply(*ANSWER)
    app = await router(steps, other)
    app.fleet.drain(other.url)
    first = await connect(app)
    first.send(post(PATH, body(1000, text="first")))
    await steps.asked(1)
    bad, good = await connect(app), await connect(app)
    bad.send(post(PATH, body(1000, text="bad"), LOW, "x-session-id: bad"))
    await waits(app, 1)
    good.send(post(PATH, body(1000, text="good"), LOW, "x-session-id: good"))
    await waits(app, 2)
    real = Exchange.may_still_take

    def fails(self: Exchange, found: int) -> int:
        if named(self, "bad"):
            raise ZeroDivisionError("of its own")
        return real(self, found)

    monkeypatch.setattr(Exchange, "may_still_take", fails)
    # Both are looked at again, since their replica goes.
    app.fleet.undrain(other.url)
    app.fleet.remove(steps.url)
    status, _, said = await bad.answer()
    assert status == 500
    assert b"the router failed" in said
    assert (await good.answer())[0] == 200
    for _ in range(2):
        steps.step()
    assert (await first.answer())[0] == 200


@pytest.mark.usefixtures("quick_sweep")
async def test_one_that_cannot_be_refused(
    router: MakeRouter,
    connect: Connect,
    replicas: MakeReplica,
    steps: ScriptedReplica,
    monkeypatch: pytest.MonkeyPatch,
    complaints: list[str],
) -> None:
    complaints.append("request .* failed")
    app = await router(steps, queue_timeout=0.3)
    first = await connect(app)
    first.send(post(PATH, body(1000, text="first")))
    await steps.asked(1)
    real = Exchange.refused

    def fails(self: Exchange, refusal: Refusal) -> None:
        if named(self, "bad"):
            raise ZeroDivisionError("of its own")
        real(self, refusal)

    monkeypatch.setattr(Exchange, "refused", fails)
    bad, good = await connect(app), await connect(app)
    bad.send(post(PATH, body(1000, text="bad"), LOW, "x-session-id: bad"))
    await waits(app, 1)
    good.send(post(PATH, body(1000, text="good"), LOW, "x-session-id: good"))
    assert (await bad.answer())[0] == 500
    assert (await good.answer())[0] == 503
    for _ in range(2):
        steps.step()
    assert (await first.answer())[0] == 200


@pytest.mark.usefixtures("quick_sweep")
async def test_a_look_that_fails_is_not_the_last(
    router: MakeRouter,
    connect: Connect,
    steps: ScriptedReplica,
    monkeypatch: pytest.MonkeyPatch,
    complaints: list[str],
) -> None:
    complaints.append("a look at what waits has failed")
    app = await router(steps, queue_timeout=0.3)
    real, looks = TimeoutSweep.check, []

    def fails(self: TimeoutSweep, now: float) -> None:
        looks.append(now)
        if len(looks) < 3:
            raise ZeroDivisionError("of its own")
        real(self, now)

    monkeypatch.setattr(TimeoutSweep, "check", fails)
    await until(lambda: len(looks) > 3)
    first, late = await connect(app), await connect(app)
    first.send(post(PATH, body(1000, text="first")))
    await steps.asked(1)
    late.send(post(PATH, body(1000, text="late"), LOW))
    assert (await late.answer())[0] == 503
    for _ in range(2):
        steps.step()
    assert (await first.answer())[0] == 200
