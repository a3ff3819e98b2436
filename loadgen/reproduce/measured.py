"""Presets beside published measurements.

llm-d's figures are of its benchmark pages; vLLM's are of its public performance benchmark on
Buildkite (vllm/performance-benchmark, build 9515: latency tests, batches of 8).
"""

from __future__ import annotations

from loadgen.engine import Engine, EngineParams, Request, preset
from loadgen.engine.presets import LLAMA_8B, LLAMA_70B, Gpu, derive

_PRESETS_HEAD = """## Presets against published measurements

| what | published | ours | |
|---|---:|---:|---|
"""
_PRESETS_TAIL = """
The H200 rows are no preset, but the same formulas with that GPU's data sheet (989 TFLOPS dense in
16 bits, 4.8 TB/s, 141 GB; the dashboard's weights taken for bfloat16): they check the formulas'
assumed shares. The small model is modelled too slow and the large one, on four GPUs, too fast, so
no one share of the bandwidth mends both. The reasons given are what the formulas leave out; none
was measured apart. vLLM's dashboard also has throughputs of ShareGPT conversations, whose lengths
it does not tell. The MLPerf result found for Llama 8B on one H100 (Red Hat, v5.1: 5,777 tokens/s
offline) has FP8 weights, which no preset has. A preset is derived from data sheets;
`warmroute-loadgen calibrate` fits one to a real engine.
"""
_DASHBOARD = "vLLM's dashboard, build 9515"
H200 = Gpu("H200 SXM", 989e12, 4.8e12, 141e9, 8192, 1024)


def batch_seconds(params: EngineParams, requests: int, prompt: int, output: int) -> float:
    """How long different prompts of one length, sent at once, take to their last token."""
    engine = Engine(params)
    blocks = -(-prompt // params.block_size)
    for number in range(requests):
        engine.add(Request(prompt, output, range(number * blocks, (number + 1) * blocks)), 0.0)
    at = 0.0
    while not engine.idle:
        at = engine.step().at
    return at


def presets() -> str:
    """The table of presets."""
    engine = preset("32b-2xh100")
    prompt = 10_000
    pairs = prompt * prompt / 2
    steps = -(-prompt // engine.max_num_batched_tokens)
    cold = (
        steps * engine.step_base_seconds
        + prompt / engine.prefill_rate
        + engine.step_pair_seconds * pairs
    )
    warm = engine.step_base_seconds + 16 / engine.prefill_rate
    rows: tuple[tuple[str, str, str, str], ...] = (
        (
            "prefill of Qwen 32B on two H100",
            "15,928 tokens/s (llm-d's `peakPrefillThroughput`, measured by them)",
            f"{engine.prefill_rate:,.0f} tokens/s (`32b-2xh100`)",
            f"{engine.prefill_rate / 15_928 - 1:+.0%}: ours is 60% of the data sheets' peak, and "
            "attention comes on top with long prompts",
        ),
        (
            "a prompt of 10,000 tokens on Qwen 32B, cold",
            "4.3 s (llm-d; the GPUs are not told)",
            f"{cold:.2f} s (`32b-2xh100`, alone)",
            "theirs cannot be two H100 without other load: at their own 15,928 tokens/s it would "
            "take 0.63 s",
        ),
        (
            "the same, cached",
            "0.6 s (llm-d)",
            f"{warm:.2f} s",
            "theirs has the network, the gateway and tokenising in it, which no preset has",
        ),
    )
    small = batch_seconds(derive("8b-h200", LLAMA_8B, H200), 8, 32, 128)
    large = batch_seconds(derive("70b-4xh200", LLAMA_70B, H200, 4), 8, 32, 128)
    rows += (
        (
            "8 requests at once on Llama 8B, one H200: 32 tokens in, 128 out, to the end",
            f"0.83 s ({_DASHBOARD}: 833.4 ms)",
            f"{small:.2f} s (formulas)",
            f"{small / 0.8334 - 1:+.0%}: 3 ms of a step are neither reading nor computing in ours, "
            "likely too much for a small model with CUDA graphs",
        ),
        (
            "the same on Llama 70B, four H200",
            f"2.08 s ({_DASHBOARD}: 2,077.5 ms)",
            f"{large:.2f} s (formulas)",
            f"{large / 2.0775 - 1:+.0%}: likely all-reduces, 160 of them a step, for which "
            "ours has those 3 ms",
        ),
    )
    said = "".join(f"| {' | '.join(row)} |\n" for row in rows)
    return _PRESETS_HEAD + said + _PRESETS_TAIL
