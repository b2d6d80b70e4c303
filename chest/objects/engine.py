"""Values between memory and a store of objects.

Owns: when an object is got, put and asked for again, what of it is in memory, and in which
order this process puts one key's values. Does not own: the mapping that users see, exact
operations, what an object's bytes are, requests.

Invariants
----------
B1  A clean value in memory is that of the object with the etag in its slot's entry.
B2  Of one handle, all that puts or removes a key's object runs one at a time, under the
    key's own lock, and sees the newest value first: so an older one is never put last.
B3  A value is let go only after it was put, or was found equal to what was.

Locks, always in this order: a key's, the handle's. The handle's is never held during a
request; a key's is, because nothing else keeps two puts of one key in order.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
import time
from collections.abc import Hashable, Sequence
from typing import Any

from chest import errors, lifetime
from chest.engine import is_readonly_array
from chest.memory import Options, Slot, weigh
from chest.objects.ledger import EXPIRING, THREADS, ObjectLedger, about, is_over
from chest.objects.sealing import (
    END_NBYTES,
    GONE_NBYTES,
    Job,
    Stored,
)
from chest.settings import Settings
from chest.stores.objects import Found, Tag

__all__ = ["ObjectEngine"]

log = logging.getLogger("chest")

MOST_REFUSALS = 3  # in a row at exit, where values are put one by one
LARGE = 8 << 20  # bytes; such a value goes alone, in parts that go at a time


class ObjectEngine(ObjectLedger):
    """What moves values between memory and objects, for one handle."""

    def _start(self, address: str, options: Settings) -> None:
        """Open the store and take up work."""
        super()._start(address, options)
        lifetime.register(self)

    # -- from memory to the store ------------------------------------------------------

    def _keep_in_memory(
        self, key: Hashable, value: Any, options: Options | None = None
    ) -> None:
        """Take a value in, dirty."""
        weight = weigh(value)
        with self.lock:
            self._check_open()
            known = self._slots.get(key)
            self._memory.put(key, value, *weight, known, options)
        if self._memory.used > self._memory.budget:
            self._make_room(key)

    def _write_out(
        self, slots: Sequence[Slot], *, keep: bool, serial: bool = False
    ) -> list[tuple[Slot, Exception]]:
        # docstring inherited
        failed: list[tuple[Slot, Exception]] = []
        down: list[errors.StoreError] = []
        refusal = self._nesting.refusal()
        if refusal is not None:
            return [(slot, refusal) for slot in slots]
        most = MOST_REFUSALS if serial else THREADS

        def write(slot: Slot) -> None:
            if len(down) >= most:
                failed.append((slot, down[-1]))  # it would wait for nothing as well
                return
            try:
                self._write(slot, keep=keep)
            except errors.ChestError as error:
                failed.append((slot, error))
                if isinstance(error, errors.StoreError):
                    down.append(error)
            else:
                down.clear()

        small = [] if serial else [slot for slot in slots if slot.nbytes < LARGE]
        self._at_once(write, small)
        for slot in slots:
            if serial or slot.nbytes >= LARGE:
                write(slot)
        return failed

    def _write(self, slot: Slot, *, keep: bool) -> None:
        """Put one value if that is needed, and let it go."""
        name = self._name(slot.key)
        with about(slot.key), self._key_lock(name):
            with self.lock:
                if not slot.alive:
                    return  # replaced or removed meanwhile, which is dealt with there
                value = self._values[slot.key]
            changed = not slot.dirty and self._differs(name, slot, value)
            if self._settings.readonly:
                changed = False
            elif slot.dirty or changed:
                self._put_slot(name, slot, value)
            if not keep:
                with self.lock:
                    if not slot.dirty:
                        self._memory.drop(slot)

    def _put_slot(self, name: str, slot: Slot, value: Any) -> None:
        """Put the value of a slot. The key's lock is held."""
        old = None if slot.dirty else slot.entry
        assert old is None or isinstance(old, Stored)
        job = self._job(slot.key, value, slot.options, nbytes=slot.nbytes)
        if old is not None:  # it was changed in place
            job = job._replace(expires=old.expires, cost=old.cost, made=old.made)
            if not self._is_still(name, old):
                with self.lock:  # it gives way to what somebody has put since
                    self._memory.drop(slot)
                return
        with self._nesting.pickling(slot.key):
            entry = self._put_job(job)
        with self.lock:
            self._follow(name, slot.key, slot)
            slot.entry, slot.dirty = entry, False

    def _job(
        self,
        key: Hashable,
        value: Any,
        options: Options | None = None,
        expires: float | None = None,
        *,
        nbytes: int | None = None,
    ) -> Job:
        form, mapped = options or (None, None)
        if nbytes is None:
            plain, buffers = weigh(value)
            nbytes = plain + sum((buffers or {}).values())
        form, file_id = form or self._settings.format, secrets.token_hex(8)
        return Job(key, value, nbytes, form, file_id, mapped, expires)

    def _put_job(self, job: Job) -> Stored:
        """Put a value, whatever is there. The key's lock is held."""
        sealed = self._sealer.seal(job, self._store.url(self._name(job.key)))
        self._announce(job.expires)
        tag = self._store.put(sealed.name, sealed.data)
        self._count_written(len(sealed.data))
        return self._stamped(sealed.entry, tag)

    def _announce(self, expires: float | None) -> None:
        """Before the first value with a deadline: listings have to look for it."""
        if expires is not None and not self._expiring:
            self._store.put(EXPIRING, b"1")
            self._expiring = True

    def _count_written(self, nbytes: int) -> None:
        with self.lock:
            self._written += 1
            self._written_nbytes += nbytes

    def _is_still(self, name: str, entry: Stored) -> bool:
        """Nobody has put another object since; one request."""
        found = self._store.get_end(name, END_NBYTES)
        return found is not None and found.tag.etag == entry.etag

    def _differs(self, name: str, slot: Slot, value: Any) -> bool:
        """Whether a clean value was changed in place since it was put or got."""
        entry = slot.entry
        if slot.fixed or not isinstance(entry, Stored):
            return False
        with self._nesting.pickling(slot.key):
            now = self._sealer.digest(value, entry)
        if now == entry.digest:
            return False
        if now is None:
            return True
        # What comes back may pickle otherwise than what was put, without having been
        # changed: a set, say. So it is compared with what comes back now.
        found = self._store.get(name)
        if found is None or found.tag.etag != entry.etag:
            return True  # others replaced it: `_put_slot` knows what to do
        url = self._store.url(name)
        again, _ = self._sealer.open(found.data, name, slot.key, url)
        return now != self._sealer.digest(again, entry)

    # -- from the store to memory ------------------------------------------------------

    def _valid(self, key: Hashable) -> Slot | None:
        """The slot of *key* if its value may be served without asking."""
        slot = self._slots.get(key)
        if slot is None or slot.dirty:
            return slot
        entry = slot.entry
        if not isinstance(entry, Stored) or entry.until <= time.monotonic():
            return None
        return None if is_over(entry) else slot

    def _is_at_hand(self, key: Hashable) -> bool:
        # docstring inherited
        return self._valid(key) is not None

    def _fetch_missed(self, keys: Sequence[Hashable]) -> None:
        # docstring inherited
        self._at_once(lambda key: self._fetch(key, report=False), keys)

    def _fetch(
        self,
        key: Hashable,
        *,
        admit: bool = True,
        fresh: bool = False,
        report: bool = True,
    ) -> tuple[Any, Stored]:
        """The value of *key* and its entry, from the store unless memory has what is there.

        *fresh*: not the object that memory has. *report*: call the user's ``on_miss``.
        """
        self._check_open()
        name, slot = self._name(key), self._slots.get(key)
        turn = self._turn(name)
        old = slot.entry if slot is not None and not slot.dirty else None
        known = old if isinstance(old, Stored) and not fresh else None
        began = time.perf_counter()
        with about(key):
            found = self._store.get(name, unless=known.etag if known else "")
        if known and found and found.tag.etag == known.etag and not found.size:
            if not is_over(known):
                with self.lock:
                    if slot is self._slots.get(key) and slot is not None:
                        self._stamped(known, Tag(known.etag, known.version))
                        return self._values[key], known
            found = self._store.get(name)  # another thread has just let it go
        if found is not None and found.size > GONE_NBYTES:
            if report:
                self._settings.on_miss(key)
            value, entry = self._open(key, name, found)
            if not is_over(entry):
                entry.cost = entry.cost or time.perf_counter() - began
                if admit:
                    value = self._admit(key, value, entry, slot, turn)
                return value, entry
        self._let_go(slot)
        raise KeyError(key)

    def _open(
        self, key: Hashable, name: str, found: Found, *, private: bool = False
    ) -> tuple[Any, Stored]:
        """The value of an object that was got."""
        url = self._store.url(name)
        value, entry = self._sealer.open(found.data, name, key, url, private=private)
        with self.lock:
            self._loaded += 1
            self._loaded_nbytes += found.size
        return value, self._stamped(entry, found.tag)

    def _admit(
        self, key: Hashable, value: Any, entry: Stored, mine: Slot | None, turn: int
    ) -> Any:
        """Take a value that was got into memory, unless it is too large or too late.

        *mine* and *turn* are those of the key before it was asked for.
        """
        memory, weight = self._memory, weigh(value)
        with self.lock:
            known = self._slots.get(key)
            if known is not None and (known.dirty or known is not mine):
                return self._values[key]  # another thread set it, or was quicker
            if self._closed or turn != self._turn(self._name(key)):
                return value  # put or removed meanwhile: it is the caller's only
            options = (entry.format, entry.mapped)
            slot = memory.put_clean(key, value, weight, entry, known, options)
            slot.cost = entry.cost
            if is_readonly_array(value):
                slot.fixed = True
        if memory.used > memory.budget:
            self.shrink()
        return value

    def _let_go(self, slot: Slot | None) -> None:
        """Forget a clean value that is not there any more."""
        if slot is not None and not slot.dirty:
            with self.lock:
                self._memory.drop(slot)

    # -- the end -----------------------------------------------------------------------

    def _sync(self, *, keep: bool) -> None:
        # docstring inherited
        self._check_open()
        with self.lock:
            slots = self._memory.unwritten()
        self._raise_first(self._write_out(slots, keep=keep))

    def _put_last(self, *, serial: bool) -> None:
        """Put all that is this process's to put: not what a forked child inherited."""
        with self.lock:  # other threads may be setting values still
            slots = [each for each in self._memory.unwritten() if not each.inherited]
        self._raise_first(self._write_out(slots, keep=False, serial=serial))

    def _release(self) -> None:
        """Give up memory, and a temporary folder."""
        lifetime.forget(self)
        self._closed = True
        self._memory.clear()
        self._deadlines.clear()
        if self._temporary and self._pid == os.getpid():
            self._store.remove_folder()

    # -- lifetime ----------------------------------------------------------------------

    def after_fork_in_child(self) -> None:
        """Stop sharing locks; what is dirty is the parent's to put."""
        self._make_locks()
        for slot in self._slots.values():
            slot.inherited = slot.dirty

    def at_exit(self) -> None:
        """Put what is dirty; never raises."""
        if self._closed:
            return
        try:
            if not self._settings.readonly and not self._temporary:
                # No threads can be started any more.
                self._put_last(serial=True)
        except Exception:  # the interpreter ends: a log line is all that is left
            log.exception("%s: some values could not be put at exit", self.path)
        with contextlib.suppress(errors.ChestError):  # in a forked child
            self._release()
