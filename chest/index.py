"""What exists: the live entries that replaying the manifest leaves.

Owns: the entries by key, their order of birth, the birth numbers, which of a pack's values
are live. Does not own: the log they come from.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from itertools import repeat

from chest.packs import Batch, Packed
from chest.records import Entry

__all__ = ["AnyEntry", "Index"]

AnyEntry = Entry | Packed


class Index:
    """The live entries of a manifest.

    Attributes
    ----------
    get : callable
        key → its live entry as far as the log was read, or None. O(1).
    birth : int
        The highest birth number ever given.
    last_birth : int
        The highest one of an entry here.
    records : int
        How many entries were applied; those that are not live any more are waste.
    batches : list of Batch
        Those that were applied.
    inline : dict
        Keys whose value lies in the log.
    file_nbytes : int
        Bytes of the live values that have a file each.
    """

    def __init__(self, birth: int = 0) -> None:
        self.birth = birth
        self.records = 0
        self._clear()

    def _clear(self) -> None:
        self._replace({})
        self.last_birth = self.file_nbytes = 0
        self.batches: list[Batch] = []
        self.inline: dict[Hashable, None] = {}
        self._in_order = True

    def __len__(self) -> int:
        return len(self.entries)

    def ordered(self) -> dict[Hashable, AnyEntry]:
        """The live entries in order of birth.

        O(1), or O(n log n) once after keys were published in another order.
        """
        if not self._in_order:
            births = sorted(
                self.entries.items(),
                key=lambda item: (item[1].birth, item[1].generation),
            )
            self._replace(dict(births))
            self._in_order = True
        return self.entries

    def next_birth(self) -> int:
        """A birth number higher than every one seen."""
        self.birth += 1
        return self.birth

    def apply(self, key: Hashable, entry: Entry) -> None:
        """Let one record change the live entries."""
        self.records += 1
        if entry.gone == "all":
            self._clear()
            return
        old = self.entries.get(key)
        if old is not None:
            self._outdate(key, old)
        if entry.gone:
            self.entries.pop(key, None)
            return
        if entry.value is None:
            self.file_nbytes += entry.size
        else:
            self.inline[key] = None
        self._take_birth(entry.birth, old)
        self.entries[key] = entry

    def apply_batch(
        self, batch: Batch, named: Sequence[Hashable], dead: frozenset[int]
    ) -> None:
        """Let the record of a batch change the live entries; *named* are its keys."""
        self.batches.append(batch)
        self.records += batch.record.count
        entries = self.entries
        births = batch.births()
        plain = not dead and entries.keys().isdisjoint(named)
        if plain and births[0] >= self.last_birth and births == sorted(births):
            # The usual case, new keys in order, at the speed of C.
            packed = map(Packed, repeat(batch), range(len(named)))
            entries.update(zip(named, packed, strict=True))
            self.last_birth = births[-1]
            self.birth = max(self.birth, births[-1])
            return
        for place, key in enumerate(named):
            if place in dead:
                batch.dead += 1
                continue
            old = entries.get(key)
            if old is not None:
                self._outdate(key, old)
            self._take_birth(births[place], old)
            entries[key] = Packed(batch, place)

    def pack_nbytes(self) -> int:
        """Bytes of all packed values, live or not. O(batches)."""
        return sum(batch.nbytes for batch in self.batches)

    def live(self) -> dict[Batch, list[tuple[int, Hashable]]]:
        """(place, key) of the live values of each batch. O(keys)."""
        found: dict[Batch, list[tuple[int, Hashable]]] = {}
        for key, entry in self.entries.items():
            if type(entry) is Packed:
                found.setdefault(entry.batch, []).append((entry.place, key))
        return found

    def names(self) -> set[str]:
        """Every file that the live entries need. O(keys)."""
        names = {entry.name for entry in [*self.entries.values()]}
        names.discard("")
        return names

    def _outdate(self, key: Hashable, old: AnyEntry) -> None:
        """An entry is replaced or deleted."""
        if type(old) is Packed:
            old.batch.dead += 1
        elif old.value is not None:
            del self.inline[key]
        else:
            self.file_nbytes -= old.size

    def _take_birth(self, birth: int, old: AnyEntry | None) -> None:
        """Note a birth, and whether it keeps the entries in order."""
        if birth >= self.last_birth:
            self.last_birth = birth
            self.birth = max(self.birth, birth)
        elif old is None or old.birth != birth:
            self._in_order = False

    def _replace(self, entries: dict[Hashable, AnyEntry]) -> None:
        self.entries = entries
        self.get: Callable[[Hashable], AnyEntry | None] = entries.get
