"""What exact mode costs: an agent's step, events, memory, and how long the loop is held up.

    python -m bench.exact                 # with a tokenizer made on the spot
    python -m bench.exact --model FOLDER  # with a real one
    python -m bench.exact --json FILE

CPU time of the thread, medians of several runs, on a machine that should have nothing else to do.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import tempfile
import time
from array import array
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import msgspec

from bench.chat_model import make_model
from router import garbage
from router.config import Settings
from router.exact.mode import ExactMode
from router.fleet.fleet import Fleet
from router.kv_events.decode import decode
from router.kv_events.token_index import TokenIndex
from router.prompt import PARSERS
from router.render.loading import ExactModel
from router.render.model import RenderModel
from router.render.tokens import TokenPrompt

REPLICAS = 8
BLOCK = 16
HISTORY = 100_000
STEPS = 20
PATH = "/v1/chat/completions"

Figures = dict[str, float]


class Talk:
    """Text that looks like code and prose, for an agent's conversation."""

    def __init__(self, seed: int = 1) -> None:
        self.rng = random.Random(seed)
        letters = "etaoinshrdlucmfwypvbgk"
        self.words = [
            "".join(self.rng.choices(letters, k=self.rng.randint(1, 9))) for _ in range(3000)
        ]
        self.ends = (
            " ",
            " ",
            " ",
            " ",
            " ",
            ", ",
            ". ",
            "\n",
            ";\n",
            "() {\n    ",
            " = ",
            "'s ",
            ": ",
        )

    def text(self, characters: int) -> str:
        parts: list[str] = []
        size = 0
        while size < characters:
            parts += (self.rng.choice(self.words), self.rng.choice(self.ends))
            size += len(parts[-1]) + len(parts[-2])
        return "".join(parts)[:characters]


def tool(number: int, talk: Talk) -> dict[str, Any]:
    """A tool's definition with about 200 tokens."""
    names = [talk.rng.choice(talk.words) for _ in range(6)]
    fields = {name: {"type": "string", "description": talk.text(60)} for name in names}
    return {
        "type": "function",
        "function": {
            "name": f"tool_{number}",
            "description": talk.text(200),
            "parameters": {"type": "object", "properties": fields, "required": names[:2]},
        },
    }


def agent(talk: Talk, characters: int) -> list[bytes]:
    """The bodies of each step of an agent: two messages more each time."""
    each = characters // STEPS
    messages: list[dict[str, Any]] = [
        {"role": "system", "content": talk.text(4000)},
        {"role": "user", "content": talk.text(500)},
    ]
    tools = [tool(number, talk) for number in range(10)]
    bodies = []
    for number in range(STEPS + 1):
        size = each if number < STEPS - 1 else 1200
        bodies.append(
            msgspec.json.encode(
                {"model": "m", "messages": messages, "tools": tools, "stream": True}
            )
        )
        arguments = json.dumps({"path": talk.text(30), "text": talk.text(size // 5)})
        function = {"name": "tool_1", "arguments": arguments}
        call = {"id": f"c{number}", "type": "function", "function": function}
        messages = [
            *messages,
            {"role": "assistant", "content": talk.text(100), "tool_calls": [call]},
            {"role": "tool", "tool_call_id": f"c{number}", "content": talk.text(size * 4 // 5)},
        ]
    return bodies


def build(folder: Path) -> ExactMode:
    """Exact mode without engines: every replica counts as heard and compared with."""
    replicas = tuple(f"http://127.0.0.1:{port}" for port in range(1, REPLICAS + 1))
    fleet = Fleet(Settings(replicas=replicas, exact_budget=60.0))
    exact = ExactMode(fleet)
    model = ExactModel("m", str(folder))
    model.render = RenderModel(folder)
    model.mask = exact.current = (1 << REPLICAS) - 1
    exact.models.bases["m"] = model
    exact.models._names["m"] = (model, "")
    for slot in range(REPLICAS):
        exact.index.sized(slot, BLOCK)
    return exact


async def prepared(exact: ExactMode, body: bytes) -> TokenPrompt:
    """The tokens of a body, in the form that a request carries."""
    prompt = PARSERS[PATH](body)
    await asyncio.sleep(0)  # what follows is exact mode's alone
    ready = asyncio.Event()
    if exact.prepare("chat", prompt, body, ready.set):
        await ready.wait()
    assert isinstance(prompt.tokens, TokenPrompt), exact.prompts
    return prompt.tokens


async def agent_step(folder: Path) -> Figures:
    """CPU of one late step: of reading, rendering, looking up, tokenising, hashing, matching."""
    talk = Talk()
    exact = build(folder)
    sample = talk.text(40_000)
    assert exact.models.bases["m"].render is not None
    tokenizer = exact.models.bases["m"].render.tokenizer
    per_token = len(sample) / (len(tokenizer.encode(sample)) / 4)
    found: Figures = {}
    times, again = [], []
    count = 0
    for _ in range(7):
        exact = build(folder)
        bodies = agent(talk, int((HISTORY - 8000) * per_token))
        for body in bodies[:-1]:
            tokens = await prepared(exact, body)
            for slot in range(0, REPLICAS, 2):
                exact.sent(tokens, slot, 0.0)
        prompt = PARSERS[PATH](bodies[-1])
        garbage.settle()
        started = time.thread_time()
        waiting = exact.prepare("chat", prompt, bodies[-1], lambda: None)
        assert not waiting, "the step's new text is long enough for the pool"
        assert prompt.tokens is not None
        held, _ = exact.held([], prompt.tokens)
        times.append(time.thread_time() - started)
        assert held
        assert held[0][0] > 0.9 * HISTORY
        count = prompt.tokens.count
        prompt = PARSERS[PATH](bodies[-1])
        started = time.thread_time()
        exact.prepare("chat", prompt, bodies[-1], lambda: None)
        assert prompt.tokens is not None
        exact.held([], prompt.tokens)
        again.append(time.thread_time() - started)
        size = len(bodies[-1])
        await exact.stop()
    found["agent_step_ms"] = 1e3 * median(times)
    found["agent_step_best_ms"] = 1e3 * min(times)
    found["agent_step_nothing_new_ms"] = 1e3 * median(again)
    found["agent_step_tokens"] = count
    found["agent_step_body_bytes"] = size
    return found


def events() -> Figures:
    """How many block events are decoded and applied a second."""
    rng = random.Random(1)
    batches: list[bytes] = []
    stored = removed = 0
    names: list[int] = []
    for _ in range(2000):
        size = rng.choice((1, 1, 2, 4, 16, 64))
        fresh = [rng.getrandbits(64) for _ in range(size)]
        made: list[dict[str, Any]] = []
        if len(names) > 8000:
            for _ in range(size):
                gone = names.pop(rng.randrange(len(names)))
                made.append(
                    {
                        "type": "BlockRemoved",
                        "block_hashes": [gone],
                        "medium": "GPU",
                        "group_idx": 0,
                    }
                )
            removed += size
        made.append(
            {"type": "BlockStored", "block_hashes": fresh, "parent_block_hash": None,
             "token_ids": [rng.randrange(150_000) for _ in range(size * BLOCK)],
             "block_size": BLOCK, "lora_id": None, "medium": "GPU", "lora_name": None,
             "extra_keys": [None] * size, "group_idx": 0,
             "kv_cache_spec_kind": "full_attention"}
        )  # fmt: skip
        names += fresh
        stored += size
        batches.append(msgspec.msgpack.encode([1.0, made, 0]))
    speeds = []
    for _ in range(5):
        index = TokenIndex()
        index.add_replica(0)
        started = time.thread_time()
        for batch in batches:
            index.apply(0, decode(batch))
        speeds.append((stored + removed) / (time.thread_time() - started))
    return {"block_events_per_second": median(speeds)}


def resident() -> int:
    """The resident memory of this process, in bytes."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


async def memory(folder: Path) -> Figures:
    """Bytes for each remembered token, with agents' conversations."""
    talk = Talk(2)
    exact = build(folder)
    await prepared(exact, agent(talk, 20_000)[-1])
    gc.collect()
    tokens = exact.memory_tokens
    before = resident()
    for number in range(60):
        bodies = agent(Talk(100 + number), 120_000)
        chain = await prepared(exact, bodies[-1])
        del bodies, chain
    gc.collect()
    grown = resident() - before
    tokens = exact.memory_tokens - tokens
    await exact.stop()
    return {
        "memory_bytes_per_token": grown / tokens,
        "memory_bytes_per_token_estimated": exact.memory_bytes / exact.memory_tokens,
        "memory_tokens": tokens,
    }


async def stalls(folder: Path) -> Figures:
    """The longest the event loop stood still while long prompts came for the first time."""
    exact = build(folder)
    bodies = [agent(Talk(500 + number), 200_000)[-1] for number in range(6)]
    garbage.settle()
    worst: list[float] = []
    spent: list[float] = []
    done = False

    async def tick() -> None:
        last, cpu = time.perf_counter(), time.thread_time()
        while not done:
            await asyncio.sleep(0)
            now, used = time.perf_counter(), time.thread_time()
            worst.append(now - last)
            spent.append(used - cpu)
            last, cpu = now, used

    ticking = asyncio.create_task(tick())
    started = time.perf_counter()
    for body in bodies:
        await prepared(exact, body)
    seconds = time.perf_counter() - started
    done = True
    await ticking
    await exact.stop()
    worst.sort()
    return {
        "first_time_longest_cpu_ms": 1e3 * max(spent),
        "first_time_longest_stall_ms": 1e3 * worst[-1],
        "first_time_stall_p999_ms": 1e3 * worst[int(len(worst) * 0.999)],
        "first_time_prompt_ms": 1e3 * seconds / len(bodies),
    }


def hashing() -> Figures:
    """Time of the block hashes of a long prompt, all of them new."""
    from router.kv_events.token_chain import chain

    tokens = array("I", range(HISTORY)).tobytes()

    def best(call: Callable[[], object]) -> float:
        times = []
        for _ in range(9):
            started = time.thread_time()
            call()
            times.append(time.thread_time() - started)
        return min(times)

    return {"hash_100k_tokens_ms": 1e3 * best(lambda: chain(tokens, BLOCK, 1))}


def main() -> None:
    """The command `python -m bench.exact`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, help="a folder with tokenizer.json and a template")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.model
        if folder is None:
            folder = make_model(Path(scratch), [Talk().text(600_000)], 12_000)
        found = events() | hashing()
        for part in (agent_step, memory, stalls):
            found |= asyncio.run(part(folder))
    for name, value in found.items():
        print(f"{name:36s} {value:14,.2f}")
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
