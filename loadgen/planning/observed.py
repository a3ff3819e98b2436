"""What really happened, from a gateway's access log."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import msgspec
import numpy as np

from loadgen.results.schema import Arm
from loadgen.workloads.traces.source import Source
from router.config.units import parse_duration


class Line(msgspec.Struct):
    """What is read of one line."""

    time: float = 0.0
    replica: str = ""
    policy: str = ""
    outcome: str = ""
    ttft: float = 0.0
    prompt_tokens: int = 0
    delivered: int | None = None
    blocks: list[int] | None = None


class Observed(msgspec.Struct, frozen=True):
    """The log in numbers."""

    began: float
    """Unix time of its first request."""
    ended: float
    requests: int
    replicas: int
    policy: str
    """The most common one."""
    hit_rate: float | None
    ttft_p50: float | None
    ttft_p90: float | None
    failed: int
    without_blocks: int
    """Requests that cannot be replayed."""


def observed(path: Path) -> Observed:
    """Raises TraceError."""
    times: list[float] = []
    ttfts: list[float] = []
    replicas: set[str] = set()
    policies: Counter[str] = Counter()
    prompt = cached = failed = bare = 0
    for _, line in Source(path).records(Line):
        times.append(line.time)
        replicas.add(line.replica)
        policies[line.policy] += 1
        failed += line.outcome not in ("", "ok")
        bare += line.blocks is None
        if line.ttft:
            ttfts.append(line.ttft)
        if line.delivered is not None:
            prompt += line.prompt_tokens
            cached += line.delivered
    replicas.discard("")
    del policies[""]
    p50, p90 = np.percentile(ttfts, (50, 90)) if ttfts else (None, None)
    return Observed(
        began=min(times, default=0.0),
        ended=max(times, default=0.0),
        requests=len(times),
        replicas=len(replicas),
        policy=policies.most_common(1)[0][0] if policies else "",
        hit_rate=cached / prompt if prompt else None,
        ttft_p50=None if p50 is None else float(p50),
        ttft_p90=None if p90 is None else float(p90),
        failed=failed,
        without_blocks=bare,
    )


def beside(seen: Observed, model: Arm) -> str:
    """How well the model says again what was seen, in a sentence."""
    parts = []
    if seen.hit_rate is not None and model.hit_rate is not None:
        parts.append(f"hit rate {seen.hit_rate:.1%} in the log, {model.hit_rate:.1%} in the model")
    for name, was, now in (
        ("TTFT p50", seen.ttft_p50, model.ttft_ms.p50),
        ("TTFT p90", seen.ttft_p90, model.ttft_ms.p90),
    ):
        if was is not None and now is not None:
            parts.append(f"{name} {was * 1e3:,.0f} ms in the log, {now:,.0f} ms in the model")
    if not parts:
        return "The log tells neither reuse nor times to compare the model with"
    return f"The same fleet as the log's: {'; '.join(parts)}"


def moment(text: str, began: float) -> float:
    """Seconds from the log's start to a time of day (UTC, 12:30 or 12:30:15), or plain seconds
    with their unit (10m). Raises ValueError."""
    if ":" not in text:
        return parse_duration(text)
    parts = [int(part) for part in text.split(":")]
    start = datetime.fromtimestamp(began, UTC)
    at = start.replace(hour=parts[0], minute=parts[1], second=0, microsecond=0)
    at += timedelta(seconds=parts[2] if len(parts) > 2 else 0)
    if at < start:
        at += timedelta(days=1)
    return (at - start).total_seconds()
