"""The few numbers the gateway wants from an engine's /metrics.

The text is vLLM's, in the Prometheus exposition format, and mostly histogram buckets: 50 KB for one
model, several hundred for more. Only the wanted lines are looked at: the first of each name is
searched for, and the lines of a name stand together.
"""

from __future__ import annotations

import re
from math import isfinite

import msgspec

LONGEST_TEXT = 4 * 1024 * 1024
"""Bytes of an answer to /metrics that are read."""
MOST_SERIES = 4096
"""Lines of one name that are read: one for each data-parallel rank and model."""
LONGEST_LINE = 64 * 1024

_RUNNING = (b"\nvllm:num_requests_running",)
_WAITING = (b"\nvllm:num_requests_waiting",)
_USAGE = (b"\nvllm:kv_cache_usage_perc", b"\nvllm:gpu_cache_usage_perc")
_QUERIES = (b"\nvllm:prefix_cache_queries_total", b"\nvllm:gpu_prefix_cache_queries_total")
_HITS = (b"\nvllm:prefix_cache_hits_total", b"\nvllm:gpu_prefix_cache_hits_total")
_PROMPTS = (b"\nvllm:request_prompt_tokens_count",)
_PROMPT_TOKENS = (b"\nvllm:request_prompt_tokens_sum",)
_STARTED = (b"\nprocess_start_time_seconds",)
_CONFIG = b"\nvllm:cache_config_info"
_SLEEP = b"\nvllm:engine_sleep_state"

_LABELS = {
    name: re.compile(rb'[{,]%s="([^"\\]*)"' % name)
    for name in (
        b"kv_cache_size_tokens",
        b"num_gpu_blocks",
        b"block_size",
        b"engine",
        b"enable_prefix_caching",
        b"sleep_state",
    )
}


class EngineMetrics(msgspec.Struct, frozen=True, gc=False):
    """One reading, summed over a replica's engines (data-parallel ranks). None: not told."""

    running: float | None = None
    waiting: float | None = None
    kv_usage: float | None = None
    """Share of the KV cache held by running requests, 0 to 1, the mean over engines."""
    queries: float | None = None
    """Prompt tokens looked up in the prefix cache since the engine started."""
    hits: float | None = None
    """Those of them found."""
    prompts: float | None = None
    """Requests finished since the engine started."""
    prompt_tokens: float | None = None
    """Their prompt tokens."""
    started: float | None = None
    """When the process started, Unix seconds; several API servers in one engine do not tell it."""
    kv_tokens: int | None = None
    block_tokens: int | None = None
    """Tokens the KV cache has room for."""
    prefix_caching: bool | None = None
    asleep: bool | None = None
    """Whether any of its engines sleeps: it answers /health, and requests when it wakes."""

    @property
    def told_anything(self) -> bool:
        """Whether the text was an engine's at all."""
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


def parse_metrics(text: bytes) -> EngineMetrics:
    """Read what is there. A line that is not understood counts as not told; nothing raises."""
    text = b"\n" + text
    usage, engines = _total(text, _USAGE)
    kv_tokens, block_tokens, prefix_caching = _cache_config(text)
    return EngineMetrics(
        running=_total(text, _RUNNING)[0],
        waiting=_total(text, _WAITING)[0],
        kv_usage=None if usage is None else usage / engines,
        queries=_total(text, _QUERIES)[0],
        hits=_total(text, _HITS)[0],
        prompts=_total(text, _PROMPTS)[0],
        prompt_tokens=_total(text, _PROMPT_TOKENS)[0],
        started=_total(text, _STARTED)[0],
        kv_tokens=kv_tokens,
        block_tokens=block_tokens,
        prefix_caching=prefix_caching,
        asleep=_asleep(text),
    )


def _lines(text: bytes, start: bytes) -> list[bytes]:
    """The sample lines of a name, given with the newline before it, from labels or value on."""
    found: list[bytes] = []
    size = len(start)
    at = text.find(start)
    while at >= 0 and len(found) < MOST_SERIES:
        after = text[at + size : at + size + 1]
        end = text.find(b"\n", at + size)
        if end < 0:
            end = len(text)
        if after in (b"{", b" ") and end - at <= LONGEST_LINE:
            found.append(text[at + size : end])
        elif after not in (b"{", b" ") and not found:
            end = text.find(start, end)  # a longer name; the wanted one may come later
            if end < 0:
                break
        at = end if text.startswith(start, end) else -1
    return found


def _total(text: bytes, names: tuple[bytes, ...]) -> tuple[float | None, int]:
    """The sum over all series of the first name that is there, and how many there were."""
    for name in names:
        lines = _lines(text, name)
        if not lines:
            continue
        total = 0.0
        for line in lines:
            value = line[line.rfind(b"}") + 1 :].split()
            try:
                number = float(value[0])
            except (IndexError, ValueError):
                return None, 0
            if not isfinite(number) or number < 0.0:
                return None, 0
            total += number
        return total, len(lines)
    return None, 0


def _cache_config(text: bytes) -> tuple[int | None, int | None, bool | None]:
    """(KV cache tokens, tokens of a block, prefix caching on), from the labels of
    vllm:cache_config_info.

    kv_cache_size_tokens is one engine's and right for hybrid models too; num_gpu_blocks is older,
    and the sum over data-parallel engines already, though each of them repeats it (see vLLM's
    v1/engine/core_client.py).
    """
    tokens: int | None = None
    blocks = block = 0
    caching: bool | None = None
    engines: set[bytes] = set()
    for line in _lines(text, _CONFIG):
        engines.add(_label(line, b"engine"))
        tokens = max(tokens or 0, _number(_label(line, b"kv_cache_size_tokens"))) or None
        block = _number(_label(line, b"block_size")) or block
        size = _number(_label(line, b"num_gpu_blocks")) * block
        blocks = max(blocks, size)
        word = _label(line, b"enable_prefix_caching")
        if word:
            caching = word == b"True"
    if tokens is not None:
        tokens *= len(engines)
    return tokens or blocks or None, block or None, caching


def _asleep(text: bytes) -> bool | None:
    """Whether vllm:engine_sleep_state says of any engine that it is not awake. While it wakes in
    parts no state is 1, so that only "awake" tells."""
    found: bool | None = None
    for line in _lines(text, _SLEEP):
        if _label(line, b"sleep_state") == b"awake":
            value = line[line.rfind(b"}") + 1 :].strip()
            found = found or value in (b"0", b"0.0")
    return found


def _label(line: bytes, name: bytes) -> bytes:
    found = _LABELS[name].search(line)
    return found[1] if found else b""


def _number(word: bytes) -> int:
    """A decimal number; 0 for anything else, "None" among it, and for nonsense sizes."""
    return int(word) if word.isdigit() and len(word) <= 15 else 0
