"""A simulated replica with a tier in CPU memory tells of it what vLLM tells, and the router reads
it."""

from __future__ import annotations

from array import array

import httpx
import msgspec
import pytest
import zmq
import zmq.asyncio

from loadgen.engine import offloading
from loadgen.replicas import QUICK, SimulatedFleet
from router.fleet.engine_metrics import parse_metrics
from router.fleet.replica_updater import loading_seconds
from router.kv_events.decode import decode
from router.kv_events.token_chain import chain, seed
from router.kv_events.token_index import TokenIndex
from router.types import TierShare

TIERED = offloading(msgspec.structs.replace(QUICK, num_blocks=250, max_model_len=3900), 2.0, 20.0)
LONG = list(range(1, 3200))


async def test_a_router_knows_what_lies_in_the_tier_and_what_loading_takes() -> None:
    async with (
        SimulatedFleet(1, params=TIERED, kv_events_port=0, time_scale=20.0) as fleet,
        httpx.AsyncClient(base_url=fleet.urls[0], timeout=20) as client,
    ):

        async def ask(prompt: list[int]) -> int:
            body = {"model": "sim", "prompt": prompt, "max_tokens": 2}
            answer = await client.post("/v1/completions", json=body)
            assert answer.status_code == 200
            return int(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])

        await ask(LONG)
        await ask([7] * 3200)
        before = parse_metrics((await client.get("/metrics")).content)
        assert (before.loaded, before.offload_tokens) == (0.0, TIERED.offload_tokens)
        source = (await client.get("/kv_event_sources")).json()["0"]
        index = TokenIndex()
        index.add_replica(0)
        index.empty(0, complete=True)
        with zmq.asyncio.Context() as context:
            replay = context.socket(zmq.DEALER)
            replay.connect(source["replay_endpoint"].replace("*", "127.0.0.1"))
            await replay.send_multipart([b"", (0).to_bytes(8, "big")])
            while len(frames := await replay.recv_multipart()) > 3 and frames[-1]:
                index.apply(0, decode(frames[-1]))
        behind: dict[int, TierShare] = {}
        prompt = chain(array("I", LONG).tobytes(), TIERED.block_size, seed("", ""))
        ((held, _),) = index.match(prompt, TIERED.block_size, 1, behind)
        assert held == len(prompt) * TIERED.block_size
        cached = await ask(LONG)
        assert cached == held
        after = parse_metrics((await client.get("/metrics")).content)
        assert after.loaded == behind[0].media["CPU"] > 2048
        assert loading_seconds(before, after) == pytest.approx(
            TIERED.offload_token_seconds + TIERED.offload_base_seconds / after.loaded
        )
        assert loading_seconds(None, after) == loading_seconds(after, after) == 0.0
        text = (await client.get("/metrics")).text
        assert f'source="host"}} {after.loaded}' in text
