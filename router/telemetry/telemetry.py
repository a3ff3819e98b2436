"""Counting what happened: one call for each finished request."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable
from typing import Final

import msgspec

from router.telemetry.histogram import (
    DURATION_BUCKETS,
    OVERHEAD_BUCKETS,
    TPOT_BUCKETS,
    TTFT_BUCKETS,
    WAIT_ERROR_BUCKETS,
    Histogram,
)
from router.telemetry.ledger import Ledger
from router.telemetry.queue_metrics import CACHE_LOST, WORTH_EXPECTING_S
from router.telemetry.record import APIS, OUTCOMES, Finished, Outcome
from router.telemetry.series import Row, Series
from router.telemetry.sources import Legs

NONE: Final = "none"
"""Label value where there is no replica or no model."""
OTHER: Final = "other"
"""Label value for what a bounded set has no room for."""

MAX_MODEL_CHARACTERS: Final = 256
"""Characters of the name of a model that no replica serves."""

OK: Final = Outcome.OK


class Live(msgspec.Struct, gc=False):
    """Gauges that the data path changes in place."""

    connections: int = 0
    """Client connections that are open."""
    streams: int = 0
    """Answers being relayed that the client asked for as a stream."""
    body_bytes: int = 0
    """Bytes of request bodies held in memory."""
    held: dict[str, int] = {}
    """Model -> requests that wait until a replica of it is usable."""


class TierCounters(msgspec.Struct, gc=False):
    """What one replica was expected to load from one medium."""

    tokens: int = 0
    token_seconds: float = 0.0
    """What a token was last taken to take."""


class Telemetry:
    """All counters of a router. Used from the event loop's thread only.

    Label values are bounded: a model becomes one only after a replica has answered a request for
    it with 2xx, and only while there are fewer than max_models; other names are counted as
    ``other``. A replica's series live until keep_seconds after it was `retired`, so that its last
    requests are scraped.

    A name that no replica serves is a label too, for those who scale by it: while there are fewer
    than max_wanted, and until nobody has asked for it for keep_seconds. Expected names always are.
    """

    def __init__(
        self,
        *,
        max_models: int = 100,
        max_wanted: int = 100,
        max_decisions: int = 100,
        keep_seconds: float = 900.0,
        expected: Iterable[str] = (),
    ) -> None:
        self.live = Live()
        self.retries = 0
        self.legs: Legs | None = None
        """What became of first legs; None where no replica prefills for others."""
        self.overhead = Histogram.over(OVERHEAD_BUCKETS)
        self.queue_waits = {each: Histogram.over(TTFT_BUCKETS) for each in (-1, 0, 1)}
        """By priority: how long requests waited in the queue."""
        self.wait_errors = {each: Histogram.over(WAIT_ERROR_BUCKETS) for each in ("door", "lane")}
        """By where they began to wait: waits in relation to what was expected."""
        self.reuse_lost = dict.fromkeys(("evicted", "waited", "moved", "replica_lost"), 0)
        """Why -> prompt tokens computed again for sessions that came back in time."""
        self.tiers: dict[tuple[str, str], TierCounters] = {}
        """By (replica, medium)."""
        self.decisions: dict[tuple[str, str], int] = {}
        """(policy, reason) -> number of requests."""
        self.served_by: dict[str, int] = {}
        """At a picker: whether the endpoint that answered was the first that it named, a
        fallback, or another one -> answers."""
        self.attempts: dict[tuple[str, str], int] = {}
        """(replica, reason) -> attempts that failed."""
        self._max_models = max_models
        self._max_decisions = max_decisions
        self._keep = keep_seconds
        # What the client wrote -> its counters; several names may share one row.
        self._found: dict[tuple[str, str, str], Row] = {}
        # The rows by their label values.
        self._rows: dict[tuple[str, str, str], Row] = {}
        self._series: dict[tuple[str, str], Series] = {}
        self._max_wanted = max_wanted
        self._models: set[str] = set(expected)
        self._wanted: dict[str, float] = {}
        """Name that no replica serves -> when it was last asked for."""
        self._retired: dict[str, float] = {}

    def observe(self, done: Finished) -> None:
        """Count a finished request."""
        row = self._found.get((done.replica, done.model, done.api))
        if row is None:
            row = self._row(done)
        codes = row.codes
        status = done.status
        codes[status] = codes.get(status, 0) + 1
        outcome = done.outcome
        if outcome != OK:
            word = outcome if outcome in OUTCOMES else OTHER
            row.errors[word] = row.errors.get(word, 0) + 1
        if done.queued >= 0.0:
            self.queue_waits[done.priority].observe(done.queued)
            if done.slot >= 0 and done.queue_expected >= WORTH_EXPECTING_S:
                where = "door" if done.waited_at.startswith("door") else "lane"
                self.wait_errors[where].observe(done.queued / done.queue_expected)
        if done.slot < 0:
            return
        if done.back_in_time and done.missed_tokens:
            self._session_lost(done)
        series = row.series
        value = done.duration
        histogram = series.duration
        histogram.counts[bisect_left(DURATION_BUCKETS, value)] += 1
        histogram.sum += value
        value = done.ttft
        if value >= 0.0:
            histogram = series.ttft
            histogram.counts[bisect_left(TTFT_BUCKETS, value)] += 1
            histogram.sum += value
            if done.output_tokens > 1 and outcome == OK:
                value = (done.duration - value) / (done.output_tokens - 1)
                histogram = series.tpot
                histogram.counts[bisect_left(TPOT_BUCKETS, value)] += 1
                histogram.sum += value
        value = done.overhead
        if value >= 0.0:
            histogram = self.overhead
            histogram.counts[bisect_left(OVERHEAD_BUCKETS, value)] += 1
            histogram.sum += value
        tokens = done.prompt_tokens
        if tokens > 0:
            series.prompt_tokens += tokens
            series.output_tokens += done.output_tokens
            series.ledger.add(done)
        if done.tiers:
            self._expected(done)
        if done.retries:
            self.retries += done.retries
        if done.policy:
            key = (done.policy, done.reason)
            try:
                self.decisions[key] += 1
            except KeyError:
                self._decision(key)

    def _expected(self, done: Finished) -> None:
        """A part of the prompt was expected from tiers."""
        for part in done.tiers:
            key = done.replica, part.medium
            counters = self.tiers.get(key)
            if counters is None:
                counters = self.tiers[key] = TierCounters()
            counters.tokens += part.tokens
            if part.tokens:
                counters.token_seconds = part.seconds / part.tokens

    def _session_lost(self, done: Finished) -> None:
        """Its session had a cache that was worth keeping, and something of it was gone."""
        counts = self.reuse_lost
        for cause, tokens in done.lost.items():
            reason = CACHE_LOST.get(cause)
            if reason is not None:
                counts["waited" if reason == "evicted" and done.queued >= 0.0 else reason] += tokens

    def attempt_failed(self, replica: str, reason: str) -> None:
        """An attempt at a replica failed, whether or not another one followed."""
        key = (replica, reason if reason in OUTCOMES else OTHER)
        self.attempts[key] = self.attempts.get(key, 0) + 1

    def retired(self, replica: str, now: float | None = None) -> None:
        """The replica left the fleet. now: monotonic seconds."""
        self._retired[replica] = time.monotonic() if now is None else now

    def revived(self, replica: str) -> None:
        """A replica of this name came (back)."""
        self._retired.pop(replica, None)

    def rows(self) -> Iterable[Row]:
        """A copy of the counters by replica, model and API family."""
        return list(self._rows.values())

    def series(self) -> list[Series]:
        """A copy of the counters by replica and model."""
        return list(self._series.values())

    def ledgers(self) -> dict[str, Ledger]:
        """Replica's name -> sums over its models."""
        found: dict[str, Ledger] = {}
        for series in self._series.values():
            found.setdefault(series.replica, Ledger()).merge(series.ledger)
        return found

    def sweep(self, now: float | None = None) -> None:
        """Drop what is counted for replicas that left long ago. Called at each scrape."""
        now = time.monotonic() if now is None else now
        self._forget_wanted(now)
        if not self._retired:
            return
        # A name stays here after its series went: a request of it may still finish and bring them
        # back.
        gone = {name for name, when in self._retired.items() if now - when >= self._keep}
        for name in [name for name in gone if now - self._retired[name] >= 10 * self._keep]:
            del self._retired[name]
        if not any(series.replica in gone for series in self._series.values()):
            return
        self._found = {k: r for k, r in self._found.items() if k[0] not in gone}
        self._rows = {k: r for k, r in self._rows.items() if k[0] not in gone}
        self._series = {k: s for k, s in self._series.items() if k[0] not in gone}
        self.attempts = {k: n for k, n in self.attempts.items() if k[0] not in gone}
        self.tiers = {k: each for k, each in self.tiers.items() if k[0] not in gone}

    def _row(self, done: Finished) -> Row:
        """The row of a request whose names were not met before, or are no label."""
        model = done.model
        named = True
        if not model:
            model = NONE
        elif model not in self._models:
            served = done.slot >= 0 and 200 <= done.status < 300
            if served and len(self._models) < self._max_models:
                self._models.add(model)
                self._wanted.pop(model, None)
            else:
                # Not remembered in _found: each request for it comes by here.
                named = False
                if not self._wants(done):
                    model = OTHER
        replica = done.replica or NONE
        api = done.api if done.api in APIS else OTHER
        row = self._rows.get((replica, model, api))
        if row is None:
            series = self._series.get((replica, model))
            if series is None:
                series = self._series[replica, model] = Series.empty(replica, model)
            row = Row(series, f'{series.labels},api="{api}"', {}, {})
            self._rows[replica, model, api] = row
        # Only names from bounded sets are remembered: others would let clients fill the memory.
        if named and done.api in APIS:
            self._found[done.replica, done.model, done.api] = row
        return row

    def _wants(self, done: Finished) -> bool:
        """Whether the name of a model that no replica serves is counted as it is."""
        model, wanted = done.model, self._wanted
        if done.outcome not in (Outcome.NO_REPLICA, Outcome.UNKNOWN_MODEL):
            return False
        fit = len(model) <= MAX_MODEL_CHARACTERS and model.isprintable()
        if not fit or (model not in wanted and len(wanted) >= self._max_wanted):
            return False
        wanted[model] = time.monotonic()
        return True

    def _forget_wanted(self, now: float) -> None:
        """Drop what is counted under names that nobody asks for any more."""
        gone = {name for name, when in self._wanted.items() if now - when >= self._keep}
        if not gone:
            return
        for name in gone:
            del self._wanted[name]
        self._rows = {k: r for k, r in self._rows.items() if k[1] not in gone}
        self._series = {k: s for k, s in self._series.items() if k[1] not in gone}

    def _decision(self, key: tuple[str, str]) -> None:
        if len(self.decisions) >= self._max_decisions:
            key = (key[0], OTHER)
        self.decisions[key] = self.decisions.get(key, 0) + 1
