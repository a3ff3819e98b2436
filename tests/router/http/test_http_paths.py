"""What becomes of a path, and of the model a body names."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from http_world import CHAT, Connect, MakeReplica, MakeRouter, get, post, sized

from router.http.routes import (
    EXTRA,
    MALFORMED,
    PATTERNS,
    RULES,
    UNKNOWN,
    Paths,
    Treatment,
    origin_form,
)

REFUSED = [path for path, rule in RULES.items() if rule.treatment is Treatment.REFUSE]
ROUTES = json.loads((Path(__file__).parent / "engine_routes.json").read_text())
"""Every route of real engines, recorded with all their options on, development mode included."""
TABLE = Path(__file__).parents[3] / "docs" / "reference" / "paths.md"


async def test_paths_of_one_engine_are_refused(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica, extra_paths=())
    client = await connect(app)
    assert len(REFUSED) > 20
    for path in REFUSED:
        for spelled in (
            *(path, path + "/", path + "?level=1", path + "#x", "http://host" + path),
            path.replace("e", "%65", 1),
            path.replace("s", "%73", 1) + "/?a",
        ):
            for data in (post(spelled, b"{}"), get(spelled)):
                status, headers, body = await client.ask(data)
                assert (spelled, status) == (spelled, 403)
                assert "connection" not in headers
                assert "is not served on this port" in json.loads(body)["error"]["message"]
    assert replica.received == []


UNKNOWN_PATHS = (
    *(
        "/",
        "/sleeping",
        "/Sleep",
        "//sleep",
        "/api/sleep",
        "/metricsX",
        "/metrics/a/b",
        "/x/../sleep",
    ),
    *("/v1/chat/completions/../../../sleep", "/v1/responses/../sleep", "/v1/responses/a/b/cancel"),
    *("/sleep;x", "/%2573leep", "/%ff%fe", "/%", "/?", "/./sleep", "/v1/models/m"),
)
MALFORMED_PATHS = (
    *("/sleep%0A", "/sleep%0a", "/v1/load_lora_adapter%0A", "/sleep%00", "/sleep%0D", "/%09sleep"),
    *("/v1%2Fsleep", "/v1/chat%2Fcompletions", "/v1%5csleep", "/a\\sleep", "/sleep%7f"),
    "/v1/responses/a%2f..%2f..%2fsleep",
)


async def test_paths_that_are_not_known_reach_no_engine(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica, extra_paths=("/plugin", "/mine/*"))
    client = await connect(app)
    for paths, expected in (
        (UNKNOWN_PATHS, 404),
        (MALFORMED_PATHS, 400),
        (("/adapters", "/adapters/a", "/metrics/a", "/inference/v1/abort_requests"), 403),
        (("/plugin/x", "/mine/../sleep", "/mine/a/%2e%2e/%2e%2e/sleep", "/mine"), 404),
        (("/mine/a%0A",), 400),
    ):
        for path in paths:
            for method in (b"POST", b"DELETE", b"GET"):
                data = post(path, b"{}").replace(b"POST", method, 1)
                status, _, body = await client.ask(data)
                assert (path, status) == (path, expected)
                assert json.loads(body)["error"]["message"]
    assert replica.received == []
    for path in ("/plugin", "/plugin/?a=1", "/mine/a", "/mine/a/b", "/v1/responses/resp_1/cancel"):
        assert (await client.ask(post(path, b"")))[0] == 200
    assert len(replica.received) == 5


async def test_a_long_path_is_told_and_kept_short(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    app = await router(await replicas(), extra_paths=())
    client = await connect(app)
    status, _, body = await client.ask(get("/" + "a" * 60_000))
    assert status == 404
    assert len(body) < 1000
    kept = app.explain.latest(1)[0]
    assert kept.status == 404


def test_every_route_of_the_engines_is_decided_on() -> None:
    """A route that is only unknown was forgotten: serve it, or refuse it with a reason."""
    paths = Paths()
    for version, routes in ROUTES.items():
        assert routes
        for _, route in routes:
            target = re.sub(r"\{[^}]*\}", "x", route)
            assert paths.rule(target.encode()) not in (UNKNOWN, MALFORMED), (version, route)


def test_the_table_in_the_docs_has_every_path() -> None:
    words = {
        Treatment.PREFIX: "by prefix",
        Treatment.BALANCE: "balanced",
        Treatment.MODELS: "answered here",
        Treatment.HEALTH: "answered here",
        Treatment.REFUSE: "refused",
    }
    told = {}
    for line in TABLE.read_text().splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) > 3 and cells[1].startswith("`/"):
            for path in re.findall(r"`([^`]+)`", cells[1]):
                assert path not in told
                told[path] = cells[2]
    done = {
        re.sub(r"\{\}", "{id}", path): words[rule.treatment]
        for path, rule in (RULES | PATTERNS).items()
        if path != "*"
    }
    assert told == done


def test_classification() -> None:
    paths = Paths(("/mine/*",))
    for target, path in {
        b"/v1/chat/completions": "/v1/chat/completions",
        b"/v1/chat/completions?api-version=1%0A": "/v1/chat/completions",
        b"/v1/chat/completions/": "/v1/chat/completions",
        b"/v1/ch%61t/completions": "/v1/chat/completions",
        b"/sleep//": "/sleep",
        b"/v1/responses/resp_1": "/v1/responses/{}",
    }.items():
        assert paths.rule(target).path == path
    for each in UNKNOWN_PATHS:
        assert paths.rule(each.encode()) is UNKNOWN, each
    for each in MALFORMED_PATHS:
        assert paths.rule(each.encode()) is MALFORMED, each
    assert paths.rule(b"/mine/x") is EXTRA


def test_origin_form() -> None:
    assert origin_form(b"http://h:1/a/b?c#d", b"GET") == b"/a/b?c"
    assert origin_form(b"https://h", b"GET") == b"/"
    assert origin_form(b"*", b"OPTIONS") == b"*"
    for target in (b"*", b"h", b"http://", b"http:///x", b"a b"):
        with pytest.raises(ValueError, match=r"^$"):
            origin_form(target, b"GET")


async def test_other_paths_and_methods_pass(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica)
    client = await connect(app)
    for method in ("GET", "PUT", "DELETE", "PATCH", "POST", "PROPFIND"):
        data = get(f"/v1/things/{method}?q=1").replace(b"GET ", method.encode() + b" ", 1)
        assert (await client.ask(data))[0] == 200
    assert [r.method for r in replica.received] == [
        *("GET", "PUT", "DELETE", "PATCH", "POST", "PROPFIND")
    ]
    # The chat path with another method is the replica's to refuse.
    replica.reply(sized(b"", "405 Method Not Allowed", "Allow: POST\r\n"))
    status, headers, _ = await client.ask(get("/v1/chat/completions"))
    assert (status, headers["allow"]) == (405, "POST")
    for path in ("/v1/models", "/health"):
        status, _, body = await client.ask(post(path, b"{}"))
        assert status == 405
        assert json.loads(body) == {"detail": "Method Not Allowed"}


async def test_health(replicas: MakeReplica, router: MakeRouter, connect: Connect) -> None:
    replica = await replicas()
    app = await router(replica)
    client = await connect(app)
    for path in ("/health", "/ping"):
        assert (await client.ask(get(path)))[0] == 200
    app.fleet.remove(replica.url)
    status, headers, _ = await client.ask(get("/health"))
    assert (status, headers["retry-after"]) == (503, "2")


async def test_replicas_behind_a_prefix(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica)
    member = app.fleet.replicas[0]
    assert member is not None
    member.prefix = "/base"
    client = await connect(app)
    await client.ask(post("/v1/chat/completions?x=1", CHAT))
    assert replica.received[0].target == "/base/v1/chat/completions?x=1"


async def test_models_choose_replicas(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    one, two = await replicas(model="one"), await replicas(model="two", models=("adapter",))
    app = await router(one, two, lora_resolver=False)
    client = await connect(app)
    for model, replica in (("one", one), ("two", two), ("adapter", two)):
        body = json.dumps({"model": model, "input": "x", "messages": []}).encode()
        for path in ("/v1/chat/completions", "/v1/embeddings", "/tokenize", "/v1/anything"):
            before = len(replica.received)
            assert (await client.ask(post(path, body)))[0] == 200
            assert len(replica.received) == before + 1
    _, _, body = await client.ask(get("/v1/models"))
    assert {card["id"] for card in json.loads(body)["data"]} == {"one", "two", "adapter"}
    status, _, body = await client.ask(post("/v1/embeddings", b'{"model":"three"}'))
    error = json.loads(body)["error"]
    assert (status, error["code"], error["param"]) == (404, 404, "model")
    assert all(name in error["message"] for name in ("one", "two", "adapter", "three"))
    status, _, body = await client.ask(post("/v1/messages", b'{"model":"three","messages":[]}'))
    assert (status, json.loads(body)["error"]["type"]) == (404, "NotFoundError")
