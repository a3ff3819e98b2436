"""Roles that change while the router serves."""

from __future__ import annotations

import json

from http_world import Connect, MakeReplica, MakeRouter, post, sized, until

EMBED = post("/v1/embeddings", b'{"model":"m","input":"a"}')


async def test_a_replica_that_becomes_one_for_prefill_answers_no_client_and_back(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    one, other = await replicas(), await replicas()
    app = await router(one, other, policy="round_robin")
    await until(lambda: app.fleet.usable.bit_count() == 2)
    for replica in (one, other):
        replica.reply(sized(b"{}"))
    client = await connect(app)

    async def ask() -> tuple[int, int]:
        before = len(one.received), len(other.received)
        for _ in range(24):  # by chance all go to one replica once in eight million times
            assert (await client.ask(EMBED))[0] == 200
        return len(one.received) - before[0], len(other.received) - before[1]

    assert app.gateway.disaggregation is None
    assert min(await ask()) > 0
    app.fleet.set_role(app.fleet.find(other.url), "prefill")
    assert await ask() == (24, 0)
    # First legs are counted from here on.
    apart = app.gateway.disaggregation
    assert apart is not None
    assert app.telemetry.legs is apart
    chat = {"model": "m", "messages": [{"role": "user", "content": "a"}]}
    assert (await client.ask(post("/v1/chat/completions", json.dumps(chat).encode())))[0] == 200
    assert apart.counts["cheaper_local"] == 1
    app.fleet.set_role(app.fleet.find(other.url), "decode")
    assert min(await ask()) > 0


async def test_with_nobody_left_to_answer_clients_there_is_no_replica(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    app = await router(replica, hold_timeout=0)
    await until(lambda: app.fleet.usable.bit_count() == 1)
    app.fleet.set_role(app.fleet.find(replica.url), "prefill")
    client = await connect(app)
    status, _, answer = await client.ask(EMBED)
    assert (status, b"No replica that serves `m`" in answer) == (503, True)
    status, _, answer = await client.ask(post("/v1/embeddings", b'{"model":"x","input":"a"}'))
    assert (status, b"The model `x` does not exist" in answer) == (404, True)
    assert not replica.received


async def test_requests_are_held_until_somebody_answers_clients_again(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    replica.reply(sized(b"{}"))
    app = await router(replica, hold_timeout=60.0)
    await until(lambda: app.fleet.usable.bit_count() == 1)
    app.fleet.set_role(app.fleet.find(replica.url), "prefill")
    client = await connect(app)
    client.send(EMBED)
    await until(lambda: app.gateway.holding.models == {"m": 1})
    app.fleet.set_role(app.fleet.find(replica.url), "decode")
    assert (await client.answer())[0] == 200
