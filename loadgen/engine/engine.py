"""A vLLM engine as a state machine: which request gets which tokens of which step, and its end.

There is no I/O and no clock. ``add`` puts a request in. ``due`` says when something becomes visible
(a first token, an end, a change of the batch). ``step`` completes everything up to ``due``::

    engine.add(request, now)
    while engine.due < until:
        result = engine.step()

It follows vLLM 0.32's v1 scheduler (``vllm/v1/core/sched/scheduler.py``, ``kv_cache_manager.py``)
for full attention, first come first served, without speculative decoding or
``long_prefill_token_threshold``.

Of its KV connectors it follows the scheduler's part of NIXL's pull mode. A request that is to
``keep`` its blocks holds them after its end, until ``free``. One whose prompt is ``remote`` gets
blocks for all of it and waits in ``to_fetch``, from where the caller takes it, moves what it lacks,
and calls ``fetched``; then its last token is computed, as after a hit of everything else.

With a tier behind GPU memory (``tier.py``), a request whose next blocks lie there leaves the queue
until they are loaded, and is the first in it then.

Two facts make it fast. Every decoding request gets one token of every step, so one counter
(``tick``) stands for all their positions, and a heap says at which tick one of them ends or needs a
block. And at most one request is in the middle of its prefill: a chunk is cut only where the step's
token budget ends, and no later request is admitted before that one is through. Steps in which only
decoding happens are run as one, in closed form; an arrival and ``abort`` cut such a run at the end
of the step in progress.

Where the parameters give a request an overhead, it lies before the queue: until it is over, the
scheduler does not know of the request.
"""

from __future__ import annotations

from collections import deque
from heapq import heappop, heappush
from math import inf

from loadgen.engine.adapters import AdapterSlots
from loadgen.engine.blocks import BlockPool
from loadgen.engine.outcome import CacheObserver, Counters, StepResult
from loadgen.engine.params import EngineParams, steps_within
from loadgen.engine.request import Request, Stage, block_key
from loadgen.engine.tier import load, tier_of

_ABSENT = object()


class Engine:
    """One replica. ``max_run`` bounds the decode steps run as one: 1 shows every token as it
    comes."""

    def __init__(
        self,
        params: EngineParams,
        *,
        max_run: int = 1 << 60,
        observer: CacheObserver | None = None,
    ) -> None:
        self.params = params
        self.max_run = max_run
        self.observer = observer
        self.tier = tier = tier_of(params, observer)
        removed = None if observer is None else observer.removed
        self.pool = BlockPool(params.num_blocks, removed, tier.put if tier is not None else None)
        self.counters = Counters()
        self.adapters = AdapterSlots(params.max_loras, params.lora_load_seconds)
        self._passed_over = 0
        """Waiting requests that the last plan found no place for their adapter for."""
        self.waiting: deque[Request] = deque()
        self._coming: deque[tuple[float, Request]] = deque()
        """(end of its overhead, request): in the order of arrival, since none overtakes."""
        self._door = 0.0
        """When the next request can pass what lets one through at a time."""
        self.running: dict[Request, None] = {}
        """Running requests, in order of admission."""
        self.due = inf
        self._end = inf
        """Of the run in progress. ``due`` is this, or earlier when a request comes before."""
        self.tick = 0
        """Steps completed; the step in progress is number ``tick``."""
        self._partial: Request | None = None
        """The one running request whose prefill is not scheduled to its end."""
        self._completing: list[Request] = []
        """Requests whose prefill ends with the step in progress."""
        self._block_due: list[tuple[int, int, Request]] = []
        self._finish_due: list[tuple[int, int, Request]] = []
        self._decoding = 0
        self._context = 0
        """Tokens of context of the decoding requests."""
        self._order = 0
        self._unique = -2
        self._started = 0.0
        self._steps = 0
        self._first_seconds = 0.0
        self._slope_seconds = 0.0
        """How much longer each step of a decode run is than the one before."""
        self._aborting: list[Request] = []
        self.kept: dict[Request, None] = {}
        """Requests that are over and hold their blocks for another engine."""
        self.to_fetch: list[Request] = []
        """Requests that have blocks for what another engine holds of their prompt: new ones, which
        the caller takes out."""
        self.fetching: dict[Request, None] = {}
        """Requests that have not got those yet."""

    # -- what callers use

    def add(self, request: Request, now: float) -> None:
        """Take a request. Its overhead over, it is queued: considered when the step in progress
        ends, at once when idle.

        Raises ValueError for a request that could never run here.
        """
        params = self.params
        if request.prompt_tokens < 1 or request.output_tokens < 1:
            raise ValueError("a request needs at least one prompt token and one output token")
        total = request.prompt_tokens + request.output_tokens
        if total > params.longest:
            raise ValueError(
                f"{request.prompt_tokens} prompt and {request.output_tokens} output tokens exceed "
                f"the {params.longest} this engine can hold"
            )
        full = request.prompt_tokens // params.block_size
        if len(request.hashes) < full:
            raise ValueError(
                f"{request.prompt_tokens} prompt tokens need {full} block hashes, "
                f"got {len(request.hashes)}"
            )
        request.arrived = now
        reading = params.overhead_token_seconds * request.prompt_tokens
        if params.overhead_seconds or reading:
            begun = max(now, self._door)
            self._door = begun + params.overhead_serial_seconds + reading
            self._coming.append((begun + params.overhead_seconds + reading, request))
        else:
            self._queue(request, now)
        self._set_due()

    def step(self) -> StepResult:
        """Bring about what is ``due``: the run in progress ends and the next begins, or a request
        is queued (a result of no steps)."""
        at = self.due
        if at == inf:
            raise RuntimeError("the engine is idle: there is no step to complete")
        if at < self._end:
            if self.tier is not None and self.tier.due == at:
                self._loaded(self.tier.loading.popleft()[1], at)
            else:
                self._queue(self._coming.popleft()[1], at)
            self._set_due()
            return StepResult(at, 0, [], [])
        steps, params = self._steps, self.params
        result = StepResult(at, steps, [], [])
        counters = self.counters
        self.tick += steps
        tick = self.tick
        tokens = self._decoding * steps
        self._context += tokens
        counters.steps += steps
        heap = self._block_due
        while heap and heap[0][0] < tick:
            due, order, request = heappop(heap)
            if request.order == order and request.stage is Stage.DECODE:
                self._grow(request, due)
        heap = self._finish_due
        while heap and heap[0][0] < tick:
            _, order, request = heappop(heap)
            if request.order == order and request.stage is Stage.DECODE:
                self._decoding -= 1
                self._context -= request.prompt_tokens + request.output_tokens - 1
                self._finish(request, at)
                result.finished.append(request)
        for request in self._completing:
            tokens += 1
            request.outputs += 1
            if request.outputs == 1:
                request.first_token_at = at
                counters.prompt_tokens += request.prompt_tokens
                counters.prompt_tokens_cached += request.cached_tokens
                counters.prompt_tokens_fetched += request.fetched_tokens
                counters.prompt_tokens_loaded += request.loaded_tokens
                result.first_tokens.append(request)
            if request.outputs >= request.output_tokens:
                self._finish(request, at)
                result.finished.append(request)
                continue
            request.stage = Stage.DECODE
            request.entry_tick = tick
            self._decoding += 1
            self._context += request.computed
            ends = tick + request.output_tokens - request.outputs - 1
            heappush(self._finish_due, (ends, request.order, request))
            grows = tick + -request.computed % params.block_size
            if grows <= ends:
                heappush(self._block_due, (grows, request.order, request))
        counters.generation_tokens += tokens
        if self._aborting:
            for request in self._aborting:
                if request.stage is not Stage.DONE:
                    self._drop(request, at)
            self._aborting.clear()
        self._plan(at)
        self._set_due()
        return result

    def fetched(self, request: Request, now: float) -> None:
        """What another engine has computed of its prompt is here. Does nothing for a request that
        was aborted meanwhile."""
        if self.fetching.pop(request, _ABSENT) is _ABSENT:
            return
        self._loaded(request, now)

    def _loaded(self, request: Request, now: float) -> None:
        """Its blocks are here: it is the next to be admitted."""
        request.stage = Stage.WAITING
        self.waiting.appendleft(request)
        self._reconsider(now)

    def free(self, request: Request, now: float) -> None:
        """Give up the blocks that a request kept for another engine."""
        if self.kept.pop(request, _ABSENT) is _ABSENT:
            return
        self.pool.release(request.blocks)
        request.blocks = []
        self._reconsider(now)

    def _reconsider(self, now: float) -> None:
        """The first waiting request may fit now."""
        if self._end == inf:
            self._plan(now)
        elif self.waiting:
            self._cut(now)
        self._set_due()

    def abort(self, request: Request, now: float) -> None:
        """Give a request up. One that runs leaves when the step in progress ends, if not done by
        then."""
        if request.stage is Stage.DONE:
            return
        if request.stage is Stage.FETCHING:
            self.fetching.pop(request, None)
            if request in self.to_fetch:
                self.to_fetch.remove(request)
            if self.tier is not None:
                self.tier.abort(request)
            self._close(request, now)
            self._give_back(request)
            self._reconsider(now)
        elif request.stage is Stage.WAITING:
            coming = deque(each for each in self._coming if each[1] is not request)
            if len(coming) == len(self._coming):
                self.waiting.remove(request)
            self._coming = coming
            self._close(request, now)
            if request.blocks:  # fetched, and not scheduled yet
                self._give_back(request)
                self._reconsider(now)
        else:
            self._aborting.append(request)
            self._cut(now)
        self._set_due()

    def emitted(self, request: Request) -> int:
        """Tokens of the answer that are out."""
        if request.stage is Stage.DECODE:
            return request.outputs + self.tick - request.entry_tick
        return request.outputs

    def _give_back(self, request: Request) -> None:
        self.pool.release(request.blocks)
        request.blocks = []

    def reset_cache(self) -> bool:
        """Forget every cached block. False, and nothing done, while requests hold blocks."""
        if not self.pool.clear():
            return False
        if self.tier is not None:
            self.tier.clear()
        if self.observer is not None:
            self.observer.cleared()
        return True

    @property
    def idle(self) -> bool:
        """Nothing to do until the next ``add``."""
        return self.due == inf

    @property
    def kv_usage(self) -> float:
        """Share of the blocks that requests hold (``vllm:kv_cache_usage_perc``)."""
        return 1.0 - len(self.pool.free) / self.pool.total

    # -- scheduling: what the next step holds

    def _queue(self, request: Request, now: float) -> None:
        request.queued_at = now
        blocked = len(self.waiting) > self._passed_over
        blocked = blocked or len(self.running) >= self.params.max_num_seqs
        self.waiting.append(request)
        if self._end == inf:
            self._plan(now)
        elif not blocked:
            self._cut(now)

    def _set_due(self) -> None:
        coming = self._coming
        self.due = coming[0][0] if coming and coming[0][0] < self._end else self._end
        if self.tier is not None and self.tier.due < self.due:
            self.due = self.tier.due

    def _plan(self, now: float) -> None:
        preempted = self._grow_decoding()
        params, pool, tier = self.params, self.pool, self.tier
        budget = params.max_num_batched_tokens - self._decoding
        size = params.block_size
        completing = self._completing
        completing.clear()
        new_tokens = pairs = prefilling = 0
        request = self._partial
        if request is not None and budget > 0:
            start = request.computed
            target = request.prompt_tokens + request.outputs
            end = min(target, start + budget)
            need = max(0, -(-end // size) - len(request.blocks))
            if need > len(pool.free):
                # The last admitted is preempted first, and that is this one.
                self._preempt()
                preempted = True
            else:
                request.blocks += pool.take(need)
                request.computed = end
                self._cache(request, end // size)
                budget -= end - start
                new_tokens += end - start
                pairs += (end - start) * (start + end)
                prefilling += 1
                if end == target:
                    self._partial = None
                    completing.append(request)
        self._passed_over = 0
        if not preempted:
            waiting, running = self.waiting, self.running
            passed_over: list[Request] = []
            while budget > 0 and waiting and len(running) < params.max_num_seqs:
                adapter = waiting[0].adapter
                if adapter and not self.adapters.fits(adapter):
                    passed_over.append(waiting.popleft())
                    continue
                if waiting[0].remote:
                    if not self._fetch(waiting[0], now):
                        break
                    continue
                if tier and load(tier, pool, params, self.counters, waiting[0], now):
                    waiting.popleft()
                    continue
                start = self._admit(waiting[0], budget, now)
                if start < 0:
                    break
                request = waiting.popleft()
                end = request.computed
                budget -= end - start
                new_tokens += end - start
                pairs += (end - start) * (start + end)
                prefilling += 1
            if passed_over:
                self._passed_over = len(passed_over)
                waiting.extendleft(reversed(passed_over))
        decoding = self._decoding
        seconds = (
            params.step_base_seconds
            + params.step_request_seconds * (decoding + prefilling)
            + params.step_token_seconds * self._context
        )
        self._started = now
        self._slope_seconds = 0.0
        if new_tokens:
            self._steps = 1
            seconds += new_tokens / params.prefill_rate + params.step_pair_seconds * pairs / 2
            seconds += params.step_prefill_seconds * prefilling + self.adapters.take_wait()
            self._first_seconds = seconds
            self._end = now + seconds
        elif decoding:
            self._first_seconds = seconds
            steps = 1 if preempted else self._decode_run()
            self._steps = steps
            self._slope_seconds = params.step_token_seconds * decoding
            self._end = now + self._seconds(steps)
        else:
            loading = self.tier is not None and self.tier.loading
            if self.waiting and not (self.kept or self.fetching or loading):
                raise RuntimeError("nothing runs and the first waiting request cannot be admitted")
            self._steps = 0
            self._end = inf

    def _grow_decoding(self) -> bool:
        """Give a block to each decoding request whose next token needs one; True if some were
        preempted."""
        heap, tick, free = self._block_due, self.tick, self.pool.free
        preempted = False
        while heap and heap[0][0] <= tick:
            due, order, request = heappop(heap)
            while request.order == order and request.stage is Stage.DECODE:
                if free:
                    self._grow(request, due)
                    break
                self._preempt()
                preempted = True
        return preempted

    def _grow(self, request: Request, tick: int) -> None:
        """At this tick the request's last block is full: cache it and take the next."""
        size = self.params.block_size
        self._cache(request, len(request.blocks))
        request.blocks += self.pool.take(1)
        following = tick + size
        if following <= request.entry_tick + request.output_tokens - request.outputs - 1:
            heappush(self._block_due, (following, request.order, request))

    def _fetch(self, request: Request, now: float) -> bool:
        """Give the first waiting request blocks for its whole prompt, and have what is not here
        fetched. False when they do not fit."""
        pool, size = self.pool, self.params.block_size
        prompt = request.prompt_tokens
        hits = pool.lookup(request.hashes, (prompt - 1) // size)
        need = -(-prompt // size) - len(hits)
        if need + pool.unreferenced(hits) > len(pool.free):
            return False
        self.waiting.popleft()
        pool.touch(hits)
        request.hashed = len(hits)
        request.blocks = hits
        start = len(hits) * size
        request.blocks += pool.take(need)
        request.computed = prompt - 1
        request.remote = False
        request.scheduled_at = now
        request.cached_tokens = prompt - 1
        request.fetched_tokens = prompt - 1 - start
        self.counters.prefix_queries += prompt
        self.counters.prefix_hits += start
        request.stage = Stage.FETCHING
        self.fetching[request] = None
        self.to_fetch.append(request)
        return True

    def _admit_fetched(self, request: Request, budget: int) -> int:
        """Move a request whose blocks were fetched or loaded into the step, for what is left to
        compute: at least its last token."""
        target = request.prompt_tokens + request.outputs
        start = request.computed
        request.computed = end = min(target, start + budget)
        self._cache(request, end // self.params.block_size)
        self._run(request)
        if end == target:
            self._completing.append(request)
        else:
            self._partial = request
        return start

    def _run(self, request: Request) -> None:
        request.stage = Stage.PREFILL
        self._order += 1
        request.order = self._order
        self.running[request] = None
        if request.adapter:
            self.adapters.enter(request.adapter)

    def _admit(self, request: Request, budget: int, now: float) -> int:
        """Move a waiting request into the step; the tokens it had cached, or -1 when it does not
        fit."""
        if request.blocks:
            return self._admit_fetched(request, budget)
        pool, size = self.pool, self.params.block_size
        target = request.prompt_tokens + request.outputs
        limit = (target - 1) // size
        hits = pool.lookup(request.hashes, min(limit, request.prompt_tokens // size))
        if request.outputs and len(hits) == request.prompt_tokens // size:
            hits += pool.lookup(request.output_hashes, limit - len(hits))
        # The whole sequence must fit, not only this chunk (vLLM's scheduler_reserve_full_isl).
        if -(-target // size) - len(hits) + pool.unreferenced(hits) > len(pool.free):
            return -1
        start = len(hits) * size
        end = min(target, start + budget)
        pool.touch(hits)
        request.hashed = len(hits)
        request.blocks = hits
        request.blocks += pool.take(-(-end // size) - len(hits))
        request.computed = end
        self._cache(request, end // size)
        if not request.preemptions:
            request.scheduled_at = now
            request.cached_tokens = start
            self.counters.prefix_queries += target
            self.counters.prefix_hits += start
            if self.tier is not None:
                self.counters.offload_queries += target - start
        self._run(request)
        if end == target:
            self._completing.append(request)
        else:
            self._partial = request
        return start

    def _cache(self, request: Request, end: int) -> None:
        """Enter the request's leading blocks, up to ``end`` of them, into the prefix cache's
        map."""
        first = request.hashed
        if first >= end:
            return
        full = request.prompt_tokens // self.params.block_size
        store, blocks = self.pool.store, request.blocks
        for position in range(first, end):
            key = block_key(request, position, full)
            if key is None:
                key = self._unique
                self._unique -= 1
            store(blocks[position], key)
        request.hashed = end
        if self.observer is not None:
            self.observer.stored(request, first, end)

    def _decode_run(self) -> int:
        """How many steps of decoding alone can be run as one before the batch may change."""
        heap, tick = self._finish_due, self.tick
        while heap[0][2].order != heap[0][1] or heap[0][2].stage is not Stage.DECODE:
            heappop(heap)
        steps = min(heap[0][0] - tick + 1, self.max_run)
        if steps > 1 and self._decoding * (steps // self.params.block_size + 1) > len(
            self.pool.free
        ):
            # Blocks may run out within the run: stop before the next step that takes one.
            grows = self._block_due
            while grows and (
                grows[0][2].order != grows[0][1] or grows[0][2].stage is not Stage.DECODE
            ):
                heappop(grows)
            if grows:
                steps = min(steps, grows[0][0] - tick)
        return steps

    # -- time

    def _seconds(self, steps: int) -> float:
        """How long the first ``steps`` of the run in progress take."""
        return steps * (self._first_seconds + self._slope_seconds * (steps - 1) / 2)

    def _cut(self, now: float) -> None:
        """End the run in progress with the step that is in progress at ``now``."""
        if self._steps <= 1 or now >= self._end:
            return
        elapsed = now - self._started
        steps = steps_within(elapsed, self._first_seconds, self._slope_seconds)
        if steps:
            self._steps = steps = min(steps, self._steps)
            self._end = self._started + self._seconds(steps)

    # -- leaving

    def _preempt(self) -> None:
        """Send the last admitted request back to the head of the queue; it will be recomputed."""
        request, _ = self.running.popitem()
        if request.adapter:
            self.adapters.leave(request.adapter)
        if request.stage is Stage.DECODE:
            request.outputs = self.emitted(request)
            self._decoding -= 1
            self._context -= request.prompt_tokens + request.outputs - 1
            self._cache(
                request,
                (request.prompt_tokens + request.outputs - 1) // self.params.block_size,
            )
        else:
            self._partial = None
        self.pool.release(request.blocks)
        request.blocks = []
        request.hashed = request.computed = 0
        request.stage = Stage.WAITING
        request.preemptions += 1
        self.counters.preemptions += 1
        self.waiting.appendleft(request)

    def _finish(self, request: Request, at: float) -> None:
        request.outputs = request.output_tokens
        self._cache(
            request,
            (request.prompt_tokens + request.output_tokens - 1) // self.params.block_size,
        )
        request.finished_at = at
        self._leave(request)
        request.stage = Stage.DONE
        if request.keep:
            self.kept[request] = None
        else:
            self._give_back(request)
        self.counters.finished += 1

    def _drop(self, request: Request, at: float) -> None:
        """Take an aborted request out of the batch."""
        if request.stage is Stage.DECODE:
            request.outputs = self.emitted(request)
            self._decoding -= 1
            computed = request.prompt_tokens + request.outputs - 1
            self._context -= computed
            self._cache(request, computed // self.params.block_size)
        elif request is self._partial:
            self._partial = None
        self._leave(request)
        self.pool.release(request.blocks)
        request.blocks = []
        self._close(request, at)

    def _leave(self, request: Request) -> None:
        del self.running[request]
        if request.adapter:
            self.adapters.leave(request.adapter)

    def _close(self, request: Request, at: float) -> None:
        request.stage = Stage.DONE
        request.aborted = True
        request.finished_at = at
        self.counters.aborted += 1
