"""A workload that mixes several workloads by weight."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from loadgen.workloads.draw import rng
from loadgen.workloads.types import Session, Workload


class Mix(msgspec.Struct, frozen=True, kw_only=True):
    """Each arrival is a session (or a group that arrives together) of one part, drawn by weight."""

    parts: tuple[tuple[Workload, float], ...]
    name: str = "mix"

    @property
    def timed(self) -> bool:
        return False

    @property
    def group(self) -> int:
        return 1

    def sessions(self, seed: int) -> Iterator[Session]:
        random = rng(seed, self.name)
        streams = [part.sessions(seed) for part, _ in self.parts]
        weights = [weight for _, weight in self.parts]
        number = 0
        while True:
            chosen = random.choices(range(len(streams)), weights)[0]
            session = next(streams[chosen], None)
            if session is None:
                return
            yield Session(number, session.steps)
            number += 1
