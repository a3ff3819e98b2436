"""Every query of every panel, and every rule, against a real Prometheus."""

from __future__ import annotations

import asyncio
import math
import re
from typing import NamedTuple

import pytest

from dashboards.__main__ import BOARDS
from dashboards.panels import Panel
from dashboards.stage import Stage, prometheus_program, stage

pytestmark = pytest.mark.skipif(
    prometheus_program() is None, reason="needs prometheus (Debian: apt-get install prometheus)"
)

SCRAPES = 22
"""Of load before the first look, and between two."""


class Faults(NamedTuple):
    """What is wrong. What is missing may come: a busy machine has got little done yet."""

    wrong: list[str]
    missing: list[str]


async def check_panel(on: Stage, board: str, panel: Panel, faults: Faults) -> None:
    moved = False
    for query in panel.queries:
        series = await on.lines(query.expr)
        values = [
            float(v) for line in series for _, v in line["values"] if not math.isnan(float(v))
        ]
        if panel.needs:
            continue  # Prometheus takes the query; its data is not made here
        if not values:
            faults.missing.append(f"{board} / {panel.title}: no data from {query.expr}")
        labels = set(re.findall(r"{{(\w+)}}", query.legend))
        for line in series:
            without = labels - set(line["metric"])
            if without:
                faults.wrong.append(
                    f"{board} / {panel.title}: no label {without} in {line['metric']}"
                )
            numbers = [v for _, v in line["values"] if v != "NaN"]
            moved |= len(set(numbers)) > 1
        if panel.unit == "percentunit" and values and not 0 <= min(values) <= max(values) <= 1.001:
            faults.wrong.append(
                f"{board} / {panel.title}: a share outside of 0 to 1: {min(values)}, {max(values)}"
            )
    if panel.moves and not panel.needs and not moved:
        faults.missing.append(f"{board} / {panel.title}: a flat line")


async def faults_of(on: Stage) -> Faults:
    faults = Faults([], [])
    for name, board in BOARDS.items():
        for panel in board.panels:
            await check_panel(on, name, panel, faults)
    rules = (await on.ask("rules"))["groups"]
    for group in rules:
        for rule in group["rules"]:
            told = f"rule {rule['name']}: {rule['health']} {rule.get('lastError')}"
            if rule["health"] == "unknown":
                faults.missing.append(told)  # not evaluated yet
            elif rule["health"] != "ok":
                faults.wrong.append(told)
    recorded = [r["name"] for g in rules for r in g["rules"] if r["type"] == "recording"]
    for name in recorded:
        if not await on.lines(name):
            faults.missing.append(f"recording rule {name}: no data")
    return faults


@pytest.mark.timeout(900)
async def test_every_query_returns_data_that_moves() -> None:
    """However slow the machine: the load goes on until there is something of everything."""
    faults = Faults([], ["everything: the load did not come to its first look"])
    try:
        async with asyncio.timeout(840), stage(SCRAPES) as on:
            faults = await faults_of(on)
            while faults.missing and not faults.wrong:
                await on.more(SCRAPES)
                faults = await faults_of(on)
    except TimeoutError:
        pass  # said below, with what is still missing
    assert faults == Faults([], [])
