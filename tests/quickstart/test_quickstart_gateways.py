"""The quick starts of other gateways, of several routers and of the README do what they say."""

from __future__ import annotations

import os
import re
import shutil
import sys
from pathlib import Path

import pytest
from quickstart_world import BLOCK, MARKS, ROOT, Shell, blocks, cached

from bench.envoy import NoEnvoyError, program

pytestmark = MARKS


def test_behind_envoy(shell: Shell, tmp_path: Path) -> None:
    try:
        program()
    except NoEnvoyError as error:
        pytest.skip(f"no Envoy: {error}")
    config = tmp_path / "deploy/envoy/picker.yaml"
    config.parent.mkdir(parents=True)
    config.write_text(shell.with_ports((ROOT / "deploy/envoy/picker.yaml").read_text("utf-8")))
    script = f"export PYTHONPATH={ROOT}\n" + blocks("gateway-api.md")
    said = shell.run(script)
    assert cached(said) == [0, 976]
    assert len(re.findall(r"^server: envoy", said, re.MULTILINE)) == 2
    assert len(re.findall(r"^x-warmroute-replica: 127\.0\.0\.1:\d+", said, re.MULTILINE)) == 2
    assert 'warmroute_picker_served_total{endpoint="first"} 2' in said


def test_several_routers(shell: Shell) -> None:
    if (
        shutil.which("redis-server", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
        is None
    ):
        pytest.skip("no redis-server")
    said = shell.run(blocks("routers.md"))
    assert cached(said) == [0, 976]
    assert re.search(r'"why":"cache_aware chose 127\.0\.0\.1:\d+ \(cached\)', said)
    assert re.search(r"^router .*\n(.* alive .*\n){2}", said, re.MULTILINE)


def test_the_request_of_the_readme(shell: Shell) -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    (script,) = [block[2] for block in BLOCK.finditer(text) if "loadgen replicas" in block[2]]
    (client,) = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    said = shell.run(f"{script}\necho; echo ' the client:'; python - <<'END'\n{client}END\n")
    assert cached(said) == [0]
    answer = re.search(r'"content":"(.+?)"', said)
    assert answer is not None
    # The gateway's log goes to the same file, a line of it maybe between two words.
    shown = re.sub(r'\{"time":[^\n]*\n', "", said.partition(" the client:")[2])
    assert answer[1].strip() in shown
