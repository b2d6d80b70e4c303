"""When something ends: a time to live becomes a deadline.

Owns: the clock. Does not own: what happens to a key whose deadline has passed.

Deadlines are Unix times, which all processes and machines agree on. So a clock that is set
back lets keys live longer by as much, and one that is set forward ends them sooner. What a
process has seen expire stays gone for it; once a writer has published that it is gone (at
the next flush, sync, close or compaction) it is gone for everyone, whatever the clock says.
"""

from __future__ import annotations

import math
import time
from typing import Any, SupportsFloat

__all__ = ["NEVER", "Due", "deadline", "now"]

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
