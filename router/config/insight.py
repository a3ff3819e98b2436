"""The settings of what the router tells: explanations, diagnosis, shadows, traces, logs."""

from __future__ import annotations

from typing import Annotated

from router.config.kinds import Policies, Switch, Word, price, share, size, whole
from router.config.serving import GIB, INSIGHT, KIB, MIB, SettingInfo
from router.config.tenancy import TenantSettings


class InsightSettings(TenantSettings, frozen=True, kw_only=True):
    """The settings of the group INSIGHT."""

    explain_headers: Annotated[
        bool,
        SettingInfo(
            INSIGHT,
            Switch(),
            "Add response headers with the chosen replica and the predicted tokens to requests "
            "that carry `x-warmroute-explain: 1`.",
            live=True,
        ),
    ] = False
    explain_requests: Annotated[
        int,
        SettingInfo(
            INSIGHT, whole(0, 1_000_000), "Number of latest requests that `/explain` remembers."
        ),
    ] = 1000
    diagnosis: Annotated[
        bool,
        SettingInfo(
            INSIGHT,
            Switch(),
            "Find out for each request where its prompt parts from the one before, and why tokens "
            "were computed again ([why](../operate/why-did-my-cache-miss.md)). "
            "Keeps hashes, no text.",
        ),
    ] = True
    diagnosis_memory: Annotated[
        int,
        SettingInfo(
            INSIGHT,
            size(1 * MIB, 64 * GIB),
            "Memory for the hashes of earlier prompts. A prompt takes about a tenth of its text; "
            "of a conversation only the latest prompt is kept.",
        ),
    ] = 64 * MIB
    audit_text: Annotated[
        int,
        SettingInfo(
            INSIGHT,
            size(0, 4 * KIB),
            "Bytes of a prompt's text to keep around the place where it changed, for `/explain`. "
            "0: none. Whoever may read the admin port may read them.",
        ),
    ] = 0
    shadow_policies: Annotated[
        tuple[str, ...],
        SettingInfo(
            INSIGHT,
            Policies(),
            "Policies that are run beside live traffic to see what they would have got: "
            "`round_robin`, or `module:Class` for your own. They send nothing. Each needs the "
            "memory of another index, and all together take at most a fifth of a core.",
        ),
    ] = ()
    replica_hour_price: Annotated[
        float,
        SettingInfo(
            INSIGHT,
            price(),
            "What an hour of one replica costs, for telling savings in money; 0: not told.",
        ),
    ] = 0.0
    tracing: Annotated[
        bool,
        SettingInfo(
            INSIGHT,
            Switch(),
            "Send OpenTelemetry traces. Where to, OpenTelemetry's own environment variables say, "
            "such as `OTEL_EXPORTER_OTLP_ENDPOINT`. Needs the extra `otel`.",
        ),
    ] = False
    tracing_share: Annotated[
        float,
        SettingInfo(
            INSIGHT,
            share(),
            "Share of requests that are traced, where the client's `traceparent` does not decide.",
        ),
    ] = 1.0
    access_log: Annotated[
        float,
        SettingInfo(
            INSIGHT, share(), "Share of requests in the access log; 0 turns it off.", live=True
        ),
    ] = 1.0
    access_log_blocks: Annotated[
        bool,
        SettingInfo(
            INSIGHT,
            Switch(),
            "Add the hashes of the prompt's blocks to the access log, so that a load generator "
            "can replay it.",
        ),
    ] = False
    log_level: Annotated[
        str,
        SettingInfo(
            INSIGHT,
            Word(("debug", "info", "warning", "error")),
            "Least severe messages that are logged.",
            live=True,
        ),
    ] = "info"
    log_format: Annotated[
        str,
        SettingInfo(
            INSIGHT,
            Word(("auto", "json", "text")),
            "Format of both logs: `text` for people, `json`, or `auto`, which is text on a "
            "terminal and JSON elsewhere.",
        ),
    ] = "auto"
