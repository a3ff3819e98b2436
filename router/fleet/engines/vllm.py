"""vLLM, compared with 0.32 and 0.33."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from router.fleet.engine_metrics import parse_metrics
from router.fleet.engines.kind import EngineKind

VLLM: Final = EngineKind(
    name="vllm",
    title="vLLM",
    owner="vllm",
    metrics_prefix=b"vllm:",
    parse_metrics=parse_metrics,
    renders=True,
    exact=True,
    drops_billing_line=True,
    metrics_fix="remove --disable-log-stats, let /metrics pass the proxy in front of it, or set "
    "kv_cache_tokens",
    caching_fix="add --enable-prefix-caching (and remove --no-enable-prefix-caching)",
    usage_fix="add --enable-prompt-tokens-details",
    salt_fix="upgrade vLLM to 0.9 or later",
)

UNKNOWN: Final = replace(VLLM, name="")
"""An engine that has not said what it is, or a proxy before one: taken for vLLM."""
