"""Durations, sizes, shares and booleans read and write."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from router.config import units

SECONDS = st.floats(0, 1e9, allow_nan=False)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2s", 2.0),
        ("500ms", 0.5),
        ("1m30s", 90.0),
        ("1.5h", 5400.0),
        ("2", 2.0),
        (".25", 0.25),
        (" 1d ", 86_400.0),
        ("250us", 0.00025),
        ("250µs", 0.00025),
        ("3min", 180.0),
        ("0", 0.0),
        ("1e3", 1000.0),
        ("0.1s", 0.1),
    ],
)
def test_a_duration_is_read(text: str, seconds: float) -> None:
    assert units.parse_duration(text) == seconds


@pytest.mark.parametrize(
    "text",
    ["", " ", "s", "-1s", "1 parsec", "1s2", "2s,", "nan", "inf", "1:30", "٣s", "1s 2s", "1..2s"],
)
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a duration"):
        units.parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (90.0, "1m30s"),
        (0.5, "500ms"),
        (2.5, "2.5s"),
        (3600.0, "1h"),
        (0.0, "0s"),
        (0.0015, "1.5ms"),
        (0.00004, "40us"),
        (100.0, "1m40s"),
        (604_800.0, "7d"),
        (61.5, "61.5s"),
    ],
)
def test_a_duration_is_written_the_usual_way(seconds: float, text: str) -> None:
    assert units.format_duration(seconds) == text


@given(SECONDS)
@example(0.1 + 0.2)
@example(1e-9)
def test_a_duration_comes_back(seconds: float) -> None:
    assert units.parse_duration(units.format_duration(seconds)) == seconds


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("64KiB", 65_536),
        ("64Ki", 65_536),
        ("10MB", 10_000_000),
        ("10m", 10_000_000),
        ("512", 512),
        ("512B", 512),
        ("1.5 GiB", 1_610_612_736),
        ("1kb", 1000),
        ("0", 0),
    ],
)
def test_a_size_is_read(text: str, size: int) -> None:
    assert units.parse_size(text) == size


@pytest.mark.parametrize(
    "text", ["", "KiB", "-1", "1.5", "1.0001KiB", "10 apples", "1e", "0x10", "nan"]
)
def test_what_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="not a"):
        units.parse_size(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [(65_536, "64KiB"), (10_000_000, "10MB"), (1001, "1001B"), (0, "0B"), (1 << 30, "1GiB")],
)
def test_a_size_is_written_in_its_largest_unit(size: int, text: str) -> None:
    assert units.format_size(size) == text


@given(st.integers(0, 1 << 60))
def test_a_size_comes_back(size: int) -> None:
    assert units.parse_size(units.format_size(size)) == size


def test_shares_are_numbers_or_percent() -> None:
    assert (
        units.parse_ratio("0.2") == units.parse_ratio("20%") == units.parse_ratio(" 20 % ") == 0.2
    )
    assert units.format_ratio(1.0) == "1"
    for text in ("", "%", "a", "-1%", "nan"):
        with pytest.raises(ValueError, match="not a share"):
            units.parse_ratio(text)


@given(st.floats(0, 1, allow_nan=False))
def test_a_share_comes_back(ratio: float) -> None:
    assert units.parse_ratio(units.format_ratio(ratio)) == ratio


def test_booleans_are_words_in_any_case() -> None:
    assert all(units.parse_flag(text) for text in ("true", "YES", " on ", "1"))
    assert not any(units.parse_flag(text) for text in ("false", "No", "off", "0"))
    for text in ("", "2", "maybe", "y"):
        with pytest.raises(ValueError, match="neither"):
            units.parse_flag(text)
    for flag in (True, False):
        assert units.parse_flag(units.format_flag(flag)) is flag


@given(st.text(max_size=20))
def test_any_text_is_read_or_refused_with_a_value_error(text: str) -> None:
    for parse in (units.parse_duration, units.parse_size, units.parse_ratio, units.parse_flag):
        try:
            assert parse(text) >= 0
        except ValueError:
            continue
