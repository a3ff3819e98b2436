"""A gateway of our own for one arm of a comparison."""

from __future__ import annotations

import asyncio
import re
import sys
import time
from collections.abc import Sequence

import httpx
import msgspec
from prometheus_client.parser import text_string_to_metric_families

from loadgen.live.processes import Child, ChildError, Children, free_ports, ready
from loadgen.results.schema import Reuse

EXACT_ARMS = {"cache_aware_exact": "cache_aware"}
"""Arms that are a policy in exact mode, named as in a simulation -> that policy."""
EXACT_SECONDS = 180.0
"""Longest wait for the replicas' KV events and the comparison of their tokens."""


class Gateway(msgspec.Struct, frozen=True):
    """A gateway process that runs, with its URLs."""

    child: Child
    url: str
    admin: str


async def start_gateway(
    children: Children,
    replicas: Sequence[str],
    arm: str,
    extra: Sequence[str] = (),
    *,
    prefill: Sequence[str] = (),
) -> Gateway:
    """Start one on free loopback ports and wait until it is ready, and all replicas are exact for
    an arm of EXACT_ARMS. prefill: replicas that prefill for the others. Raises ChildError."""
    policy = EXACT_ARMS.get(arm, arm)
    port, admin_port = free_ports(2)
    command = [sys.executable, "-m", "router.cli.main", "serve"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    command += ["--admin-host", "127.0.0.1", "--admin-port", str(admin_port)]
    command += ["--policy", policy, "--explain-headers", "true"]
    command += ["--access-log", "0", "--log-level", "warning", "--settle-time", "0"]
    for replica in replicas:
        command += ["--replica", replica]
    for replica in prefill:
        command += ["--prefill", replica]
    if arm in EXACT_ARMS:
        command.append("--exact")
    child = children.start(f"gateway ({arm})", [*command, *extra])
    admin = f"http://127.0.0.1:{admin_port}"
    await ready(f"{admin}/readyz", [child])
    if arm in EXACT_ARMS:
        await _exact(admin, child)
    return Gateway(child, f"http://127.0.0.1:{port}", admin)


async def _exact(admin: str, child: Child) -> None:
    """Wait until every replica is exact. Raises ChildError."""
    give_up = time.monotonic() + EXACT_SECONDS
    async with httpx.AsyncClient(timeout=EXACT_SECONDS, trust_env=False) as client:
        while True:
            child.check()
            told = (await client.get(f"{admin}/replicas")).json()
            missing = {one["name"]: one["exact_missing"] for one in told if not one["exact"]}
            if not missing:
                return
            if time.monotonic() > give_up:
                said = "; ".join(f"{name}: {why}" for name, why in missing.items())
                raise ChildError(f"not exact after {EXACT_SECONDS:.0f} s: {said}")
            await asyncio.sleep(0.1)


_RAISED = re.compile(r'File \\?"([^"\\]+)\\?", line (\d+)')
_ERROR = re.compile(r"(?:\\n|\n)([A-Za-z_][\w.]*(?:: (?:(?!\\n)[^\n\"])*)?)(?=\"|\\n|\n|$)")


def raised(log: str) -> list[str]:
    """What a gateway's log tells of the last exception in it, a policy's for instance: clients get
    a 500 that says nothing. Empty when there is none."""
    where = list(_RAISED.finditer(log))
    if not where:
        return []
    error = _ERROR.findall(log, where[-1].end())
    what = error[-1] if error else "an exception"
    return [f"its gateway raised {what} ({where[-1][1]}, line {where[-1][2]})"]


_STAGES = ("prompt", "available", "chosen", "predicted", "delivered")


async def read_reuse(admin: str) -> Reuse | None:
    """What the gateway counted of the reuse funnel; None when it does not tell.

    Raises httpx.HTTPError when it cannot be asked."""
    async with httpx.AsyncClient(timeout=10.0, trust_env=False) as client:
        response = await client.get(f"{admin}/metrics")
        response.raise_for_status()
    return parse_reuse(response.text)


def parse_reuse(text: str) -> Reuse | None:
    """The five token counters, summed over their other labels, from Prometheus text."""
    found: dict[str, float] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            for stage in _STAGES:
                if sample.name == f"warmroute_reuse_{stage}_tokens_total":
                    found[stage] = found.get(stage, 0.0) + sample.value
    if any(stage not in found for stage in _STAGES):
        return None
    return Reuse(**found)
