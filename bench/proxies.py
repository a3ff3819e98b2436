"""Starts the proxies that benchmarks compare, each in a process of its own, and reads their CPU time."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

TICKS = os.sysconf("SC_CLK_TCK")


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class Cpu(NamedTuple):
    """CPU time of a process and its threads, in seconds."""

    total: float
    """To a nanosecond, where the kernel tells it."""
    user: float
    system: float
    """These two by ticks of 10 ms: they tell what share of a long time was which."""

    def __sub__(self, before: Cpu) -> Cpu:
        return Cpu(*(now - then for now, then in zip(self, before, strict=True)))


def cpu(pid: int) -> Cpu:
    """What a process has used up to now."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    user, system = int(fields[11]) / TICKS, int(fields[12]) / TICKS
    with suppress(OSError, ValueError):
        total = 0
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
        return Cpu(total / 1e9, user, system)
    return Cpu(user + system, user, system)


def cpu_seconds(pid: int) -> float:
    """User and system time of a process and its threads."""
    return cpu(pid).total


@contextmanager
def process(
    *command: str, env: dict[str, str] | None = None, read: bool = False
) -> Iterator[subprocess.Popen[str]]:
    """A child whose output is read, or goes to /dev/null (a log is written all the same)."""
    child = subprocess.Popen(
        command,
        stdout=subprocess.PIPE if read else subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, **(env or {})},
    )
    try:
        yield child
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()


def wait_for(port: int) -> None:
    for _ in range(1200):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), 0.5):
            return
        time.sleep(0.05)
    raise RuntimeError(f"nothing listens on {port}")


NGINX = """
worker_processes 1; daemon off; error_log {dir}/error.log crit; pid {dir}/pid;
events {{ worker_connections 4096; }}
http {{
  access_log off; client_body_temp_path {dir}; proxy_temp_path {dir}; fastcgi_temp_path {dir};
  uwsgi_temp_path {dir}; scgi_temp_path {dir}; client_body_buffer_size 1m; client_max_body_size 64m;
  keepalive_requests 1000000;
  upstream replicas {{ {servers} keepalive 256; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://replicas; proxy_http_version 1.1; proxy_set_header Connection "";
      proxy_buffering off;
    }}
  }}
}}
"""


@contextmanager
def nginx(ports: list[int]) -> Iterator[tuple[int, int]]:
    path = shutil.which("nginx", path=f"{os.environ['PATH']}:/usr/sbin")
    if path is None:
        raise RuntimeError("nginx is not installed (Debian: apt-get install nginx-light)")
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        servers = " ".join(f"server 127.0.0.1:{p};" for p in ports)
        config = Path(folder) / "nginx.conf"
        config.write_text(NGINX.format(dir=folder, servers=servers, port=port))
        os.chmod(folder, 0o777)
        with process(path, "-c", str(config)) as master:
            wait_for(port)
            children = Path(f"/proc/{master.pid}/task/{master.pid}/children").read_text().split()
            try:
                yield port, int(children[0])
            finally:
                # A killed master leaves its worker behind.
                for child in children:
                    with suppress(ProcessLookupError):
                        os.kill(int(child), signal.SIGKILL)


@contextmanager
def warmroute(ports: list[int], *flags: str) -> Iterator[tuple[int, int]]:
    port, admin = free_port(), free_port()
    replicas = [f for p in ports for f in ("--replica", f"http://127.0.0.1:{p}")]
    with process(
        *(
            sys.executable,
            "-m",
            "router.cli.main",
            "serve",
            "--port",
            str(port),
            "--admin-port",
            str(admin),
        ),
        *replicas,
        *flags,
    ) as child:
        wait_for(port)
        time.sleep(1.0)
        yield port, child.pid


@contextmanager
def starlette(ports: list[int]) -> Iterator[tuple[int, int]]:
    port = free_port()
    env = {"BENCH_REPLICAS": ",".join(map(str, ports))}
    with process(
        *(sys.executable, "-m", "uvicorn", "bench.plain_proxy:app", "--port", str(port)),
        *("--log-level", "error", "--no-access-log"),
        env=env,
    ) as child:
        wait_for(port)
        yield port, child.pid


class Peer(NamedTuple):
    """A router of somebody else's, from PyPI."""

    package: str
    command: tuple[str, ...]
    """With the port and the replicas' URLs behind it."""


PEERS = {
    f"{name} {policy}": Peer(package, (*command, "--policy", policy))
    for name, package, command, policies in (
        (
            "vllm-router",
            "vllm-router==0.1.17",
            ("vllm-router",),
            ("consistent_hash", "cache_aware"),
        ),
        (
            "sglang-router",
            "sglang-router==0.3.2",
            ("sglang-router", "launch", "--log-level", "warn"),
            ("round_robin", "cache_aware"),
        ),
        (
            "smg",
            "smg==1.13.0",
            ("smg", "launch", "--log-level", "warn"),
            ("round_robin", "cache_aware"),
        ),
    )
    for policy in policies
}
"""Each with its cheapest policy, and with the one that does what ours does."""


def install_peers(folder: Path) -> None:
    """Peers in an environment of their own."""
    done = folder / "installed"
    wanted = " ".join(sorted({peer.package for peer in PEERS.values()}))
    if done.exists() and done.read_text() == wanted:
        return
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True)
    pip = [str(folder / "bin" / "python"), "-m", "pip", "install", "--quiet", *wanted.split()]
    subprocess.run(pip, check=True)
    done.write_text(wanted)


@contextmanager
def peer(name: str, folder: Path, ports: list[int]) -> Iterator[tuple[int, int]]:
    """One of them in front of these replicas, once it has answered for each."""
    port, metrics = free_port(), free_port()
    program, *flags = PEERS[name].command
    urls = [f"http://127.0.0.1:{p}" for p in ports]
    listens = ("--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(metrics))
    with process(str(folder / "bin" / program), *flags, *listens, "--worker-urls", *urls) as child:
        wait_for(port)
        for _ in range(600):
            if _answers(port):
                break
            time.sleep(0.1)
        else:
            raise RuntimeError(f"{name} does not answer")
        time.sleep(1.0)
        yield port, child.pid


def _answers(port: int) -> bool:
    body = b'{"model":"m","messages":[{"role":"user","content":"hi"}]}'
    head = (
        b"POST /v1/chat/completions HTTP/1.1\r\nHost: bench\r\nContent-Type: application/json\r\n"
    )
    with suppress(OSError), socket.create_connection(("127.0.0.1", port), 2.0) as connection:
        connection.sendall(head + b"Content-Length: %d\r\n\r\n%b" % (len(body), body))
        return connection.recv(100).startswith(b"HTTP/1.1 200")
    return False
