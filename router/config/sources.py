"""Where settings come from: flags, then the environment, then the file, then defaults."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import yaml

from router.config.checks import cross_check
from router.config.errors import BadValueError, ConfigError, Fault, Problem
from router.config.kinds import Names, Replicas
from router.config.settings import Settings
from router.config.table import ENV_PREFIX, TABLE
from router.unreadable_yaml import UNREADABLE_YAML

CONFIG_ENV = f"{ENV_PREFIX}CONFIG"
"""Names the file where --config does not."""

_NULL = "tag:yaml.org,2002:null"


class Given(NamedTuple):
    """A setting's value as somebody wrote it."""

    text: str
    source: str


class Loaded(msgspec.Struct, frozen=True):
    settings: Settings
    sources: dict[str, str]
    """Where each setting came from that is not at its default by omission."""


def load(
    flags: Mapping[str, str | Sequence[str]] | None = None,
    environ: Mapping[str, str] | None = None,
    path: str = "",
    also: Callable[[Settings], Iterable[Fault]] = lambda _: (),
) -> Loaded:
    """Settings from every source. Flags are by setting name; no source extends another's list.

    `also` is a further check of them all. Reads the files that settings name. Raises ConfigError
    with everything that is wrong.
    """
    environ = {} if environ is None else environ
    found = _Found()
    path = path or environ.get(CONFIG_ENV, "")
    if path:
        _read_file(path, found)
    _read_environment(environ, found)
    _read_flags(flags or {}, found)

    values: dict[str, Any] = {}
    for name, (text, source) in found.given.items():
        try:
            values[name] = TABLE[name].kind.parse(text)
        except BadValueError as error:
            for wrong, fix in error.faults:
                found.problem(name, source, wrong, fix)
    settings = Settings(**values)
    sources = {name: each.source for name, each in found.given.items()}
    for names, wrong, fix in chain(cross_check(settings), also(settings)):
        if found.doubtful.isdisjoint(names):
            places = dict.fromkeys(sources[name] for name in names if name in sources)
            found.problems.append(Problem(" and ".join(names), ", ".join(places), wrong, fix))
    if found.problems:
        raise ConfigError(found.problems)
    return Loaded(settings, sources)


class _Found:
    """What has been read so far."""

    def __init__(self) -> None:
        self.given: dict[str, Given] = {}
        self.problems: list[Problem] = []
        self.doubtful: set[str] = set()
        """Given wrongly, perhaps under another name: nothing follows from their defaults."""

    def problem(self, name: str, source: str, wrong: str, fix: str) -> None:
        self.problems.append(Problem(name, source, wrong, fix))
        self.doubtful.add(name)

    def no_file(self, source: str, wrong: str, fix: str) -> None:
        self.problems.append(Problem("config", source, wrong, fix))
        self.doubtful.update(TABLE)

    def unknown(self, name: str, source: str, names: Mapping[str, str]) -> None:
        """names: each name as this source writes it -> the setting."""
        # The value stays out of it: a mistyped name may be that of a secret.
        like = nearest(name, names)
        fix = (
            f"did you mean {like}?"
            if like
            else "remove it; docs/reference/configuration.md lists the settings"
        )
        self.problems.append(Problem(name, source, "no setting has this name", fix))
        if like:
            self.doubtful.add(names[like])


def nearest(name: str, names: Iterable[str]) -> str:
    """The one of the names most like this one, or empty text."""

    def plain(text: str) -> str:
        return text.removeprefix(ENV_PREFIX).lower().replace("-", "_").strip("_")

    by_plain = {plain(each): each for each in names}
    found = difflib.get_close_matches(plain(name), by_plain, n=1, cutoff=0.7)
    return by_plain[found[0]] if found else ""


def _read_flags(flags: Mapping[str, str | Sequence[str]], found: _Found) -> None:
    for name, text in flags.items():
        joined = text if isinstance(text, str) else "\n".join(text)
        found.given[name] = Given(joined, TABLE[name].flag)


# What Kubernetes puts into every pod for a Service called warmroute or warmroute-something.
_SERVICE_LINK = re.compile(r".*_(SERVICE_HOST|SERVICE_PORT(_.+)?|PORT_[0-9]+_(TCP|UDP|SCTP)(_.+)?)")
_SERVICE_URL = re.compile(r"(tcp|udp|sctp)://.+:[0-9]+")


def _read_environment(environ: Mapping[str, str], found: _Found) -> None:
    by_env = {row.env: name for name, row in TABLE.items()}
    for env, text in environ.items():
        if not env.startswith(ENV_PREFIX) or env == CONFIG_ENV:
            continue
        secret = env in by_env and TABLE[by_env[env]].kind.secret
        if not text.strip() and not secret:
            continue
        if _SERVICE_LINK.fullmatch(env):
            continue
        if env.endswith("_PORT") and _SERVICE_URL.fullmatch(text.strip()):
            continue
        if env in by_env:
            found.given[by_env[env]] = Given(text, env)
        else:
            found.unknown(env, "the environment", by_env)


def _read_file(path: str, found: _Found) -> None:
    """Reads a YAML mapping of names to values. Scalars are taken as written, typed or not."""
    try:
        root = yaml.compose(Path(path).read_text("utf-8"), Loader=yaml.SafeLoader)
    except OSError as error:
        found.no_file(path, f"cannot be read: {error.strerror}", "give a file that can be read")
    except UnicodeDecodeError:
        found.no_file(path, "is not UTF-8 text", "save it as UTF-8")
    except UNREADABLE_YAML as error:
        found.no_file(*_not_yaml(path, error))
    else:
        if isinstance(root, yaml.MappingNode):
            _read_mapping(path, root, found)
        elif root is not None and root.tag != _NULL:
            found.no_file(path, "is not a mapping", "write one `name: value` on each line")


def _read_mapping(path: str, root: yaml.MappingNode, found: _Found) -> None:
    names = {name: name for name in TABLE}
    seen: dict[str, str] = {}
    for key, node in root.value:
        place = f"{path}:{key.start_mark.line + 1}"
        if not isinstance(key, yaml.ScalarNode):
            found.problem("config", place, "a setting's name is not text", "write `name: value`")
            continue
        name = key.value
        if name not in TABLE:
            found.unknown(name, place, names)
        elif name in seen:
            found.problem(name, place, f"is already set at {seen[name]}", "keep one of the two")
        elif node.tag != _NULL or TABLE[name].kind.secret:
            kind = TABLE[name].kind
            wants_list = isinstance(kind, Names | Replicas)
            text = "" if node.tag == _NULL else _node_text(node, wants_list=wants_list)
            if text is None:
                found.problem(name, place, "is a list or mapping", f"give {kind.describe()}")
            else:
                found.given[name] = Given(text, place)
        seen.setdefault(name, place)


def _node_text(node: yaml.Node, *, wants_list: bool) -> str | None:
    """A scalar as written, or a list of scalars on lines of their own; None for anything else."""
    if isinstance(node, yaml.ScalarNode):
        return str(node.value)
    if not wants_list or not isinstance(node, yaml.SequenceNode):
        return None
    if not all(isinstance(item, yaml.ScalarNode) for item in node.value):
        return None
    return "\n".join(item.value for item in node.value)


def _not_yaml(path: str, error: Exception) -> tuple[str, str, str]:
    """The parser's complaint without the file's own words, which may be secret."""
    place, said = path, "it cannot be parsed"
    if isinstance(error, RecursionError):
        said = "it is nested too deeply"
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        if mark is not None:
            place = f"{path}:{mark.line + 1}:{mark.column + 1}"
        if error.problem:
            said = re.sub(r"(['\"])(?!<)[^'\"]{2,}\1", "something", error.problem)
    return place, f"is not YAML: {said}", "correct the line, or put its value into quotes"
