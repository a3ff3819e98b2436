"""What it gives to price tiers behind GPU memory by what loading costs, in virtual time.

    python -m bench.tiers [--seeds 3] [--page docs/design/tiers-results.md]

The same requests with the same engines, and a tier that the router counts at what it has learned,
like GPU memory, or not at all. Prints the tables; with --page it writes them to a page. Takes about
three minutes of processor time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from loadgen.engine import EngineParams, offloading, preset
from loadgen.simulate import ArmRun, arrangement, coarser, prepare, run_once
from loadgen.simulate.fleet import Arrangement
from loadgen.workloads import Plan, Poisson, make
from router.prompt.spans import SPANS

BLOCK = 64
ENGINE = "32b-2xh100"
ENGINES = 4
KV = 0.12
"""Of the preset's KV cache: what agents need is more than it holds."""
SECONDS, WARMUP = 150.0, 60.0
RATES = (5.0, 7.0, 9.0)
GIGABYTES = 80.0
TIERS = (
    ("none", 0.0),
    ("CPU memory, 25 GB/s", 25.0),
    ("a store, 6 GB/s", 6.0),
    ("a store, 3 GB/s", 3.0),
)
"""Name, and 10^9 bytes a second; 0: no tier."""


class Arm(msgspec.Struct, frozen=True):
    """One way to count tiers."""

    name: str
    arranged: Arrangement


def arms() -> list[Arm]:
    """Priced, like GPU memory and ignored: with an index of what was sent, and an exact one."""
    found = []
    for index, name in (("sent", "cache_aware"), ("exact", "cache_aware_exact")):
        base = arrangement(name)
        for how, words in (
            ("priced", "at its price"),
            ("as_gpu", "like GPU memory"),
            ("ignored", "ignored"),
        ):
            arranged = msgspec.structs.replace(base, tiers=how)
            found.append(Arm(f"{index}, {words}", arranged))
    return found


class Found(msgspec.Struct, frozen=True):
    """One arm at one load: seconds and shares, for each seed."""

    arm: str
    ttft: list[float]
    ttft_p99: list[float]
    e2e: list[float]
    reused: list[float]
    loaded: list[float]
    learned: list[float]
    """Microseconds that a token was taken to load in, at the end."""

    def cells(self, best: Found) -> list[str]:
        """As a row of a table, with its TTFT in those of the first arm, seed by seed."""
        ratio = [mine / other for mine, other in zip(self.ttft, best.ttft, strict=True)]
        return [
            self.arm,
            f"{np.mean(self.ttft) * 1e3:,.0f}",
            f"{np.mean(ratio):.2f} ({min(ratio):.2f} to {max(ratio):.2f})",
            f"{np.mean(self.ttft_p99) * 1e3:,.0f}",
            f"{np.mean(self.e2e):.2f}",
            f"{np.mean(self.reused):.1%}",
            f"{np.mean(self.loaded):.1%}",
            f"{np.mean(self.learned):.0f}" if any(self.learned) else "-",
        ]


HEAD = (
    "tier counts", "TTFT mean", "times that at its price (lowest to highest seed)", "TTFT p99",
    "end to end s", "reused", "of it from the tier", "learned us a token",
)  # fmt: skip


def engine_with(rate: float) -> EngineParams:
    """The engine with a tier of this bandwidth."""
    base = preset(ENGINE)
    params = offloading(base, GIGABYTES if rate else 0.0, rate or 1.0)
    params = msgspec.structs.replace(params, num_blocks=int(base.num_blocks * KV))
    return coarser(params, BLOCK)


def measured(arm: str, runs: Sequence[ArmRun]) -> Found:
    """The seeds of one arm."""
    found = Found(arm, [], [], [], [], [], [])
    for run in runs:
        records = run.records
        ok = np.array(records.reason) == 0
        due, first, end, prompt, cached = (
            np.array(each)[ok]
            for each in (
                records.scheduled,
                records.first,
                records.end,
                records.prompt_tokens,
                records.cached_tokens,
            )
        )
        ttft = first - due
        found.ttft.append(float(ttft.mean()))
        found.ttft_p99.append(float(np.percentile(ttft, 99)))
        found.e2e.append(float((end - due).mean()))
        found.reused.append(float(cached.sum() / prompt.sum()))
        found.loaded.append(run.loaded / run.cached if run.cached else 0.0)
        found.learned.append(run.load_seconds * 1e6)
    return found


def table(rate: float, bandwidth: float, seeds: int) -> list[str]:
    """All arms with one tier at one load, as lines of a table."""
    params = [engine_with(bandwidth)] * ENGINES
    workload = make("agent", {"most_tokens": "30000"})
    works = [
        prepare(
            Plan(workload, Poisson(rate), seed=seed, duration=SECONDS, warmup=WARMUP),
            BLOCK,
            SPANS,
            keys=True,
        )
        for seed in range(100, 100 + seeds)
    ]
    found = [
        measured(
            arm.name,
            [run_once(work, arm.arranged, params, seed=seed) for seed, work in enumerate(works)],
        )
        for arm in arms()
    ]
    half = len(found) // 2
    rows = [each.cells(found[0 if at < half else half]) for at, each in enumerate(found)]
    return [
        "| " + " | ".join(HEAD) + " |",
        "|---|" + "---:|" * (len(HEAD) - 1),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--page", type=Path)
    args = parser.parse_args()
    out: list[str] = []
    for name, bandwidth in TIERS:
        for rate in RATES:
            params = engine_with(bandwidth)
            out += [
                f"### Tier: {name}; {rate:g} requests a second",
                "",
                f"Loading a token takes {params.offload_token_seconds * 1e6:.0f} us, computing it "
                f"{1e6 / params.prefill_rate:.0f} us and more, the longer the prompt."
                if bandwidth
                else "No tier: the three ways to count are the same.",
                "",
                *table(rate, bandwidth, args.seeds),
                "",
            ]
            print("\n".join(out[-12:]), flush=True)
    if args.page is not None:
        text = args.page.read_text()
        head, mark, _ = text.partition("<!-- made by bench.tiers -->\n")
        args.page.write_text(head + mark + "\n" + "\n".join(out))
    return 0


if __name__ == "__main__":
    sys.exit(main())
