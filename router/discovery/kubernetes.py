"""Replicas from Kubernetes: the EndpointSlices of Services, or pods by label.

The official client does the talking, unmodified: how to reach the API server, certificates, tokens
and their renewal are its business. Its objects are not used, because building them takes most of a
core where events are frequent; `router.discovery.objects` reads the few fields needed.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import urllib3

from router import extras
from router.config import Settings
from router.discovery.objects import (
    SERVICE_LABEL,
    EndpointSlice,
    Pod,
    Reading,
    pod_targets,
    slice_targets,
)
from router.discovery.pool import (
    GROUP,
    OBJECTIVES,
    OBJECTIVES_GROUP,
    OBJECTIVES_VERSION,
    PLURAL,
    VERSION,
    InferenceObjective,
    InferencePool,
    named,
    priorities,
)
from router.discovery.target import Audience, DiscoveryError, Target

try:
    from kubernetes import client, config
    from kubernetes.config.config_exception import ConfigException

    from router.discovery.reflector import Reflector
except ImportError as error:  # pragma: no cover  (settings are checked before)
    raise DiscoveryError(
        f"discovery by kubernetes needs the Kubernetes client; {extras.KUBERNETES}"
    ) from error

log = logging.getLogger(__name__)

OWN_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_GROUPS = {
    "endpointslices": "discovery.k8s.io",
    "pods": '""',
    PLURAL: GROUP,
    OBJECTIVES: OBJECTIVES_GROUP,
}
"""Resource -> the API group that a Role grants it in."""
JOIN_TIMEOUT_S = 3.0
"""Seconds that ending waits for a thread. They are daemons: one that hangs stops nothing."""


class KubernetesSource:
    """A watch for each namespace, and the targets of all of them together."""

    def __init__(self, settings: Settings, audience: Audience) -> None:
        self._audience = audience
        self._services = settings.discovery_services
        self._selector = settings.discovery_selector
        self._namespaces = settings.discovery_namespaces
        self._pool = settings.discovery_pool
        self._how = Reading(
            settings.discovery_port, settings.discovery_model, settings.discovery_scheme
        )
        self._reflectors: list[Reflector[Any]] = []
        self._found: dict[str, Sequence[Any]] = {}
        """Namespace -> its objects, of the namespaces that were listed."""
        self._problems: dict[str, str] = {}
        self._telling = False

    @property
    def _resource(self) -> str:
        return "endpointslices" if self._services else "pods"

    async def start(self) -> None:
        """Begin to watch. Raises DiscoveryError where there is no cluster to be asked."""
        self._loop = asyncio.get_running_loop()
        self._api = _api()
        if "*" in self._namespaces:
            spaces: tuple[str, ...] = ("*",)
        else:
            spaces = self._namespaces or (_own_namespace(),)
        if self._pool:
            # Its pods are watched once it has said which they are.
            call = functools.partial(self._call_pool, spaces[0])
            heard = functools.partial(self._heard_pool, spaces[0])
            self._watch(PLURAL, spaces[0], InferencePool, call, heard)
            call = functools.partial(self._call_objectives, spaces[0])
            self._watch(OBJECTIVES, spaces[0], InferenceObjective, call, self._heard_objectives)
            return
        for space in spaces:
            self._watch_members(space)

    def _watch_members(self, space: str) -> None:
        kind = EndpointSlice if self._services else Pod
        call = functools.partial(self._call, space, self._selector)
        heard = functools.partial(self._heard, space, self._selector)
        self._watch(self._resource, space, kind, call, heard)

    def _watch(self, resource: str, space: str, kind: Any, call: Any, heard: Any) -> None:
        reflector: Reflector[Any] = Reflector(
            f"{resource} in {space}",
            kind,
            call,
            functools.partial(self._hand_over, heard),
            functools.partial(self._hand_over, self._failed, space, resource),
            self._renew,
        )
        self._reflectors.append(reflector)
        reflector.start()

    async def stop(self) -> None:
        """Stop the watches and wait for their threads."""
        for reflector in self._reflectors:
            reflector.stop()
        for reflector in self._reflectors:
            if not await asyncio.to_thread(reflector.join, JOIN_TIMEOUT_S):
                log.warning(
                    "discovery: the watch of %s did not end in time; stopping without it",
                    reflector.name,
                )

    # In the reflectors' threads

    def _call_pool(self, space: str, **options: Any) -> urllib3.HTTPResponse:
        pools: Any = client.CustomObjectsApi(self._api)
        options["field_selector"] = f"metadata.name={self._pool}"
        answer: urllib3.HTTPResponse = pools.list_namespaced_custom_object(
            GROUP, VERSION, space, PLURAL, **options
        )
        return answer

    def _call_objectives(self, space: str, **options: Any) -> urllib3.HTTPResponse:
        objectives: Any = client.CustomObjectsApi(self._api)
        answer: urllib3.HTTPResponse = objectives.list_namespaced_custom_object(
            OBJECTIVES_GROUP, OBJECTIVES_VERSION, space, OBJECTIVES, **options
        )
        return answer

    def _call(self, space: str, selector: str, **options: Any) -> urllib3.HTTPResponse:
        everywhere = space == "*"
        if self._services:
            slices = client.DiscoveryV1Api(self._api)
            options["label_selector"] = f"{SERVICE_LABEL} in ({','.join(self._services)})"
            call: Any = (
                slices.list_endpoint_slice_for_all_namespaces
                if everywhere
                else functools.partial(slices.list_namespaced_endpoint_slice, space)
            )
        else:
            core = client.CoreV1Api(self._api)
            options["label_selector"] = selector
            call = (
                core.list_pod_for_all_namespaces
                if everywhere
                else functools.partial(core.list_namespaced_pod, space)
            )
        answer: urllib3.HTTPResponse = call(**options)
        return answer

    def _renew(self) -> None:
        # The client rereads its token once a minute; a server that refuses it cannot wait for that.
        try:
            self._api = _api()
        except DiscoveryError as error:
            log.warning("discovery: cannot read the credentials again: %s", error)

    def _hand_over(self, to: Any, *arguments: Any) -> None:
        try:
            self._loop.call_soon_threadsafe(to, *arguments)
        except RuntimeError:
            log.debug("discovery: the event loop is closed; a change that a watch found is dropped")

    # On the event loop

    def _heard(self, space: str, selector: str, objects: Sequence[Any]) -> None:
        if selector != self._selector:
            return  # of a watch that was stopped
        self._found[space] = objects
        if not self._telling:
            # Events come in bursts: what else is waiting is told with this one.
            self._telling = True
            self._loop.call_soon(self._tell)

    def _heard_objectives(self, objectives: Sequence[InferenceObjective]) -> None:
        self._audience.objectives(priorities(objectives, self._pool))

    def _heard_pool(self, space: str, pools: Sequence[InferencePool]) -> None:
        """The pool, when it is there: watch its pods, anew where it selects others."""
        pool = named(pools, self._pool)
        where = f"InferencePool {space}/{self._pool}"
        if pool is None or not pool.label_selector or not pool.ports:
            what = "does not exist" if pool is None else "selects no pods or names no targetPorts"
            self._problem(self._pool, f"{where} {what}")
            return
        self._problem(self._pool, "")
        if pool.ports != self._how.ports:
            self._how = msgspec.structs.replace(self._how, ports=pool.ports)
            if space in self._found:
                self._heard(space, self._selector, self._found[space])
        if pool.label_selector == self._selector:
            return
        self._selector = pool.label_selector
        # The first two are the pool's own. What was found stays until the new watch has listed all.
        for reflector in self._reflectors[2:]:
            reflector.stop()
        del self._reflectors[2:]
        self._watch_members(space)

    def _tell(self) -> None:
        self._telling = False
        self._audience.found(self._targets())

    def _targets(self) -> list[Target]:
        objects = [each for some in self._found.values() for each in some]
        note = self._audience.note
        if self._services:
            return slice_targets(objects, self._how, note)
        return pod_targets(objects, self._how, note)

    def _failed(self, space: str, resource: str, verb: str, error: Exception | None) -> None:
        said = "" if error is None else self._explain(space, resource, verb, error)
        if resource == OBJECTIVES and said:
            # Requests go by what the settings say: not all clusters know this kind of object.
            self._audience.note(f"InferenceObjectives do not count: {said}")
            return
        self._problem(f"{resource} {space}", said)

    def _problem(self, about: str, said: str) -> None:
        """said: empty where it is mended."""
        if said:
            self._problems[about] = said
        else:
            self._problems.pop(about, None)
        self._audience.trouble("; ".join(self._problems.values()))

    def _explain(self, space: str, resource: str, verb: str, error: Exception) -> str:
        """What went wrong and how to mend it."""
        where = "all namespaces" if space == "*" else f"namespace {space}"
        status = getattr(error, "status", None)
        what = f"{verb} {resource} in {where}"
        if status == 403:
            group = _GROUPS[resource]
            scope = "ClusterRole" if space == "*" else "Role"
            return (
                f"the service account may not {what}: give it a {scope} with apiGroups [{group}], "
                f'resources [{resource}], verbs ["list", "watch"] (the server: '
                f"{getattr(error, 'reason', '')})"
            )
        if status == 401:
            return f"the API server rejects the router's credentials to {what}"
        if status:
            return f"the API server answered {status} to {what}: {getattr(error, 'reason', '')}"
        return f"the API server cannot be reached to {what}: {_plain(error)}"


def _plain(error: Exception) -> str:
    """An error without the parts of it that differ from one time to the next."""
    reason = getattr(error, "reason", None) or error
    text = str(reason)
    return f"{type(reason).__name__}: {text.rpartition('>: ')[2] or text}"


def _api() -> client.ApiClient:
    """A client for the cluster this runs in, else for the one kubectl uses.

    Raises DiscoveryError when there is neither.
    """
    # The client does not type these two.
    load_own: Any = config.load_incluster_config
    load_kubectl: Any = config.load_kube_config
    found = client.Configuration()
    # Reflectors try again themselves, and tell what failed.
    found.retries = False
    try:
        load_own(client_configuration=found)
    except ConfigException as inside:
        try:
            load_kubectl(client_configuration=found)
        except (ConfigException, OSError) as outside:
            raise DiscoveryError(
                "there is no cluster: this is not a pod with a service account's token "
                f"({inside}), and there is no kubeconfig ({outside})"
            ) from None
    return client.ApiClient(found)


def _own_namespace() -> str:
    try:
        return OWN_NAMESPACE.read_text().strip()
    except OSError:
        raise DiscoveryError(
            "the namespace is unknown outside of a pod: set discovery_namespaces"
        ) from None
