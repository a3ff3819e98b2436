"""Which conversations are diagnosed when more requests come than a diagnosis of each is worth."""

from __future__ import annotations

from typing import Final

MOST_PER_SECOND: Final = 500
"""Requests of a second up to which each is diagnosed. One takes 20 to 60 us."""
_WINDOW_S: Final = 1.0
_STEPS: Final = 1 << 16
_SPREAD: Final = 40_503
"""Odd, and the golden ratio's part of `_STEPS`: its multiples are spread evenly (Knuth, volume 3,
6.4)."""


class Sample:
    """A share of all conversations, such that about so many requests of a second are in it.

    A conversation whose client names it is in it as a whole, so that each step is compared with the
    one before. Of others single requests are, which are compared with the last one that was. Its
    mutable state: the share, and the requests of the window that it will be set by next. A window
    ends early where enough were taken, so that a burst after a pause is not diagnosed whole.
    """

    __slots__ = ("_began", "_seen", "_taken", "_taken_below", "left_out", "most")

    def __init__(self, most: int = MOST_PER_SECOND) -> None:
        self.most = most
        self._began = 0.0
        self._seen = 0
        self._taken = 0
        self._taken_below = _STEPS
        self.left_out = 0
        """Requests that were not in it."""

    @property
    def share(self) -> float:
        """Of all conversations, 0 to 1."""
        return self._taken_below / _STEPS

    def takes(self, conversation: str, now: float) -> bool:
        """Whether a request of this conversation is in it; empty for one that is not named.

        now: monotonic seconds.
        """
        lasted = now - self._began
        if lasted >= _WINDOW_S or (self._taken >= self.most and lasted > 0.0):
            rate = self._seen / lasted
            share = 1.0 if rate <= self.most else self.most / rate
            self._taken_below = round(share * _STEPS)
            self._began, self._seen, self._taken = now, 0, 0
        self._seen += 1
        place = hash(conversation) if conversation else self._seen * _SPREAD
        if place % _STEPS < self._taken_below:
            self._taken += 1
            return True
        self.left_out += 1
        return False
