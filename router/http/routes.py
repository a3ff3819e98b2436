"""What the gateway does with a path: route it by prefix, balance it, answer it, or refuse it.

Paths that clients have use for are listed; all others are refused, since engines add paths that
control them with every version. docs/reference/paths.md has the table for people.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from enum import Enum
from urllib.parse import unquote_to_bytes

import httptools
import msgspec

from router.prompt import PARSERS, Models, Prompt, parse_invocations


class Form(Enum):
    """Whose error form and stream events a path speaks."""

    OPENAI = "openai"
    RESPONSES = "responses"
    ANTHROPIC = "anthropic"


class Treatment(Enum):
    """How requests to a path are handled."""

    PREFIX = "prefix"
    BALANCE = "balance"
    MODELS = "models"
    HEALTH = "health"
    REFUSE = "refuse"


FORWARDED = frozenset((Treatment.PREFIX, Treatment.BALANCE))
"""What goes to a replica."""


class Isolation(Enum):
    """What can be done for a path when tenants' caches are kept apart."""

    SALT = "salt"
    """Engines take a cache_salt in its body."""
    NEEDLESS = "needless"
    """It computes on no prompt."""
    IMPOSSIBLE = "impossible"
    """It computes on prompts, and takes no salt: it is refused."""


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
    engine: str = ""
    """The only engine that has the path; empty where others have it too."""
    keeps: bool = False
    """Its answers, or what it asks for, are kept by the engine that made them."""
    isolation: Isolation = Isolation.NEEDLESS
    first_token_mark: bytes = b""
    """Bytes that every event with a token has, for streams that begin with events without one."""


_ADMIN = (
    "it changes the state of one engine; send it through the admin port: POST /replicas/NAME/PATH"
)
_ENGINE = "it is about one engine, not the fleet; ask that engine, or see the admin port"
_METRICS = "the router's own metrics are on the admin port, the engines' on theirs"
_ABORT = "it ends requests of any client; a client ends its own by closing its connection"

# Paths of vLLM's servers (development mode included), SGLang's and TensorRT-LLM's that the admin
# port passes to engines.
_ENGINE_STATE = (
    "/v1/load_lora_adapter",
    "/v1/unload_lora_adapter",
    "/abort_request",
    "/begin_weight_update",
    "/close_session",
    "/collective_rpc",
    "/configure_logging",
    "/continue_generation",
    "/destroy_weights_update_group",
    "/end_weight_update",
    "/fault_tolerance/apply",
    "/finish_weight_update",
    "/flush_cache",
    "/freeze_gc",
    "/init_weight_transfer_engine",
    "/init_weights_send_group_for_remote_instance",
    "/init_weights_update_group",
    "/load_lora_adapter",
    "/open_session",
    "/pause",
    "/pause_generation",
    "/release_kv_cache_memory",
    "/release_memory",
    "/release_memory_occupation",
    "/reset_encoder_cache",
    "/reset_mm_cache",
    "/reset_prefix_cache",
    "/resume",
    "/resume_kv_cache_memory",
    "/resume_memory",
    "/resume_memory_occupation",
    "/scale_elastic_ep",
    "/send_weights_to_remote_instance",
    "/set_internal_state",
    "/set_trace_level",
    "/shutdown_weight_transfer_engine",
    "/sleep",
    "/slow_down",
    "/start_draft_weight_update",
    "/start_profile",
    "/start_weight_update",
    "/stop_profile",
    "/unload_lora_adapter",
    "/update_weight_version",
    "/update_weights",
    "/update_weights_from_disk",
    "/update_weights_from_distributed",
    "/update_weights_from_ipc",
    "/update_weights_from_tensor",
    "/wake_up",
)
# Others of theirs that control an engine or tell of one: its settings, its addresses, its load.
_ENGINE_OWN = (
    "/adapters",
    "/docs",
    "/docs/oauth2-redirect",
    "/fault_tolerance/status",
    "/get_load",
    "/get_model_info",
    "/get_server_info",
    "/get_weights_by_name",
    "/get_world_size",
    "/health_generate",
    "/hicache/storage-backend",
    "/hicache/storage-backend/clear",
    "/is_paused",
    "/is_scaling_elastic_ep",
    "/is_sleeping",
    "/kv_cache_events",
    "/kv_event_sources",
    "/load",
    "/model_info",
    "/openapi.json",
    "/perf_metrics",
    "/ready",
    "/reconfigure",
    "/redoc",
    "/server_info",
    "/static",
    "/steady_clock_offset",
    "/v1/kv_cache_hints",
    "/v1/loads",
    "/weight_checker",
    "/weight_info",
    "/weights_checker",
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

# Of these: where engines take no salt, and where there is nothing to salt.
_UNSALTED = frozenset(
    {
        "/v2/embed",
        "/v1/audio/transcriptions",
        "/v1/audio/translations",
        "/v1/realtime",
        "/cohere/v2/chat",
        "/generate",
        "/encode",
    }
)
_NO_PROMPTS = frozenset({"tokenize", "other"})
_COMPUTES = frozenset({"/v1/systemone", "/v1/decisions"})


def _isolation(path: str, api: str) -> Isolation:
    if path in _UNSALTED:
        return Isolation.IMPOSSIBLE
    if api in _NO_PROMPTS and path not in _COMPUTES:
        return Isolation.NEEDLESS
    return Isolation.SALT


_SGLANG = frozenset({"/generate", "/encode", "/v1/tokenize", "/v1/detokenize"})
_VLLM = frozenset(
    {
        "/v2/embed",
        "/score",
        "/v2/rerank",
        "/rerank",
        "/pooling",
        "/v1/chat/completions/batch",
        "/v1/chat/completions/render",
        "/v1/chat/completions/derender",
        "/v1/completions/render",
        "/v1/completions/derender",
        "/v1/responses/render",
        "/cohere/v2/chat/render",
        "/cohere/v2/chat",
        "/inference/v1/generate",
        "/generative_scoring",
        "/tokenizer_info",
        "/v1/messages/render",
    }
)


def _only_engine(path: str) -> str:
    return "sglang" if path in _SGLANG else "vllm" if path in _VLLM else ""


_RULES: dict[str, PathRule] = {
    **{
        path: PathRule(
            api, Treatment.BALANCE, isolation=_isolation(path, api), engine=_only_engine(path)
        )
        for path, api in _BALANCED.items()
    },
    **{path: PathRule("engine", Treatment.REFUSE, why=_ADMIN) for path in _ENGINE_STATE},
    **{path: PathRule("engine", Treatment.REFUSE, why=_ENGINE) for path in _ENGINE_OWN},
    "/abort_requests": PathRule("engine", Treatment.REFUSE, why=_ADMIN),
    "/inference/v1/abort_requests": PathRule("engine", Treatment.REFUSE, why=_ABORT),
    "/metrics": PathRule("metrics", Treatment.REFUSE, why=_METRICS),
    "/prometheus/metrics": PathRule("metrics", Treatment.REFUSE, why=_METRICS),
    **{
        path: PathRule(
            api,
            Treatment.PREFIX,
            parse=PARSERS[path],
            isolation=Isolation.SALT,
            engine=_only_engine(path),
        )
        for path, api in {
            "/v1/chat/completions": "chat",
            "/v1/completions": "completions",
            "/inference/v1/generate": "generate",
            "/generative_scoring": "score",
        }.items()
    },
    "/invocations": PathRule(
        "other",
        Treatment.PREFIX,
        parse=parse_invocations,
        isolation=Isolation.IMPOSSIBLE,
    ),
    "/v1/responses": PathRule(
        "responses",
        Treatment.PREFIX,
        Form.RESPONSES,
        parse=PARSERS["/v1/responses"],
        keeps=True,
        isolation=Isolation.SALT,
        first_token_mark=b'delta"',
    ),
    "/v1/messages": PathRule(
        "messages",
        Treatment.PREFIX,
        Form.ANTHROPIC,
        parse=PARSERS["/v1/messages"],
        isolation=Isolation.SALT,
    ),
    "/v1/messages/count_tokens": PathRule("tokenize", Treatment.BALANCE, Form.ANTHROPIC),
    "/v1/messages/render": PathRule(
        "tokenize", Treatment.BALANCE, Form.ANTHROPIC, engine=_only_engine("/v1/messages/render")
    ),
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

EXTRA = PathRule("other", Treatment.BALANCE, names_model=False, isolation=Isolation.IMPOSSIBLE)
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


# What servers and proxies on the way may read in different ways. A separator that is encoded is
# looked for before decoding.
_malformed = re.compile(rb"[\x00-\x1f\x7f\\]").search
_ENCODED_SEPARATORS = (b"%2f", b"%2F", b"%5c", b"%5C")
_dots = re.compile(rb"/\.{1,2}(?:/|\Z)").search


class Paths:
    """The paths served, of which some are an operator's own."""

    def __init__(self, extra: Iterable[str] = ()) -> None:
        """extra: more paths to balance; one that ends with ``/*`` stands for all below it."""
        self.exact = {path.encode(): rule for path, rule in RULES.items()}
        """The rules of paths as most clients write them."""
        self._patterns = [(path.encode().split(b"/"), rule) for path, rule in PATTERNS.items()]
        self._below: list[bytes] = []
        for path in extra:
            if path.endswith("/*"):
                self._below.append(path[:-1].encode())
            else:
                self.exact.setdefault(path.encode(), EXTRA)

    def rule(self, target: bytes) -> PathRule:
        """The rule for an origin-form target.

        The path is compared as the engine's server will see it, percent-decoded, so that an
        encoded letter does not open a path that is refused.
        """
        return self.exact.get(target) or self._slow(target)

    def _slow(self, target: bytes) -> PathRule:
        path = target.split(b"?", 1)[0].split(b"#", 1)[0]
        if b"%" in path:
            if any(separator in path for separator in _ENCODED_SEPARATORS):
                return MALFORMED
            path = unquote_to_bytes(path)
        if _malformed(path):
            return MALFORMED
        if len(path) > 1 and path.endswith(b"/"):
            path = path.rstrip(b"/")
        return self.exact.get(path) or self._varying(path)

    def _varying(self, path: bytes) -> PathRule:
        if _dots(path):
            return UNKNOWN
        segments = path.split(b"/")
        for pattern, rule in self._patterns:
            if len(pattern) == len(segments) and all(
                own == PARAMETER.encode() or own == given
                for own, given in zip(pattern, segments, strict=True)
            ):
                return rule
        if any(path.startswith(below) for below in self._below):
            return EXTRA
        return UNKNOWN


_LONGEST_SHOWN = 256


def shown_path(target: bytes) -> str:
    """The path as it is logged, kept and told: a client chooses it, so it is cut when long."""
    return target.partition(b"?")[0][:_LONGEST_SHOWN].decode("latin-1")


def origin_form(target: bytes, method: bytes) -> bytes:
    """An absolute-form target ("GET http://host/path") as path and query; "*" stays for OPTIONS.

    Raises ValueError for what is neither.
    """
    if target == b"*" and method == b"OPTIONS":
        return target
    try:
        url = httptools.parse_url(target)
    except httptools.HttpParserInvalidURLError:
        raise ValueError from None
    if not url.host:
        raise ValueError
    path = url.path or b"/"
    return b"%b?%b" % (path, url.query) if url.query else bytes(path)
