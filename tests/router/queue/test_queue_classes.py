"""Who may say which class a request is of."""

from __future__ import annotations

import msgspec
import pytest

from router.queue.classes import PLAIN, Classifier, Hints, objectives


class Somebody(msgspec.Struct, frozen=True):
    tenant: str
    priority_cap: int | None = None


def of(hints: Hints | None = None, body: int | None = None, who: Somebody | None = None, *,
       trusted: bool = False, limit: float = 0.0) -> tuple[int, str, float]:  # fmt: skip
    classify = Classifier(trusted=trusted, limit=limit, names=objectives("chat=high, nightly=low"))
    found = classify(hints, body, who)
    return found.priority, found.tenant, found.limit


def test_a_request_that_says_nothing_costs_nothing() -> None:
    assert Classifier(trusted=False, limit=0.0, names={})(None, None, None) is PLAIN


@pytest.mark.parametrize(
    ("hints", "body", "trusted", "priority"),
    [
        (Hints(objective=b"nightly"), None, False, 1),
        (Hints(objective=b"chat"), None, False, 0),
        (Hints(objective=b"chat"), None, True, -1),
        (Hints(objective=b"high"), None, True, -1),
        (Hints(objective=b"unheard-of"), None, True, 0),
        (Hints(objective=b"unheard-of"), 1, True, 1),
        (Hints(priority=b"5"), None, True, -1),
        (Hints(priority=b"5"), None, False, 0),
        (Hints(priority=b"-5"), None, False, 1),
        (Hints(priority=b"nan"), None, True, 0),
        (Hints(priority=b"1e400"), None, True, 0),
        (Hints(priority=b"\xff"), None, True, 0),
        (None, 1, False, 1),
        (None, -1, False, 0),
        (None, -1, True, -1),
    ],
)
def test_clients_may_only_lower_their_priority_unless_trusted(
    hints: Hints | None, body: int | None, trusted: bool, priority: int
) -> None:
    assert of(hints, body, trusted=trusted)[0] == priority


def test_a_tenant_is_named_by_a_trusted_header_else_by_the_key() -> None:
    said = Hints(tenant=b"acme", key=b"Bearer sk-1")
    assert of(said, trusted=True)[1] == "acme"
    by_key = of(said)[1]
    assert by_key.startswith("key-")
    assert "sk-1" not in by_key
    assert of(Hints(key=b"Bearer sk-1"))[1] == by_key
    assert of(Hints(key=b"Bearer sk-2"))[1] != by_key
    assert len(of(Hints(tenant=b"x" * 5000), trusted=True)[1]) == 32


def test_a_known_tenant_is_taken_before_what_headers_say() -> None:
    said = Hints(tenant=b"other", key=b"k", objective=b"high")
    assert of(said, who=Somebody("acme"), trusted=True)[:2] == (-1, "acme")
    assert of(said, who=Somebody("acme"))[:2] == (0, "acme")
    assert of(said, who=Somebody("acme", -1))[:2] == (-1, "acme")
    assert of(said, who=Somebody("acme", 1), trusted=True)[:2] == (1, "acme")
    assert of(None, who=Somebody("acme", 1))[:2] == (1, "acme")
    assert of(None, who=Somebody("acme", -1))[:2] == (0, "acme")


def test_a_limit_may_be_lowered() -> None:
    assert of(Hints(limit=b"1500"))[2] == 1.5
    assert of(Hints(limit=b"1500"), limit=1.0)[2] == 1.0
    assert of(Hints(limit=b"500"), limit=1.0)[2] == 0.5
    assert of(Hints(limit=b"soon"), limit=1.0)[2] == 1.0
    assert of(None, limit=1.0)[2] == 1.0


def test_objectives_are_checked() -> None:
    assert objectives("a=high,b=low,") == {"a": -1, "b": 1}
    with pytest.raises(ValueError, match="'a=higher' is not NAME=PRIORITY"):
        objectives("a=higher")
