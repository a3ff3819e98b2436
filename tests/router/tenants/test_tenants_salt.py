"""Salts, and how they get into bodies."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.tenants.salt import Salter, derive, mixed, own_salt, system_prompt, with_salt

SECRET = "0123456789abcdef0123456789abcdef"


def test_parts_cannot_be_shifted_into_each_other() -> None:
    assert derive(b"s", ["ab", "c"]) != derive(b"s", ["a", "bc"])
    assert len(derive(b"s", ["acme"])) == 43


def test_levels_tell_apart_what_they_say() -> None:
    tenant, key, user = (Salter(level, [SECRET]) for level in ("tenant", "key", "user"))
    assert tenant.salt("acme", "jo", "k1") == tenant.salt("acme", "al", "k2")
    assert tenant.salt("acme", "", "") != tenant.salt("beta", "", "")
    assert key.salt("acme", "", "k1") != key.salt("acme", "", "k2")
    assert user.salt("acme", "jo", "k1") == user.salt("acme", "jo", "k2")
    assert user.salt("acme", "k1", "") != user.salt("acme", "", "k1")


def test_a_share_of_the_tenants_has_the_new_secret() -> None:
    names = [f"t{number}" for number in range(1000)]
    old, new = Salter("tenant", [SECRET]), Salter("tenant", ["n" * 32])
    between = Salter("tenant", ["n" * 32, SECRET], 0.3)
    moved = [name for name in names if between.salt(name, "", "") == new.salt(name, "", "")]
    stayed = [name for name in names if between.salt(name, "", "") == old.salt(name, "", "")]
    assert len(moved) + len(stayed) == 1000
    assert 200 < len(moved) < 400
    further = Salter("tenant", ["n" * 32, SECRET], 0.6)
    assert all(further.salt(name, "", "") == new.salt(name, "", "") for name in moved)


BODIES = st.dictionaries(
    st.text(max_size=12),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=20),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=6,
    ),
    max_size=5,
)


@given(BODIES, st.booleans(), st.sampled_from([None, 1]), st.sampled_from([b"", b"\n", b" \r\n\t"]))
def test_the_salt_is_all_that_changes(
    body: dict[str, object], ascii_only: bool, indent: int | None, end: bytes
) -> None:
    text = json.dumps(body, ensure_ascii=ascii_only, indent=indent).encode("utf-8", "replace") + end
    salted = with_salt(text, "SALT")
    assert salted is not None
    assert json.loads(salted) == {**json.loads(text), "cache_salt": "SALT"}
    at = text.rstrip().rfind(b"}")
    assert salted.startswith(text[:at])
    assert salted.endswith(text[at:])


@pytest.mark.parametrize(
    ("body", "own"),
    [
        (b'{"model":"m"}', b""),
        (b'{"cache_salt":"mine"}', b'"mine"'),
        (b'{"cache\\u005fsalt":"mine"}', b'"mine"'),
        (b'{"cache_salt":null}', b""),
        (b'{"messages":[{"cache_salt":"x"}]}', b""),
        (b'{"messages":"say \\"cache_salt\\""}', b""),
        (b"[1", b""),
    ],
)
def test_the_clients_own_salt_is_found_where_it_counts(body: bytes, own: bytes) -> None:
    assert own_salt(body) == own


def test_the_clients_own_salt_is_mixed_in_and_wins_nothing() -> None:
    body = b'{"cache_salt":"guess","model":"m"}'
    salted = with_salt(body, mixed("SALT", own_salt(body)))
    assert salted is not None
    got = json.loads(salted)["cache_salt"]
    assert got not in ("guess", "SALT")
    assert got == mixed("SALT", b'"guess"')
    assert mixed("SALT", b'"guess"') != mixed("SALT", b'"guest"')


@pytest.mark.parametrize("body", [b"", b"}", b"[1]", b'"a"', b"{", b"   "])
def test_what_is_no_object_gets_no_salt(body: bytes) -> None:
    assert with_salt(body, "SALT") is None


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ({"messages": [{"role": "system", "content": "be kind"}]}, "be kind"),
        ({"messages": [{"role": "developer", "content": [{"type": "text", "text": "x"}]}]}, "x"),
        ({"messages": [{"role": "user", "content": "be kind"}]}, ""),
        ({"messages": [{"role": "user", "content": 5}]}, ""),
        ({"system": "be kind", "messages": [{"role": "user", "content": "x"}]}, "be kind"),
        ({"system": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, ""),
        ({"instructions": "be kind", "input": "x"}, "be kind"),
        ({"prompt": "be kind"}, ""),
        ([], ""),
    ],
)
def test_the_system_prompt_is_found_where_each_api_has_it(body: object, found: str) -> None:
    assert system_prompt(json.dumps(body).encode()) == found
