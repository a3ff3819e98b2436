"""`warmroute-loadgen calibrate`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

import httpx
from rich.console import Console

from loadgen.calibrate.check import Check, check
from loadgen.calibrate.fit import Fit, fit
from loadgen.calibrate.probe import Probe
from loadgen.engine.file import EngineFile, write_engine

TIMEOUT = 120.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's options."""
    add = parser.add_argument
    add("--url", required=True, help="of one vLLM engine that nothing else uses meanwhile")
    add(
        "--max-num-batched-tokens",
        type=int,
        default=8192,
        help="as the engine was started with; it does not tell (default %(default)s)",
    )
    add("--longest", type=int, default=0, help="prompt in tokens (default: a quarter of the cache)")
    add(
        "--seconds",
        type=float,
        default=30.0,
        help="measure for so long, or longer for five rounds (default %(default)g)",
    )
    add("--json", type=Path, metavar="FILE", help="write what was found there, for --preset")
    add("--at-a-time", type=int, default=1, help="requests of that comparison (default 1)")
    add("--no-check", action="store_true", help="do not compare with the model afterwards")


async def calibrate(args: argparse.Namespace, console: Console) -> int:
    """Measure, fit, compare. Raises ProbeError, FitError, OSError and httpx.HTTPError."""

    def said(text: str) -> None:
        console.print(text, highlight=False, soft_wrap=True)

    limits = httpx.Limits(max_connections=64)
    async with httpx.AsyncClient(
        base_url=args.url, timeout=TIMEOUT, limits=limits, trust_env=False
    ) as client:
        probe = await Probe.connect(client, batched_tokens=args.max_num_batched_tokens)
        known = probe.known
        said(f"{known.origin}: {known.num_blocks:,} blocks of {known.block_size} tokens")
        longest = args.longest or min(known.longest // 4, 16_384)
        longest = min(longest, known.longest - 64)
        found = fit(known, *await probe.measure(longest, args.seconds, said))
        show(found, said)
        compared: Check | None = None
        if not args.no_check:
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
    if args.json:
        held = EngineFile(found.params)
        if compared:
            held = EngineFile(found.params, compared.measured_ttft, compared.simulated_ttft)
        write_engine(args.json, held)
    return 0


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
