"""Exact mode: knows what the engines hold, for prompts tokenised as the engines do it.

A replica is exact for a request while its events are heard without a gap and its engine was seen to
tokenise the model's prompts as is done here. All other replicas, and all requests that cannot be
tokenised here in time, are left to the byte-block index; the policies see one list.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping
from time import monotonic
from typing import TYPE_CHECKING, Any

import httpx
import msgspec

from router.fleet.health import HealthState
from router.fleet.listener import FleetListener
from router.fleet.models import ModelCard
from router.fleet.replica import Replica
from router.kv_events.sequencer import EventSequencer
from router.kv_events.subscriptions import EventSubscriptions
from router.kv_events.token_chain import seed
from router.kv_events.token_index import PendingPrompt, TokenIndex
from router.prompt.prompt import Prompt
from router.render import arguments
from router.render.errors import UnrenderedError
from router.render.loading import ExactModel, ExactModels
from router.render.memory import TokenMemory, key_of
from router.render.model import Text
from router.render.pool import Missing, TokenPool
from router.render.tokens import ChainMemory, TokenPrompt
from router.scheduling.tier_prices import medium_untold
from router.types import NOTHING_BEHIND, PromptTokens, TierShare, slots

if TYPE_CHECKING:
    from router.fleet.fleet import Fleet

log = logging.getLogger(__name__)

TICK_INTERVAL_S = 0.25
VERIFY_INTERVAL_S = 5.0
MAX_INLINE_CHARACTERS = 2048
"""Characters tokenised between two events: about a millisecond."""
SETTLE_S = 1.0
"""Seconds after an answer's end in which its blocks' events come."""


class SentPrompt(msgspec.Struct, frozen=True):
    """A prompt on its way to a replica that is exact for it."""

    exact: ExactMode
    tokens: PromptTokens
    pending: PendingPrompt

    def finished(self, predicted: float, cached: int, now: float) -> None:
        """Compare what was predicted with what the engine reports: see PendingReport."""
        self.exact.finished(self.tokens, self.pending, predicted, cached, now)

    def failed(self) -> None:
        """Stop waiting for its blocks: see PendingReport."""
        self.exact.failed(self.pending)


class ExactMode(FleetListener):
    """Besides its parts, the mutable state is `current` and the prompts that were sent and not
    reported yet."""

    def __init__(self, fleet: Fleet) -> None:
        import zmq

        self.settings = settings = fleet.settings
        self.index = TokenIndex(fleet.settings.kv_tier_shared)
        self.current = 0
        """Mask of the replicas whose events are heard without a gap."""
        self.behind = 0
        """Mask of the replicas that have a tier of which no event tells."""
        self.behind_salted = 0
        """The same for salted prompts: some tiers' events leave the salt out."""
        self._untold_medium = medium_untold(fleet.settings.kv_tier_shared)
        self.listeners: dict[int, EventSubscriptions] = {}
        """By slot; the ranks of an endpoint have one."""
        self.prompts: dict[str, int] = {}
        """Why prompts were not tokenised here -> how many; "exact" for those that were."""
        self.models = ExactModels(settings, lambda: None)
        self.memory = TokenMemory(settings.exact_memory * 7 // 8)
        self.chains = ChainMemory(settings.exact_memory // 8)
        self.pool = TokenPool(self.memory, settings.exact_threads)
        self._fleet = fleet
        self._cards: dict[int, tuple[ModelCard, ...]] = {}
        """What each replica's models were when last looked at."""
        self._context: zmq.Context[Any] = zmq.Context()
        self._pending: set[PendingPrompt] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._ticking: asyncio.Task[None] | None = None
        self._client: httpx.AsyncClient | None = None
        fleet.listen(self)

    # The fleet changes

    def on_added(self, replica: Replica) -> None:
        """Start to listen to a new replica's events."""
        self.index.add_replica(replica.slot)
        if not replica.rank:
            self.listeners[replica.slot] = EventSubscriptions(
                replica, self.index, self.settings, self._context, self._refresh
            )
            return
        self.listeners[replica.slot] = listener = self.listeners[replica.ranks[0].slot]
        self._other_ranks(listener)

    def on_removed(self, replica: Replica) -> None:
        """Forget a replica that has left."""
        slot = replica.slot
        listener = self.listeners.pop(slot)
        if replica.rank:
            self._other_ranks(listener)
        else:
            listener.close()
        self._cards.pop(slot, None)
        self.index.remove_replica(slot)
        self._pending = {pending for pending in self._pending if pending.slot != slot}
        for model in self.models.bases.values():
            model.forget(slot)
        self.current &= ~(1 << slot)
        self.behind &= ~(1 << slot)
        self.behind_salted &= ~(1 << slot)

    def _other_ranks(self, listener: EventSubscriptions) -> None:
        listener.begin_anew()
        for model in self.models.bases.values():
            model.forget(listener.replica.slot)

    def on_emptied(self, replica: Replica) -> None:
        """It restarted: its events so far do not hold any more, and it may be another engine."""
        for model in self.models.bases.values():
            model.forget(replica.slot)
        sequencer = self._sequencer(replica.slot)
        if sequencer is not None:
            sequencer.restarted()

    def emptied(self, replica: Replica) -> None:
        """Its cache was emptied on demand. Engines report that only with the next block."""
        self.index.empty(replica.slot, complete=True)

    def _sequencer(self, slot: int) -> EventSequencer | None:
        replica, listener = self._fleet.replicas[slot], self.listeners.get(slot)
        return (
            listener.sequencer(replica.rank)
            if listener is not None and replica is not None
            else None
        )

    def _refresh(self, slot: int) -> None:
        sequencer = self._sequencer(slot)
        bit = 1 << slot
        self.current = (
            self.current | bit
            if sequencer is not None and sequencer.current
            else self.current & ~bit
        )

    # Running

    def start(self) -> None:
        """Begin to listen to events and to compare engines."""
        key = self.settings.replica_api_key
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._client = httpx.AsyncClient(
            headers=headers, verify=self._fleet.tls, timeout=10.0, trust_env=False
        )
        self._ticking = asyncio.get_running_loop().create_task(self._run(), name="exact mode")

    async def stop(self) -> None:
        """End every task and close every socket."""
        tasks = list(self._tasks)
        if self._ticking is not None:
            tasks.append(self._ticking)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for listener in self.listeners.values():
            listener.close()
        self.models.close()
        self.pool.close()
        if self._client is not None:
            await self._client.aclose()
        self._context.destroy(linger=0)

    async def _run(self) -> None:
        verified = monotonic()
        while True:
            now = monotonic()
            try:
                self.tick(now)
                if now - verified > VERIFY_INTERVAL_S:
                    verified = now
                    for replica in self._fleet.endpoints():
                        for sequencer in self.listeners[replica.slot].sequencers():
                            sequencer.verify()
            except Exception:
                log.exception("exact mode: something went wrong; going on")
            await asyncio.sleep(TICK_INTERVAL_S)

    def tick(self, now: float) -> None:
        """Update models and replicas, and give up prompts whose deadline has passed."""
        fleet = self._fleet
        self.models.update(fleet.all_models())
        for replica in fleet.members():
            self._look_at(replica)
        for replica in fleet.endpoints():
            self.listeners[replica.slot].tick(fleet.tls)
            if replica.health.state is not HealthState.READY:
                continue
            for model in self.models.bases.values():
                if _serves(replica, model.name) and model.wants_check(replica):
                    assert self._client is not None
                    self._spawn(model.check(self._client, replica))
        for pending in [one for one in self._pending if one.deadline <= now]:
            self._pending.discard(pending)
            self.index.give_up(pending)

    def _look_at(self, replica: Replica) -> None:
        """Take up what a replica's metrics and its list of models say."""
        slot, engine = replica.slot, replica.engine
        if engine is not None and engine.block_tokens:
            self.index.sized(slot, engine.block_tokens)
        tier = replica.offload_tokens or (engine is not None and engine.loaded)
        self.behind &= ~replica.bit
        self.behind_salted &= ~replica.bit
        if tier:
            told, salts = self.index.tiers_told(slot)
            if not told:
                self.behind |= replica.bit
            if not salts:
                self.behind_salted |= replica.bit
        cards = self._fleet.cards(slot)
        if cards is not self._cards.get(slot):
            self._cards[slot] = cards
            self.index.adapters(slot, {card.id: card.root for card in cards if card.root})

    def _spawn(self, work: Any) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # A request comes

    def prepare(self, api: str, prompt: Prompt, body: bytes, ready: Callable[[], None]) -> bool:
        """Tokenise a prompt, and leave the result in `prompt.tokens`. True: it takes a while, and
        `ready` is called once, when it is done or its time is over."""
        found = self.models.find(prompt.model)
        if found is None or found[0].render is None:
            return self._fall_back("model")
        base, adapter = found
        if not base.mask & self.current:
            return self._fall_back("replicas")
        if len(body) > self.settings.exact_max_body:
            return self._fall_back("large")
        try:
            assert base.render is not None
            text = base.render.read(api, body)
        except UnrenderedError as error:
            return self._fall_back(error.word)
        if text.tokens:
            return self._attach_tokens(base, adapter, text, text.tokens, prompt)
        parts, missing, size = self._look_up(base, text)
        if size > MAX_INLINE_CHARACTERS:
            seconds = self.pool.seconds(size)
            work = self._tokenise(base, parts, missing)
            if seconds > self.settings.exact_budget:
                self._spawn(work)  # for the next step of the same conversation
                return self._fall_back("budget")
            self._spawn(self._deliver(base, adapter, text, work, prompt, ready))
            return True
        tokenizer = base.render.tokenizer
        for place, key, piece in missing:
            parts[place] = tokens = tokenizer.encode(piece)
            self.memory.put(key, tokens)
        return self._attach_tokens(base, adapter, text, b"".join(parts), prompt)

    def _look_up(
        self, model: ExactModel, text: Text
    ) -> tuple[list[bytes], list[tuple[int, bytes, str]], int]:
        """(ids by piece, pieces not known with their places and keys, characters of these)."""
        assert model.render is not None
        parts: list[bytes] = []
        missing = []
        size = 0
        get = self.memory.get
        for piece in model.render.tokenizer.pieces(text.text):
            if type(piece) is bytes:
                parts.append(piece)
                continue
            assert isinstance(piece, str)
            key = key_of(piece, model.key)
            tokens = get(key)
            if tokens is None:
                missing.append((len(parts), key, piece))
                size += len(piece)
                tokens = b""
            parts.append(tokens)
        return parts, missing, size

    async def _tokenise(
        self, model: ExactModel, parts: list[bytes], missing: list[tuple[int, bytes, str]]
    ) -> bytes:
        assert model.render is not None
        wanted: list[Missing] = [(key, piece) for _, key, piece in missing]
        found = await self.pool.tokens(model.render.tokenizer, wanted)
        for place, key, _ in missing:
            parts[place] = found[key]
        return b"".join(parts)

    async def _deliver(
        self,
        model: ExactModel,
        adapter: str,
        text: Text,
        work: Coroutine[None, None, bytes],
        prompt: Prompt,
        ready: Callable[[], None],
    ) -> None:
        try:
            async with asyncio.timeout(self.settings.exact_budget):
                self._attach_tokens(model, adapter, text, await work, prompt)
        except TimeoutError:
            self._fall_back("budget")
        except Exception:
            log.exception("exact mode: a prompt was not tokenised")
            self._fall_back("fault")
        ready()

    def _attach_tokens(
        self, model: ExactModel, adapter: str, text: Text, tokens: bytes, prompt: Prompt
    ) -> bool:
        self.prompts["exact"] = self.prompts.get("exact", 0) + 1
        assert model.render is not None
        prompt.tokens = TokenPrompt(
            model.render.wrap(text, tokens),
            seed(adapter, text.salt),
            bool(text.salt),
            self.chains,
            model,
        )
        return False

    def _fall_back(self, word: str) -> bool:
        self.prompts[word] = self.prompts.get(word, 0) + 1
        return False

    # It is placed, and answered

    def exact_replicas(self, tokens: PromptTokens) -> int:
        """Mask of the replicas that are exact for a prompt."""
        mask = tokens.replicas & self.current
        if tokens.salted:
            for slot in slots(mask):
                if not self.index.salts_told(slot):
                    mask &= ~(1 << slot)
        return mask

    def held(
        self,
        believed: list[tuple[float, int]],
        tokens: PromptTokens,
        behind: Mapping[int, TierShare] = NOTHING_BEHIND,
    ) -> tuple[list[tuple[float, int]], Mapping[int, TierShare]]:
        """(leading tokens held, mask of holders), deepest first, and by slot what of them lies in
        tiers: as reported, and as believed of the replicas that are not exact for this prompt. For
        a tier that no event reports, what is reported is in GPU memory, and what is believed beyond
        it is in the tier."""
        exact_replicas = self.exact_replicas(tokens)
        found = [(depth, left) for depth, mask in believed if (left := mask & ~exact_replicas)]
        tiers = {slot: each for slot, each in behind.items() if not exact_replicas >> slot & 1}
        index = self.index
        for block, mask in index.sizes.items():
            if mask & exact_replicas:
                chain = tokens.chain(block)
                found += index.match(chain, block, mask & exact_replicas, tiers)
        untold = exact_replicas & (self.behind_salted if tokens.salted else self.behind)
        if untold:
            both = found
            found = [(depth, left) for depth, mask in both if (left := mask & ~untold)]
            for slot in slots(untold):
                here = max((depth for depth, mask in both if mask >> slot & 1), default=0.0)
                most = max((depth for depth, mask in believed if mask >> slot & 1), default=0.0)
                if most > here:
                    tiers[slot] = TierShare(most, {self._untold_medium: most - here})
                    here = most
                if here:
                    found.append((here, 1 << slot))
        found.sort(reverse=True)
        return found, tiers or NOTHING_BEHIND

    def sent(self, tokens: PromptTokens, slot: int, now: float) -> SentPrompt | None:
        """The prompt goes to a replica. None where that one is not exact for it."""
        block = self.index.block(slot)
        if not block or not self.exact_replicas(tokens) >> slot & 1:
            return None
        pending = self.index.expect(slot, tokens.chain(block))
        pending.deadline = now + self.settings.exact_deadline
        self._pending.add(pending)
        return SentPrompt(self, tokens, pending)

    def finished(
        self,
        tokens: PromptTokens,
        pending: PendingPrompt,
        predicted: float,
        cached: int,
        now: float,
    ) -> None:
        """Its answer has ended. predicted: tokens thought to be held; cached: what the engine
        says, -1 when it does not."""
        if pending not in self._pending:
            return
        pending.deadline = min(pending.deadline, now + SETTLE_S)
        slot = pending.slot
        if cached >= 0 and self.exact_replicas(tokens) >> slot & 1:
            most = min(int(predicted), tokens.count - 1)
            self.index.answered(slot, tokens.chain(self.index.block(slot)), most, cached)

    def failed(self, pending: PendingPrompt) -> None:
        """The prompt was not answered."""
        self._pending.discard(pending)
        self.index.give_up(pending)

    # What is known

    def confidence(self, slot: int) -> float:
        """How much of what a replica's engine holds is known, from 0 to 1."""
        replica = self._fleet.replicas[slot]
        if replica is None or not self.current >> slot & 1:
            return 0.0
        if self.index.complete(slot):
            return 1.0
        room = replica.kv_tokens
        return min(1.0, self.index.placed(slot) / room) if room else 0.0

    def next_event(self, slot: int) -> int | None:
        """The number of the batch that comes next: all before are applied. None where events are
        not subscribed to."""
        sequencer = self._sequencer(slot)
        return sequencer.next if sequencer is not None else None

    def event_counts(self, slot: int) -> dict[str, int]:
        """How often each kind of fault happened to a replica's events."""
        sequencer = self._sequencer(slot)
        return {
            "gap": sequencer.gaps if sequencer is not None else 0,
            "cut": sequencer.cuts if sequencer is not None else 0,
            "restart": sequencer.restarts if sequencer is not None else 0,
            "rebuild": sequencer.rebuilds if sequencer is not None else 0,
            "unreadable": sequencer.faults if sequencer is not None else 0,
        }

    @property
    def memory_bytes(self) -> int:
        """What texts' tokens, prompts' hashes and tool calls' arguments take, estimated."""
        return self.memory.nbytes + self.chains.nbytes + arguments.MEMORY.nbytes

    @property
    def memory_tokens(self) -> int:
        """Tokens remembered."""
        return self.memory.tokens

    def why_not(self, slot: int) -> str:
        """Why a replica is not exact, for at least one model; empty when it is for all."""
        listener = self.listeners.get(slot)
        if listener is None or listener.silent:
            return listener.silent if listener is not None else "it is not in the fleet"
        if not self.current >> slot & 1:
            return "its KV events are not heard just now, or some are missing"
        for model in self.models.bases.values():
            if not _serves(listener.replica, model.name):
                continue
            why = model.why or model.different.get(slot, "")
            if why:
                return f"model {model.name}: {why}"
            if not model.mask >> slot & 1:
                return f"model {model.name}: not compared with this engine yet"
        return ""


def _serves(replica: Replica, model: str) -> bool:
    return replica.any_model or model in replica.models
