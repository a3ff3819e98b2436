"""Several engines behind one port: which of them a request is for is said in a header."""

from __future__ import annotations

from http_world import CHAT, Connect, MakeReplica, MakeRouter, ScriptedReplica, post, until

PATH = "/v1/chat/completions"
RANK = "x-data-parallel-rank"


def metrics(ranks: int) -> bytes:
    return "".join(
        f'vllm:num_requests_running{{engine="{rank}",model_name="m"}} 0.0\n'
        for rank in range(ranks)
    ).encode()


def asked_of(replica: ScriptedReplica) -> list[list[str]]:
    """The ranks that each request names."""
    return [
        [value for name, value in request.headers if name.lower() == RANK]
        for request in replica.received
    ]


async def test_each_request_names_the_rank_it_was_placed_on(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    engine = await replicas(metrics=metrics(3))
    app = await router(engine.url, explain_headers=True)
    client = await connect(app)
    shown = []
    for _ in range(3):
        # What a client asks for is not passed on: the router tells ranks apart.
        headers = "X-Warmroute-Explain: 1", "X-Data-Parallel-Rank: 7"
        status, head, _ = await client.ask(post(PATH, CHAT, *headers))
        assert status == 200
        shown.append(head["x-warmroute-replica"])
    assert asked_of(engine) == [["0"], ["1"], ["2"]]
    name = engine.url.removeprefix("http://")
    assert shown == [name, f"{name}@1", f"{name}@2"]


async def test_the_ranks_of_a_port_share_its_connections(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    engine = await replicas(metrics=metrics(3))
    app = await router(engine.url)
    client = await connect(app)
    assert (await client.ask(post(PATH, CHAT)))[0] == 200
    before = engine.connections
    for _ in range(5):
        assert (await client.ask(post(PATH, CHAT)))[0] == 200
    assert engine.connections == before


async def test_a_failed_rank_is_not_followed_by_another_of_its_port(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    broken = await replicas(metrics=metrics(4))
    broken.reply_and_close()
    well = await replicas()
    app = await router(broken.url, well.url, retries=1)
    client = await connect(app)
    for _ in range(2):
        assert (await client.ask(post(PATH, CHAT)))[0] == 200
    assert len(broken.received) >= 1


async def test_where_there_is_one_engine_the_clients_own_header_passes(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    engine = await replicas(metrics=metrics(1))
    client = await connect(await router(engine.url))
    assert (await client.ask(post(PATH, CHAT, "X-Data-Parallel-Rank: 7")))[0] == 200
    assert (await client.ask(post(PATH, CHAT)))[0] == 200
    assert asked_of(engine) == [["7"], []]


async def test_ranks_come_and_go_as_the_metrics_tell(
    replicas: MakeReplica, router: MakeRouter, connect: Connect
) -> None:
    engine = await replicas(metrics=metrics(1))
    app = await router(engine.url, metrics_interval=0.05)
    client = await connect(app)
    assert (await client.ask(post(PATH, CHAT)))[0] == 200
    engine.metrics = metrics(3)
    await until(lambda: app.fleet.usable.bit_count() == 3)
    for _ in range(6):
        assert (await client.ask(post(PATH, CHAT)))[0] == 200
    assert {rank for (rank,) in asked_of(engine)[1:]} == {"0", "1", "2"}
    engine.metrics = metrics(1)
    await until(lambda: app.fleet.usable.bit_count() == 1)
    assert (await client.ask(post(PATH, CHAT)))[0] == 200
    assert asked_of(engine)[-1] == []
