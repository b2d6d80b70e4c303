"""A value and what is known of it as the bytes of one object, and back.

Owns: the end of an object, where its entry is, and its signature. Does not own: how a
value is written (`chest.formats`), or where the bytes go.

::

    0            the value, as its format writes it: a plain pickle, say
    at           the entry, JSON, as `chest.records.Entry` has it
    size - 48    <I bytes of the entry> <I low half of its xxh3_64>
    size - 40    32 hexadecimal digits: keyed hash of all before; or 32 zero bytes
    size - 8     magic: CHESTOB1

The entry lies in the object, not in the store's metadata: those differ from store to
store, some have none, and a listing tells of none. Unpicklers stop reading before it.

An object of 16 bytes or less says that the key was removed on a condition (`gone`): no
value's is so short, so a listing tells them apart.
"""

from __future__ import annotations

import secrets
import struct
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import xxhash

from chest import errors, keys, system
from chest.formats.compressed import dump_if_it_pays, form_of, ratio
from chest.objects.naming import named, text_of
from chest.protocols import Buffer, Format, NeedsPrivateMap, Source
from chest.records import Entry
from chest.settings import Spelled
from chest.signing import Key

__all__ = [
    "END_NBYTES",
    "GONE_NBYTES",
    "Job",
    "Sealed",
    "Sealer",
    "Stored",
    "gone",
    "untrusted",
]

TRAILER = struct.Struct("<II32s8s")
SIGNED = 40  # bytes at the end that no signature is over
MAGIC, FAMILY = b"CHESTOB1", b"CHESTOB"
UNSIGNED = bytes(32)
GONE_NBYTES = 16
END_NBYTES = 1024  # of an object that are read to have its entry; most have a third
ALIGNED = 16  # bytes; what any memory from malloc is
RUN_CODE = ("pickle",)  # formats that begin so run code when they are read


class Stored(Entry, rename={"nonce": "N", "etag": "E", "until": "U", "version": "V"}):
    """The entry of one object, as it was put or got.

    Attributes
    ----------
    nonce : str
        Different each time that an object is put, so that etags made from the bytes
        never come back, and a put whose answer was lost is known again.
    etag, version : str, str or None
        Which state of the object.
    until : float
        Until then [s, of `time.monotonic`] it is taken to be that of the object.
    """

    nonce: str = ""
    etag: str = ""
    version: str | None = None
    until: float = 0.0


class Job(NamedTuple):
    """One value to write."""

    key: object
    value: object
    nbytes: int
    format: str
    file_id: str
    mapped: str | None = None
    expires: float | None = None
    cost: float = 0.0
    made: int = 0


class Sealed(NamedTuple):
    """An object that nobody has yet."""

    name: str
    data: bytearray
    entry: Stored


class _Sink:
    """A file in memory."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.data = bytearray()

    def write(self, buffers: Sequence[Buffer]) -> None:
        """Append the buffers."""
        for each in buffers:
            self.data += each

    def restart(self) -> None:
        """Forget all that was written."""
        self.data = bytearray()


class Sealer:
    """Makes objects of values, and values of objects.

    Parameters
    ----------
    formats : dict of str to Format
        By the name that entries carry.
    key : Key or None
        Signs and checks objects in a signed chest.
    trusted : bool
        Pickles may be loaded: the chest is signed, or the user said so.
    compression : str, bool or None
        Of pickles whose key does not say otherwise.
    mapped : {"r", "copy", False}
        How large buffers of values are given out where their key does not say otherwise:
        as slices of what was got, read-only; of a copy of it; as memory of their own.
    """

    def __init__(
        self,
        formats: dict[str, Format],
        *,
        key: Key | None,
        trusted: bool,
        compression: str | bool | None,
        mapped: str | bool,
    ) -> None:
        self._formats = formats
        self._key = key
        self._trusted = trusted
        self._compressed = form_of(compression)
        self._mapped = mapped

    # -- write -------------------------------------------------------------------------

    def seal(self, job: Job, url: str) -> Sealed:
        """The object for a value.

        Raises
        ------
        EncodingError
            The value cannot be written.
        """
        sink, name, key = _Sink(url), job.format, keys.text(job.key)
        if name == "pickle" and not isinstance(name, Spelled):
            name = self._compressed
        try:
            form, receipt = dump_if_it_pays(
                self._formats, name, job.value, sink, key=key, file_id=job.file_id
            )
        except errors.EncodingError as error:
            error.key, error.path = job.key, url
            raise
        text = text_of(job.key)
        entry = Stored(
            text,
            size=len(sink.data),
            digest=receipt.digest,
            format=form.name,
            file_id=job.file_id,
            nbytes=job.nbytes,
            cost=round(job.cost, 6),
            python=receipt.python,
            mapped=job.mapped,
            expires=job.expires,
            made=job.made,
        )
        return self._closed(sink.data, entry, named(text))

    @property
    def compression(self) -> float:
        """Bytes before compression over those after, of what was compressed; or 1."""
        return ratio(self._formats)

    def amend(self, data: memoryview, entry: Stored, name: str) -> Sealed:
        """The object that *data* is, with another entry."""
        return self._closed(bytearray(data[: entry.size]), entry, name)

    def digest(self, value: object, entry: Entry) -> str | None:
        """What *value* would be written as now; None: it cannot be told."""
        return self._format(entry, None, "").digest(value)

    def check_storable(self, job: Job, url: str) -> None:
        """Raise EncodingError for what the format "data" refuses."""
        if job.format == "data":
            self.seal(job, url)

    def _closed(self, data: bytearray, entry: Stored, name: str) -> Sealed:
        """Append the entry and the signature."""
        plain = msgspec.structs.replace(
            entry, nonce=secrets.token_hex(8), etag="", version=None, until=0.0
        )
        text = msgspec.json.encode(plain)
        data += text
        check = xxhash.xxh3_64_intdigest(text) & 0xFFFFFFFF
        data += TRAILER.pack(len(text), check, UNSIGNED, MAGIC)
        if self._key is not None:
            body = memoryview(data)[:-SIGNED]
            signature = self._key.sign_file(body).encode()
            body.release()
            data[-SIGNED:-8] = signature
        return Sealed(name, data, plain)

    # -- read --------------------------------------------------------------------------

    def entry(self, end: memoryview, size: int, key: object, url: str) -> Stored | None:
        """The entry of an object; None: *end*, its last bytes, are too few.

        Raises
        ------
        CorruptValueError, VersionError, SignatureError
            It is damaged, or no object of a chest's; *end* is the whole object and is not
            signed as it must be.
        """
        source = Source(url, end, False, False, key)
        if end.nbytes < TRAILER.size:
            raise _damaged(source, "it is too short, or no value of a chest's")
        length, check, signature, magic = TRAILER.unpack(end[-TRAILER.size :])
        if magic != MAGIC:
            raise _other(source, magic)
        if end.nbytes < length + TRAILER.size:
            if end.nbytes < size:
                return None
            raise _damaged(source, "its end makes no sense")
        if (signature == UNSIGNED) != (self._key is None):
            which = "carries no signature" if self._key else "is signed: pass sign_key="
            msg = f"{url}, the value of {errors.short(key)}, {which}"
            raise errors.SignatureError(msg, key=key, path=url)
        if self._key is not None and end.nbytes == size:
            signed = source._replace(data=end[:-SIGNED])
            self._key.check_file(signed, signature.decode("ascii", "replace"))
        text = end[-TRAILER.size - length : -TRAILER.size]
        if xxhash.xxh3_64_intdigest(text) & 0xFFFFFFFF != check:
            raise _damaged(source, "the checksum of its entry is wrong")
        try:
            entry = msgspec.json.decode(text, type=Stored)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            raise _damaged(source, "its entry makes no sense") from error
        return entry

    def open(
        self,
        data: memoryview,
        name: str,
        key: object,
        url: str,
        *,
        private: bool = False,
    ) -> tuple[object, Stored]:
        """The value of an object, all of whose bytes are checked first.

        Parameters
        ----------
        data : memoryview
        name : str
            What the object is called; it must be what its entry's key is called.
        key : object
            For messages.
        url : str
        private : bool
            The value may be changed without anybody seeing it.

        Raises
        ------
        CorruptValueError, DecodingError, UntrustedError, SignatureError, VersionError
            The value cannot be had.
        """
        entry = self.entry(data, data.nbytes, key, url)
        assert entry is not None
        if entry.format.startswith(RUN_CODE) and not self._trusted:
            raise untrusted(url, key)
        form = self._format(entry, key, url)
        if entry.format != form.name or not 0 <= entry.size <= data.nbytes:
            raise _damaged(Source(url, data, False, False, key), "its entry is wrong")
        if named(entry.text) != name:
            what = "it is another key's object"
            raise _damaged(Source(url, data, False, False, key), what)
        body = data[: entry.size]
        mapped = "copy" if private else entry.mapped or self._mapped
        if mapped == "copy" or system.address(body) % ALIGNED:
            body = memoryview(bytearray(body))
        # What is decompressed is a copy already.
        sliced = mapped in ("r", "copy") and entry.format in ("pickle", "data")
        source = Source(url, body, sliced, mapped == "copy", key)
        if mapped != "copy":
            source = source._replace(data=body.toreadonly())
        try:
            return form.load(source, file_id=entry.file_id, full=True), entry
        except NeedsPrivateMap:
            source = Source(url, memoryview(bytearray(body)), True, True, key)
            return form.load(source, file_id=entry.file_id, full=True), entry

    def check(self, data: memoryview, name: str, key: object, url: str) -> None:
        """Compare every byte of an object with its checksums; raises what `open` would."""
        entry = self.entry(data, data.nbytes, key, url)
        assert entry is not None
        source = Source(url, data[: entry.size], False, False, key)
        if named(entry.text) != name:
            raise _damaged(source, "it is another key's object")
        self._format(entry, key, url).check(source, file_id=entry.file_id)

    def _format(self, entry: Entry, key: object, url: str) -> Format:
        form = self._formats.get(entry.format)
        if form is None:
            msg = (
                f"{url}, the value of {errors.short(key)}, has the format "
                f"{entry.format!r}, which this chest does not read"
            )
            raise errors.DecodingError(msg, key=key, path=url)
        return form


def gone() -> bytes:
    """The bytes of an object that says that its key was removed; no two are equal."""
    return secrets.token_hex(GONE_NBYTES // 2).encode()


def untrusted(url: str, key: object = None) -> errors.UntrustedError:
    """The error for a pickle that somebody else could have put there."""
    what = f"{url}, the value of {errors.short(key)}," if key is not None else url
    msg = (
        f"{what} would run pickles, and who could have put them there cannot be told. "
        f"Pass sign_key= (objects are signed, and checked before they are read), "
        f"trust='data' (no pickle is used), or trust='any' if you trust everybody who "
        f"can write there"
    )
    return errors.UntrustedError(msg, key=key, path=url)


def _damaged(source: Source, what: str) -> errors.CorruptValueError:
    msg = (
        f"the value of key {errors.short(source.key)} is damaged: {what} "
        f"({source.path}). Set the key again, delete it, or put back the object"
    )
    return errors.CorruptValueError(msg, key=source.key, path=source.path)


def _other(source: Source, magic: bytes) -> errors.ChestError:
    """The error for an object that does not end as it must."""
    if not (magic.startswith(FAMILY) and magic[-1:].isdigit() and magic > MAGIC):
        return _damaged(source, "its end is missing, or it is no value of a chest's")
    msg = (
        f"the value of key {errors.short(source.key)} was written by a newer chest: "
        f"upgrade chest to read it ({source.path})"
    )
    return errors.VersionError(msg, key=source.key, path=source.path)
