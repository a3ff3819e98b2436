"""A queue over a placer that goes by turns, with every request in the test's hands."""

from __future__ import annotations

from array import array
from collections.abc import Callable
from typing import Any

from router.config.queueing import QueueSettings
from router.index import ByteIndex
from router.policies.random_choice import RandomChoice
from router.prompt.prompt import Prompt
from router.prompt.spans import SPANS
from router.queue.queue import Queue
from router.queue.ticket import Refusal, State, Tail, Ticket
from router.scheduling.placer import Placement, Placer
from router.types import Load


class Asker:
    """Owns one request: remembers what became of it."""

    def __init__(self, world: World, tokens: float) -> None:
        self.world = world
        self.tokens = tokens
        self.placement: Placement | None = None
        self.sent: list[float] = []
        self.refusals: list[Refusal] = []
        self.text = b""
        self.saw: list[tuple[int, float, float]] = []
        """By slot, what its placement was chosen by: requests, queued tokens, when it is free."""
        self.on_send: Callable[[Asker, float], None] | None = None
        self.ticket: Ticket

    def eligible(self) -> int:
        return self.world.eligible

    def uncached(self) -> float:
        return self.tokens

    def tail_digest(self, blocks: int, length: int) -> int:
        end = blocks * 10 + length
        return hash(self.text[blocks * 10 : end]) if end <= len(self.text) else -1

    def place(self, eligible: int, now: float) -> Placement:
        world = self.world
        slot = world.turn % world.replicas
        while not eligible >> slot & 1:
            slot = (slot + 1) % world.replicas
        world.turn += 1
        self.saw = [(one.in_flight, one.queued_tokens, one.busy_until) for one in world.loads]
        load = world.loads[slot]
        load.in_flight += 1
        prompt = Prompt(model="m", chain=self.ticket.chain, size=1, stream=self.ticket.stream)
        self.placement = Placement(
            world.placer, prompt, slot, self.tokens, 0.0, 0.0, self.tokens, "", (), now, load, False
        )
        return self.placement

    def unplace(self, placement: Placement, now: float) -> None:
        assert placement is self.placement
        placement.load.in_flight -= 1
        self.placement = None

    def send(self, placement: Placement, now: float) -> None:
        assert placement is self.placement
        assert self.ticket.state is State.SENT
        self.sent.append(now)
        if self.on_send is not None:
            self.on_send(self, now)

    def refuse(self, refusal: Refusal, now: float) -> None:
        assert self.placement is None
        self.refusals.append(refusal)


class World:
    """So many replicas that prefill 1,000 tokens a second and hold 10,000."""

    def __init__(self, replicas: int = 2, **settings: Any) -> None:
        self.replicas = replicas
        self.eligible = (1 << replicas) - 1
        self.turn = 0
        self.now = 0.0
        self.loads = [Load(prefill_rate=1000.0, kv_capacity=10_000.0) for _ in range(replicas)]
        self.placer = Placer(ByteIndex(SPANS), RandomChoice(), self.loads)
        self.calls: list[tuple[float, Callable[[float], None]]] = []
        self.queue = Queue(
            self.loads,
            QueueSettings(**settings),
            wake=lambda at, call: self.calls.append((at, call)),
            seed=1,
        )
        self.all: list[Asker] = []
        for _ in range(20):  # it is known that what begins with 7 goes on, and with 99 does not
            self.queue.door.sessions.beginnings.began(99)
            self.queue.door.sessions.beginnings.began(7)
            self.queue.door.sessions.beginnings.went_on(7)
        self.queue.tick(0.0)

    def ask(
        self,
        tokens: float = 100.0,
        *,
        on_send: Callable[[Asker, float], None] | None = None,
        text: bytes = b"",
        prefix: int = 7,
        **fields: Any,
    ) -> Asker:
        """A request comes now."""
        asker = Asker(self, tokens)
        asker.on_send = on_send
        asker.text = text
        blocks = [text[: end + 10] for end in range(0, len(text) - 9, 10)]
        chain = array("Q", [hash(each) & (1 << 64) - 1 for each in blocks] or [prefix])
        ticket = Ticket(asker, self.now, chain, max(len(text), 1), **fields)
        asker.ticket = ticket
        if blocks:
            length = len(text) - 10 * len(blocks)
            ticket.tail = Tail(chain[-1], length, asker.tail_digest(len(blocks), length))
        self.all.append(asker)
        self.queue.offer(ticket, self.now)
        return asker

    def first_token(self, asker: Asker) -> None:
        self.queue.first_token(asker.ticket, self.now)

    def end(self, asker: Asker, output: float = 10.0) -> None:
        self._give_back(asker)
        self.queue.ended(asker.ticket, self.now, output)

    def leave(self, asker: Asker) -> None:
        """Its client has gone."""
        if asker.ticket.state in (State.SENT, State.ANSWERING):
            self._give_back(asker)
        self.queue.gone(asker.ticket, self.now)

    def fail(self, asker: Asker) -> None:
        """Its attempt has failed, and it goes elsewhere."""
        self._give_back(asker)
        self.queue.again(asker.ticket, self.now)

    def _give_back(self, asker: Asker) -> None:
        assert asker.placement is not None
        asker.placement.load.in_flight -= 1
        asker.placement = None

    def turn_to(self, now: float) -> None:
        """Time passes: due calls come, and a tick."""
        self.now = now
        due = [call for call in self.calls if call[0] <= now]
        self.calls = [call for call in self.calls if call[0] > now]
        for _, call in due:
            call(now)
        self.queue.tick(now)

    def in_state(self, *states: State) -> list[Asker]:
        return [asker for asker in self.all if asker.ticket.state in states]
