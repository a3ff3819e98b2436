"""Knows which LoRA adapters each replica has loaded, and learns what loading one takes.

An engine keeps a few adapters in GPU memory, `max_loras` in vLLM, and replaces the least recently
used one. Its metrics name those with requests (`vllm:lora_requests_info`), not those that are
merely loaded. So what was sent there says more, and is corrected by the metrics.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping
from itertools import islice

from router.types import AdapterNeed, slots

LOAD_SECONDS_GUESS = 0.3
"""What loading an adapter takes until that was seen: one of some 100 MB, read from a local disk
and copied to the GPU."""
GUESS_SAMPLES = 2.0
"""The guess counts as much as so many loads that were seen."""
MOST_SAMPLES = 32.0
"""Old loads count less: about the last so many matter."""
MOST_REPORTED = 256
"""Adapters with requests that are taken over from one reading of a replica's metrics. Engines have
places for a few; the names are the engine's, and are kept."""
MOST_LOADED = 4096
"""Adapters that a replica is believed to have loaded while its room is not known."""
MOST_RATIO = 4.0
"""A load counts as at most so many times the mean: one that waited for something else must not
undo what the others say."""


class _Loaded:
    """What one replica has loaded."""

    __slots__ = ("capacity", "listed", "loaded", "reported", "running")

    def __init__(self) -> None:
        self.capacity = 0
        """Adapters it has room for; 0 while it is not known."""
        self.loaded: OrderedDict[str, None] = OrderedDict()
        """The least recently used one first."""
        self.running: dict[str, int] = {}
        """Adapter -> this router's requests in flight, where there are any."""
        self.reported: set[str] = set()
        """Others of which its metrics say that they have requests."""
        self.listed: frozenset[str] = frozenset()
        """The adapters it served when its models were read last."""

    def taken(self) -> bool:
        """Whether every place has an adapter with requests."""
        return bool(self.capacity) and len(self.running.keys() | self.reported) >= self.capacity


class Adapters:
    """Which replica has which adapter. Used from the event loop only.

    Its mutable state is what each replica has loaded, the masks that follow from it, and
    `load_seconds`.
    """

    def __init__(self, parents: Mapping[str, str]) -> None:
        """parents: adapter -> base model, of the adapters that the fleet serves; it is kept up to
        date by its owner."""
        self.parents = parents
        self.load_seconds = LOAD_SECONDS_GUESS
        self.samples = 0
        """Loads that were seen."""
        self._weight = GUESS_SAMPLES
        self._replicas: dict[int, _Loaded] = {}
        self._warm: dict[str, int] = {}
        """Adapter -> mask of the replicas that have it loaded."""
        self._taken = 0
        """Mask of the replicas all of whose places have an adapter with requests."""
        self._full = 0
        """Mask of those all of whose places have an adapter."""

    # What placing a request asks

    def need(self, model: str, eligible: int) -> AdapterNeed | None:
        """What a request for this model needs of the eligible replicas. None where it is no
        adapter."""
        if model not in self.parents:
            return None
        cold = eligible & ~self._warm.get(model, 0)
        blocked = eligible & self._taken
        if blocked:
            for slot in slots(blocked):
                replica = self._replicas[slot]
                if model in replica.running or model in replica.reported:
                    blocked ^= 1 << slot
        return AdapterNeed(cold, blocked, cold & self._full, self.load_seconds)

    def warm(self, model: str) -> int:
        """Mask of the replicas that have an adapter loaded."""
        return self._warm.get(model, 0)

    def knows(self, slot: int) -> bool:
        """Whether anything is known of a replica's adapters."""
        return slot in self._replicas

    def loaded(self, slot: int) -> list[str]:
        """The adapters a replica is believed to have loaded, the most recently used one first."""
        replica = self._replicas.get(slot)
        return [] if replica is None else list(reversed(replica.loaded))

    def with_requests(self, slot: int) -> list[str]:
        """Those of them that have requests, this router's and, by its metrics, of others."""
        replica = self._replicas.get(slot)
        return [] if replica is None else sorted(replica.running.keys() | replica.reported)

    # What becomes of requests

    def sent(self, slot: int, model: str) -> None:
        """A request for an adapter was sent to a replica, which loads it if it has to."""
        replica = self._replica(slot)
        running = replica.running
        running[model] = running.get(model, 0) + 1
        replica.reported.discard(model)
        self._touch(slot, replica, model)
        self._tell_taken(slot, replica)

    def ended(self, slot: int, model: str) -> None:
        """A request that was sent has ended."""
        replica = self._replicas.get(slot)
        if replica is None or model not in replica.running:
            return
        replica.running[model] -= 1
        if not replica.running[model]:
            del replica.running[model]
        self._tell_taken(slot, replica)

    def saw_load(self, seconds: float) -> None:
        """A request to a replica that had to load its adapter had its first token so much later
        than without. Negative: sooner."""
        self.samples += 1
        seconds = min(max(seconds, 0.0), MOST_RATIO * max(self.load_seconds, 0.001))
        self._weight = min(self._weight + 1.0, MOST_SAMPLES)
        self.load_seconds += (seconds - self.load_seconds) / self._weight

    # What replicas tell

    def models_told(self, slot: int, listed: Collection[str]) -> None:
        """The adapters that a replica serves. An engine loads one when it is added to these, and
        has none any more that is gone."""
        replica = self._replica(slot)
        before, replica.listed = replica.listed, frozenset(listed)
        for model in listed:
            if model not in before:
                self._touch(slot, replica, model)
        for model in before - replica.listed:
            self._drop(slot, replica, model)
        self._tell_taken(slot, replica)

    def metrics_told(self, slot: int, capacity: int, with_requests: Collection[str]) -> None:
        """What a replica's metrics say: how many adapters it has room for (0: not told), and which
        have requests now, waiting or running, whoever sent them."""
        replica = self._replica(slot)
        replica.capacity = capacity
        with_requests = list(islice(with_requests, MOST_REPORTED))
        replica.reported = {model for model in with_requests if model not in replica.running}
        for model in with_requests:
            self._touch(slot, replica, model)
        self._evict(slot, replica)
        self._tell_taken(slot, replica)

    def emptied(self, slot: int) -> None:
        """The replica restarted, sleeps or is paused: what it had loaded is gone. The requests that
        were sent there stay in the books until each of them has ended."""
        replica = self._replicas.get(slot)
        self.forget(slot)
        if replica is not None and replica.running:
            self._replica(slot).running = replica.running

    def forget(self, slot: int) -> None:
        """The replica left."""
        replica = self._replicas.pop(slot, None)
        if replica is None:
            return
        for model in list(replica.loaded):
            self._drop(slot, replica, model)
        self._taken &= ~(1 << slot)
        self._full &= ~(1 << slot)

    # -- books

    def _replica(self, slot: int) -> _Loaded:
        replica = self._replicas.get(slot)
        if replica is None:
            replica = self._replicas[slot] = _Loaded()
        return replica

    def _touch(self, slot: int, replica: _Loaded, model: str) -> None:
        loaded = replica.loaded
        if model in loaded:
            loaded.move_to_end(model)
            return
        loaded[model] = None
        self._warm[model] = self._warm.get(model, 0) | 1 << slot
        self._evict(slot, replica)

    def _evict(self, slot: int, replica: _Loaded) -> None:
        """Drop what an engine with so many places has replaced: the least recently used of those
        without requests."""
        over = len(replica.loaded) - (replica.capacity or MOST_LOADED)
        if over <= 0:
            return
        running, reported = replica.running, replica.reported
        free = (each for each in replica.loaded if each not in running and each not in reported)
        for model in list(islice(free, over)):
            self._drop(slot, replica, model)

    def _drop(self, slot: int, replica: _Loaded, model: str) -> None:
        if replica.loaded.pop(model, self) is self:
            return
        left = self._warm[model] & ~(1 << slot)
        if left:
            self._warm[model] = left
        else:
            del self._warm[model]

    def _tell_taken(self, slot: int, replica: _Loaded) -> None:
        bit = 1 << slot
        full = 0 < replica.capacity <= len(replica.loaded)
        self._full = self._full | bit if full else self._full & ~bit
        self._taken = self._taken | bit if replica.taken() else self._taken & ~bit
