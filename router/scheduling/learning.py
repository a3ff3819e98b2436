"""Learns from finished requests: how fast a replica prefills and decodes, how many bytes a model's
tokens have, and how long its answers are."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence

import msgspec

from router.prompt.prompt import MEDIA_BYTES
from router.types import STEP_REQUEST_SECONDS, STEP_TOKEN_SECONDS, Load

MIN_PREFILL_TOKENS = 512.0
"""A prefill shorter than this says more about overheads than about speed."""
MIN_OUTPUT_TOKENS = 8
"""An answer shorter than this says more about the steps that others' prefills were in."""
SAMPLE_MEMORY = 100.0
"""A sample so many samples ago counts for 1/e."""
MAX_SAMPLE_RATIO = 2.0
"""A sample counts as at most so many times what was expected: one that waited for something else
must not undo what the others say, and a replica that has become slow is still found out."""
PREFILL_SPREAD_TOKENS = 256.0
DECODE_SPREAD_S = 0.0005
"""Spread of the samples' causes, in tokens and in seconds. The further the causes are apart beyond
this, the more the fit separates a constant part from a part that grows with the cause."""
STEPS_PER_DOUBLING = 4
"""Speeds are published in steps of 19%, so that replicas alike look alike and ties between them
stay ties."""
WARM_UP_SAMPLES = 8
ALIKE_STEPS = 2
"""Replicas whose speeds are at most so many steps from the median are taken to be alike: 41%."""
PUBLISH_AFTER_SAMPLES = 64
"""Samples after which speeds are published anyway, for replicas that have joined."""

_MOST_TEXT = 8.0
"""A prompt with more text than so many times its media tells nothing of them."""
_MOST_MEDIA_SEEN = 64.0
"""Old media count less: about the last so many prompts with any matter."""


class Line:
    """Fits seconds = start + slope * cause by least squares, in which old samples count less."""

    __slots__ = ("_spread", "_weight", "_x", "_xx", "_xy", "_y", "samples", "slope", "start")

    def __init__(self, spread: float, slope: float) -> None:
        """slope: the slope assumed while the causes differ by less than `spread`. 0: all of the
        seconds are taken to grow with the cause."""
        self._spread = spread
        self._weight = self._x = self._y = self._xx = self._xy = 0.0
        self.samples = 0
        self.slope = slope
        self.start = 0.0

    def saw(self, x: float, y: float, slope: float) -> None:
        """Take in one sample, with cause and seconds above 0. slope: as in __init__."""
        self.samples += 1
        if self.samples > WARM_UP_SAMPLES:
            y = min(y, MAX_SAMPLE_RATIO * (self.start + self.slope * x))
        keep = 1.0 - 1.0 / SAMPLE_MEMORY
        weight = self._weight = self._weight * keep + 1.0
        sum_x = self._x = self._x * keep + x
        sum_y = self._y = self._y * keep + y
        self._xx = self._xx * keep + x * x
        self._xy = self._xy * keep + x * y
        prior = (weight * self._spread) ** 2
        found = weight * self._xy - sum_x * sum_y + prior * (slope or sum_y / sum_x)
        found /= weight * self._xx - sum_x * sum_x + prior
        if not 0.0 < found * sum_x < sum_y:
            found = slope if 0.0 < slope * sum_x < sum_y else sum_y / sum_x
        self.slope = found
        self.start = (sum_y - found * sum_x) / weight


class SpeedLearner:
    """How fast one replica is.

    The time to a first token is an overhead (the step in progress, reading the weights, decoding
    beside it) plus the prompt's own share, which gives the prefill speed. The time for a further
    token is a step's base plus what the requests in flight add to it.
    """

    __slots__ = ("_decode", "_prefill", "load", "steps")

    def __init__(self, load: Load) -> None:
        self.load = load
        self._prefill = Line(PREFILL_SPREAD_TOKENS, 1.0 / load.prefill_rate)
        self._decode = Line(DECODE_SPREAD_S, 1.0)
        self.steps: list[int | None] = [None, None, None]
        """Prefill speed, base of a decode step, and what those in flight add to one as a multiple
        of the defaults: log2, in steps, with hysteresis; None while unknown."""

    def saw_prefill(self, uncached: float, seconds: float) -> bool:
        """A prefill of `uncached` tokens took `seconds` from being sent to its first token. True
        when a speed has changed and should be published."""
        line = self._prefill
        line.saw(uncached, seconds, 0.0)
        return line.samples >= WARM_UP_SAMPLES and self._tell(0, 1.0 / line.slope)

    def usual_prefill(self, uncached: float) -> float:
        """Seconds from sending a prompt to its first token, where nothing else waits there."""
        learned = self.expected_prefill(uncached)
        return uncached / self.load.prefill_rate if learned is None else learned

    def expected_prefill(self, uncached: float) -> float | None:
        """See `Speeds.expected_prefill`."""
        line = self._prefill
        return line.start + line.slope * uncached if line.samples >= WARM_UP_SAMPLES else None

    def saw_decode(self, expected: float, seconds: float) -> bool:
        """One token took `seconds` on average, where those in flight add `expected` by default."""
        line = self._decode
        line.saw(expected, seconds, 1.0)
        if line.samples < WARM_UP_SAMPLES:
            return False
        base = self._tell(1, max(line.start, 1e-4))
        return self._tell(2, line.slope) or base

    def _tell(self, which: int, value: float) -> bool:
        exact = math.log2(value) * STEPS_PER_DOUBLING
        before = self.steps[which]
        if before is not None and abs(exact - before) <= 0.75:
            return False
        self.steps[which] = round(exact)
        return True


class Speeds:
    """The speeds of a fleet, published to its loads.

    Replicas are taken to be as fast as the median of those that are known, unless they are clearly
    not. Were each given its own estimate, the one that happened to seem fastest would get every
    request that is cached nowhere while the fleet has little to do, and the others, not asked,
    would never be known.
    """

    __slots__ = ("_learners", "_loads", "_seen")

    def __init__(self, loads: Sequence[Load]) -> None:
        """`loads` are by slot and shared with the fleet."""
        self._loads = loads
        self._learners: dict[int, SpeedLearner] = {}
        self._seen = 0

    def saw_prefill(self, slot: int, uncached: float, seconds: float) -> None:
        """Take in a prefill that is long enough to tell: see `SpeedLearner.saw_prefill`."""
        if uncached >= MIN_PREFILL_TOKENS and seconds > 0.0:
            self._saw(self._learner(slot).saw_prefill(uncached, seconds))

    def expected_prefill(self, slot: int, uncached: float) -> float | None:
        """Seconds from sending such a prefill to an idle queue to its first token; None while too
        few were seen."""
        learner = self._learners.get(slot)
        if learner is None or learner.load is not self._loads[slot]:
            return None
        return learner.expected_prefill(uncached)

    def saw_decode(self, slot: int, expected: float, seconds: float) -> None:
        """Take in an answer's mean seconds a token: see `SpeedLearner.saw_decode`."""
        if expected > 0.0 and seconds > 0.0:
            self._saw(self._learner(slot).saw_decode(expected, seconds))

    def usual_prefill(self, slot: int, uncached: float) -> float:
        """See `SpeedLearner.usual_prefill`."""
        return self._learner(slot).usual_prefill(uncached)

    def _learner(self, slot: int) -> SpeedLearner:
        load = self._loads[slot]
        learner = self._learners.get(slot)
        if learner is None or learner.load is not load:
            learner = self._learners[slot] = SpeedLearner(load)
        return learner

    def _saw(self, changed: bool) -> None:
        self._seen += 1
        if changed or not self._seen % PUBLISH_AFTER_SAMPLES:
            self._publish()

    def _publish(self) -> None:
        loads = self._loads
        learners = {
            slot: learner
            for slot, learner in self._learners.items()
            if slot < len(loads) and learner.load is loads[slot]
        }
        for which in range(3):
            known = {
                slot: step
                for slot, learner in learners.items()
                if (step := learner.steps[which]) is not None
            }
            if not known:
                continue
            usual = sorted(known.values())[len(known) // 2]
            for slot, load in enumerate(loads):
                step = known.get(slot, usual)
                if abs(step - usual) <= ALIKE_STEPS:
                    step = usual
                value = 2.0 ** (step / STEPS_PER_DOUBLING)
                if which == 0:
                    load.prefill_rate = value
                elif which == 1:
                    load.step_seconds = value
                else:
                    load.step_request_seconds = STEP_REQUEST_SECONDS * value
                    load.step_token_seconds = STEP_TOKEN_SECONDS * value


BYTES_PER_TOKEN = 4.0
"""Canonical prompt bytes for each prompt token, until a model's usage has been seen."""


class ModelFacts(msgspec.Struct, gc=False):
    """Means over a model's finished requests. Old ones count less: about the last few hundred
    requests matter."""

    bytes_per_token: float = BYTES_PER_TOKEN
    """Canonical prompt bytes for each prompt token."""
    output_tokens: float = 256.0
    """The mean number of tokens in an answer."""
    media_tokens: float = MEDIA_BYTES / BYTES_PER_TOKEN
    """The mean number of tokens of an image, a sound or a film."""
    _media: float = 0.0
    _text_seen: bool = False
    _prompt_tokens: float = 2_000.0
    _prompt_bytes: float = 8_000.0
    _answers: float = 1.0

    def saw_prompt(self, size: int, tokens: int) -> None:
        """Learn from a prompt of `size` canonical bytes that was `tokens` tokens long."""
        self._text_seen = True
        self._saw(size, tokens)

    def _saw(self, size: int, tokens: int) -> None:
        seen_tokens = self._prompt_tokens + tokens
        seen_bytes = self._prompt_bytes + size
        if seen_tokens > 1_000_000.0:
            seen_tokens *= 0.5
            seen_bytes *= 0.5
        self._prompt_tokens = seen_tokens
        self._prompt_bytes = seen_bytes
        self.bytes_per_token = seen_bytes / seen_tokens

    def tokens_of(self, size: float, media: int) -> float:
        """The estimated tokens of so many canonical bytes, with so many media among them."""
        return (size - media * MEDIA_BYTES) / self.bytes_per_token + media * self.media_tokens

    def begins(self, size: float, ends: Sequence[int]) -> float:
        """The estimated tokens of the first `size` bytes of a prompt. ends: where its media do.
        Of one that is cut in two nothing counts."""
        media = bisect_right(ends, size)
        if media < len(ends):
            size = min(size, ends[media] - MEDIA_BYTES)
        return self.tokens_of(size, media)

    def saw_media(self, size: int, media: int, tokens: int) -> None:
        """Learn from a prompt with media that was `tokens` tokens long: what its text does not
        explain is theirs. The text's own ratio is learned from prompts without any, where some
        come."""
        if not self._text_seen:
            self._saw(size, tokens)
        text = (size - media * MEDIA_BYTES) / self.bytes_per_token
        if text > _MOST_TEXT * media * max(self.media_tokens, MEDIA_BYTES / BYTES_PER_TOKEN):
            return  # an error in the text's ratio would be larger than what is learned
        seen = min(self._media + 1.0, _MOST_MEDIA_SEEN)
        self._media = seen
        each = max((tokens - text) / media, 1.0)
        self.media_tokens += (each - self.media_tokens) / seen

    def saw_answer(self, tokens: int) -> None:
        """Learn from an answer that ended after `tokens` tokens."""
        answers = self._answers
        if answers < 256.0:
            self._answers = answers + 1.0
        self.output_tokens += (tokens - self.output_tokens) / (answers + 1.0)
