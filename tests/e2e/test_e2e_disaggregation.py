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
        self.prefill = Engine(venv, **nixl_settings(nixl, "kv_producer"))
        self.decode = Engine(venv, **nixl_settings(nixl, "kv_consumer"))

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
            yield made
        finally:
            await made.idle()


def text(words: int) -> str:
    """A prompt that nobody has seen; about three tokens a word."""
    return " ".join(secrets.token_hex(2) for _ in range(words))


async def held(url: str) -> float:
    """The share of an engine's KV memory that is not free."""
    found = re.search(r"vllm:kv_cache_usage_perc{[^}]*} (\S+)", await metrics_of(url))
    assert found is not None
    return float(found[1])


async def test_both_legs_answer_as_one_engine_does_and_tell_what_was_cached(pair: Pair) -> None:
    async with world(pair) as made:
        shared = text(300)
        told = (await made.ask(pair.prefill.url, shared)).json()["usage"]
        before = await made.legs("handed_over")
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
        assert 0 <= told["prompt_tokens"] - cached <= 2 * BLOCK
        assert await made.legs("not_loaded") == 0


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


async def test_clients_that_leave_at_any_moment_leave_no_blocks_behind(pair: Pair) -> None:
    async with world(pair) as made:
        await made.ask(made.gateway.url, text(400))  # engines that know each other
        for moment in range(5):
            asking = asyncio.create_task(made.ask(made.gateway.url, text(700)))
            await asyncio.wait((asking,), timeout=0.1 * (moment + 1))
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
        # Well before the lease of 30 s ends.
        async with asyncio.timeout(10):
            while await held(pair.prefill.url) > 0.0:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
        assert (await made.ask(made.gateway.url, text(100))).status_code == 200


async def test_the_prefill_engine_is_killed_under_load(pair: Pair) -> None:
    """The last test: nobody prefills after it."""
    async with world(pair) as made:
        url, answers = made.gateway.url, list[httpx.Response]()
        told, killed = await made.legs("handed_over"), asyncio.Event()

        async def client(number: int) -> None:
            after = 0
            while after < ANSWERS_AFTER:
                after += killed.is_set()
                asked = {"stream": number % 2 == 0, "max_tokens": 8}
                answers.append(await made.ask(url, text(500), **asked))

        clients = [asyncio.create_task(client(number)) for number in range(CLIENTS)]
        async with asyncio.timeout(PATIENCE_SECONDS):
            while await made.legs("handed_over") < told + CLIENTS:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        pair.prefill.kill()
        killed.set()
        await asyncio.gather(*clients)
        assert [answer.status_code for answer in answers] == [200] * len(answers)
        assert not any('"error"' in answer.text for answer in answers)
