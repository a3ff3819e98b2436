"""Registers the marker of the tests that need a real engine."""

import pytest


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "e2e: needs a real engine; says which when skipped")
