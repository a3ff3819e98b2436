"""The router's own log."""

from __future__ import annotations

import json
import logging
import os
import pty
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from router.telemetry import lines, logs
from router.telemetry.logs import setup


@pytest.fixture(autouse=True)
def unchanged() -> Iterator[None]:
    """Leave logging as it was."""
    root, ours = logging.getLogger(), logging.getLogger("router")
    before = (root.handlers[:], root.level, ours.level, logging.raiseExceptions)
    yield
    logs.close()
    root.handlers[:], root.level, ours.level, logging.raiseExceptions = before


Logged = Callable[[str, str], Callable[[], list[str]]]


@pytest.fixture
def logged(tmp_path: Path) -> Iterator[Logged]:
    """Log into a file; the result closes the log and gives its lines."""
    with (tmp_path / "log").open("w+") as file:

        def begin(level: str, form: str = "json") -> Callable[[], list[str]]:
            file.truncate(0)
            file.seek(0)
            setup(level, form, file.fileno())

            def end() -> list[str]:
                logs.close()
                return (tmp_path / "log").read_text().strip("\0").split("\n")[:-1]

            return end

        yield begin


def test_lines_are_json(logged: Logged) -> None:
    end = logged("info", "auto")
    logging.getLogger("router.fleet.fleet").info("replica %s: ready", "a\n1\ud800")
    try:
        raise ValueError("no")
    except ValueError:
        logging.getLogger("router.app").exception("failed")
    first, second = map(json.loads, end())
    assert (first["level"], first["logger"]) == ("info", "router.fleet.fleet")
    assert first["message"] == "replica a\n1\\ud800: ready"
    assert first["time"] > 1e9
    assert "ValueError: no" in second["error"]


def test_text_for_people(logged: Logged) -> None:
    end = logged("info", "text")
    logging.getLogger("router.fleet.fleet").info("replica %s: ready", "a\n\x1b[31m")
    logging.getLogger("other").warning("odd")
    try:
        raise ValueError("no")
    except ValueError:
        logging.getLogger("router.app").exception("failed")
    first, second, third, *trace = end()
    at = time.strptime(first[:8], "%H:%M:%S")
    assert at
    assert first[8:] == r" replica a\n\x1b[31m: ready"
    assert second[8:] == " warning: other: odd"
    assert third[8:] == " error: failed"
    assert trace[-1] == "ValueError: no"


def test_auto_is_text_at_a_terminal() -> None:
    ours, theirs = pty.openpty()
    try:
        setup("info", "auto", theirs)
        logging.getLogger("router.app").info("hello")
        assert os.read(ours, 1000)[8:] == b" hello\r\n"
        setup("info", "json", theirs)
        logging.getLogger("router.app").info("hello")
        assert json.loads(os.read(ours, 1000))["message"] == "hello"
    finally:
        logs.close()
        os.close(ours)
        os.close(theirs)


def test_libraries_are_quiet_unless_debugging(logged: Logged) -> None:
    end = logged("info", "json")
    logging.getLogger("httpx").info("HTTP Request: GET /health")
    logging.getLogger("router.x").debug("detail")
    assert end() == []
    end = logged("debug", "json")
    logging.getLogger("httpx").info("HTTP Request: GET /health")
    logging.getLogger("router.x").debug("detail")
    assert len(end()) == 2
    end = logged("error", "json")
    logging.getLogger("httpx").warning("odd")
    logging.getLogger("router.x").warning("odd")
    assert end() == []


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'loud'.*debug, info, warning, error"):
        setup("loud", "auto")


def test_a_reader_that_does_not_read_costs_lines_not_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lines, "CLOSE_TIMEOUT_S", 0.05)
    monkeypatch.setattr(lines, "WRITE_INTERVAL_S", 0.01)
    reader, writer = os.pipe()
    before = set(threading.enumerate())
    setup("info", "json", writer)
    told = logging.getLogger("router.app")
    [writing] = set(threading.enumerate()) - before
    for number in range(lines.MAX_LINES + 5000):  # a pipe takes some 600
        told.info("line %d", number)
    dropped = logs.dropped()
    assert dropped > 0
    [handler] = logging.getLogger().handlers
    logs.close()
    writing.join(10)
    assert not writing.is_alive()
    os.close(writer)
    with os.fdopen(reader, "rb") as rest:
        written = rest.read().count(b"\n")
    assert isinstance(handler, logs._Queued)
    assert written + handler.lines.dropped == lines.MAX_LINES + 5000
