"""What the gateway does with a path: route it by prefix, balance it, answer it, or refuse it.

Paths that clients have use for are listed; all others are refused, since engines add paths that
control them with every version. docs/reference/paths.md has the table for people.
"""

from __future__ import annotations

from collections.abc import Callable
from enum import Enum

import msgspec

from router.http.errors import Form
from router.prompt import PARSERS, Models, Prompt, parse_invocations


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
    parse: Callable[[bytes, Models], Prompt | None] | None = None
    """The prompt of a body; None for one that holds no prompt, which is balanced."""
    path: str = ""
    """The path, where the rule is for one."""
    why: str = ""
    status: int = 403
    """Of the answer, where the path is refused."""
    names_model: bool = True
    """A body of this path should name a model."""
    keeps: bool = False
    """Its answers, or what it asks for, are kept by the engine that made them."""
    first_token_mark: bytes = b""
    """Bytes that every event with a token has, for streams that begin with events without one."""


_ADMIN = (
    "it changes the state of one engine; send it through the admin port: POST /replicas/NAME/PATH"
)
_ENGINE = "it is about one engine, not the fleet; ask that engine, or see the admin port"
_METRICS = "the router's own metrics are on the admin port, the engines' on theirs"
_ABORT = "it ends requests of any client; a client ends its own by closing its connection"

# Paths of vLLM's servers (development mode included) that the admin port passes to engines.
_ENGINE_STATE = (
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
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
# Others of theirs that control an engine or tell of one: its settings, its addresses, its load.
_ENGINE_OWN = (
    "/adapters",
    "/docs",
    "/docs/oauth2-redirect",
    "/fault_tolerance/status",
    "/get_world_size",
    "/is_paused",
    "/is_scaling_elastic_ep",
    "/is_sleeping",
    "/kv_event_sources",
    "/load",
    "/openapi.json",
    "/reconfigure",
    "/redoc",
    "/server_info",
    "/static",
    "/weight_checker",
    "/weight_info",
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
    "/v1/realtime": "audio",
    "/tokenize": "tokenize",
    "/detokenize": "tokenize",
    "/tokenizer_info": "tokenize",
    "/v1/chat/completions/render": "tokenize",
    "/v1/chat/completions/derender": "tokenize",
    "/v1/completions/render": "tokenize",
    "/v1/completions/derender": "tokenize",
    "/v1/responses/render": "tokenize",
    "/cohere/v2/chat/render": "tokenize",
    "/v1/chat/completions/batch": "chat",
    "/cohere/v2/chat": "chat",
    "/v1/systemone": "other",
    "/v1/decisions": "other",
    "/version": "other",
    # SGLang's own.
    "/generate": "generate",
    "/encode": "embeddings",
    "/v1/tokenize": "tokenize",
    "/v1/detokenize": "tokenize",
}

_RULES: dict[str, PathRule] = {
    **{path: PathRule(api, Treatment.BALANCE) for path, api in _BALANCED.items()},
    **{path: PathRule("engine", Treatment.REFUSE, why=_ADMIN) for path in _ENGINE_STATE},
    **{path: PathRule("engine", Treatment.REFUSE, why=_ENGINE) for path in _ENGINE_OWN},
    "/abort_requests": PathRule("engine", Treatment.REFUSE, why=_ADMIN),
    "/inference/v1/abort_requests": PathRule("engine", Treatment.REFUSE, why=_ABORT),
    "/metrics": PathRule("metrics", Treatment.REFUSE, why=_METRICS),
    **{
        path: PathRule(api, Treatment.PREFIX, parse=PARSERS[path])
        for path, api in {
            "/v1/chat/completions": "chat",
            "/v1/completions": "completions",
            "/inference/v1/generate": "generate",
            "/generative_scoring": "score",
        }.items()
    },
    "/invocations": PathRule("other", Treatment.PREFIX, parse=parse_invocations),
    "/v1/responses": PathRule(
        "responses",
        Treatment.PREFIX,
        Form.RESPONSES,
        parse=PARSERS["/v1/responses"],
        keeps=True,
        first_token_mark=b'delta"',
    ),
    "/v1/messages": PathRule(
        "messages", Treatment.PREFIX, Form.ANTHROPIC, parse=PARSERS["/v1/messages"]
    ),
    "/v1/messages/count_tokens": PathRule("tokenize", Treatment.BALANCE, Form.ANTHROPIC),
    "/v1/messages/render": PathRule("tokenize", Treatment.BALANCE, Form.ANTHROPIC),
    "/v1/models": PathRule("models", Treatment.MODELS),
    "*": PathRule("other", Treatment.HEALTH),
    "/health": PathRule("health", Treatment.HEALTH),
    "/ping": PathRule("health", Treatment.HEALTH),
}

RULES = {path: msgspec.structs.replace(rule, path=path) for path, rule in _RULES.items()}
"""A path → the rule for it."""

PARAMETER = "{}"
"""In a path of PATTERNS: one segment, whatever it is."""

PATTERNS = {
    path: msgspec.structs.replace(rule, path=path)
    for path, rule in {
        **{
            path: PathRule("responses", Treatment.BALANCE, names_model=False, keeps=True)
            for path in (
                "/v1/responses/{}",
                "/v1/responses/{}/cancel",
                "/v1/responses/{}/input_items",
                "/v1/conversations",
                "/v1/conversations/{}",
                "/v1/conversations/{}/items",
                "/v1/conversations/{}/items/{}",
            )
        },
        "/adapters/{}": PathRule("engine", Treatment.REFUSE, why=_ENGINE),
        "/static/{}": PathRule("engine", Treatment.REFUSE, why=_ENGINE),
        "/metrics/{}": PathRule("metrics", Treatment.REFUSE, why=_METRICS),
    }.items()
}
"""Paths with parts that vary → the rule for them."""

EXTRA = PathRule("other", Treatment.BALANCE, names_model=False)
"""Paths that the setting ``extra_paths`` adds."""

UNKNOWN = PathRule(
    "other",
    Treatment.REFUSE,
    why="it is no path of an inference API known here; if the engines serve it to clients, add it "
    "to the setting extra_paths",
    status=404,
)
MALFORMED = PathRule(
    "other",
    Treatment.REFUSE,
    why="a path may hold no control characters, no encoded slashes, and no backslashes",
    status=400,
)
