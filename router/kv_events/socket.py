"""The two ZMQ sockets of one source, driven by the event loop.

Sockets are read by the loop's own reader on their descriptor: zmq.asyncio's futures take half as
much CPU again for each batch, and so does a thread that hands over (bench/exact_sockets.py). The
descriptor tells of changes only, so everything is read until there is nothing, a slice at a time,
so that a flood of events does not hold up the requests.
"""

from __future__ import annotations

import asyncio
import logging
from time import monotonic
from typing import TYPE_CHECKING, Any

from router.kv_events.sequencer import REPLAY_END, EventSequencer
from router.kv_events.sources import Source

if TYPE_CHECKING:
    import zmq

log = logging.getLogger(__name__)

WORK_SLICE_S = 0.001
"""How long batches are applied before the event loop gets its turn."""
REPLAY_TIMEOUT_S = 5.0
"""A replay without a message for so long has failed."""
REPLAY_CUT_TIMEOUT_S = 1.0
"""A replay that brought something and then says nothing for so long has lost its end."""
NUMBER_BYTES = 8
"""A batch's number as it is sent."""
HEARTBEAT_MS = 1000
SILENT_MS = 3000
"""A connection over which no heartbeat came for so long is cut; ZMQ connects again by itself."""


class Subscription:
    """A source's sockets. Its sequencer asks here for replays. Call `open`, then `close`."""

    def __init__(
        self, source: Source, context: zmq.Context[Any], sequencer: EventSequencer
    ) -> None:
        self.source = source
        self.sequencer = sequencer
        sequencer.ask = self.ask
        self._context = context
        self._loop = asyncio.get_running_loop()
        self._events: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self._replay: zmq.Socket[bytes] | None = None
        self._readers: list[int] = []
        self._replay_reader = -1
        self._deadline: asyncio.TimerHandle | None = None
        self._heard = 0.0

    def open(self) -> None:
        """Subscribe. Raises zmq.ZMQError when an address to bind is taken or makes no sense."""
        import zmq
        from zmq.utils.monitor import parse_monitor_message

        self._zmq = zmq
        self._parse = parse_monitor_message
        events = self._context.socket(zmq.SUB)
        self._events = events
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.RCVHWM, 100_000),
            (zmq.HEARTBEAT_IVL, HEARTBEAT_MS),
            (zmq.HEARTBEAT_TIMEOUT, SILENT_MS),
            (zmq.RECONNECT_IVL, 100),
            (zmq.RECONNECT_IVL_MAX, 2000),
            (zmq.IPV6, 1),
        ):
            events.setsockopt(option, value)
        events.subscribe(self.source.topic)
        self._monitor = events.get_monitor_socket(
            zmq.EVENT_HANDSHAKE_SUCCEEDED | zmq.EVENT_DISCONNECTED
        )
        try:
            if self.source.bind:
                events.bind(self.source.endpoint)
            else:
                events.connect(self.source.endpoint)
        except zmq.ZMQError:
            self.close()
            raise
        self._read(self._monitor, self._on_monitor)
        self._read(events, self._on_events)

    def close(self) -> None:
        """Close the sockets. The sequencer is not called any more."""
        self._close_replay()
        for reader in self._readers:
            self._loop.remove_reader(reader)
        self._readers.clear()
        events, self._events = self._events, None
        if events is not None:
            events.disable_monitor()
            if self._monitor is not None:
                self._monitor.close(linger=0)
                self._monitor = None
            events.close(linger=0)

    def ask(self, number: int) -> bool:
        """Request a replay from a number on. False when the source has no replay."""
        if not self.source.replay or self._events is None:
            return False
        # A late answer to an old request goes nowhere, and the engine's queue for us is empty.
        self._close_replay()
        zmq = self._zmq
        replay = self._context.socket(zmq.DEALER)
        replay.setsockopt(zmq.LINGER, 0)
        replay.setsockopt(zmq.RCVHWM, 0)
        replay.setsockopt(zmq.IPV6, 1)
        replay.connect(self.source.replay)
        self._replay = replay
        self._replay_reader = int(replay.getsockopt(zmq.FD))
        self._loop.add_reader(self._replay_reader, self._on_replay)
        replay.send_multipart((b"", number.to_bytes(8, "big")), zmq.NOBLOCK)
        self._heard = monotonic()
        self._deadline = self._loop.call_later(REPLAY_CUT_TIMEOUT_S, self._check_replay)
        # Sending may have consumed the descriptor's edge, so look for messages once more.
        self._loop.call_soon(self._on_replay)
        return True

    def _read(self, socket: zmq.Socket[bytes], callback: Any) -> None:
        reader = int(socket.getsockopt(self._zmq.FD))
        self._readers.append(reader)
        self._loop.add_reader(reader, callback)
        self._loop.call_soon(callback)

    def _on_monitor(self) -> None:
        while self._monitor is not None:
            try:
                message = self._monitor.recv_multipart(self._zmq.NOBLOCK)
            except self._zmq.Again:
                return
            happened = self._parse(message)["event"]
            if happened == self._zmq.EVENT_DISCONNECTED:
                self.sequencer.disconnected()
            elif happened == self._zmq.EVENT_HANDSHAKE_SUCCEEDED:
                # The subscription travels after the handshake: what is published in between is
                # what the replay, asked for now, has.
                self.sequencer.connected()

    def _on_events(self) -> None:
        until = monotonic() + WORK_SLICE_S
        while self._events is not None:
            try:
                frames = self._events.recv_multipart(self._zmq.NOBLOCK)
            except self._zmq.Again:
                return
            if len(frames) == 3 and len(frames[1]) == NUMBER_BYTES:
                self.sequencer.live(int.from_bytes(frames[1], "big"), frames[2])
            else:
                self.sequencer.malformed(f"{len(frames)} frames, and not topic, number and batch")
            if monotonic() > until:
                self._loop.call_soon(self._on_events)
                return

    def _on_replay(self) -> None:
        until = monotonic() + WORK_SLICE_S
        while self._replay is not None:
            try:
                frames = self._replay.recv_multipart(self._zmq.NOBLOCK)
            except self._zmq.Again:
                return
            self._heard = monotonic()
            if len(frames) < 3 or len(frames[-2]) != NUMBER_BYTES:
                self.sequencer.malformed("a replay whose messages are not number and batch")
                continue
            number, payload = frames[-2], frames[-1]
            if number == REPLAY_END or payload == REPLAY_END:
                self.sequencer.replay_ended()
                if not self.sequencer.replaying:
                    self._close_replay()
                    return
            else:
                self.sequencer.replayed(int.from_bytes(number, "big"), payload)
            if monotonic() > until:
                self._loop.call_soon(self._on_replay)
                return

    def _check_replay(self) -> None:
        self._deadline = None
        if not self.sequencer.replaying:
            return
        silent = monotonic() - self._heard
        if silent >= REPLAY_TIMEOUT_S:
            self._close_replay()
            self.sequencer.replay_failed(
                f"{self.source.replay} did not answer a request for replay"
            )
        elif silent < REPLAY_CUT_TIMEOUT_S or not self.sequencer.ask_again():
            self._deadline = self._loop.call_later(REPLAY_CUT_TIMEOUT_S, self._check_replay)

    def _close_replay(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        if self._replay is not None:
            self._loop.remove_reader(self._replay_reader)
            self._replay.close(linger=0)
            self._replay = None
