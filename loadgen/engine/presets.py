"""Engines of real pairs of model and GPU, derived from data sheets.

No number here was measured. Each follows from the model's published shape and the GPU's data
sheet::

    prefill_rate         = gpus * flops * PREFILL_SHARE / (2 * weights)
    step_pair_seconds    = 4 * layers * heads * head size / (gpus * flops * ATTENTION_SHARE)
    step_base_seconds    = LAUNCH + 2 bytes * weights / (gpus * bandwidth * BANDWIDTH_SHARE)
    step_token_seconds   = KV bytes of a token / (gpus * bandwidth * BANDWIDTH_SHARE)
    step_request_seconds = 1 / prefill_rate + SAMPLING
    num_blocks           = (gpus * (0.9 * memory - 2 GB) - 2 bytes * weights) / (16 * KV bytes)

with weights and KV in bfloat16. The shares are assumptions in the middle of what is commonly
reported for vLLM on such machines; a measured engine may differ by a factor of 1.5 either way.
``max_num_batched_tokens`` and ``max_num_seqs`` are vLLM's defaults for the API server on that class
of GPU (``EngineArgs.get_batch_defaults``).
"""

from __future__ import annotations

import msgspec

from loadgen.engine.params import EngineParams

PREFILL_SHARE = 0.6
"""Of the peak matrix rate, while prefilling."""
ATTENTION_SHARE = 0.4
"""Of the peak matrix rate, in prefill attention."""
BANDWIDTH_SHARE = 0.75
"""Of the peak memory bandwidth, while decoding."""
LAUNCH = 0.003
"""Seconds of a step that are neither reading nor computing: scheduling, launching, all-reduces."""
SAMPLING = 10e-6
"""Seconds of a step for each request: sampling, input preparation."""
BLOCK_SIZE = 16


class Model(msgspec.Struct, frozen=True):
    """A dense transformer's shape, from its published configuration."""

    name: str
    weights: float
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    max_model_len: int

    @property
    def kv_bytes(self) -> int:
        """Keys and values of one token, bfloat16."""
        return 2 * self.layers * self.kv_heads * self.head_size * 2


class Gpu(msgspec.Struct, frozen=True):
    """One GPU, from its data sheet: dense 16-bit matrix rate, bandwidth, memory."""

    name: str
    flops: float
    bandwidth: float
    memory: float
    max_num_batched_tokens: int
    max_num_seqs: int


LLAMA_8B = Model("Llama-3.1-8B", 8.03e9, 32, 32, 8, 128, 131_072)
QWEN_32B = Model("Qwen2.5-32B", 32.8e9, 64, 40, 8, 128, 32_768)
LLAMA_70B = Model("Llama-3.3-70B", 70.6e9, 80, 64, 8, 128, 131_072)
H100 = Gpu("H100 SXM", 989e12, 3.35e12, 80e9, 8192, 1024)
A10G = Gpu("A10G", 70e12, 0.6e12, 24e9, 2048, 256)
L4 = Gpu("L4", 121e12, 0.3e12, 24e9, 2048, 256)


def derive(name: str, model: Model, gpu: Gpu, gpus: int = 1) -> EngineParams:
    """Parameters by the formulas above. Raises ValueError where the weights leave no room for
    KV."""
    flops, bandwidth = gpus * gpu.flops, gpus * gpu.bandwidth * BANDWIDTH_SHARE
    prefill_rate = flops * PREFILL_SHARE / (2 * model.weights)
    room = gpus * (0.9 * gpu.memory - 2e9) - 2 * model.weights
    num_blocks = int(room / (BLOCK_SIZE * model.kv_bytes))
    if num_blocks < 2:
        raise ValueError(f"{model.name} does not fit on {gpus} x {gpu.name}")
    return EngineParams(
        name=name,
        origin=f"{model.name} on {gpus} x {gpu.name}, derived from data sheets, not measured",
        block_size=BLOCK_SIZE,
        num_blocks=num_blocks,
        max_num_seqs=gpu.max_num_seqs,
        max_num_batched_tokens=gpu.max_num_batched_tokens,
        max_model_len=min(model.max_model_len, (num_blocks - 1) * BLOCK_SIZE),
        step_base_seconds=LAUNCH + 2 * model.weights / bandwidth,
        prefill_rate=prefill_rate,
        step_pair_seconds=4
        * model.layers
        * model.heads
        * model.head_size
        / (flops * ATTENTION_SHARE),
        step_request_seconds=1 / prefill_rate + SAMPLING,
        step_token_seconds=model.kv_bytes / bandwidth,
    )


_MACHINES = {
    "8b-h100": (LLAMA_8B, H100, 1),
    "32b-2xh100": (QWEN_32B, H100, 2),
    "70b-4xh100": (LLAMA_70B, H100, 4),
    "8b-a10g": (LLAMA_8B, A10G, 1),
    "8b-l4": (LLAMA_8B, L4, 1),
}

PRESETS: dict[str, EngineParams] = {
    name: derive(name, model, gpu, gpus) for name, (model, gpu, gpus) in _MACHINES.items()
}

GPUS = {name: gpus for name, (_, _, gpus) in _MACHINES.items()}
"""Of one replica."""

KV_BYTES = {name: model.kv_bytes for name, (model, _, _) in _MACHINES.items()}
"""Keys and values of one token."""


def preset(name: str) -> EngineParams:
    """A preset by name. Raises ValueError that lists the names."""
    try:
        return PRESETS[name]
    except KeyError:
        raise ValueError(f"no preset {name!r}; one of: {', '.join(PRESETS)}") from None
