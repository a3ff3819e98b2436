"""Block hashes and the upper bound, against prompts spelled out token by token."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice

from hypothesis import given, settings
from hypothesis import strategies as st

from loadgen.workloads import Role, Segment, Step, UpperBound, chain, make

segments = st.builds(Segment, st.integers(0, 3), st.integers(1, 40))
prompts = st.lists(segments, min_size=1, max_size=5)


def spelled(prompt: Sequence[Segment]) -> list[tuple[int, int]]:
    """Every token by what it is. A segment's text goes on from where a shorter one's ends."""
    return [(part.id, place) for part in prompt for place in range(part.tokens)]


@given(prompts, prompts, st.integers(1, 16))
@settings(max_examples=300, deadline=None)
def test_blocks_agree_exactly_where_all_tokens_up_to_their_end_do(
    one: list[Segment], other: list[Segment], block: int
) -> None:
    first, second = chain(one, block), chain(other, block)
    assert len(first) == len(spelled(one)) // block
    for place in range(min(len(first), len(second))):
        end = (place + 1) * block
        same = spelled(one)[:end] == spelled(other)[:end]
        assert (first[place] == second[place]) == same


def brute_force(steps: Sequence[Step], block: int) -> tuple[int, int]:
    """An endless cache of every prefix there was."""
    held: set[tuple[tuple[int, int], ...]] = set()
    possible = total = 0
    for step in steps:
        prompt = spelled(step.prompt)
        depth = 0
        while depth < len(prompt) and tuple(prompt[: depth + 1]) in held:
            depth += 1
        total += len(prompt)
        possible += min(depth, len(prompt) - 1) // block * block
        whole = spelled((*step.prompt, step.output))
        held.update(tuple(whole[:end]) for end in range(1, len(whole) + 1))
    return possible, total


steps = st.builds(
    lambda prompt, number, size: Step(tuple(prompt), Segment(number, size, Role.ASSISTANT)),
    prompts,
    st.integers(0, 5),
    st.integers(1, 20),
)


@given(st.lists(steps, max_size=6), st.sampled_from([1, 4, 16]))
@settings(max_examples=200, deadline=None)
def test_the_upper_bound_is_an_endless_cache(asked: list[Step], block: int) -> None:
    bound = UpperBound(block)
    for step in asked:
        bound.add(step)
    assert (bound.possible, bound.total) == brute_force(asked, block)


def test_the_upper_bound_of_real_sessions() -> None:
    shape = {
        "system_tokens": "100",
        "tool_tokens": "40",
        "steps": "3",
        "task_tokens": "20",
        "result_tokens": "30",
        "output_tokens": "10",
        "tool_schemas": "2",
    }
    asked = [s for session in islice(make("agent", shape).sessions(1), 5) for s in session.steps]
    bound = UpperBound(16)
    for step in asked:
        bound.add(step)
    assert (bound.possible, bound.total) == brute_force(asked, 16)
    assert 0.3 < bound.hit_rate < 1


def test_sizes_weigh_what_is_matched_by_declared_lengths() -> None:
    head, tail = Segment(1, 32), Segment(2, 32)
    output = Segment(3, 8, Role.ASSISTANT)
    bound = UpperBound(1)
    assert bound.add_sized(Step((head, tail), output), [100.0, 50.0]) == (0, 150)
    assert bound.add_sized(Step((head, Segment(4, 32)), output), [100.0, 60.0]) == (100, 160)
    # Half of a longer segment was seen: half of what it takes.
    longer = Segment(2, 64)
    assert bound.add_sized(Step((head, longer), output), [100.0, 90.0]) == (145, 190)


def test_unique_prompts_have_nothing_to_reuse() -> None:
    bound = UpperBound()
    for session in islice(make("unique").sessions(0), 50):
        bound.add(session.steps[0])
    assert bound.hit_rate == 0
