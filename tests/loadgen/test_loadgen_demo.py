"""The demo, shortened: it runs, says what it simulated, and concludes from what it measured."""

from __future__ import annotations

from pathlib import Path
from xml.etree import ElementTree

import pytest
from msgspec import structs

from loadgen.cli.main import main as loadgen_main
from loadgen.demo import AGENTS, NEXT, SEED, gain, in_real_time, in_virtual_time, main, too_busy
from loadgen.live.compare import Comparison
from loadgen.results.schema import Arm, Difference, read_json
from loadgen.show.terminal import Screen
from loadgen.workloads import Plan, Poisson, make


@pytest.mark.timeout(120)
def test_the_demo(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Answers that are soon over: live ones take their time.
    monkeypatch.setitem(AGENTS, "output_tokens", "6")
    json, html, svg = tmp_path / "r.json", tmp_path / "r.html", tmp_path / "new" / "r.svg"
    options = ["--seconds", "2", "--rate", "30", "--replicas", "2"]
    status = main([*options, "--json", str(json), "--html", str(html), "--svg", str(svg)])
    said, complained = capsys.readouterr()
    assert status == 0, said + complained
    results = read_json(json)
    names = [arm.name for arm in results.arms]
    assert names[:2] == ["round_robin", "cache_aware"]
    assert names[2:] in ([], ["live: round_robin", "live: cache_aware"])
    for arm in results.arms:
        assert arm.completed == arm.requests > 0
        assert len(arm.replicas) <= 2
    assert "2 simulated vLLM replicas" in said
    assert "no GPU" in said
    assert results.conclusion in " ".join(said.split())
    assert "<h2>Latency</h2>" in html.read_text()
    drawn = svg.read_text()
    words = " ".join(ElementTree.fromstring(drawn).itertext()).replace("\xa0", " ")
    for shown in ("round_robin", "cache_aware", "TTFT p90, ms", "2 simulated vLLM replicas"):
        assert shown in words
    assert "@font-face" not in drawn
    plan = Plan(make("agent", AGENTS), Poisson(30.0), seed=SEED, duration=2.0, warmup=1.0)
    virtual, _ = in_virtual_time(plan, 2)
    assert results.conclusion.startswith(gain(*virtual)), "the same on every machine"
    assert results.arms[:2] == virtual
    assert "Live, on this machine" in results.conclusion
    assert " to warm up" in said
    # Lines of progress are for a log.
    *lines, one, two, three = said.rstrip().splitlines()
    for (_, command), line in zip(NEXT, (one, two, three), strict=True):
        assert line.endswith(command)
    lines = [line for line in lines if not line.startswith(("round_", "cache_aware: "))]
    assert all(len(line) <= 80 for line in lines), "broken at words"
    assert "the numbers of requests need not be equal" in " ".join(said.split())


def test_live_times_of_a_busy_machine_are_left_out_and_it_is_said() -> None:
    plan = Plan(make("agent", AGENTS), Poisson(20.0), seed=SEED, duration=4.0)
    virtual, _ = in_virtual_time(plan, 2)
    assert too_busy(virtual, virtual) == ""
    late = structs.replace(virtual[1].schedule, behind=True)
    behind = [virtual[0], structs.replace(virtual[1], schedule=late)]
    assert "could not send requests when they were due" in too_busy(virtual, behind)
    slow = structs.replace(virtual[1].ttft_ms, mean=2 * (virtual[1].ttft_ms.mean or 0.0))
    assert "too busy or too slow" in too_busy(
        virtual, [virtual[0], structs.replace(virtual[1], ttft_ms=slow)]
    )


def test_a_busy_machine_is_not_kept_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Times that are left out need no second arm."""
    plan = Plan(make("agent", AGENTS), Poisson(20.0), seed=SEED, duration=4.0)
    virtual, _ = in_virtual_time(plan, 2)
    late = structs.replace(virtual[0].schedule, behind=True)
    played = []

    class Played:
        def __init__(self, comparison: Comparison, _: object) -> None:
            (contender,) = comparison.contenders
            self.name = contender.name

        async def run(self) -> None:
            played.append(self.name)

        def found(self) -> tuple[list[Arm], list[Difference], list[str]]:
            arm = next(arm for arm in virtual if arm.name == self.name)
            return [structs.replace(arm, schedule=late) if busy else arm], [], []

    monkeypatch.setattr("loadgen.demo.Comparing", Played)
    busy = True
    _, _, why = in_real_time(plan, 2, virtual, Screen())
    assert (played, "left out" in why) == (["round_robin"], True)
    busy = False
    live, _, why = in_real_time(plan, 2, virtual, Screen())
    assert (len(live), why) == (2, "")
    assert live[1].savings == virtual[1].savings


def test_the_next_commands_are_real() -> None:
    for _, command in NEXT:
        program, name, *_ = command.split()
        assert program in ("warmroute-loadgen", "warmroute")
        if program == "warmroute-loadgen":
            assert name in ("simulate", "plan")
            with pytest.raises(SystemExit) as ended:
                loadgen_main([name, "--help"])
            assert ended.value.code == 0


def test_the_command_alone_shows_what_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert loadgen_main([]) == 0
    said = capsys.readouterr().out
    for name in ("simulate", "plan", "whatif", "run", "compare", "replicas", "diff", "report"):
        assert f"warmroute-loadgen {name}" in said
    assert all(len(line) <= 100 for line in said.splitlines())
