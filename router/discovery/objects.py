"""The few fields of EndpointSlices and Pods that say where replicas are, and what they come to.

Decoded with msgspec, which passes over the rest. Fields: discovery.k8s.io/v1 EndpointSlice and
core/v1 Pod of the Kubernetes API reference. Go writes empty lists as null, hence the Nones.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import msgspec

from router.discovery.target import Target
from router.types import Role

SERVICE_LABEL = "kubernetes.io/service-name"
"""On every EndpointSlice that belongs to a Service."""
ROLE_LABELS = ("warmroute/role", "llm-d.ai/role")
"""Which say what a pod is for, the first one that is there. The second is llm-d's convention."""
_ROLES: Mapping[str, Role] = {
    "decode": "decode",
    "prefill": "prefill",
    "both": "both",
    "prefill-decode": "both",
}


class Metadata(msgspec.Struct, rename="camel"):
    """The metadata that any Kubernetes object has."""

    name: str = ""
    namespace: str = ""
    uid: str = ""
    resource_version: str = ""
    deletion_timestamp: str | None = None
    labels: dict[str, str] | None = None
    annotations: dict[str, str] | None = None


class Conditions(msgspec.Struct):
    """Of an endpoint. A missing `ready` counts as true."""

    ready: bool | None = None
    terminating: bool | None = None


class Reference(msgspec.Struct):
    """To the pod behind an endpoint."""

    uid: str = ""


class Endpoint(msgspec.Struct, rename="camel"):
    """One pod of a slice."""

    addresses: list[str]
    conditions: Conditions = msgspec.field(default_factory=Conditions)
    target_ref: Reference | None = None


class Port(msgspec.Struct):
    """One port of every endpoint of a slice."""

    name: str | None = None
    port: int | None = None
    protocol: str | None = None


class EndpointSlice(msgspec.Struct, rename="camel"):
    """A part of a Service's endpoints."""

    metadata: Metadata
    address_type: str = "IPv4"
    endpoints: list[Endpoint] | None = None
    ports: list[Port] | None = None


class ContainerPort(msgspec.Struct, rename="camel"):
    """A port a container says it listens on."""

    container_port: int
    name: str = ""
    protocol: str = "TCP"


class Container(msgspec.Struct):
    """As far as its ports go."""

    ports: list[ContainerPort] | None = None


class PodSpec(msgspec.Struct):
    """The part of a pod's spec that names its containers."""

    containers: list[Container] | None = None


class PodCondition(msgspec.Struct):
    """One condition of a pod, such as Ready."""

    type: str
    status: str


class PodStatus(msgspec.Struct, rename="camel"):
    """Where it is and how it does."""

    phase: str = ""
    pod_ip: str = msgspec.field(default="", name="podIP")
    conditions: list[PodCondition] | None = None


class Pod(msgspec.Struct):
    """One pod, with the fields that discovery reads."""

    metadata: Metadata
    spec: PodSpec = msgspec.field(default_factory=PodSpec)
    status: PodStatus = msgspec.field(default_factory=PodStatus)


class NoPortError(Exception):
    """An object does not say which port to use; the text names both."""


class Reading(msgspec.Struct, frozen=True):
    """How the settings want objects read."""

    port: str = ""
    """A number, a port's name, annotation:KEY, or empty for the only one there is."""
    model: str = ""
    """label:KEY, annotation:KEY, or empty to leave it to /v1/models."""
    scheme: str = "http"
    ports: tuple[int, ...] = ()
    """Ports of every pod, given by who selects the pods; they win over `port`."""

    def url(self, address: str, port: int) -> str:
        """The URL of the replica at this address and port."""
        host = f"[{address}]" if ":" in address else address
        return f"{self.scheme}://{host}:{port}"

    def models(self, metadata: Metadata) -> tuple[str, ...]:
        """What the label or annotation says; names are separated by commas."""
        text = _marked(metadata, self.model)
        return tuple(name for name in (part.strip() for part in text.split(",")) if name)


def slice_targets(slices: Iterable[EndpointSlice], how: Reading, note: Note) -> list[Target]:
    """The targets of all slices together, one for each pod and port.

    A pod of a dual-stack Service is in two slices, one for each address family: its IPv4 address is
    used. A pod that several Services have counts as ready when one of them says so.
    """
    found: dict[object, Target] = {}
    # Sorted: IPv4 before IPv6, so that the first of a pod's addresses is the one kept.
    for each in sorted(slices, key=lambda each: (each.address_type, each.metadata.name)):
        try:
            port = _slice_port(each, how)
        except NoPortError as error:
            note(str(error))
            continue
        models, role = how.models(each.metadata), _role(_service(each), each.metadata, note)
        for endpoint in each.endpoints or ():
            if not endpoint.addresses:
                continue
            conditions = endpoint.conditions
            identity = endpoint.target_ref.uid if endpoint.target_ref else ""
            target = Target(
                how.url(endpoint.addresses[0], port),
                identity,
                models,
                role,
                ready=conditions.ready is not False,
                leaving=conditions.terminating is True,
            )
            _put(found, (identity, port) if identity else target.url, target)
    return list(found.values())


def pod_targets(pods: Iterable[Pod], how: Reading, note: Note) -> list[Target]:
    """The targets of pods: those that have an address and have not ended."""
    found: dict[object, Target] = {}
    for pod in pods:
        status, metadata = pod.status, pod.metadata
        if not status.pod_ip or status.phase in ("Succeeded", "Failed"):
            continue
        try:
            ports = how.ports or (_pod_port(pod, how),)
        except NoPortError as error:
            note(str(error))
            continue
        role = _role(_pod(pod), metadata, note)
        ready = any(c.type == "Ready" and c.status == "True" for c in status.conditions or ())
        for port in ports:
            target = Target(
                how.url(status.pod_ip, port),
                metadata.uid,
                how.models(metadata),
                role,
                ready=ready,
                leaving=metadata.deletion_timestamp is not None,
            )
            _put(found, target.url, target)
    return list(found.values())


Note = Callable[[str], None]
"""Is told of an object that cannot be used."""


def _put(found: dict[object, Target], key: object, target: Target) -> None:
    before = found.get(key)
    if before is None or _worth(target) > _worth(before):
        found[key] = target


def _worth(target: Target) -> int:
    """Of two that claim one pod or address, the one that takes requests is right."""
    return 0 if target.leaving else 2 if target.ready else 1


def _marked(metadata: Metadata, where: str) -> str:
    kind, _, key = where.partition(":")
    marks = metadata.labels if kind == "label" else metadata.annotations
    return (marks or {}).get(key, "") if key else ""


def _role(what: str, metadata: Metadata, note: Note) -> Role:
    """By its labels. One that is not known answers clients, as one without a label does."""
    for key in ROLE_LABELS:
        said = (metadata.labels or {}).get(key)
        if said is None:
            continue
        role = _ROLES.get(said)
        if role is None:
            note(
                f"{what}: label {key} is {said!r}, so it answers clients; give one of: "
                f"{', '.join(_ROLES)}"
            )
        return role or "decode"
    return "decode"


def _service(each: EndpointSlice) -> str:
    """The Service of a slice, as messages name it."""
    service = (each.metadata.labels or {}).get(SERVICE_LABEL, each.metadata.name)
    return f"Service {each.metadata.namespace}/{service}"


def _pod(pod: Pod) -> str:
    """A pod, as messages name it."""
    return f"pod {pod.metadata.namespace}/{pod.metadata.name}"


def _slice_port(each: EndpointSlice, how: Reading) -> int:
    if how.port.isdecimal():
        return int(how.port)
    tcp = [p for p in each.ports or () if p.port is not None and p.protocol in (None, "", "TCP")]
    ports = [(p.name or "", p.port or 0) for p in tcp]
    return _pick(ports, how.port, _service(each))


def _pod_port(pod: Pod, how: Reading) -> int:
    if how.port.isdecimal():
        return int(how.port)
    what = _pod(pod)
    if how.port.startswith("annotation:"):
        text = _marked(pod.metadata, how.port)
        if not (text.isdecimal() and 1 <= int(text) <= 65_535):
            key = how.port.partition(":")[2]
            raise NoPortError(f"{what}: annotation {key} is {text!r}; give a port from 1 to 65535")
        return int(text)
    ports = [
        (port.name, port.container_port)
        for container in pod.spec.containers or ()
        for port in container.ports or ()
        if port.protocol == "TCP"
    ]
    return _pick(ports, how.port, what)


def _pick(ports: list[tuple[str, int]], name: str, what: str) -> int:
    """The port of that name, or the only one. Raises NoPortError."""
    fitting = [number for each, number in ports if not name or each == name]
    if len(fitting) == 1:
        return fitting[0]
    there = ", ".join(f"{each or 'unnamed'} ({number})" for each, number in ports) or "none"
    if name:
        raise NoPortError(f"{what} has no port {name!r}; set discovery_port to one of: {there}")
    raise NoPortError(f"{what}: set discovery_port to choose one of its ports: {there}")
