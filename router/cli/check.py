"""What can be tried before serving: the policy loads, files are enough, the replicas answer."""

from __future__ import annotations

import asyncio
import os
import resource
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from typing import NamedTuple

import httpx

from router.config import Fault, Settings, replica_context

_CALLS_AT_ONCE = 32


class Answer(NamedTuple):
    """What one replica said."""

    url: str
    ok: bool
    said: str


def check_policy(settings: Settings) -> Iterator[Fault]:
    """Why the policy cannot be used."""
    from router.policies import PolicyError, load_policy

    if ":" in settings.policy and os.getcwd() not in sys.path:
        # A console script's path lacks the working directory. Last, so that it hides nothing.
        sys.path.append(os.getcwd())
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
        yield ("exact",), wrong, "pip install 'warmroute[exact]', or leave exact out"


def check_all(settings: Settings) -> Iterator[Fault]:
    """Everything that takes more than the settings to know."""
    yield from check_policy(settings)
    yield from check_exact(settings)


def file_limit_warning(settings: Settings) -> str:
    """A warning where open files run out before connections do; empty where they do not."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    need = 2 * settings.max_connections  # one to the client, one to the replica
    if hard == resource.RLIM_INFINITY or hard >= need:
        return ""
    return (
        f"max_connections={settings.max_connections} may need {need} open files and the limit is "
        f"{hard}: raise it (ulimit -Hn, LimitNOFILE= in systemd) or lower max_connections"
    )


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


async def _ask(client: httpx.AsyncClient, url: str) -> Answer:
    path = "/health"
    try:
        health = await client.get(url + path)
        if health.status_code != 200:
            return Answer(url, False, f"{path} answers {health.status_code}")
        path = "/v1/models"
        listed = await client.get(url + path)
        if listed.status_code in (401, 403):
            return Answer(url, False, f"{path} wants a key: set replica_api_key")
        if listed.status_code != 200:
            return Answer(url, False, f"{path} answers {listed.status_code}")
        names = [model["id"] for model in listed.json()["data"]]
    except httpx.TimeoutException:
        return Answer(url, False, f"{path} did not answer within health_timeout")
    except httpx.HTTPError as error:
        return Answer(url, False, f"{path} cannot be asked: {error or type(error).__name__}")
    except (ValueError, KeyError, TypeError):
        return Answer(url, False, f"{path} answers something else than a list of models")
    return Answer(url, True, f"healthy, serves {', '.join(map(str, names)) or 'no model'}")
