"""Streams as engines and clients end them: markers, errors, comments, and what is booked."""

from __future__ import annotations

import gzip
import json
import zlib

import pytest
from http_world import (
    CHAT,
    END,
    SSE_HEAD,
    STREAM,
    Connect,
    MakeReplica,
    MakeRouter,
    ScriptedReplica,
    chunk,
    event,
    exchanges,
    get,
    post,
    sized,
    unchunked,
    until,
)

from router.app import App
from router.http.events import DEAD

PATH = "/v1/chat/completions"
COMMENT = chunk(b": keep-alive\n\n")
TOKEN = chunk(event(choices=[{"delta": {"content": "a"}, "finish_reason": None}]))
DONE = chunk(b"data: [DONE]\n\n")
FIGURES = {"prompt_tokens": 100, "completion_tokens": 7}
USAGE = chunk(event(choices=[], usage=FIGURES))
FAULT = chunk(event(error={"message": "it broke", "type": "InternalServerError", "code": 500}))
DEATH = chunk(event(error={"message": DEAD.decode(), "type": "InternalServerError", "code": 500}))
START = chunk(
    b"event: message_start\n"
    + event(type="message_start", message={"usage": {"input_tokens": 90, "output_tokens": 0}})
)
STOP = chunk(b"event: message_stop\n" + event(type="message_stop"))
COMPLETED = chunk(
    b"event: response.completed\n"
    + event(
        type="response.completed",
        response={"usage": {"input_tokens": 60, "output_tokens": 5}, "tools": []},
    )
)
RESPONSES = json.dumps({"model": "m", "stream": True, "input": "hello"}).encode()


def errors(app: App) -> dict[str, int]:
    found: dict[str, int] = {}
    for row in app.telemetry.rows():
        for reason, count in row.errors.items():
            found[reason] = found.get(reason, 0) + count
    return found


def tokens(app: App) -> tuple[int, int]:
    series = app.telemetry.series()
    return sum(one.prompt_tokens for one in series), sum(one.output_tokens for one in series)


async def finished(app: App) -> None:
    await until(lambda: not exchanges(app))


ENDS = {
    "chat": (PATH, STREAM, TOKEN + USAGE + DONE, (100, 7)),
    "responses": ("/v1/responses", RESPONSES, COMPLETED, (60, 5)),
    "messages": ("/v1/messages", STREAM, START + STOP, (90, 0)),
}


@pytest.mark.parametrize("api", ENDS)
@pytest.mark.parametrize("who", ["client", "vanishing client", "replica", "reset"])
async def test_the_end_of_an_answer_is_its_end(
    api: str, who: str, replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    path, body, stream, counted = ENDS[api]
    replica = await replicas()
    app = await router(replica)
    if "client" in who:
        replica.hang(SSE_HEAD, stream)
    else:
        replica.reply_and_close(SSE_HEAD, stream, reset=who == "reset")
    client = await connect(app)
    client.send(post(path, body))
    await client.head()
    if "client" in who:
        await client.reader.readuntil(stream[-20:])
        client.close() if who == "client" else client.vanish()
    else:
        # HTTP's end is made up for, so that the client's connection lives.
        assert (await client.chunks()).endswith(stream[-20:] + END)
        replica.reply(sized(b"{}"))
        assert (await client.ask(get("/x")))[0] == 200
    await finished(app)
    assert errors(app) == {}
    assert app.telemetry.attempts == {}
    assert tokens(app) == counted


async def test_an_end_whose_chunk_was_cut_is_one_too(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica)
    replica.reply_and_close(SSE_HEAD, TOKEN, USAGE + DONE[:-2])
    client = await connect(app)
    _, _, body = await client.ask(post(PATH, STREAM))
    assert body == TOKEN + DONE + END
    assert errors(app) == {}
    assert tokens(app) == (100, 7)


async def test_a_client_that_leaves_before_the_end_is_gone_and_what_was_seen_counts(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica)
    before = app.gateway.placer.models.get("m")
    assert before is None
    replica.hang(SSE_HEAD, START)
    client = await connect(app)
    client.send(post("/v1/messages", STREAM))
    await client.reader.readuntil(b"message_start")
    client.close()
    await finished(app)
    assert errors(app) == {"client_gone": 1}
    assert tokens(app) == (90, 0)
    # The same where the replica dies.
    replica.reply_and_close(SSE_HEAD, START)
    client = await connect(app)
    client.send(post("/v1/messages", STREAM))
    await client.rest()
    await finished(app)
    assert errors(app) == {"client_gone": 1, "died_mid_stream": 1}
    assert tokens(app) == (180, 0)


async def test_an_error_first_is_retried_and_clients_see_none(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    bad, good = await replicas(), await replicas()
    app = await router(bad, good)
    bad.reply(SSE_HEAD, COMMENT, FAULT, DONE, END)
    good.reply(SSE_HEAD, TOKEN, DONE, END)
    client = await connect(app)
    for _ in range(10):
        status, _, body = await client.ask(post(PATH, STREAM))
        assert status == 200
        # The comment has passed, once at most, and after it the other's answer.
        assert body.removeprefix(COMMENT) == TOKEN + DONE + END
    assert errors(app) == {}
    assert 3 <= len(bad.received) <= 4
    assert not app.fleet.usable & 1
    assert app.telemetry.attempts == {(f"127.0.0.1:{bad.port}", "stream_error"): len(bad.received)}


async def test_an_error_with_nobody_else_to_ask_is_passed_on_and_counted(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica, breaker_failures=3)
    replica.reply(SSE_HEAD, FAULT, DONE, END)
    client = await connect(app)
    for count in (1, 2, 3):
        _, _, body = await client.ask(post(PATH, STREAM))
        assert body == FAULT + DONE + END
        assert errors(app) == {"stream_error": count}
    assert not app.fleet.usable
    assert app.fleet.members()[0].faults.status == 3


async def test_an_error_behind_tokens_is_counted(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    first, second = await replicas(), await replicas()
    app = await router(first, second, breaker_failures=1)
    for replica in (first, second):
        replica.reply_in_steps(SSE_HEAD + TOKEN, FAULT + DONE + END)
    client = await connect(app)
    client.send(post(PATH, STREAM))
    await client.reader.readuntil(TOKEN)
    first.step()
    second.step()
    assert (await client.reader.readuntil(END)).endswith(FAULT + DONE + END)
    await finished(app)
    assert errors(app) == {"stream_error": 1}
    assert app.fleet.usable.bit_count() == 1
    assert len(first.received) + len(second.received) == 1


async def test_errors_of_the_request_are_nobodys_fault(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    pair = [await replicas(), await replicas()]
    app = await router(*pair, breaker_failures=1)
    client = await connect(app)
    fault = chunk(event(error={"message": "no", "type": "BadRequestError", "code": 400}))
    answers = [SSE_HEAD + fault + DONE + END]
    answers += [sized(b"{}", f"{status} No") for status in (400, 404, 422, 429, 501, 505)]
    for answer in answers:
        for replica in pair:
            replica.reply(answer)
        for _ in range(4):
            await client.ask(post(PATH, STREAM))
            await client.ask(post("/v1/embeddings", CHAT))
    assert app.fleet.usable == 3
    assert errors(app) == {}
    assert app.telemetry.retries == 0
    assert all(vars_of(member.faults) == set() for member in app.fleet.members())


def vars_of(faults: object) -> set[str]:
    return {name for name in ("connect", "timeout", "silent", "died", "status", "engine")
            if getattr(faults, name)}  # fmt: skip


async def test_an_answer_of_the_requests_fault_closes_no_breaker(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica, breaker_failures=1, breaker_cooldown=0.0)
    client = await connect(app)
    replica.reply(sized(b"{}", "500 No"))
    await client.ask(post(PATH, CHAT))
    breaker = app.fleet.members()[0].breaker
    await until(lambda: breaker.state == "half_open")
    replica.reply(sized(b"{}", "400 No"))
    await client.ask(post(PATH, CHAT))
    assert breaker.state == "half_open"
    assert app.fleet.usable == 1
    replica.reply(sized(b"{}"))
    await client.ask(post(PATH, CHAT))
    assert breaker.state == "closed"


@pytest.mark.parametrize("form", ["plain", "torn", "chunked", "stream", "stream after a comment"])
async def test_a_dead_engine_behind_its_server(
    form: str, replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    bad, good = await replicas(), await replicas()
    app = await router(bad, good)
    error = {"message": f"{DEAD.decode()}. See stack trace.", "type": "InternalServerError"}
    body = json.dumps({"error": {**error, "param": None, "code": 500}}).encode()
    head, content = sized(body, "500 Internal Server Error").split(b"\r\n\r\n")
    pieces = {
        "plain": (head + b"\r\n\r\n" + content,),
        "torn": (head + b"\r\n\r\n", content[:9], content[9:]),
        "chunked": (
            b"HTTP/1.1 500 X\r\ntransfer-encoding: chunked\r\n\r\n",
            chunk(content),
            END,
        ),
        "stream": (SSE_HEAD, DEATH, DONE, END),
        "stream after a comment": (SSE_HEAD, COMMENT, DEATH, DONE, END),
    }[form]
    if "stream" in form:
        good.reply(SSE_HEAD, TOKEN, DONE, END)
    asked = post(PATH, STREAM if "stream" in form else CHAT)
    bad.reply(*pieces)
    client = await connect(app)
    for _ in range(6):
        status, _, found = await client.ask(asked)
        assert status == 200
        assert b"error" not in found
    # Out at once, and the requests went elsewhere without being counted as retries are.
    assert len(bad.received) == 1
    assert app.fleet.members()[0].faults.engine == 1
    assert errors(app) == {}


async def test_other_errors_500_are_passed_on_as_they_are(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    pair = [await replicas(), await replicas()]
    app = await router(*pair, breaker_failures=1000)
    client = await connect(app)
    big = b"x" * 100_000
    for answer, want in (
        ((sized(b"one", "500 No"),), b"one"),
        ((sized(b"", "500 No"),), b""),
        ((sized(big, "500 No")[:-5000], big[-5000:]), big),
        ((b"HTTP/1.1 500 No\r\ntransfer-encoding: chunked\r\n\r\n", chunk(b"ab"), END), None),
    ):
        for replica in pair:
            replica.reply(*answer)
        status, _, body = await client.ask(post(PATH, CHAT))
        assert status == 500
        assert body == (chunk(b"ab") + END if want is None else want)
    client.send(b"HEAD /v1/x HTTP/1.1\r\nHost: x\r\n\r\n")
    for replica in pair:
        replica.reply(b"HTTP/1.1 500 No\r\ncontent-length: 5\r\n\r\n")
    status, _, _ = await client.answer("HEAD")
    assert status == 500
    for replica in pair:
        replica.reply_and_close(b"HTTP/1.1 500 No\r\n\r\nuntil the end")
    client = await connect(app)
    assert (await client.ask(post(PATH, CHAT)))[2] == b"until the end"
    assert app.telemetry.retries == 0


async def test_comments_pass_at_once_and_are_no_first_token(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica)
    replica.reply_in_steps(SSE_HEAD + COMMENT, TOKEN, DONE + END)
    client = await connect(app)
    client.send(post(PATH, STREAM))
    await client.head()
    await client.reader.readuntil(COMMENT)
    [exchange] = exchanges(app)
    assert exchange.relay is not None
    assert exchange.placement is not None
    assert (exchange.relay.first_at, exchange.placement.first) == (0.0, False)
    replica.step()
    await client.reader.readuntil(TOKEN)
    assert exchange.relay.first_at > 0.0
    assert exchange.placement.first
    replica.step()
    await client.reader.readuntil(END)


@pytest.mark.parametrize("how", ["dies", "garbage", "refuses", "another form"])
async def test_behind_a_comment_another_replica_goes_on(
    how: str, replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    first, second = await replicas(), await replicas()
    app = await router(first, second)
    client = await connect(app)
    for replica, other in ((first, second), (second, first)):
        other.reply(SSE_HEAD, TOKEN, DONE, END)
        if how == "garbage":
            replica.reply(SSE_HEAD + COMMENT, b"zzz\r\n")
        else:
            replica.reply_and_close(SSE_HEAD, COMMENT)
        if how == "refuses":
            other.reply(sized(b"{}", "400 No"))
        elif how == "another form":
            other.reply(sized(b'{"choices":[]}'))
        client.send(post(PATH, STREAM))
        await client.head()
        got = await (client.rest() if how in ("refuses", "another form") else client.chunks())
        if COMMENT not in got:
            continue  # the other one was asked first
        if how in ("dies", "garbage"):
            assert got == COMMENT + TOKEN + DONE + END
            assert errors(app) == {}
        else:
            # What cannot follow is told as an error of the stream.
            assert b'"error"' in got
            assert not got.endswith(END)
        return
    pytest.fail("neither was asked first")


async def test_behind_a_comment_with_nobody_left(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica)
    replica.reply_and_close(SSE_HEAD, COMMENT)
    client = await connect(app)
    client.send(post(PATH, STREAM))
    assert (await client.head())[0] == 200
    rest = await client.rest()
    assert rest.startswith(COMMENT)
    assert b"closed its connection" in rest
    assert errors(app) == {"died_before_head": 1}


# -- usage, and the bytes


def packed(*pieces: bytes) -> list[bytes]:
    """Each compressed so that it can be read by itself."""
    packer = zlib.compressobj(wbits=31)
    return [chunk(packer.compress(piece) + packer.flush(zlib.Z_SYNC_FLUSH)) for piece in pieces] + [
        chunk(packer.flush())
    ]


async def test_compressed_streams_pass_as_they_come_and_are_read(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica)
    head = SSE_HEAD.replace(b"\r\n\r\n", b"\r\ncontent-encoding: gzip\r\n\r\n")
    one, two, three, four = packed(*map(unchunked, (TOKEN, USAGE, DONE)))
    replica.reply_in_steps(head + one, two + three + four + END)
    client = await connect(app)
    client.send(post(PATH, STREAM, "Accept-Encoding: gzip"))
    _, headers = await client.head()
    assert headers["content-encoding"] == "gzip"
    assert await client.reader.readexactly(len(one)) == one
    [exchange] = exchanges(app)
    assert exchange.placement is not None
    assert exchange.placement.first
    replica.step()
    assert await client.reader.readuntil(END) == two + three + four + END
    await finished(app)
    assert tokens(app) == (100, 7)


@pytest.mark.parametrize("size", [300, 16_384, 1_000_000])
@pytest.mark.parametrize("framing", ["sized", "chunked", "gzip"])
async def test_usage_in_answers_of_any_size(
    size: int, framing: str, replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica)
    answer = {
        "choices": [{"message": {"content": '"usage":{'}, "logprobs": [{"bytes": [1]}] * 9_000}],
        "usage": FIGURES,
        "prompt_token_ids": list(range(30_000)),
    }
    body = json.dumps(answer, separators=(",", ":")).encode()
    whole = sized(body)
    if framing == "chunked":
        pieces = [body[at : at + 10_000] for at in range(0, len(body), 10_000)]
        head = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"
        whole = head + b"".join(map(chunk, pieces)) + END
    elif framing == "gzip":
        whole = sized(gzip.compress(body), extra="content-encoding: gzip\r\n")
    replica.reply(*(whole[at : at + size] for at in range(0, len(whole), size)))
    client = await connect(app)
    _, _, got = await client.ask(post(PATH, CHAT))
    assert got == whole.partition(b"\r\n\r\n")[2]
    assert tokens(app) == (100, 7)


async def test_forged_usage_counts_nowhere(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica)
    client = await connect(app)
    for usage in ({"prompt_tokens": 9e17}, {"prompt_tokens": -4, "completion_tokens": 1}):
        replica.reply(sized(json.dumps({"usage": usage}).encode()))
        await client.ask(post(PATH, CHAT))
    tools = [{"parameters": {"usage": {"input_tokens": 5_000, "output_tokens": 5_000}}}]
    replica.reply(sized(json.dumps({"usage": None, "tools": tools}).encode()))
    await client.ask(post("/v1/responses", json.dumps({"model": "m", "input": "a"}).encode()))
    assert tokens(app) == (0, 0)
    # Nothing was learned of the model: what is kept of one begins with a usage that counts.
    assert not app.gateway.placer.models


async def test_what_several_answers_share_is_no_surplus(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica, stream_usage=False)
    client = await connect(app)
    figures = {**FIGURES, "prompt_tokens_details": {"cached_tokens": 96}}
    replica.reply(sized(json.dumps({"usage": figures}).encode()))
    for number, surplus in ((2, 0), (1, 96)):
        body = json.dumps({**json.loads(CHAT), "n": number}).encode()
        await client.ask(post(PATH, body))
        [series] = app.telemetry.series()
        assert (series.ledger.surplus, series.ledger.delivered) == (surplus, surplus)


async def test_time_per_output_token(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica)
    client = await connect(app)
    replica.reply(SSE_HEAD, TOKEN, USAGE, DONE, END)
    await client.ask(post(PATH, STREAM))
    replica.reply(sized(json.dumps({"usage": FIGURES}).encode()))
    await client.ask(post(PATH, CHAT))
    [series] = app.telemetry.series()
    # Seven tokens of the stream, the first of which is TTFT's; an answer in one piece has none.
    assert sum(series.tpot.counts) == sum(series.ttft.counts) == 1
    assert 0.0 < series.tpot.sum * 6 <= series.duration.sum


def choice(index: int, text: str, reason: str | None = None, **more: object) -> bytes:
    return event(
        id="c",
        choices=[{"index": index, "delta": {"content": text}, "finish_reason": reason}],
        **more,
    )


async def stamped(replica: ScriptedReplica, choices: int) -> None:
    """Stream as vLLM does, with its fingerprint where it puts it."""

    async def handler(request, reader, writer):  # type: ignore[no-untyped-def]
        asked = "stream_options" in request.json()
        mark = {} if asked else {"system_fingerprint": "vllm-1"}
        texts = [choice(0, "a")]
        for index in range(choices):
            texts += [choice(index, "b", "stop", **mark), choice(choices - 1, "c")]
        if asked:
            texts.append(event(id="c", choices=[], usage=FIGURES, system_fingerprint="vllm-1"))
        writer.write(SSE_HEAD + b"".join(map(chunk, (*texts, b"data: [DONE]\n\n"))) + END)

    replica.handler = handler


@pytest.mark.parametrize("choices", [1, 2])
async def test_asking_for_usage_changes_nothing_for_the_client(
    choices: int, replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    await stamped(replica, choices)
    asking, silent = await router(replica), await router(replica, stream_usage=False)
    client, plain = await connect(asking), await connect(silent)
    want = unchunked((await plain.ask(post(PATH, STREAM)))[2])
    assert b"vllm-1" in want
    assert b"usage" not in want
    for _ in range(3):
        assert unchunked((await client.ask(post(PATH, STREAM)))[2]) == want
    assert tokens(asking) == (300, 21)


async def test_with_the_fingerprint_known_nothing_waits(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica)
    last = chunk(choice(0, "b", "stop"))
    usage = chunk(event(id="c", choices=[], usage=FIGURES, system_fingerprint="vllm-1"))
    client = await connect(app)
    want = chunk(choice(0, "b", "stop", system_fingerprint="vllm-1"))
    for known in (False, True):
        replica.reply_in_steps(SSE_HEAD + TOKEN + last, usage + DONE + END)
        client.send(post(PATH, STREAM))
        await client.head()
        await client.reader.readuntil(TOKEN)
        if known:
            assert await client.reader.readexactly(len(want)) == want
        replica.step()
        assert (await client.reader.readuntil(END)).endswith(DONE + END)
    # Of another process it is another one.
    app.gateway.on_emptied(app.fleet.members()[0])
    assert app.gateway.pools[0].fingerprint is None


async def test_what_was_held_back_is_passed_on_when_the_stream_breaks(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica)
    last = choice(0, "b", "stop")
    replica.reply_and_close(SSE_HEAD, TOKEN, chunk(last))
    client = await connect(app)
    client.send(post(PATH, STREAM))
    await client.head()
    assert last in unchunked(await client.rest())


@pytest.mark.parametrize("path", [PATH, "/v1/messages", "/invocations"])
async def test_proxies_in_front_are_told_not_to_hold_streams(
    path: str, replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica)
    client = await connect(app)
    for given in (b"", b"X-Accel-Buffering: yes\r\n"):
        replica.reply(SSE_HEAD[:-2] + given + b"\r\n", TOKEN, END)
        client.send(post(path, STREAM))
        _, headers = await client.head()
        assert headers["x-accel-buffering"] == "no"
        await client.chunks()
    replica.reply(sized(b"{}"))
    _, headers, _ = await client.ask(post(path, CHAT))
    assert "x-accel-buffering" not in headers
