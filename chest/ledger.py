"""What exists, as this process sees it: what was published, and what is fresh in memory.

Owns: the chest's two locks and their order, seeing what others published, the order of
the keys. Does not own: how values move.

Locks, always in this order: the chest's own (threads), the manifest's (processes).

Invariants
----------
C1  `_fresh` holds the keys that are in memory and in no record. They get their births when
    somebody asks, always before any younger key does.
C2  A clean value equals the entry that its slot carries, or when it is bare (see
    `chest.memory`) that of the manifest; when another process publishes the key, it goes.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import threading
from collections.abc import Hashable, Iterator, Sequence
from typing import Any, NoReturn

from chest import errors, expiry
from chest.eviction import policy as make_policy
from chest.expiry import NEVER
from chest.index import AnyEntry
from chest.keeper import Keeper
from chest.log import NO_WORD
from chest.memory import MemoryTier, Slot, Slots
from chest.opening import open_tier, temporary_folder
from chest.settings import Settings, absolute, nothing

NOTHING_COUNTED = object(), 0  # no key has such an entry
LEVELS = 1 << 30  # more than the locks are ever taken within one another

__all__ = ["NOTHING_COUNTED", "Changed", "Ledger", "Publishing", "generation"]


class Ledger(Keeper):
    """The keys of one chest: those in the manifest and those only in memory."""

    __slots__ = (
        "__weakref__",
        "_acquire",
        "_alone",
        "_closed",
        "_counted",
        "_each",
        "_explicitly_given_path",
        "_freed",
        "_hits",
        "_manifest",
        "_memory",
        "_nesting",
        "_on_miss",
        "_packs",
        "_pid",
        "_savers",
        "_seen",
        "_settings",
        "_slots",
        "_spill",
        "_spills",
        "_touched",
        "_unlock",
        "_unmoved",
        "_unusual",
        "_values",
        "_word",
        "lock",
        "path",
    )

    _slots: Slots

    def _start(self, path: str | os.PathLike[str] | None, settings: Settings) -> None:
        """Open the folder and take up work."""
        # First, because it may refuse: nothing is made or open yet.
        self._memory = MemoryTier(settings.budget, make_policy(settings.policy))
        self._explicitly_given_path = path is not None
        self.path = temporary_folder() if path is None else absolute(path)
        self._settings = settings
        # What a set has to look at beyond the ordinary.
        self._each = settings.publish == "each"
        self._unusual = (
            settings.readonly
            or self._each
            or settings.on_conflict is not None
            or "data" in (settings.format, settings.fallback)
        )
        on_miss = settings.on_miss
        self._on_miss = None if on_miss is nothing else on_miss
        self._pid = os.getpid()
        # Packs, and how much of each was dead, that compaction could not empty.
        self._unmoved: frozenset[tuple[str, int]] = frozenset()
        self._make_lock()
        self._values = self._memory.values
        # Signed files are signed one by one, and only a pickle needs no footer.
        self._packs = (
            settings.pack and settings.format == "pickle" and settings.sign_key is None
        )
        try:
            self._spill = open_tier(self.path, settings)
        except BaseException:
            if path is None:
                shutil.rmtree(
                    self.path, ignore_errors=True
                )  # the first error tells why
            raise
        self._manifest = self._spill.manifest
        self._nesting = self._spill.nesting
        self._hits, self._touched = self._memory.counter, self._memory.touched
        self._spills = self._freed = 0
        # The entry that the last increment has made, and the number that it says.
        self._counted: tuple[Any, Any] = NOTHING_COUNTED
        self._savers: list[Any] = []  # what counts the time that memoizing saves
        self._word: Any
        self._closed = False
        self._absorb()

    def _make_lock(self) -> None:
        """A new lock between threads; its methods at hand, which a set is quicker by."""
        self.lock = threading.RLock()
        # Under the lock: nothing may begin within what has begun, for neither what exists
        # nor what is to be published is known but in part.
        self._alone = False
        self._acquire, self._unlock = self.lock.acquire, self.lock.release
        self._slots = Slots(self._memory, self.lock)

    # -- seeing what others published ---------------------------------------------------

    def refresh(self) -> None:
        """See now what other processes published; every operation does so by itself.

        Raises
        ------
        ClosedError
            The chest was closed.
        DroppedError
            Another process removed it.
        """
        with self.lock:
            self._check_open()
            if self._alone:
                return  # this thread is publishing, and reads with that what there is
            self._manifest.tail()
            self._absorb()

    def _look(self) -> None:
        """`refresh` when there is something to see."""
        if self._word[1] != self._seen:
            self.refresh()

    def _absorb(self) -> None:
        """Let memory follow what the manifest has read (C1, C2)."""
        manifest = self._manifest
        due = manifest.index.due
        if due != NEVER and due <= (now := expiry.now()):
            manifest.changed.update(manifest.index.expire(now))
        memory = self._memory
        if (
            manifest.reloaded
            or memory.fresh
            or memory.newest
            or not self._values.keys().isdisjoint(manifest.changed)
        ):
            self._drop_stale()
        elif manifest.changed:
            manifest.changed = set()  # as mostly: nothing of it is in memory
        # Last: a thread that finds nothing to look at reads `_values` without the lock.
        self._watch()

    def _drop_stale(self) -> None:
        """`_absorb`, as far as memory goes."""
        manifest, memory = self._manifest, self._memory
        if manifest.reloaded:
            self._spill.packs.keep_only(manifest.index.packs)
            memory.drop_bare()  # what they were equal to is not known any more
            changed: Sequence[Hashable] = [*self._values]
        elif manifest.changed:
            changed = [key for key in manifest.changed if key in self._values]
        else:
            return
        fresh = self._fresh
        if fresh:
            self._give_way()
        slots = memory.slots
        for key in changed:
            if key not in slots and key not in fresh:
                memory.forget(key)
                continue
            entry = manifest.index.get(key)
            if entry is None and key in fresh:
                continue
            slot = self._slots[key]
            if entry is None and slot.dirty:
                self._revive(slot)
            else:
                fresh.pop(key, None)
            if slot.dirty:
                continue  # whoever publishes last wins, as documented
            if entry is None or generation(entry) != generation(slot.entry):
                memory.drop(slot)
            else:
                slot.entry = entry  # the same value, perhaps in another file
        # Last: who is interrupted has to do it again.
        manifest.changed, manifest.reloaded = set(), False

    def _cut_short(self, error: BaseException) -> None:
        """Make good what an operation left that was ended half-way, as by Ctrl-C.

        Locks held, or the chest's own.
        """
        if not isinstance(error, Exception) or isinstance(error, MemoryError):
            self._memory.mend()
            # Memory is compared with all that exists, before the next step.
            self._manifest.doubt()
            self._seen = NO_WORD

    @contextlib.contextmanager
    def _whole(self) -> Iterator[None]:
        """A block that changes what is in memory. Lock held."""
        try:
            yield
        except BaseException as error:
            self._cut_short(error)
            raise

    def _watch(self) -> None:
        """Note what a look compares: what was published, and the next deadline."""
        manifest = self._manifest
        self._seen, due = manifest.seen, manifest.index.due
        # Only a chest with deadlines looks at the clock.
        word = manifest.word
        self._word = word if due == NEVER else expiry.Due(word, due)

    def _give_way(self) -> None:
        """Settle births that two processes gave at once: who published keeps the place."""
        manifest, fresh = self._manifest, self._fresh
        given = [birth for birth in fresh.values() if birth is not None]
        if not given:
            return
        if manifest.reloaded:  # which keys are new is not known
            is_late = not manifest.index.births_from(min(given)).isdisjoint(given)
        else:
            found = map(manifest.index.get, manifest.changed)
            is_late = any(entry.birth >= min(given) for entry in found if entry)
        if is_late:
            fresh.update(dict.fromkeys(fresh))  # they get others when somebody asks
            self._memory.changes += 1

    def _revive(self, slot: Slot) -> None:
        """A dirty value whose key somebody deleted is set anew, and comes last."""
        slot.seen = 0
        self._fresh.setdefault(slot.key, None)

    def _publishing(self, *, alone: bool = False) -> Publishing:
        """Hold both locks in a ``with`` block, with everything seen.

        May be nested, unless it is *alone*.
        """
        return Publishing(self, alone)

    def _begin(self) -> threading.RLock:
        """Take both locks, with everything seen; `_end` must follow. Alone.

        Returns what `_end` needs: a fork meanwhile gives the child another lock.
        """
        lock, manifest = self.lock, self._manifest
        depth = LEVELS
        # Else it is another thread's, or Ctrl-C has kept it from being taken back.
        alone = self._alone and lock._is_owned()  # type: ignore[attr-defined]
        is_stale = manifest._depth and not lock._is_owned()  # type: ignore[attr-defined]
        lock.acquire()
        try:
            if is_stale:  # else whoever had it has given it back meanwhile
                manifest.free()
            depth = manifest._depth
            if self._closed:
                self._refuse()
            if alone:
                self._refuse_reentry()
            self._alone = True
            manifest.enter()
            if manifest.changed or manifest.reloaded or manifest.index.due != NEVER:
                self._absorb()
            return lock
        except BaseException:
            if manifest._depth > depth:
                manifest.leave()
            self._seen = NO_WORD  # not all may be seen that was read
            self._alone = alone
            lock.release()
            raise

    @contextlib.contextmanager
    def _quiet(self) -> Iterator[None]:
        """A block in which this thread is not made to change what is in memory."""
        if self._alone:
            self._check_begun()
        with self.lock:
            self._alone = True
            try:
                yield
            finally:
                self._alone = False

    def _check_begun(self) -> None:
        """Raise ReentryError within what has begun in this thread.

        What Ctrl-C has kept from ending is ended.
        """
        if not self.lock._is_owned():  # type: ignore[attr-defined]
            with self.lock:  # whoever was within has ended then
                self._manifest.free()
        elif self._alone:
            self._refuse_reentry()

    def _check_idle(self) -> None:
        """Raise ReentryError where this thread is publishing, as within `transact`."""
        with self.lock:
            if self._manifest._depth:
                self._refuse_reentry()

    def _refuse_reentry(self) -> NoReturn:
        msg = (
            f"{self.path} is just being changed by this very thread: what that calls, a "
            f"__del__ or a signal handler cannot do it now"
        )
        raise errors.ReentryError(msg, path=self.path)

    def _end(self, lock: threading.RLock) -> None:
        """Let go of what `_begin` took."""
        manifest, depth = self._manifest, 0
        try:
            self._alone = True
            depth = manifest._depth
            self._seen = manifest.seen
            if manifest.index.due != NEVER or self._word is not manifest.word:
                self._watch()
            if depth:
                manifest.leave()
        except BaseException:
            if manifest._depth >= depth:
                manifest.leave()
            raise
        finally:
            self._alone = False
            lock.release()
        if manifest.overgrown and not manifest._depth:
            self._log_grew()

    def _log_grew(self) -> None:
        """Called without a lock after a publication with which the log is overgrown."""

    # -- order -------------------------------------------------------------------------

    def _birth_of(self, key: Hashable) -> int:
        """The birth that *key* has, or gets when it is set now. Lock held."""
        entry = self._manifest.index.get(key)
        return self._new_birth(key) if entry is None else entry.birth

    def _new_birth(self, key: Hashable) -> int:
        """The birth that *key* has, or gets when it is set now; no record has it."""
        return self._born().get(key) or self._manifest.index.next_birth()

    def _next_birth(self) -> int:
        """A birth after all that were given, or are to be given. Lock held."""
        self._born()
        return self._manifest.index.next_birth()

    @property
    def _fresh(self) -> dict[Hashable, int | None]:
        """See C1."""
        memory = self._memory
        if memory.newest:
            with self.lock:
                memory.note()
        return memory.fresh

    def _born(self) -> dict[Hashable, Any]:
        """`_fresh`, with a birth for each of them. Lock held."""
        # Those without stand at the end; of many that were just set, all are.
        fresh: dict[Hashable, Any] = self._fresh
        if not fresh:
            return fresh
        unborn: list[Hashable] = []
        if next(iter(fresh.values())) is None:
            unborn = [*fresh]
        else:
            for key, birth in reversed(fresh.items()):
                if birth is not None:
                    break
                unborn.append(key)
            unborn.reverse()
        if unborn:
            index = self._manifest.index
            first, index.birth = index.birth + 1, index.birth + len(unborn)
            fresh.update(zip(unborn, range(first, index.birth + 1), strict=True))
        return fresh

    def _ordered(self) -> list[Hashable]:
        """All keys in order of birth. Lock held; O(keys)."""
        index, fresh = self._manifest.index, self._born()
        if not fresh:
            return index.keys()
        if next(iter(fresh.values())) > index.last_birth:
            return [*index.keys(), *fresh]
        births = {key: (entry.birth, entry.generation) for key, entry in index.items()}
        # A tie is between two processes; what is published goes first.
        births.update((key, (birth, 1 << 63)) for key, birth in fresh.items())
        return sorted(births, key=births.__getitem__)

    def _last(self) -> Any:
        """The key that came last. Lock held; O(1) on average."""
        births, index = self._born(), self._manifest.index
        fresh = next(reversed(births)) if births else None
        if births and births[fresh] > index.last_birth:
            return fresh
        if len(index):
            last = index.last()
            entry = index.get(last)
            if not births or (entry and births[fresh] < entry.birth):
                return last
        elif not births:
            msg = "popitem(): the chest is empty"
            raise KeyError(msg)
        return fresh

    def _forget_fresh(self, key: Hashable) -> None:
        """*key* is published, or gone. Lock held."""
        fresh = self._fresh
        if key not in fresh:
            return
        if next(reversed(fresh)) == key:
            fresh.popitem()  # `del` leaves a gap, which each look at the end would pass
        else:
            del fresh[key]
        self._manifest.index.note([key])


class Publishing:
    """Both locks of a chest, for one ``with`` block."""

    # A class, because a generator would take longer than the locks do.
    __slots__ = ("_alone", "_ledger", "_lock")

    def __init__(self, ledger: Ledger, alone: bool) -> None:
        self._ledger, self._alone = ledger, alone

    def __enter__(self) -> None:
        self._lock = self._ledger._begin()
        self._ledger._alone = self._alone

    def __exit__(self, kind: object, error: BaseException | None, _: object) -> None:
        try:
            if error is not None:
                self._ledger._cut_short(error)
        finally:
            self._ledger._end(self._lock)


class Changed:
    """The word of a closed chest: always different, so every operation looks."""

    def __getitem__(self, index: int) -> object:
        return self


def generation(entry: AnyEntry | None) -> int:
    """The generation of an entry; 0 where there is none."""
    return 0 if entry is None else entry.generation
