"""Arrays as zarr v3 arrays, each in a folder of its own.

Owns: which arrays zarr gives back exactly, the size of chunks, the folder's seal, and
zarr's view of a folder. Does not own: the folder's name, its locks, its publication.

A folder holds what zarr writes and a file ``.chest``, the *seal*: key, file id, the
array's own dtype and order, and the size and checksum of every other file. A file that
the seal names and that is gone or changed is an error, where zarr alone would read zeros.

Loaded when the first array is written or read: this module loads zarr.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import threading
from collections.abc import (
    AsyncIterator,
    Callable,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from typing import Any, NamedTuple

import msgspec
import numpy as np
import xxhash
import zarr
from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype

from chest import lifetime, pieces, system
from chest.errors import CorruptValueError, DecodingError, EncodingError, short
from chest.folder import SEAL, refusals

__all__ = [
    "FolderStore",
    "Piece",
    "Seal",
    "check",
    "check_whole",
    "create",
    "damaged",
    "dump",
    "good_chunks",
    "is_exact",
    "load",
    "open_array",
    "read_seal",
    "value_digest",
    "write_seal",
]

META = "zarr.json"
CHUNK_NBYTES = 8 << 20  # of a chunk before compression
HASH_NBYTES = 1 << 20  # of what is not contiguous, copied at a time
# What is read back: none of them runs code that the file names.
CODECS = frozenset(
    ["blosc", "bytes", "crc32c", "gzip", "sharding_indexed", "transpose", "zstd"]
)
# All chunks lie in one folder: a folder for each row of chunks, which is zarr's default,
# makes a change of one chunk some twenty times slower.
FLAT = {"name": "default", "separator": "."}
VERSION = 1
_ODD = frozenset({"", ".", "..", SEAL})  # no parts of a name in a seal


class Piece(NamedTuple):
    """What the seal says of one file."""

    size: int
    digest: str


class Seal(msgspec.Struct, omit_defaults=True):
    """What chest knows of one folder.

    Attributes
    ----------
    version : int
        Of the seal; a newer one is refused.
    key : str
        The manifest's text of the key.
    file_id : str
        What the manifest's entry must say.
    dtype : str
        Of the array that is given back, as ``np.dtype.str``; empty: zarr's own.
    order : {"C", "F"}
    pieces : dict of str to Piece
        Every other file in the folder.
    """

    version: int = VERSION
    key: str = ""
    file_id: str = ""
    dtype: str = ""
    order: str = "C"
    pieces: dict[str, Piece] = {}

    @property
    def nbytes(self) -> int:
        """Bytes of all the files it names."""
        return sum(piece.size for piece in self.pieces.values())

    def digest(self) -> str:
        """Of the contents, whatever the key: 32 hexadecimal digits."""
        pieces = sorted(self.pieces.items())
        text = msgspec.json.encode([self.dtype, self.order, pieces])
        return xxhash.xxh3_128_hexdigest(text)


# -- the seal ----------------------------------------------------------------------------


def write_seal(folder: int, seal: Seal) -> int:
    """Put the seal into the folder that is open as *folder*; returns its bytes."""
    text = msgspec.json.encode(seal)
    data = text + b"\n" + xxhash.xxh3_128_hexdigest(text).encode() + b"\n"
    return pieces.write(folder, SEAL, data)


def read_seal(folder: int, path: str, key: object) -> Seal:
    """The seal of the folder that is open as *folder*.

    Raises
    ------
    CorruptValueError
        There is none, or it is damaged.
    """
    try:
        text, _, check = pieces.read(folder, SEAL).rstrip(b"\n").rpartition(b"\n")
    except FileNotFoundError as error:
        raise damaged(path, key, f"{SEAL} is missing") from error
    if xxhash.xxh3_128_hexdigest(text).encode() != check:
        raise damaged(path, key, f"the checksum of {SEAL} does not fit")
    try:
        seal = msgspec.json.decode(text, type=Seal)
    except msgspec.MsgspecError as error:
        raise damaged(path, key, f"{SEAL}: {error}") from error
    if seal.version > VERSION:
        raise damaged(path, key, f"{SEAL} was written by a newer version of chest")
    for name in seal.pieces:
        if not _ODD.isdisjoint(name.split("/") if "/" in name else (name,)):
            raise damaged(path, key, f"{SEAL} names {name!r}")
    return seal


def damaged(path: str, key: object, what: str) -> CorruptValueError:
    """The error for a folder whose content is not what was published."""
    msg = (
        f"{path}, the value of {short(key)}, is damaged: {what}. Delete the key, or "
        f"restore the folder"
    )
    return CorruptValueError(msg, key=key, path=path)


# -- zarr's view of a folder -------------------------------------------------------------


class FolderStore(Store):
    """The files of one array, checked as they are read; changes go to another folder.

    Parameters
    ----------
    path : str
        For messages.
    key : object
        For messages.
    pieces : mapping of str to Piece
        What there is to begin with.
    base : int
        Descriptor of the folder with these files; -1: there are none. Not closed here.
    draft : int
        Descriptor of the folder that takes changes; -1: read only. Not closed here.
    linked : set of str
        The files of *base* that *draft* has as well.
    """

    supports_writes = True
    supports_deletes = True
    supports_listing = True

    def __init__(
        self,
        path: str,
        key: object,
        pieces: Mapping[str, Piece],
        *,
        base: int = -1,
        draft: int = -1,
        linked: Iterable[str] = (),
    ) -> None:
        if lifetime.is_ending():
            # Zarr would wait for ever, for a thread that it was refused.
            msg = "the interpreter ends, and zarr gets no threads any more"
            raise RuntimeError(msg)
        super().__init__(read_only=draft < 0)
        self.path, self.key = path, key
        self.pieces = dict(pieces)
        self.fresh: set[str] = set()
        self.linked = {*linked}
        self._base, self._draft = base, draft
        self._folders: set[str] = {""}
        self._whole: FolderStore | None = None  # whose descriptors these are
        self._gate = threading.Condition()
        self._writing, self._ended = 0, False
        self._pid = os.getpid()

    def __eq__(self, other: object) -> bool:
        return self is other

    __hash__ = Store.__hash__

    def __repr__(self) -> str:
        return f"FolderStore({self.path!r})"

    def with_read_only(self, read_only: bool = False) -> FolderStore:
        """The same files, to be read only."""
        if not read_only and self._draft < 0:
            msg = f"{self.path} is open to be read only"
            raise ValueError(msg)
        draft = -1 if read_only else self._draft
        new = FolderStore(
            self.path, self.key, self.pieces, base=self._base, draft=draft
        )
        new.fresh, new.linked, new._whole = self.fresh, self.linked, self
        return new

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """A file, or a part of it; None where the seal names none."""
        piece = self.pieces.get(key)
        if piece is None:
            return None
        data = await asyncio.to_thread(self.read, key, piece, byte_range)
        # Of a map, too: nothing is copied, and what zarr decodes is its own.
        return (prototype or default_buffer_prototype()).buffer.from_bytes(data)

    def read(
        self, name: str, piece: Piece, byte_range: ByteRequest | None = None
    ) -> bytes | memoryview:
        """Read one file; checked when it is read whole.

        Raises
        ------
        CorruptValueError
            It is gone, or is not what was written.
        """
        folder = self._draft if name in self.fresh else self._base
        start, stop = _span(piece.size, byte_range)
        try:
            data = pieces.content(folder, name, start, stop - start)
        except FileNotFoundError as error:
            raise damaged(self.path, self.key, f"{name} is missing") from error
        whole = len(data) == piece.size
        fits = xxhash.xxh3_128_hexdigest(data) == piece.digest if whole else True
        if len(data) != stop - start or not fits:
            raise damaged(self.path, self.key, f"the checksum of {name} does not fit")
        return data

    async def get_partial_values(
        self,
        prototype: BufferPrototype,
        key_ranges: Iterable[tuple[str, ByteRequest | None]],
    ) -> list[Buffer | None]:
        """`get` of several."""
        parts = [self.get(key, prototype, part) for key, part in key_ranges]
        return list(await asyncio.gather(*parts))

    async def exists(self, key: str) -> bool:
        """Whether the seal names it."""
        return key in self.pieces

    async def set(self, key: str, value: Buffer) -> None:
        """Write a file to the draft."""
        self._check_writable()
        await asyncio.to_thread(self._set, key, value.as_numpy_array())

    def end(self) -> None:
        """Take no more changes, and wait for those that zarr's threads are amid.

        They go on when who waits for them is interrupted, and would find something else
        behind the descriptors later.
        """
        with self._gate:
            self._ended = True
            self._gate.wait_for(lambda: not self._writing)

    @contextlib.contextmanager
    def _changing(self) -> Iterator[None]:
        if self._pid != os.getpid():
            # Both would write to one folder, and each know of its own files alone.
            msg = f"this change of {short(self.key)} is another process's"
            raise RuntimeError(msg)
        with self._gate:
            if self._ended:
                msg = f"this change of {short(self.key)} is over"
                raise RuntimeError(msg)
            self._writing += 1
        try:
            yield
        finally:
            with self._gate:
                self._writing -= 1
                self._gate.notify_all()

    def _set(self, name: str, array: np.ndarray[Any, Any]) -> None:
        data = np.ascontiguousarray(array).data.cast("B")
        with (
            self._changing(),
            refusals(self.path, "could not be written", self.key),
        ):
            folder = os.path.dirname(name)
            if folder not in self._folders:
                pieces.make_folders(self._draft, folder)
                self._folders.add(folder)
            pieces.write(self._draft, name, data)
            self.pieces[name] = Piece(len(data), xxhash.xxh3_128_hexdigest(data))
            self.linked.discard(name)
            self.fresh.add(name)

    async def delete(self, key: str) -> None:
        """Leave a file out of the draft."""
        self._check_writable()
        with self._changing():
            if self.pieces.pop(key, None) and key in self.fresh | self.linked:
                os.unlink(key, dir_fd=self._draft)
                self.fresh.discard(key)
                self.linked.discard(key)

    async def list(self) -> AsyncIterator[str]:
        """All names."""
        for key in [*self.pieces]:
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """The names that begin with *prefix*."""
        for key in [*self.pieces]:
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """The names and folders right below *prefix*, each once."""
        prefix = prefix.rstrip("/") + "/" if prefix.rstrip("/") else ""
        below = [key for key in self.pieces if key.startswith(prefix)]
        for name in sorted({key[len(prefix) :].split("/")[0] for key in below}):
            yield name

    def link_rest(self) -> None:
        """Give the draft the files that were not changed, by hard link or copy."""
        for name in self.pieces.keys() - self.fresh - self.linked:
            folder = os.path.dirname(name)
            if folder not in self._folders:
                pieces.make_folders(self._draft, folder)
                self._folders.add(folder)
            pieces.link_or_copy(self._base, name, self._draft)


# -- values ------------------------------------------------------------------------------


def is_exact(value: object) -> bool:
    """Whether zarr, and what the seal keeps beside it, give *value* back as it is.

    Numbers, truth values and times of any byte order and memory order. Not: subclasses,
    text, records, objects, long doubles, dtypes with metadata, scalars, empty arrays.
    """
    if type(value) is not np.ndarray or not value.ndim or not value.size:
        return False
    kind, dtype = value.dtype.kind, value.dtype
    if dtype.metadata is not None or dtype.char in "gG":
        return False
    if kind in "mM":
        return np.datetime_data(dtype)[0] != "generic"
    return kind in "biufc" and type(dtype).__module__ == "numpy.dtypes"


def good_chunks(shape: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """Chunks of about 8 MiB of whole rows, which lie together in the array.

    Examples
    --------
    >>> good_chunks((100_000, 1000), 8)
    (1048, 1000)
    >>> good_chunks((10,), 8), good_chunks((3, 10**8), 8)
    ((10,), (1, 1048576))
    """
    left = max(1, CHUNK_NBYTES // max(1, itemsize))
    chunks = []
    for length in reversed(shape):
        part = min(max(1, length), max(1, left))
        chunks.append(part)
        left //= part
    return tuple(reversed(chunks))


def create(
    store: FolderStore,
    shape: Sequence[int],
    dtype: Any,
    *,
    whole: bool = True,
    **options: Any,
) -> zarr.Array[Any]:
    """Begin an array in a draft.

    Parameters
    ----------
    store : FolderStore
    shape : sequence of int
    dtype : numpy.dtype
        In the byte order of this machine.
    whole : bool
        Every chunk is written, also those of fill values alone.
    **options
        For ``zarr.create_array``.

    Raises
    ------
    EncodingError
        zarr refuses, or would need a codec that chest does not read back.
    """
    if dtype.isalignedstruct:
        msg = f"zarr would pack the fields of {dtype}: give an array without gaps"
        raise EncodingError(msg, key=store.key, path=store.path)
    options.setdefault("chunks", good_chunks(shape, dtype.itemsize))
    options.setdefault("chunk_key_encoding", FLAT)
    if options.get("shards") is not None and options["chunks"] is None:
        del options["chunks"]
    try:
        made = zarr.create_array(
            store,
            shape=tuple(shape),
            dtype=dtype,
            zarr_format=3,
            config={"write_empty_chunks": whole},
            **options,
        )
    except (TypeError, ValueError, NotImplementedError) as error:
        msg = (
            f"zarr refuses {short(store.key)}, an array of {dtype} and shape "
            f"{tuple(shape)}: {error}"
        )
        raise EncodingError(msg, key=store.key, path=store.path) from error
    if made.dtype != dtype:
        msg = f"zarr would make {made.dtype} of {dtype}"
        raise EncodingError(msg, key=store.key, path=store.path)
    odd = _codecs(store) - CODECS
    if odd:
        msg = f"codec {', '.join(sorted(odd))} is not one that chest reads back"
        raise EncodingError(msg, key=store.key, path=store.path)
    return made


def dump(
    value: np.ndarray[Any, Any],
    folder: int,
    *,
    path: str,
    key: object,
    seal: Seal,
    options: Mapping[str, Any],
) -> str:
    """Write an array into the empty folder that is open as *folder*; returns its digest.

    *seal* is completed. The array must be `is_exact`.

    Raises
    ------
    EncodingError
        zarr refuses the options.
    OSError
        The disk refused.
    """
    store = FolderStore(path, key, {}, draft=folder)
    seal.dtype = value.dtype.str
    if value.flags.f_contiguous and not value.flags.c_contiguous:
        seal.order = "F"
    native = value.dtype.newbyteorder("=")
    array = create(store, value.shape, native, **options)
    # The digest of the value is computed beside the compression and the writing.
    digest = system.run_beside(value_digest, value)
    try:
        array[...] = value
        check_whole(array, store)
        seal.pieces = store.pieces
    finally:
        text = digest() or ""
    return text


def check_whole(array: zarr.Array[Any], store: FolderStore) -> None:
    """Raise EncodingError unless every chunk of the array was written."""
    blocks = array.shards or array.chunks
    pairs = zip(array.shape, blocks, strict=True)
    asked = math.prod(-(-length // block) for length, block in pairs)
    found = len(store.pieces) - 1
    if found != asked:
        msg = f"{found} of {asked} chunks were written"
        raise EncodingError(msg, key=store.key, path=store.path)


def open_array(store: FolderStore, order: str = "C") -> zarr.Array[Any]:
    """Zarr's array of a folder.

    Raises
    ------
    DecodingError
        Its metadata name a codec that is not read.
    """
    odd = _codecs(store) - CODECS
    if odd:
        msg = (
            f"{store.path}, the value of {short(store.key)}, cannot be read: codec "
            f"{', '.join(sorted(odd))} is not one that chest reads"
        )
        raise DecodingError(msg, key=store.key, path=store.path)
    mode: Any = "r" if store.read_only else "r+"
    return zarr.open_array(store, mode=mode, zarr_format=3, config={"order": order})


def load(store: FolderStore, seal: Seal) -> np.ndarray[Any, Any]:
    """The whole array, as it was when it was set.

    Raises
    ------
    CorruptValueError, DecodingError
        A file is gone or damaged; a codec is not read.
    """
    array = open_array(store, seal.order)
    try:
        value = np.asarray(array[...])
    except (RuntimeError, TypeError) as error:  # what zarr's codecs raise
        raise damaged(store.path, store.key, str(error)) from error
    dtype = np.dtype(seal.dtype) if seal.dtype else value.dtype
    if value.dtype != dtype:
        value = value.astype(dtype, order="K")
    # zarr 3.1 does not keep to the order where there is one chunk.
    return np.asfortranarray(value) if seal.order == "F" else value


def check(store: FolderStore, *, done: Callable[[int], object] | None = None) -> None:
    """Read every byte of a folder.

    Raises
    ------
    CorruptValueError
        A file is gone, or not what was written.
    """
    for name, piece in store.pieces.items():
        store.read(name, piece)
        if done is not None:
            done(piece.size)


def value_digest(value: object) -> str | None:
    """Of the values, dtype, shape and order of an array; None for what is none."""
    if not is_exact(value):
        return None
    assert isinstance(value, np.ndarray)
    flat = value.T if value.flags.f_contiguous else value
    order = "F" if flat is not value and not value.flags.c_contiguous else "C"
    head = f"{value.dtype.str} {value.shape} {order}"
    hasher = xxhash.xxh3_128(head.encode())
    if order == "C":
        flat = value
    if flat.flags.c_contiguous:
        hasher.update(flat.view(np.uint8).reshape(-1).data)
    else:
        rows = max(1, HASH_NBYTES * len(flat) // flat.nbytes)
        for start in range(0, len(flat), rows):
            part = np.ascontiguousarray(flat[start : start + rows])
            hasher.update(part.view(np.uint8).reshape(-1).data)
    return hasher.hexdigest()


# -- steps -------------------------------------------------------------------------------


def _codecs(store: FolderStore) -> set[str]:
    """Names of all codecs that the array's metadata ask for."""
    piece = store.pieces.get(META)
    if piece is None:
        raise damaged(store.path, store.key, f"{META} is missing")
    try:
        meta = msgspec.json.decode(store.read(META, piece))
        return set(_names(meta["codecs"]))
    except (msgspec.MsgspecError, KeyError, TypeError) as error:
        raise damaged(store.path, store.key, f"{META}: {error}") from error


def _names(codecs: Iterable[Mapping[str, Any]]) -> Iterable[str]:
    for codec in codecs:
        yield codec["name"]
        inner = codec.get("configuration", {})
        for part in ("codecs", "index_codecs"):
            yield from _names(inner.get(part, ()))


def _span(size: int, byte_range: ByteRequest | None) -> tuple[int, int]:
    """First byte, and the one after the last, of what zarr asks for."""
    if byte_range is None:
        return 0, size
    if isinstance(byte_range, RangeByteRequest):
        return min(size, byte_range.start), min(size, byte_range.end)
    if isinstance(byte_range, OffsetByteRequest):
        return min(size, byte_range.offset), size
    assert isinstance(byte_range, SuffixByteRequest)
    return max(0, size - byte_range.suffix), size
