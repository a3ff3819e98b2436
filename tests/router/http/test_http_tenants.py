"""Tenants at the front port: keys, limits and isolation, with real sockets."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
import time
from pathlib import Path
from typing import Any

import pytest
from http_world import (
    SSE_HEAD,
    MakeReplica,
    chunk,
    event,
    post,
    sized,
    until,
)
from tenant_world import ANSWER, BODY, KEYS, SAY, SECRET, USAGE, MakeGateway, chat, client, content

from loadgen.replicas import SimulatedFleet
from router.http.client_connection import ClientConnection
from router.tenants.tenant_file import EMPTY

# -- keys


async def test_who_has_no_key_is_refused_in_the_apis_own_form(
    gateway: MakeGateway, replicas: MakeReplica
) -> None:
    replica = await replicas()
    app = await gateway(replica)
    answer = await chat(app, "")
    assert answer.status_code == 401
    assert answer.json()["error"]["code"] == "invalid_api_key"
    assert answer.headers["www-authenticate"] == "Bearer"
    async with client(app, "") as http:
        said = await http.post("/v1/messages", json=BODY, headers={"x-api-key": "sk-wr-nobody"})
        models = await http.get("/v1/models")
        health = await http.get("/health")
        sleep = await http.post("/sleep")
    assert (said.status_code, said.json()["error"]["type"]) == (401, "authentication_error")
    assert (models.status_code, health.status_code, sleep.status_code) == (401, 200, 403)
    assert not replica.received
    assert app.tenants is not None
    assert app.tenants.auth_failures == {"missing": 2, "unknown": 1}


async def test_a_key_reaches_no_engine_which_gets_the_routers_own(
    gateway: MakeGateway, replicas: MakeReplica
) -> None:
    replica = await replicas()
    replica.reply(ANSWER)
    app = await gateway(replica, replica_api_key="engine-key", tenant_header="x-tenant",
                        tenant_proxies=("10.0.0.0/8",))  # fmt: skip
    assert (await chat(app)).status_code == 200
    async with client(app, "") as http:
        headers = {"x-api-key": KEYS["acme"], "x-tenant": "beta"}
        assert (await http.post("/v1/messages", json=BODY, headers=headers)).status_code == 200
    for received in replica.received:
        assert received.header("authorization") == "Bearer engine-key"
        assert received.header("x-tenant") is None
        assert KEYS["acme"].encode() not in received.raw_head


async def test_a_head_that_repeats_is_looked_up_anew_each_time(
    gateway: MakeGateway, replicas: MakeReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = await replicas()
    replica.reply(ANSWER)
    app = await gateway(replica, replica_api_key="engine-key")
    assert app.tenants is not None
    repeated = []
    take = ClientConnection._take_known
    monkeypatch.setattr(
        ClientConnection,
        "_take_known",
        lambda self, known, data: (repeated.append(take(self, known, data)), repeated[-1])[1],
    )
    request = post("/v1/chat/completions", json.dumps(BODY).encode(), f"X-Api-Key: {KEYS['acme']}")
    reader, writer = await asyncio.open_connection("127.0.0.1", app.port)
    try:
        for status in (200, 200, 200, 401):
            if status == 401:
                app.tenants.registry.adopt_file(EMPTY)
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            assert int(head.split()[1]) == status
            length = re.search(rb"(?i)content-length: (\d+)", head)
            assert length is not None
            await reader.readexactly(int(length[1]))
    finally:
        writer.close()
    assert repeated == [True, True, True]
    assert len(replica.received) == 3
    for received in replica.received:
        assert received.raw_head.lower().count(b"authorization:") == 1
        assert received.header("authorization") == "Bearer engine-key"


async def test_two_keys_in_one_request_are_refused(
    gateway: MakeGateway, replicas: MakeReplica
) -> None:
    app = await gateway(await replicas())
    async with client(app, "") as http:
        headers = [("authorization", "Bearer a"), ("authorization", f"Bearer {KEYS['acme']}")]
        answer = await http.post("/v1/chat/completions", json=BODY, headers=headers)
    assert answer.status_code == 400


async def test_a_key_may_use_and_see_its_models_only(
    gateway: MakeGateway, replicas: MakeReplica
) -> None:
    replica = await replicas(models=("m", "other"))
    replica.reply(ANSWER)
    app = await gateway(replica, acme={"models": ["m"]})
    assert (await chat(app)).status_code == 200
    answer = await chat(app, model="other")
    assert answer.status_code == 403
    assert answer.json()["error"]["code"] == "model_not_allowed"
    async with client(app) as http:
        seen = (await http.get("/v1/models")).json()
    async with client(app, "beta") as http:
        all_of_them = (await http.get("/v1/models")).json()
    assert [card["id"] for card in seen["data"]] == ["m"]
    assert {card["id"] for card in all_of_them["data"]} == {"m", "other"}
    assert (await chat(app, "beta", model="other")).status_code == 200


async def test_a_proxy_names_the_tenant(gateway: MakeGateway, replicas: MakeReplica) -> None:
    replica = await replicas()
    replica.reply(ANSWER)
    app = await gateway(
        replica,
        tenant_header="x-tenant",
        tenant_user_header="x-user",
        tenant_proxies=("127.0.0.1",),
    )
    async with client(app, "") as http:
        headers = {"x-tenant": "acme", "x-user": "jo"}
        answer = await http.post("/v1/chat/completions", json=BODY, headers=headers)
    assert answer.status_code == 200
    assert replica.received[-1].header("x-user") is None


async def test_keys_are_in_no_log_and_no_explanation(
    gateway: MakeGateway, replicas: MakeReplica, caplog: pytest.LogCaptureFixture, capfd: Any
) -> None:
    caplog.set_level(logging.DEBUG)
    replica = await replicas()
    replica.reply(ANSWER)
    app = await gateway(replica, access_log=1.0, acme={"limits": {"requests_per_minute": 1}})
    assert [(await chat(app)).status_code for _ in range(2)] == [200, 429]
    await chat(app, "")
    app.access_log.close()
    told = caplog.text + "".join(capfd.readouterr())
    served = next(each for each in app.explain.latest() if each.status == 200)
    explained = app.explain.find(served.request_id)
    told += repr([app.explain.latest(), explained])
    key_id = hashlib.sha256(KEYS["acme"].encode()).hexdigest()[:12]
    assert f'"tenant":"acme","key":"{key_id}"' in told
    assert explained is not None
    assert (explained.tenant, explained.key) == ("acme", key_id)
    assert KEYS["acme"] not in told
    assert KEYS["acme"].removeprefix("sk-wr-") not in told


# -- limits


async def test_over_a_limit_the_answer_says_which_how_much_and_when(
    gateway: MakeGateway, replicas: MakeReplica
) -> None:
    replica = await replicas()
    replica.reply(ANSWER)
    app = await gateway(replica, acme={"limits": {"requests_per_minute": 2}})
    first, second = await chat(app), await chat(app)
    assert first.headers["x-ratelimit-limit-requests"] == "2"
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert second.headers["x-ratelimit-remaining-requests"] == "0"
    refused = await chat(app)
    assert refused.status_code == 429
    assert "requests_per_minute of this tenant is 2, 0 left" in refused.json()["error"]["message"]
    assert refused.json()["error"]["code"] == "rate_limit_exceeded"
    assert 55 <= int(refused.headers["retry-after"]) <= 60
    assert refused.headers["x-ratelimit-remaining-requests"] == "0"
    async with client(app) as http:
        said = await http.post("/v1/messages", json=BODY)
    assert (said.status_code, said.json()["error"]["type"]) == (429, "rate_limit_error")
    assert said.headers["anthropic-ratelimit-requests-remaining"] == "0"
    assert said.headers["anthropic-ratelimit-requests-reset"].endswith("Z")
    assert (await chat(app, "beta")).status_code == 200
    assert len(replica.received) == 3


async def test_retry_after_is_right_to_the_second(
    gateway: MakeGateway, replicas: MakeReplica, monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = await replicas()
    replica.reply(ANSWER)
    app = await gateway(replica, acme={"limits": {"requests_per_minute": 1}})
    clock = [1_800_000_000.25]
    monkeypatch.setattr("router.tenants.ledger.time.time", lambda: clock[0])
    assert (await chat(app)).status_code == 200
    clock[0] += 13
    wait = int((await chat(app)).headers["retry-after"])
    clock[0] += wait - 1
    assert (await chat(app)).status_code == 429
    clock[0] += 1
    assert (await chat(app)).status_code == 200


async def test_the_answer_settles_what_was_reserved(
    gateway: MakeGateway, replicas: MakeReplica
) -> None:
    replica = await replicas()
    replica.reply(ANSWER)
    limits = {"tokens_per_day": 1000, "tokens_per_minute": 1000, "concurrent_requests": 1}
    app = await gateway(replica, acme={"limits": limits}, file={"cached_token_weight": 0.1})
    for _ in range(3):
        answer = await chat(app, max_tokens=900)
        assert answer.status_code == 200
    assert answer.headers["x-ratelimit-limit-tokens"] == "1000"
    assert app.tenants is not None
    account = app.tenants.registry.accounts["tenant:acme"]
    assert account.days[3] == 3 * 25
    assert not any(account.held)


async def test_cached_tokens_weigh_less(gateway: MakeGateway, replicas: MakeReplica) -> None:
    replica = await replicas()
    usage = {**USAGE, "prompt_tokens": 1000, "prompt_tokens_details": {"cached_tokens": 900}}
    replica.reply(sized(json.dumps({"choices": [], "usage": usage}).encode()))
    prices = {"m": {"input": 1.0, "cached_input": 0.1, "output": 2.0}}
    app = await gateway(
        replica,
        acme={"limits": {"tokens_per_day": 10_000, "money_per_day": 1}},
        file={"cached_token_weight": 0.1, "prices": prices},
    )
    assert (await chat(app)).status_code == 200
    assert app.tenants is not None
    account = app.tenants.registry.accounts["tenant:acme"]
    assert account.days[3] == 100 + 90 + 5
    assert account.days[4] == 100 + 90 + 10


async def test_a_stream_that_the_client_breaks_off_settles_with_what_was_sent(
    gateway: MakeGateway, replicas: MakeReplica
) -> None:
    replica = await replicas()
    token = event(choices=[{"index": 0, "delta": {"content": "x"}, "finish_reason": None}])
    replica.reply_in_steps(SSE_HEAD + chunk(token) * 7, chunk(token))
    app = await gateway(replica, acme={"limits": {"tokens_per_day": 10_000}})
    assert app.tenants is not None
    async with (
        client(app) as http,
        http.stream(
            "POST", "/v1/chat/completions", json={**BODY, "stream": True, "max_tokens": 500}
        ) as stream,
    ):
        text = b""
        async for piece in stream.aiter_raw():
            text += piece
            if text.count(b"data:") == 7:
                break
        account = app.tenants.registry.accounts["tenant:acme"]
        assert account.held[3] > 500
    await until(lambda: not any(account.held))
    use = app.tenants.use.named["acme"]
    assert use.output_tokens == 7
    assert account.days[3] == use.prompt_tokens + 7 > 7


@pytest.mark.parametrize("status", ["400 Bad Request", "500 Internal Server Error"])
async def test_a_request_that_fails_uses_no_tokens(
    gateway: MakeGateway, replicas: MakeReplica, status: str
) -> None:
    replica = await replicas()
    replica.reply(sized(b"{}", status))
    limits = {"tokens_per_day": 10_000, "requests_per_minute": 10}
    app = await gateway(replica, acme={"limits": limits})
    assert (await chat(app)).status_code == int(status[:3])
    assert app.tenants is not None
    account = app.tenants.registry.accounts["tenant:acme"]
    assert account.days[3] == 0
    assert not any(account.held)
    assert account.used(account.limits[0], time.time()) == 1


async def test_what_is_too_long_is_refused(gateway: MakeGateway, replicas: MakeReplica) -> None:
    replica = await replicas()
    replica.reply(ANSWER)
    limits = {"max_prompt_tokens": 1000, "max_output_tokens": 50}
    app = await gateway(replica, acme={"limits": limits})
    long = [{"role": "user", "content": "hello " * 5000}]
    assert (await chat(app, messages=long)).status_code == 400
    answer = await chat(app, max_tokens=51)
    assert answer.status_code == 400
    assert "51 tokens; this API key is allowed 50" in answer.json()["error"]["message"]
    assert (await chat(app)).status_code == 200


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        ("/v1/chat/completions", {"messages": SAY}, "max_completion_tokens"),
        ("/v1/chat/completions", {"messages": SAY, "max_tokens": None}, "max_completion_tokens"),
        (
            "/v1/chat/completions",
            {"messages": SAY, "max_tokens": 5, "max_completion_tokens": "many"},
            "max_completion_tokens",
        ),
        ("/v1/completions", {"prompt": "x", "max_tokens": None}, "max_tokens"),
        ("/v1/completions", {"prompt": [1, 2], "max_tokens": "many"}, "max_tokens"),
        ("/v1/responses", {"input": "x"}, "max_output_tokens"),
        ("/v1/messages", {"messages": SAY, "max_tokens": 50}, "max_tokens"),
        ("/invocations", {"messages": SAY}, "max_completion_tokens"),
        ("/invocations", {"prompt": "x", "max_tokens": None}, "max_tokens"),
    ],
)
async def test_an_answer_without_a_maximum_gets_the_longest_that_is_allowed(
    gateway: MakeGateway, replicas: MakeReplica, path: str, body: dict[str, Any], name: str
) -> None:
    replica = await replicas()
    replica.reply(ANSWER)
    limits = {"max_output_tokens": 50, "output_tokens_per_minute": 120}
    app = await gateway(replica, acme={"limits": limits})
    async with client(app) as http:
        assert (await http.post(path, json={"model": "m", **body})).status_code == 200
    assert 0 < replica.received[-1].json()[name] <= 50


async def test_a_completion_without_a_maximum_is_as_short_as_engines_make_it(
    gateway: MakeGateway, replicas: MakeReplica
) -> None:
    replica = await replicas()
    replica.reply(ANSWER)
    app = await gateway(replica, acme={"limits": {"max_output_tokens": 50}})
    async with client(app) as http:
        await http.post("/v1/completions", json={"model": "m", "prompt": "x"})
        tokens: dict[str, Any] = {"model": "m", "token_ids": [1, 2], "sampling_params": {}}
        assert (await http.post("/inference/v1/generate", json=tokens)).status_code == 400
        tokens["sampling_params"] = {"max_tokens": 50}
        assert (await http.post("/inference/v1/generate", json=tokens)).status_code == 200
    assert replica.received[0].json()["max_tokens"] == 16


@pytest.mark.parametrize("longest", [999, "999", 999.0, " 9_99 ", 9999999999, 999e9, "9" * 30])
async def test_a_longest_answer_is_read_however_it_is_written(
    gateway: MakeGateway, replicas: MakeReplica, longest: object
) -> None:
    app = await gateway(await replicas(), acme={"limits": {"max_output_tokens": 20}})
    refused = await chat(app, max_tokens=longest)
    assert refused.status_code == 400
    assert "999" in refused.text


@pytest.mark.parametrize("several", [{"n": 2}, {"n": "2"}, {"n": 2.0}, {"n": " 2 "}])
async def test_a_reservation_is_for_each_answer_however_the_number_is_written(
    gateway: MakeGateway, replicas: MakeReplica, several: dict[str, object]
) -> None:
    replica = await replicas()
    replica.reply(ANSWER)
    acme = {"limits": {"output_tokens_per_minute": 100, "requests_per_minute": 100}}
    app = await gateway(replica, acme=acme)
    assert app.tenants is not None
    needs = []
    ledger = app.tenants.ledger
    reserve = ledger.reserve
    ledger.reserve = lambda accounts, need: (needs.append(need), reserve(accounts, need))[1]  # type: ignore[method-assign,func-returns-value]
    assert (await chat(app, max_tokens=30, **several)).status_code == 200
    assert [need[2] for need in needs] == [60]


async def test_an_endless_answer_reserves_and_is_refused_while_others_use_the_limit(
    gateway: MakeGateway, replicas: MakeReplica
) -> None:
    replica = await replicas()
    replica.reply(ANSWER)
    app = await gateway(replica, acme={"limits": {"output_tokens_per_minute": 1000}})
    assert app.tenants is not None
    needs = []
    ledger = app.tenants.ledger
    reserve = ledger.reserve
    ledger.reserve = lambda accounts, need: (needs.append(need), reserve(accounts, need))[1]  # type: ignore[method-assign,func-returns-value]
    assert (await chat(app)).status_code == 200
    assert (await chat(app, max_tokens=99999999999)).status_code == 429
    assert (await chat(app, max_tokens=999999999, n=999999999)).status_code == 429
    # More digits than Redis counts in would fail its script, and with it every other request.
    assert [need[2] for need in needs] == [10, 999_999_999, 999_999_999]


async def test_several_answers_reserve_for_each(
    gateway: MakeGateway, replicas: MakeReplica
) -> None:
    replica = await replicas()
    replica.reply(ANSWER)
    app = await gateway(replica, acme={"limits": {"output_tokens_per_minute": 100}})
    assert (await chat(app, max_tokens=30, n=3)).status_code == 200
    assert app.tenants is not None
    assert app.tenants.registry.accounts["tenant:acme"].minutes[2].total(int(time.time())) == 5  # type: ignore[union-attr]


async def test_concurrency_is_held_while_a_request_is_served(
    gateway: MakeGateway, replicas: MakeReplica
) -> None:
    replica = await replicas()
    replica.reply_in_steps(ANSWER[:-5], ANSWER[-5:])
    app = await gateway(replica, acme={"limits": {"concurrent_requests": 1}})
    first = asyncio.create_task(chat(app))
    await until(lambda: len(replica.received) == 1)
    refused = await chat(app)
    assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
    replica.gate.release()
    assert (await first).status_code == 200
    second = asyncio.create_task(chat(app))
    await until(lambda: len(replica.received) == 2)
    replica.gate.release()
    assert (await second).status_code == 200


async def test_limits_change_with_the_file_and_no_request_is_lost(
    gateway: MakeGateway, replicas: MakeReplica, tmp_path: Path
) -> None:
    replica = await replicas()
    replica.reply(ANSWER)
    app = await gateway(replica, acme={"limits": {"requests_per_minute": 1}})
    assert [(await chat(app)).status_code for _ in range(2)] == [200, 429]
    (tmp_path / "tenants.yaml").write_text(content({"limits": {"requests_per_minute": 5}}))
    async with asyncio.timeout(10):
        while (await chat(app)).status_code != 200:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
    assert [(await chat(app)).status_code for _ in range(4)] == [200, 200, 200, 429]


# -- stored responses


async def test_a_tenants_responses_are_found_by_no_other(
    gateway: MakeGateway, replicas: MakeReplica
) -> None:
    replica = await replicas()
    replica.reply(sized(json.dumps({"id": "resp_1", "output": [], "usage": USAGE}).encode()))
    app = await gateway(replica)
    asked = {"model": "m", "input": "x"}
    follows = {**asked, "previous_response_id": "resp_1"}
    async with client(app) as http, client(app, "beta") as other:
        assert (await http.post("/v1/responses", json=asked)).status_code == 200
        for path in ("/v1/responses/resp_1", "/v1/responses/resp_1?x=1", "/v1/responses/resp_9"):
            answer = await other.get(path)
            assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
        assert (await other.delete("/v1/responses/resp_1")).status_code == 404
        assert (await other.post("/v1/responses/resp_1/cancel")).status_code == 404
        assert (await other.post("/v1/responses", json=follows)).status_code == 404
        assert len(replica.received) == 1
        assert (await http.get("/v1/responses/resp_1")).status_code == 200
        assert (await http.post("/v1/responses", json=follows)).status_code == 200


# -- isolation


async def test_a_salt_is_all_that_isolation_changes(
    gateway: MakeGateway, replicas: MakeReplica
) -> None:
    replica = await replicas()
    replica.reply(ANSWER)
    app = await gateway(replica, isolation="tenant", isolation_secret=SECRET)
    body = b' {"model" : "m",\n"messages":[{"role":"user","content":"h\\u00e9"}], "x":1.50 }\n'
    for tenant in ("acme", "beta", "acme"):
        async with client(app, tenant) as http:
            answer = await http.post("/v1/chat/completions", content=body)
        assert answer.status_code == 200
    salts = [received.json()["cache_salt"] for received in replica.received]
    assert salts[0] == salts[2] != salts[1]
    assert len(salts[0]) == 43
    for received, salt in zip(replica.received, salts, strict=True):
        assert received.body == body[:-2] + b',"cache_salt":"%b"' % salt.encode() + body[-2:]


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", BODY),
        ("/v1/completions", {"model": "m", "prompt": "x", "stream": True}),
        ("/v1/completions", {"model": "m", "prompt": [1, 2, 3]}),
        ("/v1/responses", {"model": "m", "input": "x"}),
        ("/v1/messages", BODY),
        ("/inference/v1/generate", {"model": "m", "token_ids": [1, 2]}),
        ("/v1/embeddings", {"model": "m", "input": "x"}),
    ],
)
async def test_every_api_is_salted_and_a_guessed_salt_reaches_nobody(
    gateway: MakeGateway, replicas: MakeReplica, path: str, body: dict[str, Any]
) -> None:
    replica = await replicas()
    replica.reply(ANSWER)
    app = await gateway(replica, isolation="tenant", isolation_secret=SECRET)
    async with client(app, "acme") as http:
        await http.post(path, json=body)
        salt = replica.received[-1].json()["cache_salt"]
    async with client(app, "beta") as http:
        await http.post(path, json={**body, "cache_salt": salt})
        stolen = replica.received[-1].json()["cache_salt"]
    assert stolen != salt
    assert replica.received[-1].body.count(b'"cache_salt"') == 2  # the last one counts


async def test_paths_that_take_no_salt_are_refused(
    gateway: MakeGateway, replicas: MakeReplica
) -> None:
    replica = await replicas()
    replica.reply(ANSWER)
    app = await gateway(
        replica, isolation="tenant", isolation_secret=SECRET, extra_paths=("/plugin",)
    )
    async with client(app) as http:
        for path in ("/generate", "/invocations", "/plugin", "/v2/embed"):
            assert (await http.post(path, json=BODY)).status_code == 403, path
        assert (await http.post("/tokenize", json=BODY)).status_code == 200
        assert (await http.post("/v1/chat/completions", content=b"[1]")).status_code == 400
    assert len(replica.received) == 1
    assert "cache_salt" not in replica.received[0].json()


async def test_the_index_keeps_tenants_apart_and_counts_what_that_costs(
    gateway: MakeGateway,
) -> None:
    async with SimulatedFleet(1) as fleet:
        app = await gateway(*fleet.urls, isolation="tenant", isolation_secret=SECRET)
        system = [{"role": "system", "content": "be kind " * 500}, *SAY]
        cached = []
        for tenant in ("acme", "acme", "beta", "beta"):
            answer = await chat(app, tenant, model="sim", messages=system)
            cached.append(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"] > 0)
        assert cached == [False, True, False, True]
        predicted = [done.predicted > 0 for done in reversed(app.explain.latest())]  # type: ignore[attr-defined]
        assert predicted == cached
        assert app.tenants is not None
        cost = app.tenants.use.named["beta"].isolated_tokens
        assert cost > 500
        assert app.tenants.use.named["acme"].isolated_tokens == 0


@pytest.mark.parametrize(("leak", "status"), [("refuse", 503), ("flag", 200)])
async def test_a_model_whose_engine_drops_salts_is_refused_or_flagged(
    gateway: MakeGateway,
    replicas: MakeReplica,
    complaints: list[str],
    leak: str,
    status: int,
) -> None:
    complaints.append("NOT kept apart")
    replica = await replicas()
    usage = {"prompt_tokens": 900, "prompt_tokens_details": {"cached_tokens": 512}}
    replica.reply(sized(json.dumps({"choices": [], "usage": usage}).encode()))
    app = await gateway(
        replica,
        guarded=True,
        isolation="tenant",
        isolation_secret=SECRET,
        isolation_leak=leak,
    )
    assert app.tenants is not None
    tenants = app.tenants
    await until(lambda: "NOT kept apart: m on" in tenants.problem)
    answer = await chat(app)
    assert answer.status_code == status
    if status == 503:
        assert answer.json()["error"]["code"] == "isolation_unproven"


async def test_only_conversations_with_a_public_system_prompt_share_a_cache(
    gateway: MakeGateway, replicas: MakeReplica
) -> None:
    replica = await replicas()
    replica.reply(ANSWER)
    app = await gateway(
        replica,
        file={"public_prompts": ["be kind"]},
        isolation="tenant",
        isolation_secret=SECRET,
    )
    for system in ("be kind", "be unkind"):
        say = [{"role": "system", "content": system}, *SAY]
        for tenant in ("acme", "beta"):
            assert (await chat(app, tenant, messages=say)).status_code == 200
    salts = [received.json()["cache_salt"] for received in replica.received]
    assert salts[0] == salts[1]
    assert len(set(salts)) == 3
