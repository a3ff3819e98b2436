"""From what engines answered to findings."""

from __future__ import annotations

from collections.abc import Sequence

from router.doctor.engine import Engine
from router.doctor.finding import Finding, note, wrong

BETWEEN = "between replicas"
MAX_CLOCK_SKEW_S = 2.0


def of_engine(engine: Engine) -> list[Finding]:
    """What one engine's answers show."""
    url = engine.url
    if engine.trouble:
        return [wrong(url, engine.trouble, engine.trouble_fix)]
    found = []
    metrics = engine.metrics
    if metrics is None:
        found.append(
            wrong(
                url,
                "/metrics has none of vLLM's metrics: the size of its KV cache is not known",
                "take out --disable-log-stats, let /metrics through the proxy before it, or set "
                "kv_cache_tokens",
            )
        )
    elif metrics.kv_tokens is None:
        what = "/metrics does not tell the size of the KV cache: it is not known"
        found.append(note(url, what, "set kv_cache_tokens"))
    off = (metrics is not None and metrics.prefix_caching is False) or _never_hits(engine)
    if off:
        found.append(
            wrong(
                url,
                "prefix caching is off: nothing is ever reused",
                "--enable-prefix-caching (and take out --no-enable-prefix-caching)",
            )
        )
    if engine.first is not None and engine.first.cached_tokens is None:
        found.append(
            wrong(
                url,
                "answers do not tell cached_tokens: what was reused cannot be seen",
                "--enable-prompt-tokens-details",
            )
        )
    salted = engine.salted
    if salted is not None and salted.cached_tokens and not off:
        found.append(
            wrong(
                url,
                "cache_salt does not isolate: a salted prompt reused blocks of an unsalted one",
                "upgrade vLLM to 0.9 or later",
            )
        )
    if engine.refused:
        found.append(
            note(
                url,
                f"a probe (POST /v1/completions) was refused: {engine.refused}",
                "set replica_api_key, or mind only what else is told here",
            )
        )
    if abs(engine.clock) > MAX_CLOCK_SKEW_S:
        found.append(
            wrong(
                url,
                f"its clock is {engine.clock:+.0f} s off: templates that print the date differ, "
                "and logs cannot be compared",
                "run NTP on both machines",
            )
        )
    return found


def _never_hits(engine: Engine) -> bool:
    """A long prompt, sent twice, was computed twice."""
    again = engine.again
    return again is not None and again.cached_tokens == 0 and again.prompt_tokens > 300


def between(engines: Sequence[Engine]) -> list[Finding]:
    """What engines of one fleet must have in common."""
    found = []
    asked = [engine for engine in engines if not engine.trouble]
    for name in sorted({name for engine in asked for name in engine.models}):
        places = {engine.models[name] for engine in asked if name in engine.models}
        if len(places) > 1:
            found.append(
                wrong(
                    BETWEEN,
                    f"model {name} is another one on another replica: {', '.join(sorted(places))}",
                    "give different models different names: --served-model-name",
                )
            )
    for label, flag, what in (
        ("block_size", "--block-size", "block sizes differ"),
        ("prefix_caching_hash_algo", "--prefix-caching-hash-algo", "block hash algorithms differ"),
        ("cache_dtype", "--kv-cache-dtype", "KV cache types differ"),
    ):
        values = {engine.cache[label] for engine in asked if engine.cache.get(label)}
        if len(values) > 1:
            found.append(
                wrong(
                    BETWEEN,
                    f"{what}: {', '.join(sorted(values))}",
                    f"start every replica of a model with the same {flag}",
                )
            )
    return found
