"""For whoever works on the router: what it costs, what it holds, what routers tell each other."""

from __future__ import annotations

from dashboards.panels import RATE, Board, Panel, Query, Row, pick, quantiles, total

LOST = pick("warmroute_reuse_gap_tokens_total", 'gap=~"rendered_differently|stale_index|eviction"')


def each(metric: str) -> list[Query]:
    """A gauge of every router."""
    return [Query(pick(metric), "{{instance}}")]


def rate(metric: str) -> list[Query]:
    """A counter of every router."""
    return [Query(f"rate({pick(metric)}{RATE})", "{{instance}}")]


BOARD = Board(
    "warmroute-developer",
    "Warmroute: router",
    "The router's own cost, its index, its decisions, and what routers tell each other.",
    [
        Row(
            "Cost",
            [
                Panel(
                    "CPU",
                    "Seconds of CPU a second. One process has one event loop: near 1 for each "
                    "worker it is the bottleneck; add routers or workers.",
                    "short",
                    rate("process_cpu_seconds_total"),
                ),
                Panel(
                    "CPU of a request",
                    "CPU seconds by requests ended. Above a millisecond with short prompts: "
                    "profile it, and look whether the access log or the admin port are to blame.",
                    "s",
                    [
                        Query(
                            total("process_cpu_seconds_total")
                            + " / "
                            + total("warmroute_requests_total"),
                            "CPU seconds",
                        )
                    ],
                ),
                Panel(
                    "Overhead",
                    "From a request's last byte to the first byte sent to the replica: parsing, "
                    "hashing, lookup, choice. Rising with CPU near 1: saturated.",
                    "s",
                    quantiles("warmroute_overhead_seconds"),
                ),
                Panel(
                    "Memory",
                    "Resident. It holds the index and the bodies in flight; growth beyond these "
                    "is a leak to report.",
                    "bytes",
                    each("process_resident_memory_bytes"),
                    # It may well stand still: freed memory is kept.
                    moves=False,
                ),
                Panel(
                    "Bodies in memory",
                    "Request bodies held. Near body_memory, new requests are answered 503.",
                    "bytes",
                    each("warmroute_body_bytes"),
                    moves=False,
                ),
                Panel(
                    "Open files",
                    "About two for each request in flight. Near process_max_fds: raise the limit.",
                    "short",
                    each("process_open_fds"),
                ),
            ],
        ),
        Row(
            "Index",
            [
                Panel(
                    "Blocks",
                    "Distinct prompt blocks known. It levels off when the modelled caches are "
                    "full; a fall is a replica that left or restarted.",
                    "short",
                    each("warmroute_index_blocks"),
                ),
                Panel(
                    "Index memory",
                    "Estimated. It is bounded by the replicas' caches; see the alert before the "
                    "container's memory limit is near.",
                    "bytes",
                    each("warmroute_index_bytes"),
                ),
                Panel(
                    "Share of each cache",
                    "How full each replica's cache is in the model. Not like "
                    "vllm:kv_cache_usage_perc after hours: the capacity or bytes per token are "
                    "misjudged.",
                    "percentunit",
                    [Query(pick("warmroute_index_share"), "{{instance}} {{replica}}")],
                    most=1,
                ),
                Panel(
                    "Tokens promised and not delivered",
                    "stale_index: the index was wrong. rendered_differently: the chat template "
                    "orders "
                    "prompts in another way than is thought. eviction: the cache was full. "
                    "surplus: "
                    "more came than was promised. A steady stale_index: engines evict earlier "
                    "than modelled, or another client empties the caches.",
                    "short",
                    [
                        Query(
                            f"sum by (gap) (rate({LOST}{RATE}))",
                            "{{gap}}",
                        ),
                        Query(total("warmroute_reuse_surplus_tokens_total"), "surplus"),
                    ],
                    moves=False,
                ),
                Panel(
                    "Decisions",
                    "By the policy's reason. Many spills: holders are too busy, or the policy "
                    "judges them so; compare with load_shed.",
                    "reqps",
                    [
                        Query(
                            total("warmroute_decisions_total", "policy, reason"),
                            "{{policy}} {{reason}}",
                        )
                    ],
                    stacked=True,
                ),
                Panel(
                    "Breakers",
                    "Replicas by the state of their breaker. Not closed: requests failed there in "
                    "a row; see failed attempts.",
                    "short",
                    [
                        Query(
                            "count by (state) (max by (replica, state) "
                            f"({pick('warmroute_breaker_state')}))",
                            "{{state}}",
                        )
                    ],
                    moves=False,
                    stacked=True,
                ),
            ],
        ),
        Row(
            "Connections",
            [
                Panel(
                    "Client connections",
                    "Open, busy or idle. Near max_connections, new ones are answered 503: raise "
                    "it, or add routers.",
                    "short",
                    each("warmroute_client_connections"),
                ),
                Panel(
                    "Streams",
                    "Answers being relayed as they come. None while there is load: clients do not "
                    "ask for streams, or nothing answers.",
                    "short",
                    each("warmroute_open_streams"),
                ),
                Panel(
                    "Access log lines lost",
                    "Not 0: whoever reads the log is too slow; log a smaller share (access_log).",
                    "short",
                    rate("warmroute_access_log_dropped_total"),
                    moves=False,
                ),
            ],
        ),
        Row(
            "Exact mode",
            [
                Panel(
                    "Known of each cache",
                    "How much of what a replica holds is known from its KV events. Below 1 for "
                    "long: events are lost or replays do not reach back; see the faults beside.",
                    "percentunit",
                    [Query(pick("warmroute_exact_confidence"), "{{instance}} {{replica}}")],
                    moves=False,
                    needs="exact",
                    most=1,
                ),
                Panel(
                    "Prompts",
                    "exact: tokenised and matched with the engines' own blocks. Anything else is "
                    "why a prompt was left to the byte index; docs/reference/metrics.md has the "
                    "words.",
                    "reqps",
                    [Query(total("warmroute_exact_prompts_total", "result"), "{{result}}")],
                    needs="exact",
                    stacked=True,
                ),
                Panel(
                    "Event faults",
                    "Gaps, restarts, histories that are gone, unreadable batches. Gaps that stay: "
                    "the router is too busy, or the network loses messages.",
                    "short",
                    [
                        Query(
                            total("warmroute_exact_event_faults_total", "replica, fault"),
                            "{{replica}} {{fault}}",
                        )
                    ],
                    moves=False,
                    needs="exact",
                    stacked=True,
                ),
            ],
        ),
        Row(
            "Between routers",
            [
                Panel(
                    "Lag",
                    "From a batch told to its coming back through Redis. Above a second: Redis or "
                    "the network is slow, and routers choose by old news.",
                    "s",
                    each("warmroute_state_lag_seconds"),
                    moves=False,
                ),
                Panel(
                    "Facts told and heard",
                    "Told but not heard by the others: they are on another Redis, or another "
                    "prefix.",
                    "short",
                    [
                        Query(total("warmroute_state_facts_sent_total"), "told"),
                        Query(total("warmroute_state_facts_received_total"), "heard"),
                        Query(total("warmroute_state_facts_dropped_total"), "dropped"),
                    ],
                    moves=False,
                ),
                Panel(
                    "Shared, current",
                    "1: state is shared, and replicas are as discovery has them. 0: on its own, "
                    "see the log for Redis or the API server.",
                    "short",
                    [
                        Query(f"min({pick('warmroute_state_up')})", "state"),
                        Query(f"min({pick('warmroute_discovery_current')})", "discovery"),
                        Query(total("warmroute_state_errors_total"), "Redis errors a second"),
                    ],
                    moves=False,
                ),
            ],
        ),
    ],
)
