"""Engines that a comparison uses: what they are called, whether they can be used, what they
counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import httpx
from prometheus_client.parser import text_string_to_metric_families

from loadgen.client.target import address
from loadgen.live.run import RunError
from loadgen.results.schema import NO_LATENCY, ReplicaResult
from router.kv_events.sources import parse_sources

_ASK_SECONDS = 10.0
_QUERIES, _HITS = "vllm:prefix_cache_queries_total", "vllm:prefix_cache_hits_total"
_OWN_ID = "wr-"
"""What the ids begin with that a Warmroute gives to requests without one."""
_REQUESTS, _OUTPUT = "vllm:request_success_total", "vllm:generation_tokens_total"


def shown_names(urls: Sequence[str], names: Sequence[str]) -> dict[str, str]:
    """What a replica's URL, and what a gateway calls it, are shown as. Raises TargetError."""
    shown = {}
    for url, name in zip(urls, names, strict=True):
        found = address(url)
        host = f"[{found.host}]" if ":" in found.host else found.host
        shown[url] = shown[f"{host}:{found.port}{found.prefix}"] = name
    return shown


async def must_answer(url: str, headers: Mapping[str, str]) -> None:
    """Raises RunError when nothing speaks HTTP there."""
    await _get(url, "/v1/models", headers)


async def must_serve(url: str, headers: Mapping[str, str]) -> None:
    """Raises RunError for a replica that no gateway would use: not healthy, or without models."""
    health = await _get(url, "/health", headers)
    if health.status_code != 200:
        raise RunError(
            f"--replica {url} is not a vLLM that is ready: /health answers {health.status_code}"
        )
    models = await _get(url, "/v1/models", headers)
    try:
        named = models.status_code == 200 and bool(models.json()["data"][0]["id"])
    except (ValueError, LookupError, TypeError):
        named = False
    if not named:
        raise RunError(
            f"--replica {url} does not speak OpenAI's API: /v1/models ({models.status_code}) names "
            "no model"
        )


async def must_tell_events(url: str, headers: Mapping[str, str]) -> None:
    """Raises RunError for a replica that tells no KV events, which exact mode needs."""
    answer = await _get(url, "/kv_event_sources", headers)
    try:
        told = answer.status_code == 200 and bool(parse_sources(answer.content, answer.url.host))
    except ValueError:
        told = False
    if not told:
        raise RunError(
            f"--replica {url} tells no KV events (/kv_event_sources, {answer.status_code}), which "
            "an arm in exact mode needs: start vLLM with --kv-events-config, or, for an older "
            "one, say where they are with --gateway-arg=--exact-events"
        )


async def _get(url: str, path: str, headers: Mapping[str, str]) -> httpx.Response:
    base = url.rstrip("/").removesuffix("/v1")
    try:
        async with httpx.AsyncClient(timeout=_ASK_SECONDS, trust_env=False) as client:
            return await client.get(f"{base}{path}", headers=dict(headers))
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise RunError(f"{url} does not answer ({type(error).__name__}): is it up?") from error


async def read_counters(
    urls: Sequence[str], headers: Mapping[str, str]
) -> list[dict[str, float]] | None:
    """Each engine's counters by name, summed over labels; None when one of them does not tell."""
    found = []
    for url in urls:
        try:
            if await _is_gateway(url, headers):
                return None
            answer = await _get(url, "/metrics", headers)
            counted = parse_counters(answer.text) if answer.status_code == 200 else {}
        except (RunError, ValueError):
            return None
        if _QUERIES not in counted or _HITS not in counted:
            return None
        found.append(counted)
    return found


async def _is_gateway(url: str, headers: Mapping[str, str]) -> bool:
    """A Warmroute's port for clients, which refuses /metrics and counts that as an error."""
    answer = await _get(url, "/v1/models", headers)
    return str(answer.headers.get("x-request-id", "")).startswith(_OWN_ID)


def parse_counters(text: str) -> dict[str, float]:
    """What vLLM's Prometheus text counts of requests, prompts and answers. Raises ValueError."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name in (_QUERIES, _HITS, _REQUESTS, _OUTPUT):
                found[sample.name] = found.get(sample.name, 0.0) + sample.value
    return found


def summed(runs: Sequence[Sequence[ReplicaResult]]) -> list[ReplicaResult]:
    """The same replicas' parts of several runs, together."""
    found = []
    for own in zip(*runs, strict=True):
        prompt = sum(one.prompt_tokens for one in own)
        cached = sum(one.cached_tokens for one in own)
        found.append(
            ReplicaResult(
                name=own[0].name,
                requests=sum(one.requests for one in own),
                errors=0,
                prompt_tokens=prompt,
                cached_tokens=cached,
                output_tokens=sum(one.output_tokens for one in own),
                hit_rate=cached / prompt if prompt else None,
                ttft_ms=NO_LATENCY,
            )
        )
    return found


def counted(
    names: Sequence[str],
    before: Sequence[Mapping[str, float]],
    after: Sequence[Mapping[str, float]],
) -> list[ReplicaResult]:
    """What each engine says it did between two readings: whoever asked, warm-up included."""
    results = []
    for name, old, new in zip(names, before, after, strict=True):
        grown = {key: int(value - old.get(key, 0.0)) for key, value in new.items()}
        prompt, cached = grown[_QUERIES], grown[_HITS]
        results.append(
            ReplicaResult(
                name=name,
                requests=grown.get(_REQUESTS, 0),
                errors=0,
                prompt_tokens=prompt,
                cached_tokens=cached,
                output_tokens=grown.get(_OUTPUT, 0),
                hit_rate=cached / prompt if prompt else None,
                ttft_ms=NO_LATENCY,
            )
        )
    return results
