"""What one choice of each policy costs: python -m bench.policies [--rounds N]

Microseconds of `choose` alone, the median of several rounds, in a loop: the code is warm, as it is
not in a router. A quarter of the replicas hold a part of the prompt, in four depths. The last
column is the ratio of the largest fleet to the smallest.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from pathlib import Path
from statistics import median

from router.policies import BUILT_IN, load_policy
from router.types import Load, Policy, RoutingRequest

SIZES = (8, 64, 1000)
REQUESTS = 1000
DEPTHS = (6000.0, 4000.0, 2000.0, 1000.0)
PROMPT_TOKENS = 8000.0


def fleet(size: int, rng: random.Random) -> list[Load]:
    """Replicas at work: up to 24 requests in flight, some with a queue."""
    loads = []
    for _ in range(size):
        running = rng.randrange(25)
        queued = rng.choice((0.0, 0.0, rng.uniform(0.0, 8000.0)))
        context = running * PROMPT_TOKENS
        loads.append(
            Load(
                queued_tokens=queued,
                busy_until=queued / 20_000.0,
                in_flight=running,
                context_tokens=context,
                kv_tokens=context / 2.0,
                kv_capacity=500_000.0,
            )
        )
    return loads


def requests(size: int, rng: random.Random) -> list[RoutingRequest]:
    """Prompts held by different replicas, with all replicas eligible."""
    everybody = (1 << size) - 1
    made = []
    for number in range(REQUESTS):
        holders = rng.sample(range(size), size // 4)
        held = []
        for group, depth in enumerate(DEPTHS):
            mask = sum(1 << slot for slot in holders[group :: len(DEPTHS)])
            if mask:
                held.append((depth, mask))
        ask = RoutingRequest(everybody, PROMPT_TOKENS, held, 256.0, f"s{number}", number + 1, 0.0)
        made.append(ask)
    return made


def cost_us(policy: Policy, asks: list[RoutingRequest], loads: list[Load], rounds: int) -> float:
    """CPU microseconds of one choice."""
    took = []
    for _ in range(rounds + 1):
        start = time.process_time()
        for ask in asks:
            policy.choose(ask, loads)
        took.append(time.process_time() - start)
    return median(took[1:]) * 1e6 / len(asks)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", type=Path, metavar="FILE")
    args = parser.parse_args()
    results: dict[str, float] = {}
    print(f"{'us a choice':<18}" + "".join(f"{size:>8}" for size in SIZES) + "   ratio")
    for name in BUILT_IN:
        took = []
        for size in SIZES:
            rng = random.Random(size)
            policy = load_policy(name)
            policy.members({slot: f"replica-{slot}" for slot in range(size)})
            took.append(cost_us(policy, requests(size, rng), fleet(size, rng), args.rounds))
            results[f"{name} us at {size}"] = took[-1]
        cells = "".join(f"{each:>8.1f}" for each in took)
        print(f"{name:<18}{cells}{took[-1] / took[0]:>8.1f}")
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
