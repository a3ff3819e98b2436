"""What the doctor finds of engines that prefill for others, and of a router that should use them."""

from __future__ import annotations

import json
from typing import Any

import httpx
import msgspec
import pytest

from loadgen.replicas import QUICK, NixlSettings, SimulatedFleet
from router.config import Settings
from router.doctor.apart import findings, split
from router.doctor.engine import Engine
from router.doctor.finding import Finding

P, D, D2 = "http://p:8000", "http://d:8000", "http://e:8000"


class FakeEngine:
    """As vLLM answers, as far as the doctor asks."""

    def __init__(self) -> None:
        self.connector = True
        self.reachable = True
        self.returns_blocks = False
        self.mode = "pull"
        self.version = "0.32.0"
        self.hits = 0
        self.tells_hits = True
        self.bodies: list[dict[str, Any]] = []
        self.names: list[str] = []

    def answer(self, request: httpx.Request) -> httpx.Response:
        if request.url.path == "/version":
            return httpx.Response(200, json={"version": self.version})
        if request.url.path == "/metrics":
            line = f'vllm:external_prefix_cache_hits_total{{engine="0"}} {self.hits}.0\n'
            return httpx.Response(200, text=line if self.tells_hits else "")
        body = json.loads(request.content)
        self.bodies.append(body)
        self.names.append(request.headers["x-request-id"])
        answer: dict[str, Any] = {"choices": [], "usage": {"prompt_tokens": 600}}
        params = body.get("kv_transfer_params", {"do_remote_decode": False})
        if self.returns_blocks and not params["do_remote_decode"]:
            answer["kv_transfer_params"] = {"do_remote_decode": True, "remote_engine_id": "D"}
        if self.connector and params["do_remote_decode"]:
            answer["kv_transfer_params"] = {
                "do_remote_decode": False,
                "remote_engine_id": "P",
                "transfer_mode": self.mode,
            }
        elif self.connector:
            if not self.reachable:
                return httpx.Response(500, json={"error": {"message": "KV load failure"}})
            self.hits += 600
        return httpx.Response(200, json=answer)


class World:
    def __init__(self) -> None:
        self.engines = {url: FakeEngine() for url in (P, D, D2)}
        self.legs: dict[str, int] | None = None

    def _answer(self, request: httpx.Request) -> httpx.Response:
        url = f"http://{request.url.host}:{request.url.port}"
        if url in self.engines:
            return self.engines[url].answer(request)
        if self.legs is None:
            raise httpx.ConnectError("refused")
        lines = (
            f'warmroute_prefill_legs_total{{outcome="{word}"}} {count}'
            for word, count in self.legs.items()
        )
        return httpx.Response(200, text="\n".join(lines))

    async def ask(
        self, models: dict[str, list[str]] | None = None, **settings: Any
    ) -> list[Finding]:
        models = models or {}
        said = Settings(
            **({"replicas": (D, D2), "prefill": (P,), "kv_connector": "nixl"} | settings)
        )
        engines = [
            Engine(url, models=dict.fromkeys(models.get(url, ["m"]), "/m")) for url in said.engines
        ]
        async with httpx.AsyncClient(transport=httpx.MockTransport(self._answer)) as client:
            return await findings(client, engines, said)


def wrong(found: list[Finding]) -> list[Finding]:
    return [one for one in found if one.wrong]


async def test_pairs_that_work_are_tried_with_a_new_prompt_each() -> None:
    world = World()
    found = await world.ask()
    assert not wrong(found)
    assert "all 2 pairs of engines hand blocks over" in found[0].what
    giver, taker = world.engines[P], world.engines[D]
    assert len({body["prompt"] for body in giver.bodies}) == 2
    # The second leg is of the same prompt and name, with what the first one answered.
    assert taker.bodies[0]["prompt"] == giver.bodies[0]["prompt"]
    assert taker.names[0] == giver.names[0]
    assert taker.bodies[0]["kv_transfer_params"]["remote_engine_id"] == "P"


@pytest.mark.parametrize("offload_tokens", [0, 4096])
async def test_simulated_engines_that_hand_blocks_over_are_well(offload_tokens: int) -> None:
    params = msgspec.structs.replace(QUICK, offload_tokens=offload_tokens)
    async with (
        SimulatedFleet(2, params=params, nixl=NixlSettings()) as fleet,
        httpx.AsyncClient() as client,
    ):
        taker, giver = fleet.urls
        said = Settings(replicas=(taker,), prefill=(giver,), kv_connector="nixl", admin_port=0)
        engines = [Engine(url, models={"sim": "/sim"}) for url in said.engines]
        found = await findings(client, engines, said)
        assert not wrong(found)
        assert "the pair of engines hands blocks over" in {one.what for one in found}


async def test_a_prefill_engine_without_a_connector_is_told_once() -> None:
    world = World()
    world.engines[P].connector = False
    (one,) = wrong(await world.ask())
    assert one.where == P
    assert "without kv_transfer_params" in one.what
    assert "kv_producer" in one.fix


async def test_a_decode_engine_without_a_connector_answers_and_is_told() -> None:
    world = World()
    world.engines[D].connector = False
    (one,) = wrong(await world.ask())
    assert f"{D} fetches from {P}: it does not" in one.what
    assert "kv_consumer" in one.fix


async def test_a_decode_engine_that_keeps_its_own_blocks_is_told() -> None:
    world = World()
    world.engines[D].returns_blocks = True
    (one,) = wrong(await world.ask())
    assert "keeps its own blocks" in one.what
    assert "bidirectional_kv_xfer" in one.fix


async def test_the_connector_that_is_set_is_the_one_that_is_tried() -> None:
    world = World()
    world.engines[P].mode = "push"
    (one,) = wrong(await world.ask())
    assert (one.where, one.fix) == (P, "set kv_connector to nixl_push")
    assert not wrong(await world.ask(kv_connector="nixl_push"))
    (one,) = wrong(await world.ask(kv_connector="mooncake"))
    assert one.where == P
    assert "no Mooncake bootstrap server at p:8998" in one.what
    assert not wrong(await world.ask(kv_connector="store"))
    assert "kv_transfer_params" not in world.engines[P].bodies[-1]


async def test_a_decode_engine_that_cannot_fetch_is_told_with_what_it_said() -> None:
    world = World()
    world.engines[D2].reachable = False
    (one,) = wrong(await world.ask())
    assert f"{D2} fetches from {P}: it failed: 500" in one.what
    assert "KV load failure" in one.what
    assert "VLLM_NIXL_SIDE_CHANNEL_HOST" in one.fix


async def test_metrics_that_do_not_tell_are_no_fault() -> None:
    world = World()
    world.engines[D].tells_hits = world.engines[D2].tells_hits = False
    found = await world.ask()
    assert not wrong(found)
    assert "is not known" in found[0].what


async def test_versions_that_differ_and_roles_that_make_no_sense() -> None:
    world = World()
    world.engines[D2].version = "0.33.0"
    (one,) = wrong(await world.ask())
    assert "0.32.0: http://d:8000, http://p:8000; 0.33.0: http://e:8000" in one.what
    (one,) = wrong(await world.ask(replicas=()))
    assert "none answers clients" in one.what
    found = await world.ask(replicas=(), discovery="file")
    assert not wrong(found)
    assert "was not tried" in found[0].what
    world.engines[D2].version = "0.32.0"
    (one,) = wrong(await world.ask({P: ["other"]}))
    assert "no other engine decodes other" in one.what
    # An engine with both roles does not hand blocks to itself.
    (one,) = wrong(await world.ask(replicas=(P,), prefill=(P,)))
    assert "it prefills for nobody" in one.what


async def test_a_router_beside_is_asked_whether_it_splits() -> None:
    world = World()
    assert "is not known" in (await world.ask())[-1].what
    world.legs = {"handed_over": 0, "failed": 300, "cheaper_local": 20}
    (one,) = wrong(await world.ask())
    assert "of 320 requests none was prefilled elsewhere, mostly because of failed" in one.what


@pytest.mark.parametrize(
    ("counts", "is_wrong", "said"),
    [
        ({"handed_over": 50, "not_loaded": 0, "failed": 900}, False, "50 prompts"),
        ({"handed_over": 50, "not_loaded": 50, "failed": 0}, False, "yet"),
        ({"handed_over": 500, "not_loaded": 500, "failed": 0}, True, "does not happen"),
        ({"handed_over": 0, "no_params": 10}, False, "yet, of 10 requests"),
        ({"handed_over": 0, "no_prefill_replica": 1000}, True, "because of no_prefill_replica"),
        ({"handed_over": 0, "cheaper_local": 1000}, False, "because of cheaper_local"),
    ],
)
def test_what_a_router_counted(counts: dict[str, float], is_wrong: bool, said: str) -> None:
    (one,) = split(counts)
    assert one.wrong == is_wrong
    assert said in one.what
