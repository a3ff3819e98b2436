"""The commands of docs/operate/kubernetes.md: those that need no cluster are run, the rest are read."""

from __future__ import annotations

import argparse
import re
import subprocess
from itertools import pairwise
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml
from chart_world import ROOT, commands, merge, one, render, settings, validate

from loadgen.cli import commands as loadgen_commands
from router.config import TABLE, load

GUIDE = (ROOT / "docs" / "operate" / "kubernetes.md").read_text()


def starting_with(*words: str) -> list[list[str]]:
    return [each for each in commands(GUIDE) if each[: len(words)] == list(words)]


def test_the_page_has_the_commands() -> None:
    assert [each[0] for each in commands(GUIDE)][:3] == ["kind", "docker", "kind"]
    assert {each[0] for each in commands(GUIDE)} == {"kind", "docker", "helm", "kubectl"}


OURS = [each for each in starting_with("helm", "install") if "deploy/helm/warmroute" in each]


@pytest.mark.parametrize("command", OURS, ids=lambda each: " ".join(each[-1:]))
def test_each_install_renders(command: list[str], tmp_path: Path) -> None:
    assert (ROOT / command[3] / "Chart.yaml").exists()
    values: dict[str, Any] = {}
    for flag, text in pairwise(command):
        if flag == "--set":
            merge(values, helm_python.parse_set_string(text))
    items = render(values, command[2], "default")
    validate(items)
    file = tmp_path / "warmroute.yaml"
    file.write_text(settings(items))
    load(path=str(file))


def test_two_ways_to_install_are_shown() -> None:
    assert len(OURS) == 2


def test_the_image_is_the_one_that_the_chart_asks_for() -> None:
    (build,) = starting_with("docker", "build")
    image = build[build.index("-t") + 1]
    assert (ROOT / build[build.index("-f") + 1]).exists()
    (load_image,) = starting_with("kind", "load")
    items = render({"demo": {"enabled": True}})
    container = one(items, "Deployment")["spec"]["template"]["spec"]["containers"][0]
    (run,) = starting_with("kubectl", "run")
    assert load_image[-1] == container["image"] == image
    assert f"--image={image}" in run


def test_the_image_that_is_pushed_is_the_one_that_is_installed() -> None:
    (tag,) = starting_with("docker", "tag")
    (push,) = starting_with("docker", "push")
    (build,) = starting_with("docker", "build")
    assert tag[2] == build[build.index("-t") + 1]
    assert tag[3] == push[-1]
    repository, _, version = push[-1].rpartition(":")
    chart = yaml.safe_load((ROOT / "deploy/helm/warmroute/Chart.yaml").read_text())
    assert version == chart["appVersion"]
    assert any(f"image.repository={repository}" in each for each in OURS)


def test_the_load_command_is_one_that_loadgen_takes() -> None:
    (run,) = starting_with("kubectl", "run")
    command = run[run.index("--") + 1 :]
    assert command[0] == "warmroute-loadgen"
    parsed = loadgen_commands.parser().parse_args(command[1:])
    assert isinstance(parsed, argparse.Namespace)
    service = one(render({"demo": {"enabled": True}}), "Service")
    assert parsed.url == [f"http://{service['metadata']['name']}"]
    assert service["spec"]["ports"][0]["port"] == 80


def test_the_demos_arguments_are_ones_that_loadgen_takes() -> None:
    items = render({"demo": {"enabled": True}})
    spec = one(items, "StatefulSet", "warmroute-demo")["spec"]["template"]["spec"]
    (container,) = spec["containers"]
    parsed = loadgen_commands.parser().parse_args(container["args"])
    assert (parsed.count, parsed.host, parsed.port) == (1, "0.0.0.0", 8000)


def test_the_kustomize_folder_exists() -> None:
    (apply,) = starting_with("kubectl", "apply")
    assert (ROOT / apply[-1] / "kustomization.yaml").exists()


def test_settings_in_the_page_are_settings() -> None:
    """Names before a colon in code, such as `discovery_port: http`."""
    named = set(re.findall(r"`(discovery_\w+|replicas|settle_time|drain_timeout)\b", GUIDE))
    assert len(named) > 8
    assert named <= TABLE.keys()
    for name, text in re.findall(r"`(discovery_\w+): ([^`]+)`", GUIDE):
        value = yaml.safe_load(text)
        joined = ",".join(value) if isinstance(value, list) else str(value)
        TABLE[name].kind.parse(joined)


def test_files_the_page_names_exist() -> None:
    for link in re.findall(r"\]\(((?!http)[^)]+)\)", GUIDE):
        assert (ROOT / "docs" / "operate" / link).exists(), link
    for path in re.findall(r"`((?:deploy|dashboards)/[\w./-]+)`", GUIDE):
        assert (ROOT / path).exists(), path


def test_a_shell_reads_every_block() -> None:
    for block in re.findall(r"```sh\n(.+?)```", GUIDE, re.DOTALL):
        done = subprocess.run(["bash", "-n"], input=block, text=True, check=False)
        assert done.returncode == 0, block
