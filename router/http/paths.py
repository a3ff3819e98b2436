"""What the gateway does with a path: route it by prefix, balance it, answer it, or refuse it."""

from __future__ import annotations

from enum import Enum

import msgspec

from router.http.errors import Form
from router.prompt import PARSERS, Parser


class Treatment(Enum):
    """How requests to a path are handled."""

    PREFIX = "prefix"
    BALANCE = "balance"
    MODELS = "models"
    HEALTH = "health"
    REFUSE = "refuse"


class PathRule(msgspec.Struct, gc=False, frozen=True):
    """One path's treatment; api is a metric label, so there are few."""

    api: str
    treatment: Treatment
    form: Form = Form.OPENAI
    parse: Parser | None = None
    path: str = ""
    """The path, where the rule is for one."""
    why: str = ""
    first_token_mark: bytes = b""
    """Bytes that every event with a token has, for streams that begin with events without one."""


_ADMIN = (
    "it changes the state of one engine; send it through the admin port: POST /replicas/NAME/PATH"
)
_METRICS = "the router's own metrics are on the admin port, the engines' on theirs"

# Paths of vLLM's servers (0.32, development mode included) that act on one engine rather than serve
# a client.
_ENGINE_STATE = (
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "/abort_requests",
    "/collective_rpc",
    "/fault_tolerance/apply",
    "/finish_weight_update",
    "/init_weight_transfer_engine",
    "/pause",
    "/release_kv_cache_memory",
    "/reset_encoder_cache",
    "/reset_mm_cache",
    "/reset_prefix_cache",
    "/resume",
    "/resume_kv_cache_memory",
    "/scale_elastic_ep",
    "/shutdown_weight_transfer_engine",
    "/sleep",
    "/start_draft_weight_update",
    "/start_profile",
    "/start_weight_update",
    "/stop_profile",
    "/update_weight_version",
    "/update_weights",
    "/wake_up",
)

_BALANCED = {
    "/v1/embeddings": "embeddings",
    "/v2/embed": "embeddings",
    "/v1/score": "score",
    "/score": "score",
    "/v1/rerank": "rerank",
    "/v2/rerank": "rerank",
    "/rerank": "rerank",
    "/pooling": "pooling",
    "/classify": "classify",
    "/v1/audio/transcriptions": "audio",
    "/v1/audio/translations": "audio",
    "/tokenize": "tokenize",
    "/detokenize": "tokenize",
}

OTHER = PathRule("other", Treatment.BALANCE)

_RULES: dict[str, PathRule] = {
    **{path: PathRule(api, Treatment.BALANCE) for path, api in _BALANCED.items()},
    **{path: PathRule("engine", Treatment.REFUSE, why=_ADMIN) for path in _ENGINE_STATE},
    "/metrics": PathRule("metrics", Treatment.REFUSE, why=_METRICS),
    "/v1/chat/completions": PathRule(
        "chat", Treatment.PREFIX, parse=PARSERS["/v1/chat/completions"]
    ),
    "/v1/completions": PathRule("completions", Treatment.PREFIX, parse=PARSERS["/v1/completions"]),
    "/v1/responses": PathRule(
        "responses",
        Treatment.PREFIX,
        Form.RESPONSES,
        parse=PARSERS["/v1/responses"],
        first_token_mark=b'delta"',
    ),
    "/v1/messages": PathRule(
        "messages", Treatment.PREFIX, Form.ANTHROPIC, parse=PARSERS["/v1/messages"]
    ),
    "/v1/messages/count_tokens": PathRule("tokenize", Treatment.BALANCE, Form.ANTHROPIC),
    "/v1/models": PathRule("models", Treatment.MODELS),
    "*": PathRule("other", Treatment.HEALTH),
    "/health": PathRule("health", Treatment.HEALTH),
    "/ping": PathRule("health", Treatment.HEALTH),
}

RULES = {path: msgspec.structs.replace(rule, path=path) for path, rule in _RULES.items()}
