"""What of a worker's values is on disk only.

Owns: the sizes that distributed shows of them, and the mapping of them that people look
at. Does not own: when a value goes to disk or comes back.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from distributed.spill import SpilledSize

    from chest.dask.workers import SpillChest

__all__ = ["OnDisk", "Sizes"]


class Sizes:
    """Bytes that values took in memory and take on disk, by key and in all."""

    def __init__(self) -> None:
        from distributed.spill import SpilledSize

        self._size = SpilledSize
        self.clear()

    def clear(self) -> None:
        """Know of nothing."""
        self.by_key: dict[Hashable, SpilledSize] = {}
        self.total = self._size(0, 0)

    def add(self, key: Hashable, memory: int, disk: int) -> None:
        """Count a value that is on disk only, in place of what *key* had."""
        self.take(key)
        size = self.by_key[key] = self._size(memory, disk)
        self.total += size

    def take(self, key: Hashable) -> None:
        """Forget *key*, if it counts."""
        size = self.by_key.pop(key, None)
        if size is not None:
            self.total -= size


class OnDisk(Mapping[Any, Any]):
    """The values that are on disk only; looking at one does not keep it in memory."""

    __slots__ = ("_chest",)

    def __init__(self, chest: SpillChest) -> None:
        self._chest = chest

    def __getitem__(self, key: Hashable) -> Any:
        if key not in self._chest._sizes().by_key:
            raise KeyError(key)
        return self._chest._read(key)[0]

    def __iter__(self) -> Iterator[Any]:
        return iter([*self._chest._sizes().by_key])

    def __len__(self) -> int:
        return len(self._chest._sizes().by_key)

    def __repr__(self) -> str:
        return f"<{len(self)} values on disk>"
