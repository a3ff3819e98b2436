"""Discovery by EndpointSlices and pods, with the official client, over TLS."""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from typing import Any

import pytest
from api_server import ApiServer, endpoint, endpoint_slice
from discovery_world import PODS, SLICES, StartDiscovery, names, pod, until, until_names

from router.discovery import DiscoveryError
from router.types import slots

SERVICE: dict[str, Any] = {"discovery": "kubernetes", "discovery_services": ("vllm",)}


def hosts(*last: int) -> list[str]:
    return [f"10.0.0.{number}:8000" for number in last]


def ends(*last: int, **conditions: Any) -> list[dict[str, Any]]:
    return [endpoint(f"http://10.0.0.{number}", **conditions) for number in last]


async def test_a_service_is_followed(api: ApiServer, start: StartDiscovery) -> None:
    api.put(SLICES, endpoint_slice("vllm-a", ends(1, 2)))
    api.put(SLICES, endpoint_slice("vllm-b", None))
    api.page = 1
    discovery, fleet = await start(**SERVICE)
    await until_names(fleet, hosts(1, 2))
    assert discovery.current
    await api.until(lambda: api.watchers)
    verb, path, options = api.requests[0]
    assert (verb, path) == ("list", SLICES)
    assert options["labelSelector"] == "kubernetes.io/service-name in (vllm)"
    api.put(SLICES, endpoint_slice("vllm-b", ends(3)))
    await until_names(fleet, hosts(1, 2, 3))
    api.delete(SLICES, "vllm-a")
    await until_names(fleet, hosts(3))


async def test_events_may_come_in_any_pieces(api: ApiServer, start: StartDiscovery) -> None:
    api.pieces = 7
    _, fleet = await start(**SERVICE)
    await api.until(lambda: api.watchers)
    api.put(SLICES, endpoint_slice("vllm-a", ends(1)))
    api.put(SLICES, endpoint_slice("vllm-a", ends(1, 2)))
    await until_names(fleet, hosts(1, 2))


async def test_terminating_drains_at_once_and_leaves_when_idle(
    api: ApiServer, start: StartDiscovery
) -> None:
    api.put(SLICES, endpoint_slice("vllm-a", ends(1, 2)))
    _, fleet = await start(**SERVICE)
    await until_names(fleet, hosts(1, 2))
    await api.until(lambda: api.watchers)
    leaver = fleet.find("http://10.0.0.2:8000")
    leaver.load.in_flight = 1
    # With publishNotReadyAddresses a terminating endpoint still says ready.
    api.put(SLICES, endpoint_slice("vllm-a", ends(1) + ends(2, terminating=True)))
    assert await fleet.until(lambda: leaver.draining, 30)
    api.put(SLICES, endpoint_slice("vllm-a", ends(1)))
    api.put(SLICES, endpoint_slice("vllm-a", ends(1, 3)))
    await until_names(fleet, hosts(1, 2, 3))
    assert leaver.draining
    leaver.load.in_flight = 0
    await until_names(fleet, hosts(1, 3))


async def test_not_ready_keeps_its_place(api: ApiServer, start: StartDiscovery) -> None:
    api.put(SLICES, endpoint_slice("vllm-a", ends(1) + ends(2, ready=False) + ends(3, ready=None)))
    _, fleet = await start(**SERVICE)
    await until_names(fleet, hosts(1, 3))
    await api.until(lambda: api.watchers)
    one = fleet.find("http://10.0.0.1:8000")
    api.put(SLICES, endpoint_slice("vllm-a", ends(1, ready=False)))
    assert await fleet.until(lambda: one.draining, 30)
    api.put(SLICES, endpoint_slice("vllm-a", ends(1)))
    assert await fleet.until(lambda: not one.draining, 30)
    assert fleet.find("http://10.0.0.1:8000") is one


async def test_what_an_operator_drained_stays_drained(
    api: ApiServer, start: StartDiscovery
) -> None:
    api.put(SLICES, endpoint_slice("vllm-a", ends(1)))
    _, fleet = await start(**SERVICE)
    await until_names(fleet, hosts(1))
    await api.until(lambda: api.watchers)
    fleet.drain("http://10.0.0.1:8000")
    api.put(SLICES, endpoint_slice("vllm-a", ends(1, ready=False)))
    api.put(SLICES, endpoint_slice("vllm-a", ends(1, 2)))
    await until_names(fleet, hosts(1, 2))
    assert fleet.find("http://10.0.0.1:8000").draining


async def test_another_pod_at_the_same_address_is_a_new_replica(
    api: ApiServer, start: StartDiscovery
) -> None:
    api.put(SLICES, endpoint_slice("vllm-a", ends(1, uid="one")))
    _, fleet = await start(**SERVICE)
    await until_names(fleet, hosts(1))
    await api.until(lambda: api.watchers)
    before = fleet.find("http://10.0.0.1:8000")
    before.load.in_flight = 1
    api.put(SLICES, endpoint_slice("vllm-a", ends(1, uid="two")))
    assert await fleet.until(lambda: fleet.find("http://10.0.0.1:8000") is not before, 30)
    after = fleet.find("http://10.0.0.1:8000")
    assert after.slot != before.slot
    assert not after.draining


async def test_a_watch_that_ends_goes_on_where_it_was(
    api: ApiServer, start: StartDiscovery
) -> None:
    discovery, fleet = await start(**SERVICE)
    await api.until(lambda: api.watchers)
    api.put(SLICES, endpoint_slice("vllm-a", ends(1)))
    api.bookmark(SLICES)
    bookmarked = api.version
    await until_names(fleet, hosts(1))
    api.end_watches()
    await api.until(lambda: api.count("watch") == 2 and api.watchers)
    assert api.requests[-1][2]["resourceVersion"] == str(bookmarked)
    api.break_watches()
    await api.until(lambda: api.count("watch") == 3 and api.watchers)
    api.put(SLICES, endpoint_slice("vllm-a", ends(1, 2)))
    await until_names(fleet, hosts(1, 2))
    assert api.count("list") == 1
    assert discovery.current


@pytest.mark.parametrize("as_event", [True, False])
async def test_too_old_a_version_is_listed_anew(
    api: ApiServer, start: StartDiscovery, *, as_event: bool
) -> None:
    api.gone_as_event = as_event
    api.put(SLICES, endpoint_slice("vllm-a", ends(1, 2)))
    _, fleet = await start(**SERVICE)
    await until_names(fleet, hosts(1, 2))
    await api.until(lambda: api.watchers)
    kept = fleet.find("http://10.0.0.2:8000")
    api.watchers, lost = [], api.watchers
    api.put(SLICES, endpoint_slice("vllm-a", ends(2, 3)))  # nobody hears of it
    api.compact()
    for watcher in lost:
        watcher.writer.write(b"0\r\n\r\n")
    await until_names(fleet, hosts(2, 3))
    assert api.count("list") == 2
    assert fleet.find("http://10.0.0.2:8000") is kept


async def test_an_api_server_that_is_away_changes_nothing(
    api: ApiServer, start: StartDiscovery, caplog: pytest.LogCaptureFixture
) -> None:
    api.put(SLICES, endpoint_slice("vllm-a", ends(1, 2)))
    discovery, fleet = await start(**SERVICE)
    await until_names(fleet, hosts(1, 2))
    await api.until(lambda: api.watchers)
    await api.stop()
    await until(lambda: not discovery.current)
    assert names(fleet) == hosts(1, 2)
    assert "cannot be reached to watch endpointslices in namespace llm" in discovery.problem
    assert "the 2 known replicas stay" in caplog.text
    api.put(SLICES, endpoint_slice("vllm-a", ends(2, 3)))
    await api.start()
    await until_names(fleet, hosts(2, 3))
    await until(lambda: discovery.current)


@pytest.mark.parametrize("verb", ["list", "watch"])
async def test_a_verb_that_is_not_granted_is_named(
    api: ApiServer, start: StartDiscovery, caplog: pytest.LogCaptureFixture, verb: str
) -> None:
    api.put(SLICES, endpoint_slice("vllm-a", ends(1)))
    api.forbidden = frozenset({verb})
    discovery, fleet = await start(**SERVICE)
    await api.until(lambda: api.count(verb) >= 2)
    said = [line.message for line in caplog.records if line.levelno == logging.ERROR]
    assert len(said) == 1, "once, however often it is tried"
    assert f"may not {verb} endpointslices in namespace llm" in said[0]
    assert 'verbs ["list", "watch"]' in said[0]
    assert "system:serviceaccount:llm:warmroute" in said[0]
    assert not discovery.current
    api.forbidden = frozenset()
    await until_names(fleet, hosts(1))


async def test_a_token_that_was_exchanged_is_read_anew(
    api: ApiServer, start: StartDiscovery, account: Path
) -> None:
    discovery, fleet = await start(**SERVICE)
    await api.until(lambda: api.watchers)
    (account / "token").write_text("second")
    api.token = "second"
    api.end_watches()
    await api.until(lambda: api.watchers)
    api.put(SLICES, endpoint_slice("vllm-a", ends(1)))
    await until_names(fleet, hosts(1))
    assert discovery.current


async def test_stopping_does_not_wait_for_the_watch(api: ApiServer, start: StartDiscovery) -> None:
    discovery, _ = await start(**SERVICE)
    await api.until(lambda: api.watchers)
    await discovery.stop()
    # The server says nothing, and the client would wait for minutes.
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("watch ")]
    assert api.count("watch") == 1


async def test_one_namespace_that_fails_does_not_hide_the_others(
    api: ApiServer, start: StartDiscovery
) -> None:
    other = SLICES.replace("/llm/", "/other/")
    api.put(SLICES, endpoint_slice("vllm-a", ends(1)))
    api.put(other, endpoint_slice("vllm-a", ends(2), namespace="other"))
    _, fleet = await start(**SERVICE, discovery_namespaces=("llm", "other"))
    await until_names(fleet, hosts(1, 2))


async def test_all_namespaces_are_one_watch(api: ApiServer, start: StartDiscovery) -> None:
    everywhere = "/apis/discovery.k8s.io/v1/endpointslices"
    api.put(everywhere, endpoint_slice("vllm-a", ends(1)))
    _, fleet = await start(**SERVICE, discovery_namespaces=("*",))
    await until_names(fleet, hosts(1))


async def test_pods_by_label_with_their_models(api: ApiServer, start: StartDiscovery) -> None:
    api.put(PODS, pod("a", "10.0.0.1"))
    api.put(PODS, pod("b", "10.0.0.2", metadata={"labels": {}}))
    api.put(PODS, pod("pending", ""))
    _, fleet = await start(
        discovery="kubernetes",
        discovery_selector="app=vllm",
        discovery_port="api",
        discovery_model="label:model",
    )
    await until_names(fleet, hosts(1, 2))
    assert api.requests[0][2]["labelSelector"] == "app=vllm"
    one = fleet.find("http://10.0.0.1:8000")
    assert slots(fleet.serving("qwen")) == (one.slot,)
    await api.until(lambda: api.watchers)
    leaving = {"deletionTimestamp": "2026-01-01T00:00:00Z"}
    one.load.in_flight = 1
    api.put(PODS, pod("a", "10.0.0.1", metadata=leaving))
    assert await fleet.until(lambda: one.draining, 30)
    one.load.in_flight = 0
    await until_names(fleet, hosts(2))


async def test_roles_by_the_pods_labels_change_while_they_serve(
    api: ApiServer, start: StartDiscovery
) -> None:
    def put(name: str, ip: str, **labels: str) -> None:
        api.put(PODS, pod(name, ip, metadata={"labels": labels}))

    put("a", "10.0.0.1")
    put("b", "10.0.0.2", **{"llm-d.ai/role": "prefill"})
    _, fleet = await start(
        discovery="kubernetes", discovery_selector="app=vllm", discovery_port="api"
    )
    await until_names(fleet, hosts(1, 2))
    one, two = (fleet.find(f"http://{host}") for host in hosts(1, 2))
    assert (one.role, two.role, fleet.serving("")) == ("decode", "prefill", one.bit)
    await api.until(lambda: api.watchers)
    put("b", "10.0.0.2", **{"llm-d.ai/role": "prefill-decode"})
    assert await fleet.until(lambda: two.role == "both", 30)
    assert fleet.serving("") == one.bit | two.bit
    # Our own label wins.
    put("b", "10.0.0.2", **{"llm-d.ai/role": "decode", "warmroute/role": "prefill"})
    assert await fleet.until(lambda: two.role == "prefill", 30)
    assert fleet.find(two.url) is two


async def test_outside_of_a_cluster_there_is_nobody_to_ask(
    start: StartDiscovery, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "none"))
    monkeypatch.setattr(
        "kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(tmp_path / "none")
    )
    with pytest.raises(DiscoveryError, match="there is no cluster"):
        await start(**SERVICE, discovery_namespaces=("llm",))
