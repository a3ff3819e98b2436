"""The audit for people: as text, and as one HTML page without scripts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from typing import Final

from router.audit.report import Audit, Finding

_HEADINGS: Final = ("tokens lost", "requests", "GPU-s", "a day", "what", "where", "whose")
_STYLE: Final = (
    "body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:70rem;padding:0 1rem;"
    "color-scheme:light dark}table{border-collapse:collapse;width:100%}"
    "th,td{padding:.3rem .6rem;text-align:left;border-bottom:1px solid #8884;vertical-align:top}"
    "td:first-child,td:nth-child(2),td:nth-child(3),td:nth-child(4){text-align:right;"
    "font-variant-numeric:tabular-nums}.mend{opacity:.75}"
)


def _cells(finding: Finding) -> tuple[str, ...]:
    what = finding.kind.replace("_", " ")
    if finding.looks_like:
        what += f": {finding.looks_like}"
    whose = ", ".join(each for each in (finding.agent, finding.tenant, finding.model) if each)
    money = "" if finding.money_a_day is None else f"{finding.money_a_day:,.2f}"
    return (
        f"{finding.tokens_lost:,}",
        f"{finding.requests:,}",
        f"{finding.gpu_seconds:,.1f}",
        money,
        what,
        finding.part,
        whose,
    )


def _sentences(audit: Audit) -> Iterable[str]:
    """What is told beside the findings."""
    agents = audit.agents
    rates = [
        "-" if rate is None else f"{rate:.0%}" for rate in agents.hit_rate_by_step[:_STEPS_SHOWN]
    ]
    yield "Hit rate by step: " + " ".join(rates)
    tools = agents.tool_results
    if tools.results:
        share = "" if tools.share_of_growth is None else f", {tools.share_of_growth:.0%} of growth"
        yield (
            f"Tool results: {tools.results:,}, {tools.mean_bytes:,.0f} bytes each in the mean, "
            f"{tools.largest_bytes:,} the largest{share}; {tools.repeats:,} came again "
            f"({tools.repeated_bytes:,} bytes)"
        )
    pauses = agents.pauses
    if pauses.resumed:
        yield (
            f"Steps that went on as before: {pauses.resumed:,}, of which {pauses.gone:,} found "
            f"their cache gone ({pauses.tokens_lost:,} tokens)"
        )
    for name, seconds in pauses.holds_s.items():
        held = "is not full" if seconds is None else f"holds what is not used for {seconds:,.0f} s"
        yield f"Cache of {name}: {held}"
    if pauses.larger_cache_tokens:
        yield f"A larger cache or an offload tier would have kept {pauses.larger_cache_tokens:,}"
    if pauses.sticky_wait_tokens:
        yield f"Waiting for the holder would have saved {pauses.sticky_wait_tokens:,} tokens"


_STEPS_SHOWN: Final = 12


def _heading(audit: Audit) -> str:
    """How many requests, and of how long."""
    minutes = audit.since_s >= 120
    count = round(audit.since_s / 60 if minutes else audit.since_s)
    unit = "minute" if minutes else "second"
    return (
        f"{audit.requests:,} {'request' if audit.requests == 1 else 'requests'} in the last "
        f"{count:,} {unit if count == 1 else unit + 's'}"
    )


def as_text(audit: Audit) -> str:
    """For a terminal."""
    lines = [_heading(audit)]
    rows = [_HEADINGS, *map(_cells, audit.findings)]
    if not audit.findings:
        lines.append("No request lost tokens that an earlier one had computed.")
    else:
        widths = [max(len(row[at]) for row in rows) for at in range(len(_HEADINGS))]
        lines.append("")
        for number, row in enumerate(rows):
            cells = [
                cell.rjust(width) if at < _NUMBERS else cell.ljust(width)
                for at, (cell, width) in enumerate(zip(row, widths, strict=True))
            ]
            lines.append("  ".join(cells).rstrip())
            if number:
                lines.append(" " * (widths[0] + 2) + audit.findings[number - 1].mend)
    lines += ["", *_sentences(audit)]
    return "\n".join(lines) + "\n"


_NUMBERS: Final = 4


def as_html(audit: Audit) -> str:
    """One page, with nothing from elsewhere."""
    head = "".join(f"<th>{escape(each)}</th>" for each in _HEADINGS)
    body = "".join(_row(_cells(each), each.mend) for each in audit.findings)
    told = "".join(f"<li>{escape(each)}</li>" for each in _sentences(audit))
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width"><title>Cache audit</title>'
        f"<style>{_STYLE}</style><h1>Cache audit</h1>"
        f"<p>{_heading(audit)}</p>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        f"<h2>Agents</h2><ul>{told}</ul></html>\n"
    )


def _row(cells: Sequence[str], mend: str) -> str:
    shown = [f"<td>{escape(cell)}</td>" for cell in cells]
    shown[_WHAT] = f'<td>{escape(cells[_WHAT])}<br><span class="mend">{escape(mend)}</span></td>'
    return f"<tr>{''.join(shown)}</tr>"


_WHAT: Final = 4
