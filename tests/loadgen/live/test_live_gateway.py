"""Arms of a comparison that are the gateway in exact mode."""

from __future__ import annotations

import pytest

from loadgen.live import gateway
from loadgen.live.compare import start_replicas
from loadgen.live.processes import ChildError, Children, run_async
from loadgen.simulate.arms import ARRANGEMENTS


def test_an_exact_arm_begins_only_when_every_replica_is_exact(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Simulated replicas publish no KV events unless asked to: the arm fails and says why."""
    monkeypatch.setattr(gateway, "EXACT_SECONDS", 3.0)
    with Children() as children:
        urls = run_async(start_replicas(children, 1, ["--preset", "quick"]))
        with pytest.raises(ChildError, match=r"not exact after 3 s: 127\.0\.0\.1:.*event"):
            run_async(gateway.start_gateway(children, urls, "cache_aware_exact"))


def test_exact_arms_are_called_as_in_a_simulation() -> None:
    for name in gateway.EXACT_ARMS:
        assert ARRANGEMENTS[name].exact
