"""What PyYAML raises for text that it cannot read."""

from __future__ import annotations

from typing import Final

import yaml

UNREADABLE_YAML: Final = (
    yaml.YAMLError,
    # Nested too deeply for the reader that is written in Python.
    RecursionError,
    # A value that is not what its tag says, such as `!!bool maybe` or `!!timestamp x`.
    ValueError,
    KeyError,
    AttributeError,
    TypeError,
)
