"""Block boundaries."""

from itertools import pairwise

import pytest

from router.prompt.spans import FIRST_BLOCK, GROWTH, LARGEST_BLOCK, LONGEST_PROMPT, SPANS, spans


def test_spans_cover_the_longest_prompt_without_gaps():
    assert SPANS[0] == 0
    assert SPANS[-1] >= LONGEST_PROMPT
    assert all(start < end for start, end in pairwise(SPANS))


def test_block_sizes_grow_within_their_bounds():
    sizes = [end - start for start, end in pairwise(SPANS)]
    assert sizes[0] == FIRST_BLOCK
    assert sizes[-1] == LARGEST_BLOCK
    assert sizes == sorted(sizes)


def test_a_block_is_small_beside_what_comes_before_it():
    for start, end in pairwise(SPANS):
        assert end - start == FIRST_BLOCK or (end - start) * GROWTH <= start


@pytest.mark.parametrize("size", [128, 1024])
def test_fixed_blocks(size):
    assert spans(first=size, largest=size, longest=4096) == tuple(range(0, 4097, size))
