"""Several routers against one: the cases of docs/design/results.md in virtual time.

    python -m bench.routers                        # 1 and 8 routers, all cases
    python -m bench.routers --routers 1,2,4,8 --case unique --case burst
    python -m bench.routers --trace FILE           # with the Mooncake trace

Each request goes to a router taken at random. The others hear of it a millisecond later, and of what
becomes of it --sync later (loadgen/simulate/fleet.py). Bursts are measured as they are, all at the
very same moment, when no router can have heard of the others, and as they come, within 5 ms.
Geometric means over the seeds. Exit status 1 if any is more than 5% above one router's, in
TTFT mean or p90.
"""

from __future__ import annotations

import argparse
import sys
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import geometric_mean

import msgspec
import numpy as np

from loadgen.reproduce.cases import LADDER_SEEDS, OURS, Case, cases
from loadgen.results.records import floats
from loadgen.simulate import arrangement, coarser, prepare, run_once
from router.prompt.spans import SPANS

MEASURES = ("ttft mean", "ttft p90", "end to end", "learned")
MOST = 1.05
BLOCK = 64
"""Tokens of an engine's block; larger than usual, to save time."""


def with_bursts_as_they_come(found: list[Case]) -> Iterator[Case]:
    """Each burst a second time, its requests not at the very same moment."""
    for case in found:
        yield case
        if case.section == "burst":
            yield msgspec.structs.replace(case, settings={"spread": "0.005"})


def main() -> int:
    """The command `python -m bench.routers`."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--routers", default="1,8", help="the first is what the others are set to")
    parser.add_argument("--sync", type=float, default=0.02, metavar="SECONDS")
    parser.add_argument("--case", action="append", help="sections of the page; all by default")
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--seeds", type=int, default=len(LADDER_SEEDS))
    parser.add_argument("--trace", type=Path)
    args = parser.parse_args()
    counts = [int(word) for word in args.routers.split(",")]
    worst = 0.0
    print(f"{'':16}{'routers':>8}" + "".join(f"{name:>20}" for name in MEASURES))
    for case in with_bursts_as_they_come(cases(args.trace, scale=args.scale)):
        if args.case and case.section not in args.case:
            continue
        params = [coarser(engine, BLOCK) for engine in case.fleet.engines]
        found: dict[int, list[tuple[float, ...]]] = defaultdict(list)
        # One seed's p90 is up to a tenth off another's.
        for seed in LADDER_SEEDS[: args.seeds]:
            prepared = prepare(case.plan(seed), BLOCK, SPANS, keys=case.keys)
            for count in counts:
                run = run_once(
                    prepared, arrangement(OURS), params, routers=count, sync=args.sync, seed=seed
                )
                told = run.records
                sent, first, end = (floats(each) for each in (told.sent, told.first, told.end))
                answered = np.isfinite(first)  # prompts too long for the engine are refused
                sent, first, end = sent[answered], first[answered], end[answered]
                ttft = first - sent
                p90 = float(np.quantile(ttft, 0.9))
                found[count].append(
                    (float(ttft.mean()), p90, float((end - sent).mean()), run.learned)
                )
        base = [geometric_mean(column) for column in zip(*found[counts[0]], strict=True)]
        for count in counts:
            means = [geometric_mean(column) for column in zip(*found[count], strict=True)]
            ratios = [mean / first for mean, first in zip(means, base, strict=True)]
            worst = max(worst, *ratios[:2])
            units = [f"{1e3 * mean:,.0f} ms" for mean in means[:3]] + [f"{means[3]:,.0f}/s"]
            cells = "".join(
                f"{unit:>13} x{ratio:5.3f}" for unit, ratio in zip(units, ratios, strict=True)
            )
            name = case.name + (" *" if case.settings.get("spread") else "")
            print(f"{name:16}{count:>8}{cells}", flush=True)
    print("*: within 5 ms")
    print(f"worst of TTFT mean and p90: x{worst:.3f}")
    return int(worst > MOST)


if __name__ == "__main__":
    sys.exit(main())
