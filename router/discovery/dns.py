"""Replicas by name: every address a name has is one, as with a headless Service.

The machine's own resolver answers (getaddrinfo), in a thread, so search domains and /etc/hosts
count and nothing has to be installed. Names that stop resolving leave the last known addresses: a
headless Service without ready pods and a name server in trouble look alike, and health checks tell
the difference.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Sequence

from router.config.address import Address, parse_address
from router.discovery.target import Audience, Target

log = logging.getLogger(__name__)


class DnsSource:
    """Asks for the addresses of every URL's host, every `interval` seconds."""

    def __init__(self, urls: Sequence[str], interval: float, audience: Audience) -> None:
        self._names = [parse_address(url) for url in urls]
        self._interval = interval
        self._audience = audience
        self._known: dict[str, tuple[Target, ...]] = {}
        self._task: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Start the task that looks the names up."""
        self._task = asyncio.create_task(self._ask_forever(), name="discovery by dns")

    async def stop(self) -> None:
        """Cancel the task and wait for its end."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _ask_forever(self) -> None:
        while True:
            await self.ask()
            await asyncio.sleep(self._interval)

    async def ask(self) -> None:
        """Look all names up once, and report what was found."""
        answers = await asyncio.gather(
            *(self._resolve(name) for name in self._names), return_exceptions=True
        )
        problems = []
        for name, answer in zip(self._names, answers, strict=True):
            if isinstance(answer, OSError):
                why = answer.strerror or answer
                problems.append(f"discovery_dns: {name.host} does not resolve: {why}")
            elif isinstance(answer, BaseException):
                raise answer
            else:
                self._known[name.url] = answer
        if self._known:
            unique = {target.url: target for group in self._known.values() for target in group}
            self._audience.found(list(unique.values()))
        self._audience.trouble("; ".join(problems))

    async def _resolve(self, name: Address) -> tuple[Target, ...]:
        loop = asyncio.get_running_loop()
        found = await loop.getaddrinfo(name.host, name.port, type=socket.SOCK_STREAM)
        # A dual-stack name has each pod twice: one family is enough.
        families = {family for family, *_ in found}
        family = socket.AF_INET if socket.AF_INET in families else socket.AF_INET6
        scheme = "https" if name.tls else "http"
        hosts = sorted({str(address[0]) for each, *_, address in found if each == family})
        return tuple(
            Target(f"{scheme}://{f'[{host}]' if ':' in host else host}:{name.port}{name.prefix}")
            for host in hosts
        )
