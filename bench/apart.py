"""Prefill and decode apart against the same engines all alike, in virtual time.

    python -m bench.apart [--seeds 21,22,23] [--page docs/design/disaggregation-results.md]

Prints the tables; with --page it writes them to a page. Takes about three minutes of processor time.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

from loadgen.engine import preset, transfer_for
from loadgen.simulate import Prepared, arms_of, arrangement, coarser, prepare, run_loop
from loadgen.simulate.apart import BOTH, DECIDER_TOKENS
from loadgen.simulate.fleet import Arrangement
from loadgen.workloads import Plan, Poisson, make
from router.prompt.spans import SPANS

BLOCK = 64
ENGINE = "32b-2xh100"
ENGINES = 8
SECONDS, WARMUP = 110.0, 40.0
GOOD_TTFT_S, GOOD_TPOT_S = 2.0, 0.05
NEVER, CHOSEN, ALWAYS, DECIDER = arms_of(arrangement("cache_aware"), 1)
BOTH_ROLES = msgspec.structs.replace(NEVER, apart=BOTH)
ARMS = (
    ("8 alike", NEVER, 0),
    ("8 with both roles", BOTH_ROLES, ENGINES),
    ("2 + 6, chosen", CHOSEN, 2),
    ("2 + 6, always", ALWAYS, 2),
    ("2 + 6, decider", DECIDER, 2),
    ("4 + 4, chosen", CHOSEN, 4),
    ("4 + 4, decider", DECIDER, 4),
)
"""Name, arrangement, and how many of the engines prefill."""


class Case(msgspec.Struct, frozen=True):
    """A workload, and the loads it is tried at."""

    title: str
    workload: str
    settings: dict[str, str]
    rates: tuple[float, ...]


CASES = (
    Case("Agents", "agent", {"most_tokens": "30000"}, (12.0, 24.0)),
    Case(
        "Long prompts, short answers", "unique",
        {"prompt_tokens": "8000", "output_tokens": "30"}, (3.0, 5.0, 7.0),
    ),
    Case(
        "Short prompts, long answers", "unique",
        {"prompt_tokens": "500", "output_tokens": "600"}, (15.0, 30.0),
    ),
    Case(
        "Long prompts, long answers", "unique",
        {"prompt_tokens": "8000", "output_tokens": "400"}, (3.0, 6.0),
    ),
)  # fmt: skip


class Found(msgspec.Struct, frozen=True):
    """One arm at one load: times in seconds, means over the seeds."""

    arm: str
    ttft: float
    ttft_p99: float
    tpot: float
    tpot_p99: float
    e2e: float
    good: float
    """Share of the requests with a first token and a pace within the objectives."""
    elsewhere: float
    """Share of the requests whose prompt another engine prefilled."""

    def cells(self) -> list[str]:
        """As a row of a table."""
        return [
            self.arm,
            f"{self.ttft * 1e3:,.0f} / {self.ttft_p99 * 1e3:,.0f}",
            f"{self.tpot * 1e3:.1f} / {self.tpot_p99 * 1e3:.1f}",
            f"{self.e2e:.2f}",
            f"{self.good:.1%}",
            f"{self.elsewhere:.0%}",
        ]


def prepared(case: Case, rate: float, seed: int) -> Prepared:
    """The case at one load."""
    workload = make(case.workload, case.settings)
    plan = Plan(workload, Poisson(rate), seed=seed, duration=SECONDS, warmup=WARMUP)
    return prepare(plan, BLOCK, SPANS, keys=True)


def run(arm: str, work: Prepared, arranged: Arrangement, prefill: int) -> Found:
    """One arm over one load."""
    params = [coarser(preset(ENGINE), BLOCK)] * ENGINES
    loop = run_loop(work, arranged, params, prefill=prefill)
    records = loop.records
    ok = np.array(records.reason) == 0
    due, first, end = (
        np.array(each)[ok] for each in (records.scheduled, records.first, records.end)
    )
    output = np.array(records.output_tokens)[ok]
    ttft = first - due
    tpot = (end - first)[output > 1] / (output[output > 1] - 1)
    pace = np.where(output > 1, (end - first) / np.maximum(output - 1, 1), 0.0)
    return Found(
        arm,
        float(ttft.mean()),
        float(np.percentile(ttft, 99)),
        float(tpot.mean()),
        float(np.percentile(tpot, 99)),
        float((end - due).mean()),
        float(((ttft <= GOOD_TTFT_S) & (pace <= GOOD_TPOT_S)).mean()),
        loop.gateways.apart.handed_over / max(1, work.requests),
    )


def mean(found: Sequence[Found]) -> Found:
    """Of the same arm with several seeds."""
    names = Found.__struct_fields__[1:]
    return Found(
        found[0].arm, *(float(np.mean([getattr(each, name) for each in found])) for name in names)
    )


def arms(work: Prepared) -> list[Found]:
    """All arms over one load."""
    return [run(name, work, arranged, prefill) for name, arranged, prefill in ARMS]


HEAD = (
    "| requests/s | engines | TTFT mean / p99, ms | TPOT mean / p99, ms | end to end mean, s | good | apart |",
    "|---:|---|---:|---:|---:|---:|---:|",
)


def table(case: Case, seeds: Sequence[int]) -> tuple[list[str], list[list[Found]]]:
    """The case's lines, and what was found at each load."""
    lines, all_found = list(HEAD), []
    for rate in case.rates:
        by_seed = [arms(prepared(case, rate, seed)) for seed in seeds]
        found = [mean(each) for each in zip(*by_seed, strict=True)]
        all_found.append(found)
        for number, each in enumerate(found):
            lines.append(f"| {f'{rate:g}' if not number else ''} | {' | '.join(each.cells())} |")
        print(f"{case.title}, {rate:g}/s", file=sys.stderr, flush=True)
    return lines, all_found


def verdict(case: Case, found: Sequence[Sequence[Found]]) -> str:
    """What the best way gets at each load against the engines all alike, in a sentence each."""
    said = []
    for rate, arms_found in zip(case.rates, found, strict=True):
        alike, apart = arms_found[0], arms_found[1:]
        best = min(apart, key=lambda each: each.e2e)
        said.append(
            f"{rate:g}/s: {best.arm}: TTFT {_change(best.ttft, alike.ttft)}, "
            f"TPOT {_change(best.tpot, alike.tpot)} (p99 {_change(best.tpot_p99, alike.tpot_p99)}), "
            f"end to end {_change(best.e2e, alike.e2e)}."
        )
    lines = "\n".join(f"- {each}" for each in said)
    return (
        f"Of the ways apart, the one with the least time end to end, against all alike:\n\n{lines}"
    )


def _change(new: float, old: float) -> str:
    return f"{new / old - 1:+.0%}"


def page(parts: Sequence[str], seeds: str) -> str:
    """All tables."""
    transfer, engine = transfer_for(preset(ENGINE)), preset(ENGINE)
    return "\n".join(
        (
            f"""# Results of prefill and decode apart

This page answers: when does it pay to have some engines prefill and others decode?

[disaggregation.md](../operate/disaggregation.md) sums it up, and says how to set it up.
`python -m bench.apart --page docs/design/disaggregation-results.md` writes all of this: the gateway's own policy, index,
books and choice over simulated engines in virtual time ({ENGINE}: {engine.origin}).
**None of it was measured on GPUs.** Means of seeds {seeds}; {SECONDS:g} s, of which the first {WARMUP:g} are not counted.
That an engine of both roles is charged for those whom a prefill slows down was chosen with seed 21 in sight.

- *{ENGINES} alike*: every engine computes the prompts that it answers.
- *{ENGINES} with both roles*: every engine answers, and prefills for the others where the gateway chooses so by cost.
- *2 + 6*, *4 + 4*: the first ones only prefill. *chosen*: by cost; *always*: every prompt;
  *decider*: prompts of which the engine that answers lacks {DECIDER_TOKENS:g} tokens or more, as llm-d's
  prefix-based-pd-decider does with that `nonCachedTokens`. The threshold is ours: llm-d's default is never.
- *good*: a first token within {GOOD_TTFT_S:g} s and a pace of at most {GOOD_TPOT_S * 1e3:g} ms a token.
- *apart*: requests whose prompt another engine prefilled.

A transfer takes {transfer.base_seconds * 1e3:g} ms, and {transfer.token_bytes / 1024:g} KiB a token at {transfer.bytes_per_second / 1e9:g} GB/s, one after the other for each engine that fetches.
The engine model mixes chunks of a prefill into the steps of others' decoding, as vLLM does: what decoding loses by that is
in *{ENGINES} alike*.
""",
            *parts,
        )
    )


def main(argv: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(prog="bench.apart", description=__doc__)
    parser.add_argument("--seeds", default="21,22,23")
    parser.add_argument("--page", type=Path, help="write all tables to this file")
    options = parser.parse_args(argv)
    seeds = [int(each) for each in options.seeds.split(",")]
    parts = []
    for case in CASES:
        lines, found = table(case, seeds)
        settings = ", ".join(f"{name} {value}" for name, value in case.settings.items())
        about = f"Workload `{case.workload}`, {settings}."
        parts.append(
            f"## {case.title}\n\n{about}\n\n" + "\n".join(lines) + f"\n\n{verdict(case, found)}\n"
        )
        print(parts[-1], flush=True)
    if options.page:
        options.page.write_text(page(parts, options.seeds), encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
