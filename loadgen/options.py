"""Command-line options that several commands share, and what they become."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path

import msgspec

from loadgen.client.body import PATHS
from loadgen.client.driver import Options
from loadgen.replicas.named import named_engine
from loadgen.run import Client
from loadgen.savings import Price
from loadgen.workloads import (
    NAMES,
    Arrivals,
    Closed,
    Fixed,
    Plan,
    Poisson,
    Ramp,
    Traced,
    make,
)
from loadgen.workloads.single import LADDER_RATES
from router.units import parse_duration


class OptionsError(ValueError):
    """Options that do not go together, or a value that cannot be read."""


def seconds(text: str) -> float:
    """A duration on the command line: "60s", "10m", or plain seconds."""
    try:
        return parse_duration(text)
    except ValueError as error:
        why = f"{error}: write it like 60s, 10m, or plain seconds"
        raise argparse.ArgumentTypeError(why) from None


def add_workload(parser: argparse.ArgumentParser) -> None:
    """What is asked, when, and for how long."""
    group = parser.add_argument_group("workload")
    add = group.add_argument
    add("--workload", default="agent", metavar="NAME", help="; ".join(NAMES) + " (default agent)")
    add(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="change one of the workload's numbers; may be repeated",
    )
    add(
        "--rate",
        default="",
        metavar="R[,R...]",
        help="requests a second on average (default 8); several make a sweep; 'ladder' for the "
        "shared-prefix ladder's",
    )
    add(
        "--arrivals",
        default="poisson",
        metavar="KIND",
        help="poisson (default), fixed, ramp:LOW-HIGH over the duration, or trace for the "
        "workload's own times",
    )
    add("--concurrency", default="", metavar="N[,N...]", help="closed loop: sessions at a time")
    add("--speed", type=float, default=1.0, help="of a trace, times its own (default 1)")
    add(
        "--duration",
        type=seconds,
        default=0.0,
        metavar="TIME",
        help="60s, 10m (default 60s)",
    )
    add("--requests", type=int, default=0, metavar="N", help="stop starting sessions after N steps")
    add("--warmup", type=seconds, default=0.0, metavar="TIME", help="first seconds not counted")
    add(
        "--finish",
        action="store_true",
        help="send the sessions that have started to their end after the duration",
    )
    add("--seed", type=int, default=0)
    add(
        "--goodput",
        nargs="+",
        default=[],
        metavar="METRIC:MS",
        help="objectives, such as ttft:500 tpot:50 e2e:10000",
    )


def add_client(parser: argparse.ArgumentParser) -> None:
    """How requests look."""
    group = parser.add_argument_group("requests")
    add = group.add_argument
    add("--model", default="", help="default: the first that /v1/models names")
    add("--api", default="chat", choices=sorted(PATHS))
    add("--header", action="append", default=[], metavar="NAME:VALUE", help="may be repeated")
    add("--no-stream", action="store_true", help="ask for whole answers")
    add("--no-vllm-fields", action="store_true", help="leave out ignore_eos, which only vLLM knows")
    add("--bytes-per-token", type=float, default=4.0, help="of the text (default 4)")
    add(
        "--timeout",
        type=seconds,
        default=600.0,
        metavar="TIME",
        help="of one request (default 10m)",
    )
    add(
        "--declared-answers",
        action="store_true",
        help="repeat made-up answers in later prompts instead of the model's own",
    )
    add("--pause-scale", type=float, default=1.0, help="multiplies pauses between steps")
    add("--block-tokens", type=int, default=16, help="the engine's block size (default 16)")


def add_price(parser: argparse.ArgumentParser) -> None:
    """What saved work is worth."""
    group = parser.add_argument_group("savings")
    add = group.add_argument
    add(
        "--prefill-rate",
        type=float,
        default=0.0,
        metavar="T",
        help="tokens/s of one replica (default: the simulated one's, or 20,000)",
    )
    add("--gpus", type=int, default=1, help="of one replica (default 1)")
    add("--gpu-hour", type=float, default=None, metavar="PRICE", help="of one GPU for one hour")


def add_output(parser: argparse.ArgumentParser) -> None:
    """Where results go besides the terminal."""
    group = parser.add_argument_group("output")
    for name in ("json", "csv", "html"):
        group.add_argument(f"--{name}", type=Path, metavar="FILE")


def pairs(items: Iterable[str], sign: str, option: str) -> dict[str, str]:
    """NAME<sign>VALUE items. Raises OptionsError."""
    found = {}
    for item in items:
        name, found_sign, value = item.partition(sign)
        if not found_sign or not name:
            raise OptionsError(f"{option} {item!r}: write NAME{sign}VALUE")
        found[name.strip()] = value.strip()
    return found


def _numbers(text: str, option: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise OptionsError(f"{option} {text!r}: write a number, or several with commas") from None
    if any(number <= 0 for number in numbers):
        raise OptionsError(f"{option} {text!r}: must be above 0")
    return numbers


def plans_from(args: argparse.Namespace) -> list[tuple[float, Plan]]:
    """(load, plan) for each rate or concurrency. Raises OptionsError and WorkloadError."""
    workload = make(args.workload, pairs(args.set, "=", "--set"))
    duration = args.duration or (0.0 if args.requests else 60.0)
    base = Plan(
        workload,
        Poisson(1.0),
        seed=args.seed,
        duration=duration,
        finish=args.finish,
        warmup=args.warmup,
        requests=args.requests,
    )
    if args.warmup and duration and args.warmup >= duration:
        raise OptionsError(f"--warmup {args.warmup:g} leaves nothing of --duration {duration:g}")
    return [
        (load, msgspec.structs.replace(base, arrivals=arrivals))
        for load, arrivals in _arrivals(args, timed=workload.timed, duration=duration)
    ]


def _arrivals(
    args: argparse.Namespace, *, timed: bool, duration: float
) -> list[tuple[float, Arrivals]]:
    kind, _, bounds = args.arrivals.partition(":")
    if args.concurrency:
        if args.rate:
            raise OptionsError("--rate is an open loop, --concurrency a closed one: give one")
        spread = min(5.0, duration / 10) if duration else 0.0
        return [
            (number, Closed(max(1, round(number)), spread))
            for number in _numbers(args.concurrency, "--concurrency")
        ]
    if kind == "trace" or (timed and not args.rate and kind == "poisson"):
        if not timed:
            raise OptionsError(f"--arrivals trace: {args.workload} has no times of its own")
        if args.speed <= 0:
            raise OptionsError("--speed must be above 0")
        return [(args.speed, Traced(args.speed))]
    if kind == "ramp":
        low, sign, high = bounds.partition("-")
        if not sign or not duration:
            raise OptionsError("write --arrivals ramp:LOW-HIGH, with a --duration")
        (first,), (last,) = _numbers(low, "ramp"), _numbers(high, "ramp")
        return [(last, Ramp(first, last, duration))]
    if kind not in ("poisson", "fixed"):
        raise OptionsError(
            f"--arrivals {args.arrivals!r}: use poisson, fixed, ramp:LOW-HIGH, trace"
        )
    rates = [float(r) for r in LADDER_RATES] if args.rate == "ladder" else None
    rates = rates or _numbers(args.rate or "8", "--rate")
    return [(rate, Fixed(rate) if kind == "fixed" else Poisson(rate)) for rate in rates]


def objectives_from(args: argparse.Namespace) -> dict[str, float]:
    """--goodput. Raises OptionsError."""
    found = {}
    for name, value in pairs(args.goodput, ":", "--goodput").items():
        # vLLM's benchmark calls it e2el.
        name = "e2e" if name == "e2el" else name
        if name not in ("ttft", "tpot", "e2e"):
            raise OptionsError(f"--goodput {name!r}: use ttft, tpot or e2e")
        found[name] = _numbers(value, f"--goodput {name}")[0]
    return found


def client_from(args: argparse.Namespace) -> Client:
    """How requests look. Raises OptionsError."""
    return Client(
        model=args.model,
        api=args.api,
        stream=not args.no_stream,
        vllm_fields=not args.no_vllm_fields,
        bytes_per_token=args.bytes_per_token,
        headers=pairs(args.header, ":", "--header"),
        options=Options(
            timeout=args.timeout,
            declared_answers=args.declared_answers,
            block_tokens=args.block_tokens,
            pause_scale=args.pause_scale,
        ),
    )


def price_from(args: argparse.Namespace, *, simulated: bool) -> Price:
    """What saved work is worth. Raises ValueError for an unknown preset or a bad engine file, and
    OSError."""
    rate = args.prefill_rate
    if not rate and simulated:
        rate = named_engine(args.preset).prefill_rate
    return Price(rate or Price().prefill_rate, args.gpus, args.gpu_hour)


def settings_from(args: argparse.Namespace) -> dict[str, str]:
    """What was asked for, for the report: every option that says something, but no headers, which
    may hold keys."""
    hidden = {"command", "json", "csv", "html", "header"}
    return {
        name: ",".join(map(str, value)) if isinstance(value, list) else str(value)
        for name, value in sorted(vars(args).items())
        if name not in hidden and value not in (None, "", [], False)
    }
