"""The requests that the doctor sends to one engine, and their answers: the raw material of
findings."""

from __future__ import annotations

import re
import secrets
from email.utils import parsedate_to_datetime
from time import time
from typing import Any

import httpx
import msgspec

from router.doctor.identify import identify
from router.fleet.engine_metrics import EngineMetrics
from router.fleet.engines import UNKNOWN, EngineKind

_LABELS = re.compile(rb'(\w+)="([^"\\]*)"')
PROBE_WORDS = 600
"""Words of a probe's prompt, enough for several blocks of any usual size."""


class Usage(msgspec.Struct):
    """What an answer reported of its prompt."""

    prompt_tokens: int = 0
    cached_tokens: int | None = None
    """None when the engine did not report it."""


class Engine(msgspec.Struct):
    """What the doctor knows of one engine. `trouble` says why it could not learn more."""

    url: str
    kind: EngineKind = UNKNOWN
    trouble: str = ""
    trouble_fix: str = ""
    models: dict[str, str] = {}
    """Where each base model's files are, by the model's name, as the engine reports it."""
    metrics: EngineMetrics | None = None
    cache: dict[str, str] = {}
    """The labels of vllm:cache_config_info."""
    first: Usage | None = None
    """The usage of a prompt that nobody had sent before."""
    again: Usage | None = None
    """The usage of the same prompt, sent a second time."""
    salted: Usage | None = None
    """The usage of the same prompt with a new cache_salt."""
    refused: str = ""
    """Why the engine refused the probes; empty if it did not."""
    clock: float = 0.0
    """Seconds by which its clock is ahead. HTTP dates have whole seconds."""


async def examine(client: httpx.AsyncClient, url: str) -> Engine:
    """Ask an engine over HTTP for everything but its KV events."""
    engine = Engine(url, models={}, cache={})
    identity = await identify(client, url)
    if identity.trouble:
        engine.trouble, engine.trouble_fix = identity.trouble, identity.fix
        return engine
    engine.kind = identity.kind
    engine.clock = _clock(identity.date)
    engine.models = {
        card["id"]: str(card.get("root") or "") for card in identity.cards if not card.get("parent")
    }
    try:
        await _read_metrics(client, engine)
        await _probe(client, engine)
    except httpx.HTTPError as error:
        engine.trouble = f"it stopped answering: {error or type(error).__name__}"
        engine.trouble_fix = "read the engine's log"
    return engine


def _clock(date: str) -> float:
    try:
        ahead = parsedate_to_datetime(date).timestamp() + 0.5 - time()
    except ValueError:
        return 0.0
    return ahead if abs(ahead) > 1.0 else 0.0


async def _read_metrics(client: httpx.AsyncClient, engine: Engine) -> None:
    for path in engine.kind.metrics_paths:
        answer = await client.get(engine.url + path, follow_redirects=True)
        if answer.status_code == 200:
            break
    else:
        return
    metrics = engine.kind.parse_metrics(answer.content)
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
        engine.refused = "the answer has no usage"
        return None
