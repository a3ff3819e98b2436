"""vLLM's log with --enable-log-requests.

At INFO it tells when requests came and their sampling parameters, but neither prompts nor lengths;
at DEBUG (VLLM_LOGGING_LEVEL=DEBUG) it has every prompt or its JSON body. Older versions wrote the
prompt in the INFO line. Requests without a prompt cannot be replayed.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from datetime import UTC, datetime

import msgspec

from loadgen.workloads.content import Verbatim
from loadgen.workloads.traces.format import Format
from loadgen.workloads.traces.formats.batch import recorded_body
from loadgen.workloads.traces.recorded import Reading, Recorded, Recording, TraceError
from loadgen.workloads.traces.source import Source

_STAMP = re.compile(r"\b(?:INFO|DEBUG) (\d\d-\d\d \d\d:\d\d:\d\d)")
_BODY = re.compile(r"Request (\S+) JSON body: (\{.*)$")
_QUOTED = r"""('(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*")"""
_PROMPT = re.compile(r"(?:Request|Received request) (\S+?):?(?: details)?: prompt: " + _QUOTED)
_LIMIT = re.compile(r"Received request (\S+):.*?\bmax_tokens=(\d+)")
_ANSWER = re.compile(r"Generated response (\S+?)(?: \(streaming complete\))?: output: " + _QUOTED)
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_HEAD = re.compile(r"(?:Received request|Request) \S+")
_AROUND = re.compile(r"^(?:chatcmpl-|cmpl-|resp_|msg_)|[-_]\d+$")
"""What lines put around a request's id: bodies are logged without it."""
_YEAR = 2000
"""The log has no year; a leap year has every day."""


def read(source: Source, _reading: Reading) -> Iterator[Recording]:
    """A request is known once its prompt is, and is told its length by whichever line has it."""
    waiting: dict[str, Recorded] = {}
    limits: dict[str, int] = {}
    at = 0.0
    played = False
    for number, coloured in source.texts():
        line = _COLOUR.sub("", coloured)
        stamp = _STAMP.search(line)
        if stamp:
            moment = datetime.strptime(f"{_YEAR}-{stamp[1]}", "%Y-%m-%d %H:%M:%S")
            at = moment.replace(tzinfo=UTC).timestamp()
        if limit := _LIMIT.search(line):
            limits[_key(limit[1])] = int(limit[2])
        if found := _BODY.search(line):
            try:
                one = recorded_body(_path(found[2]), found[2].encode())
            except msgspec.MsgspecError as error:
                raise source.wrong(number, f"{error}: was it cut by --max-log-len?") from error
            waiting[_key(found[1])] = msgspec.structs.replace(one, at=at)
        elif found := _PROMPT.search(line):
            body = msgspec.json.encode({"prompt": ast.literal_eval(found[2])})
            one = Recorded(at=at, content=Verbatim("/v1/completions", body))
            waiting.setdefault(_key(found[1]), one)
        elif found := _ANSWER.search(line):
            key = _key(found[1])
            answered = waiting.pop(key, None)
            if answered is not None:
                played = True
                yield (_settled(answered, limits.pop(key, 0), ast.literal_eval(found[2])),)
    if limits and not played and not waiting:
        raise TraceError(
            f"{source.path} has {len(limits)} requests without their prompts, which vLLM writes "
            "with VLLM_LOGGING_LEVEL=DEBUG beside --enable-log-requests"
        )
    for name, one in waiting.items():
        yield (_settled(one, limits.get(name, 0), None),)


def _key(name: str) -> str:
    return _AROUND.sub("", name)


def _settled(one: Recorded, limit: int, answer: str | None) -> Recorded:
    # What was answered is the best guess of how long it was; then what was allowed.
    tokens = 0 if answer else one.output_tokens or limit
    return msgspec.structs.replace(one, answer=answer, output_tokens=tokens)


def _path(body: str) -> str:
    members = msgspec.json.decode(body)
    if "messages" in members:
        return "/v1/messages" if "system" in members else "/v1/chat/completions"
    return (
        "/v1/responses" if "input" in members and "max_tokens" not in members else "/v1/completions"
    )


class VllmLog(Format, frozen=True, kw_only=True):
    """Known by its lines, since they are no records."""

    def fits(self, source: Source) -> bool:
        """A request's line is among the first ones."""
        if source.kind not in self.kinds:
            return False
        for number, coloured in source.texts():
            line = _COLOUR.sub("", coloured)
            if _HEAD.search(line) and _STAMP.search(line):
                return True
            if number > 5000:
                break
        return False

    def timed(self, source: Source) -> bool:  # noqa: ARG002
        """Every line has one, of whole seconds."""
        return True


VLLM_LOG = VllmLog(
    name="vllm-log",
    title="vLLM request log",
    kinds=("text", "csv"),
    needs=(('lines with "Received request"',),),
    read=read,
)
