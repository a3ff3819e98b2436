"""What the chart renders, run: a gateway from its ConfigMap, and the program of `helm test`."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from pathlib import Path

import httpx
from chart_world import one, render, settings

from loadgen.replicas import SimulatedFleet


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


async def test_the_rendered_settings_start_a_gateway(tmp_path: Path) -> None:
    async with SimulatedFleet(1) as fleet:
        port, admin = free_port(), free_port()
        url = fleet.urls[0].replace("127.0.0.1", "localhost")
        config = {
            "discovery": "dns",
            "discovery_dns": [url],
            "port": port,
            "admin_port": admin,
            "settle_time": "0s",
        }
        items = render({"config": config, "service": {"port": port}})
        file = tmp_path / "warmroute.yaml"
        file.write_text(settings(items))
        args = one(items, "Deployment")["spec"]["template"]["spec"]["containers"][0]["args"]
        assert args == ["serve", "--config", "/etc/warmroute/warmroute.yaml"]
        gateway = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "router.cli.main", "serve", "--config", str(file)
        )
        try:
            await until_ready(f"http://127.0.0.1:{admin}/readyz")
            container = one(items, "Pod", "warmroute-test")["spec"]["containers"][0]
            assert container["command"] == ["python", "-c"]
            (address,) = container["env"]
            assert address == {"name": "GATEWAY", "value": f"http://warmroute:{port}"}
            test = await asyncio.create_subprocess_exec(
                sys.executable,
                "-c",
                *container["args"],
                env={"GATEWAY": f"http://127.0.0.1:{port}", "NO_PROXY": "*"},
                stdout=asyncio.subprocess.PIPE,
            )
            said, _ = await test.communicate()
            assert test.returncode == 0
            assert b"models: sim" in said
            assert b"completion_tokens" in said
        finally:
            gateway.send_signal(signal.SIGTERM)
            assert await gateway.wait() == 0


async def until_ready(url: str) -> None:
    async with asyncio.timeout(30), httpx.AsyncClient(trust_env=False) as http:
        while True:
            try:
                if (await http.get(url)).status_code == 200:
                    return
            except httpx.TransportError:
                pass  # it is still starting
            await asyncio.sleep(0.1)
