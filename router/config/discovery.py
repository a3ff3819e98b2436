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
                yield (name, "discovery"), wrong, f"set discovery to {kind}, or take {name} out"
    if s.discovery == "kubernetes":
        yield from _check_kubernetes(s)
    elif s.discovery == "dns" and not s.discovery_dns:
        fix = "give discovery_dns, such as http://vllm-headless.llm.svc:8000"
        yield ("discovery_dns",), "there is no name to ask for", fix
    elif s.discovery == "file" and not s.discovery_file:
        yield ("discovery_file",), "there is no file to read", "give discovery_file"


def _check_kubernetes(s: Settings) -> Iterator[Fault]:
    if importlib.util.find_spec("kubernetes") is None:
        wrong = "the Kubernetes client is not installed"
        yield ("discovery",), wrong, extras.KUBERNETES
    both = ("discovery_services", "discovery_selector")
    if not s.discovery_services and not s.discovery_selector:
        fix = "give discovery_services (names of Services) or discovery_selector (of pods)"
        yield both, "nothing says which pods are the replicas", fix
    elif s.discovery_services and s.discovery_selector:
        yield both, "both are set", "give one: Services, or a selector of pods"
    elif s.discovery_services:
        if "*" in s.discovery_services:
            fix = "name the Services, or use discovery_selector"
            yield ("discovery_services",), "* is no Service's name", fix
        for name in ("discovery_port", "discovery_model"):
            if getattr(s, name).startswith("annotation:"):
                wrong = f"{name} is an annotation, and endpoints of Services have none"
                fix = "use discovery_selector, which reads the pods themselves"
                if name == "discovery_model":
                    fix += ", or a label of the Service (label:KEY)"
                yield (name, "discovery_services"), wrong, fix
    if "*" in s.discovery_namespaces and len(s.discovery_namespaces) > 1:
        fix = "give * alone, or name the namespaces"
        yield ("discovery_namespaces",), "* is given beside names", fix
