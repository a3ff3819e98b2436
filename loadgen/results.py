"""What a run, a comparison or a simulation found: typed, versioned, written as JSON and CSV.

The JSON is documented in docs/loadgen.md. Fields are only added within a version.
"""

from __future__ import annotations

import csv
import io
from pathlib import Path

import msgspec

VERSION = 1


class Latency(msgspec.Struct, frozen=True):
    """A latency in milliseconds. All 0 when count is 0."""

    count: int
    mean: float
    std: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


NO_LATENCY = Latency(0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


class Throughput(msgspec.Struct, frozen=True):
    """Of requests that succeeded, over the whole run."""

    requests_per_s: float
    input_tokens_per_s: float
    output_tokens_per_s: float


class Goodput(msgspec.Struct, frozen=True):
    """Requests that met every objective."""

    objectives_ms: dict[str, float]
    """Of ttft, tpot, e2e: the most milliseconds."""
    requests_per_s: float
    fraction: float
    """Of all requests, failed ones included."""


class ReplicaResult(msgspec.Struct, frozen=True):
    """One replica's part."""

    name: str
    requests: int
    errors: int
    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    hit_rate: float | None
    """None when the engine did not report cached tokens."""
    ttft_ms: Latency
    hit_rate_over_time: list[float | None] = []
    """One value for each of the arm's time buckets; None where nothing ended."""


class Balance(msgspec.Struct, frozen=True):
    """How evenly the load was spread, by prompt tokens that had to be computed and by requests."""

    requests_cv: float
    """Coefficient of variation (standard deviation over mean) of requests per replica."""
    requests_max_over_mean: float
    work_cv: float
    """The same for uncached prompt tokens plus output tokens."""
    work_max_over_mean: float


class Schedule(msgspec.Struct, frozen=True):
    """How late the load generator itself was: sent minus scheduled, milliseconds."""

    lag_p50_ms: float
    lag_p99_ms: float
    lag_max_ms: float
    behind: bool
    """True when the lag is large enough to say: the load was not what was asked for."""


class Savings(msgspec.Struct, frozen=True):
    """Prefill not done, against the first arm, scaled to the same prompt tokens."""

    prefill_tokens: float
    gpu_seconds: float
    money: float | None
    """In the price's currency; None without a price."""
    money_per_million_requests: float | None


class Reuse(msgspec.Struct, frozen=True):
    """The hits' way, in tokens, from the gateway's metrics (see its documentation)."""

    prompt: float
    available: float
    chosen: float
    predicted: float
    delivered: float


class Arm(msgspec.Struct):
    """One way of routing, under the same arrivals as the others."""

    name: str
    requests: int
    completed: int
    duration_s: float
    """From the start to the end of the last request."""
    hit_rate: float | None
    """Cached over prompt tokens as the engines reported them; None when they did not."""
    upper_bound: float
    """The hit rate of one infinite cache that all replicas share."""
    ttft_ms: Latency
    tpot_ms: Latency
    itl_ms: Latency
    e2e_ms: Latency
    throughput: Throughput
    errors: dict[str, int]
    """Requests by reason."""
    replicas: list[ReplicaResult]
    balance: Balance
    schedule: Schedule
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    goodput: Goodput | None = None
    savings: Savings | None = None
    reuse: Reuse | None = None
    bucket_s: float = 0.0
    """Width of the time buckets."""
    hit_rate_over_time: list[float | None] = []
    ttft_quantiles_ms: list[float] = []
    """TTFT at 0%, 1%, ... 100%: enough to draw its distribution."""
    e2e_quantiles_ms: list[float] = []
    repeats: int = 1
    load: float = 0.0
    """The offered rate (requests a second) or concurrency of this arm's point in a sweep."""
    extra: dict[str, float] = {}
    """What only one kind of driver knows, named with its unit."""


class Difference(msgspec.Struct, frozen=True):
    """arm minus baseline, with a 95% bootstrap confidence interval."""

    metric: str
    """A field of Arm with dots, such as ttft_ms.p90."""
    baseline: str
    arm: str
    value: float
    low: float
    high: float
    relative: float | None
    """value over the baseline's; None when that is 0."""


class Results(msgspec.Struct):
    """Everything one command found."""

    kind: str
    """run, compare, sweep, simulate or report."""
    workload: str
    arms: list[Arm]
    version: int = VERSION
    simulated: bool = False
    """The replicas, or everything, were simulated."""
    description: str = ""
    """What was measured on what, in a sentence or two, for whoever reads the report."""
    settings: dict[str, str] = {}
    differences: list[Difference] = []
    warnings: list[str] = []
    conclusion: str = ""


class ResultsError(ValueError):
    """A results file that cannot be read."""


def write_json(results: Results, path: Path) -> None:
    """Write indented JSON. Raises OSError."""
    encoded = msgspec.json.format(msgspec.json.encode(results), indent=2)
    path.write_bytes(encoded + b"\n")


def read_json(path: Path) -> Results:
    """Raises ResultsError when the file is not a result of a version this code knows, and
    OSError."""
    try:
        results = msgspec.json.decode(path.read_bytes(), type=Results)
    except msgspec.MsgspecError as error:
        raise ResultsError(f"{path} is not a results file: {error}") from error
    if results.version != VERSION:
        raise ResultsError(
            f"{path} has version {results.version}, this program reads {VERSION}: write it anew"
        )
    return results


def schema() -> str:
    """JSON Schema (2020-12) of a results file, as kept in docs/results.schema.json."""
    return msgspec.json.format(msgspec.json.encode(msgspec.json.schema(Results)), indent=2).decode()


LATENCIES = ("ttft_ms", "tpot_ms", "itl_ms", "e2e_ms")


def rows(results: Results) -> list[dict[str, object]]:
    """One flat row for each arm."""
    table = []
    for arm in results.arms:
        row: dict[str, object] = {
            "workload": results.workload,
            "arm": arm.name,
            "load": arm.load,
            "repeats": arm.repeats,
            "requests": arm.requests,
            "completed": arm.completed,
            "errors": sum(arm.errors.values()),
            "duration_s": arm.duration_s,
            "hit_rate": arm.hit_rate,
            "upper_bound": arm.upper_bound,
        }
        for name in LATENCIES:
            for part, value in msgspec.structs.asdict(getattr(arm, name)).items():
                if part != "count":
                    row[f"{name}_{part}"] = value
        row.update(msgspec.structs.asdict(arm.throughput))
        row["goodput_requests_per_s"] = arm.goodput.requests_per_s if arm.goodput else None
        row.update(msgspec.structs.asdict(arm.balance))
        row["lag_p99_ms"] = arm.schedule.lag_p99_ms
        table.append(row)
    return table


def to_csv(results: Results) -> str:
    """rows() with a header line; empty cells for what is unknown."""
    table = rows(results)
    out = io.StringIO()
    if table:
        writer = csv.DictWriter(out, fieldnames=list(table[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(table)
    return out.getvalue()
