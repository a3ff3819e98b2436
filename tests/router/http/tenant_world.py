"""Two tenants with a key each, and clients that have one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import yaml
from http_world import sized

from router.app import App
from router.tenants.keys import new_key

SECRET = "0123456789abcdef0123456789abcdef"
SAY = [{"role": "user", "content": "hello"}]
BODY: dict[str, Any] = {"model": "m", "messages": SAY, "max_tokens": 10}
USAGE = {"prompt_tokens": 20, "completion_tokens": 5, "prompt_tokens_details": {"cached_tokens": 0}}
ANSWER = sized(json.dumps({"choices": [], "usage": USAGE}).encode())
KEYS = {"acme": new_key(), "beta": new_key()}

MakeGateway = Callable[..., Awaitable[App]]


def content(acme: dict[str, Any], **more: Any) -> str:
    tenants = {
        name: {
            **(acme if name == "acme" else {}),
            "keys": [{"name": "ci", "sha256": hashlib.sha256(key.encode()).hexdigest()}],
        }
        for name, key in KEYS.items()
    }
    return yaml.safe_dump({"tenants": tenants, **more})


def client(app: App, tenant: str = "acme", **options: Any) -> httpx.AsyncClient:
    headers = {"authorization": f"Bearer {KEYS[tenant]}"} if tenant else {}
    return httpx.AsyncClient(
        base_url=f"http://127.0.0.1:{app.port}", headers=headers, trust_env=False, **options
    )


async def chat(app: App, tenant: str = "acme", **fields: Any) -> httpx.Response:
    async with client(app, tenant) as http:
        return await http.post("/v1/chat/completions", json={**BODY, **fields})
