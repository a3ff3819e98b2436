"""What the command line takes, what it refuses, and what it says it was asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from loadgen.cli.commands import parser
from loadgen.cli.main import main
from loadgen.cli.options import client_from
from loadgen.live.compare import Comparing, Comparison
from loadgen.results.schema import read_json

SMALL = [
    "simulate",
    "--workload",
    "chat",
    "--replicas",
    "2",
    "--rate",
    "5",
    "--policies",
    "round_robin",
]


def status_of(command: list[str]) -> int | str | None:
    try:
        return main(command)
    except SystemExit as stop:
        return stop.code


@pytest.mark.parametrize(("duration", "sync"), [("60s", "20ms"), ("60", "none"), ("1m", "0.02")])
def test_durations(duration: str, sync: str, tmp_path: Path) -> None:
    out = tmp_path / "result.json"
    flags = ["--duration", duration, "--routers", "2", "--sync", sync, "--json", str(out)]
    assert main([*SMALL, *flags]) == 0
    assert json.loads(out.read_text())["arms"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--duration", "5x"], "write it like 60s"),
        (["--duration", "0s"], "--duration: '0s': must be above 0"),
        (["--sync", "soon", "--routers", "2"], "write a duration"),
        (["--rate", "nan"], "finite"),
        (["--rate", "4,inf"], "finite"),
        (["--rate", "4,4"], "different"),
        (["--rate", "0"], "above 0"),
        (["--requests", "-5"], "--requests: '-5': must be at least 1"),
        (["--replicas", "0"], "--replicas '0'"),
        (["--replicas", "2,x"], "whole number"),
        (["--replicas", "2,4", "--rate", "4,8"], "one thing at a time"),
        (["--repeats", "-3"], "--repeats"),
        (["--routers", "0"], "--routers"),
        (["--num-blocks", "1"], "--num-blocks"),
        (["--gpus", "-1"], "--gpus"),
        (["--gpu-hour", "-3"], "--gpu-hour"),
        (["--prefill-rate", "0"], "--prefill-rate"),
        (["--policies", ""], "--policies ''"),
        (["--policies", "random,random"], "each a different one"),
        (["--set", "turns=-3"], "chat: turns: Expected `float` >= 1.0"),
        (["--set", "think=inf"], "chat: think"),
        (["--arrivals", "ramp:1-2"], "--rate cannot be given"),
        (["--rate", "", "--arrivals", "ramp:1,2-2"], "write one number"),
        (["--rate", "", "--concurrency", "3", "--arrivals", "fixed"], "closed one"),
        (["--rate", "", "--concurrency", "2.5", "--requests", "5"], "whole number"),
        (["--speed", "2"], "--speed"),
        (["--speed", "nan"], "finite"),
        (["--goodput", "ttft:500,600"], "write one number"),
        (["--preset", "./nosuch.json"], "--preset ./nosuch.json: No such file"),
        (["--json", "/nowhere/result.json"], "--json /nowhere/result.json: create the folder"),
        (["--csv", "/"], "--csv /: is a folder"),
    ],
)
def test_what_makes_no_sense_is_refused(
    flags: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of([*SMALL, "--duration", "1s", *flags]) == 2
    said, complained = capsys.readouterr()
    assert says in complained
    assert not said


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--url", "http://[::1"], "'http://[::1'"),
        (["--url", "http://a b"], "is not a URL"),
        (["--bytes-per-token", "0"], "--bytes-per-token"),
        (["--block-tokens", "0"], "--block-tokens"),
        (["--pause-scale", "-1"], "--pause-scale"),
        (["--timeout", "0"], "--timeout"),
        (["--header", "a: b\r\nc: d"], "--header a: its value has a line break"),
        (["--header", "a b: c"], "--header 'a b'"),
    ],
)
def test_what_cannot_be_sent_is_refused(
    flags: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(["run", "--url", "http://127.0.0.1:1", *flags]) == 2
    assert says in capsys.readouterr().err


def test_a_headers_value_is_not_told(capsys: pytest.CaptureFixture[str]) -> None:
    header = "authorization: Bearer secret\n"
    assert status_of(["run", "--url", "http://127.0.0.1:1", "--header", header + "x"]) == 2
    assert "secret" not in capsys.readouterr().err
    # Its name was forgotten.
    assert status_of(["run", "--url", "http://127.0.0.1:1", "--header", "Bearer secret"]) == 2
    said = capsys.readouterr().err
    assert "--header: write NAME:VALUE" in said
    assert "secret" not in said


def test_a_password_in_a_url_is_refused_and_not_told(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["run", "--url"], ["compare", "--replica"], ["calibrate", "--url"]):
        assert status_of([*command, "http://me:secret@127.0.0.1:1"]) == 2
        said = capsys.readouterr().err
        assert "--header authorization" in said
        assert "secret" not in said


def test_records_that_cannot_be_written_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["simulate", "--workload", "unique", "--requests", "3", "--policies", "round_robin"]
    assert main([*asked, "--records", "/dev/full"]) == 1
    said = capsys.readouterr()
    assert "--records /dev/full: No space left on device" in said.err
    assert "TTFT" in said.out


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--policies", "no_such"], "'no_such' is not known"),
        (["--policies", "round_robin,"], "--policies"),
        (["--replicas", "-2"], "--replicas"),
        (["--replica", "nonsense"], "'nonsense' is not a URL"),
        (["--replica", "http://x", "--router", "y=nonsense"], "'nonsense' is not a URL"),
        (["--replica", "http://x", "--router", "cache_aware=http://y"], "--router"),
    ],
)
def test_a_comparison_is_checked_before_it_starts(
    flags: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert status_of(["compare", *flags]) == 2
    assert says in capsys.readouterr().err


def test_a_trace_is_read_before_anything_is_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "trace"
    line = '{"timestamp": 0, "input_length": 5, "output_length": 1, "hash_ids": [1]}\n'
    later = line.replace('"timestamp": 0', '"timestamp": 3000')
    path.write_text(f"{line * 3}{later}nonsense\n")
    asked = ["run", "--url", "http://127.0.0.1:1", "--workload", f"mooncake:{path}"]
    assert main(asked) == 2
    assert f"{path} line 5" in capsys.readouterr().err
    # Nothing is read beyond the line behind the plan's end, whose time bounds the last one's.
    assert main([*asked, "--requests", "3"]) == 1
    assert "does not answer" in capsys.readouterr().err


def test_every_point_of_a_run_asks_with_other_prompts(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[Comparison] = []

    def seen(args: object, comparison: Comparison, *rest: object, **more: object) -> int:
        found.append(comparison)
        return 0

    monkeypatch.setattr("loadgen.cli.commands._live", seen)
    asked = ["--replica", "http://x", "--rate", "1,2,3", "--seed", "5"]
    assert main(["run", "--url", "http://x", *asked[2:]]) == 0
    assert main(["compare", *asked]) == 0
    run, compared = ([plan.seed for _, plan in each.plans] for each in found)
    assert run == [5, 6, 7]
    assert compared == [5, 5, 5]


def test_settings_are_what_was_asked_for(tmp_path: Path) -> None:
    out = tmp_path / "r"
    assert main([*SMALL, "--requests", "5", f"--json={out}"]) == 0
    settings = read_json(out).settings
    assert settings == {
        "policies": "round_robin",
        "preset": "32b-2xh100",
        "rate": "5",
        "repeats": "1",
        "replicas": "2",
        "requests": "5",
        "routers": "1",
        "seed": "0",
        "sync": "0",
        "workload": "chat",
    }


def test_what_cannot_be_written_costs_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("loadgen.cli.options.check_writable", lambda option, path: None)
    files = [f"--json={tmp_path}/no/folder", f"--csv={tmp_path}/csv"]
    assert main([*SMALL, "--requests", "5", *files]) == 1
    said, complained = capsys.readouterr()
    assert "round_robin" in said
    assert f"--json {tmp_path}/no/folder: No such file" in complained
    assert "round_robin" in (tmp_path / "csv").read_text()


def test_keys_are_sent_and_never_shown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[dict[str, str]] = []

    async def run(self: Comparing) -> None:
        seen.append(dict(self._comparison.client.headers))

    monkeypatch.setattr(Comparing, "run", run)
    out = tmp_path / "r.json"
    asked = ["run", "--url", "http://127.0.0.1:1", "--json", str(out)]
    main([*asked, "--api-key", "secret-1", "--api", "messages", "--header", "x-team: blue"])
    main([*asked, "--api-key", "secret-2", "--header", "Authorization: Basic mine"])
    monkeypatch.setenv("LOADGEN_API_KEY", "secret-3")
    main([*asked, "--seed", "1"])
    assert seen == [
        {"authorization": "Bearer secret-1", "x-api-key": "secret-1", "x-team": "blue"},
        {"Authorization": "Basic mine"},
        {"authorization": "Bearer secret-3"},
    ]
    main([*asked, "--api-key=secret-4"])
    assert "secret" not in out.read_text()
    assert "secret" not in "".join(capsys.readouterr())


def test_a_tokenizer_sizes_made_up_text(tmp_path: Path) -> None:
    tokenizers = pytest.importorskip("tokenizers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel({"x": 0}, unk_token="x"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    arguments = ["run", "--url", "http://127.0.0.1:1", "--tokenizer", str(tmp_path)]
    client = client_from(parser().parse_args(arguments))
    # Words of one to four syllables and a space.
    assert 5 < client.bytes_per_token < 8
    assert status_of([*SMALL, "--tokenizer", str(tmp_path)]) == 2
