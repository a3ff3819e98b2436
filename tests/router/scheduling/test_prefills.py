from __future__ import annotations

from array import array

from hypothesis import given, settings
from hypothesis import strategies as st

from router.scheduling.prefills import Prefill, Prefills
from router.types import Chain

SPANS = (0, 256, 512, 1024, 2048, 4096, 8192)


def chain(*names: int) -> Chain:
    """Blocks by what is in them; each hash covers what comes before it."""
    hashes, before = array("Q"), 0
    for name in names:
        before = hash((before, name)) % (1 << 60)
        hashes.append(before)
    return hashes


def test_what_is_computed_for_one_is_told_to_those_who_share_it() -> None:
    prefills = Prefills(SPANS)
    first = prefills.begin(3, chain(1, 2, 3, 4), held=256)
    assert first is not None
    assert prefills.shared(chain(1, 2, 3, 9), 3) == {3: 1024 - 256}
    assert prefills.shared(chain(1, 9, 3, 4), 1) == {}
    assert prefills.shared(chain(7, 2, 3, 4), 0) == {}
    prefills.end(first)
    assert not prefills.starts
    assert prefills.shared(chain(1, 2, 3, 9), 3) == {}


def test_nothing_is_computed_of_a_prompt_held_whole() -> None:
    prefills = Prefills(SPANS)
    assert prefills.begin(0, chain(1, 2), held=512) is None
    assert prefills.begin(0, chain(1, 2), held=511.9) is not None


def test_nothing_beyond_what_is_held_is_shared() -> None:
    """The index may know less of a chain than the prefills do."""
    prefills = Prefills(SPANS)
    prefills.begin(0, chain(1, 2, 3, 4), held=0)
    assert prefills.shared(chain(1, 2, 3, 4), 2) == {0: 512}


@settings(max_examples=150)
@given(
    asked=st.lists(
        st.tuples(
            st.integers(0, 2),
            st.lists(st.integers(0, 1), min_size=1, max_size=6),
            st.integers(0, 8192),
            st.booleans(),
        ),
        max_size=14,
    ),
    prompt=st.lists(st.integers(0, 1), min_size=1, max_size=6),
    blocks=st.integers(0, 6),
)
def test_it_is_what_a_naive_model_says(
    asked: list[tuple[int, list[int], int, bool]], prompt: list[int], blocks: int
) -> None:
    prefills = Prefills(SPANS)
    under_way: list[tuple[int, list[int], int]] = []
    for slot, names, held, ends in asked:
        start = max(n for n, weight in enumerate(SPANS) if weight <= held)
        prefill = prefills.begin(slot, chain(*names), held)
        assert (prefill is None) == (start >= len(names))
        if prefill is None:
            continue
        assert isinstance(prefill, Prefill)
        if ends:
            prefills.end(prefill)
        else:
            under_way.append((slot, names, start))
    assert sum(map(len, prefills.starts.values())) == len(under_way)
    most = min(blocks, len(prompt))
    expected: dict[int, int] = {}
    for slot, names, start in under_way:
        same = 0
        while same < min(len(names), most) and names[same] == prompt[same]:
            same += 1
        if same > start:
            expected[slot] = expected.get(slot, 0) + SPANS[same] - SPANS[start]
    assert prefills.shared(chain(*prompt), most) == expected
