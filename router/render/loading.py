"""Knows which models can be tokenised here, and for which replicas that was seen to be right."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx
import msgspec

from router.config import Settings
from router.fleet.models import ModelCard
from router.fleet.replica import Replica
from router.render.check import compare
from router.render.errors import ModelError
from router.render.memory import new_seed
from router.render.model import RenderModel, find_folder

log = logging.getLogger(__name__)

CHECK_SECONDS = 20.0


class _Card(msgspec.Struct):
    id: str
    root: str | None = None
    parent: str | None = None


_card = msgspec.json.Decoder(_Card)


def place_of(setting: str, model: str, root: str) -> str:
    """Where a model's tokenizer is: as set (`exact_tokenizer`), else where its engine
    says that the model is, else what it is called."""
    everywhere = ""
    for entry in setting.split(","):
        name, equals, place = entry.strip().rpartition("=")
        if equals and name == model:
            return place
        if not equals:
            everywhere = place or everywhere
    return everywhere or root or model


class ExactModel:
    """A base model. `mask` has the replicas whose engine makes the same tokens as the router."""

    def __init__(self, name: str, place: str) -> None:
        self.name = name
        self.place = place
        self.key = new_seed()
        """What its texts are remembered with."""
        self.render: RenderModel | None = None
        self.mask = 0
        self.why = "its tokenizer is being loaded"
        """Why it is not tokenised here; empty when it is."""
        self.different: dict[int, str] = {}
        """slot -> why that engine's tokens are not ours."""
        self._checked: dict[int, int] = {}
        """slot -> the restarts it had had when it was checked."""
        self._checking: set[int] = set()

    def forget(self, slot: int) -> None:
        """Forget the comparison with the slot's engine, which may be another engine now."""
        self.mask &= ~(1 << slot)
        self.different.pop(slot, None)
        self._checked.pop(slot, None)

    def wants_check(self, replica: Replica) -> bool:
        """Whether the router has not compared tokens with this engine since the engine started."""
        return (
            self.render is not None
            and replica.slot not in self._checking
            and self._checked.get(replica.slot) != replica.restarts
        )

    async def check(self, client: httpx.AsyncClient, replica: Replica) -> None:
        """Compare with an engine, once for each of its lives, for all of its ranks."""
        assert self.render is not None
        slot, life = replica.slot, replica.restarts
        self._checking.add(slot)
        try:
            async with asyncio.timeout(CHECK_SECONDS):
                why = await compare(client, replica.url, self.name, self.render)
        except (httpx.HTTPError, TimeoutError) as error:
            log.debug("replica %s: not compared: %r", replica.name, error)
            return  # asked again soon
        finally:
            self._checking.discard(slot)
        if life != replica.restarts:
            return
        self._checked[slot] = life
        for rank in replica.ranks:
            if why:
                self.different[rank.slot] = why
                self.mask &= ~rank.bit
            else:
                self.different.pop(rank.slot, None)
                self.mask |= rank.bit
        if why:
            log.warning(
                "replica %s: model %s is routed by the byte-block index: %s",
                replica.name,
                self.name,
                why,
            )
        else:
            log.info(
                "replica %s: model %s is tokenised as the engine does", replica.name, self.name
            )


class ExactModels:
    """Maps every model name that the fleet serves to its base model and adapter."""

    def __init__(self, settings: Settings, changed: Callable[[], None]) -> None:
        self._settings = settings
        self._changed = changed
        self._cards: tuple[ModelCard, ...] = ()
        self._template = ""
        self.bases: dict[str, ExactModel] = {}
        self._names: dict[str, tuple[ExactModel, str]] = {}
        self._loading: set[asyncio.Task[None]] = set()

    def find(self, name: str) -> tuple[ExactModel, str] | None:
        """The base model and adapter of a model name; None when the name is not known."""
        return self._names.get(name)

    def update(self, cards: Sequence[ModelCard]) -> None:
        """Take over the fleet's list of models. Costs nothing while it stays the same."""
        told = tuple(cards)
        if told == self._cards:
            return
        self._cards = told
        if self._settings.exact_chat_template:
            self._template = Path(self._settings.exact_chat_template).read_text("utf-8")
        names: dict[str, tuple[ExactModel, str]] = {}
        bases: dict[str, ExactModel] = {}
        adapters: list[_Card] = []
        for card in told:
            try:
                about = _card.decode(card.raw)
            except msgspec.DecodeError:
                about = _Card(card.id)
            if about.parent:
                adapters.append(about)
                continue
            place = place_of(self._settings.exact_tokenizer, card.id, about.root or "")
            model = self.bases.get(card.id)
            if model is None or model.place != place:
                model = ExactModel(card.id, place)
                self._load(model)
            bases[card.id] = model
            names[card.id] = (model, "")
        for about in adapters:
            base = bases.get(about.parent or "") or _by_root(bases, about.parent or "")
            if base is not None:
                names[about.id] = (base, about.id)
        if len(bases) == 1:
            names[""] = (next(iter(bases.values())), "")
        self.bases, self._names = bases, names

    def close(self) -> None:
        """Cancel the loads in progress."""
        for task in self._loading:
            task.cancel()

    def _load(self, model: ExactModel) -> None:
        task = asyncio.get_running_loop().create_task(self._load_now(model))
        self._loading.add(task)
        task.add_done_callback(self._loading.discard)

    async def _load_now(self, model: ExactModel) -> None:
        try:
            model.render = await asyncio.to_thread(self._read, model.place)
            model.why = ""
        except ModelError as error:
            model.why = str(error)
            log.warning("model %s is routed by the byte-block index: %s", model.name, error)
        self._changed()

    def _read(self, place: str) -> RenderModel:
        folder = find_folder(place, download=self._settings.exact_download)
        return RenderModel(folder, self._template)


def _by_root(bases: dict[str, ExactModel], root: str) -> ExactModel | None:
    """vLLM names an adapter's parent by the base model's first name, or by its place."""
    return next((model for model in bases.values() if model.place == root), None)
