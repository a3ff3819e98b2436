"""From EndpointSlices and pods, as the API writes them, to targets."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from api_server import endpoint, endpoint_slice

from router.discovery.objects import EndpointSlice, Pod, Reading, pod_targets, slice_targets
from router.discovery.target import Target


def slices(*objects: dict[str, Any]) -> list[EndpointSlice]:
    return [msgspec.convert(each, EndpointSlice) for each in objects]


def targets(*objects: dict[str, Any], **how: str) -> tuple[list[Target], list[str]]:
    notes: list[str] = []
    return slice_targets(slices(*objects), Reading(**how), notes.append), notes


TWO = [{"name": "http", "port": 8000, "protocol": "TCP"}, {"name": "kv", "port": 5557}]


def test_a_pod_of_two_address_families_is_one_target() -> None:
    four = endpoint_slice("b", [endpoint("http://10.0.0.1", uid="u")])
    six = endpoint_slice("a", [endpoint("http://[fd00::1]", uid="u")], family="IPv6")
    found, _ = targets(six, four)
    assert [target.url for target in found] == ["http://10.0.0.1:8000"]
    found, _ = targets(six)
    assert [target.url for target in found] == ["http://[fd00::1]:8000"]


def test_a_pod_of_two_services_takes_requests_while_one_says_so() -> None:
    ready = endpoint_slice("a", [endpoint("http://10.0.0.1")], service="x")
    unready = endpoint_slice("b", [endpoint("http://10.0.0.1", ready=False)], service="y")
    for order in ((ready, unready), (unready, ready)):
        (target,), _ = targets(*order)
        assert target.ready


@pytest.mark.parametrize(("port", "expected"), [("http", 8000), ("kv", 5557), ("9000", 9000)])
def test_the_port_by_name_or_number(port: str, expected: int) -> None:
    found, _ = targets(endpoint_slice("a", [endpoint("http://10.0.0.1")], ports=TWO), port=port)
    assert [target.url for target in found] == [f"http://10.0.0.1:{expected}"]


@pytest.mark.parametrize(
    ("port", "text"),
    [
        ("", "set discovery_port to choose one of its ports: http (8000), kv (5557)"),
        ("api", "no port 'api'; set discovery_port to one of: http (8000)"),
    ],
)
def test_a_port_that_is_not_clear_is_told(port: str, text: str) -> None:
    found, notes = targets(endpoint_slice("a", [endpoint("http://10.0.0.1")], ports=TWO), port=port)
    assert not found
    assert text in notes[0]
    assert "Service llm/vllm" in notes[0]


def test_models_by_the_services_label() -> None:
    one = endpoint_slice("a", [endpoint("http://10.0.0.1")], labels={"m": "qwen, llama"})
    found, _ = targets(one, model="label:m")
    assert found[0].models == ("qwen", "llama")
    found, _ = targets(one, model="label:other")
    assert found[0].models == ()


def test_https() -> None:
    found, _ = targets(endpoint_slice("a", [endpoint("http://10.0.0.1")]), scheme="https")
    assert found[0].url == "https://10.0.0.1:8000"


def pods(annotation: str) -> list[Pod]:
    return [
        msgspec.convert(
            {
                "metadata": {"name": "a", "namespace": "n", "annotations": {"x/port": annotation}},
                "spec": {"containers": [{"ports": None}]},
                "status": {"phase": phase, "podIP": "10.0.0.1"},
            },
            Pod,
        )
        for phase in ("Running", "Failed")
    ]


def test_a_pods_port_by_annotation() -> None:
    notes: list[str] = []
    how = Reading("annotation:x/port")
    (target,) = pod_targets(pods("8123"), how, notes.append)
    assert target.url == "http://10.0.0.1:8123"
    assert not target.ready
    assert pod_targets(pods("http"), how, notes.append) == []
    assert "pod n/a: annotation x/port is 'http'" in notes[0]


def test_the_role_by_the_services_label() -> None:
    ends = [endpoint("http://10.0.0.1")]
    one = endpoint_slice("a", ends, labels={"llm-d.ai/role": "prefill"})
    found, notes = targets(one)
    assert (found[0].role, notes) == ("prefill", [])


def test_a_role_that_is_not_known_is_told_and_answers_clients() -> None:
    one = endpoint_slice("a", [endpoint("http://10.0.0.1")], labels={"warmroute/role": "encode"})
    found, notes = targets(one)
    assert found[0].role == "decode"
    assert "label warmroute/role is 'encode'" in notes[0]
    assert "decode, prefill, both, prefill-decode" in notes[0]
