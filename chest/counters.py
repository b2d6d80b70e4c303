"""Numbers that processes count up together.

Owns: how much is added, and what is known of the last sum. Does not own: how a value is
published (`chest.publications`).
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Hashable, Sequence
from numbers import Number
from pickle import dumps
from typing import Any

from chest.errors import short
from chest.packing import INLINE_NBYTES
from chest.publications import Publications
from chest.records import Entry

__all__ = ["Counters"]

MISSING: Any = object()
# The pickle (protocol 2 and later) of an int of 32 bits, in a third of the time of `dumps`.
_pickled = struct.Struct("<3sic").pack
BEFORE, AFTER = b"\x80\x05J", b"."
PICKLED_NBYTES = len(_pickled(BEFORE, 1, AFTER))
# All ints from 1 on that have one digit take the same.
MANY, INT_NBYTES = 1 << min(sys.int_info.bits_per_digit, 31), (1).__sizeof__()


class Counters(Publications):
    """An engine that adds to numbers, exactly."""

    __slots__ = ()

    def incr(self, key: Hashable, delta: Any = 1, default: Any = 0) -> Any:
        """Add *delta* to a number and return the sum; published at once.

        No increment of another process or thread is lost. A deadline that the key has
        stays.

        Parameters
        ----------
        key : Hashable
        delta : number
        default : number or None
            What a missing key counts as; None: it must be there.

        Raises
        ------
        KeyError
            There is no such key, and *default* is None.
        TypeError
            The value is no number; it is left as it is.

        Examples
        --------
        >>> from chest import Chest
        >>> with Chest() as c:
        ...     c.incr("visits"), c.incr("visits", 10), c.decr("visits")
        (1, 11, 10)
        """
        lock, manifest, memory = self.lock, self._manifest, self._memory
        names: Sequence[str] = ()
        if self._alone or manifest._depth:
            self._check_begun()
        lock.acquire()
        try:
            self._alone = True
            old: Any = manifest.index.entries.get(key)
            counted, number = self._counted
            if (
                old is counted
                and self._seen == manifest.seen
                and not manifest._depth
                and type(total := number + delta) is int
            ):
                # As mostly: counted here before, and by nobody else since.
                if 0 < total < MANY:
                    data, nbytes = _pickled(BEFORE, total, AFTER), INT_NBYTES
                    size = PICKLED_NBYTES
                else:
                    data, nbytes = dumps(total, 5), total.__sizeof__()
                    size = len(data)
                entry = Entry(old.text, old.birth, size=size, nbytes=nbytes, value=data)
                slot = memory.slots.get(key)
                if (
                    key not in self._values
                    if slot is None
                    else slot.entry is old and slot.plain == nbytes
                ) and (
                    nbytes <= INLINE_NBYTES
                    and manifest.publish_alone(key, entry, old, again=True)
                ):
                    self._seen, self._counted = manifest.seen, (entry, total)
                    if slot is not None and slot.alive:
                        slot.entry, self._values[key] = entry, total
                        self._touched.append(key)
                    elif key in self._values:
                        self._forget_old(key)
                    spill = self._spill
                    spill.written += 1
                    spill.written_bytes += size
                    return total
            self._alone = False
            with self._publishing(alone=True):
                total, names = self._add_up(key, delta, default)
        except BaseException as error:
            self._cut_short(error)
            raise
        finally:
            self._alone = False
            lock.release()
        if names:
            self._after(names)
        if manifest.overgrown:
            self._log_grew()
        return total

    # -- steps -------------------------------------------------------------------------

    def _forget_old(self, key: Hashable) -> None:
        """Let go of a number that a signal's handler has just brought into memory."""
        slot = self._slots.get(key)
        if slot is not None and not slot.dirty:
            self._memory.drop(slot)

    def _add_up(
        self, key: Hashable, delta: Any, default: Any
    ) -> tuple[Any, Sequence[str]]:
        """`incr` of any number, with both locks held; the sum, and names to delete."""
        old, number = self._manifest.index.get(key), self._values.get(key, MISSING)
        kept = number is not MISSING
        if old is None and not kept:
            if default is None:
                raise KeyError(key)
            number = default
        elif not kept and old is not None and old.value is not None:
            number = self._spill.decode_small(key, old, old.value)
        elif not kept:
            number = self._read(key)[0]
        if not isinstance(number, Number):
            msg = f"{short(key)} is a {type(number).__name__}, which has no sum"
            raise TypeError(msg)
        total = number + delta
        expires = None if old is None else old.expires
        weight, data = self._dumped(total, None)
        if data is None:
            new = self._encoded(key, total, expires=expires)
            try:
                return total, self._accept([new])
            finally:
                self._spill.discard([new.written])
        # One that is not in memory stays in the log, from where the next comes: what
        # others add would only drive it out again.
        names = self._publish_small(
            key, total, weight, data, old, None, expires, keep=kept
        )
        assert names is not None  # the lock is held
        if expires is None:
            self._counted = self._manifest.index.get(key), total
        return total, names
