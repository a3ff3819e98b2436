"""One simulated replica: an engine run by the wall clock, behind the HTTP surface of vLLM or of
another engine."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from math import inf
from time import time
from uuid import uuid4

from loadgen.engine import Engine, EngineParams
from loadgen.replicas.answers import Answer, ApiFormat
from loadgen.replicas.connection import Connection
from loadgen.replicas.driver import Driver
from loadgen.replicas.errors import ApiError
from loadgen.replicas.faults import Fault, FaultTrigger, Received
from loadgen.replicas.kv_events import EventPublisher
from loadgen.replicas.listener import HttpListener
from loadgen.replicas.metrics import RequestMetrics
from loadgen.replicas.nixl import Connector, NixlSettings
from loadgen.replicas.routes import JobReader, decode_body
from loadgen.replicas.surfaces import surface_of

GARBAGE = b"\x16\x03\x01\x02\x00SMTP 220 this is no HTTP\r\n\r\n"


class Replica:
    """Address, engine and faults of one replica.

    Engine time runs ``time_scale`` times as fast as the wall clock. Time-related numbers in
    /metrics are in engine seconds, what the modelled machine would have reported.
    """

    def __init__(
        self,
        *,
        params: EngineParams,
        model: str = "sim",
        adapters: Sequence[str] = (),
        resolves: Sequence[str] = (),
        host: str = "127.0.0.1",
        port: int = 0,
        time_scale: float = 1.0,
        default_output_tokens: int = 128,
        keep_requests: int = 1000,
        name: str = "replica",
        kv_events_port: int | None = None,
        engine: str = "vllm",
        nixl: NixlSettings | None = None,
    ) -> None:
        """adapters: loaded from the start. resolves: loaded when they are asked for first, as with
        a LoRA resolver. nixl: it has a KV connector, and moves blocks from and to its siblings."""
        if not 0 < time_scale < inf:
            raise ValueError(f"time_scale must be positive, not {time_scale}")
        if default_output_tokens < 1:
            raise ValueError(
                f"default_output_tokens must be at least 1, not {default_output_tokens}"
            )
        self.surface = surface_of(engine)
        """How the replica speaks; `engine` is its name."""
        if kv_events_port is not None and engine != "vllm":
            raise ValueError(f"KV events are simulated for vllm only, not for {engine}")
        self.params = params
        self.model = model
        self.adapters = list(adapters)
        self.resolves = frozenset(resolves)
        self._given = tuple(adapters)
        self.host = host
        self.port = port
        self.name = name
        self.time_scale = time_scale
        self.default_output_tokens = default_output_tokens
        self.requests: deque[Received] = deque(maxlen=keep_requests)
        """The last requests received, whatever became of them."""
        self.connections: set[Connection] = set()
        self.alive = False
        self.healthy = True
        self.siblings: Sequence[Replica] = (self,)
        self.events: EventPublisher | None = None
        """Publishes KV events when ``kv_events_port`` was given (0: any free port)."""
        if kv_events_port is not None:
            self.events = EventPublisher(host, kv_events_port, params.block_size)
        self._nixl = nixl
        self._listener: HttpListener | None = None
        self._triggers: dict[str, FaultTrigger] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._watchers: list[tuple[Callable[[Replica], bool], asyncio.Future[None]]] = []
        self.driver = self._new_driver()
        self.start_time = time()

    def _new_driver(self) -> Driver:
        driver = Driver(
            self.params,
            model=self.model,
            time_scale=self.time_scale,
            default_output_tokens=self.default_output_tokens,
            events=self.events,
            changed=self._notice,
        )
        if self._nixl is not None:
            driver.connector = Connector(
                driver,
                self._nixl,
                f"{self.name}-{uuid4().hex[:8]}",  # another one at each start, as docs ask for
                self.host,
                self.port,
                self._connector_of,
                self._connectors,
                driver.not_fetched,
            )
        for adapter in self.adapters:
            driver.engine.adapters.load(adapter)
        return driver

    def _connector_of(self, engine_id: str) -> Connector | None:
        """Of an engine of the fleet that lives."""
        return next((each for each in self._connectors() if each.engine_id == engine_id), None)

    def _connectors(self) -> list[Connector]:
        """Of the engines of the fleet that live."""
        living = [each.connector for each in self.siblings if each.alive]
        return [connector for connector in living if connector is not None]

    @property
    def connector(self) -> Connector | None:
        """The KV connector of this life, for what it holds and has moved."""
        return self.driver.connector

    @property
    def held_blocks(self) -> int:
        """KV blocks that wait for another engine."""
        connector = self.driver.connector
        return connector.held_blocks if connector is not None else 0

    @property
    def engine(self) -> Engine:
        """The engine of this life, for its counters and queues."""
        return self.driver.engine

    @property
    def metrics(self) -> RequestMetrics:
        """Metrics of the requests since the replica last started."""
        return self.driver.metrics

    @property
    def frozen(self) -> bool:
        """Whether it answers only /_sim/."""
        return self.driver.frozen

    @property
    def listening(self) -> bool:
        """Whether it accepts new connections."""
        return self._listener is not None

    # -- life

    @property
    def url(self) -> str:
        """Base URL, without a path. The port is known once the replica has started."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}"

    @property
    def models(self) -> list[str]:
        """The names of the base model and its adapters."""
        return [self.model, *self.adapters]

    async def start(self) -> None:
        """Come to life with an empty cache and no faults; on the same port as before, if there was
        one."""
        if self.alive:
            return
        self._listen()
        self.adapters = list(self._given)
        self.driver = self._new_driver()
        self.start_time = time()
        self.healthy = True
        self._triggers.clear()
        if self.events is not None:
            self.events.open()
        self.alive = True

    async def die(self) -> None:
        """As if the process were killed: the port refuses, connections end, the cache is gone."""
        self.alive = False
        if self.events is not None:
            self.events.close()
        self._close_listener()
        self.driver.close()
        self._drop_connections()

    async def restart(self, downtime: float = 0.0) -> None:
        """Die and start again after ``downtime`` wall seconds: empty cache, new start time, faults
        gone."""
        await self.die()
        if downtime:
            await asyncio.sleep(downtime)
        await self.start()

    async def stop(self) -> None:
        """Die and end its tasks, for the end of a test or run."""
        for task in self._tasks:
            task.cancel()
        await self.die()

    async def freeze(self) -> None:
        """Accept and read, but answer nothing outside of /_sim/; the engine stands still.
        ``clear`` goes on where it stood."""
        self.driver.set_clock(frozen=True)

    async def slow(self, factor: float) -> None:
        """Let every step take ``factor`` times as long."""
        await self.apply(Fault(kind="slow", factor=factor))

    async def refuse(self) -> None:
        """Refuse new connections; those that stand go on."""
        self._close_listener()

    async def fail(self, rate: float = 1.0, status: int = 500, count: int = -1) -> None:
        """Answer a share of the generating requests with an error."""
        await self.apply(Fault(kind="error_rate", rate=rate, status=status, count=count))

    async def garbage(self, rate: float = 1.0, count: int = -1) -> None:
        """Answer generating requests with bytes that are no HTTP, and close."""
        await self.apply(Fault(kind="garbage", rate=rate, count=count))

    async def die_mid_stream(self, after_tokens: int = 1, count: int = -1) -> None:
        """Cut the connection of a generating request after so many tokens went out."""
        await self.apply(Fault(kind="die_mid_stream", after_tokens=after_tokens, count=count))

    async def clear(self) -> None:
        """End all faults. A replica that is dead stays dead: ``start`` it."""
        self._triggers.clear()
        self.healthy = True
        self.driver.set_clock(slow=1.0, frozen=False)
        if self.alive and self._listener is None:
            self._listen()
        for connection in list(self.connections):
            connection.serve_next()

    async def apply(self, fault: Fault) -> None:
        """Make a fault happen, or end it."""
        match fault.kind:
            case "die":
                await self.die()
            case "start":
                await self.start()
            case "restart":
                await self.restart(fault.downtime)
            case "freeze":
                await self.freeze()
            case "slow":
                self.driver.set_clock(slow=fault.factor)
            case "refuse":
                await self.refuse()
            case "unhealthy":
                self.healthy = False
            case "clear":
                await self.clear()
            case kind:
                self._triggers[kind] = FaultTrigger(fault)
        self._notice()

    async def until(self, condition: Callable[[Replica], bool]) -> None:
        """Wait for a condition on this replica, such as ``lambda it: len(it.engine.running) == 2``.

        It is asked when a request arrives or leaves, when a step ends, and when a fault changes.
        """
        if condition(self):
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._watchers.append((condition, future))
        await future

    def _notice(self) -> None:
        if not self._watchers:
            return
        left = []
        for condition, future in self._watchers:
            if future.done():
                continue
            if condition(self):
                future.set_result(None)
            else:
                left.append((condition, future))
        self._watchers = left

    def apply_soon(self, fault: Fault) -> None:
        """Do it once the answer to the request that asked for it is on its way."""
        task = asyncio.get_running_loop().create_task(self.apply(fault))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _listen(self) -> None:
        self._listener = HttpListener(self.host, self.port, lambda: Connection(self))
        self.port = self._listener.port

    def _close_listener(self) -> None:
        listener, self._listener = self._listener, None
        if listener is not None:
            listener.close()

    def _drop_connections(self) -> None:
        for connection in list(self.connections):
            connection.answer = None
            connection.transport.abort()
        self.connections.clear()

    # -- requests

    def record(self, received: Received) -> None:
        """Keep a request in `requests`, for tests to look at."""
        self.requests.append(received)
        self._notice()

    def dispatch(self, connection: Connection, received: Received) -> None:
        """Answer a request, now or when the engine has."""
        path = received.path.partition("?")[0]
        generating = self.surface.generating.get(path)
        route = self.surface.routes.get(path)
        anthropic = path.startswith("/v1/messages")
        try:
            if generating is not None and received.method == "POST":
                self._generate(connection, received, *generating)
            elif generating is not None:
                self._wrong_method(connection, "POST")
            elif route is None:
                connection.reply(404, b'{"detail":"Not Found"}')
            elif received.method not in route.methods:
                self._wrong_method(connection, route.methods[0])
            else:
                route.handler(self, connection, received)
        except ApiError as error:
            body = error.body(anthropic, flat=self.surface.object_errors)
            connection.reply(error.status, body)

    def _wrong_method(self, connection: Connection, allowed: str) -> None:
        connection.reply(
            405, b'{"detail":"Method Not Allowed"}', more=b"allow: %b\r\n" % allowed.encode()
        )

    def _generate(
        self,
        connection: Connection,
        received: Received,
        read: JobReader,
        wording: type[ApiFormat],
        prefix: str,
    ) -> None:
        if self._struck("garbage"):
            connection.transport.write(GARBAGE)
            connection.transport.close()
            return
        failing = self._triggers.get("error_rate")
        if failing is not None and failing.strikes():
            raise ApiError(failing.fault.status, "simulated failure")
        body = decode_body(received.body)
        self.surface.prepare(received.path.partition("?")[0], body)
        job = read(body)
        job.model = job.model or self.model
        self.check_model(job.model)
        name = prefix + (connection.request_id.decode("latin-1") or uuid4().hex[:16])
        answer = Answer(connection, job, name, int(time()))
        answer.words = wording(answer)
        cutting = self._triggers.get("die_mid_stream")
        if cutting is not None and cutting.strikes():
            answer.die_after = cutting.fault.after_tokens
        self.driver.add(answer)

    def _struck(self, kind: str) -> bool:
        trigger = self._triggers.get(kind)
        return trigger is not None and trigger.strikes()

    def check_model(self, model: str) -> None:
        """Raises ApiError for a model that is not served, and cannot be loaded now."""
        if model in self.resolves and model not in self.adapters:
            self.adapters.append(model)
        if model not in self.models:
            raise ApiError(
                404,
                f"The model `{model}` does not exist. Valid aliases: {', '.join(self.models)}.",
                "model",
            )

    def abandon(self, answer: Answer) -> None:
        """The client of this answer is gone."""
        self.driver.abandon(answer)
