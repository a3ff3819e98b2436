"""`warmroute audit`: what in the traffic costs cached tokens, asked of a router's admin port."""

from __future__ import annotations

import argparse
import sys
from typing import Any, Final

import httpx
import msgspec

from router.audit.report import Audit
from router.audit.show import as_html, as_text
from router.cli.flags import add_few, load_few
from router.config.units import parse_duration

OK, FAILED = 0, 1
TIMEOUT_S: Final = 30.0
_SETTINGS: Final = ("admin_host", "admin_port")
_EVERYWHERE: Final = {"0.0.0.0": "127.0.0.1", "::": "::1"}  # noqa: S104


def add(commands: Any) -> None:
    """Add the command. commands: what argparse's add_subparsers returned."""
    audit = commands.add_parser(
        "audit",
        help="what in the traffic costs cached tokens, and what mends it",
        usage="%(prog)s [--since 1h] [--json | --html] [--admin-host HOST] [--admin-port PORT] "
        "[--config FILE]",
        description="Ask a running router what its requests computed again, why, and what mends "
        "it. Its admin key is read from the environment or the file.",
    )
    audit.add_argument(
        "--since", metavar="DURATION", default="1h", help="how far back: 15m, 1h, 24h at most"
    )
    form = audit.add_mutually_exclusive_group()
    form.add_argument("--json", action="store_true", help="for programs")
    form.add_argument("--html", action="store_true", help="one page for a browser")
    add_few(audit, _SETTINGS)


def run(parsed: argparse.Namespace) -> int:
    """Returns the exit status. Raises ConfigError for settings that are wrong."""
    settings = load_few(parsed, _SETTINGS)
    try:
        parse_duration(parsed.since)
    except ValueError as error:
        return _fail(f"--since {parsed.since!r}: {error}; write it like 15m or 1h")
    host = _EVERYWHERE.get(settings.admin_host, settings.admin_host)
    where = f"http://{f'[{host}]' if ':' in host else host}:{settings.admin_port}"
    key = str(settings.admin_key)
    headers = {"authorization": f"Bearer {key}"} if key else {}
    try:
        answer = httpx.get(
            f"{where}/audit",
            params={"since": parsed.since},
            headers=headers,
            timeout=TIMEOUT_S,
            trust_env=False,
        )
    except httpx.HTTPError as error:
        return _fail(f"{where}: {error}: is a router running there? (--admin-host, --admin-port)")
    if answer.status_code != httpx.codes.OK:
        return _fail(f"{where}: {answer.status_code} {answer.text}")
    if parsed.json:
        print(answer.text)
        return OK
    audit = msgspec.json.decode(answer.content, type=Audit)
    print(as_html(audit) if parsed.html else as_text(audit), end="")
    return OK


def _fail(why: str) -> int:
    print(f"warmroute: {why}", file=sys.stderr)
    return FAILED
