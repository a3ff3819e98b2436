"""Presets: the formulas' results stay near what is known of the real machines."""

import pytest

from loadgen.engine import PRESETS, preset
from loadgen.engine.presets import A10G, LLAMA_70B, derive


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_is_plausible(name):
    params = preset(name)
    assert "not measured" in params.origin
    assert 1_000 < params.prefill_rate < 100_000
    assert 0.004 < params.step_base_seconds < 0.1
    assert params.longest == params.max_model_len


def test_kv_of_a_llama_8b_token_is_128_kib():
    assert preset("8b-h100").cache_tokens == pytest.approx(
        (0.9 * 80e9 - 2e9 - 16.06e9) / 2**17, 1e-3
    )


def test_what_does_not_fit_or_exist_is_refused():
    with pytest.raises(ValueError, match="does not fit"):
        derive("x", LLAMA_70B, A10G)
    with pytest.raises(ValueError, match="8b-h100"):
        preset("nope")
