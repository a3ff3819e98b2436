"""Published headlines in our model: what the page says follows from what was simulated."""

from __future__ import annotations

import msgspec
import pytest

from loadgen.reproduce.headlines import HEADLINES, arms_of, section, verdict
from loadgen.reproduce.measured import presets
from loadgen.results.metrics import NO_LATENCY
from loadgen.results.schema import Arm, Latency


@pytest.mark.parametrize("headline", HEADLINES, ids=lambda each: each.title)
def test_every_headline_can_be_played(headline) -> None:  # type: ignore[no-untyped-def]
    load = headline.loads[0]
    arms = arms_of(headline, load, (1,), 0.02)
    assert [arm.name for arm in arms] == list(headline.arms)
    for arm in arms:
        assert arm.completed
        assert not arm.errors
    text = section(headline, {load: arms})
    assert text.count("\n| ") == len(arms) + 1
    for said in (headline.published, headline.taken, headline.gap):
        assert said in text


def test_a_knee_is_the_highest_load_that_is_held() -> None:
    ladder = HEADLINES[0]
    (first, *_) = arms_of(ladder, 10.0, (1,), 0.02)

    def at(seconds: float) -> Arm:
        latency = Latency(9, 1.0, 0.0, 1.0, seconds * 1e3, 1.0, 1.0, 1.0)
        return msgspec.structs.replace(first, ttft_ms=latency)

    found = {
        10.0: [at(0.1), at(3.0), at(0.1), at(0.1)],
        20.0: [at(1.9), at(9.0), at(2.1), at(0.1)],
    }
    assert verdict(ladder, found) == (
        "the knees are `round_robin` 20 or more, `peer_llmd_approximate` below 10, "
        "`peer_llmd_precise` 10, `cache_aware` 20 or more requests/s."
    )
    nothing = msgspec.structs.replace(first, ttft_ms=NO_LATENCY)
    assert "below 10" in verdict(ladder, {10.0: [nothing] * 4})


def test_presets_stand_beside_what_was_measured() -> None:
    text = presets()
    assert "15,928 tokens/s" in text
    assert "18,0" in text
    assert "833.4 ms" in text
    assert "2,077.5 ms" in text
