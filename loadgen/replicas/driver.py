"""Runs one engine by the wall clock and sends what it generates to the connections that wait."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic

from loadgen.engine import Engine, EngineParams, Request, Stage
from loadgen.replicas.answers import Answer, Choice
from loadgen.replicas.connection import LAST_CHUNK
from loadgen.replicas.errors import ApiError
from loadgen.replicas.kv_events import EventPublisher, Origin
from loadgen.replicas.metrics import RequestMetrics
from loadgen.replicas.nixl import Connector, not_loaded, with_params
from loadgen.replicas.prompts import Job
from loadgen.replicas.tokens import TOKEN_BYTES, WORDS, answer_words, block_hashes, root_hash


class Driver:
    """One life of a replica's engine: it begins with an empty cache and ends with ``close``.

    Engine time runs ``time_scale`` times as fast as the wall clock, less when slowed, not while
    frozen. All steps that are over are completed before anything else happens, so that a late timer
    delays tokens but changes nothing else.
    """

    def __init__(
        self,
        params: EngineParams,
        *,
        model: str,
        time_scale: float,
        default_output_tokens: int,
        events: EventPublisher | None,
        changed: Callable[[], None],
    ) -> None:
        self.params = params
        self.model = model
        self.time_scale = time_scale
        self.default_output_tokens = default_output_tokens
        self.events = events
        self.changed = changed
        self.engine = Engine(params, max_run=1, observer=events)
        self.metrics = RequestMetrics(params.max_model_len)
        self.connector: Connector | None = None
        """Moves blocks between engines; None: `kv_transfer_params` mean nothing."""
        self.adapters_told: dict[str, float] = {}
        """Names of adapters in /metrics -> when they were last the ones with requests."""
        self.frozen = False
        self._slow = 1.0
        self._live: dict[Request, Choice] = {}
        self._followed: dict[Request, Choice] = {}
        """Those past their first token of which every token matters as it comes."""
        self._dying: list[Answer] = []
        """To be cut once this step's tokens are out."""
        self._timer: asyncio.Handle | None = None
        self._rate = time_scale
        """Engine seconds for one second of the wall clock; 0 while frozen."""
        self._wall = monotonic()
        self._engine_time = 0.0

    def close(self) -> None:
        """Stop for good; what was running is forgotten."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.connector is not None:
            self.connector.close()
        self._live.clear()
        self._followed.clear()
        self._rate = 0.0

    def output_length(self, job: Job, prompt_tokens: int) -> int:
        """Tokens the answer will have. Raises ApiError, in vLLM's words, where it cannot fit."""
        longest = self.params.longest
        if prompt_tokens >= longest:
            raise ApiError(
                400,
                f"This model's maximum context length is {longest} tokens. However, your prompt "
                f"contains at least {prompt_tokens} input tokens, which exceeds this limit even "
                "without any output tokens. Please reduce the length of the input prompt. "
                f"(parameter=input_tokens, value={prompt_tokens})",
                "input_tokens",
            )
        wanted = job.max_tokens
        if wanted is None:
            return min(max(self.default_output_tokens, job.min_tokens), longest - prompt_tokens)
        if prompt_tokens + wanted > longest:
            raise ApiError(
                400,
                f"This model's maximum context length is {longest} tokens. However, you requested "
                f"{wanted} output tokens and your prompt contains {prompt_tokens} input tokens, "
                f"for a total of {prompt_tokens + wanted} tokens. Please reduce the length of the "
                f"input prompt or the number of requested output tokens. (parameter=max_tokens, "
                f"value={wanted})",
                "max_tokens",
            )
        return wanted

    def add(self, answer: Answer) -> None:
        """Queue an accepted request's prompts. Raises ApiError for one that cannot fit."""
        job, size = answer.job, self.params.block_size
        root = root_hash((job.model, job.salt))
        lengths = [self.output_length(job, len(prompt) // TOKEN_BYTES) for prompt in job.prompts]
        for prompt, length in zip(job.prompts, lengths, strict=True):
            hashes = block_hashes(prompt, size, root)
            parent = hashes[-1] if hashes else root
            rest = prompt[len(hashes) * size * TOKEN_BYTES :]
            for turn in range(job.n):
                # The same prompt gets the same answer; further answers to it (n > 1) differ.
                seed = root_hash((rest.hex(), str(parent), str(turn)))
                words = b"".join(answer_words(seed, 0, length))
                tag = None
                if self.events is not None:
                    adapter = job.model if job.model != self.model else None
                    tag = Origin(prompt + words, adapter, job.salt or None)
                request = Request(
                    len(prompt) // TOKEN_BYTES,
                    length,
                    hashes,
                    block_hashes(rest + words, size, parent),
                    tag,
                    adapter=job.model if job.model != self.model else "",
                )
                limited = job.max_tokens is not None
                answer.choices.append(Choice(answer, len(answer.choices), request, seed, limited))
        if self.connector is not None:
            self.connector.read(answer)
        answer.open = len(answer.choices)
        answer.connection.answer = answer
        if job.stream:
            # As in vLLM the head goes out when the request is accepted, before any token.
            answer.connection.transport.write(answer.connection.stream_head())
        now = self._advance()
        for choice in answer.choices:
            self._live[choice.request] = choice
            self.engine.add(choice.request, now)
        self._arm()

    def abandon(self, answer: Answer) -> None:
        """The client is gone: take its requests out of the engine."""
        now = self._advance()
        for request in self._forget(answer):
            self.engine.abort(request, now)
            self.metrics.end(request, "abort")
        self._arm()

    def _forget(self, answer: Answer) -> list[Request]:
        """The answer is to get nothing more; returns what of it the engine still has."""
        left = []
        for choice in answer.choices:
            if self._live.pop(choice.request, None) is not None:
                self._followed.pop(choice.request, None)
                left.append(choice.request)
                if self.connector is not None:
                    self.connector.aborted(choice.request)
        return left

    # -- what the connector asks for

    def fetched(self, request: Request) -> None:
        """Another engine's blocks are here."""
        self.engine.fetched(request, self._advance())
        self._arm()

    def free(self, request: Request) -> None:
        """Nobody will fetch this request's blocks any more."""
        self.engine.free(request, self._advance())
        self._arm()

    def not_fetched(self, request: Request) -> None:
        """Another engine's blocks cannot be had: its client is told."""
        now = self._advance()
        choice = self._live.pop(request)
        self.engine.abort(request, now)
        self.metrics.end(request, "error")
        answer = choice.answer
        connection, error = answer.connection, not_loaded()
        if answer.job.stream:
            connection.transport.write(answer.words.failed(error) + LAST_CHUNK)
            connection.done()
        else:
            connection.answer = None
            connection.reply(error.status, error.body(answer.anthropic))
        self._arm()

    # -- time

    def _now(self) -> float:
        return self._engine_time + (monotonic() - self._wall) * self._rate

    def set_clock(self, *, slow: float | None = None, frozen: bool | None = None) -> None:
        """Change how fast the engine's time runs."""
        self._advance()
        self._engine_time = self._now()
        self._wall = monotonic()
        if slow is not None:
            self._slow = slow
        if frozen is not None:
            self.frozen = frozen
        self._rate = 0.0 if self.frozen else self.time_scale / self._slow
        self._arm()
        if self.connector is not None and not self.frozen:
            self.connector.thawed()

    def _arm(self) -> None:
        if self.events is not None:
            self.events.flush()
        if self.engine.to_fetch and self.connector is not None:
            self.connector.begin(self.engine.to_fetch, self._now())
        self.changed()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.engine.idle or not self._rate:
            return
        loop = asyncio.get_running_loop()
        delay = (self.engine.due - self._now()) / self._rate
        if delay > 0:
            self._timer = loop.call_later(delay, self._wake)
        else:
            self._timer = loop.call_soon(self._wake)

    def _wake(self) -> None:
        self._timer = None
        self._advance()
        self._arm()

    def _advance(self) -> float:
        """Complete the engine's steps up to now and send what they gave; returns the engine's
        time."""
        engine, now = self.engine, self._now()
        if engine.due > now:
            return now
        ended: list[Choice] = []
        live, followed = self._live, self._followed
        while engine.due <= now:
            result = engine.step()
            for request in result.first_tokens:
                self.metrics.first_token(request)
                choice = live.get(request)
                if choice is not None and choice.answer.followed:
                    followed[request] = choice
            for request in result.finished:
                choice = live.pop(request, None)
                if choice is not None:
                    followed.pop(request, None)
                    self.metrics.end(request, "length" if choice.limited else "stop")
                    ended.append(choice)
        self._send_new()
        for choice in ended:
            self._finish(choice)
        while self._dying:
            self._cut(self._dying.pop())
        return now

    def _send_new(self) -> None:
        """Send what the steps just completed gave to those that wait for every token.

        Most of the fleet's own time goes here, a call for each part of the work would double it.
        """
        tick, decoding = self.engine.tick, Stage.DECODE
        for request, choice in self._followed.items():
            # What Engine.emitted says.
            count = request.outputs
            if request.stage is decoding:
                count += tick - request.entry_tick
            sent = choice.sent
            if count <= sent:
                continue
            if choice.flow is None:
                self._send(choice, count)
                continue
            write, head, joint, tail = choice.flow
            if count == sent + 1:
                write(b"".join((head, WORDS[(choice.seed + sent) % len(WORDS)], tail)))
            else:
                write(head + joint.join(answer_words(choice.seed, sent, count)) + tail)
            choice.sent = count

    def _send(self, choice: Choice, count: int) -> None:
        answer = choice.answer
        if 0 <= answer.die_after <= count:
            # Late, several steps are sent at once: no token beyond the one to die after.
            count = answer.die_after
            self._dying.append(answer)
        if answer.job.stream:
            words = answer.words
            if answer.started:
                out = words.tokens(choice, count, False)
            else:
                answer.started = True
                out = words.opening() + words.tokens(choice, count, False)
            write = answer.connection.transport.write
            write(out)
            if answer.die_after < 0 and (around := words.around(choice)):
                head, tail = around
                choice.flow = write, head, tail + head, tail
        choice.sent = count

    def _finish(self, choice: Choice) -> None:
        answer = choice.answer
        connection = answer.connection
        total = choice.request.output_tokens
        if 0 <= answer.die_after < total:
            self._send(choice, total)
            return
        answer.open -= 1
        if self.connector is not None:
            self.connector.finished(choice.request)
        if answer.job.stream:
            out = b""
            if not answer.started:
                answer.started = True
                out = answer.words.opening()
            out += answer.words.tokens(choice, total, True)
            choice.sent = total
            if not answer.open:
                out += answer.words.closing() + LAST_CHUNK
            connection.transport.write(out)
            if not answer.open:
                connection.done()
        elif not answer.open:
            connection.answer = None
            body = answer.words.whole()
            kept = answer.choices[0].request
            if self.connector is not None and kept.keep:
                params = self.connector.lease(kept, answer)
                if params is not None:
                    body = with_params(body, params)
            connection.reply(200, body)

    def _cut(self, answer: Answer) -> None:
        """Break the connection off: what was written goes out, then the stream ends without its
        end."""
        connection = answer.connection
        connection.answer = None
        now = self._now()
        for request in self._forget(answer):
            self.engine.abort(request, now)
        connection.transport.close()
