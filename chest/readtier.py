"""Values read back from disk.

Owns: the way from an entry to its value: which format reads it, what is checked, what it
takes in memory. Does not own: how values are written (`chest.spill`), or the small ones
(`chest.small`) and arrays (`chest.arraytier`), which have their own way.

Read: manifest → store (open, map) → format.
"""

from __future__ import annotations

import time
import weakref
from collections.abc import Hashable
from mmap import mmap

import msgspec
import xxhash

from chest import errors
from chest.arraytier import ArrayTier, is_folder, zarr_
from chest.formats.compressed import CODECS, form_of
from chest.index import AnyEntry
from chest.manifest import Manifest
from chest.memory import Weight, weigh
from chest.packs import Packs
from chest.protocols import Format, NeedsPrivateMap, Source
from chest.records import Entry
from chest.signing import Key
from chest.sizing import SCALARS
from chest.small import is_small
from chest.stores.local import LocalStore

__all__ = ["Loaded", "ReadTier", "missing"]

RUN_CODE = frozenset(
    {"pickle", "custom", *map(form_of, CODECS)}
)  # formats that name code to be run
FEWEST_TRUSTED, MOST_SHRUNK = 4096, 4  # bytes; times the file that a value may take
MOST_TENSORS = 1 << 16  # files known to hold tensors, 100 bytes each


class Loaded(msgspec.Struct, gc=False):
    """A value read back."""

    value: object
    mapped: bool  # it may hold slices of a read-only map
    seconds: float
    weight: Weight


class ReadTier(ArrayTier):
    """The reading half of a chest's files.

    Parameters
    ----------
    store, packs, manifest, formats
        As those of `chest.small.SmallTier`.
    full : bool
        Check mapped bytes as well (``verify="full"``).
    key : Key or None
        Checks files in a signed chest.
    """

    def __init__(
        self,
        store: LocalStore,
        packs: Packs,
        manifest: Manifest,
        formats: dict[str, Format],
        *,
        full: bool,
        key: Key | None,
    ) -> None:
        super().__init__(store, packs, manifest, formats)
        self._full = full
        self._key = key
        self._tensors: set[str] = set()  # ids of files that need a private map

    def digest(self, value: object, entry: AnyEntry) -> str | bytes | None:
        """What *value* would be written as now; None: it cannot be told."""
        if is_small(entry):
            return self._pickle.dumps(value)
        if is_folder(entry):
            digest: str | None = zarr_().value_digest(value)
            return digest
        return self._format(entry, None).digest(value)

    def stored_digest(self, key: Hashable, entry: AnyEntry) -> str | bytes:
        """What `digest` gave when the value was written."""
        return self.raw(key, entry) if is_small(entry) else entry.digest

    def read(self, key: Hashable, entry: AnyEntry, mapped: str | None) -> Loaded:
        """Read one value; no lock.

        Raises
        ------
        FileNotFoundError
            The file is gone: look at the manifest again.
        CorruptValueError, DecodingError, UntrustedError, SignatureError
            The value is there but cannot be had; see `chest.errors`.
        """
        if is_small(entry):
            value = self.read_small(key, entry)
            return Loaded(value, False, 0.0, weigh(value))
        assert type(entry) is Entry
        began = time.perf_counter()
        if is_folder(entry):
            readonly = mapped == "r"
            value = self.load_array(key, entry, readonly=readonly)
            seconds = time.perf_counter() - began
            return Loaded(value, readonly, seconds, weigh(value))
        if mapped and entry.file_id in self._tensors:
            mapped = "copy"
        try:
            source, value = self._decode(key, entry, mapped)
        except NeedsPrivateMap:
            self._remember_tensors(entry)
            source, value = self._decode(key, entry, "copy")
        self.loaded += 1
        self.loaded_bytes += len(source.data)
        readonly = source.mapped and not source.writable
        kept: dict[int, int] = {}
        if source.mapped and isinstance(source.data.obj, mmap):
            owner = weakref.ref(source.data.obj)
            number, length = id(source.data.obj), len(source.data.obj)
            del source
            if owner() is not None:  # the value keeps slices of the map
                kept = {number: length}
        weight = _weight(value, entry, kept)
        return Loaded(value, readonly, time.perf_counter() - began, weight)

    def verify(self, key: Hashable, entry: AnyEntry) -> errors.ChestError | None:
        """Read every byte of one value without making it; the error when it is bad."""
        try:
            if is_small(entry):
                self.raw(key, entry)
                return None
            if is_folder(entry):
                self.check_array(key, entry)
                return None
            form = self._format(entry, key)
            source = self.store.source(
                entry.name,
                key=key,
                size=entry.size if entry.digest else None,
                mapped="r",
                runs_code=False,
            )
            if self._key is not None:
                self._key.check_file(source, entry.signature)
            assert type(entry) is Entry
            if entry.format == "custom":
                if entry.digest:
                    self._check_whole(source.data, entry, key, source.path)
            else:
                form.check(source, file_id=entry.file_id or None)
        except errors.ChestError as error:
            return error
        except FileNotFoundError as error:
            return missing(self.store.home.join(entry.name), key, error)
        return None

    # -- steps -------------------------------------------------------------------------

    def _remember_tensors(self, entry: Entry) -> None:
        """Note that a file needs a private map, so that it is opened but once."""
        if len(self._tensors) >= MOST_TENSORS:
            self._tensors.clear()
        self._tensors.add(entry.file_id)

    def _decode(
        self, key: Hashable, entry: Entry, mapped: str | None
    ) -> tuple[Source, object]:
        """Open the file of a value, and make the value of it."""
        form = self._format(entry, key)
        size = entry.size if entry.digest else None
        if entry.format.startswith("pickle+"):
            mapped = None  # what is decompressed lies in memory
        source = self.store.source(
            entry.name,
            key=key,
            size=size,
            mapped=mapped,
            runs_code=entry.format in RUN_CODE,
            # What was checked must be what is decoded: no map, which others can change.
            private=self._key is not None,
        )
        if self._key is not None:
            self._key.check_file(source, entry.signature)
        if entry.format == "custom" and entry.digest:
            self._check_whole(source.data, entry, key, source.path)
        file_id = entry.file_id or None
        return source, form.load(source, file_id=file_id, full=self._full)

    def _check_whole(
        self, data: memoryview, entry: Entry, key: object, path: str
    ) -> None:
        """The digest of a file in the user's own format is that of its bytes."""
        if xxhash.xxh3_128_hexdigest(data) != entry.digest:
            msg = (
                f"{path}, the value of {errors.short(key)}, is damaged: its checksum "
                f"does not fit. Delete the key, or restore the file"
            )
            raise errors.CorruptValueError(
                msg,
                key=key,
                path=path,
            )


def _weight(value: object, entry: Entry, kept: dict[int, int]) -> Weight:
    """What a value that was read takes in memory, without walking through it again.

    *kept* is the map of its file, by `id`, if the value keeps it.
    """
    known = entry.nbytes
    if not known or known > FEWEST_TRUSTED + MOST_SHRUNK * entry.size:
        return weigh(value)  # not known, or it was a small view of something large
    if type(value) in SCALARS:
        return known, None
    return (max(0, known - entry.size), kept) if kept else (known, kept)


def missing(path: str, key: object, error: OSError) -> errors.CorruptValueError:
    """The error for a value whose file is gone though the manifest holds it."""
    problem = errors.CorruptValueError(
        f"{path}, the value of {errors.short(key)}, is missing. Delete the key, or "
        f"restore the file",
        key=key,
        path=path,
    )
    problem.__cause__ = error
    return problem
