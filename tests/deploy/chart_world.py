"""The chart rendered by Helm's own engine, and checks of what comes out."""

from __future__ import annotations

import functools
import json
import re
import shlex
import warnings
from pathlib import Path
from typing import Any

import helm_python
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "deploy" / "helm" / "warmroute"
LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
KUBERNETES = "1.31"
"""Whose schemas are used."""
# Custom resources: Kubernetes' own schemas do not know them.
CUSTOM = {
    "ServiceMonitor",
    "PodMonitor",
    "PrometheusRule",
    "HTTPRoute",
    "ScaledObject",
    "InferencePool",
}

Object = dict[str, Any]
Values = dict[str, Any]

FOUND: Values = {"config": {"discovery_selector": "app=vllm"}}


def render(values: Values, name: str = "warmroute", namespace: str = "llm") -> list[Object]:
    """Every object, hooks included. Objects are new with each call, the texts are kept."""
    return [
        item
        for path, text in _rendered(json.dumps(values), name, namespace).items()
        if not path.endswith("NOTES.txt")
        for item in yaml.load_all(text, LOADER)
        if item
    ]


@functools.cache
def _rendered(values: str, name: str, namespace: str) -> dict[str, str]:
    given = json.loads(values)
    with helm_python.Chart.load(CHART) as chart:
        chart.validate_schema(given)
        return dict(chart.render(given, name=name, namespace=namespace))


def notes(values: Values) -> str:
    with helm_python.Chart.load(CHART) as chart:
        files = chart.render(values, name="warmroute", namespace="llm")
    return next(text for path, text in files.items() if path.endswith("NOTES.txt"))


def one(items: list[Object], kind: str, name: str = "warmroute") -> Object:
    (found,) = [item for item in items if item["kind"] == kind and item["metadata"]["name"] == name]
    return found


def settings(items: list[Object]) -> str:
    """The file the gateway reads."""
    text: str = one(items, "ConfigMap")["data"]["warmroute.yaml"]
    return text


def validate(items: list[Object]) -> None:
    """Against Kubernetes' schemas, strictly: unknown fields are errors."""
    for item in items:
        if item["kind"] not in CUSTOM:
            _validate(json.dumps(item))


@functools.cache  # most objects are the same for most values
def _validate(item: str) -> None:
    import kubernetes_validate

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kubernetes_validate.validate(json.loads(item), KUBERNETES, strict=True)


def pods(items: list[Object]) -> list[Object]:
    """The pod specs of all workloads."""
    found = []
    for item in items:
        if item["kind"] == "Pod":
            found.append(item["spec"])
        elif item["kind"] in ("Deployment", "StatefulSet"):
            found.append(item["spec"]["template"]["spec"])
    return found


def commands(page: str) -> list[list[str]]:
    """Every command of a page's blocks, lines joined."""
    found = []
    for block in re.findall(r"^ *```sh\n(.+?)```", page, re.DOTALL | re.MULTILINE):
        text = re.sub(r"\\\n\s*", " ", block)
        found += [shlex.split(line) for line in text.splitlines() if line.strip()]
    return found


def merge(into: Values, more: Values) -> None:
    for name, value in more.items():
        if isinstance(value, dict):
            merge(into.setdefault(name, {}), value)
        else:
            into[name] = value
