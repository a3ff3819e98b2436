"""What an engine is: its scheduler's limits, the size of its KV cache, and how long a step
takes."""

from __future__ import annotations

from math import ceil, sqrt

import msgspec


class EngineParams(msgspec.Struct, frozen=True, kw_only=True):
    """Settings as vLLM names them, the rates of the step-time model, and what a request costs
    outside of steps.

    One step takes, in seconds::

        step_base_seconds
        + new prompt tokens / prefill_rate
        + step_pair_seconds * (new prompt token, earlier token) pairs      attention in prefill
        + step_request_seconds * requests in the step
        + step_prefill_seconds * requests in the step with new prompt tokens
        + step_token_seconds * tokens of context of the decoding requests  reading their KV

    Before it is queued a request takes::

        overhead_seconds + overhead_token_seconds * prompt tokens, cached or not

    of which overhead_serial_seconds and the tokens' part pass one request after another.
    """

    name: str = "custom"
    origin: str = "set by hand"
    """Where the numbers come from, in words."""
    block_size: int = 16
    num_blocks: int = 4096
    """As ``num_gpu_blocks`` in ``vllm:cache_config_info``; one is set aside as vLLM's null
    block."""
    max_num_seqs: int = 256
    max_num_batched_tokens: int = 8192
    max_model_len: int = 131_072
    step_base_seconds: float = 0.01
    prefill_rate: float = 20_000.0
    step_pair_seconds: float = 0.0
    step_request_seconds: float = 40e-6
    step_token_seconds: float = 0.044e-6
    step_prefill_seconds: float = 0.0
    """What a prompt costs in a step whatever its length, which decoding requests wait for too."""
    overhead_seconds: float = 0.0
    """Network, API server, the way to the engine process and back."""
    overhead_serial_seconds: float = 0.0
    """Of these, what a process with one thread, such as the API server, is busy with."""
    overhead_token_seconds: float = 0.0
    """Seconds for each prompt token outside of steps: parsing or tokenising, copying, hashing."""
    offload_tokens: int = 0
    """Tokens that a tier behind GPU memory holds, such as CPU memory; 0: there is none."""
    offload_token_seconds: float = 0.0
    """Seconds that a token's keys and values take from there: bytes of a token over bandwidth."""
    offload_base_seconds: float = 0.0
    """Seconds of each transfer from there, whatever its length."""

    max_loras: int = 0
    """LoRA adapters in GPU memory, and with running requests at a time; 0: as many as come."""
    lora_load_seconds: float = 0.0
    """What loading another one takes; the engine computes nothing else meanwhile."""

    def __post_init__(self) -> None:
        if self.block_size < 1:
            raise ValueError(f"block_size must be at least 1, not {self.block_size}")
        if self.num_blocks < 2:
            raise ValueError(f"num_blocks must be at least 2, not {self.num_blocks}")
        if not 1 <= self.max_num_seqs <= self.max_num_batched_tokens:
            raise ValueError(
                f"max_num_seqs ({self.max_num_seqs}) must lie between 1 and max_num_batched_tokens "
                f"({self.max_num_batched_tokens}): every running request needs a token of each step"
            )
        if self.prefill_rate <= 0:
            raise ValueError(f"prefill_rate must be positive, not {self.prefill_rate}")
        for field in (
            "step_base_seconds",
            "step_pair_seconds",
            "step_request_seconds",
            "step_token_seconds",
            "step_prefill_seconds",
            "overhead_seconds",
            "overhead_token_seconds",
            "lora_load_seconds",
            "max_loras",
            "offload_tokens",
            "offload_token_seconds",
            "offload_base_seconds",
        ):
            if getattr(self, field) < 0:
                raise ValueError(f"{field} must not be negative, not {getattr(self, field)}")
        if not 0 <= self.overhead_serial_seconds <= self.overhead_seconds:
            raise ValueError(
                f"overhead_serial_seconds ({self.overhead_serial_seconds}) must lie between 0 and "
                f"overhead_seconds ({self.overhead_seconds}), of which it is a part"
            )

    @property
    def cache_tokens(self) -> int:
        """Tokens that fit in the KV cache."""
        return (self.num_blocks - 1) * self.block_size

    @property
    def longest(self) -> int:
        """The longest request, prompt and answer together, that can ever run."""
        return min(self.max_model_len, self.cache_tokens)


def steps_within(elapsed: float, first: float, slope: float) -> int:
    """Which step of a run, from 1, is in progress after so many seconds, where the first takes
    ``first`` and each further one ``slope`` more; 0 where steps take no time."""
    half = slope / 2
    linear = first - half
    if half > 0:
        steps = ceil((sqrt(linear * linear + 4 * half * elapsed) - linear) / (2 * half))
    elif linear > 0:
        steps = ceil(elapsed / linear)
    else:
        return 0
    return max(steps, 1)
