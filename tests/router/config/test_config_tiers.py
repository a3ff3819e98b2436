"""Settings about tiers: what is read, and what is refused with the fix."""

from __future__ import annotations

import pytest

from router.config.errors import BadValueError
from router.config.tiers import Media, TierRates


def test_media_and_rates_are_read_and_written_back() -> None:
    assert Media().parse("storage, cpu cpu") == ("STORAGE", "CPU")
    assert Media().format(("STORAGE", "CPU")) == "STORAGE,CPU"
    rates = TierRates().parse("cpu=200000, STORAGE=9")
    assert rates == (("CPU", 200_000.0), ("STORAGE", 9.0))
    assert TierRates().parse(TierRates().format(rates)) == rates
    assert Media().parse("") == TierRates().parse("") == ()


@pytest.mark.parametrize("text", ["CPU", "CPU=0", "CPU=1.5", "GPU=5", "=5", "CPU=-3", "a b=1"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(BadValueError, match="CPU=200000"):
        TierRates().parse(text)


@pytest.mark.parametrize("text", ["GPU", "a=b", "*"])
def test_what_is_no_medium_is_refused(text: str) -> None:
    with pytest.raises(BadValueError, match="such as CPU"):
        Media().parse(text)
