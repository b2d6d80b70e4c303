"""IODict: an ordered dict in a folder.

Owns: the methods that IODict's document names, and its order: the oldest key first out.
Does not own: how values are kept, locked or ordered; that is the chest's.
"""

from __future__ import annotations

import contextlib
import os
from collections import deque
from collections.abc import (
    Hashable,
    ItemsView,
    Iterable,
    Iterator,
    KeysView,
    MutableMapping,
    ValuesView,
)
from itertools import islice
from typing import Any, Self

from chest.core import Chest

__all__ = ["IODict"]

MOST_SHOWN = 100  # pairs in a repr
LARGEST_SHOWN = 10_000  # bytes on disk of a value that a repr reads

MISSING: Any = object()
Lock = contextlib.AbstractContextManager[Any]


class IODict(MutableMapping[Any, Any]):
    """A dict whose values lie in a folder, in the order in which keys were first set.

    What is set is published at once: other processes and threads see it at their next
    operation, and it survives the death of this process.

    Parameters
    ----------
    path : str or PathLike
        The folder; made where there is none. ``~`` is expanded.
    lock : lock or callable, optional
        Held during every operation on one key, besides the chest's own locks: a lock,
        or what makes one, like `threading.Lock`. None is needed for safety.

    Raises
    ------
    TypeError
        *lock* is no lock, and makes none.

    Notes
    -----
    The same folder can be opened as `chest.Chest`.

    Examples
    --------
    >>> import threading
    >>> data = IODict(path="store", lock=threading.Lock)
    >>> data["key"] = "value"
    >>> data["other"] = [1, 2]
    >>> data
    {'key': 'value', 'other': [1, 2]}
    >>> data.popitem()
    ('key', 'value')
    >>> data.close()
    """

    def __init__(self, path: str | os.PathLike[str], lock: Any = None) -> None:
        self._lock = _lock_of(lock)
        self._take(Chest(path=path, publish="each"))

    def _take(self, chest: Chest) -> None:
        self._chest = chest
        self._oldest: deque[Any] = deque()  # keys as they were when it was filled
        self._last_birth = 0  # of the last of them

    # -- one key -----------------------------------------------------------------------

    def __getitem__(self, key: Hashable) -> Any:
        with self._lock:
            return self._chest[key]

    def __setitem__(self, key: Hashable, value: Any) -> None:
        with self._lock:
            self._chest[key] = value

    def __delitem__(self, key: Hashable) -> None:
        with self._lock:
            del self._chest[key]

    def __contains__(self, key: Any) -> bool:
        """Whether *key* is there; O(1), nothing is read."""
        with self._lock:
            return key in self._chest

    def setdefault(self, key: Hashable, default: Any = None) -> Any:
        """The value of *key*, which is *default* from now on if there was none.

        Of several processes that ask at once, all get the value of the first.
        """
        with self._lock:
            return self._chest.setdefault(key, default)

    def pop(self, key: Hashable, default: Any = MISSING) -> Any:
        """Remove *key* and return its value; only one of several callers gets it.

        Raises
        ------
        KeyError
            There is no such key, and no *default*, which may be any value.
        """
        with self._lock:
            if default is MISSING:
                return self._chest.pop(key)
            return self._chest.pop(key, default)

    def popitem(self) -> tuple[Any, Any]:
        """Remove the oldest key, and return it with its value.

        Raises
        ------
        KeyError
            There is none.

        Notes
        -----
        O(1) on average: the keys are listed once for as many calls as there were keys.
        """
        with self._lock:
            while True:
                key = self._first()
                try:
                    return key, self._chest.pop(key)
                except KeyError:
                    continue  # somebody else took it

    def _first(self) -> Any:
        """The oldest key."""
        while True:
            if not self._oldest:
                self._oldest.extend(self._chest)
                if not self._oldest:
                    msg = "popitem(): dictionary is empty"
                    raise KeyError(msg)
                last = self._birth(self._oldest[-1])
                if last is None:
                    self._oldest.clear()  # somebody took it meanwhile: list them anew
                    continue
                self._last_birth = last
            key = self._oldest.popleft()
            birth = self._birth(key)
            # One that was deleted and set anew since is no longer among the oldest.
            if birth is not None and birth <= self._last_birth:
                return key

    def _birth(self, key: Any) -> int | None:
        """What orders the keys, 0 or less where `Ordered` moved one to the front.

        None when *key* is gone.
        """
        try:
            return self._chest.entry(key).birth
        except KeyError:
            return None

    # -- all keys ----------------------------------------------------------------------

    def __len__(self) -> int:
        """How many keys there are; O(1)."""
        with self._lock:
            return len(self._chest)

    def __iter__(self, index: int | None = None) -> Iterator[Any]:
        """The keys, the oldest first; with *index* that one only."""
        with self._lock:
            keys = iter(self._chest)
            return keys if index is None else iter([[*keys][index]])

    def __reversed__(self) -> Iterator[Any]:
        """The keys, the newest first."""
        with self._lock:
            return reversed(self._chest)

    def keys(self) -> KeysView[Any]:
        """A view of the keys, the oldest first."""
        return self._chest.keys()

    def values(self) -> ValuesView[Any]:
        """A view of the values; keys that others delete meanwhile are passed over."""
        return self._chest.values()

    def items(self) -> ItemsView[Any, Any]:
        """A view of the pairs; keys that others delete meanwhile are passed over."""
        return self._chest.items()

    def clear(self) -> None:
        """Remove all keys for everyone, at once."""
        with self._lock:
            self._chest.clear()

    def copy(self) -> Self:
        """A new IODict with the same pairs, in a temporary folder; files are linked."""
        new = type(self).__new__(type(self))
        new._lock = _lock_of(None)
        with self._lock:
            new._take(self._chest.copy())
        return new

    @classmethod
    def fromkeys(
        cls,
        iterable: Iterable[Hashable],
        value: Any = None,
        path: str | os.PathLike[str] | None = None,
    ) -> Self:
        """A new IODict with one value for all keys, at *path* or in a temporary folder."""
        new = cls.__new__(cls)
        new._lock = _lock_of(None)
        new._take(Chest(path=path, publish="each"))
        new._chest.set_many((key, value) for key in iterable)
        return new

    def __eq__(self, other: object) -> bool:
        """Equal keys with equal values, as for a dict; may read every value."""
        return self._chest == (other._chest if isinstance(other, IODict) else other)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        """Like a dict's, but for what is long: at most 100 pairs, no large value."""
        shown = [*islice(self._chest, MOST_SHOWN)]
        pairs = [f"{key!r}: {self._shown(key)}" for key in shown]
        if len(self._chest) > len(shown):
            pairs.append("…")
        return "{" + ", ".join(pairs) + "}"

    def _shown(self, key: Any) -> str:
        """The repr of a value, unless it is large."""
        try:
            size = self._chest.entry(key).stored_nbytes
            if size > LARGEST_SHOWN:
                return f"<{size} bytes>"
            return "".join(map(repr, self._chest.get_many([key]).values()))
        except KeyError:
            return "<deleted>"  # by somebody else, since the keys were listed

    # -- lifetime ----------------------------------------------------------------------

    def close(self) -> None:
        """Release the folder, with all that is in it kept. Safe to call twice."""
        self._chest.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """`close`; nothing is deleted."""
        self.close()


def _lock_of(given: Any) -> Lock:
    """A lock, from a lock or what makes one; one that locks nothing for None."""
    if given is None:
        return contextlib.nullcontext()
    # Of the type: the class of a lock has the methods as well, but cannot be held.
    if not hasattr(type(given), "__enter__") and callable(given):
        given = given()
    if not hasattr(type(given), "__enter__"):
        msg = f"lock={given!r} is no lock: give one, such as threading.Lock()"
        raise TypeError(msg)
    return given  # type: ignore[no-any-return]
