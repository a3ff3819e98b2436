"""Every query of every panel, and every rule, against a real Prometheus."""

from __future__ import annotations

import math
import re

import pytest

from dashboards.__main__ import BOARDS
from dashboards.panels import Panel
from dashboards.stage import Stage, prometheus_program, stage

pytestmark = pytest.mark.skipif(
    prometheus_program() is None, reason="needs prometheus (Debian: apt-get install prometheus)"
)

SECONDS = 22


async def check_panel(on: Stage, board: str, panel: Panel) -> list[str]:
    faults = []
    moved = False
    for query in panel.queries:
        series = await on.lines(query.expr)
        values = [
            float(v) for line in series for _, v in line["values"] if not math.isnan(float(v))
        ]
        if panel.needs:
            continue  # Prometheus takes the query; its data is not made here
        if not values:
            faults.append(f"{board} / {panel.title}: no data from {query.expr}")
        labels = set(re.findall(r"{{(\w+)}}", query.legend))
        for line in series:
            missing = labels - set(line["metric"])
            if missing:
                faults.append(f"{board} / {panel.title}: no label {missing} in {line['metric']}")
            numbers = [v for _, v in line["values"] if v != "NaN"]
            moved |= len(set(numbers)) > 1
        if panel.unit == "percentunit" and values and not 0 <= min(values) <= max(values) <= 1.001:
            faults.append(f"{board} / {panel.title}: a share outside of 0 to 1: {max(values)}")
    if panel.moves and not panel.needs and not moved:
        faults.append(f"{board} / {panel.title}: a flat line")
    return faults


async def faults_of(on: Stage) -> list[str]:
    faults = []
    for name, board in BOARDS.items():
        for panel in board.panels:
            faults += await check_panel(on, name, panel)
    rules = (await on.ask("rules"))["groups"]
    for group in rules:
        for rule in group["rules"]:
            if rule["health"] != "ok":
                faults.append(f"rule {rule['name']}: {rule['health']} {rule.get('lastError')}")
    recorded = [r["name"] for g in rules for r in g["rules"] if r["type"] == "recording"]
    for name in recorded:
        if not await on.lines(name):
            faults.append(f"recording rule {name}: no data")
    return faults


@pytest.mark.timeout(150)
async def test_every_query_returns_data_that_moves() -> None:
    async with stage(SECONDS) as on:
        faults = await faults_of(on)
        for _ in range(3):
            if faults:
                await on.more(SECONDS)
                faults = await faults_of(on)
        assert not faults, "\n".join(faults)
