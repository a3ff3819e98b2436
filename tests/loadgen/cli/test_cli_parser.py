"""Bad options: one line, with what was probably meant."""

from __future__ import annotations

import pytest

from loadgen.cli.main import main

RUN = ["run", "--url", "http://127.0.0.1:1"]


@pytest.mark.parametrize(
    ("command", "says"),
    [
        (["rum"], "did you mean run?"),
        ([*RUN, "--rat", "3"], "there is no option --rat, did you mean --rate?"),
        (["run", "--ulr", "http://x"], "there is no option --ulr, did you mean --url?"),
        ([*RUN, "--durations=3"], "did you mean --duration?"),
        ([*RUN, "--api", "chta"], "did you mean chat?"),
        ([*RUN, "--workload", "agnet"], "did you mean agent?"),
        ([*RUN, "--workload", "agent", "--set", "step=3"], "did you mean steps?"),
        ([*RUN, "--goodput", "ttfx:3"], "did you mean ttft?"),
        ([*RUN, "--arrivals", "poison"], "did you mean poisson?"),
        (["compare", "--preset", "8b-h10"], "did you mean 8b-h100?"),
        (["simulate", "--policies", "round-robin"], "did you mean round_robin?"),
        (["replicas", "--cout", "2"], "did you mean --count?"),
        (["calibrate", "--url", "http://x", "--sed", "2"], "did you mean --seed?"),
        (["report", "--jsn", "x"], "did you mean --json?"),
        (["simulate", "extra"], "'extra' belongs to no option"),
        (["simulate", "-x"], "there is no option -x"),
        (["simulate", "--seed", "x"], "--seed"),
    ],
)
def test_it_is_one_line(command: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        status: object = main(command)
    except SystemExit as stop:
        status = stop.code
    said, complained = capsys.readouterr()
    assert status == 2
    assert says in complained
    assert complained.count("\n") == 1
    assert complained.startswith("warmroute-loadgen")
    assert not said
