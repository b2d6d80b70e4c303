"""When something ends: a time to live becomes a deadline.

Owns: the clock, and which deadline is the next. Does not own: what happens to a key whose
deadline has passed.

Deadlines are Unix times, which all processes and machines agree on. So a clock that is set
back lets keys live longer by as much, and one that is set forward ends them sooner. What a
process has seen expire stays gone for it; once a writer has published that it is gone (at
the next flush, sync, close or compaction) it is gone for everyone, whatever the clock says.
"""

from __future__ import annotations

import heapq
import math
import time
from collections.abc import Callable
from itertools import count
from typing import Any, SupportsFloat

__all__ = ["NEVER", "Deadlines", "Due", "deadline", "now"]

NEVER = math.inf


def now() -> float:
    """Unix time [s]."""
    return time.time()


def deadline(ttl: float) -> float | None:
    """The Unix time at which something that lives *ttl* seconds from now is absent.

    Parameters
    ----------
    ttl : float
        Seconds; infinity: for ever.

    Raises
    ------
    TypeError, ValueError
        *ttl* is no number, or is not above 0.

    Examples
    --------
    >>> deadline(float("inf")) is None
    True
    >>> deadline(60) > now()
    True
    """
    if isinstance(ttl, bool) or not isinstance(ttl, SupportsFloat):
        msg = f"ttl={ttl!r}: seconds are needed, as a number"
        raise TypeError(msg)
    ttl = float(ttl)
    if not ttl > 0:
        msg = f"ttl={ttl!r}: seconds above 0 are needed"
        raise ValueError(msg)
    return None if ttl == NEVER else now() + ttl


class Due:
    """A word for pollers that also changes when a deadline passes.

    Parameters
    ----------
    word : sequence
        The manifest's.
    deadline : float
        The next one [Unix time].
    """

    __slots__ = ("_deadline", "_word")

    def __init__(self, word: Any, deadline: float) -> None:
        self._word = word
        self._deadline = deadline

    def __getitem__(self, index: int) -> Any:
        # None, which no note of what was seen is equal to: -1 may be one.
        return None if now() >= self._deadline else self._word[index]


class Deadlines:
    """Deadlines, and the key of each, or its row of the base; the next one first."""

    __slots__ = ("_heap", "_order")

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Any]] = []
        self._order = count()  # keys need not be comparable

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def next(self) -> float:
        """The next deadline; infinity: there is none."""
        return self._heap[0][0] if self._heap else NEVER

    def add(self, deadline: float, key: Any) -> None:
        """Note one. O(log n), O(1) for one after all others."""
        heapq.heappush(self._heap, (deadline, next(self._order), key))

    def pop(self) -> tuple[float, Any]:
        """Take out the next one and its key. O(log n)."""
        deadline, _, key = heapq.heappop(self._heap)
        return deadline, key

    def keep(self, is_kept: Callable[[float, Any], bool]) -> None:
        """Drop those that are not kept. O(n)."""
        self._heap = [each for each in self._heap if is_kept(each[0], each[2])]
        heapq.heapify(self._heap)
