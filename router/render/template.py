"""A model's chat template, rendered as vLLM does: through transformers, without transformers.

Follows ``transformers/utils/chat_template_utils.py`` (the environment, ``tojson``, the globals) and
``vllm/renderers/hf.py`` (which arguments reach the template, how content is handed over).
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterator, Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, NoReturn

import jinja2
import jinja2.ext
import jinja2.meta
from jinja2 import nodes
from jinja2.sandbox import ImmutableSandboxedEnvironment

from router.render.arguments import Arguments
from router.render.errors import ModelError, UnrenderedError

_OTHER_ARGUMENTS = frozenset(
    (
        "chat_template",
        "tokenize",
        "padding",
        "truncation",
        "max_length",
        "return_tensors",
        "return_dict",
        "return_assistant_tokens_mask",
        "tokenizer_kwargs",
        "processor_kwargs",
    )
)
"""Arguments of ``apply_chat_template`` itself, which vLLM passes on or refuses."""


class _Generation(jinja2.ext.Extension):
    """``{% generation %}``, which marks what training counts and prints what is in it."""

    tags = {"generation"}  # noqa: RUF012  (jinja2's interface)

    def parse(self, parser: Any) -> nodes.Node | list[nodes.Node]:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        call = self.call_method("_printed")
        return nodes.CallBlock(call, [], [], body).set_lineno(line)

    def _printed(self, caller: Any) -> str:
        text: str = caller()
        return text


def _tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    if type(value) is Arguments and not (ensure_ascii or indent or separators or sort_keys):
        return value.printed()
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
    )


def _raise(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return datetime.now().strftime(form)


def environment() -> ImmutableSandboxedEnvironment:
    """The Jinja environment that transformers renders chat templates in."""
    made = ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[_Generation, jinja2.ext.loopcontrols],
    )
    made.filters["tojson"] = _tojson
    made.globals["raise_exception"] = _raise
    made.globals["strftime_now"] = _now
    return made


class ChatTemplate:
    """One chat template. Raises ModelError when the text is not a template."""

    def __init__(self, text: str, special: Mapping[str, str]) -> None:
        """`special` has bos_token and the like, which templates may print."""
        env = environment()
        try:
            tree = env.parse(text)
            self._template = env.from_string(text)
            self.variables = frozenset(jinja2.meta.find_undeclared_variables(tree))
        except jinja2.TemplateError as error:
            raise ModelError(f"the chat template cannot be read: {error}") from None
        self._special = dict(special)
        self.parts = _wants_parts(tree)
        """Content is handed over as a list of parts rather than as text."""
        self.developer = '"developer"' in text or "'developer'" in text
        """Whether it knows the developer role."""

    def render(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None,
        arguments: Mapping[str, Any],
    ) -> str:
        """The prompt's text. Raises UnrenderedError when the template refuses, or arguments that
        are not the template's are given."""
        odd = _OTHER_ARGUMENTS & arguments.keys()
        if odd:
            raise UnrenderedError("argument", f"chat_template_kwargs has {sorted(odd)[0]}")
        given = {
            name: value
            for name, value in arguments.items()
            if name in self.variables and name not in ("messages", "tools")
        }
        given.setdefault("documents", None)
        given.setdefault("add_generation_prompt", False)
        try:
            return self._template.render(
                {**self._special, "messages": messages, "tools": tools, **given}
            )
        except Exception as error:
            # A template runs whatever its author wrote, on whatever the client sent.
            raise UnrenderedError("template", f"the template fails: {error!r}") from None


@lru_cache(maxsize=64)
def compiled(text: str, special: tuple[tuple[str, str], ...]) -> ChatTemplate:
    """A ChatTemplate from a cache, so that each template is compiled once."""
    return ChatTemplate(text, dict(special))


# Whether content goes in as parts: vLLM looks for a loop over it in the template's tree
# (``_detect_content_format``).


def _wants_parts(tree: nodes.Template) -> bool:
    return next(_content_loops(tree), None) is not None


def _content_loops(root: nodes.Template) -> Iterator[nodes.For]:
    messages = _names_of(root, "messages")
    items = [
        loop.target.name
        for loop in root.find_all(nodes.For)
        if isinstance(loop.target, nodes.Name) and any(_is(loop.iter, name) for name in messages)
    ]
    in_macros: dict[int, set[str]] = {}
    for macro in root.find_all(nodes.Macro):
        own = [argument.name for argument in macro.args]
        passed: set[str] = set()
        for call in root.find_all(nodes.Call):
            if not (isinstance(call.node, nodes.Name) and call.node.name == macro.name):
                continue
            pairs = list(zip(own, call.args, strict=False))
            pairs += [(word.key, word.value) for word in call.kwargs if word.key in own]
            passed |= {
                name for name, value in pairs if any(_is(value, item, "content") for item in items)
            }
        for loop in macro.find_all(nodes.For):
            in_macros[id(loop)] = passed
    for loop in root.find_all(nodes.For):
        iterated = loop.iter
        if any(_is(iterated, item, "content") for item in items):
            yield loop
        elif isinstance(iterated, nodes.Name):
            passed_here = in_macros.get(id(loop))
            if iterated.name in (passed_here if passed_here is not None else {"content"}):
                yield loop


def _names_of(root: nodes.Template, name: str) -> list[str]:
    found = [name]
    waiting = deque(found)
    while waiting:
        known = waiting.popleft()
        for assign in root.find_all(nodes.Assign):
            if _is(assign.node, known) and isinstance(assign.target, nodes.Name):
                other = assign.target.name
                if other not in found:
                    found.append(other)
                    waiting.append(other)
    return found


def _is(node: nodes.Node | None, name: str, key: str = "") -> bool:
    """Whether an expression is a variable (or an element of it by key), filtered or sliced."""
    if isinstance(node, nodes.Filter | nodes.Test):
        return node.node is not None and _is(node.node, name, key)
    if isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Slice):
        return _is(node.node, name, key)
    if not key:
        return isinstance(node, nodes.Name) and node.ctx == "load" and node.name == name
    if isinstance(node, nodes.Getitem):
        return isinstance(node.arg, nodes.Const) and node.arg.value == key and _is(node.node, name)
    return isinstance(node, nodes.Getattr) and node.attr == key and _is(node.node, name)
