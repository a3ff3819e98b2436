"""Requests that the fleet cannot take, sent to a target outside of it, over real sockets."""

from __future__ import annotations

import json
import ssl
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import trustme
import yaml
from http_world import (
    END,
    SSE_HEAD,
    Connect,
    MakeReplica,
    MakeRouter,
    Raw,
    ScriptedReplica,
    chunk,
    event,
    post,
    sized,
    unchunked,
    until,
)
from redis_server import RedisServer
from tenant_world import MakeGateway, chat

from router.app import App
from router.overflow.target import Target
from router.telemetry import catalogue
from router.telemetry.exposition import Exposition

PATH = "/v1/chat/completions"
SAY = [{"role": "user", "content": "hello"}]
USAGE = {"prompt_tokens": 100, "completion_tokens": 10}
OUT = "x-warmroute-overflow"
LOW = "x-dynamo-request-priority: -1"

WriteFile = Callable[..., str]
MakeOut = Callable[..., Awaitable[App]]


def body(**fields: object) -> bytes:
    return json.dumps({"model": "m", "messages": SAY, "max_tokens": 100, **fields}).encode()


def answer(**fields: object) -> bytes:
    return sized(json.dumps({"id": "there", "usage": USAGE, **fields}).encode())


@pytest.fixture
def write(tmp_path: Path) -> WriteFile:
    """A file of one target for each replica given, the keywords being fields of all."""

    def make(*targets: ScriptedReplica, **fields: object) -> str:
        key = tmp_path / "key"
        key.write_text("secret\n")
        listed = [
            {
                "name": f"cloud{number}",
                "url": target.url,
                "key_file": str(key),
                "models": {"m": "big-m"},
                "prompt_price": 1000.0,
                "output_price": 10_000.0,
                "daily_budget": 100.0,
                **fields,
            }
            for number, target in enumerate(targets)
        ]
        path = tmp_path / "overflow.yaml"
        path.write_text(yaml.safe_dump({"targets": listed}))
        return str(path)

    return make


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    server = RedisServer(tmp_path / "redis").start()
    yield server
    server.kill()


@pytest.fixture
async def target(replicas: MakeReplica) -> ScriptedReplica:
    replica = await replicas()
    replica.reply(answer())
    return replica


@pytest.fixture
async def local(replicas: MakeReplica) -> ScriptedReplica:
    return await replicas()


@pytest.fixture
def out(router: MakeRouter, write: WriteFile, local: ScriptedReplica) -> MakeOut:
    """A router whose only replica takes nothing just now."""

    async def make(*targets: ScriptedReplica, fields: dict[str, Any], **settings: object) -> App:
        app = await router(local, overflow=write(*targets, **fields), **settings)
        app.fleet.drain(app.fleet.members()[0].url)
        return app

    return make


def first(app: App) -> Target:
    assert app.overflow is not None
    return app.overflow.targets[0]


async def test_what_has_no_replica_goes_out_and_comes_back(
    out: MakeOut, connect: Connect, target: ScriptedReplica, local: ScriptedReplica
) -> None:
    app = await out(target, fields={})
    client = await connect(app)
    sent = body(temperature=0.5, cache_salt="s", priority=1, kv_transfer_params={"a": 1})
    status, headers, content = await client.ask(
        post(
            PATH, sent,
            "authorization: Bearer mine", "x-api-key: mine", "cookie: c=1", "x-session-id: s",
            "x-forwarded-for: 10.0.0.1", "x-slo-ttft-ms: 5000", "openai-beta: b", "traceparent: t",
        )
    )  # fmt: skip
    assert (status, headers[OUT]) == (200, "cloud0")
    assert json.loads(content)["id"] == "there"
    (request,) = target.received
    asked = {"model": "big-m", "messages": SAY, "max_tokens": 100, "temperature": 0.5}
    assert request.json() == asked
    assert sorted({name.lower() for name, _ in request.headers}) == [
        "authorization", "content-length", "content-type", "host", "openai-beta", "via",
        "x-request-id",
    ]  # fmt: skip
    assert request.header("authorization") == "Bearer secret"
    # 100 prompt tokens and 10 of an answer.
    assert first(app).money == pytest.approx(0.2)
    assert first(app).spent(time.time()) == pytest.approx(0.2)
    assert first(app).requests["no_replica"] == 1
    told = app.explain.find(headers["x-request-id"])
    assert told is not None
    assert (told.overflow, told.overflow_why, told.replica) == ("cloud0", "no_replica", "")
    assert told.overflow_money == pytest.approx(0.2)
    assert "left the fleet for the overflow target cloud0" in told.why
    # It is over: the next request stays here.
    app.fleet.undrain(app.fleet.members()[0].url)
    status, headers, _ = await client.ask(post(PATH, body()))
    assert status == 200
    assert OUT not in headers
    assert len(local.received) == 1


async def test_metrics_and_log_tell_of_it(
    out: MakeOut, connect: Connect, target: ScriptedReplica, capfd: pytest.CaptureFixture[str]
) -> None:
    app = await out(target, fields={}, access_log=1.0, log_format="json")
    await (await connect(app)).ask(post(PATH, body()))
    build = dict.fromkeys(catalogue.BUILD.labels, "x")
    metrics = Exposition(
        app.telemetry, app.fleet, app.index, app.access_log, build, overflow=app.overflow
    )
    text = b"".join(await metrics.render()).decode()
    assert 'warmroute_overflow_requests_total{target="cloud0",why="no_replica"} 1' in text
    assert 'warmroute_overflow_money_total{target="cloud0"} 0.2' in text
    await app.stop()
    line = next(each for each in capfd.readouterr().out.splitlines() if '"path"' in each)
    assert json.loads(line)["overflow"] == "cloud0"


async def test_a_stream_is_relayed_and_its_usage_is_asked_for(
    out: MakeOut, connect: Connect, target: ScriptedReplica
) -> None:
    token = chunk(event(choices=[{"delta": {"content": "a"}, "finish_reason": None}]))
    usage = chunk(event(choices=[], usage=USAGE))
    target.reply(SSE_HEAD, token, usage, chunk(b"data: [DONE]\n\n"), END)
    app = await out(target, fields={})
    status, headers, content = await (await connect(app)).ask(post(PATH, body(stream=True)))
    assert (status, headers[OUT]) == (200, "cloud0")
    assert target.received[0].json()["stream_options"] == {"include_usage": True}
    text = unchunked(content)
    assert b'"content":"a"' in text
    assert b"[DONE]" in text
    assert b"usage" not in text
    assert first(app).money == pytest.approx(0.2)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        ("/v1/completions", {"prompt": "a"}),
        ("/v1/responses", {"input": "a"}),
        ("/v1/messages", {"messages": SAY, "max_tokens": 5}),
        ("/v1/embeddings", {"input": "a"}),
    ],
)
async def test_the_other_paths_go_out_too(
    out: MakeOut, connect: Connect, target: ScriptedReplica, path: str, fields: dict[str, object]
) -> None:
    target.reply(sized(b'{"id":"x","usage":{"prompt_tokens":100,"input_tokens":100}}'))
    app = await out(target, fields={"key_header": "x-api-key"})
    client = await connect(app)
    status, headers, _ = await client.ask(
        post(path, json.dumps({"model": "m", **fields}).encode(), "anthropic-version: v")
    )
    assert (status, headers[OUT]) == (200, "cloud0")
    (request,) = target.received
    assert request.target == path
    assert request.header("x-api-key") == "secret"
    assert request.header("authorization") is None
    assert request.header("anthropic-version") == "v"
    assert first(app).money == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (PATH, {"model": "other"}),
        ("/v1/score", {}),
        ("/v1/responses", {"input": "a", "previous_response_id": "resp_1"}),
        ("/v1/responses", {"input": "a", "background": True}),
    ],
)
async def test_what_must_stay_stays(
    out: MakeOut, connect: Connect, target: ScriptedReplica, path: str, fields: dict[str, object]
) -> None:
    app = await out(target, fields={}, expected_models=("other",))
    asked = json.dumps({"model": "m", "messages": SAY, **fields}).encode()
    status, headers, _ = await (await connect(app)).ask(post(path, asked))
    assert status == 503
    assert OUT not in headers
    assert not target.received


async def test_a_model_that_the_fleet_never_had_is_unknown(
    router: MakeRouter, connect: Connect, target: ScriptedReplica, local: ScriptedReplica,
    write: WriteFile,
) -> None:  # fmt: skip
    app = await router(local, lora_resolver=False, overflow=write(target, models={"other": "big"}))
    asked = json.dumps({"model": "other", "messages": SAY}).encode()
    assert (await (await connect(app)).ask(post(PATH, asked)))[0] == 404
    assert not target.received


async def test_an_attempt_that_failed_with_nobody_left_goes_out(
    router: MakeRouter, connect: Connect, target: ScriptedReplica, local: ScriptedReplica,
    write: WriteFile,
) -> None:  # fmt: skip
    local.reply_and_close()
    app = await router(local, overflow=write(target))
    status, headers, _ = await (await connect(app)).ask(post(PATH, body()))
    assert (status, headers[OUT]) == (200, "cloud0")


async def busy(app: App, connect: Connect, replica: ScriptedReplica) -> Raw:
    """A client whose prompt is being computed."""
    client = await connect(app)
    message = {"role": "user", "content": "first" * 4000}
    client.send(post(PATH, json.dumps({"model": "m", "messages": [message]}).encode()))
    await replica.asked()
    return client


@pytest.mark.usefixtures("quick_sweep")
@pytest.mark.parametrize(
    ("why", "settings", "header"),
    [
        ("full", {"queue_limit": 0}, LOW),
        ("expired", {"queue_timeout": 0.1}, LOW),
        ("late", {"prefill_rate": 1000.0}, "x-slo-ttft-ms: 500"),
    ],
)
@pytest.mark.parametrize("works", [True, False])
async def test_what_the_queue_would_refuse_goes_out(
    router: MakeRouter, connect: Connect, target: ScriptedReplica, local: ScriptedReplica,
    write: WriteFile, why: str, settings: dict[str, object], header: str, works: bool,
) -> None:  # fmt: skip
    local.reply_in_steps(b"", answer())
    if not works:
        target.reply(sized(b"{}", "500 Broken"))
    app = await router(local, overflow=write(target), **settings)
    waits = await busy(app, connect, local)
    long = body(messages=[{"role": "user", "content": "low" * 1000}])
    status, headers, _ = await (await connect(app)).ask(post(PATH, long, header))
    assert first(app).requests[why] == 1
    if works:
        assert (status, headers[OUT]) == (200, "cloud0")
    else:
        # As without overflow.
        assert status == (503 if why == "expired" else 429)
        assert "retry-after" in headers
        assert OUT not in headers
    local.step()
    assert (await waits.answer())[0] == 200


@pytest.mark.parametrize("works", [True, False])
async def test_what_would_be_late_goes_out_or_waits(
    router: MakeRouter, connect: Connect, target: ScriptedReplica, local: ScriptedReplica,
    write: WriteFile, works: bool,
) -> None:  # fmt: skip
    local.reply_in_steps(b"", answer())
    if not works:
        target.reply(sized(b"{}", "500 Broken"))
    app = await router(local, overflow=write(target), overflow_ttft=0.5, prefill_rate=1000.0)
    waits = await busy(app, connect, local)
    client = await connect(app)
    client.send(post(PATH, body(messages=[{"role": "user", "content": "late" * 1000}])))
    if works:
        status, headers, _ = await client.answer()
        assert (status, headers[OUT]) == (200, "cloud0")
        assert first(app).requests["late"] == 1
        local.step()
    else:
        # It is not refused: it waits as it would have without a target.
        await until(lambda: first(app).failed == 1 and app.gateway.queue.queue.waiting == 1)
        local.step()
        local.reply(answer())
        status, headers, _ = await client.answer()
        assert status == 200
        assert OUT not in headers
    assert (await waits.answer())[0] == 200


async def test_the_colder_goes_out_for_the_other(
    router: MakeRouter, connect: Connect, target: ScriptedReplica, local: ScriptedReplica,
    write: WriteFile,
) -> None:  # fmt: skip
    local.reply_in_steps(b"", answer())
    app = await router(local, overflow=write(target), overflow_ttft=9.0, prefill_rate=1000.0)
    waits = await busy(app, connect, local)
    dear, cheap = await connect(app), await connect(app)
    cheap.send(post(PATH, body(messages=[{"role": "user", "content": "cheap" * 600}])))
    await until(lambda: app.gateway.queue.queue.waiting == 1)
    long = body(messages=[{"role": "user", "content": "dear" * 2000}])
    dear.send(post(PATH, long, "x-slo-ttft-ms: 5800"))
    status, headers, _ = await cheap.answer()
    assert (status, headers[OUT]) == (200, "cloud0")
    told = app.explain.find(headers["x-request-id"])
    assert told is not None
    assert told.overflow_why == "coldest"
    local.step()
    local.reply(answer())
    assert (await waits.answer())[0] == (await dear.answer())[0] == 200


async def test_what_goes_on_with_a_stored_response_waits_for_its_engine(
    router: MakeRouter, connect: Connect, target: ScriptedReplica, local: ScriptedReplica,
    write: WriteFile,
) -> None:  # fmt: skip
    local.reply_in_steps(b"", answer())
    app = await router(local, overflow=write(target), queue_limit=0)
    waits = await busy(app, connect, local)
    asked = {"model": "m", "input": "low" * 1000, "previous_response_id": "resp_1"}
    sent = post("/v1/responses", json.dumps(asked).encode(), LOW)
    assert (await (await connect(app)).ask(sent))[0] == 429
    assert not target.received
    local.step()
    assert (await waits.answer())[0] == 200


@pytest.mark.parametrize("fault", ["status", "closed", "refused", "stream", "garbage"])
async def test_a_target_that_fails_is_as_if_there_were_none(
    out: MakeOut, connect: Connect, target: ScriptedReplica, fault: str
) -> None:
    if fault == "status":
        target.reply(sized(b"not yours to see", "401 Unauthorized"))
    elif fault == "closed":
        target.reply_and_close()
    elif fault == "stream":
        target.reply(SSE_HEAD, chunk(event(error={"message": "x", "code": 500})), END)
    elif fault == "garbage":
        target.reply_and_close(b"garbage\r\n\r\n")
    app = await out(target, fields={})
    if fault == "refused":
        await target.stop()
    asked = post(PATH, body(stream=fault == "stream"))
    status, headers, content = await (await connect(app)).ask(asked)
    assert status == 503
    assert b"not yours" not in content
    assert "retry-after" in headers
    assert OUT not in headers
    assert first(app).failed == 1
    # Its word that it has not served it is believed; its silence is not.
    free = fault in ("status", "refused")
    assert (first(app).money == 0.0) is free


@pytest.mark.usefixtures("quick_sweep")
async def test_a_target_that_is_silent_is_given_up(
    out: MakeOut, connect: Connect, target: ScriptedReplica
) -> None:
    target.hang()
    app = await out(target, fields={}, first_byte_timeout=0.1)
    assert (await (await connect(app)).ask(post(PATH, body())))[0] == 503
    await target.left()


async def test_the_next_target_takes_what_the_first_did_not_and_its_breaker_opens(
    out: MakeOut, connect: Connect, replicas: MakeReplica, target: ScriptedReplica
) -> None:
    broken = await replicas()
    broken.reply(sized(b"{}", "429 Too Many Requests"))
    app = await out(broken, target, fields={})
    client = await connect(app)
    for _ in range(2):
        status, headers, _ = await client.ask(post(PATH, body()))
        assert (status, headers[OUT]) == (200, "cloud1")
    assert len(broken.received) == 1


async def test_an_answer_that_breaks_off_is_told_as_a_failure(
    out: MakeOut, connect: Connect, target: ScriptedReplica
) -> None:
    token = chunk(event(choices=[{"delta": {"content": "a"}, "finish_reason": None}]))
    target.reply_and_close(SSE_HEAD, token, chunk(event(choices=[], usage=USAGE)))
    app = await out(target, fields={})
    client = await connect(app)
    client.send(post(PATH, body(stream=True)))
    assert (await client.head())[0] == 200
    rest = await client.rest()
    assert b"overflow target cloud0 broke off" in rest
    assert not rest.endswith(END)
    # How much was made of it nobody knows: it costs what was reserved.
    assert first(app).money > 1.0


async def test_a_client_that_leaves_ends_it(
    out: MakeOut, connect: Connect, target: ScriptedReplica
) -> None:
    target.hang()
    app = await out(target, fields={})
    client = await connect(app)
    client.send(post(PATH, body()))
    await target.asked()
    client.vanish()
    await target.left()
    await until(lambda: first(app).money > 1.0)


async def test_no_more_is_spent_than_the_budget(
    out: MakeOut, connect: Connect, target: ScriptedReplica
) -> None:
    # 100 tokens of an answer are 1.0; what is used of them is 0.1, and the prompt 0.1.
    app = await out(target, fields={"daily_budget": 1.15})
    client = await connect(app)
    assert (await client.ask(post(PATH, body())))[0] == 200
    assert (await client.ask(post(PATH, body())))[0] == 503
    assert len(target.received) == 1
    # What bounds its answer to less still fits.
    assert (await client.ask(post(PATH, body(max_tokens=50))))[0] == 200


async def test_several_routers_have_one_budget(
    out: MakeOut, connect: Connect, target: ScriptedReplica, redis: RedisServer
) -> None:
    fields = {"daily_budget": 1.15}
    one = await out(target, fields=fields, state=redis.url)
    other = await out(target, fields=fields, state=redis.url)
    for app in (one, other):
        await until(lambda: app.overflow is not None and not app.overflow.problem)  # noqa: B023
    assert (await (await connect(one)).ask(post(PATH, body())))[0] == 200
    client = await connect(other)
    assert (await client.ask(post(PATH, body())))[0] == 503
    # Once what the first one cost is known to be less than was reserved for it.
    while (await client.ask(post(PATH, body(max_tokens=50))))[0] != 200:
        assert len(target.received) == 1
    assert len(target.received) == 2


async def test_an_answer_without_a_bound_needs_money_for_a_long_one(
    out: MakeOut, connect: Connect, target: ScriptedReplica
) -> None:
    # 4096 tokens of an answer are 40.96.
    app = await out(target, fields={"daily_budget": 40.0})
    client = await connect(app)
    unbounded = json.dumps({"model": "m", "messages": SAY}).encode()
    assert (await client.ask(post(PATH, unbounded)))[0] == 503
    assert (await client.ask(post(PATH, body(max_tokens=3000))))[0] == 200


async def test_it_goes_out_before_it_is_held(
    out: MakeOut, connect: Connect, target: ScriptedReplica
) -> None:
    app = await out(target, fields={}, hold_timeout=30.0)
    woken: list[str] = []
    app.gateway.holding.wake = woken.append
    status, headers, _ = await (await connect(app)).ask(post(PATH, body()))
    assert (status, headers[OUT]) == (200, "cloud0")
    # The replica that sleeps is woken all the same.
    assert woken == ["m"]


async def test_only_tenants_that_opt_in(
    gateway: MakeGateway, target: ScriptedReplica, local: ScriptedReplica, write: WriteFile
) -> None:
    app = await gateway(local, acme={"overflow": True}, overflow=write(target))
    app.fleet.drain(app.fleet.members()[0].url)
    mine = await chat(app)
    assert (mine.status_code, mine.headers[OUT]) == (200, "cloud0")
    assert (await chat(app, "beta")).status_code == 503
    assert len(target.received) == 1
    assert target.received[0].header("authorization") == "Bearer secret"


async def test_tenants_that_opt_in_by_default_and_with_isolation(
    gateway: MakeGateway, target: ScriptedReplica, local: ScriptedReplica, write: WriteFile
) -> None:
    app = await gateway(
        local,
        file={"defaults": {"overflow": True}},
        overflow=write(target),
        isolation="tenant",
        isolation_secret="0123456789abcdef",
    )
    app.fleet.drain(app.fleet.members()[0].url)
    assert (await chat(app, "beta")).status_code == 200
    assert "cache_salt" not in target.received[0].json()


async def test_a_target_with_tls(
    out: MakeOut, connect: Connect, replicas: MakeReplica, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    authority = trustme.CA()
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(server)
    far = await replicas(tls=server)
    far.reply(answer())
    # Nobody that the system knows has signed for it.
    client = await connect(await out(far, fields={}))
    assert (await client.ask(post(PATH, body())))[0] == 503
    assert not far.received
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    client = await connect(await out(far, fields={}))
    status, headers, _ = await client.ask(post(PATH, body()))
    assert (status, headers[OUT]) == (200, "cloud0")
