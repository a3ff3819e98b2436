"""The plain manifests: what the chart makes, and what kustomize builds of them."""

from __future__ import annotations

import copy
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from chart_world import ROOT, validate

sys.path.append(str(ROOT / "deploy" / "k8s"))
import make

KUSTOMIZE = os.environ.get("KUSTOMIZE") or shutil.which("kustomize")
TARGETS = {"base": make.BASE, **{f"overlays/{name}": v for name, v in make.OVERLAYS.items()}}


def test_files_are_as_the_chart_makes_them() -> None:
    made = make.files()
    there = {
        str(path.relative_to(make.HERE)): path.read_text()
        for folder in ("base", "overlays")
        for path in (make.HERE / folder).rglob("*")
        if path.is_file()
    }
    assert there == made, "run: python deploy/k8s/make.py"


def by_hand(folder: Path) -> list[dict[str, Any]]:
    """What kustomize makes of a folder, as far as these use it: resources, strategic patches of
    whole objects, and generated ConfigMaps without their hash."""
    kustomization = yaml.safe_load((folder / "kustomization.yaml").read_text())
    items: dict[Any, dict[str, Any]] = {}
    for name in kustomization["resources"]:
        path = folder / name
        found = by_hand(path) if path.is_dir() else list(yaml.safe_load_all(path.read_text()))
        items |= {make.key(item): item for item in found}
    for patch in kustomization.get("patches", []):
        item = yaml.safe_load((folder / patch["path"]).read_text())
        items[make.key(item)] = item
    for each in kustomization.get("configMapGenerator", []):
        (name,) = each["files"]
        before = items.get(("ConfigMap", each["name"]), {})
        merged = copy.deepcopy(before) or {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": {
                "name": each["name"],
                "namespace": kustomization["namespace"],
                "labels": each["options"]["labels"],
            },
            "data": {},
        }
        merged["data"][name] = (folder / name).read_text()
        items["ConfigMap", each["name"]] = merged
    return list(items.values())


def by_kustomize(folder: Path) -> list[dict[str, Any]]:
    """The real one's output, with generated names without their hash."""
    text = subprocess.run(
        [str(KUSTOMIZE), "build", str(folder)], capture_output=True, text=True, check=True
    ).stdout
    items = [item for item in yaml.safe_load_all(text) if item]
    (settings,) = [
        item for item in items if item["kind"] == "ConfigMap" and "warmroute.yaml" in item["data"]
    ]
    hashed = settings["metadata"]["name"]
    assert hashed.startswith("warmroute-")
    return list(yaml.safe_load_all(text.replace(hashed, "warmroute")))


def same(built: list[dict[str, Any]], target: str) -> None:
    """The same objects as Helm renders, comments in the settings aside."""
    wanted = {make.key(item): item for item in make.render(TARGETS[target])}
    got = {make.key(item): item for item in built}
    assert got.keys() == wanted.keys()
    for each, item in got.items():
        if make.is_settings(item):
            assert yaml.safe_load(item["data"]["warmroute.yaml"]) == yaml.safe_load(
                wanted[each]["data"]["warmroute.yaml"]
            )
        else:
            assert item == wanted[each], each


@pytest.mark.parametrize("target", TARGETS)
def test_plain_manifests_run_what_the_chart_runs(target: str) -> None:
    built = by_hand(make.HERE / target)
    validate(built)
    same(built, target)


@pytest.mark.skipif(
    KUSTOMIZE is None, reason="needs kustomize on the path, or its path in KUSTOMIZE"
)
@pytest.mark.parametrize("target", TARGETS)
def test_kustomize_builds_what_helm_renders(target: str) -> None:
    built = by_kustomize(make.HERE / target)
    validate(built)
    same(built, target)
