"""What is known of the models: which names are one model, and how its chat template orders prompts.

An engine is asked once for each model, when it is first found ready, and again when it restarts.
Never on the way of a request.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import msgspec

from router.fleet.models import NO_MODEL, ModelCard
from router.fleet.reader import Reader, ReadError
from router.fleet.template_probe import (
    USUAL_ARGUMENTS,
    TemplateProbe,
    Tokens,
    UnansweredError,
)
from router.types import DEFAULT_TRAITS, TemplateTraits

log = logging.getLogger(__name__)

ENGINE: Final = "vllm"
"""The owner of models whose engine has /tokenize."""
MAX_PROBE_BYTES: Final = 256 * 1024
"""The most bytes of an answer to a probe that are read."""
MAX_ARGUMENTS: Final = 64
"""Template arguments that are tried for one model; those of hostile clients must end somewhere."""
MAX_ARGUMENT_CHARACTERS: Final = 256
MAX_ATTEMPTS: Final = 3
"""How often an engine is asked that does not answer in time."""
REFUSAL_STATUSES: Final = (400, 422, 500)
"""Statuses with which an engine says that its template refuses a prompt."""


class _Tokenised(msgspec.Struct):
    tokens: list[int]


class _Counted(msgspec.Struct):
    input_tokens: int


_tokens_of = msgspec.json.Decoder(_Tokenised).decode
_count_of = msgspec.json.Decoder(_Counted).decode


class _Model(msgspec.Struct):
    """One model that an engine serves, under however many names."""

    asked: str
    """The replica that the questions go or went to."""
    probe: TemplateProbe | None = None
    """None if the engine does not answer the questions."""
    traits: TemplateTraits = DEFAULT_TRAITS
    busy: bool = False
    attempts: int = 0
    wanted: dict[bytes, None] = msgspec.field(
        default_factory=lambda: dict.fromkeys(USUAL_ARGUMENTS)
    )
    """Template arguments that are still to be tried."""


class Templates:
    """The mutable state: `models`, and what each was found to be."""

    def __init__(self) -> None:
        self.models: Mapping[str, TemplateTraits] = {}
        """By the name that requests give a model. Replaced as a whole."""
        self._found: dict[str, _Model] = {}
        self._cards: Sequence[ModelCard] = ()

    def served(self, cards: Iterable[ModelCard]) -> None:
        """Take over the list of models that the fleet serves now."""
        self._cards = tuple(cards)
        names = {card.id for card in self._cards}
        self._found = {name: found for name, found in self._found.items() if name in names}
        self._publish()

    def restarted(self, replica: str) -> None:
        """It may have another version or another template now: ask anew, and go on with what is
        known until then."""
        for found in self._found.values():
            if found.asked == replica and not found.busy:
                found.probe = None
                found.attempts = 0
                found.wanted = dict.fromkeys((*USUAL_ARGUMENTS, *found.traits.arguments))

    def unknown(self, model: str, arguments: Iterable[bytes]) -> None:
        """Note template arguments of a request that were not yet tried on its model."""
        found = self._found.get(model)
        if found is None:
            return
        for pair in arguments:
            if (
                len(pair) <= MAX_ARGUMENT_CHARACTERS
                and pair not in found.traits.arguments
                and len(found.wanted) + len(found.traits.arguments) < MAX_ARGUMENTS
            ):
                found.wanted[pair] = None

    async def ask(
        self, replica: str, cards: Sequence[ModelCard], reader: Reader, within: float
    ) -> None:
        """Ask a ready replica about those of its models of which something is not known, all within
        `within` seconds. Never raises ReadError."""
        names: dict[str, list[str]] = {}
        for card in cards:
            if not card.parent and card.owned_by == ENGINE:
                names.setdefault(card.root or card.id, []).append(card.id)
        for aliases in names.values():
            found = next((self._found[name] for name in aliases if name in self._found), None)
            if found is None:
                found = _Model(replica)
            new = [name for name in aliases if name not in self._found]
            for name in new:
                self._found[name] = found
            if not found.busy and found.attempts < MAX_ATTEMPTS and found.wanted:
                await self._ask(found, replica, aliases[0], reader, within)
            elif new:
                self._publish()

    async def _ask(
        self, found: _Model, replica: str, name: str, reader: Reader, within: float
    ) -> None:
        found.busy = True
        found.asked = replica
        try:
            async with asyncio.timeout(within):
                await self._probe(found, name, reader, within)
        except (ReadError, TimeoutError) as error:
            found.attempts += 1
            log.debug("replica %s: its template of %s was not asked: %s", replica, name, error)
        except UnansweredError as error:
            found.attempts = MAX_ATTEMPTS
            log.info(
                "replica %s: how the chat template of %s orders a prompt is not known; "
                "what most do is assumed: %s",
                replica,
                name,
                error,
            )
        finally:
            found.busy = False
            if found.probe is not None:
                found.traits = found.probe.traits
            self._publish()

    async def _probe(self, found: _Model, name: str, reader: Reader, within: float) -> None:
        async def tokens(body: Mapping[str, Any]) -> Tokens | None:
            answer = await reader.post(
                "/tokenize", msgspec.json.encode({"model": name, **body}), MAX_PROBE_BYTES, within
            )
            if answer.status in REFUSAL_STATUSES:
                return None
            if answer.status != 200:
                raise UnansweredError(f"/tokenize answered {answer.status}")
            try:
                return _tokens_of(answer.body).tokens
            except msgspec.DecodeError:
                raise UnansweredError("/tokenize answered no tokens") from None

        async def count(body: Mapping[str, Any]) -> int:
            answer = await reader.post(
                "/v1/messages/count_tokens",
                msgspec.json.encode({"model": name, **body}),
                MAX_PROBE_BYTES,
                within,
            )
            try:
                return _count_of(answer.body).input_tokens if answer.status == 200 else 0
            except msgspec.DecodeError:
                return 0

        probe = found.probe or TemplateProbe()
        probe.asks(tokens, count)
        if found.probe is None:
            await probe.order()
            found.probe = probe
            traits = probe.traits
            log.info(
                "model %s: its chat template has the tools %s, an inline system message is %s, "
                "reasoning is rendered %s",
                name,
                traits.tools.value,
                traits.system.value,
                traits.reasoning.value,
            )
        else:
            await probe.again()
        while found.wanted:
            pair = next(iter(found.wanted))
            await probe.argument(pair)
            del found.wanted[pair]

    def _publish(self) -> None:
        """Give the parsers what is known now."""
        models: dict[str, TemplateTraits] = {}
        roots: dict[str, str] = {}
        for card in self._cards:
            if card.parent:
                continue
            found = self._found.get(card.id)
            traits = DEFAULT_TRAITS if found is None else found.traits
            models[card.id] = msgspec.structs.replace(traits, cache=card.root or card.id)
            roots.setdefault(card.root or card.id, card.id)
        for card in self._cards:
            base = models.get(card.parent) or models.get(roots.get(card.parent, NO_MODEL))
            if card.parent and base is not None:
                models[card.id] = msgspec.structs.replace(base, cache=card.id)
        if len(roots) == 1:
            (only,) = roots.values()
            models[NO_MODEL] = models[only]
        self.models = models
