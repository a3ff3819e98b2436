"""Exact mode, made from the settings."""

from __future__ import annotations

from router.config import Settings
from router.exact.mode import ExactMode, ExactSettings
from router.exact.placing import ExactPlacer
from router.fleet.fleet import Fleet
from router.kv_events.subscriptions import EventSettings
from router.render.loading import ModelSettings
from router.types import Policy, PrefixIndex


def exact_placer(
    settings: Settings,
    fleet: Fleet,
    index: PrefixIndex,
    policy: Policy,
    learn_speed: bool,
    bytes_per_token: float,
) -> tuple[ExactMode, ExactPlacer]:
    """Exact mode and the placer that uses it."""
    exact = ExactMode(exact_settings(settings), fleet)
    placer = ExactPlacer(
        exact,
        index,
        policy,
        fleet.loads,
        learn_speed=learn_speed,
        bytes_per_token=bytes_per_token,
    )
    return exact, placer


def exact_settings(settings: Settings) -> ExactSettings:
    """The part of the settings that is exact mode's."""
    return ExactSettings(
        listen=EventSettings(
            events=settings.exact_events,
            replay=settings.exact_replay,
            topic=settings.exact_topic,
            ranks=settings.exact_ranks,
        ),
        models=ModelSettings(
            tokenizer=settings.exact_tokenizer,
            template=settings.exact_chat_template,
            download=settings.exact_download,
        ),
        budget=settings.exact_budget,
        deadline=settings.exact_deadline,
        memory=settings.exact_memory,
        largest=settings.exact_max_body,
        threads=settings.exact_threads,
    )
