"""`warmroute doctor --isolation`: whether salts keep tenants' caches apart on live engines."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import httpx

from router.doctor.engine import Engine
from router.doctor.finding import Finding, note, wrong
from router.tenants.isolation_check import Verdict, check_isolation


async def findings(client: httpx.AsyncClient, engines: Sequence[Engine]) -> list[Finding]:
    """What is wrong with salts on some engines, which all answer."""
    found = await asyncio.gather(*(_of_engine(client, engine) for engine in engines))
    return [finding for each in found for finding in each]


async def _of_engine(client: httpx.AsyncClient, engine: Engine) -> list[Finding]:
    found = []
    for model in engine.models:
        try:
            verdicts = await check_isolation(client, engine.url, model)
        except httpx.HTTPError as error:
            what = f"isolation of {model} was not tried: {error or type(error).__name__}"
            return [note(engine.url, what, "look at the engine's log")]
        found += [_finding(engine, model, verdict) for verdict in verdicts if not verdict.proven]
        proven = [verdict.api for verdict in verdicts if verdict.proven]
        if proven:
            what = f"salts keep caches of {model} apart: {', '.join(proven)}"
            found.append(note(engine.url, what, "nothing to mend"))
    return found


def _finding(engine: Engine, model: str, verdict: Verdict) -> Finding:
    url, kind = engine.url, engine.kind
    what = f"{model}, {verdict.api}: "
    if verdict.leaks:
        return wrong(
            url,
            what + "a prompt reused blocks of another salt: tenants are NOT kept apart",
            f"upgrade {kind.title}, take out the KV connector or LoRA setting that drops salts, or "
            "do not serve this API",
        )
    if verdict.never_hits:
        return wrong(
            url,
            what + "salted prompts never reuse anything, not even their own blocks",
            f"{kind.caching_fix}; upgrade {kind.title}",
        )
    return note(
        url, what + f"whether salts work is not known: {verdict.unproven}",
        f"{kind.usage_fix}; set replica_api_key where the engine has a key",
    )  # fmt: skip
