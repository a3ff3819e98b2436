"""Asks a server what it is: whether it is healthy, which engine it is, and what it serves."""

from __future__ import annotations

from typing import Any

import httpx
import msgspec

from router.fleet.engines import (
    NAMES,
    UNKNOWN,
    EngineKind,
    kind_by_metrics,
    kind_by_owners,
)

NO_PATH = (404, 405, 501)
"""How servers answer that do not have a path."""


class Identity(msgspec.Struct, frozen=True):
    """What a server is. Text in `trouble` says why the router cannot use it."""

    trouble: str = ""
    fix: str = ""
    cards: list[dict[str, Any]] = []
    """The entries of its /v1/models. Each has an id."""
    kind: EngineKind = UNKNOWN
    """Which engine it is, where its models or its metrics tell."""
    date: str = ""
    """The clock of its machine, as its answer to /health has it."""


async def identify(client: httpx.AsyncClient, url: str) -> Identity:
    """Ask /health and /v1/models, and /metrics where the models do not show whose they are."""
    path = "/health"
    try:
        health = await client.get(url + path)
        if health.status_code in NO_PATH:
            return _another(f"{path} answers {health.status_code}")
        if health.status_code != 200:
            return _bad_status(path, health)
        path = "/v1/models"
        listed = await client.get(url + path)
        if listed.status_code in (401, 403):
            fix = "set replica_api_key (WARMROUTE_REPLICA_API_KEY)"
            return Identity(f"{path} requires a key", fix)
        if listed.status_code not in (200, *NO_PATH):
            return _bad_status(path, listed)
        cards = _cards(listed)
        if cards is None:
            return _another(f"{path} does not answer with a list of models")
        path = "/metrics"
        kind = await _kind(client, url, cards)
        if kind is None:
            return _another("its models are none of theirs, nor are its metrics")
    except httpx.TimeoutException:
        why = f"{path} did not answer within {client.timeout.read} s"
        return Identity(why, "read the engine's log")
    except httpx.HTTPError as error:
        why = f"{path} cannot be reached: {error or type(error).__name__}"
        return Identity(why, "start it, or correct the URL or the network")
    return Identity(cards=cards, kind=kind, date=health.headers.get("date", ""))


def _another(why: str) -> Identity:
    fix = f"give the URL of a server of {NAMES}, without /v1"
    return Identity(f"this is no server of {NAMES}: {why}", fix)


def _bad_status(path: str, answer: httpx.Response) -> Identity:
    return Identity(f"{path} answers {answer.status_code}", "read the engine's log")


def _cards(listed: httpx.Response) -> list[dict[str, Any]] | None:
    try:
        cards: list[dict[str, Any]] = msgspec.json.decode(listed.content)["data"]
        return cards if all(isinstance(card["id"], str) for card in cards) else None
    except (msgspec.DecodeError, UnicodeDecodeError, LookupError, TypeError):
        return None


async def _kind(
    client: httpx.AsyncClient, url: str, cards: list[dict[str, Any]]
) -> EngineKind | None:
    """Which engine a server that lists models is, or stands before. None: another one, since all
    its models have another owner and its metrics are none of theirs."""
    owners = [card.get("owned_by") for card in cards]
    kind = kind_by_owners(owners)
    if kind is not None:
        return kind
    metrics = await client.get(url + "/metrics", follow_redirects=True)
    kind = kind_by_metrics(metrics.content) if metrics.status_code == 200 else None
    if kind is None and (not owners or None in owners):
        return UNKNOWN
    return kind
