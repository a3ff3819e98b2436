"""Running a fleet of simulated replicas from the command line."""

from __future__ import annotations

import argparse
import asyncio
import signal
import sys
from collections.abc import Callable, Sequence

import msgspec
import uvloop

from loadgen.cli import values
from loadgen.engine import OFFLOAD_GB_PER_S, EngineParams, offloading, transfer_for
from loadgen.replicas.fleet import QUICK, SimulatedFleet, check_ports
from loadgen.replicas.kv_events import REPLAY_ABOVE
from loadgen.replicas.named import WHAT, named_engine
from loadgen.replicas.nixl import NixlSettings
from loadgen.replicas.surfaces import SURFACES

_CHANGES: dict[str, Callable[[str], float]] = {
    "block_size": values.count(),
    "num_blocks": values.count(2),
    "max_num_seqs": values.count(),
    "max_num_batched_tokens": values.count(),
    "max_model_len": values.count(2),
    "prefill_rate": values.positive,
    "max_loras": values.count(),
    "lora_load_seconds": values.positive,
}


async def serve_replicas(
    count: int,
    host: str,
    first_port: int,
    params: EngineParams,
    time_scale: float = 1.0,
    *,
    model: str = "sim",
    adapters: Sequence[str] = (),
    resolves: Sequence[str] = (),
    default_output_tokens: int = 128,
    kv_events_port: int | None = None,
    engine: str = "vllm",
    nixl: NixlSettings | None = None,
    ready: Callable[[SimulatedFleet], None] | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM. ``ready`` is called once all ports are open.

    Raises OSError for a port that is taken.
    """
    fleet = SimulatedFleet(
        count,
        params=params,
        time_scale=time_scale,
        model=model,
        adapters=adapters,
        resolves=resolves,
        host=host,
        first_port=first_port,
        default_output_tokens=default_output_tokens,
        keep_requests=0,
        kv_events_port=kv_events_port,
        engines=(engine,),
        nixl=nixl,
    )
    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stopped.set)
    async with fleet:
        if ready is not None:
            ready(fleet)
        await stopped.wait()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `replicas` to a parser."""
    add = parser.add_argument
    add("--count", type=values.count(), default=1, help="how many replicas (default 1)")
    add("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1)")
    add(
        "--port",
        type=values.count(0),
        default=8001,
        help="the first one's port; the others follow it; 0: any free ones (default 8001)",
    )
    add(
        "--preset",
        default=QUICK.name,
        metavar="NAME|FILE",
        help=f"engine to imitate: {WHAT} (default %(default)s: no real one, fast answers)",
    )
    add(
        "--time-scale",
        type=values.positive,
        default=1.0,
        help="run the engines this many times as fast as the machine they imitate",
    )
    told = "; ".join(f"{each.name}: {each.origin}" for each in SURFACES.values())
    add(
        "--engine",
        choices=tuple(SURFACES),
        default="vllm",
        help=f"whose HTTP surface to speak (default %(default)s). {told}",
    )
    add("--model", default="sim", help="served model name (default sim)")
    add("--adapter", action="append", default=[], help="a LoRA adapter's name; may be repeated")
    add(
        "--resolve-adapter",
        action="append",
        default=[],
        metavar="NAME",
        help="a LoRA adapter that is loaded when it is asked for first; may be repeated",
    )
    add(
        "--output-tokens",
        type=values.count(),
        default=128,
        help="length of answers to requests without max_tokens (default 128)",
    )
    add(
        "--kv-events-port",
        type=values.count(0),
        default=None,
        help="publish KV events as vLLM does: replica i on this port + i, replay 1000 above; needs "
        "pyzmq",
    )
    add(
        "--nixl",
        action="store_true",
        help="each has a NixlConnector, and prefills for the others that are started with it",
    )
    add(
        "--kv-lease",
        type=values.positive,
        default=NixlSettings().lease_seconds,
        metavar="SECONDS",
        help="how long prefilled blocks wait for another engine (default %(default)g)",
    )
    add(
        "--offload-gb",
        type=values.positive,
        default=0.0,
        metavar="GB",
        help="each has a KV cache tier in CPU memory of so many 10^9 bytes",
    )
    add(
        "--offload-gb-per-s",
        type=values.positive,
        default=OFFLOAD_GB_PER_S,
        metavar="GB",
        help="what is loaded from the tier, 10^9 bytes a second (default %(default)g)",
    )
    for name, kind in _CHANGES.items():
        option = "--" + name.replace("_", "-")
        add(option, type=kind, default=None, help=f"{name} instead of the preset's")


def params_from(args: argparse.Namespace) -> EngineParams:
    """The preset with the changes asked for. Raises ValueError for values that do not go together
    and for a bad engine file, and OSError."""
    params = named_engine(args.preset)
    changes = {name: getattr(args, name) for name in _CHANGES}
    return msgspec.structs.replace(
        params, **{name: value for name, value in changes.items() if value is not None}
    )


def main(args: argparse.Namespace) -> int:
    """Run the command; returns the exit status."""
    try:
        params = params_from(args)
        if args.engine != "vllm" and args.kv_events_port is not None:
            raise ValueError(f"--kv-events-port: KV events are vLLM's, not those of {args.engine}")
        check_ports("--port", args.port, args.count)
        check_ports("--kv-events-port", args.kv_events_port or 0, args.count, REPLAY_ABOVE)
    except ValueError as error:
        return _fail(str(error), 2)
    except OSError as error:
        return _fail(f"--preset {args.preset}: {error.strerror}", 2)

    if args.offload_gb:
        params = offloading(params, args.offload_gb, args.offload_gb_per_s)
    nixl = None
    if args.nixl:
        nixl = NixlSettings(lease_seconds=args.kv_lease, transfer=transfer_for(params))

    def ready(fleet: SimulatedFleet) -> None:
        print(f"{params.name}: {params.origin}; {params.num_blocks} blocks of {params.block_size}")
        for url in fleet.urls:
            print(f"  {url}", flush=True)

    try:
        uvloop.run(
            serve_replicas(
                args.count,
                args.host,
                args.port,
                params,
                args.time_scale,
                model=args.model,
                adapters=args.adapter,
                resolves=args.resolve_adapter,
                default_output_tokens=args.output_tokens,
                kv_events_port=args.kv_events_port,
                engine=args.engine,
                nixl=nixl,
                ready=ready,
            )
        )
    except (OSError, ValueError, ImportError) as error:
        return _fail(str(error), 1)
    return 0


def _fail(why: str, status: int) -> int:
    print(f"warmroute-loadgen: {why}", file=sys.stderr)
    return status
