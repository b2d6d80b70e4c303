"""Records of the log applied to the index, one after the other.

Owns: how far the log was read, and what was read of it. Does not own: when it is read, or
written (`chest.manifest`), or what the live entries are (`chest.index`).

The place in the log and the record's number change in one step, after what the record says
was applied. What interrupts that (Ctrl-C), here or where a record is written, leaves all in
doubt, and the log is read anew.
"""

from __future__ import annotations

from collections.abc import Hashable

from chest import errors, keys
from chest.batches import Batch, dead_places, is_dead
from chest.index import Index
from chest.log import NO_WORD, LogFile
from chest.packs import Packs
from chest.records import Entry

__all__ = ["Tail"]


class Tail(LogFile):
    """A log and what it comes to, as far as it was read."""

    index: Index  # seen by threads without the lock
    load_key: keys.Loader | None
    changed: set[Hashable]
    reloaded: bool
    generation: int
    _growing: Index  # `index`, or the one that is being filled anew
    _in_doubt: bool  # what was read last, or published, is known in part
    _packs: Packs
    _unread: tuple[int, int] | None  # the first place and number that were passed over

    def doubt(self) -> None:
        """Read everything anew before the next step: this one ended half-way."""
        # No word is like this one, so a writer does not take its short way either.
        self._in_doubt, self.seen = True, NO_WORD

    def _go_back(self) -> None:
        """Stand where the first record lies that was passed over, if one was."""
        if self._unread is not None:
            self._position, self.generation = self._unread
            self._unread = None

    def _take_plain(self, data: bytes, begin: int) -> int:
        """Apply lines of one entry with a plain key each; where others begin in *data*.

        It is what the log has from *begin* on.
        """
        # The steps of `_take`, for what is published one by one: it is read by every
        # process that has the chest open.
        number, end = self.generation + 1, self._position - begin
        found, after, end = self._lines.plain(data, end, number)
        if found:
            changed, index = self.changed, self._growing
            for entry in found:
                key = entry.text
                changed.add(key)
                index.change(key, entry, index.get(key))
            index.records += after - number - len(found)
            self.generation, self._position = after - 1, begin + end
        return end

    def _take_others(self, data: bytes, begin: int) -> None:
        """Apply what `_take_plain` has left, and what is plain behind it."""
        word, start = self.word, self._position - begin
        while (end := data.find(b"\n", start)) >= 0 and self._take(data[start:end]):
            start = self._take_plain(data, begin)
        if self.word is not word:
            return  # all of it was read anew meanwhile
        if end >= 0:
            self._lines.check_torn(data, start, begin, self.generation)
        else:
            self._lines.check_newline(data[start:], self._position, self.generation)

    def _take(self, line: bytes) -> bool:
        """Apply the line at `_position`; False when its check does not fit."""
        number, end = self.generation + 1, self._position + len(line) + 1
        load, texts = self.load_key, self._lines.ended(line, number)
        offset = self._position
        entries = self._lines.read(line, number, offset) if texts is None else ()
        if entries is None:
            return False
        try:
            decoded = [_decoded(entry, self._packs, load) for entry in entries]
            ended = keys.decode_many(texts or [], load)
        except (ValueError, TypeError) as error:
            if isinstance(error, errors.ChestError):
                raise
            raise self._lines.corrupt(offset, str(error)) from error
        if ended:
            self.changed.update(ended)
            self._growing.end_many(ended, self._growing.find_many(ended))
            self.generation, self._position = number, end
            return True
        for named, entry, batch in decoded:
            if not entry.generation:
                entry.generation = number
            self.changed.update(named)
            if batch is not None:
                self._growing.apply_batch(batch, named, dead_places(entry))
                continue
            if entry.gone == "all":
                self.reloaded = True
            self._growing.apply(named[0], entry)
        self.generation, self._position = number, end
        return True


def _decoded(
    entry: Entry, packs: Packs, load: keys.Loader | None
) -> tuple[list[Hashable], Entry, Batch | None]:
    """The keys of one entry of a record, and its batch if it is one."""
    if not entry.count:
        return [keys.decode(entry.text, load)], entry, None
    if is_dead(entry):
        return [], entry, Batch(entry, fetch=packs.block)
    batch = Batch(entry, packs.block(entry))
    return batch.keys(load), entry, batch
