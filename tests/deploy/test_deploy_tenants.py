"""Tenants in the chart: the file that it brings, and the secrets."""

from __future__ import annotations

import yaml
from chart_world import FOUND, one, render, settings, validate

from router.tenants.tenant_file import parse_tenants

TENANTS = {"tenants": {"acme": {"limits": {"requests_per_minute": 600}}}}


def test_the_file_of_tenants_is_mounted_and_named() -> None:
    items = render({**FOUND, "tenants": TENANTS})
    validate(items)
    data = one(items, "ConfigMap")["data"]
    assert parse_tenants(data["tenants.yaml"].encode()).tenants["acme"].limits is not None
    assert yaml.safe_load(data["warmroute.yaml"])["tenants"] == "/etc/warmroute/tenants.yaml"


def test_a_change_of_tenants_restarts_nothing() -> None:
    more = {"tenants": {**TENANTS["tenants"], "beta": {}}}
    pods = [
        one(render({**FOUND, "tenants": each}), "Deployment")["spec"]["template"]
        for each in (TENANTS, more)
    ]
    assert pods[0] == pods[1]


def test_without_tenants_nothing_is_there() -> None:
    items = render(FOUND)
    assert "tenants.yaml" not in one(items, "ConfigMap")["data"]
    assert "tenants" not in settings(items)


def test_the_secret_of_isolation_comes_from_a_secret() -> None:
    values = {**FOUND, "secret": {"name": "keys", "isolationSecret": "salt"}}
    (container,) = one(render(values), "Deployment")["spec"]["template"]["spec"]["containers"]
    assert {
        "name": "WARMROUTE_ISOLATION_SECRET",
        "valueFrom": {"secretKeyRef": {"name": "keys", "key": "salt"}},
    } in container["env"]
