"""Two classes through a real engine that is saturated."""

from __future__ import annotations

import asyncio
from time import perf_counter

import httpx
from caught_up import PATIENT

from bench.gateways import gateway
from bench.queue_engines import LOW, Client, asked

BATCH = 80


async def test_interactive_requests_overtake_a_batch_and_all_are_answered(urls: list[str]) -> None:
    async with gateway(urls[:1], *PATIENT) as started:
        limits = httpx.Limits(max_connections=None)
        async with httpx.AsyncClient(timeout=240.0, trust_env=False, limits=limits) as http:
            client = Client(http, started.url, 1)
            ended: list[tuple[float, str]] = []

            async def send(kind: str, tokens: int, headers: dict[str, str]) -> None:
                answered = await client.ask(asked(client.text(tokens)), 8, headers)
                assert answered is not None, client.failed
                ended.append((perf_counter(), kind))

            async with asyncio.TaskGroup() as all_of_them:
                all_of_them.create_task(send("interactive", 200, {}))  # both classes are known
                for _ in range(BATCH):
                    all_of_them.create_task(send("batch", 1500, LOW))
                await asyncio.sleep(0)
                while not any(kind == "batch" for _, kind in ended):  # noqa: ASYNC110
                    await asyncio.sleep(0.01)
                for _ in range(3):
                    all_of_them.create_task(send("interactive", 200, {}))
        order = [kind for _, kind in sorted(ended)]
        assert order.count("batch") == BATCH
        assert order.count("interactive") == 4
        # Those that came when the first of the batch was answered are done before its last five.
        assert "interactive" not in order[-5:]
        async with httpx.AsyncClient(timeout=240.0, trust_env=False) as http:
            (replica,) = (await http.get(started.admin + "/replicas")).json()
            assert (replica["in_flight"], replica["queued_tokens"]) == (0, 0)
            text = (await http.get(started.admin + "/metrics")).text
    assert 'warmroute_queue_waiting{priority="low",where="lane"} 0' in text
