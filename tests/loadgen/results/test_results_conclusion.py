"""The conclusion of a sweep."""

from __future__ import annotations

from loadgen.results.conclusion import conclude
from loadgen.results.metrics import summarise
from loadgen.results.records import Records
from loadgen.results.schema import Arm, Difference


def arm(name: str, ttft: float, load: float) -> Arm:
    records = Records()
    for number in range(20):
        records.add(
            session=number, step=0, scheduled=number, sent=number, first=number + ttft,
            end=number + 2, tokens=100, possible_tokens=90, prompt_tokens=100, cached_tokens=50,
            output_tokens=11,
        )  # fmt: skip
    return summarise(name, records, load=load)


def test_it_is_of_the_highest_load_with_its_own_differences() -> None:
    arms = [arm(name, ttft, load) for load in (8.0, 4.0) for name, ttft in (("a", 1), ("b", 0.5))]
    unsure = Difference("ttft_ms.p90", "a", "b", -500.0, -900.0, 100.0, -0.5, load=4.0)
    sure = Difference("ttft_ms.p90", "a", "b", -500.0, -600.0, -400.0, -0.5, load=8.0)
    text = conclude(arms, [sure, unsure], "replicas")
    assert text.startswith("At 8 replicas: b and a both reused 50%")
    assert "2.0 times shorter at p90" in text
    other_way = [Difference("ttft_ms.p90", "a", "b", -500.0, -900.0, 100.0, -0.5, load=8.0)]
    assert "not clearly different at p90" in conclude(arms, other_way)
    assert conclude(arms, []).startswith("At load 8: ")
