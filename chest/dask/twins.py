"""Keys of a worker that have the very same value, as those of dask's aliases have.

Owns: who has which large value, so that it is written once. Does not own: the writing.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from typing import Any

__all__ = ["Twins"]

FEW = 64  # keys that are remembered whatever became of their values


class Twins:
    """For each of two keys with one value, the other.

    What is remembered may be out of date: `of` looks whether it still is so.

    Parameters
    ----------
    values : dict
        Those in memory by key.
    held : callable
        key → its value, if that left memory and somebody else holds it, or None.
    """

    def __init__(
        self, values: Mapping[Any, Any], held: Callable[[Hashable], Any]
    ) -> None:
        self._values, self._held = values, held
        self._keys: dict[int, Hashable] = {}  # by the identity of the value
        self._twins: dict[Hashable, Hashable] = {}

    def meet(self, key: Hashable, value: Any) -> None:
        """A value has come under *key*."""
        first = self._keys.setdefault(id(value), key)
        if first != key and self._at(first) is value:
            self._twins[key], self._twins[first] = first, key
            return
        self._keys[id(value)] = key
        if len(self._keys) + len(self._twins) > FEW + 4 * len(self._values):
            self._keys = {id(each): name for name, each in self._values.items()}
            pairs = self._twins.items()
            self._twins = {one: two for one, two in pairs if one in self._values}

    def of(self, key: Hashable) -> Hashable | None:
        """Another key that has the value which *key* has in memory, or None."""
        twin = self._twins.get(key)
        if twin is None or self._at(twin) is not self._values.get(key):
            return None
        return twin

    def _at(self, key: Hashable) -> Any:
        value = self._values.get(key)
        return self._held(key) if value is None else value
