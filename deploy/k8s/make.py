"""Plain manifests for kustomize, made from the chart, so that the two cannot part company.

    python deploy/k8s/make.py        writes base/ and overlays/

Each overlay holds only what the chart adds or changes for its values.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import helm_python
import yaml

HERE = Path(__file__).parent
CHART = HERE.parent / "helm" / "warmroute"
NAME, NAMESPACE = "warmroute", "default"
HEAD = "# Made by deploy/k8s/make.py from the chart.\n"

Values = dict[str, Any]
Object = dict[str, Any]

BASE: Values = {"config": {"discovery_selector": "app=vllm"}}
OVERLAYS: dict[str, Values] = {
    "monitoring": {
        **BASE,
        "metrics": {
            "serviceMonitor": {"enabled": True},
            "prometheusRule": {"enabled": True},
            "dashboards": {"enabled": True},
        },
    },
    "demo": {"demo": {"enabled": True}},
}


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        return True


def _text(dumper: yaml.SafeDumper, data: str) -> yaml.Node:
    style = "|" if "\n" in data else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", data, style=style)


_Dumper.add_representer(str, _text)


def render(values: Values) -> list[Object]:
    """The chart's objects without hooks, and without what only Helm cares for."""
    with helm_python.Chart.load(CHART) as chart:
        files = chart.render(values, name=NAME, namespace=NAMESPACE)
    found = []
    for path, text in files.items():
        if path.endswith("NOTES.txt") or "/tests/" in path:
            continue
        found += [plain(each) for each in yaml.safe_load_all(text) if each]
    return sorted(found, key=key)


def plain(item: Object) -> Object:
    """An object without Helm's own labels and the checksum that stands for a hashed name."""
    parts = [item["metadata"], item.get("spec", {}).get("template", {}).get("metadata", {})]
    for metadata in parts:
        labels = metadata.get("labels", {})
        for name in ("helm.sh/chart", "app.kubernetes.io/managed-by", "app.kubernetes.io/version"):
            labels.pop(name, None)
        notes = metadata.get("annotations", {})
        notes.pop("checksum/config", None)
        if not notes:
            metadata.pop("annotations", None)
    return item


def key(item: Object) -> tuple[str, str]:
    """What tells objects of one namespace apart."""
    return item["kind"], item["metadata"]["name"]


def is_settings(item: Object) -> bool:
    """The ConfigMap with warmroute.yaml, which kustomize generates."""
    return key(item) == ("ConfigMap", NAME)


def files() -> dict[str, str]:
    """Every file by its path below deploy/k8s."""
    base = {key(item): item for item in render(BASE)}
    made = _folder("base", list(base.values()), [], {"namespace": NAMESPACE})
    for overlay, values in OVERLAYS.items():
        items = render(values)
        added = [item for item in items if key(item) not in base]
        changed = [
            item
            for item in items
            if key(item) in base and item != base[key(item)] and not is_settings(item)
        ]
        settings = next(item for item in items if is_settings(item))
        same = settings == base[key(settings)]
        made |= _folder(
            f"overlays/{overlay}",
            added if same else [*added, settings],
            changed,
            {"namespace": NAMESPACE, "resources": ["../../base"]},
        )
    return made


def _folder(path: str, added: list[Object], changed: list[Object], start: Object) -> dict[str, str]:
    made = {}
    kustomization: Object = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        **start,
    }
    resources = list(kustomization.get("resources", []))
    for item in added:
        if is_settings(item):
            made[f"{path}/warmroute.yaml"] = HEAD + item["data"]["warmroute.yaml"]
            generator: Object = {"name": NAME, "files": ["warmroute.yaml"]}
            if path != "base":
                generator = {**generator, "behavior": "merge"}
            else:
                generator["options"] = {"labels": item["metadata"]["labels"]}
            kustomization["configMapGenerator"] = [generator]
            continue
        name = f"{item['kind'].lower()}-{item['metadata']['name']}.yaml"
        resources.append(name)
        made[f"{path}/{name}"] = HEAD + dump(item)
    if changed:
        kustomization["patches"] = []
    for item in changed:
        name = f"patch-{item['kind'].lower()}-{item['metadata']['name']}.yaml"
        kustomization["patches"].append({"path": name})
        made[f"{path}/{name}"] = HEAD + dump(item)
    kustomization["resources"] = resources
    made[f"{path}/kustomization.yaml"] = HEAD + dump(kustomization)
    return made


def dump(item: Object) -> str:
    """YAML with texts of several lines as blocks."""
    return yaml.dump(item, Dumper=_Dumper, sort_keys=False, width=1000)


def main() -> None:
    """Write them all, and take away what is not made any more."""
    for folder in ("base", "overlays"):
        shutil.rmtree(HERE / folder, ignore_errors=True)
    for path, text in files().items():
        target = HERE / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)


if __name__ == "__main__":
    main()
