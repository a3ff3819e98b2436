"""A replica's /metrics, with the names, labels and buckets of vLLM 0.32."""

from __future__ import annotations

from bisect import bisect_left
from time import time
from typing import TYPE_CHECKING

from loadgen.engine import transfer_for

if TYPE_CHECKING:
    from loadgen.engine import Request
    from loadgen.replicas.replica import Replica

_FIRST = (
    0.001,
    0.005,
    0.01,
    0.02,
    0.04,
    0.06,
    0.08,
    0.1,
    0.25,
    0.5,
    0.75,
    1.0,
    2.5,
    5.0,
    7.5,
    10.0,
)
_FIRST_TOKEN = (*_FIRST, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0)
_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0)
_PER_TOKEN = (*_TOKEN, 20.0, 40.0, 80.0)
_WHOLE = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0)
_REQUEST = (*_WHOLE, 120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0)
_COUNT = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0, 10_000.0)
_TOKENS = (*_COUNT, 20_000.0, 50_000.0, 100_000.0)


class Histogram:
    """Counts by bucket, as Prometheus wants them."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float) -> None:
        """Add one value to its bucket and to the sum."""
        self.counts[bisect_left(self.bounds, value)] += 1
        self.sum += value

    def lines(self, name: str, labels: str) -> list[str]:
        """The histogram as lines of Prometheus' text format."""
        out = [f"# TYPE {name} histogram"]
        total = 0
        for bound, count in zip((*self.bounds, "+Inf"), self.counts, strict=True):
            total += count
            out.append(f'{name}_bucket{{{labels},le="{bound}"}} {float(total)}')
        out.append(f"{name}_count{{{labels}}} {float(total)}")
        out.append(f"{name}_sum{{{labels}}} {self.sum}")
        return out


class RequestMetrics:
    """The histograms and totals kept for each request. Times are the engine's seconds."""

    def __init__(self, max_model_len: int) -> None:
        tokens = tuple(bound for bound in _TOKENS if bound <= max_model_len) or (1.0,)
        self.histograms = {
            "vllm:request_prompt_tokens": Histogram(tokens),
            "vllm:request_generation_tokens": Histogram(tokens),
            "vllm:time_to_first_token_seconds": Histogram(_FIRST_TOKEN),
            "vllm:inter_token_latency_seconds": Histogram(_PER_TOKEN),
            "vllm:request_time_per_output_token_seconds": Histogram(_PER_TOKEN),
            "vllm:e2e_request_latency_seconds": Histogram(_REQUEST),
            "vllm:request_queue_time_seconds": Histogram(_REQUEST),
            "vllm:request_inference_time_seconds": Histogram(_REQUEST),
            "vllm:request_prefill_time_seconds": Histogram(_REQUEST),
            "vllm:request_decode_time_seconds": Histogram(_REQUEST),
        }
        self.finished = {"stop": 0, "length": 0, "abort": 0, "error": 0}

    def first_token(self, request: Request) -> None:
        """Note that a request's first token was sent."""
        self.histograms["vllm:time_to_first_token_seconds"].observe(
            request.first_token_at - request.arrived
        )

    def end(self, request: Request, reason: str) -> None:
        """A request is done, or was aborted."""
        self.finished[reason] += 1
        if request.aborted:
            return
        observed = self.histograms
        decode = request.finished_at - request.first_token_at
        prefill = request.first_token_at - request.scheduled_at
        observed["vllm:request_prompt_tokens"].observe(request.prompt_tokens)
        observed["vllm:request_generation_tokens"].observe(request.output_tokens)
        observed["vllm:e2e_request_latency_seconds"].observe(request.finished_at - request.arrived)
        queued = request.scheduled_at - request.queued_at
        observed["vllm:request_queue_time_seconds"].observe(queued)
        observed["vllm:request_inference_time_seconds"].observe(prefill + decode)
        observed["vllm:request_prefill_time_seconds"].observe(prefill)
        observed["vllm:request_decode_time_seconds"].observe(decode)
        between = request.output_tokens - 1
        if between:
            observed["vllm:request_time_per_output_token_seconds"].observe(decode / between)
            # The engine steps all its requests at once, so a request's gaps are taken as equal.
            gaps = observed["vllm:inter_token_latency_seconds"]
            gaps.counts[bisect_left(gaps.bounds, decode / between)] += between
            gaps.sum += decode


def adapter_lines(replica: Replica) -> list[str]:
    """vllm:lora_requests_info: as in vLLM an adapter with any request is under both labels, every
    combination of names is a series that stays, and the time says which one holds."""
    engine = replica.engine
    names = dict.fromkeys(each.adapter for each in (*engine.running, *engine.waiting))
    names.pop("", None)
    told = replica.driver.adapters_told
    told[",".join(names)] = time()
    most = replica.params.max_loras or len(replica.adapters)
    return [
        "# TYPE vllm:lora_requests_info gauge",
        *(
            f'vllm:lora_requests_info{{max_lora="{most}",running_lora_adapters="{each}",'
            f'waiting_lora_adapters="{each}"}} {at}'
            for each, at in told.items()
        ),
    ]


def render(replica: Replica) -> bytes:
    """The text of /metrics."""
    engine, params, counters = replica.engine, replica.params, replica.engine.counters
    labels = f'engine="0",model_name="{replica.model}"'
    computed = counters.prompt_tokens - counters.prompt_tokens_cached
    external = counters.prompt_tokens_fetched + counters.prompt_tokens_loaded
    out = [
        "# TYPE process_start_time_seconds gauge",
        f"process_start_time_seconds {replica.start_time}",
    ]

    def gauge(name: str, value: float, more: str = "") -> None:
        out.append(f"# TYPE {name} gauge")
        out.append(f"{name}{{{labels}{more}}} {float(value)}")

    def counter(name: str, value: float, more: str = "") -> None:
        out.append(f"# TYPE {name} counter")
        out.append(f"{name}{{{labels}{more}}} {float(value)}")

    gauge("vllm:num_requests_running", len(engine.running))
    gauge("vllm:num_requests_waiting", len(engine.waiting))
    gauge("vllm:kv_cache_usage_perc", engine.kv_usage)
    counter("vllm:prefix_cache_queries_total", counters.prefix_queries)
    counter("vllm:prefix_cache_hits_total", counters.prefix_hits)
    counter("vllm:num_preemptions_total", counters.preemptions)
    counter("vllm:prompt_tokens_total", counters.prompt_tokens)
    out.append("# TYPE vllm:prompt_tokens_by_source_total counter")
    for source, value in (
        ("local_compute", computed),
        ("local_cache_hit", counters.prompt_tokens_cached - external),
        ("external_kv_transfer", external),
    ):
        name = "vllm:prompt_tokens_by_source_total"
        out.append(f'{name}{{{labels},source="{source}"}} {float(value)}')
    counter("vllm:prompt_tokens_cached_total", counters.prompt_tokens_cached)
    if engine.tier is not None or replica.connector is not None:
        # As vLLM counts them: what came from a tier, and what another engine handed over.
        fetched = counters.prompt_tokens_fetched
        counter("vllm:external_prefix_cache_queries_total", counters.offload_queries + fetched)
        counter("vllm:external_prefix_cache_hits_total", counters.offload_hits + fetched)
    if engine.tier is not None:
        _tier(out, labels, replica)
    counter("vllm:generation_tokens_total", counters.generation_tokens)
    out.append("# TYPE vllm:request_success_total counter")
    for reason, count in replica.metrics.finished.items():
        name = "vllm:request_success_total"
        out.append(f'{name}{{{labels},finished_reason="{reason}"}} {float(count)}')
    for name, histogram in replica.metrics.histograms.items():
        out += histogram.lines(name, labels)
    connector = replica.connector
    if connector is not None:
        for name, total in (
            ("vllm:nixl_xfer_time_seconds", connector.transfer_seconds),
            ("vllm:nixl_bytes_transferred", connector.transfer_bytes),
        ):
            out.append(f"# TYPE {name} summary")
            out.append(f"{name}_count{{{labels}}} {float(connector.transfers)}")
            out.append(f"{name}_sum{{{labels}}} {total}")
        counter("vllm:nixl_num_failed_transfers_total", connector.transfers_failed)
        counter("vllm:nixl_num_kv_expired_reqs_total", connector.expired)
        gauge("sim:kv_blocks_held", connector.held_blocks)
    if params.max_loras or replica.adapters:
        out += adapter_lines(replica)
    out.append("# TYPE vllm:cache_config_info gauge")
    out.append(
        f'vllm:cache_config_info{{block_size="{params.block_size}",cache_dtype="auto",'
        f'enable_prefix_caching="True",engine="0",gpu_memory_utilization="0.9",'
        f'kv_cache_size_tokens="{params.cache_tokens}",{_offloading(replica)}'
        f'num_gpu_blocks="{params.num_blocks}",'
        f'num_gpu_blocks_override="None",prefix_caching_hash_algo="sha256"}} 1.0'
    )
    return ("\n".join(out) + "\n").encode()


def _token_bytes(replica: Replica) -> float:
    return transfer_for(replica.params).token_bytes


def _offloading(replica: Replica) -> str:
    """The size of the tier in CPU memory, as ``--kv-offloading-size`` sets it, and what its tokens
    take, as labels; nothing where there is none."""
    params = replica.params
    if not params.offload_tokens:
        return ""
    token_bytes = _token_bytes(replica)
    gib = params.offload_tokens * token_bytes / (1 << 30)
    memory = round(params.cache_tokens * token_bytes)
    return f'kv_cache_memory_bytes="{memory}",kv_offloading_size="{gib}",'


def _tier(out: list[str], labels: str, replica: Replica) -> None:
    """What vLLM 0.33 and its OffloadingConnector count of a tier in CPU memory."""
    counters = replica.engine.counters
    loaded = counters.prompt_tokens_loaded
    device = counters.prompt_tokens_cached - counters.prompt_tokens_fetched - loaded
    by_source = "vllm:prompt_tokens_cached_by_source_total"
    out.append(f"# TYPE {by_source} counter")
    for source, value in (("device", device), ("host", loaded)):
        out.append(f'{by_source}{{{labels},source="{source}"}} {float(value)}')
    for name, total in (
        ("vllm:kv_offload_load_bytes_total", counters.offload_hits * _token_bytes(replica)),
        ("vllm:kv_offload_load_time_total", counters.offload_load_seconds),
    ):
        out.append(f"# TYPE {name} counter")
        out.append(f"{name}{{{labels}}} {total}")
