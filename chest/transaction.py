"""What a transaction sees and has changed so far.

Owns: reads that see the transaction's own writes. Does not own: the lock, publication.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterator, MutableMapping
from typing import Any

__all__ = ["Transaction"]


class Transaction(MutableMapping[Any, Any]):
    """The chest as `Chest.transact` shows it to its function: a mapping like any other.

    Parameters
    ----------
    read : callable
        key → a value that may be changed without anybody seeing it; KeyError.
    has : callable
        Whether a key is there.
    named : callable
        All keys in order.

    Attributes
    ----------
    written : dict
        What was set.
    gone : dict
        Keys of the chest that were deleted, those that were set anew included.

    Notes
    -----
    Values are copies, unless nobody can change them: ``t[key].append(1)`` changes
    nothing, ``t[key] = t[key] + [1]`` does. It has no meaning after the function
    returned.
    """

    __slots__ = ("_has", "_named", "_read", "gone", "written")

    def __init__(
        self,
        read: Callable[[Hashable], Any],
        has: Callable[[Hashable], bool],
        named: Callable[[], list[Any]],
    ) -> None:
        self._read = read
        self._has = has
        self._named = named
        self.written: dict[Hashable, Any] = {}
        self.gone: dict[Hashable, None] = {}

    def __getitem__(self, key: Hashable) -> Any:
        if key in self.written:
            return self.written[key]
        if key in self.gone:
            raise KeyError(key)
        return self._read(key)

    def __setitem__(self, key: Hashable, value: Any) -> None:
        self.written[key] = value

    def __delitem__(self, key: Hashable) -> None:
        if key not in self:
            raise KeyError(key)
        self.written.pop(key, None)
        if self._has(key):
            self.gone[key] = None

    def __contains__(self, key: Any) -> bool:
        return key in self.written or (key not in self.gone and self._has(key))

    def __iter__(self) -> Iterator[Any]:
        """The keys in order; those that are new come last. O(keys)."""
        before = [key for key in self._named() if key not in self.gone]
        known = set(before)
        return iter([*before, *(key for key in self.written if key not in known)])

    def __len__(self) -> int:
        return len(list(iter(self)))

    def popitem(self) -> tuple[Any, Any]:
        """Remove the key that came last, and return it with its value."""
        key = next(reversed([*self]), self)
        if key is self:
            msg = "popitem(): the chest is empty"
            raise KeyError(msg)
        return key, self.pop(key)

    def __repr__(self) -> str:
        return f"<Transaction: {len(self.written)} set, {len(self.gone)} deleted>"
