from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router.tracing.context import TraceContext, parse
from router.tracing.trace import Trace

TRACE = b"4bf92f3577b34da6a3ce929d0e0e4736"
SPAN = b"00f067aa0ba902b7"


@pytest.mark.parametrize(
    ("header", "sampled"),
    [
        (b"00-%b-%b-01" % (TRACE, SPAN), True),
        (b" 00-%b-%b-00 " % (TRACE, SPAN), False),
        (b"00-%b-%b-03" % (TRACE, SPAN), True),
        (b"cc-%b-%b-01-what-comes-later" % (TRACE, SPAN), True),
    ],
)
def test_a_header_as_the_standard_has_it(header: bytes, sampled: bool) -> None:
    assert parse(header) == TraceContext(TRACE, SPAN, sampled)


@pytest.mark.parametrize(
    "header",
    [
        b"",
        b"00",
        b"00-%b-%b" % (TRACE, SPAN),
        b"00-%b-%b-01-more" % (TRACE, SPAN),
        b"ff-%b-%b-01" % (TRACE, SPAN),
        b"00-%b-%b-01" % (TRACE.upper(), SPAN),
        b"00-%b-%b-01" % (b"0" * 32, SPAN),
        b"00-%b-%b-01" % (TRACE, b"0" * 16),
        b"00-%b-%b-0g" % (TRACE, SPAN),
        b"00-%b-%b-01" % (TRACE[1:], SPAN),
    ],
)
def test_a_wrong_header_counts_as_none(header: bytes) -> None:
    assert parse(header) is None


@given(st.binary(max_size=80))
def test_no_header_breaks_it(header: bytes) -> None:
    parse(header)


def test_the_client_decides_where_it_says_something() -> None:
    assert Trace(TraceContext(TRACE, SPAN, True), 0.0).sampled
    assert not Trace(TraceContext(TRACE, SPAN, False), 1.0).sampled


def test_else_the_share_decides() -> None:
    assert not any(Trace(None, 0.0).sampled for _ in range(100))
    assert all(Trace(None, 1.0).sampled for _ in range(100))
    assert 300 < sum(Trace(None, 0.5).sampled for _ in range(1000)) < 700


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_what_goes_on_is_a_header_as_well(share: float) -> None:
    trace = Trace(None, share)
    found = parse(trace.attempt("a:1"))
    assert found is not None
    assert found.trace_id == trace.trace_id
    assert found.sampled == trace.sampled == bool(share)
    assert (found.span_id == trace.span_id) == (not share)
    assert len(trace.attempts) == int(share)
