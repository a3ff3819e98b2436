"""Every format of traces that is known: one file a family, most particular first."""

from __future__ import annotations

from loadgen.workloads.traces.format import Format
from loadgen.workloads.traces.formats.agentic import AGENTIC
from loadgen.workloads.traces.formats.aiperf import AIPERF_SESSIONS, AIPERF_TRACE, AIPERF_TURNS
from loadgen.workloads.traces.formats.batch import BATCH
from loadgen.workloads.traces.formats.claude_code import CLAUDE_CODE
from loadgen.workloads.traces.formats.lengths import LENGTHS
from loadgen.workloads.traces.formats.litellm import LITELLM
from loadgen.workloads.traces.formats.openhands import OPENHANDS, OPENHANDS_SDK
from loadgen.workloads.traces.formats.otel import OTEL
from loadgen.workloads.traces.formats.prompts import CUSTOM
from loadgen.workloads.traces.formats.published import AZURE, BURST
from loadgen.workloads.traces.formats.sharegpt import SHAREGPT
from loadgen.workloads.traces.formats.trajectories import CHAT, MINI_SWE_AGENT, SWE_AGENT
from loadgen.workloads.traces.formats.vllm_log import VLLM_LOG

__all__ = ["FORMATS"]

FORMATS: tuple[Format, ...] = (
    MINI_SWE_AGENT,
    SWE_AGENT,
    AGENTIC,
    OPENHANDS_SDK,
    OPENHANDS,
    CLAUDE_CODE,
    OTEL,
    BATCH,
    LITELLM,
    SHAREGPT,
    AIPERF_SESSIONS,
    LENGTHS,
    AIPERF_TRACE,
    CHAT,
    CUSTOM,
    AIPERF_TURNS,
    BURST,
    AZURE,
    VLLM_LOG,
)
