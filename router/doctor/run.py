"""The command: examine every replica, print what was found, and say whether anything is wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import httpx

from router import extras
from router.config import Settings, replica_context
from router.doctor.engine import Engine, examine
from router.doctor.finding import Finding, note
from router.doctor.findings import BETWEEN, between, of_engine

FINE, WRONG = 0, 1
TIMEOUT_S = 30.0


def run(settings: Settings) -> int:
    """Examine the replicas of some settings. Returns 1 when anything is wrong, else 0."""
    engines, found = asyncio.run(diagnose(settings))
    print(report(engines, found))
    return WRONG if any(finding.wrong for finding in found) else FINE


async def diagnose(settings: Settings) -> tuple[list[Engine], list[Finding]]:
    """Everything that can be found out about some replicas."""
    key = settings.replica_api_key
    async with httpx.AsyncClient(
        headers={"authorization": f"Bearer {key}"} if key else {},
        timeout=TIMEOUT_S,
        verify=replica_context(settings),
        trust_env=False,
    ) as client:
        engines = list(await asyncio.gather(*(examine(client, url) for url in settings.replicas)))
        found = [finding for engine in engines for finding in of_engine(engine)]
        found += between(engines)
        answering = [engine for engine in engines if not engine.trouble and engine.models]
        try:
            from router.doctor import exact
        except ImportError as error:
            what = f"tokenizers and KV events were not looked at: {error.name} is not installed"
            found.append(note(BETWEEN, what, extras.EXACT))
        else:
            found += await exact.findings(client, answering, settings)
    return engines, found


def report(engines: Sequence[Engine], found: Sequence[Finding]) -> str:
    """What is printed: what is wrong first, each with what mends it."""
    lines = []
    for finding in sorted(found, key=lambda finding: not finding.wrong):
        lines.append(f"{'WRONG' if finding.wrong else 'note '}  {finding.where}: {finding.what}")
        lines.append(f"       mend: {finding.fix}")
    for engine in engines:
        if not any(finding.where == engine.url and finding.wrong for finding in found):
            models = ", ".join(engine.models) or "no model"
            lines.append(f"fine   {engine.url}: serves {models}")
    count = sum(finding.wrong for finding in found)
    lines.append(f"{count or 'no'} thing{'s'[: count != 1]} wrong with {len(engines)} replicas")
    return "\n".join(lines)
