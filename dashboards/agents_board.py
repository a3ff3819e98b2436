"""For who writes agents: what their prompts cost, and why caches miss."""

from __future__ import annotations

from dashboards.panels import Board, Panel, Query, Row, hit_rates, total

MISSED = "warmroute_cache_missed_tokens_total"

BOARD = Board(
    "warmroute-agents",
    "Warmroute: agents",
    "How agents use caches: why tokens are computed again, and hit rates by step. Needs diagnosis.",
    [
        Row(
            "Why caches miss",
            [
                Panel(
                    "Tokens computed again, by reason",
                    "Prompt tokens a second that an earlier request had computed. warmroute audit "
                    "names the prompts and what mends them.",
                    "short",
                    [Query(total(MISSED, "reason"), "{{reason}}")],
                    stacked=True,
                ),
                Panel(
                    "Requests by reason",
                    "Requests a second, by what cost most of their cached tokens. hit and "
                    "never_computed are what should be here.",
                    "reqps",
                    [
                        Query(
                            total("warmroute_cache_diagnosed_requests_total", "reason"),
                            "{{reason}}",
                        )
                    ],
                    stacked=True,
                ),
                Panel(
                    "Prefixes that change in each request",
                    "Tokens a second computed again for a time stamp, a nonce or reordered tools "
                    "at the beginning of prompts. Move it to the end.",
                    "short",
                    [
                        Query(
                            total("warmroute_volatile_prefix_tokens_total", "looks_like"),
                            "{{looks_like}}",
                        )
                    ],
                    stacked=True,
                ),
            ],
        ),
        Row(
            "Sessions",
            [
                Panel(
                    "Hit rate by step",
                    "Share of prompt tokens from cache in the first step of sessions, the second "
                    "and so on. It should rise: where it falls, agents change what they sent.",
                    "percentunit",
                    hit_rates(
                        "step",
                        "warmroute_session_step_cached_tokens_total",
                        "warmroute_session_step_prompt_tokens_total",
                        "step {{step}}",
                    ),
                    most=1,
                ),
                Panel(
                    "Sessions resumed",
                    "Steps a second that went on with an earlier prompt, by whether it was still "
                    "in a cache. gone: pauses are longer than caches hold what they have.",
                    "reqps",
                    [Query(total("warmroute_session_resumed_total", "cache"), "{{cache}}")],
                    stacked=True,
                ),
                Panel(
                    "Tool results",
                    "Bytes a second that tool results add to prompts; about four are a token. "
                    "seen before: the agent asks a tool for the same thing again.",
                    "Bps",
                    [
                        Query(
                            total("warmroute_tool_result_bytes_total", "seen"),
                            "seen before: {{seen}}",
                        )
                    ],
                    stacked=True,
                ),
            ],
        ),
        Row(
            "What agents feel",
            [
                Panel(
                    "Hit rate by model",
                    "Prompt tokens that engines reused, as a share of all. Agents with whole "
                    "histories reach 80 to 95%; below that, look at the reasons above.",
                    "percentunit",
                    hit_rates("model"),
                    most=1,
                ),
                Panel(
                    "Hit rate by tenant",
                    "Share of each tenant's prompt tokens from cache. A low one: its agents' "
                    "prompts change, or isolation keeps it from the caches of others.",
                    "percentunit",
                    hit_rates(
                        "tenant",
                        "warmroute_tenant_cached_tokens_total",
                        "warmroute_tenant_prompt_tokens_total",
                    ),
                    needs="tenants",
                    most=1,
                ),
            ],
        ),
    ],
)
