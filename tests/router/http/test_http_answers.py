"""Answers that are the router's own, and heads of engines' answers that tell where they come from."""

from __future__ import annotations

import json

import pytest
from http_world import (
    CHAT,
    Connect,
    MakeReplica,
    MakeRouter,
    Raw,
    get,
    post,
    sized,
)

from router.app import App
from router.http.relay import outward

PATH = "/v1/chat/completions"
NOBODY = json.dumps({"model": "nobody", "messages": [], "max_tokens": 5}).encode()

# What vLLM 0.32 answers: the status, and the body without what only tells of the case.
ENGINES = {
    "unknown model, chat": (
        post(PATH, NOBODY),
        (404, {"type": "NotFoundError", "param": "model", "code": 404}),
    ),
    "unknown model, completions": (
        post("/v1/completions", b'{"model":"nobody","prompt":"a"}'),
        (404, {"type": "NotFoundError", "param": "model", "code": 404}),
    ),
    "unknown model, responses": (
        post("/v1/responses", b'{"model":"nobody","input":"a"}'),
        (404, {"type": "NotFoundError", "param": "model", "code": 404}),
    ),
    "unknown model, messages": (post("/v1/messages", NOBODY), (404, {"type": "NotFoundError"})),
    "no JSON": (post(PATH, b"{bad"), (400, {"type": "Bad Request", "code": 400})),
    "no object": (
        post(PATH, b"[1]"),
        (400, {"type": "Bad Request", "param": "body", "code": 400}),
    ),
    "no messages": (
        post(PATH, b'{"model":"m"}'),
        (400, {"type": "Bad Request", "param": "body.messages", "code": 400}),
    ),
}


@pytest.mark.parametrize("case", ENGINES)
async def test_errors_are_as_the_engines(
    case: str, replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    request, (want, error) = ENGINES[case]
    app = await router(await replicas(models=("two",)), lora_resolver=False)
    status, _, body = await (await connect(app)).ask(request)
    found = json.loads(body)
    assert status == want
    assert error.items() <= found["error"].items()
    if "model" in case:
        text = "The model `nobody` does not exist. Valid aliases: m, two."
        assert found["error"]["message"] == text
    assert set(found) == (
        {"type", "error"} if "messages" in case[-8:] and want == 404 else {"error"}
    )


async def test_a_method_that_is_not_allowed(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    app = await router(await replicas())
    status, headers, body = await (await connect(app)).ask(post("/v1/models", b"{}"))
    assert (status, json.loads(body)) == (405, {"detail": "Method Not Allowed"})
    assert headers["allow"] == "GET, HEAD, OPTIONS"


# -- browsers

ORIGIN = ("Origin: http://localhost:3000",)
PREFLIGHT = (
    *ORIGIN,
    "Access-Control-Request-Method: GET",
    "Access-Control-Request-Headers: authorization,content-type",
)


def options(path: str, *headers: str) -> bytes:
    return get(path, *headers).replace(b"GET ", b"OPTIONS ", 1)


async def own_answers(client: Raw) -> list[tuple[int, dict[str, str]]]:
    """Of each kind one: a preflight, the models, errors inside and outside of a request."""
    asked = (
        options("/v1/models", *PREFLIGHT),
        get("/v1/models", *ORIGIN),
        post(PATH, NOBODY, *ORIGIN),
        get("/metrics", *ORIGIN),
        b"GET /x HTTP/1.1\r\n\r\n",
    )
    return [(await client.ask(data))[:2] for data in asked]


async def test_own_answers_say_whose_pages_may_read_them(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    for origin in ("*", "https://a.example", ""):
        app = await router(replica, allow_origin=origin, lora_resolver=False)
        answers = await own_answers(await connect(app))
        assert [status for status, _ in answers] == [204, 200, 404, 403, 400]
        for _, headers in answers:
            assert headers.get("access-control-allow-origin", "") == origin
        preflight = answers[0][1]
        wanted = "authorization,content-type" if origin else None
        assert preflight.get("access-control-allow-headers") == wanted
        assert ("GET" in preflight.get("access-control-allow-methods", "")) == bool(origin)


async def test_engines_answer_for_themselves(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    client = await connect(await router(replica))
    replica.reply(sized(b"no", "400 Bad Request"))
    status, headers, _ = await client.ask(options(PATH, *PREFLIGHT))
    assert (status, headers.get("access-control-allow-origin")) == (400, None)
    replica.reply(sized(b"", extra="Access-Control-Allow-Origin: http://b\r\n"))
    for request in (options(PATH, *PREFLIGHT), post(PATH, CHAT, *ORIGIN)):
        _, headers, _ = await client.ask(request)
        assert headers["access-control-allow-origin"] == "http://b"


# -- redirects


@pytest.mark.parametrize(
    ("where", "want"),
    [
        ("http://{host}/v1/chat/completions", "/v1/chat/completions"),
        ("https://{host}/v1/models?a=b", "/v1/models?a=b"),
        ("//{host}/x", "/x"),
        ("HTTP://{host}", "/"),
        ("http://{host}?a", "/?a"),
        ("/v1/models", "/v1/models"),
        ("models", "models"),
        ("https://elsewhere.example/x", "https://elsewhere.example/x"),
        ("http://{host}0/x", "http://{host}0/x"),
    ],
)
async def test_a_redirect_shows_no_inner_address(
    where: str, want: str, replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app: App = await router(replica)
    host = f"127.0.0.1:{replica.port}"
    location = f"Location: {where.format(host=host)}\r\n"
    replica.reply(sized(b"", "307 Temporary Redirect", location))
    status, headers, _ = await (await connect(app)).ask(post(PATH + "/", CHAT))
    assert (status, headers["location"]) == (307, want.format(host=host))


def test_a_redirect_leaves_out_the_replicas_prefix() -> None:
    for where in (b"http://a:1/base/v1/x", b"/base/v1/x"):
        assert outward([b"Location", where], b"a:1", "/base") == [b"Location", b"/v1/x"]
    kept = [b"location", b"/basement", b"other", b"http://a:1/base/x"]
    assert outward(kept, b"a:1", "/base") == kept
