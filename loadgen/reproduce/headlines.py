"""What others published, in our model: docs/design/headlines.md.

    python -m loadgen.reproduce.headlines docs/design/headlines.md

No case is tuned to come out as published. Where the publication does not say something that the
model needs, the case says what was taken.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill

import msgspec

from loadgen.engine import EngineParams, preset
from loadgen.engine.presets import LLAMA_8B, Gpu, derive
from loadgen.made import made
from loadgen.reproduce.measured import presets
from loadgen.results.schema import Arm
from loadgen.simulate import ArmRun, arm_of, arrangement, coarser, prepare, run_once
from loadgen.workloads import Arrivals, Closed, Plan, Poisson, Ramp, make
from router.prompt.spans import SPANS

A100_40 = Gpu("A100 40GB SXM", 312e12, 1.555e12, 40e9, 8192, 256)
BLOCK_TOKENS = 64
WIDTH = 118
SEEDS = (5, 6)


class Headline(msgspec.Struct, frozen=True, kw_only=True):
    """One publication and our case of it."""

    title: str
    source: str
    published: str
    """What it says."""
    taken: str
    """What our case is, and what was taken where the publication does not say."""
    gap: str
    """Why ours is not the same, as far as it is known."""
    workload: str
    settings: Mapping[str, str] = {}
    engine: EngineParams
    replicas: int = 8
    loads: Sequence[float]
    """Requests a second, or sessions at a time in a closed loop."""
    closed: bool = False
    climb: tuple[float, float] | None = None
    """Requests a second at the start and at the end of one run whose rate grows; loads are then how
    many seconds that takes."""
    requests: int = 3000
    seconds: float = 0.0
    """Of arrivals; 0: so many requests."""
    arms: Sequence[str] = ("round_robin", "cache_aware")
    most_ttft: float = 0.0
    """Seconds at p90 up to which a load is held; the knee is the highest of loads that is."""

    def plan(self, load: float, seed: int) -> Plan:
        """At a load."""
        arrivals: Arrivals = Closed(int(load), 20.0) if self.closed else Poisson(load)
        workload = make(self.workload, self.settings)
        if self.climb:
            return Plan(workload, Ramp(*self.climb, load), seed=seed, duration=load, finish=True)
        if self.seconds:
            return Plan(workload, arrivals, seed=seed, duration=self.seconds, finish=True)
        return Plan(workload, arrivals, seed=seed, requests=self.requests)


HEADLINES = (
    Headline(
        title="llm-d: the shared-prefix ladder",
        source="llm-d.ai, KV-Cache Wins You Can See, 2025",
        published="TTFT p90 0.54 s with precise prefix routing against 92.5 s with random routing, "
        "and twice the throughput",
        taken="Qwen 32B on two H100, 8 replicas, 150 groups x 5 users, 6,000 + 1,200 tokens in, "
        "1,000 out (as published), 100 s of each rate with cold caches. The knee is the highest "
        "rate tried with a TTFT p90 of at most 2 s.",
        gap="The published percentiles are over a ladder of rates up to 60 a second, most of them "
        "beyond what the fleet can take, so theirs is the length of a queue, which depends on how "
        "long each rate is played. Ours is bound by KV memory first: a thousand tokens of answer "
        "keep each request in the batch for half a minute.",
        workload="ladder",
        engine=preset("32b-2xh100"),
        loads=(6.0, 8.0, 10.0, 12.0, 15.0, 20.0),
        seconds=100.0,
        arms=("round_robin", "peer_llmd_approximate", "peer_llmd_precise", "cache_aware"),
        most_ttft=2.0,
    ),
    Headline(
        title="llm-d: the ladder climbed to its end",
        source="llm-d.ai, KV-Cache Wins You Can See, 2025",
        published="over a ladder of rates from 3 to 60 a second, TTFT p90 0.54 s with precise "
        "prefix routing against 92.5 s with random routing, and twice the throughput",
        taken="The same fleet and prompts, in one run whose rate grows from 3 to 60 requests a "
        "second, caches cold at its start, over all requests until the last has ended. How long "
        "the ladder took is not in the summary: four times are shown.",
        gap="Past the knee a TTFT says how long a queue grew, so the length of the climb decides "
        "it, and that is the one number we had to guess. Half a minute gives both published "
        "percentiles to within some ten percent; at other lengths one of them or both are off. The "
        "gain in throughput is less than the published one at every length. In our model "
        "approximate routing does as well as precise, since both get nearly all of the possible "
        "reuse.",
        workload="ladder",
        engine=preset("32b-2xh100"),
        climb=(3.0, 60.0),
        loads=(20.0, 30.0, 40.0, 60.0),
        arms=("round_robin", "peer_llmd_approximate", "peer_llmd_precise", "cache_aware"),
    ),
    Headline(
        title="llm-d: sticky until saturated",
        source="llm-d, 2026-08-17",
        published="knee at 38 requests/s against 18 by turns (90,000 against 45,000 input tokens a "
        "second) on 8 to 10 replicas of Qwen 32B, two H100 each",
        taken="8 replicas. The input tokens per request follow from the two figures: some 2,400. "
        "How they are shared and how long answers are is not in the summary: 400 prefixes of 2,000 "
        "tokens, 370 more for each question, 150 out, 60 s of each rate. The knee is at a TTFT p90 "
        "of 0.5 s.",
        gap="How many prefixes there are decides how much routing by turns can reuse, and the "
        "answers' length decides when decoding binds; neither is told.",
        workload="shared-prefix",
        settings={
            "groups": "400",
            "users": "1",
            "questions": "10",
            "system_tokens": "2000",
            "question_tokens": "370",
            "output_tokens": "150",
        },
        engine=preset("32b-2xh100"),
        loads=(18.0, 26.0, 38.0, 46.0, 56.0, 66.0),
        seconds=60.0,
        arms=("round_robin", "peer_llmd_approximate", "cache_aware"),
        most_ttft=0.5,
    ),
    Headline(
        title="SGLang 0.4: cache-aware load balancing",
        source="lmsys.org, SGLang v0.4 (2024-12-04)",
        published="1.9 times the throughput and 3.8 times the hit rate of round robin",
        taken="A workload of long prefixes in groups of one size. Engine, lengths and load are not "
        "published: Llama 8B on one H100, 8 replicas, 240 prefixes of 8,000 tokens, 200 more for "
        "each question, 64 out, 128 requests at a time. All prefixes together are four times what "
        "one replica holds.",
        gap="The ratio is decided by how many times the prefixes fit into one cache, which is not "
        "published: with fewer of them round robin reuses more and both ratios fall.",
        workload="shared-prefix",
        settings={
            "groups": "240",
            "users": "1",
            "questions": "8",
            "system_tokens": "8000",
            "question_tokens": "200",
            "output_tokens": "64",
        },
        engine=preset("8b-h100"),
        loads=(128.0,),
        closed=True,
        requests=6000,
        arms=("round_robin", "peer_sglang", "cache_aware"),
    ),
    Headline(
        title="GKE Inference Gateway",
        source="Principled Technologies for Google (May 2026)",
        published="TTFT 92.8% shorter (188 against 2,625 ms) and 15.7% more output tokens a second "
        "than a load balancer by turns",
        taken="Llama 8B on one A100 of 40 GB, 8 replicas (as published); the shared prefixes' "
        "sizes "
        "and the rate are not in the summary: 120 prefixes of 6,000 tokens, 200 more for each "
        "question, 200 out, 30 requests/s.",
        gap="The gap between the two is queueing: it grows without end as the rate comes near what "
        "routing by turns can take, so the percentage says as much about the rate as about "
        "routing.",
        workload="shared-prefix",
        settings={
            "groups": "120",
            "users": "1",
            "questions": "10",
            "system_tokens": "6000",
            "question_tokens": "200",
            "output_tokens": "200",
        },
        engine=derive("8b-a100-40", LLAMA_8B, A100_40),
        loads=(20.0, 25.0, 30.0),
        requests=3000,
    ),
    Headline(
        title="Dynamo: agents as programs",
        source="ai-dynamo/dynamo#11447",
        published="94.1% of the prompt reused with 256 SWE-bench programs at a time",
        taken="Coding agents: 2 applications, 16 tool schemas, 20 steps on average, tool pauses of "
        "4 s, histories up to 60,000 tokens, 256 at a time. Engines are not told: Llama 70B on "
        "four "
        "H100, 16 replicas.",
        gap="How much can be reused at all is the workload's; ours is a made-up agent, not "
        "SWE-bench, so the share of the possible is what can be compared.",
        workload="agent",
        settings={
            "applications": "2",
            "tool_schemas": "16",
            "tool_tokens": "600",
            "system_tokens": "4000",
            "result_tokens": "1500",
            "steps": "20",
            "tool_pause": "4",
            "most_tokens": "60000",
            "sub_agents": "0",
        },
        engine=preset("70b-4xh100"),
        replicas=16,
        loads=(256.0,),
        closed=True,
        requests=4000,
        arms=("round_robin", "peer_dynamo", "cache_aware"),
    ),
    Headline(
        title="llm-d: Claude Code sessions",
        source="llm-d, GLM-5.2 agentic (2026-07-22)",
        published="91.4% of the prompt reused, where 93.9% was possible (97% of it), with 219 "
        "sessions of 195,000 tokens (median) on 64 H200",
        taken="Their model is not among ours and their prompts are longer than ours take: 219 "
        "agents "
        "with histories up to 120,000 tokens, 30 steps on average, pauses of 2 s, on 16 replicas "
        "of "
        "Llama 70B on four H100 (64 GPUs).",
        gap="Shorter histories and another engine; what is compared is the share of the possible.",
        workload="agent",
        settings={
            "applications": "4",
            "tool_schemas": "30",
            "tool_tokens": "600",
            "system_tokens": "6000",
            "result_tokens": "3000",
            "output_tokens": "250",
            "steps": "30",
            "tool_pause": "2",
            "most_tokens": "120000",
            "most_steps": "120",
        },
        engine=preset("70b-4xh100"),
        replicas=16,
        loads=(219.0,),
        closed=True,
        requests=4000,
    ),
)


def arms_of(headline: Headline, load: float, seeds: Sequence[int], scale: float) -> list[Arm]:
    """All arms at one load."""
    engine = coarser(headline.engine, BLOCK_TOKENS)
    runs: dict[str, list[ArmRun]] = {name: [] for name in headline.arms}
    for seed in seeds:
        plan = headline.plan(load, seed)
        plan = msgspec.structs.replace(
            plan,
            requests=max(20, round(plan.requests * scale)) if plan.requests else 0,
            duration=plan.duration * scale,
        )
        prepared = prepare(plan, BLOCK_TOKENS, SPANS, keys=True)
        for name, own in runs.items():
            own.append(
                run_once(prepared, arrangement(name), [engine] * headline.replicas, seed=seed)
            )
    return [arm_of(name, own, replicas=headline.replicas, load=load) for name, own in runs.items()]


def section(headline: Headline, found: Mapping[float, Sequence[Arm]]) -> str:
    """One publication beside what our model says."""
    unit = "sessions at a time" if headline.closed else "requests/s"
    if headline.climb:
        unit = "seconds of the climb"
    lines = [
        f"## {headline.title}\n",
        f"Published ({headline.source}): {headline.published}.\n",
        f"Ours: {headline.taken}\n",
        f"| {unit} | arm | TTFT mean | TTFT p90 | tokens in/s | tokens out/s | hit rate | "
        f"possible |",
        "|---:|---|---:|---:|---:|---:|---:|---:|",
    ]
    for load, arms in found.items():
        for arm in arms:
            told = arm.throughput
            lines.append(
                f"| {load:g} | `{arm.name}` | {_time(arm.ttft_ms.mean)} | "
                f"{_time(arm.ttft_ms.p90)} | "
                f"{told.input_tokens_per_s:,.0f} | {told.output_tokens_per_s:,.0f} | "
                f"{arm.hit_rate or 0:.1%} | {arm.upper_bound:.1%} |"
            )
    lines += ["", f"**What our model says:** {verdict(headline, found)} {headline.gap}\n"]
    return "\n".join(lines)


def _time(ms: float | None) -> str:
    if ms is None:
        return "-"
    return f"{ms / 1e3:,.1f} s" if ms >= 1000 else f"{ms:,.0f} ms"


def verdict(headline: Headline, found: Mapping[float, Sequence[Arm]]) -> str:
    """From the numbers alone, in the publication's terms."""
    if headline.most_ttft:
        knees = []
        for place, name in enumerate(headline.arms):
            held = [
                load
                for load, arms in found.items()
                if (arms[place].ttft_ms.p90 or 1e12) <= headline.most_ttft * 1e3
            ]
            knee = f"{max(held):g}" if held else f"below {min(found):g}"
            top = "or more" if held and max(held) == max(found) else ""
            knees.append(f"`{name}` {knee} {top}".strip())
        return f"the knees are {', '.join(knees)} requests/s."
    if headline.climb:
        climbs = []
        for seconds, (base, *others) in found.items():
            ours = ", ".join(f"{_time(arm.ttft_ms.p90)} with `{arm.name}`" for arm in others)
            more = max(_times(arm, base) for arm in others)
            climbs.append(
                f"climbed in {seconds:g} s the TTFT p90 is {_time(base.ttft_ms.p90)} with "
                f"`{base.name}`, {ours}, with at most {more:.2f} times the throughput"
            )
        return f"{'; '.join(climbs)}."
    load = max(found)
    base, *others = found[load]
    said = []
    for arm in others:
        more = _times(arm, base)
        ttft = 1 - (arm.ttft_ms.mean or 0.0) / (base.ttft_ms.mean or 1.0)
        hits = (arm.hit_rate or 0.0) / base.hit_rate if base.hit_rate else float("inf")
        share = (arm.hit_rate or 0.0) / arm.upper_bound if arm.upper_bound else 0.0
        said.append(
            f"`{arm.name}` has {more:.2f} times the throughput of `{base.name}`, {hits:.1f} times "
            f"its hit rate, a mean TTFT {ttft:.1%} shorter, and {share:.1%} of the possible reuse"
        )
    return f"at {load:g}, {'; '.join(said)}."


def _times(arm: Arm, base: Arm) -> float:
    """The throughput, in that of the other arm."""
    return arm.throughput.output_tokens_per_s / base.throughput.output_tokens_per_s


def page(scale: float = 1.0, seeds: Sequence[int] = SEEDS) -> str:
    """The whole page."""
    told = made("python -m loadgen.reproduce.headlines")
    parts = [
        "# Published headlines in our model\n",
        "This page answers: what does our model of engines, and of other gateways' rules, say of "
        "the figures that others published?\n",
        "All of it is in virtual time. The arms named `peer_` are our reading of their documents, "
        "not their code. A model is no measurement: where it does not reproduce a headline, that "
        "is said, with the reason as far as it is known.\n",
        f"Made by `python -m loadgen.reproduce.headlines`, version {told.version}, "
        f"{told.date[:10]}, seeds {', '.join(map(str, seeds))}.\n",
    ]
    for headline in HEADLINES:
        found = {load: arms_of(headline, load, seeds, scale) for load in headline.loads}
        parts.append(section(headline, found))
        print(f"{headline.title}: {verdict(headline, found)}", file=sys.stderr, flush=True)
    parts.append(presets())
    return wrapped("\n".join(parts))


def wrapped(text: str) -> str:
    """With lines that can be reviewed; tables and headings as they are."""
    return "\n".join(
        line if line.startswith(("|", "#")) else fill(line, WIDTH, break_long_words=False)
        for line in text.split("\n")
    )


def main() -> None:
    """Write the page to the path that is given."""
    Path(sys.argv[1]).write_text(page(), encoding="utf-8")


if __name__ == "__main__":
    main()
