"""Many small values: into packs, into the log for a while, and out of both again.

Owns: which values are packed, and the care of packs. Does not own: values with a file
each, the pack's bytes.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import pickle
from collections.abc import Collection, Hashable, Iterable, Iterator, Sequence
from sys import getsizeof
from typing import Any

from chest import errors
from chest.batches import Columns, Packed
from chest.folder import refusals
from chest.index import LOST, AnyEntry, unchanged
from chest.ledger import Ledger, generation
from chest.memory import Options, Slot
from chest.packs import BATCH_KEYS, portions
from chest.rewrite import Rewrite
from chest.small import PACKED_NBYTES
from chest.spill import MOST_DRAFTS, Job, Written

__all__ = ["Packing"]

log = logging.getLogger("chest")

FEWEST_PACKED = 64  # values written at once; fewer get a file each
SMALL_NBYTES = 2 * PACKED_NBYTES  # bytes in memory of what may have a small pickle
INLINE_NBYTES = 1024  # bytes in memory of what may lie in the log for a while
MOST_PACKS = 64  # more are merged by compaction
MOST_NEWER = 1 << 20  # entries in memory before a checkpoint takes them up
MOST_REWRITES = 3  # times that somebody else may write the log meanwhile
MISSING: Any = object()
_dumps = functools.partial(pickle.dumps, protocol=5)
ORDINARY: tuple[Options | None, ...] = (None, (None, None), ("pickle", None))


class Packing(Ledger):
    """A ledger that knows how to write small values together."""

    __slots__ = ()

    def _drop_clean(self, slots: Sequence[Slot], stay: Collection[int] = ()) -> None:
        """Let go those that were written, but for the ids in *stay*."""
        with self.lock, self._whole():
            self._memory.drop_clean(slots, stay)

    def _taken(self, slots: Sequence[Slot]) -> list[tuple[Slot, Any]]:
        """Those that are in memory still, with their values. Lock held.

        A key that was set anew since they were listed is there with its new slot: one
        that is set all the time would never be written otherwise.
        """
        newer = self._slots.get
        found = [each if each.alive else newer(each.key) for each in slots]
        here = [slot for slot in found if slot is not None]
        if self._settings.on_conflict is None:
            live = self._manifest.index.find_many([slot.key for slot in here])
            for slot in here:
                slot.seen = generation(live.get(slot.key))
        values = self._values
        return [(slot, values[slot.key]) for slot in here]

    def _births_of(self, keys: Sequence[Hashable]) -> list[int]:
        """`_birth_of` each of them. Lock held."""
        index, born = self._manifest.index, self._born()
        live = index.find_many(keys)
        return [
            entry.birth
            if (entry := live.get(key))
            else born.get(key) or index.next_birth()
            for key in keys
        ]

    def _is_in_conflict(self, slot: Slot, known: AnyEntry | None) -> bool:
        """Whether somebody published the key since this value was set."""
        return (
            self._settings.on_conflict is not None
            and slot.dirty
            and not slot.inherited
            and known is not None
            and slot.seen != generation(known)
        )

    def _may_precede(self, slot: Slot, known: AnyEntry | None) -> bool:
        """Whether a value that was replaced meanwhile may still be published.

        It may when the one that replaced it is to be published yet: a key that is set
        all the time would never be published otherwise.
        """
        newer = self._slots.get(slot.key)
        pending = slot.dirty and newer is not None and newer.dirty
        return pending and slot.seen == generation(known)

    def _pack_bare(self, *, keep: bool) -> None:
        """Write what is bare and dirty to packs, if there is enough of it.

        As `_pack_out` for what has no slot, column by column: with a step of Python's for
        each value a flush would take twice as long. What is left is `_pack_out`'s.
        """
        memory = self._memory
        if not self._packs or self._settings.readonly:
            return
        with self._quiet():
            named, born = memory.bare_fresh(), self._born()
            births = [*map(born.__getitem__, named)]
            held, changes = [*map(memory.values.__getitem__, named)], memory.changes
        sizes = [*map(getsizeof, held)]
        if max(sizes, default=0) > PACKED_NBYTES:
            fits = [*map(_may_be_small, held, sizes)]
            named, births, held, sizes = (
                [*itertools.compress(column, fits)]
                for column in (named, births, held, sizes)
            )
        for some in portions(sizes):
            values = held[some]
            small = Columns(named[some], births[some], [*map(_dumps, values)])
            if max(map(len, small.datas)) > PACKED_NBYTES:
                fits = [len(data) <= PACKED_NBYTES for data in small.datas]
                values, *columns = (
                    [*itertools.compress(column, fits)]
                    for column in (values, small.keys, small.births, small.datas)
                )
                small = Columns(*columns)
            if len(values) < FEWEST_PACKED:
                continue
            try:
                changes = self._publish_bare(small, values, changes, keep=keep)
            except errors.ChestError:
                return  # `_pack_out` tries it again, and knows whom to tell

    def _publish_bare(
        self, small: Columns, held: Sequence[Any], changes: int, *, keep: bool
    ) -> int:
        """Publish a batch of what was bare, but for what others changed since (C3).

        *changes* is the memory tier's count when it was taken; returned is what it would
        be now if nobody but this had changed anything.
        """
        memory = self._memory
        batch = self._spill.pack(small)
        with self._publishing(alone=True):
            fresh, values, live = self._fresh, memory.values, small.keys
            mine = memory.changes - changes
            dead: set[int] = set()
            if mine:
                # What cannot change is the same as long as its key has the same birth.
                dead = {
                    place
                    for place, (key, birth) in enumerate(
                        zip(small.keys, small.births, strict=True)
                    )
                    if fresh.get(key, MISSING) != birth
                    or values[key] is not held[place]
                    or key in memory.slots
                }
                live = [k for place, k in enumerate(small.keys) if place not in dead]
            replaced = self._spill.publish_packed(batch, small, dead)
            if len(live) == len(fresh):
                fresh.clear()
            else:
                for key in live:
                    del fresh[key]
            if not keep:
                memory.drop_bare(live)
            now = memory.changes - mine
        self._spill.delete(replaced)
        self._written_more()
        return now

    def _pack_out(
        self, slots: Sequence[Slot], failed: list[tuple[Slot, Exception]], *, keep: bool
    ) -> Sequence[Slot]:
        """Write the small ones of many values to a pack; returns the others."""
        if not self._packs or len(slots) < FEWEST_PACKED or self._settings.readonly:
            return slots
        others: list[Slot] = []
        sizes = [slot.nbytes if slot.nbytes <= SMALL_NBYTES else 0 for slot in slots]
        for some in portions(sizes):
            taken, small = self._small_ones(slots[some], others)
            if len(taken) < FEWEST_PACKED:
                others += taken
                continue
            try:
                again = self._publish_packed(taken, small)
            except errors.ChestError as error:
                failed += [(slot, error) for slot in taken]
                continue
            others += self._pack_out(again, failed, keep=keep)
            if not keep:
                self._drop_clean(taken)
            newer = len(self._manifest.index.entries)
            if newer >= MOST_NEWER and 2 * newer > len(self._manifest.index):
                self._checkpoint()  # each entry takes some 250 bytes until then
        return others

    def _small_ones(
        self, slots: Sequence[Slot], others: list[Slot]
    ) -> tuple[list[Slot], Columns]:
        """Those that go into a pack, and their pickles; the rest is put to *others*."""
        with self._quiet():
            here = self._taken(slots)
            births = self._births_of([slot.key for slot, _ in here if slot.dirty])
        taken: list[Slot] = []
        small = Columns()
        dumps = self._spill.dumps
        known = iter(births)
        with self._nesting.pickling() as pickling:
            for slot, value in here:
                birth, data = next(known) if slot.dirty else 0, None
                if (
                    slot.dirty
                    and _may_be_small(value, slot.nbytes)
                    and (slot.options is None or slot.options in ORDINARY)
                ):
                    pickling[-1] = slot.key
                    data = dumps(value)
                if data is None or len(data) > PACKED_NBYTES:
                    others.append(slot)
                else:
                    taken.append(slot)
                    small.add(slot.key, birth, data)
        return taken, small

    def _publish_packed(self, slots: Sequence[Slot], small: Columns) -> list[Slot]:
        """Write a batch and publish those whose slot is still the same (C3).

        Returns those that others gave another birth meanwhile: it stands in the pack, so
        they are to be written again.
        """
        batch = self._spill.pack(small)
        again: list[Slot] = []
        with self._publishing(alone=True):
            find, fresh = self._manifest.index.get, self._fresh
            dead = set()
            for place, slot in enumerate(slots):
                birth, known = small.births[place], None
                if fresh.get(slot.key, MISSING) == birth:
                    if slot.alive and not slot.inherited:
                        continue  # as mostly: nobody has it, and it is as it was taken
                else:
                    known = find(slot.key)
                if (
                    not slot.alive and not self._may_precede(slot, find(slot.key))
                ) or self._is_in_conflict(slot, known):
                    dead.add(place)
                elif slot.inherited and generation(known) != generation(slot.entry):
                    dead.add(place)  # it gives way to what somebody published since
                    self._forget_slots([slot.key])
                elif self._birth_of(slot.key) != birth:
                    dead.add(place)
                    again.append(slot)
            replaced = self._spill.publish_packed(batch, small, dead)
            find = self._manifest.index.get
            for place, slot in enumerate(slots):
                if dead and place in dead:
                    continue
                key = slot.key
                slot.entry, slot.dirty = find(key), False
                slot.inherited = False
                fresh.pop(key, None)
            if not fresh:
                fresh.clear()  # of the room that all of them took
        self._spill.delete(replaced)
        self._written_more()
        return again

    def _forget_slots(self, replaced: Iterable[Hashable]) -> None:
        """Values in memory that others took the place of go. Locks held."""
        gone = dict.fromkeys(replaced)
        for key in gone if self._fresh else ():
            self._forget_fresh(key)
        self._memory.forget_many(gone)

    def _inlined(self, jobs: Sequence[Job]) -> list[Written] | None:
        """Small values for the log itself; None when they need files."""
        if not self._packs:
            return None
        written: list[Written] = []
        for job in jobs:
            if job.nbytes > INLINE_NBYTES or job.format != "pickle":
                return None
            with self._nesting.pickling(job.key):
                data = self._spill.small(job.value)
            if data is None:
                return None
            written.append(self._spill.inline(job, data))
        return written

    def _tidy(self, *, settle: bool = True) -> None:
        """Shorten what opening has to read, and what memory has to hold of it.

        As far as that pays.
        """
        self._bury()
        if settle:
            self._settle()
        if self._manifest.wasteful or self._poor_packs() - self._unmoved:
            self._compact(surely=False)
        elif settle and self._manifest.wants_checkpoint:
            self._checkpoint()

    def _bury(self) -> None:
        """Publish that expired keys are gone, and give their space back."""
        self._look()
        if not self._manifest.index.expired:
            return
        with self._publishing(alone=True):
            names = self._spill.bury()
        self._spill.delete(names)

    def _settle(self) -> None:
        """Give the values that lie in the log a file, or many of them a pack."""
        if not self._manifest.index.inline:
            return
        home = self._spill.store.home
        with refusals(home.path, "could not be read"):
            if not home.status().st_nlink:
                return  # a temporary one of a process that has ended: nothing is lost
        with self._publishing(alone=True):
            index = self._manifest.index
            found = [(key, entry) for key in index.inline if (entry := index.get(key))]
        if self._packs and len(found) >= FEWEST_PACKED:
            self._move_to_pack(found)
            return
        for start in range(0, len(found), MOST_DRAFTS):
            self._move_to_files(found[start : start + MOST_DRAFTS], leave=True)

    def _move_to_files(
        self, found: Sequence[tuple[Hashable, AnyEntry]], *, leave: bool = False
    ) -> None:
        """Give small values a file each, as they are; generations stay.

        What cannot be read here raises, or is left where it is.
        """
        written: list[Written] = []
        try:
            for key, entry in found:
                try:
                    written.append(self._spill.unfold(key, entry))
                except errors.ChestError as error:
                    # Made by a process that has more modules, or trusts pickle.
                    if not leave or isinstance(error, errors.StoreError):
                        raise
                    log.info("%s stays in the log: %s", errors.short(key), error)
            before = dict(found)
            with self._publishing(alone=True):
                find = self._manifest.index.get
                # Touched or moved to the end meanwhile, it stays where it is.
                moved = [
                    each
                    for each in written
                    if unchanged(find(each.key), before[each.key])
                ]
                self._spill.publish(moved, moved=True)
                self._follow([each.key for each in moved])
        finally:
            self._spill.discard(written)  # what was not published

    def _move_to_pack(self, found: Iterable[tuple[Hashable, AnyEntry]]) -> None:
        """Write small values anew into a pack, as they are; generations stay."""
        left = iter(found)
        while some := list(itertools.islice(left, BATCH_KEYS)):
            taken: list[AnyEntry] = []
            small = Columns(rewritten=True)
            for key, entry in some:
                try:
                    data = self._spill.raw(key, entry)
                    birth, number = entry.birth, entry.generation
                except (FileNotFoundError, errors.CorruptError) as error:
                    # Moved by others; or damaged: it stays where it is, and reading it
                    # says so.
                    log.info("%s is not moved: %s", errors.short(key), error)
                    continue
                taken.append(entry)
                small.add(key, birth, data, number, entry.made)
            if not taken:
                continue
            batch = self._spill.pack(small)
            with self._publishing(alone=True):
                find = self._manifest.index.get
                dead = {
                    place
                    for place, (key, entry) in enumerate(
                        zip(small.keys, taken, strict=True)
                    )
                    if not unchanged(find(key), entry)
                }
                self._spill.publish_packed(batch, small, dead, moved=True)
                self._follow(small.keys)

    def _follow(self, moved: Iterable[Hashable]) -> None:
        """Let slots know where their values lie now. Locks held."""
        find = self._manifest.index.get
        slots = self._memory.slots
        for key in moved:
            slot = slots.get(key)
            if slot is not None and not slot.dirty:
                slot.entry = find(key)

    def _follow_packed(self, held: Collection[str]) -> None:
        """`_follow` for values in packs that are not among *held* any more."""
        self._follow(
            key
            for key, slot in self._memory.slots.items()
            if type(slot.entry) is Packed and slot.entry.name not in held
        )

    def _compact(self, *, surely: bool = True) -> int:
        """Rewrite packs that are half dead or too many, then the manifest, then sweep.

        Unless it is to be done *surely*, not where somebody else just did it.
        """
        self._settle()
        self._bury()
        for _ in range(MOST_REWRITES):
            swept = self._rewrite(moving=True)
            if swept is not None or not surely:
                return swept or 0
        with self._publishing():  # now nobody else can be quicker
            return self._rewrite(moving=False) or 0

    def _rewrite(self, *, moving: bool) -> int | None:
        """Write the log anew, then sweep; None when somebody else just wrote it.

        With *moving*, packs that are half dead or too many are emptied before.
        """
        listed = self._spill.store.listed()
        with (
            self._written_aside(log=True, moving=moving) as rewrite,
            self._publishing(alone=True),
        ):
            index = self._manifest.index
            before = {*index.packs}
            before.update(entry.name for entry in index.expired.values())
            if not self._manifest.take(rewrite):
                return None
            held = self._manifest.index.names()
            if moving:
                # What is left in them is damaged: no use to try until something changes.
                self._unmoved = self._poor_packs()
                self._follow_packed(held)
            self._spill.delete(before - held - {""})
            self._spill.packs.end_unless(held)  # the sweep takes what nobody appends to
            return self._spill.sweep(held, listed)

    def _checkpoint(self) -> None:
        """Write down what the log has come to, so that opening need not read it.

        Left as it was when the disk refuses.
        """
        try:
            with (
                self._written_aside(log=False) as rewrite,
                self._publishing(alone=True),
            ):
                self._manifest.take(rewrite)
        except (errors.StoreError, errors.ClosedError) as error:
            log.info("no checkpoint was taken up: %s", error)

    @contextlib.contextmanager
    def _written_aside(self, *, log: bool, moving: bool = False) -> Iterator[Rewrite]:
        """A new log, or else a checkpoint, that was written without a lock."""
        rewrite, poor = self._begin_rewrite()
        try:
            try:
                self._write_aside(rewrite, poor if moving else (), log=log)
            except LOST:
                # Read the log instead; what is damaged there is an error.
                rewrite.discard()
                with self._publishing():
                    if self._manifest.index.base is not None:
                        self._manifest.index.lose_base()
                    rewrite, poor = self._begin_rewrite()
                self._write_aside(rewrite, poor if moving else (), log=log)
            yield rewrite
        except OSError:
            self._check_open()  # a temporary folder goes when its chest is closed
            raise
        finally:
            rewrite.discard()

    def _begin_rewrite(self) -> tuple[Rewrite, set[str]]:
        """What exists, to be written down, and the names of packs that are poor."""
        with self._publishing(alone=True):
            poor = {name for name, _ in self._poor_packs()}
            return self._manifest.rewrite(), poor

    def _write_aside(
        self, rewrite: Rewrite, poor: Collection[str], *, log: bool
    ) -> None:
        if poor:
            rewrite.move(poor, self._spill.packs, sync=self._manifest.sync)
        rewrite.write(log=log)

    def _poor_packs(self) -> frozenset[tuple[str, int]]:
        """Packs more than half dead, or too many, each with how many entries are dead.

        O(packs): it is asked at each flush, and there may be many batches.
        """
        packs = self._manifest.index.packs
        many = len(packs) > MOST_PACKS
        return frozenset(
            (name, tally.dead)
            for name, tally in packs.items()
            if 2 * tally.dead > tally.count or (many and tally.count < BATCH_KEYS)
        )

    def _written_more(self) -> None:
        """Called after a publication, without a lock."""


def _may_be_small(value: Any, nbytes: int) -> bool:
    """Whether the pickle of a value of *nbytes* in memory may fit into a pack."""
    if nbytes <= PACKED_NBYTES or nbytes > SMALL_NBYTES:
        return nbytes <= PACKED_NBYTES
    # A pickled text or bytes takes no less than one byte for each that it has.
    return type(value) not in (str, bytes) or len(value) <= PACKED_NBYTES
