"""Every metric there is, in the order they are shown.

``python -m router.telemetry.catalogue`` prints docs/reference/metrics.md from this table.
"""

from __future__ import annotations

import msgspec

from router.telemetry.ledger import GAPS
from router.telemetry.record import APIS, OUTCOMES


class Metric(msgspec.Struct, frozen=True):
    """One metric family."""

    name: str
    kind: str
    """counter, gauge or histogram."""
    unit: str
    help: str
    """One line, for the text format too."""
    labels: tuple[str, ...] = ()


_SERIES = ("replica", "model")
_ROW = ("replica", "model", "api")
_REPLICA = ("replica",)

REQUESTS = Metric(
    "warmroute_requests_total",
    "counter",
    "requests",
    "Finished requests by HTTP status sent to the client (code 0: none was sent).",
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
    "Attempts at a replica that failed, whether or not a retry made up for it.",
    ("replica", "reason"),
)
RETRIES = Metric(
    "warmroute_retries_total", "counter", "attempts", "Attempts after a request's first one."
)
DECISIONS = Metric(
    "warmroute_decisions_total",
    "counter",
    "requests",
    "Placements by policy and by the policy's reason.",
    ("policy", "reason"),
)
TTFT = Metric(
    "warmroute_ttft_seconds",
    "histogram",
    "seconds",
    "From a streamed request's last byte to the first token of its answer.",
    _SERIES,
)
TPOT = Metric(
    "warmroute_time_per_output_token_seconds",
    "histogram",
    "seconds",
    "Of a streamed answer, from its first token to its end, for each token after the first.",
    _SERIES,
)
DURATION = Metric(
    "warmroute_request_duration_seconds",
    "histogram",
    "seconds",
    "From a request's head to the last byte of its answer, of requests sent to a replica.",
    _SERIES,
)
OVERHEAD = Metric(
    "warmroute_overhead_seconds",
    "histogram",
    "seconds",
    "From a request's last byte to the first byte sent to the replica, without connecting.",
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
    "Prompt tokens of the requests in the reuse ledger: their engine reported cached tokens.",
    _SERIES,
)
AVAILABLE = Metric(
    "warmroute_reuse_available_tokens_total",
    "counter",
    "tokens",
    "Of these, held by the best eligible replica, as the index believed.",
    _SERIES,
)
CHOSEN = Metric(
    "warmroute_reuse_chosen_tokens_total",
    "counter",
    "tokens",
    "Of these, held by the replica chosen, as the index believed.",
    _SERIES,
)
PREDICTED = Metric(
    "warmroute_reuse_predicted_tokens_total",
    "counter",
    "tokens",
    "Of these, what an engine can deliver: whole blocks, never a whole prompt.",
    _SERIES,
)
DELIVERED = Metric(
    "warmroute_reuse_delivered_tokens_total",
    "counter",
    "tokens",
    "Of these, taken from the KV cache, as the engine reported.",
    _SERIES,
)
GAP = Metric(
    "warmroute_reuse_gap_tokens_total",
    "counter",
    "tokens",
    "Prompt tokens in the reuse ledger that were not reused, by where they were lost.",
    (*_SERIES, "gap"),
)
SURPLUS = Metric(
    "warmroute_reuse_surplus_tokens_total",
    "counter",
    "tokens",
    "Tokens delivered beyond those predicted.",
    _SERIES,
)
UNREPORTED = Metric(
    "warmroute_reuse_unreported_prompt_tokens_total",
    "counter",
    "tokens",
    "Prompt tokens left out of the reuse ledger: their engine reported no cached tokens.",
    _SERIES,
)
IN_FLIGHT = Metric(
    "warmroute_in_flight",
    "gauge",
    "requests",
    "Requests routed to the replica and not finished.",
    _REPLICA,
)
QUEUED = Metric(
    "warmroute_queued_tokens",
    "gauge",
    "tokens",
    "Uncached prompt tokens routed to the replica whose first token has not come.",
    _REPLICA,
)
USABLE = Metric(
    "warmroute_replica_usable",
    "gauge",
    "1 or 0",
    "Whether requests may be sent to the replica: healthy, breaker not open, neither draining nor "
    "sleeping nor paused.",
    _REPLICA,
)
STATE = Metric(
    "warmroute_replica_state",
    "gauge",
    "1",
    "The replica's state, in the label.",
    (*_REPLICA, "state"),
)
BREAKER = Metric(
    "warmroute_breaker_state",
    "gauge",
    "1",
    "The state of the replica's circuit breaker, in the label.",
    (*_REPLICA, "state"),
)
INDEX_BLOCKS = Metric(
    "warmroute_index_blocks", "gauge", "blocks", "Distinct prompt blocks in the index."
)
INDEX_BYTES = Metric(
    "warmroute_index_bytes", "gauge", "bytes", "Memory the index takes, estimated."
)
INDEX_SHARE = Metric(
    "warmroute_index_share",
    "gauge",
    "share",
    "How full the replica's KV cache is, as the index models it: 0 to 1. "
    "Absent where the size of that cache is not known.",
    _REPLICA,
)
KV_CACHE = Metric(
    "warmroute_kv_cache_tokens",
    "gauge",
    "tokens",
    "Tokens the replica's KV cache in GPU memory holds. Absent where that is not known.",
    _REPLICA,
)
DISCOVERY = Metric(
    "warmroute_discovery_current",
    "gauge",
    "1 or 0",
    "Whether the replicas are as discovery has them, or listed; 0: the last known are used.",
)
CONNECTIONS = Metric("warmroute_client_connections", "gauge", "connections", "Open, from clients.")
STREAMS = Metric("warmroute_open_streams", "gauge", "requests", "Streamed answers being relayed.")
BODY_BYTES = Metric(
    "warmroute_body_bytes", "gauge", "bytes", "Request bodies held in memory just now."
)
EXACT_CONFIDENCE = Metric(
    "warmroute_exact_confidence",
    "gauge",
    "share",
    "Exact mode: how much of what the replica's KV cache holds is known from its events, 0 to 1.",
    _REPLICA,
)
EXACT_PROMPTS = Metric(
    "warmroute_exact_prompts_total",
    "counter",
    "requests",
    "Exact mode: prompts tokenised (result exact), or left to the byte-block index and why.",
    ("result",),
)
EXACT_EVENTS = Metric(
    "warmroute_exact_event_faults_total",
    "counter",
    "faults",
    "Exact mode: gaps in a replica's events, replays cut short, restarts seen, histories gone, "
    "unreadable batches.",
    (*_REPLICA, "fault"),
)
EXACT_BYTES = Metric(
    "warmroute_exact_memory_bytes", "gauge", "bytes", "Exact mode: memory of tokens, estimated."
)
EXACT_TOKENS = Metric(
    "warmroute_exact_memory_tokens", "gauge", "tokens", "Exact mode: tokens remembered."
)
LOG_DROPPED = Metric(
    "warmroute_access_log_dropped_total",
    "counter",
    "lines",
    "Access log lines given up: the reader was too slow, or writing failed.",
)
OWN_LOG_DROPPED = Metric(
    "warmroute_log_dropped_total",
    "counter",
    "lines",
    "Lines of the router's own log given up: the reader of standard error was too slow.",
)
STATE_UP = Metric(
    "warmroute_state_up",
    "gauge",
    "1 or 0",
    "Whether other routers hear this one and are heard, or there are none; 0: local only.",
)
STATE_LAG = Metric(
    "warmroute_state_lag_seconds",
    "gauge",
    "seconds",
    "From a batch of facts sent to its coming back.",
)
STATE_ROUTERS = Metric(
    "warmroute_state_routers",
    "gauge",
    "routers",
    "Other routers that are heard.",
)
STATE_FACTS_SENT = Metric(
    "warmroute_state_facts_sent_total",
    "counter",
    "facts",
    "Told to other routers.",
)
STATE_FACTS_RECEIVED = Metric(
    "warmroute_state_facts_received_total",
    "counter",
    "facts",
    "Heard of other routers.",
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
    "Told to other routers.",
)
STATE_BATCHES_RECEIVED = Metric(
    "warmroute_state_batches_received_total",
    "counter",
    "batches",
    "Heard of other routers.",
)
STATE_BYTES_SENT = Metric(
    "warmroute_state_bytes_sent_total",
    "counter",
    "bytes",
    "Sent for this.",
)
STATE_BYTES_RECEIVED = Metric(
    "warmroute_state_bytes_received_total",
    "counter",
    "bytes",
    "Received for this.",
)
STATE_SKIPPED = Metric(
    "warmroute_state_skipped_total",
    "counter",
    "batches and chains",
    "Heard and not understood: garbage, or a chain this router does not know the beginning of.",
)
STATE_ERRORS = Metric(
    "warmroute_state_errors_total",
    "counter",
    "errors",
    "Connections that failed, and commands that were refused.",
)
BUILD = Metric(
    "warmroute_build_info",
    "gauge",
    "1",
    "What runs, in the labels.",
    ("version", "python", "policy"),
)

OWN = (
    REQUESTS, ERRORS, ATTEMPTS, RETRIES, DECISIONS, TTFT, TPOT, DURATION, OVERHEAD,
    PROMPT_TOKENS, OUTPUT_TOKENS, LEDGER_PROMPT, AVAILABLE, CHOSEN, PREDICTED, DELIVERED,
    GAP, SURPLUS, UNREPORTED, IN_FLIGHT, QUEUED, USABLE, STATE, BREAKER, DISCOVERY,
    INDEX_BLOCKS, INDEX_BYTES, INDEX_SHARE, KV_CACHE, CONNECTIONS, STREAMS, BODY_BYTES,
    EXACT_CONFIDENCE, EXACT_PROMPTS, EXACT_EVENTS, EXACT_BYTES, EXACT_TOKENS, LOG_DROPPED,
    OWN_LOG_DROPPED,
    STATE_UP, STATE_LAG, STATE_ROUTERS, STATE_FACTS_SENT, STATE_FACTS_RECEIVED,
    STATE_FACTS_DROPPED, STATE_BATCHES_SENT, STATE_BATCHES_RECEIVED, STATE_BYTES_SENT,
    STATE_BYTES_RECEIVED, STATE_SKIPPED, STATE_ERRORS, BUILD,
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

_INTRODUCTION = f"""# Metrics

`GET /metrics` on the admin port, in the Prometheus text format. This file is made by
`python -m router.telemetry.catalogue`; a test fails when it is out of date.

## Words

Four levels of reuse, in tokens of the engine, cut so that each is at most the one before:

- **available**: leading prompt tokens held by the eligible replica that held most, as the index
  believed.
- **chosen**: those held by the replica chosen, as the index believed.
- **predicted**: chosen, rounded to what an engine can deliver: whole blocks, and never the whole
  prompt, whose last token it computes in any case.
- **delivered**: what the engine reported as `cached_tokens`.

The reuse ledger counts the requests whose engine reported both prompt tokens and cached tokens
(vLLM: `--enable-prompt-tokens-details`). What is missing there shows up in
`warmroute_reuse_unreported_prompt_tokens_total`. For each request, and so for all sums:

    prompt = delivered + no_holder + load_shed + rounding
             + rendered_differently + stale_index + eviction - surplus

| gap | tokens | what it tells |
|---|---|---|
| `no_holder` | prompt - available | nobody had it: new text, or forgotten by all |
| `load_shed` | available - chosen | another replica had more, and was too busy |
| `rounding` | chosen - predicted | held, but engines reuse whole blocks only |
| `rendered_differently` | predicted - delivered | behind a place where templates differ |
| `stale_index` | predicted - delivered | promised and not there: the index was wrong |
| `eviction` | predicted - delivered | the same, with a cache modelled as (nearly) full |
| `surplus` | delivered - predicted | there and not promised |

`rendered_differently`: the model's chat template was not tried ([prompt.md](../design/prompt.md)),
and the prompt has what templates put in another place or leave out: template arguments, inline
system messages, earlier reasoning, tools. What was delivered ends about there.

Hit rate of a replica over five minutes, as a share of prompt tokens:

    sum by (replica) (rate(warmroute_reuse_delivered_tokens_total[5m]))
      / sum by (replica) (rate(warmroute_reuse_prompt_tokens_total[5m]))

## Labels

Their values are bounded, whatever clients send.

- `replica`: its name; `none` for requests that were sent to no replica. The series
  of a replica that left the fleet are dropped 15 minutes later.
- `model`: a name that a replica has answered for with 2xx, at most 100 of them, and every one of
  `expected_models`. A name asked for that no replica serves is a label too: at most 100 such names
  at a time, of up to 256 printable characters, each until nobody has asked for it for 15 minutes.
  Every other name is `other`, and no name is `none`. An autoscaler wakes a model that has no
  replica by `sum(increase(warmroute_requests_total{{model="NAME",code="503"}}[2m]))`.
- `api`: {", ".join(f"`{word}`" for word in sorted(APIS))}.
- `code`: the HTTP status; `0` when no answer was sent.
- `reason` of errors: {", ".join(f"`{word}`" for word in sorted(OUTCOMES))}.
- `reason` of decisions: the policy's words, at most 100 pairs of policy and reason, then `other`.
- `result`: `exact`, or why not: `model` (not served or not loaded), `replicas` (none is exact),
  `large`, `budget`, `media`, `argument`, `several`, `shape`, `template`, `api`, `fault`.
- `gap`: {", ".join(f"`{word}`" for word in GAPS)}.

## All metrics

| name | type | labels | unit | meaning |
|---|---|---|---|---|
"""


def document() -> str:
    """The text of docs/reference/metrics.md."""
    rows = [
        f"| `{m.name}` | {m.kind} | {', '.join(f'`{label}`' for label in m.labels) or '-'} "
        f"| {m.unit} | {m.help} |\n"
        for m in (*OWN, *PROCESS)
    ]
    return _INTRODUCTION + "".join(rows)


if __name__ == "__main__":
    print(document(), end="")
