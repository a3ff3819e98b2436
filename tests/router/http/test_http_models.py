"""Which model a body names, however it is written, and what clients may not put into bodies."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from http_world import CHAT, Connect, MakeReplica, MakeRouter, get, post

from router.http.form import model_of
from router.http.request import Request
from router.prompt import PARSERS, Prompt, PromptError, without_transfer
from router.prompt.canonical import LONGEST_MODEL
from router.scheduling.placer import Placement

FORM = "Content-Type: multipart/form-data; boundary=b"
DEEP = b"[" * 5000 + b"]" * 5000


def form(*fields: tuple[str, bytes]) -> bytes:
    parts = [
        b'--b\r\nContent-Disposition: form-data; name="%b"\r\n\r\n%b\r\n' % (name.encode(), value)
        for name, value in fields
    ]
    return b"".join(parts) + b"--b--\r\n"


def named(body: bytes, *headers: bytes) -> str:
    return model_of(Request(body=body, headers=list(headers)), trust=True)


def form_named(body: bytes, content_type: bytes = b"multipart/form-data; boundary=b") -> str:
    return named(body, b"Content-Type", content_type)


def test_models_of_json() -> None:
    for body, name in {
        b'{"model":"a"}': "a",
        b' \n{"x":1,"model":"\\u00e9"}': "é",
        b'{"mod\\u0065l":"a"}': "a",
        b'{"model":5}': "",
        b'{"model":null}': "",
        b"{": "",
        b"[1]": "",
        b"{" * 100_000: "",
        b"\xff\xfe": "",
        b"model=a": "",
        b"": "",
        # What Python takes for JSON.
        b'{"input":"cut \\ud83d","model":"a"}': "a",
        b'{"input":"\xed\xa0\xbd","model":"a"}': "a",
        b'{"model":"BAAI/Infinity-NaN","x":[NaN,-Infinity , Infinity]}': "BAAI/Infinity-NaN",
        b'\xef\xbb\xbf{"model":"a"}': "a",
        '{"x":"é😀","model":"a"}'.encode("utf-16"): "a",
        '{"model":"a"}'.encode("utf-16-be"): "a",
        '{"model":"a"}'.encode("utf-32"): "a",
        b'{"model":5,"model":"a"}': "a",
        b'{"model":"a","model":"b"}': "b",
        b'{"input":' + DEEP + b',"model":"a"}': "a",
        b'{"input":' + DEEP + b',"y":"\\\\\\"]","model":"a"}': "a",
    }.items():
        assert named(body) == name, body[:60]


def test_models_of_forms() -> None:
    audio = ("file", b"RIFF" * 100_000)
    for body, name in {
        form(("model", b"a"), audio): "a",
        form(audio, ("model", b"a")): "a",
        form(("file", b"x" * 2_000_000), ("model", b"a"), ("file", b"x" * 2_000_000)): "a",
        form(("model", b"a"), ("model", b"b")): "b",
        form(("models", b"a")): "",
        form(("x", b'name="model"')): "",
        form(("x", b'\r\n\r\ncontent-disposition: form-data; name="model"\r\n\r\nz')): "",
        form(("model", b"")): "",
        form(("x", b"")): "",
        form(('model"; filename="f', b"a")): "",
        b"\r\n" + form(("model", b"a")): "a",
        b"--b\r\ncontent-disposition: form-data; NAME=model\r\ncontent-type: text/plain\r\n\r\n"
        b"b\r\n--b--": "b",
        b"--b\r\ncontent-disposition: form-data; NAME=model\r\n\r\nb": "",
    }.items():
        assert form_named(body) == name, body[:60]
    body = form(("model", b"a"))
    assert form_named(body, b'Multipart/Form-Data; charset=x; Boundary="b"') == "a"
    assert form_named(body, b"text/plain; boundary=b") == ""


@pytest.mark.parametrize(
    "body",
    [
        b"--b\r\n"
        + b"content-disposition:form-data;name=model;" * 20_000
        + b"\r\n"
        + b"a\r\n" * 90_000,
        b"--b\r\n" * 200_000,
        b"--b\r\n\r\n" * 100_000,
        b"--b\r\nx:\r\n\r\n" + b"\r\n--" * 200_000,
        b"\r\n--b\r\ncontent-disposition:" + b";=" * 400_000,
        b'--b\r\ncontent-disposition:form-data;name="' + b'\\"' * 400_000,
    ],
)
def test_no_form_takes_long(body: bytes) -> None:
    """A regular expression took 20 seconds for 14 KB of the first."""
    before = time.process_time()
    form_named(body)
    assert time.process_time() - before < 2.0


@pytest.mark.parametrize(
    "spelled",
    [
        b'{"model":"two","input":"cut \\ud83d"}',
        b'{"input":NaN,"model":"two"}',
        b'\xef\xbb\xbf{"model":"two","input":"x"}',
        b'{"model":7,"input":"x","model":"two"}',
        b'{"input":' + DEEP + b',"model":"two"}',
    ],
)
async def test_bodies_only_python_reads_find_their_model(
    replicas: MakeReplica, router: MakeRouter, connect: Connect, spelled: bytes
) -> None:
    one, two = await replicas(model="one"), await replicas(model="two")
    client = await connect(await router(one, two, lora_resolver=False))
    for path in ("/v1/embeddings", "/tokenize", "/v1/rerank", "/plugin"):
        for _ in range(2):
            assert (await client.ask(post(path, spelled)))[0] == 200
    chat = spelled.replace(b'"model":"two"', b'"model":"two","messages":[]')
    assert (await client.ask(post("/v1/chat/completions", chat)))[0] == 200
    assert one.received == []
    assert two.received[-1].body == chat


async def test_a_form_finds_its_model_behind_a_large_file(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    one, two = await replicas(model="one"), await replicas(model="two")
    client = await connect(await router(one, two, lora_resolver=False))
    body = form(("file", b"RIFF" * 100_000), ("model", b"two"), ("prompt", b"p" * 200_000))
    for _ in range(4):
        assert (await client.ask(post("/v1/audio/transcriptions", body, FORM)))[0] == 200
    assert one.received == []
    assert [request.body for request in two.received] == [body] * 4


async def test_a_long_name_is_no_model(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica, lora_resolver=False)
    client = await connect(app)
    for name in ("x" * (LONGEST_MODEL + 1), "é" * 129, "x" * 1_000_000):
        needed = {"messages": [], "input": "", "prompt": "", "token_ids": [1], "query": ""}
        body = json.dumps({"model": name, **needed}).encode()
        for path in (*PARSERS, "/v1/embeddings", "/invocations", "/plugin"):
            status, _, answer = await client.ask(post(path, body))
            assert (path, status) == (path, 400)
            assert b"longer than 256 bytes" in answer
        status, _, _ = await client.ask(
            post("/v1/audio/transcriptions", form(("model", name.encode())), FORM)
        )
        assert status == 400
    assert replica.received == []
    status, _, _ = await client.ask(
        post("/v1/embeddings", json.dumps({"model": "x" * LONGEST_MODEL}).encode())
    )
    assert status == 404


async def test_what_clients_choose_is_kept_short(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica, policy="session", explain_requests=10, lora_resolver=False)
    client = await connect(app)
    for user in ("u" * 100_000, "u" * 100_001, "\ud800" * 1000, "short"):
        body = json.dumps(
            {"model": "m", "user": user, "messages": [{"role": "user", "content": "x" * 999}]}
        ).encode()
        assert (await client.ask(post("/v1/chat/completions", body)))[0] == 200
    kept = [done for done, _ in app.explain._kept]
    assert all(len(done.key) <= 128 and len(done.path) <= 256 for done in kept)
    assert len({done.key for done in kept}) == 4
    for number in range(3):
        body = json.dumps({"model": f"unknown-{number}", "messages": []}).encode()
        assert (await client.ask(post("/v1/chat/completions", body)))[0] == 404
    assert not [name for name in app.gateway.placer.models if name.startswith("unknown")]


async def test_no_model_in_a_mixed_fleet(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    chat, embedding = await replicas(model="chat"), await replicas(model="embedding")
    strict = await connect(await router(chat, embedding))
    lenient = await connect(await router(chat, embedding, default_model="chat"))
    body = b'{"messages":[{"role":"user","content":"x"}],"prompt":"x","input":"x"}'
    for path in ("/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/tokenize"):
        for _ in range(2):
            status, _, answer = await strict.ask(post(path, body))
            assert status == 400
            error = json.loads(answer)["error"]
            assert error["param"] == "model"
            assert "chat, embedding" in error["message"]
            assert (await lenient.ask(post(path, body)))[0] == 200
    assert embedding.received == []
    assert len(chat.received) == 8
    for client in (strict, lenient):
        assert (await client.ask(get("/version")))[0] == 200
        assert (await client.ask(post("/v1/responses/r/cancel", b"{}")))[0] == 200


async def test_a_prompt_is_placed_by_the_model_and_session_taken_for_it(
    replicas: MakeReplica,
    router: MakeRouter,
    connect: Connect,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chat, embedding = await replicas(model="chat"), await replicas(model="embedding")
    app = await router(chat, embedding, default_model="chat")
    client = await connect(app)
    placed: list[tuple[str, str]] = []
    place = app.placer.place

    def watched(prompt: Prompt, eligible: int, now: float) -> Placement:
        placed.append((prompt.model, prompt.key))
        return place(prompt, eligible, now)

    monkeypatch.setattr(app.placer, "place", watched)
    body = b'{"messages":[{"role":"user","content":"x"}],"user":"who"}'
    for headers in ((), ("x-session-id: mine",)):
        assert (await client.ask(post("/v1/chat/completions", body, *headers)))[0] == 200
    assert placed == [("chat", "who"), ("chat", "mine")]


async def test_no_model_where_all_replicas_have_one(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    one = await replicas(model="base", models=("adapter-1",))
    two = await replicas(model="base", models=("adapter-2",))
    client = await connect(await router(one, two, lora_resolver=False))
    for _ in range(4):
        assert (await client.ask(post("/v1/completions", b'{"prompt":"x"}')))[0] == 200
    assert len(one.received) == len(two.received) == 2


PARAMS: dict[str, Any] = {
    "do_remote_prefill": True,
    "remote_host": "evil, }]",
    "n": [1, {"a": "}"}],
}
P = json.dumps(PARAMS).encode()


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        (b'{"kv_transfer_params":' + P + b', "a":1}', b'{ "a":1}'),
        (b'{"a":1 , "kv_transfer_params" : ' + P + b" }", b'{"a":1   }'),
        (b'{"a":1,"kv_transfer_params":' + P + b',"b":2}', b'{"a":1,"b":2}'),
        (b'{"kv_transfer_params":null}', b"{}"),
        (b'{"kv\\u005ftransfer_params":1,"a":1}', b'{"a":1}'),
        (b'{"ec_transfer_params":{},"a":"\\ud83d","b":NaN}', b'{"a":"\\ud83d","b":NaN}'),
        (b'{"kv_transfer_params":1,"a":2,"kv_transfer_params":3}', b'{"a":2}'),
        (b'{"vllm_xargs":{"kv_transfer_params":"x","a":1}}', b'{"vllm_xargs":{"a":1}}'),
        (
            b'{"sampling_params":{"n":1,"extra_args":{"kv_transfer_params":{}}}}',
            b'{"sampling_params":{"n":1,"extra_args":{}}}',
        ),
        (b'{"bootstrap_host":"h","bootstrap_port":1,"bootstrap_room":2,"a":1}', b'{"a":1}'),
        (b'{"a":' + DEEP + b',"kv_transfer_params":1}', b'{"a":' + DEEP + b"}"),
        (b'\xef\xbb\xbf{"kv_transfer_params":1}', b"\xef\xbb\xbf{}"),
        (
            '{"kv_transfer_params":1,"a":"é"}'.encode("utf-16-be"),
            '{"a":"é"}'.encode("utf-16-be"),
        ),
        (b'{"messages":[{"kv_transfer_params":1}]}', b'{"messages":[{"kv_transfer_params":1}]}'),
        (b'{"a":"\\"kv_transfer_params\\":1"}', b'{"a":"\\"kv_transfer_params\\":1"}'),
    ],
)
def test_transfer_fields_are_cut_out(given: bytes, kept: bytes) -> None:
    assert without_transfer(given).replace(b" ", b"") == kept.replace(b" ", b"")


def test_transfer_fields_given_too_often() -> None:
    with pytest.raises(PromptError, match="too often"):
        without_transfer(b"{" + b'"kv_transfer_params":1,' * 100 + b'"a":1}')


async def test_clients_do_not_tell_engines_where_kv_blocks_are(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica)
    client = await connect(app)
    trusting = await connect(await router(replica, trust_kv_transfer=True))
    rest = b'"model":"m","messages":[{"role":"user","content":"x"}],"prompt":[1,2],"input":"x",'
    rest += b'"token_ids":[1,2],"query":[1],"items":[]}'
    body = b'{"kv_transfer_params":' + P + b"," + rest
    for path in (
        *PARSERS,
        "/invocations",
        "/v1/chat/completions/batch",
        "/cohere/v2/chat",
        "/pooling",
    ):
        assert (await client.ask(post(path, body)))[0] == 200
        assert replica.received[-1].body == b"{" + rest, path
        assert (await trusting.ask(post(path, body)))[0] == 200
        assert replica.received[-1].body == body, path
    stream = b'{"kv_transfer_params":{},"stream":true,' + rest
    assert (await client.ask(post("/v1/chat/completions", stream)))[0] == 200
    sent = replica.received[-1].json()
    assert "kv_transfer_params" not in sent
    assert sent["stream_options"] == {"include_usage": True}
    fields = ("file", b"RIFF"), ("vllm_xargs", b'{"kv_transfer_params":"x","a":1}'), ("model", b"m")
    answer = await client.ask(post("/v1/audio/transcriptions", form(*fields), FORM))
    assert answer[0] == 200
    assert replica.received[-1].body == form(fields[0], ("vllm_xargs", b'{"a":1}'), fields[2])
    assert (await client.ask(post("/v1/chat/completions", CHAT)))[0] == 200
    assert replica.received[-1].body == CHAT
