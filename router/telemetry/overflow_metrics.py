"""The metrics of overflow targets, as the catalogue lists them."""

from __future__ import annotations

from router.telemetry.metric import Metric

_TARGET = ("target",)
REQUESTS = Metric(
    "warmroute_overflow_requests_total",
    "counter",
    "requests",
    "Requests sent to overflow targets, by target and why: no replica was usable (no_replica), "
    "its first token would have been too late (late), another's would have been and this one had "
    "least in caches here (coldest), or the queue would have refused it (full, expired).",
    ("target", "why"),
)
FAILED = Metric(
    "warmroute_overflow_failed_total",
    "counter",
    "requests",
    "Of these, not answered by the target: they went to the next one, or back.",
    _TARGET,
)
MONEY = Metric(
    "warmroute_overflow_money_total",
    "counter",
    "money",
    "What they cost, by the target's prices and the usage it reported; of an answer without usage, "
    "as much as was reserved for it.",
    _TARGET,
)
SPENT = Metric(
    "warmroute_overflow_spent_money",
    "gauge",
    "money",
    "Of today's budget (UTC), settled or reserved: of all that count together, as far as this "
    "router knows, or of this router where that is more.",
    _TARGET,
)
BUDGET = Metric(
    "warmroute_overflow_budget_money",
    "gauge",
    "money",
    "The budget of a day, of all that count together.",
    _TARGET,
)
USABLE = Metric(
    "warmroute_overflow_usable",
    "gauge",
    "1 or 0",
    "1 while the target's breaker lets requests through, else 0.",
    _TARGET,
)

OF_OVERFLOW = (REQUESTS, FAILED, MONEY, SPENT, BUDGET, USABLE)
