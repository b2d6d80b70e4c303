"""Operations that read and write in one step, for all processes.

Owns: transactions, insertion if absent, deadlines: what is published when the call
returns, or did not happen. Does not own: counters, the mapping, or how values move.

A value is encoded before the lock is taken where it is known before; what depends on the
present value is small, or the user's to keep small.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from itertools import islice
from typing import Any, TypeVar

from chest import errors, expiry
from chest.counters import Counters
from chest.engine import is_readonly_array
from chest.index import AnyEntry, same
from chest.ledger import generation
from chest.publications import New
from chest.sizing import SCALARS
from chest.spill import MOST_DRAFTS, line_of
from chest.transaction import Transaction

__all__ = ["Atomic"]

MISSING: Any = object()
T = TypeVar("T")


class Atomic(Counters):
    """An engine whose operations are exact between threads and processes."""

    __slots__ = ()

    def transact(self, change: Callable[[Transaction], T]) -> T:
        """Call *change* with a mapping; what it set and deleted is published at once.

        All of it or nothing: while *change* runs no other process can publish and nobody
        sees its changes; when it raises, nothing happened.

        Parameters
        ----------
        change : callable
            Takes a `Transaction` and uses it like a dict. What it returns is returned.
            It should be quick, because others wait; the chest itself should not be
            used in it.

        Raises
        ------
        EncodingError, StoreError
            Something could not be written; nothing happened.
        LockTimeout
            Another process held the lock for ``timeout`` seconds.

        Notes
        -----
        Holds both locks all the time, also while values are written.

        Examples
        --------
        >>> from chest import Chest
        >>> def move(t):
        ...     t["a"] -= 10
        ...     t["b"] += 10
        ...     return t["b"]
        >>> with Chest({"a": 100, "b": 0}) as c:
        ...     c.transact(move), c["a"]
        (10, 90)
        """
        with self._publishing():
            work = Transaction(self._changeable, self._has, self._ordered)
            result = change(work)
            new: list[New] = []
            try:
                for key, value in work.written.items():
                    new.append(self._encoded(key, value))
                replaced = self._accept(new, list(work.gone))
            finally:
                self._spill.discard(each.written for each in new)
        self._after(replaced)
        return result

    def add(self, key: Hashable, value: Any, *, ttl: float | None = None) -> bool:
        """Set *key* if it is not there, and publish it; whether it was set.

        Of several processes that add one key at once, one is told True.

        Parameters
        ----------
        key : Hashable
        value : object
        ttl : float, optional
            Seconds after which the key counts as absent.

        Examples
        --------
        >>> from chest import Chest
        >>> with Chest() as c:
        ...     c.add("leader", "me"), c.add("leader", "you"), c["leader"]
        (True, False, 'me')
        """
        self._look()
        if self._has(key):
            return False
        expires = None if ttl is None else expiry.deadline(ttl)
        return self._put(key, value, None, expires, lambda _: not self._has(key))

    def pop(self, key: Hashable, default: Any = MISSING) -> Any:
        """Remove *key* and return its value; only one of several callers gets it."""
        while True:
            self._look()
            entry: AnyEntry | None = None
            try:
                try:
                    value = self._values[key]
                except KeyError:
                    self._report_miss(key, self._manifest.index.get(key))
                    value, entry, _ = self._read(key)
            except KeyError:
                if default is MISSING:
                    raise
                return default
            if self._take(key, value, entry):
                return value

    def touch(self, key: Hashable, ttl: float | None = None) -> bool:
        """Have *key* end in *ttl* seconds from now, or never; published at once.

        Returns
        -------
        bool
            Whether there is such a key.

        Notes
        -----
        The value is neither read nor written, but for one that was not published yet.

        Examples
        --------
        >>> from chest import Chest
        >>> with Chest({"session": "…"}) as c:
        ...     c.touch("session", 3600), c.touch("other", 3600)
        (True, False)
        """
        expires = None if ttl is None else expiry.deadline(ttl)
        return self._amend(key, lambda entry: (expires, entry.birth))

    # -- for the floors above ----------------------------------------------------------

    def _set_expiring(self, pairs: Iterable[tuple[Any, Any]], ttl: float) -> None:
        """Set and publish pairs that end in *ttl* seconds."""
        expires = expiry.deadline(ttl)
        rest, refused = iter(pairs), list[errors.EncodingError]()
        while some := dict(islice(rest, MOST_DRAFTS)):
            new: list[New] = []
            try:
                for key, value in some.items():
                    try:
                        new.append(self._encoded(key, value, None, expires))
                    except errors.EncodingError as error:
                        refused.append(error)
                with self._publishing():
                    replaced = self._accept(new)
            finally:
                self._spill.discard(each.written for each in new)
            self._after(replaced)
        if refused:
            raise refused[0]

    def _amend(
        self, key: Hashable, amended: Callable[[AnyEntry], tuple[float | None, int]]
    ) -> bool:
        """Give *key* the deadline and birth that *amended* makes of its entry.

        Published at once; the value stays, and its generation. Whether there is such a
        key.
        """
        while True:
            self._look()
            slot = self._slots.get(key)
            if slot is not None and slot.dirty:
                self._raise_first(self._write_out([slot], keep=True))
            with self._publishing():
                slot, entry = self._slots.get(key), self._manifest.index.get(key)
                if slot is not None and slot.dirty:
                    continue  # set by another thread, since it was published
                if entry is None:
                    return False
                expires, birth = amended(entry)
                if (expires, birth) != (entry.expires, entry.birth):
                    self._spill.amend(key, entry, expires, birth)
                if slot is not None:
                    slot.entry = self._manifest.index.get(key)
                return True

    def _etag(self, key: Hashable) -> int:
        """The generation of the value that *key* has, which is published if need be.

        0: there is no such key.
        """
        self._look()
        slot = self._slots.get(key)
        if slot is not None:
            # Also when it was changed in place.
            self._raise_first(self._write_out([slot], keep=True))
        return generation(self._manifest.index.get(key))

    @property
    def _identity(self) -> str:
        """What tells this chest from another that lies at the path later."""
        return self._manifest.id

    def _there(self) -> Any:
        """What can be asked of many keys whether they are there."""
        return self

    def _private(self, key: Hashable) -> tuple[Any, AnyEntry]:
        # docstring inherited
        self._etag(key)  # which publishes what is newer
        value, entry, _ = self._read(key, mapped="copy")
        return value, entry

    def _copy_of(self, key: Hashable) -> Any:
        """A value that nobody else has."""
        self._look()
        return self._read(key, "copy")[0]

    def _view_of(self, key: Hashable) -> tuple[Any, int]:
        """A value as a read-only view of its file, and its generation."""
        self._look()
        value, entry, _ = self._read(key, "r")
        return value, entry.generation

    @property
    def _flight_home(self) -> Any:
        """Where the lock of a computation lies, see `chest.memo.flights`."""
        return self._spill.store.home

    def _check_writable(self) -> None:
        # docstring inherited
        self._manifest.check_writable()

    def _keep(
        self, key: Hashable, value: Any, seconds: float, ttl: float | None
    ) -> None:
        """Publish a value that took so many seconds to make, and leave it to the caller.

        The caller has the same object, so it stays in memory only if it cannot change.
        """
        new = self._encoded(
            key, value, None, None if ttl is None else expiry.deadline(ttl)
        )
        new.written.entry.cost = round(seconds, 6)
        new.written.entry.made = int(time.time())
        try:
            with self._publishing():
                replaced = self._accept([new])
                slot = self._slots.get(key)
                if slot is not None and not slot.fixed:
                    self._memory.drop(slot)
        finally:
            self._spill.discard([new.written])
        self._after(replaced)

    def _fresh_value(self, key: Hashable) -> tuple[Any, float]:
        """A value that nobody else can change, and the seconds it took to make.

        What is immutable comes from memory, anything else is read anew.
        """
        self._look()
        slot, entry = self._slots.get(key), self._manifest.index.get(key)
        if slot is not None and (slot.fixed or entry is None):
            with contextlib.suppress(KeyError):  # another thread has just let it go
                return self._values[key], entry.cost if entry else 0.0
        value, entry, loaded = self._read(key)
        readonly = loaded.mapped and is_readonly_array(value)
        if readonly or type(value) in SCALARS:
            value = self._admit(
                key, value, entry, loaded.weight, loaded.seconds, readonly=readonly
            )
        return value, entry.cost

    # -- steps -------------------------------------------------------------------------

    def _has(self, key: Hashable) -> bool:
        """Whether *key* is there; lock held."""
        return key in self._slots or self._manifest.index.get(key) is not None

    def _changeable(self, key: Hashable) -> Any:
        """The value of *key*, which may be changed unseen by others. Locks held."""
        slot = self._slots.get(key)
        if slot is not None:
            if slot.fixed:
                return self._values[key]
            self._raise_first(self._write_out([slot], keep=True))
        return self._read(key, mapped="copy")[0]

    def _take(self, key: Hashable, value: Any, entry: AnyEntry | None) -> bool:
        """Delete *key* if its value is still the one that was read."""
        lock = self._begin()
        try:
            if key in self._slots:
                if entry is not None or self._values[key] is not value:
                    return False
            elif entry is None or not same(self._manifest.index.get(key), entry):
                return False
            names = self._remove(key)
        except BaseException as error:
            self._cut_short(error)
            raise
        finally:
            self._end(lock)
        if names:
            self._spill.delete(names)
        return True

    def _remove(self, key: Hashable) -> Sequence[str]:
        """Publish that *key* is gone. Locks held.

        Returns names to delete once they are free.

        Raises
        ------
        KeyError
            It is not there.
        """
        entry = self._manifest.index.get(key)
        names: Sequence[str] = ()
        if entry is not None:
            self._manifest.end_one(key, line_of(key, entry), entry)
            names = self._retire(entry)
        elif key not in self._values:
            raise KeyError(key)
        if key in self._values:
            self._forget_fresh(key)
            self._memory.forget(key)
        return names
