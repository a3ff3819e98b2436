"""The surface of TensorRT-LLM's ``trtllm-serve``, from its documents and source, not compared with
a running one.

As if started with ``return_perf_metrics`` and ``enable_iter_perf_stats``. Its ``/metrics`` tells
the present moment as one iteration, and no iteration while nothing runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from loadgen.replicas.openai_wording import ChatFormat, CompletionsFormat
from loadgen.replicas.routes import GENERATING, ROUTES, Route
from loadgen.replicas.surface import Surface

if TYPE_CHECKING:
    from loadgen.replicas.connection import Connection
    from loadgen.replicas.faults import Received
    from loadgen.replicas.replica import Replica

VERSION = "1.3.0"
_encode = msgspec.json.encode
_NOT_THERE = frozenset(("system_fingerprint", "prompt_token_ids", "prompt_text"))


class TRTLLMChat(ChatFormat):
    """Its chat completions: OpenAI's fields alone."""

    def chunk(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        kept = {name: value for name, value in more.items() if name not in _NOT_THERE}
        return super().chunk(choices, **kept)


class TRTLLMCompletions(CompletionsFormat):
    """Its plain completions."""

    def chunk(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        kept = {name: value for name, value in more.items() if name not in _NOT_THERE}
        return super().chunk(choices, **kept)


def _models(replica: Replica, connection: Connection, _: Received) -> None:
    card = {
        "id": replica.model,
        "object": "model",
        "created": int(replica.start_time),
        "owned_by": "tensorrt_llm",
    }
    connection.reply(200, _encode({"object": "list", "data": [card]}))


def _version(_replica: Replica, connection: Connection, _: Received) -> None:
    connection.reply(200, _encode({"version": VERSION}))


def _iterations(replica: Replica, connection: Connection, _: Received) -> None:
    engine, params, counters = replica.engine, replica.params, replica.engine.counters
    size = params.block_size
    used = round(engine.kv_usage * params.num_blocks)
    missed = (counters.prefix_queries - counters.prefix_hits) // size
    cache = {
        "allocTotalBlocks": used,
        "cacheHitRate": counters.prefix_hits / max(1, counters.prefix_queries),
        "freeNumBlocks": params.num_blocks - used,
        "maxNumBlocks": params.num_blocks,
        "missedBlocks": missed,
        "reusedBlocks": counters.prefix_hits // size,
        "tokensPerBlock": size,
        "usedNumBlocks": used,
    }
    iteration = {
        "iter": 1,
        "numActiveRequests": len(engine.running),
        "numQueuedRequests": len(engine.waiting),
        "kvCacheStats": cache,
    }
    connection.reply(200, _encode([] if engine.idle else [iteration]))


def _prometheus(replica: Replica, connection: Connection, _: Received) -> None:
    engine, params, counters = replica.engine, replica.params, replica.engine.counters
    labels = 'engine_type="undefined",model_name="undefined"'
    out: list[str] = []
    for name, value in (
        ("num_requests_running", len(engine.running)),
        ("num_requests_waiting", len(engine.waiting)),
        ("kv_cache_utilization", engine.kv_usage),
        ("kv_cache_hit_rate", counters.prefix_hits / max(1, counters.prefix_queries)),
        ("kv_cache_max_blocks", params.num_blocks),
        ("kv_cache_tokens_per_block", params.block_size),
    ):
        out += [f"# TYPE trtllm_{name} gauge", f"trtllm_{name}{{{labels}}} {float(value)}"]
    reasons = replica.metrics.finished.items()
    counts = [
        ("prompt_tokens_total", counters.prompt_tokens, ""),
        ("prompt_cached_tokens_total", counters.prompt_tokens_cached, ""),
        ("generation_tokens_total", counters.generation_tokens, ""),
        *(("request_success_total", count, f',finished_reason="{why}"') for why, count in reasons),
    ]
    for name, value, more in counts:
        if value:
            out.append(f"trtllm_{name}{{{labels}{more}}} {float(value)}")
    text = "\n".join(out) + "\n"
    connection.reply(200, text.encode(), "text/plain; version=0.0.4; charset=utf-8")


TRTLLM = Surface(
    name="trtllm",
    origin="from TensorRT-LLM's documents and source, not compared with a running one",
    routes={
        "/health": ROUTES["/health"],
        "/health_generate": ROUTES["/health"],
        "/version": Route(("GET",), _version),
        "/v1/models": Route(("GET",), _models),
        "/metrics": Route(("GET",), _iterations),
        "/prometheus/metrics": Route(("GET",), _prometheus),
        "/_sim/fault": ROUTES["/_sim/fault"],
    },
    generating={
        "/v1/chat/completions": (GENERATING["/v1/chat/completions"][0], TRTLLMChat, "chatcmpl-"),
        "/v1/completions": (GENERATING["/v1/completions"][0], TRTLLMCompletions, "cmpl-"),
        "/v1/responses": GENERATING["/v1/responses"],
    },
    object_errors=True,
)
