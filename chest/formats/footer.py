"""What the mappable formats have in common: aligned buffers, a footer, checksums.

Owns: the frame of a value file, writing it in one pass, and checking it.
Does not own: what the in-band bytes mean; that is for each format.

::

    0            in-band bytes                     the "skeleton", in pieces
    end_i        a gap, of the format's making     so that what follows is aligned
    payload_i    a raw buffer; payload_i % 64 == 0
    …            in-band bytes, more gaps and buffers
    stop         end of the body: the footer, JSON, filled up with blanks
    size - 32    <Q stop> <I bytes of footer> <I low half of its xxh3_64>
                 <Q stop> <8 bytes magic>          little-endian

The footer is one JSON object::

    version   of this layout, 1
    key       the manifest's text of the key
    id        file id, 16 hexadecimal digits
    python    minor version of Python that must read it; null: any
    skeleton  xxh3_128 of the in-band bytes, 32 hexadecimal digits
    buffers   [[end, payload, bytes, read-only, xxh3_64], …] in the order of the file

The gap is not in any checksum: a format either does not read it (mapped) or knows each
of its bytes beforehand and compares them.
"""

from __future__ import annotations

import mmap
import struct
import weakref
from typing import TYPE_CHECKING, NamedTuple

import msgspec
import xxhash

from chest import system
from chest.errors import CorruptValueError, VersionError, short

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from chest.protocols import Buffer, Sink, Source

__all__ = [
    "ALIGNMENT",
    "Body",
    "Entry",
    "Footer",
    "check_payloads",
    "check_skeleton",
    "corrupt",
    "is_sealed",
    "open_footer",
    "pieces",
    "remember",
    "value_digest",
]

ALIGNMENT = 64  # bytes; a cache line, and what Arrow asks for
VERSION = 1
TRAILER = struct.Struct("<QIIQ8s")
BATCH_BYTES = 1 << 20  # what may wait before it is passed to the sink
BATCH_PIECES = 256


class Entry(NamedTuple):
    """Where one buffer lies in the file."""

    end: int
    payload: int
    nbytes: int
    readonly: bool
    check: str


class Footer(msgspec.Struct, forbid_unknown_fields=True):
    """What the end of a value file tells."""

    version: int
    key: str
    id: str
    python: int | None
    skeleton: str
    buffers: list[Entry]
    stop: int = 0


class _Sealed(msgspec.Struct):
    """The one field that every version of the footer has."""

    version: int


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Footer).decode
_decode_version = msgspec.json.Decoder(_Sealed).decode


# --------------------------------------------------------------------- writing


class Body:
    """One pass over a value: hashes and writes what the format hands over.

    Parameters
    ----------
    sink : Sink or None
        ``None`` only hashes.

    Attributes
    ----------
    at : int
        Bytes handed over so far: the offset of the next one.
    failure : BaseException or None
        What the sink raised, to tell it from what the value raised.
    """

    def __init__(self, sink: Sink | None) -> None:
        self.at = 0
        self.failure: BaseException | None = None
        self._sink = sink
        self._skeleton = xxhash.xxh3_128()
        self._entries: list[Entry] = []
        self._waiting: list[Buffer] = []
        self._waiting_bytes = 0

    def add(self, data: bytes) -> None:
        """Append in-band bytes."""
        if not data:
            return
        if len(data) > BATCH_BYTES:
            self._stream(memoryview(data), self._skeleton.update)
        else:
            self._skeleton.update(data)
            self._put(data, len(data))

    def add_payload(self, gap: bytes, payload: memoryview, *, readonly: bool) -> None:
        """Append a buffer, contiguous bytes, that *gap* has aligned."""
        end, size = self.at, payload.nbytes
        if gap:
            self._put(gap, len(gap))
        start = self.at
        known = _recognise(payload) if _known and size else None
        if known is not None:
            check = known
            self._put(payload, size)
        elif size > BATCH_BYTES:
            hasher = xxhash.xxh3_64()
            self._stream(payload, hasher.update)
            check = hasher.hexdigest()
        else:
            check = xxhash.xxh3_64_hexdigest(payload)
            self._put(payload, size)
        self._entries.append(Entry(end, start, size, readonly, check))

    def finish(self, magic: bytes, key: str, file_id: str, python: int | None) -> str:
        """Write the footer; the digest of the whole value is returned."""
        footer = Footer(
            VERSION, key, file_id, python, self._skeleton.hexdigest(), self._entries
        )
        digest = value_digest(footer)
        if self._sink is not None:
            footer.stop = stop = self.at
            text = _encode(footer)
            text += b" " * (-(stop + len(text)) % TRAILER.size)
            check = xxhash.xxh3_64_intdigest(text) & 0xFFFFFFFF
            self._put(text, len(text))
            self._put(TRAILER.pack(stop, len(text), check, stop, magic), TRAILER.size)
            self._pass_on()
        return digest

    def _stream(self, data: memoryview, update: Callable[[Buffer], None]) -> None:
        """Hash a large piece beside writing it, so that it takes little longer."""
        if self._sink is None:
            update(data)
            self.at += data.nbytes
            return
        self._pass_on()
        wait = system.run_beside(update, data)
        try:
            self._put(data, data.nbytes)
            self._pass_on()
        finally:
            wait()

    def _put(self, piece: Buffer, size: int) -> None:
        """Queue a piece that is hashed already."""
        self.at += size
        if self._sink is None:
            return
        self._waiting.append(piece)
        self._waiting_bytes += size
        if self._waiting_bytes >= BATCH_BYTES or len(self._waiting) >= BATCH_PIECES:
            self._pass_on()

    def _pass_on(self) -> None:
        """Give the sink what waits."""
        if not self._waiting or self._sink is None:
            return
        waiting, self._waiting, self._waiting_bytes = self._waiting, [], 0
        try:
            self._sink.write(waiting)
        except BaseException as error:
            self.failure = error
            raise


def value_digest(footer: Footer) -> str:
    """A hash of the value alone: of neither its name nor where its buffers lie."""
    hasher = xxhash.xxh3_128(footer.skeleton.encode())
    for entry in footer.buffers:
        hasher.update(f" {entry.nbytes} {entry.check}".encode())
    return hasher.hexdigest()


# -------------------------------------------------- buffers we know by address

# Where the payloads of live maps lie: address → (bytes, xxh3_64, the map is private).
_known: dict[int, tuple[int, str, bool]] = {}
_forget: dict[int, weakref.ref[object]] = {}


def remember(source: Source, footer: Footer) -> None:
    """Note the checksums of a map's buffers, for as long as it is mapped.

    What lies there cannot have changed, or the system knows that it has not: it need not
    be read to be recognised.
    """
    owner = source.data.obj
    if not footer.buffers or not isinstance(owner, mmap.mmap):
        return
    base = system.address(source.data)
    places = [base + entry.payload for entry in footer.buffers if entry.nbytes]

    def forget(_: object, places: list[int] = places, base: int = base) -> None:
        # Runs while the map is being freed, before its addresses can be used again.
        _forget.pop(base, None)
        for place in places:
            _known.pop(place, None)

    for entry in footer.buffers:
        if entry.nbytes:
            what = (entry.nbytes, entry.check, source.writable)
            _known[base + entry.payload] = what
    _forget[base] = weakref.ref(owner, forget)


def _recognise(payload: memoryview) -> str | None:
    """The checksum of a buffer that is still what was mapped; None: it must be read."""
    place = system.address(payload)
    nbytes, check, private = _known.get(place, (None, "", False))
    if nbytes != payload.nbytes or (private and not system.untouched(place, nbytes)):
        return None
    return check


# --------------------------------------------------------------------- reading


def is_sealed(data: memoryview, magic: bytes) -> bool:
    """Whether the file ends as this layout does; False as well for a cut one."""
    return data.nbytes >= TRAILER.size and data[-len(magic) :] == magic


def corrupt(source: Source, what: str) -> CorruptValueError:
    """The error for a damaged file: *what* is wrong, where, and what to do."""
    message = (
        f"the value of key {short(source.key)} is damaged: {what} "
        f"({source.path}, {source.data.nbytes} bytes). Set the key again, delete it, "
        "or put back a copy of it."
    )
    return CorruptValueError(message, key=source.key, path=source.path)


def open_footer(source: Source, magic: bytes, file_id: str | None) -> Footer:
    """Read and check the end of a file, and that every length in it is possible.

    Raises
    ------
    CorruptValueError
        It is damaged, cut short, or another key's or generation's file.
    VersionError
        It is whole, and written by a newer chest.
    """
    data = source.data
    end = data.nbytes - TRAILER.size
    if end < 0 or (trailer := TRAILER.unpack_from(data, end))[-1] != magic:
        raise corrupt(
            source, "its end is missing, it was cut short or is no value file"
        )
    at, length, check, stop, _ = trailer
    if at != stop or at + length != end:
        raise corrupt(source, "its length is not what was written")
    text = data[at:end]
    if xxhash.xxh3_64_intdigest(text) & 0xFFFFFFFF != check:
        raise corrupt(source, "the checksum of its footer is wrong")
    try:
        footer = _decode(text)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        _refuse_newer(source, text)
        raise corrupt(source, "its footer makes no sense") from error
    if footer.version != VERSION:
        _refuse_newer(source, text)
        raise corrupt(source, "its footer makes no sense")
    if file_id is not None and footer.id != file_id:
        raise corrupt(source, f"it is the file of {footer.key}, or an older one")
    at = 0
    for end, payload, nbytes, _, _ in footer.buffers:
        if not at <= end <= payload <= payload + nbytes <= stop or nbytes < 0:
            raise corrupt(source, "a buffer lies outside of it")
        at = payload + nbytes
    footer.stop = stop
    return footer


def _refuse_newer(source: Source, text: Buffer) -> None:
    """Raise if the footer was written by a later version of this package."""
    try:
        version = _decode_version(text).version
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return  # not even that: it is damaged, says the caller
    if version > VERSION:
        message = (
            f"the value of key {short(source.key)} was written by a newer chest (file "
            f"layout {version}, this one reads {VERSION}): upgrade chest to read it"
        )
        raise VersionError(message, key=source.key, path=source.path)


def pieces(source: Source, footer: Footer) -> Iterator[memoryview]:
    """The in-band bytes before each buffer and after the last; one more than these."""
    at = 0
    for entry in footer.buffers:
        yield source.data[at : entry.end]
        at = entry.payload + entry.nbytes
    yield source.data[at : footer.stop]


def check_skeleton(source: Source, footer: Footer, parts: Sequence[memoryview]) -> None:
    """Raise `CorruptValueError` unless the in-band bytes are those written."""
    hasher = xxhash.xxh3_128()
    for part in parts:
        hasher.update(part)
    if hasher.hexdigest() != footer.skeleton:
        raise corrupt(source, "the checksum of its frame is wrong")


def check_payloads(source: Source, footer: Footer) -> None:
    """Raise `CorruptValueError` unless all buffers are those written; reads them."""
    for _, payload, nbytes, _, check in footer.buffers:
        if xxhash.xxh3_64_hexdigest(source.data[payload : payload + nbytes]) != check:
            raise corrupt(source, f"the checksum of the buffer at {payload} is wrong")
