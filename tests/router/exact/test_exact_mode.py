"""Exact mode as a whole, in front of engines that serve HTTP and events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import pytest
from exact_engine import FakeEngine, Publisher

from bench.chat_model import make_model
from router.config import Settings
from router.exact.mode import ExactMode
from router.fleet.fleet import Fleet
from router.index import ByteIndex
from router.policies import load_policy
from router.prompt import PARSERS, Prompt
from router.prompt.spans import SPANS
from router.render.model import RenderModel
from router.render.tokenizer import SAMPLES
from router.render.tokens import TokenPrompt
from router.scheduling.placer import Placer

BLOCK = 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_model(tmp_path_factory.mktemp("model"), list(SAMPLES) * 5, 600)


class World:
    """Two engines, a fleet, exact mode and its placer."""

    def __init__(self, engines: list[FakeEngine], exact: ExactMode, fleet: Fleet) -> None:
        self.engines = engines
        self.exact = exact
        self.fleet = fleet
        index = ByteIndex(SPANS)
        policy = load_policy("cache_aware")
        policy.members(fleet.names())
        for replica in fleet.members():
            index.add_replica(replica.slot, 1_000_000)
        self.placer = Placer(index, policy, fleet.loads, learn_speed=False, reports=exact)

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(15):
            while not condition():  # noqa: ASYNC110  (several parts' state)
                await asyncio.sleep(0.01)

    async def prepared(self, prompt: Prompt, body: bytes, api: str = "chat") -> bool:
        """Whether its tokens are known now."""
        ready = asyncio.Event()
        if self.exact.prepare(api, prompt, body, ready.set):
            await ready.wait()
        return prompt.tokens is not None


@asynccontextmanager
async def world(
    folder: Path, *, shift: int = 0, ranks: int = 1, **settings: Any
) -> AsyncIterator[World]:
    """Two slots: two engines, or two ranks of one."""
    model = RenderModel(folder)
    engines = [FakeEngine(model, str(folder)) for _ in range(2 // ranks)]
    engines[-1].shift = shift
    for engine in engines:
        engine.publishers |= {str(rank): Publisher() for rank in range(ranks)}
    async with AsyncExitStack() as stack:
        for engine in engines:
            await stack.enter_async_context(engine.serve())
        fleet = Fleet(
            Settings(
                replicas=tuple(engine.url for engine in engines),
                metrics_interval=0.1,
                models_interval=0.1,
                **settings,
            )
        )
        exact = ExactMode(fleet)
        await fleet.start()
        exact.start()
        try:
            await fleet.wait_first_round(10)
            made = World(engines, exact, fleet)
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
        assert isinstance(prompt.tokens, TokenPrompt)
        known = prompt.tokens
        count = known.count // BLOCK
        tokens = memoryview(known.ids).cast("I").tolist()[: count * BLOCK]
        await made.engines[1].publishers["0"].publish(event(list(range(1, count + 1)), tokens))
        made.exact.listeners[1].sequencers()[0].verify()
        await made.until(lambda: made.exact.index.placed(1) == count * BLOCK)
        placement = made.placer.place(prompt, 3, 1.0)
        assert (placement.slot, placement.held_tokens) == (1, count * BLOCK)
        assert placement.tokens == known.count
        assert made.exact.confidence(1) == 1.0
        assert made.exact.next_event(1) == 1
        assert made.exact.next_event(0) == 0
        assert made.exact.why_not(1) == ""


def known(prompt: Prompt) -> tuple[list[int], int]:
    """(the tokens of a prompt's whole blocks, the number of these)."""
    assert isinstance(prompt.tokens, TokenPrompt)
    found = prompt.tokens
    count = found.count // BLOCK
    return memoryview(found.ids).cast("I").tolist()[: count * BLOCK], count


async def test_each_rank_behind_a_port_is_a_cache_of_its_own(folder: Path) -> None:
    async with world(folder, ranks=2) as made:
        first, second = made.fleet.members()
        assert (second.name, second.rank) == (f"{first.name}@1", 1)
        prompt, body = chat(200)
        assert await made.prepared(prompt, body)
        tokens, count = known(prompt)
        await made.engines[0].publishers["1"].publish(event(list(range(1, count + 1)), tokens))
        await made.until(lambda: made.exact.index.placed(1) == count * BLOCK)
        placement = made.placer.place(prompt, 3, 1.0)
        assert (placement.slot, placement.held_tokens) == (1, count * BLOCK)
        assert (made.exact.next_event(0), made.exact.next_event(1)) == (0, 1)
        assert [made.exact.why_not(slot) for slot in range(2)] == ["", ""]


async def test_events_of_more_ranks_than_the_metrics_tell_are_not_gone_by(folder: Path) -> None:
    """Which rank a request goes to could not be said."""
    async with world(folder) as made:
        engine = made.engines[1]
        engine.sources = dict.fromkeys(("0", "1"), engine.publishers["0"])
        made.exact.listeners[1].begin_anew()
        assert not made.exact.current & 2
        await made.until(lambda: "2 data-parallel ranks" in made.exact.why_not(1))
        assert made.exact.why_not(0) == ""


@pytest.mark.parametrize("medium", ["CPU", "cpu", None])
async def test_a_connectors_placeholders_do_no_harm(folder: Path, medium: str | None) -> None:
    """They are the first that comes, and name neither tokens nor a size."""
    async with world(folder) as made:
        publisher = made.engines[0].publishers["0"]
        await publisher.publish(
            event([9], []) | {"block_size": 0, "medium": medium},
            event([8], list(range(256))) | {"block_size": 256, "medium": "cpu"},
        )
        prompt, body = chat(200)
        assert await made.prepared(prompt, body)
        tokens, count = known(prompt)
        await publisher.publish(event(list(range(11, count + 11)), tokens))
        await made.until(lambda: made.exact.index.placed(0) >= count * BLOCK)
        placement = made.placer.place(prompt, 3, 1.0)
        assert (placement.slot, placement.held_tokens) == (0, count * BLOCK)
        assert made.exact.index.block(0) == BLOCK


async def test_what_a_silent_tier_has_is_believed(folder: Path) -> None:
    """The engine loads from a tier (LMCache as a process of its own) of which no event tells: what
    was sent there before is what there is to go by."""
    async with world(folder) as made:
        prompt, body = chat(200)
        await made.prepared(prompt, body)
        sent = made.placer.place(prompt, 1, 1.0)
        sent.failed(1.1)
        again, body = chat(200)
        await made.prepared(again, body)
        second = made.placer.place(again, 1, 1.2)
        assert second.held_tokens == 0
        second.failed(1.25)
        made.engines[0].loaded = 640
        await made.until(lambda: made.exact.behind == 1)
        once_more, body = chat(200)
        await made.prepared(once_more, body)
        placement = made.placer.place(once_more, 3, 1.3)
        assert placement.slot == 0
        assert placement.held_tokens > 0.8 * placement.tokens
        # It counts as loaded from there, which takes its time.
        assert placement.behind is not None
        assert placement.behind.media == {"CPU": placement.held_tokens}
        assert made.placer.loads[0].loading_until > 1.3


async def test_a_silent_tier_is_the_medium_that_is_set(folder: Path) -> None:
    """Its price is that medium's."""
    async with world(folder, kv_tier_shared=("STORAGE",), kv_offload_tokens=1000) as made:
        prompt, body = chat(200)
        await made.prepared(prompt, body)
        made.placer.place(prompt, 1, 1.0).failed(1.1)
        await made.until(lambda: made.exact.behind & 1 == 1)
        again, body = chat(200)
        await made.prepared(again, body)
        placement = made.placer.place(again, 1, 1.2)
        assert placement.behind is not None
        assert placement.behind.media == {"STORAGE": placement.held_tokens}


async def test_a_salted_prompt_is_believed_where_a_tier_leaves_salts_out(folder: Path) -> None:
    """LMCache keeps salts apart, and its events do not say them."""
    async with world(folder) as made:
        engine = made.engines[0]
        engine.loaded = 640
        for salts in ({"cache_salt": "alice"}, {}):
            prompt, body = chat(200, **salts)
            assert await made.prepared(prompt, body)
            tokens, count = known(prompt)
            keys = [["alice"], *[None] * (count - 1)] if salts else [None] * count
            gpu = event(list(range(1, count + 1)), tokens) | {"extra_keys": keys}
            tier = event(list(range(1001, count + 1001)), tokens) | {
                "medium": "CPU", "extra_keys": None
            }  # fmt: skip
            gone = {
                "type": "BlockRemoved", "block_hashes": list(range(1, count + 1)), "medium": "GPU"
            }  # fmt: skip
            made.placer.place(prompt, 1, 1.0).failed(1.1)
            await engine.publishers["0"].publish(gpu, tier, gone)
            await made.until(lambda: made.exact.index.tiers_told(0) == (True, False))
            await made.until(lambda: (made.exact.behind, made.exact.behind_salted) == (0, 1))
            again, body = chat(200, **salts)
            await made.prepared(again, body)
            placement = made.placer.place(again, 1, 1.2)
            assert placement.behind is not None
            assert placement.behind.media == {"CPU": placement.held_tokens}
            if salts:
                assert placement.held_tokens > 0.8 * placement.tokens  # a guess
            else:
                assert placement.held_tokens == count * BLOCK
            placement.failed(1.3)


async def test_an_adapter_from_another_path_has_nothing_of_the_old_one(folder: Path) -> None:
    card = {"id": "ada", "object": "model", "root": "/adapters/one", "parent": "m"}
    async with world(folder) as made:
        engine = made.engines[0]
        engine.cards = [*engine.cards, card]
        await made.until(lambda: made.exact.models.find("ada") is not None)
        body = msgspec.json.encode({"model": "ada", "prompt": " ".join(["word"] * 200)})

        async def held() -> float:
            prompt = PARSERS["/v1/completions"](body)
            assert await made.prepared(prompt, body, "completions")
            placement = made.placer.place(prompt, 1, 1.0)
            placement.failed(1.0)
            return placement.held_tokens

        prompt = PARSERS["/v1/completions"](body)
        await made.prepared(prompt, body, "completions")
        tokens, count = known(prompt)
        stored = event(list(range(1, count + 1)), tokens) | {
            "lora_name": "ada", "extra_keys": [["ada"]] * count
        }  # fmt: skip
        await engine.publishers["0"].publish(stored)
        await made.until(lambda: made.exact.index.placed(0) == count * BLOCK)
        assert await held() == count * BLOCK
        engine.cards = [engine.cards[0], card | {"root": "/adapters/two"}]
        await made.until(lambda: made.exact.index.placed(0) == 0)
        assert await held() == 0


async def test_a_prompt_on_its_way_counts_as_held_until_it_failed(folder: Path) -> None:
    async with world(folder) as made:
        prompt, body = chat(300)
        await made.prepared(prompt, body)
        first = made.placer.place(prompt, 3, 1.0)
        again, body = chat(300)
        await made.prepared(again, body)
        second = made.placer.place(again, 1 << first.slot, 1.1)
        assert second.held_tokens > 0.9 * second.tokens
        first.failed(1.2)
        second.failed(1.2)
        third, body = chat(300)
        await made.prepared(third, body)
        assert isinstance(third.tokens, TokenPrompt)
        assert made.exact.held([], third.tokens)[0] == []


async def test_a_prompt_on_its_way_is_given_up_after_its_deadline(folder: Path) -> None:
    async with world(folder, exact_deadline=30.0) as made:
        prompt, body = chat(100)
        await made.prepared(prompt, body)
        assert isinstance(prompt.tokens, TokenPrompt)
        placement = made.placer.place(prompt, 3, 1000.0)
        made.exact.tick(1029.0)
        assert made.exact.held([], prompt.tokens)[0]
        made.exact.tick(1031.0)
        assert made.exact.held([], prompt.tokens)[0] == []
        placement.finished(1040.0, 100, 1, 0)


async def test_an_engine_with_other_tokens_is_left_to_the_byte_blocks(folder: Path) -> None:
    async with world(folder, shift=1) as made:
        assert made.exact.models.bases["m"].mask == 1
        assert "differ from the engine's" in made.exact.why_not(1)
        prompt, body = chat(300)
        await made.prepared(prompt, body)
        assert isinstance(prompt.tokens, TokenPrompt)
        believed = [(50.0, 0b11)]
        assert made.exact.held(believed, prompt.tokens)[0] == [(50.0, 0b10)]


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
    async with world(folder, exact_budget=0.001) as made:
        prompt, body = chat(20_000)
        assert not await made.prepared(prompt, body)
        assert made.exact.prompts == {"budget": 1}
        # It is tokenised all the same: the next step of the conversation finds it.
        await made.until(lambda: made.exact.memory_tokens > 20_000 and not made.exact.pool.backlog)
        prompt, body = chat(20_000)
        assert await made.prepared(prompt, body)


async def test_long_prompts_are_tokenised_beside_the_loop(folder: Path) -> None:
    async with world(folder, exact_budget=30.0) as made:
        prompt, body = chat(5_000)
        ready = asyncio.Event()
        assert made.exact.prepare("chat", prompt, body, ready.set)
        assert not isinstance(prompt.tokens, TokenPrompt)
        other, other_body = chat(5_000)  # the same: tokenised once
        assert await made.prepared(other, other_body)
        await ready.wait()
        assert isinstance(prompt.tokens, TokenPrompt)
        assert isinstance(other.tokens, TokenPrompt)
        assert prompt.tokens.ids == other.tokens.ids
        text = made.engines[0].model.read("chat", body)
        assert prompt.tokens.ids == made.engines[0].model.encode(text)


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
    async with world(folder, exact_max_body=1000) as made:
        for prompt, body in (chat(500), chat(3, truncate_prompt_tokens=4)):
            assert not await made.prepared(prompt, body)
        other, body = chat(3, model="unknown")
        assert not await made.prepared(other, body)
        assert made.exact.prompts == {"large": 1, "argument": 1, "model": 1}
