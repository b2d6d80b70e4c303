"""What a chest tells about itself, and the care of its folder.

Owns: facts and statistics, how a chest is shown, checking, compaction, the budget of the
disk. Does not own: the mapping, or how values move.
"""

from __future__ import annotations

import contextlib
import errno
import time
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

from chest import errors, facts, reprs
from chest.batches import Batch, Columns, Packed
from chest.conflict import Settling
from chest.index import AnyEntry, same
from chest.ledger import generation
from chest.memory import Slot
from chest.packing import FEWEST_PACKED
from chest.packs import BATCH_KEYS
from chest.small import is_small
from chest.spill import MOST_DRAFTS, SpillTier, Written

__all__ = ["Upkeep"]


MOST_LOOKS = 5  # times an update follows a chest that others are changing


class Upkeep(Settling):
    """An engine that can be looked at and looked after."""

    __slots__ = ()

    def __len__(self) -> int:
        """How many keys there are; O(1)."""
        if self._word[1] != self._seen:
            self.refresh()
        memory = self._memory
        count = len(self._manifest.index) + len(memory.fresh) + len(memory.newest)
        if self._closed:  # by another thread: memory is empty
            self._refuse()
        return count

    # -- what there is -----------------------------------------------------------------

    def key_to_filename(self, key: Hashable) -> str:
        """Full path of the file that holds the value of *key*, or that will hold it.

        For a key whose newest value was not written yet, or lies in the log, it is the
        file that it gets; for a small one that was written together with many others,
        the pack that they share (`unpack` gives it a file of its own).
        """
        slot = self._slots.get(key)
        entry = self._manifest.index.get(key)
        if entry is None or not entry.name or (slot is not None and slot.dirty):
            own = slot.options[0] if slot is not None and slot.options else None
            form = own or self._settings.format
            name = self._spill.name(key, self._values.get(key), form)
            return self._spill.store.home.join(name)
        return self._spill.store.home.join(entry.name)

    def _told(self, key: Hashable, entry: AnyEntry | None) -> dict[str, Any]:
        # docstring inherited
        with self.lock:
            return {"generation": generation(entry), "birth": self._birth_of(key)}

    def _known(self, key: Hashable) -> tuple[Slot | None, AnyEntry | None]:
        # docstring inherited
        self._look()
        slot, entry = self._slots.get(key), self._manifest.index.get(key)
        if slot is None and entry is None:
            self._check_open()  # another thread may have closed it
            raise KeyError(key)
        return slot, entry

    def stats(self) -> facts.Stats:
        """Counts since the chest was opened, and its present state. O(keys)."""
        self._look()
        disk, spill = self._settings.available_disk, self._spill
        return self._stats(
            keys=len(self),
            stored_nbytes=self._stored(),
            available_disk=float("inf") if disk is None else disk,
            misses=spill.loaded,
            writes=spill.written,
            written_nbytes=spill.written_bytes,
            loads=spill.loaded,
            loaded_nbytes=spill.loaded_bytes,
            compression=spill.compression,
        )

    def _known_size(self) -> tuple[int, int]:
        # docstring inherited
        return len(self._manifest.index) + len(self._fresh), self._stored()

    # -- care --------------------------------------------------------------------------

    def compact(self) -> int:
        """Rewrite the manifest without what is gone, and remove orphaned files.

        Returns
        -------
        int
            How many files of dead writers were removed.
        """
        return self._compact()

    def unpack(self, key: Hashable) -> str:
        """Give a value that lies in a pack, or in the log, a file of its own.

        Returns
        -------
        str
            The file's path.

        Raises
        ------
        KeyError
            There is no such key.
        """
        slot, entry = self._known(key)
        if slot is not None and slot.dirty:
            self._raise_first(self._write_out([slot], keep=False))
        elif entry is not None and is_small(entry):
            self._move_to_files([(key, entry)])
        return self.key_to_filename(key)

    def verify(self, *, progress: bool = False) -> list[facts.Problem]:
        """Read every published byte and compare it with its checksum.

        Parameters
        ----------
        progress : bool
            Show a progress bar.

        Returns
        -------
        list of Problem
            Empty when all is well. Nothing is changed.
        """
        self.refresh()
        with self.lock:
            entries = self._manifest.index.items()
        problems = []
        batches: set[Batch] = set()
        for key, entry in reprs.shown(entries, "verify", show=progress):
            error = self._spill.verify(key, entry)
            if error is None and type(entry) is Packed and entry.batch not in batches:
                batches.add(entry.batch)
                error = self._spill.verify_index(entry.batch)
            if error is None:
                continue
            self.refresh()
            # Replaced meanwhile: what was read is nobody's value any more.
            if same(self._manifest.index.get(key), entry):
                path = self._spill.store.home.join(entry.name)
                problems.append(facts.Problem(key, path, str(error)))
        return problems

    def trim(
        self, bytes: float | str | None = None, older_than: float | None = None
    ) -> int:
        """Delete the keys that were least recently used, for everyone.

        Parameters
        ----------
        bytes : int or str, optional
            Until the values' files take no more than this.
        older_than : float, optional
            Those not used for so many seconds.

        Returns
        -------
        int
            How many keys were deleted.

        Notes
        -----
        Use is a write, or a read from disk by a chest that has ``available_disk``; the
        time is kept with the file.
        """
        if bytes is None and older_than is None:
            msg = "trim() needs bytes=, older_than=, or both"
            raise TypeError(msg)
        most = None if bytes is None else reprs.parse_bytes(bytes, option="bytes")
        return self._trim(most, older_than)

    def _written_before(self, keys: Iterable[Any], seconds: float) -> list[Any]:
        """Those that were computed, or else whose file was written, that long ago."""
        now, found = time.time(), []
        for key in keys:
            entry = self._manifest.index.get(key)
            made: float = entry.made if entry else now
            if not made and entry:
                status = self._spill.store.home.stat(entry.name)
                made = status.st_mtime if status else now
            if now - made >= seconds:
                found.append(key)
        return found

    def _written_more(self) -> None:
        """Delete the least recently used keys beyond ``available_disk``."""
        budget = self._settings.available_disk
        if budget is not None and self._stored() > budget:
            # What was written is published, also where another thread has closed it.
            with contextlib.suppress(errors.ClosedError):
                self._trim(budget, None)

    @property
    def stored_nbytes(self) -> int:
        """Bytes of the values on disk, those in packs that are dead included."""
        self._look()
        return self._stored()

    def _stored(self) -> int:
        """`stored_nbytes`, of what was seen already."""
        index = self._manifest.index
        return index.file_nbytes + index.pack_nbytes()

    def _can_be_linked_to(self, other: Upkeep) -> bool:
        """Files of this chest mean the same in *other*."""
        mine, theirs = self._settings, other._settings
        if mine.is_custom or theirs.is_custom:
            return (mine.dump, mine.load, mine.open, mine.mode) == (
                theirs.dump,
                theirs.load,
                theirs.open,
                theirs.mode,
            )
        return mine.trust == theirs.trust

    def _adopt(self, other: Upkeep, *, overwrite: bool) -> None:
        """Take over the files of *other*."""
        other._sync(keep=True)
        other._settle()
        for look in range(MOST_LOOKS):
            with other.lock:
                entries = list(other._manifest.index.items())
            if not overwrite:
                entries = [
                    (key, entry)
                    for key, entry in entries
                    if key not in self._slots and not self._manifest.index.get(key)
                ]
            try:
                self._adopt_files(other._spill, entries)
            except OSError as error:
                # Another process replaced or moved a value meanwhile: look again.
                if error.errno != errno.ENOENT or look == MOST_LOOKS - 1:
                    raise
                other.refresh()
            else:
                return

    def _adopt_files(
        self, theirs: SpillTier, pairs: Sequence[tuple[Hashable, AnyEntry]]
    ) -> None:
        """Take over values of another chest, whose entries these are."""
        with self.lock:
            births = {key: self._birth_of(key) for key, _ in pairs}
        small = [pair for pair in pairs if _may_share(pair[1])]
        if self._packs and len(small) >= FEWEST_PACKED:
            self._adopt_small(theirs, small, births)
            pairs = [pair for pair in pairs if not _may_share(pair[1])]
        for start in range(0, len(pairs), MOST_DRAFTS):
            written: list[Written] = []
            try:
                for key, entry in pairs[start : start + MOST_DRAFTS]:
                    written.append(self._spill.adopt(key, theirs, entry, births[key]))
                with self._publishing(alone=True):
                    for each in written:  # others may have given it away meanwhile
                        each.entry.birth = self._birth_of(each.key)
                    replaced = self._spill.publish(written)
                    self._forget_slots(births.keys() & {each.key for each in written})
            finally:
                self._spill.discard(written)  # what was not published
            self._spill.delete(replaced)

    def _adopt_small(
        self,
        theirs: SpillTier,
        pairs: Sequence[tuple[Hashable, AnyEntry]],
        births: dict[Hashable, int],
    ) -> None:
        """Take over small values of another chest into a pack, as they are."""
        for start in range(0, len(pairs), BATCH_KEYS):
            some = pairs[start : start + BATCH_KEYS]
            small = Columns()
            for key, entry in some:
                data = theirs.raw(key, entry)
                small.add(key, births[key], data, made=entry.made)
            batch = self._spill.pack(small)
            with self._publishing(alone=True):
                find, last = self._manifest.index.get, self._manifest.index.last_birth
                if any(
                    birth <= last and find(key) is None
                    for key, birth in zip(small.keys, small.births, strict=True)
                ):
                    # Others have given it away meanwhile.
                    small.births = self._births_of(small.keys)
                    batch = self._spill.pack(small)
                replaced = self._spill.publish_packed(batch, small, ())
                self._forget_slots([key for key, _ in some])
            self._spill.delete(replaced)

    def _trim(self, most: float | None, older_than: float | None) -> int:
        """Delete keys by last use, the oldest first; returns how many."""
        stat = self._spill.store.home.stat
        ages: list[tuple[float, Hashable, int]] = []
        with self.lock:
            entries = dict(self._manifest.index.items())
        for key, entry in entries.items():
            status = stat(entry.name)
            if status is not None:
                ages.append((max(status.st_atime, status.st_mtime), key, entry.size))
        ages.sort(key=lambda age: age[0])
        left, deadline = sum(size for _, _, size in ages), 0.0
        if older_than is not None:
            deadline = time.time() - older_than
        gone = []
        for used, key, size in ages:
            if not (used < deadline or (most is not None and left > most)):
                break
            gone.append(key)
            left -= size
        with self._publishing(alone=True):
            found = ((key, self._manifest.index.get(key)) for key in gone)
            live = {key: known for key, known in found if known is not None}
            names = self._spill.remove(live)
            for key in live:
                slot = self._slots.get(key)
                if slot is not None and not slot.dirty:
                    self._memory.drop(slot)
                elif slot is not None:
                    self._revive(slot)
        self._spill.delete(names)
        return len(live)


def _may_share(entry: AnyEntry) -> bool:
    """A small value that may lie in a pack, where there are no deadlines."""
    return is_small(entry) and entry.expires is None
