"""How the router serves its clients: where it listens, what it bounds, when it gives up, retries
and stops. The first half of `Settings`, and what every setting says of itself.
"""

from __future__ import annotations

from typing import Annotated

import msgspec

from router.config.kinds import (
    File,
    Host,
    Kind,
    Masked,
    Names,
    Secret,
    Text,
    duration,
    share,
    size,
    whole,
)

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

FLEET = "Replicas and routing"
DISCOVERY = "Finding replicas"
LISTEN = "Where it listens"
LIMITS = "Limits"
QUEUE = "The queue"
TIMES = "Timeouts"
RETRY = "Retries"
HEALTH = "Health"
ENGINE = "What it knows of the engines"
STATE = "Many routers"
TENANTS = "Tenants"
EXACT = "Exact mode"
INSIGHT = "Explaining and logging"
STOP = "Stopping"

GROUPS = (
    FLEET,
    DISCOVERY,
    LISTEN,
    LIMITS,
    QUEUE,
    TIMES,
    RETRY,
    HEALTH,
    ENGINE,
    EXACT,
    STATE,
    TENANTS,
    INSIGHT,
    STOP,
)

_ORIGIN = "one origin (https://{host}), * for any, or nothing"
_ORIGIN_FORM = r"|\*|https?://[A-Za-z0-9._:\[\]-]+"
_PORT = whole(0, 65_535)


class SettingInfo(msgspec.Struct, frozen=True):
    """What a field of Settings says of itself."""

    group: str
    kind: Kind
    help: str
    """One sentence or two, Markdown, beginning with a capital and ending with a full stop."""
    flag: str = ""
    """The flag where it is not the name with dashes."""
    live: bool = False
    """SIGHUP changes it without a restart."""


class ServingSettings(msgspec.Struct, frozen=True, kw_only=True):
    """The settings of the groups LISTEN, LIMITS, TIMES, RETRY and STOP."""

    host: Annotated[
        str,
        SettingInfo(
            LISTEN,
            Host(),
            "Address on which clients connect; `0.0.0.0` for all IPv4 addresses, `::` for all "
            "addresses.",
        ),
    ] = "127.0.0.1"
    port: Annotated[
        int, SettingInfo(LISTEN, _PORT, "Port on which clients connect; 0 takes a free one.")
    ] = 8000
    admin_host: Annotated[
        str,
        SettingInfo(
            LISTEN,
            Host(),
            "Address of the admin port. Without `admin_key` everyone who reaches it may read, and "
            "only the router's own machine may change anything.",
        ),
    ] = "127.0.0.1"
    admin_port: Annotated[
        int,
        SettingInfo(
            LISTEN, _PORT, "Port for metrics, readiness and explanations; 0 takes a free one."
        ),
    ] = 9090
    admin_key: Annotated[
        str,
        SettingInfo(
            LISTEN,
            Secret(),
            "Key that callers of the admin port must send as a bearer token, except for probes "
            "and `/metrics`. No flag: environment or file only.",
        ),
    ] = Masked("")
    admin_names: Annotated[
        tuple[str, ...],
        SettingInfo(
            LISTEN,
            Names(),
            "Host names, besides the machine's own, by which the admin port may be called; `*` "
            "for any. This guards against DNS rebinding.",
        ),
    ] = ()
    allow_origin: Annotated[
        str,
        SettingInfo(
            LISTEN,
            Text(_ORIGIN, _ORIGIN_FORM),
            "Value of `Access-Control-Allow-Origin` in the router's own answers: the model list, "
            "errors, and preflights for these. Engines answer for themselves "
            "(`--allowed-origins`). Empty: no such header.",
        ),
    ] = "*"
    tls_cert: Annotated[
        str,
        SettingInfo(
            LISTEN,
            File(),
            "Certificate chain (PEM) to serve clients over TLS, with `tls_key`. SIGHUP reads both "
            "files again.",
        ),
    ] = ""
    tls_key: Annotated[
        str, SettingInfo(LISTEN, File(), "The certificate's private key (PEM, no passphrase).")
    ] = ""

    max_head: Annotated[
        int,
        SettingInfo(
            LIMITS,
            size(1 * KIB, 16 * MIB),
            "Largest request line and headers; a larger one gets 431.",
            live=True,
        ),
    ] = 64 * KIB
    max_body: Annotated[
        int,
        SettingInfo(
            LIMITS,
            size(1 * KIB, 4 * GIB),
            "Largest request body; a larger one gets 413.",
            live=True,
        ),
    ] = 64 * MIB
    body_memory: Annotated[
        int,
        SettingInfo(
            LIMITS,
            size(1 * MIB, 1024 * GIB),
            "Memory for all request bodies together; when it is full, requests get 503.",
            live=True,
        ),
    ] = 1 * GIB
    body_rate: Annotated[
        int,
        SettingInfo(
            LIMITS,
            size(0, 1 * GIB),
            "Slowest rate in bytes a second at which a request body may arrive, over each "
            "`head_timeout` or `idle_timeout`, whichever is shorter; slower bodies get 408. 0: "
            "any rate, as long as something arrives.",
        ),
    ] = 1 * KIB
    max_connections: Annotated[
        int,
        SettingInfo(
            LIMITS,
            whole(1, 10_000_000),
            "Most client connections at a time; further ones get 503. The system's limit of open "
            "files may allow fewer.",
            live=True,
        ),
    ] = 20_000

    head_timeout: Annotated[
        float,
        SettingInfo(
            TIMES, duration(), "Longest time from a request's first byte to the end of its headers."
        ),
    ] = 30.0
    idle_timeout: Annotated[
        float,
        SettingInfo(
            TIMES, duration(), "A client connection without a request is closed after this time."
        ),
    ] = 75.0
    connect_timeout: Annotated[
        float, SettingInfo(TIMES, duration(), "Longest time to connect to a replica.", live=True)
    ] = 2.0
    first_byte_timeout: Annotated[
        float,
        SettingInfo(
            TIMES,
            duration(),
            "Longest time from sending a request to the first event or byte of the replica's "
            "answer. While the replica is healthy and its metrics say that it runs requests, it "
            "is at least half an hour.",
        ),
    ] = 1800.0
    chunk_timeout: Annotated[
        float,
        SettingInfo(
            TIMES,
            duration(),
            "Longest silence within a replica's answer. While the replica is healthy and its "
            "metrics say that it runs requests, it is at least half an hour.",
        ),
    ] = 1800.0
    tunnel_idle_timeout: Annotated[
        float,
        SettingInfo(
            TIMES,
            duration(),
            "A WebSocket is closed after this time without data in either direction.",
        ),
    ] = 1800.0
    replica_idle_timeout: Annotated[
        float,
        SettingInfo(
            TIMES,
            duration(),
            "A pooled connection to a replica is closed after this idle time. Keep it below the "
            "replica's own keep-alive (5 s in uvicorn), or the replica may close a connection "
            "just as a request is sent.",
        ),
    ] = 4.0

    retries: Annotated[
        int,
        SettingInfo(
            RETRY,
            whole(0, 10),
            "Most further replicas to try for a request, before its first byte has gone to the "
            "client.",
            live=True,
        ),
    ] = 2
    retry_budget: Annotated[
        float,
        SettingInfo(
            RETRY,
            share(),
            "Retries as a share of requests, so that retries do not overload the fleet. Requests "
            "that were in flight at a replica when it went out of service are moved without "
            "counting.",
        ),
    ] = 0.2
    retry_after: Annotated[
        float,
        SettingInfo(RETRY, duration(0), "Value of `Retry-After` in 503 answers."),
    ] = 2.0

    settle_time: Annotated[
        float,
        SettingInfo(
            STOP,
            duration(0),
            "After SIGTERM the router is not ready, but accepts requests for this time, until "
            "load balancers have noticed.",
        ),
    ] = 3.0
    drain_timeout: Annotated[
        float,
        SettingInfo(
            STOP,
            duration(0),
            "After `settle_time`, the time in which requests in flight may finish.",
        ),
    ] = 60.0
