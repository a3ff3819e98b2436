"""What a replica answers besides generating: vLLM's control surface, and the fault switch."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import time
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import msgspec

from loadgen.replicas import metrics
from loadgen.replicas.answers import ApiFormat
from loadgen.replicas.anthropic_wording import MessagesFormat
from loadgen.replicas.connection import Connection
from loadgen.replicas.errors import ApiError, invalid, missing
from loadgen.replicas.faults import Received, parse_fault
from loadgen.replicas.openai_wording import ChatFormat, CompletionsFormat
from loadgen.replicas.prompts import (
    Job,
    chat_job,
    completions_job,
    messages_job,
    responses_job,
    tokenize_prompt,
)
from loadgen.replicas.responses_wording import ResponsesFormat
from loadgen.replicas.tokens import TOKEN_BYTES, ids_tokens, text_tokens, token_ids, tokens_text

if TYPE_CHECKING:
    from loadgen.replicas.replica import Replica

VERSION = "0.32.0"
_encode = msgspec.json.encode

JobReader: TypeAlias = Callable[[dict[str, Any]], Job]
Handler: TypeAlias = "Callable[[Replica, Connection, Received], None]"

GeneratingRoute: TypeAlias = "tuple[JobReader, type[ApiFormat], str]"
"""Who reads a body, who words the answer, and what its id begins with."""

GENERATING: dict[str, GeneratingRoute] = {
    "/v1/chat/completions": (chat_job, ChatFormat, "chatcmpl-"),
    "/v1/completions": (completions_job, CompletionsFormat, "cmpl-"),
    "/v1/responses": (responses_job, ResponsesFormat, "resp_"),
    "/v1/messages": (messages_job, MessagesFormat, "chatcmpl-"),
}


class Route(NamedTuple):
    """Which methods a path takes, and who answers."""

    methods: tuple[str, ...]
    handler: Handler


def decode_body(body: bytes) -> dict[str, Any]:
    """A JSON object. Raises ApiError in the shape of vLLM's validation error."""
    try:
        value = msgspec.json.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ApiError(
            400,
            "1 validation error:\n"
            f"  {{'type': 'json_invalid', 'msg': 'JSON decode error', 'ctx': {str(error)!r}}}",
            "body",
            "Bad Request",
        ) from None
    if not isinstance(value, dict):
        raise ApiError(400, "the body must be a JSON object", "body", "Bad Request")
    return value


def _health(replica: Replica, connection: Connection, _: Received) -> None:
    def reply() -> None:
        if connection in replica.connections:
            connection.reply(200 if replica.healthy else 503, b"", "")

    seconds = replica.surface.health_seconds
    if seconds:
        asyncio.get_running_loop().call_later(seconds, reply)
    else:
        reply()


def _version(_replica: Replica, connection: Connection, _: Received) -> None:
    connection.reply(200, _encode({"version": VERSION}))


def _load(replica: Replica, connection: Connection, _: Received) -> None:
    engine = replica.engine
    connection.reply(200, _encode({"server_load": len(engine.running) + len(engine.waiting)}))


def _models(replica: Replica, connection: Connection, _: Received) -> None:
    data: list[dict[str, Any]] = [
        {
            "id": name,
            "object": "model",
            "created": int(time()),
            "owned_by": "vllm",
            "root": name,
            "parent": None if name == replica.model else replica.model,
            "max_model_len": replica.params.longest if name == replica.model else None,
            "permission": [],
        }
        for name in replica.models
    ]
    connection.reply(200, _encode({"object": "list", "data": data}))


def _metrics(replica: Replica, connection: Connection, _: Received) -> None:
    connection.reply(200, metrics.render(replica), "text/plain; version=1.0.0; charset=utf-8")


def _tokenize(replica: Replica, connection: Connection, received: Received) -> None:
    body = decode_body(received.body)
    replica.check_model(body.get("model") or replica.model)
    ids = token_ids(tokenize_prompt(body))
    answer = {
        "count": len(ids),
        "max_model_len": replica.params.longest,
        "tokens": ids,
        "token_strs": None,
    }
    connection.reply(200, _encode(answer))


def _count_tokens(replica: Replica, connection: Connection, received: Received) -> None:
    body = decode_body(received.body)
    if not body.get("model"):
        raise missing("model")
    # Counted is what /v1/messages would render, but for max_tokens, which it does not have.
    replica.surface.prepare("/v1/messages", body)
    job = messages_job({**body, "max_tokens": 1})
    replica.check_model(job.model)
    count = len(job.prompts[0]) // TOKEN_BYTES
    answer = {"input_tokens": count, "context_management": {"original_input_tokens": count}}
    connection.reply(200, _encode(answer))


def _detokenize(replica: Replica, connection: Connection, received: Received) -> None:
    body = decode_body(received.body)
    replica.check_model(body.get("model") or replica.model)
    try:
        tokens = ids_tokens(body["tokens"])
    except KeyError:
        raise missing("tokens") from None
    except (TypeError, OverflowError):
        raise invalid("tokens", "tokens must be a list of token ids.") from None
    connection.reply(200, _encode({"prompt": tokens_text(tokens)}))


def _reset(replica: Replica, connection: Connection, _: Received) -> None:
    connection.reply(200, _encode({"success": replica.engine.reset_cache()}))
    if replica.events is not None:
        replica.events.flush()


def _event_sources(replica: Replica, connection: Connection, _: Received) -> None:
    if replica.events is None:
        raise ApiError(404, "KV events are not enabled")
    connection.reply(200, _encode({"0": replica.events.source()}))


def _embeddings(replica: Replica, connection: Connection, received: Received) -> None:
    """Eight numbers for each input, made from its bytes; no engine time."""
    body = decode_body(received.body)
    model = body.get("model") or replica.model
    replica.check_model(model)
    given = body.get("input")
    if given is None:
        raise missing("input")
    inputs = given if isinstance(given, list) else [given]
    data, total = [], 0
    for index, item in enumerate(inputs):
        tokens = text_tokens(item if isinstance(item, str) else str(item))
        total += len(tokens) // TOKEN_BYTES
        vector = [sum(tokens[start::8]) / 255.0 for start in range(8)]
        data.append({"index": index, "object": "embedding", "embedding": vector})
    usage = {"prompt_tokens": total, "total_tokens": total, "completion_tokens": 0}
    answer = {"object": "list", "model": model, "data": data, "usage": usage}
    connection.reply(200, _encode(answer))


def _load_adapter(replica: Replica, connection: Connection, received: Received) -> None:
    name = decode_body(received.body).get("lora_name")
    if not isinstance(name, str) or not name:
        raise ApiError(400, "Both 'lora_name' and 'lora_path' must be provided.", "lora_name")
    if name in replica.adapters:
        raise ApiError(
            400,
            f"The lora adapter '{name}' has already been loaded. If you want to load the adapter "
            "in place, set 'load_inplace' to True.",
        )
    replica.adapters.append(name)
    replica.engine.adapters.load(name)
    answer = f"Success: LoRA adapter '{name}' added successfully."
    connection.reply(200, answer.encode(), "text/plain; charset=utf-8")


def _unload_adapter(replica: Replica, connection: Connection, received: Received) -> None:
    name = decode_body(received.body).get("lora_name")
    if name not in replica.adapters:
        raise ApiError(404, f"The lora adapter '{name}' cannot be found.")
    replica.adapters.remove(name)
    replica.engine.adapters.loaded.pop(name, None)
    answer = f"Success: LoRA adapter '{name}' removed successfully."
    connection.reply(200, answer.encode(), "text/plain; charset=utf-8")


def _fault(replica: Replica, connection: Connection, received: Received) -> None:
    fault = parse_fault(received.body)
    target = replica
    if fault.replica is not None:
        if not 0 <= fault.replica < len(replica.siblings):
            raise invalid("replica", f"this fleet has replicas 0 to {len(replica.siblings) - 1}")
        target = replica.siblings[fault.replica]
    connection.reply(200, _encode({"replica": target.name, "kind": fault.kind}))
    target.apply_soon(fault)


def _kv(replica: Replica, connection: Connection, _: Received) -> None:
    """What is kept for other engines, and what became of the rest."""
    connector = replica.connector
    if connector is None:
        raise ApiError(404, "this replica has no KV connector")
    answer = {
        "engine_id": connector.engine_id,
        "held_requests": connector.held_requests,
        "held_blocks": connector.held_blocks,
        "expired": connector.expired,
        "transfers": connector.transfers,
        "transfers_failed": connector.transfers_failed,
        "transfer_seconds": connector.transfer_seconds,
        "transfer_bytes": connector.transfer_bytes,
    }
    connection.reply(200, _encode(answer))


def _query(replica: Replica, connection: Connection, _: Received) -> None:
    """What Mooncake's bootstrap server tells, at a port of its own there."""
    connector = replica.connector
    if connector is None or connector.settings.mode != "mooncake":
        raise ApiError(404, "this replica has no Mooncake connector")
    host = f"tcp://{replica.host}:{replica.port}"
    entry = {"engine_id": connector.engine_id, "worker_addr": {"0": {"0": host}}}
    connection.reply(200, _encode({"0": entry}))


ROUTES: dict[str, Route] = {
    "/health": Route(("GET",), _health),
    "/ping": Route(("GET", "POST"), _health),
    "/version": Route(("GET",), _version),
    "/load": Route(("GET",), _load),
    "/v1/models": Route(("GET",), _models),
    "/metrics": Route(("GET",), _metrics),
    "/tokenize": Route(("POST",), _tokenize),
    "/detokenize": Route(("POST",), _detokenize),
    "/v1/messages/count_tokens": Route(("POST",), _count_tokens),
    "/reset_prefix_cache": Route(("POST",), _reset),
    "/kv_event_sources": Route(("GET",), _event_sources),
    "/v1/embeddings": Route(("POST",), _embeddings),
    "/v1/load_lora_adapter": Route(("POST",), _load_adapter),
    "/v1/unload_lora_adapter": Route(("POST",), _unload_adapter),
    "/query": Route(("GET",), _query),
    "/_sim/fault": Route(("POST",), _fault),
    "/_sim/kv": Route(("GET",), _kv),
}
