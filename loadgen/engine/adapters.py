"""The LoRA adapters of one engine: those in GPU memory, and what loading another one takes.

As in vLLM 0.32: at most ``max_loras`` of them have requests that run (``v1/core/sched/
scheduler.py``), and the least recently used one makes room (``lora/worker_manager.py``).
"""

from __future__ import annotations

from collections import OrderedDict


class AdapterSlots:
    """What is loaded, and how many running requests each has."""

    __slots__ = ("capacity", "load_seconds", "loaded", "loads", "running", "waited_for")

    def __init__(self, capacity: int, load_seconds: float) -> None:
        """capacity: places; 0: one for every adapter there may be."""
        self.capacity = capacity
        self.load_seconds = load_seconds
        self.loaded: OrderedDict[str, None] = OrderedDict()
        """The least recently used one first."""
        self.running: dict[str, int] = {}
        self.loads = 0
        """Times that one was loaded."""
        self.waited_for = 0.0
        """Seconds that the step being planned loads adapters for."""

    def fits(self, adapter: str) -> bool:
        """Whether a request for it may run beside those that do."""
        running = self.running
        return not self.capacity or adapter in running or len(running) < self.capacity

    def enter(self, adapter: str) -> None:
        """A request for it begins to run: load it where it is not there."""
        self.running[adapter] = self.running.get(adapter, 0) + 1
        if adapter in self.loaded:
            self.loaded.move_to_end(adapter)
        else:
            self.load(adapter)
            self.waited_for += self.load_seconds

    def load(self, adapter: str) -> None:
        """Have it in memory, in the place of the least recently used one that no request needs."""
        self.loads += 1
        if self.capacity and len(self.loaded) >= self.capacity:
            idle = next((each for each in self.loaded if each not in self.running), None)
            if idle is not None:
                del self.loaded[idle]
        self.loaded[adapter] = None

    def leave(self, adapter: str) -> None:
        """A request for it does not run any more."""
        self.running[adapter] -= 1
        if not self.running[adapter]:
            del self.running[adapter]

    def take_wait(self) -> float:
        """What the step being planned takes longer, once."""
        seconds, self.waited_for = self.waited_for, 0.0
        return seconds
