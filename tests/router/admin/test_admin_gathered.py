"""Several workers behind one admin port."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from admin_world import World
from prometheus_client.parser import text_string_to_metric_families

from router.admin.engines import MAX_BODY_BYTES
from router.admin.gathered import GatheredServer, merged
from router.admin.server import AdminServer
from router.config import Settings
from router.telemetry.series import escape

ODD = 'a\u2028b\u2029\x85\x0b\x0c\x1c\r\n\\"\ud800'
"""Ends of lines to some, and what UTF-8 and labels do not have."""


def test_odd_characters_in_a_label_end_no_line() -> None:
    line = f'# TYPE x_total counter\nx_total{{model="{escape(ODD)}"}} 1\n'
    line.encode()
    text = merged([(0, line), (1, line)])
    [family] = text_string_to_metric_families(text)
    assert [sample.labels["worker"] for sample in family.samples] == ["0", "1"]
    told = r"a\u2028b\u2029\x85\x0b\x0c\x1c\r" + '\n\\"' + r"\ud800"
    assert {sample.labels["model"] for sample in family.samples} == {told}
    # Nor does it for those that know more ends of lines.
    assert len(text.splitlines()) == 3


@pytest.fixture
async def gathered() -> AsyncIterator[httpx.AsyncClient]:
    """A client of the port of two workers; each has kept a request."""
    workers = []
    for name in ("a/b?c", "d"):
        world = World("http://10.0.0.1:8000")
        world.finish(name)
        workers.append(AdminServer(world.parts, "127.0.0.1", 0))
        await workers[-1].start()
    server = GatheredServer(
        Settings(admin_port=0), lambda: [(n, w.port) for n, w in enumerate(workers)]
    )
    await server.start()
    base = f"http://127.0.0.1:{server.port}"
    async with httpx.AsyncClient(base_url=base, trust_env=False) as client:
        yield client
    for each in (server, *workers):
        await each.stop()


async def test_what_cannot_be_asked_of_the_workers_is_told(gathered: httpx.AsyncClient) -> None:
    assert len((await gathered.get("/explain")).json()) == 2
    for asked in ("/explain?limit=x", "/requests?limit=x", "/replicas?x=1", "/settings?x=1"):
        answer = await gathered.get(asked)
        assert (answer.status_code, "error" in answer.json()) == (400, True), asked


async def test_paths_and_headers_reach_the_workers_as_they_were_sent(
    gathered: httpx.AsyncClient,
) -> None:
    assert (await gathered.get("/explain/a%2Fb%3Fc")).json()["request_id"] == "a/b?c"
    assert (await gathered.get("/explain/%0A%00")).status_code == 404
    odd = [(b"authorization", b"Bearer \xff")]
    assert (await gathered.get("/settings", headers=odd)).status_code == 200


async def test_a_body_for_the_workers_is_bounded(gathered: httpx.AsyncClient) -> None:
    long = b"x" * (MAX_BODY_BYTES + 1)
    for method in ("GET", "POST"):
        answer = await gathered.request(
            method, "/anything", content=long, headers={"x-warmroute-admin": "1"}
        )
        assert (answer.status_code, "longer" in answer.json()["error"]) == (413, True)
