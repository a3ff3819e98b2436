"""Checks what exact mode needs of the engines. Imports the libraries of exact mode."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

import httpx
import jinja2  # noqa: F401  (missing: this file cannot be imported, which is what is to be told)
import msgspec
import tokenizers  # noqa: F401
import zmq  # noqa: F401

from router.config import Settings
from router.doctor.engine import Engine
from router.doctor.events import listen
from router.doctor.finding import Finding, note, wrong
from router.doctor.findings import BETWEEN
from router.render.check import compare, prompts
from router.render.errors import ModelError
from router.render.loading import place_of
from router.render.model import RenderModel, find_folder


async def findings(
    client: httpx.AsyncClient, engines: Sequence[Engine], settings: Settings
) -> list[Finding]:
    """Findings on events, tokenizers and templates, of each engine and between engines."""
    found: list[Finding] = []
    # What exact mode does not follow has no events to listen to, and renders no chats to compare.
    engines = [engine for engine in engines if engine.kind.exact]
    names: dict[str, tuple[object, ...]] = {}
    missing: set[str] = set()
    for engine in engines:
        model = next(iter(engine.models))
        heard = await listen(client, engine.url, model, settings)
        found += heard.findings
        if heard.names:
            names[engine.url] = heard.names
        found += await _tokenizers(client, engine, settings, missing)
    if len({type(one[0]) for one in names.values()}) > 1:
        what = "KV events name blocks by integers on one replica and by bytes on another"
        fix = "set VLLM_KV_EVENTS_USE_INT_BLOCK_HASHES alike everywhere; warmroute works with both"
        found.append(note(BETWEEN, what, fix))
    elif len(set(names.values())) > 1:
        what = "the same block has different hashes on different replicas"
        fix = (
            "use the same --prefix-caching-hash-algo and PYTHONHASHSEED where engines share a "
            "cache tier; warmroute works with both"
        )
        found.append(note(BETWEEN, what, fix))
    found += await _same_tokens(client, engines)
    return found


def _template(path: str) -> str:
    return Path(path).read_text("utf-8") if path else ""


async def _tokenizers(
    client: httpx.AsyncClient, engine: Engine, settings: Settings, missing: set[str]
) -> list[Finding]:
    """Findings where the router's tokens differ from the engine's. missing: places that had no
    tokenizer, to which new ones are added: each is told, and asked of the hub, once."""
    found = []
    for name, root in engine.models.items():
        place = place_of(settings.exact_tokenizer, name, root)
        if place in missing:
            continue
        try:
            template = await asyncio.to_thread(_template, settings.exact_chat_template)
            folder = await asyncio.to_thread(find_folder, place, download=settings.exact_download)
            model = await asyncio.to_thread(RenderModel, folder, template)
        except ModelError as error:
            what = f"this machine cannot tokenise for model {name}: {error}"
            fix = "set exact_tokenizer to a folder or hub name that has its tokenizer.json"
            missing.add(place)
            found.append(note(engine.url, what, fix))
            continue
        why = await compare(client, engine.url, name, model)
        if why:
            fix = "set exact_tokenizer and exact_chat_template to what the engine was started with"
            found.append(wrong(engine.url, f"model {name}: {why}", fix))
    return found


async def _same_tokens(client: httpx.AsyncClient, engines: Sequence[Engine]) -> list[Finding]:
    """Findings where engines make different tokens for the same model name."""
    found = []
    for name in sorted({name for engine in engines for name in engine.models}):
        answers = {
            engine.url: str([await _tokens(client, engine.url, name, one) for one in prompts([])])
            for engine in engines
            if name in engine.models
        }
        if len(set(answers.values())) > 1:
            what = f"model {name} has different tokens on different replicas: " + ", ".join(answers)
            fix = "use one --tokenizer, --chat-template and --revision for all of them"
            found.append(wrong(BETWEEN, what, fix))
    return found


async def _tokens(
    client: httpx.AsyncClient, url: str, name: str, body: dict[str, object]
) -> list[int] | None:
    answer = await client.post(url + "/tokenize", json={"model": name, **body})
    if answer.status_code != 200:
        return None
    try:
        tokens: list[int] = msgspec.json.decode(answer.content)["tokens"]
    except (msgspec.DecodeError, KeyError, TypeError):
        return None
    return tokens
