"""Tenants and the vendors' own clients: keys, limits, and how they back off."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import anthropic
import openai
import pytest
from tenant_world import KEYS, SAY, MakeGateway, chat

from loadgen.replicas import SimulatedFleet


async def test_openais_client_waits_and_succeeds(gateway: MakeGateway) -> None:
    async with SimulatedFleet(1) as fleet:
        acme = {"limits": {"concurrent_requests": 1}, "models": ["sim"]}
        app = await gateway(*fleet.urls, acme=acme)
        async with openai.AsyncOpenAI(
            base_url=f"http://127.0.0.1:{app.port}/v1", api_key=KEYS["acme"], max_retries=5
        ) as sdk:
            asked: Any = {"model": "sim", "messages": SAY, "max_tokens": 40}
            answers = await asyncio.gather(
                *(sdk.chat.completions.create(**asked) for _ in range(3))
            )
            assert all(answer.usage.completion_tokens == 40 for answer in answers)
            raw = await sdk.chat.completions.with_raw_response.create(**asked)
            assert raw.status_code == 200
            with pytest.raises(openai.PermissionDeniedError):
                await sdk.chat.completions.create(**{**asked, "model": "nope"})
        assert app.tenants is not None
        assert app.tenants.use.named["acme"].refused["concurrent_requests"] >= 1
        async with openai.AsyncOpenAI(
            base_url=f"http://127.0.0.1:{app.port}/v1", api_key="sk-wr-wrong", max_retries=0
        ) as stranger:
            with pytest.raises(openai.AuthenticationError):
                await stranger.models.list()


async def test_anthropics_client_waits_and_succeeds(gateway: MakeGateway) -> None:
    async with SimulatedFleet(1) as fleet:
        app = await gateway(*fleet.urls, acme={"limits": {"concurrent_requests": 1}})
        async with anthropic.AsyncAnthropic(
            base_url=f"http://127.0.0.1:{app.port}", api_key=KEYS["acme"], max_retries=5
        ) as sdk:
            asked: Any = {"model": "sim", "messages": SAY, "max_tokens": 40}
            answers = await asyncio.gather(*(sdk.messages.create(**asked) for _ in range(3)))
            assert all(answer.usage.output_tokens == 40 for answer in answers)
        assert app.tenants is not None
        assert app.tenants.use.named["acme"].refused["concurrent_requests"] >= 1
        async with anthropic.AsyncAnthropic(
            base_url=f"http://127.0.0.1:{app.port}", auth_token="wrong", max_retries=0
        ) as stranger:
            with pytest.raises(anthropic.AuthenticationError):
                await stranger.messages.create(**asked)


@pytest.mark.parametrize("vendor", ["openai", "anthropic"])
async def test_a_client_waits_as_long_as_a_limit_by_the_minute_says(
    gateway: MakeGateway, monkeypatch: pytest.MonkeyPatch, vendor: str
) -> None:
    """It is refused once, waits for what `Retry-After` says, and succeeds at its first retry."""
    async with SimulatedFleet(1) as fleet:
        app = await gateway(*fleet.urls, acme={"limits": {"requests_per_minute": 2}})
        assert app.tenants is not None
        use, began = app.tenants.use, 0.0
        clock = 1_800_000_000.0

        def now() -> float:
            # It stands until the client was refused: how slow the machine is does not matter.
            nonlocal began
            if "acme" not in use.named or not use.named["acme"].refused:
                return clock
            began = began or time.monotonic()
            return clock + time.monotonic() - began

        monkeypatch.setattr("router.tenants.ledger.time.time", now)
        assert [(await chat(app, model="sim")).status_code for _ in range(2)] == [200, 200]
        clock += 59  # one more second, and there is room
        url, asked = (
            f"http://127.0.0.1:{app.port}",
            {"model": "sim", "messages": SAY, "max_tokens": 4},
        )
        # One retry. A client's own back-off of half a second would be too short.
        if vendor == "openai":
            async with openai.AsyncOpenAI(
                base_url=f"{url}/v1", api_key=KEYS["acme"], max_retries=1
            ) as sdk:
                completion: Any = await sdk.chat.completions.create(**asked)
                assert completion.usage.completion_tokens == 4
        else:
            async with anthropic.AsyncAnthropic(
                base_url=url, api_key=KEYS["acme"], max_retries=1
            ) as other:
                message: Any = await other.messages.create(**asked)
                assert message.usage.output_tokens == 4
        assert use.named["acme"].refused == {"requests_per_minute": 1}
