"""Bugs of the router and of policies: an answer all the same, and the books balance."""

from __future__ import annotations

import pytest
from http_world import (
    CHAT,
    Connect,
    MakeReplica,
    MakeRouter,
    post,
)

PATH = "/v1/chat/completions"


async def test_a_policy_that_fails(
    replicas: MakeReplica,
    router: MakeRouter,
    connect: Connect,
    complaints: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    complaints.append("request wr-.* failed")
    bad, good = await replicas(), await replicas()
    app = await router(bad, good)
    client = await connect(app)
    place = app.placer.place

    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("a policy's bug")

    monkeypatch.setattr(app.placer, "place", fails)
    status, _, body = await client.ask(post(PATH, CHAT))
    assert status == 500
    assert "policy" not in body.decode()
    # The same on a retry, after the first one was refused or has died.
    for end in ("close", "stop"):
        monkeypatch.setattr(app.placer, "place", place)
        bad.reply_and_close()
        if end == "stop":
            await bad.stop()
        placed = 0

        def once(*args: object, **options: object) -> object:
            nonlocal placed
            placed += 1
            if placed > 1:
                raise RuntimeError("a policy's bug")
            eligible = {"eligible": 1}
            return place(*args[:3], eligible["eligible"], *args[4:], **options)  # type: ignore[arg-type]

        monkeypatch.setattr(app.placer, "place", once)
        assert (await client.ask(post(PATH, CHAT)))[0] == 500
    monkeypatch.setattr(app.placer, "place", place)
    assert (await client.ask(post(PATH, CHAT)))[0] == 200


async def test_the_router_itself_fails(
    replicas: MakeReplica,
    router: MakeRouter,
    connect: Connect,
    complaints: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    complaints += ["request wr-.* failed", "the end of request wr-.* was not told"]
    app = await router(await replicas())
    client = await connect(app)

    def fails(*_: object) -> str:
        raise RuntimeError("a bug")

    with monkeypatch.context() as patched:
        patched.setattr("router.http.bookkeeping.model_of", fails)
        status, _, body = await client.ask(post("/v1/embeddings", CHAT))
        assert (status, "bug" in body.decode()) == (500, False)
    with monkeypatch.context() as patched:
        patched.setattr(app.telemetry, "observe", fails)
        assert (await client.ask(post(PATH, CHAT)))[0] == 200
    complaints.append("a request could not be read")
    with monkeypatch.context() as patched:
        patched.setattr("router.http.client_connection.monotonic", fails)
        status, headers, _ = await client.ask(post(PATH, CHAT))
        assert (status, headers["connection"]) == (500, "close")
    client = await connect(app)
    assert (await client.ask(post(PATH, CHAT)))[0] == 200
