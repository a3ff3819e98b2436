"""What one engine is asked, and what it answered: the raw material of the findings."""

from __future__ import annotations

import re
import secrets
from email.utils import parsedate_to_datetime
from time import time
from typing import Any

import httpx
import msgspec

from router.cli.check import NO_PATH, NOT_VLLM, is_vllm
from router.fleet.engine_metrics import EngineMetrics, parse_metrics

_LABELS = re.compile(rb'(\w+)="([^"\\]*)"')
PROBE_WORDS = 600
"""Words of a probe's prompt: several blocks of any usual size."""


class Usage(msgspec.Struct):
    """What an answer told of its prompt."""

    prompt_tokens: int = 0
    cached_tokens: int | None = None
    """None: not told."""


class Engine(msgspec.Struct):
    """What is known of one engine. Text in `trouble` says why nothing more is."""

    url: str
    trouble: str = ""
    trouble_fix: str = ""
    models: dict[str, str] = {}
    """Base model's name -> where its files are, as the engine says."""
    metrics: EngineMetrics | None = None
    cache: dict[str, str] = {}
    """Labels of vllm:cache_config_info."""
    first: Usage | None = None
    """A prompt nobody had sent before."""
    again: Usage | None = None
    """The same once more."""
    salted: Usage | None = None
    """The same with a salt nobody had used."""
    refused: str = ""
    """Why the probes were refused."""
    clock: float = 0.0
    """Seconds its clock is ahead, as far as one can tell to the second."""


async def examine(client: httpx.AsyncClient, url: str) -> Engine:
    """Ask an engine everything that HTTP tells."""
    engine = Engine(url, models={}, cache={})
    try:
        health = await client.get(url + "/health")
        if health.status_code in NO_PATH:
            _is_another(engine, f"/health answers {health.status_code}")
            return engine
        if health.status_code != 200:
            engine.trouble = f"/health answers {health.status_code}"
            engine.trouble_fix = "look at the engine's log"
            return engine
        _read_clock(engine, health)
        if not await _read_models(client, engine):
            return engine
        await _read_metrics(client, engine)
        await _probe(client, engine)
    except httpx.HTTPError as error:
        engine.trouble = f"it cannot be asked: {error or type(error).__name__}"
        engine.trouble_fix = "start it, or mend the URL or the network"
    return engine


def _is_another(engine: Engine, why: str) -> None:
    engine.trouble = f"{NOT_VLLM}: {why}"
    engine.trouble_fix = "give the URL of a vLLM server, without /v1"


def _read_clock(engine: Engine, answer: httpx.Response) -> None:
    told = answer.headers.get("date")
    if told:
        try:
            ahead = parsedate_to_datetime(told).timestamp() + 0.5 - time()
        except ValueError:
            return
        engine.clock = ahead if abs(ahead) > 1.0 else 0.0


async def _read_models(client: httpx.AsyncClient, engine: Engine) -> bool:
    answer = await client.get(engine.url + "/v1/models")
    if answer.status_code in (401, 403):
        engine.trouble = f"/v1/models answers {answer.status_code}"
        engine.trouble_fix = "set replica_api_key (WARMROUTE_REPLICA_API_KEY)"
        return False
    try:
        cards: list[dict[str, Any]] = msgspec.json.decode(answer.content)["data"]
        engine.models = {
            card["id"]: str(card.get("root") or "") for card in cards if not card.get("parent")
        }
        if not await is_vllm(client, engine.url, cards):
            _is_another(engine, "its models say so, and its metrics are none of vLLM's")
    except (msgspec.DecodeError, UnicodeDecodeError, KeyError, TypeError, AttributeError):
        _is_another(engine, "/v1/models answers something else than a list of models")
    return not engine.trouble


async def _read_metrics(client: httpx.AsyncClient, engine: Engine) -> None:
    answer = await client.get(engine.url + "/metrics", follow_redirects=True)
    if answer.status_code != 200:
        return
    metrics = parse_metrics(answer.content)
    if metrics.told_anything:
        engine.metrics = metrics
    for line in answer.content.split(b"\n"):
        if line.startswith(b"vllm:cache_config_info{"):
            engine.cache = {
                name.decode(): value.decode("utf-8", "replace")
                for name, value in _LABELS.findall(line)
            }
            break


async def _probe(client: httpx.AsyncClient, engine: Engine) -> None:
    if not engine.models:
        return
    model = next(iter(engine.models))
    start = secrets.token_hex(8)
    prompt = start + " word" * PROBE_WORDS
    engine.first = await _complete(client, engine, model, prompt, "")
    if engine.first is None:
        return
    engine.again = await _complete(client, engine, model, prompt, "")
    engine.salted = await _complete(client, engine, model, prompt, "doctor-" + start)


async def _complete(
    client: httpx.AsyncClient, engine: Engine, model: str, prompt: str, salt: str
) -> Usage | None:
    body: dict[str, Any] = {"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0}
    if salt:
        body["cache_salt"] = salt
    answer = await client.post(engine.url + "/v1/completions", json=body)
    try:
        tree = msgspec.json.decode(answer.content)
        if answer.status_code != 200:
            engine.refused = f"{answer.status_code} {str(tree)[:200]}"
            return None
        usage = tree["usage"]
        details = usage.get("prompt_tokens_details") or {}
        return Usage(usage["prompt_tokens"], details.get("cached_tokens"))
    except (msgspec.DecodeError, KeyError, TypeError, AttributeError):
        engine.refused = "an answer without usage"
        return None
