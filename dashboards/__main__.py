"""Writes the dashboards beside this file and into the chart.

python -m dashboards
"""

from __future__ import annotations

from pathlib import Path

from dashboards.agents_board import BOARD as AGENTS
from dashboards.developer_board import BOARD as DEVELOPER
from dashboards.operator_board import BOARD as OPERATOR
from dashboards.panels import to_json
from dashboards.savings_board import BOARD as SAVINGS

HERE = Path(__file__).parent
CHART = HERE.parent / "deploy" / "helm" / "warmroute" / "dashboards"
BOARDS = {
    "operator.json": OPERATOR,
    "agents.json": AGENTS,
    "savings.json": SAVINGS,
    "developer.json": DEVELOPER,
}


def files() -> dict[str, str]:
    """Every file by name."""
    made = {name: to_json(board) for name, board in BOARDS.items()}
    made["rules.yaml"] = (HERE / "rules.yaml").read_text()
    return made


def main() -> None:
    """Write them."""
    CHART.mkdir(exist_ok=True)
    for name, text in files().items():
        for folder in (HERE, CHART):
            (folder / name).write_text(text)


if __name__ == "__main__":
    main()
