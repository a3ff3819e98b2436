"""When requests wait in the router instead of in an engine: the settings of the queue."""

from __future__ import annotations

from typing import Annotated

from router.config.kinds import Switch, Text, duration, share, whole
from router.config.serving import QUEUE, ServingSettings, SettingInfo

_OBJECTIVES = "names with their priorities (chat=high,nightly=low)"
_OBJECTIVE = r"[A-Za-z0-9._-]{1,64}=(high|normal|low)"


class QueueSettings(ServingSettings, frozen=True, kw_only=True):
    """The settings of the group QUEUE."""

    queue_door: Annotated[
        float,
        SettingInfo(
            QUEUE,
            share(),
            "Share of a replica's KV cache that sessions in progress may be expected to want while "
            "new ones are let in; beyond it new sessions wait. 0 turns this off; it does nothing "
            "where the cache's size is not known, or where a tier behind it takes what it evicts.",
            live=True,
        ),
    ] = 0.9
    queue_depth: Annotated[
        float,
        SettingInfo(
            QUEUE,
            duration(),
            "Prefill that a replica is sent ahead, while requests of several tenants or "
            "priorities come. Less lets those of better priority overtake sooner.",
            live=True,
        ),
    ] = 0.4
    queue_low_kv: Annotated[
        float,
        SettingInfo(
            QUEUE,
            share(),
            "Share of a replica's KV cache in use from which on requests of low priority wait. "
            "0 turns this off.",
            live=True,
        ),
    ] = 0.8
    queue_timeout: Annotated[
        float,
        SettingInfo(
            QUEUE,
            duration(0),
            "The longest that a request waits in the queue; 0 for any time.",
            live=True,
        ),
    ] = 60.0
    queue_limit: Annotated[
        int,
        SettingInfo(
            QUEUE,
            whole(0, 1_000_000),
            "Requests that may wait in the queue; more are refused with 429. Their bodies count in "
            "`body_memory`.",
            live=True,
        ),
    ] = 5000
    ttft_limit: Annotated[
        float,
        SettingInfo(
            QUEUE,
            duration(0),
            "Refuse a request with 429 when its first token is predicted to come later than this, "
            "unless its session is in progress. Clients may ask for less (`x-slo-ttft-ms`, in "
            "milliseconds). 0: none is refused for that.",
            live=True,
        ),
    ] = 0.0
    queue_trust_clients: Annotated[
        bool,
        SettingInfo(
            QUEUE,
            Switch(),
            "Believe clients that ask for high priority, and headers that name a tenant. Off: "
            "clients may only lower their priority, and a tenant is an API key.",
        ),
    ] = False
    queue_objectives: Annotated[
        str,
        SettingInfo(
            QUEUE,
            Text(_OBJECTIVES, rf"({_OBJECTIVE}(\s*,\s*{_OBJECTIVE})*)?"),
            "What the header `x-gateway-inference-objective` may name besides high, normal and "
            "low, with the priority of each.",
        ),
    ] = ""
