"""Batches: what one publication put into a pack, and where in it each value lies.

Owns: the columns of a batch's index, which of its values are live, the entry of a packed
value. Does not own: the pack's file (`chest.packs`), which record speaks of the batch.

A batch's index is columns of little-endian 32-bit numbers and the keys::

    ends[n]  checks[n]  births[n]  key_ends[n]  (generations[n])  keys…

``ends`` and ``key_ends`` count from the first value and the first key, ``births`` from the
record's ``birth``; ``checks`` are the low halves of the values' xxh3; ``generations``, 64
bits each, stand only in a batch that was rewritten.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Callable, Collection, Hashable, Iterable
from itertools import accumulate
from typing import Any

import msgspec
import xxhash

from chest import keys
from chest.records import Entry
from chest.system import FileMap

__all__ = [
    "Batch",
    "Block",
    "Columns",
    "Packed",
    "Tally",
    "dead_bits",
    "dead_places",
    "index_of",
    "is_dead",
]

Block = bytes | FileMap  # the index of a batch: read, or where it lies
_digest = xxhash.xxh3_64_intdigest


class Columns:
    """Small values that go into a pack together, as columns.

    Parameters
    ----------
    keys, births, datas : list
        Of each value: its key, its birth and its pickle.
    rewritten : bool
        They were published before, each by the record of that number in `generations`.

    Attributes
    ----------
    texts : list of bytes
        The JSON texts of the keys, where those are known instead.
    made : int
        When the youngest of them was computed; 0: not known.
    """

    __slots__ = ("births", "datas", "generations", "keys", "made", "rewritten", "texts")

    def __init__(
        self,
        keys: list[Any] | None = None,
        births: list[int] | None = None,
        datas: list[bytes] | None = None,
        *,
        rewritten: bool = False,
    ) -> None:
        self.keys = keys or []
        self.births = births or []
        self.datas = datas or []
        self.rewritten = rewritten
        self.generations: list[int] = []
        self.texts: list[bytes] = []
        self.made = 0

    def __len__(self) -> int:
        return len(self.births)

    def add(
        self, key: Hashable, birth: int, data: bytes, generation: int = 0, made: int = 0
    ) -> None:
        """Append one value."""
        self.keys.append(key)
        self.births.append(birth)
        self.datas.append(data)
        self.generations.append(generation)
        self.made = max(self.made, made)


class Tally:
    """What the batches of one pack come to.

    Attributes
    ----------
    count, dead : int
        Their values, and how many of those are not live.
    nbytes : int
        Bytes of all values, live or not.
    """

    __slots__ = ("count", "dead", "nbytes")

    def __init__(self) -> None:
        self.count = self.dead = self.nbytes = 0


class Batch:
    """What one publication put into a pack.

    Parameters
    ----------
    record : Entry
        The manifest's.
    block : Block, optional
        The batch's index.
    fetch : callable, optional
        Reads it when it is first needed.

    Attributes
    ----------
    dead : int
        How many of its values are not live: they never were, or were replaced or
        deleted since.
    gone : bytes-like
        Their places as bits, as a record has them; empty when all are live.
    block : Block
        The batch's index; empty before it is first needed, see `load`.
    keys_at : int
        Where the text of the first key begins in it.
    """

    __slots__ = (
        "_columns",
        "_count",
        "_fetch",
        "_start",
        "_tally",
        "block",
        "dead",
        "gone",
        "keys_at",
        "name",
        "record",
    )

    def __init__(
        self,
        record: Entry,
        block: Block | None = None,
        fetch: Callable[[Entry], Block] | None = None,
    ) -> None:
        self.record = record
        self.name = record.name
        self.dead = 0
        self.gone: bytearray | bytes = b""
        self._tally = Tally()
        self._count, self._start = record.count, record.start
        self.keys_at = (24 if record.rewritten else 16) * record.count
        self._fetch = fetch
        self.block: Block = b""
        self._columns: memoryview | None = None
        if block is not None:
            self._take(block)

    def kill(self, place: int) -> None:
        """Note that the value at *place*, which was live, is not any more."""
        if not self.dead:
            self.gone = bytearray(-(-self._count // 8))
        self.gone[place >> 3] |= 1 << (place & 7)  # type: ignore[index]
        self.dead += 1
        self._tally.dead += 1

    def kill_many(self, places: Collection[int]) -> None:
        """`kill` each of them."""
        if not self.dead:
            self.gone = bytearray(-(-self._count // 8))
        gone: Any = self.gone
        for place in places:
            gone[place >> 3] |= 1 << (place & 7)
        self.dead += len(places)
        self._tally.dead += len(places)

    def bury(self, gone: bytes) -> None:
        """Note all the places that are not live, as `gone` has them, before `join`."""
        self.gone = bytearray(gone)
        self.dead = int.from_bytes(gone, "little").bit_count()

    def join(self, packs: dict[str, Tally]) -> None:
        """Be counted among those of its pack from now on."""
        self._tally = tally = packs.setdefault(self.name, Tally())
        tally.count += self._count
        tally.dead += self.dead
        tally.nbytes += self.nbytes

    def passing(self) -> Batch:
        """The same, with its index in memory, but not for longer than it is used."""
        if self._columns is not None:
            return self
        assert self._fetch is not None
        return Batch(self.record, self._fetch(self.record))

    def load(self) -> Block:
        """Read the index, if that was not done yet."""
        self._table()
        return self.block

    def _take(self, block: Block) -> memoryview:
        self.block = block
        self._columns = memoryview(block)[: 16 * self.record.count].cast("I")
        return self._columns

    def _table(self) -> memoryview:
        """The columns, read when they are first needed."""
        if self._columns is not None:
            return self._columns
        assert self._fetch is not None
        return self._take(self._fetch(self.record))

    @property
    def nbytes(self) -> int:
        """Bytes of all values, and of what aligns the index behind them."""
        return self.record.at - self.record.start

    def birth(self, place: int) -> int:
        """When the key at *place* was first set."""
        columns = self._columns or self._table()
        birth: int = columns[2 * self._count + place]
        return self.record.birth + birth

    def births(self) -> list[int]:
        """All births."""
        base = self.record.birth
        return [base + each for each in self.born().tolist()]

    def born(self) -> memoryview:
        """All births, counted from the record's."""
        count = self.record.count
        return self._table()[2 * count : 3 * count]

    def generations(self) -> list[int]:
        """What `generation` says of all places."""
        count = self.record.count
        if not self.record.rewritten:
            return [self.record.generation] * count
        column = memoryview(self.load())[16 * count : 24 * count]
        return column.cast("Q").tolist()

    def generation(self, place: int) -> int:
        """The record that published the value at *place*."""
        if not self.record.rewritten:
            return self.record.generation
        self._table()
        at = 16 * self.record.count + 8 * place
        return int.from_bytes(self.block[at : at + 8], "little")

    def where(self, place: int) -> tuple[int, int, int]:
        """(offset in the pack, size, check) of the value at *place*."""
        ends = self._columns or self._table()
        first, end = ends[place - 1] if place else 0, ends[place]
        return self._start + first, end - first, ends[self._count + place]

    def text(self, place: int) -> bytes:
        """The JSON text of the key at *place*."""
        ends, offset = self._table(), 3 * self.record.count + place
        first = self.keys_at + (ends[offset - 1] if place else 0)
        return self.block[first : self.keys_at + ends[offset]]

    def key_ends(self) -> memoryview:
        """Where the text of each key ends in `block`, counted from `keys_at`."""
        return self._table()[3 * self._count :]

    def mentions(self, part: bytes) -> bool:
        """Whether *part* stands in the text of any key; sometimes True without need."""
        self._table()
        return self.block.find(part, self.keys_at) >= 0

    def texts(self) -> list[bytes]:
        """The JSON texts of all keys."""
        ends = self.key_ends().tolist()
        block, at = self.block, self.keys_at
        return [
            block[at + first : at + last]
            for first, last in zip([0, *ends], ends, strict=False)
        ]

    def left(self, gone: bytes | bytearray) -> list[int]:
        """The places that are not among those bits, which are as in `gone`."""
        places = range(self._count)
        if not gone:
            return [*places]
        return [place for place in places if not gone[place >> 3] >> (place & 7) & 1]

    def keys(self, load: keys.Loader | None) -> list[Any]:
        """All keys."""
        texts = msgspec.json.decode(b"[%s]" % b",".join(self.texts()))
        return [keys.decode(text, load) for text in texts]


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

    @property
    def made(self) -> int:
        """When the youngest of the batch was computed."""
        return self.batch.record.made

    format = "pickle"
    digest = file_id = signature = gone = ""
    nbytes = 0
    cost = 0.0
    python = mapped = expires = value = None


def index_of(small: Columns, base: int) -> bytes:
    """The index of a batch."""
    texts = small.texts or keys.lines(small.keys)
    columns = [
        array("I", accumulate(map(len, small.datas))),
        _low_halves(array("Q", map(_digest, small.datas))),
        array("I", [birth - base for birth in small.births]),
        array("I", accumulate(map(len, texts))),
    ]
    if small.rewritten:
        columns.append(array("Q", small.generations))
    return b"".join([*columns, *texts])


def _low_halves(numbers: array[int]) -> array[int]:
    """The lower 32 bits of each number."""
    words = array("I")
    words.frombytes(numbers.tobytes())
    return words[sys.byteorder == "big" :: 2]


def dead_places(record: Entry) -> frozenset[int]:
    """The places of a batch that its record says are not live."""
    if record.dead is None:
        return frozenset()
    return frozenset(
        place
        for place in range(record.count)
        if record.dead[place >> 3] >> (place & 7) & 1
    )


def is_dead(record: Entry) -> bool:
    """Whether nothing of a batch is live, as its record says."""
    dead = record.dead
    return dead is not None and int.from_bytes(dead).bit_count() == record.count


def dead_bits(count: int, dead: Iterable[int]) -> bytes:
    """Those of *count* places that are dead, as a record has them."""
    bits = bytearray(-(-count // 8))
    for place in dead:
        bits[place >> 3] |= 1 << (place & 7)
    return bytes(bits)
