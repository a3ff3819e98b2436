"""What is shown of runs while they go on."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from loadgen.client.driver import Progress
from loadgen.results.metrics import summarise
from loadgen.results.records import Records
from loadgen.show import terminal
from loadgen.show.terminal import Screen
from loadgen.workloads import Plan, Poisson, make


def plan(duration: float = 60.0) -> Plan:
    return Plan(make("unique", {}), Poisson(1.0), seed=1, duration=duration)


def progress(now: float, replicas: int = 0) -> Progress:
    """Ten answers a second since the beginning, half of the prompts reused."""
    made = Progress([f"replica-{number}" for number in range(replicas)])
    made.tick(0.0)
    for number in range(round(now * 10)):
        made.sent += 1
        made.ended += 1
        made.recent.append(0.25)
        made.answered(f"replica-{number % replicas}" if replicas else "", 100, 50)
    made.tick(now)
    return made


def lines_of(screen: Screen) -> list[str]:
    """What it shows now, on a terminal like its own."""
    width, height = screen.console.size
    console = Console(file=io.StringIO(), width=width, height=height)
    console.print(screen)
    assert isinstance(console.file, io.StringIO)
    return [line.rstrip() for line in console.file.getvalue().splitlines()]


def screen_of(width: int, height: int) -> Screen:
    return Screen(Console(file=io.StringIO(), width=width, height=height))


def test_a_run_shows_its_progress_rates_and_replicas() -> None:
    screen = screen_of(100, 24)
    screen.started("cache_aware", 0.0, 0, plan())
    screen.progress(progress(4.0, replicas=4))
    text = "\n".join(lines_of(screen))
    for part in ("4 of 60 s", "40 of 40", "10.0", "50.0%", "250", "4 replicas"):
        assert part in text
    assert text.count("50%") == 4


def test_the_run_under_way_is_always_there() -> None:
    screen = screen_of(80, 10)
    for number in range(20):
        screen.started(f"arm-{number}", 0.0, 0, plan())
    screen.progress(progress(2.0, replicas=8))
    lines = lines_of(screen)
    assert len(lines) <= 10
    assert any("arm-19" in line for line in lines)
    assert "runs before these" in lines[0]
    assert not any("arm-3 " in line for line in lines)


def test_many_replicas_are_one_line() -> None:
    screen = screen_of(80, 24)
    screen.started("x", 0.0, 0, plan())
    screen.progress(progress(20.0, replicas=100))
    lines = lines_of(screen)
    assert lines[-1] == "2 to 2, hit rate 50% to 50%"


def test_it_fits_into_narrow_terminals() -> None:
    screen = screen_of(60, 24)
    screen.started("cache_aware", 40.0, 1, plan())
    screen.progress(progress(3.0, replicas=8))
    lines = lines_of(screen)
    assert max(map(len, lines)) <= 60
    assert "50.0%" in "\n".join(lines)


def test_plain_lines_say_what_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(terminal, "PLAIN_SECONDS", 0.0)
    file = io.StringIO()
    with Screen(Console(file=file, width=60)) as screen:
        screen.started("x", 0.0, 0, plan(duration=6.0))
        screen.progress(Progress())
        screen.progress(progress(8.0, replicas=2))
        screen.ended(summarise("x", Records()))
    assert file.getvalue().splitlines() == [
        "x: starting",
        "x: 0 of 6 s, no request was due yet",
        "x: 8 s, finishing, 80 of 80 requests done, 10.0 requests/s, hit rate 50.0% (50% to 50% by "
        "replica), TTFT now 250 ms",
        "x: done, 0 of 0 requests, 0.0 requests/s, hit rate -, TTFT p50 - ms",
    ]


def test_a_terminal_is_drawn_over_and_left_clean() -> None:
    file = io.StringIO()
    with Screen(Console(file=file, width=80, height=24, force_terminal=True)) as screen:
        screen.started("cache_aware", 0.0, 0, plan())
        screen.progress(progress(2.0, replicas=2))
    drawn = file.getvalue()
    assert "20 of 20" in drawn
    assert "\x1b[2K" in drawn  # what was drawn is erased
