"""What becomes of a path, and of the model a body names."""

from __future__ import annotations

import json

import pytest
from http_world import CHAT, Connect, MakeReplica, MakeRouter, get, post, sized

from router.http.classify import classify, origin_form
from router.http.model_name import model_of
from router.http.paths import OTHER, RULES, Treatment
from router.http.request import Request

REFUSED = [path for path, rule in RULES.items() if rule.treatment is Treatment.REFUSE]


async def test_paths_of_one_engine_are_refused(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica)
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
                assert "admin port" in json.loads(body)["error"]["message"]
    assert replica.received == []


def test_classification() -> None:
    for target, path in {
        b"/v1/chat/completions": "/v1/chat/completions",
        b"/v1/chat/completions?api-version=1": "/v1/chat/completions",
        b"/v1/chat/completions/": "/v1/chat/completions",
        b"/v1/ch%61t/completions": "/v1/chat/completions",
        b"/sleep//": "/sleep",
        b"/v1/chat%2Fcompletions": "/v1/chat/completions",
    }.items():
        assert classify(target).path == path
    for target in (
        b"/",
        b"//sleep",
        b"/Sleep",
        b"/sleeping",
        b"/a/sleep",
        b"/%ff%fe",
        b"/%",
        b"/?",
    ):
        assert classify(target) is OTHER


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
    app = await router(one, two)
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


def form(*fields: tuple[str, bytes]) -> bytes:
    parts = [
        b'--b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (name.encode(), value)
        for name, value in fields
    ]
    return b"".join(parts) + b"--b--\r\n"


def test_model_names() -> None:
    audio = ("file", b"RIFF" * 100_000)
    for body, name in {
        b'{"model":"a"}': "a",
        b' \n{"x":1,"model":"\\u00e9"}': "é",
        b'{"model":5}': "",
        b'{"model":null}': "",
        b"{": "",
        b"[1]": "",
        b"{" * 100_000: "",
        b"\xff\xfe": "",
        b"model=a": "",
        form(("model", b"a"), audio): "a",
        form(audio, ("model", b"a")): "a",
        form(("models", b"a")): "",
        form(("x", b'name="model"')): "",
        form(audio).replace(b"file", b"model"): "",
        b"--b\r\ncontent-disposition: form-data; NAME=model\r\ncontent-type: text/plain\r\n\r\nb\r\n": "b",
    }.items():
        assert model_of(Request(body=body)) == name, body[:60]
