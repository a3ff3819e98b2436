"""vLLM's NixlConnector, where the decode engine pulls the blocks.

The fields and their order are those of vLLM's own example of a proxy
(toy_proxy_server.py in tests/v1/kv_connector/nixl_integration of vllm-project/vllm). The prefill
engine keeps the blocks until the decode engine has read them, or has aborted the request that was
to read them, or until its lease of 30 s (``kv_lease_duration``) is over. Nothing else frees them.
"""

from __future__ import annotations

from typing import Final

_ASK: Final = (
    b'{"do_remote_decode":true,"do_remote_prefill":false,"remote_engine_id":null,'
    b'"remote_block_ids":null,"remote_host":null,"remote_port":null}'
)
"""What tells the prefill engine to keep its blocks for another engine."""


class Nixl:
    """A `Connector`. The prefill engine names its blocks, itself and the request in its answer,
    which goes to the decode engine as it is."""

    lease_seconds: Final = 20.0

    def asking(self, _: str) -> bytes:
        """Keep the blocks."""
        return _ASK

    def telling(self, answered: bytes, _transfer: str, _host: str) -> bytes:
        """Where they are."""
        return answered
