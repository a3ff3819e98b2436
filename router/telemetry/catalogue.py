"""Every metric there is, in the order they are shown.

``router.telemetry.metrics_page`` makes docs/reference/metrics.md from this table.
"""

from __future__ import annotations

from router.telemetry.audit_metrics import OF_AUDIT
from router.telemetry.metric import Metric
from router.telemetry.overflow_metrics import OF_OVERFLOW
from router.telemetry.queue_metrics import OF_QUEUE
from router.telemetry.tenant_metrics import OF_TENANTS

_SERIES = ("replica", "model")
_ROW = ("replica", "model", "api")
_REPLICA = ("replica",)

REQUESTS = Metric(
    "warmroute_requests_total",
    "counter",
    "requests",
    "Finished requests by the HTTP status sent to the client. Code 0: no answer was sent.",
    (*_ROW, "code"),
)
ERRORS = Metric(
    "warmroute_request_errors_total",
    "counter",
    "requests",
    "Finished requests that failed, by reason.",
    (*_ROW, "reason"),
)
ATTEMPTS = Metric(
    "warmroute_attempts_failed_total",
    "counter",
    "attempts",
    "Attempts at a replica that failed, including those that a retry made up for.",
    ("replica", "reason"),
)
RETRIES = Metric(
    "warmroute_retries_total",
    "counter",
    "attempts",
    "Attempts after the first attempt of a request.",
)
SERVED_BY = Metric(
    "warmroute_picker_served_total",
    "counter",
    "answers",
    "Endpoint picker: answers by the endpoint that gave them, as the data plane tells it. `first`: "
    "the picker's choice. `fallback`: a later one of its list. `other`: one that it did not name; "
    "the data plane then does not follow the picker.",
    ("endpoint",),
)
PREFILL_LEGS = Metric(
    "warmroute_prefill_legs_total",
    "counter",
    "requests",
    "With prefill replicas: what became of the first leg of requests. Only `handed_over` used "
    "another replica's blocks; `stranded` ones are held there until their lease ends.",
    ("outcome",),
)
PREFILL_SECONDS = Metric(
    "warmroute_prefill_leg_seconds_total",
    "counter",
    "seconds",
    "With prefill replicas: time of first legs whose blocks were handed over.",
)
PREFILL_TOKENS = Metric(
    "warmroute_prefill_moved_tokens_total",
    "counter",
    "tokens",
    "With prefill replicas: estimated prompt tokens that decode replicas lacked and were told to "
    "fetch.",
)
TRANSFER_SECONDS = Metric(
    "warmroute_prefill_transfer_seconds_per_token",
    "gauge",
    "seconds",
    "With prefill replicas: the learned time from handing over to the first token, for each token "
    "moved.",
)
DECISIONS = Metric(
    "warmroute_decisions_total",
    "counter",
    "requests",
    "Placements by policy and by the reason that the policy gave.",
    ("policy", "reason"),
)
TTFT = Metric(
    "warmroute_ttft_seconds",
    "histogram",
    "seconds",
    "Time to first token of streamed requests, from the last byte of the request to the first "
    "token of its answer.",
    _SERIES,
)
TPOT = Metric(
    "warmroute_time_per_output_token_seconds",
    "histogram",
    "seconds",
    "Time for each output token after the first, as the mean of one streamed answer.",
    _SERIES,
)
DURATION = Metric(
    "warmroute_request_duration_seconds",
    "histogram",
    "seconds",
    "Time from the head of a request to the last byte of its answer. Counts requests that were "
    "sent to a replica.",
    _SERIES,
)
OVERHEAD = Metric(
    "warmroute_overhead_seconds",
    "histogram",
    "seconds",
    "Time that the router adds, from the last byte of a request to the first byte sent to the "
    "replica. Time to connect is not included.",
)
PROMPT_TOKENS = Metric(
    "warmroute_prompt_tokens_total",
    "counter",
    "tokens",
    "Prompt tokens, cached ones included, as the engines reported them.",
    _SERIES,
)
OUTPUT_TOKENS = Metric(
    "warmroute_output_tokens_total",
    "counter",
    "tokens",
    "Output tokens as the engines reported them.",
    _SERIES,
)
LEDGER_PROMPT = Metric(
    "warmroute_reuse_prompt_tokens_total",
    "counter",
    "tokens",
    "Prompt tokens of the requests in the reuse ledger, whose engine reported cached tokens.",
    _SERIES,
)
AVAILABLE = Metric(
    "warmroute_reuse_available_tokens_total",
    "counter",
    "tokens",
    "Ledger prompt tokens that the best eligible replica held, according to the index.",
    _SERIES,
)
CHOSEN = Metric(
    "warmroute_reuse_chosen_tokens_total",
    "counter",
    "tokens",
    "Ledger prompt tokens that the chosen replica held, according to the index.",
    _SERIES,
)
PREDICTED = Metric(
    "warmroute_reuse_predicted_tokens_total",
    "counter",
    "tokens",
    "Ledger prompt tokens that the chosen replica was expected to reuse. An engine reuses whole "
    "blocks, and never a whole prompt.",
    _SERIES,
)
DELIVERED = Metric(
    "warmroute_reuse_delivered_tokens_total",
    "counter",
    "tokens",
    "Ledger prompt tokens that the engine took from its KV cache, as it reported.",
    _SERIES,
)
TIER_TOKENS = Metric(
    "warmroute_tier_predicted_tokens_total",
    "counter",
    "tokens",
    "Prompt tokens that were expected from a tier behind the GPU memory of the chosen replica.",
    ("replica", "medium"),
)
TIER_TOKEN_SECONDS = Metric(
    "warmroute_tier_token_seconds",
    "gauge",
    "seconds",
    "What a token from there was last taken to take: learned, measured, set or assumed.",
    ("replica", "medium"),
)
GAP = Metric(
    "warmroute_reuse_gap_tokens_total",
    "counter",
    "tokens",
    "Ledger prompt tokens that were not reused, by where they were lost.",
    (*_SERIES, "gap"),
)
SURPLUS = Metric(
    "warmroute_reuse_surplus_tokens_total",
    "counter",
    "tokens",
    "Tokens that engines reused beyond those predicted.",
    _SERIES,
)
UNREPORTED = Metric(
    "warmroute_reuse_unreported_prompt_tokens_total",
    "counter",
    "tokens",
    "Prompt tokens left out of the reuse ledger, because their engine reported no cached tokens.",
    _SERIES,
)
IN_FLIGHT = Metric(
    "warmroute_in_flight",
    "gauge",
    "requests",
    "Requests routed to the replica that have not finished.",
    _REPLICA,
)
QUEUED = Metric(
    "warmroute_queued_tokens",
    "gauge",
    "tokens",
    "Uncached prompt tokens of requests that were routed to the replica and have no first token "
    "yet.",
    _REPLICA,
)
USABLE = Metric(
    "warmroute_replica_usable",
    "gauge",
    "1 or 0",
    "1 when requests may be sent to the replica: it is healthy, its breaker is not open, and it "
    "is not draining, sleeping or paused.",
    _REPLICA,
)
STATE = Metric(
    "warmroute_replica_state",
    "gauge",
    "1",
    "The replica's state, in the label `state`.",
    (*_REPLICA, "state"),
)
BREAKER = Metric(
    "warmroute_breaker_state",
    "gauge",
    "1",
    "The state of the replica's circuit breaker, in the label `state`.",
    (*_REPLICA, "state"),
)
INDEX_BLOCKS = Metric(
    "warmroute_index_blocks", "gauge", "blocks", "Distinct prompt blocks in the index."
)
INDEX_BYTES = Metric(
    "warmroute_index_bytes", "gauge", "bytes", "Estimated memory that the index takes."
)
INDEX_SHARE = Metric(
    "warmroute_index_share",
    "gauge",
    "share",
    "How full the index believes the replica's KV cache is, 0 to 1. Absent where the size of the "
    "cache is not known.",
    _REPLICA,
)
KV_CACHE = Metric(
    "warmroute_kv_cache_tokens",
    "gauge",
    "tokens",
    "Tokens for which the replica's KV cache in GPU memory has room. Absent where the size is not "
    "known.",
    _REPLICA,
)
DISCOVERY = Metric(
    "warmroute_discovery_current",
    "gauge",
    "1 or 0",
    "1 when the list of replicas is up to date. 0: discovery fails, and the router uses the last "
    "list it knew.",
)
CONNECTIONS = Metric(
    "warmroute_client_connections", "gauge", "connections", "Open connections from clients."
)
HELD = Metric(
    "warmroute_held_requests",
    "gauge",
    "requests",
    "With hold_timeout: requests that wait until a replica of their model is usable. Above 0: the "
    "model needs a replica.",
    ("model",),
)
STREAMS = Metric("warmroute_open_streams", "gauge", "requests", "Streamed answers in progress.")
BODY_BYTES = Metric(
    "warmroute_body_bytes", "gauge", "bytes", "Memory that request bodies take at the moment."
)
EXACT_CONFIDENCE = Metric(
    "warmroute_exact_confidence",
    "gauge",
    "share",
    "Exact mode: share of the replica's KV cache whose content is known from its events, 0 to 1.",
    _REPLICA,
)
EXACT_PROMPTS = Metric(
    "warmroute_exact_prompts_total",
    "counter",
    "requests",
    "Exact mode: prompts by result. `exact`: tokenised; others: why the prompt was left to the "
    "byte blocks.",
    ("result",),
)
EXACT_EVENTS = Metric(
    "warmroute_exact_event_faults_total",
    "counter",
    "faults",
    "Exact mode: faults in a replica's event stream: gaps, replays cut short, restarts, events "
    "that the engine no longer has, unreadable batches.",
    (*_REPLICA, "fault"),
)
EXACT_BYTES = Metric(
    "warmroute_exact_memory_bytes",
    "gauge",
    "bytes",
    "Exact mode: estimated memory of remembered tokens and arguments of tool calls.",
)
EXACT_TOKENS = Metric(
    "warmroute_exact_memory_tokens", "gauge", "tokens", "Exact mode: tokens that are remembered."
)
PROMPT_MEMORY = Metric(
    "warmroute_prompt_memory_bytes",
    "gauge",
    "bytes",
    "Estimated memory of canonical forms that prompts share; at most 192 MiB.",
)
LOG_DROPPED = Metric(
    "warmroute_access_log_dropped_total",
    "counter",
    "lines",
    "Access log lines dropped, because the reader of standard output was too slow or writing "
    "failed.",
)
OWN_LOG_DROPPED = Metric(
    "warmroute_log_dropped_total",
    "counter",
    "lines",
    "Lines of the router's own log dropped, because the reader of standard error was too slow.",
)
LOOP_DELAY = Metric(
    "warmroute_loop_delay_seconds",
    "histogram",
    "seconds",
    "How late the event loop runs a timer that is due every 500 ms. Every request and every stream "
    "waits as long.",
)
LOOP_HOLDS = Metric(
    "warmroute_loop_holds_total",
    "counter",
    "times",
    "Times that the event loop was found held for more than 100 ms, by the router's function it "
    "was in. Holds of 850 ms are all found, shorter ones by chance. `router.app.run`: it was in "
    "none, as when the process got no CPU.",
    ("where",),
)
STATE_UP = Metric(
    "warmroute_state_up",
    "gauge",
    "1 or 0",
    "1 when this router shares its state with the others, or there are none. 0: it works with its "
    "own knowledge only.",
)
STATE_LAG = Metric(
    "warmroute_state_lag_seconds",
    "gauge",
    "seconds",
    "Time until a batch of state updates that this router sent comes back to it.",
)
STATE_ROUTERS = Metric(
    "warmroute_state_routers",
    "gauge",
    "routers",
    "Other routers that this router has heard from lately.",
)
STATE_FACTS_SENT = Metric(
    "warmroute_state_facts_sent_total",
    "counter",
    "facts",
    "State updates sent to other routers.",
)
STATE_FACTS_RECEIVED = Metric(
    "warmroute_state_facts_received_total",
    "counter",
    "facts",
    "State updates received from other routers.",
)
STATE_FACTS_DROPPED = Metric(
    "warmroute_state_facts_dropped_total",
    "counter",
    "facts",
    "State updates dropped because the queue was full while Redis was unreachable. "
    "Cache contents are re-sent from the index after reconnecting.",
)
STATE_BATCHES_SENT = Metric(
    "warmroute_state_batches_sent_total",
    "counter",
    "batches",
    "Batches of state updates sent to other routers.",
)
STATE_BATCHES_RECEIVED = Metric(
    "warmroute_state_batches_received_total",
    "counter",
    "batches",
    "Batches of state updates received from other routers.",
)
STATE_BYTES_SENT = Metric(
    "warmroute_state_bytes_sent_total",
    "counter",
    "bytes",
    "Bytes sent to share state.",
)
STATE_BYTES_RECEIVED = Metric(
    "warmroute_state_bytes_received_total",
    "counter",
    "bytes",
    "Bytes received to share state.",
)
STATE_SKIPPED = Metric(
    "warmroute_state_skipped_total",
    "counter",
    "batches and chains",
    "Received state updates that were skipped: garbage, or a prompt whose beginning this router "
    "does not know.",
)
STATE_ERRORS = Metric(
    "warmroute_state_errors_total",
    "counter",
    "errors",
    "Connections to Redis that failed, and commands that Redis refused.",
)
AUTH_FAILURES = Metric(
    "warmroute_auth_failures_total",
    "counter",
    "requests",
    "Requests refused with 401, by reason.",
    ("reason",),
)
LIMITS_SHADOWED = Metric(
    "warmroute_limits_shadowed_total",
    "counter",
    "requests",
    "Requests that a limit in shadow would have refused.",
    ("limit",),
)
LIMITS_DECIDED = Metric(
    "warmroute_limits_decided_total",
    "counter",
    "requests",
    "Requests with limits, by where they were decided: lease, redis (for several workers "
    "without it: supervisor), or alone while that is away.",
    ("by",),
)
LIMITS_SHARED = Metric(
    "warmroute_limits_shared",
    "gauge",
    "1",
    "1 while limits are counted together, with other routers in Redis or with other workers.",
)
BUILD = Metric(
    "warmroute_build_info",
    "gauge",
    "1",
    "Version of the router and of Python, and the policy, in the labels.",
    ("version", "python", "policy"),
)

_SHADOW = ("policy",)
SHADOW_PROMPT = Metric(
    "warmroute_shadow_prompt_tokens_total",
    "counter",
    "tokens",
    "Prompt tokens of these requests.",
    _SHADOW,
)
SHADOW_REQUESTS = Metric(
    "warmroute_shadow_requests_total",
    "counter",
    "requests",
    "Requests that a shadow policy placed too, whose engine reported its reuse.",
    _SHADOW,
)
SHADOW_PREDICTED = Metric(
    "warmroute_shadow_predicted_tokens_total",
    "counter",
    "tokens",
    "Of these, tokens that the shadow's choices would have found in the cache.",
    _SHADOW,
)
SHADOW_DELIVERED = Metric(
    "warmroute_shadow_delivered_tokens_total",
    "counter",
    "tokens",
    "Of these, tokens that the engines really reused.",
    _SHADOW,
)
SHADOW_HOTTEST = Metric(
    "warmroute_shadow_hottest_ratio",
    "gauge",
    "ratio",
    "Uncached tokens of the busiest replica under a shadow policy in the last hour, in units of "
    "the even share.",
    _SHADOW,
)
SHADOW_WAIT = Metric(
    "warmroute_shadow_wait_seconds_total",
    "counter",
    "seconds",
    "Expected time until the prefills of these requests would have been done.",
    _SHADOW,
)
SHADOW_LEFT_OUT = Metric(
    "warmroute_shadow_left_out_total",
    "counter",
    "requests",
    "Requests that shadow policies were not told of, because they were behind.",
)
SHADOW_TRUSTED = Metric(
    "warmroute_shadow_trusted",
    "gauge",
    "boolean",
    "1 if the shadow of the policy in use agrees with what was delivered within 2 points.",
)
SAVED_TOKENS = Metric(
    "warmroute_saved_prefill_tokens_total",
    "counter",
    "tokens",
    "Prompt tokens that were reused and not computed, counted while shadow policies run.",
)
SAVED_SECONDS = Metric(
    "warmroute_saved_prefill_seconds_total",
    "counter",
    "seconds",
    "The same in seconds of one replica's prefill, at the speed learned for each replica.",
)

TRACES_SENT = Metric(
    "warmroute_traces_handed_over_total",
    "counter",
    "requests",
    "Traced requests that the exporter of traces got.",
)
TRACES_DROPPED = Metric(
    "warmroute_traces_dropped_total",
    "counter",
    "requests",
    "Traced requests that were lost, since the exporter of traces was behind or not running.",
)

OF_SHADOWS = (
    SHADOW_REQUESTS, SHADOW_PROMPT, SHADOW_PREDICTED, SHADOW_DELIVERED, SHADOW_HOTTEST, SHADOW_WAIT,
    SHADOW_LEFT_OUT, SHADOW_TRUSTED, SAVED_TOKENS, SAVED_SECONDS,
)  # fmt: skip
OF_PREFILL = (PREFILL_LEGS, PREFILL_SECONDS, PREFILL_TOKENS, TRANSFER_SECONDS)
OWN = (
    REQUESTS, ERRORS, ATTEMPTS, RETRIES, DECISIONS, TTFT, TPOT, DURATION, OVERHEAD,
    PROMPT_TOKENS, OUTPUT_TOKENS, LEDGER_PROMPT, AVAILABLE, CHOSEN, PREDICTED, DELIVERED,
    TIER_TOKENS, TIER_TOKEN_SECONDS,
    GAP, SURPLUS, UNREPORTED, IN_FLIGHT, QUEUED, USABLE, STATE, BREAKER, DISCOVERY,
    INDEX_BLOCKS, INDEX_BYTES, INDEX_SHARE, PROMPT_MEMORY, KV_CACHE, CONNECTIONS, HELD, STREAMS,
    BODY_BYTES,
    *OF_QUEUE, *OF_PREFILL, *OF_AUDIT,
    EXACT_CONFIDENCE, EXACT_PROMPTS, EXACT_EVENTS, EXACT_BYTES, EXACT_TOKENS, LOG_DROPPED,
    OWN_LOG_DROPPED, LOOP_DELAY, LOOP_HOLDS,
    STATE_UP, STATE_LAG, STATE_ROUTERS, STATE_FACTS_SENT, STATE_FACTS_RECEIVED,
    STATE_FACTS_DROPPED, STATE_BATCHES_SENT, STATE_BATCHES_RECEIVED, STATE_BYTES_SENT,
    STATE_BYTES_RECEIVED, STATE_SKIPPED, STATE_ERRORS,
    *OF_TENANTS, *OF_OVERFLOW, AUTH_FAILURES, LIMITS_SHADOWED, LIMITS_DECIDED, LIMITS_SHARED,
    *OF_SHADOWS, TRACES_SENT, TRACES_DROPPED, BUILD,
)  # fmt: skip

PROCESS = (
    Metric("process_virtual_memory_bytes", "gauge", "bytes", "Virtual memory size."),
    Metric("process_resident_memory_bytes", "gauge", "bytes", "Resident memory size."),
    Metric("process_start_time_seconds", "gauge", "seconds", "Start time, since the Unix epoch."),
    Metric("process_cpu_seconds_total", "counter", "seconds", "User and system CPU time spent."),
    Metric("process_open_fds", "gauge", "files", "Open file descriptors."),
    Metric("process_max_fds", "gauge", "files", "Most file descriptors allowed."),
)
"""What prometheus_client's ProcessCollector adds, on Linux."""
