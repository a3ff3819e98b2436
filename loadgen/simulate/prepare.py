"""A plan's requests with everything hashed once, so that every arm runs them at no further cost."""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from math import inf

import msgspec
import numpy as np

from loadgen.engine import EngineParams
from loadgen.workloads import Closed, Plan, Prompt, UpperBound, chain, chain_at
from router.types import Chain

BYTES_PER_TOKEN = 4
"""What the simulated gateway sees of a token: canonical bytes."""


class Job(msgspec.Struct, gc=False):
    """One request, prepared for the simulation."""

    session: int
    step: int
    prompt_tokens: int
    output_tokens: int
    possible: int
    """Prompt tokens that one infinite shared cache would have had."""
    hashes: Sequence[int]
    """The engine's block hashes of the prompt."""
    output_hashes: Sequence[int]
    chain: Chain
    """The gateway's block hashes of the prompt."""
    waits: int
    """Steps of its session that must end first."""
    then: tuple[int, ...]
    """Steps of its session that wait for this one."""
    pause: float
    key: str
    prompt: Prompt = ()
    tenant: str = ""
    priority: int = 0
    adapter: str = ""


class Prepared(msgspec.Struct):
    """All sessions of a plan, with the seconds at which they start."""

    name: str
    sessions: list[tuple[float, list[Job]]]
    concurrency: int
    """Sessions at a time in a closed loop; 0 for an open one."""
    until: float
    """Seconds after which nothing more is sent."""
    requests: int
    """Steps of all sessions, sent in time or not."""
    upper_bound: float
    warmup: float = 0.0
    """Seconds from the start; requests due before are not counted, and time counts from there."""


def coarser(params: EngineParams, block_tokens: int) -> EngineParams:
    """The same engine with blocks of another size, for speed: the work goes with the blocks'
    number."""
    blocks = max(2, params.cache_tokens // block_tokens + 1)
    return msgspec.structs.replace(params, block_size=block_tokens, num_blocks=blocks)


def prepare(
    plan: Plan,
    block_tokens: int,
    spans: Sequence[int],
    *,
    keys: bool = False,
    tenant: str = "",
    priority: int = 0,
) -> Prepared:
    """Hash a plan for engines of this block size and a gateway of these spans (bytes).

    keys: requests name their session, as a client with a session header would. tenant, priority: of
    all of them. The upper bound counts sessions in the order they start.
    """
    ends = np.asarray(spans[1:], dtype=np.int64) // BYTES_PER_TOKEN
    bound = UpperBound(block_tokens)
    sessions = []
    requests = 0
    for at, session in plan.sessions():
        followers: list[list[int]] = [[] for _ in session.steps]
        for number, step in enumerate(session.steps):
            for before in step.after:
                followers[before].append(number)
        jobs = []
        for number, step in enumerate(session.steps):
            tokens = sum(segment.tokens for segment in step.prompt)
            engine = chain((*step.prompt, step.output), block_tokens)
            full = tokens // block_tokens
            hashes = array("q", [value >> 1 for value in engine])
            reach = int(np.searchsorted(ends, tokens, side="right"))
            jobs.append(
                Job(
                    session=session.number,
                    step=number,
                    prompt_tokens=tokens,
                    output_tokens=step.output.tokens,
                    possible=bound.add(step),
                    hashes=hashes[:full],
                    output_hashes=hashes[full:],
                    chain=chain_at(step.prompt, ends[:reach]),
                    waits=len(step.after),
                    then=tuple(followers[number]),
                    pause=step.pause,
                    key=f"{tenant}session-{session.number}" if keys else "",
                    prompt=step.prompt,
                    tenant=tenant,
                    priority=priority,
                    adapter=step.adapter,
                )
            )
        requests += len(jobs)
        sessions.append((at, jobs))
    arrivals = plan.arrivals
    concurrency = arrivals.concurrency if isinstance(arrivals, Closed) else 0
    until = plan.duration if plan.duration and not plan.finish else inf
    return Prepared(
        plan.workload.name, sessions, concurrency, until, requests, bound.hit_rate, plan.warmup
    )


def later(prepared: Prepared, seconds: float) -> Prepared:
    """The same, beginning so much later."""
    sessions = [(at + seconds, jobs) for at, jobs in prepared.sessions]
    return msgspec.structs.replace(prepared, sessions=sessions, until=prepared.until + seconds)


def together(*all_of: Prepared) -> Prepared:
    """Several open loops at once. Sessions are numbered anew, those of the first before those of
    the second, so that records tell them apart."""
    sessions: list[tuple[float, list[Job]]] = []
    first = 0
    for prepared in all_of:
        most = 0
        for at, jobs in prepared.sessions:
            most = max(most, jobs[0].session + 1)
            sessions.append(
                (at, [msgspec.structs.replace(job, session=first + job.session) for job in jobs])
            )
        first += most
    sessions.sort(key=lambda one: one[0])
    return Prepared(
        " + ".join(prepared.name for prepared in all_of),
        sessions,
        0,
        max(prepared.until for prepared in all_of),
        sum(prepared.requests for prepared in all_of),
        0.0,
        max(prepared.warmup for prepared in all_of),
    )
