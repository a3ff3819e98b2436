"""What operators set on the chart's pods and workloads, and where it arrives."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from chart_world import CHART, FOUND, Object, Values, one, pods, render, settings, validate


def given(name: str) -> Values:
    """The values of ci/NAME-values.yaml."""
    values: Values = yaml.safe_load((CHART / "ci" / f"{name}-values.yaml").read_text())
    return values


OPERATED = given("operated")


def deployment(items: list[Object]) -> Any:
    return one(items, "Deployment")["spec"]


def test_two_routers_share_a_redis_unless_told_otherwise() -> None:
    items = render(FOUND)
    assert deployment(items)["replicas"] == 2
    one(items, "StatefulSet", "warmroute-redis")
    assert "state: redis://warmroute-redis:6379" in settings(items)
    for values in (
        {"redis": {"mode": "none"}},
        {"redis": {"mode": "external", "url": "redis://mine:6379"}},
        {"config": {**FOUND["config"], "state": "redis://mine:6379"}},
    ):
        items = render({**FOUND, **values})
        assert not [item for item in items if item["kind"] == "StatefulSet"]
        assert "warmroute-redis" not in settings(items)


def test_no_user_is_fixed_but_that_of_redis() -> None:
    items = render({"demo": {"enabled": True}})
    users = [spec["securityContext"].get("runAsUser") for spec in pods(items)]
    assert sorted(users, key=str) == [10001, None, None, None]
    freed = render({**FOUND, "redis": {"podSecurityContext": {"runAsUser": None}}})
    assert not [spec for spec in pods(freed) if "runAsUser" in spec["securityContext"]]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("minReadySeconds", 5),
        ("revisionHistoryLimit", 3),
        ("strategy", {"type": "Recreate"}),
    ],
)
def test_the_deployment_has_what_is_set(name: str, value: Any) -> None:
    assert deployment(render(OPERATED))[name] == value


POD = {
    "terminationGracePeriodSeconds": 30,
    "priorityClassName": "high",
    "runtimeClassName": "gvisor",
    "schedulerName": "own",
    "hostAliases": [{"ip": "10.0.0.1", "hostnames": ["vllm.example.com"]}],
    "dnsPolicy": "None",
    "dnsConfig": {"nameservers": ["10.0.0.53"]},
    "securityContext": {
        "fsGroup": 2000,
        "runAsNonRoot": True,
        "seccompProfile": {"type": "RuntimeDefault"},
    },
    "initContainers": [
        {
            "name": "wait",
            "image": "registry.example.com/team/warmroute:0.1.0",
            "command": ["true"],
        }
    ],
}


@pytest.mark.parametrize("name", POD)
def test_the_pod_has_what_is_set(name: str) -> None:
    assert deployment(render(OPERATED))["template"]["spec"][name] == POD[name]


def test_the_container_has_what_is_set() -> None:
    router, more = deployment(render(OPERATED))["template"]["spec"]["containers"]
    assert more["name"] == "logs"
    assert router["startupProbe"] == {
        "httpGet": {"path": "/healthz", "port": "admin"},
        "periodSeconds": 1,
        "failureThreshold": 120,
    }
    assert router["readinessProbe"]["tcpSocket"] == {"port": "http"}
    assert "httpGet" not in router["readinessProbe"]
    assert "livenessProbe" not in router
    assert router["lifecycle"] == {"preStop": {"exec": {"command": ["sleep", "1"]}}}
    assert router["securityContext"]["runAsUser"] == 2000
    assert router["securityContext"]["readOnlyRootFilesystem"] is True


def test_probes_ask_the_admin_port() -> None:
    (router,) = deployment(render(FOUND))["template"]["spec"]["containers"]
    for probe, path in (
        ("startupProbe", "/healthz"),
        ("readinessProbe", "/readyz"),
        ("livenessProbe", "/healthz"),
    ):
        assert router[probe]["httpGet"] == {"path": path, "port": "admin"}


def test_labels_and_annotations_are_on_everything() -> None:
    values = {**OPERATED, "demo": {"enabled": True}, "networkPolicy": {"enabled": True}}
    items = render(values)
    ours = [item for item in items if not item["metadata"]["name"].endswith(("-extra", "-text"))]
    for item in ours:
        assert item["metadata"]["labels"]["team"] == "llm", item["metadata"]["name"]
        assert item["metadata"]["annotations"]["example.com/owner"] == "llm"
        if "template" in item.get("spec", {}):
            assert item["spec"]["template"]["metadata"]["labels"]["team"] == "llm"
            assert "team" not in item["spec"]["selector"]["matchLabels"]


def test_no_label_of_a_user_breaks_a_selector() -> None:
    wrong = {"app.kubernetes.io/name": "x", "app.kubernetes.io/component": "x"}
    items = render({**FOUND, "commonLabels": wrong, "podLabels": wrong})
    spec = deployment(items)
    wanted = spec["selector"]["matchLabels"].items()
    assert wanted <= spec["template"]["metadata"]["labels"].items()


def test_a_users_own_settings_rights_and_environment() -> None:
    items = render(given("existing"))
    assert not [item for item in items if item["kind"] == "ConfigMap"]
    spec = deployment(items)["template"]["spec"]
    assert spec["volumes"][0] == {"name": "config", "configMap": {"name": "router-settings"}}
    assert spec["serviceAccountName"] == "mine"
    (router,) = spec["containers"]
    assert router["args"] == [
        "serve",
        "--config",
        "/etc/warmroute/warmroute.yaml",
        "--log-level",
        "debug",
    ]
    assert router["envFrom"] == [{"secretRef": {"name": "hub-token"}}]
    state, key = router["env"]
    assert state == {"name": "WARMROUTE_STATE", "value": "rediss://redis.example.com:6380"}
    assert key["valueFrom"]["secretKeyRef"] == {"name": "keys", "key": "admin"}
    # Nothing says which of the two it asks for.
    (role,) = [item for item in render({"existingConfigMap": "a"}) if item["kind"] == "Role"]
    assert [rule["resources"] for rule in role["rules"]] == [["endpointslices"], ["pods"]]


def test_redis_runs_where_it_is_told() -> None:
    template = one(render(OPERATED), "StatefulSet", "warmroute-redis")["spec"]["template"]
    for name in ("nodeSelector", "tolerations", "affinity", "priorityClassName"):
        assert template["spec"][name] == OPERATED["redis"][name]
    assert template["metadata"]["labels"]["a"] == "b"
    assert template["metadata"]["annotations"] == {"c": "d"}


def test_one_number_of_routers_has_one_owner() -> None:
    items = render(OPERATED)
    assert "replicas" not in deployment(items)
    assert not [item for item in items if item["kind"] == "HorizontalPodAutoscaler"]
    spec = one(items, "ScaledObject")["spec"]
    assert spec["scaleTargetRef"] == {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "name": "warmroute",
    }
    assert (spec["minReplicaCount"], spec["maxReplicaCount"]) == (3, 10)
    assert spec["triggers"][0]["metadata"]["query"] == 'sum(warmroute_in_flight{namespace="llm"})'
    budget = one(items, "PodDisruptionBudget")["spec"]
    assert budget["minAvailable"] == "50%"
    assert "maxUnavailable" not in budget


def test_extra_objects_are_filled_in() -> None:
    items = render(OPERATED)
    one(items, "ConfigMap", "warmroute-extra")
    one(items, "ConfigMap", "warmroute-text")
    validate(items)


def test_services_and_routes_have_what_is_set() -> None:
    values = given("exposed")
    items = render(values)
    service = one(items, "Service")
    assert service["metadata"]["labels"]["exposed"] == "yes"
    spec = service["spec"]
    for name in ("loadBalancerClass", "loadBalancerSourceRanges", "externalTrafficPolicy"):
        assert spec[name] == values["service"][name]
    assert spec["ports"][0]["nodePort"] == 30080
    first, second = one(items, "Ingress")["spec"]["rules"]
    assert [path["path"] for path in first["http"]["paths"]] == ["/"]
    assert second["host"] == "other.example.com"
    assert [(p["path"], p["pathType"]) for p in second["http"]["paths"]] == [
        ("/v1", "Prefix"),
        ("/health", "Exact"),
    ]
    route = one(items, "HTTPRoute")
    assert route["metadata"]["annotations"] == {"example.com/owner": "llm"}
    assert route["spec"]["rules"][0]["matches"] == values["httpRoute"]["matches"]


def test_monitors_and_rules_live_where_they_are_told() -> None:
    items = render(OPERATED)
    monitor = one(items, "ServiceMonitor")
    assert monitor["metadata"]["namespace"] == "monitoring"
    assert monitor["metadata"]["labels"]["release"] == "prom"
    assert monitor["spec"]["namespaceSelector"] == {"matchNames": ["llm"]}
    (endpoint,) = monitor["spec"]["endpoints"]
    asked = OPERATED["metrics"]["serviceMonitor"]
    assert (endpoint["interval"], endpoint["scrapeTimeout"]) == ("15s", "10s")
    assert endpoint["relabelings"] == asked["relabelings"]
    assert endpoint["metricRelabelings"] == asked["metricRelabelings"]
    rule = one(items, "PrometheusRule")
    assert rule["metadata"]["namespace"] == "monitoring"
    rules = {
        each["alert"]: each
        for group in rule["spec"]["groups"]
        for each in group["rules"]
        if "alert" in each
    }
    assert "Own" in rules
    assert "WarmrouteStateLocal" not in rules
    assert (
        rules["WarmrouteRequestsFail"]["annotations"]["runbook_url"]
        == "https://runbooks.example.com/warmroute/requests-fail.md"
    )
