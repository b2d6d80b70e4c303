"""A log or a checkpoint that is written anew, beside the one in use.

Owns: what goes into both, and their unpublished files. Does not own: when they take the
place of what is in use (`chest.manifest`), how their lines and rows are made.

Begun under the manifest's lock, by copying what the index holds; written without it, while
others go on; finished under it, with what was published meanwhile.
"""

from __future__ import annotations

import logging
import operator
from collections.abc import Collection, Hashable, Sequence
from contextlib import AbstractContextManager
from itertools import compress, repeat
from typing import NamedTuple

import msgspec

from chest import errors
from chest.base import INDEX, About, rows
from chest.batches import Batch, dead_bits, is_dead
from chest.folder import Aside, Folder, refusals
from chest.index import Index
from chest.log import NAME
from chest.moving import Move
from chest.packs import Packs
from chest.records import Entry, Header, Lines

__all__ = ["Rewrite", "Source", "starts_checkpoint"]

CHECKPOINT_FROM = 8192  # entries; fewer are read from the log in 5 ms
log = logging.getLogger("chest")


def starts_checkpoint(count: int) -> bool:
    """Whether so many entries are worth one."""
    return count >= CHECKPOINT_FROM


class Source(NamedTuple):
    """The log that is in use, and how far it was read.

    Attributes
    ----------
    id, first : str, int
        The chest, and the number before the log's first record.
    generation, position : int
        The last record, and where it ends.
    opening : int
        How often the log was opened: another number, another file.
    """

    id: str
    first: int
    generation: int
    position: int
    opening: int


class Rewrite:
    """What an index held at one moment, and files that say so.

    Parameters
    ----------
    home : Folder
    lines : Lines
    index : Index
        Copied here, as far as it changes; costs what it takes to copy a dict of what is
        newer than its checkpoint.
    source : Source
    """

    def __init__(
        self,
        home: Folder,
        lines: Lines,
        index: Index,
        source: Source,
    ) -> None:
        self.source = source
        self._home = home
        self._lines = lines
        self._base, self._entries = index.base, index.entries.copy()
        # One of which nothing lives counts as long as others keep its pack: else nobody
        # would know any more how much of that is dead.
        packs = index.packs
        kept = {name for name, tally in packs.items() if tally.dead < tally.count}
        self._batches = [
            (batch, bytes(batch.gone)) for batch in index.batches if batch.name in kept
        ]
        self._birth, self._records = index.last_birth, index.records
        self._file_nbytes, self._count = index.file_nbytes, len(index)
        self._moved: Move | None = None
        self._log: Aside | None = None
        self._checkpoint: Aside | None = None
        self.number = 0  # of the new log's last record

    def move(self, poor: Collection[str], packs: Packs, *, sync: bool) -> None:
        """Move what is live in these packs to another one; no lock.

        To be followed by `write` of a log, which says where it lies now: no record is
        published for what only moves.

        Raises
        ------
        StoreError
            The disk refuses; nothing has changed.
        CorruptChestError
            The index of a batch is damaged.
        """
        move = Move(packs, sync=sync, generation=self.source.generation)
        self._moved, kept = move, []
        with refusals(self._home.path, "takes no pack"):
            for batch, gone in self._batches:
                if batch.name not in poor:
                    kept.append((batch, gone))
                elif is_dead(self._record(batch, gone)):
                    continue
                elif stay := move.take(batch, gone):
                    places = {*range(batch.record.count)}.difference(stay)
                    kept.append((batch, dead_bits(batch.record.count, places)))
            kept += [(batch, b"") for batch in move.finish()]
        self._batches = kept

    def stands(self) -> bool:
        """Nobody swept what was moved; called under the manifest's lock."""
        with refusals(self._home.path, "could not be read"):
            return self._moved is None or self._moved.stands()

    def write(self, *, log: bool) -> None:
        """Write a log of the live entries and its checkpoint, or one of the log in use.

        No lock. O(keys), and without a checkpoint O(keys in no batch).

        Raises
        ------
        StoreError
            The disk refuses a log; without a checkpoint we can do.
        Damaged, CorruptChestError
            The checkpoint in use, or the index of a batch, is damaged.
        """
        alone = self._alone()
        if log:
            self._write_log(alone)
        else:
            id_, first, generation, position, _ = self.source
            self._write_rows(alone, (id_, first, generation, position), self._records)

    def _write_log(self, alone: Sequence[tuple[Hashable, Entry]]) -> None:
        entries = [self._record(*each) for each in self._batches]
        entries += [entry for _, entry in alone]
        first = self.source.generation
        pieces = [self._lines.first(Header(self.source.id, first, self._birth))]
        pieces += map(
            self._lines.line, entries, range(first + 1, first + 1 + len(entries))
        )
        self.number = first + len(entries)
        with self._refusals():
            self._log = Aside(self._home, pieces)
        if starts_checkpoint(self._count) and self._lines.unsigned:
            where = (self.source.id, first, self.number, sum(map(len, pieces)))
            self._write_rows(alone, where, sum(entry.count or 1 for entry in entries))

    @property
    def has_log(self) -> bool:
        """Whether there is a log that is to take the other's place."""
        return self._log is not None

    @property
    def placed(self) -> bool:
        """Whether it has."""
        return self._log is not None and self._log.placed

    def append(self, entries: Sequence[Entry]) -> None:
        """Add a record of the old log to the new one; its generation stays."""
        assert self._log is not None
        self.number += 1
        record = entries[0] if len(entries) == 1 else [*entries]
        with self._refusals():
            self._log.write([self._lines.line(record, self.number)])

    def place(self, *, sync: bool) -> None:
        """Give the files their names; called within `exclusive`, with everything read.

        The checkpoint first: who opens the log finds the one that belongs to it.

        Raises
        ------
        StoreError
            The disk refused; the old log is still in use.
        """
        if self._checkpoint is not None:
            try:
                self._checkpoint.place(INDEX, sync=sync)
            except OSError as error:
                log.info("%s was not written: %s", self._home.join(INDEX), error)
        if self._log is not None:
            with self._refusals():
                self._log.place(NAME, sync=sync)

    def discard(self) -> None:
        """Remove what did not get its name. Safe to call twice."""
        for aside in (self._log, self._checkpoint):
            if aside is not None:
                aside.discard()
        if self._moved is not None and not self.placed:
            self._moved.discard()

    # -- steps -------------------------------------------------------------------------

    def _refusals(self) -> AbstractContextManager[None]:
        """Raise what the system says of the log as `StoreError`."""
        return refusals(self._home.join(NAME), "could not be written anew")

    def _write_rows(
        self,
        alone: Sequence[tuple[Hashable, Entry]],
        where: tuple[str, int, int, int],
        records: int,
    ) -> None:
        """Write the checkpoint of the log that *where* speaks of."""
        about = About(*where, self._birth, records, self._file_nbytes)
        try:
            pieces = rows(alone, self._batches, about)
            self._checkpoint = Aside(self._home, pieces)
        except OSError as error:
            if isinstance(error, errors.ChestError):
                raise
            log.info("no checkpoint was written: %s", error)

    @staticmethod
    def _record(batch: Batch, gone: bytes) -> Entry:
        """The record of a batch, saying which of its values are not live."""
        return msgspec.structs.replace(batch.record, dead=gone or None)

    def _alone(self) -> list[tuple[Hashable, Entry]]:
        """The live entries that are in no batch, in order of birth."""
        entries = self._entries
        # At the speed of C: mostly there are many, and hardly any is alone.
        is_alone = map(operator.is_, map(type, entries.values()), repeat(Entry))
        found = [*compress(entries.items(), is_alone)]
        if self._base is not None:
            alone = self._base.alone()
            found += (pair for pair in alone if pair[0] not in entries)
        found.sort(key=lambda pair: (pair[1].birth, pair[1].generation))
        return found
