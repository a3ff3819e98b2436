"""SGLang's surface, from the source of its release 0.5.23; it was not compared with a running one.

As if started with ``--enable-metrics --enable-cache-report``. Its page is the engine's block.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import msgspec

from loadgen.replicas.answers import Answer, Choice, frame
from loadgen.replicas.anthropic_wording import MessagesFormat
from loadgen.replicas.errors import ApiError, missing
from loadgen.replicas.openai_wording import ChatFormat, CompletionsFormat
from loadgen.replicas.prompts import Job, completions_job
from loadgen.replicas.responses_wording import ResponsesFormat
from loadgen.replicas.routes import GENERATING, ROUTES, Route
from loadgen.replicas.surface import Surface
from loadgen.replicas.tokens import answer_words

if TYPE_CHECKING:
    from loadgen.replicas.connection import Connection
    from loadgen.replicas.faults import Received
    from loadgen.replicas.replica import Replica

VERSION = "0.5.23"
_encode = msgspec.json.encode


# -- answers

_SAID = ("role", "content", "tool_calls")
"""Of what a message or a part of one has as vLLM words it, what SGLang has too."""


def _choice(item: dict[str, Any]) -> dict[str, Any]:
    """A choice as vLLM words it -> as SGLang does."""
    found = {name: value for name, value in item.items() if not name.endswith("token_ids")}
    found["matched_stop"] = found.pop("stop_reason", None)
    for name in ("delta", "message"):
        if name in item:
            kept = {key: item[name][key] for key in _SAID if key in item[name]}
            found[name] = {"role": None, "content": None, "reasoning_content": None, **kept}
    return found


def _usage(usage: dict[str, Any] | None) -> dict[str, Any] | None:
    if usage is None:
        return None
    return {
        "prompt_tokens_details": None,
        **{name: value for name, value in usage.items() if name != "completion_tokens_details"},
        "reasoning_tokens": 0,
        "completion_tokens_details": None,
    }


def _whole(body: bytes) -> bytes:
    tree = msgspec.json.decode(body)
    return _encode(
        {
            **{name: tree[name] for name in ("id", "object", "created", "model")},
            "choices": [_choice(item) for item in tree["choices"]],
            "usage": _usage(tree["usage"]),
            "metadata": {"weight_version": "default"},
        }
    )


class SGLangChat(ChatFormat):
    """Its chat completions."""

    def chunk(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        usage = _usage(more.get("usage"))
        return super().chunk([_choice(item) for item in choices], usage=usage)

    def whole(self) -> bytes:
        return _whole(super().whole())


class SGLangCompletions(CompletionsFormat):
    """Its plain completions."""

    def chunk(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        usage = _usage(more.get("usage"))
        return super().chunk([_choice(item) for item in choices], usage=usage)

    def whole(self) -> bytes:
        return _whole(super().whole())


class SGLangMessages(MessagesFormat):
    """Its messages: the field of cached tokens is left out where there are none."""

    def _usage(self) -> dict[str, int]:
        usage = super()._usage()
        del usage["cache_creation_input_tokens"]
        if not usage["cache_read_input_tokens"]:
            del usage["cache_read_input_tokens"]
        return usage


class SGLangResponses(ResponsesFormat):
    """Its responses: the details of the input are left out where nothing was cached."""

    def _response(self, done: bool) -> dict[str, Any]:
        response = super()._response(done)
        if response["usage"] and not self.answer.cached_tokens:
            response["usage"]["input_tokens_details"] = None
        return response


class GenerateFormat:
    """Its own /generate. Each event of a stream has the whole text up to there."""

    ANTHROPIC: ClassVar[bool] = False

    def __init__(self, answer: Answer) -> None:
        self.answer = answer

    def _said(self, choice: Choice, end: int, *, last: bool) -> dict[str, Any]:
        finish = {"type": "length", "length": end} if choice.limited else {"type": "stop"}
        return {
            "text": b"".join(answer_words(choice.seed, 0, end)).decode(),
            "meta_info": {
                "id": self.answer.id,
                "finish_reason": finish if last else None,
                "prompt_tokens": choice.request.prompt_tokens,
                "weight_version": "default",
                "completion_tokens": end,
                "cached_tokens": choice.request.cached_tokens,
            },
        }

    def opening(self) -> bytes:
        return b""

    def tokens(self, choice: Choice, end: int, last: bool) -> bytes:
        return b"".join(
            frame(b"data: %b\n\n" % _encode(self._said(choice, each, last=last and each == end)))
            for each in range(choice.sent + 1, end + 1)
        )

    def around(self, _: Choice, /) -> tuple[bytes, bytes] | None:
        return None

    def closing(self) -> bytes:
        return frame(b"data: [DONE]\n\n")

    def failed(self, error: ApiError) -> bytes:
        return frame(b"data: %b\n\n" % error.body()) + self.closing()

    def whole(self) -> bytes:
        said = [
            self._said(choice, choice.request.output_tokens, last=True)
            for choice in self.answer.choices
        ]
        return _encode(said[0] if len(said) == 1 else said)


def generate_job(body: dict[str, Any]) -> Job:
    """The job of a body of /generate: text or token ids, and sampling_params."""
    prompt = body.get("text", body.get("input_ids"))
    if prompt is None:
        raise missing("text")
    sampling = body.get("sampling_params") or {}
    given: dict[str, Any] = {"prompt": prompt, "max_tokens": sampling.get("max_new_tokens", 128)}
    given.update((name, body[name]) for name in ("stream", "cache_salt") if name in body)
    return completions_job(given)


def prepare(path: str, body: dict[str, Any]) -> None:
    """Its messages know no salt. The billing line is rendered as it stands."""
    if path == "/v1/messages":
        body.pop("cache_salt", None)


# -- the other paths


def _models(replica: Replica, connection: Connection, _: Received) -> None:
    data = [
        {
            "id": name,
            "object": "model",
            "created": int(replica.start_time),
            "owned_by": "sglang",
            "root": name,
            "parent": None if name == replica.model else replica.model,
            "max_model_len": replica.params.longest if name == replica.model else None,
        }
        for name in replica.models
    ]
    connection.reply(200, _encode({"object": "list", "data": data}))


def _server_info(replica: Replica, connection: Connection, _: Received) -> None:
    params = replica.params
    told = {
        "model_path": replica.model,
        "served_model_name": replica.model,
        "page_size": params.block_size,
        "max_total_num_tokens": params.cache_tokens,
        "disable_radix_cache": False,
        "enable_metrics": True,
        "enable_cache_report": True,
        "kv_events": None,
        "version": VERSION,
    }
    connection.reply(200, _encode(told))


def _model_info(replica: Replica, connection: Connection, _: Received) -> None:
    told = {"model_path": replica.model, "served_model_name": replica.model, "is_generation": True}
    connection.reply(200, _encode(told))


def _flush(replica: Replica, connection: Connection, _: Received) -> None:
    flushed = replica.engine.reset_cache()
    text = b"Cache flushed.\n" if flushed else b"Flush cache failed.\n"
    connection.reply(200 if flushed else 400, text, "text/plain; charset=utf-8")


def _tokenize(replica: Replica, connection: Connection, received: Received) -> None:
    if b'"messages"' in received.body:
        raise ApiError(400, "[{'type': 'missing', 'loc': ('body', 'prompt')}]")
    ROUTES["/tokenize"].handler(replica, connection, received)


def _metrics(replica: Replica, connection: Connection, _: Received) -> None:
    text = render_metrics(replica)
    connection.reply(200, text, "text/plain; version=0.0.4; charset=utf-8")


def render_metrics(replica: Replica) -> bytes:
    """The text of /metrics: without a start time, and without counters that are 0."""
    engine, params, counters = replica.engine, replica.params, replica.engine.counters
    whole = f'engine_type="unified",model_name="{replica.model}"'
    labels = f'{whole},moe_ep_rank="0",pp_rank="0",tp_rank="0"'
    found = counters.prefix_hits / counters.prefix_queries if counters.prefix_queries else 0.0
    out: list[str] = []
    for name, value in (
        ("num_running_reqs", len(engine.running)),
        ("num_queue_reqs", len(engine.waiting)),
        ("token_usage", engine.kv_usage),
        ("cache_hit_rate", found),
        ("max_total_num_tokens", params.cache_tokens),
        ("page_size", params.block_size),
        ("num_pages", params.num_blocks),
        ("context_len", params.longest),
    ):
        out += [f"# TYPE sglang:{name} gauge", f"sglang:{name}{{{labels}}} {float(value)}"]
    if params.max_loras:
        used = len(engine.adapters.loaded)
        for name, value in (("used", used), ("total", params.max_loras)):
            full = f"sglang:lora_pool_slots_{name}"
            out += [f"# TYPE {full} gauge", f"{full}{{{labels}}} {float(value)}"]
    finished = sum(replica.metrics.finished.values())
    for name, value, more in (
        ("prompt_tokens_total", counters.prompt_tokens, ',is_streaming="true"'),
        ("generation_tokens_total", counters.generation_tokens, ',is_streaming="true"'),
        ("cached_tokens_total", counters.prompt_tokens_cached, ',cache_source="device"'),
        ("num_requests_total", finished, ',is_streaming="true"'),
    ):
        if value:
            out += [f"# TYPE sglang:{name} counter", f"sglang:{name}{{{whole}{more}}} {value}"]
    for name, histogram in replica.metrics.histograms.items():
        if name in _HISTOGRAMS:
            out += histogram.lines(name.replace("vllm:", "sglang:"), whole)
    return ("\n".join(out) + "\n").encode()


_HISTOGRAMS = (
    "vllm:time_to_first_token_seconds",
    "vllm:inter_token_latency_seconds",
    "vllm:e2e_request_latency_seconds",
)
_KEPT = ("/health", "/ping", "/detokenize", "/v1/embeddings", "/_sim/fault")

SGLANG = Surface(
    name="sglang",
    origin="from the source of SGLang 0.5.23, not compared with a running one",
    routes={
        **{path: ROUTES[path] for path in _KEPT},
        "/health_generate": ROUTES["/health"],
        "/v1/models": Route(("GET",), _models),
        "/metrics": Route(("GET",), _metrics),
        "/server_info": Route(("GET",), _server_info),
        "/get_server_info": Route(("GET",), _server_info),
        "/model_info": Route(("GET",), _model_info),
        "/get_model_info": Route(("GET",), _model_info),
        "/flush_cache": Route(("GET", "POST"), _flush),
        "/tokenize": Route(("POST",), _tokenize),
        "/v1/tokenize": Route(("POST",), _tokenize),
        "/v1/detokenize": ROUTES["/detokenize"],
        "/load_lora_adapter": ROUTES["/v1/load_lora_adapter"],
        "/unload_lora_adapter": ROUTES["/v1/unload_lora_adapter"],
    },
    generating={
        "/v1/chat/completions": (GENERATING["/v1/chat/completions"][0], SGLangChat, ""),
        "/v1/completions": (GENERATING["/v1/completions"][0], SGLangCompletions, ""),
        "/v1/responses": (GENERATING["/v1/responses"][0], SGLangResponses, "resp_"),
        "/v1/messages": (GENERATING["/v1/messages"][0], SGLangMessages, "msg_"),
        "/generate": (generate_job, GenerateFormat, ""),
    },
    prepare=prepare,
    health_seconds=1.0,
    object_errors=True,
)
