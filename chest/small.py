"""Small values on disk: those that share a pack, or lie in the log for a while.

Owns: pickling and reading them, and publishing a batch. Does not own: which values are
small enough, or when they are written; files with one value.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Hashable, Iterable, Sequence
from typing import NoReturn

import msgspec

from chest import errors, keys
from chest.batches import Batch, Columns, Packed, dead_bits
from chest.folder import SPARE, refusals
from chest.formats.pickle5 import Pickle5, undecodable
from chest.index import AnyEntry
from chest.manifest import Manifest
from chest.packs import Packs
from chest.protocols import Format
from chest.records import Entry
from chest.stores.local import LocalStore

__all__ = ["PACKED_NBYTES", "SmallTier", "is_shared", "is_small"]

# A larger pickle has its own file. From here on a buffer could be mapped; and measured
# with 2 to 256 KB, a pack wrote 4,000 values in 1/100 to 1/10 of the time that files took,
# and read one that is not in memory in a fifth to a half, up to here.
PACKED_NBYTES = 1 << 16
SLOW_NBYTES = 1 << 20  # bytes; removing a larger file takes longer than renaming it
log = logging.getLogger("chest")


class SmallTier:
    """The packs and the manifest of one chest.

    Parameters
    ----------
    store : LocalStore
    packs : Packs
    manifest : Manifest
    formats : dict of str to Format
        By the name that entries carry.
    """

    def __init__(
        self,
        store: LocalStore,
        packs: Packs,
        manifest: Manifest,
        formats: dict[str, Format],
    ) -> None:
        self.store = store
        self.packs = packs
        self.manifest = manifest
        self._formats = formats
        self._pickle = Pickle5()
        self.dumps = self._pickle.dumps
        # pickle → value, where pickles may be read; raises whatever they raise.
        self.loads: Callable[[bytes], object] = _refuse
        if "pickle" in formats:
            self.loads = self._pickle.loads
        self.written = self.written_bytes = 0
        self.loaded = self.loaded_bytes = 0

    def small(self, value: object) -> bytes | None:
        """The pickle of a value that may go into a pack or the log; None: it may not."""
        data = self._pickle.dumps(value)
        return data if data is not None and len(data) <= PACKED_NBYTES else None

    def pack(self, small: Columns) -> Batch:
        """Write many small values to a pack; no lock.

        Raises
        ------
        StoreError
            The disk refused. Nothing was published.
        """
        self.manifest.check_writable()
        with refusals(self.store.home.path, "takes no pack"):
            return self.packs.write(
                small, sync=self.manifest.sync, generation=self.manifest.generation
            )

    def publish_packed(
        self,
        batch: Batch,
        small: Columns,
        dead: Collection[int],
        *,
        moved: bool = False,
    ) -> list[str]:
        """Publish a batch but for its *dead* places; called within `exclusive`.

        *small* is what the batch was made of. Returns and raises what `publish` does.
        """
        named, index = small.keys, self.manifest.index
        if len(dead) == len(named):
            return []
        with refusals(self.store.home.path, "could not be read"):
            is_there = self.packs.is_there(batch.name)
        if not is_there:
            # Another thread ended the pack, and somebody swept it as nobody's.
            batch = self.pack(small)
        if dead:
            batch.record.dead = dead_bits(batch.record.count, dead)
        taken: Sequence[Hashable] = named
        if dead:
            taken = [key for place, key in enumerate(named) if place not in dead]
        live, expired = index.find_many(taken), index.expired
        old = [*live.values(), *(expired[key] for key in taken if key in expired)]
        self.manifest.append([], batch, named, moved=moved, live=live)
        if not moved:
            self.written += len(named) - len(dead)
            self.written_bytes += batch.nbytes
        return self.retire(old)

    def in_log(
        self, key: Hashable, data: bytes, birth: int, nbytes: int, entry: AnyEntry
    ) -> Entry:
        """The entry of a small value in the log itself, which *entry* spoke of before."""
        return Entry(
            keys.encode(key),
            birth,
            size=len(data),
            nbytes=nbytes,
            mapped=entry.mapped,
            value=data,
            expires=entry.expires,
            generation=entry.generation,
            made=entry.made,
        )

    def amend(
        self, key: Hashable, entry: AnyEntry, expires: float | None, birth: int
    ) -> None:
        """Give a value another deadline, or place; called within `exclusive`.

        Its generation stays. A packed value comes to lie in the log: a pack has no
        deadlines, and its births do not change.
        """
        if type(entry) is Packed:
            data = self.raw(key, entry)
            new = self.in_log(key, data, entry.birth, entry.nbytes, entry)
        else:
            assert type(entry) is Entry
            new = msgspec.structs.replace(entry)
        new.expires, new.birth = expires, birth
        self.manifest.append([(key, new)], moved=True)

    def bury(self) -> list[str]:
        """Append tombstones for what has expired; called within `exclusive`.

        Returns names to `delete`.
        """
        expired = {**self.manifest.index.expired}
        if not expired:
            return []
        pairs = [(key, Entry(each.text, gone="key")) for key, each in expired.items()]
        self.manifest.append(pairs)
        return self.retire(expired.values())

    def retire(self, old: Iterable[AnyEntry]) -> list[str]:
        """Free the names of values that were replaced; called within `exclusive`.

        Small files go at once; the names of what takes longer to remove are returned,
        for `delete` once the lock is free.
        """
        # Not later: once the lock is free a sweep may take the file for an orphan, and
        # somebody else its name, whose value a late removal would hit.
        left: dict[str, None] = {}
        alone = {each.name: each for each in old if not is_shared(each)}
        for name, entry in alone.items():
            try:
                if entry.size < SLOW_NBYTES and entry.format != "zarr":
                    self.store.delete(name)
                else:
                    left[self.store.set_aside(name)] = None
                    if isinstance(entry, Entry) and entry.format == "zarr":
                        left[f"{SPARE}{entry.file_id}"] = None
            except FileNotFoundError:
                continue  # somebody removed it by hand
            except OSError as error:
                # To the sweep; what it held is replaced already.
                log.info("%s is left: %s", self.store.home.join(name), error)
        return [*left]

    def raw(self, key: Hashable, entry: AnyEntry) -> bytes:
        """The pickle of a small value, from its pack or from the log."""
        if type(entry) is Packed:
            return self.packs.read(entry, key)
        assert entry.value is not None
        return entry.value

    def verify_index(self, batch: Batch) -> errors.ChestError | None:
        """Read the index of a batch once more; the error when it is bad."""
        try:
            self.packs.block(batch.record)
        except errors.ChestError as error:
            return error
        return None

    # -- read --------------------------------------------------------------------------

    def read_small(self, key: Hashable, entry: AnyEntry) -> object:
        """Read a value from its pack, or from the log; no lock. Raises as `read`."""
        if type(entry) is Packed:
            return self.decode_small(key, entry, self.packs.read(entry, key))
        return self.decode_small(key, entry, self.raw(key, entry))

    def decode_small(self, key: Hashable, entry: AnyEntry, data: bytes) -> object:
        """The value that `raw` gave the pickle of; raises as `read`."""
        if self.loads is _refuse:
            self._format(entry, key)  # which says why it is not read
        try:
            value = self.loads(data)
        except MemoryError:
            raise
        except Exception as error:  # a pickle may raise anything
            path = self.store.home.join(entry.name)
            raise undecodable(path, key, error) from error
        self.loaded += 1
        self.loaded_bytes += len(data)
        return value

    def _format(self, entry: AnyEntry, key: object) -> Format:
        form = self._formats.get(entry.format)
        if form is not None:
            return form
        path = self.store.home.join(entry.name)
        ways = {
            "custom": "it was written by a dump= of the user's: open the chest with the "
            "same dump= and load=",
            "pickle": "it is a pickle, and trust='data' reads none",
        }
        reason = ways.get(
            entry.format.partition("+")[0],
            f"its format {entry.format!r} is not known here",
        )
        kind = (
            errors.UntrustedError
            if entry.format.startswith("pickle")
            else errors.DecodingError
        )
        msg = f"{path} cannot be read: {reason}"
        raise kind(msg, key=key, path=path)


def _refuse(data: bytes) -> NoReturn:
    """What `loads` is where pickles may not be read."""
    msg = "no pickle is read here"
    raise TypeError(msg)


def is_shared(entry: AnyEntry) -> bool:
    """The value has no file of its own, which would go with it."""
    return type(entry) is Packed or not entry.name


def is_small(entry: AnyEntry) -> bool:
    """The value lies in a pack or in the log."""
    return type(entry) is Packed or entry.value is not None
