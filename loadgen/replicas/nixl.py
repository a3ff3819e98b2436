"""vLLM's KV connectors between simulated replicas of one process: fields, leases, failures.

NIXL's pull mode is as it was seen on vLLM 0.32. A request with ``do_remote_decode`` keeps its
blocks after its end, and its answer tells where they are. One with ``do_remote_prefill`` fetches
such blocks, after which their keeper is told to free them. A keeper that is not told frees them
when their lease is over. Whole answers only: a stream's ``kv_transfer_params`` would come in its
last chunk, and no blocks are kept for one here.

The others are from vLLM's source, and were not compared with engines: "push" finds a keeper's
request by its id, "mooncake" by the router's ``transfer_id``, with the engine's id from ``GET
/query``, which here every replica answers at its own port. With "store" each prompt is put where
every engine finds it, as long as the one lives that computed it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from time import time
from typing import TYPE_CHECKING, Any, Literal, Protocol

import msgspec

from loadgen.engine import Link, Request, Transfer
from loadgen.replicas.errors import ApiError, invalid

if TYPE_CHECKING:
    from loadgen.replicas.answers import Answer

KEY = "kv_transfer_params"


class NixlSettings(msgspec.Struct, frozen=True, kw_only=True):
    """Of the connector of a replica. Times are the engine's seconds.

    Raises ValueError for a time that is not positive.
    """

    lease_seconds: float = 30.0
    """``kv_lease_duration``: how long blocks wait for the engine that is to fetch them."""
    timeout_seconds: float = 5.0
    """Until an engine finds out that the one it is to fetch from is gone. vLLM 0.32 took 5 to 10 s
    on one machine."""
    transfer: Transfer = Transfer()
    mode: Literal["pull", "push", "mooncake", "store"] = "pull"

    def __post_init__(self) -> None:
        for name in ("lease_seconds", "timeout_seconds"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be positive, not {getattr(self, name)}")


class _Wanted(msgspec.Struct):
    """What a request says of the engine that has its blocks."""

    do_remote_decode: bool | None = None
    do_remote_prefill: bool | None = None
    remote_engine_id: str | None = None
    remote_request_id: str | None = None
    transfer_id: str | None = None
    remote_bootstrap_addr: str | None = None


class _Lease(msgspec.Struct, frozen=True):
    request: Request
    timer: asyncio.TimerHandle


class Runner(Protocol):
    """What runs the engine."""

    time_scale: float
    frozen: bool

    def fetched(self, request: Request) -> None:
        """Another engine's blocks are here."""

    def free(self, request: Request) -> None:
        """Nobody will fetch this request's blocks any more."""


class Connector:
    """Of one life of an engine."""

    def __init__(
        self,
        driver: Runner,
        settings: NixlSettings,
        engine_id: str,
        host: str,
        port: int,
        peer: Callable[[str], Connector | None],
        peers: Callable[[], Iterable[Connector]],
        failed: Callable[[Request], None],
    ) -> None:
        """peer: finds the connector of an engine that is alive. peers: all of those. failed: what
        to do with a request whose blocks cannot be fetched."""
        self.engine_id = engine_id
        self.settings = settings
        self._driver = driver
        self._address = host, port
        self._peer = peer
        self._peers = peers
        self._failed = failed
        self._leases: dict[str, _Lease] = {}
        self.stored: set[int] = set()
        """Of a store: the prompts that this engine has put there, by their last block's hash."""
        self._sources: dict[Request, tuple[str, str]] = {}
        """By request that is to fetch: (engine, its request)."""
        self._timers: dict[Request, asyncio.TimerHandle] = {}
        self._late: list[Request] = []
        """Whose blocks came while this engine was frozen."""
        self._link = Link()
        self._serial = 0
        self.transfers = 0
        """Transfers that succeeded, and below their sums."""
        self.transfer_seconds = 0.0
        self.transfer_bytes = 0.0
        self.transfers_failed = 0
        self.expired = 0
        """Leases that ended before anybody fetched the blocks."""

    # -- the engine that prefills

    @property
    def held_requests(self) -> int:
        """Leases that are running."""
        return len(self._leases)

    @property
    def held_blocks(self) -> int:
        """Blocks that wait for another engine."""
        return sum(len(lease.request.blocks) for lease in self._leases.values())

    def lease(self, request: Request, answer: Answer) -> dict[str, Any] | None:
        """The params of a request that has ended and keeps its blocks; None where it has none."""
        self._serial += 1
        push, mooncake = self.settings.mode == "push", self.settings.mode == "mooncake"
        remote = f"{answer.id}-{self._serial:08x}"
        if mooncake:
            remote = answer.job.body[KEY]["transfer_id"]
        seconds = self.settings.lease_seconds / self._driver.time_scale
        timer = asyncio.get_running_loop().call_later(seconds, self._expire, remote)
        self._leases[remote] = _Lease(request, timer)
        if mooncake:
            return None
        host, port = self._address
        params = {
            "do_remote_prefill": True,
            "do_remote_decode": False,
            "remote_block_ids": [list(request.blocks)],
            "remote_engine_id": self.engine_id,
            "remote_request_id": remote,
            "remote_host": host,
            "remote_port": port,
            "tp_size": 1,
            "dcp_size": 1,
            "pp_size": 1,
            "remote_num_tokens": request.prompt_tokens,
            "transfer_mode": "push" if push else "pull",
        }
        if not push:
            params["remote_blocks_expiry_time"] = time() + seconds
            params["remote_registration_generation"] = 0
        return params

    def finished(self, request: Request) -> None:
        """A request's answer is whole."""
        if self.settings.mode == "store" and request.hashes:
            self.stored.add(request.hashes[-1])

    def _expire(self, remote: str) -> None:
        lease = self._leases.pop(remote)
        self.expired += 1
        self._driver.free(lease.request)

    def _find(self, remote: str) -> str:
        """The lease that another engine means; itself for none."""
        if self.settings.mode != "push":
            return remote
        # It knows the request's id, without what this engine put behind.
        return next((name for name in self._leases if name.rpartition("-")[0] == remote), remote)

    def holds(self, remote: str) -> bool:
        """Whether these blocks can be read: they are here, and somebody answers for them."""
        return self._find(remote) in self._leases and not self._driver.frozen

    def give(self, remote: str) -> None:
        """They were fetched, or nobody wants them any more."""
        lease = self._leases.pop(self._find(remote), None)
        if lease is not None:
            lease.timer.cancel()
            self._driver.free(lease.request)

    # -- the engine that decodes

    def read(self, answer: Answer) -> None:
        """Note what a new request's params ask for. Raises ApiError."""
        mode = self.settings.mode
        request = answer.choices[0].request
        if mode == "store":
            # Only a whole prompt is found, as ExampleConnector does.
            stored = (connector.stored for connector in self._peers())
            request.remote = bool(request.hashes) and any(request.hashes[-1] in it for it in stored)
            return
        given = answer.job.body.get(KEY)
        if given is None:
            return
        try:
            wanted = msgspec.convert(given, _Wanted)
        except msgspec.ValidationError as error:
            raise invalid(KEY, f"{KEY}: {error}") from None
        if wanted.do_remote_decode:
            known = mode != "mooncake" or bool(wanted.transfer_id)
            request.keep = known and not answer.job.stream
        elif wanted.do_remote_prefill and wanted.remote_engine_id:
            names = {"push": answer.id, "mooncake": wanted.transfer_id}
            remote = names.get(mode, wanted.remote_request_id)
            if remote and (mode != "mooncake" or wanted.remote_bootstrap_addr):
                request.remote = True
                self._sources[request] = wanted.remote_engine_id, remote

    def begin(self, requests: list[Request], now: float) -> None:
        """Fetch what these requests have blocks for, and take them out of the list."""
        transfer, loop = self.settings.transfer, asyncio.get_running_loop()
        for request in requests:
            lacks = request.fetched_tokens + 1  # vLLM fetches the last token's too
            ends = self._link.take(transfer.seconds(lacks), now)
            wait = (ends - now) / self._driver.time_scale
            self._timers[request] = loop.call_later(wait, self._arrived, request, True)
        requests.clear()

    def _arrived(self, request: Request, first: bool) -> None:
        """Everything should be here. first: there is time for another look."""
        if self._driver.frozen:
            self._late.append(request)
            return
        del self._timers[request]
        engine, remote = self._sources.get(request, ("", ""))
        peer = self._peer(engine)
        if not engine or (peer is not None and peer.holds(remote)):
            if peer is not None:
                del self._sources[request]
                peer.give(remote)
            transfer, lacks = self.settings.transfer, request.fetched_tokens + 1
            self.transfers += 1
            self.transfer_seconds += transfer.seconds(lacks)
            self.transfer_bytes += transfer.bytes(lacks)
            self._driver.fetched(request)
        elif first:
            wait = self.settings.timeout_seconds / self._driver.time_scale
            loop = asyncio.get_running_loop()
            self._timers[request] = loop.call_later(wait, self._arrived, request, False)
        else:
            del self._sources[request]
            self.transfers_failed += 1
            self._failed(request)

    def thawed(self) -> None:
        """The engine goes on where it stood."""
        late, self._late = self._late, []
        for request in late:
            if request in self._timers:
                self._arrived(request, True)

    def aborted(self, request: Request) -> None:
        """A request was given up: what was kept for it is free."""
        request.keep = False
        timer = self._timers.pop(request, None)
        if timer is not None:
            timer.cancel()
        source = self._sources.pop(request, None)
        if source is not None:
            peer = self._peer(source[0])
            if peer is not None:
                peer.give(source[1])

    def close(self) -> None:
        """The engine dies."""
        for timer in self._timers.values():
            timer.cancel()
        for lease in self._leases.values():
            lease.timer.cancel()
        self._timers.clear()
        self._leases.clear()
        self.stored.clear()
        self._sources.clear()


def not_loaded() -> ApiError:
    """What a client is told of blocks that could not be fetched, with
    ``kv_load_failure_policy: fail``."""
    return ApiError(500, "Internal server error")


def with_params(body: bytes, params: dict[str, Any]) -> bytes:
    """A whole answer that tells these params."""
    answer = msgspec.json.decode(body, type=dict[str, msgspec.Raw])
    answer[KEY] = msgspec.Raw(msgspec.json.encode(params))
    return msgspec.json.encode(answer)
