"""Many keys at once: reading in storage order, writing and deleting in one publication.

Owns: reading ahead, and what `items`, `get_many`, `set_many` and `delete_many` have in
common. Does not own: the single key, or how values move.
"""

from __future__ import annotations

from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from chest import errors
from chest.batches import Batch, Packed
from chest.index import AnyEntry, same
from chest.memory import weigh
from chest.upkeep import Upkeep

__all__ = ["Bulk"]

WINDOW = 1024  # keys read ahead; packed values of them take 8 MiB at most
MOST_OPEN_FILES = 512  # handed to the user's open_many at once, as by chest 0.2.3
AHEAD_NBYTES = 64 << 20  # of files that the system is asked to read meanwhile

Ahead = dict[Hashable, tuple[AnyEntry, bytes]]


class Bulk(Upkeep):
    """An engine that takes many keys at once."""

    __slots__ = ()

    def get_many(self, keys: Iterable[Hashable]) -> dict[Any, Any]:
        """The values of those *keys* that are there, as a dict in the order of *keys*.

        Values are read in the order in which they lie on disk, many at a time, and are
        not kept: what was not in memory is the caller's own copy.

        Raises
        ------
        CorruptValueError, DecodingError, UntrustedError
            As reading one of them.

        Examples
        --------
        >>> from chest import Chest
        >>> with Chest({"a": 1, "b": 2, "c": 3}) as c:
        ...     c.get_many(["c", "x", "a"])
        {'c': 3, 'a': 1}
        """
        return dict(self._pairs(keys))

    def set_many(
        self,
        pairs: Mapping[Any, Any] | Iterable[tuple[Any, Any]],
        *,
        ttl: float | None = None,
    ) -> None:
        """Set many values and publish them; all are visible to others on return.

        Many small values go into one pack, so this is the quickest way to write them.
        They are not one transaction: others may see some before the rest (`transact`
        is all or nothing).

        Parameters
        ----------
        pairs : Mapping or iterable of pairs
        ttl : float, optional
            Seconds after which all of them count as absent.

        Raises
        ------
        EncodingError, StoreError
            For the first value that could not be written; those that could are published.
            Of those that could not, one that was refused at once (by the format
            ``"data"``) or has a *ttl* is as it was before; others stay in memory.
        """
        given = pairs.items() if isinstance(pairs, Mapping) else pairs
        if ttl is not None:
            self._set_expiring(given, ttl)
            return
        named: dict[Hashable, None] = {}
        refused: list[errors.ChestError] = []
        for key, value in given:
            try:
                self._set(key, value, None)
            except errors.EncodingError as error:
                refused.append(error)
            else:
                named[key] = None
        with self.lock:
            slots = [self._slots[key] for key in named if key in self._slots]
        failed = self._write_out(slots, keep=True)
        if refused:
            raise refused[0]
        self._raise_first(failed)

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
        with self._publishing():
            count, names = self._delete(wanted)
        self._spill.delete(names)
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
        names = self._spill.remove(live)
        self._forget_slots([*live, *unpublished])
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

    def _set(self, key: Hashable, value: Any, options: Any) -> None:
        raise NotImplementedError

    def _set_expiring(self, pairs: Iterable[tuple[Any, Any]], ttl: float) -> None:
        raise NotImplementedError

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
        now, read = self._manifest.index.get(key), ahead.get(key)
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
        find, values = self._manifest.index.get, self._values
        for key in window:
            entry = None if key in values else find(key)
            if type(entry) is Packed:
                packed.setdefault(entry.batch, {})[entry.place] = key
            elif entry is not None and entry.name and left > 0:
                left -= entry.size
                self._spill.store.read_ahead(entry.name)
        ahead: Ahead = {}
        for batch, places in packed.items():
            for place, data in self._spill.packs.read_many(batch, sorted(places)):
                ahead[places[place]] = Packed(batch, place), data
        return ahead
