"""TensorRT-LLM's `trtllm-serve`, after its documents and source (``tensorrt_llm/metrics`` and
``tensorrt_llm/serve``). It was not tried against a running one.

``/prometheus/metrics`` is there with ``return_perf_metrics: true``; its gauges of load and cache
need ``enable_iter_perf_stats: true`` too. ``/metrics`` gives the statistics of the iterations since
it was asked last, as a JSON array, which whoever asks takes away from others who ask.
"""

from __future__ import annotations

from typing import Final

import msgspec

from router.fleet.engine_metrics import EngineMetrics, metric_values, total
from router.fleet.engines.kind import EngineKind

_RANK = b"engine"
_NAMES: Final = {
    "running": b"\ntrtllm_num_requests_running",
    "waiting": b"\ntrtllm_num_requests_waiting",
    "usage": b"\ntrtllm_kv_cache_utilization",
    "prompt_tokens": b"\ntrtllm_prompt_tokens_total",
    "cached": b"\ntrtllm_prompt_cached_tokens_total",
    "prompts": b"\ntrtllm_request_success_total",
    "blocks": b"\ntrtllm_kv_cache_max_blocks",
    "block": b"\ntrtllm_kv_cache_tokens_per_block",
    "reused": b"\ntrtllm_kv_cache_reused_blocks_total",
    "missed": b"\ntrtllm_kv_cache_missed_blocks_total",
}


class _Cache(msgspec.Struct, rename="camel"):
    used_num_blocks: float | None = None
    max_num_blocks: float | None = None
    tokens_per_block: float | None = None
    reused_blocks: float | None = None
    missed_blocks: float | None = None


class _Iteration(msgspec.Struct, rename="camel"):
    num_active_requests: float | None = None
    num_queued_requests: float | None = None
    kv_cache_stats: _Cache | None = None


_decode = msgspec.json.Decoder(list[_Iteration])


def parse_metrics(text: bytes) -> EngineMetrics:
    """Read either form: Prometheus' text, or the JSON of iterations."""
    if text.lstrip()[:1] == b"[":
        return _parse_iterations(text)
    text = b"\n" + text
    told = {name: total(metric_values(text, (start,), _RANK)) for name, start in _NAMES.items()}
    prompt_tokens, cached = told["prompt_tokens"], told["cached"]
    if prompt_tokens is None:
        prompt_tokens, cached = _tokens(told["reused"], told["missed"], told["block"])
    if told["running"] is not None:
        # A counter that is still 0 is not there; one that has gone shows a restart.
        prompt_tokens, cached = prompt_tokens or 0.0, cached or 0.0
    blocks = told["blocks"]
    return EngineMetrics(
        running=told["running"],
        waiting=told["waiting"],
        kv_usage=told["usage"],
        queries=prompt_tokens,
        hits=cached,
        prompts=told["prompts"],
        prompt_tokens=told["prompt_tokens"],
        kv_tokens=int((blocks or 0.0) * (told["block"] or 0.0)) or None,
        block_tokens=int(told["block"] or 0.0) or None,
    )


def _parse_iterations(text: bytes) -> EngineMetrics:
    try:
        iterations = _decode.decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return EngineMetrics()
    if not iterations:
        # Nothing was computed since the last reading.
        return EngineMetrics(running=0.0, waiting=0.0)
    last = iterations[-1]
    cache = last.kv_cache_stats or _Cache()
    block = cache.tokens_per_block
    queries, hits = _tokens(cache.reused_blocks, cache.missed_blocks, block)
    blocks, used = cache.max_num_blocks, cache.used_num_blocks
    return EngineMetrics(
        running=last.num_active_requests,
        waiting=last.num_queued_requests,
        kv_usage=used / blocks if blocks and used is not None else None,
        queries=queries,
        hits=hits,
        kv_tokens=int((blocks or 0.0) * (block or 0.0)) or None,
        block_tokens=int(block or 0.0) or None,
    )


def _tokens(
    reused: float | None, missed: float | None, block: float | None
) -> tuple[float | None, float | None]:
    """(looked up, found) in tokens, from counts of blocks."""
    if reused is None and missed is None:
        return None, None
    hits = (reused or 0.0) * (block or 1.0)
    return hits + (missed or 0.0) * (block or 1.0), hits


TRTLLM: Final = EngineKind(
    name="trtllm",
    title="TensorRT-LLM",
    owner="tensorrt_llm",
    metrics_prefix=b"trtllm_",
    parse_metrics=parse_metrics,
    metrics_paths=("/prometheus/metrics", "/metrics"),
    # /metrics waits so long for a further iteration before it answers.
    metrics_seconds=2.0,
    metrics_fix="set return_perf_metrics: true and enable_iter_perf_stats: true in its --config "
    "file, or set kv_cache_tokens",
    caching_fix="set kv_cache_config: {enable_block_reuse: true} in its --config file",
    usage_fix="upgrade TensorRT-LLM to a release whose usage has prompt_tokens_details",
    salt_fix="upgrade TensorRT-LLM to a release that takes cache_salt in this API",
)
