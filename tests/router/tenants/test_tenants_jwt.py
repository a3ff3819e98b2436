"""Tokens of an identity provider, whose keys are served over real HTTP."""

from __future__ import annotations

import asyncio
import base64
import hmac
import json
import time
from collections.abc import AsyncIterator
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tenants_world import At, until

from router.tenants.authenticator import Authenticator, Credentials
from router.tenants.identity import AuthFailure, Identity
from router.tenants.jwt_verifier import JwtSettings, JwtVerifier
from router.tenants.registry import Registry
from router.tenants.salt import Salter

RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
OTHER_RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC = ec.generate_private_key(ec.SECP256R1())


def jwk(key: Any, kid: str) -> dict[str, Any]:
    algorithm: Any = jwt.algorithms.RSAAlgorithm if key is not EC else jwt.algorithms.ECAlgorithm
    public = json.loads(algorithm.to_jwk(key.public_key()))
    return {**public, "kid": kid, "use": "sig", "alg": "ES256" if key is EC else "RS256"}


class Provider:
    """Serves keys."""

    def __init__(self) -> None:
        self.keys = [jwk(RSA, "one"), jwk(EC, "two")]
        self.asked = 0
        self.url = ""
        self.hold = asyncio.Event()
        """Not set: it does not answer."""
        self.hold.set()

    async def serve(self) -> asyncio.Server:
        server = await asyncio.start_server(self._answer, "127.0.0.1", 0)
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/jwks.json"
        return server

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        self.asked += 1
        await self.hold.wait()
        body = json.dumps({"keys": self.keys}).encode()
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\nconnection: close\r\n\r\n%b"
            % (len(body), body)
        )
        await writer.drain()
        writer.close()


def token(key: Any = RSA, kid: str = "one", alg: str = "RS256", **claims: Any) -> bytes:
    given_claims = {"tenant": "acme", "sub": "jo", "exp": time.time() + 60, "iss": "id", **claims}
    told = {name: value for name, value in given_claims.items() if value is not None}
    return jwt.encode(told, key, algorithm=alg, headers={"kid": kid}).encode()


@pytest.fixture
async def provider() -> AsyncIterator[Provider]:
    made = Provider()
    server = await made.serve()
    yield made
    server.close()


@pytest.fixture
async def verifier(provider: Provider) -> AsyncIterator[JwtVerifier]:
    made = JwtVerifier(JwtSettings(provider.url, issuer="id"), Registry(None))
    made.start()
    await until(lambda: bool(made._keys))
    yield made
    await made.stop()


@pytest.mark.parametrize(("key", "kid", "alg"), [(RSA, "one", "RS256"), (EC, "two", "ES256")])
async def test_a_good_token_tells_tenant_and_user(
    verifier: JwtVerifier, key: Any, kid: str, alg: str
) -> None:
    auth, given_one = Authenticator(Registry(None), verifier), Credentials()
    given_one.authorization = b"Bearer " + token(key, kid, alg)
    found = auth.identify(given_one, At("::1"))
    assert isinstance(found, Identity)
    assert (found.tenant, found.user) == ("acme", "jo")


@pytest.mark.parametrize(
    "bad",
    [
        token(OTHER_RSA),
        token(exp=time.time() - 3600),
        token(exp=None),
        token(iss="somebody"),
        token(iss=None),
        token(tenant=None),
        token(tenant="a/b"),
        token("x" * 32, alg="HS256"),
        token(EC, "one", "ES256"),
        token()[:-4] + b"AAAA",
        b"a.b.c",
        b"..",
        jwt.encode({"tenant": "acme", "exp": time.time() + 60}, None, algorithm="none").encode(),
    ],
    ids=range(13),
)
async def test_a_bad_token_is_nobodys(verifier: JwtVerifier, bad: bytes) -> None:
    assert isinstance(verifier.verify(bad), AuthFailure)


PUBLIC_PEM = RSA.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)


def by_hand(claims: bytes, *, secret: bytes = b"", **head: Any) -> bytes:
    """A token that no library would make; signed with RSA, or with a secret."""

    def part(data: bytes) -> bytes:
        return base64.urlsafe_b64encode(data).rstrip(b"=")

    header = {"alg": "RS256", "kid": "one", **head}
    text = part(json.dumps(header).encode()) + b"." + part(claims)
    signed = (
        hmac.digest(secret, text, "sha256")
        if secret
        else RSA.sign(text, padding.PKCS1v15(), hashes.SHA256())
    )
    return text + b"." + part(signed)


def claims(**given: Any) -> bytes:
    return json.dumps({"tenant": "acme", "iss": "id", "exp": time.time() + 60, **given}).encode()


FORGED = [
    # The public key as a secret, which whoever reads JWKS has.
    by_hand(claims(), secret=PUBLIC_PEM, alg="HS256"),
    by_hand(claims(), secret=PUBLIC_PEM),
    by_hand(claims(), alg="none"),
    by_hand(claims(), alg=["RS256"]),
    by_hand(claims(), alg="ES256"),
    by_hand(claims(), kid={"one": 1}),
    by_hand(claims(), crit=["x"]),
    # A key of its own choice in the head.
    by_hand(claims(), secret=b"s", jwk=jwk(OTHER_RSA, "one"), jku="http://127.0.0.1:9/"),
    by_hand(claims(exp=10**400)),
    by_hand(claims(exp=float("inf"))),
    by_hand(claims(exp=float("nan"))),
    by_hand(claims(nbf=time.time() + 300)),
    by_hand(claims(iat=time.time() + 3600)),
    by_hand(claims(aud="others")),
    by_hand(claims(tenant="\ud800x")),
    by_hand(claims(tenant="a\u202eb")),
    by_hand(claims(tenant={"acme": 1})),
    by_hand(b"[1]"),
    by_hand(b"[" * 5000),
]


@pytest.mark.parametrize("forged", FORGED, ids=range(len(FORGED)))
async def test_a_forged_token_is_nobodys(provider: Provider, forged: bytes) -> None:
    wanted = JwtSettings(provider.url, issuer="id", audience="gateway")
    made = JwtVerifier(wanted, Registry(Salter("user", ["s" * 32])))
    assert isinstance(await made.verify_later(forged), AuthFailure)
    good = await made.verify_later(by_hand(claims(aud=["gateway", "others"])))
    assert isinstance(good, Identity)


async def test_clocks_may_differ_by_half_a_minute(verifier: JwtVerifier) -> None:
    now = time.time()
    assert isinstance(verifier.verify(by_hand(claims(exp=now - 20, nbf=now + 20))), Identity)
    late = verifier.verify(by_hand(claims(exp=now - 40)))
    assert isinstance(late, AuthFailure)
    assert late.reason == "expired"


async def test_an_odd_user_is_somebody_whose_name_can_be_written(verifier: JwtVerifier) -> None:
    for user in ("\ud800x", 'a"b\n', "x" * 3000, "a b"):
        found = verifier.verify(by_hand(claims(sub=user)))
        assert isinstance(found, Identity)
        assert found.user.isascii()
        assert len(found.user) == 64


async def test_unknown_keys_at_a_provider_that_hangs_hold_up_no_good_token(
    verifier: JwtVerifier, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.tenants.jwt_verifier._AT_MOST_EVERY_S", 0.0)
    provider.hold.clear()
    flood = [
        asyncio.create_task(verifier.verify_later(token(OTHER_RSA, f"kid{number}")))
        for number in range(200)
    ]
    await until(lambda: provider.asked == 2)
    assert isinstance(verifier.verify(token()), Identity)
    provider.hold.set()
    assert all(isinstance(each, AuthFailure) for each in await asyncio.gather(*flood))
    assert provider.asked == 2


async def test_a_key_that_is_new_is_fetched_and_one_taken_back_is_good_no_more(
    verifier: JwtVerifier, provider: Provider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("router.tenants.jwt_verifier._AT_MOST_EVERY_S", 0.0)
    old, new = token(), token(OTHER_RSA, "three")
    assert isinstance(verifier.verify(old), Identity)
    provider.keys = [jwk(OTHER_RSA, "three")]
    assert verifier.verify(new) is None
    found = await asyncio.gather(*(verifier.verify_later(new) for _ in range(20)))
    assert all(isinstance(each, Identity) for each in found)
    assert provider.asked == 2
    monkeypatch.setattr("router.tenants.jwt_verifier._AT_MOST_EVERY_S", 60.0)
    assert isinstance(verifier.verify(old), AuthFailure)


async def test_unknown_keys_do_not_make_the_router_ask_all_the_time(
    verifier: JwtVerifier, provider: Provider
) -> None:
    for number in range(50):
        found = verifier.verify(token(OTHER_RSA, f"kid{number}"))
        assert isinstance(found, AuthFailure)
    assert provider.asked == 1


async def test_without_the_provider_tokens_cannot_be_verified() -> None:
    made = JwtVerifier(JwtSettings("http://127.0.0.1:9/jwks"), Registry(None))
    found = await made.verify_later(token())
    assert isinstance(found, AuthFailure)
    assert found.reason == "unverifiable"
    assert "127.0.0.1" in made.problem


async def test_a_claim_may_be_inside_an_object(provider: Provider) -> None:
    made = JwtVerifier(JwtSettings(provider.url, tenant_claim="realm.team"), Registry(None))
    found = await made.verify_later(token(realm={"team": "beta"}))
    assert isinstance(found, Identity)
    assert found.tenant == "beta"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=300), st.binary(max_size=300), st.binary(max_size=100))
def test_no_token_crashes_it(head: bytes, claims: bytes, signature: bytes) -> None:
    made = JwtVerifier(JwtSettings("http://127.0.0.1:9/jwks"), Registry(None))
    made._keys = {"one": jwt.PyJWK(jwk(RSA, "one"))}
    made._read_at = time.monotonic()
    assert isinstance(made.verify(b".".join((head, claims, signature))), AuthFailure)
