"""The JSON behind the console's views."""

from __future__ import annotations

from array import array

import pytest
from admin_world import CHANGE, World

from router.index import ByteIndex
from router.index.shared import shared_prefixes

A, B = "http://10.0.0.1:8000", "http://10.0.0.2:8000"


@pytest.mark.parametrize(
    ("asked", "found"),
    [
        ("", ["r3", "r2", "r1"]),
        ("limit=1", ["r3"]),
        ("replica=10.0.0.2:8000", ["r2"]),
        ("model=other", ["r3"]),
        ("tenant=t", ["r1"]),
        ("status=5xx", ["r2"]),
        ("status=503", ["r2"]),
        ("status=upstream_5xx", ["r2"]),
        ("reason=spread&text=3", ["r3"]),
        ("text=1&model=other", []),
    ],
)
async def test_requests_are_filtered(asked: str, found: list[str]) -> None:
    world = World(A, B)
    world.finish("r1", tenant="t", bytes_in=77)
    world.finish("r2", slot=1, status=503, outcome="upstream_5xx")
    world.finish("r3", model="other", reason="spread")
    async with world.client() as client:
        answer = (await client.get(f"/requests?{asked}")).json()
    assert answer["kept"] == 3
    assert [line["request_id"] for line in answer["requests"]] == found


@pytest.mark.parametrize(
    "asked",
    [
        *("/requests?limit=0", "/requests?limit=x", "/requests?limit=-1", "/requests?colour=red"),
        *(
            "/requests?limit=1&limit=2",
            "/explain?limit=x",
            "/explain?limit=1",
            "/explain/r1?since=1",
        ),
        *("/replicas?model=m", "/shadows?policy=x", "/sessions?limits=1", "/sessions/s?limit=1"),
        *("/audit?since=1h&since=2h", "/audit?until=1h", "/queue?limit=1", "/policies?limit=1"),
        *("/prefixes?replica=r", "/prefixes?limit=", "/settings?name=port", "/playground?model=m"),
        *("/replicas/all/drain?timeout=5", "/replicas/10.0.0.1:8000?force=1", "/replicas?force=1"),
    ],
)
async def test_what_cannot_be_asked_is_named(asked: str) -> None:
    name = asked.partition("?")[2].partition("=")[0]
    async with World(A).client() as client:
        methods = ["GET"]
        if name in ("timeout", "force") or asked.startswith("/playground"):
            methods = ["DELETE"] if name == "force" else ["POST"]
        for method in methods:
            answer = await client.request(method, asked, headers=CHANGE)
            assert answer.status_code == 400
            assert name in answer.json()["error"]


@pytest.mark.parametrize("key", ["\u00e9", "a\r\nx: y", "\x00"])
async def test_a_key_that_no_header_can_have_is_refused(key: str) -> None:
    async with World(A).client() as client:
        body = {"model": "m", "prompt": "hi", "key": key}
        answer = await client.post("/playground", json=body)
    assert (answer.status_code, "key" in answer.json()["error"]) == (400, True)


async def test_the_replicas_have_times_and_errors_of_the_last_minute() -> None:
    world = World(A, B)
    for number in range(4):
        world.finish(f"r{number}", ttft=0.2)
    world.finish("bad", outcome="upstream_5xx", status=503)
    async with world.client() as client:
        first, second = (await client.get("/replicas")).json()
    assert (first["requests"], first["errors"], first["error_share"]) == (5, 1, 0.2)
    assert 0.15 < first["ttft_p50"] <= 0.25
    assert first["available_rate"] == 0.9
    assert (second["requests"], second["ttft_p50"]) == (0, None)


async def test_prefixes_are_told_largest_first() -> None:
    world = World(A, B)
    for slot in (0, 1):
        world.index.resize(slot, 100_000)
    shared = list(range(1, 11))
    world.index.record(0, array("Q", [*shared, 100]), 1.0)
    world.index.record(1, array("Q", [*shared, 200]), 2.0)
    world.index.record(0, array("Q", [901, 902]), 3.0)  # nobody shares it
    async with world.client() as client:
        answer = (await client.get("/prefixes")).json()
    assert answer["blocks"] == 14
    (prefix,) = answer["prefixes"]
    assert (prefix["bytes"], prefix["tokens"], prefix["copies"]) == (1000, 250, 2)
    assert prefix["holders"] == ["10.0.0.1:8000", "10.0.0.2:8000"]
    assert prefix["continuations"] == 2


def test_a_walk_goes_on_when_the_index_changes() -> None:
    index = ByteIndex(range(0, 10_000, 100))
    index.add_replica(0, 10**9)
    for number in range(3000):
        first = number * 10
        index.record(0, array("Q", [first + 1, first + 2]), 1.0)
        index.record(0, array("Q", [first + 1, first + 3]), 1.0)
    walk = shared_prefixes(index, 10)
    assert next(walk) is None
    index.forget(0)
    *pauses, found = walk
    assert not any(pauses)
    assert found == []


async def test_settings_hide_secrets_and_policies_have_weights() -> None:
    async with World(A, api_key="very-secret").client() as client:
        answer = await client.get("/settings")
        assert "very-secret" not in answer.text
        rows = {row["name"]: row for row in answer.json()["settings"]}
        assert A in rows["replicas"]["value"]
        assert rows["replicas"]["source"] == "--replica"
        assert rows["policy"]["source"] == "default"
        assert (await client.get("/policies")).json()["weights"] == {"wait": 3.0}
