"""The rows of a checkpoint as entries: what existed when it was written.

Owns: how entries stand in the file ``.index``, and which log it belongs to. Does not own:
the table (`chest.checkpoint`), what happened since (`chest.index`).

A row's place is a batch and a place in it, or, with the top bit set, where in the heap the
entry's record lies. The file is derived: without it the log is read.
"""

from __future__ import annotations

import itertools
import logging
import operator
import os
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any

import msgspec
import xxhash

from chest import errors, keys, system
from chest.batches import Batch, Packed, is_dead
from chest.checkpoint import GROUP_BITS, SLOT, TAG_SHIFT, Checkpoint, Damaged, lines
from chest.folder import Folder
from chest.packs import Packs
from chest.protocols import Buffer
from chest.records import Entry

__all__ = ["INDEX", "LOST", "About", "AnyEntry", "Base", "alone", "open_base", "rows"]

log = logging.getLogger("chest")

INDEX = ".index"  # the checkpoint's file
QUOTE = ord('"')  # with it the text of a str begins, which is canonical

AnyEntry = Entry | Packed

ALONE = 1 << 63  # a place with this bit is one in the heap
ALONE_HIGH = ALONE >> 32  # … in the upper half of it
LOW = (1 << 32) - 1
MANY = 4096  # keys; to look them up together is worth importing numpy
LENGTH = 4  # bytes before each record in the heap
LOST = (Damaged, errors.CorruptChestError)  # of a checkpoint, or of a pack it refers to
UNUSUAL = (UnicodeEncodeError, *LOST)  # or the key is text that is not Unicode
MISSING: Any = object()
PICKLED = b'"pickle"'  # in the text of a key that is pickled, or holds one

_digest = xxhash.xxh3_64_intdigest
_canonical = keys.canonical
_encode = msgspec.json.Encoder().encode
_decode_entry = msgspec.json.Decoder(Entry).decode
_decode_any = msgspec.json.Decoder().decode


class About(msgspec.Struct, omit_defaults=True):
    """What a checkpoint says of the log it was made from.

    Attributes
    ----------
    id, first : str, int
        The chest, and the number before the first record of that log file.
    generation, position : int
        The last record it has seen, and where in the log that ends.
    birth, records, file_nbytes : int
        As in the `chest.index.Index` it was made from.
    batches : list of Entry
        The records of the batches, saying which values of each are not live.
    aside : list of int
        Rows of keys that are pickled: what is equal may have another hash.
    inline : list of int
        Rows of values that lie in the log until they are settled.
    deadlines, expiring : list
        The deadlines [Unix time] that entries have, sorted, and their rows.
    lowest : int
        0, or the lowest birth, which is negative once a key was moved to the front: the
        table's births count from here.
    """

    id: str
    first: int
    generation: int
    position: int
    birth: int
    records: int
    file_nbytes: int
    batches: list[Entry] = []
    aside: list[int] = []
    inline: list[int] = []
    deadlines: list[float] = []
    expiring: list[int] = []
    lowest: int = 0


class Base:
    """The entries of one checkpoint. Any look may raise `chest.checkpoint.Damaged`.

    Parameters
    ----------
    table : Checkpoint
    about : About
    packs : Packs
        Reads the batches.
    load_key : callable or None
        Loads pickled keys.

    Attributes
    ----------
    find : callable
        key → its entry; None when it has no row. O(1).
    """

    def __init__(
        self,
        table: Checkpoint,
        about: About,
        packs: Packs,
        load_key: keys.Loader | None,
    ) -> None:
        self.about = about
        self._table = table
        self._load_key = load_key
        self.batches = [Batch(record, fetch=packs.block) for record in about.batches]
        for batch in self.batches:
            if batch.record.dead:
                batch.bury(batch.record.dead)
        self._aside = {self.key(row): row for row in about.aside}
        self.find, _ = self.lookups({})

    def __len__(self) -> int:
        return len(self._table)

    def lookups(
        self,
        newer: dict[Hashable, Any],
        lost: Callable[[Hashable], AnyEntry | None] | None = None,
    ) -> tuple[Callable[[Hashable], AnyEntry | None], Callable[[Hashable], bool]]:
        """Two functions: key → its entry, or None; and whether it has one. O(1).

        *newer* has entries that were published since, and None for a key that is gone;
        for other keys the rows speak. When those turn out to be damaged *lost* says what
        the entry is; without it that raises.
        """
        return (
            _lookup(self, newer, lost, tests=False),
            _lookup(self, newer, lost, tests=True),
        )

    def _among(self, at: int, text: bytes) -> AnyEntry | None:
        """The entry of the key with this JSON text, if its slot is at *at* or behind."""
        slots, tag = self._table.slots, self._table.slots[at]
        while slots[at] == tag:
            entry = self._entry(slots[at + 3] << 32 | slots[at + 2])
            found = (
                entry.batch.text(entry.place)
                if type(entry) is Packed
                else _encode(entry.text)
            )
            if found == text:
                return entry
            at += SLOT
        return None

    def _find_other(self, key: Hashable) -> AnyEntry | None:
        """`find` for a key that is no str: what is equal may have another text."""
        try:
            places = self._table.find(_digest(_canonical(key)))
        except errors.KeyEncodingError:
            places = ()  # as in a dict, what was never there can be asked for
        for place in places:
            known = self._key(place)
            if known is key or known == key:
                return self._entry(place)
        row = self._aside.get(key, -1) if self._aside else -1
        return self.entry(row) if row >= 0 else None

    def _find_again(
        self,
        key: Hashable,
        error: Exception,
        lost: Callable[[Hashable], AnyEntry | None] | None,
    ) -> AnyEntry | None:
        """The entry of a key that `look` could not look up."""
        try:
            if isinstance(error, UnicodeEncodeError):
                return self._find_other(key)
            raise error
        except LOST:
            if lost is None:
                raise
        return lost(key)

    def find_many(self, named: Sequence[Hashable]) -> dict[Any, AnyEntry]:
        """Those of these keys that have a row, and their entries, in any order."""
        if len(named) < MANY or {*map(type, named)} != {str}:
            return self._find_each(named)
        import numpy as np

        texts = keys.lines(named)
        digests = np.array([*map(_digest, texts)], np.uint64)
        which, places, starts = self._table.find_many(digests)
        packed = places < np.uint64(ALONE)
        # Those in no batch, and those whose hash is another key's as well.
        again = which[~packed].tolist()
        found: dict[Any, AnyEntry] = {}
        for number, here, at, begin in _by_batch(
            which[packed], places[packed], starts[packed]
        ):
            batch = self.batches[number]
            block, asked = batch.block or batch.load(), map(texts.__getitem__, here)
            there = [
                block[start : start + len(text)] == text
                for start, text in zip(begin, asked, strict=True)
            ]
            if not all(there):
                again += itertools.compress(here, map(operator.not_, there))
                here, at = (itertools.compress(each, there) for each in (here, at))
            entries = map(Packed, itertools.repeat(batch), at)
            found.update(zip(map(named.__getitem__, here), entries, strict=True))
        return found | self._find_each([named[each] for each in again])

    def _find_each(self, named: Iterable[Hashable]) -> dict[Any, AnyEntry]:
        find = self.find
        return {key: entry for key in named if (entry := find(key)) is not None}

    def entry(self, row: int) -> AnyEntry:
        """The entry of a row."""
        return self._entry(self._table.place(row))

    def _entry(self, place: int) -> AnyEntry:
        if place < ALONE:
            return Packed(self.batches[place >> 32], place & LOW)
        return self._record(place)

    def key(self, row: int) -> Any:
        """The key of a row."""
        return self._key(self._table.place(row))

    def _key(self, place: int) -> Any:
        if place < ALONE:
            text = _decode_any(self.batches[place >> 32].text(place & LOW))
        else:
            text = self._record(place).text
        return keys.decode(text, self._load_key)

    def birth(self, row: int) -> int:
        """The birth of a row."""
        return self._table.birth(row) + self.about.lowest

    def births_from(self, lowest: int) -> list[int]:
        """The births that are not below *lowest*."""
        first = self._table.first_after(lowest - self.about.lowest - 1)
        return [self.birth(row) for row in range(first, len(self._table))]

    def keys(self) -> list[Any]:
        """The keys of all rows, in order."""
        named: dict[int, list[Any]] = {}
        found = []
        for place in self._table.places():
            if place >= ALONE:
                found.append(keys.decode(self._record(place).text, self._load_key))
                continue
            number = place >> 32
            if number not in named:
                named[number] = self.batches[number].keys(self._load_key)
            found.append(named[number][place & LOW])
        return found

    def alone(self) -> Iterator[tuple[Hashable, Entry]]:
        """The keys of the rows that are in no batch, and their entries."""
        for entry in alone(self._table):
            yield keys.decode(entry.text, self._load_key), entry

    def _record(self, place: int) -> Entry:
        return _record(self._table, place)


def _lookup(
    base: Base,
    newer: dict[Hashable, Any],
    lost: Callable[[Hashable], AnyEntry | None] | None,
    *,
    tests: bool,
) -> Callable[[Hashable], Any]:
    """One of `Base.lookups`: that of the entry, or that which only *tests*."""
    # Every look-up that memory cannot answer is one of these. As a function whose
    # surroundings are at hand it takes half the time of a method, and what
    # `Checkpoint.find` does is done without the call.
    table, batches, digest = base._table, base.batches, _digest
    make_ready, ready, shift = table.make_ready, table.ready, table.shift
    buckets, slots, count = table.buckets, table.slots, len(batches)
    unready, absent = True, False if tests else None

    def look(key: Hashable) -> Any:
        nonlocal unready
        if newer and (entry := newer.get(key, MISSING)) is not MISSING:
            return entry is not None if tests else entry
        try:
            if type(key) is str:
                text = _encode(key)
                tag = digest(text) >> TAG_SHIFT
                bucket = tag >> shift
                if unready and not ready[bucket >> GROUP_BITS]:
                    make_ready(bucket >> GROUP_BITS)
                    unready = table.unready > 0
                at = buckets[bucket]
                found = slots[at]
                while found < tag:
                    at += SLOT
                    found = slots[at]
                if found != tag:
                    return absent
                number = slots[at + 3]
                if number < count:  # else it is in no batch
                    batch, start = batches[number], slots[at + 1]
                    block = batch.block or batch.load()
                    if block[start : start + len(text)] == text:
                        return tests or Packed(batch, slots[at + 2])
                entry = base._among(at, text)
            else:
                entry = base._find_other(key)
        except UNUSUAL as error:
            entry = base._find_again(key, error, lost)
        return entry is not None if tests else entry

    return look


def alone(table: Checkpoint) -> Iterator[Entry]:
    """The entries of the rows of a table that are in no batch."""
    import numpy as np

    places = np.frombuffer(table.places(), np.uint64)
    for place in places[places >= np.uint64(ALONE)].tolist():
        yield _record(table, place)


def _record(table: Checkpoint, place: int) -> Entry:
    """The entry whose record lies at a place in the heap."""
    at = place ^ ALONE
    length = int.from_bytes(table.heap(at, LENGTH), "little")
    return _decode_entry(table.heap(at + LENGTH, length))


def open_base(
    home: Folder,
    packs: Packs,
    load_key: keys.Loader | None,
    log_file: tuple[str, int],
    size: int,
) -> Base | None:
    """The checkpoint of a log, if there is one and it is whole; it is derived.

    Parameters
    ----------
    home, packs, load_key
        Where it is, and what its rows are read with.
    log_file : (str, int)
        Chest and number before the first record: which log file it must belong to.
    size : int
        Bytes of that log.
    """
    try:
        fd = home.open(INDEX)
    except OSError:
        return None
    try:
        table = Checkpoint(system.map_file(fd, os.fstat(fd).st_size))
        about = msgspec.json.decode(table.about, type=About)
        if (about.id, about.first) != log_file or about.position > size:
            return None
        if not len(table):
            return None  # `Base.find` counts on a slot; there is hardly a log to read
        return Base(table, about, packs, load_key)
    except (Damaged, OSError, ValueError, errors.CorruptChestError) as error:
        log.info("%s is not used: %s", home.join(INDEX), error)
        return None
    finally:
        system.close(fd)


def rows(
    alone: Sequence[tuple[Hashable, Entry]],
    live: Iterable[tuple[Batch, bytes]],
    about: About,
) -> Iterator[Buffer]:
    """The file of a checkpoint.

    Parameters
    ----------
    alone : sequence of (key, Entry)
        Those in no batch.
    live : iterable of (Batch, bits)
        Each batch, and which of its values are not live, as in `Batch.gone`.
    about : About
        What to say of the log; the batches and rows are filled in.
    """
    import numpy as np

    heap: list[bytes] = []
    columns: list[tuple[Any, ...]] = []  # hashes, births, places, hints
    aside: list[int] = []  # unsorted rows, as all that follow
    inline: list[int] = []
    due: list[tuple[float, int]] = []
    count = 0
    for batch, gone in live:
        known = msgspec.structs.replace(batch.record, dead=gone or None)
        if is_dead(known):
            about.batches.append(known)
            continue
        column, odd = _rows_of(batch.passing(), gone, len(about.batches))
        aside += [count + row for row in odd]
        columns.append(column)
        about.batches.append(known)
        count += len(column[0])
    single: list[tuple[int, ...]] = []
    at = 0
    for row, (key, entry) in enumerate(alone, count):
        record = _encode(entry)
        heap += [len(record).to_bytes(LENGTH, "little"), record]
        single.append((_digest(_canonical(key)), entry.birth, ALONE | at, 0))
        at += LENGTH + len(record)
        if PICKLED in record:
            aside.append(row)
        if entry.expires is not None:
            due.append((entry.expires, row))
        elif entry.value is not None:
            inline.append(row)
    alone_columns = zip(*single, strict=True) if single else ((), (), (), ())
    columns.append((*alone_columns,))
    born = np.concatenate([np.array(each[1], np.int64) for each in columns])
    about.lowest = int(born.min(initial=0))
    order = np.argsort(born, kind="stable")
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    due.sort()
    about.aside = sorted(rank[aside].tolist()) if aside else []
    about.inline = sorted(rank[inline].tolist()) if inline else []
    about.deadlines = [deadline for deadline, _ in due]
    about.expiring = rank[[row for _, row in due]].tolist() if due else []
    hashes, places, hints = (
        np.concatenate([np.array(each[name], np.uint64) for each in columns])
        for name in (0, 2, 3)
    )
    return lines(
        about=_encode(about),
        hashes=hashes[order],
        births=(born[order] - about.lowest).astype(np.uint64),
        places=places[order],
        hints=hints[order],
        heap=heap,
    )


def _rows_of(
    batch: Batch, gone: bytes, number: int
) -> tuple[tuple[Any, ...], list[int]]:
    """Columns of a batch's live values, and which of their keys are pickled.

    Hashes, births, places, and where each key's text begins in the batch's index.
    """
    import numpy as np

    texts, born = batch.texts(), np.array(batch.born(), np.int64)
    born += batch.record.birth
    starts = np.full(len(texts), batch.keys_at, np.uint64)
    starts[1:] += np.array(batch.key_ends()[:-1], np.uint64)
    where = np.arange(len(texts), dtype=np.uint64)
    if gone:
        bits = np.unpackbits(np.frombuffer(gone, np.uint8), bitorder="little")
        where = where[bits[: len(texts)] == 0]
        texts = [texts[place] for place in where.tolist()]
        born, starts = born[where.astype(np.intp)], starts[where.astype(np.intp)]
    odd: list[int] = []
    if batch.mentions(PICKLED):
        odd = [row for row, text in enumerate(texts) if PICKLED in text]
    first = np.frombuffer(batch.block, np.uint8)[starts.astype(np.intp)]
    plain = bool((first == QUOTE).all())
    hashes = np.array([*map(_digest, texts)] if plain else _hashes(texts), np.uint64)
    return (hashes, born, where | np.uint64(number << 32), starts), odd


def _by_batch(
    which: Any, places: Any, starts: Any
) -> Iterator[tuple[int, Iterable[int], Iterable[int], Iterable[int]]]:
    """Each batch's number, those of *which* whose *places* are in it, and these there."""
    import numpy as np

    numbers, at = places >> np.uint64(32), places & np.uint64(LOW)
    order = np.argsort(numbers, kind="stable")
    bounds = np.flatnonzero(np.diff(numbers[order])) + 1
    for group in np.split(order, bounds) if len(order) else ():
        columns = (column[group].tolist() for column in (which, at, starts))
        yield int(numbers[group[0]]), *columns


def _hashes(texts: Iterable[bytes]) -> list[int]:
    """The hashes of the keys with these JSON texts."""
    return [_digest(text) if text[0] == QUOTE else _hash_of(text) for text in texts]


def _hash_of(text: bytes) -> int:
    """The hash of the key with that JSON text."""
    # A pickled key stays opaque: its row is found aside, not by its hash.
    return _digest(_canonical(keys.decode(_decode_any(text))))
