"""Arrays with a folder of their own: written, read, checked, taken over.

Owns: the way of an array to its folder and back. Does not own: what is in the folder
(`chest.formats.zarr_`, loaded with the first array), and values with a file each.
"""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import Hashable, Iterable, Iterator
from types import ModuleType
from typing import Any

from chest import errors, keys, pieces
from chest.folder import SEAL, SPARE, refused
from chest.index import AnyEntry
from chest.records import Entry
from chest.small import SmallTier
from chest.stores.local import FolderDraft

__all__ = ["ArrayTier", "is_folder", "reading", "zarr_"]

log = logging.getLogger("chest")

MOST_SPARES = 16  # replaced folders that are kept for the next changes


class ArrayTier(SmallTier):
    """The folders of one chest.

    A folder that a change replaced is kept for the next change of the key, which then
    links what the last one changed and not every file. It is named after the value that
    it was replaced by, and is no draft of anybody: whoever changes that value may take it,
    a sweep remove it.
    """

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self._spares: dict[Hashable, str] = {}  # that this process made, the last ones

    @staticmethod
    def is_array(value: object) -> bool:
        """Whether *value* can have a folder and come back exactly."""
        # By name first, so that nothing is loaded for what is none.
        return type(value).__name__ == "ndarray" and zarr_().is_exact(value)

    @contextlib.contextmanager
    def opened(self, key: Hashable, entry: AnyEntry) -> Iterator[tuple[int, Any]]:
        """The folder of a value and its seal, in a block in which nobody removes it.

        Raises
        ------
        FileNotFoundError
            It is gone: look at the manifest again.
        CorruptValueError
            It is not what was published.
        StoreError
            The disk refused.
        """
        assert type(entry) is Entry
        fd = self.hold(key, entry)
        try:
            yield fd, self.seal(fd, key, entry)
        finally:
            self.store.home.close_folder(fd)

    def hold(self, key: Hashable, entry: AnyEntry) -> int:
        """Open the folder of a value, which stays as long as the descriptor is open.

        Raises as `opened`.
        """
        path = self.store.home.join(entry.name)
        try:
            return self.store.home.open_folder(entry.name)
        except FileNotFoundError:
            raise
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR):
                msg = f"{path}, the value of {errors.short(key)}, is no folder"
                raise errors.CorruptValueError(msg, key=key, path=path) from error
            raise refused(error, path, "could not be opened", key) from error

    def seal(self, fd: int, key: Hashable, entry: AnyEntry) -> Any:
        """The seal of an open folder, which must be the entry's."""
        assert type(entry) is Entry
        path = self.store.home.join(entry.name)
        with reading(path, key):
            seal = zarr_().read_seal(fd, path, key)
        if seal.file_id != entry.file_id:
            raise zarr_().damaged(path, key, "it belongs to another value")
        return seal

    def draft_entry(
        self, key: Hashable, draft: FolderDraft, seal: Any, digest: str, **facts: Any
    ) -> Entry:
        """Seal a filled draft and return its entry.

        Raises
        ------
        OSError
            The disk refused.
        """
        size = seal.nbytes + zarr_().write_seal(draft.fd, seal)
        draft.finish(sync=self.manifest.sync)
        return Entry(
            keys.encode(key),
            size=size,
            digest=digest,
            format="zarr",
            file_id=seal.file_id,
            **facts,
        )

    def next_draft(self, seal: Any, base: int) -> tuple[FolderDraft, set[str]]:
        """A draft for another generation of an open folder, and what it has of it.

        Raises
        ------
        OSError
            The disk refused.
        """
        draft = self.store.draft_from(f"{SPARE}{seal.file_id}")
        if draft is None:
            return self.store.folder_draft(), set()
        try:
            return draft, pieces.common_files(draft.fd, base)
        except BaseException:
            draft.discard()
            raise

    def keep_folder(
        self, key: Hashable, name: str, file_id: str, stale: Iterable[str]
    ) -> list[str]:
        """Keep a replaced folder, without its *stale* files, for the next change.

        Returns the names of folders that are left to `delete`: those that somebody
        reads, and the oldest where there are many.
        """
        draft = self.store.draft_from(name)
        if draft is None:
            return [name]
        # Gone, if it was taken; not, if another process changed the key before it came.
        left = [self._spares.pop(key, "")]
        self.keep_draft(key, draft, file_id, (SEAL, *stale))
        left += [self._spares.pop(old, "") for old in [*self._spares][:-MOST_SPARES]]
        return [name for name in left if name]

    def keep_draft(
        self, key: Hashable, draft: FolderDraft, file_id: str, stale: Iterable[str]
    ) -> None:
        """Keep an unpublished folder, without its *stale* files, for the next change."""
        spare = f"{SPARE}{file_id}"
        try:
            draft.keep(spare, stale)
        except OSError as error:
            log.info("%s is not kept: %s", draft.path, error)
            draft.discard()
            return
        self._spares.pop(key, None)
        self._spares[key] = spare

    def spares(self) -> list[str]:
        """The names of the folders that were kept, for `delete`; they are forgotten."""
        kept, self._spares = self._spares, {}
        return [*kept.values()]

    def load_array(self, key: Hashable, entry: AnyEntry, *, readonly: bool) -> Any:
        """The whole array of a folder."""
        path = self.store.home.join(entry.name)
        with self.opened(key, entry) as (fd, seal), reading(path, key):
            store = zarr_().FolderStore(path, key, seal.pieces, base=fd)
            value = zarr_().load(store, seal)
        if readonly:
            value.flags.writeable = False
        self.loaded += 1
        self.loaded_bytes += entry.size
        return value

    def check_array(self, key: Hashable, entry: AnyEntry) -> None:
        """Read every byte of a folder; raises what `load_array` would."""
        path = self.store.home.join(entry.name)
        with self.opened(key, entry) as (fd, seal), reading(path, key):
            zarr_().check(zarr_().FolderStore(path, key, seal.pieces, base=fd))

    def link_array(
        self, key: Hashable, theirs: ArrayTier, entry: AnyEntry, draft: FolderDraft
    ) -> None:
        """Fill a draft with hard links to another chest's folder, or with copies."""
        path = theirs.store.home.join(entry.name)
        with theirs.opened(key, entry) as (fd, seal):
            store = zarr_().FolderStore(path, key, seal.pieces, base=fd, draft=draft.fd)
            store.link_rest()
            # Not a link: who changes the array holds the lock of its own seal.
            zarr_().write_seal(draft.fd, seal)
        draft.finish(sync=self.manifest.sync)


def is_folder(entry: AnyEntry) -> bool:
    """The value lies in a folder of its own."""
    return entry.format == "zarr"


def zarr_() -> ModuleType:
    """The format, loaded when it is first needed: zarr takes some 0.3 s."""
    from chest.formats import zarr_ as module

    return module


@contextlib.contextmanager
def reading(path: str, key: object) -> Iterator[None]:
    """Raise what the system says within the block as `StoreError`."""
    try:
        yield
    except OSError as error:
        if isinstance(error, errors.ChestError):
            raise
        raise refused(error, path, "could not be read", key) from error
