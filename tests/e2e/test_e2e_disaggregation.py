"""Prefill and decode apart on real engines, over NIXL."""

from __future__ import annotations

import asyncio
import re
import secrets
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager

import httpx
import pytest
from caught_up import PATIENT

from bench.gateways import PATIENCE_SECONDS, Gateway, gateway
from bench.vllm import Engine, NoEngineError, find_nixl, find_venv, metrics_of, nixl_settings

BLOCK = 32
LEASE_SECONDS = 90
"""More than a transfer takes on a busy machine, less than a test waits."""
STREAMS = 3
CLIENTS = 4
ANSWERS_AFTER = 4
"""Of each client, once the prefill engine is dead."""
# A speed that is set: what a busy machine makes learn would decide where prompts are prefilled.
FLAGS = (*PATIENT, "--prefill-rate", "2000")


class Pair:
    """An engine that prefills for another one."""

    def __init__(self) -> None:
        venv, nixl = find_venv(), find_nixl()
        self.prefill = Engine(venv, **nixl_settings(nixl, "kv_producer", LEASE_SECONDS))
        self.decode = Engine(venv, **nixl_settings(nixl, "kv_consumer", LEASE_SECONDS))

    def start(self) -> None:
        for engine in (self.prefill, self.decode):
            engine.start()
        for engine in (self.prefill, self.decode):
            engine.wait()


@pytest.fixture(scope="module")
def pair() -> Iterator[Pair]:
    try:
        made = Pair()
    except NoEngineError as why:
        pytest.skip(str(why))
    try:
        made.start()
        yield made
    finally:
        made.prefill.close()
        made.decode.close()


class World:
    """A gateway before the pair, with a decode engine that is busy."""

    def __init__(self, pair: Pair, started: Gateway, client: httpx.AsyncClient) -> None:
        self.pair = pair
        self.gateway = started
        self.client = client
        self._busy: list[asyncio.Task[None]] = []

    async def ask(self, url: str, prompt: str, **fields: object) -> httpx.Response:
        body = {"model": "tiny", "prompt": prompt, "max_tokens": 16, "temperature": 0, **fields}
        return await self.client.post(url + "/v1/completions", json=body)

    async def legs(self, outcome: str) -> int:
        page = await metrics_of(self.gateway.admin)
        found = re.search(rf'warmroute_prefill_legs_total{{outcome="{outcome}"}} (\d+)', page)
        assert found is not None, page
        return int(found[1])

    async def met(self) -> None:
        """Have the decode engine fetch until it succeeds. To get to know the prefill engine it has
        5 s, which a busy machine may take; then the router leaves the two alone for a while."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                told, failed = await self.legs("handed_over"), await self.legs("not_loaded")
                await self.ask(self.gateway.url, text(400))
                if await self.legs("handed_over") > told:
                    if await self.legs("not_loaded") == failed:
                        return
                else:
                    await asyncio.sleep(0.5)

    async def until(self, outcome: str, count: int) -> None:
        """Wait for so many first legs of an outcome. Raises TimeoutError."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while await self.legs(outcome) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.05)

    async def busy(self) -> None:
        """Have streams run at the decode engine, so that a prefill there would slow them down."""
        begun = [asyncio.Event() for _ in range(STREAMS)]
        self._busy += [asyncio.create_task(self._stream(event)) for event in begun]
        await asyncio.gather(*(event.wait() for event in begun))

    async def _stream(self, begun: asyncio.Event) -> None:
        body = {
            "model": "tiny",
            "prompt": secrets.token_hex(4),
            "stream": True,
            "max_tokens": 20_000,
            "ignore_eos": True,
        }
        url = self.gateway.url + "/v1/completions"
        async with self.client.stream("POST", url, json=body) as answer:
            async for _ in answer.aiter_lines():
                begun.set()

    async def idle(self) -> None:
        for task in self._busy:
            task.cancel()
        await asyncio.gather(*self._busy, return_exceptions=True)


@asynccontextmanager
async def world(pair: Pair) -> AsyncIterator[World]:
    flags = ("--prefill", pair.prefill.url, *FLAGS)
    limits = httpx.Limits(max_connections=None)
    async with (
        gateway([pair.decode.url], *flags) as started,
        httpx.AsyncClient(trust_env=False, timeout=240.0, limits=limits) as client,
    ):
        made = World(pair, started, client)
        await made.ask(started.url, "one")
        await made.busy()
        try:
            await made.met()
            yield made
        finally:
            await made.idle()


def text(words: int) -> str:
    """A prompt that nobody has seen; about three tokens a word."""
    return " ".join(secrets.token_hex(2) for _ in range(words))


async def told(url: str, series: str) -> float:
    """A series of an engine's metrics, whose labels match a pattern."""
    found = re.search(rf"^vllm:{series} (\S+)", await metrics_of(url), re.MULTILINE)
    assert found is not None, series
    return float(found[1])


async def frees(url: str) -> None:
    """Wait until an engine holds no blocks, which its lease sees to at last. Raises TimeoutError."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while await told(url, "kv_cache_usage_perc{.*}") > 0.0:  # noqa: ASYNC110
            await asyncio.sleep(0.1)


async def test_both_legs_answer_as_one_engine_does_and_tell_what_was_cached(pair: Pair) -> None:
    async with world(pair) as made:
        shared = text(300)
        first = (await made.ask(pair.prefill.url, shared)).json()["usage"]
        before, failed = await made.legs("handed_over"), await made.legs("not_loaded")
        prompt = shared + text(200)
        answer = (await made.ask(made.gateway.url, prompt)).json()
        assert await made.legs("handed_over") == before + 1
        alone = (await made.ask(pair.prefill.url, prompt)).json()
        assert answer["choices"][0]["text"] == alone["choices"][0]["text"]
        usage = answer["usage"]
        assert usage["prompt_tokens"] == alone["usage"]["prompt_tokens"]
        # What the prefill engine had is what was cached, whatever the decode engine fetched. The
        # prompt's tokens may part from the shared text's in the last ones of that.
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        assert 0 <= first["prompt_tokens"] - cached <= 2 * BLOCK
        assert await made.legs("not_loaded") == failed


async def test_params_of_a_client_reach_no_engine(pair: Pair) -> None:
    stale = {
        "do_remote_prefill": True,
        "do_remote_decode": False,
        "remote_block_ids": [[7, 8, 9]],
        "remote_engine_id": "gone",
        "remote_request_id": "cmpl-x",
        "remote_host": "127.0.0.1",
        "remote_port": 9,
        "tp_size": 1,
    }
    async with world(pair) as made:
        answer = await made.ask(made.gateway.url, text(100), kv_transfer_params=stale)
        assert answer.status_code == 200
        for url in (pair.prefill.url, pair.decode.url):
            assert (await made.client.get(url + "/health")).status_code == 200


async def test_a_client_that_leaves_while_its_prompt_waits_has_it_taken_back(pair: Pair) -> None:
    """The prefill engine is stopped meanwhile, so that it is in no moment between two states."""
    url, whole = pair.prefill.url, 'request_success_total{.*"length".*}'
    async with world(pair) as made:
        await frees(url)
        gone, done = await made.legs("client_gone"), await told(url, whole)
        (await made.client.post(url + "/pause?mode=keep")).raise_for_status()
        asking = asyncio.create_task(made.ask(made.gateway.url, text(700)))
        async with asyncio.timeout(PATIENCE_SECONDS):
            while not (await made.client.get(url + "/load")).json()["server_load"]:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        asking.cancel()
        await made.until("client_gone", gone + 1)
        (await made.client.post(url + "/resume")).raise_for_status()
        await made.ask(url, "behind it")
        async with asyncio.timeout(PATIENCE_SECONDS):
            while (now := await told(url, whole)) == done:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert now == done + 1  # nothing before it
        await frees(url)


async def test_clients_that_leave_at_any_moment_leave_engines_that_are_well(pair: Pair) -> None:
    """Whether blocks wait for the lease's end is decided by what an engine does in its last
    milliseconds, and how busy the machine is: that they are freed at once is tested with engines
    that do as they are told (tests/router/http)."""
    async with world(pair) as made:
        stranded = await made.legs("stranded")
        for moment in range(5):
            asking = asyncio.create_task(made.ask(made.gateway.url, text(700)))
            await asyncio.wait((asking,), timeout=0.1 * (moment + 1))
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        await frees(pair.prefill.url)
        assert await made.legs("stranded") == stranded
        assert (await made.ask(made.gateway.url, text(100))).status_code == 200


async def test_the_prefill_engine_is_killed_under_load(pair: Pair) -> None:
    """The last test: nobody prefills after it."""
    async with world(pair) as made:
        url, answers = made.gateway.url, list[httpx.Response]()
        handed, killed = await made.legs("handed_over"), asyncio.Event()

        async def client(number: int) -> None:
            after = 0
            while after < ANSWERS_AFTER:
                after += killed.is_set()
                asked = {"stream": number % 2 == 0, "max_tokens": 8}
                answers.append(await made.ask(url, text(500), **asked))

        clients = [asyncio.create_task(client(number)) for number in range(CLIENTS)]
        await made.until("handed_over", handed + CLIENTS)
        pair.prefill.kill()
        killed.set()
        await asyncio.gather(*clients)
        assert [answer.status_code for answer in answers] == [200] * len(answers)
        assert not any('"error"' in answer.text for answer in answers)
