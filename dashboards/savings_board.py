"""For whoever pays: what caches and routing save, and what other policies would have got."""

from __future__ import annotations

from dashboards.panels import Board, Panel, Query, Row, gauge, hit_rates, pick, total

PREDICTED = "warmroute_shadow_predicted_tokens_total"
DELIVERED = "warmroute_shadow_delivered_tokens_total"
PROMPT = "warmroute_shadow_prompt_tokens_total"

BOARD = Board(
    "warmroute-savings",
    "Warmroute: savings",
    "What prefix caches and routing save. All but the first row needs shadow_policies.",
    [
        Row(
            "Reuse",
            [
                Panel(
                    "Hit rate by model",
                    "Prompt tokens that engines reused, as a share of all. Low: see the gaps on "
                    "the fleet's board, and warmroute audit.",
                    "percentunit",
                    hit_rates("model"),
                    most=1,
                ),
                Panel(
                    "Tokens not computed",
                    "Prompt tokens a second that engines reused instead of computing them.",
                    "short",
                    [Query(total("warmroute_reuse_delivered_tokens_total", "model"), "{{model}}")],
                    stacked=True,
                ),
                Panel(
                    "Replicas saved by reuse",
                    "Seconds of prefill saved in a second: 2 means that two more replicas would "
                    "compute all the time without caches.",
                    "short",
                    [Query(total("warmroute_saved_prefill_seconds_total"), "replicas")],
                ),
            ],
        ),
        Row(
            "Other policies on the same traffic",
            [
                Panel(
                    "Hit rate by policy",
                    "What each policy would have got. The policy in use is among them, and should "
                    "be on top: if another one is, try it.",
                    "percentunit",
                    hit_rates("policy", PREDICTED, PROMPT),
                    most=1,
                ),
                Panel(
                    "Saved by the routing",
                    "Prompt tokens a second that were reused and that each other policy would not "
                    "have found.",
                    "short",
                    [
                        Query(
                            f"{total(DELIVERED, 'policy')} - {total(PREDICTED, 'policy')}",
                            "against {{policy}}",
                        )
                    ],
                    signed=True,
                ),
                Panel(
                    "Expected wait by policy",
                    "Mean seconds until a prompt's prefill would have been done. A policy with a "
                    "high hit rate and a long wait piles requests up.",
                    "s",
                    [
                        Query(
                            f"{total('warmroute_shadow_wait_seconds_total', 'policy')} / "
                            f"{total('warmroute_shadow_requests_total', 'policy')}",
                            "{{policy}}",
                        )
                    ],
                ),
                Panel(
                    "Unevenness by policy",
                    "Uncached tokens of the busiest replica in the last hour, in units of the even "
                    "share. 1 is even.",
                    "short",
                    [
                        Query(
                            f"max by (policy) ({pick('warmroute_shadow_hottest_ratio')})",
                            "{{policy}}",
                        )
                    ],
                ),
                Panel(
                    "Routers whose shadows can be trusted",
                    "Where the shadow of the policy in use agrees with what was delivered. 0: ask "
                    "/shadows why.",
                    "short",
                    [Query(gauge("warmroute_shadow_trusted"), "routers")],
                    moves=False,
                    number=True,
                ),
                Panel(
                    "Left out",
                    "Requests a second that shadows were not told of, because they were behind: "
                    "take policies away, or add routers.",
                    "reqps",
                    [Query(total("warmroute_shadow_left_out_total"), "requests")],
                    moves=False,
                ),
            ],
        ),
    ],
)
