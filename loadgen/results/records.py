"""What is kept of every request, in columns: about 120 bytes each, however long its answer."""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

NO_TIME = float("nan")
UNKNOWN = -1
"""A count the server did not tell."""


class Gaps:
    """Inter-token gaps in seconds. Bounded: when full, every other kept gap goes, and from then on
    only every second, fourth, ... is kept; mean and count stay exact."""

    __slots__ = ("_left", "_limit", "count", "kept", "stride", "total")

    def __init__(self, limit: int = 4_000_000) -> None:
        self._limit = limit
        self._left = 1
        self.stride = 1
        self.kept = array("f")
        self.count = 0
        self.total = 0.0

    def add(self, gap: float) -> None:
        self.count += 1
        self.total += gap
        self._left -= 1
        if not self._left:
            self._left = self.stride
            self.kept.append(gap)
            if len(self.kept) >= self._limit:
                self.kept = self.kept[::2]
                self.stride *= 2

    def extend(self, gaps: array[float]) -> None:
        """Add many: cheap while nothing has been thinned out."""
        if self.stride == 1 and len(self.kept) + len(gaps) < self._limit:
            self.count += len(gaps)
            self.total += sum(gaps)
            self.kept.extend(gaps)
        else:
            for gap in gaps:
                self.add(gap)


class Names:
    """Small numbers for the few names that recur (replicas, reasons)."""

    __slots__ = ("_numbers", "names")

    def __init__(self, *names: str) -> None:
        self.names = list(names)
        self._numbers = {name: number for number, name in enumerate(names)}

    def number(self, name: str) -> int:
        found = self._numbers.get(name)
        if found is None:
            found = self._numbers[name] = len(self.names)
            self.names.append(name)
        return found


class Records:
    """One run's requests. Times are seconds from the run's start.

    Reason 0 is "" (success), replica 0 and decision 0 are "" (not told). ``first`` is when the
    first token came, ``end`` when the last did; both NaN if none came. Counts are -1 where the
    server did not tell."""

    __slots__ = (
        "cached_tokens",
        "decision",
        "decisions",
        "end",
        "first",
        "gaps",
        "output_tokens",
        "possible_tokens",
        "prompt_tokens",
        "reason",
        "reasons",
        "replica",
        "replicas",
        "scheduled",
        "sent",
        "session",
        "step",
        "tokens",
    )

    def __init__(self) -> None:
        self.session = array("q")
        self.step = array("q")
        self.scheduled = array("d")
        self.sent = array("d")
        self.first = array("d")
        self.end = array("d")
        self.tokens = array("q")
        self.possible_tokens = array("q")
        self.prompt_tokens = array("q")
        self.cached_tokens = array("q")
        self.output_tokens = array("q")
        self.replica = array("q")
        self.reason = array("q")
        self.decision = array("q")
        self.replicas = Names("")
        self.reasons = Names("")
        self.decisions = Names("")
        self.gaps = Gaps()

    def __len__(self) -> int:
        return len(self.session)

    @property
    def told_replicas(self) -> bool:
        """At least one answer named its replica."""
        return len(self.replicas.names) > 1

    def add(
        self,
        *,
        session: int,
        step: int,
        scheduled: float,
        sent: float,
        first: float,
        end: float,
        tokens: int,
        possible_tokens: int,
        prompt_tokens: int = UNKNOWN,
        cached_tokens: int = UNKNOWN,
        output_tokens: int = UNKNOWN,
        replica: str = "",
        reason: str = "",
        decision: str = "",
    ) -> None:
        """One request that has ended, well (reason "") or not.

        tokens and possible_tokens are the declared prompt length and the upper bound's share of it
        (``UpperBound.add``); prompt_tokens and cached_tokens are what the engine reported. Both
        pairs are better in the engine's own tokens where they are known."""
        self.session.append(session)
        self.step.append(step)
        self.scheduled.append(scheduled)
        self.sent.append(sent)
        self.first.append(first)
        self.end.append(end)
        self.tokens.append(tokens)
        self.possible_tokens.append(possible_tokens)
        self.prompt_tokens.append(prompt_tokens)
        self.cached_tokens.append(cached_tokens)
        self.output_tokens.append(output_tokens)
        self.replica.append(self.replicas.number(replica))
        self.reason.append(self.reasons.number(reason))
        self.decision.append(self.decisions.number(decision))

    def append_run(self, other: Records, *, after: float, sessions_from: int) -> None:
        """Add another run as if it had started ``after`` seconds in, its sessions renumbered from
        so many on. What it held of each request is kept as it was."""
        for place in range(len(other)):
            self.add(
                session=other.session[place] + sessions_from,
                step=other.step[place],
                scheduled=other.scheduled[place] + after,
                sent=other.sent[place] + after,
                first=other.first[place] + after,
                end=other.end[place] + after,
                tokens=other.tokens[place],
                possible_tokens=other.possible_tokens[place],
                prompt_tokens=other.prompt_tokens[place],
                cached_tokens=other.cached_tokens[place],
                output_tokens=other.output_tokens[place],
                replica=other.replicas.names[other.replica[place]],
                reason=other.reasons.names[other.reason[place]],
                decision=other.decisions.names[other.decision[place]],
            )
        self.gaps.extend(other.gaps.kept)


def joined(runs: Sequence[Records]) -> Records:
    """Runs one after another, as one; a single one as it is."""
    if len(runs) == 1:
        return runs[0]
    whole = Records()
    after, sessions = 0.0, 0
    for run in runs:
        whole.append_run(run, after=after, sessions_from=sessions)
        ended = [end for end in run.end if end == end]
        after += max(ended, default=0.0)
        sessions += max(run.session, default=-1) + 1
    return whole


def floats(column: array[float]) -> npt.NDArray[np.float64]:
    """A copy of a column of seconds (a view would forbid the column to grow)."""
    return np.array(column, dtype=np.float64)


def ints(column: array[int]) -> npt.NDArray[np.int64]:
    """A copy of a column of counts or numbers."""
    return np.array(column, dtype=np.int64)
