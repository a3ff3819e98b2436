"""The few numbers the gateway wants from an engine's /metrics.

The text is in the Prometheus exposition format, and mostly histogram buckets: 50 KB for one model
of vLLM, several hundred for more. Only the wanted lines are looked at: the first of each name is
searched for, and the lines of a name stand together. Other engines' metrics are read in the files
of router/fleet/engines.
"""

from __future__ import annotations

import re
from math import inf, isfinite

import msgspec

MAX_METRICS_BYTES = 4 * 1024 * 1024
"""The most bytes of an answer to /metrics that are read."""
MAX_SERIES = 4096
"""Lines of one name that are read: one for each data-parallel rank and model."""
MAX_LINE_BYTES = 64 * 1024
MAX_RANKS = 256
"""The most data-parallel ranks behind one port that are told apart."""
OFFLOAD_TOKEN_BYTES = 64 * 1024
"""What a token takes in a tier behind the GPU, where the engine does not tell what it takes in GPU
memory: that of a small model, since a tier thought too large costs little."""

_RUNNING = (b"\nvllm:num_requests_running",)
_WAITING = (b"\nvllm:num_requests_waiting",)
_USAGE = (b"\nvllm:kv_cache_usage_perc", b"\nvllm:gpu_cache_usage_perc")
_QUERIES = (b"\nvllm:prefix_cache_queries_total", b"\nvllm:gpu_prefix_cache_queries_total")
_HITS = (b"\nvllm:prefix_cache_hits_total", b"\nvllm:gpu_prefix_cache_hits_total")
_PROMPTS = (b"\nvllm:request_prompt_tokens_count",)
_PROMPT_TOKENS = (b"\nvllm:request_prompt_tokens_sum",)
_LOADED = (b"\nvllm:external_prefix_cache_hits_total",)
_LOAD_SECONDS = (b"\nvllm:kv_offload_load_time_total", b"\nvllm:kv_offload_total_time_total")
_LOAD_BYTES = (b"\nvllm:kv_offload_load_bytes_total", b"\nvllm:kv_offload_total_bytes_total")
"""The latter of each, of vLLM until 0.22, count both directions, told apart by a label."""
_STORES = b'transfer_type="GPU_to_CPU"'
_STARTED = (b"\nprocess_start_time_seconds",)
_CONFIG = b"\nvllm:cache_config_info"
_SLEEP = b"\nvllm:engine_sleep_state"
_ADAPTERS = b"\nvllm:lora_requests_info"

_LABELS = {
    name: re.compile(rb'[{,]%s="([^"\\]*)"' % name)
    for name in (
        b"kv_cache_size_tokens",
        b"kv_cache_memory_bytes",
        b"kv_offloading_size",
        b"num_gpu_blocks",
        b"block_size",
        b"effective_attention_block_size",
        b"engine",
        b"enable_prefix_caching",
        b"sleep_state",
        b"dp_rank",
        b"max_lora",
        b"running_lora_adapters",
        b"waiting_lora_adapters",
    )
}


class EngineMetrics(msgspec.Struct, frozen=True, gc=False):
    """One reading: of an engine, or summed over the engines (data-parallel ranks) behind a port.
    None: not told."""

    running: float | None = None
    waiting: float | None = None
    kv_usage: float | None = None
    """Share of the KV cache held by running requests, 0 to 1, the mean over engines."""
    queries: float | None = None
    """Prompt tokens looked up in the prefix cache since the engine started."""
    hits: float | None = None
    """Prompt tokens that the prefix cache had, of `queries`."""
    prompts: float | None = None
    """Requests finished since the engine started."""
    prompt_tokens: float | None = None
    """Prompt tokens of the requests in `prompts`."""
    loaded: float | None = None
    """Prompt tokens that came from a tier behind the GPU, or from another engine."""
    load_seconds: float | None = None
    """What transfers from CPU memory took since the engine started."""
    load_bytes: float | None = None
    """What they moved."""
    token_bytes: float = 0.0
    """Bytes of a token in GPU memory; 0 where they are not told."""
    started: float | None = None
    """When the process started, Unix seconds; several API servers in one engine do not tell it."""
    kv_tokens: int | None = None
    """Tokens that fit in the KV cache in GPU memory."""
    offload_tokens: int | None = None
    """Tokens a tier behind it (CPU memory, disk) has room for."""
    block_tokens: int | None = None
    prefix_caching: bool | None = None
    asleep: bool | None = None
    """Whether any of its engines sleeps: it answers /health, and requests when it wakes."""
    max_loras: int | None = None
    """LoRA adapters that it keeps in GPU memory, and runs requests of at the same time."""
    adapters: tuple[str, ...] = ()
    """Those with requests, running or waiting. Not told of each rank."""
    adapters_at: float = 0.0
    """When the engine set these, by its own clock in Unix seconds; 0 where it tells none."""
    adapters_stale: float = 0.0
    """Nothing that it set by then is believed any more."""
    ranks: tuple[EngineMetrics, ...] = ()
    """The same of each engine, in the order of their ranks; empty where there is one."""

    @property
    def told_anything(self) -> bool:
        """Whether the text had any metric of an engine."""
        return self.running is not None or self.queries is not None or self.kv_tokens is not None

    @property
    def hit_rate(self) -> float | None:
        """Share of prompt tokens found cached since the engine started; None before the first."""
        if not self.queries or self.hits is None:
            return None
        return self.hits / self.queries

    @property
    def uncached_each(self) -> float:
        """Mean prompt tokens a request had to compute; 0.0 when not known."""
        if not self.prompts or self.prompt_tokens is None:
            return 0.0
        return self.prompt_tokens / self.prompts * (1.0 - min(1.0, self.hit_rate or 0.0))


class _Cache(msgspec.Struct, frozen=True, gc=False):
    """What vllm:cache_config_info reports of one engine; 0 where it does not."""

    tokens: int
    summed: int
    """Tokens of all engines together, which each of them repeats (see vLLM's
    v1/engine/core_client.py). It is what older versions tell, and too much for hybrid models."""
    offload: int
    token_bytes: float
    block: int
    prefix_caching: bool | None


MetricValues = dict[bytes, list[float]]
"""The values of one metric, by engine."""


def parse_metrics(text: bytes) -> EngineMetrics:
    """Read vLLM's metrics. A line that is not understood counts as not told; nothing raises."""
    text = b"\n" + text
    told = {
        "running": metric_values(text, _RUNNING),
        "waiting": metric_values(text, _WAITING),
        "kv_usage": metric_values(text, _USAGE),
        "queries": metric_values(text, _QUERIES),
        "hits": metric_values(text, _HITS),
        "prompts": metric_values(text, _PROMPTS),
        "prompt_tokens": metric_values(text, _PROMPT_TOKENS),
        "loaded": metric_values(text, _LOADED),
        "load_seconds": metric_values(text, _LOAD_SECONDS, without=_STORES),
        "load_bytes": metric_values(text, _LOAD_BYTES, without=_STORES),
    }
    caches = _caches(text)
    started = total(metric_values(text, _STARTED))
    names = set(caches).union(told["running"])
    ranks: tuple[EngineMetrics, ...] = ()
    # A rank is asked for by its place among those of its port, not by its name.
    if 1 < len(names) <= MAX_RANKS and all(map(bytes.isdigit, names)):
        ranks = tuple(
            _reading(told, caches, started, [name], len(names)) for name in sorted(names, key=int)
        )
    whole = _reading(told, caches, started, None, 1)
    max_loras, adapters, adapters_at = _adapters(text)
    ranks = tuple(msgspec.structs.replace(rank, max_loras=max_loras) for rank in ranks)
    return msgspec.structs.replace(
        whole,
        ranks=ranks,
        asleep=_asleep(text),
        max_loras=max_loras,
        adapters=adapters,
        adapters_at=adapters_at,
    )


def after(before: EngineMetrics | None, now: EngineMetrics) -> EngineMetrics:
    """A reading, without what the one before it shows to be stale.

    An engine says which adapters have requests with each step. Where it has finished requests and
    nothing later is told, its clock was set back: what holds now looks older than what held then.
    """
    if before is None or not now.adapters_at:
        return now
    stale = before.adapters_stale
    if now.adapters_at == before.adapters_at and (now.prompts or 0.0) > (before.prompts or 0.0):
        stale = now.adapters_at
    if now.adapters_at > stale:
        return now
    return msgspec.structs.replace(now, adapters=(), adapters_stale=stale)


def _reading(
    told: dict[str, MetricValues],
    caches: dict[bytes, _Cache],
    started: float | None,
    engines: list[bytes] | None,
    among: int,
) -> EngineMetrics:
    """What is told of some engines, or of all, that are one of so many equal parts."""
    found = [caches[each] for each in (caches if engines is None else engines) if each in caches]
    tokens = sum(cache.tokens for cache in found)
    summed = max((cache.summed for cache in found), default=0) // among
    usage = told["kv_usage"]
    used = total(usage, engines)
    series = sum(len(usage.get(each, ())) for each in (usage if engines is None else engines))
    return EngineMetrics(
        running=total(told["running"], engines),
        waiting=total(told["waiting"], engines),
        kv_usage=None if used is None else used / series,
        queries=total(told["queries"], engines),
        hits=total(told["hits"], engines),
        prompts=total(told["prompts"], engines),
        prompt_tokens=total(told["prompt_tokens"], engines),
        loaded=total(told["loaded"], engines),
        load_seconds=total(told["load_seconds"], engines),
        load_bytes=total(told["load_bytes"], engines),
        token_bytes=next((cache.token_bytes for cache in found if cache.token_bytes), 0.0),
        started=started,
        kv_tokens=tokens or summed or None,
        offload_tokens=sum(cache.offload for cache in found) or None,
        block_tokens=next((cache.block for cache in found if cache.block), None),
        prefix_caching=next(
            (cache.prefix_caching for cache in found if cache.prefix_caching is not None), None
        ),
    )


def _lines(text: bytes, start: bytes) -> list[bytes]:
    """The sample lines of a name, given with the newline before it, from labels or value on."""
    found: list[bytes] = []
    size = len(start)
    at = text.find(start)
    while at >= 0 and len(found) < MAX_SERIES:
        after = text[at + size : at + size + 1]
        end = text.find(b"\n", at + size)
        if end < 0:
            end = len(text)
        if after in (b"{", b" ") and end - at <= MAX_LINE_BYTES:
            found.append(text[at + size : end])
        elif after not in (b"{", b" ") and not found:
            end = text.find(start, end)  # a longer name; the wanted one may come later
            if end < 0:
                break
        at = end if text.startswith(start, end) else -1
    return found


def metric_values(
    text: bytes, names: tuple[bytes, ...], rank_label: bytes = b"engine", without: bytes = b""
) -> MetricValues:
    """The values of the first name that is there; none when one of them makes no sense. names: each
    with the newline before it, which the text begins with too. without: a label that lines do not
    have."""
    for name in names:
        lines = _lines(text, name)
        if not lines:
            continue
        found: MetricValues = {}
        for line in lines:
            if without and without in line:
                continue
            value = line[line.rfind(b"}") + 1 :].split()
            try:
                number = float(value[0])
            except (IndexError, ValueError):
                return {}
            if not isfinite(number) or number < 0.0:
                return {}
            found.setdefault(_label(line, rank_label), []).append(number)
        return found
    return {}


def total(told: MetricValues, engines: list[bytes] | None = None) -> float | None:
    """Over these engines, or over all; None when none of them told."""
    values = [
        value for each in (told if engines is None else engines) for value in told.get(each, ())
    ]
    return sum(values) if values else None


def largest(told: MetricValues, ranks: list[bytes] | None) -> list[float]:
    """The largest value of each of these ranks that tells, or of each of all: for engines in which
    several series of a rank count the same things."""
    return [max(told[each]) for each in (told if ranks is None else ranks) if told.get(each)]


def _caches(text: bytes) -> dict[bytes, _Cache]:
    """What each engine's KV cache is, from the labels of vllm:cache_config_info."""
    found = {}
    for line in _lines(text, _CONFIG):
        tokens = _number(_label(line, b"kv_cache_size_tokens"))
        block = _number(_label(line, b"block_size"))
        memory = _number(_label(line, b"kv_cache_memory_bytes"))
        word = _label(line, b"enable_prefix_caching")
        found[_label(line, b"engine")] = _Cache(
            tokens=tokens,
            summed=_number(_label(line, b"num_gpu_blocks")) * block,
            offload=_offload(_label(line, b"kv_offloading_size"), memory / tokens if tokens else 0),
            token_bytes=memory / tokens if tokens else 0.0,
            block=_number(_label(line, b"effective_attention_block_size")) or block,
            prefix_caching=word == b"True" if word else None,
        )
    return found


def _offload(gib: bytes, token_bytes: float) -> int:
    """Tokens that a tier of so many GiB has room for."""
    try:
        size = float(gib)
    except ValueError:
        return 0  # "None", or not told
    if not 0.0 < size < 1e9:
        return 0
    return int(size * (1 << 30) / (token_bytes or OFFLOAD_TOKEN_BYTES))


def _asleep(text: bytes) -> bool | None:
    """Whether vllm:engine_sleep_state says of any engine that it is not awake. While it wakes in
    parts no state is 1, so that only "awake" tells."""
    found: bool | None = None
    for line in _lines(text, _SLEEP):
        if _label(line, b"sleep_state") == b"awake":
            value = line[line.rfind(b"}") + 1 :].strip()
            found = found or value in (b"0", b"0.0")
    return found


def _adapters(text: bytes) -> tuple[int | None, tuple[str, ...], float]:
    """max_loras, the adapters with requests, and when that was set, from vllm:lora_requests_info;
    None where there is no such metric.

    Each combination of names is a series of its own and stays; the value is the time at which it
    was set, so the largest one is what holds now (vLLM's v1/metrics/loggers.py). vLLM puts an
    adapter with any request under both labels, running and waiting. Where there are more series
    than are read, the one that holds may be among the others, and no adapter is told.
    """
    newest, latest = b"", -1.0
    lines = _lines(text, _ADAPTERS)
    for line in lines:
        try:
            at = float(line[line.rfind(b"}") + 1 :].split()[0])
        except (IndexError, ValueError):
            continue
        if latest < at < inf:
            newest, latest = line, at
    if not newest:
        return None, (), 0.0
    most = _number(_label(newest, b"max_lora")) or None
    if len(lines) >= MAX_SERIES:
        return most, (), 0.0
    names: dict[str, None] = {}
    for label in (b"running_lora_adapters", b"waiting_lora_adapters"):
        for name in _label(newest, label).decode("utf-8", "replace").split(","):
            if name.strip():
                names[name.strip()] = None
    return most, tuple(names), latest


def _label(line: bytes, name: bytes) -> bytes:
    found = _LABELS[name].search(line)
    return found[1] if found else b""


def _number(word: bytes) -> int:
    """A decimal number; 0 for anything else, "None" among it, and for nonsense sizes."""
    return int(word) if word.isdigit() and len(word) <= 15 else 0
