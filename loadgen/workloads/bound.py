"""The most that prefix reuse could give: one cache, shared by all replicas, that never forgets."""

from __future__ import annotations

from collections.abc import Sequence

import xxhash

from loadgen.workloads.types import Step


class UpperBound:
    """Counts, request by request in the order of sending, what an infinite shared cache would hold.

    Prompts count as cached as soon as they are sent, answers too (the next step's prompt contains
    them, and the engine that wrote them has them). As in vLLM, whole blocks are reused, and never
    the prompt's last token.
    """

    __slots__ = ("_block", "_seen", "possible", "total")

    def __init__(self, block_tokens: int = 16) -> None:
        self._block = block_tokens
        # For each path of segments: the most tokens that its last segment was seen with.
        self._seen: dict[int, int] = {}
        self.total = 0
        self.possible = 0

    @property
    def hit_rate(self) -> float:
        """Share of the prompt tokens so far that could have been reused."""
        return self.possible / self.total if self.total else 0.0

    def add(self, step: Step) -> int:
        """Declared tokens of this prompt that an infinite shared cache would have reused."""
        return self.add_sized(step, [segment.tokens for segment in step.prompt])[0]

    def add_sized(self, step: Step, sizes: Sequence[float]) -> tuple[int, int]:
        """(tokens reused, tokens of the prompt), when each of its segments really takes so many
        tokens with what surrounds it in a request."""
        seen = self._seen
        path = b""
        held = length = 0.0
        together = True
        for place, segment in enumerate((*step.prompt, step.output)):
            key = xxhash.xxh3_64_intdigest(path + segment.id.to_bytes(8, "little"))
            known = seen.get(key, 0)
            if place < len(step.prompt):
                size = sizes[place]
                length += size
                if together and known >= segment.tokens:
                    held += size
                elif together:
                    held += size * known / segment.tokens
                    together = False
            if known < segment.tokens:
                seen[key] = segment.tokens
            path = key.to_bytes(8, "little") + segment.tokens.to_bytes(8, "little")
        total = round(length)
        possible = max(0, min(round(held), total - 1)) // self._block * self._block
        self.total += total
        self.possible += possible
        return possible, total
