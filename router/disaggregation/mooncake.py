"""vLLM's MooncakeConnector, where the router names the hand-over.

The fields are those of vLLM's own example of a proxy (mooncake_connector_proxy.py in examples of
vllm-project/vllm), and the rest is as in mooncake_connector.py there. The prefill engine's answer
says nothing. Its bootstrap server does: ``GET /query`` has the engine's id for each data-parallel
rank. Blocks are kept for 480 s (``VLLM_MOONCAKE_ABORT_REQUEST_TIMEOUT``) or until they are fetched,
and only for a prefill that its limit of one token has ended: the decode engine would wait for those
of another in vain.

Not tried on an engine: it needs RDMA or a GPU.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from router.disaggregation.bodies import Prefilled
from router.disaggregation.connector import NoHandOverError, Prefiller

PORT: Final = 8998
"""``VLLM_MOONCAKE_BOOTSTRAP_PORT`` where it is not set."""


class _Entry(msgspec.Struct, gc=False):
    engine_id: str


_decode = msgspec.json.Decoder(dict[int, _Entry]).decode
_encode = msgspec.json.Encoder().encode


def transfer_id(transfer: str) -> str:
    """What Mooncake is to call a hand-over."""
    return f"xfer-{transfer}"


class Mooncake:
    """A `Connector`."""

    lease_seconds: Final = 240.0
    names_legs: Final = False

    def __init__(self, get: Callable[[str, str], Awaitable[bytes]], port: int = PORT) -> None:
        """get: reads a path of a host and port. It raises OSError for no usable answer.

        port: the bootstrap servers'.
        """
        self._get = get
        self._port = port
        self._engines: dict[str, dict[int, str]] = {}
        """Engine ids by host and rank."""

    async def meet(self, prefiller: Prefiller) -> None:
        """Ask its bootstrap server for its id. Raises NoHandOverError."""
        host = prefiller.host
        if host in self._engines:
            return
        try:
            found = _decode(await self._get(self._address(host), "/query"))
        except (OSError, msgspec.DecodeError) as error:
            raise NoHandOverError(
                f"has no Mooncake bootstrap server at {self._address(host)} ({error}): start it "
                "with --kv-transfer-config and MooncakeConnector, or set mooncake_port"
            ) from error
        self._engines[host] = {rank: entry.engine_id for rank, entry in found.items()}

    def forget(self, host: str) -> None:
        """Its id is another one after a restart."""
        self._engines.pop(host, None)

    def asking(self, transfer: str) -> bytes:
        """Keep the blocks, under this name."""
        return b'{"do_remote_decode":true,"do_remote_prefill":false,"transfer_id":"%b"}' % (
            transfer_id(transfer).encode()
        )

    def telling(self, answered: Prefilled, transfer: str, prefiller: Prefiller) -> bytes:
        """Whom to ask for what bears the name. Raises NoHandOverError."""
        if not answered.at_limit:
            raise NoHandOverError(
                "ended a prefill otherwise than by its limit of one token, and keeps no blocks "
                "then: nothing to mend"
            )
        engine = self._engines.get(prefiller.host, {}).get(prefiller.rank)
        if engine is None:
            self.forget(prefiller.host)
            raise NoHandOverError(
                f"has no rank {prefiller.rank} at its Mooncake bootstrap server: nothing to mend "
                "if it has just restarted"
            )
        params = {
            "do_remote_decode": False,
            "do_remote_prefill": True,
            "transfer_id": transfer_id(transfer),
            "remote_engine_id": engine,
            "remote_bootstrap_addr": f"http://{self._address(prefiller.host)}",
        }
        return _encode(params)

    def _address(self, host: str) -> str:
        return f"[{host}]:{self._port}" if ":" in host else f"{host}:{self._port}"
