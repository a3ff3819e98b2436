"""A tenant that measures the time to first token of guessed prompts, through the gateway."""

from __future__ import annotations

import hashlib
import random
import time
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from http_world import MakeRouter

from loadgen.replicas import SimulatedFleet
from router.app import App
from router.tenants.keys import new_key

VICTIM, ATTACKER = new_key(), new_key()
GUESSES = 120
"""Half of them right: by chance alone the area is 0.5, give or take 0.05."""
FEW_GUESSES = 40
"""Enough to see what is plain: by chance alone 0.5, give or take 0.09."""


def prompt(number: int) -> list[dict[str, Any]]:
    words = random.Random(number)
    text = " ".join(str(words.random()) for _ in range(200))
    return [{"role": "user", "content": text}]


async def first_token(http: httpx.AsyncClient, key: str, number: int) -> float:
    """Seconds until the answer, of one token."""
    body = {"model": "sim", "messages": prompt(number), "max_tokens": 1}
    began = time.perf_counter()
    answer = await http.post(
        "/v1/chat/completions", json=body, headers={"authorization": f"Bearer {key}"}
    )
    assert answer.status_code == 200
    return time.perf_counter() - began


def area(hits: list[float], misses: list[float]) -> float:
    """Of the ROC curve of an attacker who calls what came sooner a hit."""
    won = sum((hit < miss) + (hit == miss) / 2 for hit in hits for miss in misses)
    return won / (len(hits) * len(misses))


async def attack(app: App, guesses: int) -> float:
    """The attacker's area: half of what it guesses the victim has asked before."""
    order = list(range(guesses))
    random.Random(3).shuffle(order)
    times: dict[bool, list[float]] = {True: [], False: []}
    async with httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{app.port}", timeout=60, trust_env=False
    ) as http:
        for number in order:
            asked = number % 2 == 0
            if asked:
                await first_token(http, VICTIM, number)
            times[asked].append(await first_token(http, ATTACKER, number))
    return area(times[True], times[False])


@pytest.mark.timeout(120)
@pytest.mark.parametrize(
    ("isolation", "guesses", "most", "least"),
    [("none", FEW_GUESSES, 1.0, 0.9), ("tenant", GUESSES, 0.65, 0.35)],
)
async def test_an_attacker_learns_nothing_by_time(
    router: MakeRouter, tmp_path: Path, isolation: str, guesses: int, most: float, least: float
) -> None:
    file = tmp_path / "tenants.yaml"
    keys = {
        name: {"keys": [{"sha256": hashlib.sha256(key.encode()).hexdigest()}]}
        for name, key in {"victim": VICTIM, "attacker": ATTACKER}.items()
    }
    file.write_text(yaml.safe_dump({"tenants": keys}))
    # Slow engines: a prefill of a prompt takes longer than the machine's own noise.
    async with SimulatedFleet(2, time_scale=0.1) as fleet:
        app = await router(
            *fleet.urls,
            policy="cache_aware",
            tenants=str(file),
            isolation=isolation,
            isolation_secret="0123456789abcdef" * 2,
        )
        found = await attack(app, guesses)
    assert least <= found <= most, found
