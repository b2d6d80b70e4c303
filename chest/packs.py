"""Packs: files of many small values.

Owns: the bytes of a pack, its batches, and which file of this process the next batch goes
to. Does not own: which entries are live (the index), or when a value is packed.

A pack is append-only. Each batch is the values, one after the other, and an index of four
columns of little-endian 32-bit numbers and the keys::

    values…  pad to 8  ends[n]  checks[n]  births[n]  key_ends[n]  (generations[n])  keys…

``ends`` and ``key_ends`` count from the first value and the first key, ``births`` from the
record's ``birth``; ``checks`` are the low halves of the values' xxh3; ``generations``, 64
bits each, stand only in a batch that was rewritten. The manifest's record of the batch
says where it lies and what its index's checksum is, so that what was appended and not
published is nobody's.

Invariants
----------
K1  Bytes that a record refers to are never changed.
K2  Only the process that made a pack appends to it, and holds its lock while it may.
"""

from __future__ import annotations

import os
import secrets
from array import array
from collections.abc import Callable, Hashable, Sequence
from itertools import accumulate

import msgspec
import xxhash

from chest import errors, keys, system
from chest.folder import PACK, Folder
from chest.records import Entry

__all__ = ["Batch", "Packed", "Packs", "Small"]

PACK_NBYTES = 256 << 20  # a pack that is larger gets no further batch
BATCH_KEYS = 1 << 16  # keys of one batch at most
MOST_OPEN = 128  # packs whose descriptor is kept for reading

_HALF = 0xFFFFFFFF
_digest = xxhash.xxh3_64_intdigest
_pread = os.pread if system.POSIX else None


Check = Callable[[str, os.stat_result], object]


class Small(msgspec.Struct, gc=False):
    """A value that goes into a pack: its pickle."""

    key: Hashable
    birth: int
    data: bytes
    generation: int = 0  # of the record that published it first, when it is rewritten


class Batch:
    """What one publication put into a pack.

    Attributes
    ----------
    record : Entry
        The manifest's.
    dead : int
        How many of its entries were replaced or deleted since.
    """

    __slots__ = ("_block", "_columns", "_keys_at", "_old", "dead", "name", "record")

    def __init__(self, record: Entry, block: bytes) -> None:
        self.record = record
        self.name = record.name
        self.dead = 0
        self._block = block
        count = record.count
        self._columns = memoryview(block)[: 16 * count].cast("I")
        self._old: memoryview | None = None
        self._keys_at = 16 * count
        if record.rewritten:
            self._old = memoryview(block)[16 * count : 24 * count].cast("Q")
            self._keys_at = 24 * count

    def birth(self, place: int) -> int:
        """When the key at *place* was first set."""
        return self.record.birth + self._columns[2 * self.record.count + place]

    def births(self) -> list[int]:
        """All births."""
        base, count = self.record.birth, self.record.count
        return [base + each for each in self._columns[2 * count : 3 * count].tolist()]

    @property
    def nbytes(self) -> int:
        """Bytes of all values."""
        count = self.record.count
        return self._columns[count - 1] if count else 0

    def generation(self, place: int) -> int:
        """The record that published the value at *place*."""
        return self.record.generation if self._old is None else self._old[place]

    def where(self, place: int) -> tuple[int, int, int]:
        """(offset in the pack, size, check) of the value at *place*."""
        ends = self._columns
        first = ends[place - 1] if place else 0
        check = ends[self.record.count + place]
        return self.record.start + first, ends[place] - first, check

    def text(self, place: int) -> bytes:
        """The JSON text of the key at *place*."""
        ends, offset = self._columns, 3 * self.record.count + place
        first = ends[offset - 1] if place else 0
        return self._block[self._keys_at + first : self._keys_at + ends[offset]]

    def texts(self) -> list[bytes]:
        """The JSON texts of all keys."""
        block, at, count = self._block, self._keys_at, self.record.count
        ends = self._columns[3 * count :].tolist()
        return [
            block[at + first : at + last]
            for first, last in zip([0, *ends], ends, strict=False)
        ]


class Packed(msgspec.Struct, gc=False):
    """The entry of a value in a pack; read like a `chest.records.Entry`."""

    batch: Batch
    place: int

    @property
    def birth(self) -> int:
        """Orders the keys."""
        return self.batch.birth(self.place)

    @property
    def generation(self) -> int:
        """The record's number, shown to users as etag."""
        return self.batch.generation(self.place)

    @property
    def name(self) -> str:
        """The pack."""
        return self.batch.name

    @property
    def size(self) -> int:
        """Bytes of the pickle."""
        return self.batch.where(self.place)[1]

    @property
    def text(self) -> keys.Json:
        """The key, as `chest.keys.encode` writes it."""
        return msgspec.json.decode(self.batch.text(self.place))

    format = "pickle"
    digest = file_id = signature = gone = ""
    nbytes = 0
    cost = 0.0
    python = mapped = expires = value = None


class Packs:
    """The packs of one chest, as this process reads and writes them.

    Parameters
    ----------
    home : Folder
        Where they lie.
    check : callable
        (path, status) of a pack; raises when its pickles may not be loaded.
    """

    def __init__(self, home: Folder, check: Check) -> None:
        self._home = home
        self._check = check
        self._open: dict[str, int] = {}
        self._writing = -1  # descriptor of the pack that takes the next batch
        self._name = ""
        self._end = 0

    def write(
        self, small: Sequence[Small], *, sync: bool, rewritten: bool = False
    ) -> Batch:
        """Append one batch; nobody sees it before its record is published.

        Raises
        ------
        OSError
            The disk refused. What was written is nobody's, and is not used again.
        """
        base = min(each.birth for each in small)
        datas = [each.data for each in small]
        texts = [keys.text(each.key).encode() for each in small]
        block = _block(small, datas, texts, base, rewritten=rewritten)
        if self._writing < 0 or self._end >= PACK_NBYTES:
            self._begin()
        start = self._end
        values = b"".join(datas)
        pad = -(start + len(values)) % 8
        try:
            written = system.write_all(self._writing, [values, bytes(pad), block])
            if sync:
                system.sync_file(self._writing)
        except OSError:
            self.end()
            raise
        self._end += written
        record = Entry(
            birth=base,
            name=self._name,
            size=len(block),
            digest=f"{_digest(block):016x}",
            count=len(small),
            start=start,
            at=start + len(values) + pad,
            rewritten=rewritten,
        )
        return Batch(record, block)

    def batch(self, record: Entry) -> Batch:
        """The batch of a record of the manifest.

        Raises
        ------
        CorruptChestError
            The pack is missing, or the batch's index is damaged.
        """
        path = self._home.join(record.name)
        try:
            block = system.read_all(self._reader(record.name), record.at, record.size)
        except FileNotFoundError as error:
            message = f"{path}, which holds {record.count} values, is missing"
            raise errors.CorruptChestError(message, path=path) from error
        expected = (24 if record.rewritten else 16) * record.count
        if len(block) < expected or f"{_digest(block):016x}" != record.digest:
            message = (
                f"{path} is damaged at byte {record.at}: a batch's checksum is wrong"
            )
            raise errors.CorruptChestError(message, path=path)
        return Batch(record, block)

    def read(self, entry: Packed, key: object) -> bytes:
        """The pickle of one value, checked.

        Raises
        ------
        FileNotFoundError
            The pack is gone: look at the manifest again.
        CorruptValueError
            The bytes are not what was written.
        """
        offset, size, check = entry.batch.where(entry.place)
        name = entry.batch.name
        fd = self._open.get(name)
        if fd is None:
            fd = self._reader(name)
        data = _pread(fd, size, offset) if _pread else system.read_all(fd, offset, size)
        if _digest(data) & _HALF != check:
            path = self._home.join(name)
            message = (
                f"{path}, which holds the value of {errors.short(key)}, is damaged at "
                f"byte {offset}. Delete the key, or restore the file"
            )
            raise errors.CorruptValueError(message, key=key, path=path)
        return data

    def is_there(self, name: str) -> bool:
        """The pack that this process writes to was not removed meanwhile."""
        return name == self._name and os.fstat(self._writing).st_nlink > 0

    def delete(self, name: str) -> None:
        """Remove a pack that no record holds, unless another process still writes it."""
        if name == self._name:
            self.end()
        self.forget(name)
        try:
            fd = self._home.open(name, os.O_RDWR)
        except FileNotFoundError:
            return
        try:
            if system.try_lock(fd):
                self._home.unlink(name, missing_ok=True)
        finally:
            system.close(fd)

    def forget(self, name: str) -> None:
        """Let go of a pack that no record holds any more."""
        fd = self._open.pop(name, -1)
        if fd >= 0:
            # A reader in another thread may be about to use the descriptor; what it
            # reads fails its check, and it looks at the manifest again.
            os.close(fd)

    def end(self) -> None:
        """Append no more to the present pack."""
        if self._writing >= 0:
            os.close(self._writing)
        self._writing, self._name, self._end = -1, "", 0

    def close(self) -> None:
        """Release all descriptors. Safe to call twice."""
        self.end()
        for name in list(self._open):
            self.forget(name)

    def _begin(self) -> None:
        """Begin a new pack, locked as long as this process may append to it."""
        self.end()
        self._writing, self._name = self._home.create(
            lambda: f"{PACK}{secrets.token_hex(8)}"
        )

    def _reader(self, name: str) -> int:
        """A descriptor to read a pack with."""
        fd = self._open.get(name)
        if fd is None:
            if len(self._open) >= MOST_OPEN:
                self.forget(next(iter(self._open)))
            fd = self._home.open(name)
            try:
                self._check(self._home.join(name), os.fstat(fd))
            except BaseException:
                os.close(fd)
                raise
            self._open[name] = fd
        return fd


def _block(
    small: Sequence[Small],
    datas: Sequence[bytes],
    texts: Sequence[bytes],
    base: int,
    *,
    rewritten: bool,
) -> bytes:
    """The index of a batch."""
    columns = [
        array("I", accumulate(map(len, datas))),
        array("I", [_digest(data) & _HALF for data in datas]),
        array("I", [each.birth - base for each in small]),
        array("I", accumulate(map(len, texts))),
    ]
    if rewritten:
        columns.append(array("Q", [each.generation for each in small]))
    return b"".join([*columns, *texts])
