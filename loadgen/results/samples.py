"""What a results file keeps of single requests: enough to compare it with another one, and how
reuse goes from step to step of a session."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from loadgen.results.columns import Columns
from loadgen.results.records import UNKNOWN, Records, ints
from loadgen.results.schema import Sample, StepReuse

MOST = 2000
"""Requests of an arm that are kept, about: some 60 KB of JSON."""
STEPS = (1, 2, 3, 4, 5, 6, 8, 10, 15, 20, 30, 50, 100)
"""Where a group of steps begins, from 1."""


def steps_of(records: Records, columns: Columns) -> list[StepReuse]:
    """By the place in the session. Empty where every session is one request."""
    step = ints(records.step) + 1
    if not len(step) or step.max() == 1:
        return []
    found = []
    for first, following in zip(STEPS, (*STEPS[1:], int(step.max()) + 1), strict=True):
        which = columns.ok & (step >= first) & (step < following)
        tokens = int(columns.tokens[which].sum())
        if not tokens:
            continue
        found.append(
            StepReuse(
                first=first,
                last=int(step[which].max()),
                requests=int(which.sum()),
                hit_rate=columns.hit_rate(which),
                upper_bound=int(columns.possible[which].sum()) / tokens,
            )
        )
    return found


def sample_of(runs: Sequence[Records]) -> Sample:
    """Whole sessions, every so many, so that about MOST requests remain."""
    sample = Sample([], [], [], [], [], [])
    every = max(1, -(-sum(len(run) for run in runs) // MOST))
    for number, run in enumerate(runs):
        columns = Columns(run)
        which = columns.ok & (columns.session % every == 0)
        sample.run.extend([number] * int(which.sum()))
        sample.session.extend(columns.session[which].tolist())
        sample.ttft_ms.extend(np.round(columns.ttft[which] * 1e3, 2).tolist())
        sample.e2e_ms.extend(np.round(columns.e2e[which] * 1e3, 2).tolist())
        sample.prompt_tokens.extend(columns.prompt_told[which].tolist())
        sample.cached_tokens.extend(columns.cached[which].tolist())
    return sample


def records_of(sample: Sample) -> list[Records]:
    """The runs that a sample is of, as far as it has them."""
    runs = [Records() for _ in range(max(sample.run, default=-1) + 1)]
    columns = (
        sample.run,
        sample.session,
        sample.ttft_ms,
        sample.e2e_ms,
        sample.prompt_tokens,
        sample.cached_tokens,
    )
    for run, session, ttft, e2e, prompt, cached in zip(*columns, strict=True):
        runs[run].add(
            session=session,
            step=0,
            scheduled=0.0,
            sent=0.0,
            first=ttft / 1e3,
            end=e2e / 1e3,
            tokens=prompt,
            possible_tokens=0,
            prompt_tokens=prompt if cached != UNKNOWN else UNKNOWN,
            cached_tokens=cached,
        )
    return runs
