"""What can be tried before serving: the policy loads, files are enough, the replicas answer."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from importlib.util import find_spec
from typing import Any, NamedTuple

import httpx

from router import extras
from router.cli.importing import from_working_directory
from router.config import Fault, Settings, replica_context
from router.fleet.engine_metrics import parse_metrics

_CALLS_AT_ONCE = 32

NO_PATH = (404, 405, 501)
"""How servers answer that do not have a path."""
NOT_VLLM = "this is no vLLM server"


class Answer(NamedTuple):
    """What one replica said."""

    url: str
    ok: bool
    said: str


def check_policy(settings: Settings) -> Iterator[Fault]:
    """Why the policy cannot be used."""
    from router.policies import PolicyError, load_policy

    from_working_directory(settings.policy)
    try:
        load_policy(settings.policy)
    except PolicyError as error:
        yield ("policy",), str(error), "give a built-in policy's name or module:Class"


def check_exact(settings: Settings) -> Iterator[Fault]:
    """What exact mode's libraries lack, where it is on."""
    if not settings.exact:
        return
    missing = [name for name in ("tokenizers", "jinja2", "zmq") if find_spec(name) is None]
    if missing:
        wrong = f"it needs {', '.join(missing)}, which is not installed"
        yield ("exact",), wrong, f"{extras.EXACT}; or leave exact out"


def check_all(settings: Settings) -> Iterator[Fault]:
    """Everything that takes more than the settings to know."""
    yield from check_policy(settings)
    yield from check_exact(settings)


async def ask_replicas(settings: Settings) -> list[Answer]:
    """GET /health and /v1/models of every replica, in the order of the settings."""
    key = settings.replica_api_key
    headers = {"authorization": f"Bearer {key}"} if key else {}
    slots = asyncio.Semaphore(_CALLS_AT_ONCE)
    async with httpx.AsyncClient(
        headers=headers,
        timeout=settings.health_timeout,
        verify=replica_context(settings),
        trust_env=False,
    ) as client:

        async def ask(url: str) -> Answer:
            async with slots:
                return await _ask(client, url)

        return list(await asyncio.gather(*map(ask, settings.replicas)))


async def is_vllm(client: httpx.AsyncClient, url: str, cards: list[dict[str, Any]]) -> bool:
    """Whether a server that lists models may be vLLM, or stand before one: all its models are
    somebody else's, and its metrics are none of vLLM's, where it is not. Raises httpx.HTTPError."""
    owners = {card.get("owned_by") for card in cards}
    if not owners or owners & {"vllm", None}:
        return True
    metrics = await client.get(url + "/metrics", follow_redirects=True)
    return metrics.status_code == 200 and parse_metrics(metrics.content).told_anything


async def _ask(client: httpx.AsyncClient, url: str) -> Answer:
    path = "/health"
    try:
        health = await client.get(url + path)
        if health.status_code in NO_PATH:
            return Answer(url, False, f"{path} answers {health.status_code}: {NOT_VLLM}")
        if health.status_code != 200:
            return Answer(url, False, f"{path} answers {health.status_code}")
        path = "/v1/models"
        listed = await client.get(url + path)
        if listed.status_code in (401, 403):
            return Answer(url, False, f"{path} wants a key: set replica_api_key")
        if listed.status_code != 200:
            return Answer(url, False, f"{path} answers {listed.status_code}")
        cards = listed.json()["data"]
        names = [model["id"] for model in cards]
        path = "/metrics"
        if not await is_vllm(client, url, cards):
            return Answer(url, False, NOT_VLLM)
    except httpx.TimeoutException:
        return Answer(url, False, f"{path} did not answer within health_timeout")
    except httpx.HTTPError as error:
        return Answer(url, False, f"{path} cannot be asked: {error or type(error).__name__}")
    except (ValueError, KeyError, TypeError, AttributeError):
        return Answer(
            url, False, f"{path} answers something else than a list of models: {NOT_VLLM}"
        )
    return Answer(url, True, f"healthy, serves {', '.join(map(str, names)) or 'no model'}")
