"""What the doctor says of tokenizers that this machine does not have."""

from __future__ import annotations

import httpx
import pytest

from router.config import Settings
from router.doctor.engine import Engine
from router.doctor.events import Heard

exact = pytest.importorskip("router.doctor.exact")


async def test_a_missing_tokenizer_is_told_once_for_all_replicas(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def listen(*_: object) -> Heard:
        return Heard()

    monkeypatch.setattr(exact, "listen", listen)
    engines = [Engine(url, models={"m": "/nowhere/m"}) for url in ("http://a", "http://b")]
    refused = httpx.MockTransport(lambda _: httpx.Response(404, json={}))
    async with httpx.AsyncClient(transport=refused) as client:
        found = await exact.findings(client, engines, Settings(replicas=("a:1",)))
    (told,) = [one for one in found if "cannot tokenise" in one.what]
    assert (told.where, told.wrong) == ("http://a", False)
