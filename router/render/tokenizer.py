"""A model's tokenizer, used piece by piece, so that what was tokenised once is not again.

A `tokenizers` pipeline first cuts the text at added tokens that are not normalised, and handles
what lies between each on its own. So these pieces may be remembered one by one, unless the
pre-tokenizer minds where in the text it is (Metaspace with ``prepend_scheme`` first). Long pieces
are cut further where no word crosses: at a single line break between a character and an ASCII
letter, for byte-level pre-tokenizers only, and only when samples show that it makes no difference.
"""

from __future__ import annotations

import json
import re
from array import array
from pathlib import Path
from typing import TYPE_CHECKING, Any

from router.render.errors import ModelError

if TYPE_CHECKING:
    from tokenizers import AddedToken, Tokenizer

SLICE = 8192
"""Characters a piece is cut into, about: 4 ms of work, and 0.05 ms that hold the interpreter."""

_BREAK = re.compile(r"(?<=\S)\n(?=[A-Za-z])")

SAMPLES = (
    "The quick brown fox\njumps over 13 lazy dogs.\nThen rests;\n\nand again {\n  x: 1\n}\nend",
    "def f(a, b):\n    return a+b\nclass A:\n\tpass\nprint('x')\nfor i in range(10): pass\n",
    "Grüße aus Köln\nund 你好，世界\nagain emoji 👩‍👩‍👧\nok e\u0301\nnaïve\r\nline\rx\ny 12345\nz",
    " leading and trailing \nspace \n x\ny's it's\nwe'll |<|\nA",
)


class ModelTokenizer:
    """One tokenizer. Raises ModelError when the router cannot use it."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        tokenizer.no_truncation()
        tokenizer.no_padding()
        pipeline = json.loads(tokenizer.to_str())
        added = list(tokenizer.get_added_tokens_decoder().items())
        raw = [(number, token) for number, token in added if not token.normalized]
        self._special = {
            token.content: array("I", [number]).tobytes() for number, token in raw if _plain(token)
        }
        words = sorted((token.content for _, token in raw), key=len, reverse=True)
        kinds = list(_walk(pipeline.get("pre_tokenizer")))
        self.special = [token.content for _, token in added if token.special]
        """Special tokens' texts."""
        self.split = (
            bool(self._special)
            and not any(token.single_word for _, token in raw)
            and not any(kind.get("prepend_scheme") == "first" for kind in kinds)
        )
        """Whether texts may be taken apart at added tokens."""
        self._cut = re.compile("(" + "|".join(map(re.escape, words)) + ")") if self.split else None
        self._sliced = (
            any(kind.get("type") == "ByteLevel" for kind in kinds)
            and not any(kind.get("add_prefix_space") for kind in kinds)
            and not any(kind.get("type") == "Metaspace" for kind in kinds)
            and not any("\n" in token.content for _, token in added)
            and _normalizer_is_local(pipeline.get("normalizer"))
        )
        if self.split:
            words_between = self._sample()
            if self.encode_pieces(words_between) != self.encode(words_between):
                self.split = False
                self._cut = None
        if self._sliced:
            for sample in SAMPLES:
                pieces = _BREAK_AFTER.split(sample)
                if b"".join(map(self.encode, pieces)) != self.encode(sample):
                    self._sliced = False
        self.before, self.after = self._wrapping()

    def _sample(self) -> str:
        names = list(self._special)
        return "".join(
            f"{names[place % len(names)]}{text} {names[-1 - place % len(names)]}\n"
            for place, text in enumerate(SAMPLES)
        )

    def _wrapping(self) -> tuple[bytes, bytes]:
        """The token ids that stand before and after a text when special tokens are added."""
        word = "a"
        bare = self.encode(word)
        full = ids(self._tokenizer.encode(word, add_special_tokens=True).ids)
        at = full.find(bare)
        while at % 4 and at >= 0:
            at = full.find(bare, at + 1)
        if at < 0 or not bare:
            raise ModelError("what its tokenizer adds before and after a text cannot be told")
        return full[:at], full[at + len(bare) :]

    def encode(self, text: str) -> bytes:
        """Token ids (32 bits each) of a text, without what is added before and after. Other threads
        go on meanwhile."""
        return ids(self._tokenizer.encode_batch_fast([text], add_special_tokens=False)[0].ids)

    def pieces(self, text: str) -> list[bytes | str]:
        """A text as ids of its special tokens and the texts between, long ones cut."""
        if self._cut is None:
            return [text] if text else []
        special = self._special
        found: list[bytes | str] = []
        for place, part in enumerate(self._cut.split(text)):
            if not part:
                continue
            if place & 1:
                number = special.get(part)
                if number is not None:
                    found.append(number)
                elif found and isinstance(found[-1], str):
                    found[-1] += part  # one that minds its neighbours stays with them
                else:
                    found.append(part)
            elif place > 1 and found and isinstance(found[-1], str):
                found[-1] += part
            else:
                found.append(part)
        if self._sliced and any(isinstance(one, str) and len(one) > 2 * SLICE for one in found):
            return _sliced(found)
        return found

    def encode_pieces(self, text: str) -> bytes:
        """Gives the same ids as encode, and tokenises piece by piece."""
        return b"".join(
            one if isinstance(one, bytes) else self.encode(one) for one in self.pieces(text)
        )


_BREAK_AFTER = re.compile(r"(?<=\S\n)(?=[A-Za-z])")


def ids(numbers: list[int]) -> bytes:
    """Token ids as 32-bit integers."""
    return array("I", numbers).tobytes()


def _sliced(pieces: list[bytes | str]) -> list[bytes | str]:
    found: list[bytes | str] = []
    for piece in pieces:
        if isinstance(piece, bytes) or len(piece) <= 2 * SLICE:
            found.append(piece)
            continue
        start = 0
        while len(piece) - start > 2 * SLICE:
            at = _BREAK.search(piece, start + SLICE)
            if at is None:
                break
            found.append(piece[start : at.end()])
            start = at.end()
        found.append(piece[start:])
    return found


def _plain(token: AddedToken) -> bool:
    return not (token.lstrip or token.rstrip or token.single_word)


def _walk(node: Any) -> list[dict[str, Any]]:
    """The steps of a pipeline, with sequences of steps flattened."""
    if not isinstance(node, dict):
        return []
    inner = node.get("pretokenizers") or node.get("normalizers") or []
    return [node, *(step for each in inner for step in _walk(each))]


def _normalizer_is_local(node: Any) -> bool:
    """Whether normalising one side of a line break never depends on the other side."""
    local = {"Sequence", "NFC", "NFD", "NFKC", "NFKD", "Lowercase"}
    return all(step.get("type") in local for step in _walk(node))


def load_tokenizer(folder: Path) -> ModelTokenizer:
    """The tokenizer of a model's folder. Raises ModelError."""
    from tokenizers import AddedToken, Tokenizer

    path = folder / "tokenizer.json"
    if not path.exists():
        raise ModelError(f"{folder} has no tokenizer.json (only such tokenizers can be used)")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # the binding raises plain Exception
        raise ModelError(f"{path} cannot be read: {error}") from None
    known = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    for number, about in sorted(
        read_json(folder / "tokenizer_config.json").get("added_tokens_decoder", {}).items(),
        key=lambda item: int(item[0]),
    ):
        if about["content"] in known:
            continue
        token = AddedToken(
            about["content"],
            single_word=about.get("single_word", False),
            lstrip=about.get("lstrip", False),
            rstrip=about.get("rstrip", False),
            normalized=about.get("normalized", True),
            special=about.get("special", False),
        )
        add = tokenizer.add_special_tokens if about.get("special") else tokenizer.add_tokens
        add([token])
        if tokenizer.token_to_id(about["content"]) != int(number):
            raise ModelError(
                f"{folder}: token {about['content']!r} does not get its number {number}"
            )
    return ModelTokenizer(tokenizer)


def read_json(path: Path) -> dict[str, Any]:
    """A JSON file's object; empty when there is no such file. Raises ModelError."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read: {error}") from None
    return found if isinstance(found, dict) else {}
