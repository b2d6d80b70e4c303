"""An immutable hash table in a file that is mapped, not read.

Owns: the file's layout, its checksums, the look-up by hash. Does not own: the file
itself, what a row's place, its hint and the heap's bytes mean, the comparison of keys: a
hash that is found says which places to compare.

The file, all numbers little-endian, n rows in order of birth::

    header      magic, version, counts, "about" padded to 8 bytes, their checksum
    places      n × u64
    births      n × u32, the low halves; or n × u64 when the high halves differ
    buckets     u32: at which word each bucket's slots begin, and where the last end
    slots       n × (u32 tag, u32 hint, u64 place), sorted by tag; a last tag of 2³⁰
    heap        bytes; padded to 8
    checks      u64 for each page of 4096 bytes of all above
    seal        u64: the checksum of the checks

A row's tag is the top 30 bits of its hash, its bucket those of them that count to between
n/2 and n. As the tags ascend from bucket to bucket, a look-up goes on from where the bucket
begins until a tag is not less than the one it looks for, and need not ask where the bucket
ends; the last tag is above all others. 30 bits, because those are what Python's quickest
integers have. A slot repeats the row's place, and has a hint for who compares the
key, so that a look-up touches one page more than the bucket's and no third. So a row takes
30 to 32 bytes (four more with wide births) beside the heap.
"""

from __future__ import annotations

import bisect
import functools
import itertools
import mmap
import struct
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Final, NamedTuple

import xxhash

from chest import system
from chest.protocols import Buffer

if TYPE_CHECKING:
    from array import array

    import numpy as np
    import numpy.typing as npt

    Column = array[int] | npt.NDArray[np.uint64]

__all__ = ["Checkpoint", "Damaged", "lines"]

MAGIC: Final = b"CHESTIDX"
VERSION: Final = 4
HEADER: Final = struct.Struct("<8sIIQQQQ")
WORD: Final = struct.Struct("<Q")
TAG_BITS: Final = 30
TAG_SHIFT: Final = 64 - TAG_BITS  # a hash shifted right by so many bits is its tag
BEYOND: Final = 1 << TAG_BITS  # above every tag
LIMIT: Final = 1 << 30  # rows; the buckets count their slots' words in 32 bits
LOW: Final = (1 << 32) - 1
PAGE_BITS: Final = 12
PAGE: Final = 1 << PAGE_BITS
GROUP_BITS: Final = 8
GROUP: Final = 1 << GROUP_BITS  # buckets, and places, that are proved together
SLOT: Final = 4  # words of 32 bits
CHUNK: Final = 1 << 20  # bytes handed out at a time

_digest = xxhash.xxh3_64_intdigest


class Damaged(ValueError):
    """The bytes are not those that were written, or not those of a checkpoint."""


class _Header(NamedTuple):
    """The fixed part of the file's beginning, in its order."""

    magic: bytes
    version: int
    width: int  # bytes of a birth: 4 or 8
    base: int  # added to each birth of 4 bytes
    rows: int
    about: int  # bytes
    heap: int  # bytes


class _Layout(NamedTuple):
    """Where each section begins; the file ends 8 bytes after the seal's beginning."""

    about: int
    check: int
    places: int
    births: int
    buckets: int
    slots: int
    heap: int
    padding: int
    checks: int
    seal: int


def _layout(header: _Header) -> _Layout:
    """The sections, which follow one another; their sizes follow from the counts."""
    rows = header.rows
    sizes = (
        header.about + -header.about % 8,
        WORD.size,
        8 * rows,
        header.width * rows,
        4 * ((1 << _bucket_bits(rows)) + 1),
        4 * SLOT * (rows + 1),
        header.heap,
    )
    begins = list(itertools.accumulate(sizes, initial=HEADER.size))
    checks = begins[-1] + -begins[-1] % 8
    return _Layout._make([*begins, checks, checks + 8 * (-(-checks // PAGE))])


def _bucket_bits(rows: int) -> int:
    """How many of a hash's top bits are the bucket: one to two rows share one."""
    return max(1, rows.bit_length() - 1)


def lines(
    *,
    about: bytes,
    hashes: Column,
    births: Column,
    places: Column,
    hints: Column,
    heap: Sequence[Buffer],
) -> Iterator[Buffer]:
    """The file of a checkpoint, piece by piece, in order.

    Costs 15 to 50 ms for a million rows, and imports numpy. Takes about 50 bytes a row
    of memory while it runs; the heap is copied 1 MiB at a time.

    Parameters
    ----------
    about : bytes
        Handed back by `Checkpoint.about`; read at every opening, so keep it small.
    hashes, births, places : array('Q') or numpy.ndarray of uint64
        One number a row, births ascending. Hashes should be spread well over the upper
        30 bits: `Checkpoint.find` is as slow as rows share them, and the rest is not kept.
    hints : the same
        Below 2³²; handed back beside the place.
    heap : sequence of bytes-like
        The bytes that `Checkpoint.heap` hands out, one after another; views have items
        of one byte.

    Returns
    -------
    iterator of bytes-like
        Of about 1 MiB each; not changed once handed out.

    Raises
    ------
    ValueError
        Too many rows (2³⁰ or more), births that descend, columns of unequal length.

    Examples
    --------
    >>> from array import array
    >>> row = array("Q", [7])
    >>> data = b"".join(
    ...     lines(about=b"{}", hashes=row, births=row, places=row, hints=row, heap=[])
    ... )
    >>> Checkpoint(memoryview(data)).find(7)
    [7]
    """
    import numpy as np

    hash_, birth, place, hint = (
        np.asarray(column, "<u8") for column in (hashes, births, places, hints)
    )
    rows = len(hash_)
    if rows >= LIMIT:
        message = f"{rows} rows: a checkpoint holds less than {LIMIT}"
        raise ValueError(message)
    if not rows == len(birth) == len(place) == len(hint):
        message = (
            f"{rows} hashes, {len(birth)} births, {len(place)} places, {len(hint)}"
        )
        raise ValueError(message)
    if (birth[1:] < birth[:-1]).any():
        message = "the births descend"
        raise ValueError(message)
    base = int(birth[0]) & ~LOW if rows else 0
    narrow = not rows or int(birth[-1]) - base <= LOW
    header = _Header(
        MAGIC,
        VERSION,
        4 if narrow else 8,
        base if narrow else 0,
        rows,
        len(about),
        sum(map(len, heap)),
    )
    front = HEADER.pack(*header) + about + bytes(-len(about) % 8)
    check = WORD.pack(_digest(front))
    layout = _layout(header)
    born = birth.astype("<u4") if narrow else birth
    sections = [_bytes_of(each) for each in (place, born, *_tables(hash_, place, hint))]
    padding = bytes(layout.checks - layout.padding)
    return _sealed(itertools.chain([front, check], sections, heap, [padding]), check)


def _bytes_of(column: npt.NDArray[np.unsignedinteger]) -> Buffer:
    """The same memory as bytes; an empty array cannot be cast."""
    import numpy as np

    return np.ascontiguousarray(column).view(np.uint8).data


def _tables(
    hashes: npt.NDArray[np.uint64],
    places: npt.NDArray[np.uint64],
    hints: npt.NDArray[np.uint64],
) -> tuple[npt.NDArray[np.uint32], npt.NDArray[np.uint32]]:
    """Buckets and slots."""
    import numpy as np

    bits = _bucket_bits(len(hashes))
    # Sorting values is several times faster than sorting indices, so the row takes the
    # place of the bits of its hash that are not kept.
    mixed = hashes & np.uint64(-1 << TAG_SHIFT & (1 << 64) - 1)
    mixed |= np.arange(len(hashes), dtype="<u8")
    mixed.sort()
    slots = np.zeros((len(hashes) + 1, SLOT), "<u4")
    rows = mixed.astype("<u4")
    mixed >>= np.uint64(TAG_SHIFT)
    slots[:-1, 0] = mixed
    slots[:-1, 1] = hints[rows]
    slots.view("<u8")[:-1, 1] = places[rows]
    slots[-1, 0] = BEYOND
    mixed >>= np.uint64(TAG_BITS - bits)
    buckets = np.zeros((1 << bits) + 1, "<u4")
    counts = np.bincount(mixed.view("<i8"), minlength=1 << bits)
    np.cumsum(SLOT * counts, dtype="<u4", out=buckets[1:])
    return buckets, slots


def _sealed(pieces: Iterable[Buffer], check: bytes) -> Iterator[Buffer]:
    """The pieces, then the checksum of each page, then the seal."""
    checks: list[int] = []
    for chunk in _chunks(pieces):
        view = memoryview(chunk)
        checks += [_digest(view[at : at + PAGE]) for at in range(0, len(view), PAGE)]
        yield chunk
    table = struct.pack(f"<{len(checks)}Q", *checks)
    yield table
    yield _seal(table, check)


def _seal(checks: Buffer, check: Buffer) -> bytes:
    """What ends the file; bound to the header, so that no two files can be mixed."""
    return WORD.pack(_digest(checks, WORD.unpack(check)[0]))


def _chunks(pieces: Iterable[Buffer]) -> Iterator[Buffer]:
    """The same bytes in chunks of whole pages, and the rest."""
    chunk = bytearray()
    for piece in pieces:
        for at in range(0, len(piece), CHUNK):
            chunk += memoryview(piece)[at : at + CHUNK] if len(piece) > CHUNK else piece
            if len(chunk) >= CHUNK:
                end = len(chunk) & -PAGE
                rest = chunk[end:]
                del chunk[end:]
                yield chunk
                chunk = rest
    if chunk:
        yield chunk


class Checkpoint:
    """The rows of a checkpoint, read where they lie.

    Opening looks at the header only; a page is checked when it is first touched. Costs
    0.01 % of the file in memory, besides the pages themselves, which belong to the
    system. May be used by several threads at once.

    Parameters
    ----------
    data : memoryview
        The whole file, read-only as far as anybody is concerned: best the map of
        `chest.system.map_file`. It is kept, and so is what it is a view of.

    Attributes
    ----------
    about : bytes
        What was given to `lines`; verified.
    shift : int
        A tag shifted right by so many bits is its bucket.
    buckets : memoryview
        Where each bucket begins in `slots`, and where the last one ends.
    slots : memoryview
        Of each row, sorted by tag, four words of 32 bits: tag, hint, the place's lower
        and its upper half.
    ready : bytearray
        Which groups of 256 buckets may be looked at; `make_ready` makes others so.
    unready : int
        How many may not.

    Raises
    ------
    Damaged
        Not a checkpoint, of another version, cut short, or its header is damaged. What
        else is damaged raises when it is touched.
    ValueError
        *data* does not begin at an address that is a multiple of 8, or its items are
        not bytes.

    Examples
    --------
    >>> from array import array
    >>> data = b"".join(
    ...     lines(
    ...         about=b"two rows",
    ...         hashes=array("Q", [1 << 60, 5]),
    ...         births=array("Q", [10, 20]),
    ...         places=array("Q", [0, 3]),
    ...         hints=array("Q", [0, 0]),
    ...         heap=[b"oneone"],
    ...     )
    ... )
    >>> checkpoint = Checkpoint(memoryview(data))
    >>> len(checkpoint), checkpoint.about
    (2, b'two rows')
    >>> checkpoint.find(5), checkpoint.place(1), checkpoint.birth(1)
    ([3], 3, 20)
    >>> bytes(checkpoint.heap(3, 3))
    b'one'
    """

    about: bytes

    def __init__(self, data: memoryview) -> None:
        _require_words(data)
        if len(data) < HEADER.size:
            message = f"{len(data)} bytes are too few for a checkpoint"
            raise Damaged(message)
        self._header = header = _Header._make(HEADER.unpack_from(data))
        if header[:2] != (MAGIC, VERSION):
            message = f"not a checkpoint of version {VERSION}"
            raise Damaged(message)
        self._layout = at = _layout(header)
        if len(data) != at.seal + WORD.size:
            message = f"{len(data)} bytes instead of {at.seal + WORD.size}"
            raise Damaged(message)
        if data[at.check : at.places] != WORD.pack(_digest(data[: at.check])):
            message = "the header is damaged"
            raise Damaged(message)
        self.about = bytes(data[at.about : at.about + header.about])
        self._data = data
        self._rows = header.rows
        self._places = data[at.places : at.births].cast("Q")
        self._placed = bytearray((header.rows >> GROUP_BITS) + 1)
        self._births = data[at.births : at.buckets].cast(
            "Q" if header.width == 8 else "I"
        )
        self.buckets = data[at.buckets : at.slots].cast("I")
        self.slots = data[at.slots : at.heap].cast("I")
        self.shift = TAG_BITS - _bucket_bits(header.rows)
        self._sound = bytearray(-(-at.checks // PAGE))  # a page was proved
        self.ready = bytearray(-(-(len(self.buckets) - 1) // GROUP))
        self.unready = len(self.ready)

    def __len__(self) -> int:
        return self._rows

    def find(self, digest: int) -> Sequence[int]:
        """The places of the rows that may have this hash.

        Costs 0.6 µs, O(1) for hashes that are spread well.

        Parameters
        ----------
        digest : int
            Unsigned, of 64 bits.

        Returns
        -------
        sequence of int
            Those of all rows with this hash, in order: mostly none or one. As only the
            tag is kept, one look-up in a thousand among a million rows finds another
            row's besides; compare the keys.

        Raises
        ------
        Damaged
            A page that says so is damaged.
        """
        tag = digest >> TAG_SHIFT
        bucket = tag >> self.shift
        if not self.ready[bucket >> GROUP_BITS]:
            self.make_ready(bucket >> GROUP_BITS)
        slots, at = self.slots, self.buckets[bucket]
        while slots[at] < tag:
            at += SLOT
        found = []
        while slots[at] == tag:
            found.append(slots[at + 3] << 32 | slots[at + 2])
            at += SLOT
        return found

    def find_many(
        self, digests: npt.NDArray[np.uint64]
    ) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.uint64], npt.NDArray[np.uint32]]:
        """Which of these hashes a row may have; the place and the hint of the first.

        Costs 0.1 µs each for many. Raises as `find`.
        """
        import numpy as np

        buckets = np.frombuffer(self.buckets, "<u4")
        slots = np.frombuffer(self.slots, "<u4").reshape(-1, SLOT)
        tag = digests >> np.uint64(TAG_SHIFT)
        bucket = (tag >> np.uint64(self.shift)).astype(np.intp)
        for group in np.unique(bucket >> GROUP_BITS).tolist():
            if not self.ready[group]:
                self.make_ready(group)
        at = buckets[bucket] // SLOT
        left = np.arange(len(at))
        while len(left):
            left = left[slots[at[left], 0] < tag[left]]
            at[left] += 1
        which = np.flatnonzero(slots[at, 0] == tag)
        found = slots[at[which]]
        return which, found.view("<u8")[:, 1], found[:, 1]

    def place(self, ordinal: int) -> int:
        """The place of a row. Costs 0.2 µs.

        Raises
        ------
        Damaged
            There is no such row, or its page is damaged.
        """
        group = self._row(ordinal) >> GROUP_BITS
        if not self._placed[group]:
            begin = self._layout.places + 8 * (group << GROUP_BITS)
            self._prove(begin, min(begin + 8 * GROUP, self._layout.births))
            self._placed[group] = 1
        return self._places[ordinal]

    def birth(self, ordinal: int) -> int:
        """The birth of a row. Costs 0.2 µs.

        Raises
        ------
        Damaged
            There is no such row, or its page is damaged.
        """
        at = self._layout.births + self._header.width * self._row(ordinal)
        if not self._sound[at >> PAGE_BITS]:
            self._prove(at, at + 8)
        return self._births[ordinal] + self._header.base

    def places(self) -> memoryview:
        """The places of all rows, uncopied, as items of format ``Q``.

        Raises
        ------
        Damaged
            A page of them is damaged.
        """
        self._prove(self._layout.places, self._layout.births)
        return self._places

    def births(self) -> memoryview:
        """The births of all rows, as items of format ``Q``.

        A copy of 8 bytes a row (10 ms for a million); uncopied when they were stored
        whole (see the module).

        Raises
        ------
        Damaged
            A page of them is damaged.
        """
        self._prove(self._layout.births, self._layout.buckets)
        if self._header.width == 8 or not self._rows:
            return self._births.cast("B").cast("Q")
        high = WORD.pack(self._header.base)
        births = memoryview(bytearray(high) * self._rows)
        births.cast("I")[::2] = self._births
        return births.cast("Q").toreadonly()

    def first_after(self, birth: int) -> int:
        """How many rows were born at *birth* or before: the first ordinal after it.

        O(log n), 5 µs for a million rows.

        Raises
        ------
        Damaged
            A page that was looked at is damaged.
        """
        return bisect.bisect_right(range(self._rows), birth, key=self.birth)

    def heap(self, at: int, size: int) -> memoryview:
        """Bytes of the heap, uncopied.

        Parameters
        ----------
        at, size : int
            Bytes; *at* counts from the heap's beginning.

        Raises
        ------
        Damaged
            Not all of them are in the heap, or a page of them is damaged.
        """
        if not 0 <= at <= at + size <= self._header.heap:
            message = f"bytes {at} to {at + size} of a heap of {self._header.heap}"
            raise Damaged(message)
        begin = self._layout.heap + at
        self._prove(begin, begin + size)
        return self._data[begin : begin + size]

    def check(self) -> None:
        """Read the whole file; about 5 GB a second when it is in memory.

        Raises
        ------
        Damaged
            A page is damaged, also one that was sound when it was first touched.
        """
        self._sound[:] = bytes(len(self._sound))
        self.unready = len(self.ready)
        self.ready[:] = bytes(len(self.ready))
        self._placed[:] = bytes(len(self._placed))
        self.__dict__.pop("_checks", None)
        self._prove(0, self._layout.checks)

    def _row(self, ordinal: int) -> int:
        """The ordinal, when there is such a row."""
        if not 0 <= ordinal < self._rows:
            message = f"row {ordinal} of {self._rows}"
            raise Damaged(message)
        return ordinal

    def make_ready(self, group: int) -> None:
        """Prove a group of buckets, and their slots. Raises as `find`."""
        at = self._layout
        first = group << GROUP_BITS
        last = min(first + GROUP, len(self.buckets) - 1)
        self._prove(at.buckets + 4 * first, at.buckets + 4 * (last + 1))
        begin, end = self.buckets[first], self.buckets[last] + SLOT
        self._prove(at.slots + 4 * begin, at.slots + 4 * end)
        self.ready[group] = 1
        self.unready = self.ready.count(0)

    def _prove(self, begin: int, end: int) -> None:
        """Compare each page of these bytes that was not yet with its checksum."""
        sound, stop = self._sound, (end + PAGE - 1) >> PAGE_BITS
        page = sound.find(0, begin >> PAGE_BITS, stop)
        while page >= 0:
            at = page << PAGE_BITS
            limit = min(at + PAGE, self._layout.checks)
            if _digest(self._data[at:limit]) != self._checks[page]:
                message = f"the page at byte {at} is damaged"
                raise Damaged(message)
            sound[page] = 1
            page = sound.find(0, page + 1, stop)

    @functools.cached_property
    def _checks(self) -> memoryview:
        """A checksum for each page, proved as a whole before the first is believed."""
        at = self._layout
        checks = self._data[at.checks : at.seal]
        if self._data[at.seal :] != _seal(checks, self._data[at.check : at.places]):
            message = "the checksums are damaged"
            raise Damaged(message)
        return checks.cast("Q")


def _require_words(data: memoryview) -> None:
    """Refuse what cannot be read, or handed out, as aligned words of this machine."""
    if sys.byteorder != "little":
        message = "checkpoints are read on little-endian machines only"
        raise Damaged(message)
    if data.format != "B" or not data.contiguous:
        message = "the data of a checkpoint is a contiguous view of bytes"
        raise ValueError(message)
    # A whole map begins at a page; asking anybody else for his address loads ctypes.
    if isinstance(data.obj, mmap.mmap) and len(data) == len(data.obj):
        return
    if len(data) and system.address(data) % 8:
        message = "the data of a checkpoint does not begin at a multiple of 8 bytes"
        raise ValueError(message)
