"""The router's own log."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator

import pytest

from router.telemetry.logs import setup


@pytest.fixture(autouse=True)
def unchanged() -> Iterator[None]:
    """Leave logging as it was."""
    root, ours = logging.getLogger(), logging.getLogger("router")
    before = (root.handlers[:], root.level, ours.level, logging.raiseExceptions)
    yield
    root.handlers[:], root.level, ours.level, logging.raiseExceptions = before


def test_lines_are_json() -> None:
    stream = io.StringIO()
    setup("info", stream)
    logging.getLogger("router.fleet.fleet").info("replica %s: ready", "a\n1")
    try:
        raise ValueError("no")
    except ValueError:
        logging.getLogger("router.app").exception("failed")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert (first["level"], first["logger"]) == ("info", "router.fleet.fleet")
    assert first["message"] == "replica a\n1: ready"
    assert first["time"] > 1e9
    assert "ValueError: no" in second["error"]


def test_libraries_are_quiet_unless_debugging() -> None:
    stream = io.StringIO()
    setup("info", stream)
    logging.getLogger("httpx").info("HTTP Request: GET /health")
    logging.getLogger("router.x").debug("detail")
    assert stream.getvalue() == ""
    setup("debug", stream)
    logging.getLogger("httpx").info("HTTP Request: GET /health")
    logging.getLogger("router.x").debug("detail")
    assert len(stream.getvalue().splitlines()) == 2
    setup("error", stream)
    logging.getLogger("httpx").warning("odd")
    logging.getLogger("router.x").warning("odd")
    assert len(stream.getvalue().splitlines()) == 2


def test_an_unknown_level_is_refused() -> None:
    with pytest.raises(ValueError, match=r"'loud'.*debug, info, warning, error"):
        setup("loud")
