"""Runs every benchmark, prints its table and writes what it measured to out/bench.json.

python -m bench                   # all, in about five minutes
python -m bench proxy memory      # some
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple


class Suite(NamedTuple):
    """A module of this package, with its command-line arguments."""

    arguments: tuple[str, ...] = ()
    tells_json: bool = False
    named_only: bool = False
    """It installs what others have published: it does not run unasked."""


SUITES = {
    "proxy": Suite(tells_json=True),
    "peers": Suite(tells_json=True, named_only=True),
    "tenants": Suite(tells_json=True),
    "picker": Suite(tells_json=True),
    "legs": Suite(tells_json=True),
    "memory": Suite(tells_json=True),
    "state": Suite(tells_json=True),
    "index": Suite(tells_json=True),
    "policies": Suite(tells_json=True),
    "prompt": Suite(),
    "shapes": Suite(),
    "telemetry": Suite(),
    "replicas": Suite(("engine",)),
    "loadgen": Suite(),
    "exact": Suite(),
    "thousand": Suite(tells_json=True),
}


def main() -> int:
    """Each suite runs in a process of its own, so that none warms or fills another's memory."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument(
        "suite",
        nargs="*",
        choices=[[], *SUITES],
        metavar="SUITE",
        help=f"of {', '.join(SUITES)}; all but peers when none is named",
    )
    parser.add_argument("--json", default="out/bench.json")
    args = parser.parse_args()
    results: dict[str, object] = {
        "machine": {
            "cpus": os.cpu_count(),
            "python": platform.python_version(),
            "load_before": os.getloadavg()[0],
        }
    }
    failed = []
    for name in args.suite or [name for name, suite in SUITES.items() if not suite.named_only]:
        print(f"\n== {name}", flush=True)
        suite = SUITES[name]
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "result.json"
            told = ("--json", str(path)) if suite.tells_json else ()
            command = [sys.executable, "-m", f"bench.{name}", *suite.arguments, *told]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
                assert child.stdout is not None
                lines = []
                for line in child.stdout:
                    print(line, end="", flush=True)
                    lines.append(line.rstrip())
            results[name] = json.loads(path.read_text()) if path.exists() else lines
        if child.returncode:
            failed.append(name)
    target = Path(args.json)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(json.dumps(results, indent=1))
    print(f"\nwritten to {target}")
    if failed:
        print(f"failed: {', '.join(failed)}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
