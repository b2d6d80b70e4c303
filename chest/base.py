"""The rows of a checkpoint as entries: what existed when it was written.

Owns: how entries stand in the file ``.index``, and which log it belongs to. Does not own:
the table (`chest.checkpoint`), what happened since (`chest.index`).

A row's place is a batch and a place in it, with the top bit set, or where in the heap the
entry's record lies. The file is derived: without it the log is read.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Hashable, Iterable, Iterator, Sequence
from typing import Any

import msgspec
import xxhash

from chest import errors, keys, system
from chest.checkpoint import Checkpoint, Damaged, lines
from chest.folder import Folder
from chest.packs import Batch, Packed, Packs
from chest.protocols import Buffer
from chest.records import Entry

__all__ = ["INDEX", "About", "AnyEntry", "Base", "open_base", "rows"]

log = logging.getLogger("chest")

INDEX = ".index"  # the checkpoint's file

AnyEntry = Entry | Packed

PACKED = 1 << 63  # a place with this bit is a batch and a place in it
LOW = (1 << 32) - 1
LENGTH = 4  # bytes before each record in the heap
ABSENT: tuple[int, None] = (-1, None)

_digest = xxhash.xxh3_64_intdigest
_canonical = keys.canonical
_line = keys.line
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
    batches, dead : list
        The records of the batches, and how many values of each are not live.
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
    dead: list[int] = []
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
        for batch, dead in zip(self.batches, about.dead, strict=True):
            batch.dead = dead
        self._aside = {self.key(row): row for row in about.aside}

    def __len__(self) -> int:
        return len(self._table)

    @property
    def last_birth(self) -> int:
        """The highest birth of a row."""
        return self.birth(len(self._table) - 1) if len(self._table) else 0

    def find(self, key: Hashable) -> tuple[int, AnyEntry | None]:
        """The row of *key* and its entry; -1 and None when there is none."""
        if type(key) is not str:
            return self._find_other(key)
        text = _line(key)
        table = self._table
        for row in table.find(_digest(text)):
            place = table.place(row)
            if place & PACKED:
                batch = self.batches[(place ^ PACKED) >> 32]
                if batch.has(place & LOW, text):
                    return row, Packed(batch, place & LOW)
            else:
                entry = self._record(place)
                if _encode(entry.text) == text:
                    return row, entry
        return ABSENT

    def _find_other(self, key: Hashable) -> tuple[int, AnyEntry | None]:
        """`find` for a key that is no str: what is equal may have another text."""
        for row in self._table.find(_digest(_canonical(key))):
            if self.key(row) == key:
                return row, self.entry(row)
        row = self._aside.get(key, -1) if self._aside else -1
        return (row, self.entry(row)) if row >= 0 else ABSENT

    def entry(self, row: int) -> AnyEntry:
        """The entry of a row."""
        place = self._table.place(row)
        if place & PACKED:
            return Packed(self.batches[(place ^ PACKED) >> 32], place & LOW)
        return self._record(place)

    def key(self, row: int) -> Any:
        """The key of a row."""
        place = self._table.place(row)
        if place & PACKED:
            text = self.batches[(place ^ PACKED) >> 32].text(place & LOW)
            return keys.decode(_decode_any(text), self._load_key)
        return keys.decode(self._record(place).text, self._load_key)

    def birth(self, row: int) -> int:
        """The birth of a row."""
        return self._table.birth(row) + self.about.lowest

    def keys(self) -> list[Any]:
        """The keys of all rows, in order."""
        named: dict[int, list[Any]] = {}
        found = []
        for place in self._table.places():
            if not place & PACKED:
                found.append(keys.decode(self._record(place).text, self._load_key))
                continue
            number = (place ^ PACKED) >> 32
            if number not in named:
                named[number] = self.batches[number].keys(self._load_key)
            found.append(named[number][place & LOW])
        return found

    def alone(self) -> Iterator[tuple[int, Entry]]:
        """The rows that are in no batch, and their entries."""
        for row, place in enumerate(self._table.places()):
            if not place & PACKED:
                yield row, self._record(place)

    def _record(self, place: int) -> Entry:
        length = int.from_bytes(self._table.heap(place, LENGTH), "little")
        return _decode_entry(self._table.heap(place + LENGTH, length))


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
        return Base(table, about, packs, load_key)
    except (Damaged, OSError, ValueError, errors.CorruptChestError) as error:
        log.info("%s is not used: %s", home.join(INDEX), error)
        return None
    finally:
        system.close(fd)


def rows(
    alone: Sequence[tuple[Hashable, Entry]],
    live: Iterable[tuple[Batch, Sequence[int] | None]],
    about: About,
) -> Iterator[Buffer]:
    """The file of a checkpoint.

    Parameters
    ----------
    alone : sequence of (key, Entry)
        Those in no batch.
    live : iterable of (Batch, places)
        The live places of each batch; None: all.
    about : About
        What to say of the log; the batches and rows are filled in.
    """
    import numpy as np

    heap: list[bytes] = []
    hashes: list[Any] = []
    births: list[Any] = []
    places: list[Any] = []
    odd: list[tuple[int, bool]] = []  # (unsorted row, is it an inline value)
    due: list[tuple[float, int]] = []  # (deadline, unsorted row)
    batches: list[Batch] = []
    count = 0
    for batch, some in live:
        texts, born = batch.texts(), np.array(batch.births(), np.int64)
        where = np.arange(len(texts), dtype=np.uint64)
        if some is not None:
            where = np.array(sorted(some), np.uint64)
            texts, born = [texts[place] for place in where], born[where.astype(np.intp)]
        if batch.mentions(b'"pickle"'):
            odd += ((count + n, False) for n, t in enumerate(texts) if b'"pickle"' in t)
        hashes.append(np.array(_hashes(texts), np.uint64))
        births.append(born)
        places.append(where | np.uint64(PACKED | len(batches) << 32))
        batches.append(batch)
        count += len(texts)
    at = 0
    for key, entry in alone:
        record = _encode(entry)
        heap += [len(record).to_bytes(LENGTH, "little"), record]
        hashes.append(np.array([_digest(_canonical(key))], np.uint64))
        births.append(np.array([entry.birth], np.int64))
        places.append(np.array([at], np.uint64))
        at += LENGTH + len(record)
        if b'"pickle"' in keys.text(key).encode():
            odd.append((count, False))
        if entry.expires is not None:
            due.append((entry.expires, count))
        elif entry.value is not None:
            odd.append((count, True))
        count += 1
    column = np.concatenate([np.empty(0, np.int64), *births])
    about.lowest = int(column.min(initial=0))
    order = np.argsort(column, kind="stable")
    rank = np.argsort(order, kind="stable")
    about.batches = [batch.record for batch in batches]
    about.dead = [batch.dead for batch in batches]
    about.aside = sorted({int(rank[row]) for row, inline in odd if not inline})
    about.deadlines = [deadline for deadline, _ in sorted(due)]
    about.expiring = [int(rank[row]) for _, row in sorted(due)]
    about.inline = sorted(int(rank[row]) for row, inline in odd if inline)
    return lines(
        about=_encode(about),
        hashes=np.concatenate([np.empty(0, np.uint64), *hashes])[order],
        births=(column[order] - about.lowest).astype(np.uint64),
        places=np.concatenate([np.empty(0, np.uint64), *places])[order],
        heap=heap,
    )


def _hashes(texts: Iterable[bytes]) -> list[int]:
    """The hashes of the keys with these JSON texts."""
    # A str's text begins with a quote, and is canonical.
    return [_digest(text) if text[0] == 34 else _hash_of(text) for text in texts]


def _hash_of(text: bytes) -> int:
    """The hash of the key with that JSON text."""
    # A pickled key stays opaque: its row is found aside, not by its hash.
    return _digest(_canonical(keys.decode(_decode_any(text))))
