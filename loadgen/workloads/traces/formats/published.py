"""Traces that clouds published as csv: BurstGPT and Azure's LLM inference."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from loadgen.workloads.traces.format import Format
from loadgen.workloads.traces.recorded import Length, Reading, Recorded, Recording, seconds_of
from loadgen.workloads.traces.source import Source


class BurstLine(msgspec.Struct):
    """A row of BurstGPT: seconds, tokens, since its third part also a session."""

    timestamp: float = msgspec.field(name="Timestamp")
    request_tokens: Length = msgspec.field(name="Request tokens", default=0)
    response_tokens: Length = msgspec.field(name="Response tokens", default=0)
    session: str = msgspec.field(name="Session ID", default="")


class AzureLine(msgspec.Struct):
    """A row of Azure's traces of 2023 and 2024."""

    timestamp: str = msgspec.field(name="TIMESTAMP")
    context: Length = msgspec.field(name="ContextTokens")
    generated: Length = msgspec.field(name="GeneratedTokens", default=0)


def read_burst(source: Source, _reading: Reading) -> Iterator[Recording]:
    """Requests that failed, with no response tokens, are left out, as everybody does."""
    for _, line in source.records(BurstLine):
        if line.request_tokens > 0 and line.response_tokens > 0:
            yield (
                Recorded(
                    at=line.timestamp,
                    prompt_tokens=line.request_tokens,
                    output_tokens=line.response_tokens,
                    session=line.session,
                ),
            )


def read_azure(source: Source, _reading: Reading) -> Iterator[Recording]:
    """Rows without a prompt are left out."""
    for number, line in source.records(AzureLine):
        try:
            at = seconds_of(line.timestamp)
        except ValueError as error:
            raise source.wrong(number, f"TIMESTAMP: {error}") from error
        if line.context:
            yield (Recorded(at=at, prompt_tokens=line.context, output_tokens=line.generated),)


BURST = Format(
    name="burstgpt",
    title="BurstGPT csv",
    kinds=("csv",),
    needs=(("Timestamp",), ("Request tokens",), ("Response tokens",)),
    read=read_burst,
    times=("Timestamp",),
)
AZURE = Format(
    name="azure",
    title="Azure LLM inference csv",
    kinds=("csv",),
    needs=(("TIMESTAMP",), ("ContextTokens",), ("GeneratedTokens",)),
    read=read_azure,
    times=("TIMESTAMP",),
)
