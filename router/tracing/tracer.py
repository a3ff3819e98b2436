"""Begins traces and hands finished requests to the exporter's process."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import Mapping
from typing import Final

import msgspec

from router.telemetry.record import Finished
from router.tracing.context import parse
from router.tracing.trace import Message, Names, Secret, Told, Trace

log = logging.getLogger(__name__)

GATHER_S: Final = 0.1
"""Seconds for which finished requests are gathered before they are handed over."""
MAX_WAITING_BYTES: Final = 8 << 20
"""What may wait for the exporter; beyond it traces are dropped and counted."""
FIRST_PAUSE_S: Final = 1.0
LONGEST_PAUSE_S: Final = 60.0
"""Seconds between two starts of an exporter that ends by itself."""
STOP_S: Final = 5.0
"""Seconds that the exporter gets to send what it has when the router stops."""

LENGTH_BYTES: Final = 4
"""Bytes that tell a message's length, before it."""


class Tracer:
    """`start`, then `stop`. Used from the event loop's thread."""

    def __init__(self, share: float, secret: bytes) -> None:
        """share: of requests whose client decides nothing that are traced. secret: what sessions'
        names are made with."""
        self._secret = secret
        self._share = share
        # A record's mapping that nobody filled in is a read-only view, which msgpack does not know.
        self._encode = msgspec.msgpack.Encoder(enc_hook=dict).encode
        self._waiting: list[bytes] = []
        self._waiting_bytes = self._waiting_traces = 0
        self._names: dict[int, str] = {}
        self._process: asyncio.subprocess.Process | None = None
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._stopping = False
        self.handed_over = 0
        """Traces that the exporter got."""
        self.dropped = 0
        """Traces that were lost, since the exporter was behind or not there."""

    def start(self) -> None:
        """Start the exporter, and start it again whenever it ends."""
        self._task = asyncio.get_running_loop().create_task(self._keep_running(), name="tracing")

    async def stop(self) -> None:
        """Hand over what there is, and let the exporter send it."""
        self._stopping = True
        if self._timer is not None:
            self._timer.cancel()
        self._hand_over()
        process = self._process
        if process is not None and process.stdin is not None:
            process.stdin.close()
            try:
                async with asyncio.timeout(STOP_S):
                    await process.wait()
            except TimeoutError:
                log.warning("the exporter of traces did not end within %g s", STOP_S)
                with contextlib.suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def members(self, names: Mapping[int, str]) -> None:
        """The fleet is this now: slot -> name."""
        self._names = dict(names)
        if self._process is not None:
            self._add(Names(self._names))

    def begin(self, header: bytes) -> Trace:
        """A request has come. header: the client's traceparent; empty for none."""
        return Trace(parse(header) if header else None, self._share)

    def end(self, trace: Trace, record: Finished) -> None:
        """A request is over. The record must not change any more."""
        if trace.sampled and self._add(
            Told(trace.trace_id, trace.span_id, trace.parent, trace.attempts, record)
        ):
            self._waiting_traces += 1

    def _add(self, message: Message) -> bool:
        frame = _framed(self._encode(message))
        if self._waiting_bytes + len(frame) > MAX_WAITING_BYTES:
            self.dropped += 1
            return False
        self._waiting.append(frame)
        self._waiting_bytes += len(frame)
        if self._timer is None and not self._stopping:
            self._timer = asyncio.get_running_loop().call_later(GATHER_S, self._hand_over)
        return True

    def _hand_over(self) -> None:
        self._timer = None
        process, frames = self._process, self._waiting
        if not frames:
            return
        stdin = None if process is None or process.returncode is not None else process.stdin
        if stdin is None or stdin.is_closing():
            self._drop()
            return
        room = MAX_WAITING_BYTES - stdin.transport.get_write_buffer_size()
        if self._waiting_bytes > room:
            self._drop()
            return
        stdin.write(b"".join(frames))
        self.handed_over += self._waiting_traces
        self._forget()

    def _drop(self) -> None:
        self.dropped += self._waiting_traces
        self._forget()

    def _forget(self) -> None:
        self._waiting.clear()
        self._waiting_bytes = self._waiting_traces = 0

    async def _keep_running(self) -> None:
        pause = FIRST_PAUSE_S
        loop = asyncio.get_running_loop()
        while True:
            began = loop.time()
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "router.tracing.exporter",
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.DEVNULL,
                stderr=asyncio.subprocess.PIPE,
            )
            assert process.stdin is not None
            process.stdin.write(_framed(self._encode(Secret(self._secret))))
            process.stdin.write(_framed(self._encode(Names(self._names))))
            self._process = process
            last = await self._tell_errors(process)
            status = await process.wait()
            if self._stopping:
                return
            if loop.time() - began > LONGEST_PAUSE_S:
                pause = FIRST_PAUSE_S
            log.error(
                "the exporter of traces ended with status %d and is started again in %g s: %s",
                status,
                pause,
                last or "it said nothing",
            )
            await asyncio.sleep(pause)
            pause = min(2.0 * pause, LONGEST_PAUSE_S)

    async def _tell_errors(self, process: asyncio.subprocess.Process) -> str:
        """Log what the exporter complains of, until it ends. Returns its last line."""
        assert process.stderr is not None
        last = ""
        while line := await _line_of(process.stderr):
            text = line.decode(errors="replace").strip()
            if text:
                last = text
                log.warning("exporter of traces: %s", text)
        return last


def _framed(message: bytes) -> bytes:
    return len(message).to_bytes(LENGTH_BYTES, "big") + message


async def _line_of(stream: asyncio.StreamReader) -> bytes:
    try:
        return await stream.readuntil(b"\n")
    except asyncio.IncompleteReadError as error:
        return error.partial
    except asyncio.LimitOverrunError:
        return await stream.read(1 << 16)
