"""The command `warmroute-loadgen calibrate`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx
from rich.console import Console

from loadgen.calibrate.check import Played, agreement, play
from loadgen.calibrate.fit import Fit, fit
from loadgen.calibrate.probe import ROUNDS, Probe
from loadgen.calibrate.tune import tune
from loadgen.cli.values import count, counts, not_negative
from loadgen.engine import EngineParams
from loadgen.engine.file import Agreement, EngineFile, write_engine
from loadgen.show.plain import say

TIMEOUT = 120.0
TURNS, REQUESTS = 6, 40
"""Mixed requests are played in so many turns, and at each load so many in a turn. Every other turn
is fitted to, the others are what the fit is compared with: both of the same minutes."""
NAMES, WITHIN = ("TTFT p50", "TTFT p90", "TPOT"), (0.1, 0.2, 0.1)
"""What a good fit keeps to, as relative errors."""
LEAST_LONGEST = 256
"""Tokens of the longest prompt: with shorter ones their lengths are all the same."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `calibrate` to a parser."""
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
    add(
        "--at-a-time",
        default="1,8",
        metavar="N,N",
        help="mixed requests at once, that the model is fitted to and compared with (default 1,8)",
    )
    add(
        "--no-check",
        action="store_true",
        help="only what requests take one at a time and alike: send no mixed requests",
    )


async def calibrate(args: argparse.Namespace, console: Console, progress: Console) -> int:
    """Measure, fit, compare. What is found goes to one console, how far it is to the other.

    Raises ProbeError, FitError, OptionsError, OSError and httpx.HTTPError."""
    loads = counts(args.at_a_time, "--at-a-time")

    def said(text: str) -> None:
        say(console, text)

    def went(text: str) -> None:
        say(progress, text)

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
            fitted, other = await _plays(probe, longest, loads, went)
            params = tune(found.params, fitted)
            said(f"fitted to {sum(len(one.asked) for one in fitted)} mixed requests as well:")
            show_params(params, said)
            agreements = [
                agreement([one for one in other if one.at_a_time == load], params) for load in loads
            ]
            for one in agreements:
                tell(one, said)
            _write(args.json, EngineFile(params, agreements))
    return 0


async def _plays(
    probe: Probe, longest: int, loads: Sequence[int], went: Callable[[str], None]
) -> tuple[list[Played], list[Played]]:
    """Mixed requests at all loads in turn: those to fit to, and those to compare with."""
    parts: tuple[list[Played], list[Played]] = ([], [])
    for turn in range(TURNS):
        for load in loads:
            parts[turn % 2].append(await play(probe, longest, load, max(REQUESTS, 4 * load)))
        went(f"mixed requests, turn {turn + 1} of {TURNS}: done")
    return parts


def tell(one: Agreement, said: Callable[[str], None]) -> None:
    """How good the model is, in three lines at most."""
    p50, p90, tpot = one.errors
    said(
        f"{one.requests} other mixed requests, {one.at_a_time} at a time, measured and simulated: "
        f"TTFT p50 {one.measured_ttft_p50 * 1e3:.1f} and {one.simulated_ttft_p50 * 1e3:.1f} ms "
        f"({p50:+.0%}), p90 {one.measured_ttft_p90 * 1e3:.1f} and "
        f"{one.simulated_ttft_p90 * 1e3:.1f} ms ({p90:+.0%}), TPOT "
        f"{one.measured_tpot * 1e3:.2f} and {one.simulated_tpot * 1e3:.2f} ms ({tpot:+.0%}); "
        f"cached tokens {one.measured_cached:,} and {one.simulated_cached:,}"
    )
    off = [
        name
        for name, error, most in zip(NAMES, one.errors, WITHIN, strict=True)
        if abs(error) > most
    ]
    if off:
        said(f"  not within {', '.join(f'{most:.0%}' for most in WITHIN)}: {', '.join(off)}")
    if one.bunched * 20 > one.requests:
        said(
            f"  {one.bunched} answers came all at once: something had no processor, so neither the "
            "times nor the fit mean much; give the engine more cores, and leave it alone meanwhile"
        )


def _write(path: Path | None, held: EngineFile) -> None:
    if path is not None:
        write_engine(path, held)


def show(found: Fit, said: Callable[[str], None]) -> None:
    """Print the parameters and how far measurements are from them."""
    said(
        f"fitted within {found.prefill_error:.0%} (first tokens) and {found.decode_error:.0%} "
        "(steps) of what was measured:"
    )
    show_params(found.params, said)


def show_params(params: EngineParams, said: Callable[[str], None]) -> None:
    """One on each line."""
    said(f"prefill {params.prefill_rate:,.0f} tokens/s")
    said(f"  and {params.step_pair_seconds * 1e12:,.3f} ps a pair of tokens")
    said(f"  and {params.step_prefill_seconds * 1e3:.2f} ms a prompt")
    said(f"step {params.step_base_seconds * 1e3:.3f} ms")
    said(f"  and {params.step_request_seconds * 1e6:,.1f} us a request")
    said(f"  and {params.step_token_seconds * 1e9:,.2f} ns a token of context")
    said(f"outside of steps {params.overhead_seconds * 1e3:.2f} ms a request")
    said(f"  of which {params.overhead_serial_seconds * 1e3:.2f} ms one after another")
    said(f"  and {params.overhead_token_seconds * 1e6:,.2f} us a token of its prompt")
