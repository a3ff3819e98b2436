"""What connectors say of prefill engines' answers that they cannot hand over."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest

from router.disaggregation import bodies
from router.disaggregation.connector import NoHandOverError
from router.disaggregation.either import Either
from router.disaggregation.mooncake import Mooncake
from router.disaggregation.nixl import Nixl

AT_LIMIT: dict[str, dict[str, Any]] = {
    "chat completions": {"choices": [{"finish_reason": "length", "message": {}}]},
    "completions": {"choices": [{"finish_reason": "length", "text": "a"}]},
    "messages": {"stop_reason": "max_tokens", "content": []},
    "responses": {"incomplete_details": {"reason": "max_output_tokens"}, "output": []},
}
STOPPED: dict[str, dict[str, Any]] = {
    "chat completions": {"choices": [{"finish_reason": "stop", "message": {}}]},
    "completions": {"choices": [{"finish_reason": "stop", "text": ""}]},
    "messages": {"stop_reason": "end_turn", "content": []},
    "responses": {"incomplete_details": None, "output": []},
}
PARAMS = {"kv_transfer_params": {"do_remote_prefill": True, "remote_block_ids": [[1]]}}


class Prefiller(msgspec.Struct):
    name: str = "p:8000"
    host: str = "p"
    rank: int = 0


class Bootstrap:
    """Prefill engines' bootstrap servers: ids by rank; none where there is no server."""

    def __init__(self, **engines: list[str]) -> None:
        self.engines = engines
        self.asked: list[str] = []

    async def get(self, address: str, path: str) -> bytes:
        assert path == "/query"
        self.asked.append(address)
        ids = self.engines.get(address.partition(":")[0])
        if ids is None:
            raise OSError("refused")
        entries = {rank: {"engine_id": name, "worker_addr": {}} for rank, name in enumerate(ids)}
        return json.dumps(entries).encode()


def answer(fields: dict[str, Any]) -> bodies.Prefilled:
    return bodies.read_answer(json.dumps(fields).encode())


@pytest.mark.parametrize("api", AT_LIMIT)
async def test_mooncake_keeps_blocks_of_a_prefill_at_its_limit_only(api: str) -> None:
    mooncake = Mooncake(Bootstrap(p=["e0", "e1"]).get)
    await mooncake.meet(Prefiller())
    told = json.loads(mooncake.telling(answer(AT_LIMIT[api]), "x", Prefiller(rank=1)))
    assert told == {
        "do_remote_decode": False,
        "do_remote_prefill": True,
        "transfer_id": json.loads(mooncake.asking("x"))["transfer_id"],
        "remote_engine_id": "e1",
        "remote_bootstrap_addr": "http://p:8998",
    }
    with pytest.raises(NoHandOverError, match="otherwise than by its limit"):
        mooncake.telling(answer(STOPPED[api]), "x", Prefiller())


async def test_mooncake_asks_a_host_once_and_again_after_a_restart() -> None:
    bootstrap = Bootstrap(p=["old"])
    mooncake = Mooncake(bootstrap.get, 7000)
    for _ in range(2):
        await mooncake.meet(Prefiller())
    assert bootstrap.asked == ["p:7000"]
    bootstrap.engines["p"] = ["new"]
    mooncake.forget("p")
    await mooncake.meet(Prefiller())
    told = mooncake.telling(answer(AT_LIMIT["completions"]), "x", Prefiller())
    assert json.loads(told)["remote_engine_id"] == "new"
    with pytest.raises(NoHandOverError, match="no rank 1"):
        mooncake.telling(answer(AT_LIMIT["completions"]), "x", Prefiller(rank=1))


async def test_auto_takes_each_engine_for_what_it_is() -> None:
    bootstrap = Bootstrap(m=["e"])
    either = Either(Mooncake(bootstrap.get))
    nixl, mooncake = Prefiller(host="n"), Prefiller(host="m")
    for each in (nixl, mooncake, nixl, mooncake):
        await either.meet(each)
    assert len(bootstrap.asked) == 2
    assert json.loads(either.telling(answer(PARAMS), "x", nixl)) == PARAMS["kv_transfer_params"]
    told = json.loads(either.telling(answer(AT_LIMIT["messages"]), "x", mooncake))
    assert told["remote_engine_id"] == "e"
    # Its bootstrap server came up later than the engine: it is asked again.
    bootstrap.engines["n"] = ["late"]
    with pytest.raises(NoHandOverError, match="without kv_transfer_params"):
        either.telling(answer(AT_LIMIT["messages"]), "x", nixl)
    await either.meet(nixl)
    told = json.loads(either.telling(answer(AT_LIMIT["messages"]), "x", nixl))
    assert told["remote_engine_id"] == "late"


@pytest.mark.parametrize("mode", [None, 3, ["push"]])
def test_a_transfer_mode_that_is_no_word_is_handed_on(mode: object) -> None:
    found = answer({"kv_transfer_params": {"transfer_mode": mode}})
    assert json.loads(Nixl().telling(found, "x", Prefiller())) == {"transfer_mode": mode}
