"""Decoding every encoding of KV events, the recorded frames among them."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from exact_events import NaiveHeld, packed

from router.kv_events.decode import Batch, Cleared, Removed, Stored, decode
from router.kv_events.sources import Source, parse_sources, sources_of
from router.kv_events.token_chain import chain, seed
from router.kv_events.token_index import TokenIndex

RECORDED = Path(__file__).parents[4] / "shared/vllm-cpu/kv_events_fixture.json"


def test_events_as_maps() -> None:
    payload = packed(
        {"type": "BlockStored", "block_hashes": [2**64 - 1], "parent_block_hash": None,
         "token_ids": [1, 2], "block_size": 2, "lora_id": None, "medium": "GPU",
         "lora_name": None, "extra_keys": [["salt"]], "group_idx": 0, "session_id": "s"},
        {"type": "BlockRemoved", "block_hashes": [7], "medium": "CPU"},
        {"type": "AllBlocksCleared"},
    )  # fmt: skip
    first, second, third = decode(payload).events
    assert isinstance(first, Stored)
    assert (first.block_hashes, first.extra_keys, first.group_idx) == ([2**64 - 1], [["salt"]], 0)
    assert isinstance(second, Removed)
    assert second.medium == "CPU"
    assert isinstance(third, Cleared)


def test_events_as_arrays_of_older_engines() -> None:
    payload = packed(
        ["BlockStored", [b"a" * 32], b"b" * 32, [1, 2], 2, None],
        ["BlockStored", [5], 4, [1, 2], 2, 1, "GPU", "ada"],
        ["BlockRemoved", [b"a" * 32]],
        ["BlockRemoved", [5], "GPU"],
        ["AllBlocksCleared"],
    )
    batch = decode(payload)
    stored = batch.events[0]
    assert isinstance(stored, Stored)
    assert stored.parent_block_hash == b"b" * 32
    adapter = batch.events[1]
    assert isinstance(adapter, Stored)
    assert adapter.lora_name == "ada"
    assert isinstance(batch.events[2], Removed)
    assert isinstance(batch.events[4], Cleared)


def test_a_batch_without_a_rank() -> None:
    assert decode(msgspec.msgpack.encode([1.0, []])).data_parallel_rank is None


def test_events_of_kinds_not_known_are_left_out() -> None:
    batch = decode(packed({"type": "BlockMoved", "x": 1}, {"type": "AllBlocksCleared"}))
    assert [type(event) for event in batch.events] == [Cleared]


def test_a_batch_as_a_map() -> None:
    payload = msgspec.msgpack.encode(
        {
            "ts": 1.5,
            "events": [{"type": "BlockMoved"}, {"type": "BlockRemoved", "block_hashes": [7]}],
            "data_parallel_rank": 1,
            "new": None,
        }
    )
    batch = decode(payload)
    assert (batch.time, batch.data_parallel_rank) == (1.5, 1)
    assert batch.events == [Removed([7])]


DEEP = msgspec.Raw(b"\x91" * 10_000 + b"\xc0")
STORED = {
    "type": "BlockStored", "block_hashes": [1], "parent_block_hash": None, "token_ids": [1],
    "block_size": 1,
}  # fmt: skip


@pytest.mark.parametrize(
    "payload",
    [
        packed({**STORED, "extra_keys": [[DEEP]]}),
        packed(["BlockStored", [1], None, [1], 1, None, None, None, [[DEEP]]]),
        packed({"type": "BlockMoved", "to": DEEP}),
        msgspec.msgpack.encode({"ts": 1.0, "events": [DEEP]}),
    ],
)
def test_a_batch_nested_too_deeply_is_refused(payload: bytes) -> None:
    with pytest.raises(ValueError, match=r"not .* recursion"):
        decode(payload)


@pytest.mark.parametrize(
    "payload",
    [b"", b"\xc1", b"\x01", packed({"type": "BlockStored", "block_hashes": "x"}), packed([])[:-1]],
)
def test_what_is_no_batch_is_refused(payload: bytes) -> None:
    with pytest.raises(ValueError, match="not"):
        decode(payload)


def test_sources_as_an_engine_tells_them() -> None:
    body = json.dumps(
        {
            "1": {"endpoint": "tcp://*:6", "replay_endpoint": "tcp://*:8", "topic": "kv",
                  "enable_kv_cache_events": True, "publisher": "zmq", "hwm": 1},
            "0": {"endpoint": "tcp://10.0.0.9:5", "replay_endpoint": None, "topic": ""},
            "2": {"endpoint": "tcp://*:7", "enable_kv_cache_events": False},
        }
    ).encode()  # fmt: skip
    assert parse_sources(body, "::1") == [
        Source(0, "tcp://10.0.0.9:5", True, "", ""),
        Source(1, "tcp://[::1]:6", False, "tcp://[::1]:8", "kv"),
    ]
    for other in (b"[]", b"{", b'{"x": {"endpoint": "y"}}'):
        with pytest.raises(ValueError, match="something else"):
            parse_sources(other, "h")


def test_sources_as_set() -> None:
    assert sources_of("tcp://{host}:50", "tcp://{host}:60", "t", 2, "a") == [
        Source(0, "tcp://a:50", False, "tcp://a:60", "t"),
        Source(1, "tcp://a:51", False, "tcp://a:61", "t"),
    ]
    (bound,) = sources_of("tcp://0.0.0.0:50", "", "", 1, "a")
    assert bound.bind


needs_recording = pytest.mark.skipif(not RECORDED.exists(), reason=f"there is no {RECORDED}")


def _cases() -> Iterator[tuple[str, list[dict[str, Any]]]]:
    recorded = json.loads(RECORDED.read_text())
    yield "integers", recorded["int_hashes"]
    yield "bytes", recorded["bytes_hashes"]["cases"]
    yield "lora", recorded["lora"]
    yield "ranks", recorded["dp2"]


@needs_recording
def test_every_recorded_frame_decodes_and_the_index_equals_a_naive_model() -> None:
    frames = 0
    for _, cases in _cases():
        index = TokenIndex()
        for rank in range(2):
            index.add_replica(rank)
        naive: dict[int, NaiveHeld] = {}
        prompts: set[tuple[str, str, tuple[int, ...]]] = set()
        for case in cases:
            for request in case["requests"]:
                tokens = request.get("prompt_token_ids")
                if tokens:
                    body = request["body"]
                    adapter = body["model"] if body["model"] != "tiny" else ""
                    prompts.add((adapter, body.get("cache_salt", ""), tuple(tokens)))
            for frame in case["frames"]:
                frames += 1
                batch = decode(bytes.fromhex(frame["hex"][-1]))
                rank = batch.data_parallel_rank or 0
                index.apply(rank, batch)
                for event in batch.events:
                    held = naive.setdefault(rank, NaiveHeld())
                    if isinstance(event, Stored):
                        held.store(event)
                    elif isinstance(event, Removed):
                        held.remove(event)
                    else:
                        held.copies.clear()
            _compare(index, naive, prompts)
    assert frames > 30


def _compare(
    index: TokenIndex, naive: dict[int, NaiveHeld], prompts: set[tuple[str, str, tuple[int, ...]]]
) -> None:
    size = index.block(0) or 32
    for adapter, salt, tokens in prompts:
        words = tuple(word for word in (adapter, salt) if word)
        hashes = chain(array("I", tokens).tobytes(), size, seed(adapter, salt))
        found = index.match(hashes, size, -1)
        for rank, held in naive.items():
            depth = max((depth for depth, mask in found if mask >> rank & 1), default=0)
            assert depth == held.depth(tokens, size, (words, adapter or None))


@needs_recording
def test_recorded_replay_messages_are_understood() -> None:
    replay = json.loads(RECORDED.read_text())["replay"]
    assert isinstance(decode(bytes.fromhex(replay["first_reply_hex"][-1])), Batch)
