"""Results files as one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loadgen.cli.main import main
from loadgen.results.merge import merged
from loadgen.results.schema import ResultsError, read_json


def written(path: Path, *flags: str) -> Path:
    command = ["simulate", "--workload", "unique", "--requests", "5", f"--json={path}"]
    assert main([*command, *flags]) == 0
    return path


def test_arms_of_the_same_name_get_their_files(tmp_path: Path) -> None:
    one = read_json(written(tmp_path / "one", "--policies", "round_robin,random"))
    two = read_json(written(tmp_path / "two", "--policies", "least_loaded,random", "--seed=2"))
    whole = merged({"one": one, "two": two})
    assert [arm.name for arm in whole.arms] == [
        "round_robin",
        "one: random",
        "least_loaded",
        "two: random",
    ]
    assert {(each.baseline, each.arm) for each in whole.differences} == {
        ("round_robin", "one: random"),
        ("least_loaded", "two: random"),
    }
    # Against another first arm than the whole has.
    assert [arm.savings is not None for arm in whole.arms] == [False, True, False, False]
    assert whole.conclusion.startswith("two: random and round_robin both")
    assert merged({"one": one}) == one


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--workload", "hot"], "workload is 'hot', not 'unique'"),
        (["--rate", "4,8"], "kind is 'sweep', not 'simulate'"),
        (["--rate", "4"], "--rate is 4, not not set"),
        (["--num-blocks", "5000"], "--num-blocks is 5000"),
        (["--requests", "6"], "--requests is 6, not 5"),
    ],
)
def test_what_is_not_alike_is_refused(flags: list[str], says: str, tmp_path: Path) -> None:
    one, two = written(tmp_path / "one"), written(tmp_path / "two", *flags)
    with pytest.raises(ResultsError, match=says):
        merged({"one": read_json(one), "two": read_json(two)})


def test_reports_are_made_from_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, html = written(tmp_path / "one"), tmp_path / "html"
    two = written(tmp_path / "two", "--seed", "2")
    capsys.readouterr()
    assert main(["report", str(one), str(two), "--html", str(html)]) == 0
    assert "two: round_robin" in capsys.readouterr().out
    assert html.exists()
    two.write_text(json.dumps({"version": 1}))
    assert main(["report", str(one), str(two)]) == 1
    assert "not a results file" in capsys.readouterr().err
    assert main(["report", str(one), str(tmp_path / "three")]) == 2
    assert "three: there is no such file" in capsys.readouterr().err
