"""Which replica serves which model, LoRA adapters included."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec

from router.types import slots

MAX_MODELS_BYTES = 1024 * 1024
"""The most bytes of an answer to /v1/models that are read."""
NO_MODEL = ""
"""The model of a request that names none: every replica takes it for its own."""
MAX_ABSENT_MODELS: Final = 1024
"""The most names of models without a replica that are remembered."""
UNBOUNDED: Final = 1 << 62
"""The max_model_len of a replica that does not report one."""

Levels = tuple[tuple[int, int], ...]
"""(max_model_len, mask of the replicas that take so much or more), ascending."""


class ModelCard(msgspec.Struct, frozen=True, gc=False):
    """One entry of an engine's /v1/models."""

    id: str
    raw: bytes
    """The entry as the engine wrote it, one JSON object."""
    parent: str = ""
    """The base model, where this is a LoRA adapter: one of its names, or its root."""
    length: int = UNBOUNDED
    """max_model_len, the most tokens of prompt and answer together."""
    root: str = ""
    """Where the engine has it from; all names of one model have the same. Empty when it does not
    say."""
    owned_by: str = ""
    """The entry's owner; "vllm" if the engine is vLLM."""

    @property
    def told(self) -> tuple[str, str, int, str]:
        """The fields that routing reads. Others, such as `created`, change with every answer."""
        return self.id, self.parent, self.length, self.root


class _List(msgspec.Struct):
    data: list[msgspec.Raw]


class _Card(msgspec.Struct):
    id: str
    parent: Any = None
    max_model_len: Any = None
    root: Any = None
    owned_by: Any = None


_list_decoder = msgspec.json.Decoder(_List)
_card_decoder = msgspec.json.Decoder(_Card)


def named_card(name: str) -> ModelCard:
    """The entry of a model of which only the name is known."""
    entry = {"id": name, "object": "model", "created": 0, "owned_by": "vllm"}
    return ModelCard(name, msgspec.json.encode(entry))


def parse_models(body: bytes) -> tuple[ModelCard, ...]:
    """Read an answer to GET /v1/models. Raises ValueError when it is not a list of models."""
    try:
        cards: dict[str, ModelCard] = {}
        for raw in _list_decoder.decode(body).data:
            card = _card_decoder.decode(raw)
            length = card.max_model_len
            found = ModelCard(
                card.id,
                bytes(raw),
                _text(card.parent),
                length if isinstance(length, int) and length > 0 else UNBOUNDED,
                _text(card.root),
                _text(card.owned_by),
            )
            cards.setdefault(card.id, found)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"not a list of models: {error}") from None
    if NO_MODEL in cards:
        raise ValueError("not a list of models: one has an empty id")
    return tuple(cards.values())


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


class Masks(dict[str, int]):
    """Model -> mask of the replicas that serve it."""

    untold = 0
    """Mask of the replicas taken to serve every model: a part of every mask here, and the mask of
    each model that is not here."""

    def __missing__(self, model: str) -> int:
        return self.untold


class Catalog:
    """Model name -> mask of the replicas that serve it.

    A replica that has loaded a LoRA adapter by itself, for a request that named it (vLLM's LoRA
    resolvers), is taken to do so for others, and so are those with the same base models: they serve
    every adapter that one of them serves, until one refuses it.

    Its mutable state: what each replica told, the masks that follow from it, the names of models
    that are away, which replicas load adapters by themselves, and what these refused.
    """

    def __init__(self) -> None:
        self._cards: dict[int, tuple[ModelCard, ...]] = {}
        self._masks = Masks({NO_MODEL: 0})
        """By what was told alone."""
        self._serving = Masks(self._masks)
        self.serving: Callable[[str], int] = self._serving.__getitem__
        """The mask of the replicas that serve a model; 0 when nobody does. It is a dict's own, as
        it is asked for each request."""
        self.parents: dict[str, str] = {}
        """LoRA adapter -> its base model. It stays the same object."""
        self._loaders = 0
        """Mask of the replicas that were seen to load an adapter by themselves."""
        self._answered: dict[int, str] = {}
        """Slot -> the name that it answered to last without having listed it. Engines of some kinds
        answer to any name: only if it lists that as an adapter next, it has loaded it."""
        self._refused: dict[str, int] = {}
        """Adapter -> mask of the replicas that do not have it, the oldest first."""
        self._union: tuple[ModelCard, ...] | None = ()
        self._mixed: bool | None = False
        self._away: dict[str, str] = {}
        """Name whose last replica left, the oldest first -> its base model, as parent has it."""
        self.lengths: dict[str, Levels] = {}
        """Of the models whose replicas have more than one max_model_len; most fleets have none."""

    def parent(self, model: str) -> str:
        """The base model of a LoRA adapter that a replica has or had when it left; empty for all
        else."""
        return self.parents.get(model) or self._away.get(model, "")

    def away(self, model: str) -> bool:
        """Whether its last replica left the fleet, as opposed to no longer serving it."""
        return model in self._away

    def alike(self, mask: int) -> int:
        """The replicas that serve the same base models as some of these do, themselves included."""
        bases = {self._bases(slot) for slot in slots(mask)}
        return mask | sum(1 << slot for slot in self._cards if self._bases(slot) in bases)

    def _bases(self, slot: int) -> frozenset[str]:
        return frozenset(card.id for card in self._cards.get(slot, ()) if not card.parent)

    def told(self, slot: int) -> tuple[tuple[str, str, int, str], ...] | None:
        """The fields that routing reads of a replica's cards; None before the replica listed its
        models."""
        cards = self._cards.get(slot)
        return None if cards is None else tuple(card.told for card in cards)

    @property
    def known(self) -> bool:
        """Whether any replica has listed its models.

        Before that, no model can be called unknown.
        """
        return bool(self._masks.untold or self._cards)

    @property
    def mixed(self) -> bool:
        """Whether no model is served by all replicas that have listed theirs."""
        if self._mixed is None:
            told = self._masks.untold
            for slot in self._cards:
                told |= 1 << slot
            self._mixed = bool(self._cards) and not any(
                mask & told == told for name, mask in self._masks.items() if name != NO_MODEL
            )
        return self._mixed

    @property
    def untold(self) -> int:
        """The mask of the replicas that refuse to list their models."""
        return self._masks.untold

    @property
    def union(self) -> tuple[ModelCard, ...]:
        """Every model once: as the replica with the largest max_model_len describes it, the lowest
        slot of several."""
        if self._union is None:
            found: dict[str, ModelCard] = {}
            for slot in sorted(self._cards):
                for card in self._cards[slot]:
                    other = found.setdefault(card.id, card)
                    if other.length < card.length < UNBOUNDED:
                        found[card.id] = card
            self._union = tuple(found.values())
        return self._union

    def cards(self, slot: int) -> tuple[ModelCard, ...]:
        """The models that a replica listed; empty when it did not, or serves any model."""
        return self._cards.get(slot, ())

    def join(self, slot: int) -> None:
        """Add a replica whose models are not known yet."""
        self._masks[NO_MODEL] |= 1 << slot
        self._serving[NO_MODEL] |= 1 << slot

    def join_as(self, slot: int, other: int) -> None:
        """Add a further rank of a replica. It serves the same models."""
        self.join(slot)
        if self._masks.untold >> other & 1:
            self.tell_any(slot)
        elif other in self._cards:
            self.tell(slot, self._cards[other])

    def tell(self, slot: int, cards: Iterable[ModelCard]) -> None:
        """Set the models that a replica listed."""
        self._forget(slot)
        self._mixed = None
        self._cards[slot] = told = tuple(cards)
        for card in told:
            self._masks[card.id] |= 1 << slot
            self._away.pop(card.id, None)
            if card.parent and self._answered.get(slot) == card.id:
                self._loaders |= 1 << slot
            if card.id in self._refused:
                self._unrefuse(card.id, 1 << slot)
        self._derive()

    def tell_any(self, slot: int) -> None:
        """Take a replica that does not list its models to serve every model."""
        self._forget(slot)
        self._masks.untold |= 1 << slot
        for name in self._masks:
            self._masks[name] |= 1 << slot
        self._derive()

    def leave(self, slot: int) -> None:
        """A replica left. What only it served is away: the engine did not say that it is gone."""
        for card in self._forget(slot):
            if card.id not in self._masks:
                self._away[card.id] = card.parent
        while len(self._away) > MAX_ABSENT_MODELS:
            del self._away[next(iter(self._away))]
        self._masks[NO_MODEL] &= ~(1 << slot)
        self._loaders &= ~(1 << slot)
        self._answered.pop(slot, None)
        for name in list(self._refused):
            self._unrefuse(name, 1 << slot)
        self._derive()

    def answered(self, slot: int, model: str) -> None:
        """A replica was asked for a model that it had not listed, and answered."""
        self._answered[slot] = model

    def refuses(self, mask: int, model: str) -> None:
        """These replicas were asked for an adapter, and did not have it."""
        if mask & ~self._refused.get(model, 0) and model in self.parents:
            self._refused[model] = self._refused.pop(model, 0) | mask
            while len(self._refused) > MAX_ABSENT_MODELS:
                del self._refused[next(iter(self._refused))]
            self._derive()

    def _unrefuse(self, model: str, mask: int) -> None:
        left = self._refused.get(model, 0) & ~mask
        if left:
            self._refused[model] = left
        else:
            self._refused.pop(model, None)

    def _forget(self, slot: int) -> tuple[ModelCard, ...]:
        """Drop and return what a replica told; it stays one of those a request without a model may
        go to."""
        self._union = self._mixed = None
        others = ~(1 << slot)
        forgotten = self._cards.pop(slot, ())
        for card in forgotten:
            mask = self._masks[card.id] & others
            if mask & ~self._masks.untold:
                self._masks[card.id] = mask
            else:
                del self._masks[card.id]
        if self._masks.untold & ~others:
            self._masks.untold &= others
            for name in self._masks:
                if name != NO_MODEL:
                    self._masks[name] &= others
        return forgotten

    def _derive(self) -> None:
        """Recompute everything that follows from the cards of all replicas."""
        self._union = None
        self.parents.clear()
        lengths: dict[str, dict[int, int]] = {}
        for slot, cards in self._cards.items():
            for card in cards:
                if card.parent:
                    self.parents[card.id] = card.parent
                masks = lengths.setdefault(card.id, {})
                masks[card.length] = masks.get(card.length, 0) | 1 << slot
        self.lengths.clear()
        self.lengths.update(
            (name, _levels(masks, self._masks.untold))
            for name, masks in lengths.items()
            if len(masks) > 1
        )
        self._serving.clear()
        self._serving.update(self._masks)
        self._serving.untold = self._masks.untold
        if self._loaders:
            self._extend()

    def _extend(self) -> None:
        """Let those that load adapters by themselves serve what replicas like them serve."""
        groups: dict[frozenset[str], int] = {}
        for slot in self._cards:
            bases = self._bases(slot)
            groups[bases] = groups.get(bases, 0) | 1 << slot
        loading = [mask for mask in groups.values() if mask & self._loaders]
        for name in self.parents:
            mask = self._masks[name]
            for group in loading:
                if group & mask:
                    mask |= group & ~self._refused.get(name, 0)
            self._serving[name] = mask


def _levels(masks: dict[int, int], untold: int) -> Levels:
    """From the masks of the replicas with just that length; untold: those that do not tell."""
    mask = untold
    levels = []
    for length in sorted(masks, reverse=True):
        mask |= masks[length]
        levels.append((length, mask))
    return tuple(reversed(levels))
