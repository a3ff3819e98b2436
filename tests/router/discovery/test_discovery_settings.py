"""What the settings of discovery refuse, and in which words."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from router.config import ConfigError, load

SERVICES = {"discovery": "kubernetes", "discovery_services": "vllm"}
PODS = {"discovery": "kubernetes", "discovery_selector": "app=vllm"}
POOL = {"discovery": "kubernetes", "discovery_pool": "vllm"}


def problems(flags: dict[str, str]) -> str:
    with pytest.raises(ConfigError) as caught:
        load(flags)
    return "\n".join(str(problem) for problem in caught.value.problems)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"discovery": "kubernetes"}, "it is unknown which pods are the replicas"),
        ({**SERVICES, "discovery_selector": "a=b"}, "more than one is set"),
        ({**SERVICES, "discovery_services": "*"}, "* is not the name of a Service"),
        ({**SERVICES, "discovery_port": "annotation:x/y"}, "endpoints of Services have none"),
        ({**SERVICES, "discovery_model": "annotation:x/y"}, "or a label of the Service"),
        ({**PODS, "discovery_namespaces": "*,a"}, "both * and names are given"),
        ({**PODS, "discovery_pool": "vllm"}, "more than one is set"),
        ({**POOL, "discovery_port": "8000"}, "the InferencePool names its ports"),
        ({**POOL, "discovery_namespaces": "*"}, "an InferencePool is in one namespace"),
        ({"discovery": "dns"}, "no name to look up is set"),
        ({"discovery": "file"}, "no file is set"),
        ({"discovery_services": "vllm", "replicas": "http://a"}, "set discovery to kubernetes"),
        ({**PODS, "discovery_dns": "http://a"}, "set discovery to dns"),
        ({**PODS, "discovery_model": "version"}, "label:KEY or annotation:KEY"),
        ({**PODS, "discovery_port": "annotation:"}, "a port's number, its name"),
    ],
)
def test_what_does_not_fit_is_told(flags: dict[str, str], said: str) -> None:
    assert said in problems(flags)


@pytest.mark.parametrize(
    "flags",
    [
        SERVICES,
        {**SERVICES, "discovery_model": "label:model", "discovery_port": "http"},
        {**POOL, "discovery_namespaces": "llm"},
        {**PODS, "discovery_port": "annotation:warmroute/port", "replicas": "http://a"},
        {"discovery": "dns", "discovery_dns": "http://vllm.llm.svc:8000/x"},
    ],
)
def test_what_fits_is_taken(flags: dict[str, str]) -> None:
    load(flags)


def test_lists_in_the_file(tmp_path: Path) -> None:
    file = tmp_path / "warmroute.yaml"
    file.write_text(
        "discovery: kubernetes\ndiscovery_services: [a, b]\ndiscovery_namespaces:\n- x\n- y\n"
    )
    settings = load(path=str(file)).settings
    assert settings.discovery_services == ("a", "b")
    assert settings.discovery_namespaces == ("x", "y")


def test_the_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    assert "pip install '.[kubernetes]'" in problems(SERVICES)


def test_clients_are_imported_by_those_who_use_them_only() -> None:
    code = (
        "import router.app, router.discovery, sys; "
        "sys.exit('kubernetes' in sys.modules or 'redis' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
