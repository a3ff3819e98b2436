"""The page for people: its files. What they show, they ask the other paths for."""

from __future__ import annotations

from functools import cache
from importlib.resources import files
from typing import Final

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

_TYPES: Final = {"css": "text/css", "html": "text/html", "js": "text/javascript"}
_HEADERS: Final = {
    # The browser runs the page's own files and nothing else, and talks to this port only.
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
        "img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "cache-control": "no-cache",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


@cache
def _files() -> dict[str, bytes]:
    """Name below router/admin/console -> content."""
    found: dict[str, bytes] = {}
    root = files("router.admin").joinpath("console")
    for folder, prefix in ((root, ""), (root.joinpath("views"), "views/")):
        for entry in folder.iterdir():
            if entry.name.rpartition(".")[2] in _TYPES:
                found[prefix + entry.name] = entry.read_bytes()
    return found


def _answer(name: str) -> Response:
    kind = _TYPES[name.rpartition(".")[2]]
    return Response(_files()[name], headers=_HEADERS, media_type=kind)


async def page(_request: Request) -> Response:
    """The page for people."""
    return _answer("index.html")


async def file(request: Request) -> Response:
    """One of its files. Only names that the package has are looked up."""
    name = request.path_params["name"]
    if name not in _files():
        raise HTTPException(404, f"the page has no file {name!r}")
    return _answer(name)
