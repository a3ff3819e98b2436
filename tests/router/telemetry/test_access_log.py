"""The access log: what is written, what never is, and what happens when nobody reads."""

from __future__ import annotations

import json
import logging
import os
import threading
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from router.telemetry import lines
from router.telemetry.access_log import AccessLog
from router.telemetry.record import Finished

SECRET = "sk-secret-session"


def finished(request_id: str = "r1", **more: object) -> Finished:
    base: dict[str, object] = {
        "api": "chat", "method": "POST", "path": "/v1/chat/completions", "model": "llama",
        "slot": 0, "replica": "a:1", "status": 200, "started": 1700000000.25, "duration": 1.5,
        "prompt_tokens": 100, "output_tokens": 20, "delivered": 64, "predicted": 80.0,
        "key": SECRET,
    }  # fmt: skip
    return Finished(request_id, **{**base, **more})  # type: ignore[arg-type]


Write = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Log some requests and give back the lines."""

    def run(*calls: tuple[Any, ...], share: float = 1.0, **settings: Any) -> list[dict[str, Any]]:
        path = tmp_path / "access.log"
        with path.open("wb") as file:
            log = AccessLog(share, fd=file.fileno(), **settings)
            log.start()
            for call in calls:
                log.add(*call)
            log.close()
            assert log.dropped == 0
        return [json.loads(line) for line in path.read_text().splitlines()]

    return run


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    for fd in (reader, writer):
        try:
            os.close(fd)
        except OSError:  # the test closed it
            assert fd == reader


def test_a_line_tells_of_one_request(write: Write) -> None:
    (line,) = write((finished(),))
    session = line.pop("session")
    assert line == {
        "time": 1700000000.25, "id": "r1", "api": "chat", "method": "POST",
        "path": "/v1/chat/completions", "status": 200, "outcome": "ok", "duration": 1.5,
        "model": "llama", "replica": "a:1", "prompt_tokens": 100, "output_tokens": 20,
        "predicted": 80, "delivered": 64,
    }  # fmt: skip
    assert len(session) == 16


def test_sessions_are_told_apart_and_not_told(write: Write) -> None:
    lines = write((finished(),), (finished(),), (finished(key="other"),), (finished(key="\ud800"),))
    sessions = [line["session"] for line in lines]
    assert sessions[0] == sessions[1]
    assert len(set(sessions)) == 3
    assert SECRET not in json.dumps(lines)
    again = write((finished(),))
    assert again[0]["session"] != sessions[0], "each process has its own secret"


def test_everything_waiting_is_written_at_close(write: Write) -> None:
    lines = write(*((finished(f"r{number}"),) for number in range(3000)))
    assert [line["id"] for line in lines] == [f"r{number}" for number in range(3000)]


def test_block_ids_are_there_only_when_asked_for(write: Write) -> None:
    chain, other = array("Q", [1, 2, 2**64 - 1]), array("Q", [1, 2, 3])
    assert "blocks" not in write((finished(), chain, 700))[0]
    first, second, third = write(
        (finished(), chain, 700), (finished(), other, 800), (finished(),), blocks=True
    )
    assert first["prompt_bytes"] == 700
    assert len(first["blocks"]) == 3
    assert first["blocks"][:2] == second["blocks"][:2], "a shared prefix shows"
    assert first["blocks"][2] != second["blocks"][2]
    assert all(0 <= block < 2**53 for block in first["blocks"])
    assert first["blocks"] != list(chain), "hashes of prompts are not given away"
    assert "blocks" not in third


def test_a_share_is_logged(write: Write) -> None:
    lines = write(*((finished(),) for _ in range(2000)), share=0.25)
    assert 300 < len(lines) < 700


def test_logging_can_be_off(capfd: pytest.CaptureFixture[str]) -> None:
    log = AccessLog(0.0)
    log.start()
    log.add(finished())
    log.close()
    assert log.dropped == 0
    assert capfd.readouterr().out == ""


def test_a_reader_that_does_not_read_costs_lines_not_time(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "CLOSE_TIMEOUT_S", 0.05)
    monkeypatch.setattr(lines, "WRITE_INTERVAL_S", 0.01)
    reader, writer = pipe
    log = AccessLog(1.0, fd=writer, most_waiting=500)
    log.start()
    for number in range(20_000):  # some 6 MB, and a pipe takes 64 KB
        log.add(finished(f"r{number}"))
    assert len(log._lines.waiting) <= 500
    log.close()
    assert not any(thread.name == "access-log" for thread in threading.enumerate())
    os.close(writer)
    with os.fdopen(reader, "rb") as rest:
        written = rest.read().count(b"\n")
    os.dup2(os.open(os.devnull, os.O_WRONLY), writer)  # for the fixture to close
    assert 0 < written < 500
    assert written + log.dropped == 20_000


def test_a_reader_that_is_gone_is_told_once(
    pipe: tuple[int, int], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "WRITE_INTERVAL_S", 0.01)
    reader, writer = pipe
    os.close(reader)
    log = AccessLog(1.0, fd=writer)
    log.start()
    with caplog.at_level(logging.ERROR):
        for _ in range(100):
            log.add(finished())
        log.close()
    assert log.dropped == 100
    assert len(caplog.records) == 1
    assert "cannot write the access log" in caplog.text


def test_a_pipe_that_does_not_block_works_too(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    os.set_blocking(writer, False)
    log = AccessLog(1.0, fd=writer)
    log.start()
    for number in range(2000):
        log.add(finished(f"r{number}"))
    got: list[bytes] = []

    def read() -> None:
        while chunk := os.read(reader, 65536):
            got.append(chunk)

    thread = threading.Thread(target=read)
    thread.start()
    log.close()
    os.close(writer)
    thread.join()
    os.dup2(os.open(os.devnull, os.O_WRONLY), writer)
    assert log.dropped == 0
    assert b"".join(got).count(b"\n") == 2000


def test_lines_for_people(tmp_path: Path) -> None:
    path = tmp_path / "access.log"
    with path.open("wb") as file:
        log = AccessLog(1.0, fd=file.fileno(), people=True)
        log.start()
        log.add(finished(path="/v1/\x1b[31m", model="m\u2028n"))
        log.add(Finished("r2", method="GET", path="/x", status=0, outcome="client_gone"))
        log.close()
    first, second = path.read_text().splitlines()
    told = " 200 POST /v1/\\x1b[31m m\\u2028n, 1.500 s, by a:1, 100 tokens in, 64 of them cached, 20 out"
    assert first[8:] == told
    assert second[8:] == " --- GET /x, client_gone, 0.000 s"


def test_long_lines_are_bounded_by_their_size(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "MAX_CHARACTERS", 100_000)
    log = AccessLog(1.0, fd=pipe[1])  # not started: nothing is taken
    for number in range(100):
        log.add(finished(path="/" + "x" * 10_000 + str(number)))
    assert len(log._lines.waiting) == 10
    assert log.dropped == 90


class Timers:
    """What an event loop was asked to call later."""

    def __init__(self) -> None:
        self.calls: list[Callable[[], None]] = []

    def later(self, delay: float, call: Callable[[], None]) -> None:
        assert 0 < delay < 1
        self.calls.append(call)


@pytest.fixture
def batched(pipe: tuple[int, int]) -> Iterator[tuple[AccessLog, Timers, Callable[[], list[str]]]]:
    """A log on an event loop, its timers, and what to call for the ids written by its end."""
    reader, writer = pipe
    log, timers = AccessLog(1.0, fd=writer), Timers()
    log.start(timers.later)

    def written() -> list[str]:
        log.close()
        return [json.loads(line)["id"] for line in os.read(reader, 1 << 16).splitlines()]

    yield log, timers, written
    log.close()


Batched = tuple[AccessLog, Timers, Callable[[], list[str]]]


def test_a_few_requests_wait_for_one_timer_together(batched: Batched) -> None:
    log, timers, written = batched
    for number in range(3):
        log.add(finished(str(number)))
    assert len(timers.calls) == 1
    timers.calls.pop()()
    log.add(finished("3"))
    assert len(timers.calls) == 1, "a timer that has run is set again"
    assert written() == ["0", "1", "2", "3"], "what still waits is written at the end"


def test_many_requests_wait_for_no_timer(batched: Batched, monkeypatch: pytest.MonkeyPatch) -> None:
    log, timers, _ = batched
    made: list[str] = []
    monkeypatch.setattr(log, "_line", lambda done, *_: made.append(done.request_id) or "\n")
    for number in range(100):
        log.add(finished(str(number)))
    assert made == [str(number) for number in range(96)]
    assert len(timers.calls) == 1


def test_a_line_that_cannot_be_made_costs_no_other(batched: Batched) -> None:
    log, timers, written = batched
    log.add(finished("0"))
    log.add(finished("1", started="never"))
    log.add(finished("2"))
    with pytest.raises(TypeError, match="float"):
        timers.calls.pop()()
    assert written() == ["0", "2"]


def test_a_wait_in_the_queue_is_told_and_no_wait_is_not(write: Write) -> None:
    waited, left, direct = write(
        (finished("a", queued=2.5, waited_at="door lane", priority=1),),
        (Finished("b", status=503, outcome="overloaded", queued=60.0, waited_at="door"),),
        (finished("c", priority=1),),
    )
    assert (waited["queued"], waited["waited_at"], waited["priority"]) == (2.5, "door lane", 1)
    assert (left["queued"], left["waited_at"]) == (60.0, "door")
    assert "priority" not in left
    assert not {"queued", "waited_at", "priority"} & direct.keys()
