"""README and docs/: links lead somewhere, and tables and lists are whole."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from router.config import Settings
from router.config.docs import configuration_page
from router.config.table import TABLE
from router.telemetry.catalogue import OWN, PROCESS
from router.telemetry.metrics_page import document

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
LONGEST_LINE = 400
GENERATED = {"configuration": configuration_page, "metrics": document}

_FENCED = re.compile(r"^( *)```.*?^\1```$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`[^`\n]*`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_ELSEWHERE = re.compile(r"[a-z]+:")
_HEADING = re.compile(r"^#+ +(.*?) *$", re.MULTILINE)
_CELLS = re.compile(r"(?<!\\)\|")
_SEPARATOR = re.compile(r"\|(?: *:?-+:? *\|)+")
_FILE = re.compile(
    r"`((?:router|loadgen|bench|deploy|dashboards|tests|docs)/[\w./-]+\.(?:py|md|json|yaml))`"
)
_STEP = re.compile(r"^\| \d+ \| `([\w/.]+)` \| ([^|]+) \|", re.MULTILINE)
_ITEM = re.compile(r" *(?:[-*]|\d\.) ")


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_every_link_leads_to_a_file_and_a_heading(page: Path) -> None:
    broken = []
    for link in _LINK.findall(_CODE.sub("", _prose(page.read_text("utf-8")))):
        if _ELSEWHERE.match(link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in _anchors(target)):
            broken.append(link)
    assert broken == []


def test_the_index_lists_every_page() -> None:
    """A folder with a README lists its pages there, and docs/index.md lists the folder."""
    own_index = {page.parent: _linked(page) for page in DOCS.rglob("README.md")}
    listed = _linked(DOCS / "index.md")
    assert own_index.keys() - {page.parent for page in listed} == set()
    for page in set(DOCS.rglob("*.md")) - {DOCS / "index.md"}:
        assert page in own_index.get(page.parent, set()) or page in listed, page


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_no_line_is_too_long_to_read_or_to_review(page: Path) -> None:
    lines = page.read_text("utf-8").split("\n")
    assert [line for line in lines if len(line) > LONGEST_LINE] == []


@pytest.mark.parametrize("page", [page for page in PAGES if DOCS in page.parents], ids=str)
def test_a_page_opens_with_what_it_answers(page: Path) -> None:
    if page == DOCS / "index.md":
        return
    heading, opening, *_ = page.read_text("utf-8").split("\n\n")
    assert re.fullmatch(r"# \S.*", heading)
    assert re.match(r"This page answers[^:]*: [^.]*\?", opening), opening


def test_the_page_of_tenants_asks_the_ports_that_are_served() -> None:
    page = (DOCS / "operate" / "tenants.md").read_text("utf-8")
    ports = {int(port) for port in re.findall(r"localhost:(\d+)", page)}
    assert ports == {Settings(replicas=()).port, Settings(replicas=()).admin_port}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_tables_are_whole(page: Path) -> None:
    assert _broken_tables(page.read_text("utf-8")) == []


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_no_list_item_is_torn(page: Path) -> None:
    assert _torn_items(page.read_text("utf-8")) == []


@pytest.mark.parametrize("name", GENERATED)
def test_a_generated_page_is_whole(name: str) -> None:
    text = GENERATED[name]()
    assert _broken_tables(text) == []
    assert _torn_items(text) == []


def test_generated_tables_have_one_row_for_each_name() -> None:
    assert _first_cells(document()) >= {f"`{metric.name}`" for metric in (*OWN, *PROCESS)}
    assert _first_cells(configuration_page()) >= {f"`{name}`" for name in TABLE}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_files_of_the_project_that_a_page_names_exist(page: Path) -> None:
    named = _FILE.findall(page.read_text("utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_each_step_of_a_request_is_where_the_architecture_has_it() -> None:
    steps = _STEP.findall((DOCS / "architecture.md").read_text("utf-8"))
    assert len(steps) > 8
    for file, names in steps:
        text = (ROOT / file).read_text("utf-8")
        for name in re.findall(r"`(\w+)`", names):
            assert re.search(rf"^ *(?:async )?(?:def|class) {name}\b", text, re.MULTILINE), name


def test_the_patch_of_the_worked_example_still_fits() -> None:
    (patch,) = re.findall(r"```diff\n(.*?)```", (ROOT / "CONTRIBUTING.md").read_text(), re.DOTALL)
    (name,) = re.findall(r"^\+\+\+ b/(\S+)$", patch, re.MULTILINE)
    code = (ROOT / name).read_text("utf-8")
    hunks = re.split(r"^@@.*\n", patch, flags=re.MULTILINE)[1:]
    assert hunks
    for hunk in hunks:
        before = "".join(line[1:] for line in hunk.splitlines(keepends=True) if line[0] in " -")
        assert before in code


def test_what_tears_a_page_is_noticed() -> None:
    head = "| a | b |\n|---|---|\n"
    assert _broken_tables(head + "| 1 | 2 |\n\ntext") == []
    assert _broken_tables(head + "| 1 | `x\\|y` |\n") == []
    assert _broken_tables(head + "| 1 | 2 | 3 |\n") == ["| 1 | 2 | 3 |"]
    assert _broken_tables(head + "| 1 | a row\ncut in two |\n") == ["| 1 | a row", "cut in two |"]
    assert _broken_tables("text\n" + head) == ["| a | b |"]
    assert _torn_items("- an item\n  of two lines\n- another\n\ntext") == []
    assert _torn_items("- an item\nof two lines\n") == ["of two lines"]


def _linked(page: Path) -> set[Path]:
    links = _LINK.findall(page.read_text("utf-8"))
    return {(page.parent / link.partition("#")[0]).resolve() for link in links}


def _prose(text: str) -> str:
    return _FENCED.sub("", text)


def _anchors(page: Path) -> set[str]:
    """As GitHub makes them of headings."""
    anchors: set[str] = set()
    for heading in _HEADING.findall(_prose(page.read_text("utf-8"))):
        words = re.sub(r"[^\w\- ]", "", re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower())
        slug, number = words.replace(" ", "-"), 0
        while (anchor := f"{slug}-{number}" if number else slug) in anchors:
            number += 1
        anchors.add(anchor)
    return anchors


def _broken_tables(text: str) -> list[str]:
    """Rows that a renderer would not show as a row of their table."""
    broken: list[str] = []
    columns = 0  # of the table that the line is in; 0 outside of tables
    lines = _prose(text).split("\n")
    for before, line, after in zip(["", *lines], lines, [*lines[1:], ""], strict=False):
        if not line.strip():
            columns = 0
            continue
        is_row = line.lstrip().startswith("|")
        count = len(_CELLS.split(line.strip())) - 2
        if is_row and not columns:
            columns = count
            if before.strip() or not _SEPARATOR.fullmatch(after.strip()):
                broken.append(line)
        elif columns and (not is_row or not line.rstrip().endswith("|") or count != columns):
            broken.append(line)
    return broken


def _torn_items(text: str) -> list[str]:
    """Lines that follow a list item and are not indented as a part of it."""
    torn: list[str] = []
    in_item = False
    for line in _prose(text).split("\n"):
        if not line.strip():
            in_item = False
        elif _ITEM.match(line):
            in_item = True
        elif in_item and not line.startswith(" "):
            torn.append(line)
    return torn


def _first_cells(text: str) -> set[str]:
    return {
        _CELLS.split(line)[1].strip() for line in _prose(text).split("\n") if line.startswith("|")
    }
