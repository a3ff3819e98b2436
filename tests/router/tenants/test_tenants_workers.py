"""Several workers of one host, without Redis: limits hold for all of them together."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from router_process import Process, Serve

from loadgen.replicas import SimulatedFleet
from router.tenants.keys import new_key

KEY = new_key()
HEADERS = {"authorization": f"Bearer {KEY}", "connection": "close"}
"""Each request is a connection of its own: the system spreads them over the workers."""


def tenants(folder: Path, **limits: int) -> str:
    path = folder / "tenants.yaml"
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    acme = {"limits": limits, "keys": [{"name": "ci", "sha256": digest}]}
    path.write_text(yaml.safe_dump({"tenants": {"acme": acme}}))
    return str(path)


def body(**fields: Any) -> dict[str, Any]:
    return {"model": "sim", "prompt": "hello", "max_tokens": 2, **fields}


def children(router: Process) -> list[int]:
    pid = router.process.pid
    return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.timeout(120)
async def test_three_workers_give_a_limit_once(serve: Serve, tmp_path: Path) -> None:
    async with SimulatedFleet(1) as fleet:
        file = tenants(tmp_path, requests_per_minute=20)
        router = await (await serve(*fleet.urls, workers=3, tenants=file)).ready()
        async with httpx.AsyncClient(headers=HEADERS, timeout=30, trust_env=False) as http:

            async def ask() -> int:
                answer = await http.post(f"{router.front}/v1/completions", json=body())
                return answer.status_code

            at_once = Counter(await asyncio.gather(*(ask() for _ in range(60))))
            later = {await ask() for _ in range(10)}
            metrics = (await http.get(f"{router.admin}/metrics")).text
            ready = (await http.get(f"{router.admin}/readyz")).json()
    assert at_once == {200: 20, 429: 40}
    assert later == {429}
    shared = [line for line in metrics.splitlines() if line.startswith("warmroute_limits_shared{")]
    assert [line.rpartition(" ")[2] for line in shared] == ["1", "1", "1"]
    assert 'by="supervisor"' in metrics
    assert "without" not in str(ready)


@pytest.mark.timeout(120)
async def test_what_a_killed_worker_held_is_free_again(serve: Serve, tmp_path: Path) -> None:
    async with SimulatedFleet(1, time_scale=0.05, default_output_tokens=4000) as slow:
        file = tenants(tmp_path, concurrent_requests=4)
        router = await (await serve(*slow.urls, workers=2, tenants=file)).ready()
        workers = children(router)
        assert len(workers) == 2
        async with httpx.AsyncClient(headers=HEADERS, timeout=60, trust_env=False) as http:

            async def begin() -> httpx.Response:
                asked = http.build_request(
                    "POST",
                    f"{router.front}/v1/completions",
                    json=body(max_tokens=4000, stream=True),
                )
                return await http.send(asked, stream=True)

            held = [await begin() for _ in range(4)]
            assert {each.status_code for each in held} == {200}
            assert (await begin()).status_code == 429
            os.kill(workers[0], signal.SIGKILL)
            os.kill(workers[1], signal.SIGKILL)
            await router.says("worker 0 ended")
            await router.says("worker 1 ended")
            admitted = []
            async with asyncio.timeout(30):
                while len(admitted) < 4:
                    try:
                        admitted.append(await begin())
                    except httpx.TransportError:
                        await asyncio.sleep(0.05)
            # None was refused by a worker that does not know its fleet yet.
            assert {each.status_code for each in admitted} == {200}
            assert (await begin()).status_code == 429


@pytest.mark.timeout(120)
async def test_a_frozen_supervisor_loses_no_request(serve: Serve, tmp_path: Path) -> None:
    async with SimulatedFleet(1) as fleet:
        file = tenants(tmp_path, requests_per_minute=40)
        router = await (await serve(*fleet.urls, workers=2, tenants=file)).ready()
        async with httpx.AsyncClient(headers=HEADERS, timeout=30, trust_env=False) as http:

            async def ask() -> int:
                answer = await http.post(f"{router.front}/v1/completions", json=body())
                return answer.status_code

            router.signal(signal.SIGSTOP)
            frozen = Counter(await asyncio.gather(*(ask() for _ in range(100))))
            router.signal(signal.SIGCONT)
    assert set(frozen) <= {200, 429}
    assert 20 <= frozen[200] <= 40
