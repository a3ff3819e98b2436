"""A command line whose errors are one line, with what was probably meant."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any, NoReturn

from loadgen.suggest import did_you_mean

USAGE = 2


class Parser(argparse.ArgumentParser):
    """argparse's, without the usage of every option before an error, and without shortened
    options, which would change their meaning when others are added."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)
        self._given: Sequence[str] = ()

    def error(self, message: str) -> NoReturn:
        strange = self._strange(self._given)
        if strange and strange not in message:
            # What is missing may only be misspelt.
            message = f"{strange}; {message}"
        line = " ".join(message.split())
        self.exit(USAGE, f"{self.prog}: {line}; see {self.prog} --help\n")

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Remembers the arguments, so that an error can name what is misspelt."""
        if self._subparsers is None:
            self._given = args or ()
        return super().parse_known_args(args, namespace)

    def parse_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> argparse.Namespace:
        """As argparse's; what nobody knows is told by the command it was given to."""
        parsed, left = self.parse_known_args(args, namespace)
        if left:
            command: Parser = getattr(parsed, "parser", self)
            said = command._strange(left)
            if not said and left[0].startswith("-"):
                said = f"there is no option {left[0]}"
            command.error(said or f"{left[0]!r} belongs to no option; remove it")
        return parsed

    def _strange(self, arguments: Sequence[str]) -> str:
        """What is said of those that look like options and are none."""
        known = [name for action in self._actions for name in action.option_strings]
        names = [each.partition("=")[0] for each in arguments if each.startswith("--")]
        return ", ".join(
            f"there is no option {name}{did_you_mean(name, known)}"
            for name in names
            if name not in known and name != "--"
        )

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            known = [str(each) for each in action.choices]
            like = did_you_mean(str(value), known)
            raise argparse.ArgumentError(action, f"{value!r} is none{like}; use {', '.join(known)}")
