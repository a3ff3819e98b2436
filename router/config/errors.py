"""What is wrong with the settings: every problem at once, each with its place and its fix."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

Fault = tuple[tuple[str, ...], str, str]
"""(the settings involved, what is wrong, how to mend it)"""


class BadValueError(ValueError):
    """A text that a setting refuses. Each fault is (what is wrong with it, how to mend it)."""

    def __init__(self, *faults: tuple[str, str]) -> None:
        super().__init__("; ".join(f"{wrong}: {fix}" for wrong, fix in faults))
        self.faults = faults


class Problem(msgspec.Struct, frozen=True):
    """One thing to mend. No field ever holds a secret."""

    setting: str
    """The setting's name, or the name as it was written where there is no such setting."""
    source: str
    """The flag, environment variable or file:line it came from; empty when it was given nowhere."""
    wrong: str
    fix: str

    def __str__(self) -> str:
        place = f" (from {self.source})" if self.source else ""
        return f"{self.setting}: {self.wrong}{place}\n    {self.fix}"


class ConfigError(Exception):
    """The settings cannot be used. `problems` holds everything that is wrong with them."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, self.problems)))
