"""Where a replica's KV events come from."""

from __future__ import annotations

import re

import msgspec

LONGEST_ANSWER = 256 * 1024
"""The most bytes of an answer to /kv_event_sources that are read."""


class Source(msgspec.Struct, frozen=True):
    """The sockets of one data-parallel rank, as the router uses them."""

    rank: int
    endpoint: str
    """The address that the router connects to, or binds."""
    bind: bool
    """The engine connects, so the router binds."""
    replay: str
    """The address to connect to for replays; empty when there is none."""
    topic: str


class _Published(msgspec.Struct):
    endpoint: str
    replay_endpoint: str | None = None
    topic: str = ""
    enable_kv_cache_events: bool = True
    publisher: str = "zmq"


_decoder = msgspec.json.Decoder(dict[str, _Published])
_PORT = re.compile(r":(\d+)$")


def parse_sources(body: bytes, host: str) -> list[Source]:
    """Read an answer to GET /kv_event_sources of an engine at a host; empty when it has none.

    Raises ValueError when it is something else.
    """
    try:
        published = _decoder.decode(body)
        ranks = {int(rank): source for rank, source in published.items()}
    except (msgspec.DecodeError, UnicodeDecodeError, ValueError) as error:
        raise ValueError(f"/kv_event_sources answered something else: {error}") from None
    return [
        _source(rank, one.endpoint, one.replay_endpoint or "", one.topic, host)
        for rank, one in sorted(ranks.items())
        if one.enable_kv_cache_events and one.publisher == "zmq"
    ]


def sources_of(endpoint: str, replay: str, topic: str, ranks: int, host: str) -> list[Source]:
    """The sources of an engine that does not tell them: `{host}` stands for its host, and rank r
    adds r to the ports, as in vLLM."""
    return [
        _source(
            rank,
            _shifted(endpoint.replace("{host}", _bracketed(host)), rank),
            _shifted(replay.replace("{host}", _bracketed(host)), rank),
            topic,
            host,
            bind=None if "{host}" not in endpoint else False,
        )
        for rank in range(ranks)
    ]


def _source(
    rank: int, endpoint: str, replay: str, topic: str, host: str, *, bind: bool | None = None
) -> Source:
    wildcard = _wildcard(endpoint)
    if bind is None:
        bind = not wildcard
    if wildcard:
        endpoint = _at(endpoint, host)
    if replay and _wildcard(replay):
        replay = _at(replay, host)
    return Source(rank, endpoint, bind, replay, topic)


def _wildcard(endpoint: str) -> bool:
    """Whether an engine binds this endpoint, by vLLM's own rule (``_is_bind_endpoint``)."""
    return "*" in endpoint or "::" in endpoint or endpoint.startswith(("ipc://", "inproc://"))


def _at(endpoint: str, host: str) -> str:
    """The address at which others reach an endpoint that the engine binds."""
    port = _PORT.search(endpoint)
    if port is None or not endpoint.startswith("tcp://"):
        return endpoint
    return f"tcp://{_bracketed(host)}:{port[1]}"


def _shifted(endpoint: str, rank: int) -> str:
    port = _PORT.search(endpoint)
    if port is None or not rank:
        return endpoint
    return f"{endpoint[: port.start()]}:{int(port[1]) + rank}"


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host
