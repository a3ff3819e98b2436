"""Policies of users' own: whatever is wrong with one is said with its file and line."""

from __future__ import annotations

import inspect
import sysconfig
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from loadgen.live.run import RunError
from router.cli.importing import from_working_directory
from router.policies import PolicyError, load_policy
from router.types import Choice, Load, Policy, RoutingRequest

_LIBRARIES = ("<frozen", *(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib")))
_REGISTRY = inspect.getsourcefile(load_policy) or ""


class PolicyFailedError(RunError):
    """A policy raised, or chose what cannot be chosen."""


class Checked:
    """A policy behind checks. `choose` and `members` raise PolicyFailedError."""

    def __init__(self, name: str, policy: Policy) -> None:
        self._name = name
        self._policy = policy

    def members(self, names: Mapping[int, str]) -> None:
        """Calls the policy's `members`."""
        _guarded(self._name, lambda: self._policy.members(names))

    def choose(self, ask: RoutingRequest, loads: Sequence[Load]) -> Choice:
        """Calls the policy's `choose`, and checks what it returns."""
        choice: Choice = _guarded(self._name, lambda: self._policy.choose(ask, loads))
        wrong = _wrong(choice, ask, len(loads))
        if wrong:
            raise PolicyFailedError(f"policy {self._name}: choose {_place(self._policy)} {wrong}")
        return choice


def own_policy(name: str, **options: object) -> Policy:
    """A policy by its import path, found as `warmroute serve` finds it. Raises PolicyError, and
    PolicyFailedError where its own code raises."""
    from_working_directory(name)
    try:
        policy = _guarded(name, lambda: load_policy(name, **options))
    except PolicyError as error:
        where = _raised(error.__cause__)
        raise PolicyError(f"{error}{where and f' ({where})'}") from error
    return Checked(name, policy)


def try_policy(name: str) -> None:
    """Ask a policy twice, for a new prompt and for one that a replica holds, so that what is wrong
    with it does not end a run in the middle. Raises PolicyError and PolicyFailedError."""
    policy = own_policy(name)
    policy.members({0: "replica-0", 1: "replica-1"})
    loads = [Load(kv_capacity=100_000.0) for _ in range(2)]
    policy.choose(RoutingRequest(0b11, 1000.0, [], 100.0, "", 0, 0.0), loads)
    policy.choose(RoutingRequest(0b11, 1000.0, [(500.0, 0b10)], 100.0, "session", 1, 1.0), loads)


def _guarded(name: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except PolicyError:
        raise
    except Exception as error:
        where = _raised(error)
        said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        raise PolicyFailedError(f"policy {name} raised {said}{where and f' ({where})'}") from error


def _raised(error: BaseException | None) -> str:
    """The file and line that raised: the innermost that is no library's; empty where there is
    none."""
    if isinstance(error, SyntaxError):
        return f"{error.filename}, line {error.lineno}"
    calls = traceback.extract_tb(error.__traceback__) if error else []
    own = [call for call in calls if not call.filename.startswith(_LIBRARIES)]
    if not own or own[-1].filename in (__file__, _REGISTRY):
        return ""
    return f"{own[-1].filename}, line {own[-1].lineno}"


def _place(policy: Policy) -> str:
    """The file and line of a policy's `choose`."""
    try:
        file = inspect.getsourcefile(type(policy).choose)
        _, line = inspect.getsourcelines(type(policy).choose)
    except (OSError, TypeError):
        return ""
    return f"({file}, line {line})"


def _wrong(choice: Any, ask: RoutingRequest, replicas: int) -> str:
    if not isinstance(choice, Choice):
        return f"returned {choice!r:.80}, not a Choice"
    slot = choice.slot
    if not isinstance(slot, int) or isinstance(slot, bool):
        return f"chose the slot {slot!r:.80}, which is no whole number"
    if not 0 <= slot < replicas or not ask.eligible >> slot & 1:
        able = [each for each in range(replicas) if ask.eligible >> each & 1]
        return f"chose the slot {slot}, which is none of ask.eligible (slots {able})"
    if not isinstance(choice.reason, str):
        return f"gave {choice.reason!r:.80} as its reason, which is no text"
    return ""
