"""The metrics of tenants, as the catalogue lists them."""

from __future__ import annotations

from router.telemetry.metric import Metric

_TENANT = ("tenant",)
REQUESTS = Metric(
    "warmroute_tenant_requests_total",
    "counter",
    "requests",
    "Admitted requests that are over, by tenant.",
    _TENANT,
)
PROMPT = Metric(
    "warmroute_tenant_prompt_tokens_total",
    "counter",
    "tokens",
    "Prompt tokens by tenant, cached ones included, as the engines reported them.",
    _TENANT,
)
CACHED = Metric(
    "warmroute_tenant_cached_tokens_total",
    "counter",
    "tokens",
    "Of these, taken from the KV cache.",
    _TENANT,
)
OUTPUT = Metric(
    "warmroute_tenant_output_tokens_total",
    "counter",
    "tokens",
    "Output tokens by tenant; of an answer broken off, as many as were sent.",
    _TENANT,
)
REFUSED = Metric(
    "warmroute_tenant_refused_total",
    "counter",
    "requests",
    "Requests refused to a tenant, by the limit exceeded or the thing not allowed.",
    ("tenant", "limit"),
)
ISOLATED = Metric(
    "warmroute_tenant_isolated_tokens_total",
    "counter",
    "tokens",
    "What isolation costs: prompt tokens computed that another tenant had sent before, estimated.",
    _TENANT,
)

OF_TENANTS = (REQUESTS, PROMPT, CACHED, OUTPUT, REFUSED, ISOLATED)
