from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import pytest
from fleet_engines import metrics_text
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from router.fleet.engine_metrics import MAX_SERIES, EngineMetrics, after, parse_metrics

SAMPLE = (Path(__file__).parent / "data" / "vllm_0_32_metrics.txt").read_bytes()


@lru_cache
def library(text: bytes) -> dict[str, float]:
    """Every name's sum, as the Prometheus library reads it."""
    sums: dict[str, float] = {}
    for family in text_string_to_metric_families(text.decode()):
        for sample in family.samples:
            sums[sample.name] = sums.get(sample.name, 0.0) + sample.value
    return sums


def by_library(text: bytes, name: str) -> float:
    return library(text)[name]


def ranks(text: bytes, count: int) -> bytes:
    """The text of an engine with this many data-parallel ranks, each line repeated for each."""
    lines = []
    for line in text.splitlines():
        lines.append(line)
        if b'engine="0"' in line:
            lines += [line.replace(b'engine="0"', b'engine="%d"' % i) for i in range(1, count)]
    return b"\n".join(lines) + b"\n"


@pytest.mark.parametrize("text", [SAMPLE, ranks(SAMPLE, 3)], ids=["one engine", "three ranks"])
def test_agrees_with_the_prometheus_library_on_a_real_engine(text: bytes) -> None:
    metrics = parse_metrics(text)
    assert metrics.running == by_library(text, "vllm:num_requests_running") > 0
    assert metrics.waiting == by_library(text, "vllm:num_requests_waiting")
    assert metrics.queries == by_library(text, "vllm:prefix_cache_queries_total") > 0
    assert metrics.hits == by_library(text, "vllm:prefix_cache_hits_total") > 0
    assert metrics.prompts == by_library(text, "vllm:request_prompt_tokens_count") > 0
    assert metrics.prompt_tokens == by_library(text, "vllm:request_prompt_tokens_sum") > 0
    assert metrics.started == by_library(text, "process_start_time_seconds") > 1e9
    usage = by_library(SAMPLE, "vllm:kv_cache_usage_perc")
    assert metrics.kv_usage == pytest.approx(usage)
    assert usage > 0
    assert metrics.prefix_caching is True


def test_cache_size_of_a_real_engine() -> None:
    assert parse_metrics(SAMPLE).kv_tokens == 131_072
    # kv_cache_size_tokens is one rank's
    assert parse_metrics(ranks(SAMPLE, 3)).kv_tokens == 3 * 131_072


def test_older_engines_tell_blocks_summed_over_ranks_already() -> None:
    older = SAMPLE.replace(b'kv_cache_size_tokens="131072",', b"")
    assert parse_metrics(older).kv_tokens == 4096 * 32
    assert parse_metrics(ranks(older, 3)).kv_tokens == 4096 * 32


def test_hybrid_models_size_is_not_blocks_times_block_size() -> None:
    hybrid = SAMPLE.replace(b'kv_cache_size_tokens="131072"', b'kv_cache_size_tokens="50000"')
    assert parse_metrics(hybrid).kv_tokens == 50_000


def test_names_of_before_are_understood() -> None:
    text = b'vllm:gpu_cache_usage_perc{model_name="m"} 0.5\nvllm:gpu_prefix_cache_hits_total 3\n'
    assert parse_metrics(text) == EngineMetrics(kv_usage=0.5, hits=3.0)


def test_a_longer_name_is_not_taken_for_the_wanted_one() -> None:
    text = metrics_text(waiting=5)
    assert text.index(b"waiting_by_reason") < text.index(b"waiting{")
    assert parse_metrics(text).waiting == 5
    only = b'vllm:num_requests_waiting_by_reason{reason="x"} 4'
    assert parse_metrics(only).waiting is None


def test_labels_may_hold_anything() -> None:
    text = (
        rb'vllm:num_requests_running{model_name="a} 9 \"{,num_gpu_blocks=\"1\"",engine="0"} 2'
        b'\nvllm:cache_config_info{a=",num_gpu_blocks=\\"7\\"",'
        b'num_gpu_blocks="10",block_size="16"} 1'
    )
    metrics = parse_metrics(text)
    assert metrics.running == 2
    assert metrics.kv_tokens == 160


@pytest.mark.parametrize("value", [b"NaN", b"+Inf", b"-1", b"", b"x", b"1e999"])
def test_a_senseless_value_counts_as_not_told(value: bytes) -> None:
    assert parse_metrics(b"vllm:num_requests_running{} " + value).running is None


@pytest.mark.parametrize("value", [b"None", b"-5", b"1e9", b"9" * 4000])
def test_a_senseless_size_counts_as_not_told(value: bytes) -> None:
    text = b'vllm:cache_config_info{block_size="16",num_gpu_blocks="' + value + b'"} 1'
    assert parse_metrics(text).kv_tokens is None


@given(st.binary(max_size=300), st.integers(0, 300))
def test_garbage_never_raises(garbage: bytes, at: int) -> None:
    parse_metrics(garbage)
    text = metrics_text(running=1)
    parse_metrics(text[:at] + garbage + text[at:])


def test_work_is_bounded_for_hostile_text() -> None:
    line = b"vllm:num_requests_running{} 1\n"
    metrics = parse_metrics(line * 100_000)
    assert metrics.running == 4096
    assert parse_metrics(b"vllm:num_requests_running{" + b"x" * 100_000 + b"} 1").running is None


def test_rates_that_follow() -> None:
    metrics = parse_metrics(metrics_text(queries=1000, hits=750, prompts=4, prompt_tokens=800))
    assert metrics.hit_rate == 0.75
    assert metrics.uncached_each == 50.0
    assert parse_metrics(metrics_text()).hit_rate is None
    assert parse_metrics(metrics_text()).uncached_each == 0.0
    assert not parse_metrics(b"go_goroutines 5\n").told_anything


def adapter_line(names: str, at: float, most: str = "4") -> str:
    labels = f'max_lora="{most}",running_lora_adapters="{names}",waiting_lora_adapters="{names}"'
    return f"vllm:lora_requests_info{{{labels}}} {at!r}\n"


def test_of_the_adapters_with_requests_the_newest_line_counts() -> None:
    lines = adapter_line("a,b", 1.7960223391e9), adapter_line("", 1.7e9), adapter_line("c", 1.6e9)
    told = parse_metrics("".join(lines).encode())
    assert (told.max_loras, told.adapters) == (4, ("a", "b"))
    told = parse_metrics("".join((*lines, adapter_line("", 1.79603e9))).encode())
    assert (told.max_loras, told.adapters) == (4, ())
    assert parse_metrics(SAMPLE).max_loras is None
    assert parse_metrics(b"vllm:lora_requests_info{} x\n").max_loras is None


def test_adapters_of_more_series_than_are_read_are_not_told() -> None:
    """The newest may be among those that are left out."""
    lines = [adapter_line(f"a{at}", 1.7e9 + at) for at in range(MAX_SERIES)]
    told = parse_metrics("".join(lines[1:]).encode())
    assert (told.max_loras, told.adapters) == (4, (f"a{MAX_SERIES - 1}",))
    told = parse_metrics("".join(lines).encode())
    assert (told.max_loras, told.adapters) == (4, ())


def test_adapters_are_not_believed_by_a_clock_that_was_set_back() -> None:
    def reading(finished: int, *lines: str) -> EngineMetrics:
        count = f'vllm:request_prompt_tokens_count{{engine="0"}} {finished}\n'
        return parse_metrics((count + "".join(lines)).encode())

    old, none = adapter_line("a", 5000.0), adapter_line("", 4000.0)
    seen = after(None, reading(1, old))
    assert seen.adapters == ("a",)
    seen = after(seen, reading(1, old, none))
    assert seen.adapters == ("a",), "it is idle, as far as one can tell"
    seen = after(seen, reading(2, old, adapter_line("b", 4001.0)))
    assert seen.adapters == ()
    seen = after(seen, reading(2, old, adapter_line("b", 4002.0)))
    assert seen.adapters == (), "what was found out holds while it is idle"
    seen = after(seen, reading(3, old, adapter_line("b", 5001.0)))
    assert seen.adapters == ("b",)
    assert after(seen, reading(0)).adapters == ()
    assert after(None, reading(0, adapter_line("b", 4.0))).adapters == ("b",), "it restarted"
