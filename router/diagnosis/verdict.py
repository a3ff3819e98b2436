"""Why a request's tokens were not taken from a cache: what the prompt itself changed, and what
became of what it kept."""

from __future__ import annotations

from typing import Final

import msgspec

from router.diagnosis.divergence import Change, Divergence
from router.diagnosis.fingerprint import Fingerprint
from router.prompt.spans import SPANS
from router.telemetry.ledger import deliverable
from router.telemetry.record import Finished

HIT: Final = "hit"
"""All that an earlier prompt left was used."""
NEVER: Final = "never_computed"
"""No earlier prompt is known that this one goes on with."""
EVICTED: Final = "evicted"
LOST: Final = "replica_lost"
"""The replica that computed it left the fleet, or restarted."""
ELSEWHERE: Final = "sent_elsewhere"
"""A replica held it, and the request went to another one for its load."""
RENDERED: Final = "rendered_differently"
"""The model's template put the prompt together in another way than the router thought."""

REASONS: Final = (
    HIT,
    NEVER,
    Change.MODEL,
    Change.SALT,
    Change.ARGUMENTS,
    Change.TOOLS,
    Change.SYSTEM,
    Change.MESSAGES,
    Change.COMPACTED,
    EVICTED,
    LOST,
    ELSEWHERE,
    RENDERED,
)
"""Every reason, which are the values of the label ``reason``."""


class ToolResult(msgspec.Struct, frozen=True, gc=False):
    """What a tool said, that a step added."""

    size: int
    """Canonical bytes."""
    digest: int


class Diagnosis(msgspec.Struct, eq=False, gc=False):
    """What is known of one request's prompt, from its coming to its end."""

    new: Fingerprint
    old: Fingerprint | None
    """The prompt that it is compared with; None where there is none."""
    divergence: Divergence | None
    session: str
    """The session's name, as the queue and the audit have it."""
    agent: str
    """Who asks, by its User-Agent: a name and the first number of its version."""
    field: str = ""
    """How the client asks for it: `ANTHROPIC`, `OPENAI`, or empty."""
    named: bool = False
    """It is compared with the response that the client named."""
    missing: bool = False
    """The response that the client named is not known."""
    answer: int = 0
    """Hash of the answer's id; 0 before it has come, or where nobody may name it."""
    reason: str = ""
    """A word of `REASONS`, once the request is over."""
    lost: dict[str, int] = msgspec.field(default_factory=dict)
    """Reason -> prompt tokens that were computed again for it."""
    context: bytes = b""
    """Text around the place, where `audit_text` asks for it."""
    looks_like: str = ""
    """What stands at the place: see `router.diagnosis.looks`."""
    grown: int = 0
    """Canonical bytes that it added to the prompt before; 0 where it does not go on with one."""
    results: tuple[ToolResult, ...] = ()
    """Of what it added."""
    tool: str = ""
    """The tool that was called last before it."""

    @property
    def missed(self) -> int:
        """Prompt tokens that an earlier request had computed and this one computed again."""
        return sum(self.lost.values())


ANTHROPIC: Final = "anthropic"
OPENAI: Final = "openai"


def shared_tokens(diagnosis: Diagnosis, tokens: float, delivered: int, block: int) -> float:
    """The prompt tokens that both prompts begin with.

    tokens: of the new prompt, 0 while not known. delivered: cached tokens as the engine counted
    them, -1 while not known. By bytes this is an estimate; where the engine delivered about as
    much, its count is the truth to a block.
    """
    old, divergence = diagnosis.old, diagnosis.divergence
    assert old is not None
    assert divergence is not None
    common = divergence.common
    if old.tokens:
        shared = old.tokens_of(common)
    elif tokens:
        shared = tokens * common / diagnosis.new.size
    else:
        return 0.0
    if delivered >= 0 and abs(delivered - shared) <= block + _NEAR * shared:
        return float(delivered)
    return shared


_NEAR: Final = 0.1


def missed_by_change(diagnosis: Diagnosis, tokens: float, delivered: int, block: int) -> int:
    """Tokens that would have been reused, had the prompt gone on as the earlier one did: at most
    those of it that were computed."""
    old, divergence = diagnosis.old, diagnosis.divergence
    if old is None or divergence is None or divergence.change in (Change.NONE, Change.NEW):
        return 0
    whole = old.tokens or (tokens * old.size / diagnosis.new.size if tokens else 0.0)
    shared = shared_tokens(diagnosis, tokens, delivered, block)
    # An engine reuses whole blocks, and never a whole prompt.
    kept = max(deliverable(shared, int(whole), block), float(delivered))
    length = int(tokens) or int(whole) + 1
    return int(max(0.0, deliverable(whole, length, block) - kept))


def judge(diagnosis: Diagnosis, done: Finished, *, alive: bool, block: int) -> None:
    """The request is over: find out why its tokens were computed again.

    alive: the replica that computed the earlier prompt is still there, with the cache it had.
    block: tokens of the engine's blocks.
    """
    old, divergence = diagnosis.old, diagnosis.divergence
    tokens, delivered = done.prompt_tokens, done.delivered
    if old is None or divergence is None or divergence.change == Change.NEW:
        diagnosis.reason = NEVER
        return
    if divergence.change == Change.NONE and 0 < old.tokens <= delivered + block:
        # The usual case: the engine had all of the prompt before.
        diagnosis.reason = HIT
        return
    lost = weigh(
        diagnosis,
        Levels(tokens, done.available, done.chosen, done.predicted, delivered),
        alive=alive,
        block=block,
        rendered=done.rendered_differently and not done.cache_full,
    )
    diagnosis.lost = {why: int(count) for why, count in lost.items()}
    diagnosis.reason = max(lost, key=lambda why: lost[why]) if lost else HIT


class Levels(msgspec.Struct, frozen=True, gc=False):
    """How many tokens of a prompt were, or are expected to be, at each step of its way: see
    `router.telemetry.record.Finished`."""

    tokens: float
    available: float
    chosen: float
    predicted: float
    delivered: int = -1


def weigh(
    diagnosis: Diagnosis, levels: Levels, *, alive: bool, block: int, rendered: bool = False
) -> dict[str, float]:
    """Reason -> prompt tokens that are computed again for it. For a prompt with an earlier one.

    rendered: what was promised and not delivered is put down to the template.
    """
    old, divergence = diagnosis.old, diagnosis.divergence
    assert old is not None
    assert divergence is not None
    tokens, delivered = levels.tokens, levels.delivered
    lost: dict[str, float] = {}
    changed = missed_by_change(diagnosis, tokens, delivered, block)
    if changed:
        lost[divergence.change] = changed
    # Of what is the same, how much did each step on its way keep?
    whole = old.tokens if divergence.change == Change.NONE else 0
    shared = whole or shared_tokens(diagnosis, tokens, delivered, block)
    shared = deliverable(min(shared, tokens), int(tokens), block)
    available = min(shared, levels.available)
    chosen = min(available, levels.chosen)
    slack = block + (0.0 if whole and delivered >= 0 else _SLACK * shared)
    if delivered < 0:
        # The index tells what is held in blocks of its own, which are larger.
        last = max(1, len(old.chain))
        slack += tokens * (SPANS[last] - SPANS[last - 1]) / diagnosis.new.size
    # What was delivered is not lost, whatever the index believed.
    gone = shared - delivered if delivered >= 0 else shared - chosen
    if gone <= slack:
        return lost
    nowhere = min(gone, shared - available)
    elsewhere = min(gone - nowhere, available - chosen)
    broken = gone - nowhere - elsewhere
    for why, count in (
        (EVICTED if alive else LOST, nowhere),
        (ELSEWHERE, elsewhere),
        (RENDERED if rendered else EVICTED if alive else LOST, broken),
    ):
        if count > 0.0:
            lost[why] = lost.get(why, 0.0) + count
    return lost


_SLACK: Final = 0.02
"""Share of a prompt that bytes may be off in telling its tokens."""
