"""The file of overflow targets: what it takes, and what it says of what is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from router.cli.check import check_overflow
from router.config import Settings
from router.overflow.overflow_file import parse_targets

GOOD: dict[str, object] = {
    "name": "cloud",
    "url": "https://api.example.com/base",
    "key_env": "KEY",
    "models": {"m": "big-m"},
    "prompt_price": 0.5,
    "output_price": 1.5,
    "daily_budget": 20,
}


def text(*targets: dict[str, object]) -> bytes:
    return yaml.safe_dump({"targets": list(targets)}).encode()


def without(name: str) -> dict[str, object]:
    return {key: value for key, value in GOOD.items() if key != name}


def test_a_target_as_it_is_written() -> None:
    (found,) = parse_targets(text(GOOD), {"KEY": " secret\n"})
    assert (found.name, found.address.name) == ("cloud", "api.example.com:443/base")
    assert found.key_header == (b"authorization", b"Bearer secret")
    assert found.daily_budget == 20.0


def test_a_key_in_a_file_and_in_another_header(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("secret\n")
    given = {**without("key_env"), "key_file": str(path), "key_header": "x-api-key"}
    (found,) = parse_targets(text(given), {})
    assert found.key_header == (b"x-api-key", b"secret")


@pytest.mark.parametrize(
    ("target", "wrong"),
    [
        ({**GOOD, "colour": "red"}, "colour"),
        *((without(name), name) for name in GOOD),
        ({**GOOD, "url": "api.example.com"}, "write http"),
        ({**GOOD, "url": "https://api.example.com/v1"}, "remove /v1"),
        ({**GOOD, "url": "https://me:secret@api.example.com"}, "key_file or key_env"),
        ({**GOOD, "key_file": "/x"}, "one of key_file and key_env"),
        ({**without("key_env"), "key_file": "/nowhere/sk-1"}, "key_file cannot be read"),
        ({**GOOD, "key_env": "NOT_SET"}, "NOT_SET holds no key"),
        ({**GOOD, "key_env": "sk-secret"}, "not the key"),
        ({**GOOD, "key_env": "TWO_LINES"}, "one line"),
        ({**GOOD, "models": {}}, "models is empty"),
        ({**GOOD, "daily_budget": 0}, "daily_budget"),
        ({**GOOD, "prompt_price": -1}, "prompt_price"),
        ({**GOOD, "name": "a b"}, "no name"),
    ],
)
def test_what_is_wrong_is_told_with_the_fix(target: dict[str, object], wrong: str) -> None:
    with pytest.raises(ValueError, match=r":") as error:
        parse_targets(text(target), {"KEY": "secret", "TWO_LINES": "a\nb"})
    assert wrong in str(error.value)
    assert "secret" not in str(error.value)


@pytest.mark.parametrize("content", [b"", b"{", b"targets: []", text(GOOD, GOOD)])
def test_a_file_that_is_none(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"Expected|YAML|lists no|twice"):
        parse_targets(content, {"KEY": "secret"})


def test_it_is_checked_at_the_start(tmp_path: Path) -> None:
    path = tmp_path / "overflow.yaml"
    path.write_bytes(text(without("daily_budget")))
    settings = Settings(replicas=("http://a:1",), overflow=str(path))
    ((names, wrong, _),) = check_overflow(settings)
    assert names == ("overflow",)
    assert "daily_budget" in wrong
