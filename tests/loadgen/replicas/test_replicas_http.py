"""The HTTP surface, over raw sockets and a plain client."""

import asyncio
import json

import httpx
import pytest
import uvloop

from loadgen.replicas import SimulatedFleet


@pytest.fixture
async def fleet():
    async with SimulatedFleet(1, model="tiny") as running:
        yield running


@pytest.fixture
async def client(fleet):
    async with httpx.AsyncClient(base_url=fleet.urls[0], timeout=20) as found:
        yield found


async def connect(replica):
    return await asyncio.open_connection(replica.host, replica.port)


def post(path, body, *headers):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    head = [f"POST {path} HTTP/1.1", "host: x", f"content-length: {len(data)}", *headers]
    return "\r\n".join(head).encode() + b"\r\n\r\n" + data


COMPLETION = {"model": "tiny", "prompt": "hello", "max_tokens": 3}


async def test_pipelined_requests_are_answered_in_order(fleet):
    reader, writer = await connect(fleet.replicas[0])
    writer.write(
        post("/v1/completions", COMPLETION, "x-request-id: one")
        + b"GET /health HTTP/1.1\r\nhost: x\r\n\r\n"
        + post("/v1/completions", COMPLETION, "x-request-id: two", "connection: close")
    )
    data = await reader.read()
    assert data.index(b"cmpl-one") < data.index(b"content-length: 0\r\n") < data.index(b"cmpl-two")
    assert data.count(b"HTTP/1.1 200 OK") == 3
    writer.close()


async def test_expect_100_continue(fleet):
    reader, writer = await connect(fleet.replicas[0])
    request = post("/v1/completions", COMPLETION, "expect: 100-continue", "connection: close")
    head, body = request.split(b"\r\n\r\n", 1)
    writer.write(head + b"\r\n\r\n")
    assert await reader.readuntil(b"\r\n\r\n") == b"HTTP/1.1 100 Continue\r\n\r\n"
    writer.write(body)
    assert (await reader.read()).startswith(b"HTTP/1.1 200 OK")
    writer.close()


async def test_what_is_no_http_gets_400(fleet):
    reader, writer = await connect(fleet.replicas[0])
    writer.write(b"\x16\x03\x01 hello\r\n\r\n")
    assert (await reader.read()).startswith(b"HTTP/1.1 400 Bad Request")
    writer.close()


async def test_a_streams_head_comes_before_its_first_token(fleet):
    replica = fleet.replicas[0]
    await replica.slow(1e6)
    reader, writer = await connect(replica)
    writer.write(post("/v1/completions", {**COMPLETION, "stream": True}))
    head = await reader.readuntil(b"\r\n\r\n")
    assert b"transfer-encoding: chunked" in head
    assert replica.engine.counters.generation_tokens == 0
    await replica.clear()
    assert (await reader.readuntil(b"0\r\n\r\n")).count(b'"text":') == 3
    writer.close()


async def test_methods_and_paths(client):
    assert (await client.get("/nope")).json() == {"detail": "Not Found"}
    wrong = await client.get("/v1/chat/completions")
    assert (wrong.status_code, wrong.headers["allow"]) == (405, "POST")
    head = await client.head("/health")
    assert (head.status_code, head.headers["allow"], head.content) == (405, "GET", b"")
    assert (await client.get("/health")).content == b""
    assert (await client.get("/version")).json() == {"version": "0.32.0"}
    assert (await client.get("/load")).json() == {"server_load": 0}


@pytest.mark.parametrize(
    ("path", "body", "status", "param"),
    [
        ("/v1/completions", {**COMPLETION, "model": "nope"}, 404, "model"),
        ("/v1/completions", {"model": "tiny"}, 400, "prompt"),
        ("/v1/completions", {**COMPLETION, "prompt": [1, "a"]}, 400, "prompt"),
        ("/v1/completions", {**COMPLETION, "max_tokens": 10**6}, 400, "max_tokens"),
        ("/v1/completions", {**COMPLETION, "max_tokens": "3"}, 400, "max_tokens"),
        ("/v1/completions", {**COMPLETION, "prompt": [1] * 70_000}, 400, "input_tokens"),
        ("/v1/completions", {**COMPLETION, "cache_salt": ""}, 400, "cache_salt"),
        ("/v1/completions", {**COMPLETION, "n": 10**18}, 400, "n"),
        ("/v1/chat/completions", {"model": "tiny"}, 400, "body.messages"),
        ("/v1/chat/completions", b'{"model":', 400, "body"),
        ("/v1/responses", {"model": "tiny"}, 400, "body.input"),
    ],
)
async def test_refusals_in_vllms_form(client, path, body, status, param):
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = await client.post(path, content=data)
    assert answer.status_code == status
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == (param, status)


async def test_refusals_of_messages_have_anthropics_form(client):
    body = {"model": "nope", "messages": [{"role": "user", "content": "a"}], "max_tokens": 1}
    answer = await client.post("/v1/messages", json=body)
    assert answer.status_code == 404
    assert answer.json()["error"]["type"] == "NotFoundError"


async def test_usage_in_a_stream_only_when_asked_for(client):
    body = {**COMPLETION, "stream": True}
    plain = (await client.post("/v1/completions", json=body)).text
    assert '"usage"' not in plain
    body["stream_options"] = {"include_usage": True}
    events = (await client.post("/v1/completions", json=body)).text.split("\n\n")
    assert events[-2] == "data: [DONE]"
    last = json.loads(events[-3].removeprefix("data: "))
    assert last["choices"] == []
    assert last["usage"]["completion_tokens"] == 3
    body["stream_options"]["continuous_usage_stats"] = True
    events = (await client.post("/v1/completions", json=body)).text.split("\n\n")
    counts = [json.loads(event[6:])["usage"]["completion_tokens"] for event in events[:3]]
    assert counts == [1, 2, 3]


async def test_next_turn_hits_the_answer(client):
    messages = [{"role": "user", "content": "word " * 40}]
    body = {"model": "tiny", "messages": messages, "max_tokens": 40}
    first = (await client.post("/v1/chat/completions", json=body)).json()
    messages += [first["choices"][0]["message"], {"role": "user", "content": "go on"}]
    second = (await client.post("/v1/chat/completions", json=body)).json()
    shared = first["usage"]["total_tokens"] - 1
    cached = second["usage"]["prompt_tokens_details"]["cached_tokens"]
    assert cached == shared // 16 * 16


async def test_salt_and_adapter_keep_caches_apart(client):
    body = {"model": "tiny", "prompt": "word " * 40, "max_tokens": 1}

    async def cached(**more):
        answer = (await client.post("/v1/completions", json={**body, **more})).json()
        return answer["usage"]["prompt_tokens_details"]["cached_tokens"]

    assert await cached() == 0
    assert await cached() == 48
    assert await cached(cache_salt="a") == 0
    added = await client.post("/v1/load_lora_adapter", json={"lora_name": "x", "lora_path": "/x"})
    assert added.status_code == 200
    assert await cached(model="x") == 0
    assert await cached(model="x") == 48
    names = [card["id"] for card in (await client.get("/v1/models")).json()["data"]]
    assert names == ["tiny", "x"]
    await client.post("/v1/unload_lora_adapter", json={"lora_name": "x"})
    assert (await client.post("/v1/completions", json={**body, "model": "x"})).status_code == 404
    assert (await client.post("/reset_prefix_cache")).json() == {"success": True}
    assert await cached() == 0


async def test_tokenize_and_back(client):
    text = "grüße, 世界!"
    tokens = (await client.post("/tokenize", json={"prompt": text})).json()
    assert tokens["count"] == len(tokens["tokens"])
    back = await client.post("/detokenize", json={"tokens": tokens["tokens"]})
    assert back.json() == {"prompt": text}
    messages = [{"role": "user", "content": text}]
    tokens = (await client.post("/tokenize", json={"messages": messages})).json()["tokens"]
    body = {"model": "tiny", "messages": messages, "max_tokens": 1}
    usage = (await client.post("/v1/chat/completions", json=body)).json()["usage"]
    assert usage["prompt_tokens"] == len(tokens)
    same = {"model": "tiny", "prompt": tokens, "max_tokens": 1}
    usage = (await client.post("/v1/completions", json=same)).json()["usage"]
    assert usage["prompt_tokens"] == len(tokens)


async def test_tokens_of_messages_are_counted(client):
    body = {
        "model": "tiny",
        "system": "Be brief.",
        "messages": [{"role": "user", "content": "hi"}],
        "tools": [{"name": "f", "input_schema": {"type": "object"}}],
    }
    path = "/v1/messages/count_tokens"
    counted = (await client.post(path, json=body)).json()
    usage = (await client.post("/v1/messages", json={**body, "max_tokens": 1})).json()["usage"]
    assert counted["input_tokens"] == usage["input_tokens"] > 0
    assert counted["context_management"] == {"original_input_tokens": usage["input_tokens"]}
    for wrong, status in (({"messages": []}, 400), ({"model": "x"}, 404), ({"model": ""}, 400)):
        answer = await client.post(path, json={**body, **wrong})
        assert (answer.status_code, answer.json()["type"]) == (status, "error")


async def test_several_prompts_and_answers(client):
    body = {"model": "tiny", "prompt": ["a", [1, 2, 3]], "max_tokens": 2, "n": 2}
    answer = (await client.post("/v1/completions", json=body)).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    assert answer["usage"]["prompt_tokens"] == 4
    assert answer["usage"]["completion_tokens"] == 8


async def test_a_disconnect_aborts(fleet):
    replica = fleet.replicas[0]
    reader, writer = await connect(replica)
    writer.write(post("/v1/completions", {**COMPLETION, "max_tokens": 60_000, "stream": True}))
    await reader.readuntil(b'"text":')
    assert len(replica.engine.running) == 1
    writer.transport.abort()
    await replica.until(lambda it: not it.engine.running)
    assert replica.engine.counters.aborted == 1
    assert replica.metrics.finished["abort"] == 1


async def test_metrics_agree_with_what_was_served(client):
    for _ in range(2):
        await client.post("/v1/completions", json={**COMPLETION, "prompt": "word " * 40})
    text = (await client.get("/metrics")).text
    values = dict(line.rsplit(" ", 1) for line in text.splitlines() if not line.startswith("#"))
    labels = '{engine="0",model_name="tiny"}'
    expected = {
        "num_requests_running": 0,
        "num_requests_waiting": 0,
        "kv_cache_usage_perc": 0,
        "prefix_cache_queries_total": 100,
        "prefix_cache_hits_total": 48,
        "prompt_tokens_total": 100,
        "generation_tokens_total": 6,
        "time_to_first_token_seconds_count": 2,
        "inter_token_latency_seconds_count": 4,
    }
    for name, value in expected.items():
        assert float(values[f"vllm:{name}{labels}"]) == value, name
    assert 'block_size="16"' in text
    assert 'num_gpu_blocks="4096"' in text


async def test_embeddings(client):
    answer = await client.post("/v1/embeddings", json={"model": "tiny", "input": ["a", "b"]})
    one, two = (item["embedding"] for item in answer.json()["data"])
    assert one != two


def test_under_uvloop():
    """The command line runs the fleet there, and its transports are of another kind."""

    async def main():
        async with SimulatedFleet(1) as fleet, httpx.AsyncClient() as client:
            body = {"model": "sim", "prompt": "a", "max_tokens": 5, "stream": True}
            answer = await client.post(fleet.urls[0] + "/v1/completions", json=body)
            return answer.text

    assert uvloop.run(main()).count('"text"') == 5
