"""What the parts of a router are told when its fleet changes."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from router.app import App
from router.config import Settings


async def test_policies_are_told_once_of_all_that_come_in_a_turn(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    app = App(Settings(replicas=("http://a:1",)))
    await asyncio.sleep(0)
    told: list[dict[int, str]] = []

    def members(names: Mapping[int, str]) -> None:
        told.append(dict(names))

    monkeypatch.setattr(app.placer.policy, "members", members)
    for number in range(50):
        app.fleet.add(f"http://b{number}:1")
    assert not told
    await asyncio.sleep(0)
    assert told == [app.fleet.names()]
    app.fleet.remove("http://b3:1")  # at once: its slot may be another's before this turn ends
    assert told[1:] == [app.fleet.names()]
    app.fleet.add("http://c:1")
    app.fleet.remove("http://a:1")
    await asyncio.sleep(0)
    assert told[2:] == [app.fleet.names()]
