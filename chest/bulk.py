"""Many keys at once: reading in storage order, writing and deleting in one publication.

Owns: reading ahead, and what `items`, `get_many`, `set_many` and `delete_many` have in
common. Does not own: the single key, or how values move.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from chest.batches import Batch, Packed
from chest.index import AnyEntry, same
from chest.memory import weigh
from chest.upkeep import Upkeep

__all__ = ["Bulk"]

WINDOW = 1024  # keys read ahead
VERY_MANY = 1 << 18  # keys that are deleted; from the log they are read in 0.6 s
PACKED_AHEAD_NBYTES = 16 << 20  # of packed values that are read ahead
MOST_OPEN_FILES = 512  # handed to the user's open_many at once, as by chest 0.2.3
AHEAD_NBYTES = 64 << 20  # of files that the system is asked to read meanwhile

Ahead = dict[Hashable, tuple[AnyEntry, bytes]]


class Bulk(Upkeep):
    """An engine that takes many keys at once."""

    __slots__ = ()

    def delete_many(self, keys: Iterable[Hashable]) -> int:
        """Delete those *keys* that are there, for everyone and all at once.

        Returns
        -------
        int
            How many there were.

        Raises
        ------
        StoreError
            The disk refused; none was deleted.

        Examples
        --------
        >>> from chest import Chest
        >>> with Chest({"a": 1, "b": 2, "c": 3}) as c:
        ...     c.delete_many(["c", "x", "a"]), list(c)
        (2, ['b'])
        """
        wanted = dict.fromkeys(keys)
        held = [*map(self._values.get, wanted)]  # their __del__ may use the chest
        with self._publishing(alone=True):
            count, names = self._delete(wanted)
        del held
        self._spill.delete(names)
        if count >= VERY_MANY and self._manifest.wants_checkpoint:
            self._checkpoint()  # else whoever opens it reads what each of them was
        return count

    # -- for the floors above ----------------------------------------------------------

    def _delete(self, wanted: Collection[Hashable]) -> tuple[int, list[str]]:
        """Delete keys, each named once; how many there were, and names to `delete`.

        Locks held.
        """
        fresh, published = self._fresh, wanted
        unpublished = [key for key in wanted if key in fresh] if fresh else []
        if unpublished:
            published = [key for key in wanted if key not in fresh]
        live = self._manifest.index.find_many(published)
        before, gone = self._manifest.written, [*live, *unpublished]
        try:
            names = self._spill.remove(live)
            self._forget_slots(gone)
        except BaseException:
            if self._manifest.written != before:
                # Published: what is in memory must not be published after it.
                self._memory.mend()
                self._forget_slots(gone)
            raise
        return len(live) + len(unpublished), names

    def _fetch_together(self, wanted: Sequence[Hashable]) -> None:
        """`_fetch` by the user's `open_many`, some hundred files at a time."""
        options, join = self._settings, self._spill.store.home.join
        for start in range(0, len(wanted), MOST_OPEN_FILES):
            found = []
            for key in wanted[start : start + MOST_OPEN_FILES]:
                entry = self._manifest.index.get(key)
                if entry is None:
                    raise KeyError(key)
                found.append((key, entry))
            paths = [join(entry.name) for _, entry in found]
            with options.open_many(paths, mode="r" + options.mode) as files:
                for (key, entry), file in zip(found, files, strict=True):
                    value = options.load(file)
                    self._admit(key, value, entry, weigh(value), 0.0)

    # -- reading in storage order ------------------------------------------------------

    def _pairs(self, keys: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        """Those *keys* that are there, with their values, which are not kept.

        A value that is in memory is the one that is handed out. What others change
        between the reading ahead and its turn is read once more.
        """
        rest = iter(keys)
        while window := list(islice(rest, WINDOW)):
            ahead = self._read_ahead(window)
            for key in window:
                try:
                    value = self._glance(key, ahead)
                except KeyError:
                    continue  # deleted since, or never there
                yield key, value

    def _glance(self, key: Any, ahead: Ahead) -> Any:
        """The value of *key* without any trace in memory."""
        self._look()
        try:
            return self._values[key]
        except KeyError:
            pass
        now, read = self._manifest.index.find(key), ahead.get(key)
        self._report_miss(key, now)
        if read is not None:
            entry, data = read
            if same(now, entry):
                return self._spill.decode_small(key, entry, data)
        return self._read(key)[0]

    def _read_ahead(self, window: list[Any]) -> Ahead:
        """Read what lies in packs; have the system read the files."""
        self._look()
        packed: dict[Batch, dict[int, Any]] = {}
        left = AHEAD_NBYTES
        find, values = self._manifest.index.find, self._values
        for key in window:
            entry = None if key in values else find(key)
            if type(entry) is Packed:
                packed.setdefault(entry.batch, {})[entry.place] = key
            elif entry is not None and entry.name and left > 0:
                left -= entry.size
                self._spill.store.read_ahead(entry.name)
        ahead: Ahead = {}
        left = PACKED_AHEAD_NBYTES
        for batch, places in packed.items():
            for place, data in self._spill.packs.read_many(batch, sorted(places)):
                ahead[places[place]] = Packed(batch, place), data
                left -= len(data)
                if left < 0:
                    return ahead  # the rest is read one by one
        return ahead
