"""What a panel is here, and how it becomes Grafana's."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from grafana_foundation_sdk.builders import common, prometheus, stat, timeseries
from grafana_foundation_sdk.builders import dashboard as grafana
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.models import common as common_models
from grafana_foundation_sdk.models.dashboard import (
    DashboardCursorSync,
    DashboardLinkType,
    DataSourceRef,
    VariableRefresh,
)

from router.telemetry.catalogue import OWN, PROCESS

VARIABLES = ("job", "namespace", "model", "replica")
"""Labels that can be chosen at the top, in this order. Each applies to metrics that have it."""
TARGET = ("job", "namespace")
"""Those that Prometheus adds to every series."""
CHOICES = {"model": "warmroute_requests_total", "replica": "warmroute_in_flight"}
"""Where a variable's values are found, if not in warmroute_build_info."""
CLIENTS = "client_.*|bad_request|too_large|refused_path|unauthorized|unknown_model"
"""Reasons of errors that are the clients' own: they left, were slow, or asked for what there is
not. Every other reason is a failure of the gateway or of an engine."""
RATE = "[$__rate_interval]"
LEDGER = "warmroute_reuse_prompt_tokens_total"
DELIVERED = "warmroute_reuse_delivered_tokens_total"
"""Prompt tokens whose reuse is known, and those of them that engines took from their caches."""
SOURCE = DataSourceRef(type_val="prometheus", uid="$datasource")
LABELS = {metric.name: metric.labels for metric in (*OWN, *PROCESS)}


@dataclass(frozen=True)
class Query:
    """One PromQL expression and what its series are called."""

    expr: str
    legend: str


@dataclass(frozen=True)
class Panel:
    """One panel. Every one has a unit, and says what to do when it looks bad."""

    title: str
    about: str
    unit: str
    queries: Sequence[Query]
    moves: bool = True
    """Under load its lines change; False for what is constant in a healthy fleet."""
    number: bool = False
    """The latest value as a number, instead of lines over time."""
    stacked: bool = False
    needs: str = ""
    """What must be on for it to have data; empty for nothing."""
    most: float | None = None
    signed: bool = False
    """It may be below 0."""
    width: int = 8


@dataclass(frozen=True)
class Row:
    """Panels under one heading."""

    title: str
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Board:
    """One dashboard."""

    uid: str
    title: str
    about: str
    rows: Sequence[Row]

    @property
    def panels(self) -> list[Panel]:
        """All of them in order."""
        return [panel for row in self.rows for panel in row.panels]


def share(part: str, whole: str, by: str = "") -> str:
    """PromQL: one counter's rate as a share of another's."""
    return f"{total(part, by)} / {total(whole, by)}"


def hit_rates(
    by: str, cached: str = DELIVERED, prompt: str = LEDGER, legend: str = ""
) -> list[Query]:
    """Cached tokens as a share of prompt tokens, by a label. legend: its value by default."""
    return [Query(share(cached, prompt, by), legend or f"{{{{{by}}}}}")]


def total(metric: str, by: str = "") -> str:
    """PromQL: a counter's rate over all series, or by a label."""
    grouping = f" by ({by})" if by else ""
    # Requests that were sent to no replica count for the fleet, not for a replica called none.
    more = 'replica!="none"' if by == "replica" else ""
    return f"sum{grouping} (rate({pick(metric, more)}{RATE}))"


def failures() -> str:
    """PromQL: the rate of requests that the gateway or an engine failed."""
    errors = pick("warmroute_request_errors_total", f'reason!~"{CLIENTS}"')
    return f"(sum (rate({errors}{RATE})) or vector(0))"


def pick(metric: str, more: str = "") -> str:
    """PromQL: the series of a metric that are chosen at the top. more: other matchers."""
    labels = (*TARGET, *LABELS[re.sub("_(bucket|sum|count)$", "", metric)])
    matchers = [f'{name}=~"${name}"' for name in VARIABLES if name in labels]
    return f"{metric}{{{', '.join([*matchers, *([more] if more else [])])}}}"


def gauge(metric: str, by: str = "") -> str:
    """PromQL: a gauge's sum over all series, or by a label."""
    grouping = f" by ({by})" if by else ""
    return f"sum{grouping} ({pick(metric)})"


def quantile(rank: float, histogram: str, by: str = "") -> str:
    """PromQL: a quantile of a histogram, in its unit."""
    labels = f"le, {by}" if by else "le"
    buckets = pick(f"{histogram}_bucket", 'replica!="none"' if by == "replica" else "")
    return f"histogram_quantile({rank}, sum by ({labels}) (rate({buckets}{RATE})))"


def quantiles(histogram: str) -> list[Query]:
    """The median and the tail."""
    return [Query(quantile(rank, histogram), f"p{rank * 100:g}") for rank in (0.5, 0.95, 0.99)]


def to_json(board: Board) -> str:
    """A dashboard as Grafana imports it."""
    made = (
        grafana.Dashboard(board.title)
        .uid(board.uid)
        .description(board.about)
        .tags(["warmroute", "vllm"])
        .refresh("10s")
        .time("now-30m", "now")
        .timezone("browser")
        .tooltip(DashboardCursorSync.CROSSHAIR)
        .with_variable(
            grafana.DatasourceVariable("datasource").label("Prometheus").type("prometheus")
        )
        .link(
            grafana.DashboardLink("Warmroute")
            .type(DashboardLinkType.DASHBOARDS)
            .tags(["warmroute"])
            .as_dropdown(True)
            .include_vars(True)
            .keep_time(True)
        )
    )
    for name in VARIABLES:
        made = made.with_variable(_variable(name))
    number = 0
    for row in board.rows:
        made = made.with_row(grafana.Row(row.title))
        for panel in row.panels:
            number += 1
            made = made.with_panel(_panel(panel).id(number))
    return JSONEncoder(sort_keys=True, indent=1).encode(made.build()) + "\n"


def _variable(name: str) -> Any:
    """A choice of values of one label; at first all, those without the label included."""
    metric = CHOICES.get(name, "warmroute_build_info")
    within = "" if name == "job" else '{job=~"$job"}'
    return (
        grafana.QueryVariable(name)
        .label(name.title())
        .datasource(SOURCE)
        .query(f"label_values({metric}{within}, {name})")
        .refresh(VariableRefresh.ON_TIME_RANGE_CHANGED)
        .multi(True)
        .include_all(True)
        .all_value(".*")
    )


def _panel(panel: Panel) -> Any:
    made: Any = _stat(panel) if panel.number else _lines(panel)
    made = (
        made.title(panel.title)
        .description(panel.about)
        .unit(panel.unit)
        .datasource(SOURCE)
        .span(panel.width)
        .height(4 if panel.number else 8)
    )
    if not panel.signed:
        made = made.min(0)
    if panel.most is not None:
        made = made.max(panel.most)
    for place, query in enumerate(panel.queries):
        made = made.with_target(
            prometheus.Dataquery()
            .datasource(SOURCE)
            .ref_id(chr(ord("A") + place))
            .expr(query.expr)
            .legend_format(query.legend)
        )
    return made


def _stat(panel: Panel) -> Any:
    assert len(panel.queries) == 1, "a number is one query's"
    return stat.Panel().reduce_options(common.ReduceDataOptions().calcs(["lastNotNull"]))


def _lines(panel: Panel) -> Any:
    made = timeseries.Panel().line_width(2).fill_opacity(25 if panel.stacked else 5)
    if panel.stacked:
        made = made.stacking(common.StackingConfig().mode(common_models.StackingMode.NORMAL))
    return made.legend(
        common.VizLegendOptions()
        .display_mode(common_models.LegendDisplayMode.LIST)
        .placement(common_models.LegendPlacement.BOTTOM)
        .show_legend(True)
    ).tooltip(
        common.VizTooltipOptions()
        .mode(common_models.TooltipDisplayMode.MULTI)
        .sort(common_models.SortOrder.DESCENDING)
    )
