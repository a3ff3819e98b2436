"""All settings in a table, made from the fields of Settings."""

from __future__ import annotations

import typing
from typing import Any

import msgspec

from router.config.kinds import Kind
from router.config.serving import GROUPS, SettingInfo
from router.config.settings import Settings


class Row(msgspec.Struct, frozen=True):
    """One setting, with its names and default."""

    name: str
    env: str
    flag: str
    """Refused where the kind is secret."""
    group: str
    kind: Kind
    help: str
    default: Any
    live: bool
    """SIGHUP changes it without a restart."""

    def show(self, value: Any) -> str:
        """The value as text, secrets as stars, nothing set as empty text."""
        return self.kind.format(value)


ENV_PREFIX = "WARMROUTE_"


def _rows() -> dict[str, Row]:
    defaults = Settings()
    rows = {}
    for name, hint in typing.get_type_hints(Settings, include_extras=True).items():
        about: SettingInfo = hint.__metadata__[0]
        flag = about.flag or "--" + name.replace("_", "-")
        rows[name] = Row(
            name=name,
            env=ENV_PREFIX + name.upper(),
            flag=flag,
            group=about.group,
            kind=about.kind,
            help=about.help,
            default=getattr(defaults, name),
            live=about.live,
        )
    return dict(sorted(rows.items(), key=lambda item: GROUPS.index(item[1].group)))


TABLE = _rows()
"""Every setting by name, by group."""
