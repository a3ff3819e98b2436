"""Tokenises in threads beside the event loop. The tokenizer releases the interpreter lock."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from time import monotonic

from router.render.memory import TokenMemory
from router.render.tokenizer import ModelTokenizer

Missing = tuple[bytes, str]
"""The key that a text is remembered by, and the text."""

FIRST_SPEED = 1_000_000.0
"""Characters a second for each thread, assumed until the speed is measured."""


class TokenPool:
    """Tokenises what is missing in the memory. Used from the event loop's thread.

    The mutable state is the texts under way, by key, and the speed seen.
    """

    def __init__(self, memory: TokenMemory, threads: int) -> None:
        self._memory = memory
        self._threads = threads
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="tokens")
        self._under_way: dict[bytes, asyncio.Future[dict[bytes, bytes]]] = {}
        self._speed = FIRST_SPEED
        self.backlog = 0
        """Characters handed over and not done."""

    def seconds(self, characters: int) -> float:
        """Seconds that this many more characters would take."""
        return (self.backlog / self._threads + characters) / self._speed

    async def tokens(
        self, tokenizer: ModelTokenizer, missing: Sequence[Missing]
    ) -> dict[bytes, bytes]:
        """Tokenise texts; each once, however many ask for it at the same time."""
        fresh = {key: text for key, text in missing if key not in self._under_way}
        waited = {self._under_way[key] for key, _ in missing if key in self._under_way}
        if fresh:
            waited.add(self._start(tokenizer, list(fresh.items())))
        found: dict[bytes, bytes] = {}
        for future in waited:
            found.update(await asyncio.shield(future))
        return found

    def close(self) -> None:
        """Stop the threads."""
        self._executor.shutdown(wait=False, cancel_futures=True)

    def _start(
        self, tokenizer: ModelTokenizer, fresh: list[Missing]
    ) -> asyncio.Future[dict[bytes, bytes]]:
        loop = asyncio.get_running_loop()
        size = sum(len(text) for _, text in fresh)
        self.backlog += size
        future = loop.run_in_executor(self._executor, _encode, tokenizer.encode, fresh)
        made: asyncio.Future[dict[bytes, bytes]] = loop.create_future()
        for key, _ in fresh:
            self._under_way[key] = made

        def done(future: asyncio.Future[tuple[dict[bytes, bytes], float]]) -> None:
            self.backlog -= size
            for key, _ in fresh:
                del self._under_way[key]
            error = asyncio.CancelledError() if future.cancelled() else future.exception()
            if error is not None:
                made.set_exception(error)
                made.exception()  # nobody may be left to look at it
                return
            found, seconds = future.result()
            for key, tokens in found.items():
                self._memory.put(key, tokens)
            if seconds > 0.001:
                self._speed += 0.2 * (size / seconds - self._speed)
            made.set_result(found)

        future.add_done_callback(done)
        return made


def _encode(
    encode: Callable[[str], bytes], texts: Sequence[Missing]
) -> tuple[dict[bytes, bytes], float]:
    started = monotonic()
    found = {key: encode(text) for key, text in texts}
    return found, monotonic() - started
