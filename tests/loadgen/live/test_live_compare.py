"""Comparisons and commands, live: simulated replicas, the real gateway, loopback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loadgen.cli.main import main
from loadgen.live.compare import reset_caches, start_replicas
from loadgen.live.gateway import parse_reuse
from loadgen.live.processes import Children, run_async
from loadgen.live.run import RunError, first_model
from loadgen.replicas import SimulatedFleet
from loadgen.results.schema import read_json

SHORT = ["--rate", "30", "--duration", "1.5", "--set", "output_tokens=4", "--preset", "quick"]


@pytest.mark.timeout(120)
def test_a_comparison_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [f"--{kind}={tmp_path / kind}" for kind in ("json", "csv", "html")]
    command = ["compare", "--policies", "direct,round_robin,cache_aware", "--replicas", "2"]
    command += ["--workload", "hot", "--set", "others=3", "--goodput", "ttft:60000"]
    status = main([*command, *SHORT, *files])
    said, complained = capsys.readouterr()
    assert status == 0, said + complained
    results = read_json(tmp_path / "json")
    assert (results.kind, results.workload, results.simulated) == ("compare", "hot", True)
    direct, turns, aware = results.arms
    assert [arm.name for arm in results.arms] == ["direct", "round_robin", "cache_aware"]
    for arm in results.arms:
        assert arm.requests == arm.completed > 20
        assert arm.errors == {}
        # However the arm's replicas were called on the way, which is by their ports.
        assert [replica.name for replica in arm.replicas] == ["replica-0", "replica-1"]
        assert sum(replica.requests for replica in arm.replicas) == arm.requests
        assert arm.output_tokens == 4 * arm.requests
        assert arm.hit_rate is not None
        # Fewer than there are whole blocks between them, and chat templates are not segments.
        assert 0 < arm.hit_rate < arm.upper_bound + 0.02
        assert arm.goodput is not None
        assert arm.goodput.fraction == 1.0
    assert direct.requests == turns.requests == aware.requests
    assert direct.prompt_tokens == turns.prompt_tokens == aware.prompt_tokens
    assert direct.reuse is None
    assert aware.reuse is not None
    assert aware.reuse.delivered == aware.cached_tokens
    assert aware.reuse.prompt == aware.prompt_tokens
    assert {each.arm for each in results.differences} == {"round_robin", "cache_aware"}
    assert aware.savings is not None
    assert results.conclusion in " ".join(said.split())
    assert (tmp_path / "csv").read_text().count("\n") == 4
    assert "cache_aware" in (tmp_path / "html").read_text()


@pytest.mark.timeout(120)
def test_servers_that_already_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A router by URL is an arm like any other; here it is one of the replicas itself."""
    path = tmp_path / "r"
    with Children() as children:
        one, two = run_async(start_replicas(children, 2, ["--preset", "quick"]))
        asked = ["--workload", "hot", "--requests", "30", "--rate", "60", f"--json={path}"]
        status = main(["run", "--url", one, "--name", "mine", "--api", "completions", *asked])
        assert status == 0, capsys.readouterr()
        (arm,) = read_json(path).arms
        assert (arm.name, arm.completed, arm.replicas) == ("mine", 30, [])
        command = ["compare", "--policies", "direct", "--router", f"alone={one}"]
        status = main([*command, "--replica", one, "--replica", two, *asked])
        assert status == 0, capsys.readouterr()
    results = read_json(path)
    direct, alone = results.arms
    assert (direct.completed, alone.completed) == (30, 30)
    assert not results.simulated
    assert direct.hit_rate is not None
    assert alone.hit_rate is not None
    # Caches were emptied in between: both miss what nobody had asked before in their own run.
    assert direct.hit_rate < alone.hit_rate <= alone.upper_bound + 0.02


def test_a_simulation(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["simulate", "--replicas", "2", "--workload", "hot", "--rate", "5,10"]
    command += ["--requests", "50", f"--json={tmp_path / 'r'}", "--preset", "8b-h100"]
    status = main(command)
    assert status == 0, capsys.readouterr()
    results = read_json(tmp_path / "r")
    assert results.kind == "sweep"
    assert [(arm.name, arm.load) for arm in results.arms] == [
        ("round_robin", 5.0),
        ("cache_aware", 5.0),
        ("round_robin", 10.0),
        ("cache_aware", 10.0),
    ]
    assert all(arm.completed == 50 for arm in results.arms)


def test_a_simulation_says_that_prompts_were_too_long(tmp_path: Path) -> None:
    file = tmp_path / "simulated.json"
    command = ["simulate", "--workload", "unique", "--rate", "10", "--requests", "30"]
    command += ["--set", "prompt_tokens=9000", "--num-blocks", "500", "--json", str(file)]
    assert main(command) == 0
    found = json.loads(file.read_bytes())
    refused = found["arms"][0]["errors"]["too_long"]
    assert 0 < refused < 30
    assert found["warnings"][0].startswith(f"{refused} requests of an arm were refused: longer")


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["compare", "--workload", "nothing"], "unknown workload"),
        (["compare", "--router", "x=http://y"], "--replica"),
        (["compare", "--policies", "a,a"], "different"),
        (["compare", "--replica", "http://x", "--replicas", "2"], "--replicas"),
        (["run", "--url", "nonsense", "--model", "m"], "not a URL"),
        (["run", "--url", "http://x", "--rate", "fast"], "--rate 'fast'"),
        (["run", "--url", "http://x", "--rate", "1", "--concurrency", "2"], "closed one"),
        (["run", "--url", "http://x", "--set", "steps"], "NAME=VALUE"),
        (["run", "--url", "http://x", "--goodput", "speed:1"], "ttft, tpot or e2e"),
        (["run", "--url", "http://x", "--arrivals", "trace"], "no times of its own"),
        (["run", "--url", "http://x", "--warmup", "9", "--duration", "9"], "--warmup"),
        (["simulate", "--concurrency", "4"], "needs --requests"),
        (["simulate", "--policies", "nothing"], "nothing"),
    ],
)
def test_bad_options_are_named(
    command: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command) == 2
    assert says in capsys.readouterr().err


def test_a_url_where_nobody_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--url", "http://127.0.0.1:1", "--duration", "1"]) == 1
    assert "http://127.0.0.1:1 does not answer" in capsys.readouterr().err


async def test_running_replicas_are_emptied() -> None:
    async with SimulatedFleet(count=2) as fleet:
        assert await reset_caches(fleet.urls) == []
        assert await first_model(fleet.urls[0] + "/v1", {}) == "sim"
        (warning,) = await reset_caches([fleet.urls[0] + "/nowhere"])
        assert "VLLM_SERVER_DEV_MODE" in warning
    with pytest.raises(RunError, match="does not answer"):
        await reset_caches(["http://127.0.0.1:1"])


def test_the_hits_way_is_summed_over_labels() -> None:
    lines = []
    for place, stage in enumerate(("prompt", "available", "chosen", "predicted", "delivered")):
        name = f"warmroute_reuse_{stage}_tokens"
        lines.append(f"# TYPE {name} counter")
        lines += [f'{name}_total{{replica="{r}"}} {10 - place}' for r in ("a", "b")]
    found = parse_reuse("\n".join(lines) + "\n")
    assert found is not None
    assert (found.prompt, found.available, found.delivered) == (20.0, 18.0, 12.0)
    assert parse_reuse("# TYPE x counter\nx_total 1\n") is None


@pytest.mark.timeout(120)
def test_some_replicas_prefill_for_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["compare", "--policies", "cache_aware", "--replicas", "1", "--prefill", "2"]
    command += ["--workload", "unique", "--rate", "40", "--duration", "2", "--preset", "quick"]
    command += ["--set", "prompt_tokens=6000", "--set", "output_tokens=60"]
    assert main([*command, f"--json={tmp_path / 'r'}"]) == 0, capsys.readouterr()
    results = read_json(tmp_path / "r")
    alike, apart = results.arms
    assert [alike.name, apart.name] == ["cache_aware", "cache_aware_apart"]
    assert alike.errors == apart.errors == {}
    assert alike.requests == apart.requests > 40
    assert sum(replica.requests > 0 for replica in alike.replicas) == 3
    # Only one answers, and it fetched much of what it did not compute.
    assert [each.name for each in apart.replicas if each.requests] == ["replica-0"]
    assert alike.hit_rate is not None
    assert apart.hit_rate is not None
    assert apart.hit_rate > alike.hit_rate + 0.1
    assert apart.reuse is not None
    assert apart.reuse.delivered < 0.1 * apart.reuse.prompt
    assert any("count all that they fetched" in warning for warning in results.warnings)


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--replica", "http://x"], "--prefill starts replicas"),
        (["--policies", "direct"], "--prefill: direct cannot have"),
        (["--policies", "cache_aware_exact"], "--prefill: cache_aware_exact cannot have"),
    ],
)
def test_what_cannot_be_apart(
    flags: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", "--prefill", "1", *flags]) == 2
    assert says in capsys.readouterr().err
