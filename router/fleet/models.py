"""Which replica serves which model, LoRA adapters included."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import msgspec

LONGEST_ANSWER = 1024 * 1024
"""Bytes of an answer to /v1/models that are read."""
ABSENT = ""
"""The model of a request that names none: every replica takes it for its own."""


class ModelCard(msgspec.Struct, frozen=True, gc=False):
    """One entry of an engine's /v1/models."""

    id: str
    raw: bytes
    """The entry as the engine wrote it: one JSON object."""
    root: str = ""
    """Where the engine has it from; all names of one model have the same. Empty when not told."""
    parent: str = ""
    """An adapter's base model: one of its names, or its root. Empty for a base model."""
    owned_by: str = ""
    """"vllm" where the engine is vLLM."""


class _List(msgspec.Struct):
    data: list[msgspec.Raw]


class _Card(msgspec.Struct):
    id: str
    root: Any = None
    parent: Any = None
    owned_by: Any = None


_list_decoder = msgspec.json.Decoder(_List)
_card_decoder = msgspec.json.Decoder(_Card)


def named_card(name: str) -> ModelCard:
    """The entry of a model of which nothing but the name is known."""
    entry = {"id": name, "object": "model", "created": 0, "owned_by": "vllm"}
    return ModelCard(name, msgspec.json.encode(entry))


def parse_models(body: bytes) -> tuple[ModelCard, ...]:
    """Read an answer to GET /v1/models. Raises ValueError when it is not a list of models."""
    try:
        cards: dict[str, ModelCard] = {}
        for raw in _list_decoder.decode(body).data:
            card = _card_decoder.decode(raw)
            cards.setdefault(
                card.id,
                ModelCard(
                    card.id,
                    bytes(raw),
                    _text(card.root),
                    _text(card.parent),
                    _text(card.owned_by),
                ),
            )
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"not a list of models: {error}") from None
    if ABSENT in cards:
        raise ValueError("not a list of models: one has an empty id")
    return tuple(cards.values())


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


class Catalog:
    """Model name -> mask of the replicas that serve it.

    Its mutable state: what each replica told, and the masks that follow from it.
    """

    def __init__(self) -> None:
        self._cards: dict[int, tuple[ModelCard, ...]] = {}
        self._any = 0
        """Mask of the replicas taken to serve every model: a part of every mask below."""
        self._masks: dict[str, int] = {ABSENT: 0}
        self._union: tuple[ModelCard, ...] | None = ()

    def serving(self, model: str) -> int:
        """The mask of the replicas that serve it; 0 when nobody does."""
        return self._masks.get(model, self._any)

    @property
    def known(self) -> bool:
        """Whether any replica's models are known: without, "no such model" cannot be said."""
        return bool(self._any or self._cards)

    @property
    def union(self) -> tuple[ModelCard, ...]:
        """Every model once, as the lowest slot that has it describes it."""
        if self._union is None:
            found: dict[str, ModelCard] = {}
            for slot in sorted(self._cards):
                for card in self._cards[slot]:
                    found.setdefault(card.id, card)
            self._union = tuple(found.values())
        return self._union

    def join(self, slot: int) -> None:
        """A replica whose models are not known yet."""
        self._masks[ABSENT] |= 1 << slot

    def tell(self, slot: int, cards: Iterable[ModelCard]) -> None:
        """A replica's models are these."""
        self._forget(slot)
        self._cards[slot] = told = tuple(cards)
        for card in told:
            self._masks[card.id] = self._masks.get(card.id, self._any) | 1 << slot

    def tell_any(self, slot: int) -> None:
        """A replica would not tell: take it to serve every model."""
        self._forget(slot)
        self._any |= 1 << slot
        for name in self._masks:
            self._masks[name] |= 1 << slot

    def leave(self, slot: int) -> None:
        """A replica left."""
        self._forget(slot)
        self._masks[ABSENT] &= ~(1 << slot)

    def _forget(self, slot: int) -> None:
        """Drop what a replica told; it stays one of those a request without a model may go to."""
        self._union = None
        others = ~(1 << slot)
        for card in self._cards.pop(slot, ()):
            mask = self._masks[card.id] & others
            if mask & ~self._any:
                self._masks[card.id] = mask
            else:
                del self._masks[card.id]
        if self._any & ~others:
            self._any &= others
            for name in self._masks:
                if name != ABSENT:
                    self._masks[name] &= others
