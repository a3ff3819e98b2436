"""Requests for what only some engine has: adapters, stored responses, room for a long prompt."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

import pytest
from http_world import (
    CHAT,
    END,
    SSE_HEAD,
    Connect,
    MakeReplica,
    MakeRouter,
    Raw,
    Received,
    ScriptedReplica,
    chunk,
    exchanges,
    get,
    post,
    settings_for,
    sized,
    until,
)

from router.app import App
from router.fleet.holders import Holders, key_of


def ask(model: str) -> bytes:
    return post("/v1/chat/completions", json.dumps({"model": model, "messages": []}).encode())


def missing(name: str) -> bytes:
    error = {"message": f"The model `{name}` does not exist.", "param": "model", "code": 404}
    return sized(json.dumps({"error": error}).encode(), "404 Not Found")


def answers(replica: ScriptedReplica, answer: Callable[[Received], bytes]) -> None:
    """Have it answer each request with what this makes of it."""

    async def handler(
        request: Received, _: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        writer.write(answer(request))

    replica.handler = handler


async def test_a_model_whose_replicas_left_is_away_and_not_unknown(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    a, b = await replicas(model="a"), await replicas(model="b", models=("b-lora",))
    app = await router(a, b, lora_resolver=False)
    client = await connect(app)
    assert (await client.ask(ask("b")))[0] == 200
    app.fleet.remove(b.url)
    for name in ("b", "b-lora"):
        status, headers, body = await client.ask(ask(name))
        assert (status, headers["retry-after"]) == (503, "2")
        assert json.loads(body)["error"]["type"] == "ServiceUnavailableError"
    assert (await client.ask(ask("c")))[0] == 404


async def test_a_model_that_the_engine_stopped_serving_is_unknown(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    a = await replicas(model="a", models=("lora",))
    app = await router(a, lora_resolver=False)
    client = await connect(app)
    assert (await client.ask(ask("lora")))[0] == 200
    a.models = ()
    app.fleet.reread_models(app.fleet.find(a.url))
    await until(lambda: not app.fleet.serving("lora"))
    assert (await client.ask(ask("lora")))[0] == 404


async def test_an_expected_model_is_unavailable_and_counted_by_its_name(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    a = await replicas(model="a")
    app = await router(a, expected_models=("zero",), lora_resolver=False)
    client = await connect(app)
    status, headers, _ = await client.ask(ask("zero"))
    assert (status, headers["retry-after"]) == (503, "2")
    assert (await client.ask(ask("typo")))[0] == 404
    counted = {row.series.model: row.codes for row in app.telemetry.rows()}
    assert counted == {"zero": {503: 1}, "typo": {404: 1}}
    assert a.received == []


async def test_while_a_replica_has_not_told_its_models_no_model_is_unknown(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    a = await replicas(model="a")
    app = await router(a, "http://127.0.0.1:1", lora_resolver=False)
    client = await connect(app)
    status, headers, _ = await client.ask(ask("b"))
    assert (status, headers["retry-after"]) == (503, "2")


async def test_an_adapter_loaded_in_the_engine_is_found_at_its_first_request(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    a, b = await replicas(model="m"), await replicas(model="m")
    app = await router(a, b, lora_resolver=False, models_interval=3600.0)
    client = await connect(app)
    assert (await client.ask(ask("new")))[0] == 404
    b.models = ("new",)
    # Also within the second that may pass between two looks.
    assert (await client.ask(ask("new")))[0] == 200
    assert (len(a.received), len(b.received)) == (0, 1)


async def test_those_who_wait_for_a_look_share_it(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    a = await replicas(model="m")
    app = await router(a, lora_resolver=False, models_interval=3600.0)
    clients = [await connect(app) for _ in range(50)]
    before = a.own["/v1/models"]
    for number, client in enumerate(clients):
        client.send(ask(f"typo-{number}"))
    assert {(await client.answer())[0] for client in clients} == {404}
    assert a.own["/v1/models"] - before <= 2


async def test_a_client_that_leaves_while_the_engines_are_asked_leaves_nothing(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    a = await replicas(model="m")
    app = await router(a)
    client = await connect(app)
    assert (await client.ask(ask("typo")))[0] == 200
    client.send(ask("again"))  # its look waits for its time
    await until(lambda: app.gateway.tasks)
    client.vanish()
    await until(lambda: not exchanges(app))


async def test_a_lora_resolver_gets_names_that_nobody_lists(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    """The engine loads the adapter at its first request, and lists it from then on."""
    other = await replicas(model="other")
    base = await replicas(model="base")
    twin = await replicas(model="other")
    answers(other, lambda request: missing(request.json()["model"]))
    answers(twin, lambda request: missing(request.json()["model"]))

    def resolve(request: Received) -> bytes:
        base.models = (request.json()["model"],)
        return sized(b'{"ok":true}')

    answers(base, resolve)
    app = await router(other, base, twin, models_interval=3600.0)
    client = await connect(app)
    assert (await client.ask(ask("tenants/acme/sql")))[0] == 200
    # One replica of each kind was asked, and its answer was learned from.
    assert len(other.received) + len(twin.received) <= 1
    await until(lambda: app.fleet.serving("tenants/acme/sql"))
    asked = len(other.received) + len(twin.received)
    assert (await client.ask(ask("tenants/acme/sql")))[0] == 200
    assert len(other.received) + len(twin.received) == asked


async def test_where_no_engine_knows_a_name_the_client_is_told_which_there_are(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    made = [await replicas(model="m"), await replicas(model="m"), await replicas(model="n")]
    for replica in made:
        answers(replica, lambda request: missing(request.json()["model"]))
    client = await connect(await router(*made))
    status, _, body = await client.ask(ask("typo"))
    error = json.loads(body)["error"]
    assert (status, error["code"]) == (404, 404)
    assert "m, n" in error["message"]
    assert sum(len(replica.received) for replica in made) == 2  # one of m, one of n


async def test_the_404_of_a_replica_that_unloaded_an_adapter_is_tried_where_it_is(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    a, b = await replicas(models=("lora",)), await replicas(models=("lora",))
    app = await router(a, b, models_interval=3600.0)
    client = await connect(app)
    a.models = ()
    answers(a, lambda request: missing(request.json()["model"]))
    assert [(await client.ask(ask("lora")))[0] for _ in range(4)] == [200] * 4
    assert len(a.received) == 1
    await until(lambda: app.fleet.serving("lora") == app.fleet.find(b.url).bit)
    # Neither replica failed.
    assert app.telemetry.attempts == {}
    assert app.fleet.usable.bit_count() == 2


async def test_an_adapter_that_moved_unseen_is_looked_for(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    a, b = await replicas(models=("lora",)), await replicas()
    app = await router(a, b, models_interval=3600.0, lora_resolver=False)
    client = await connect(app)
    a.models, b.models = (), ("lora",)
    answers(a, lambda request: missing(request.json()["model"]))
    assert (await client.ask(ask("lora")))[0] == 200
    assert len(b.received) == 1


async def test_a_404_that_is_not_about_the_model_is_the_clients(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    a, b = await replicas(), await replicas()
    whole = sized(b'{"detail":"Not Found"}', "404 Not Found")
    for replica in (a, b):
        replica.reply(whole[:40], whole[40:60], whole[60:])
    client = await connect(await router(a, b))
    status, _, body = await client.ask(post("/v1/chat/completions", CHAT))
    assert (status, body) == (404, b'{"detail":"Not Found"}')
    assert len(a.received) + len(b.received) == 1


async def test_the_last_404_about_a_known_model_is_passed_on(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    made = [await replicas(), await replicas()]
    for replica in made:
        answers(replica, lambda request: missing(request.json()["model"]))
    client = await connect(await router(*made))
    status, _, body = await client.ask(post("/v1/chat/completions", CHAT))
    assert (status, json.loads(body)["error"]["code"]) == (404, 404)
    assert [len(replica.received) for replica in made] == [1, 1]


# -- keys


def keyed(request: Received) -> bytes:
    if request.header("authorization") != "Bearer sk-good":
        return sized(b'{"error":"Unauthorized"}', "401 Unauthorized")
    if request.target == "/v1/models":
        return sized(b'{"object":"list","data":[{"id":"secret"}]}')
    return missing(request.json()["model"])


async def test_models_are_told_to_who_has_the_engines_key(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    made = [await replicas(model="one", key="sk-good"), await replicas(model="two", key="sk-good")]
    for replica in made:
        answers(replica, keyed)
    app = await router(*made, replica_api_key="sk-good")
    client = await connect(app)
    good = "Authorization: Bearer sk-good"
    for headers in ((), ("Authorization: Bearer wrong",)):
        status, _, body = await client.ask(get("/v1/models", *headers))
        assert (status, body) == (401, b'{"error":"Unauthorized"}')
    status, _, body = await client.ask(get("/v1/models", good))
    assert status == 200
    assert {card["id"] for card in json.loads(body)["data"]} == {"one", "two"}
    # Neither does a 404 tell names, and without a key an engine says what is wrong.
    unknown = json.dumps({"model": "x", "messages": []}).encode()
    status, _, body = await client.ask(post("/v1/chat/completions", unknown))
    assert status == 401
    status, _, body = await client.ask(post("/v1/chat/completions", unknown, good))
    assert status == 404
    assert b"one" not in body
    assert b"two" not in body


async def test_an_engines_own_list_where_the_router_has_no_key(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas(key="sk-good")
    answers(replica, keyed)
    client = await connect(await router(replica))
    assert (await client.ask(get("/v1/models")))[0] == 401
    status, _, body = await client.ask(get("/v1/models", "Authorization: Bearer sk-good"))
    assert (status, json.loads(body)["data"]) == (200, [{"id": "secret"}])


# -- max_model_len


async def test_a_prompt_goes_where_it_fits(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    small, large = await replicas(length=4096), await replicas(length=32768)
    app = await router(small, large)
    client = await connect(app)
    text = "word " * 8000
    for number in range(6):
        messages = [{"role": "user", "content": f"{number} {text}"}]
        body = json.dumps({"model": "m", "messages": messages}).encode()
        assert (await client.ask(post("/v1/chat/completions", body)))[0] == 200
    assert (len(small.received), len(large.received)) == (0, 6)
    limit = json.dumps({"model": "m", "messages": [], "max_tokens": 9000}).encode()
    for body in (limit, CHAT, CHAT):
        assert (await client.ask(post("/v1/chat/completions", body)))[0] == 200
    assert (len(small.received), len(large.received)) == (1, 8)
    _, _, body = await client.ask(get("/v1/models"))
    assert [card["max_model_len"] for card in json.loads(body)["data"]] == [32768]


async def test_a_prompt_that_was_thought_to_fit_is_tried_where_more_fits(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    small, large = await replicas(length=4096), await replicas(length=32768)
    too_long = b'{"error":{"message":"This model\'s maximum context length is 4096 tokens."}}'
    small.reply(sized(too_long, "400 Bad Request"))
    app = await router(small, large)
    client = await connect(app)
    assert [(await client.ask(post("/v1/chat/completions", CHAT)))[0] for _ in range(4)] == [
        200
    ] * 4
    assert len(large.received) == 4
    assert app.telemetry.attempts == {}
    # Where no other takes more, the engine's word is the client's.
    large.reply(sized(too_long, "400 Bad Request"))
    status, _, body = await client.ask(post("/v1/chat/completions", CHAT))
    assert (status, body) == (400, too_long)


# -- stored responses


class Store:
    """A replica's responses and conversations, as vLLM keeps them: in its own memory."""

    def __init__(self, name: str, stream: bool = False) -> None:
        self.name = name
        self.stream = stream
        self.kept: set[str] = set()

    def __call__(self, request: Received) -> bytes:
        if request.method == "POST" and request.target == "/v1/responses":
            body = request.json()
            before = body.get("previous_response_id") or (body.get("conversation") or {}).get("id")
            if before and before not in self.kept:
                return self.no(before)
            return self.make("resp")
        if request.method == "POST" and request.target == "/v1/conversations":
            return self.make("conv")
        name = request.target.split("/")[3]
        return sized(b'{"id":"%b"}' % name.encode()) if name in self.kept else self.no(name)

    def no(self, name: str) -> bytes:
        error = {"message": f"Response with id '{name}' not found.", "code": 404}
        return sized(json.dumps({"error": error}).encode(), "404 Not Found")

    def make(self, kind: str) -> bytes:
        made = f"{kind}_{self.name}{len(self.kept)}"
        self.kept.add(made)
        if self.stream and kind == "resp":
            created = f'event: response.created\ndata: {{"response":{{"id":"{made}"}}}}\n\n'
            return SSE_HEAD + chunk(created.encode()) + END
        return sized(json.dumps({"id": made, "object": "response"}).encode())


@pytest.fixture(params=[False, True], ids=["whole", "stream"])
async def stores(
    request: pytest.FixtureRequest, replicas: MakeReplica
) -> list[tuple[ScriptedReplica, Store]]:
    made = []
    for name in "abcd":
        store, replica = Store(name, request.param), await replicas()
        answers(replica, store)
        made.append((replica, store))
    return made


async def respond(client: Raw, **fields: object) -> tuple[int, str]:
    body = json.dumps({"model": "m", "input": "hello", **fields}).encode()
    status, _, answer = await client.ask(post("/v1/responses", body))
    return status, answer.decode().partition('"id":')[2].strip(' "').partition('"')[0]


def asked(stores: list[tuple[ScriptedReplica, Store]]) -> int:
    return sum(len(replica.received) for replica, _ in stores)


async def test_follow_ups_find_the_engine_that_holds_their_response(
    stores: list[tuple[ScriptedReplica, Store]], router: MakeRouter, connect: Connect
) -> None:
    app = await router(*(replica for replica, _ in stores))
    client = await connect(app)
    for _ in range(20):
        status, first = await respond(client)
        assert status == 200
        assert (await respond(client, previous_response_id=first))[0] == 200
    assert asked(stores) == 40
    for method in ("GET", "DELETE", "POST"):
        path = f"/v1/responses/{first}" + ("/cancel" if method == "POST" else "")
        request = post(path, b"") if method == "POST" else get(path)
        assert (await client.ask(request.replace(b"GET", method.encode())))[0] == 200
    assert asked(stores) == 43
    # A conversation is the same: its id comes from an engine, too.
    _, _, body = await client.ask(post("/v1/conversations", b"{}"))
    conversation = {"id": json.loads(body)["id"]}
    for _ in range(8):
        assert (await respond(client, conversation=conversation))[0] == 200
    assert asked(stores) == 52


async def test_a_response_that_another_router_saw_is_looked_for(
    stores: list[tuple[ScriptedReplica, Store]], router: MakeRouter, connect: Connect
) -> None:
    for number in range(4):
        stores[number][1].kept.add(f"resp_x{number}")
    app = await router(*(replica for replica, _ in stores))
    client = await connect(app)
    for number in range(4):
        assert (await respond(client, previous_response_id=f"resp_x{number}"))[0] == 200
        before = asked(stores)
        assert (await client.ask(get(f"/v1/responses/resp_x{number}")))[0] == 200
        assert asked(stores) == before + 1  # learned
    status, _, body = await client.ask(get("/v1/responses/resp_none"))
    assert status == 404
    assert b"resp_none" in body


async def test_while_the_holder_is_away_the_client_may_try_again(
    stores: list[tuple[ScriptedReplica, Store]], router: MakeRouter, connect: Connect
) -> None:
    app = await router(*(replica for replica, _ in stores))
    client = await connect(app)
    _, first = await respond(client)
    holder = next(replica for replica, store in stores if first in store.kept)
    member = app.fleet.find(holder.url)
    app.fleet.drain(holder.url)
    assert (await client.ask(get(f"/v1/responses/{first}")))[0] == 200
    app.fleet.undrain(holder.url)
    await holder.stop()
    await until(lambda: not app.fleet.usable & member.bit)
    before = asked(stores)
    status, headers, _ = await client.ask(get(f"/v1/responses/{first}"))
    assert (status, headers["retry-after"]) == (503, "2")
    assert asked(stores) == before


def test_what_is_remembered_is_bounded() -> None:
    app = App(settings_for("http://a:1", "http://b:1"))
    holders = Holders(3)
    app.fleet.listen(holders)
    told: list[tuple[int, int]] = []
    holders.tell = lambda slot, key: told.append((slot, key))
    keys = [key_of(f"resp_{number}") for number in range(4)]
    for key in keys:
        holders.remember(key, 1)
    holders.remember(keys[3], 1)
    assert told == [(1, key) for key in keys]
    assert len(holders) == 3
    assert [holders.find(key) for key in keys] == [0, 2, 2, 2]
    app.fleet.remove("http://b:1")
    assert holders.find(keys[3]) == 0


async def test_a_404_that_breaks_off_leaves_nothing_in_the_next_answer(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    a, b = await replicas(), await replicas()
    a.reply_and_close(missing("m")[:-20])
    client = await connect(await router(a, b))
    b.reply(sized(b'{"error":"another"}', "404 Not Found"))
    for _ in range(2):
        status, _, body = await client.ask(post("/v1/chat/completions", CHAT))
        assert (status, body) == (404, b'{"error":"another"}')
