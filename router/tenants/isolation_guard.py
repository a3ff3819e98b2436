"""Tries on each replica that joins or restarts whether salts keep caches apart, and remembers where
they do not."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import ssl
from typing import Final

import httpx

from router.fleet.fleet import Fleet
from router.fleet.replica import Replica
from router.tenants.isolation_check import Verdict, check_isolation

log = logging.getLogger(__name__)

_LOOK_EVERY_S: Final = 1.0
_TIMEOUT_S: Final = 60.0
_MAX_MODELS: Final = 16
"""Of one replica, adapters included."""


class IsolationGuard:
    """The mutable state: which replicas were tried, and which models leak on one of them."""

    def __init__(
        self, fleet: Fleet, key: str, verify: ssl.SSLContext, *, refuses: bool = True
    ) -> None:
        """key: the replicas' own. refuses: models that leak are not to be served."""
        self._fleet = fleet
        self._key = key
        self._verify = verify
        self._refuses = refuses
        self._tried: dict[str, int] = {}
        """Replica's name -> its restarts when it was tried."""
        self._leaks: dict[str, dict[str, str]] = {}
        """Replica's name -> model -> what leaks."""
        self._task: asyncio.Task[None] | None = None
        self.refused: dict[str, str] = {}
        """Model that is not to be served -> why."""

    @property
    def problem(self) -> str:
        """Which models leak; empty for none."""
        told = [
            f"{model} on {name}: {what}"
            for name, models in self._leaks.items()
            for model, what in models.items()
        ]
        return f"tenants are NOT kept apart: {', '.join(told)}" if told else ""

    def start(self) -> None:
        """Begin to look."""
        self._task = asyncio.create_task(self._look_forever(), name="isolation")

    async def stop(self) -> None:
        """Look no more."""
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task

    async def _look_forever(self) -> None:
        headers = {"authorization": f"Bearer {self._key}"} if self._key else {}
        async with httpx.AsyncClient(
            headers=headers, timeout=_TIMEOUT_S, verify=self._verify, trust_env=False
        ) as client:
            while True:
                await self._look(client)
                await asyncio.sleep(_LOOK_EVERY_S)

    async def _look(self, client: httpx.AsyncClient) -> None:
        fleet = self._fleet
        members = [each for each in fleet.replicas if each is not None and not each.rank]
        names = {replica.name for replica in members}
        for gone in self._tried.keys() - names:
            del self._tried[gone]
            self._leaks.pop(gone, None)
        for replica in members:
            ready = fleet.usable >> replica.slot & 1 and (replica.models or replica.any_model)
            if ready and self._tried.get(replica.name) != replica.restarts:
                await self._try(client, replica)
        self.refused = (
            {model: what for models in self._leaks.values() for model, what in models.items()}
            if self._refuses
            else {}
        )

    async def _try(self, client: httpx.AsyncClient, replica: Replica) -> None:
        restarts = replica.restarts
        leaks: dict[str, str] = {}
        for model in replica.models[:_MAX_MODELS]:
            try:
                verdicts = await check_isolation(client, replica.url, model)
            except httpx.HTTPError as error:
                said = error or type(error).__name__
                log.warning("isolation could not be tried on %s: %s", replica.name, said)
                return  # again at the next look
            self._tell(replica, model, verdicts)
            leaking = [verdict.api for verdict in verdicts if verdict.leaks]
            if leaking:
                leaks[model] = ", ".join(leaking)
        self._tried[replica.name] = restarts
        self._leaks.pop(replica.name, None)
        if leaks:
            self._leaks[replica.name] = leaks

    def _tell(self, replica: Replica, model: str, verdicts: list[Verdict]) -> None:
        for verdict in verdicts:
            where = (model, verdict.api, replica.name)
            if verdict.leaks:
                log.error(
                    "%s, %s, on %s: a prompt reused blocks of another salt: tenants are NOT kept "
                    "apart there%s",
                    *where,
                    "; the model is refused (isolation_leak)" if self._refuses else "",
                )
            elif verdict.never_hits:
                log.warning("%s, %s, on %s: salted prompts reuse nothing, not their own", *where)
            elif verdict.unproven:
                log.warning(
                    "%s, %s, on %s: whether salts work is not known: %s", *where, verdict.unproven
                )
