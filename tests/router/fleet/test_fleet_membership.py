from __future__ import annotations

import asyncio

import pytest
from fleet_engines import StartEngine, StartFleet

from router.config import Settings
from router.fleet.fleet import Fleet
from router.fleet.listener import FleetListener
from router.fleet.replica import Replica
from router.types import PREFILL_RATE_GUESS, Load


class Diary(FleetListener):
    def __init__(self) -> None:
        self.lines: list[tuple[str, str, int]] = []

    def on_added(self, replica: Replica) -> None:
        self.lines.append(("added", replica.name, replica.slot))

    def on_removed(self, replica: Replica) -> None:
        self.lines.append(("removed", replica.name, replica.slot))


def test_settings_reach_replicas_and_loads() -> None:
    fleet = Fleet(
        Settings(replicas=("http://a/x", "https://b"), prefill_rate=5.0, kv_cache_tokens=77)
    )
    one, other = fleet.members()
    assert (one.slot, one.bit, one.url, one.name) == (0, 1, "http://a/x", "a:80/x")
    assert (other.bit, other.host_header, other.tls, other.port) == (2, b"b", True, 443)
    assert one.load is fleet.loads[0]
    assert one.load.prefill_rate == 5.0
    assert (one.kv_tokens, one.kv_tokens_known) == (77, True)
    assert fleet.names() == {0: "a:80/x", 1: "b:443"}
    assert (fleet.usable, one.state) == (0, "starting")


def test_what_is_not_set_or_not_known_yet_has_one_default() -> None:
    settings = Settings(replicas=("http://a",))
    fleet = Fleet(settings)
    (replica,) = fleet.members()
    assert fleet.settings is settings
    assert (replica.kv_tokens, replica.kv_tokens_known) == (settings.kv_cache_guess, False)
    assert settings.prefill_rate == 0
    assert replica.load.prefill_rate == Load().prefill_rate == PREFILL_RATE_GUESS


def test_a_duplicate_is_refused_however_it_is_spelled() -> None:
    fleet = Fleet(Settings(replicas=("http://a:80",)))
    with pytest.raises(ValueError, match="in the fleet already"):
        fleet.add("http://A/")
    with pytest.raises(ValueError, match="in the fleet already"):
        Fleet(Settings(replicas=("http://a", "http://b", "http://a")))


def test_an_unknown_replica_is_named() -> None:
    fleet = Fleet(Settings())
    for act in (fleet.remove, fleet.drain):
        with pytest.raises(KeyError, match="http://a"):
            act("http://a")


def test_listeners_hear_of_members_there_already_and_of_changes() -> None:
    fleet, diary = Fleet(Settings(replicas=("http://a",))), Diary()
    fleet.listen(diary)
    fleet.add("http://b")
    fleet.remove("http://a:80/")
    assert diary.lines == [("added", "a:80", 0), ("added", "b:80", 1), ("removed", "a:80", 0)]


def test_a_slot_is_reused_only_when_nothing_is_in_flight_on_it() -> None:
    fleet = Fleet(Settings(replicas=("http://a", "http://b")))
    old = fleet.loads[0]
    old.in_flight = 1
    fleet.remove("http://a")
    assert fleet.add("http://a").slot == 2
    old.in_flight = 0
    newcomer = fleet.add("http://c")
    assert newcomer.slot == 0
    assert fleet.loads[0] is newcomer.load is not old


def test_outcomes_for_a_replica_that_left_are_ignored() -> None:
    fleet = Fleet(Settings(replicas=("http://a",)))
    fleet.remove("http://a")
    fleet.failed(0, "connect", 1.0)
    fleet.succeeded(0, 1.0)
    fleet.admitted(0)
    fleet.withdrawn(0)
    assert (fleet.usable, fleet.serving("")) == (0, 0)


async def test_members_join_and_leave_while_it_runs(engine: StartEngine, fleet: StartFleet) -> None:
    first, second = await engine(), await engine()
    running = await fleet(first)
    assert running.usable == 1
    added = running.add(second.url)
    assert await running.until(lambda: running.usable == 3, 10)
    assert running.serving("m") == 3
    running.remove(first.url)
    assert (running.usable, running.serving("m"), running.serving("")) == (2, 2, 2)
    before = first.asked.total()
    again = running.add(first.url)
    assert (again.slot, again.restarts, again.tried) == (0, 0, False)
    assert await running.until(lambda: running.usable == 3, 10)
    assert first.asked.total() > before
    assert added.state == "ready"


async def test_removing_stops_its_tasks_at_once(engine: StartEngine, fleet: StartFleet) -> None:
    server = await engine()
    running = await fleet(server, health_timeout=5.0, metrics_interval=0.01)
    server.frozen = frozenset({"/metrics"})
    await server.asked_again("/metrics", 1)
    running.remove(server.url)
    await asyncio.sleep(0)
    names = {task.get_name() for task in asyncio.all_tasks()}
    await running.stop()
    assert not {t.get_name() for t in asyncio.all_tasks()} & {n for n in names if " 127" in n}


async def test_draining_takes_nothing_new_and_stays_a_member(
    engine: StartEngine, fleet: StartFleet
) -> None:
    server = await engine()
    running = await fleet(server)
    replica = running.drain(server.url)
    assert (running.usable, replica.state, running.serving("m")) == (0, "draining", 1)
    assert running.last_resort("m") == 0
    await server.asked_again("/health", 2)
    assert running.usable == 0


async def test_an_empty_fleet_runs(fleet: StartFleet) -> None:
    running = await fleet()
    assert (running.usable, running.models_known) == (0, False)
    assert running.models_body() == b'{"object":"list","data":[]}'


async def test_starting_twice_is_refused(engine: StartEngine, fleet: StartFleet) -> None:
    running = await fleet(await engine())
    with pytest.raises(RuntimeError, match="runs already"):
        await running.start()


def test_roles_are_as_the_settings_list_them_and_may_be_given() -> None:
    fleet = Fleet(
        Settings(replicas=("http://a", "http://b"), prefill=("http://b", "http://c:8000"))
    )
    a, b, c = fleet.members()
    assert [one.role for one in (a, b, c)] == ["decode", "both", "prefill"]
    assert fleet.serving("") == a.bit | b.bit
    fleet.usable = 7
    assert fleet.may_prefill("") == b.bit | c.bit
    d = fleet.add("http://d", role="prefill")
    fleet.usable = 15
    assert (fleet.serving(""), fleet.may_prefill("")) == (3, b.bit | c.bit | d.bit)
    fleet.remove("http://c:8000")
    fleet.remove("http://d")
    # Who takes their slots is not taken for them.
    e = fleet.add("http://e")
    assert e.bit in (c.bit, d.bit)
    assert (fleet.serving(""), fleet.may_prefill("") & e.bit) == (3 | e.bit, 0)
