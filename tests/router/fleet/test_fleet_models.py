from __future__ import annotations

import json

import pytest
from fleet_engines import models_json
from hypothesis import given
from hypothesis import strategies as st

from router.fleet.models import MAX_ABSENT_MODELS, UNBOUNDED, Catalog, ModelCard, parse_models


def test_reads_models_and_adapters_in_order() -> None:
    cards = parse_models(models_json("base", "adapter", "base"))
    assert [card.id for card in cards] == ["base", "adapter"]
    assert json.loads(cards[1].raw) == {"id": "adapter", "object": "model", "parent": None}


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b"<html>",
        b'{"data":{}}',
        b'{"data":[1]}',
        b'{"data":[{}]}',
        b'{"data":[{"id":7}]}',
        b'{"data":[{"id":""}]}',
        b'{"data":[{"id":"\xff"}]}',
        b'{"data":[' + b"[" * 100_000,
    ],
)
def test_garbage_is_a_clear_error(body: bytes) -> None:
    with pytest.raises(ValueError, match="not a list of models"):
        parse_models(body)


def test_masks_follow_what_replicas_tell() -> None:
    catalog = Catalog()
    for slot in (0, 1, 70):
        catalog.join(slot)
    assert catalog.serving("") == 1 | 2 | 1 << 70
    assert catalog.serving("a") == 0
    assert not catalog.known
    catalog.tell(0, parse_models(models_json("a")))
    catalog.tell(70, parse_models(models_json("a", "b")))
    assert catalog.known
    assert catalog.serving("a") == 1 | 1 << 70
    assert catalog.serving("b") == 1 << 70
    assert catalog.serving("c") == 0
    assert [card.id for card in catalog.union] == ["a", "b"]
    catalog.tell(70, parse_models(models_json("c")))
    assert (catalog.serving("a"), catalog.serving("b"), catalog.serving("c")) == (1, 0, 1 << 70)
    catalog.leave(0)
    assert (catalog.serving("a"), catalog.serving("")) == (0, 2 | 1 << 70)


def test_a_replica_that_does_not_tell_serves_everything() -> None:
    catalog = Catalog()
    catalog.join(0)
    catalog.join(1)
    catalog.tell_any(1)
    assert catalog.known
    assert catalog.serving("whatever") == 2
    catalog.tell(0, parse_models(models_json("a")))
    assert (catalog.serving("a"), catalog.serving("b")) == (3, 2)
    catalog.tell(1, parse_models(models_json("b")))
    assert (catalog.serving("a"), catalog.serving("b"), catalog.serving("c")) == (1, 2, 0)


Steps = st.lists(
    st.tuples(
        st.sampled_from(["tell", "any", "leave"]),
        st.integers(0, 4),
        st.sets(st.sampled_from("abc")),
    ),
    max_size=30,
)


@given(Steps)
def test_masks_are_what_replicas_told_last(steps: list[tuple[str, int, set[str]]]) -> None:
    catalog = Catalog()
    told: dict[int, set[str] | None] = {}
    for act, slot, names in steps:
        if act == "leave":
            if slot in told:
                catalog.leave(slot)
                del told[slot]
            continue
        if slot not in told:
            catalog.join(slot)
        if act == "any":
            catalog.tell_any(slot)
            told[slot] = None
        else:
            catalog.tell(slot, parse_models(models_json(*sorted(names))))
            told[slot] = names
        for name in "abcd":
            right = sum(1 << s for s, has in told.items() if has is None or name in has)
            assert catalog.serving(name) == right
        assert catalog.serving("") == sum(1 << s for s in told)
        listed = {card.id for card in catalog.union}
        assert listed == {name for has in told.values() if has for name in has}


def cards(*told: tuple[str, str, int]) -> tuple[ModelCard, ...]:
    return tuple(ModelCard(name, b"{}", parent, length) for name, parent, length in told)


def test_what_only_a_replica_that_left_served_is_away() -> None:
    catalog = Catalog()
    for slot in (0, 1):
        catalog.join(slot)
    catalog.tell(0, cards(("a", "", UNBOUNDED), ("both", "", UNBOUNDED)))
    catalog.tell(1, cards(("both", "", UNBOUNDED), ("lora", "both", UNBOUNDED)))
    catalog.leave(1)
    assert [catalog.away(name) for name in ("a", "both", "lora", "never")] == [
        *(False, False, True, False)
    ]
    assert catalog.parent("lora") == "both"
    catalog.tell(0, cards(("a", "", UNBOUNDED)))  # the engine itself serves it no more
    assert not catalog.away("both")
    catalog.join(1)
    catalog.tell(1, cards(("lora", "a", UNBOUNDED)))
    assert not catalog.away("lora")
    for number in range(MAX_ABSENT_MODELS + 10):
        catalog.tell(1, cards((f"m{number}", "", UNBOUNDED)))
        catalog.leave(1)
    assert (
        sum(catalog.away(f"m{number}") for number in range(MAX_ABSENT_MODELS + 10))
        == MAX_ABSENT_MODELS
    )


def test_lengths_are_known_where_replicas_differ() -> None:
    catalog = Catalog()
    for slot, length in enumerate((4096, 32768, 4096, UNBOUNDED)):
        catalog.join(slot)
        catalog.tell(slot, cards(("m", "", length), (f"alone{slot}", "", length)))
    assert catalog.lengths == {"m": ((4096, 0b1111), (32768, 0b1010), (UNBOUNDED, 0b1000))}
    catalog.leave(3)
    catalog.leave(1)
    assert catalog.lengths == {}


def test_the_card_with_the_most_room_is_told() -> None:
    catalog = Catalog()
    for slot, length in enumerate((4096, 32768, UNBOUNDED)):
        catalog.join(slot)
        catalog.tell(slot, (ModelCard("m", str(slot).encode(), "", length),))
    assert [card.raw for card in catalog.union] == [b"1"]


def test_replicas_of_the_same_base_models_are_alike() -> None:
    catalog = Catalog()
    for slot, name in enumerate(("a", "a", "b")):
        catalog.join(slot)
        catalog.tell(slot, cards((name, "", UNBOUNDED), (f"lora{slot}", name, UNBOUNDED)))
    assert (catalog.alike(0b001), catalog.alike(0b100), catalog.alike(0)) == (0b011, 0b100, 0)


@pytest.mark.parametrize(
    ("entry", "parent", "length"),
    [
        ('{"id":"m"}', "", UNBOUNDED),
        ('{"id":"m","parent":"b","max_model_len":4096}', "b", 4096),
        ('{"id":"m","parent":null,"max_model_len":null}', "", UNBOUNDED),
        ('{"id":"m","parent":7,"max_model_len":"4096"}', "", UNBOUNDED),
        ('{"id":"m","max_model_len":-1}', "", UNBOUNDED),
    ],
)
def test_what_a_card_tells(entry: str, parent: str, length: int) -> None:
    (card,) = parse_models(b'{"data":[%b]}' % entry.encode())
    assert (card.parent, card.length) == (parent, length)


def test_those_that_load_adapters_by_themselves_serve_what_one_of_them_serves() -> None:
    base, ada = cards(("m", "", 10)), cards(("m", "", 10), ("ada", "m", UNBOUNDED))
    other = cards(("n", "", 10))
    catalog = Catalog()
    for slot, told in enumerate((base, base, base, other)):
        catalog.join(slot)
        catalog.tell(slot, told)
    # Loaded by hand, which says nothing of the others.
    catalog.tell(0, ada)
    assert catalog.serving("ada") == 0b0001
    # It answered to another name first, and lists that now.
    catalog.answered(1, "ada")
    catalog.tell(1, ada)
    assert catalog.serving("ada") == 0b0111
    assert catalog.serving("m") == 0b0111
    # One of them has not got it after all, until it lists it.
    catalog.refuses(0b0100, "ada")
    assert catalog.serving("ada") == 0b0011
    catalog.tell(2, ada)
    catalog.tell(2, base)
    assert catalog.serving("ada") == 0b0111
    # The only one that was seen to do so left.
    catalog.leave(1)
    assert catalog.serving("ada") == 0b0001


def test_an_engine_that_answers_to_any_name_does_not_load_adapters() -> None:
    catalog = Catalog()
    for slot in range(2):
        catalog.join(slot)
        catalog.tell(slot, cards(("m", "", 10)))
    catalog.answered(0, "typo")
    catalog.tell(0, cards(("m", "", 10), ("ada", "m", UNBOUNDED)))
    assert catalog.serving("ada") == 0b01
