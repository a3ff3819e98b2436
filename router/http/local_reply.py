"""What the router answers by itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

from router.http.paths import Treatment
from router.telemetry.record import Outcome

if TYPE_CHECKING:
    from router.http.exchange import Exchange
    from router.http.gateway import Gateway
    from router.http.request import Request


def answer_locally(exchange: Exchange, gateway: Gateway, request: Request) -> None:
    """Answer /v1/models, /health and the paths that are refused on the front port."""
    rule = request.rule
    if rule.treatment is Treatment.REFUSE:
        path = request.target.split(b"?", 1)[0].decode("latin-1")
        exchange.refuse(
            403,
            f"{path} is not served on this port: {rule.why}",
            Outcome.REFUSED_PATH,
            code="refused_path",
        )
    elif request.method not in (b"GET", b"HEAD", b"OPTIONS"):
        exchange.refuse(405, "only GET and HEAD are served here", Outcome.BAD_REQUEST)
    elif request.method == b"OPTIONS":
        exchange.reply(204, b"", extra=b"allow: GET, HEAD, OPTIONS\r\n")
    elif rule.treatment is Treatment.MODELS:
        if gateway.fleet.models_known:
            exchange.reply(200, gateway.fleet.models_body())
        else:
            exchange.refuse(
                503, "no replica has told its models yet; try again", Outcome.NO_REPLICA
            )
    elif gateway.fleet.usable:
        exchange.reply(200, b"{}")
    else:
        exchange.refuse(503, "no replica is available just now", Outcome.NO_REPLICA)


def answer_no_replica(exchange: Exchange, gateway: Gateway, serving: int) -> None:
    """No replica may be sent this. serving: the mask of those that serve its model at all."""
    fleet, model = gateway.fleet, exchange.model
    if not serving and model and fleet.models_known:
        names = ", ".join(card.id for card in fleet.all_models()) or "none"
        exchange.refuse(
            404,
            f"The model `{model}` does not exist. Models served here: {names}.",
            Outcome.UNKNOWN_MODEL,
            code="model_not_found",
            param="model",
        )
        return
    what = f"No replica that serves `{model}`" if model else "No replica"
    exchange.refuse(503, f"{what} is available just now; try again.", Outcome.NO_REPLICA)
