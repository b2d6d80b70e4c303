"""The contracts that plugs keep. Types and words only, no code.

Owns: what a `Format`, a `Sink` and a `Policy` promise one another.
Does not own: any behaviour.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import NamedTuple, Protocol

__all__ = [
    "Buffer",
    "Format",
    "NeedsPrivateMap",
    "Policy",
    "Receipt",
    "Sink",
    "Slot",
    "Source",
]

Buffer = bytes | bytearray | memoryview


class Receipt(NamedTuple):
    """What encoding a value left behind.

    Attributes
    ----------
    digest : str
        32 hexadecimal digits. Two encodings of an unchanged value give the same one;
        it does not depend on padding, key or file id.
    python : int or None
        Minor version of Python that must read it back, where code was pickled by
        value; ``None``: any.
    """

    digest: str
    python: int | None = None


class Sink(Protocol):
    """Where a format writes: an unpublished file that nobody else sees."""

    path: str

    def write(self, buffers: Sequence[Buffer]) -> None:
        """Append the buffers, all of them, without keeping a reference."""

    def restart(self) -> None:
        """Forget all that was written."""


class Source(NamedTuple):
    """What a format reads: the whole file, in memory or mapped.

    Attributes
    ----------
    path : str
        Full path, for messages and for formats that open the file themselves.
    data : memoryview
        All bytes of the file. Arrays may be made upon slices of it.
    mapped : bool
        *data* is a map of the file: reading a byte costs a page fault, and values may
        keep slices of it; otherwise it was read, and verified bytes may be loaded in one
        go.
    writable : bool
        *data* is a private, copy-on-write map.
    key : object
        For messages.
    """

    path: str
    data: memoryview
    mapped: bool
    writable: bool
    key: object


class NeedsPrivateMap(Exception):
    """From `Format.load`: the value cannot live on a read-only map; give a private one."""


class Format(Protocol):
    """value ↔ buffers."""

    name: str

    def dump(self, value: object, sink: Sink, *, key: str, file_id: str) -> Receipt:
        """Write *value*; on any exception the caller discards the sink.

        *key* (the manifest's text of the key) and *file_id* (16 hexadecimal digits) are
        written into the file where the format has room for them.
        """

    def digest(self, value: object) -> str | None:
        """What `dump` would return as digest now, without writing; None: unknown."""

    def load(self, source: Source, *, file_id: str | None, full: bool) -> object:
        """Read a value back, checking every byte that is decoded before it is decoded.

        ``full`` checks the bytes that are handed out undecoded (mapped buffers) as well.
        *file_id*: what the file must carry; ``None``: not known (a legacy file). Raises
        `NeedsPrivateMap` where the value's library knows no read-only memory.
        """

    def check(self, source: Source, *, file_id: str | None) -> None:
        """Read every byte and raise what `load` would, without making the value."""


class Slot(Protocol):
    """What a policy may look at: one value in memory."""

    key: Hashable
    nbytes: int
    tick: int
    cost: float
    alive: bool


class Policy(Protocol):
    """Who is evicted first. Never called on a hit."""

    def add(self, slot: Slot) -> None:
        """A value came into memory."""

    def pop(self) -> Slot | None:
        """Take the next victim out; None when there is none left."""

    def put_back(self, slot: Slot) -> None:
        """A victim could not be written; offer it again after the next `add`."""
