"""The fleets that docs/design/results.md compares on."""

from __future__ import annotations

import msgspec

from loadgen.engine import EngineParams, preset
from loadgen.simulate import Change


class Fleet(msgspec.Struct, frozen=True):
    """Replicas, some of which may be slow from the start or become slow."""

    engine: EngineParams
    replicas: int = 8
    slow: int = 0
    """How many are slow, the last ones."""
    times: float = 1.0
    """How much longer a slow one takes for everything."""
    since: float = 0.0
    """The share of the run's arrivals after which they are slow."""

    @property
    def engines(self) -> list[EngineParams]:
        """The engines' parameters at the start of a run."""
        slow = slower(self.engine, self.times) if not self.since else self.engine
        return [self.engine] * (self.replicas - self.slow) + [slow] * self.slow

    def changes(self, seconds: float) -> list[Change]:
        """What becomes of them in a run whose arrivals take so long."""
        if not self.since:
            return []
        slow = slower(self.engine, self.times)
        first = self.replicas - self.slow
        return [Change(self.since * seconds, slot, slow) for slot in range(first, self.replicas)]

    @property
    def name(self) -> str:
        return f"{self.replicas} x {self.engine.name}"


def slower(engine: EngineParams, times: float) -> EngineParams:
    """The same engine, everything taking so many times as long."""
    return msgspec.structs.replace(
        engine,
        step_base_seconds=engine.step_base_seconds * times,
        prefill_rate=engine.prefill_rate / times,
        step_pair_seconds=engine.step_pair_seconds * times,
        step_request_seconds=engine.step_request_seconds * times,
        step_token_seconds=engine.step_token_seconds * times,
    )


def pooled(engine: EngineParams, replicas: int) -> EngineParams:
    """One server with the speed and memory of so many. A step of all their requests takes as long
    as a step of each one's part would."""
    return msgspec.structs.replace(
        engine,
        num_blocks=(engine.num_blocks - 1) * replicas + 1,
        max_num_seqs=engine.max_num_seqs * replicas,
        max_num_batched_tokens=engine.max_num_batched_tokens * replicas,
        prefill_rate=engine.prefill_rate * replicas,
        step_pair_seconds=engine.step_pair_seconds / replicas,
        step_request_seconds=engine.step_request_seconds / replicas,
        step_token_seconds=engine.step_token_seconds / replicas,
    )


ANOTHER = EngineParams(
    name="another",
    origin="made up: what a request costs outside of steps, short chunks and few sequences",
    block_size=16,
    num_blocks=12_501,
    max_num_seqs=64,
    max_num_batched_tokens=2048,
    max_model_len=65_536,
    step_base_seconds=0.006,
    prefill_rate=12_000.0,
    step_pair_seconds=4e-9,
    step_request_seconds=250e-6,
    step_token_seconds=0.02e-6,
    overhead_seconds=0.025,
    overhead_serial_seconds=0.004,
    overhead_token_seconds=1e-6,
)
"""An engine no weight was chosen on: decoding costs by the request and not by the context, prompts
are cut into short chunks, and each request passes one thread."""
H100_8B = Fleet(preset("8b-h100"))
H100_32B = Fleet(preset("32b-2xh100"))
H100_70B = Fleet(preset("70b-4xh100"))
A10G = Fleet(preset("8b-a10g"))
