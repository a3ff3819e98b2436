"""`warmroute-loadgen calibrate`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import httpx
from rich.console import Console

from loadgen.calibrate.check import REQUESTS, check
from loadgen.calibrate.fit import Fit, fit
from loadgen.calibrate.probe import ROUNDS, Probe
from loadgen.cli.values import count, not_negative
from loadgen.engine.file import EngineFile, write_engine

TIMEOUT = 120.0
LEAST_LONGEST = 256
"""Tokens of the longest prompt: with shorter ones their lengths are all the same."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add = parser.add_argument
    add("--url", required=True, help="of one vLLM engine that nothing else uses meanwhile")
    add(
        "--max-num-batched-tokens",
        type=count(),
        default=8192,
        help="as the engine was started with; it does not tell (default %(default)s)",
    )
    add(
        "--longest",
        type=count(LEAST_LONGEST),
        metavar="N",
        help="prompt in tokens (default: a quarter of the cache, 16,384 at most)",
    )
    add(
        "--seconds",
        type=not_negative,
        default=30.0,
        help=f"measure for so long (default %(default)g), but never less than {ROUNDS} rounds, "
        "which take minutes on a slow engine; the comparison afterwards comes on top",
    )
    add(
        "--seed",
        type=int,
        help="of the prompts (default: other ones in every run, so that none of them is in the "
        "engine's cache; with a seed, restart the engine in between)",
    )
    add("--json", type=Path, metavar="FILE", help="write what was found there, for --preset")
    add("--at-a-time", type=count(), default=1, help="requests of that comparison (default 1)")
    add("--no-check", action="store_true", help="do not compare with the model afterwards")


async def calibrate(args: argparse.Namespace, console: Console, progress: Console) -> int:
    """Measure, fit, compare. What is found goes to one console, how far it is to the other.

    Raises ProbeError, FitError, OSError and httpx.HTTPError."""

    def said(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    def went(text: str) -> None:
        progress.print(text, highlight=False, soft_wrap=True)

    limits = httpx.Limits(max_connections=64)
    async with httpx.AsyncClient(
        base_url=args.url, timeout=TIMEOUT, limits=limits, trust_env=False
    ) as client:
        probe = await Probe.connect(
            client, batched_tokens=args.max_num_batched_tokens, seed=args.seed
        )
        known = probe.known
        said(
            f"measuring {probe.model} at {args.url}: {known.num_blocks:,} blocks of "
            f"{known.block_size} tokens; at least {args.seconds:g} s and {ROUNDS} rounds"
        )
        longest = args.longest or min(known.longest // 4, 16_384)
        longest = min(longest, known.longest - 64)
        found = fit(known, *await probe.measure(longest, args.seconds, said, went))
        show(found, said)
        _write(args.json, EngineFile(found.params))
        if not args.no_check:
            went(f"asking {REQUESTS} mixed requests, to compare the model with the engine")
            # The model starts with an empty cache; prompts here are new to the engine as well.
            compared = await check(probe, found, longest=longest, at_a_time=args.at_a_time)
            said(
                f"{compared.requests} mixed requests: TTFT p50 measured "
                f"{compared.measured_ttft * 1e3:.1f} ms, simulated "
                f"{compared.simulated_ttft * 1e3:.1f} ms ({compared.error:+.0%}); cached tokens "
                f"{compared.measured_cached:,} and {compared.simulated_cached:,}"
            )
            if compared.bunched * 20 > compared.requests:
                said(
                    f"{compared.bunched} answers came all at once: something had no processor, so "
                    "neither the times nor the fit mean much; give the engine more cores, and "
                    "leave it alone meanwhile"
                )
            held = EngineFile(found.params, compared.measured_ttft, compared.simulated_ttft)
            _write(args.json, held)
    return 0


def _write(path: Path | None, held: EngineFile) -> None:
    if path is not None:
        write_engine(path, held)


def show(found: Fit, said: Callable[[str], None]) -> None:
    """The parameters, a line each."""
    params = found.params
    said(f"prefill {params.prefill_rate:,.0f} tokens/s (fit within {found.prefill_error:.0%})")
    said(f"  and {params.step_pair_seconds * 1e12:,.3f} ps a pair of tokens")
    said(f"step {params.step_base_seconds * 1e3:.3f} ms (fit within {found.decode_error:.0%})")
    said(f"  and {params.step_request_seconds * 1e6:,.1f} us a request")
    said(f"  and {params.step_token_seconds * 1e9:,.2f} ns a token of context")
    said(f"outside of steps {params.overhead_seconds * 1e3:.2f} ms a request")
    said(f"  of which {params.overhead_serial_seconds * 1e3:.2f} ms one after another")
    said(f"  and {params.overhead_token_seconds * 1e6:,.2f} us a token of its prompt")
