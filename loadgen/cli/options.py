"""Command-line options that several commands share, and what they become."""

from __future__ import annotations

import argparse
import os
from collections import deque
from collections.abc import Iterable, Sequence
from pathlib import Path

import msgspec

from loadgen.cli.preflight import check_writable
from loadgen.cli.values import (
    OptionsError,
    count,
    counts,
    header,
    not_negative,
    period,
    positive,
    positives,
    seconds,
)
from loadgen.client.driver import Options
from loadgen.client.formats import FORMATS
from loadgen.engine import EngineParams
from loadgen.engine.presets import GPUS
from loadgen.engine.transfer import OFFLOAD_GB_PER_S, offloading
from loadgen.live.run import Client
from loadgen.replicas.named import WHAT, named_engine
from loadgen.results.savings import Price
from loadgen.results.schema import RATE, SESSIONS, SPEED
from loadgen.suggest import did_you_mean
from loadgen.workloads import (
    NAMES,
    Arrivals,
    Closed,
    Fixed,
    Mooncake,
    Plan,
    Poisson,
    Ramp,
    Replay,
    Traced,
    Workload,
    make,
)
from loadgen.workloads.single import LADDER_RATES
from loadgen.workloads.traces import Trace
from loadgen.workloads.traces.formats.prompts import COLUMNS
from loadgen.workloads.traces.recognise import cut_off
from loadgen.workloads.traces.segments import bytes_per_token, load_tokenizer

KEY_VARIABLE = "LOADGEN_API_KEY"
PRESET = "32b-2xh100"
DURATION = 60.0
"""Seconds, when neither --duration nor --requests says where to end."""
FILES = ("json", "csv", "html", "markdown")


def add_workload(parser: argparse.ArgumentParser) -> None:
    """What is asked, when, and for how long."""
    group = parser.add_argument_group("workload")
    add = group.add_argument
    add(
        "--workload",
        default="agent",
        metavar="NAME|FILE",
        help="; ".join(NAMES) + " (default agent)",
    )
    add(
        "--columns",
        default="",
        metavar="WHAT=NAME,...",
        help=f"of a csv or jsonl file: {', '.join(COLUMNS)}",
    )
    add(
        "--tokenizer",
        default="",
        metavar="NAME|FILE",
        help="counts texts, recorded and made up, in the model's own tokens: a tokenizer.json, its "
        "folder, or a name on the Hugging Face hub",
    )
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
        default="",
        metavar="KIND",
        help="poisson (default), fixed, ramp:LOW-HIGH over the duration, or trace for the "
        "workload's own times",
    )
    add("--concurrency", default="", metavar="N[,N...]", help="closed loop: sessions at a time")
    add("--speed", type=positive, help="of a trace, times its own (default 1)")
    add(
        "--duration",
        type=period,
        metavar="TIME",
        help="60s, 10m (default 60s; simulate and plan play a trace with times to its end)",
    )
    add("--requests", type=count(), metavar="N", help="stop starting sessions after N steps")
    add("--warmup", type=seconds, metavar="TIME", help="first seconds not counted")
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
    add("--api", default="chat", choices=sorted(FORMATS))
    add(
        "--api-key",
        default="",
        metavar="KEY",
        help=f"sent as a bearer token, never shown (default: {KEY_VARIABLE} of the environment)",
    )
    add("--header", action="append", default=[], metavar="NAME:VALUE", help="may be repeated")
    add("--no-stream", action="store_true", help="ask for whole answers")
    add("--no-vllm-fields", action="store_true", help="leave out ignore_eos, which only vLLM knows")
    add("--bytes-per-token", type=positive, default=4.0, help="of the text (default 4)")
    add(
        "--timeout",
        type=period,
        default=600.0,
        metavar="TIME",
        help="of one request (default 10m)",
    )
    add(
        "--declared-answers",
        action="store_true",
        help="repeat made-up answers in later prompts instead of the model's own",
    )
    add("--pause-scale", type=not_negative, default=1.0, help="multiplies pauses between steps")
    add("--block-tokens", type=count(), default=16, help="the engine's block size (default 16)")


def add_price(parser: argparse.ArgumentParser) -> None:
    """What saved work is worth."""
    group = parser.add_argument_group("savings")
    add = group.add_argument
    add(
        "--prefill-rate",
        type=positive,
        metavar="T",
        help="tokens/s of one replica (default: the simulated one's, or 20,000)",
    )
    add(
        "--gpus",
        type=count(),
        help="of one replica (default: the simulated preset's, or 1)",
    )
    add("--gpu-hour", type=positive, metavar="PRICE", help="of one GPU for one hour")


def add_repeats(parser: argparse.ArgumentParser) -> None:
    """How often."""
    parser.add_argument(
        "--repeats",
        type=count(),
        default=1,
        metavar="N",
        help="runs of each arm, with seeds that follow each other (default 1)",
    )


def add_engine(parser: argparse.ArgumentParser) -> None:
    """What simulated replicas imitate."""
    parser.add_argument(
        "--preset",
        default=PRESET,
        metavar="NAME|FILE",
        help=f"what they imitate: {WHAT} (default %(default)s)",
    )
    parser.add_argument("--num-blocks", type=count(2), help="KV cache blocks of each")
    parser.add_argument(
        "--max-loras", type=count(), metavar="N", help="LoRA adapters that each has room for"
    )
    parser.add_argument(
        "--lora-load-seconds",
        type=positive,
        metavar="SECONDS",
        help="what loading an adapter takes",
    )
    parser.add_argument(
        "--offload-gb",
        type=positive,
        metavar="GB",
        help="a KV cache tier in CPU memory of each, 10^9 bytes (default: none)",
    )
    add_offload_speed(parser)


def add_offload_speed(parser: argparse.ArgumentParser) -> None:
    """How fast a tier behind GPU memory is."""
    parser.add_argument(
        "--offload-gb-per-s",
        type=positive,
        metavar="GB",
        help=f"what is loaded from the tier, 10^9 bytes a second (default {OFFLOAD_GB_PER_S:g})",
    )


def engine_from(args: argparse.Namespace) -> EngineParams:
    """Of --preset and --num-blocks. Raises OptionsError, and ValueError for an unknown preset or
    a bad engine file."""
    try:
        params = named_engine(args.preset)
    except OSError as error:
        raise OptionsError(f"--preset {args.preset}: {error.strerror}") from error
    if args.num_blocks:
        params = msgspec.structs.replace(params, num_blocks=args.num_blocks)
    if args.max_loras:
        params = msgspec.structs.replace(params, max_loras=args.max_loras)
    if args.lora_load_seconds:
        params = msgspec.structs.replace(params, lora_load_seconds=args.lora_load_seconds)
    if args.offload_gb:
        params = with_tier(params, args.offload_gb, args)
    return params


def with_tier(params: EngineParams, gigabytes: float, args: argparse.Namespace) -> EngineParams:
    """With a tier of this size, and of the speed of --offload-gb-per-s."""
    return offloading(params, gigabytes, args.offload_gb_per_s or OFFLOAD_GB_PER_S)


def add_output(parser: argparse.ArgumentParser) -> None:
    """Where results go besides the terminal."""
    group = parser.add_argument_group("output")
    for name in FILES:
        group.add_argument(f"--{name}", type=Path, metavar="FILE")


def add_records(parser: argparse.ArgumentParser) -> None:
    """Where every request goes."""
    parser.add_argument(
        "--records",
        type=Path,
        metavar="FILE",
        help="every request: jsonl, or parquet by the ending; report makes results of it again",
    )


def check_output(args: argparse.Namespace) -> None:
    """Results can be written where they are asked for. Raises OptionsError."""
    for name in (*FILES, "records"):
        if path := getattr(args, name, None):
            check_writable(f"--{name}", path)


def pairs(items: Iterable[str], sign: str, option: str) -> dict[str, str]:
    """NAME<sign>VALUE items. Raises OptionsError."""
    found = {}
    for item in items:
        name, found_sign, value = item.partition(sign)
        if not found_sign or not name:
            # A header without its name is perhaps a key, which is nobody else's business.
            given = "" if option == "--header" else f" {item!r}"
            raise OptionsError(f"{option}{given}: write NAME{sign}VALUE")
        found[name.strip()] = value.strip()
    return found


def plans_from(
    args: argparse.Namespace, *, whole: bool = False
) -> tuple[str, list[tuple[float, Plan]]]:
    """The axis in words, and (load, plan) for each rate or concurrency. Raises OptionsError and
    WorkloadError.

    whole: without --duration and --requests a trace at its own times is played to its end, and not
    for the usual duration.
    """
    workload = workload_from(args)
    duration = args.duration or (0.0 if args.requests else DURATION)
    warmup = args.warmup or 0.0
    if warmup and duration and warmup >= duration:
        raise OptionsError(f"--warmup {warmup:g} must be shorter than --duration {duration:g}")
    base = Plan(
        workload,
        Poisson(1.0),
        seed=args.seed,
        duration=duration,
        finish=args.finish,
        warmup=warmup,
        requests=args.requests or 0,
    )
    axis, loads = _arrivals(args, timed=workload.timed, duration=duration)
    if whole and not args.duration and isinstance(loads[0][1], Traced):
        base = msgspec.structs.replace(base, duration=0.0)
    return axis, [
        (load, msgspec.structs.replace(base, arrivals=arrivals)) for load, arrivals in loads
    ]


def workload_from(args: argparse.Namespace) -> Workload:
    """What --workload names, as --set, --columns and --tokenizer change it. Raises OptionsError,
    WorkloadError and TraceError."""
    settings = pairs(args.set, "=", "--set")
    columns = pairs(args.columns.split(",") if args.columns else (), "=", "--columns")
    workload = make(args.workload, settings, columns)
    if not args.tokenizer:
        return workload
    load_tokenizer(args.tokenizer)
    if not isinstance(workload, Trace):
        if "bytes_per_token" not in args:
            raise OptionsError(f"--tokenizer counts texts, and {args.workload} has none here")
        return workload
    return msgspec.structs.replace(workload, tokenizer=args.tokenizer)


def assumptions_from(plans: Sequence[tuple[float, Plan]]) -> list[str]:
    """What a trace does not tell and is assumed, and what is left out of it, in sentences."""
    workload = plans[0][1].workload
    said = workload.assumptions if isinstance(workload, Trace) else []
    if isinstance(workload, Trace | Mooncake | Replay):
        said += cut_off(workload.path)
    return said


def check_plans(plans: Iterable[tuple[float, Plan]]) -> None:
    """Read a trace once to where the plans end, so that what is wrong in it does not end a run in
    the middle. Raises TraceError."""
    for _, plan in plans:
        if plan.workload.timed:
            deque(plan.sessions(), maxlen=0)


def _arrivals(
    args: argparse.Namespace, *, timed: bool, duration: float
) -> tuple[str, list[tuple[float, Arrivals]]]:
    kind, _, bounds = (args.arrivals or "").partition(":")
    if args.concurrency:
        if args.rate or kind:
            raise OptionsError(
                "--rate and --arrivals are an open loop, --concurrency a closed one: give one"
            )
        _no_speed(args)
        spread = min(5.0, duration / 10) if duration else 0.0
        return SESSIONS, [
            (float(number), Closed(number, spread))
            for number in counts(args.concurrency, "--concurrency")
        ]
    if kind == "trace" or (timed and not args.rate and not kind):
        if not timed:
            raise OptionsError(f"--arrivals trace: {args.workload} has no times of its own")
        if args.rate:
            raise OptionsError("--arrivals trace has the trace's own times: --rate cannot be given")
        speed = args.speed or 1.0
        return SPEED, [(speed, Traced(speed))]
    _no_speed(args)
    if kind == "ramp":
        low, sign, high = bounds.partition("-")
        if not sign or not duration:
            raise OptionsError("write --arrivals ramp:LOW-HIGH, with a --duration")
        if args.rate:
            raise OptionsError("--arrivals ramp:LOW-HIGH says the rates: --rate cannot be given")
        first, last = (_one(part, "--arrivals ramp:LOW-HIGH") for part in (low, high))
        return RATE, [(last, Ramp(first, last, duration))]
    if kind not in ("", "poisson", "fixed") or bounds:
        like = did_you_mean(kind, ("poisson", "fixed", "ramp", "trace"))
        raise OptionsError(
            f"--arrivals {args.arrivals!r}{like or ':'} use poisson, fixed, ramp:LOW-HIGH, trace"
        )
    rates = [float(r) for r in LADDER_RATES] if args.rate == "ladder" else None
    rates = rates or positives(args.rate or "8", "--rate")
    return RATE, [(rate, Fixed(rate) if kind == "fixed" else Poisson(rate)) for rate in rates]


def _no_speed(args: argparse.Namespace) -> None:
    if args.speed is not None:
        raise OptionsError("--speed needs a trace's own times: use --arrivals trace, or remove it")


def _one(text: str, option: str) -> float:
    found = positives(text, option)
    if len(found) > 1:
        raise OptionsError(f"{option} {text!r}: write one number")
    return found[0]


def objectives_from(args: argparse.Namespace) -> dict[str, float]:
    """--goodput. Raises OptionsError."""
    found = {}
    for name, value in pairs(args.goodput, ":", "--goodput").items():
        # vLLM's benchmark calls it e2el.
        name = "e2e" if name == "e2el" else name
        if name not in ("ttft", "tpot", "e2e"):
            like = did_you_mean(name, ("ttft", "tpot", "e2e"))
            raise OptionsError(f"--goodput {name!r}{like or ':'} use ttft, tpot or e2e")
        found[name] = _one(value, f"--goodput {name}")
    return found


def client_from(args: argparse.Namespace) -> Client:
    """How requests look. Raises OptionsError."""
    return Client(
        model=args.model,
        api=args.api,
        stream=not args.no_stream,
        vllm_fields=not args.no_vllm_fields,
        bytes_per_token=_bytes_per_token(args),
        headers=_headers(args),
        options=Options(
            timeout=args.timeout,
            declared_answers=args.declared_answers,
            block_tokens=args.block_tokens,
            pause_scale=args.pause_scale,
        ),
    )


def _bytes_per_token(args: argparse.Namespace) -> float:
    """Of made-up text, so that prompts have their declared length in the model's own tokens."""
    if not args.tokenizer:
        return float(args.bytes_per_token)
    return bytes_per_token(load_tokenizer(args.tokenizer))


def _headers(args: argparse.Namespace) -> dict[str, str]:
    """Of --header and --api-key; what is given as a header is not written over."""
    key = args.api_key or os.environ.get(KEY_VARIABLE, "")
    found = {}
    if key:
        found = dict((header("authorization", f"Bearer {key}"),))
        if args.api == "messages":
            found["x-api-key"] = key
    given = dict(header(*each) for each in pairs(args.header, ":", "--header").items())
    lower = {name.lower() for name in given}
    return {**{name: value for name, value in found.items() if name not in lower}, **given}


def price_from(args: argparse.Namespace, engine: EngineParams | None) -> Price:
    """What saved work is worth; engine is the simulated replicas'."""
    rate = args.prefill_rate or (engine.prefill_rate if engine else Price().prefill_rate)
    gpus = args.gpus or (GPUS.get(engine.name, 1) if engine else 1)
    return Price(rate, gpus, args.gpu_hour)


def settings_from(args: argparse.Namespace) -> dict[str, str]:
    """What was asked for, for the report: every option that says something, but no headers, which
    may hold keys."""
    hidden = {"command", "parser", "made", "header", "api_key", "records", *FILES}
    return {
        name: ",".join(map(str, value)) if isinstance(value, list) else str(value)
        for name, value in sorted(vars(args).items())
        if name not in hidden and not (value is None or value is False or value in ("", []))
    }
