"""Ways around a tenant's models and limits that clients may try."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest
from http_world import Connect, MakeReplica, get, post, sized, until
from tenant_world import ANSWER, BODY, KEYS, SAY, MakeGateway, chat, client

from router.app import App

AUTH = f"Authorization: Bearer {KEYS['acme']}"


def needs(app: App) -> list[tuple[int, ...]]:
    """What is reserved from now on."""
    assert app.tenants is not None
    found: list[tuple[int, ...]] = []
    ledger = app.tenants.ledger
    reserve = ledger.reserve
    ledger.reserve = lambda accounts, need: (found.append(need), reserve(accounts, need))[1]  # type: ignore[method-assign,func-returns-value]
    return found


# -- models

FORM = (
    b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nm\r\n'
    b'--b\r\nContent-Disposition: form-data; name="model"\r\n\r\nother\r\n'
    b'--b\r\nContent-Disposition: form-data; name="file"; filename="a.wav"\r\n\r\nRIFF\r\n--b--\r\n'
)


@pytest.mark.parametrize("name", ["other", "m-alias", "m-lora", "M", " m", "m ", "m\u0000", ""])
async def test_a_name_that_is_not_listed_is_no_way_to_a_model(
    gateway: MakeGateway, replicas: MakeReplica, name: str
) -> None:
    replica = await replicas(models=("other", "m-alias", "m-lora"))
    app = await gateway(replica, acme={"models": ["m"]})
    assert (await chat(app, model=name)).status_code in (400, 403)
    assert not replica.received


@pytest.mark.parametrize(
    "path",
    [
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/embeddings",
        "/v1/chat/completions/batch",
        "/cohere/v2/chat",
        "/inference/v1/generate",
        "/generate",
        "/pooling",
        "/score",
        "/tokenize",
        "/detokenize",
        "/invocations",
        "/my/own/path",
    ],
)
async def test_every_path_looks_at_the_models_name(
    gateway: MakeGateway, replicas: MakeReplica, connect: Connect, path: str
) -> None:
    replica = await replicas(models=("other",))
    app = await gateway(replica, acme={"models": ["m"]})
    rest = '"messages":[{"role":"user","content":"x"}],"input":"x","prompt":"x","token_ids":[1,2]}'
    # As engines read JSON: the last of two names counts, however it is spelt.
    for model in (
        '"model":"other"',
        '"model":"m","model":"other"',
        '"model":"m","mod\\u0065l":"oth\\u0065r"',
    ):
        raw = await connect(app)
        status, _, _ = await raw.ask(post(path, f"{{{model},{rest}".encode(), AUTH))
        assert status == 403, model
    assert not replica.received


async def test_forms_and_websockets_look_at_the_models_name(
    gateway: MakeGateway, replicas: MakeReplica, connect: Connect
) -> None:
    replica = await replicas(models=("other",))
    app = await gateway(replica, acme={"models": ["m"]}, extra_paths=())
    raw = await connect(app)
    form = "Content-Type: multipart/form-data; boundary=b"
    status, _, _ = await raw.ask(post("/v1/audio/transcriptions", FORM, form, AUTH))
    assert status == 403
    upgrade = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Key: eA==")
    for target in ("/v1/realtime", "/v1/realtime?model=m", "/v1/realtime?model=other"):
        raw = await connect(app)
        status, _, _ = await raw.ask(get(target, *upgrade, AUTH))
        assert status == 403
    async with client(app) as http:
        assert (await http.get("/v1/models/other")).status_code == 404
    assert not replica.received


@pytest.mark.parametrize(
    ("acme", "file"),
    [
        ({"model_limits": {"m": {"requests_per_minute": 1}}}, {}),
        ({"limits": {"money_per_day": 1}}, {"prices": {"m": {"input": 1}}}),
    ],
)
async def test_a_model_that_is_not_named_is_no_way_around_its_limits(
    gateway: MakeGateway, replicas: MakeReplica, acme: dict[str, Any], file: dict[str, Any]
) -> None:
    replica = await replicas()
    replica.reply(ANSWER)
    app = await gateway(replica, acme=acme, file=file)
    for model in (None, ""):
        refused = await chat(app, model=model)
        assert refused.status_code == 403
        assert "Name a model" in refused.json()["error"]["message"]
    assert (await chat(app)).status_code == 200
    assert (await chat(app, "beta", model=None)).status_code == 200


# -- limits


BATCH = {"model": "m", "messages": [SAY, SAY, SAY], "n": 2}


@pytest.mark.parametrize(
    ("path", "body", "reserved", "name"),
    [
        ("/v1/chat/completions/batch", {**BATCH, "max_tokens": 30}, 180, "max_completion_tokens"),
        (
            "/v1/chat/completions/batch",
            {**BATCH, "max_completion_tokens": "30"},
            180,
            "max_completion_tokens",
        ),
        ("/v1/chat/completions/batch", BATCH, 300, "max_completion_tokens"),
        ("/cohere/v2/chat", {**BODY, "max_tokens": 30}, 30, "max_tokens"),
    ],
)
async def test_chats_that_are_not_read_have_limits_too(
    gateway: MakeGateway,
    replicas: MakeReplica,
    path: str,
    body: dict[str, Any],
    reserved: int,
    name: str,
) -> None:
    replica = await replicas()
    replica.reply(ANSWER)
    limits = {"max_output_tokens": 50, "output_tokens_per_minute": 10_000}
    app = await gateway(replica, acme={"limits": limits})
    found = needs(app)
    async with client(app) as http:
        assert (await http.post(path, json=body)).status_code == 200
        assert found[0][2] == reserved
        assert 0 < replica.received[-1].json()[name] <= 50
        too_long = await http.post(path, json={**body, "max_tokens": 51})
        assert (too_long.status_code == 400) == ("max_completion_tokens" not in body)
        assert (await http.post("/generate", json={"model": "m", "text": "x"})).status_code == 403


async def test_an_answer_that_tells_no_usage_counts_as_long_as_it_might_be(
    gateway: MakeGateway, replicas: MakeReplica
) -> None:
    replica = await replicas()
    replica.reply(sized(b'{"text":"x"}'))
    app = await gateway(replica, acme={"limits": {"tokens_per_day": 10_000}})
    async with client(app) as http:
        answer = await http.post("/cohere/v2/chat", json={**BODY, "max_tokens": 300})
        assert answer.status_code == 200
        assert (await http.post("/tokenize", json={"model": "m", "prompt": "x"})).status_code == 200
    assert app.tenants is not None
    account = app.tenants.registry.accounts["tenant:acme"]
    assert 300 < account.days[3] < 360


async def test_a_client_that_leaves_before_its_answer_pays_for_its_prompt(
    gateway: MakeGateway, replicas: MakeReplica, connect: Connect
) -> None:
    replica = await replicas()
    replica.hang()
    app = await gateway(replica, acme={"limits": {"tokens_per_day": 10_000}})
    assert app.tenants is not None
    account = app.tenants.registry.accounts
    body = {**BODY, "messages": [{"role": "user", "content": "word " * 400}]}
    raw = await connect(app)
    raw.send(post("/v1/chat/completions", json.dumps(body).encode(), AUTH))
    await replica.asked()
    raw.vanish()
    await until(lambda: account["tenant:acme"].days[3] > 0)
    assert account["tenant:acme"].days[3] > 200
    assert not any(account["tenant:acme"].held)


async def test_a_request_that_is_tried_again_counts_once(
    gateway: MakeGateway, replicas: MakeReplica
) -> None:
    bad, good = await replicas(), await replicas()
    bad.reply(sized(b"{}", "503 Service Unavailable"))
    good.reply(ANSWER)
    limits = {"requests_per_minute": 3, "tokens_per_day": 1000, "concurrent_requests": 1}
    app = await gateway(bad, good, acme={"limits": limits}, retries=2)
    assert [(await chat(app)).status_code for _ in range(4)] == [200, 200, 200, 429]
    assert bad.received
    assert app.tenants is not None
    assert app.tenants.registry.accounts["tenant:acme"].days[3] == 3 * 25


async def test_a_websocket_holds_its_place_while_it_is_open(
    gateway: MakeGateway, replicas: MakeReplica, connect: Connect
) -> None:
    replica = await replicas()
    replica.reply(
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: websocket\r\nconnection: upgrade\r\n\r\n"
    )
    app = await gateway(replica, acme={"limits": {"concurrent_requests": 1}})
    upgrade = ("Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Key: eA==", AUTH)
    first, second = await connect(app), await connect(app)
    first.send(get("/v1/realtime", *upgrade))
    assert (await first.head())[0] == 101
    assert (await second.ask(get("/v1/realtime", *upgrade)))[0] == 429
    first.vanish()
    assert app.tenants is not None
    account = app.tenants.registry.accounts["tenant:acme"]
    await until(lambda: not any(account.held))


# -- secrets and names


async def test_a_key_in_the_url_opens_nothing_and_is_in_no_log(
    gateway: MakeGateway, replicas: MakeReplica, caplog: pytest.LogCaptureFixture, capfd: Any
) -> None:
    caplog.set_level(logging.DEBUG)
    replica = await replicas()
    replica.reply(ANSWER)
    app = await gateway(replica, access_log=1.0)
    key = KEYS["acme"]
    async with client(app, "") as http:
        for query in ("api_key", "key", "access_token"):
            path = f"/v1/chat/completions?{query}={key}"
            assert (await http.post(path, json=BODY)).status_code == 401
    async with client(app) as http:
        assert (
            await http.post(f"/v1/chat/completions?api_key={key}", json=BODY)
        ).status_code == 200
    app.access_log.close()
    # Of the router, not of the client that this test is.
    logged = [each.getMessage() for each in caplog.records if each.name.startswith("router")]
    told = "\n".join([*logged, *capfd.readouterr(), repr(app.explain.latest())])
    assert "/v1/chat/completions" in told
    assert key not in told


ODD = [
    "a\u202eb",
    "a\u200bb",
    "\x9b31m",
    "a\tb",
    "a\u2028b",
    'a"b',
    "a\\b",
    "a{b}",
    "x" * 129,
    "a b",
]


@pytest.mark.parametrize("name", ODD, ids=range(len(ODD)))
async def test_a_proxy_gives_nobody_an_odd_name(
    gateway: MakeGateway, replicas: MakeReplica, connect: Connect, name: str
) -> None:
    app = await gateway(await replicas(), tenant_header="x-tenant", tenant_proxies=("127.0.0.1",))
    raw = await connect(app)
    head = b"X-Tenant: " + name.encode() + b"\r\n"
    request = post("/v1/chat/completions", json.dumps(BODY).encode())
    status, _, _ = await raw.ask(request.replace(b"Host: x\r\n", b"Host: x\r\n" + head))
    assert status in (400, 401)


async def test_names_of_other_scripts_are_names(
    gateway: MakeGateway, replicas: MakeReplica, connect: Connect
) -> None:
    replica = await replicas()
    replica.reply(ANSWER)
    app = await gateway(replica, tenant_header="x-tenant", tenant_proxies=("127.0.0.1",))
    for name in ("größe", "株式会社", "😀", "a=b,c", "*", "other"):
        raw = await connect(app)
        head = b"X-Tenant: " + name.encode() + b"\r\n"
        request = post("/v1/chat/completions", json.dumps(BODY).encode())
        status, _, _ = await raw.ask(request.replace(b"Host: x\r\n", b"Host: x\r\n" + head))
        assert status == 200
    assert app.tenants is not None
    names = [name for name, _ in app.tenants.rows()]
    assert sorted(names) == sorted({"größe", "株式会社", "😀", "a=b,c", "*", "other"})
