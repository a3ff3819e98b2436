"""Each connector through the router, between simulated engines that have it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import msgspec
import pytest
from http_world import Connect, MakeRouter, post, until

from loadgen.engine import Transfer
from loadgen.replicas import QUICK, NixlSettings, Replica, SimulatedFleet
from router.app import App

PATH = "/v1/chat/completions"
ENGINE = msgspec.structs.replace(QUICK, prefill_rate=100_000.0, max_num_batched_tokens=16_384)
MODES = {"nixl": "pull", "nixl_push": "push", "mooncake": "mooncake", "store": "store"}


class World:
    """A router before one engine of each role."""

    def __init__(self, app: App, fleet: SimulatedFleet, connect: Connect) -> None:
        self.app = app
        self.prefill, self.decode = fleet.replicas
        self._connect = connect

    def count(self, outcome: str) -> int:
        apart = self.app.gateway.disaggregation
        assert apart is not None
        return apart.counts[outcome]

    async def ask(self, words: str, *headers: str, **fields: object) -> tuple[int, str]:
        client = await self._connect(self.app)
        content = f"{words} " * 800
        asked = {"model": "sim", "messages": [{"role": "user", "content": content}]}
        body = json.dumps({**asked, "max_tokens": 9, **fields}).encode()
        status, _, answer = await client.ask(post(PATH, body, *headers))
        client.close()
        return status, answer.decode()


MakeWorld = Callable[..., AbstractAsyncContextManager[World]]


@pytest.fixture
def world(router: MakeRouter, connect: Connect, monkeypatch: pytest.MonkeyPatch) -> MakeWorld:
    monkeypatch.setattr("router.http.timeouts.SWEEP_INTERVAL_S", 0.02)
    monkeypatch.setattr("router.disaggregation.choice.HANDSHAKE_SECONDS", -60.0)  # always apart

    @asynccontextmanager
    async def make(mode: str, connector: str, seconds: float = 0.0) -> AsyncIterator[World]:
        nixl = NixlSettings(
            mode=mode,  # type: ignore[arg-type]
            timeout_seconds=0.05,
            transfer=Transfer(base_seconds=max(seconds, 0.001)),
        )
        async with SimulatedFleet(2, params=ENGINE, nixl=nixl) as fleet:
            prefill, decode = fleet.replicas
            app = await router(
                decode.url,
                prefill=(prefill.url,),
                prefill_rate=ENGINE.prefill_rate,
                kv_connector=connector,
                mooncake_port=prefill.port,
                health_interval=0.1,
            )
            await until(lambda: app.fleet.usable.bit_count() == 2)
            yield World(app, fleet, connect)

    return make


def fetched(replica: Replica) -> int:
    connector = replica.connector
    assert connector is not None
    return connector.transfers


@pytest.mark.parametrize(
    ("connector", "mode"), [*MODES.items(), ("auto", "pull"), ("auto", "mooncake")]
)
async def test_what_one_engine_computes_the_other_one_fetches(
    world: MakeWorld, connector: str, mode: str
) -> None:
    async with world(mode, connector) as made:
        status, answer = await made.ask("one two")
        assert status == 200
        assert made.count("handed_over") == 1
        assert fetched(made.decode) == 1
        assert made.decode.engine.counters.prompt_tokens_fetched > 1000
        assert made.prefill.held_blocks == 0
        # It is what one engine alone answers, and says.
        await made.decode.restart()
        await made.prefill.die()
        await until(lambda: made.app.fleet.usable.bit_count() == 1)
        alone, both = json.loads((await made.ask("one two"))[1]), json.loads(answer)
        assert alone["choices"] == both["choices"]
        assert alone["usage"]["prompt_tokens"] == both["usage"]["prompt_tokens"]


async def test_requests_of_one_name_get_their_own_blocks(world: MakeWorld) -> None:
    """A prefill engine that pushes finds a request by its id, which clients choose."""
    async with world("push", "nixl_push", seconds=0.05) as made:
        asked = [made.ask(words, "X-Request-Id: same") for words in ("a b", "c d e", "f g h i")]
        answers = await asyncio.gather(*asked)
        assert [status for status, _ in answers] == [200] * 3
        assert fetched(made.decode) == 3
        assert (made.count("not_loaded"), made.prefill.held_blocks) == (0, 0)
        ids = {one.header("x-request-id") for one in made.prefill.requests if one.body}
        assert len(ids) == 3
        assert all(name is not None and name.startswith("same-") for name in ids)


async def test_a_mooncake_engine_that_restarts_is_asked_for_its_new_id(world: MakeWorld) -> None:
    async with world("mooncake", "mooncake") as made:
        assert (await made.ask("one"))[0] == 200
        await made.prefill.restart()
        for words in ("two", "three"):
            assert (await made.ask(words))[0] == 200
        apart = made.app.gateway.disaggregation
        assert apart is not None
        for slot in (0, 1):
            apart.pairs.forget(slot)  # a failed transfer has it left alone for a while
        before = fetched(made.decode)
        assert (await made.ask("four"))[0] == 200
        assert fetched(made.decode) == before + 1


@pytest.mark.parametrize(("connector", "mode"), [("mooncake", "pull"), ("auto", "push")])
async def test_another_connector_than_the_engines_have_costs_no_answer(
    world: MakeWorld, connector: str, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with world(mode, connector) as made:
        assert (await made.ask("one two"))[0] == 200
        assert (made.count("no_params"), made.count("handed_over")) == (1, 0)
        assert ("Mooncake bootstrap server" if mode == "pull" else "nixl_push") in caplog.text


async def test_a_store_that_has_lost_a_prompt_costs_no_answer(
    world: MakeWorld, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody keeps blocks for anybody: there is nothing to free, and nothing is asked twice."""
    async with world("store", "store") as made:
        connector = made.prefill.connector
        assert connector is not None
        monkeypatch.setattr(connector, "finished", lambda _: None)
        assert (await made.ask("one two"))[0] == 200
        assert made.count("handed_over") == 1
        assert fetched(made.decode) == 0
        for replica in (made.prefill, made.decode):
            assert sum(one.path == PATH for one in replica.requests) == 1
        assert (made.count("released"), made.count("stranded")) == (0, 0)


async def test_the_only_decode_engine_is_not_blamed_for_blocks_that_it_cannot_have(
    world: MakeWorld,
) -> None:
    """Its prefill engine is killed while many requests wait for blocks: it answers all of them, and
    neither its breaker nor its health has them turned away."""
    async with world("pull", "auto", seconds=0.2) as made:
        asked = [
            asyncio.create_task(made.ask(f"words {number}", stream=number % 2 == 0))
            for number in range(16)
        ]
        await until(lambda: len(made.decode.engine.fetching) >= 8)
        await made.prefill.die()
        answers = await asyncio.gather(*asked)
        assert [status for status, _ in answers] == [200] * 16
        assert not any('"error"' in answer for _, answer in answers)
        assert made.count("not_loaded") >= 8
        decode = made.app.fleet.find(made.decode.url)
        assert (decode.faults.status, decode.state) == (0, "ready")
        assert made.app.fleet.usable == decode.bit


@pytest.mark.parametrize("stream", [False, True])
async def test_a_transfer_that_hangs_is_given_up(
    world: MakeWorld, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    """The engine that waits for it is well: its silence is no sign of death."""
    monkeypatch.setattr("router.http.timeouts._FETCH_TICKS", 10)
    async with world("pull", "auto", seconds=600.0) as made:
        status, answer = await made.ask("one two", stream=stream)
        assert (status, '"error"' in answer) == (200, False)
        assert (made.count("handed_over"), made.count("not_loaded")) == (1, 1)
        await until(lambda: made.prefill.held_blocks == 0)
