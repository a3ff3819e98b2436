"""Nothing outlives us."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loadgen.live.processes import ChildError, Children, free_ports, ready

PATIENCE_S = 90
"""With what a busy machine does; nothing waits for as long where things go well."""
LONG_ENOUGH = pytest.mark.timeout(4 * PATIENCE_S)
STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
code += "print('up', flush=True); time.sleep(600)"
own = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
own.stdout.readline()
open(sys.argv[1], "w").write(f"{os.getpid()} {own.pid}")
time.sleep(600)
"""


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def pids(path: Path) -> list[int]:
    """What a child wrote once it was up."""
    give_up = time.monotonic() + PATIENCE_S
    while time.monotonic() < give_up:
        found = path.read_text().split() if path.exists() else []
        if len(found) == 2:
            return [int(pid) for pid in found]
        time.sleep(0.02)
    raise AssertionError("the child did not come up")


def gone(found: list[int]) -> bool:
    give_up = time.monotonic() + PATIENCE_S
    while time.monotonic() < give_up:
        if not any(alive(pid) for pid in found):
            return True
        time.sleep(0.02)
    return False


@LONG_ENOUGH
def test_a_child_that_will_not_end_is_ended_with_its_own(tmp_path: Path) -> None:
    with Children() as children:
        child = children.start("x", [sys.executable, "-c", STUBBORN, str(tmp_path / "pids")])
        found = pids(tmp_path / "pids")
        assert child.pid == found[0]
        child.stop(patience=0.2)
        assert gone(found)


@LONG_ENOUGH
def test_an_error_ends_the_children() -> None:
    started = []

    def fail() -> None:
        with Children() as children:
            started.append(children.start("x", [sys.executable, "-c", "input()"]).pid)
            raise RuntimeError("on purpose")

    with pytest.raises(RuntimeError, match="on purpose"):
        fail()
    assert gone(started)


@LONG_ENOUGH
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells children")
def test_children_end_even_when_we_are_killed(tmp_path: Path) -> None:
    ours = f"""
import sys, time
from loadgen.live.processes import Children
with Children() as children:
    child = children.start("x", [sys.executable, "-c", "import time; time.sleep(600)"])
    open({str(tmp_path / "pids")!r}, "w").write(f"{{child.pid}} 0")
    time.sleep(600)
"""
    parent = subprocess.Popen([sys.executable, "-c", ours], cwd=Path(__file__).parents[3])
    child, _ = pids(tmp_path / "pids")
    assert alive(child)
    parent.kill()
    parent.wait()
    assert gone([child])


async def test_a_child_that_dies_says_what_it_said() -> None:
    port = free_ports(1)[0]
    with Children() as children:
        child = children.start(
            "the thing", [sys.executable, "-c", "print('no such setting'); raise SystemExit(3)"]
        )
        with pytest.raises(ChildError, match=r"(?s)the thing ended with status 3.*no such setting"):
            await ready(f"http://127.0.0.1:{port}/", [child])


async def test_a_child_that_never_answers_is_given_up() -> None:
    port = free_ports(1)[0]
    with Children() as children:
        child = children.start("slow", [sys.executable, "-c", "import time; time.sleep(600)"])
        with pytest.raises(ChildError, match=r"not ready after 0 s \(ConnectError\)"):
            await ready(f"http://127.0.0.1:{port}/", [child], seconds=0.1)


def test_free_ports_follow_each_other() -> None:
    ports = free_ports(20)
    assert ports == list(range(ports[0], ports[0] + 20))


def children_of(pid: int) -> list[int]:
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[1]) == pid:
                found.append(int(entry.name))
    return found


@LONG_ENOUGH
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_comparison_leaves_nothing(number: signal.Signals) -> None:
    command = [sys.executable, "-m", "loadgen.cli.main", "compare", "--policies", "round_robin"]
    command += ["--replicas", "2", "--rate", "5", "--duration", "600", "--workload", "unique"]
    ours = subprocess.Popen(
        command,
        cwd=Path(__file__).parents[3],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        give_up = time.monotonic() + PATIENCE_S
        found: list[int] = []
        while len(found) < 2 and time.monotonic() < give_up:
            found = children_of(ours.pid)
            time.sleep(0.05)
        assert len(found) == 2, "replicas and gateway should be running"
        os.kill(ours.pid, number)
        said = ours.communicate(timeout=PATIENCE_S)[0].decode()
        assert ours.returncode == 130, said
        assert "nothing is left running" in said
        assert gone(found)
    finally:
        if ours.poll() is None:
            os.killpg(ours.pid, signal.SIGKILL)
            ours.wait()
