"""An access log under other circumstances, and replicas that are lost."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest

from loadgen.cli.main import main
from loadgen.engine import preset
from loadgen.planning.observed import moment, observed
from loadgen.results.schema import read_json
from loadgen.simulate import Outage, arrangement, prepare, run_loop
from loadgen.workloads import Plan, Poisson, make
from router.prompt.spans import SPANS

START = 1_772_359_200.0
"""2026-03-01 10:00:00 UTC."""


def log(folder: Path, lines: int = 240) -> str:
    """Chats of 20 users that grow by a block or two with each request, three replicas."""
    path = folder / "access.jsonl"
    blocks: dict[int, list[int]] = {user: [7] for user in range(20)}
    made = []
    for number in range(lines):
        user = number % 20
        own = blocks[user]
        own += [1000 * user + len(own), 1000 * user + len(own) + 1]
        size = SPANS[len(own)] + 60
        made.append(
            {
                "time": START + number / 4,
                "id": f"r{number}",
                "api": "chat",
                "outcome": "ok",
                "policy": "round_robin",
                "replica": f"http://r{number % 3}",
                "ttft": 0.05 + 0.001 * (number % 10),
                "prompt_tokens": size // 4,
                "output_tokens": 40,
                "delivered": size // 8,
                "prompt_bytes": size,
                "blocks": list(own),
            }
        )
    path.write_text("".join(json.dumps(each) + "\n" for each in made))
    return str(path)


def test_a_log_is_played_otherwise(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, out = log(tmp_path), tmp_path / "out.json"
    flags = ["--other-policies", "cache_aware", "--other-replicas", "2", "--kv-memory", "0.05"]
    flags += ["--lose", "1@10:00:30", "--preset", "8b-l4", "--json", str(out)]
    flags += ["--other-offload-gb", "100"]
    assert main(["whatif", "--workload", path, *flags]) == 0
    found = read_json(out)
    assert [arm.name for arm in found.arms] == [
        "as it is",
        "cache_aware",
        "2 replicas",
        "KV cache x 0.05",
        "offload 100 GB",
        "lost 1@10:00:30",
    ]
    now, aware, _, small, _, lost = found.arms
    assert [len(arm.replicas) for arm in found.arms] == [3, 3, 2, 3, 3, 3]
    assert now.requests == 240
    assert now.hit_rate is not None
    assert aware.hit_rate is not None
    assert small.hit_rate is not None
    assert aware.hit_rate > now.hit_rate > small.hit_rate
    assert lost.replicas[1].requests < 0.8 * now.replicas[1].requests
    assert lost.requests == 240
    assert {each.baseline for each in found.differences} == {"as it is"}
    told = " ".join(capsys.readouterr().out.split())
    assert "3 replicas (8b-l4" in told
    assert "with round_robin" in told
    assert "in the log" in told


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        ([], "needs something that is otherwise"),
        (["--lose", "3@5s"], "N from 0 to 2"),
        (["--lose", "0@noon"], "write N@TIME"),
        (["--lose", "0@9s-5s"], "write N@TIME"),
        (
            ["--lose", "0@1s", "--lose", "1@1s", "--lose", "2@1s"],
            "at least one replica has to stay",
        ),
        (["--other-policies", "cache_awre"], "did you mean cache_aware"),
        (["--rate", "3", "--kv-memory", "2"], "at its own times"),
    ],
)
def test_what_makes_no_sense(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], says: str
) -> None:
    assert main(["whatif", "--workload", log(tmp_path, 20), *flags]) == 2
    assert says in capsys.readouterr().err


def test_what_a_log_tells(tmp_path: Path) -> None:
    seen = observed(Path(log(tmp_path)))
    assert (seen.requests, seen.replicas, seen.policy) == (240, 3, "round_robin")
    assert seen.hit_rate == pytest.approx(0.5, abs=0.01)
    assert seen.ttft_p50 == pytest.approx(0.0545)
    assert (seen.failed, seen.without_blocks) == (0, 0)


def test_moments() -> None:
    assert moment("10:00:30", START) == 30.0
    assert moment("12:10", START) == 7800.0
    assert moment("09:00", START) == 23 * 3600
    assert moment("10m", START) == 600.0


def test_a_lost_replica_gets_nothing_and_comes_back_empty() -> None:
    plan = Plan(make("chat"), Poisson(12.0), seed=3, duration=120.0, finish=True)
    engine = preset("8b-l4")
    prepared = prepare(plan, engine.block_size, SPANS, keys=True)

    def play(*outages: Outage):  # type: ignore[no-untyped-def]
        return run_loop(prepared, arrangement("round_robin"), [engine] * 3, seed=3, outages=outages)

    whole, lost = play(), play(Outage(40.0, 1, 80.0))
    assert len(lost.records) == len(whole.records) > 400
    names = lost.records.replicas.names
    failed = 0
    for sent, replica, reason in zip(
        lost.records.sent, lost.records.replica, lost.records.reason, strict=True
    ):
        failed += reason != 0
        assert not (40.0 < sent < 80.0 and names[replica] == "replica-1" and not reason)
    assert 0 < failed < 40
    assert set(lost.records.reasons.names) == {"", "connection lost"}
    back = [
        names[replica]
        for sent, replica in zip(lost.records.sent, lost.records.replica, strict=True)
        if sent > 85
    ]
    assert 0.28 < back.count("replica-1") / len(back) < 0.39
    # What had not begun to be answered was sent elsewhere: its time counts from when it was due.
    waited = [
        first - due
        for due, first, reason in zip(
            lost.records.scheduled, lost.records.first, lost.records.reason, strict=True
        )
        if not reason
    ]
    assert min(islice(waited, len(waited))) > 0
