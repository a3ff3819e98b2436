"""The Helm chart, by Helm's own engine."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml
from chart_world import CHART, FOUND, ROOT, Values, notes, one, pods, render, settings, validate

from router.config import TABLE, load
from router.discovery.objects import ROLE_LABELS

sys.path.append(str(ROOT / "deploy" / "helm"))
import schema

TABLE_OF_VALUES: dict[str, Values] = {
    "a selector": FOUND,
    "services": {"config": {"discovery_services": ["vllm", "other"], "discovery_port": "http"}},
    "namespaces": {"config": {"discovery_selector": "a=b", "discovery_namespaces": ["one", "two"]}},
    "all namespaces": {
        "config": {"discovery_services": ["vllm"], "discovery_namespaces": ["*"]},
        "serviceAccount": {"annotations": {"a": "b"}},
    },
    "listed replicas": {"config": {"discovery": "off", "replicas": ["http://vllm-0:8000"]}},
    "dns": {"config": {"discovery": "dns", "discovery_dns": ["http://vllm.llm.svc:8000"]}},
    "demo": {"demo": {"enabled": True, "replicas": 8, "preset": "quick"}},
    "bundled redis": {**FOUND, "redis": {"mode": "bundled"}, "networkPolicy": {"enabled": True}},
    "bundled redis with a password": {
        **FOUND,
        "redis": {"mode": "bundled"},
        "secret": {"name": "keys", "statePassword": "redis"},
    },
    "external redis": {
        **FOUND,
        "redis": {"mode": "external", "url": "rediss://redis.example.com:6380"},
        "secret": {
            "name": "keys",
            "replicaApiKey": "vllm",
            "adminKey": "admin",
            "statePassword": "redis",
            "isolationSecret": "salt",
            "isolationOldSecret": "salt-before",
        },
    },
    "scaled by CPU": {**FOUND, "autoscaling": {"enabled": True, "maxReplicas": 20}},
    "scaled by requests": {**FOUND, "autoscaling": {"enabled": True, "targetInFlight": 200}},
    "monitored": {
        **FOUND,
        "metrics": {
            "serviceMonitor": {"enabled": True, "labels": {"release": "prom"}},
            "podMonitor": {"enabled": True},
            "prometheusRule": {"enabled": True},
            "dashboards": {"enabled": True, "annotations": {"grafana_folder": "LLM"}},
        },
    },
    "exposed": {
        **FOUND,
        "service": {"type": "LoadBalancer", "port": 8080, "annotations": {"a": "b"}},
        "ingress": {
            "enabled": True,
            "className": "nginx",
            "hosts": ["llm.example.com"],
            "tls": [{"secretName": "tls", "hosts": ["llm.example.com"]}],
        },
        "httpRoute": {
            "enabled": True,
            "parentRefs": [{"name": "gateway"}],
            "hostnames": ["llm.example.com"],
        },
    },
    "a picker": {
        "picker": {
            "enabled": True,
            "pool": {"matchLabels": {"app": "vllm"}, "targetPorts": [8000, 8001]},
            "route": {"parentRefs": [{"name": "gateway"}], "hostnames": ["llm.example.com"]},
        },
        "service": {"port": 9002},
    },
    "a picker of a pool that exists": {
        "picker": {"enabled": True, "pool": {"create": False, "name": "vllm"}}
    },
    "a picker before simulated replicas": {"picker": {"enabled": True}, "demo": {"enabled": True}},
    "prefill and decode apart": {
        "disaggregation": {
            "decode": {"matchLabels": {"app": "vllm-decode"}},
            "prefill": {"matchLabels": {"app": "vllm-prefill", "tier": "a"}, "port": 8200},
        },
        "config": {"kv_connector": "nixl_push"},
    },
    "guarded": {
        **FOUND,
        "networkPolicy": {
            "enabled": True,
            "clients": [{"namespaceSelector": {"matchLabels": {"team": "a"}}}],
            "monitoring": [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}],
        },
        "podDisruptionBudget": {"enabled": False},
        "rbac": {"create": False},
        "serviceAccount": {"create": False, "name": "mine"},
    },
    "placed": {
        **FOUND,
        "nodeSelector": {"pool": "cpu"},
        "tolerations": [{"key": "x", "operator": "Exists"}],
        "affinity": {"nodeAffinity": {}},
        "topologySpreadConstraints": [
            {"maxSkew": 1, "topologyKey": "zone", "whenUnsatisfiable": "DoNotSchedule"}
        ],
        "priorityClassName": "high",
        "imagePullSecrets": [{"name": "registry"}],
        "image": {"repository": "r.example.com/warmroute", "digest": "sha256:" + "0" * 64},
        "podAnnotations": {"a": "b"},
        "podLabels": {"c": "d"},
        "extraEnv": [{"name": "WARMROUTE_LOG_LEVEL", "value": "debug"}],
        "extraVolumes": [{"name": "ca", "configMap": {"name": "ca"}}],
        "extraVolumeMounts": [{"name": "ca", "mountPath": "/ca"}],
        "fullnameOverride": "router",
    },
    "every size and number": {
        "config": {
            "discovery_selector": "app=vllm",
            "kv_cache_tokens": 123456789,
            "max_body": 67108864,
            "retry_budget": 0.2,
            "explain_headers": True,
            "first_byte_timeout": "1m30s",
        }
    },
}

LINTED = {path.stem: yaml.safe_load(path.read_text()) for path in (CHART / "ci").glob("*.yaml")}
"""The values that chart-testing lints and installs with."""
ALL_VALUES = TABLE_OF_VALUES | LINTED


@pytest.mark.parametrize("values", ALL_VALUES.values(), ids=ALL_VALUES)
def test_it_lints_and_renders_valid_objects(values: Values) -> None:
    report = helm_python.lint(CHART, values, strict=True, namespace="llm")
    assert report["errors"] == []
    assert [m for m in report["messages"] if m["severity"] > 1] == []
    items = render(values)
    validate(items)
    names = [
        (item["kind"], item["metadata"].get("namespace"), item["metadata"]["name"])
        for item in items
    ]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("values", TABLE_OF_VALUES.values(), ids=TABLE_OF_VALUES)
def test_its_settings_are_ones_the_gateway_takes(values: Values, tmp_path: Path) -> None:
    file = tmp_path / "warmroute.yaml"
    file.write_text(settings_of(values))
    given = values.get("config", {})
    found = load(path=str(file)).settings
    for name, value in given.items():
        read = getattr(found, name)
        text = ",".join(value) if isinstance(value, list) else str(value)
        assert read == TABLE[name].kind.parse(text), name


def settings_of(values: Values) -> str:
    items = render(values)
    (config,) = [i for i in items if "warmroute.yaml" in i.get("data", {})]
    text: str = config["data"]["warmroute.yaml"]
    return text


@pytest.mark.parametrize("values", TABLE_OF_VALUES.values(), ids=TABLE_OF_VALUES)
def test_every_pod_is_confined(values: Values) -> None:
    for spec in pods(render(values)):
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["enableServiceLinks"] is False
        for container in spec["containers"]:
            security = container["securityContext"]
            assert security["readOnlyRootFilesystem"] is True
            assert security["allowPrivilegeEscalation"] is False
            assert security["capabilities"] == {"drop": ["ALL"]}
            assert container["resources"]["limits"]["memory"]
            assert not container["image"].endswith(":latest")
            assert re.search(r":[\w.-]+$|@sha256:", container["image"])


BAD: dict[str, tuple[Values, str]] = {
    "a setting that is none": ({"config": {"polcy": "x"}}, "polcy"),
    "a secret in the settings": ({"config": {"admin_key": "x"}}, "admin_key"),
    "a value that is none": ({"replicas": 3}, "replicas"),
    "a switch": ({**FOUND, "demo": {"enabled": "yes"}}, "/demo/enabled"),
    "a mode": ({**FOUND, "redis": {"mode": "cluster"}}, "/redis/mode"),
    "a discovery": ({"config": {"discovery": "consul"}}, "/config/discovery"),
    "a number": ({"config": {"retries": 11}}, "/config/retries"),
    "a label": ({**FOUND, "podLabels": {"a": 1}}, "/podLabels/a"),
    "a digest": ({**FOUND, "image": {"digest": "abc"}}, "/image/digest"),
    "no replicas": ({}, "config.discovery_services"),
    "external without a URL": ({**FOUND, "redis": {"mode": "external"}}, "redis.url"),
    "a Redis that is not used": ({**FOUND, "redis": {"url": "redis://r:6379"}}, "redis.mode"),
    "two scalers": (
        {**FOUND, "autoscaling": {"enabled": True}, "keda": {"enabled": True, "triggers": [{}]}},
        "keda.enabled",
    ),
    "KEDA without a trigger": ({**FOUND, "keda": {"enabled": True}}, "keda.triggers"),
    "an alert that is none": (
        {**FOUND, "metrics": {"prometheusRule": {"enabled": True, "disabled": ["Nope"]}}},
        "Nope",
    ),
    "a pool of nobody": ({"picker": {"enabled": True}}, "picker.pool.matchLabels"),
    "a pool without a name": (
        {"picker": {"enabled": True, "pool": {"create": False}}},
        "picker.pool.name",
    ),
    "a route without a gateway": ({**FOUND, "httpRoute": {"enabled": True}}, "parentRefs"),
}


@pytest.mark.parametrize(("values", "key"), BAD.values(), ids=BAD)
def test_bad_values_fail_with_the_key(values: Values, key: str) -> None:
    with pytest.raises(helm_python.HelmError) as caught:
        render(values)
    assert key in str(caught.value)


def test_the_schema_is_as_the_settings_make_it() -> None:
    assert (CHART / "values.schema.json").read_text() == schema.text(), (
        "run: python deploy/helm/schema.py"
    )


def test_rbac_is_the_least_there_is() -> None:
    def rules(config: Values) -> list[tuple[str, str | None, Any]]:
        return [
            (item["kind"], item["metadata"].get("namespace"), item["rules"])
            for item in render({"config": config})
            if item["kind"].endswith("Role")
        ]

    pod_rule = [{"apiGroups": [""], "resources": ["pods"], "verbs": ["list", "watch"]}]
    slice_rule = [
        {
            "apiGroups": ["discovery.k8s.io"],
            "resources": ["endpointslices"],
            "verbs": ["list", "watch"],
        }
    ]
    assert rules({"discovery_selector": "a=b"}) == [("Role", "llm", pod_rule)]
    pool_rule = [
        {
            "apiGroups": ["inference.networking.k8s.io"],
            "resources": ["inferencepools"],
            "verbs": ["list", "watch"],
        },
        {
            "apiGroups": ["inference.networking.x-k8s.io"],
            "resources": ["inferenceobjectives"],
            "verbs": ["list", "watch"],
        },
    ]
    assert rules({"discovery_pool": "vllm"}) == [("Role", "llm", pool_rule + pod_rule)]
    assert rules({"discovery_services": ["a"], "discovery_namespaces": ["x", "y"]}) == [
        ("Role", "x", slice_rule),
        ("Role", "y", slice_rule),
    ]
    assert rules({"discovery_services": ["a"], "discovery_namespaces": "*"}) == [
        ("ClusterRole", None, slice_rule)
    ]
    dns = {"discovery": "dns", "discovery_dns": ["http://a:1"]}
    assert rules(dns) == []
    spec = one(render({"config": dns}), "Deployment")["spec"]["template"]["spec"]
    assert spec["automountServiceAccountToken"] is False


def test_it_is_given_the_time_it_takes_to_drain() -> None:
    def grace(**config: str | float) -> int:
        items = render({"config": {**FOUND["config"], **config}})
        seconds: int = one(items, "Deployment")["spec"]["template"]["spec"][
            "terminationGracePeriodSeconds"
        ]
        return seconds

    assert grace() == 10 + 300 + 10
    assert grace(settle_time="1500ms", drain_timeout="1h1m30s") == 2 + 3690 + 10
    assert grace(settle_time=0, drain_timeout=20) == 0 + 20 + 10


def test_secrets_stay_in_their_secret() -> None:
    items = render(TABLE_OF_VALUES["external redis"])
    env = one(items, "Deployment")["spec"]["template"]["spec"]["containers"][0]["env"]
    assert {each["name"]: each["valueFrom"]["secretKeyRef"] for each in env} == {
        "WARMROUTE_REPLICA_API_KEY": {"name": "keys", "key": "vllm"},
        "WARMROUTE_ADMIN_KEY": {"name": "keys", "key": "admin"},
        "WARMROUTE_STATE_PASSWORD": {"name": "keys", "key": "redis"},
        "WARMROUTE_ISOLATION_SECRET": {"name": "keys", "key": "salt"},
        "WARMROUTE_ISOLATION_OLD_SECRET": {"name": "keys", "key": "salt-before"},
    }
    assert {row.env for row in TABLE.values() if row.kind.secret} == {each["name"] for each in env}
    assert "state: rediss://redis.example.com:6380" in settings(items)


def test_selectors_meet_their_pods() -> None:
    items = render({"demo": {"enabled": True}, "redis": {"mode": "bundled"}})
    labels = [
        item["spec"]["template"]["metadata"]["labels"]
        for item in items
        if item["kind"] in ("Deployment", "StatefulSet")
    ]
    for service in (item for item in items if item["kind"] == "Service"):
        wanted = service["spec"]["selector"].items()
        assert sum(wanted <= each.items() for each in labels) == 1, service["metadata"]["name"]


def test_no_two_releases_meet() -> None:
    """A second release in one namespace shares neither names nor selectors."""
    values: Values = {"demo": {"enabled": True}, "redis": {"mode": "bundled"}}
    first, second = render(values, "a"), render(values, "b")
    assert not {(i["kind"], i["metadata"]["name"]) for i in first} & {
        (i["kind"], i["metadata"]["name"]) for i in second
    }


def test_notes_say_what_is_next() -> None:
    text = notes({**FOUND, "redis": {"mode": "none"}, "replicaCount": 2})
    assert "http://warmroute.llm.svc:80/v1" in text
    assert "helm -n llm test warmroute" in text
    assert "no Redis" in text
    assert "Nobody scrapes it yet" in text
    assert "The image warmroute:0.1.0 is on no registry" in text
    quiet = notes(
        {
            **FOUND,
            "image": {"repository": "registry.example.com/warmroute"},
            "metrics": {"podMonitor": {"enabled": True}},
            "secret": {"name": "s", "adminKey": "k"},
        }
    )
    assert "no Redis" not in quiet
    assert "Nobody scrapes" not in quiet
    assert "registry" not in quiet
    assert "has no key" not in quiet


def test_dashboards_and_rules_are_those_of_the_repository() -> None:
    items = render(TABLE_OF_VALUES["monitored"])
    for name in ("operator", "developer"):
        config = one(items, "ConfigMap", f"warmroute-{name}")
        assert config["metadata"]["labels"]["grafana_dashboard"] == "1"
        text = config["data"][f"warmroute-{name}.json"]
        assert json.loads(text) == json.loads((ROOT / "dashboards" / f"{name}.json").read_text())
    rule = one(items, "PrometheusRule")
    assert len(rule["spec"]["groups"]) == 2


def test_prefill_and_decode_pods_are_found_with_their_roles() -> None:
    """Each by a Service, whose label its EndpointSlices have as well; and the router may read them."""
    apart = TABLE_OF_VALUES["prefill and decode apart"]
    items = render(apart)
    for role, port in (("decode", 8000), ("prefill", 8200)):
        service = one(items, "Service", f"warmroute-{role}")
        assert service["metadata"]["labels"][ROLE_LABELS[0]] == role
        assert service["spec"]["selector"] == apart["disaggregation"][role]["matchLabels"]
        assert [each["targetPort"] for each in service["spec"]["ports"]] == [port]
    found = yaml.safe_load(settings(items))
    assert found["discovery_services"] == ["warmroute-decode", "warmroute-prefill"]
    (rule,) = one(items, "Role")["rules"]
    assert rule["resources"] == ["endpointslices"]
    picker = {"enabled": True, "pool": {"matchLabels": {"app": "vllm-decode"}}}
    both = yaml.safe_load(settings(render({**apart, "picker": picker})))
    assert both["discovery_services"] == found["discovery_services"]
    assert "discovery_pool" not in both


@pytest.mark.parametrize(
    ("values", "why"),
    [
        ({"disaggregation": {"prefill": {"matchLabels": {"a": "b"}}}}, "set both"),
        (
            {
                "disaggregation": {
                    "prefill": {"matchLabels": {"a": "b"}},
                    "decode": {"matchLabels": {"a": "c"}},
                },
                **FOUND,
            },
            "finds the replicas itself",
        ),
    ],
)
def test_roles_said_by_half_or_twice_are_refused(values: Values, why: str) -> None:
    with pytest.raises(helm_python.HelmError, match=why):
        render(values)
