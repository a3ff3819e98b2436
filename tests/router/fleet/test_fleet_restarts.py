from __future__ import annotations

from router.fleet.engine_metrics import EngineMetrics
from router.fleet.restarts import restarted

M = EngineMetrics


def test_another_start_time_is_a_restart() -> None:
    assert "start time" in restarted(M(started=100.0), M(started=160.0), False)
    assert not restarted(M(started=100.0), M(started=100.4), False)


def test_the_same_start_time_clears_a_replica_that_refused() -> None:
    assert not restarted(M(started=100.0), M(started=100.0), True)


def test_counters_that_fall_are_a_restart() -> None:
    assert "anew" in restarted(M(queries=10.0), M(queries=9.0), False)
    assert "anew" in restarted(M(prompts=3.0), M(prompts=0.0), False)
    assert not restarted(M(queries=10.0, prompts=3.0), M(queries=10.0, prompts=4.0), False)
    # behind one address, another process with the same start time
    assert "anew" in restarted(M(started=1.0, queries=10.0), M(started=1.0, queries=9.0), False)


def test_with_nothing_to_compare_refusing_connections_counts() -> None:
    for before, after in ((None, None), (M(queries=1.0), M(queries=2.0)), (M(started=1.0), M())):
        assert "refused" in restarted(before, after, True)
        assert not restarted(before, after, False)
