"""Predictions against what real engines deliver, while they evict all the time."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import httpx
import pytest
from caught_up import PATIENT, CaughtUp
from cut import Relay

from bench.gateways import Gateway, gateway, usable
from bench.sessions import Workload
from bench.vllm import Engine, block_of, empty, metrics_of
from loadgen.live.processes import free_ports

REQUESTS = 300
SESSIONS = 3


async def evicted(urls: list[str]) -> int:
    """Blocks the engines took in beyond what they have room for: a count of evictions at least."""
    total = 0
    for url in urls:
        text = await metrics_of(url)
        queries = _metric(text, "vllm:prefix_cache_queries_total")
        hits = _metric(text, "vllm:prefix_cache_hits_total")
        found = re.search(r'num_gpu_blocks="(\d+)"', text)
        room = int(found[1]) * await block_of(url) if found else 0
        total += max(0, int(queries - hits) - room)
    return total


def _metric(text: str, name: str) -> float:
    return sum(
        float(value) for value in re.findall(rf"^{name}{{[^}}]*}} (\S+)$", text, re.MULTILINE)
    )


async def scrape(started: Gateway) -> dict[str, float]:
    """The gateway's own exact metrics, without labels but the last."""
    text = await metrics_of(started.admin)
    found = re.findall(r"^(warmroute_exact_\w+)(?:{(.*)})? (\S+)$", text, re.MULTILINE)
    return {f"{name}{{{labels}}}": float(value) for name, labels, value in found}


async def play(urls: list[str], *flags: str) -> Workload:
    """The same sessions, whatever the flags. In exact mode a step comes when the gateway has been
    told of what the engine did for the step before."""
    await empty(urls)
    async with gateway(urls, *PATIENT, *flags) as started, CaughtUp(started, urls) as caught_up:
        workload = Workload(1, REQUESTS)
        workload.answered = caught_up if "--exact" in flags else None
        await workload.run(started.url, SESSIONS)
    assert workload.failed == []
    return workload


async def test_exact_predictions_are_what_the_engines_deliver(
    urls: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    block = await block_of(urls[0])
    before = await evicted(urls)
    exact = (await play(urls, "--exact")).summary(block)
    assert await evicted(urls) - before > 0
    default = (await play(urls)).summary(block)
    with capsys.disabled():
        print(f"\nexact:   {_brief(exact)}\ndefault: {_brief(default)}")
    assert exact["exact_share"] >= 0.99
    assert exact["mean_absolute_error"] < default["mean_absolute_error"]


def _brief(summary: dict[str, float]) -> dict[str, float]:
    return {name: round(value, 3) for name, value in summary.items()}


async def test_a_router_that_starts_late_knows_what_was_before(urls: list[str]) -> None:
    """The second gateway has seen none of the requests, and predicts the first step right."""
    block = await block_of(urls[0])
    await empty(urls)
    url = urls[:1]
    messages = [{"role": "user", "content": "one two three four " * 60}]
    body = {"model": "tiny", "messages": messages, "max_tokens": 4}
    async with gateway(url, *PATIENT) as first, CaughtUp(first, url) as caught_up:
        await ask(first, body)
        await caught_up(url[0].removeprefix("http://"))
    async with gateway(url, *PATIENT, "--exact") as late:
        predicted, cached, prompt = await ask(late, body)
        assert cached > 0
        assert min(predicted, prompt - 1) // block * block == cached
        metrics = await scrape(late)
    confidence = [v for name, v in metrics.items() if name.startswith("warmroute_exact_confidence")]
    assert confidence == [1.0]


async def ask(started: Gateway, body: dict[str, Any]) -> tuple[int, int, int]:
    """(predicted, cached, prompt) tokens."""
    async with httpx.AsyncClient(trust_env=False, timeout=600.0) as client:
        headers = {"x-warmroute-explain": "1"}
        answer = await client.post(started.url + "/v1/chat/completions", json=body, headers=headers)
    answer.raise_for_status()
    usage = answer.json()["usage"]
    predicted = int(answer.headers["x-warmroute-predicted-tokens"])
    return predicted, usage["prompt_tokens_details"]["cached_tokens"], usage["prompt_tokens"]


async def change(started: Gateway, url: str, what: str) -> None:
    """Drain a replica, or the reverse."""
    name = url.removeprefix("http://")
    headers = {"x-warmroute-admin": "1"}
    async with httpx.AsyncClient(trust_env=False, timeout=600.0, headers=headers) as client:
        (await client.post(f"{started.admin}/replicas/{name}/{what}")).raise_for_status()


async def test_salts_keep_prompts_apart(urls: list[str]) -> None:
    await empty(urls)
    messages = [{"role": "user", "content": "salted words go here " * 60}]
    body: dict[str, Any] = {"model": "tiny", "messages": messages, "max_tokens": 2}
    url = urls[:1]
    async with (
        gateway(url, *PATIENT, "--exact") as started,
        CaughtUp(started, url) as caught_up,
    ):
        await ask(started, body | {"cache_salt": "a"})
        assert (await ask(started, body | {"cache_salt": "b"}))[:2] == (0, 0)
        await caught_up(url[0].removeprefix("http://"))
        predicted, cached, _ = await ask(started, body | {"cache_salt": "a"})
        assert predicted == cached > 0


async def test_a_subscriber_cut_off_for_ten_seconds_recovers_by_replay(own: list[Engine]) -> None:
    """Requests go on while no event is heard; afterwards predictions are right at once."""
    engine = own[0]
    await empty([engine.url])
    block = await block_of(engine.url)
    events, replay = Relay(engine.events), Relay(engine.events + 50)
    (port,) = free_ports(1)
    await events.start(port)
    await replay.start()
    url = [engine.url]
    flags = (
        *PATIENT,
        *("--exact", "--exact-events", f"tcp://{{host}}:{events.port}"),
        *("--exact-replay", f"tcp://{{host}}:{replay.port}"),
    )
    try:
        async with gateway(url, *flags) as started, CaughtUp(started, url) as caught_up:
            workload = Workload(3, 40)
            await workload.run(started.url, 2)
            events.cut()
            replay.cut()
            workload.left = 60
            playing = asyncio.create_task(workload.run(started.url, 2))
            await asyncio.sleep(10)  # what is tested is a time without events
            await playing
            events.mend()
            replay.mend()
            await usable(started, 1, exact=True)
            workload.steps.clear()
            workload.left = 60
            workload.answered = caught_up
            await workload.run(started.url, 1)
            metrics = await scrape(started)
        assert workload.failed == []
        wrong = [step for step in workload.steps if not step.exact(block)]
        assert len(wrong) <= 1, wrong
        rebuilds = [v for name, v in metrics.items() if 'fault="rebuild"' in name]
        assert rebuilds == [0.0]
    finally:
        await events.stop()
        await replay.stop()


async def test_no_wrong_prediction_survives_a_restart(own: list[Engine]) -> None:
    """An engine is killed under load and comes back with an empty cache."""
    urls = [engine.url for engine in own]
    block = await block_of(urls[0])
    await empty(urls)
    async with (
        gateway(urls, *PATIENT, "--exact") as started,
        CaughtUp(started, urls) as caught_up,
    ):
        workload = Workload(4, 60)
        await workload.run(started.url, 3)
        workload.left = 10_000
        playing = asyncio.create_task(workload.run(started.url, 2))
        await asyncio.sleep(0.5)  # load, while the engine dies
        own[1].kill()
        own[1].start()
        await asyncio.to_thread(own[1].wait)
        await usable(started, 2, exact=True)
        workload.left = 0
        await playing
        workload.steps.clear()
        workload.failed.clear()
        workload.left = 60
        workload.answered = caught_up
        # The other engine holds what the sessions have in common, and is quick enough for all of
        # them: no session needs to begin at an engine whose cache is empty.
        await change(started, urls[0], "drain")
        await workload.run(started.url, 2)
        await change(started, urls[0], "undrain")
        workload.left = 60
        await workload.run(started.url, 2)
    assert workload.failed == []
    name = own[1].url.removeprefix("http://")
    back = [step for step in workload.steps if step.replica == name]
    assert len(back) >= 60
    wrong = [step for step in back if not step.exact(block)]
    assert len(wrong) <= max(1, len(back) // 50), wrong
