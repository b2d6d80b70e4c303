"""Publication: records appended to the log, and what they change in the index.

Owns: the ways in which a record is appended, and what an error leaves. Does not own: when
the lock is taken for several records, or how what others appended is read
(`chest.manifest`).
"""

from __future__ import annotations

import os
from binascii import hexlify
from collections.abc import Hashable, Mapping, Sequence

from chest import errors, lifetime, system
from chest.batches import Batch, dead_places
from chest.index import AnyEntry
from chest.log import IS_MOVED, integer, word_at
from chest.records import MARK, Entry
from chest.system import locks
from chest.tail import Tail

__all__ = ["LOOK_EACH", "Writing"]

MOST_UNSEEN = 1 << 26  # bytes that are passed over before a writer reads them
LOOK_EACH = 64  # publications; then a writer looks whether its log still has a name


class Writing(Tail):
    """A log to which records can be appended."""

    _ordinary: bool  # one call takes the lock, and what was written is never in doubt

    def append(
        self,
        pairs: Sequence[tuple[Hashable, Entry]],
        batch: Batch | None = None,
        named: Sequence[Hashable] = (),
        *,
        moved: bool = False,
        live: Mapping[Hashable, AnyEntry] | None = None,
    ) -> None:
        """Publish (key, entry) pairs as one record: all of them become visible, or none.

        Must be called within `exclusive`. Each entry's ``generation`` is set to the
        record's number. O(len(pairs)), one write. A *batch* in a pack, whose keys are
        *named*, is published in the same record. Values that were only *moved*, to a file
        or another pack, keep the generations they have. *live* has
        the entries of the batch's keys but for the dead, where they are known.

        Raises
        ------
        StoreError
            The disk refused; nothing was published.
        """
        number = self.generation + 1
        entries = [entry for _, entry in pairs]
        if batch is not None:
            entries.append(batch.record)
        if not moved:
            for entry in entries:
                entry.generation = 0  # implied by the place in the log
        record = entries[0] if len(entries) == 1 else entries
        try:
            seen = self._write(self._lines.marked(record, number))
            for entry in entries:
                entry.generation = entry.generation or number
            for key, entry in pairs:
                self.index.apply(key, entry)
            if batch is not None:
                self.index.apply_batch(batch, named, dead_places(batch.record), live)
            self.generation, self.seen = number, seen
        except BaseException as error:
            self._cut_short(error)
            raise

    def end(self, texts: Sequence[bytes], live: Mapping[Hashable, AnyEntry]) -> None:
        """Publish that all keys of *live* are gone, as `append` does.

        *live* has their entries, *texts* are their JSON texts, in the same order.
        """
        number = self.generation + 1
        try:
            seen = self._write(self._lines.ending(texts, number))
            self.index.end_many([*live], live)
            self.generation, self.seen = number, seen
        except BaseException as error:
            self._cut_short(error)
            raise

    def publish_one(
        self, key: Hashable, entry: Entry, old: AnyEntry | None, *, last: bool
    ) -> None:
        """Publish one entry in the place of *old*, the live one of *key*; lock held.

        It has no deadline, and its value lies in the log.

        When it is the *last* that needs the lock (no file has to go), others need not
        wait for what follows: it is given back, unless it was taken more than once.
        """
        try:
            number = self.generation + 1
            seen = self._write(self._lines.line(entry, number))
            if last and self._depth == 1:
                locks.flock(self._home.lock_fd, locks.FREE)
                self._depth = 0
            entry.generation = number
            self.index.change(key, entry, old)
            self.generation, self.seen = number, seen
        except BaseException as error:
            self._cut_short(error)
            if self._depth <= 1:
                self._give_up(error)
            raise
        if lifetime.postponed and not self._depth:
            lifetime.work_off()

    def publish_alone(
        self, key: Hashable, entry: Entry, old: AnyEntry | None, *, again: bool = False
    ) -> bool:
        """`publish_one` where the lock is not held: it is taken for this one.

        False, and nothing was published: others have published since the log was read,
        or it would be `overgrown`.
        *again* says that nothing but the value differs from *old*, which lies in the log
        as well.
        """
        # What is published one by one goes this way. The steps of `_write` and of
        # `Index.change` are spelled out: calling them would take a twelfth longer.
        if not self._ordinary:
            return False
        try:
            lock_fd = self._home.lock_fd
            locks.flock(lock_fd, locks.EXCLUSIVE)
            self._depth = 1
            end, fd, word = self._position, self._fd, self.word
            number = self.generation + 1
            line = self._lines.line(entry, number)
            size = len(line)
            if (
                word[1] != self.seen
                or os.lseek(fd, 0, os.SEEK_END) != end
                or end + size > self._turn
            ):
                self._unlock()
                return False
            if not number % LOOK_EACH:
                self._check_there()  # it has not moved, as the word says
            try:
                done = os.pwrite(fd, line, end)
                if done < size:
                    system.pwrite_all(fd, line[done:], end + done)
                self._position = end + size
            except BaseException as error:
                self._not_written(error, line, end)
                raise
            length = ((end + size) & 0xFFFFFFFF).to_bytes(4, "big")
            word[1] = seen = integer(hexlify(length), "little")
            locks.flock(lock_fd, locks.FREE)
            self._depth = 0
            entry.generation = number
            index = self.index
            if again and index.journal is None:
                index.records += 1
                index.entries[key] = entry
            else:
                index.change(key, entry, old)
            self.generation, self.seen = number, seen
        except BaseException as error:
            self._cut_short(error)
            self._give_up(error)
            raise
        if lifetime.postponed:
            lifetime.work_off()
        return True

    def publish_unseen(self, entry: Entry) -> bool:
        """Publish a value whatever its key has, and pass over what others published.

        False, and nothing happened: that cannot be passed over. Takes the lock and gives
        it back. The entry has no birth, and is known here like those of others, once the
        log is read: the word differs from `seen` until then.

        For who sets values that others do not ask for, while they set theirs: reading all
        of that would take several times what writing does.
        """
        if self._depth or not self._ordinary or self._in_doubt:
            return False
        try:
            locks.flock(self._home.lock_fd, locks.EXCLUSIVE)
            self._depth = 1
            passed = (
                self._unread is not None
                and self.word[1] != IS_MOVED
                and self.generation % LOOK_EACH
                and os.lseek(self._fd, 0, os.SEEK_END) == self._position
            ) or self._pass_over()
            if passed:
                number = self.generation + 1
                self._write(self._lines.line(entry, number))
                self.generation = number
            locks.flock(self._home.lock_fd, locks.FREE)
            self._depth = 0
        except BaseException as error:
            self._cut_short(error)
            self._give_up(error)
            raise
        if lifetime.postponed:
            lifetime.work_off()
        return bool(passed)

    def _pass_over(self) -> bool:
        """Stand at the log's end, if nothing before it need be known; lock held."""
        word, begin = self.word[1], self._position
        size = os.lseek(self._fd, 0, os.SEEK_END)
        start, _ = self._unread or (begin, 0)
        if word == IS_MOVED or not begin <= size < start + MOST_UNSEEN:
            return False
        data = system.read_all(self._fd, begin, size - begin) if size > begin else b""
        if data and (data[-1:] != b"\n" or word != word_at(size)):
            return False  # torn, or nobody said that it is whole
        if MARK in data or b"\0" in data:  # which a power cut leaves of a record
            return False
        if not self.generation % LOOK_EACH:
            self._check_there()
        if self._unread is None:
            self._unread = begin, self.generation
        self._position, self.generation = size, self.generation + data.count(b"\n")
        return True

    def _give_up(self, error: BaseException) -> None:
        """Give the lock back after an error, and raise what the system says as ours."""
        if self._depth or not isinstance(error, OSError):
            self._unlock()  # also after Ctrl-C: nobody knows that we have it, if we do
        if isinstance(error, OSError) and not isinstance(error, errors.ChestError):
            raise self._refused(error, "could not be read") from error

    def end_one(self, key: Hashable, text: bytes, old: AnyEntry) -> None:
        """`end` of one key, whose entry is *old*."""
        number = self.generation + 1
        try:
            seen = self._write(self._lines.ending([text], number))
            self.index.end(key, old)
            self.generation, self.seen = number, seen
        except BaseException as error:
            self._cut_short(error)
            raise

    def _cut_short(self, error: BaseException) -> None:
        """A record may be written and not be known; unless the disk refused it."""
        if not isinstance(error, errors.StoreError):
            self.doubt()
