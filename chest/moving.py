"""Values that move from one pack to another, as they are.

Owns: reading them in runs, and batches of a good size for them. Does not own: which packs
are emptied, or the record that says where the values lie now.
"""

from __future__ import annotations

from collections.abc import Sequence

from chest.batches import Batch, Columns
from chest.packs import BATCH_KEYS, BATCH_NBYTES, Packs

__all__ = ["Move"]

TOGETHER = 1 << 13  # values of a batch that are read at once


class Move:
    """Values on their way, with their births and generations; no lock.

    Parameters
    ----------
    packs : Packs
    sync : bool
        Wait for the disk.
    generation : int
        The last record that is known.

    Attributes
    ----------
    batches : list of Batch
        Those that were written; nobody sees them before a log has their records.
    """

    def __init__(self, packs: Packs, *, sync: bool, generation: int) -> None:
        packs.end()  # not into one of those that go
        self.batches: list[Batch] = []
        self._packs = packs
        self._sync = sync
        self._generation = generation
        self._begin()

    def take(self, batch: Batch, gone: bytes) -> list[int]:
        """Take what is not *gone* from a batch; returns the places that stay.

        They are those that cannot be read: reading one says why.

        Raises
        ------
        OSError
            The disk refuses.
        CorruptChestError
            The batch's index is damaged.
        """
        source, stay = batch.passing(), list[int]()
        columns = source.texts(), source.births(), source.generations()
        live = source.left(gone)
        self._small.made = max(self._small.made, batch.record.made)
        for start in range(0, len(live), TOGETHER):
            some = live[start : start + TOGETHER]
            found = dict(self._packs.read_many(source, some))
            if len(found) < len(some):
                stay += [place for place in some if place not in found]
            self._add(found, *columns)
            full = len(self._small) > BATCH_KEYS - TOGETHER
            if full or self._nbytes >= BATCH_NBYTES:
                self._write()
        return stay

    def finish(self) -> list[Batch]:
        """Write the rest; returns all `batches`. Raises OSError as `take`."""
        if len(self._small):
            self._write()
        return self.batches

    def stands(self) -> bool:
        """Nobody swept what was written; called under the manifest's lock."""
        return all(map(self._packs.is_there, {each.name for each in self.batches}))

    def discard(self) -> None:
        """Leave what was written to the sweep."""
        self._packs.end()

    def _begin(self) -> None:
        self._small, self._nbytes = Columns(rewritten=True), 0

    def _add(
        self,
        found: dict[int, bytes],
        texts: Sequence[bytes],
        births: Sequence[int],
        generations: Sequence[int],
    ) -> None:
        small = self._small
        small.datas += found.values()
        small.texts += map(texts.__getitem__, found)
        small.births += map(births.__getitem__, found)
        small.generations += map(generations.__getitem__, found)
        self._nbytes += sum(map(len, found.values()))

    def _write(self) -> None:
        """Write what was taken so far."""
        new = self._packs.write(
            self._small, sync=self._sync, generation=self._generation
        )
        new.record.generation = (
            self._generation
        )  # of the record; each value has its own
        self.batches.append(new)
        self._begin()
