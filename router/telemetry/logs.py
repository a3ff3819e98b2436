"""The router's own log on standard error: JSON lines, or text for people at a terminal.

A thread writes it (`router.telemetry.lines`), since whoever reads standard error may stop.
"""

from __future__ import annotations

import logging
import os
import time
from typing import Final

import msgspec

from router.telemetry.lines import Lines

LEVELS: Final = {
    "debug": logging.DEBUG,
    "info": logging.INFO,
    "warning": logging.WARNING,
    "error": logging.ERROR,
}
_STANDARD_ERROR: Final = 2


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
            _encodable(record.getMessage()),
            _encodable(error),
        )
        return msgspec.json.encode(entry).decode()


class ForPeople(logging.Formatter):
    """Formats a record as time, level and message."""

    def format(self, record: logging.LogRecord) -> str:
        message = printable(record.getMessage())
        if not record.name.startswith("router"):
            message = f"{record.name}: {message}"
        level = "" if record.levelno == logging.INFO else f"{record.levelname.lower()}: "
        line = f"{clock(record.created)} {level}{message}"
        if record.exc_info:
            line += "\n" + self.formatException(record.exc_info)
        return line


def clock(at: float) -> str:
    """A Unix time as people at a terminal read it: the local time of day."""
    return time.strftime("%H:%M:%S", time.localtime(at))


def printable(text: str) -> str:
    """Text without what a terminal would act on: clients choose paths and names of models."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def for_people(form: str, fd: int) -> bool:
    """Whether a log of this `log_format` (auto, json or text) is text on this descriptor."""
    return form == "text" or (form == "auto" and os.isatty(fd))


def _encodable(text: str) -> str:
    return text if text.isascii() else text.encode("utf-8", "backslashreplace").decode()


class _Queued(logging.Handler):
    """Hands lines to the thread that writes them. Closed by logging's own shutdown at exit."""

    def __init__(self, fd: int) -> None:
        super().__init__()
        self.lines = Lines(fd, "log", at_once=True)
        self.lines.start()

    def emit(self, record: logging.LogRecord) -> None:
        if not self.lines.full():
            self.lines.add(self.format(record) + "\n")

    def close(self) -> None:
        self.lines.close()
        super().close()


def setup(level: str, form: str, fd: int = _STANDARD_ERROR) -> None:
    """Send the log of this process to a descriptor, from level on, in this `log_format`.

    Raises ValueError for a level that is not in `LEVELS`.
    """
    root = logging.getLogger()
    set_level(level)
    close()
    handler = _Queued(fd)
    handler.setFormatter(ForPeople() if for_people(form, fd) else JsonLines())
    root.handlers[:] = [handler]
    # A disk that is full must not end the router, nor write tracebacks to the same full disk.
    logging.raiseExceptions = False


def set_level(level: str) -> None:
    """Log from this level on.

    What libraries log is shown from warning on, unless level is debug: httpx would add a line for
    each health check. Raises ValueError for a level that is not in `LEVELS`.
    """
    if level not in LEVELS:
        raise ValueError(f"log level {level!r}: use one of {', '.join(LEVELS)}")
    least = LEVELS[level] if level == "debug" else max(LEVELS[level], logging.WARNING)
    logging.getLogger().setLevel(least)
    logging.getLogger("router").setLevel(LEVELS[level])


def close() -> None:
    """Write what waits, as far as somebody reads it, and log no more."""
    for handler in _handlers():
        logging.getLogger().removeHandler(handler)
        handler.close()


def dropped() -> int:
    """Lines of this process's own log given up."""
    return sum(handler.lines.dropped for handler in _handlers())


def _handlers() -> list[_Queued]:
    return [each for each in logging.getLogger().handlers if isinstance(each, _Queued)]
