"""What every chest shows as a mapping, wherever it lies.

Owns: views, equality, union, and what is made of simpler operations. Does not own: any
value, or where the chest lies: that is for `chest.Chest` and `chest.objects`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import (
    Hashable,
    ItemsView,
    Iterable,
    Iterator,
    KeysView,
    Mapping,
    MutableMapping,
    ValuesView,
)
from typing import Any, Self

__all__ = ["Face"]

MISSING: Any = object()


class Face(MutableMapping[Any, Any]):
    """A mapping that also has the parts of ``dict`` that a MutableMapping has not."""

    __slots__ = ()

    # -- what it is made of ------------------------------------------------------------

    @abstractmethod
    def __reversed__(self) -> Iterator[Any]:
        """The keys, the last one first."""

    @abstractmethod
    def add(self, key: Hashable, value: Any, *, ttl: float | None = None) -> bool:
        """Set *key* if it is not there, and publish it; whether it was set."""

    @abstractmethod
    def _like(self, path: Any) -> Self:
        """An empty chest with the same options."""

    @abstractmethod
    def _pairs(self, keys: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        """Those *keys* that are there, with their values, which are not kept."""

    # -- what is made of it ------------------------------------------------------------

    def keys(self) -> KeysView[Any]:
        """A view of the keys."""
        return _Keys(self)

    def values(self) -> ValuesView[Any]:
        """A view of the values; keys that others delete meanwhile are passed over."""
        return _Values(self)

    def items(self) -> ItemsView[Any, Any]:
        """A view of the pairs; keys that others delete meanwhile are passed over."""
        return _Items(self)

    def copy(self) -> Self:
        """A new chest in a temporary folder with the same pairs; files are linked."""
        new = self._like(None)
        new.update(self)
        return new

    def setdefault(self, key: Hashable, default: Any = None) -> Any:
        """The value of *key*, which is *default* from now on if there was none.

        Of several processes that ask at once, all get the value of the first.
        """
        while True:
            try:
                return self[key]
            except KeyError:
                if self.add(key, default):
                    return default

    def __eq__(self, other: object) -> bool:
        """Equal keys with equal values, as for a dict; may read every value."""
        if not isinstance(other, Mapping):
            return NotImplemented
        if self is other:
            return True
        if len(self) != len(other):
            return False
        for key, value in self.items():
            theirs = other.get(key, MISSING)
            if theirs is MISSING or not (theirs is value or theirs == value):
                return False
        return True

    __hash__ = None  # type: ignore[assignment]

    def __or__(self, other: object) -> Self:
        """A new chest with the pairs of both; *other* wins."""
        if not isinstance(other, Mapping):
            return NotImplemented
        new = self.copy()
        new.update(other)
        return new

    def __ror__(self, other: object) -> Self:
        """A new chest with the pairs of both; this one wins."""
        if not isinstance(other, Mapping):
            return NotImplemented
        new = self._like(None)
        new.update(other)
        new.update(self)
        return new

    def __ior__(self, other: Any) -> Self:  # type: ignore[misc]
        """`update`."""
        self.update(other)
        return self


class _Keys(KeysView[Any]):
    """Keys in order."""

    __slots__ = ()
    _mapping: Face

    def __reversed__(self) -> Iterator[Any]:
        return reversed(self._mapping)


class _Values(ValuesView[Any]):
    """Values in order."""

    __slots__ = ()
    _mapping: Face

    def __iter__(self) -> Iterator[Any]:
        for _, value in self._mapping._pairs(self._mapping):
            yield value

    def __reversed__(self) -> Iterator[Any]:
        for _, value in self._mapping._pairs(reversed(self._mapping)):
            yield value


class _Items(ItemsView[Any, Any]):
    """Pairs in order."""

    __slots__ = ()
    _mapping: Face

    def __iter__(self) -> Iterator[tuple[Any, Any]]:
        return self._mapping._pairs(self._mapping)

    def __reversed__(self) -> Iterator[tuple[Any, Any]]:
        return self._mapping._pairs(reversed(self._mapping))
