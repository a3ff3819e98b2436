"""docs/reference/configuration.md, made from the table of settings."""

from __future__ import annotations

from router.config.serving import GROUPS
from router.config.table import TABLE, Row

EXAMPLE = """\
replicas:
  - http://vllm-0:8000
  - http://vllm-1:8000
host: 0.0.0.0
max_body: 128MiB
first_byte_timeout: 5m
retry_budget: 10%
"""

_HEAD = f"""\
# Settings

This page answers: which settings are there, what are their defaults, and which change without a
restart?

<!-- Made from router/config/settings.py by `make docs`; change it there. -->

Only `replicas` has to be given, or `discovery`, which finds them. Every setting can come from a
flag, the environment or a file. A flag wins over the environment, and the environment over the
file.

| from | `max_body` is written |
|---|---|
| flag | `--max-body 128MiB` |
| environment | `WARMROUTE_MAX_BODY=128MiB` |
| file, named by `--config` or `WARMROUTE_CONFIG` | `max_body: 128MiB` |

A file is YAML, one `name: value` on each line:

```yaml
{EXAMPLE}```

Durations are written `500ms`, `2s`, `1m30s`, `1h`, or as plain seconds; sizes `64KiB`, `10MB`, or
as plain bytes; shares `0.2` or `20%`. True and false are also `yes`, `no`, `on`, `off`, `1` and
`0`; as flags, `--stream-usage` and `--no-stream-usage`. An empty environment variable counts as not
set, but a secret that is set and empty, there or in the file, is an error. An unknown name in any
of the three places is an error. Variables that Kubernetes sets for a Service called `warmroute`
(such as `WARMROUTE_PORT=tcp://10.0.0.1:80`) are ignored.

On SIGHUP a router reads the file again. Settings marked *Live* change at once, and the files of
`tls_cert` and `tls_key` are read again for new connections. For other settings that have changed,
the log says that they need a restart. If the file has an error, nothing changes.

`warmroute check` takes the same flags as `warmroute serve`. It lists every error with its place and
its fix, or, if there is none, the settings that differ from the defaults. With `--connect` it also
asks every replica for its health and its models.
"""


def configuration_page() -> str:
    """The whole page, Markdown."""
    parts = [_HEAD]
    for group in GROUPS:
        rows = [_row(row) for row in TABLE.values() if row.group == group]
        head = "| setting | default | values | meaning |\n|---|---|---|---|"
        parts.append("\n".join([f"## {group}\n", head, *rows, ""]))
    return "\n".join(parts)


def _row(row: Row) -> str:
    default = row.show(row.default)
    meaning = row.help + (" *Live.*" if row.live else "")
    cells = [f"`{row.name}`", f"`{default}`" if default else "none", row.kind.brief(), meaning]
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"
