"""One live run: a plan against URLs."""

from __future__ import annotations

import asyncio
import contextlib
import resource
from collections.abc import Callable, Mapping, Sequence

import httpx
import msgspec

from loadgen.client.body import CHAT, BodyMaker
from loadgen.client.driver import Driver, Options, Progress
from loadgen.client.target import Target
from loadgen.results.records import Records
from loadgen.workloads.plan import Plan

Watch = Callable[[Progress], None]


class RunError(RuntimeError):
    """A run that cannot start."""


class Client(msgspec.Struct, frozen=True, kw_only=True):
    """How requests look and how they are treated."""

    model: str = ""
    """Empty: the first that GET /v1/models names."""
    api: str = CHAT
    stream: bool = True
    vllm_fields: bool = True
    """Send ignore_eos, which only vLLM knows."""
    bytes_per_token: float = 4.0
    headers: Mapping[str, str] = {}
    options: Options = Options()


async def first_model(url: str, headers: Mapping[str, str]) -> str:
    """The first model a server names. Raises RunError."""
    base = url.rstrip("/").removesuffix("/v1")
    try:
        async with httpx.AsyncClient(timeout=10.0, trust_env=False) as client:
            response = await client.get(f"{base}/v1/models", headers=dict(headers))
            response.raise_for_status()
            return str(response.json()["data"][0]["id"])
    except (httpx.HTTPError, ValueError, LookupError, TypeError) as error:
        raise RunError(
            f"{base}/v1/models did not name a model ({type(error).__name__}: {error}): "
            f"is the server up? A model can be given with --model"
        ) from error


async def engine_of(url: str, headers: Mapping[str, str]) -> str:
    """What a server says it is: vLLM tells its version; empty where nothing does."""
    base = url.rstrip("/").removesuffix("/v1")
    try:
        async with httpx.AsyncClient(timeout=5.0, trust_env=False) as client:
            response = await client.get(f"{base}/version", headers=dict(headers))
            told = response.json() if response.status_code == 200 else {}
    except (httpx.HTTPError, ValueError):
        return ""
    version = told.get("version") if isinstance(told, dict) else None
    return f"vLLM {version}" if version else ""


def _many_files() -> None:
    """An open loop needs a socket for every request in flight."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def play(
    plan: Plan,
    urls: Sequence[str],
    client: Client,
    watch: Watch | None = None,
    *,
    names: Mapping[str, str] | None = None,
    by_url: bool = True,
    records: Records,
) -> list[str]:
    """Play a plan against URLs (several are used in turn), fill the records, and return warnings.

    watch is called about eight times a second. names and by_url: what replicas are shown as (see
    Driver). What was answered is in the records also when this is cancelled. Raises RunError,
    TargetError, ValueError."""
    _many_files()
    model = client.model or await first_model(urls[0], client.headers)
    maker = BodyMaker(
        model,
        client.api,
        bytes_per_token=client.bytes_per_token,
        stream=client.stream,
        vllm_fields=client.vllm_fields,
    )
    targets = [Target(url, maker.api.path, dict(client.headers)) for url in urls]
    driver = Driver(
        plan, targets, maker, client.options, names=names, by_url=by_url, records=records
    )
    watching = asyncio.create_task(_report(driver.progress, watch)) if watch else None
    try:
        await driver.run()
    finally:
        if watching:
            watching.cancel()
    if watch:
        watch(driver.progress)
    warnings = [
        f"{target.url} answered {status}: {body.decode(errors='replace')[:300]}"
        for target in targets
        for status, body in target.complaints.items()
    ]
    if driver.not_sent:
        warnings.append(f"{driver.not_sent} steps were not sent: one before them failed")
    return warnings


async def _report(progress: Progress, watch: Watch) -> None:
    while True:
        watch(progress)
        await asyncio.sleep(0.12)
