"""Several simulated replicas in one event loop, for tests and for the command line."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType

from loadgen.engine import EngineParams
from loadgen.replicas.kv_events import REPLAY_ABOVE
from loadgen.replicas.nixl import NixlSettings
from loadgen.replicas.replica import Replica

LAST_PORT = 65_535

QUICK = EngineParams(
    name="quick",
    origin="made up: fast enough that a test need not wait",
    block_size=16,
    num_blocks=4096,
    max_num_seqs=256,
    max_num_batched_tokens=8192,
    max_model_len=65_536,
    step_base_seconds=0.001,
    prefill_rate=200_000.0,
    step_request_seconds=5e-6,
    step_token_seconds=5e-9,
)
"""What a SimulatedFleet runs when nothing is said."""


def check_ports(name: str, first: int, count: int, above: int = 0) -> None:
    """Raises ValueError where ``count`` ports from ``first`` on, and as many ``above`` them, are
    not all ports. 0 is any."""
    last = first + count - 1 + above
    if first < 0 or (first and last > LAST_PORT):
        raise ValueError(
            f"{name} must lie between 1 and {LAST_PORT - count + 1 - above}, or be 0 for any free "
            f"port, not {first}: {count} replicas take ports up to {last}"
        )


class SimulatedFleet:
    """Replicas on loopback, each on a port of its own::

        async with SimulatedFleet(count=2) as fleet:
            await client.post(fleet.urls[0] + "/v1/completions", json=...)
            assert fleet.replicas[0].requests[-1].json()["max_tokens"] == 3
            await fleet.replicas[1].die()

    ``time_scale`` 10 lets the engines run ten times as fast as the machine ``params`` describe.
    ``first_port`` 0 takes free ports; a replica that dies and starts again keeps its own.
    ``kv_events_port`` (0: any) lets each publish KV events, the next replica on the next port.
    ``engines`` names the surface of each: "vllm", "sglang" or "trtllm"; one name is for all.
    ``adapters`` are loaded from the start, ``resolves`` when they are asked for first.
    ``nixl`` gives each a KV connector, with which it prefills for the others and fetches from them.
    """

    def __init__(
        self,
        count: int = 1,
        *,
        params: EngineParams = QUICK,
        time_scale: float = 1.0,
        model: str = "sim",
        adapters: Sequence[str] = (),
        resolves: Sequence[str] = (),
        host: str = "127.0.0.1",
        first_port: int = 0,
        default_output_tokens: int = 128,
        keep_requests: int = 1000,
        kv_events_port: int | None = None,
        engines: Sequence[str] = ("vllm",),
        nixl: NixlSettings | None = None,
    ) -> None:
        if count < 1:
            raise ValueError(f"count must be at least 1, not {count}")
        check_ports("first_port", first_port, count)
        check_ports("kv_events_port", kv_events_port or 0, count, REPLAY_ABOVE)
        if len(engines) not in (1, count):
            raise ValueError(f"engines must name one, or one for each of {count} replicas")
        self.replicas = [
            Replica(
                params=params,
                model=model,
                adapters=adapters,
                resolves=resolves,
                host=host,
                port=first_port + index if first_port else 0,
                time_scale=time_scale,
                default_output_tokens=default_output_tokens,
                keep_requests=keep_requests,
                name=f"replica-{index}",
                kv_events_port=kv_events_port + index if kv_events_port else kv_events_port,
                engine=engines[index] if len(engines) > 1 else engines[0],
                nixl=nixl,
            )
            for index in range(count)
        ]
        for replica in self.replicas:
            replica.siblings = self.replicas

    @property
    def urls(self) -> list[str]:
        """Base URLs, in order; known once started."""
        return [replica.url for replica in self.replicas]

    async def start(self) -> None:
        """Start every replica; those that did start are stopped again when one cannot."""
        try:
            for replica in self.replicas:
                await replica.start()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop every replica of the fleet."""
        for replica in self.replicas:
            await replica.stop()

    async def __aenter__(self) -> SimulatedFleet:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()
