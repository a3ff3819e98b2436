"""Discovery by names and by a file."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest
from discovery_world import StartDiscovery, names, until, until_names

from router.discovery.file import parse_targets
from router.types import slots


class Resolver:
    """What the event loop's getaddrinfo answers."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.addresses: list[str] = []
        self.asked: list[str] = []
        monkeypatch.setattr(socket, "getaddrinfo", self)

    def __call__(self, host: str, port: int, *_: object, **__: object) -> list[object]:
        self.asked.append(host)
        if not self.addresses:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [
            (
                socket.AF_INET6 if ":" in address else socket.AF_INET,
                socket.SOCK_STREAM,
                6,
                "",
                (address, port),
            )
            for address in self.addresses
        ]


async def test_every_address_of_a_name_is_a_replica(
    start: StartDiscovery, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolver = Resolver(monkeypatch)
    resolver.addresses = ["10.0.0.2", "10.0.0.1", "fd00::1"]
    discovery, fleet = await start(
        discovery="dns", discovery_dns=("http://vllm.llm.svc:8000",), discovery_interval=0.02
    )
    await until_names(fleet, ["10.0.0.1:8000", "10.0.0.2:8000"])
    assert set(resolver.asked) == {"vllm.llm.svc"}
    gone = fleet.find("http://10.0.0.1:8000")
    resolver.addresses = ["10.0.0.2", "10.0.0.3"]
    await until_names(fleet, ["10.0.0.2:8000", "10.0.0.3:8000"])
    assert gone.draining
    resolver.addresses = []
    await until(lambda: not discovery.current)
    assert "vllm.llm.svc does not resolve" in discovery.problem
    assert names(fleet) == ["10.0.0.2:8000", "10.0.0.3:8000"]


async def test_an_address_missed_once_keeps_its_cache(
    start: StartDiscovery, monkeypatch: pytest.MonkeyPatch
) -> None:
    resolver = Resolver(monkeypatch)
    resolver.addresses = ["10.0.0.1", "10.0.0.2"]
    _, fleet = await start(
        discovery="dns", discovery_dns=("http://vllm:8000/x",), discovery_interval=0.2
    )
    await until_names(fleet, ["10.0.0.1:8000/x", "10.0.0.2:8000/x"])
    one = fleet.find("http://10.0.0.1:8000/x")
    resolver.addresses = ["10.0.0.2"]
    assert await fleet.until(lambda: one.draining, 30)
    resolver.addresses = ["10.0.0.1", "10.0.0.2"]
    assert await fleet.until(lambda: not one.draining, 30)
    assert fleet.find("http://10.0.0.1:8000/x") is one


async def test_a_file_is_watched_and_its_faults_change_nothing(
    start: StartDiscovery, tmp_path: Path
) -> None:
    path = tmp_path / "replicas.yaml"
    discovery, fleet = await start(
        discovery="file", discovery_file=str(path), discovery_interval=0.02
    )

    async def until_problem(part: str) -> None:
        await until(lambda: part in discovery.problem)

    await until_problem("No such file")
    path.write_text("- http://10.0.0.1:8000\n- {url: 'http://10.0.0.2:8000', models: [m], id: a}\n")
    await until_names(fleet, ["10.0.0.1:8000", "10.0.0.2:8000"])
    assert discovery.current
    before = fleet.find("http://10.0.0.2:8000")
    assert slots(fleet.serving("m")) == (before.slot,)
    path.write_text("- http://10.0.0.1:8000\n- nonsense\n")
    await until_problem("entry 2")
    assert len(fleet.members()) == 2
    for nothing in ("", "\n", "# soon\n", "---\n"):
        path.write_text("- nonsense\n")
        await until_problem("entry 1")
        path.write_text(nothing)
        await until_problem("it is empty")
        assert [member.draining for member in fleet.members()] == [False, False]
    path.write_text("- {url: 'http://10.0.0.2:8000', models: [m2], id: b}\n")
    await until_names(fleet, ["10.0.0.2:8000"])
    after = fleet.find("http://10.0.0.2:8000")
    assert after is not before
    assert not fleet.serving("m")
    assert slots(fleet.serving("m2")) == (after.slot,)


async def test_roles_by_a_file_change_while_it_serves(
    start: StartDiscovery, tmp_path: Path
) -> None:
    path = tmp_path / "replicas.yaml"

    def write(role: str) -> None:
        # Whole at once: a file half written is another one.
        other = tmp_path / "next"
        other.write_text(
            "- {url: 'http://10.0.0.1:8000', models: [m]}\n"
            f"- {{url: 'http://10.0.0.2:8000', models: [m], role: {role}}}\n"
        )
        other.replace(path)

    write("prefill")
    _, fleet = await start(discovery="file", discovery_file=str(path), discovery_interval=0.02)
    await until_names(fleet, ["10.0.0.1:8000", "10.0.0.2:8000"])
    one, two = (fleet.find(f"http://10.0.0.{number}:8000") for number in (1, 2))
    assert (one.role, two.role) == ("decode", "prefill")
    fleet.usable = one.bit | two.bit
    assert (fleet.serving("m"), fleet.serving("")) == (one.bit, one.bit)
    assert fleet.may_prefill("m") == two.bit
    write("both")
    assert await fleet.until(lambda: two.role == "both", 30)
    assert (fleet.serving("m"), fleet.may_prefill("m")) == (one.bit | two.bit, two.bit)
    write("decode")
    assert await fleet.until(lambda: two.role == "decode", 30)
    assert (fleet.serving("m"), fleet.may_prefill("m")) == (one.bit | two.bit, 0)
    assert fleet.find(two.url) is two


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("a: b", "not a list"),
        ("- [1", "not YAML"),
        ("- !!bool maybe", "not YAML"),
        ("- !!timestamp x", "not YAML"),
        ("[" * 5000, "not YAML"),
        ("- 7", "entry 1: Expected `object`"),
        ("- {url: 'http://a', modles: []}", "entry 1: .*modles"),
        ("- {url: 'http://a', role: encode}", "entry 1: .*encode.*role"),
        ("- http://a\n- http://a:80/", "entry 2: http://a is listed twice"),
    ],
)
def test_what_is_wrong_with_a_file_is_told(text: str, wrong: str) -> None:
    with pytest.raises(ValueError, match=wrong):
        parse_targets(text.encode())


def test_an_empty_list_is_an_empty_fleet() -> None:
    assert parse_targets(b"[] # none\n") == []
