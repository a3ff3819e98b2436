"""What the page's views ask for beside the fleet: requests, queue, prefixes, policies, settings."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from typing import Any, Final

import httpx
import msgspec
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from router.admin.messages import MOST, as_json, limit, parameters, read_body
from router.admin.parts import AdminParts
from router.config import TABLE
from router.index.shared import SharedPrefix, shared_prefixes
from router.scheduling.learning import BYTES_PER_TOKEN
from router.telemetry.explain import RequestFilter, RequestLine
from router.types import slots

PREFIXES_KEPT_S: Final = 5.0
"""Seconds for which a walk over the index is shown again."""
PLAY_TIMEOUT_S: Final = 60.0
MAX_PLAY_TOKENS: Final = 1024
MAX_PLAY_BYTES: Final = 256 * 1024
"""Of an answer that the playground shows."""
PRIORITIES: Final = {-1: "high", 0: "normal", 1: "low"}


class Requests(msgspec.Struct):
    """The answer of /requests."""

    kept: int
    """Requests in memory; the newest are searched."""
    requests: list[RequestLine]


class Waiting(msgspec.Struct):
    """Requests that wait in the queue."""

    priority: str
    where: str
    requests: int


class OverflowReport(msgspec.Struct):
    """A target outside of the fleet."""

    name: str
    spent: float
    """Money of today's budget, settled or reserved by all that count together, as far as is known
    here."""
    budget: float
    """Money for a UTC day."""
    breaker: str
    """closed, open or half_open."""
    requests: dict[str, int]
    """Why -> requests sent there, since the start."""
    failed: int
    """Of these, answered by somebody else in the end."""


class QueueReport(msgspec.Struct):
    """The answer of /queue."""

    waiting: list[Waiting]
    outcomes: dict[str, int]
    """Since the start: how waits ended -> requests."""
    sessions_active: int
    sessions_idle: int
    work_seconds: float
    """Prefill work that is waiting, in seconds of a replica."""
    kv_wanted: dict[str, float]
    """Replica -> share of its KV memory that sessions in progress want."""
    overflow: list[OverflowReport] = []
    """Where requests go that the fleet cannot take."""


class Prefix(msgspec.Struct):
    """A line of /prefixes."""

    tokens: int
    """Estimated from bytes."""
    bytes: int
    copies: int
    holders: list[str]
    """At most 20 names."""
    models: list[str]
    """Models that all of these holders serve."""
    continuations: int
    """Ways in which known prompts go on after it."""
    idle_s: float
    """Seconds since it was used."""


class Prefixes(msgspec.Struct):
    """The answer of /prefixes."""

    blocks: int
    """Distinct blocks in the index."""
    prefixes: list[Prefix]


class Decision(msgspec.Struct):
    """How often a policy chose for a reason."""

    policy: str
    reason: str
    requests: int


class Policies(msgspec.Struct):
    """The answer of /policies."""

    live: str
    weights: dict[str, float]
    decisions: list[Decision]


class SettingReport(msgspec.Struct):
    """A line of /settings."""

    name: str
    group: str
    value: str
    """Secrets are stars."""
    source: str
    """A flag, a variable, a line of the file; "default" where nobody gave it."""
    live: bool
    """SIGHUP changes it without a restart."""
    help: str


class SettingsReport(msgspec.Struct):
    """The answer of /settings."""

    version: str
    python: str
    settings: list[SettingReport]


class Play(msgspec.Struct, forbid_unknown_fields=True):
    """The body of POST /playground."""

    model: str
    prompt: str
    system: str = ""
    max_tokens: int = 64
    key: str = ""
    """A tenant's key, where the clients' port asks for one."""


class Played(msgspec.Struct):
    """The answer of POST /playground."""

    request_id: str
    """For /explain."""
    status: int
    seconds: float
    text: str
    """The answer's text, or the whole body where it is an error."""


class Console:
    """The handlers."""

    def __init__(self, parts: AdminParts) -> None:
        self._parts = parts
        self._walk = asyncio.Lock()
        self._walked = float("-inf")
        self._found: list[SharedPrefix] = []

    async def requests(self, request: Request) -> Response:
        """The latest requests that fit a filter."""
        asked = parameters(request, "limit", *RequestFilter.__struct_fields__)
        count = limit(asked, 100)
        asked.pop("limit", None)
        wanted = RequestFilter(**asked)
        explain = self._parts.explain
        return as_json(Requests(explain.size, explain.search(wanted, count)))

    async def queue(self, request: Request) -> Response:
        """Who waits."""
        parameters(request)
        queue = self._parts.console.queue()
        if queue is None:
            raise HTTPException(503, "the router is starting")
        wanted = {
            replica.name: share
            for replica in self._parts.fleet.replicas
            if replica is not None and (share := queue.kv_wanted(replica.slot)) is not None
        }
        active, idle = queue.sessions
        waiting = [
            Waiting(PRIORITIES[priority], where, number)
            for (priority, where), number in sorted(queue.waiting().items())
        ]
        overflow, wall = self._parts.console.overflow, time.time()
        targets = [
            OverflowReport(
                each.name,
                each.spent(wall),
                each.daily_budget,
                each.condition,
                dict(each.requests),
                each.failed,
            )
            for each in (overflow.targets if overflow is not None else ())
        ]
        return as_json(
            QueueReport(
                waiting, dict(queue.outcomes), active, idle, queue.work_seconds, wanted, targets
            )
        )

    async def prefixes(self, request: Request) -> Response:
        """The largest shared prefixes."""
        asked = parameters(request, "limit", "model")
        count, model = limit(asked, 50), asked.get("model", "")
        async with self._walk:
            if time.monotonic() - self._walked > PREFIXES_KEPT_S:
                for found in shared_prefixes(self._parts.console.index, MOST):
                    if found is None:
                        await asyncio.sleep(0)
                    else:
                        self._found = found
                self._walked = time.monotonic()
        told = [self._prefix(found) for found in self._found]
        told = [prefix for prefix in told if not model or model in prefix.models]
        return as_json(Prefixes(self._parts.index.blocks, told[:count]))

    def _prefix(self, found: SharedPrefix) -> Prefix:
        replicas = self._parts.fleet.replicas
        holders = [
            replica
            for slot in slots(found.holders)
            if slot < len(replicas) and (replica := replicas[slot]) is not None
        ]
        models = set(holders[0].models) if holders else set()
        for replica in holders[1:]:
            models.intersection_update(replica.models)
        return Prefix(
            tokens=int(found.size / BYTES_PER_TOKEN),
            bytes=found.size,
            copies=len(holders),
            holders=[replica.name for replica in holders[:20]],
            models=sorted(models),
            continuations=found.continuations,
            idle_s=round(time.monotonic() - found.used, 1),
        )

    async def policies(self, request: Request) -> Response:
        """The policy in use and its decisions; /shadows has the others."""
        parameters(request)
        console = self._parts.console
        decisions = [
            Decision(policy, reason, number)
            for (policy, reason), number in self._parts.telemetry.decisions.items()
        ]
        decisions.sort(key=lambda each: -each.requests)
        return as_json(Policies(console.settings().policy, dict(console.weights), decisions))

    async def settings(self, request: Request) -> Response:
        """The settings in effect."""
        parameters(request)
        console = self._parts.console
        settings = console.settings()
        rows = [
            SettingReport(
                row.name,
                row.group,
                row.show(getattr(settings, row.name)),
                console.sources.get(row.name, "default"),
                row.live,
                row.help,
            )
            for row in TABLE.values()
        ]
        return as_json(SettingsReport(console.build["version"], console.build["python"], rows))

    async def play(self, request: Request) -> Response:
        """Send a prompt by the clients' port, as any client would."""
        parameters(request)
        try:
            play = msgspec.json.decode(await read_body(request), type=Play)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise HTTPException(400, f"give model and prompt: {error}") from None
        if not 1 <= play.max_tokens <= MAX_PLAY_TOKENS:
            raise HTTPException(400, f"max_tokens must be from 1 to {MAX_PLAY_TOKENS}")
        if not (play.key.isascii() and play.key.isprintable()):
            raise HTTPException(400, "key has characters that no header can have")
        return as_json(await _play(self._parts.console.front(), play))


async def _play(front: str, play: Play) -> Played:
    request_id = f"playground-{uuid.uuid4().hex}"
    headers = {"x-request-id": request_id}
    if play.key:
        headers["authorization"] = f"Bearer {play.key}"
    messages = [{"role": "user", "content": play.prompt}]
    if play.system:
        messages.insert(0, {"role": "system", "content": play.system})
    body = {"model": play.model, "messages": messages, "max_tokens": play.max_tokens}
    began = time.monotonic()
    # The router's own port on this machine, whose certificate is for the name that clients use.
    async with httpx.AsyncClient(
        timeout=PLAY_TIMEOUT_S,
        trust_env=False,
        verify=False,  # noqa: S501
    ) as client:
        try:
            answer = await client.post(f"{front}/v1/chat/completions", json=body, headers=headers)
        except httpx.HTTPError as error:
            raise HTTPException(
                502, f"the clients' port: {error or type(error).__name__}"
            ) from None
    return Played(request_id, answer.status_code, time.monotonic() - began, _text(answer))


def _text(answer: httpx.Response) -> str:
    found: Any = None
    # An error, or another shape, is shown as it is.
    with contextlib.suppress(ValueError, KeyError, IndexError, TypeError):
        found = answer.json()["choices"][0]["message"]["content"]
    text = found if isinstance(found, str) else answer.text
    return text[:MAX_PLAY_BYTES]
