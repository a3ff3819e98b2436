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
TIMES = "Timeouts"
RETRY = "Retries"
HEALTH = "Health"
ENGINE = "What it knows of the engines"
STATE = "Many routers"
EXACT = "Exact mode"
INSIGHT = "Explaining and logging"
STOP = "Stopping"

GROUPS = (
    FLEET,
    DISCOVERY,
    LISTEN,
    LIMITS,
    TIMES,
    RETRY,
    HEALTH,
    ENGINE,
    EXACT,
    STATE,
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
            "Address for clients; `0.0.0.0` for every IPv4 address, `::` for every address.",
        ),
    ] = "127.0.0.1"
    port: Annotated[int, SettingInfo(LISTEN, _PORT, "Port for clients; 0 takes a free one.")] = 8000
    admin_host: Annotated[
        str,
        SettingInfo(
            LISTEN,
            Host(),
            "Address for metrics, readiness and explanations. Without `admin_key` anybody who "
            "reaches it may read, and only the router's own machine may change anything.",
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
            "Key the admin port asks for as a bearer token, probes and `/metrics` excepted. "
            "No flag: environment or file only.",
        ),
    ] = Masked("")
    admin_names: Annotated[
        tuple[str, ...],
        SettingInfo(
            LISTEN,
            Names(),
            "Host names by which the admin port may be called besides the machine's own, as a "
            "guard against DNS rebinding; `*` for any.",
        ),
    ] = ()
    allow_origin: Annotated[
        str,
        SettingInfo(
            LISTEN,
            Text(_ORIGIN, _ORIGIN_FORM),
            "The `Access-Control-Allow-Origin` of the router's own answers: its model list, its "
            "errors, and preflights about these. Engines answer for themselves "
            "(`--allowed-origins`). Empty: the router says nothing of it.",
        ),
    ] = "*"
    tls_cert: Annotated[
        str,
        SettingInfo(
            LISTEN,
            File(),
            "Certificate chain (PEM) to serve clients over TLS; with `tls_key`. SIGHUP reads both "
            "files anew.",
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
            "Longest request line and headers; beyond it, 431.",
            live=True,
        ),
    ] = 64 * KIB
    max_body: Annotated[
        int,
        SettingInfo(
            LIMITS, size(1 * KIB, 4 * GIB), "Longest request body; beyond it, 413.", live=True
        ),
    ] = 64 * MIB
    body_memory: Annotated[
        int,
        SettingInfo(
            LIMITS,
            size(1 * MIB, 1024 * GIB),
            "All request bodies held at once, together; beyond it, 503.",
            live=True,
        ),
    ] = 1 * GIB
    body_rate: Annotated[
        int,
        SettingInfo(
            LIMITS,
            size(0, 1 * GIB),
            "Slowest arrival of a request's body, bytes a second, over each `head_timeout` or "
            "`idle_timeout`, whichever is shorter; below it, 408. 0: any, while something comes.",
        ),
    ] = 1 * KIB
    max_connections: Annotated[
        int,
        SettingInfo(
            LIMITS,
            whole(1, 10_000_000),
            "Client connections open at once; beyond it, 503. Fewer where the system's limit of "
            "open files allows fewer.",
            live=True,
        ),
    ] = 20_000

    head_timeout: Annotated[
        float,
        SettingInfo(TIMES, duration(), "From a request's first byte to the end of its headers."),
    ] = 30.0
    idle_timeout: Annotated[
        float,
        SettingInfo(
            TIMES, duration(), "A client connection without a request is closed after this."
        ),
    ] = 75.0
    connect_timeout: Annotated[
        float, SettingInfo(TIMES, duration(), "To connect to a replica.", live=True)
    ] = 2.0
    first_byte_timeout: Annotated[
        float,
        SettingInfo(
            TIMES,
            duration(),
            "From a request sent to the first event or byte of the replica's answer. While the "
            "replica is healthy and its metrics say that it runs requests, half an hour at least.",
        ),
    ] = 1800.0
    chunk_timeout: Annotated[
        float,
        SettingInfo(
            TIMES,
            duration(),
            "Longest silence within a replica's answer. While the replica is healthy and its "
            "metrics say that it runs requests, half an hour at least.",
        ),
    ] = 1800.0
    tunnel_idle_timeout: Annotated[
        float,
        SettingInfo(
            TIMES,
            duration(),
            "A WebSocket on which nothing has passed either way for so long is closed.",
        ),
    ] = 1800.0
    replica_idle_timeout: Annotated[
        float,
        SettingInfo(
            TIMES,
            duration(),
            "A pooled connection to a replica is closed after this idle time. Keep it below the "
            "replica's own keep-alive (5 s in uvicorn), or requests meet connections being closed.",
        ),
    ] = 4.0

    retries: Annotated[
        int,
        SettingInfo(
            RETRY,
            whole(0, 10),
            "Further replicas tried before the first byte has gone to the client.",
            live=True,
        ),
    ] = 2
    retry_budget: Annotated[
        float,
        SettingInfo(
            RETRY,
            share(),
            "Retries allowed as a share of requests, so that retries add no overload. What a "
            "replica had in flight when it went out of service is moved without counting.",
        ),
    ] = 0.2
    retry_after: Annotated[
        float,
        SettingInfo(RETRY, duration(0), "What `Retry-After` tells clients when a 503 is answered."),
    ] = 2.0

    settle_time: Annotated[
        float,
        SettingInfo(
            STOP,
            duration(0),
            "After SIGTERM, go on accepting requests while not ready, until load balancers "
            "have noticed.",
        ),
    ] = 3.0
    drain_timeout: Annotated[
        float, SettingInfo(STOP, duration(0), "Then wait so long for requests in flight to finish.")
    ] = 60.0
