"""For whoever runs the fleet: is it well, does it reuse, what does it save."""

from __future__ import annotations

from dashboards.panels import (
    DELIVERED,
    LEDGER,
    RATE,
    Board,
    Panel,
    Query,
    Row,
    failures,
    gauge,
    hit_rates,
    pick,
    quantile,
    quantiles,
    share,
    total,
)

_HANDED = pick("warmroute_prefill_legs_total", 'outcome="handed_over"')
HANDED_OVER = f"sum (rate({_HANDED}{RATE}))"
LEVELS = ("available", "chosen", "predicted", "delivered")

BOARD = Board(
    "warmroute-operator",
    "Warmroute: fleet",
    "Hit rates against what was available, latency, load, errors, and what reuse saved.",
    [
        Row(
            "Now",
            [
                Panel(
                    "Hit rate",
                    "Share of prompt tokens that came from the replicas' KV caches. No data: the "
                    "engines do not report cached tokens, start vLLM with "
                    "--enable-prompt-tokens-details. Low: look at the gap below.",
                    "percentunit",
                    [Query(share(DELIVERED, LEDGER), "delivered")],
                    number=True,
                    width=4,
                ),
                Panel(
                    "Available",
                    "Share of prompt tokens that some replica held. It bounds the hit rate. Low "
                    "by itself: prompts share little, or the caches are too small for the working "
                    "set.",
                    "percentunit",
                    [Query(share("warmroute_reuse_available_tokens_total", LEDGER), "available")],
                    number=True,
                    width=4,
                ),
                Panel(
                    "Tokens saved",
                    "Prompt tokens a second that no replica had to compute again. It falls with "
                    "the hit rate and with traffic.",
                    "short",
                    [Query(total(DELIVERED), "tokens/s")],
                    number=True,
                    width=4,
                ),
                Panel(
                    "Requests",
                    "Requests a second that ended, well or not. None: clients do not reach the "
                    "gateway, look at the Service and at readiness.",
                    "reqps",
                    [Query(total("warmroute_requests_total"), "requests/s")],
                    number=True,
                    width=4,
                ),
                Panel(
                    "Failed",
                    "Share of requests that the gateway or an engine failed; what clients gave up "
                    "or wrote wrongly is not among these. Above a few per cent: see errors by "
                    "reason.",
                    "percentunit",
                    [Query(f"{failures()} / {total('warmroute_requests_total')}", "failed")],
                    number=True,
                    width=4,
                ),
                Panel(
                    "Replicas in use",
                    "Replicas that may be sent requests, as the router that sees fewest has it. "
                    "Fewer than expected: see the states below and /replicas on the admin port.",
                    "short",
                    [
                        Query(
                            'min(sum by (instance) (warmroute_replica_usable{job=~"$job"}))',
                            "usable",
                        )
                    ],
                    moves=False,
                    number=True,
                    width=4,
                ),
            ],
        ),
        Row(
            "Reuse",
            [
                Panel(
                    "Hit rate against what was available",
                    "Available: some replica held it. Chosen: the replica chosen held it. "
                    "Predicted: what an engine can deliver of that. Delivered: what it did. "
                    "Delivered below predicted: the index is wrong, or engines evict early. "
                    "Chosen far below available: the holders are too busy.",
                    "percentunit",
                    [
                        Query(share(f"warmroute_reuse_{level}_tokens_total", LEDGER), level)
                        for level in LEVELS
                    ],
                    most=1,
                ),
                Panel(
                    "Hit rate of each replica",
                    "One far below the others has lost its cache (restart), has a smaller one, or "
                    "serves other prompts. Prefix caching may be off there.",
                    "percentunit",
                    hit_rates("replica"),
                    most=1,
                ),
                Panel(
                    "Where reuse is lost",
                    "no_holder: new text or forgotten by all. load_shed: the holder was too busy. "
                    "stale_index: promised and not there. rendered_differently: the same, where "
                    "chat templates differ. eviction: the same, with a full cache: "
                    "add replicas or KV cache. rounding: whole blocks only, nothing to do.",
                    "short",
                    [Query(total("warmroute_reuse_gap_tokens_total", "gap"), "{{gap}}")],
                    stacked=True,
                ),
                Panel(
                    "Prompt tokens computed and saved",
                    "Computed: what the engines had to prefill. Saved: taken from their caches. "
                    "Not reported: engines that do not tell; start them with "
                    "--enable-prompt-tokens-details.",
                    "short",
                    [
                        Query(f"{total(LEDGER)} - {total(DELIVERED)}", "computed"),
                        Query(total(DELIVERED), "saved"),
                        Query(
                            total("warmroute_reuse_unreported_prompt_tokens_total"),
                            "not reported",
                        ),
                    ],
                    stacked=True,
                ),
                Panel(
                    "Output tokens",
                    "Tokens a second that the engines generated, by replica. Uneven lines are not "
                    "wrong: requests go where their prefix is.",
                    "short",
                    [Query(total("warmroute_output_tokens_total", "replica"), "{{replica}}")],
                    stacked=True,
                ),
                Panel(
                    "KV caches, as modelled",
                    "How full each replica's cache is believed to be. All at 1 and much eviction "
                    "in the gap: the working set is larger than the caches.",
                    "percentunit",
                    [Query('max by (replica) (warmroute_index_share{job=~"$job"})', "{{replica}}")],
                    most=1,
                ),
            ],
        ),
        Row(
            "Latency",
            [
                Panel(
                    "Time to first token",
                    "Of streamed requests, as the gateway saw it. Rising with queued tokens: the "
                    "fleet is saturated. Rising without: look at the replicas one by one.",
                    "s",
                    quantiles("warmroute_ttft_seconds"),
                ),
                Panel(
                    "Time to first token of each replica (p95)",
                    "One above the others is slower, or has taken too much: see its queue.",
                    "s",
                    [Query(quantile(0.95, "warmroute_ttft_seconds", "replica"), "{{replica}}")],
                ),
                Panel(
                    "Request duration",
                    "Whole answers. It follows the answers' length more than anything else.",
                    "s",
                    quantiles("warmroute_request_duration_seconds"),
                ),
            ],
        ),
        Row(
            "Load",
            [
                Panel(
                    "Requests in flight",
                    "By replica. All high together: add replicas. One high: it holds what many "
                    "ask for, or it hangs.",
                    "short",
                    [Query(gauge("warmroute_in_flight", "replica"), "{{replica}}")],
                    stacked=True,
                ),
                Panel(
                    "Queued prompt tokens",
                    "Uncached tokens routed to a replica whose first token has not come: prefill "
                    "work that waits. When even the shortest queue stays long, add replicas.",
                    "short",
                    [Query(gauge("warmroute_queued_tokens", "replica"), "{{replica}}")],
                    stacked=True,
                ),
                Panel(
                    "Requests by status",
                    "4xx are clients' mistakes, 5xx the fleet's. 503: no usable replica or too "
                    "many connections. 0: the client left before an answer.",
                    "reqps",
                    [Query(total("warmroute_requests_total", "code"), "{{code}}")],
                    stacked=True,
                ),
            ],
        ),
        Row(
            "Queue",
            [
                Panel(
                    "Requests that wait",
                    "door: new sessions, while those in progress want the KV memory. lane: what "
                    "is behind others at its replica, by priority.",
                    "short",
                    [
                        Query(
                            gauge("warmroute_queue_waiting", "where, priority"),
                            "{{where}}, {{priority}}",
                        )
                    ],
                    stacked=True,
                    moves=False,
                ),
                Panel(
                    "Seconds of work that waits",
                    "Prefill that waits, in seconds of one replica's time. Above 0 for long: add "
                    "replicas.",
                    "s",
                    [Query(gauge("warmroute_queue_work_seconds"), "work")],
                    moves=False,
                ),
                Panel(
                    "KV memory that sessions want",
                    "By replica. At queue_door new sessions wait. Far above 1: sessions evict each "
                    "other, and a collapse is ahead.",
                    "percentunit",
                    [
                        Query(
                            'max by (replica) (warmroute_session_kv_wanted_ratio{job=~"$job"})',
                            "{{replica}}",
                        )
                    ],
                ),
                Panel(
                    "Reuse that sessions lost",
                    "Prompt tokens a second, computed again for sessions that came back in time. "
                    "evicted rises before a collapse: lower queue_door, or add replicas. waited: "
                    "it was evicted while the request was in the queue.",
                    "short",
                    [
                        Query(
                            total("warmroute_session_reuse_lost_tokens_total", "reason"),
                            "{{reason}}",
                        )
                    ],
                    stacked=True,
                    moves=False,
                ),
                Panel(
                    "What became of requests at the queue",
                    "refused, expired: clients were told to come again. gone: they left before. "
                    "Below capacity all but a few are direct.",
                    "reqps",
                    [Query(total("warmroute_queue_outcomes_total", "outcome"), "{{outcome}}")],
                    stacked=True,
                ),
            ],
        ),
        Row(
            "Overflow",
            [
                Panel(
                    "Requests that left the fleet",
                    "A second, by why. no_replica: see the states below. late, coldest: first "
                    "tokens would have come after overflow_ttft or a client's limit. full, "
                    "expired: the queue would have refused them. For long: add replicas.",
                    "reqps",
                    [Query(total("warmroute_overflow_requests_total", "why"), "{{why}}")],
                    stacked=True,
                    needs="overflow",
                ),
                Panel(
                    "Spent of today's budget",
                    "By target, since midnight UTC. At 1 nothing more goes there until then: "
                    "requests wait or are refused as without overflow.",
                    "percentunit",
                    [
                        Query(
                            'max by (target) (warmroute_overflow_spent_money{job=~"$job"} '
                            '/ warmroute_overflow_budget_money{job=~"$job"})',
                            "{{target}}",
                        )
                    ],
                    needs="overflow",
                ),
                Panel(
                    "Targets that failed",
                    "Requests a second that a target did not answer, so that the next one or "
                    "nobody did. Read the log: a wrong key and an account's limit show there.",
                    "reqps",
                    [Query(total("warmroute_overflow_failed_total", "target"), "{{target}}")],
                    stacked=True,
                    needs="overflow",
                ),
            ],
        ),
        Row(
            "Prefill and decode",
            [
                Panel(
                    "What became of first legs",
                    "Requests a second, of those that might have been prefilled elsewhere. Only "
                    "handed_over used another replica's prefill. no_params: prefill engines have "
                    "no connector. failed, not_loaded: see failed attempts, and run warmroute "
                    "doctor. cheaper_local: decode replicas are not busy enough for it to pay.",
                    "reqps",
                    [Query(total("warmroute_prefill_legs_total", "outcome"), "{{outcome}}")],
                    stacked=True,
                    needs="prefill",
                ),
                Panel(
                    "Time of a first leg",
                    "Mean seconds from its begin until the decode replica could be told where the "
                    "blocks are. Rising: prefill replicas have too much to do, add some.",
                    "s",
                    [
                        Query(
                            f"{total('warmroute_prefill_leg_seconds_total')} / {HANDED_OVER}",
                            "first leg",
                        )
                    ],
                    needs="prefill",
                ),
                Panel(
                    "Tokens moved",
                    "Prompt tokens a second that decode replicas lacked and were told to fetch. "
                    "0 while requests come: nothing is split, see the legs' outcomes.",
                    "short",
                    [Query(total("warmroute_prefill_moved_tokens_total"), "tokens/s")],
                    needs="prefill",
                ),
                Panel(
                    "Transfer of 1,000 tokens",
                    "The learned time from telling the decode replica to its first token. Rising: "
                    "the network between engines, or decode replicas that are slow to begin.",
                    "s",
                    [
                        Query(
                            "1000 * max by (instance) "
                            '(warmroute_prefill_transfer_seconds_per_token{job=~"$job"})',
                            "{{instance}}",
                        )
                    ],
                    needs="prefill",
                ),
            ],
        ),
        Row(
            "Tenants",
            [
                Panel(
                    "Tokens by tenant",
                    "Prompt and answer tokens a second, of the tenants that use most; the rest is "
                    "other. One far above the others: see its limits.",
                    "short",
                    [
                        Query(
                            f"{total('warmroute_tenant_prompt_tokens_total', 'tenant')} + "
                            f"{total('warmroute_tenant_output_tokens_total', 'tenant')}",
                            "{{tenant}}",
                        )
                    ],
                    stacked=True,
                    needs="tenants",
                ),
                Panel(
                    "Refusals by limit",
                    "Requests a second that were refused, by the limit or by what is not allowed. "
                    "Steady for one tenant: raise its limit, or tell it to send less. "
                    "without_redis: limits could not be checked.",
                    "reqps",
                    [
                        Query(
                            total("warmroute_tenant_refused_total", "tenant, limit"),
                            "{{tenant}}, {{limit}}",
                        )
                    ],
                    stacked=True,
                    needs="tenants",
                ),
                Panel(
                    "What isolation costs",
                    "Prompt tokens a second that were computed although another tenant had sent "
                    "them before, estimated. High: see public_prompts.",
                    "short",
                    [
                        Query(
                            total("warmroute_tenant_isolated_tokens_total", "tenant"), "{{tenant}}"
                        )
                    ],
                    stacked=True,
                    needs="isolation",
                ),
            ],
        ),
        Row(
            "Errors",
            [
                Panel(
                    "Errors by reason",
                    "connect and timeout_*: replicas or the network. upstream_5xx: the engines' "
                    "own. client_*: clients left or were slow, no failure of ours. no_replica: see "
                    "states.",
                    "reqps",
                    [Query(total("warmroute_request_errors_total", "reason"), "{{reason}}")],
                    stacked=True,
                ),
                Panel(
                    "Failed attempts and retries",
                    "Attempts that failed at a replica, and retries that hid some of them from "
                    "clients. One replica at fault: drain it and look at its log.",
                    "reqps",
                    [
                        Query(total("warmroute_attempts_failed_total", "replica"), "{{replica}}"),
                        Query(total("warmroute_retries_total"), "retries"),
                    ],
                ),
                Panel(
                    "Replicas by state",
                    "unhealthy: its health check fails, the log says how. draining: on its way "
                    "out, or drained by an operator. starting: never ready since it came.",
                    "short",
                    [
                        Query(
                            "count by (state) (max by (replica, state) "
                            '(warmroute_replica_state{job=~"$job"}))',
                            "{{state}}",
                        )
                    ],
                    moves=False,
                    stacked=True,
                ),
            ],
        ),
    ],
)
