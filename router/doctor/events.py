"""Whether an engine's KV events are on, arrive, and can be replayed."""

from __future__ import annotations

import asyncio
import secrets
from time import time
from typing import TYPE_CHECKING, Any

import httpx
import msgspec

from router.config import Settings
from router.config.address import parse_address
from router.doctor.finding import Finding, note, wrong
from router.kv_events.decode import Batch, EngineHash, Stored, decode
from router.kv_events.sequencer import REPLAY_END
from router.kv_events.sources import Source, parse_sources, sources_of

if TYPE_CHECKING:
    import zmq.asyncio

LISTEN_S = 5.0
SUBSCRIBE_S = 0.5
"""Seconds that a subscription may take to reach the engine."""

_ON = (
    '--kv-events-config \'{"enable_kv_cache_events":true,"publisher":"zmq",'
    '"endpoint":"tcp://*:5557","replay_endpoint":"tcp://*:5558"}\''
)
PROBE = "The doctor asks every replica the same. " * 40


class Heard:
    """What one engine's KV events showed."""

    def __init__(self) -> None:
        self.findings: list[Finding] = []
        self.names: tuple[EngineHash, ...] = ()
        """How the engine named the first blocks of the common probe."""


async def listen(client: httpx.AsyncClient, url: str, model: str, settings: Settings) -> Heard:
    """Subscribe, send a prompt, and see that its blocks are reported. What is amiss is wrong when
    exact mode is on, and worth knowing when it is off."""
    heard = Heard()
    host = parse_address(url).host
    if settings.exact_events:
        sources = sources_of(
            settings.exact_events,
            settings.exact_replay,
            settings.exact_topic,
            settings.exact_ranks,
            host,
        )
    else:
        answer = await client.get(url + "/kv_event_sources")
        try:
            if answer.status_code != 200:
                raise ValueError(f"/kv_event_sources answers {answer.status_code}")
            sources = parse_sources(answer.content, host)
        except ValueError as error:
            fix = "upgrade vLLM, or set exact_events and exact_replay"
            what = f"it does not report where its KV events are: {error}"
            heard.findings.append(note(url, what, fix))
            return heard
    if not sources:
        heard.findings.append(wrong(url, "KV events are off, so exact mode cannot be used", _ON))
    else:
        await _hear(client, url, model, sources, heard)
    if not settings.exact:
        heard.findings = [msgspec.structs.replace(one, wrong=False) for one in heard.findings]
    return heard


async def _hear(
    client: httpx.AsyncClient, url: str, model: str, sources: list[Source], heard: Heard
) -> None:
    import zmq
    import zmq.asyncio

    context = zmq.asyncio.Context()
    try:
        socket = context.socket(zmq.SUB)
        socket.setsockopt(zmq.IPV6, 1)
        for source in sources:
            socket.bind(source.endpoint) if source.bind else socket.connect(source.endpoint)
            socket.subscribe(source.topic)
        await asyncio.sleep(SUBSCRIBE_S)
        salt = "doctor-" + secrets.token_hex(8)
        # A salt makes the blocks new, so that they are told of; without it they have common names.
        for extra in ({"cache_salt": salt}, {}):
            body = {"model": model, "prompt": PROBE, "max_tokens": 1, **extra}
            await client.post(url + "/v1/completions", json=body)
        batch = await _first_batch(socket)
        if batch is None:
            where = ", ".join(source.endpoint for source in sources)
            what = f"no KV event arrived from {where} within {LISTEN_S:g} s of a prompt"
            fix = 'open the port, and bind it on every address: "endpoint":"tcp://*:PORT"'
            heard.findings.append(wrong(url, what, fix))
            return
        if abs(batch.time - time()) > LISTEN_S + 2.0:
            what = f"its clock is {batch.time - time():+.0f} s off, by the time in its events"
            heard.findings.append(wrong(url, what, "run NTP on both machines"))
        for source in sources:
            heard.findings += await _replays(context, url, source)
        heard.names = tuple(await _names(context, sources[0]))
    except zmq.ZMQError as error:
        what = f"the doctor cannot subscribe to its KV events: {error}"
        fix = "check exact_events, and whether another process uses the address"
        heard.findings.append(wrong(url, what, fix))
    finally:
        context.destroy(linger=0)


async def _first_batch(socket: zmq.asyncio.Socket) -> Batch | None:
    try:
        async with asyncio.timeout(LISTEN_S):
            frames = await socket.recv_multipart()
            return decode(frames[-1])
    except (TimeoutError, ValueError):
        return None


async def _replay(context: zmq.asyncio.Context, source: Source) -> list[bytes] | None:
    """All batches of a replay; None when the engine does not answer."""
    import zmq

    socket = context.socket(zmq.DEALER)
    socket.setsockopt(zmq.IPV6, 1)
    socket.connect(source.replay)
    payloads: list[bytes] = []
    try:
        async with asyncio.timeout(LISTEN_S):
            await socket.send_multipart((b"", bytes(8)))
            while True:
                frames: list[Any] = await socket.recv_multipart()
                if REPLAY_END in frames:
                    return payloads
                payloads.append(frames[-1])
    except TimeoutError:
        return None
    finally:
        socket.close(linger=0)


async def _replays(context: zmq.asyncio.Context, url: str, source: Source) -> list[Finding]:
    if not source.replay:
        what = "lost KV events cannot be replayed, so the router then learns its cache anew"
        return [wrong(url, what, 'add "replay_endpoint":"tcp://*:5558" to --kv-events-config')]
    if await _replay(context, source) is None:
        what = f"its replay socket {source.replay} does not answer"
        return [wrong(url, what, "open its port in the firewall or NetworkPolicy")]
    return []


async def _names(context: zmq.asyncio.Context, source: Source) -> list[EngineHash]:
    """How it names the blocks of the probe without a salt, where its replay still has them."""
    payloads = await _replay(context, source) if source.replay else None
    for payload in reversed(payloads or []):
        try:
            events = decode(payload).events
        except ValueError:
            continue
        for event in events:
            unsalted = isinstance(event, Stored) and not any(event.extra_keys or [])
            if isinstance(event, Stored) and unsalted and event.parent_block_hash is None:
                return event.block_hashes[:1]
    return []
