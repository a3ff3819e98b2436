"""Subscriptions over real ZMQ sockets."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Callable
from typing import Any

import msgspec
import pytest
import zmq
from exact_engine import Publisher

from router.kv_events.decode import Batch
from router.kv_events.sequencer import EventSequencer
from router.kv_events.socket import REPLAY_CUT_TIMEOUT_S, Subscription
from router.kv_events.sources import Source


class Sink:
    """Keeps what came, and wakes who waits for it."""

    def __init__(self) -> None:
        self.seen: list[Any] = []
        self._changed = asyncio.Event()

    def apply(self, batch: Batch) -> None:
        self.seen.append(int(batch.time))
        self._changed.set()

    def empty(self, *, complete: bool) -> None:
        self.seen.append("empty" if complete else "unknown")
        self._changed.set()

    def current(self) -> None:
        self._changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                self._changed.clear()
                await self._changed.wait()


class Ear:
    """A subscription and what it heard."""

    def __init__(self, context: zmq.Context[Any], source: Source) -> None:
        self.sink = Sink()
        self.sequencer = EventSequencer("test", self.sink)
        self.subscription = Subscription(source, context, self.sequencer)

    async def ready(self) -> None:
        self.subscription.open()
        await self.sink.until(lambda: self.sequencer.current)

    async def heard(self, *seen: Any) -> None:
        await self.sink.until(lambda: len(self.sink.seen) >= len(seen))
        assert self.sink.seen == list(seen)
        self.sink.seen.clear()


@pytest.fixture
async def context() -> AsyncIterator[zmq.Context[Any]]:
    made: zmq.Context[Any] = zmq.Context()
    yield made
    made.destroy(linger=0)


def source_of(publisher: Publisher, *, replay: bool = True, topic: str = "kv") -> Source:
    endpoint = f"tcp://127.0.0.1:{publisher.port}"
    return Source(
        0, endpoint, False, f"tcp://127.0.0.1:{publisher.replay_port}" if replay else "", topic
    )


async def test_history_comes_by_replay_and_the_rest_live(context: zmq.Context[Any]) -> None:
    publisher = Publisher()
    ear = Ear(context, source_of(publisher))
    try:
        for _ in range(3):
            await publisher.publish()
        await ear.ready()
        await ear.heard("empty", 0, 1, 2)
        # The subscription reaches the publisher some time after the connection: a batch that was
        # not heard is found by the next check.
        await publisher.publish()
        ear.sequencer.verify()
        ear.sequencer.verify()
        await ear.heard(3)
    finally:
        ear.subscription.close()
        publisher.close()


async def test_lost_batches_are_replayed(context: zmq.Context[Any]) -> None:
    publisher = Publisher()
    ear = Ear(context, source_of(publisher))
    try:
        await ear.ready()
        await ear.heard("empty")
        await publisher.publish(lost=True)
        await publisher.publish(lost=True)
        await publisher.publish()
        ear.sequencer.verify()
        await ear.heard("empty", 0, 1, 2)
    finally:
        ear.subscription.close()
        publisher.close()


async def test_a_replay_with_holes_and_no_end_is_completed(context: zmq.Context[Any]) -> None:
    publisher = Publisher()
    ear = Ear(context, source_of(publisher))
    try:
        for _ in range(6):
            await publisher.publish()
        publisher.dropped = {2, 3}
        await ear.ready()
        await ear.heard("empty", 0, 1, 2, 3, 4, 5)
        await publisher.publish(lost=True)
        publisher.dropped = {None}
        ear.sequencer.verify()
        ear.sequencer.verify()
        await ear.heard(6)
        assert ear.sequencer.replaying
        ear.subscription._heard -= REPLAY_CUT_TIMEOUT_S
        ear.subscription._check_replay()
        async with asyncio.timeout(10):
            while ear.sequencer.replaying:  # noqa: ASYNC110  (nothing is told of an end that changes nothing)
                await asyncio.sleep(0.005)
        assert ear.sink.seen == []
        assert (ear.sequencer.cuts, ear.sequencer.rebuilds) == (2, 0)
    finally:
        ear.subscription.close()
        publisher.close()


async def test_an_engine_that_connects_is_heard_at_a_bound_socket(
    context: zmq.Context[Any],
) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        endpoint = f"tcp://127.0.0.1:{probe.getsockname()[1]}"
    publisher = Publisher(connect=endpoint)
    replay = f"tcp://127.0.0.1:{publisher.replay_port}"
    ear = Ear(context, Source(0, endpoint, True, replay, ""))
    try:
        await publisher.publish()
        await ear.ready()
        await ear.heard("empty", 0)
        taken = Ear(context, Source(0, endpoint, True, replay, ""))
        with pytest.raises(zmq.ZMQError, match="in use"):
            taken.subscription.open()
    finally:
        ear.subscription.close()
        publisher.close()


async def test_an_engine_that_restarts_is_forgotten_and_heard_again(
    context: zmq.Context[Any],
) -> None:
    publisher = Publisher()
    ear = Ear(context, source_of(publisher, replay=True))
    try:
        await publisher.publish()
        await ear.ready()
        await ear.heard("empty", 0)
        # Another engine at the same addresses, with batches of its own.
        port, replay_port = publisher.port, publisher.replay_port
        publisher.close()
        await ear.sink.until(lambda: not ear.sequencer.current)
        other: zmq.Context[Any] = zmq.Context()
        pub, router = other.socket(zmq.PUB), other.socket(zmq.ROUTER)
        pub.bind(f"tcp://127.0.0.1:{port}")
        router.bind(f"tcp://127.0.0.1:{replay_port}")

        def answer() -> None:
            for _ in range(2):  # from where it was, which is nowhere; then from the first
                client, _, _ = router.recv_multipart()
                router.send_multipart((client, b"", b"", b"\xff" * 8, b""))

        await asyncio.to_thread(answer)
        await ear.heard("unknown", "empty")
        assert ear.sequencer.restarts == 1
        other.destroy(linger=0)
    finally:
        ear.subscription.close()


async def test_messages_of_another_protocol_are_counted_and_do_no_harm(
    context: zmq.Context[Any], caplog: pytest.LogCaptureFixture
) -> None:
    other: zmq.Context[Any] = zmq.Context()
    pub, router = other.socket(zmq.PUB), other.socket(zmq.ROUTER)
    port = pub.bind_to_random_port("tcp://127.0.0.1")
    replay_port = router.bind_to_random_port("tcp://127.0.0.1")
    replay = f"tcp://127.0.0.1:{replay_port}"
    ear = Ear(context, Source(0, f"tcp://127.0.0.1:{port}", False, replay, ""))
    batch = msgspec.msgpack.encode([0.0, []])

    def answer() -> None:
        client, _, _ = router.recv_multipart()
        # As a number, the second one would have thousands of digits.
        for frames in ((b"x",), (b"", b"\x7f" * 5000, batch), (b"", b"\0" * 8, batch)):
            router.send_multipart((client, *frames))
        router.send_multipart((client, b"", b"\xff" * 8, b""))

    try:
        ear.subscription.open()
        await asyncio.to_thread(answer)
        await ear.heard("empty", 0)
        assert ear.sequencer.faults == 2
        # Until the subscription has reached the publisher, what it sends goes nowhere.
        while ear.sequencer.faults == 2:
            pub.send_multipart((b"", batch))
            pub.send_multipart((b"", b"\0", batch))
            await asyncio.sleep(0.01)
        pub.send_multipart((b"", (1).to_bytes(8, "big"), msgspec.msgpack.encode([1.0, []])))
        await ear.heard(1)
        assert ear.sequencer.current
        told = [record.message for record in caplog.records if "left out" in record.message]
        assert 2 <= len(told) == len(set(told)) <= 3
    finally:
        ear.subscription.close()
        other.destroy(linger=0)
