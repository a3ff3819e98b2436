"""Who is to prefill a request, for a sidecar before the replica that answers it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from picker_world import CHAT, MakeWorld, World, chat, until

HEADER = "x-prefiller-host-port"
OTHERS = (
    "x-prefiller-url",
    "x-encoder-hosts-ports",
    "x-data-parallel-host-port",
    "x-kv-cache-source-host-port",
)
"""What else a sidecar would connect to."""
FORGED = dict.fromkeys((HEADER, *OTHERS), "evil:1")
Split = Callable[[bool], None]


@pytest.fixture
def split(monkeypatch: pytest.MonkeyPatch) -> Split:
    """Has prompts be split always, or never."""

    def now(always: bool) -> None:
        seconds = -60.0 if always else 60.0
        monkeypatch.setattr("router.disaggregation.choice.HANDSHAKE_SECONDS", seconds)

    return now


async def ask(world: World, text: str, *, stream: bool = False) -> list[str | None]:
    """What the replica that answered was told, once the books have closed."""
    before = len(world.records)
    body = chat(text, stream=stream)
    answer = await world.client.post(CHAT, json=body, headers=FORGED)
    assert answer.status_code == 200
    await until(lambda: len(world.records) > before)
    decode = world.fleet.replicas[1]
    assert not any(one.path == CHAT for one in world.fleet.replicas[0].requests)
    told = [one for one in decode.requests if one.path == CHAT]
    assert not any(one.header(name) for one in told for name in OTHERS)
    return [one.header(HEADER) for one in told]


@pytest.mark.parametrize("stream", [False, True])
async def test_the_sidecar_is_told_and_no_client_tells_it(
    world: MakeWorld, split: Split, stream: bool
) -> None:
    made = await world(2)
    prefill, decode = (made.app.fleet.find(url) for url in made.fleet.urls)
    made.app.fleet.set_role(prefill, "prefill")
    split(False)
    assert await ask(made, "one " * 900, stream=stream) == [None]
    split(True)
    told = await ask(made, "two " * 900, stream=stream)
    assert told == [None, f"{prefill.host}:{prefill.port}"]
    last = made.records[-1]
    assert (last.replica, last.prefill_replica) == (decode.name, prefill.name)
    # It is known to hold the prompt, and owes nothing.
    await until(lambda: not prefill.load.in_flight)
    assert prefill.load.queued_tokens == pytest.approx(0.0, abs=0.01)
    apart = made.app.gateway.disaggregation
    assert apart is not None
    assert (apart.counts["handed_over"], apart.counts["cheaper_local"]) == (1, 1)


async def test_books_of_a_prefill_whose_client_leaves(world: MakeWorld, split: Split) -> None:
    made = await world(2)
    prefill = made.app.fleet.find(made.fleet.urls[0])
    made.app.fleet.set_role(prefill, "prefill")
    split(True)
    decode = made.fleet.replicas[1]
    await decode.freeze()
    asking = asyncio.create_task(made.ask("three " * 900, stream=True))
    await until(lambda: prefill.load.in_flight == 1)
    asking.cancel()
    await asyncio.gather(asking, return_exceptions=True)
    await decode.clear()
    await until(lambda: not prefill.load.in_flight)
