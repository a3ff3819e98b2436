"""The `warmroute` command, run as a process and in this one."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import msgspec
import pytest

from router import app
from router.cli import main as cli
from router.cli.flags import COMMON
from router.config import TABLE, Settings
from router.fleet.engines import NAMES
from router.policies import BUILT_IN

ROOT = Path(__file__).parents[3]
SECRET = "sk-very-secret"


def warmroute(
    *arguments: str, cwd: Path = ROOT, **environ: str
) -> subprocess.CompletedProcess[str]:
    clean = {name: text for name, text in os.environ.items() if not name.startswith("WARMROUTE_")}
    return subprocess.run(
        [sys.executable, "-m", "router.cli.main", *arguments],
        cwd=cwd,
        env=clean | {"PYTHONPATH": str(ROOT)} | environ,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=50,
    )


def test_check_of_good_settings_tells_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "warmroute.yaml"
    path.write_text(f"replicas: [http://a:8000]\nreplica_api_key: {SECRET}\nretries: 3\n")
    done = warmroute("check", f"--config={path}", "--no-stream-usage", WARMROUTE_HOST="0.0.0.0")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1:] == [
        f"  replicas = http://a:8000  (from {path}:1)",
        "  stream_usage = false  (from --stream-usage)",
        f"  replica_api_key = ***  (from {path}:2)",
        "  host = 0.0.0.0  (from WARMROUTE_HOST)",
        f"  retries = 3  (from {path}:3)",
    ]


def test_bad_settings_are_all_told_on_stderr(tmp_path: Path) -> None:
    for command in ("check", "serve"):
        done = warmroute(command, "--port=x", "--policy=no_such", WARMROUTE_RETRIES="99")
        assert done.returncode == 1
        assert done.stdout == ""
        assert done.stderr.startswith("warmroute: 4 problems in the settings\n")
        for part in ("(from --port)", "(from --policy)", "(from WARMROUTE_RETRIES)", "no replica"):
            assert part in done.stderr


def test_a_shadow_policy_that_is_not_there_is_told() -> None:
    for command in ("check", "serve"):
        done = warmroute(command, "--replica=http://a", "--shadow-policies=random,no_such")
        assert done.returncode == 1
        assert "(from --shadow-policies)" in done.stderr
        assert "policy 'no_such' is not known; use one of" in done.stderr


def test_an_own_policy_is_found_in_the_working_directory(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "class First:\n    def choose(self, ask, loads): ...\n    def members(self, names): ...\n"
    )
    flags = ("check", "--replica=http://a", "--policy=mine:First")
    assert warmroute(*flags, cwd=tmp_path, PYTHONSAFEPATH="1").returncode == 0
    assert warmroute(*flags, PYTHONSAFEPATH="1").returncode == 1


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["serve", "--retrys", "3"], "did you mean --retries?"),
        (["check", "--replica-api-key", SECRET], "set WARMROUTE_REPLICA_API_KEY"),
        (["check", f"--replica-api-key={SECRET}"], "set WARMROUTE_REPLICA_API_KEY"),
        (["check", "--replica-api-kee", SECRET], "did you mean --replica-api-key?"),
        (["check", f"--api={SECRET}"], "there is no flag --api"),
        (["serve", SECRET], "follows --replica"),
        (["serve", "--port"], "--port"),
        (["serve", "--ret", "3"], "there is no flag --ret"),
        (["sevre"], "sevre"),
        ([], ""),
    ],
)
def test_bad_usage_exits_with_2_and_shows_no_value(
    arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    try:
        status: object = cli.main(arguments)
    except SystemExit as left:
        status = left.code
    shown = capsys.readouterr()
    assert status == cli.USAGE
    assert said in shown.err
    assert SECRET not in shown.out + shown.err


def test_help_has_every_setting_with_its_default_and_variable(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit):
        cli.main(["serve", "--help-all"])
    shown = " ".join(capsys.readouterr().out.split())
    for row in TABLE.values():
        if not row.kind.secret:
            assert f"{row.flag} " in shown
            # argparse may break a line after a dash, and nowhere else within these.
            assert f"; {row.env})" in shown
    assert "--replica-api-key" not in shown


@pytest.mark.parametrize("flag", ["--help", "--help-all"])
@pytest.mark.parametrize("command", ["serve", "check", "doctor"])
def test_help_is_for_people(command: str, flag: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main([command, flag])
    text = capsys.readouterr().out
    shown = " ".join(text.split())
    for policy in BUILT_IN:
        assert policy in shown
    assert "off|kubernetes|dns|file" in shown
    assert "`" not in text
    assert "](" not in text
    settings = shown[shown.index("Common settings") :]
    places = [settings.index(f"{TABLE[name].flag} ") for name in COMMON]
    assert places == sorted(places)
    rest = [row for row in TABLE.values() if row.name not in COMMON and not row.kind.secret]
    told = [row for row in rest if f"; {row.env})" in shown]
    assert told == (rest if flag == "--help-all" else [])


def test_version() -> None:
    done = warmroute("--version")
    assert done.returncode == 0
    assert done.stdout.startswith("warmroute ")


def test_serve_runs_the_gateway_with_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[Settings] = []

    def run(settings: Settings, reread: Callable[[], Settings], *_: object, picker: bool) -> int:
        assert not picker
        ran.append(settings)
        monkeypatch.setenv("WARMROUTE_RETRIES", "3")
        ran.append(reread())
        return 7

    monkeypatch.setattr(app, "run", run)
    monkeypatch.setenv("WARMROUTE_RETRIES", "1")
    status = cli.main(["serve", "--replica", "http://a:1", "--replica", "http://b:1", "--port=0"])
    assert status == 7
    both = Settings(replicas=("http://a:1", "http://b:1"), port=0, retries=1)
    assert ran == [both, msgspec.structs.replace(both, retries=3)]


class Engine(BaseHTTPRequestHandler):
    """Paths under /x are one replica each; what is not here is answered 404."""

    models = json.dumps({"data": [{"id": "tiny"}]})
    answers: ClassVar = {
        "/good/health": (200, ""),
        "/good/v1/models": (200, models),
        "/sick/health": (503, ""),
        "/locked/health": (200, ""),
        "/locked/v1/models": (401, ""),
        "/odd/health": (200, ""),
        "/odd/v1/models": (200, "[]"),
        "/another/health": (200, ""),
        "/another/v1/models": (200, json.dumps({"data": [{"id": "l", "owned_by": "library"}]})),
    }

    def do_GET(self) -> None:
        status, body = self.answers.get(self.path, (404, ""))
        if status == 401 and self.headers["authorization"] == f"Bearer {SECRET}":
            status, body = 200, self.models
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def log_message(self, *_: object) -> None:
        """Keeps the test's output clean."""


@pytest.fixture
def engine() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Engine)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_check_connect_asks_every_replica(engine: str) -> None:
    names = ("good", "sick", "locked", "odd")
    flags = [f"--replica={engine}/{name}" for name in names]
    done = warmroute("check", "--connect", *flags, "--replica=http://127.0.0.1:1")
    assert done.returncode == 1
    assert f"{engine}/good: healthy, serves tiny" in done.stdout
    assert f"{engine}/sick: /health answers 503" in done.stderr
    assert f"{engine}/locked: /v1/models requires a key" in done.stderr
    odd = f"this is no server of {NAMES}: /v1/models does not answer with a list of models"
    assert f"{engine}/odd: {odd}" in done.stderr
    assert "http://127.0.0.1:1: /health cannot be reached" in done.stderr
    assert "4 of 5 replicas cannot be sent requests" in done.stderr
    assert warmroute("check", "--connect", f"--replica={engine}/good").returncode == 0


def test_check_connect_calls_another_server_so(engine: str) -> None:
    """Ollama and the like list models too, and a web server answers something everywhere."""
    for name, why in (
        ("another", "its models are none of theirs, nor are its metrics"),
        ("nothing", "/health answers 404"),
    ):
        done = warmroute("check", "--connect", f"--replica={engine}/{name}")
        assert done.returncode == 1
        assert f"{engine}/{name}: this is no server of {NAMES}: {why}" in done.stderr


def test_check_connect_uses_the_key(engine: str) -> None:
    flags = ("check", "--connect", f"--replica={engine}/locked")
    done = warmroute(*flags, WARMROUTE_REPLICA_API_KEY=SECRET)
    assert f"{engine}/locked: healthy, serves tiny" in done.stdout
    assert SECRET not in done.stdout + done.stderr
