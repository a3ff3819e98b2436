"""Why tokens were computed again that the prompt itself did not change; and what is kept."""

from __future__ import annotations

import json
import random
import tracemalloc
from dataclasses import dataclass
from typing import Any

import pytest

from router.diagnosis import REASONS, Diagnoser, Diagnosis
from router.diagnosis.agents import agent_of, origin_of, session_name
from router.prompt import PARSERS
from router.prompt.spans import SPANS
from router.telemetry.record import Finished
from router.types import Effect, TemplateTraits

BLOCK = 16
TOKENS = 1600


@dataclass
class Engine:
    name: str = "a"
    slot: int = 0
    block_tokens: int = BLOCK
    restarts: int = 0


class World:
    """A diagnoser, and a fleet that may change."""

    def __init__(self, memory: int = 64 << 20, **options: Any) -> None:
        self.fleet: list[Engine | None] = [Engine("a", 0), Engine("b", 1)]
        self.diagnoser = Diagnoser(memory, lambda: self.fleet, **options)

    def ask(self, *said: str, session: str = "s", tenant: str = "", **body: Any) -> Diagnosis:
        messages = [
            {"role": ("user", "assistant")[number % 2], "content": text}
            for number, text in enumerate(said)
        ]
        raw = json.dumps({"model": "m", "messages": messages, **body}).encode()
        prompt = PARSERS["/v1/chat/completions"](raw)
        return self.diagnoser.asked(prompt, prompt.text, [], session.encode(), tenant, "chat")

    def end(self, found: Diagnosis, slot: int = 0, **levels: Any) -> Finished:
        done = Finished("r", slot=slot, status=200)
        for name, value in {"prompt_tokens": TOKENS, **levels}.items():
            setattr(done, name, value)
        engine = self.fleet[slot]
        assert engine is not None
        done.replica = engine.name
        self.diagnoser.ended(found, done, engine)
        return done


def levels(available: int, chosen: int, predicted: int, delivered: int) -> dict[str, int]:
    return {
        "available": available,
        "chosen": chosen,
        "predicted": predicted,
        "delivered": delivered,
    }


FIRST = "hello there " * 500


@pytest.mark.parametrize(
    ("got", "reason", "lost"),
    [
        (levels(1600, 1600, 1600, 1600), "hit", {}),
        (levels(0, 0, 0, 0), "evicted", {"evicted": 1600}),
        (levels(1600, 0, 0, 0), "sent_elsewhere", {"sent_elsewhere": 1600}),
        (levels(1600, 1600, 1600, 320), "evicted", {"evicted": 1280}),
        (
            levels(1000, 200, 200, 0),
            "evicted",
            {"evicted": 600 + 200, "sent_elsewhere": 800},
        ),
        # What was delivered is not lost, whatever the index believed.
        (levels(0, 0, 0, 1600), "hit", {}),
    ],
)
def test_what_became_of_what_was_the_same(
    got: dict[str, int], reason: str, lost: dict[str, int]
) -> None:
    world = World()
    world.end(world.ask(FIRST))
    done = world.end(world.ask(FIRST, "yes", "go on"), prompt_tokens=1700, **got)
    assert (done.miss_reason, dict(done.lost)) == (reason, lost)
    assert done.missed_tokens == sum(lost.values())


def test_a_replica_that_left_or_restarted() -> None:
    world = World()
    world.end(world.ask(FIRST))
    world.fleet[0] = None
    done = world.end(world.ask(FIRST, "yes", "go on"), 1, prompt_tokens=1700, delivered=0)
    assert done.miss_reason == "replica_lost"
    engine = world.fleet[1]
    assert engine is not None
    engine.restarts += 1
    done = world.end(
        world.ask(FIRST, "yes", "go on", "ok", "more"), 1, prompt_tokens=1800, delivered=0
    )
    assert (done.miss_reason, done.missed_tokens) == ("replica_lost", 1696)


def test_rendered_differently() -> None:
    world = World()
    world.end(world.ask(FIRST))
    done = world.end(
        world.ask(FIRST, "yes", "go on"),
        prompt_tokens=1700,
        rendered_differently=True,
        **levels(1600, 1600, 1600, 320),
    )
    assert (done.miss_reason, done.missed_tokens) == ("rendered_differently", 1280)


def test_reasons_are_bounded_and_counted() -> None:
    world = World()
    world.end(world.ask(FIRST))
    world.end(world.ask("other " + FIRST[6:], cache_salt="x"), delivered=0)
    assert set(world.diagnoser.requests) == set(REASONS) == set(world.diagnoser.tokens)
    assert sum(world.diagnoser.requests.values()) == 2


def test_an_answer_that_failed_is_no_prompt_to_compare_with() -> None:
    world = World()
    found = world.ask(FIRST)
    engine = world.fleet[0]
    world.diagnoser.ended(found, Finished("r", status=500), engine)
    assert world.ask(FIRST, "yes", "go on").old is None
    assert len(world.diagnoser.memory) == 0


def test_tenants_are_never_compared() -> None:
    world = World()
    world.end(world.ask(FIRST, tenant="a"))
    assert world.ask(FIRST, "yes", "go on", tenant="b").old is None
    assert world.ask(FIRST, "yes", "go on", tenant="a").old is not None


def test_no_text_is_kept_unless_it_is_asked_for() -> None:
    secret = "the password is swordfish"
    for text_bytes, kept in ((0, ""), (64, "swordfish")):
        world = World(text_bytes=text_bytes)
        world.end(world.ask(FIRST + secret))
        found = world.ask(FIRST + secret + " now", "a", "b")
        done = world.end(found, delivered=0)
        assert (kept in done.context) if kept else done.context == ""
        assert secret.encode() not in repr(found.new).encode()


def test_memory_is_bounded() -> None:
    rng = random.Random(1)
    limit = 1 << 20
    world = World(memory=limit)
    for number in range(400):
        found = world.ask("".join(rng.choices("abc ", k=20_000)), session=f"s{number}")
        world.diagnoser.answer_named(found, f"answer {number}")
        world.end(found)
    memory = world.diagnoser.memory
    assert memory.nbytes <= limit
    assert 10 < len(memory) < 400
    # The latest are there, by session and by name, and the first are gone.
    assert memory.lines("", found.session)
    for shelf in memory._shelves.values():
        assert len(shelf.by_session) == len(memory)
        assert len(shelf.by_tail) <= len(memory)
        assert len(shelf.by_block) <= 8 * len(memory)


def test_a_conversation_takes_the_memory_of_its_latest_prompt() -> None:
    world = World()
    said: list[str] = []
    for number in range(40):
        said += [f"question {number} " * 100, f"answer {number} " * 50]
        world.end(world.ask(*said[:-1]))
    assert len(world.diagnoser.memory) == 1
    other = World()
    other.end(other.ask(*said[:-1]))
    assert world.diagnoser.memory.nbytes < 1.2 * other.diagnoser.memory.nbytes


@pytest.mark.parametrize(
    ("session", "key", "expected"),
    [
        ("", "", ("", True)),
        ("", "bucket", ("bucket", True)),
        ("own", "bucket", ("own", False)),
        (
            "",
            "user_1_account__session_0a1b2c3d-1111-2222-3333-444455556666",
            ("0a1b2c3d-1111-2222-3333-444455556666", False),
        ),
    ],
)
def test_the_order_of_what_names_a_session(
    session: str, key: str, expected: tuple[str, bool]
) -> None:
    origin = origin_of([b"User-Agent", b"curl/8.1"], session.encode(), key)
    assert (origin.session, origin.weak, origin.agent) == (*expected, "curl")


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (b"claude-cli/2.1.0 (external, cli)", "claude-cli"),
        (b"AsyncOpenAI/Python 3.57.0", "AsyncOpenAI/Python"),
        (b"curl/8.1", "curl"),
        (b"<script>", ""),
        (b"", ""),
    ],
)
def test_agents_are_named_without_version(given: bytes, name: str) -> None:
    assert agent_of(given) == name


def test_what_was_delivered_all_the_same_was_not_missed() -> None:
    """Another session had computed the changed prompt before."""
    world = World()
    world.end(world.ask(FIRST, "yes", "go on"))
    done = world.end(world.ask("other " + FIRST[6:], "yes", "go on"), delivered=1584)
    assert (done.miss_reason, done.missed_tokens) == ("hit", 0)


def test_two_that_go_on_with_the_same_prompt_at_once() -> None:
    """They share its hashes, and not each other's."""
    world = World()
    world.end(world.ask(FIRST))
    one, two = world.ask(FIRST, "yes", "left " * 60), world.ask(FIRST, "yes", "right " * 50)
    for found in (one, two):
        assert found.divergence is not None
        assert found.divergence.change == ""
        world.end(found)
    assert one.new.parts == two.new.parts == len(two.new.hashes)
    third = world.ask(FIRST, "yes", "right " * 50 + "and on", session="other")
    assert third.divergence is not None
    assert third.divergence.part == "message 3 part 1"
    assert third.old is two.new
    assert third.divergence.common >= two.new.size - 64


def test_what_the_index_cannot_tell_is_not_foreseen_as_lost() -> None:
    """Its blocks are larger than the engine's, so that a prompt's end is in none of them."""
    world = World()
    first = FIRST + "x" * 100
    old = world.ask(first)
    world.end(old)
    found = world.ask(first, "yes", "go on")
    blocks, tokens = len(old.new.chain), TOKENS + 10.0
    size = found.new.size
    held = tokens * SPANS[blocks] / size
    assert TOKENS - held > BLOCK + 0.02 * TOKENS
    told = world.diagnoser.foreseen(found, tokens, held, held, BLOCK)
    assert told[1] == b"hit"
    held = tokens * SPANS[blocks - 2] / size
    told = world.diagnoser.foreseen(found, tokens, held, held, BLOCK)
    assert told[1] == b"evicted"


def test_names_that_a_client_chooses_are_fit_for_headers() -> None:
    """Of template arguments whose effect is known: they are in the prompt's seed."""
    name = "evil\r\nx: y" + "z" * 100
    traits = TemplateTraits(
        known=True, arguments={f"kwargs:{name}=1".encode(): Effect(head=b"other head")}
    )
    world = World()
    world.end(world.ask(FIRST))
    messages = [{"role": "user", "content": FIRST}, {"role": "assistant", "content": "yes"}]
    body = {"model": "m", "messages": messages, "chat_template_kwargs": {name: 1}}
    prompt = PARSERS["/v1/chat/completions"](json.dumps(body).encode(), {"m": traits})
    found = world.diagnoser.asked(prompt, prompt.text, [], b"s", "", "chat")
    assert found.divergence is not None
    assert found.divergence.change == "arguments_changed"
    assert found.divergence.part.startswith("template argument evil??x??yzzz")
    assert len(found.divergence.part) < 80
    for told in world.diagnoser.foreseen(found, 1000.0, 0.0, 0.0, BLOCK):
        assert b"\r" not in told
        assert b"\n" not in told


def test_long_names_of_clients_are_not_kept() -> None:
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(500):
            long = f"{number}-".ljust(8192, "x")
            assert session_name("", long) == session_name("", long)
            origin_of([b"User-Agent", b"agent/" + long.encode()], b"", "")
        assert tracemalloc.get_traced_memory()[0] - before < 500 * 1024
    finally:
        tracemalloc.stop()
