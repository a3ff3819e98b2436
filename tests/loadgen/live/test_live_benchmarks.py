"""Other people's load generators against the gateway, where they are installed.

``make benchmarks`` installs them into environments of their own. CLIENT_AIPERF and CLIENT_GUIDELLM
name the programs where they lie elsewhere.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from loadgen.live.compare import start_replicas
from loadgen.live.gateway import start_gateway
from loadgen.live.processes import Children, run_async

ROOT = Path(__file__).parents[3]
REQUESTS, OUTPUT = 12, 6


def program(name: str) -> str:
    """Where it is installed; the test is skipped where it is not."""
    named = os.environ.get(f"CLIENT_{name.upper()}")
    own = ROOT / f".venv-{name}" / "bin" / name
    found = named or (str(own) if own.exists() else shutil.which(name))
    if not found:
        pytest.skip(
            f"{name} is not installed: make benchmarks, or name it in CLIENT_{name.upper()}"
        )
    return found


@pytest.fixture
def aiperf() -> str:
    return program("aiperf")


@pytest.fixture
def guidellm() -> str:
    return program("guidellm")


@pytest.fixture
def url() -> Iterator[str]:
    """A gateway before two simulated replicas."""
    with Children() as children:
        replicas = run_async(start_replicas(children, 2, ["--preset", "quick"]))
        yield run_async(start_gateway(children, replicas, "cache_aware")).url


@pytest.fixture
def tokenizer(tmp_path: Path) -> Path:
    """A byte-level tokenizer as transformers loads it, so that nothing is fetched."""
    tokenizers = pytest.importorskip("tokenizers")
    model = tokenizers.Tokenizer(tokenizers.models.BPE())
    model.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    model.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<s>"], initial_alphabet=alphabet
    )
    model.train_from_iterator(["the quick brown fox"], trainer)
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    model.save(str(folder / "tokenizer.json"))
    told = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "<s>"}
    (folder / "tokenizer_config.json").write_text(json.dumps(told))
    return folder


def play(command: list[str], folder: Path, result: str) -> Any:
    """Run it to its end; what it wrote."""
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=240, check=False
    )
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    return json.loads((folder / result).read_text())


@pytest.mark.timeout(300)
def test_aiperf(aiperf: str, url: str, tokenizer: Path, tmp_path: Path) -> None:
    command = [aiperf, "profile", "--url", url, "--model", "sim"]
    command += ["--endpoint-type", "chat", "--streaming", "--tokenizer", str(tokenizer)]
    command += ["--isl", "200", "--osl", str(OUTPUT), "--extra-inputs", "ignore_eos:true"]
    command += ["--request-count", str(REQUESTS), "--concurrency", "3", "--ui", "none"]
    command += ["--num-dataset-entries", "4", "--artifact-dir", str(tmp_path)]
    found = play(command, tmp_path, "profile_export_aiperf.json")
    assert found["request_count"]["avg"] == REQUESTS
    assert not found.get("error_request_count")
    assert found["total_usage_completion_tokens"]["avg"] == REQUESTS * OUTPUT
    # Of four prompts the later requests are repeats: usage came through with what was cached.
    assert found["total_usage_prompt_cache_read_tokens"]["avg"] > 0


@pytest.mark.timeout(300)
def test_guidellm(guidellm: str, url: str, tokenizer: Path, tmp_path: Path) -> None:
    command = [guidellm, "run", "--disable-progress"]
    command += ["--backend", f"kind=openai_http,target={url},model=sim"]
    command += ["--profile", "kind=concurrent,streams=3"]
    command += ["--constraint", f"kind=max_requests,count={REQUESTS}"]
    command += ["--data", f"kind=synthetic_text,prompt_tokens=200,output_tokens={OUTPUT}"]
    command += ["--tokenizer", f"kind=hf_auto,model={tokenizer}"]
    command += ["--output", "kind=json,path=out.json"]
    (found,) = play(command, tmp_path, "out.json")["benchmarks"]
    totals = found["metrics"]["request_totals"]
    assert (totals["successful"], totals["errored"]) == (REQUESTS, 0)
