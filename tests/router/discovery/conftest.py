from __future__ import annotations

import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trustme
from api_server import ApiServer
from discovery_world import StartDiscovery

from router.config import Settings
from router.discovery import Discovery
from router.fleet.fleet import Fleet


@pytest.fixture
async def api(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ApiServer]:
    """An API server with TLS, reached as from a pod: environment, mounted token and CA."""
    from kubernetes.config import incluster_config

    from router.discovery import kubernetes

    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    server = await ApiServer(tls=context, token="first").start()
    account = tmp_path / "serviceaccount"
    account.mkdir()
    (account / "token").write_text("first")
    (account / "namespace").write_text("llm\n")
    authority.cert_pem.write_to_path(account / "ca.crt")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.port))
    for proxy in ("HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy"):
        monkeypatch.delenv(proxy, raising=False)
    # Where a pod has its account mounted, and nothing else of the client.
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(account / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", str(account / "ca.crt"))
    monkeypatch.setattr(kubernetes, "OWN_NAMESPACE", account / "namespace")
    yield server
    await server.stop()


@pytest.fixture
def account(tmp_path: Path) -> Path:
    """Where the service account is mounted."""
    return tmp_path / "serviceaccount"


@pytest.fixture
async def start() -> AsyncIterator[StartDiscovery]:
    """Starts discovery into a fleet that asks nobody for health."""
    running: list[Discovery] = []

    async def begin(**settings: object) -> tuple[Discovery, Fleet]:
        fleet = Fleet(Settings())
        discovery = Discovery(Settings(**settings), fleet)  # type: ignore[arg-type]
        running.append(discovery)
        await discovery.start()
        return discovery, fleet

    yield begin
    for discovery in running:
        await discovery.stop()
