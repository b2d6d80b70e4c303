"""What exists: the live entries that replaying the manifest leaves.

Owns: the entries by key, their order of birth, the birth numbers. Does not own: the log
they come from.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable

from chest.records import Entry

__all__ = ["Index"]


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
        How many records were applied; those that are not live any more are waste.
    """

    def __init__(self, birth: int = 0) -> None:
        self.entries: dict[Hashable, Entry] = {}
        self.get: Callable[[Hashable], Entry | None] = self.entries.get
        self.birth = birth
        self.last_birth = 0
        self.records = 0
        self._in_order = True

    def __len__(self) -> int:
        return len(self.entries)

    def ordered(self) -> dict[Hashable, Entry]:
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

    def _replace(self, entries: dict[Hashable, Entry]) -> None:
        self.entries, self.get = entries, entries.get

    def apply(self, key: Hashable, entry: Entry) -> None:
        """Let one record change the live entries."""
        self.records += 1
        if entry.gone:
            if entry.gone == "all":
                self._replace({})
                self._in_order, self.last_birth = True, 0
            else:
                self.entries.pop(key, None)
            return
        birth = entry.birth
        if birth < self.last_birth:
            old = self.entries.get(key)
            if old is None or old.birth != birth:
                self._in_order = False
        else:
            self.last_birth = birth
            if birth > self.birth:
                self.birth = birth
        self.entries[key] = entry
