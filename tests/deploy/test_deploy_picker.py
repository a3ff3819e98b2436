"""The chart as an endpoint picker: the pool, the route to it, and the command."""

from __future__ import annotations

import base64
from pathlib import Path

import yaml
from chart_world import Values, notes, one, render, settings

from router.config.checks import server_context

PICKER: Values = {
    "picker": {
        "enabled": True,
        "pool": {"matchLabels": {"app": "vllm"}, "targetPorts": [8000, 8001]},
        "route": {"parentRefs": [{"name": "gateway"}]},
    },
    "service": {"port": 9002},
}


def test_a_pool_whose_picker_is_the_service() -> None:
    items = render(PICKER)
    pool = one(items, "InferencePool")
    assert pool["apiVersion"] == "inference.networking.k8s.io/v1"
    assert pool["spec"] == {
        "selector": {"matchLabels": {"app": "vllm"}},
        "targetPorts": [{"number": 8000}, {"number": 8001}],
        "endpointPickerRef": {
            "name": "warmroute",
            "port": {"number": 9002},
            "failureMode": "FailOpen",
        },
    }
    (port,) = one(items, "Service")["spec"]["ports"]
    assert port["port"] == 9002
    args = one(items, "Deployment")["spec"]["template"]["spec"]["containers"][0]["args"]
    assert args[0] == "picker"
    config = yaml.safe_load(settings(items))
    assert (config["discovery"], config["discovery_pool"]) == ("kubernetes", "warmroute")
    assert not [item for item in items if item["kind"] == "Pod"]


def test_a_route_to_the_pool() -> None:
    (rule,) = one(render(PICKER), "HTTPRoute")["spec"]["rules"]
    (backend,) = rule["backendRefs"]
    assert (backend["kind"], backend["name"]) == ("InferencePool", "warmroute")


def test_it_serves_with_the_charts_certificate(tmp_path: Path) -> None:
    items = render(PICKER)
    secret = one(items, "Secret", "warmroute-picker")
    for name in ("tls.crt", "tls.key"):
        (tmp_path / name).write_bytes(base64.b64decode(secret["data"][name]))
    context = server_context(str(tmp_path / "tls.crt"), str(tmp_path / "tls.key"))
    assert context.cert_store_stats()["x509"] >= 0
    spec = one(items, "Deployment")["spec"]["template"]["spec"]
    (cert,) = [a for a in spec["containers"][0]["args"] if a.startswith("--tls-cert=")]
    mounts = {m["mountPath"]: m["name"] for m in spec["containers"][0]["volumeMounts"]}
    volumes = {v["name"]: v for v in spec["volumes"]}
    folder, _, file = cert.partition("=")[2].rpartition("/")
    assert file == "tls.crt"
    assert volumes[mounts[folder]]["secret"]["secretName"] == "warmroute-picker"


def test_without_tls_the_service_says_so() -> None:
    items = render({**PICKER, "picker": {**PICKER["picker"], "tls": False}})
    (port,) = one(items, "Service")["spec"]["ports"]
    assert port["appProtocol"] == "kubernetes.io/h2c"
    args = one(items, "Deployment")["spec"]["template"]["spec"]["containers"][0]["args"]
    assert not [arg for arg in args if "tls" in arg]
    assert not [item for item in items if item["kind"] == "Secret"]


def test_a_pool_that_exists() -> None:
    items = render({"picker": {"enabled": True, "pool": {"create": False, "name": "vllm"}}})
    assert not [item for item in items if item["kind"] in ("InferencePool", "HTTPRoute")]
    assert yaml.safe_load(settings(items))["discovery_pool"] == "vllm"


def test_simulated_replicas_are_a_pool_too() -> None:
    items = render({"picker": {"enabled": True}, "demo": {"enabled": True}})
    labels = one(items, "InferencePool")["spec"]["selector"]["matchLabels"]
    pod = one(items, "StatefulSet", "warmroute-demo")["spec"]["template"]["metadata"]["labels"]
    assert labels.items() <= pod.items()


def test_the_notes_lead_to_the_gateway() -> None:
    assert "get inferencepool warmroute" in notes(PICKER)
    assert "helm -n llm test" not in notes(PICKER)
