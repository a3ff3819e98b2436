"""The router's own log: JSON lines on standard error."""

from __future__ import annotations

import logging
import sys
from typing import Final, TextIO

import msgspec

LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}


class Entry(msgspec.Struct, gc=False, omit_defaults=True):
    """A line of the log."""

    time: float
    level: str
    logger: str
    message: str
    error: str = ""
    """The traceback, when there is one."""


class JsonLines(logging.Formatter):
    """Formats a record as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        error = self.formatException(record.exc_info) if record.exc_info else ""
        entry = Entry(
            round(record.created, 3),
            record.levelname.lower(),
            record.name,
            record.getMessage(),
            error,
        )
        return msgspec.json.encode(entry).decode()


def setup(level: str = "info", stream: TextIO | None = None) -> None:
    """Send the log of this process to stream (standard error by default), from level on.

    What libraries log is shown from warning on, unless level is debug: httpx would add a line for
    each health check. Raises ValueError for a level that is not in `LEVELS`.
    """
    if level not in LEVELS:
        raise ValueError(f"log level {level!r}: use one of {', '.join(LEVELS)}")
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(LEVELS[level] if level == "debug" else max(LEVELS[level], logging.WARNING))
    logging.getLogger("router").setLevel(LEVELS[level])
    # A disk that is full must not end the router, nor write tracebacks to the same full disk.
    logging.raiseExceptions = False
