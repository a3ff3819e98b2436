"""Exact mode as a whole, in front of engines that serve HTTP and events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from exact_engine import FakeEngine, Publisher

from bench.chat_model import make_model
from router.exact.mode import Exact, ExactSettings, TokenisedChain
from router.exact.placing import ExactPlacer
from router.fleet.fleet import Fleet
from router.fleet.settings import FleetSettings
from router.index import ByteIndex
from router.policies import load_policy
from router.prompt import PARSERS, Prompt
from router.prompt.spans import SPANS
from router.render.model import RenderModel
from router.render.tokenizer import SAMPLES

BLOCK = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), list(SAMPLES) * 5, 600)


class World:
    """Two engines, a fleet, exact mode and its placer."""

    def __init__(self, engines: list[FakeEngine], exact: Exact, fleet: Fleet) -> None:
        self.engines = engines
        self.exact = exact
        self.fleet = fleet
        index = ByteIndex(SPANS)
        policy = load_policy("cache_aware")
        policy.members(fleet.names())
        for replica in fleet.members():
            index.add_replica(replica.slot, 1_000_000)
        self.placer = ExactPlacer(exact, index, policy, fleet.loads, learn_speed=False)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(15):
            while not condition():  # noqa: ASYNC110  (several parts' state)
                await asyncio.sleep(0.01)

    async def prepared(self, prompt: Prompt, body: bytes, api: str = "chat") -> bool:
        """Whether its tokens are known now."""
        ready = asyncio.Event()
        if self.exact.prepare(api, prompt, body, ready.set):
            await ready.wait()
        return isinstance(prompt.chain, TokenisedChain)


@asynccontextmanager
async def world(folder: Path, *, shift: int = 0, **settings: Any) -> AsyncIterator[World]:
    model = RenderModel(folder)
    engines = [FakeEngine(model, str(folder)) for _ in range(2)]
    engines[1].shift = shift
    for engine in engines:
        engine.publishers["0"] = Publisher()
    async with engines[0].serve(), engines[1].serve():
        fleet = Fleet(FleetSettings(replicas=tuple(engine.url for engine in engines)))
        exact = Exact(ExactSettings(**settings), fleet)
        made = World(engines, exact, fleet)
        await fleet.start()
        exact.start()
        try:
            await fleet.wait_first_round(10)
            await made.until(lambda: exact.current == 3 and "m" in exact.models.bases)
            base = exact.models.bases["m"]
            await made.until(lambda: base.mask.bit_count() + len(base.different) == 2)
            yield made
        finally:
            await exact.stop()
            await fleet.stop()


def chat(words: int, **more: Any) -> tuple[Prompt, bytes]:
    messages = [{"role": "user", "content": " ".join(f"w{n}" for n in range(words))}]
    body = msgspec.json.encode({"model": "m", "messages": messages, **more})
    return PARSERS["/v1/chat/completions"](body), body


def event(names: list[int], tokens: list[int]) -> dict[str, Any]:
    return {
        "type": "BlockStored", "block_hashes": names, "parent_block_hash": None,
        "token_ids": tokens, "block_size": BLOCK, "lora_id": None, "medium": "GPU",
        "lora_name": None, "extra_keys": [None] * len(names),
    }  # fmt: skip


async def test_a_prompt_goes_where_events_say_it_is_held(folder: Path) -> None:
    async with world(folder) as made:
        prompt, body = chat(200)
        assert await made.prepared(prompt, body)
        assert isinstance(prompt.chain, TokenisedChain)
        known = prompt.chain.prompt
        count = known.count // BLOCK
        tokens = memoryview(known.tokens).cast("I").tolist()[: count * BLOCK]
        await made.engines[1].publishers["0"].publish(event(list(range(1, count + 1)), tokens))
        made.exact.listeners[1].feeds()[0].verify()
        await made.until(lambda: made.exact.index.placed(1) == count * BLOCK)
        placement = made.placer.place(prompt.chain, prompt.size, "m", 3, "", 1.0)
        assert (placement.slot, placement.held_tokens) == (1, count * BLOCK)
        assert placement.tokens == known.count
        assert made.exact.confidence(1) == 1.0
        assert made.exact.next_events(1) == [1]
        assert made.exact.next_events(0) == [0]
        assert made.exact.why_not(1) == ""


async def test_a_prompt_on_its_way_counts_as_held_until_it_failed(folder: Path) -> None:
    async with world(folder) as made:
        prompt, body = chat(300)
        await made.prepared(prompt, body)
        first = made.placer.place(prompt.chain, prompt.size, "m", 3, "", 1.0)
        again, body = chat(300)
        await made.prepared(again, body)
        second = made.placer.place(again.chain, again.size, "m", 1 << first.slot, "", 1.1)
        assert second.held_tokens > 0.9 * second.tokens
        made.placer.failed(first, 1.2)
        made.placer.failed(second, 1.2)
        third, body = chat(300)
        await made.prepared(third, body)
        assert isinstance(third.chain, TokenisedChain)
        assert made.exact.held([], third.chain.prompt) == []


async def test_a_prompt_on_its_way_is_given_up_after_its_deadline(folder: Path) -> None:
    async with world(folder, deadline=30.0) as made:
        prompt, body = chat(100)
        await made.prepared(prompt, body)
        assert isinstance(prompt.chain, TokenisedChain)
        placement = made.placer.place(prompt.chain, prompt.size, "m", 3, "", 1000.0)
        made.exact.tick(1029.0)
        assert made.exact.held([], prompt.chain.prompt)
        made.exact.tick(1031.0)
        assert made.exact.held([], prompt.chain.prompt) == []
        made.placer.finished(placement, 1040.0, 100, 1, 0)


async def test_an_engine_with_other_tokens_is_left_to_the_byte_blocks(folder: Path) -> None:
    async with world(folder, shift=1) as made:
        assert made.exact.models.bases["m"].mask == 1
        assert "differ from the engine's" in made.exact.why_not(1)
        prompt, body = chat(300)
        await made.prepared(prompt, body)
        assert isinstance(prompt.chain, TokenisedChain)
        believed = [(50.0, 0b11)]
        assert made.exact.held(believed, prompt.chain.prompt) == [(50.0, 0b10)]


async def test_a_restarted_engine_is_compared_again(folder: Path) -> None:
    async with world(folder) as made:
        compared = made.engines[0].compared
        replica = made.fleet.members()[0]
        made.engines[0].shift = 5
        replica.restarts += 1
        made.exact.on_emptied(replica)
        assert made.exact.models.bases["m"].mask == 2
        await made.until(lambda: bool(made.exact.models.bases["m"].different))
        assert made.engines[0].compared > compared


async def test_what_takes_longer_than_the_budget_is_left_to_the_byte_blocks(folder: Path) -> None:
    async with world(folder, budget=0.001) as made:
        prompt, body = chat(20_000)
        assert not await made.prepared(prompt, body)
        assert made.exact.prompts == {"budget": 1}
        # It is tokenised all the same: the next step of the conversation finds it.
        await made.until(lambda: made.exact.memory_tokens > 20_000 and not made.exact.pool.backlog)
        prompt, body = chat(20_000)
        assert await made.prepared(prompt, body)


async def test_long_prompts_are_tokenised_beside_the_loop(folder: Path) -> None:
    async with world(folder, budget=30.0) as made:
        prompt, body = chat(5_000)
        ready = asyncio.Event()
        assert made.exact.prepare("chat", prompt, body, ready.set)
        assert not isinstance(prompt.chain, TokenisedChain)
        other, other_body = chat(5_000)  # the same: tokenised once
        assert await made.prepared(other, other_body)
        await ready.wait()
        assert isinstance(prompt.chain, TokenisedChain)
        assert isinstance(other.chain, TokenisedChain)
        assert prompt.chain.prompt.tokens == other.chain.prompt.tokens
        text = made.engines[0].model.read("chat", body)
        assert prompt.chain.prompt.tokens == made.engines[0].model.encode(text)


async def test_adapters_are_known_by_their_base(folder: Path) -> None:
    async with world(folder) as made:
        for engine in made.engines:
            engine.cards.append({"id": "ada", "root": "/lora", "parent": "m"})
        for replica in made.fleet.members():
            made.fleet.reread_models(replica)
        await made.until(lambda: made.exact.models.find("ada") is not None)
        found = made.exact.models.find("ada")
        assert found is not None
        assert (found[0].name, found[1]) == ("m", "ada")
        assert made.exact.models.find("other") is None


async def test_bodies_that_are_too_large_or_odd_are_left_alone(folder: Path) -> None:
    async with world(folder, largest=1000) as made:
        for prompt, body in (chat(500), chat(3, truncate_prompt_tokens=4)):
            assert not await made.prepared(prompt, body)
        other, body = chat(3, model="unknown")
        assert not await made.prepared(other, body)
        assert made.exact.prompts == {"large": 1, "argument": 1, "model": 1}
