"""SGLang, after the source of its release 0.5.23. It was not tried against a running SGLang.

Metrics: ``srt/observability/metrics_collector.py``. Each scheduler has its own series, by data-
parallel rank; with ``--enable-metrics-for-all-schedulers`` and with priorities several series of
a rank repeat the same requests. Requests that are over are counted by the tokenizer, without a
rank. A counter that is still 0 is not there. No start time is told. Of
LoRA adapters it tells how many its GPU memory has room for (``lora_pool_slots_total``), not which
ones are there.
"""

from __future__ import annotations

from types import MappingProxyType
from typing import Final

from router.fleet.engine_metrics import (
    MAX_RANKS,
    EngineMetrics,
    MetricValues,
    largest,
    metric_values,
    total,
)
from router.fleet.engines.kind import EngineKind

_RANK = b"dp_rank"
_RUNNING = (b"\nsglang:num_running_reqs",)
_WAITING = (b"\nsglang:num_queue_reqs",)
_USAGE = (b"\nsglang:token_usage",)
_TOKENS = (b"\nsglang:max_total_num_tokens",)
_BLOCK = (b"\nsglang:page_size",)
_OFFLOAD = (b"\nsglang:hicache_host_total_tokens",)
_PROMPT_TOKENS = (b"\nsglang:prompt_tokens_total",)
_CACHED = (b"\nsglang:cached_tokens_total",)
_PROMPTS = (b"\nsglang:num_requests_total",)
_ADAPTERS = (b"\nsglang:lora_pool_slots_total",)


def parse_metrics(text: bytes) -> EngineMetrics:
    """Read what is there. `kv_usage` leaves out what is cached and may be evicted, as vLLM's."""
    text = b"\n" + text
    gauges = {
        name: metric_values(text, names, _RANK)
        for name, names in (
            ("running", _RUNNING),
            ("waiting", _WAITING),
            ("usage", _USAGE),
            ("tokens", _TOKENS),
            ("block", _BLOCK),
            ("offload", _OFFLOAD),
            ("adapters", _ADAPTERS),
        )
    }
    names = set(gauges["running"])
    ranks: tuple[EngineMetrics, ...] = ()
    if 1 < len(names) <= MAX_RANKS and all(map(bytes.isdigit, names)):
        ranks = tuple(_reading(gauges, [name]) for name in sorted(names, key=int))
    whole = _reading(gauges, None)
    # So that a counter that has gone shows a restart.
    zero = None if whole.running is None else 0.0
    prompt_tokens, hits, prompts = (
        zero if (count := total(metric_values(text, names, _RANK))) is None else count
        for names in (_PROMPT_TOKENS, _CACHED, _PROMPTS)
    )
    return EngineMetrics(
        running=whole.running,
        waiting=whole.waiting,
        kv_usage=whole.kv_usage,
        queries=prompt_tokens,
        hits=hits,
        prompts=prompts,
        prompt_tokens=prompt_tokens,
        kv_tokens=whole.kv_tokens,
        offload_tokens=whole.offload_tokens,
        block_tokens=whole.block_tokens,
        max_loras=whole.max_loras,
        ranks=ranks,
    )


def _reading(gauges: dict[str, MetricValues], ranks: list[bytes] | None) -> EngineMetrics:
    """What the schedulers of some ranks, or of all, tell."""
    usage = largest(gauges["usage"], ranks)
    tokens = sum(largest(gauges["tokens"], ranks))
    offload = sum(largest(gauges["offload"], ranks))
    block = max(largest(gauges["block"], None), default=0.0)
    adapters = max(largest(gauges["adapters"], None), default=0.0)
    running, waiting = largest(gauges["running"], ranks), largest(gauges["waiting"], ranks)
    return EngineMetrics(
        running=sum(running) if running else None,
        waiting=sum(waiting) if waiting else None,
        kv_usage=sum(usage) / len(usage) if usage else None,
        kv_tokens=int(tokens) or None,
        offload_tokens=int(offload) or None,
        block_tokens=int(block) or None,
        max_loras=int(adapters) or None,
    )


SGLANG: Final = EngineKind(
    name="sglang",
    title="SGLang",
    owner="sglang",
    metrics_prefix=b"sglang:",
    parse_metrics=parse_metrics,
    # /health has one token generated, waits a second, and only then looks whether anything came.
    health_seconds=1.0,
    leaves_zero_out=True,
    paths=MappingProxyType(
        {
            "reset_prefix_cache": "flush_cache",
            "v1/load_lora_adapter": "load_lora_adapter",
            "v1/unload_lora_adapter": "unload_lora_adapter",
        }
    ),
    metrics_fix="add --enable-metrics, let /metrics pass the proxy in front of it, or set "
    "kv_cache_tokens",
    caching_fix="remove --disable-radix-cache",
    usage_fix="add --enable-cache-report",
    salt_fix="upgrade SGLang to a release whose completions take cache_salt",
)
