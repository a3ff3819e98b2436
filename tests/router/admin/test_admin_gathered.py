"""The metrics of several workers as one text."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from router.admin.gathered import merged
from router.telemetry.series import escape

ODD = 'a\u2028b\u2029\x85\x0b\x0c\x1c\r\n\\"\ud800'
"""Ends of lines to some, and what UTF-8 and labels do not have."""


def test_odd_characters_in_a_label_end_no_line() -> None:
    line = f'# TYPE x_total counter\nx_total{{model="{escape(ODD)}"}} 1\n'
    line.encode()
    text = merged([(0, line), (1, line)])
    [family] = text_string_to_metric_families(text)
    assert [sample.labels["worker"] for sample in family.samples] == ["0", "1"]
    told = r"a\u2028b\u2029\x85\x0b\x0c\x1c\r" + '\n\\"' + r"\ud800"
    assert {sample.labels["model"] for sample in family.samples} == {told}
    # Nor does it for those that know more ends of lines.
    assert len(text.splitlines()) == 3
