"""Who may use the admin port, and which pages may not."""

from __future__ import annotations

import pytest
from admin_world import CHANGE, World

A = "http://10.0.0.1:8000"
DRAIN = "/replicas/all/drain"
JSON = {"content-type": "application/json"}


@pytest.mark.parametrize(
    "host",
    ["127.0.0.1:9090", "localhost:9090", "localhost", "[::1]:9090", "10.1.2.3", "a.localhost:1",
     "LOCALHOST", "localhost."],
)  # fmt: skip
async def test_own_names_are_taken(host: str) -> None:
    async with World(A).client() as client:
        answer = await client.get("/replicas", headers={"host": host})
    assert answer.status_code == 200


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:9090", "127.0.0.1.evil.example", "localhost.evil.x", ""]
)
@pytest.mark.parametrize("path", ["/", "/replicas", "/metrics", "/explain", "/explain/r1"])
async def test_a_name_made_to_point_here_is_refused(host: str, path: str) -> None:
    async with World(A).client() as client:
        answer = await client.get(path, headers={"host": host})
    assert answer.status_code == 421
    assert "names" in answer.json()["error"]


async def test_probes_may_use_any_name_and_scrapes_of_an_open_port_too() -> None:
    host = {"host": "warmroute.prod.svc"}
    async with World(A).client() as client:
        assert (await client.get("/healthz", headers=host)).status_code == 200
        assert (await client.get("/readyz", headers=host)).status_code == 200
    async with World(A).client(bound="0.0.0.0") as client:
        assert (await client.get("/metrics", headers=host)).status_code == 200
        assert (await client.get("/replicas", headers=host)).status_code == 421


async def test_names_can_be_allowed() -> None:
    host = {"host": "Admin.example:9090"}
    async with World(A).client(hosts=["admin.EXAMPLE"]) as client:
        assert (await client.get("/replicas", headers=host)).status_code == 200
    async with World(A).client(hosts=["*"]) as client:
        assert (await client.get("/replicas", headers=host)).status_code == 200


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 403),
        ({"content-type": "text/plain"}, 403),
        ({"content-type": "application/x-www-form-urlencoded"}, 403),
        ({"content-type": "text/plain; application/json"}, 403),
        (JSON, 200),
        ({"content-type": "Application/JSON; charset=utf-8"}, 200),
        (CHANGE, 200),
        ({**CHANGE, "origin": "http://127.0.0.1:9090"}, 200),
        ({**CHANGE, "origin": "http://127.0.0.1:8080"}, 403),
        ({**CHANGE, "origin": "https://evil.example"}, 403),
        ({**CHANGE, "origin": "null"}, 403),
    ],
)
async def test_a_change_must_not_be_a_simple_cross_site_request(
    headers: dict[str, str], status: int
) -> None:
    world = World(A)
    async with world.client() as client:
        answer = await client.post(DRAIN, headers=headers)
    assert answer.status_code == status
    assert (world.fleet.usable == 0) is (status == 200)


async def test_preflights_get_no_permission() -> None:
    async with World(A).client() as client:
        answer = await client.options(
            DRAIN,
            headers={"origin": "https://evil.example", "access-control-request-method": "POST"},
        )
    assert not any(name.startswith("access-control") for name in answer.headers)


@pytest.mark.parametrize(
    ("peer", "status"),
    [("127.0.0.1", 200), ("::1", 200), ("::ffff:127.0.0.1", 200), ("10.0.0.7", 403), ("", 403)],
)
async def test_without_a_key_only_this_machine_changes_things(peer: str, status: int) -> None:
    world = World(A)
    headers = {**CHANGE, "x-forwarded-for": "127.0.0.1"}
    async with world.client(peer=peer, bound="0.0.0.0") as client:
        assert (await client.get("/replicas")).status_code == 200
        assert (await client.post(DRAIN, headers=headers)).status_code == status


async def test_with_a_key_everything_but_probes_metrics_and_the_page_needs_it() -> None:
    world = World(A)
    good, bad = {"authorization": "Bearer sesame"}, {"authorization": "Bearer sesam"}
    async with world.client(peer="10.0.0.7", bound="0.0.0.0", key="sesame") as client:
        for path in ("/healthz", "/readyz", "/metrics", "/"):
            assert (await client.get(path)).status_code == 200
        for path in ("/replicas", "/explain", "/explain/r1"):
            refused = await client.get(path)
            assert refused.status_code == 401
            assert refused.headers["www-authenticate"] == "Bearer"
            assert (await client.get(path, headers=bad)).status_code == 401
        assert (await client.get("/replicas", headers=good)).status_code == 200
        assert (await client.post(DRAIN, headers=CHANGE)).status_code == 401
        assert world.fleet.usable
        assert (await client.post(DRAIN, headers=good)).status_code == 403
        assert (await client.post(DRAIN, headers={**CHANGE, **good})).status_code == 200
        assert not world.fleet.usable
