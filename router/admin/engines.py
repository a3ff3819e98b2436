"""Calls that change the state of engines: adapters, sleep, caches, weights.

They go to one replica or to all, never through load balancing. Paths are vLLM's (0.32), of which
those outside ``/v1`` exist only in its development mode (``VLLM_SERVER_DEV_MODE=1``), and SGLang's
and TensorRT-LLM's. A path of vLLM's reaches another engine under that engine's own name for it
(``EngineKind.paths``). An engine answers 404 to what it does not have.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Sequence
from typing import Final
from urllib.parse import parse_qs

import httpx
import msgspec

from router.config import Settings
from router.fleet.reader import tls_context
from router.fleet.replica import Replica

MAX_BODY_BYTES: Final = 1024 * 1024
"""Bytes of a request's body."""
MAX_ANSWER_BYTES: Final = 64 * 1024
"""Bytes of an engine's answer that are passed on."""


class Operation(msgspec.Struct, frozen=True):
    """A path that may be called on an engine."""

    path: str
    empties_cache: bool = False
    """Its success leaves the engine with an empty KV cache."""
    changes_models: bool = False
    changes_rest: bool = False
    """It puts the engine to sleep or pauses it, or ends that."""


_PLAIN = (
    "abort_request",
    "abort_requests",
    "begin_weight_update",
    "close_session",
    "collective_rpc",
    "configure_logging",
    "destroy_weights_update_group",
    "end_weight_update",
    "fault_tolerance/apply",
    "finish_weight_update",
    "freeze_gc",
    "init_weight_transfer_engine",
    "init_weights_send_group_for_remote_instance",
    "init_weights_update_group",
    "open_session",
    "reset_encoder_cache",
    "reset_mm_cache",
    "resume_kv_cache_memory",
    "resume_memory",
    "resume_memory_occupation",
    "scale_elastic_ep",
    "send_weights_to_remote_instance",
    "set_internal_state",
    "set_trace_level",
    "shutdown_weight_transfer_engine",
    "slow_down",
    "start_draft_weight_update",
    "start_profile",
    "start_weight_update",
    "stop_profile",
    "update_weight_version",
    "update_weights",
)
_EMPTYING = (
    "flush_cache",
    "release_kv_cache_memory",
    "release_memory",
    "release_memory_occupation",
    "reset_prefix_cache",
    "update_weights_from_disk",
    "update_weights_from_distributed",
    "update_weights_from_ipc",
    "update_weights_from_tensor",
)
OPERATIONS: Final[dict[str, Operation]] = {
    **{path: Operation(path) for path in _PLAIN},
    **{path: Operation(path, empties_cache=True) for path in _EMPTYING},
    **{
        path: Operation(path, empties_cache=True, changes_rest=True)
        for path in ("pause", "pause_generation", "sleep")
    },
    **{
        path: Operation(path, changes_rest=True)
        for path in ("continue_generation", "resume", "wake_up")
    },
    **{
        path: Operation(f"v1/{name}", changes_models=True)
        for name in ("load_lora_adapter", "unload_lora_adapter")
        for path in (name, f"v1/{name}")
    },
}
"""What may be written after /replicas/NAME/ -> what is called."""


class CallResult(msgspec.Struct, omit_defaults=True):
    """What came of a call to one replica."""

    replica: str
    ok: bool
    status: int = 0
    """The engine's HTTP status; 0 when there was no answer."""
    body: msgspec.Raw | str = ""
    """Its answer: JSON as it is, anything else as text."""
    error: str = ""
    """Why there was no answer."""
    emptied: bool = False
    """Its KV cache is taken to be empty now."""


class EngineCalls:
    """POSTs to replicas, with the fleet's own key and CA."""

    def __init__(self, settings: Settings, timeout: float = 300.0) -> None:
        """timeout: seconds a call may take; loading an adapter or weights takes its time."""
        self._settings = settings
        self._timeout = timeout
        self._tls: ssl.SSLContext | None = None

    async def call(
        self, replicas: Sequence[Replica], operation: Operation, query: str, body: bytes
    ) -> list[CallResult]:
        """Call all of them at once. One result for each, in order; failures are results too."""
        return list(await asyncio.gather(*(self._one(r, operation, query, body) for r in replicas)))

    async def _one(
        self, replica: Replica, operation: Operation, query: str, body: bytes
    ) -> CallResult:
        path = replica.kind.paths.get(operation.path, operation.path)
        url = f"{replica.url}/{path}"
        headers = {"user-agent": "warmroute"}
        if body:
            headers["content-type"] = "application/json"
        if self._settings.replica_api_key:
            headers["authorization"] = f"Bearer {self._settings.replica_api_key}"
        result = CallResult(replica.name, ok=False)
        try:
            async with (
                asyncio.timeout(self._timeout),
                httpx.AsyncClient(
                    verify=self._verify(replica), trust_env=False, timeout=self._timeout
                ) as client,
                client.stream(
                    "POST", f"{url}?{query}" if query else url, content=body, headers=headers
                ) as response,
            ):
                result.status = response.status_code
                result.ok = response.is_success
                result.body = _shown(await _read(response))
        except TimeoutError:
            result.error = f"no answer within {self._timeout:g} s"
            result.ok = False
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            result.error = str(error) or type(error).__name__
            result.ok = False
        result.emptied = result.ok and operation.empties_cache and _emptied(result.body, query)
        return result

    def _verify(self, replica: Replica) -> ssl.SSLContext | bool:
        if not replica.tls:
            # Redirects are not followed, so a plain URL stays plain: no CA store need be loaded.
            return False
        if self._tls is None:
            self._tls = tls_context(self._settings)
        return self._tls


async def _read(response: httpx.Response) -> bytes:
    """At most `MOST_ANSWER` bytes."""
    found = bytearray()
    async for chunk in response.aiter_bytes():
        found += chunk
        if len(found) > MAX_ANSWER_BYTES:
            break
    return bytes(found[:MAX_ANSWER_BYTES])


def _shown(body: bytes) -> msgspec.Raw | str:
    if body:
        try:
            msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return body.decode("utf-8", "replace")
        return msgspec.Raw(body)
    return ""


def _emptied(body: msgspec.Raw | str, query: str) -> bool:
    """Whether the cache went.

    A reset answers success=false while blocks are in use; a pause with mode=keep frees nothing.
    """
    if parse_qs(query).get("mode") == ["keep"]:
        return False
    answer = msgspec.json.decode(body) if isinstance(body, msgspec.Raw) else None
    return not (isinstance(answer, dict) and answer.get("success") is False)
