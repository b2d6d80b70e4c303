"""An ordered dict over a chest: its keys by position, and moved to either end.

Owns: where each key stands, kept up to date by what the index notes. Does not own: the
order itself, which is that of births; how a key gets another one.
"""

from __future__ import annotations

import contextlib
from collections import OrderedDict
from collections.abc import (
    Hashable,
    ItemsView,
    Iterator,
    KeysView,
    MutableMapping,
    ValuesView,
)
from typing import TYPE_CHECKING, Any, cast, overload

from chest.errors import short
from chest.index import AnyEntry
from chest.objects.atomic import refuse_objects

if TYPE_CHECKING:
    from chest.core import Chest

__all__ = ["Ordered"]

MISSING: Any = object()
TIES = 16  # bits of a place below the birth, for keys that were given the same one


class Ordered(MutableMapping[Any, Any]):
    """A chest as an ordered dict: by position, from both ends, in a chosen order.

    Keys stand in the order in which they were first set, in all processes and after
    reopening; overwriting keeps the place. Everything else is as the chest does it.

    Parameters
    ----------
    chest : Chest
        Stays open when the view goes, and may be used beside it.

    Notes
    -----
    The first operation by position builds an index of all keys, some 250 bytes and
    two microseconds each. From then on each costs O(log n) and what changed since the
    one before. It is built anew when another process compacted the manifest, and after
    more changes than there are keys. Threads may share a view.

    Examples
    --------
    >>> from chest import Chest, Ordered
    >>> with Chest({"a": 1, "b": 2, "c": 3}) as c:
    ...     o = Ordered(c)
    ...     o.move_to_end("a")
    ...     o.first(), o.last(), o.keys()[1], o.values()[:2], o.index("a")
    ...     o.popitem(last=False), list(c)
    ('b', 'a', 'c', [2, 3], 2)
    (('b', 2), ['c', 'a'])
    """

    __slots__ = ("_places", "chest")

    def __init__(self, chest: Chest) -> None:
        from chest.core import Chest

        if not isinstance(cast("object", chest), Chest):
            msg = f"Ordered() needs a Chest: Ordered(c), not {short(chest)}"
            raise TypeError(msg)
        refuse_objects(chest, "an ordered view")
        self.chest = chest
        self._places = _Places(chest)

    # -- by position -------------------------------------------------------------------

    def first(self) -> Any:
        """The key that stands first.

        Raises
        ------
        KeyError
            There is none.
        """
        return self._end(last=False)

    def last(self) -> Any:
        """The key that stands last.

        Raises
        ------
        KeyError
            There is none.
        """
        return self._end(last=True)

    def index(self, key: Hashable) -> int:
        """How many keys stand before *key*.

        Raises
        ------
        KeyError
            There is no such key.
        """
        with self._following() as places:
            return places.rank(key)

    def popitem(self, last: bool = True) -> tuple[Any, Any]:
        """Remove the last key, or the first, and return it with its value.

        Published at once. Of several processes that do so each gets another key.

        Raises
        ------
        KeyError
            There is none.
        """
        while True:
            key = self._end(last=last)
            with contextlib.suppress(KeyError):  # somebody else took it: the next one
                return key, self.chest.pop(key)

    def move_to_end(self, key: Hashable, last: bool = True) -> None:
        """Have *key* stand last, or first, for everyone; published at once.

        Raises
        ------
        KeyError
            There is no such key.
        StoreError, EncodingError
            The disk refused, or the value was not published yet and cannot be. The key
            stays where it is.

        Notes
        -----
        One record; the value is not written anew, but for one that was not published
        yet, and a small one of a pack, which comes to lie in the log until the next
        flush.
        """

        def amended(entry: AnyEntry) -> tuple[float | None, int]:
            return entry.expires, self._places.birth_at_end(key, last=last)

        if not self.chest._amend(key, amended):
            raise KeyError(key)

    # -- as a mapping ------------------------------------------------------------------

    def keys(self) -> _Keys:
        """A view of the keys; ``keys()[i]`` and ``keys()[i:j]`` are by position."""
        return _Keys(self)

    def values(self) -> _Values:
        """A view of the values, also by position."""
        return _Values(self)

    def items(self) -> _Items:
        """A view of the pairs, also by position."""
        return _Items(self)

    def __eq__(self, other: object) -> bool:
        """Equal pairs, and in the same order if *other* has one: reads every value."""
        if not isinstance(other, Ordered | OrderedDict):
            return self.chest == other
        if len(self) != len(other):
            return False
        pairs = zip(self.items(), other.items(), strict=False)
        return all(mine == theirs for mine, theirs in pairs)

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"Ordered({self.chest!r})"

    def __getitem__(self, key: Hashable) -> Any:
        return self.chest[key]

    def __setitem__(self, key: Hashable, value: Any) -> None:
        self.chest[key] = value

    def __delitem__(self, key: Hashable) -> None:
        del self.chest[key]

    def __contains__(self, key: object) -> bool:
        return key in self.chest

    def __len__(self) -> int:
        return len(self.chest)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.chest)

    def __reversed__(self) -> Iterator[Any]:
        return reversed(self.chest)

    def pop(self, key: Hashable, default: Any = MISSING) -> Any:
        """`Chest.pop`."""
        return (
            self.chest.pop(key) if default is MISSING else self.chest.pop(key, default)
        )

    def setdefault(self, key: Hashable, default: Any = None) -> Any:
        """`Chest.setdefault`."""
        return self.chest.setdefault(key, default)

    def clear(self) -> None:
        """`Chest.clear`."""
        self.chest.clear()

    def update(self, other: Any = (), /, **more: Any) -> None:
        """`Chest.update`."""
        if isinstance(other, Ordered):
            other = other.chest
        self.chest.update(other)
        self.chest.update(more)

    # -- steps -------------------------------------------------------------------------

    @contextlib.contextmanager
    def _following(self) -> Iterator[_Places]:
        """The places as they are now, which stay so in the block."""
        self.chest._look()
        with self.chest.lock:
            self._places.follow()
            yield self._places

    def _end(self, *, last: bool) -> Any:
        with self._following() as places:
            if not len(places):
                msg = "the chest is empty"
                raise KeyError(msg)
            return places.key(-1 if last else 0)

    def _at(self, at: int) -> Any:
        """The key at a position."""
        with self._following() as places:
            if not -len(places) <= at < len(places):
                msg = f"position {at} of {len(places)}"
                raise IndexError(msg)
            return places.key(at)

    def _between(self, some: slice) -> list[Any]:
        """The keys at some positions."""
        with self._following() as places:
            return places.keys(some)


class _Places:
    """Where each key stands. The chest's lock is held around every call.

    A place is a key's birth and, in the low bits, which of those that have the same one
    it is. The index notes what was published; keys that are in memory only stand in the
    chest's `_fresh`, in order of birth.
    """

    def __init__(self, chest: Chest) -> None:
        self._chest = chest
        self._journal: list[Hashable] | None = None
        self._read = 0  # of the journal
        self._of: dict[Hashable, int] = {}
        self._keys: dict[int, Hashable] = {}
        self._fresh: dict[Hashable, None] = {}  # those that came from there
        self._freshest = 0  # the highest birth of those
        self._sorted: Any = None

    def __len__(self) -> int:
        return len(self._of)

    def key(self, at: int) -> Any:
        """The key at a position."""
        return self._keys[self._sorted[at]]

    def keys(self, some: slice) -> list[Any]:
        """The keys at some positions."""
        return [self._keys[place] for place in self._sorted[some]]

    def rank(self, key: Hashable) -> int:
        """The position of a key."""
        return int(self._sorted.index(self._of[key]))

    def birth_at_end(self, key: Hashable, *, last: bool) -> int:
        """The birth with which *key*, which is there, stands at an end. Both locks held.

        It keeps its own when it stands there already.
        """
        self.follow()
        place: int = self._sorted[-1 if last else 0]
        birth = place >> TIES
        if self._keys[place] == key:
            return birth
        return self._chest._next_birth() if last else min(birth, 0) - 1

    def follow(self) -> None:
        """Take over what has changed since."""
        index, fresh = self._chest._manifest.index, self._chest._born()
        if index.journal is None or index.journal is not self._journal:
            self._build()
        else:
            for key in self._journal[self._read :]:
                self._put(key)
            self._read = len(self._journal)
        new = []
        for key, birth in reversed(fresh.items()) if fresh else ():
            if birth <= self._freshest:
                break
            new.append(key)
        for key in reversed(new):
            self._put(key)
        if len(self._of) != len(index) + len(fresh):
            for key in [key for key in self._fresh if key not in fresh]:
                self._put(key)

    def _build(self) -> None:
        """Begin anew. O(n log n)."""
        from sortedcontainers import SortedList

        index = self._chest._manifest.index
        self._of, self._keys, self._fresh, self._freshest = {}, {}, {}, 0
        for key, entry in index.items():
            self._take(key, entry.birth)
        self._sorted = SortedList(self._keys)
        # Taken last: what is looked up above may be the end of a damaged checkpoint.
        index = self._chest._manifest.index
        if index.journal is None:
            index.journal = []
        self._journal, self._read = index.journal, len(index.journal)

    def _take(self, key: Hashable, birth: int) -> int:
        """Note the place of a key that has none."""
        place = birth << TIES
        while place in self._keys:
            place += 1
        self._keys[place] = key
        self._of[key] = place
        return place

    def _put(self, key: Hashable) -> None:
        """Let one key stand where it belongs now, or nowhere."""
        entry = self._chest._manifest.index.get(key)
        birth = self._chest._fresh.get(key) if entry is None else entry.birth
        if entry is not None or birth is None:
            self._fresh.pop(key, None)
        else:
            self._fresh[key] = None
            self._freshest = max(self._freshest, birth)
        old = self._of.get(key)
        if old is not None:
            if old >> TIES == birth:
                return
            del self._of[key], self._keys[old]
            self._sorted.remove(old)
        if birth is not None:
            self._sorted.add(self._take(key, birth))


class _Keys(KeysView[Any]):
    """Keys in order."""

    __slots__ = ()
    _mapping: Ordered

    def __reversed__(self) -> Iterator[Any]:
        return reversed(self._mapping)

    def __getitem__(self, at: int | slice) -> Any:
        if isinstance(at, slice):
            return self._mapping._between(at)
        return self._mapping._at(at)


class _Items(ItemsView[Any, Any]):
    """Pairs in order."""

    __slots__ = ()
    _mapping: Ordered

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return iter(self._mapping.chest.items())

    def __reversed__(self) -> Iterator[tuple[Any, Any]]:
        return self._mapping.chest._pairs(reversed(self._mapping))

    @overload
    def __getitem__(self, at: int) -> tuple[Any, Any]: ...
    @overload
    def __getitem__(self, at: slice) -> list[tuple[Any, Any]]: ...
    def __getitem__(self, at: int | slice) -> tuple[Any, Any] | list[tuple[Any, Any]]:
        """Pairs by position; of a slice, those that others delete are left out."""
        o = self._mapping
        if isinstance(at, slice):
            return [*o.chest.get_many(o._between(at)).items()]
        while True:
            key = o._at(at)
            with contextlib.suppress(KeyError):  # deleted since: the next one
                return key, o.chest[key]


class _Values(ValuesView[Any]):
    """Values in order."""

    __slots__ = ()
    _mapping: Ordered

    def __iter__(self) -> Iterator[Any]:
        return iter(self._mapping.chest.values())

    def __reversed__(self) -> Iterator[Any]:
        for _, value in reversed(self._mapping.items()):
            yield value

    def __getitem__(self, at: int | slice) -> Any:
        found: Any = self._mapping.items()[at]
        return [value for _, value in found] if isinstance(at, slice) else found[1]
