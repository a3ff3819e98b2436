"""One model: where its files are, its template and tokenizer, and bodies rendered with them."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from router import extras
from router.prompt.prompt import Api
from router.render.anthropic import as_chat
from router.render.conversation import conversation, tool_definitions
from router.render.errors import ModelError, UnrenderedError
from router.render.template import ChatTemplate, compiled
from router.render.tokenizer import ModelTokenizer, load_tokenizer, read_json

_SPECIAL = (
    "bos_token",
    "eos_token",
    "unk_token",
    "sep_token",
    "pad_token",
    "cls_token",
    "mask_token",
)
_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/*",
)
_NOT_HERE = (
    "truncate_prompt_tokens",
    "continue_final_message",
    "chat_template",
    "prompt_embeds",
    "suffix",
)
"""Fields of a body that only the engine can apply; such a body is not rendered here."""

_decode = msgspec.json.Decoder().decode


class Text(msgspec.Struct, gc=False):
    """A body as its template renders it, before it is tokenised."""

    text: str
    """The rendered text; empty when the body has token ids."""
    salt: str
    special: bool
    """Whether special tokens are added before and after."""
    tokens: bytes = b""


class RenderModel:
    """A model's tokenizer and templates, read once. Raises ModelError when they cannot be used."""

    def __init__(self, folder: Path, template: str = "") -> None:
        """`template` is the text of a chat template that replaces the model's own."""
        self.tokenizer: ModelTokenizer = load_tokenizer(folder)
        config = read_json(folder / "tokenizer_config.json")
        more = read_json(folder / "special_tokens_map.json")
        words = ((name, config.get(name, more.get(name))) for name in _SPECIAL)
        self._special = tuple(
            (name, word["content"] if isinstance(word, dict) else word)
            for name, word in words
            if word is not None
        )
        self._templates = {"default": template} if template else _templates(folder, config)
        self._merges_system: dict[str, bool] = {}
        for text in self._templates.values():
            compiled(text, self._special)

    def template(self, with_tools: bool) -> ChatTemplate:
        """The template for a request with or without tools. Raises UnrenderedError."""
        text = self._text(with_tools)
        return compiled(text, self._special)

    def _text(self, with_tools: bool) -> str:
        templates = self._templates
        if with_tools and "tool_use" in templates:
            return templates["tool_use"]
        if "default" not in templates:
            raise UnrenderedError("template", "the model has no chat template")
        return templates["default"]

    def read(self, api: str, body: bytes) -> Text:
        """Render a body to its text. Raises UnrenderedError."""
        try:
            tree = _decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise UnrenderedError("shape", f"the body is no JSON: {error}") from None
        if not isinstance(tree, dict):
            raise UnrenderedError("shape", "the body is no object")
        for name in _NOT_HERE:
            if tree.get(name):
                raise UnrenderedError("argument", f"the body has {name}")
        transfer = tree.get("kv_transfer_params")
        if isinstance(transfer, dict) and transfer.get("prompt_token_ids"):
            raise UnrenderedError("argument", "the body brings its own token ids")
        if api == Api.CHAT:
            return self._chat(tree, reasoning=True)
        if api == Api.MESSAGES:
            return self._chat(as_chat(tree, merge_system=self._merging()), reasoning=True)
        if api == Api.COMPLETIONS:
            return _completion(tree)
        raise UnrenderedError("api", "responses are left to the byte-block index")

    def encode(self, text: Text) -> bytes:
        """Tokenise a whole text without using the memory."""
        if text.tokens:
            return text.tokens
        return self.wrap(text, self.tokenizer.encode_pieces(text.text))

    def wrap(self, text: Text, tokens: bytes) -> bytes:
        """Add the special tokens before and after, if the text gets them."""
        if not text.special:
            return tokens
        return self.tokenizer.before + tokens + self.tokenizer.after

    def _chat(self, tree: dict[str, Any], *, reasoning: bool) -> Text:
        messages = tree.get("messages")
        if not isinstance(messages, list):
            raise UnrenderedError("shape", "messages is no list")
        tools = tool_definitions(tree.get("tools"))
        template = self.template(tools is not None)
        given = tree.get("chat_template_kwargs")
        if given is not None and not isinstance(given, dict):
            raise UnrenderedError("shape", "chat_template_kwargs is no object")
        arguments: dict[str, Any] = dict(given or {})
        arguments["add_generation_prompt"] = tree.get("add_generation_prompt", True)
        arguments["continue_final_message"] = False
        if tree.get("documents") is not None:
            arguments["documents"] = tree["documents"]
        effort = tree.get("reasoning_effort") if reasoning else None
        if effort is not None:
            if effort != "auto":
                arguments["reasoning_effort"] = effort
            if "enable_thinking" not in (given or {}):
                arguments["enable_thinking"] = effort != "none"
        made = conversation(messages, parts=template.parts, developer=template.developer)
        text = template.render(made, tools, arguments)
        return Text(text, _salt(tree), bool(tree.get("add_special_tokens", False)))

    def _merging(self) -> bool:
        """Whether a template refuses system messages after the first, by trying, as vLLM does."""
        return any(self._merges(self._text(with_tools)) for with_tools in (False, True))

    def _merges(self, text: str) -> bool:
        known = self._merges_system.get(text)
        if known is None:
            roles = ("system", "user", "system", "user")
            try:
                # vLLM tries without special tokens, so this does too.
                compiled(text, ()).render(
                    [{"role": role, "content": "t"} for role in roles], None, {}
                )
                known = False
            except UnrenderedError:
                known = True
            self._merges_system[text] = known
        return known


def _completion(tree: dict[str, Any]) -> Text:
    prompt = tree.get("prompt")
    salt = _salt(tree)
    if isinstance(prompt, str):
        return Text(prompt, salt, bool(tree.get("add_special_tokens", True)))
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str | list):
        return _completion({**tree, "prompt": prompt[0]})
    if isinstance(prompt, list) and prompt:
        try:
            return Text("", salt, False, array("I", prompt).tobytes())
        except (TypeError, OverflowError):
            pass
    raise UnrenderedError("several", "the body has no prompt, or several")


def _salt(tree: Mapping[str, Any]) -> str:
    salt = tree.get("cache_salt")
    return salt if isinstance(salt, str) else ""


def _templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """A folder's chat templates by name, in transformers' order of preference."""
    found: dict[str, str] = {}
    own = config.get("chat_template")
    if isinstance(own, str):
        found["default"] = own
    elif isinstance(own, list):
        found.update({each["name"]: each["template"] for each in own})
    processor = read_json(folder / "chat_template.json").get("chat_template")
    if isinstance(processor, str):
        found["default"] = processor
    try:
        path = folder / "chat_template.jinja"
        if path.exists():
            found["default"] = path.read_text("utf-8")
        more = folder / "additional_chat_templates"
        if more.is_dir():
            found.update({each.stem: each.read_text("utf-8") for each in more.glob("*.jinja")})
    except OSError as error:
        raise ModelError(f"{folder}: its chat template cannot be read: {error}") from None
    return found


def find_folder(name: str, *, download: bool) -> Path:
    """A model's folder: a local path, or a hub name, fetched when allowed. Raises ModelError."""
    path = Path(name)
    if path.is_dir():
        return path
    if path.is_absolute() or name.startswith((".", "~")):
        raise ModelError(f"there is no folder {name}; set exact_tokenizer to where the model's is")
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        raise ModelError(
            f"reading {name} from the hub needs huggingface_hub; {extras.EXACT}"
        ) from None
    try:
        return Path(
            snapshot_download(name, allow_patterns=list(_FILES), local_files_only=not download)
        )
    except Exception as error:  # the client raises a dozen kinds, some of its libraries'
        raise ModelError(f"the hub does not give {name}: {type(error).__name__}: {error}") from None
