"""docs/design/results.md from the outcomes: every number and every judgement in it is computed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import wrap

import msgspec

from loadgen.reproduce import draw
from loadgen.reproduce.cases import ARMS, OURS, PEERS, POOLED, SECTIONS, SWEPT
from loadgen.reproduce.engines import TITLE as ENGINES
from loadgen.reproduce.engines import section as section_of
from loadgen.reproduce.fleets import H100_32B
from loadgen.reproduce.run import Outcome
from loadgen.reproduce.verdict import METRICS, behind, best, geometric, rivals, value
from loadgen.results.schema import Arm, Results

IMAGES = "img"
_WIDTH = 118
_TITLES = {
    "ttft_ms.mean": "TTFT mean",
    "ttft_ms.p90": "TTFT p90",
    "e2e_ms.mean": "end to end mean",
    "ttft_ms.p99": "TTFT p99",
}
_REASONS = {"too_long": "longer than the model's context, which every engine refuses"}
_HEAD = (
    "| | hit rate | TTFT mean | p50 | p90 | p99 | TPOT mean | p99 | end to end mean | p90 "
    "| output tok/s | work max/mean |\n|---|" + "---:|" * 11
)


class Picture(msgspec.Struct, frozen=True):
    """A chart and the file it belongs in."""

    name: str
    svg: str


def write_page(outcomes: Sequence[Outcome], engines: Results | None, target: Path) -> None:
    """The page, and its charts in a directory beside it. Raises OSError."""
    text, pictures = page(outcomes, engines)
    images = target.parent / IMAGES
    images.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        (images / picture.name).write_text(picture.svg, encoding="utf-8")
    target.write_text(text, encoding="utf-8")


def page(outcomes: Sequence[Outcome], engines: Results | None) -> tuple[str, list[Picture]]:
    """The text and its charts. engines: what was measured on real ones, None if nothing was."""
    overview = [_overview(outcomes, metric) for metric in METRICS]
    pictures = [picture for _, picture in overview]
    parts = [_opening(outcomes), "## Against every arm, over all cases\n", _geometric(outcomes)]
    parts += [f"![{picture.name}]({IMAGES}/{picture.name})\n" for picture in pictures]
    parts += ["## Where cache_aware is not the best\n", _losses(outcomes)]
    parts += [_blind(outcomes), _costs(outcomes)]
    for section, title in SECTIONS.items():
        own = [outcome for outcome in outcomes if outcome.case.section == section]
        parts.append(f"## {title}\n")
        if not own:
            parts.append(
                "Left out of this run: no trace was given (`warmroute-loadgen report --trace "
                "FILE`).\n"
            )
        if section in SWEPT and len(own) > 1:
            chart = _sweep(section, title, own)
            pictures.append(chart)
            parts.append(f"![{chart.name}]({IMAGES}/{chart.name})\n")
        parts += [_table(outcome) for outcome in own]
    parts.append(section_of(engines))
    return _wrapped("\n".join(parts)), pictures


def _wrapped(text: str) -> str:
    """Prose in lines that can be reviewed; tables, headings, pictures and code as they are."""
    lines: list[str] = []
    for line in text.split("\n"):
        hanging = "  " if line.startswith("- ") else ""
        kept = line.startswith(("|", "#", "![", "    ")) or len(line) <= _WIDTH
        lines += (
            [line]
            if kept
            else wrap(
                line,
                _WIDTH,
                subsequent_indent=hanging,
                break_long_words=False,
                break_on_hyphens=False,
            )
        )
    return "\n".join(lines)


def _opening(outcomes: Sequence[Outcome]) -> str:
    engine = H100_32B.engine
    chosen = [outcome.case.name for outcome in outcomes if outcome.case.chosen]
    requests = sum(outcome.arms[0].requests for outcome in outcomes)
    seen = "\n".join(f"- {name}" for name in chosen)
    return f"""# Results

This page answers: how do the policies, and our reading of other gateways' rules, compare on the \
same requests, and where does `cache_aware` lose?

`make report` (`warmroute-loadgen report`) writes all of this page. All but \
[the last section](#{ENGINES.lower().replace(" ", "-")}) is simulated in virtual time: the \
gateway's own policies, index and load accounting over model engines, without HTTP and without a \
GPU. Where nothing else is said there are {H100_32B.replicas} replicas of {engine.name} \
({engine.origin}). What the model leaves out is in [replicas.md](../operate/replicas.md). There \
are {len(outcomes)} cases with {requests:,} requests for each arm, the same for every arm. All \
caches start empty, and the cold start counts. Loads reach from easy to overloaded, but arrivals \
last for seconds: [queue-results.md](queue-results.md) tells what happens when caches bind for \
minutes.

The arms named `peer_` are **our reading of other gateways' documents**, run on our index and \
load accounting: SGLang's cache_aware, llm-d's weighted scorers with an approximate and with a \
precise index, NVIDIA Dynamo's cost. They are not those programs. `peer_llmd_precise` and \
`peer_dynamo` are told what every cache holds at that moment; the others go by what was sent. In \
`agent` and `chat` clients name their session, which only `consistent_hash` uses. `pooled` is no \
rule but a bound: one server with the speed and the memory of all replicas.

The weights of `cache_aware` were chosen on {len(chosen)} of the {len(outcomes)} cases, with other \
seeds than these:

{seen}

No weight was fitted to the others. But drafts of this page, with another seed, were read while
weights still changed, and poor lines among the others led to the rejection of two candidates, and
to the weight of b where replicas differ. In the tables below the former are marked "chosen on".

Times are milliseconds. TTFT counts from when a request was due. Work is prompt tokens computed \
plus tokens written, for each replica: its maximum over its mean (1 is even).
"""


def _geometric(outcomes: Sequence[Outcome]) -> str:
    """Every arm's metrics as multiples of ours, geometric means."""
    columns = {**_TITLES, "ttft_ms.p50": "TTFT p50"}
    columns |= {"tpot_ms.mean": "TPOT mean", "balance.work_max_over_mean": "work max/mean"}
    head = ["| | " + " | ".join(columns.values()) + " |", "|---|" + "---:|" * len(columns)]
    rows = ["As multiples of `cache_aware`'s, geometric means; above 1 is worse. Over all cases:\n"]
    own = [outcome for outcome in outcomes if outcome.case.chosen]
    unseen = [outcome for outcome in outcomes if not outcome.case.chosen]
    for some, said in (
        (outcomes, ""),
        (own, "Over those that weights were chosen on:\n"),
        (unseen, "Over those that no weight was chosen on:\n"),
    ):
        if not some:
            continue
        rows += [said] if said else []
        rows += head
        for name in ARMS:
            cells = [f"{_ratio(some, name, metric):.2f}" for metric in columns]
            rows.append(f"| {_shown(name)} | " + " | ".join(cells) + " |")
        rows.append("")
    return "\n".join(rows)


def _ratio(outcomes: Sequence[Outcome], name: str, metric: str) -> float:
    return geometric(
        [value(_arm(each, name), metric) / value(_arm(each, OURS), metric) for each in outcomes]
    )


def _overview(outcomes: Sequence[Outcome], metric: str) -> tuple[str, Picture]:
    title = f"{_TITLES[metric]}, multiples of {OURS}'s (geometric mean of {len(outcomes)} cases)"
    values = [(name, _ratio(outcomes, name, metric)) for name in ARMS]
    svg = draw.bars(title, values, OURS, "less is better")
    return metric, Picture(f"results-{metric.replace('_ms.', '-')}.svg", svg)


def _losses(outcomes: Sequence[Outcome]) -> str:
    """Every case and metric in which another rule is better by more than METRICS allow."""
    rows = []
    tried = chance = 0
    for outcome in outcomes:
        ours, others = _split(outcome)
        for metric, close in METRICS.items():
            tried += 1
            share = behind(ours, others, metric)
            if share <= close:
                continue
            rival = best(others, metric)
            interval = next(
                (d for d in outcome.against_best if d.metric == metric and d.arm == OURS), None
            )
            chance += interval is not None and interval.low <= 0
            said = "" if interval is None else f"{interval.low:+,.0f} to {interval.high:+,.0f}"
            rows.append(
                f"| {outcome.case.name} | {_TITLES[metric]} | {_ms(value(ours, metric))} "
                f"| {_ms(value(rival, metric))} | {rival.name} | +{share:.0%} | {said} "
                f"| {_ms(value(ours, 'e2e_ms.mean'))} / {_ms(value(rival, 'e2e_ms.mean'))} "
                f"| {value(ours, 'tpot_ms.mean'):.1f} / {value(rival, 'tpot_ms.mean'):.1f} |"
            )
    judged = (
        f"({', '.join(_TITLES[metric] for metric in METRICS)} of {len(outcomes)} cases; within "
        + ", ".join(sorted({f"{close:.0%}" for close in METRICS.values()}))
        + " for the p99 counts as the best; the best rule is another one each time)"
    )
    if not rows:
        return f"Nowhere, in any of {tried} comparisons {judged}.\n"
    head = (
        f"It is the best, or as good as the best rule of each case, in {tried - len(rows)} of "
        f"{tried} comparisons {judged}. The others, of which {chance} may be chance (the "
        "difference's interval includes 0):\n\n"
        "| case | | cache_aware | best | which is | behind by | 95% interval, ms "
        "| end to end mean, ours / its | TPOT, ours / its |\n|---|---|" + "---:|" * 2
    )
    return head + "---|" + "---:|" * 4 + "\n" + "\n".join(rows) + "\n"


def _blind(outcomes: Sequence[Outcome]) -> str:
    """Every case and mean in which ours is worse than least_loaded."""
    rows = []
    for outcome in outcomes:
        ours, blind = _arm(outcome, OURS), _arm(outcome, "least_loaded")
        for metric in ("ttft_ms.mean", "e2e_ms.mean"):
            share = behind(ours, [blind], metric)
            if share > METRICS[metric]:
                rows.append(
                    f"| {outcome.case.name} | {_TITLES[metric]} | {_ms(value(ours, metric))} "
                    f"| {_ms(value(blind, metric))} | +{share:.0%} |"
                )
    if not rows:
        return (
            "In no case is its TTFT mean or end to end mean more than 2% above `least_loaded`'s.\n"
        )
    head = "Where it is worse than `least_loaded` by more than 2%:\n\n"
    head += "| case | | cache_aware | least_loaded | behind by |\n|---|---|---:|---:|---:|\n"
    return head + "\n".join(rows) + "\n"


def _costs(outcomes: Sequence[Outcome]) -> str:
    """What the issue of buying hits with something else comes to, and `unique`."""
    said = []
    for metric, title in (
        ("tpot_ms.mean", "TPOT mean"),
        ("balance.work_max_over_mean", "the most loaded replica's work over the mean"),
    ):
        ratios = {
            outcome.case.name: value(_arm(outcome, OURS), metric)
            / value(_arm(outcome, "least_loaded"), metric)
            for outcome in outcomes
        }
        worst = max(ratios, key=lambda name: ratios[name])
        said.append(
            f"- {title} against `least_loaded`: {geometric(list(ratios.values())):.2f} times on "
            f"geometric average, at worst {ratios[worst]:.2f} times ({worst})."
        )
    for outcome in outcomes:
        if outcome.case.workload == "unique":
            ours, rival = _arm(outcome, OURS), _arm(outcome, "least_loaded")
            parts = [
                f"{title} {value(ours, metric) / value(rival, metric) - 1:+.1%}"
                for metric, title in _TITLES.items()
            ]
            said.append(f"- `{outcome.case.name}`, against `least_loaded`: {', '.join(parts)}.")
    return "What hits cost elsewhere:\n\n" + "\n".join(said) + "\n"


def _sweep(section: str, title: str, outcomes: Sequence[Outcome]) -> Picture:
    series = [
        draw.Series(
            name,
            [
                (outcome.case.load, value(_arm(outcome, name), "ttft_ms.mean") / 1e3)
                for outcome in outcomes
            ],
            place,
            strong=name == OURS,
        )
        for place, name in enumerate(ARMS)
        if name != POOLED
    ]
    x_title = "times the trace's speed" if outcomes[0].case.traced else "requests a second, offered"
    svg = draw.lines(f"{title}: TTFT mean", series, x_title, "seconds")
    return Picture(f"results-{section}.svg", svg)


def _table(outcome: Outcome) -> str:
    bound = outcome.arms[0].upper_bound
    count = outcome.arms[0].requests
    runs = f" in {len(outcome.case.seeds)} runs" if len(outcome.case.seeds) > 1 else ""
    chosen = " (chosen on)" if outcome.case.chosen else ""
    rows = [
        f"**{outcome.case.name}**{chosen}: {count:,} requests{runs}; most possible hit "
        f"rate {bound:.1%}.\n",
        _HEAD,
    ]
    for arm in outcome.arms:
        hit = "-" if arm.hit_rate is None else f"{arm.hit_rate:.1%}"
        ttft = " | ".join(_ms(getattr(arm.ttft_ms, part)) for part in ("mean", "p50", "p90", "p99"))
        e2e = " | ".join(_ms(value(arm, f"e2e_ms.{part}")) for part in ("mean", "p90"))
        tpot = " | ".join(f"{value(arm, f'tpot_ms.{part}'):.1f}" for part in ("mean", "p99"))
        rows.append(
            f"| {_shown(arm.name)} | {hit} | {ttft} | {tpot} | {e2e} "
            f"| {arm.throughput.output_tokens_per_s:,.0f} "
            f"| {value(arm, 'balance.work_max_over_mean'):.2f} |"
        )
    reasons = sorted({reason for arm in outcome.arms for reason in arm.errors})
    for reason in reasons:
        counts = sorted({arm.errors.get(reason, 0) for arm in outcome.arms})
        each = " to ".join(f"{count:,}" for count in (counts[0], counts[-1])[: len(counts)])
        rows.append(f"\n{each} more requests of each arm failed: {_REASONS.get(reason, reason)}.")
    return "\n".join(rows) + "\n"


def _ms(milliseconds: float) -> str:
    return f"{milliseconds:,.0f}"


def _shown(name: str) -> str:
    return f"**{name}**" if name == OURS else f"{name} *" if name in PEERS else name


def _arm(outcome: Outcome, name: str) -> Arm:
    return next(arm for arm in outcome.arms if arm.name == name)


def _split(outcome: Outcome) -> tuple[Arm, list[Arm]]:
    return _arm(outcome, OURS), rivals(outcome.arms)
