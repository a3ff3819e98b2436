"""Where prompts part from the ones before, on conversations in the shapes of real agents."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from labelled import Ask, Case, cases, is_named

from router.diagnosis import Diagnoser, Diagnosis
from router.diagnosis.divergence import Change
from router.diagnosis.fingerprint import GRAIN
from router.prompt import PARSERS, Prompt
from router.telemetry.record import Finished

APIS = {"/v1/chat/completions": "chat", "/v1/responses": "responses", "/v1/messages": "messages"}
BYTES_PER_TOKEN = 4
BLOCK = GRAIN // BYTES_PER_TOKEN


@dataclass
class Engine:
    name: str = "a"
    slot: int = 0
    block_tokens: int = BLOCK
    restarts: int = 0


def asked(diagnoser: Diagnoser, ask: Ask) -> tuple[Diagnosis, Prompt]:
    prompt = PARSERS[ask.path](ask.raw)
    headers = [part.encode() for pair in ask.headers.items() for part in pair]
    found = diagnoser.asked(prompt, prompt.text, headers, b"", "", APIS[ask.path])
    return found, prompt


def ended(diagnoser: Diagnoser, found: Diagnosis, engine: Engine) -> Finished:
    """As if the engine had delivered nothing but what was the same."""
    done = Finished("r", slot=0, replica="a", status=200)
    done.prompt_tokens = found.new.size // BYTES_PER_TOKEN
    done.available = done.chosen = done.predicted = float(done.prompt_tokens)
    diagnoser.ended(found, done, engine)
    return done


def common(one: bytes, other: bytes) -> int:
    """Bytes that two texts begin with."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if one[:middle] == other[:middle] else (low, middle - 1)
    return low


def wrong(case: Case) -> str:
    """What is wrong with the diagnosis of a case; empty for nothing."""
    engine = Engine()
    diagnoser = Diagnoser(64 << 20, lambda: [engine])
    texts = []
    for ask in case.before:
        found, prompt = asked(diagnoser, ask)
        texts.append(prompt.text)
        ended(diagnoser, found, engine)
    found, prompt = asked(diagnoser, case.ask)
    divergence = found.divergence
    if case.change == Change.NEW:
        new = divergence is None or divergence.change == Change.NEW
        return "" if new else f"is taken for {divergence}"
    if divergence is None:
        return "nothing to compare with"
    if divergence.change != case.change:
        return f"{divergence} is not {case.change}"
    if case.part and not is_named(divergence.part, case.part):
        return f"{divergence.part} is not {case.part}"
    if case.looks not in ("*", found.looks_like):
        return f"looks like {found.looks_like}, not {case.looks}"
    done = ended(diagnoser, found, engine)
    old = texts[case.compared]
    same = 0 if case.part in ("model", "salt") else common(old, prompt.text)
    if case.change == Change.NONE:
        return "" if not done.missed_tokens else f"missed {done.missed_tokens}"
    missed = (
        min(len(old), len(prompt.text)) // BYTES_PER_TOKEN // BLOCK * BLOCK - same // GRAIN * BLOCK
    )
    if abs(done.missed_tokens - missed) > BLOCK:
        return f"{done.missed_tokens} tokens missed, not {missed} ({divergence}, {same})"
    return "" if done.miss_reason == case.change or not missed else f"reason {done.miss_reason}"


def test_the_labelled_set():
    every = list(cases(seed=7, each=8))
    failed = [(case, why) for case in every if (why := wrong(case))]
    counts = Counter((case.shape, case.kind) for case, _ in failed)
    print(f"{len(every) - len(failed)} of {len(every)} right; wrong: {dict(counts)}")
    for case, why in failed[:20]:
        print(case.shape, case.kind, why)
    assert len(every) > 800
    assert len(failed) <= 0.01 * len(every)
