"""vLLM's NixlConnector, where the decode engine pulls the blocks.

The fields and their order are those of vLLM's own example of a proxy
(toy_proxy_server.py in tests/v1/kv_connector/nixl_integration of vllm-project/vllm). The prefill
engine keeps the blocks until the decode engine has read them, or has aborted the request that was
to read them, or until its lease of 30 s (``kv_lease_duration``) is over. Nothing else frees them.
"""

from __future__ import annotations

from typing import Final

import msgspec

from router.disaggregation.bodies import Prefilled
from router.disaggregation.connector import NoHandOverError, Prefiller

_ASK: Final = (
    b'{"do_remote_decode":true,"do_remote_prefill":false,"remote_engine_id":null,'
    b'"remote_block_ids":null,"remote_host":null,"remote_port":null}'
)
"""What tells the prefill engine to keep its blocks for another engine."""
NO_CONNECTOR: Final = (
    "answers without kv_transfer_params: install nixl and nixl-cu12 there and start it with "
    '--kv-transfer-config \'{"kv_connector":"NixlConnector","kv_role":"kv_producer",'
    '"engine_id":"NEW AT EACH START"}\', or take it out of the setting `prefill`'
)


class _Params(msgspec.Struct, gc=False):
    transfer_mode: object = "pull"
    """Whatever an engine puts there; the decode engine judges it."""


_decode = msgspec.json.Decoder(_Params).decode


class Nixl:
    """A `Connector`. The prefill engine names its blocks, itself and the request in its answer,
    which goes to the decode engine as it is."""

    lease_seconds: Final = 20.0
    names_legs = False

    async def meet(self, _: Prefiller) -> None:
        """Its answer will tell all."""

    def forget(self, _: str) -> None:
        """Nothing is known of engines."""

    def asking(self, _: str) -> bytes:
        """Keep the blocks."""
        return _ASK

    def telling(self, answered: Prefilled, _transfer: str, _: Prefiller) -> bytes:
        """Where they are. Raises NoHandOverError."""
        if not answered.params:
            raise NoHandOverError(NO_CONNECTOR)
        if _decode(answered.params).transfer_mode == "push" and not self.names_legs:
            raise NoHandOverError(
                "has a NixlPushConnector, whose engines find each other's requests by their ids: "
                "set kv_connector to nixl_push"
            )
        return answered.params
