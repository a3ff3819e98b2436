"""The file of overflow targets, tried in its order.

targets:
  - name: cloud                   # in x-warmroute-overflow, metrics and logs
    url: https://api.example.com  # without /v1
    key_file: /run/secrets/cloud  # or key_env: the variable that holds the key; never the key
    key_header: authorization     # or x-api-key
    models: {llama: llama-large}  # name here -> name there
    prompt_price: 0.5             # money for a million tokens
    output_price: 1.5
    daily_budget: 20              # money for a UTC day, for each router
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from typing import Annotated, Final, Literal

import msgspec
import yaml

from router.config.address import Address, AddressError, parse_address
from router.unreadable_yaml import UNREADABLE_YAML

MAX_FILE_BYTES: Final = 1024 * 1024
_Price = Annotated[float, msgspec.Meta(ge=0, le=1e6)]
_Money = Annotated[float, msgspec.Meta(gt=0, le=1e9)]
_Model = Annotated[str, msgspec.Meta(min_length=1, max_length=256)]
_is_name = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}").fullmatch
_is_variable = re.compile(r"[A-Za-z_][A-Za-z0-9_]*").fullmatch
_is_key = re.compile(r"[!-~]{1,4096}").fullmatch


class _Written(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A target as it is written."""

    name: str
    url: str
    models: dict[_Model, _Model]
    prompt_price: _Price
    output_price: _Price
    daily_budget: _Money
    key_file: str = ""
    key_env: str = ""
    key_header: Literal["authorization", "x-api-key"] = "authorization"


class _Content(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    targets: list[_Written]


class TargetSpec(msgspec.Struct, frozen=True):
    """A target as the file says it, with its key. Prices are money for a million tokens."""

    name: str
    address: Address
    key_header: tuple[bytes, bytes]
    """Header and value. Never shown."""
    models: Mapping[str, str]
    """Name here -> name there."""
    prompt_price: float
    output_price: float
    daily_budget: float


def read_targets(path: str, environ: Mapping[str, str] = os.environ) -> tuple[TargetSpec, ...]:
    """The targets of a file, with their keys. Raises OSError, and ValueError that says what is
    wrong, where, and what to do."""
    with open(path, "rb") as file:
        return parse_targets(file.read(MAX_FILE_BYTES + 1), environ)


def parse_targets(text: bytes, environ: Mapping[str, str]) -> tuple[TargetSpec, ...]:
    """The same for what a file holds."""
    if len(text) > MAX_FILE_BYTES:
        raise ValueError(f"it is larger than {MAX_FILE_BYTES} bytes: take targets out")
    try:
        root = yaml.safe_load(text)
    except UNREADABLE_YAML as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}" if mark is not None else ""
        # Not the file's own words: somebody may have put a key there.
        raise ValueError(f"it is not YAML{where}") from None
    try:
        content = msgspec.convert(root, _Content)
    except msgspec.ValidationError as error:
        raise ValueError(f"{error}: mend this field") from None
    if not content.targets:
        raise ValueError("it lists no target: add one, or leave overflow out")
    found: dict[str, TargetSpec] = {}
    for number, written in enumerate(content.targets, 1):
        where = f"targets, entry {number}"
        if not _is_name(written.name):
            raise ValueError(
                f"{where}: {written.name!r} is no name: give 1 to 64 letters, digits, `.`, `_`, `-`"
            )
        if written.name in found:
            raise ValueError(f"{where}: {written.name!r} comes twice: give another name")
        try:
            found[written.name] = _checked(written, environ)
        except ValueError as error:
            raise ValueError(f"target {written.name}: {error}") from None
    return tuple(found.values())


def _checked(written: _Written, environ: Mapping[str, str]) -> TargetSpec:
    try:
        address = parse_address(written.url)
    except AddressError as error:
        fix = "give the key as key_file or key_env" if "@" in written.url else error.fix
        raise ValueError(f"url {error.wrong}: {fix}") from None
    if not written.models:
        raise ValueError("models is empty: map a name here to a name there")
    key = _key(written, environ)
    header = written.key_header.encode()
    value = b"Bearer %b" % key if header == b"authorization" else key
    return TargetSpec(
        written.name,
        address,
        (header, value),
        written.models,
        written.prompt_price,
        written.output_price,
        written.daily_budget,
    )


def _key(written: _Written, environ: Mapping[str, str]) -> bytes:
    if bool(written.key_file) == bool(written.key_env):
        raise ValueError("give one of key_file and key_env, which say where the key is")
    if written.key_env:
        if not _is_variable(written.key_env):
            # Not shown: it may be the key itself.
            raise ValueError("key_env is no variable's name: give a name, not the key")
        key = environ.get(written.key_env, "").strip()
        source = f"the variable {written.key_env}"
    else:
        try:
            with open(written.key_file, encoding="utf-8") as file:
                key = file.read(8192).strip()
        except OSError as error:
            # Not shown either.
            raise ValueError(f"key_file cannot be read ({error.strerror}): give its path") from None
        except UnicodeDecodeError:
            key = "\n"
        source = "key_file"
    if not key:
        raise ValueError(f"{source} holds no key: put it there")
    if not _is_key(key):
        raise ValueError(f"{source} holds more than a key: put one line without spaces there")
    return key.encode()
