"""Checks of the settings that find replicas."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator

from router import extras
from router.config.errors import Fault
from router.config.settings import Settings

_OF_KIND = {
    "kubernetes": (
        "discovery_services",
        "discovery_selector",
        "discovery_pool",
        "discovery_namespaces",
        "discovery_port",
        "discovery_model",
    ),
    "dns": ("discovery_dns",),
    "file": ("discovery_file",),
}


def check_discovery(s: Settings) -> Iterator[Fault]:
    """What is missing, what does not belong, what does not go together."""
    for kind, names in _OF_KIND.items():
        for name in names:
            if kind != s.discovery and getattr(s, name):
                wrong = f"{name} is set and discovery is {s.discovery}"
                yield (name, "discovery"), wrong, f"set discovery to {kind}, or remove {name}"
    if s.discovery == "kubernetes":
        yield from _check_kubernetes(s)
    elif s.discovery == "dns" and not s.discovery_dns:
        fix = "set discovery_dns, for example to http://vllm-headless.llm.svc:8000"
        yield ("discovery_dns",), "discovery is dns and no name to look up is set", fix
    elif s.discovery == "file" and not s.discovery_file:
        wrong = "discovery is file and no file is set"
        yield ("discovery_file",), wrong, "set discovery_file to its path"


def _check_kubernetes(s: Settings) -> Iterator[Fault]:
    if importlib.util.find_spec("kubernetes") is None:
        wrong = "the Kubernetes client is not installed"
        yield ("discovery",), wrong, extras.KUBERNETES
    ways = ("discovery_services", "discovery_selector", "discovery_pool")
    given = [name for name in ways if getattr(s, name)]
    if not given:
        fix = "set discovery_services (names of Services), discovery_selector or discovery_pool"
        yield ways, "none is set, so it is unknown which pods are the replicas", fix
    elif len(given) > 1:
        yield tuple(given), "more than one is set", "keep one of them"
    elif s.discovery_pool:
        if s.discovery_port:
            wrong = "discovery_port is set, and the InferencePool names its ports"
            yield ("discovery_port", "discovery_pool"), wrong, "remove discovery_port"
        if "*" in s.discovery_namespaces or len(s.discovery_namespaces) > 1:
            wrong = "an InferencePool is in one namespace"
            yield ("discovery_namespaces", "discovery_pool"), wrong, "name that one"
    else:
        yield from _check_services(s)
    if "*" in s.discovery_namespaces and len(s.discovery_namespaces) > 1:
        fix = "give only *, or only names"
        yield ("discovery_namespaces",), "both * and names are given", fix


def _check_services(s: Settings) -> Iterator[Fault]:
    if s.discovery_services:
        if "*" in s.discovery_services:
            fix = "name the Services, or use discovery_selector"
            yield ("discovery_services",), "* is not the name of a Service", fix
        for name in ("discovery_port", "discovery_model"):
            if getattr(s, name).startswith("annotation:"):
                wrong = f"{name} is an annotation, and endpoints of Services have none"
                fix = "use discovery_selector, which reads the pods themselves"
                if name == "discovery_model":
                    fix += ", or a label of the Service (label:KEY)"
                yield (name, "discovery_services"), wrong, fix
