"""Turns the answers of engines into findings."""

from __future__ import annotations

from collections.abc import Sequence

from router.doctor.engine import Engine
from router.doctor.finding import Finding, note, wrong

BETWEEN = "between replicas"
MAX_CLOCK_SKEW_S = 2.0


def of_engine(engine: Engine) -> list[Finding]:
    """The findings that one engine's answers show."""
    url = engine.url
    if engine.trouble:
        return [wrong(url, engine.trouble, engine.trouble_fix)]
    found = []
    metrics, kind = engine.metrics, engine.kind
    if metrics is None:
        found.append(
            wrong(
                url,
                f"{kind.metrics_paths[-1]} has none of {kind.title}'s metrics, so the KV cache's "
                "size is unknown",
                kind.metrics_fix,
            )
        )
    elif metrics.kv_tokens is None:
        what = "its metrics do not report the size of the KV cache"
        found.append(note(url, what, "set kv_cache_tokens"))
    off = (metrics is not None and metrics.prefix_caching is False) or _never_hits(engine)
    if off:
        found.append(
            wrong(
                url,
                "prefix caching is off, so nothing is ever reused",
                kind.caching_fix,
            )
        )
    if engine.first is not None and engine.first.cached_tokens is None:
        found.append(
            wrong(
                url,
                "answers do not report cached_tokens, so reuse cannot be measured",
                kind.usage_fix,
            )
        )
    salted = engine.salted
    if salted is not None and salted.cached_tokens and not off:
        found.append(
            wrong(
                url,
                "cache_salt does not isolate: a salted prompt reused blocks of an unsalted one",
                kind.salt_fix,
            )
        )
    if engine.refused:
        found.append(
            note(
                url,
                f"a probe (POST /v1/completions) was refused: {engine.refused}",
                "set replica_api_key; without it, the other findings are all that can be checked",
            )
        )
    if not kind.exact:
        found.append(
            note(
                url,
                f"it is {kind.title}: what its cache holds is estimated from what it was sent, "
                "also in exact mode",
                "nothing to mend",
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
    """Whether the engine computed a long prompt twice that was sent twice."""
    again = engine.again
    return again is not None and again.cached_tokens == 0 and again.prompt_tokens > 300


def between(engines: Sequence[Engine]) -> list[Finding]:
    """Findings where engines of one fleet differ that must be alike."""
    found = []
    asked = [engine for engine in engines if not engine.trouble]
    for name in sorted({name for engine in asked for name in engine.models}):
        # vLLM tells a folder, SGLang the name again, TensorRT-LLM nothing.
        by_kind: dict[str, set[str]] = {}
        for engine in asked:
            if name in engine.models:
                by_kind.setdefault(engine.kind.name, set()).add(engine.models[name])
        places = max(by_kind.values(), key=len)
        if len(places) > 1:
            found.append(
                wrong(
                    BETWEEN,
                    f"different models have the name {name}: {', '.join(sorted(places))}",
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
