"""KV events over ZMQ, as vLLM 0.32 publishes them (``vllm/distributed/kv_events.py``).

PUB frames are ``[topic, sequence as 8 bytes big-endian from 0, msgpack]``, the payload ``[time,
[event, ...], data-parallel rank]``, each event a map tagged by ``type``. A ROUTER answers ``["",
first sequence]`` with what the buffer still has, ``["", topic, sequence, payload]`` each, and then
``["", "", ff x 8, ""]``.
"""

from __future__ import annotations

import asyncio
from collections import deque
from time import time
from typing import TYPE_CHECKING, Any

import msgspec

from loadgen.engine import Request
from loadgen.replicas.tokens import TOKEN_BYTES, token_ids

if TYPE_CHECKING:
    import zmq

TOPIC = "kv-events"
BUFFERED = 10_000
REPLAY_ABOVE = 1000
"""How far the replay socket's port lies above the other's."""
_END = b"\xff" * 8


class Origin(msgspec.Struct, frozen=True):
    """A request's tokens and what else names its blocks: the engine request's tag."""

    tokens: bytes
    """The tokens of prompt and answer."""
    adapter: str | None
    salt: str | None


class BlockStored(msgspec.Struct, tag=True, omit_defaults=True, gc=False):
    """Blocks of one request entered the cache."""

    block_hashes: list[int]
    parent_block_hash: int | None
    token_ids: list[int]
    block_size: int
    lora_id: int | None
    medium: str | None
    lora_name: str | None
    extra_keys: list[tuple[str, ...] | None] | None = None
    group_idx: int | None = None
    kv_cache_spec_kind: str | None = None


class BlockRemoved(msgspec.Struct, tag=True, omit_defaults=True, gc=False):
    """The cache evicted one block."""

    block_hashes: list[int]
    medium: str | None
    group_idx: int | None = None


class AllBlocksCleared(msgspec.Struct, tag=True, gc=False):
    """The cache was reset and holds nothing."""


class EventPublisher:
    """The ZMQ side of one replica; an ``engine.CacheObserver``. Events go out in batches, see
    flush."""

    def __init__(self, host: str, port: int, block_size: int) -> None:
        self.host = host
        self.port = port
        """0 takes a free one at ``open`` and keeps it from then on."""
        self.replay_port = port + REPLAY_ABOVE if port else 0
        self.block_size = block_size
        self._context: zmq.Context[Any] | None = None
        self._reset()

    def _reset(self) -> None:
        self._pending: list[BlockStored | BlockRemoved | AllBlocksCleared] = []
        self._buffer: deque[tuple[bytes, bytes]] = deque(maxlen=BUFFERED)
        self._sequence = 0

    def open(self) -> None:
        """Bind both sockets. Raises ImportError without pyzmq, OSError for a taken port."""
        try:
            import zmq
        except ImportError:
            raise ImportError(
                "KV events need pyzmq, which is not installed: pip install pyzmq"
            ) from None
        self._reset()
        self._zmq = zmq
        self._context = zmq.Context()
        self._publisher = self._context.socket(zmq.PUB)
        self._publisher.set_hwm(100_000)
        self._replay = self._context.socket(zmq.ROUTER)
        self._reader = int(self._replay.getsockopt(zmq.FD))
        asyncio.get_running_loop().add_reader(self._reader, self._serve_replay)
        self.port = self._bind(self._publisher, self.port)
        self.replay_port = self._bind(self._replay, self.replay_port)

    def _bind(self, socket: zmq.Socket[bytes], port: int) -> int:
        socket.setsockopt(self._zmq.LINGER, 0)
        try:
            socket.bind(f"tcp://{self.host}:{port or '*'}")
        except self._zmq.ZMQError as error:
            self.close()
            raise OSError(
                error.errno, f"KV events on {self.host}:{port}: {error.strerror}"
            ) from None
        endpoint = socket.getsockopt(self._zmq.LAST_ENDPOINT)
        assert isinstance(endpoint, bytes)
        return int(endpoint.rstrip(b"\0").rpartition(b":")[2])

    def close(self) -> None:
        """Close both sockets; the ports stay this publisher's for the next open."""
        if self._context is None:
            return
        asyncio.get_running_loop().remove_reader(self._reader)
        self._publisher.close(linger=0)
        self._replay.close(linger=0)
        self._context.term()
        self._context = None

    def source(self) -> dict[str, Any]:
        """This publisher in GET /kv_event_sources. As in vLLM the host is a wildcard."""
        return {
            "enable_kv_cache_events": True,
            "publisher": "zmq",
            "endpoint": f"tcp://*:{self.port}",
            "replay_endpoint": f"tcp://*:{self.replay_port}",
            "buffer_steps": BUFFERED,
            "hwm": 100_000,
            "max_queue_size": 100_000,
            "topic": TOPIC,
        }

    def stored(self, request: Request, first: int, end: int) -> None:
        """Note blocks that entered the cache, for the step's batch."""
        origin: Origin = request.tag
        full = request.prompt_tokens // self.block_size
        keys = request.hashes, request.output_hashes
        hashes = [
            keys[0][place] if place < full else keys[1][place - full]
            for place in range(max(first - 1, 0), end)
        ]
        parent = hashes.pop(0) if first else None
        width = self.block_size * TOKEN_BYTES
        names = (origin.adapter,) if origin.adapter else ()
        extra: list[tuple[str, ...] | None] = [names or None] * (end - first)
        if not first and origin.salt:
            extra[0] = (*names, origin.salt)
        self._pending.append(
            BlockStored(
                hashes,
                parent,
                token_ids(origin.tokens[first * width : end * width]),
                self.block_size,
                1 if origin.adapter else None,
                "GPU",
                origin.adapter,
                extra,
                0,
                "full_attention",
            )
        )

    def removed(self, key: int) -> None:
        """Note an evicted block, for the step's batch."""
        self._pending.append(BlockRemoved([key], "GPU", 0))

    def offloaded(self, key: int) -> None:
        """Note a block that entered the tier in CPU memory. As vLLM's OffloadingConnector tells it:
        its name, without tokens."""
        self._pending.append(BlockStored([key], None, [], 0, None, "CPU", None))

    def dropped(self, key: int) -> None:
        """Note a block that left it."""
        self._pending.append(BlockRemoved([key], "CPU"))

    def cleared(self) -> None:
        """Note a reset of the cache, for the step's batch."""
        self._pending.append(AllBlocksCleared())

    def flush(self) -> None:
        """Publish what was noted since the last time, as one batch."""
        if not self._pending or self._context is None:
            return
        payload = msgspec.msgpack.encode([time(), self._pending, 0])
        self._pending = []
        sequence = self._sequence.to_bytes(8, "big")
        self._sequence += 1
        self._buffer.append((sequence, payload))
        self._publisher.send_multipart((TOPIC.encode(), sequence, payload), self._zmq.NOBLOCK)

    def _serve_replay(self) -> None:
        # The descriptor tells of changes only: read until there is nothing.
        while self._context is not None and self._replay.poll(0):
            frames = self._replay.recv_multipart()
            if len(frames) != 3:
                continue
            client, _, start = frames
            for sequence, payload in self._buffer:
                if sequence >= start:
                    self._replay.send_multipart((client, b"", TOPIC.encode(), sequence, payload))
            self._replay.send_multipart((client, b"", b"", _END, b""))
