"""A run's records as numpy columns, with what is derived from them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from loadgen.results.records import Records, floats, ints

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]


class Columns:
    """A run's records as numpy columns, with what is derived from them."""

    def __init__(self, records: Records) -> None:
        self.session = ints(records.session)
        self.scheduled = floats(records.scheduled)
        self.sent = floats(records.sent)
        self.first = floats(records.first)
        self.end = floats(records.end)
        self.tokens = ints(records.tokens)
        self.possible = ints(records.possible_tokens)
        self.prompt = ints(records.prompt_tokens)
        self.cached = ints(records.cached_tokens)
        self.output = ints(records.output_tokens)
        self.replica = ints(records.replica)
        self.reason = ints(records.reason)
        self.ok: Flags = self.reason == 0
        self.told: Flags = self.ok & (self.cached >= 0) & (self.prompt > 0)
        self.ttft = self.first - self.scheduled
        self.e2e = self.end - self.scheduled
        self.prompt_told = np.where(self.prompt >= 0, self.prompt, self.tokens)
        """As reported, else as declared."""
        self.output_told = np.maximum(self.output, 0)
        many = self.output > 1
        self.tpot = np.where(many, (self.end - self.first) / np.where(many, self.output - 1, 1), 0)
        self.has_tpot: Flags = self.ok & many

    def hit_rate(self, which: Flags) -> float | None:
        """Cached over prompt tokens of the requests that told; None when none did."""
        told = self.told & which
        prompt = int(self.prompt[told].sum())
        return int(self.cached[told].sum()) / prompt if prompt else None

    def over_time(self, which: Flags, ended: Floats, edges: Floats) -> list[float | None]:
        """Hit rate of the requests that ended in each bucket, by their tokens."""
        told = self.told & which
        if not told.any():
            return [None] * (len(edges) - 1)
        prompt, _ = np.histogram(ended[told], edges, weights=self.prompt[told])
        cached, _ = np.histogram(ended[told], edges, weights=self.cached[told])
        return [round(float(c / p), 4) if p else None for c, p in zip(cached, prompt, strict=True)]
