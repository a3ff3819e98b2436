"""The values of docs/quickstart/kubernetes.md: they render, and are settings of the gateway."""

from __future__ import annotations

import re
import textwrap
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart_world import ROOT, commands, merge, one, render, settings, validate

from router.config import load

PAGE = (ROOT / "docs" / "quickstart" / "kubernetes.md").read_text("utf-8")
FILES: list[dict[str, Any]] = [
    yaml.safe_load(textwrap.dedent(text))
    for _, text in re.findall(r"^( *)```yaml\n(.*?)^\1```", PAGE, re.DOTALL | re.MULTILINE)
]
"""The smallest values, and what a Gateway adds to them."""


def test_there_are_the_smallest_values_and_those_for_a_gateway() -> None:
    assert [list(file) for file in FILES] == [["image", "config", "metrics"], ["httpRoute"]]


@pytest.mark.parametrize("count", [1, 2])
def test_the_values_render(count: int, tmp_path: Path) -> None:
    values: dict[str, Any] = {}
    for file in FILES[:count]:
        merge(values, file)
    (install,) = [each for each in commands(PAGE) if each[:2] == ["helm", "install"]]
    assert (ROOT / install[3] / "Chart.yaml").exists()
    items = render(values, install[2], install[install.index("--namespace") + 1])
    validate(items)
    text = tmp_path / "warmroute.yaml"
    text.write_text(settings(items))
    assert load(path=str(text)).settings.discovery_services == ("vllm",)
    pod = one(items, "Deployment")["spec"]
    assert pod["replicas"] == 2
    (push,) = [each for each in commands(PAGE) if each[:2] == ["docker", "push"]]
    (container,) = pod["template"]["spec"]["containers"]
    assert container["image"] == push[-1]
    kinds = {item["kind"] for item in items}
    assert {"ServiceMonitor", "PrometheusRule"} <= kinds
    assert ("HTTPRoute" in kinds) == (count == 2)


def test_what_it_forwards_and_where_clients_go_exist() -> None:
    items = render(FILES[0], "warmroute", "llm")
    (container,) = one(items, "Deployment")["spec"]["template"]["spec"]["containers"]
    assert {"name": "admin", "containerPort": 9090}.items() <= next(
        port for port in container["ports"] if port["name"] == "admin"
    ).items()
    assert one(items, "Service")["spec"]["ports"][0]["port"] == 80


def test_without_a_service_the_label_alone_is_enough() -> None:
    (setting,) = re.findall(r"write `(discovery_selector: [^`]+)`", PAGE)
    values = {**FILES[0], "config": yaml.safe_load(setting)}
    assert one(render(values, "warmroute", "llm"), "Role")["rules"][0]["resources"] == ["pods"]
