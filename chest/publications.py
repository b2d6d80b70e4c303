"""Values that are published when the call returns, one at a time or a few.

Owns: how such a value is written, published and kept in memory. Does not own: which
operations do that (`chest.atomic`), many at once (`chest.bulk`).
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Sequence
from pickle import dumps
from typing import Any, NamedTuple

from chest import keys
from chest.batches import Packed
from chest.bulk import Bulk
from chest.expiry import NEVER
from chest.index import AnyEntry
from chest.memory import Options, Slot, Weight, weigh
from chest.packing import INLINE_NBYTES
from chest.records import Entry
from chest.sizing import SCALARS
from chest.spill import Written

__all__ = ["Allowed", "New", "Publications"]

ORDINARY_FORMATS = (None, "pickle")
NOTHING_MORE = None, None, None, None
REFUSED: list[str] = []  # a value was not to be published
Allowed = Callable[[AnyEntry | None], bool]  # may the key's present entry be replaced?


class New(NamedTuple):
    """A value that was written and that nobody sees yet."""

    written: Written
    value: Any
    weight: Weight
    options: Options | None


class Publications(Bulk):
    """An engine that publishes values at once."""

    __slots__ = ()

    def _put(
        self,
        key: Hashable,
        value: Any,
        options: Options | None = None,
        expires: float | None = None,
        allowed: Allowed | None = None,
    ) -> bool:
        """Set *key* and publish it, if its present entry is as it must be."""
        weight, data = self._dumped(value, options)
        if data is None:
            return self._put_if(self._encoded(key, value, options, expires), allowed)
        if (
            self._word[1] != self._seen
            and (weight[1], options, expires, allowed) == NOTHING_MORE
            and self._publish_unseen(key, weight[0], data)
        ):
            return True
        small = key, value, weight, data, options, expires, allowed
        lock, names = self.lock, None
        if self._alone or self._manifest._depth:
            self._check_begun()
        lock.acquire()
        try:
            self._alone = True
            if self._word[1] == self._seen and not self._manifest._depth:
                names = self._put_small(*small)
            if names is None:
                self._alone = False
                with self._publishing(alone=True):
                    names = self._put_small(*small)
        except BaseException as error:
            self._cut_short(error)
            raise
        finally:
            self._alone = False
            lock.release()
        if names:
            self._after(names)
        if self._manifest.overgrown:
            self._log_grew()
        return names is not REFUSED

    def _put_small(
        self,
        key: Hashable,
        value: Any,
        weight: Weight,
        data: bytes,
        options: Options | None,
        expires: float | None,
        allowed: Allowed | None,
    ) -> Sequence[str] | None:
        """`_publish_small` if the key's present entry is as it must be; else REFUSED."""
        old = self._manifest.index.get(key)
        if allowed is not None and not allowed(old):
            return REFUSED
        return self._publish_small(key, value, weight, data, old, options, expires)

    def _publish_unseen(self, key: Hashable, nbytes: int, data: bytes) -> bool:
        """Set *key* in the log, whatever others published, and do not keep the value.

        Whether that was done: not where more has to be known of what is replaced.
        """
        manifest, memory = self._manifest, self._memory
        if self._alone or manifest._depth:
            self._check_begun()
        self._acquire()
        try:
            self._alone = True
            index = manifest.index
            old = index.get(key)
            if (
                self._closed
                or key in memory.values
                or memory.newest
                or memory.fresh
                or index.expired
                or index.due != NEVER
                or not (old is None or (type(old) is Entry and old.value is not None))
            ):
                return False
            entry = Entry(keys.encode(key), size=len(data), nbytes=nbytes, value=data)
            if not manifest.publish_unseen(entry):
                return False
            spill = self._spill
            spill.written += 1
            spill.written_bytes += len(data)
        except BaseException as error:
            self._cut_short(error)
            raise
        finally:
            self._alone = False
            self._unlock()
        return True

    def _put_if(self, new: New, allowed: Allowed | None) -> bool:
        """Publish a value if the key's present entry is as it must be."""
        try:
            with self._publishing():
                old = self._manifest.index.get(new.written.key)
                if allowed is not None and not allowed(old):
                    return False
                replaced = self._accept([new])
        finally:
            self._spill.discard([new.written])  # unless it was published
        self._after(replaced)
        return True

    # -- steps -------------------------------------------------------------------------

    def _dumped(
        self, value: Any, options: Options | None
    ) -> tuple[Weight, bytes | None]:
        """What a value weighs, and its pickle if it may lie in the log."""
        kind = type(value)
        ordinary = self._packs and (options is None or options[0] in ORDINARY_FORMATS)
        if kind in SCALARS:
            plain, data = value.__sizeof__(), None  # what `getsizeof` asks, for less
            if ordinary and plain <= INLINE_NBYTES:
                data = dumps(value, 5)
                if kind is str and not value.isascii():
                    plain = (
                        value.__sizeof__()
                    )  # it keeps its UTF-8, which pickling made
            return (plain, None), data
        weight = weigh(value)
        small = ordinary and weight[0] <= INLINE_NBYTES
        return weight, self._spill.small(value) if small else None

    def _publish_small(
        self,
        key: Hashable,
        value: Any,
        weight: Weight,
        data: bytes,
        old: AnyEntry | None,
        options: Options | None,
        expires: float | None,
        *,
        keep: bool = True,
    ) -> Sequence[str] | None:
        """Publish one value in the log, in the place of *old*; the chest's lock is held.

        It is kept in memory, unless it is not there and need not be (*keep*). Returns
        names to delete once the locks are free; None: nothing was published, because the
        other lock is not held, and has to be, or others have published meanwhile.
        """
        # `_encoded` and `_accept` for the usual case of counters and of small values
        # that are published one by one, in a fifth of their time.
        memory = self._memory
        plain, buffers = weight
        size = len(data)
        manifest = self._manifest
        index = manifest.index
        unborn = memory.newest or memory.fresh
        entry = Entry(
            old.text if type(old) is Entry else keys.encode(key),
            old.birth
            if old is not None
            else (self._new_birth(key) if unborn else index.next_birth()),
            size=size,
            nbytes=plain + sum(buffers.values()) if buffers else plain,
            value=data,
            expires=expires,
        )
        if options:
            entry.mapped = options[1]
        gone = index.held(key) if index.expired else old
        has_file = gone is not None and gone.name
        if (has_file or expires is not None) and not manifest._depth:
            return None
        if expires is not None:
            manifest.append([(key, entry)])
        elif manifest._depth:
            manifest.publish_one(key, entry, old, last=not has_file)
        elif not manifest.publish_alone(key, entry, old):
            return None
        self._seen = manifest.seen
        replaced: Sequence[str] = ()
        if gone is not None and has_file:
            replaced = self._retire(gone)
        spill = self._spill
        spill.written += 1
        spill.written_bytes += size
        if buffers is None and not options and key not in memory.values:
            if keep and memory.used + plain <= memory.budget:
                memory.came(key, value, plain)
        else:
            self._keep_small(key, value, weight, entry, options)
        return replaced

    def _keep_small(
        self,
        key: Hashable,
        value: Any,
        weight: Weight,
        entry: Entry,
        options: Options | None,
    ) -> None:
        """Let memory have a value that was just published. Lock held."""
        memory, (plain, buffers) = self._memory, weight
        slot = memory.slot(key)
        if (
            slot is not None
            and slot.plain == plain
            and buffers is slot.buffers is None
            and not (options or slot.dirty or slot.options)
        ):
            # Neither value can change, they have one size, and nobody is writing the one
            # that was there: a slot need not be made.
            slot.entry = entry
            self._values[key] = value
            self._touched.append(key)
            return
        if slot is not None and slot.dirty:
            self._fresh.pop(key, None)
        slot = memory.put(key, value, plain, buffers, slot, options)
        slot.dirty, slot.entry = False, entry
        if memory.used > memory.budget:
            memory.drop(slot)  # it is written, so it goes before others have to

    def _retire(self, gone: AnyEntry) -> Sequence[str]:
        """Free the name of what was replaced or deleted.

        Locks held. Returns names to delete once they are free.
        """
        if type(gone) is Packed or not gone.name:
            return ()  # no file goes with it
        return self._spill.retire([gone])

    def _encoded(
        self,
        key: Hashable,
        value: Any,
        options: Options | None = None,
        expires: float | None = None,
    ) -> New:
        """Write a value that nobody sees yet; no lock is needed."""
        self._check_open()
        self._manifest.check_writable()
        weight = weigh(value)
        total = weight[0] + sum((weight[1] or {}).values())
        job = self._job(Slot(key, total, total, options=options), value)
        written = (self._inlined([job]) or [self._spill.encode(job)])[0]
        written.entry.expires = expires
        return New(written, value, weight, options)

    def _accept(self, new: Sequence[New], gone: Sequence[Hashable] = ()) -> list[str]:
        """Publish values and deletions in one record, and let memory follow. Locks held.

        Returns names to delete once the lock is free.
        """
        ended = set(gone)
        for each in new:
            key, entry, _ = each.written
            ends = key in ended
            entry.birth = self._next_birth() if ends else self._birth_of(key)
        before = self._manifest.written
        try:
            replaced = self._spill.publish([each.written for each in new], gone=gone)
            self._forget_slots(gone)
            for each in new:
                key, entry, _ = each.written
                known = self._slots.get(key)
                value, weight = each.value, each.weight
                self._memory.put_clean(key, value, weight, entry, known, each.options)
                self._fresh.pop(key, None)
        except BaseException:
            if self._manifest.written != before:
                # Published: what is in memory must not be published after it.
                self._memory.mend()
                self._forget_slots([*gone, *(each.written.key for each in new)])
            raise
        return replaced

    def _after(self, replaced: Iterable[str]) -> None:
        """What follows a publication once the locks are free."""
        self._spill.delete(replaced)
        self._written_more()
        if self._memory.used > self._memory.budget:
            self.shrink()
