"""docs/design/policies.md says what is there, and its example runs."""

from __future__ import annotations

import inspect
import re
from pathlib import Path

import pytest

from router.policies import BUILT_IN, load_policy
from router.policies import cache_aware as formula
from router.types import Load, RoutingRequest

DOCS = (Path(__file__).parents[3] / "docs" / "design" / "policies.md").read_text()


def test_the_example_is_a_policy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (example,) = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
    assert len(example.splitlines()) <= 24
    (tmp_path / "documented_policy.py").write_text(example)
    monkeypatch.syspath_prepend(tmp_path)
    policy = load_policy("documented_policy:Polite", most=1)
    policy.members({0: "a", 1: "b", 2: "c"})
    loads = [Load(), Load(), Load()]
    ask = RoutingRequest(0b111, 100.0, [(80.0, 0b100)], 10.0, "", 0, 1.0)
    assert policy.choose(ask, loads).slot == 2
    loads[2].in_flight = 1
    choice = policy.choose(ask, loads)
    assert (choice.slot, choice.reason) == (0, "busy")


def test_every_policy_is_described() -> None:
    rows = re.findall(r"^\| `(\w+)`", DOCS, re.MULTILINE)
    assert sorted(rows) == sorted(BUILT_IN)


def test_the_options_are_the_ones_described() -> None:
    (text,) = re.findall(r"an argument of `CacheAware`: (.*?), `seed`", DOCS)
    described = dict(re.findall(r"`(\w+)` ([\d.]+)", text))
    for name, value in described.items():
        assert getattr(formula, name.upper()) == float(value)
        load_policy("cache_aware", **{name: float(value)})
    taken = inspect.signature(formula.CacheAware).parameters
    assert [*described, "seed"] == list(taken)
