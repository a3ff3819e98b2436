"""Where a prompt is prefilled."""

from __future__ import annotations

from array import array

import pytest
from prompts import prompt_of

from router.disaggregation.choice import HANDSHAKE_SECONDS, TransferSpeed, choose
from router.index import ByteIndex
from router.policies import load_policy
from router.scheduling.placer import Placement, Placer
from router.types import Load

BLOCK = 256
CHAIN = array("Q", range(1, 101))
RATE = 10_000.0
SPEED = TransferSpeed()


def placer() -> Placer:
    """Replica 0 answers; 1 and 2 prefill."""
    index = ByteIndex(range(0, 1000 * BLOCK, BLOCK))
    for slot in range(3):
        index.add_replica(slot, 10**9)
    policy = load_policy("cache_aware")
    policy.members({slot: str(slot) for slot in range(3)})
    return Placer(index, policy, [Load(prefill_rate=RATE) for _ in range(3)])


def placed(place: Placer, beside: int) -> Placement:
    for _ in range(beside):
        place.place(prompt_of(array("Q", [999]), BLOCK), 1, 0.0).first_token(0.0)
    return place.place(prompt_of(CHAIN, len(CHAIN) * BLOCK), 1, 0.0)


def chosen(place: Placer, request: Placement, answering: int = 1) -> int:
    mask = 0b110
    return choose(request, request.uncached, mask, answering, place.index, SPEED, 0.0).slot


def test_an_idle_replica_prefills_by_itself() -> None:
    place = placer()
    request = placed(place, 0)
    assert chosen(place, request) == -1
    found = choose(request, request.uncached, 0b110, 1, place.index, SPEED, 0.0)
    own = request.uncached / RATE
    assert found.local == pytest.approx(own)
    moved = request.uncached * SPEED.seconds_per_token
    assert found.remote == pytest.approx(own + HANDSHAKE_SECONDS + moved, rel=1e-3)


def test_who_decodes_beside_it_is_spared() -> None:
    place = placer()
    assert chosen(place, placed(place, 4)) in (1, 2)


def test_the_prefill_replica_that_holds_it_is_taken() -> None:
    place = placer()
    place.index.record(2, CHAIN, 0.0)
    assert chosen(place, placed(place, 4)) == 2
    # Unless it is busy for longer than the other one takes.
    place = placer()
    place.index.record(2, CHAIN, 0.0)
    place.loads[2].busy_until = 60.0
    assert chosen(place, placed(place, 4)) == 1


def test_what_decodes_on_the_prefill_replica_counts_where_it_answers_too() -> None:
    place = placer()
    request = placed(place, 4)
    for load in place.loads[1:]:
        load.in_flight = 5
    assert chosen(place, request, answering=0b001) in (1, 2)
    assert chosen(place, request, answering=0b111) == -1
    place.loads[1].in_flight = 0
    assert chosen(place, request, answering=0b111) == 1


def test_one_slow_transfer_does_not_end_splitting() -> None:
    place = placer()
    request = placed(place, 4)
    speed = TransferSpeed()
    speed.saw(600.0, 10.0)  # two engines that got to know each other

    def slot() -> int:
        return choose(request, request.uncached, 0b110, 1, place.index, speed, 0.0).slot

    assert slot() in (1, 2)
    # A network that is slow does.
    for _ in range(100):
        speed.saw(600.0, 10.0)
    assert slot() == -1
    # It is tried again after a while.
    assert any(slot() in (1, 2) for _ in range(2000))


def test_fast_transfers_are_learned() -> None:
    speed = TransferSpeed()
    for _ in range(100):
        speed.saw(1000.0, HANDSHAKE_SECONDS)
    assert speed.seconds_per_token < 1e-9
    speed.saw(1000.0, HANDSHAKE_SECONDS + 1000.0 * 5e-6)
    assert speed.seconds_per_token == pytest.approx(1e-6)
