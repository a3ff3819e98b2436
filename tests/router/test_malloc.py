"""Freed memory is kept: the same large buffer again and again costs no page faults."""

from __future__ import annotations

import platform
import subprocess
import sys

import pytest

PROGRAM = """
import resource
size = 400_000
from router.malloc import keep_freed_memory
assert keep_freed_memory()
for _ in range(20):
    [b"x" * size for _ in range(8)]
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(100):
    [b"x" * size for _ in range(8)]
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="glibc's own settings")
def test_large_buffers_are_not_faulted_in_anew() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    # Eight buffers of a hundred pages each, a hundred times.
    assert int(done.stdout) < 2_000
