"""The file, keys and who asks."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import re
import time
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from redis_server import RedisServer
from tenants_world import At, connector, until

from router.tenants.authenticator import Authenticator, Credentials
from router.tenants.identity import EXPIRED, MALFORMED, MISSING, UNKNOWN, AuthFailure, Identity
from router.tenants.key_store import KeyStore, KeyWatcher
from router.tenants.keys import KeyRecord, new_key, record_of
from router.tenants.registry import Registry
from router.tenants.salt import Salter
from router.tenants.tenant_file import parse_tenants
from router.watched_file import WatchedFile

KEY = "sk-wr-" + "a" * 43
DIGEST = hashlib.sha256(KEY.encode()).hexdigest()

FILE = f"""
defaults: {{limits: {{requests_per_minute: 60}}}}
tenants:
  acme:
    models: [llama, qwen]
    priority: 5
    limits: {{requests_per_minute: 600, money_per_day: 1.5, shadow: [money_per_day]}}
    user_limits: {{requests_per_minute: 6, max_output_tokens: 100}}
    key_limits: {{concurrent_requests: 2}}
    model_limits: {{llama: {{tokens_per_minute: 1000}}}}
    keys:
      - {{name: ci, sha256: {DIGEST}, models: [llama], priority: 9}}
  beta:
"""


def registry(text: str = FILE, salter: Salter | None = None) -> Registry:
    made = Registry(salter)
    made.adopt_file(parse_tenants(text.encode()))
    return made


def identity(found: Identity | AuthFailure | None) -> Identity:
    assert isinstance(found, Identity)
    return found


def bearer(secret: str | bytes) -> Credentials:
    made = Credentials()
    made.authorization = b"Bearer " + (secret.encode() if isinstance(secret, str) else secret)
    return made


def test_a_key_tells_tenant_models_priority_and_limits() -> None:
    found = identity(registry().of_key(KEY.encode()))
    assert (found.tenant, found.key, found.priority_cap) == ("acme", DIGEST[:12], 9)
    assert found.models == {"llama"}
    assert [account.name for account in found.charged("llama")] == [
        "tenant:acme",
        f"key:acme/{DIGEST[:12]}",
        "model:acme/llama",
    ]
    day = found.accounts[0].limits[1]
    assert (day.name, day.cap, day.shadow) == ("money_per_day", 1_500_000, True)


def test_what_a_tenant_leaves_out_is_the_default() -> None:
    found = registry().of_name("beta", "jo")
    assert [limit.cap for limit in found.accounts[0].limits] == [60]
    assert registry().of_name("stranger").accounts[0].limits[0].cap == 60


def test_a_users_longest_answer_holds() -> None:
    assert registry().of_name("acme", "jo").max_output_tokens == 100


def test_another_key_is_unknown_and_an_old_one_expired() -> None:
    made = registry()
    assert made.of_key(KEY[:-1].encode()) is UNKNOWN
    old = record_of(KEY + "x", "acme", "old", lifetime_s=-1.0)
    made.put_key(old)
    assert made.of_key((KEY + "x").encode()) is EXPIRED


def test_a_key_expires_while_it_is_in_use() -> None:
    made = registry()
    made.put_key(record_of(KEY + "y", "acme", "brief", lifetime_s=0.2))
    assert identity(made.of_key((KEY + "y").encode())).tenant == "acme"
    time.sleep(0.25)
    assert made.of_key((KEY + "y").encode()) is EXPIRED


def test_use_outlives_a_reload_and_limits_change() -> None:
    made = registry()
    account = made.of_name("acme").accounts[0]
    account.reserve((1, 0, 0, 0, 0, 1), time.time())
    made.adopt_file(parse_tenants(FILE.replace("600", "700").encode()))
    after = made.of_name("acme").accounts[0]
    assert after is account
    assert after.limits[0].cap == 700
    assert after.used(after.limits[0], time.time()) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "it is empty"),
        ("- a", "Expected `object`"),
        ("tenants: {acme: {limit: {}}}", "unknown field `limit`"),
        ("tenants: {acme: {limits: {requests_per_minute: 0}}}", "$.tenants[...].limits"),
        ("tenants: {'a/b': }", "is no tenant's name"),
        ("tenants: {acme: {limits: {shadow: [tokens_per_day]}}}", "there is no limit"),
        ("tenants: {acme: {keys: [{sha256: sk-wr-secret}]}}", "64 hexadecimal digits"),
        (
            f"tenants: {{acme: {{keys: [{{sha256: {DIGEST}, expires: soon}}]}}}}",
            "expires is no date",
        ),
        (
            "tenants: {a: {keys: [&]}, b: {keys: [&]}}".replace("&", f"{{sha256: {DIGEST}}}"),
            "is also one of a",
        ),
        ("tenants: {a: {keys: [{sha256: 'sk-wr-secret", "not YAML: line 1"),
        ("tenants: {a: {priority: 1}, b: , a: }", "a name that comes twice, line 1, column 34"),
        ("tenants: {a: {limits: {tokens_per_day: 1, tokens_per_day: 9}}}", "comes twice"),
    ],
)
def test_what_is_wrong_with_a_file_is_told_without_its_secrets(text: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        parse_tenants(text.encode())
    assert "secret" not in str(caught.value)


def test_names_may_be_merged_and_overridden() -> None:
    text = """
defaults: {limits: &base {tokens_per_day: 5, requests_per_minute: 7}}
tenants:
  a: {limits: &a {<<: *base, tokens_per_day: 9}}
  b: {limits: {<<: *a, requests_per_minute: 8}}
"""
    limits = parse_tenants(text.encode()).tenants["b"].limits
    assert limits is not None
    assert (limits.tokens_per_day, limits.requests_per_minute) == (9, 8)


@pytest.mark.parametrize("day", ["1970-01-01", "1969-12-31", "0001-01-01"])
def test_a_key_whose_date_is_long_past_is_expired(day: str) -> None:
    found = parse_tenants(
        f"tenants: {{a: {{keys: [{{sha256: {DIGEST}, expires: {day}}}]}}}}".encode()
    )
    assert found.keys[DIGEST].expired(time.time())


def test_a_date_means_the_whole_day() -> None:
    text = f"tenants: {{a: {{keys: [{{sha256: {DIGEST}, expires: 2027-01-31}}]}}}}"
    assert parse_tenants(text.encode()).keys[DIGEST].expires == 1_801_440_000


async def test_a_changed_file_is_read_and_a_broken_one_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "tenants.yaml"
    path.write_text(FILE)
    made, troubles = Registry(None), []
    watched = WatchedFile(str(path), 0.01, 1 << 20, parse_tenants, made.adopt_file, troubles.append)
    await watched.read()
    watched.start("test")
    assert identity(made.of_key(KEY.encode())).tenant == "acme"
    path.write_text("tenants: [")
    await until(lambda: any(troubles))
    assert identity(made.of_key(KEY.encode())).tenant == "acme"
    path.write_text("tenants: {}")
    await until(lambda: made.of_key(KEY.encode()) is UNKNOWN)
    await watched.stop()


@pytest.mark.parametrize("how", ["broken", "gone"])
async def test_trouble_ends_where_the_file_is_what_it_was(tmp_path: Path, how: str) -> None:
    path = tmp_path / "tenants.yaml"
    path.write_text(FILE)
    made, told = Registry(None), []
    watched = WatchedFile(str(path), 0.01, 1 << 20, parse_tenants, made.adopt_file, told.append)
    await watched.read()
    path.unlink()
    if how == "broken":
        path.write_text("tenants: [")
    await watched.read()
    assert told[-1]
    path.write_text(FILE)
    await watched.read()
    assert not told[-1]
    assert identity(made.of_key(KEY.encode())).tenant == "acme"


async def test_a_content_that_breaks_the_reader_is_not_its_end(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "file"
    path.write_text("1")
    taken: list[int] = []

    def parse(text: bytes) -> int:
        return {b"1": 1, b"3": 3}[text]

    watched = WatchedFile(str(path), 0.01, 100, parse, taken.append, lambda _: None)
    watched.start("test")
    await until(lambda: taken == [1])
    path.write_text("2")
    await until(lambda: "reading it failed" in caplog.text)
    path.write_text("3")
    await until(lambda: taken == [1, 3])
    assert caplog.text.count("reading it failed") == 1
    await watched.stop()


# -- credentials


def entry(*names: str) -> str:
    keys = {name: hashlib.sha256(name.encode()).hexdigest() for name in names}
    return yaml.safe_dump({"tenants": {name: {"keys": [{"sha256": keys[name]}]} for name in names}})


@pytest.mark.parametrize("form", ["utf-8", "utf-8-sig", "utf-16", "crlf"])
def test_a_file_from_any_editor_is_read(form: str) -> None:
    text = entry("acme")
    written = text.replace("\n", "\r\n").encode() if form == "crlf" else text.encode(form)
    assert set(parse_tenants(written).tenants) == {"acme"}


async def test_keys_stay_while_their_file_is_gone_or_odd(tmp_path: Path) -> None:
    path = tmp_path / "tenants.yaml"
    path.write_text(entry("acme"))
    registry, troubles = Registry(None), []
    file = WatchedFile(
        str(path), 0.02, 1 << 20, parse_tenants, registry.adopt_file, troubles.append
    )
    await file.read()
    file.start("tenants")
    try:
        for spoil in (path.unlink, path.mkdir, path.rmdir, lambda: path.write_bytes(b"")):
            spoil()
            troubles.clear()
            await until(lambda: any(troubles))
            assert isinstance(registry.of_key(b"acme"), Identity)
        # As Kubernetes does, and careful editors.
        new = tmp_path / "new"
        new.write_text(entry("acme", "gamma"))
        new.rename(path)
        await until(lambda: isinstance(registry.of_key(b"gamma"), Identity))
        assert not troubles[-1]
    finally:
        await file.stop()


async def test_a_file_counts_once_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An editor may write in steps, of which each is valid YAML."""
    monkeypatch.setattr("router.watched_file._SETTLE_S", 0.0)
    whole = entry("acme", "beta").encode()
    begun = whole[: whole.index(b"beta")] + b"beta: {}\n"
    seen: list[set[str]] = []
    contents = [entry("acme").encode(), begun, begun + b"# more", whole, whole, whole]
    file = WatchedFile(
        str(tmp_path / "tenants.yaml"),
        60.0,
        1 << 20,
        parse_tenants,
        lambda parsed: seen.append({record.tenant for record in parsed.keys.values()}),
        lambda _: None,
    )
    monkeypatch.setattr(file, "_content", lambda: contents.pop(0))
    await file.read()
    await file.read()
    assert seen == [{"acme"}, {"acme", "beta"}]


def test_a_key_comes_in_either_header() -> None:
    auth = Authenticator(registry(), None)
    other = Credentials()
    other.api_key = KEY.encode()
    assert identity(auth.identify(bearer(KEY), At("::1"))).tenant == "acme"
    assert identity(auth.identify(other, At("::1"))).tenant == "acme"
    lower = Credentials()
    lower.authorization = b"bearer   " + KEY.encode()
    assert identity(auth.identify(lower, At("::1"))).tenant == "acme"


def test_who_says_nothing_or_something_odd_is_told_so() -> None:
    auth = Authenticator(registry(), None)
    assert auth.identify(Credentials(), At("::1")) is MISSING
    basic = Credentials()
    basic.authorization = b"Basic QWxhZGRpbjpvcGVuIHNlc2FtZQ=="
    assert auth.identify(basic, At("::1")) is MALFORMED
    assert auth.identify(bearer("x" * 600), At("::1")) is MALFORMED


def test_a_proxys_word_counts_from_its_address_only() -> None:
    auth = Authenticator(registry(), None, [ipaddress.ip_network("10.1.0.0/16")])
    vouched = Credentials()
    vouched.tenant, vouched.user = b"acme", b"jo"
    found = identity(auth.identify(vouched, At("10.1.2.3")))
    assert (found.tenant, found.user, found.key) == ("acme", "jo", "")
    assert identity(auth.identify(vouched, At("::ffff:10.1.2.3"))).tenant == "acme"
    assert auth.identify(vouched, At("10.2.0.1")) is MISSING
    vouched.tenant = b"a/b"
    assert auth.identify(vouched, At("10.1.2.3")) is MALFORMED


@given(st.binary(max_size=700), st.binary(max_size=700), st.binary(max_size=200))
def test_no_credentials_crash_it_or_let_anybody_in(
    authorization: bytes, api_key: bytes, tenant: bytes
) -> None:
    auth = Authenticator(registry(), None, [ipaddress.ip_network("10.0.0.0/8")])
    odd = Credentials()
    odd.authorization, odd.api_key, odd.tenant = authorization, api_key, tenant
    assert isinstance(auth.identify(odd, At("192.0.2.1")), AuthFailure)


def test_the_last_word_on_a_key_is_a_comparison_in_constant_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    compared = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return real(one, other)

    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", compare)
    registry().of_key(KEY.encode())
    assert compared == [(bytes.fromhex(DIGEST), bytes.fromhex(DIGEST))]


def test_a_record_holds_nothing_of_its_key() -> None:
    key = new_key()
    record = record_of(key, "acme", "ci")
    assert key not in repr(record)
    assert key.removeprefix("sk-wr-") not in repr(record)
    assert len(key) == 49


# -- keys in Redis


async def test_keys_in_redis_are_heard_when_made_and_when_revoked(redis: RedisServer) -> None:
    client = await connector(redis).open("{warmroute}:keys", 5)
    store, made = KeyStore(client, "warmroute"), Registry(None)
    await store.put(record_of(KEY, "acme", "before"))
    watcher = KeyWatcher(connector(redis), "warmroute", made)
    watcher.start()
    await watcher.loaded.wait()
    assert identity(made.of_key(KEY.encode())).tenant == "acme"
    after = record_of(KEY + "2", "beta", "after", models=("llama",))
    await store.put(after)
    await until(lambda: isinstance(made.of_key((KEY + "2").encode()), Identity))
    revoked = time.monotonic()
    await store.revoke(after)
    await until(lambda: made.of_key((KEY + "2").encode()) is UNKNOWN)
    assert time.monotonic() - revoked < 1
    assert [record.name for record in await store.all()] == ["before"]
    await watcher.stop()
    await client.aclose()


async def test_keys_stay_valid_while_redis_is_away_and_a_revocation_is_heard_after(
    redis: RedisServer, tmp_path: Path
) -> None:
    made = Registry(None)
    client = await connector(redis).open("{warmroute}:keys", 5)
    record = record_of(KEY, "acme", "ci")
    await KeyStore(client, "warmroute").put(record)
    await client.aclose()
    watcher = KeyWatcher(connector(redis), "warmroute", made)
    watcher.start()
    await watcher.loaded.wait()
    redis.kill()
    await until(lambda: bool(watcher.problem))
    assert identity(made.of_key(KEY.encode())).tenant == "acme"
    redis.start()  # without its data
    await until(lambda: not watcher.problem)
    assert identity(made.of_key(KEY.encode())).tenant == "acme"
    client = await connector(redis).open("{warmroute}:keys", 5)
    await KeyStore(client, "warmroute").revoke(record)
    await client.aclose()
    await until(lambda: made.of_key(KEY.encode()) is UNKNOWN)
    await watcher.stop()


def test_a_hundred_thousand_keys_and_ten_thousand_tenants_fit() -> None:
    made = Registry(None)
    made.adopt_keys(
        KeyRecord(hashlib.sha256(b"%d" % number).hexdigest(), f"t{number % 10_000}")
        for number in range(100_000)
    )
    began = time.perf_counter()
    for number in range(0, 100_000, 10):
        assert isinstance(made.of_key(b"%d" % number), Identity)
    assert time.perf_counter() - began < 5
    assert len(made.accounts) <= 20_000
