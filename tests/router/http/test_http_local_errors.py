"""What the router lacks itself (files, ports, buffers) is nobody else's fault."""

from __future__ import annotations

import errno
import json
import os
from typing import Any

import pytest
from http_world import (
    CHAT,
    Connect,
    MakeReplica,
    MakeRouter,
    ScriptedReplica,
    exchanges,
    get,
    post,
    sized,
    until,
)

from router.app import App
from router.http.local_reply import answer, error_body
from router.http.routes import Form
from router.http.upstream import Pool

PATH = "/v1/chat/completions"
LACKS = [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.EADDRNOTAVAIL]


@pytest.mark.parametrize("form", list(Form))
def test_an_error_of_our_own_ends_a_terminals_line(form: Form) -> None:
    head, _, body = answer(404, error_body(form, 404, "gone")).partition(b"\r\n\r\n")
    assert body.endswith(b"}\n")
    assert b"content-length: %d\r\n" % len(body) in head + b"\r\n"


class Broken:
    """Connections that cannot be made, for these replicas."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.error: OSError | None = None
        self.ports: set[int] = set()
        self.times = 1 << 30
        connect = Pool.connect

        async def instead(pool: Pool, *args: Any) -> Any:
            if self.error is not None and pool.replica.port in self.ports and self.times > 0:
                self.times -= 1
                raise self.error
            return await connect(pool, *args)

        monkeypatch.setattr(Pool, "connect", instead)

    def lack(self, number: int, *members: ScriptedReplica) -> None:
        self.error = OSError(number, os.strerror(number))
        self.ports = {member.port for member in members}


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> Broken:
    return Broken(monkeypatch)


def unblamed(app: App) -> None:
    for replica in app.fleet.members():
        assert app.fleet.usable & replica.bit
        assert (replica.faults.connect, replica.faults.died, replica.restarts) == (0, 0, 0)
        assert replica.breaker.opens == 0
    assert not app.telemetry.attempts


@pytest.mark.parametrize("lack", LACKS, ids=[errno.errorcode[number] for number in LACKS])
async def test_no_replica_is_blamed(
    replicas: MakeReplica,
    router: MakeRouter,
    connect: Connect,
    broken: Broken,
    complaints: list[str],
    lack: int,
) -> None:
    complaints.append("the router itself cannot open connections")
    replica = await replicas()
    app = await router(replica, breaker_failures=1)
    broken.lack(lack, replica)
    client = await connect(app)
    for _ in range(5):
        status, headers, body = await client.ask(post(PATH, CHAT))
        assert (status, headers["retry-after"]) == (503, "2")
        error = json.loads(body)["error"]
        assert (error["code"], os.strerror(lack) in error["message"]) == (503, True)
    unblamed(app)
    broken.error = None
    assert (await client.ask(post(PATH, CHAT)))[0] == 200


async def test_another_replica_is_tried(
    replicas: MakeReplica,
    router: MakeRouter,
    connect: Connect,
    broken: Broken,
    complaints: list[str],
) -> None:
    complaints.append("the router itself cannot open connections")
    first, second = await replicas(), await replicas()
    app = await router(first, second)
    # The ports for one peer have run out, those for the other have not.
    broken.lack(errno.EADDRNOTAVAIL, first)
    client = await connect(app)
    for _ in range(6):
        assert (await client.ask(post(PATH, CHAT)))[0] == 200
    assert not first.received
    unblamed(app)


async def test_idle_connections_are_given_up_for_a_new_one(
    replicas: MakeReplica, router: MakeRouter, connect: Connect, broken: Broken
) -> None:
    first, second = await replicas(), await replicas(models=("other",))
    app = await router(first, second)
    client = await connect(app)
    other = CHAT.replace(b'"m"', b'"other"')
    assert (await client.ask(post(PATH, CHAT)))[0] == 200
    held = len(first.open) + len(second.open)
    broken.lack(errno.EMFILE, second)
    broken.times = 1
    while not second.received:
        assert (await client.ask(post(PATH, other)))[0] == 200
    assert held
    assert broken.times == 0
    assert sum(len(pool._idle) for pool in app.gateway.pools) == 1
    unblamed(app)


async def test_a_trial_that_could_not_be_made_is_withdrawn(
    replicas: MakeReplica,
    router: MakeRouter,
    connect: Connect,
    broken: Broken,
    complaints: list[str],
) -> None:
    complaints.append("the router itself cannot open connections")
    replica = await replicas()
    replica.reply(sized(b"{}", "500 Oops"))
    app = await router(replica, breaker_failures=1, breaker_cooldown=0.01)
    client = await connect(app)
    assert (await client.ask(post(PATH, CHAT)))[0] == 500
    assert await app.fleet.until(lambda: app.fleet.half_open == 1, 20)
    broken.lack(errno.EMFILE, replica)
    app.gateway.pools[0].clear()
    assert (await client.ask(post(PATH, CHAT)))[0] == 503
    assert app.fleet.half_open == 1
    broken.error = None
    replica.handler = None
    assert (await client.ask(post(PATH, CHAT)))[0] == 200
    assert app.fleet.half_open == 0


async def test_a_connection_lost_for_a_lack_of_buffers(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    replica = await replicas()
    replica.hang()
    app = await router(replica, retries=0)
    client = await connect(app)
    client.send(post(PATH, CHAT))
    await replica.asked()
    [exchange] = exchanges(app)
    upstream = exchange.upstream
    assert upstream is not None
    upstream.connection_lost(OSError(errno.ENOBUFS, "No buffer space available"))
    upstream.transport.abort()
    assert (await client.answer())[0] == 503
    unblamed(app)
    await until(lambda: not exchanges(app))
    replica.handler = None
    assert (await client.ask(get("/x")))[0] == 200
