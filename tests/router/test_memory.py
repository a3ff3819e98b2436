from __future__ import annotations

import msgspec

from router.memory import RecentMemory
from router.prompt import memory_bytes
from router.prompt.canonical import Memo
from router.prompt.chat import parse_chat


def test_it_stays_within_its_bound_and_keeps_what_is_used() -> None:
    memory: RecentMemory[str, bytes] = RecentMemory(4000, lambda _, value: len(value))
    memory.put("used", bytes(100))
    for number in range(500):
        assert memory.get("used") == bytes(100)
        memory.put(f"once {number}", bytes(100))
        assert memory.nbytes <= 4000
        assert memory.nbytes == 100 * len(memory)
    assert memory.get("once 0") is None
    assert memory.get("once 499") == bytes(100)


def test_what_is_too_large_pushes_nothing_out() -> None:
    memory: RecentMemory[str, bytes] = RecentMemory(4000, lambda _, value: len(value), largest=1000)
    memory.put("small", bytes(1000))
    memory.put("large", bytes(1001))
    assert memory.get("large") is None
    assert memory.get("small") == bytes(1000)


def test_a_memo_makes_a_result_once_while_it_is_used() -> None:
    made: list[bytes] = []

    def make(raw: msgspec.Raw) -> bytes:
        made.append(bytes(raw))
        return bytes(raw) * 10

    memo = Memo(make, 20_000)
    for number in range(300):
        assert memo(msgspec.Raw(b"used")) == b"used" * 10
        memo(msgspec.Raw(b"%d" % number))
        assert memo.nbytes <= 20_000
    assert made.count(b"used") == 1


def test_what_parsers_remember_is_counted() -> None:
    text = "caf\\u00e9 " * 50 + "of this test alone"
    body = f'{{"model":"m","messages":[{{"role":"user","content":"{text}"}}]}}'.encode()
    before = memory_bytes()
    parse_chat(body)
    grown = memory_bytes() - before
    assert grown > 50 * 6
    parse_chat(body)
    assert memory_bytes() - before == grown
