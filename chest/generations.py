"""The folders of an array that is changed, a generation for each change.

Owns: whose turn it is to change a key, what a change writes anew and what it links, its
publication. Does not own: how zarr keeps an array, how folders are named.

Invariants
----------
A1  A published folder is never changed: a change fills another one, with hard links to
    the files that stay as they are, and publishes it. It may be the one that the last
    change replaced, once it has lost its name and nobody has it open.
A2  Who changes a key holds the lock of the seal of its present folder, and looks again
    once it has it. So changes of one key come one after the other, between processes too.
A3  Who reads holds a shared lock of the folder; nobody removes it meanwhile.
"""

from __future__ import annotations

import contextlib
import os
import threading
import weakref
from collections.abc import Hashable, Iterator
from typing import Any, Self

from chest import errors, keys, system
from chest.arraytier import is_folder, reading, zarr_
from chest.errors import short
from chest.folder import SEAL, refusals
from chest.index import AnyEntry, same
from chest.readtier import missing
from chest.records import Entry
from chest.spill import Written
from chest.upkeep import Upkeep

__all__ = ["MOST_LOOKS", "Filling", "folder_entry", "pinned", "too_fast", "turn"]

FEWEST_KEPT = 32  # files of a replaced folder that is worth keeping
MOST_LOOKS = 100  # times an array is followed that others keep replacing

_turns: dict[tuple[int, int], int] = {}  # seal (device, inode) → thread that holds it


class Filling:
    """A new folder for an array, until it is published.

    Parameters
    ----------
    chest : Chest
    key : Hashable
    seal : Seal, optional
        Of the array that is changed.
    base : int
        Descriptor of its folder.

    Attributes
    ----------
    store : FolderStore
        For zarr.
    """

    def __init__(
        self, chest: Upkeep, key: Hashable, seal: Any = None, base: int = -1
    ) -> None:
        spill = chest._spill
        spill.manifest.check_writable()
        self._chest, self._key = chest, key
        with refusals(chest.path, "takes no new folder", key):
            linked: set[str] = set()
            if seal is None:
                self._draft = spill.store.folder_draft()
            else:
                self._draft, linked = spill.next_draft(seal, base)
        self._seal = seal or zarr_().Seal()
        pieces = self._seal.pieces
        self.store = zarr_().FolderStore(
            self._draft.path,
            key,
            pieces,
            base=base,
            draft=self._draft.fd,
            linked=linked,
        )
        # Copied: a group of changes may end as it began.
        self._before = dict(pieces)

    def keep_layout(self, dtype: Any, flags: Any = None) -> None:
        """Have the array given back in the byte and memory order of its source."""
        if not dtype.isnative:
            self._seal.dtype = dtype.str
        if flags is not None and flags.f_contiguous and not flags.c_contiguous:
            self._seal.order = "F"

    def leave(self) -> None:
        """Leave the folder to the process that fills it."""
        self._draft.release()

    @property
    def changed(self) -> bool:
        """There is something to publish."""
        return bool(self.store.pieces != self._before)

    def publish(self, nbytes: int, base: AnyEntry | None = None) -> list[str]:
        """Seal and publish the folder; returns names to delete.

        Parameters
        ----------
        nbytes : int
            Of the array in memory.
        base : AnyEntry, optional
            What the key must still be.
        """
        chest, key, seal = self._chest, self._key, self._seal
        self.store.end()
        new = zarr_().Seal(
            key=keys.text(key),
            file_id=chest._spill.new_file_id(),
            dtype=seal.dtype,
            order=seal.order,
            pieces=self.store.pieces,
        )
        with refusals(self._draft.path, "could not be written", key):
            self.store.link_rest()
            entry = chest._spill.draft_entry(
                key, self._draft, new, new.digest(), nbytes=int(nbytes)
            )
        self._file_id = entry.file_id
        return self._append(entry, base)

    def keep(self, replaced: list[str]) -> list[str]:
        """Keep the folder that was replaced for the next change, where links are many.

        Parameters
        ----------
        replaced : list of str
            From `publish`: the folder comes first.

        Returns
        -------
        list of str
            Names to delete.
        """
        before, now = self._before, self.store.pieces
        if len(before) < FEWEST_KEPT or any("/" in name for name in before):
            return replaced
        stale = [name for name, piece in before.items() if now.get(name) != piece]
        folder, *more = replaced
        spill = self._chest._spill
        return spill.keep_folder(self._key, folder, self._file_id, stale) + more

    def _append(self, entry: Entry, base: AnyEntry | None) -> list[str]:
        chest, key = self._chest, self._key
        with chest._publishing(alone=True):
            known = chest._manifest.index.get(key)
            if base is not None:
                if known is None:
                    raise KeyError(key)
                if not same(known, base):
                    raise too_fast(chest, key)
                entry.mapped, entry.expires = known.mapped, known.expires
            slot = chest._slots.get(key)
            entry.birth = chest._birth_of(key)
            replaced = chest._spill.publish([Written(key, entry, self._draft)])
            if slot is not None and not (base is not None and slot.dirty):
                chest._forget_slots([key])
        return replaced

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """Remove what was not published."""
        draft, store = self._draft, self.store
        if draft.fd < 0:
            return
        store.end()
        if store.linked:
            # Its links serve the next change.
            spill, file_id = self._chest._spill, self._seal.file_id
            spill.keep_draft(self._key, draft, file_id, store.fresh)
        draft.discard()


def folder_entry(chest: Upkeep, key: Hashable) -> Entry:
    """The entry of an array in a folder; what is newer in memory is published first.

    Raises
    ------
    KeyError
        There is no such key.
    TypeError
        Its value is no array in a folder.
    """
    chest._look()
    slot = chest._slots.get(key)
    if slot is not None and slot.dirty:
        chest._raise_first(chest._write_out([slot], keep=True))
    entry = chest._manifest.index.get(key)
    if entry is None:
        raise KeyError(key)
    if not is_folder(entry):
        msg = (
            f"the value of {short(key)} is no zarr array but has the format "
            f"{entry.format!r}: c.set(key, c[key], format='zarr') makes it one, if it is "
            f"an array of numbers"
        )
        raise TypeError(msg)
    assert type(entry) is Entry
    return entry


def pinned(chest: Upkeep, key: Hashable, entry: AnyEntry) -> tuple[Any, Any]:
    """Zarr's read-only array of an entry, and its seal; readable as long as it lives.

    Raises
    ------
    FileNotFoundError
        The folder is gone, and the entry with it: look again.
    CorruptValueError
        The folder is gone, or it is not what was published.
    """
    spill = chest._spill
    path = spill.store.home.join(entry.name)
    try:
        fd = spill.hold(key, entry)
    except FileNotFoundError as error:
        chest.refresh()
        if same(chest._manifest.index.get(key), entry):
            raise missing(path, key, error) from error
        raise
    try:
        seal = spill.seal(fd, key, entry)
        store = zarr_().FolderStore(path, key, seal.pieces, base=fd)
    except errors.CorruptValueError as error:
        system.close(fd)
        chest.refresh()
        if same(chest._manifest.index.get(key), entry):
            raise
        # A newer generation has the name: look again.
        raise FileNotFoundError(path) from error
    except BaseException:
        system.close(fd)
        raise
    weakref.finalize(store, system.close, fd).atexit = False
    with reading(path, key):
        return zarr_().open_array(store, seal.order), seal


@contextlib.contextmanager
def turn(chest: Upkeep, key: Hashable) -> Iterator[tuple[Entry, int]]:
    """Be the only one that changes *key* (A2); its entry and its open folder."""
    for _ in range(MOST_LOOKS):
        entry = folder_entry(chest, key)
        try:
            turn = chest._spill.store.home.open(f"{entry.name}/{SEAL}")
        except FileNotFoundError as error:
            chest.refresh()
            if same(chest._manifest.index.get(key), entry):
                path = chest._spill.store.home.join(entry.name)
                raise missing(path, key, error) from error
            continue
        try:
            with _locked(chest, key, turn):
                chest.refresh()
                if not same(chest._manifest.index.get(key), entry):
                    continue  # somebody was quicker: its folder is the one to wait for
                try:
                    fd = chest._spill.hold(key, entry)
                except FileNotFoundError:
                    continue  # replaced just now: the next look tells
                try:
                    yield entry, fd
                finally:
                    chest._spill.store.home.close_folder(fd)
                return
        finally:
            system.close(turn)
    raise too_fast(chest, key)


@contextlib.contextmanager
def _locked(chest: Upkeep, key: Hashable, turn: int) -> Iterator[None]:
    status = os.fstat(turn)
    seal = (status.st_dev, status.st_ino)
    if _turns.get(seal) == threading.get_ident():
        msg = (
            f"this thread is changing {short(key)} already, in a with block that it would "
            f"wait for: use the object of that block"
        )
        raise RuntimeError(msg)
    if not system.lock(turn, chest._settings.timeout):
        msg = f"{short(key)} in {chest.path} is being changed by {system.holder(turn)}"
        raise errors.LockTimeout(msg, key=key, path=chest.path)
    _turns[seal] = threading.get_ident()
    try:
        yield
    finally:
        del _turns[seal]


def too_fast(chest: Upkeep, key: Hashable) -> errors.StoreError:
    """The error where others keep replacing a value, or have replaced it."""
    msg = (
        f"{short(key)} in {chest.path} was set by somebody else meanwhile; its array is "
        f"not changed"
    )
    return errors.StoreError(msg, key=key, path=chest.path)
