"""The comparison that docs/design/results.md shows, small, on real engines."""

from __future__ import annotations

from bench.two_engines import ARMS, Load, measure
from loadgen.reproduce.engines import section

FEW = Load(
    sessions=2,
    requests=16,
    repeats=1,
    numbers=(
        *("applications=3", "tool_schemas=1", "tool_tokens=100", "system_tokens=150", "steps=4"),
        *("task_tokens=50", "result_tokens=50", "output_tokens=4", "most_tokens=2500"),
        *("tool_pause=0.1", "resume_pause=0.2"),
    ),
)


def test_policies_are_compared_on_real_engines(urls: list[str]) -> None:
    results = measure(urls, FEW)
    assert [arm.name for arm in results.arms] == ARMS.split(",")
    for arm in results.arms:
        assert arm.errors == {}
        assert arm.completed == arm.requests >= FEW.requests
        assert arm.hit_rate is not None
        assert 0 < arm.hit_rate < arm.upper_bound + 0.05
        assert arm.reuse is not None
        assert arm.reuse.delivered == arm.cached_tokens
    text = section(results)
    assert "Two vLLM 0." in text
    assert all(f"| {arm.name} |" in text for arm in results.arms)
