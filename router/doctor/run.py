"""The command: checks every replica, prints the findings, and says whether any is a fault."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import httpx

from router import extras
from router.config import Settings, replica_context
from router.doctor.apart import findings as apart_findings
from router.doctor.engine import Engine, examine
from router.doctor.finding import Finding, note
from router.doctor.findings import BETWEEN, between, of_engine
from router.doctor.isolation import findings as isolation_findings

FINE, WRONG = 0, 1
TIMEOUT_S = 30.0


def run(settings: Settings, *, isolation: bool = False) -> int:
    """Examine the replicas of some settings. Returns 1 when anything is wrong, else 0.

    isolation: also try whether salts keep caches apart.
    """
    engines, found = asyncio.run(diagnose(settings, isolation=isolation))
    print(report(engines, found))
    return WRONG if any(finding.wrong for finding in found) else FINE


async def diagnose(
    settings: Settings, *, isolation: bool = False
) -> tuple[list[Engine], list[Finding]]:
    """Ask the replicas of the settings, and collect the findings."""
    key = settings.replica_api_key
    async with httpx.AsyncClient(
        headers={"authorization": f"Bearer {key}"} if key else {},
        timeout=TIMEOUT_S,
        verify=replica_context(settings),
        trust_env=False,
    ) as client:
        engines = list(await asyncio.gather(*(examine(client, url) for url in settings.engines)))
        found = [finding for engine in engines for finding in of_engine(engine)]
        found += between(engines)
        answering = [engine for engine in engines if not engine.trouble and engine.models]
        if isolation or settings.isolation != "none":
            found += await isolation_findings(client, answering)
        if settings.prefill:
            found += await apart_findings(client, answering, settings)
        try:
            from router.doctor import exact
        except ImportError as error:
            what = f"tokenizers and KV events were not checked: {error.name} is not installed"
            found.append(note(BETWEEN, what, extras.EXACT))
        else:
            found += await exact.findings(client, answering, settings)
    return engines, found


def report(engines: Sequence[Engine], found: Sequence[Finding]) -> str:
    """The printed report: faults first, each with its fix."""
    lines = []
    for finding in sorted(found, key=lambda finding: not finding.wrong):
        lines.append(f"{'WRONG' if finding.wrong else 'note '}  {finding.where}: {finding.what}")
        lines.append(f"       mend: {finding.fix}")
    for engine in engines:
        if not any(finding.where == engine.url and finding.wrong for finding in found):
            models = ", ".join(engine.models) or "no model"
            title = f"{engine.kind.title}, " if engine.kind.name else ""
            lines.append(f"fine   {engine.url}: {title}serves {models}")
    count = sum(finding.wrong for finding in found)
    what = f"{count} thing{'s'[: count != 1]}" if count else "nothing"
    lines.append(f"{what} wrong with {len(engines)} replica{'s'[: len(engines) != 1]}")
    return "\n".join(lines)
