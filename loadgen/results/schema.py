"""What a run, a comparison or a simulation found: typed, versioned, written as JSON and CSV.

The JSON is documented in docs/operate/loadgen.md. Fields are only added within a version.
"""

from __future__ import annotations

import csv
import io
from inspect import cleandoc
from pathlib import Path
from typing import Literal, TypeAlias

import msgspec

from loadgen.made import Made

VERSION: Literal[1] = 1
Kind: TypeAlias = Literal["run", "compare", "sweep", "simulate", "report", "diff"]
RATE = "requests/s"
SESSIONS = "sessions at a time"
SPEED = "times the trace's speed"
REPLICAS = "replicas"
"""What an arm's load is, with its unit: these are ``Results.axis``."""


class Latency(msgspec.Struct, frozen=True):
    """A latency in milliseconds. All None when count is 0."""

    count: int
    mean: float | None
    std: float | None
    p50: float | None
    p90: float | None
    p95: float | None
    p99: float | None
    max: float | None


NO_LATENCY = Latency(0, None, None, None, None, None, None, None)


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
    """The reuse funnel, in tokens, from the gateway's metrics (see its documentation) or, in a
    simulation, from the same ledger."""

    prompt: float
    available: float
    chosen: float
    predicted: float
    delivered: float


class StepReuse(msgspec.Struct, frozen=True):
    """Requests at the same place in their sessions: how reuse grows, or gets lost, as an agent
    goes on."""

    first: int
    """Counted from 1."""
    last: int
    requests: int
    hit_rate: float | None
    upper_bound: float


class Sample(msgspec.Struct, frozen=True):
    """Requests that succeeded, of whole sessions taken evenly, for comparisons with other files;
    columns of the same length."""

    run: list[int]
    """Of the repeats, from 0."""
    session: list[int]
    ttft_ms: list[float]
    e2e_ms: list[float]
    prompt_tokens: list[int]
    cached_tokens: list[int]
    """-1 where the engine did not tell."""


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
    balance: Balance | None
    """None when it is not known which replica answered."""
    schedule: Schedule
    prompt_tokens: int = 0
    cached_tokens: int = 0
    output_tokens: int = 0
    goodput: Goodput | None = None
    savings: Savings | None = None
    reuse: Reuse | None = None
    bucket_s: float = 0.0
    """Width of the time buckets; those of repeats lie on top of each other."""
    hit_rate_over_time: list[float | None] = []
    ttft_quantiles_ms: list[float] = []
    """TTFT at 0%, 1%, ... 100%: enough to draw its distribution."""
    e2e_quantiles_ms: list[float] = []
    steps: list[StepReuse] = []
    """Empty where sessions are single requests."""
    sample: Sample | None = None
    """None in files that older versions wrote."""
    repeats: int = 1
    load: float = 0.0
    """What was asked of this arm, as ``Results.axis`` says."""
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
    load: float = 0.0
    """Of both arms."""


class Results(msgspec.Struct):
    """Everything one command found."""

    kind: Kind
    workload: str
    arms: list[Arm]
    version: Literal[1] = VERSION
    axis: str = ""
    """What an arm's load is, in words with its unit; empty when the arms do not share one."""
    simulated: bool = False
    """The replicas, or everything, were simulated."""
    description: str = ""
    """What was measured on what, in a sentence or two, for whoever reads the report."""
    made: Made | None = None
    """None in files that older versions wrote."""
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


class _Versioned(msgspec.Struct):
    version: int = VERSION


def read_json(path: Path) -> Results:
    """Raises ResultsError when the file is not a result of a version this code knows, and
    OSError."""
    text = path.read_bytes()
    try:
        version = msgspec.json.decode(text, type=_Versioned).version
        if version == VERSION:
            return msgspec.json.decode(text, type=Results)
    except msgspec.MsgspecError as error:
        raise ResultsError(f"{path} is not a results file: {error}") from error
    raise ResultsError(f"{path} has version {version}, this program reads {VERSION}: write it anew")


def schema() -> str:
    """JSON Schema (2020-12) of a results file, as kept in docs/reference/results.schema.json."""
    made = msgspec.json.schema(Results)
    for kind in made["$defs"].values():
        # Of a docstring's further lines, msgspec before 0.23 keeps the indentation.
        if "description" in kind:
            kind["description"] = cleandoc(kind["description"])
    return msgspec.json.format(msgspec.json.encode(made), indent=2).decode()


LATENCIES = ("ttft_ms", "tpot_ms", "itl_ms", "e2e_ms")


def rows(results: Results) -> list[dict[str, object]]:
    """One flat row for each arm."""
    table = []
    for arm in results.arms:
        row: dict[str, object] = {
            "workload": results.workload,
            "arm": arm.name,
            "load": arm.load,
            "axis": results.axis,
            "seed": results.settings.get("seed"),
            "replicas": len(arm.replicas) or None,
            "repeats": arm.repeats,
            "requests": arm.requests,
            "completed": arm.completed,
            "errors": sum(arm.errors.values()),
            "duration_s": arm.duration_s,
            "hit_rate": arm.hit_rate,
            "upper_bound": arm.upper_bound,
            "prompt_tokens": arm.prompt_tokens,
            "cached_tokens": arm.cached_tokens,
            "output_tokens": arm.output_tokens,
        }
        for name in LATENCIES:
            for part, value in msgspec.structs.asdict(getattr(arm, name)).items():
                if part != "count":
                    row[f"{name}_{part}"] = value
        row.update(msgspec.structs.asdict(arm.throughput))
        row["goodput_requests_per_s"] = arm.goodput.requests_per_s if arm.goodput else None
        for field in Balance.__struct_fields__:
            row[field] = getattr(arm.balance, field, None)
        row["lag_p99_ms"] = arm.schedule.lag_p99_ms
        for field in Savings.__struct_fields__:
            row[f"saved_{field}"] = getattr(arm.savings, field, None)
        for field in Made.__struct_fields__:
            row[f"made_{field}"] = getattr(results.made, field, None)
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


def write_csv(results: Results, path: Path) -> None:
    """Raises OSError."""
    path.write_text(to_csv(results))
