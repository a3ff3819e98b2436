"""The metrics of diagnosis and audit, as the catalogue lists them."""

from __future__ import annotations

from router.telemetry.metric import Metric

DIAGNOSED = Metric(
    "warmroute_cache_diagnosed_requests_total",
    "counter",
    "requests",
    "Requests whose prompt was compared with the one before, by what cost most of its cached "
    "tokens.",
    ("reason",),
)
UNDIAGNOSED = Metric(
    "warmroute_cache_undiagnosed_requests_total",
    "counter",
    "requests",
    "Requests whose prompt was compared with none, since of more than 500 a second only a share of "
    "the conversations is diagnosed.",
)
MISSED = Metric(
    "warmroute_cache_missed_tokens_total",
    "counter",
    "tokens",
    "Prompt tokens that an earlier request had computed and a later one computed again, by why.",
    ("reason",),
)
STEP_PROMPT = Metric(
    "warmroute_session_step_prompt_tokens_total",
    "counter",
    "tokens",
    "Prompt tokens by the step of a session, of requests whose engine reported cached tokens.",
    ("step",),
)
STEP_CACHED = Metric(
    "warmroute_session_step_cached_tokens_total",
    "counter",
    "tokens",
    "Those of them that engines took from their caches.",
    ("step",),
)
TOOL_BYTES = Metric(
    "warmroute_tool_result_bytes_total",
    "counter",
    "bytes",
    "Canonical bytes of tool results that steps added, about four to a token, by whether the "
    "session had seen the same result before.",
    ("seen",),
)
RESUMED = Metric(
    "warmroute_session_resumed_total",
    "counter",
    "requests",
    "Steps that went on with an earlier prompt as it was, by whether what it computed was still "
    "in a cache.",
    ("cache",),
)
VOLATILE = Metric(
    "warmroute_volatile_prefix_tokens_total",
    "counter",
    "tokens",
    "Prompt tokens computed again for a span at the beginning that is another in each request.",
    ("looks_like",),
)
OF_AUDIT = (DIAGNOSED, UNDIAGNOSED, MISSED, STEP_PROMPT, STEP_CACHED, TOOL_BYTES, RESUMED, VOLATILE)
