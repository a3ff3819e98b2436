"""A trace of any format as a workload."""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Iterator
from itertools import count, islice
from typing import Annotated

import msgspec

from loadgen.workloads.draw import Zipf, rng
from loadgen.workloads.traces.format import Format
from loadgen.workloads.traces.formats.lengths import layout
from loadgen.workloads.traces.recognise import find, sources
from loadgen.workloads.traces.recorded import Reading, Recorded, Recording, TraceError
from loadgen.workloads.traces.segments import (
    ByBytes,
    ByTokenizer,
    Measures,
    answer_of,
    load_tokenizer,
    named,
    prompt_of,
)
from loadgen.workloads.traces.source import Source
from loadgen.workloads.types import (
    Count,
    Exponent,
    Prompt,
    Role,
    Seconds,
    Segment,
    Session,
    Share,
    Step,
    Tokens,
)

WINDOW = 10_000
"""Sessions that are held to put them in the order of their times."""
_SESSIONS = 100_000
"""Sessions by name whose last prompt is remembered."""
_NotNegative = Annotated[int, msgspec.Meta(ge=0)]


class Trace(msgspec.Struct, frozen=True, kw_only=True):
    """Sessions as a file has them. Real prompts are sent as they are.

    Of prompts that are only told by their length, reuse is an assumption: `shared` of each prompt
    is one of `prefixes` common beginnings (by Zipf's law), and a prompt of a session continues the
    one before it."""

    path: str
    """A file, a folder of them, or hf:NAME."""
    name: str = "trace"
    has_times: bool = False
    columns: dict[str, str] = {}
    unit: str = "auto"
    """Of numbers that are times: s, ms, us, or found out."""
    block_tokens: _NotNegative = 0
    """Tokens of one of hash_ids; 0: found out."""
    tokenizer: str = ""
    """The model's: a tokenizer.json, its folder, or a name on the Hugging Face hub; without one
    texts are weighed by bytes_per_token."""
    bytes_per_token: Annotated[float, msgspec.Meta(gt=0, le=64)] = 4.0
    image_tokens: Count = 576
    """Of one image, which only the model knows."""
    output_tokens: Tokens = 128
    """Of an answer where the trace tells neither its length nor its text."""
    most_tokens: _NotNegative = 0
    """Leave out sessions with longer prompts; 0 keeps all."""
    most_steps: _NotNegative = 0
    """Requests taken of each session; 0 takes all."""
    shared: Share = 0.0
    prefixes: Count = 20
    zipf: Exponent = 1.0
    pause: Seconds = 0.0
    """Between the steps of a session where the trace tells none."""

    @property
    def timed(self) -> bool:
        """Sessions carry their own arrival times."""
        return self.has_times

    @property
    def group(self) -> int:
        """Each arrives on its own."""
        return 1

    @property
    def assumptions(self) -> list[str]:
        """What was not in the trace, in sentences."""
        said = []
        few = [each for recording in islice(self._recordings(), 200) for each in recording]
        if any(each.content is None and not each.blocks for each in few):
            if self.shared:
                said.append(
                    f"the trace tells lengths only: {self.shared:.0%} of each prompt is assumed to "
                    f"be one of {self.prefixes} common beginnings (--set shared=, prefixes=)"
                )
            else:
                said.append(
                    "the trace tells lengths only: prompts are assumed to share nothing but what "
                    "continues a session (--set shared=0.5 assumes that half of each is common)"
                )
        if any(not each.output_tokens and each.answer is None for each in few):
            said.append(
                f"some answers' lengths are not told: {self.output_tokens} tokens are assumed "
                "(--set output_tokens=N)"
            )
        if self.name == "lengths" and self.has_times and self._in_milliseconds(few):
            said.append(
                "times are whole numbers and are taken for milliseconds (--set unit=s where they "
                "are seconds, as in guidellm's traces)"
            )
        if self.name == "claude-code":
            said.append(
                "the system prompt and the tools are not in the file: a text as long as the usage "
                "tells stands in their place"
            )
        return said

    def _in_milliseconds(self, few: list[Recorded]) -> bool:
        """Nothing but the times' being whole says so."""
        if self.unit != "auto" or any(each.blocks for each in few):
            return False
        form = self._format()
        source = next(each for each in sources(self.path) if form.fits(each))
        return layout(source, Reading()).unit == "ms"

    def sessions(self, seed: int) -> Iterator[Session]:
        """In the order of their times, or of the file. Raises TraceError."""
        maker = _Maker(self, seed)
        ordered = self._ordered() if self.has_times else ((0.0, r) for r in self._recordings())
        number = 0
        for at, recording in ordered:
            steps = maker.steps(recording, number)
            if steps:
                yield Session(number, steps, at)
                number += 1
        if not number:
            raise TraceError(f"{self.path} ({self._format().title}) has no request to play")

    def _format(self) -> Format:
        return find(self.name, self.columns)

    def _recordings(self) -> Iterator[Recording]:
        form = self._format()
        reading = Reading(columns=self.columns, unit=self.unit, block_tokens=self.block_tokens)
        for source in sources(self.path):
            if form.fits(source):
                yield from _read(form, source, reading)

    def _ordered(self) -> Iterator[tuple[float, Recording]]:
        """By time from the first one's, as far as WINDOW sees."""
        numbers = count()
        first: float | None = None
        last = 0.0
        coming = self._recordings()
        held = [(each[0].at, next(numbers), each) for each in islice(coming, WINDOW)]
        heapq.heapify(held)
        while held:
            more = next(coming, None)
            if more is None:
                at, _, recording = heapq.heappop(held)
            else:
                at, _, recording = heapq.heapreplace(held, (more[0].at, next(numbers), more))
            if first is None:
                first = last = at
            if at < last:
                raise TraceError(
                    f"{self.path}: a request came {last - at:g} s before one that is {WINDOW:,} "
                    "requests earlier in the file: sort it by time"
                )
            last = at
            yield at - first, recording


def _read(form: Format, source: Source, reading: Reading) -> Iterator[Recording]:
    """What the format's reader yields. What lies deeper in a record than its types say may be
    anything, and is refused with the file's name."""
    try:
        yield from form.read(source, reading)
    except TraceError as error:
        raise TraceError(f"{error} (read as {form.title})") from error
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        raise TraceError(
            f"{source.path}: a record is not as {form.title} has it: {type(error).__name__} {error}"
        ) from error


class _Maker:
    """Recordings into steps. Mutable state: the last prompt of sessions by name."""

    def __init__(self, trace: Trace, seed: int) -> None:
        self._trace = trace
        counter = (
            ByTokenizer(load_tokenizer(trace.tokenizer))
            if trace.tokenizer
            else ByBytes(trace.bytes_per_token)
        )
        self._measures = Measures(counter, trace.image_tokens)
        self._random = rng(seed, trace.name)
        self._popular = Zipf(trace.prefixes, trace.zipf)
        self._before: OrderedDict[str, Prompt] = OrderedDict()

    def steps(self, recording: Recording, number: int) -> tuple[Step, ...]:
        trace = self._trace
        if trace.most_steps:
            recording = recording[: trace.most_steps]
        steps: list[Step] = []
        answers: dict[int, Segment] = {}
        for place, one in enumerate(recording):
            output = self._output(one, number, place)
            if one.answer_id:
                answers[one.answer_id] = output
            prompt = self._prompt(one, number, place, answers, steps)
            if trace.most_tokens and sum(part.tokens for part in prompt) > trace.most_tokens:
                return ()
            waits = ((place - 1,) if place else ()) if one.waits is None else one.waits
            pause = one.pause or (trace.pause if waits else 0.0)
            steps.append(Step(prompt, output, waits, pause, one.thread, one.content))
            if one.session:
                self._before[one.session] = (*prompt, output)
                self._before.move_to_end(one.session)
                if len(self._before) > _SESSIONS:
                    self._before.popitem(last=False)
        return tuple(steps)

    def _output(self, one: Recorded, number: int, place: int) -> Segment:
        told = one.output_tokens
        if one.answer is not None:
            answer = answer_of(one.answer, self._measures)
            return msgspec.structs.replace(answer, tokens=told) if told else answer
        name = one.answer_id or named(f"answer/{number}/{place}".encode())
        return Segment(name, told or self._trace.output_tokens, Role.ASSISTANT)

    def _prompt(
        self,
        one: Recorded,
        number: int,
        place: int,
        answers: dict[int, Segment],
        steps: list[Step],
    ) -> Prompt:
        if one.content is not None:
            return prompt_of(one.content, self._measures, answers)
        if one.blocks:
            return _of_blocks(one)
        own = f"own/{number}/{place}"
        before: Prompt = ()
        if one.session:
            before = self._before.get(one.session, ())
        elif place:
            before = (*steps[-1].prompt, steps[-1].output)
        if not before and self._trace.shared:
            shared = round(one.prompt_tokens * self._trace.shared)
            prefix = named(f"prefix/{self._popular.draw(self._random)}".encode())
            before = (Segment(prefix, shared, Role.SYSTEM),) if shared else ()
        return _filled(before, one.prompt_tokens, named(own.encode()))


def _of_blocks(one: Recorded) -> Prompt:
    left = one.prompt_tokens
    prompt = []
    for block in one.blocks:
        if left <= 0:
            break
        size = min(left, one.block_tokens)
        prompt.append(Segment(named(f"block/{block}".encode()), size))
        left -= size
    if left > 0:
        prompt.append(Segment(named(f"rest/{one.blocks}".encode()), left))
    return tuple(prompt)


def _filled(before: Prompt, tokens: int, own: int) -> Prompt:
    """So many tokens: what came before as far as it goes, then text of its own."""
    left = tokens
    prompt = []
    for part in before:
        size = min(part.tokens, left)
        if not size:
            break
        prompt.append(msgspec.structs.replace(part, tokens=size))
        left -= size
    if left:
        prompt.append(Segment(own, left))
    return tuple(prompt)
