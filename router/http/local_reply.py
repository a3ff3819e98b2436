"""What the router answers by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.http.paths import Treatment
from router.telemetry.record import Outcome

if TYPE_CHECKING:
    from router.http.exchange import Exchange
    from router.http.gateway import Gateway
    from router.http.request import Request


_METHODS = (b"GET", b"HEAD", b"OPTIONS")
# Platforms that host models probe so, and the engine takes it.
_PING = (b"POST", "/ping")
_LONGEST_SHOWN = 256


def shown_path(target: bytes) -> str:
    """The path as it is logged, kept and told: a client chooses it, so it is cut when long."""
    return target.partition(b"?")[0][:_LONGEST_SHOWN].decode("latin-1")


def answer_locally(exchange: Exchange, gateway: Gateway, request: Request) -> None:
    """Answer /v1/models, /health and the paths that are refused on the front port."""
    rule = request.rule
    if rule.treatment is Treatment.REFUSE:
        exchange.refuse(
            rule.status,
            f"{shown_path(request.target)} is not served on this port: {rule.why}",
            Outcome.REFUSED_PATH,
        )
    elif request.method not in _METHODS and (request.method, rule.path) != _PING:
        # As an engine says it, which is not in the form of its other errors.
        body = b'{"detail":"Method Not Allowed"}'
        exchange.reply(
            405,
            body,
            Outcome.BAD_REQUEST,
            extra=b"allow: GET, HEAD, OPTIONS\\r\
",
        )
    elif request.method == b"OPTIONS":
        allowed = b"allow: GET, HEAD, OPTIONS\r\n"
        exchange.reply(204, b"", extra=allowed + _preflight(gateway, request))
    elif rule.treatment is Treatment.MODELS:
        if gateway.fleet.models_known:
            exchange.reply(200, gateway.fleet.models_body())
        else:
            exchange.refuse(
                503, "no replica has told its models yet; try again", Outcome.NO_REPLICA
            )
    elif gateway.closing:
        # Load balancers that probe the serving port must look elsewhere from now on.
        exchange.refuse(503, "the router is stopping", Outcome.DRAINING)
    elif gateway.fleet.usable:
        exchange.reply(200, b"{}")
    else:
        exchange.refuse(503, "no replica is available just now", Outcome.NO_REPLICA)


def _preflight(gateway: Gateway, request: Request) -> bytes:
    """The header lines of a CORS preflight's answer, where it is one and the setting allows it."""
    given = request.headers
    asked = {name.lower(): value for name, value in zip(given[::2], given[1::2], strict=True)}
    if not gateway.allow_origin or b"access-control-request-method" not in asked:
        return b""
    lines = b"access-control-allow-methods: GET, HEAD, OPTIONS\r\naccess-control-max-age: 600\r\n"
    wanted = asked.get(b"access-control-request-headers", b"")
    # By name: a wildcard would leave out Authorization.
    return lines + b"access-control-allow-headers: %b\r\n" % wanted if wanted else lines


def answer_no_replica(exchange: Exchange, gateway: Gateway, serving: int) -> None:
    """No replica may be sent this. serving: the mask of those that serve its model at all."""
    fleet, model = gateway.fleet, exchange.model
    if not serving and model and fleet.models_known and not fleet.may_come(model):
        message = f"The model `{model}` does not exist."
        if not fleet.guarded:
            message += f" Valid aliases: {fleet.model_names()}."
        exchange.refuse(404, message, Outcome.UNKNOWN_MODEL, param="model")
        return
    what = f"No replica that serves `{model}`" if model else "No replica"
    exchange.refuse(503, f"{what} is available just now; try again.", Outcome.NO_REPLICA)
