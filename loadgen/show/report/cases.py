"""The page of a report, which holds many cases: an overview, then a section for each workload."""

from __future__ import annotations

from loadgen.results.schema import Results
from loadgen.show.report import sections, tables
from loadgen.show.report.layout import charts, section
from loadgen.show.report.parts import families, names, parts

MOST_LOADS = 2
"""Of a workload whose distributions are drawn: the first and the last."""
_OVERVIEW = "Milliseconds, the less the better. Bold: the least of a case, by however little."
LOADS_OF_A_LINE = 3
"""Fewer loads are told by the table alone."""

_FAMILY = (
    "Under the table of all arms: the differences an interval was computed for, green where it "
    "says better and red where it says worse."
)


def case_sections(results: Results) -> list[str]:
    """Raises nothing for arms whose names hold no case: they are one section without a title."""
    found = families(results)
    arms = list(dict.fromkeys(name for family in found for name in names(family)))
    made = [
        section(
            "Mean time to the first token",
            _OVERVIEW,
            tables.matrix(found, arms, lambda arm: arm.ttft_ms.mean),
        ),
        section(
            "Mean time to the last token",
            _OVERVIEW,
            tables.matrix(found, arms, lambda arm: arm.e2e_ms.mean),
        ),
    ]
    for family in found:
        swept = sections.sweep(family) if len(parts(family)) >= LOADS_OF_A_LINE else []
        drawn = [*swept, *sections.distributions(family, MOST_LOADS)]
        content = tables.summary(family) + tables.against(family) + charts(drawn)
        made.append(section(family.workload, _FAMILY if family.differences else "", content))
    return made
