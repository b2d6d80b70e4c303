"""The engine of a chest: the memory tier over the spill tier, and when what is published.

Owns: the locks' order, publication, spilling, loading, what a fork and an exit do. Does
not own: the mapping that users see, sizes, victims, files, records.

No lock is held while a value is encoded, written, read or decoded.

Invariants
----------
C3  A value written without the lock is published only if memory still holds the very
    same slot.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from collections.abc import Hashable, Sequence
from typing import Any

from chest import errors, lifetime, system
from chest.base import INDEX
from chest.batches import Packed
from chest.errors import short
from chest.folder import (
    DAMAGED,
    HOST,
    LOCK,
    OF_QUEUE,
    PACK,
    QUEUE_STATE,
    TEMPORARY,
    Folder,
    refusals,
)
from chest.index import AnyEntry, Index, same
from chest.keeper import kept_by_allocator
from chest.ledger import NOTHING_COUNTED, Changed, generation
from chest.log import MOVED, NAME
from chest.memory import PICKLED, Options, Slot, Weight
from chest.packing import Packing
from chest.readtier import Loaded, missing
from chest.records import WORD
from chest.settings import Settings
from chest.sizing import SCALARS, measure
from chest.spill import MOST_DRAFTS, Job, Written

__all__ = ["Engine", "is_readonly_array"]

log = logging.getLogger("chest")

MISSING: Any = object()
OTHERS = (INDEX, LOCK, HOST)  # files of chest's that belong to no value
MOST_SWEEPS = 5  # times that a temporary folder is removed
MOST_LOOKS = 100  # times a reader follows a key that others keep replacing


class Engine(Packing):
    """What moves values between memory and disk, for one chest.

    Parameters
    ----------
    path : str, PathLike or None
        The folder; None: a temporary one, removed at the end.
    settings : Settings
    """

    __slots__ = ()

    def _start(self, path: str | os.PathLike[str] | None, settings: Settings) -> None:
        """Open the folder and take up work."""
        super()._start(path, settings)
        lifetime.register(self)

    # -- from memory to disk -----------------------------------------------------------

    def _check_settable(
        self, key: Hashable, value: object, options: Options | None
    ) -> None:
        """Refuse now what could not be written later."""
        self._manifest.check_writable()
        if type(value) not in SCALARS:
            form = (options or (None,))[0] or self._settings.format
            self._spill.check_storable(key, value, form)

    def _write_out(
        self, slots: Sequence[Slot], *, keep: bool
    ) -> list[tuple[Slot, Exception]]:
        # docstring inherited
        failed: list[tuple[Slot, Exception]] = []
        self._nesting.begin()
        refusal = self._nesting.refusal()
        if refusal is not None:
            return [(slot, refusal) for slot in slots]
        changed = [slot for slot in slots if slot.dirty or not slot.fixed]
        if not keep and len(changed) < len(slots):
            self._drop_clean([slot for slot in slots if slot.fixed])
        slots = self._pack_out(changed, failed, keep=keep)
        for start in range(0, len(slots), MOST_DRAFTS):
            batch = slots[start : start + MOST_DRAFTS]
            failed += self._write_batch(batch, keep=keep)
            if not keep:
                self._drop_clean(batch, {id(slot) for slot, _ in failed})
        return failed

    def _write_batch(
        self, slots: Sequence[Slot], *, keep: bool
    ) -> list[tuple[Slot, Exception]]:
        """One group of `_write_out`: encoded without a lock, published in one record."""
        failed: list[tuple[Slot, Exception]] = []
        if self._settings.readonly:
            return failed  # nothing is dirty; what is changed in place is not kept
        with self._quiet():
            here = self._taken(slots)
        todo: list[tuple[Slot, Any]] = []
        for slot, value in here:
            try:
                if slot.dirty or self._differs(slot, value):
                    todo.append((slot, value))
            except errors.ChestError as error:
                failed.append((slot, error))
        if not todo:
            return failed
        written: list[tuple[Slot, Written]] = []
        jobs = [self._job(slot, value) for slot, value in todo]
        inline = self._inlined(jobs) if keep else None
        results: Sequence[Written | Exception]
        results = self._spill.encode_many(jobs) if inline is None else inline
        for (slot, _), result in zip(todo, results, strict=True):
            if isinstance(result, Exception):
                failed.append((slot, result))
            else:
                written.append((slot, result))
        try:
            self._publish(written)
        except errors.ChestError as error:
            failed += [(slot, error) for slot, _ in written]
        finally:
            self._spill.discard(result for _, result in written)  # if not published
        return failed

    def _publish(self, written: Sequence[tuple[Slot, Written]]) -> None:
        """Publish those whose slot is still the one that was written (C3)."""
        if not written:
            return
        with self._publishing(alone=True):
            current, stale = [], []
            for slot, result in written:
                known = self._manifest.index.get(slot.key)
                # A value that was changed in place, or that a forked child inherited,
                # gives way to what somebody published since.
                old = slot.inherited or not slot.dirty
                entry = slot.entry
                same = entry and entry.digest and entry.digest == result.entry.digest
                if not slot.dirty and same:
                    stale.append(result)  # written to compare it: it was not changed
                    continue
                if self._is_in_conflict(slot, known):
                    stale.append(result)  # the hook is to be asked first
                    continue
                lost = old and generation(known) != generation(slot.entry)
                if lost or not (slot.alive or self._may_precede(slot, known)):
                    stale.append(result)
                    if lost:
                        self._fresh.pop(slot.key, None)
                        self._memory.drop(slot)
                    continue
                result.entry.birth = self._birth_of(slot.key)
                if not slot.dirty and slot.entry is not None:
                    result.entry.expires = slot.entry.expires  # changed in place
                current.append((slot, result))
            replaced = self._spill.publish([result for _, result in current])
            for slot, result in current:
                slot.entry = result.entry
                slot.dirty = slot.inherited = False
                self._fresh.pop(slot.key, None)
        self._spill.discard(stale)
        self._spill.delete(replaced)
        self._written_more()

    def _job(self, slot: Slot, value: Any) -> Job:
        form, mapped = slot.options or (None, None)
        return Job(
            slot.key,
            value,
            0,  # its birth is known when it is published
            slot.nbytes,
            slot.cost,
            form or self._settings.format,
            mapped,
        )

    def _differs(self, slot: Slot, value: Any) -> bool:
        """Whether a clean value was changed in place since it was written or read."""
        if slot.fixed or slot.entry is None:
            return False
        with self._nesting.pickling(slot.key):
            now = self._spill.digest(value, slot.entry)
        try:
            if now == self._spill.stored_digest(slot.key, slot.entry):
                return False
        except FileNotFoundError:
            return True  # others replaced it or moved it: publication knows which
        if now is None:
            return (
                True  # it cannot be told without writing, or it can be written no more
            )
        # What is read back may pickle otherwise than what was written, without having
        # been changed: a set, say. So it is compared with what is read back now.
        try:
            stored = self._spill.read(slot.key, slot.entry, "r")
        except (FileNotFoundError, RuntimeError):
            return True  # as above; or zarr is without threads at exit: written anew
        return now != self._spill.digest(stored.value, slot.entry)

    # -- from disk to memory -----------------------------------------------------------

    def _load(  # noqa: C901, PLR0912 - a call more for each part would cost a tenth
        self, key: Hashable, entry: AnyEntry, index: Index, records: int
    ) -> Any:
        """The value of a key that is not in memory.

        *entry* was found in *index*, which had seen so many *records*.
        """
        if self._on_miss is not None:
            self._on_miss(key)
        if type(entry) is not Packed:
            return self._load_alone(key, entry)
        # What `ReadTier.read`, `_admit` and `MemoryTier.came` do, without the calls and
        # without what only others need: the way of every small value that is read.
        spill, memory, values = self._spill, self._memory, self._values
        try:
            data = spill.packs.read(entry, key)
            value = spill.loads(data)
        except Exception:  # noqa: BLE001 - raised there, unless it was replaced or moved
            return self._load_alone(key)
        spill.loaded += 1
        spill.loaded_bytes += len(data)
        if type(value) in SCALARS:
            plain, buffers = value.__sizeof__(), None  # what `getsizeof` asks, for less
        else:
            plain, buffers = measure(value)
        self._acquire()
        try:
            if key in values:
                return values[key]  # another thread was quicker
            now = self._manifest.index
            if self._closed or (
                (now is not index or now.records != records)
                and not same(now.get(key), entry)
            ):
                pass  # closed, or replaced, meanwhile: it is the caller's only
            elif buffers is None and plain <= memory.budget:
                if memory.newest or memory.touched:
                    memory.note()
                values[key] = value
                memory.uses.append(key)
                memory.used += plain
            else:
                memory.put_clean(key, value, (plain, buffers), entry, None, PICKLED)
        except BaseException as error:
            self._cut_short(error)
            raise
        finally:
            self._unlock()
        if memory.used > memory.budget:
            self.shrink()
        return value

    def _load_alone(self, key: Hashable, entry: AnyEntry | None = None) -> Any:
        """`_load` for a value that has a file, or lies in the log."""
        value, entry, loaded = self._read(key, None, entry)
        return self._admit(
            key, value, entry, loaded.weight, loaded.seconds, readonly=loaded.mapped
        )

    def _report_miss(self, key: Hashable, entry: AnyEntry | None) -> None:
        """Tell the user's hook that a value is read from disk, if there is one."""
        if self._on_miss is not None and entry is not None:
            self._on_miss(key)

    def _read(
        self,
        key: Hashable,
        mapped: str | None = None,
        entry: AnyEntry | None = None,
    ) -> tuple[Any, AnyEntry, Loaded]:
        """Read the value of *key*, following it when others replace it meanwhile.

        *entry* is what the manifest has just said, if it was asked.
        """
        before: AnyEntry | None = None
        for _ in range(MOST_LOOKS):
            entry = entry or self._manifest.index.get(key)
            if entry is None:
                self._check_open()  # else it was in memory, which is empty now
                raise KeyError(key)
            try:
                loaded = self._spill.read(key, entry, mapped or self._mapped(entry))
            except (FileNotFoundError, errors.CorruptError) as error:
                # Replaced between the look and the open: look again. The very same
                # entry twice means that the file itself is at fault.
                if same(before, entry):
                    if isinstance(error, errors.CorruptError):
                        raise
                    path = self._spill.store.home.join(entry.name)
                    raise missing(path, key, error) from error
                before, entry = entry, None
                self.refresh()
                continue
            if self._settings.available_disk is not None:
                self._spill.store.used(entry.name)
            return loaded.value, entry, loaded
        raise self._too_fast(key)

    def _too_fast(self, key: Hashable) -> errors.StoreError:
        msg = f"{short(key)} in {self.path} is replaced faster than it can be followed"
        return errors.StoreError(msg, key=key, path=self.path)

    def _admit(
        self,
        key: Hashable,
        value: Any,
        entry: AnyEntry,
        weight: Weight,
        seconds: float,
        *,
        readonly: bool = False,
    ) -> Any:
        """Take a value that was read into memory, unless it is too large or too late."""
        memory = self._memory
        self._acquire()
        try:
            if key in self._values:
                return self._values[key]  # another thread was quicker: one for all
            if self._closed or not same(self._manifest.index.get(key), entry):
                return value
            options = (entry.format, entry.mapped)
            slot = memory.put_clean(key, value, weight, entry, None, options)
            slot.cost = entry.cost or seconds
            if readonly and is_readonly_array(value):
                slot.fixed = True
        except BaseException as error:
            self._cut_short(error)
            raise
        finally:
            self._unlock()
        if memory.used > memory.budget:
            self.shrink()
        return value

    def _is_at_hand(self, key: Hashable) -> bool:
        # docstring inherited
        return key in self._slots

    def _fetch_missed(self, keys: Sequence[Hashable]) -> None:
        # docstring inherited
        for key in keys:
            self._load_alone(key)

    def _mapped(self, entry: AnyEntry) -> str | None:
        """How a value may use the map of its file."""
        mapped = entry.mapped or self._settings.mapped
        return None if mapped in (False, "no") else str(mapped)

    # -- the end -----------------------------------------------------------------------

    def _sync(self, *, keep: bool) -> None:
        # docstring inherited
        self._check_open()
        refusal = self._nesting.refusal()
        if refusal is not None:
            raise refusal
        memory, before = self._memory, self._memory.used
        self._pack_bare(keep=keep)
        with self._quiet():
            if not keep:
                memory.drop_bare()
            leaving = before - memory.used
            slots = memory.unwritten()
        failed = self._write_out(slots, keep=keep)
        if not keep:
            self._give_back(leaving + kept_by_allocator(slots))
        self._raise_first(failed)
        if self._settings.readonly:
            return
        self._tidy(settle=not keep)

    def _release(self) -> None:
        """Give up the descriptors, and a temporary folder."""
        lifetime.forget(self)
        self._closed = True
        self._memory.clear()
        # Who is just setting something, and made to close, comes to `_make_room`.
        self._memory.budget = -1
        self._fresh.clear()
        self._spill.close()
        self._word, self._counted = Changed(), NOTHING_COUNTED
        if not self._explicitly_given_path and self._pid == os.getpid():
            for _ in range(MOST_SWEEPS):  # a thread may just be making a file in it
                shutil.rmtree(self.path, ignore_errors=True)
                if not os.path.isdir(self.path):
                    break

    def _remove_files(self) -> None:
        """Delete what chest made in the folder, and close."""
        home = self._spill.store.home
        with contextlib.ExitStack() as held:
            held.enter_context(self._publishing(alone=True))
            # All of them before anything goes: then nothing has to be waited for.
            queues = []
            for name in home.queues():
                queue = _lock_queue(home.join(name), self._settings.timeout)
                held.callback(queue.close)
                queues.append(queue)
            names = self._manifest.index.names()
            # Killed from here on, it is an empty chest: values without a manifest would
            # look like a damaged one. A full disk takes no record, but deletions.
            with contextlib.suppress(errors.StoreError):
                self._spill.remove_all()
            self._spill.delete(names)
            # Also those that others still append to: without a manifest they would look
            # like a damaged chest.
            for name in list(home.names()):
                if name.startswith(PACK):
                    home.unlink(name, missing_ok=True)
            self._manifest.mark_moved()
            home.unlink(NAME, missing_ok=True)
            for name in list(home.names()):
                if name.startswith((TEMPORARY, DAMAGED)) or name in OTHERS:
                    self._spill.store.delete(name)
            for queue in queues:
                _drop_queue(queue)
        self._release()

    def _log_grew(self) -> None:
        # docstring inherited
        if self.lock._is_owned() or self._closed:  # type: ignore[attr-defined]
            return  # a later publication comes here
        self._manifest.overgrown = gone = False
        try:
            self._tidy()
        except (errors.ClosedError, errors.DroppedError) as error:
            gone = True  # by another thread, or another process
            log.info("%s was not tidied up: %s", self.path, error)
        except errors.ChestError as error:
            # Whoever published has done so; the next who does as much tries again.
            log.warning("%s was not tidied up: %s", self.path, error)
        if gone or self._closed:
            # What was begun here may have kept a dropped chest's folder from going.
            with contextlib.suppress(OSError):
                self._remove_empty()

    def _remove_empty(self) -> None:
        """Remove the folder if nothing is in it, unless somebody has made another."""
        status = os.stat(self.path)
        if (status.st_dev, status.st_ino) == self._manifest._identity:
            os.rmdir(self.path)

    def _remove_folder(self) -> None:
        """Delete the folder of a closed chest when nothing is in it."""
        # Closed, because NFS and FUSE keep a deleted file as long as somebody has it
        # open, under a name of their own in the folder.
        try:
            self._remove_empty()
        except FileNotFoundError:
            pass  # a temporary one, which goes when it is closed
        except OSError:
            log.info("%s is left: files in it are not chest's", self.path)

    # -- lifetime ----------------------------------------------------------------------

    def after_fork_in_child(self) -> None:
        """Stop sharing locks and descriptors; what is dirty is the parent's to write."""
        self._make_lock()
        if self._closed:
            return
        self._spill.after_fork()
        for slot in self._memory.unwritten():
            slot.inherited = slot.dirty

    def _write_last(self, slots: Sequence[Slot]) -> list[tuple[Slot, Exception]]:
        """`_write_out` at exit, where no error of one value may cost others theirs."""
        try:
            return self._write_out(slots, keep=False)
        except Exception as error:  # noqa: BLE001 - logged by the caller
            if len(slots) <= 1:
                return [(slot, error) for slot in slots]
            half = len(slots) // 2
            return self._write_last(slots[:half]) + self._write_last(slots[half:])

    def at_exit(self) -> None:
        """Publish what is dirty, remove a temporary folder; never raises."""
        if self._closed:
            return
        with self.lock:  # other threads may be setting values still
            try:
                ours = self._explicitly_given_path or self._pid != os.getpid()
                if ours and not self._settings.readonly:
                    slots = [s for s in self._memory.unwritten() if not s.inherited]
                    failed = self._write_last(slots)
                    # Where another process dropped the chest nothing lies in the log.
                    with contextlib.suppress(errors.DroppedError):
                        self._settle()
                    self._raise_first(failed)
            except Exception:  # the interpreter ends: a log line is all that is left
                log.exception("%s: some values could not be written at exit", self.path)
            self._release()


def _lock_queue(path: str, timeout: float | None) -> Folder:
    """A queue that lies in the chest's folder, kept from everyone."""
    with refusals(path, "could not be locked"):
        home = Folder(path)
        try:
            if home.lock(timeout):
                return home
            msg = (
                f"{path}, a queue in the chest's folder, is locked by {home.holder()}; "
                f"waited {timeout} s. Pass a longer timeout, or end that process"
            )
            raise errors.LockTimeout(msg, path=path)
        except BaseException:
            home.close()
            raise


def _drop_queue(home: Folder) -> None:
    """Delete a queue that is locked, for everyone."""
    names = [name for name in home.names() if name.startswith(OF_QUEUE)]
    try:
        if QUEUE_STATE in names:
            # First, so that nobody goes on in files without a name.
            fd = home.open(QUEUE_STATE, os.O_RDWR)
            try:
                system.pwrite_all(fd, MOVED, WORD.start)
            finally:
                system.close(fd)
        for name in sorted(names, key=lambda name: name == QUEUE_STATE):
            home.unlink(name, missing_ok=True)
        os.rmdir(home.path)
    except OSError as error:
        # The chest is gone already, and the queue's name and state go last.
        log.info("%s is left: %s", home.path, error)


def is_readonly_array(value: object) -> bool:
    """A mapped array of numbers: nobody can change it in place."""
    flags = getattr(value, "flags", None)
    return type(value).__name__ == "ndarray" and not getattr(flags, "writeable", True)
