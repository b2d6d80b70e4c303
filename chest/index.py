"""What exists: the live entries that replaying the manifest leaves.

Owns: the entries by key, their order of birth, the birth numbers, which of a pack's values
are live. Does not own: the log they come from.

What a checkpoint has seen is asked of the checkpoint; what happened since lies over it in
a dict, where None stands for a key that is gone.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Hashable, Mapping, Sequence
from itertools import count, filterfalse, islice, repeat
from typing import Any

from chest import errors
from chest.base import AnyEntry, Base
from chest.checkpoint import Damaged
from chest.expiry import NEVER
from chest.packs import Batch, Packed
from chest.records import Entry

__all__ = ["LOST", "AnyEntry", "Index", "same", "unchanged"]

MISSING: Any = object()
MOST_DEADLINES = 1024  # more than twice the keys; those that hold no more are dropped
MOST_NEWEST = 4096  # keys born last that are known at once
MOST_NOTED = 1 << 16  # keys more than there are; whoever reads the journal starts anew
LOST = (Damaged, errors.CorruptChestError)  # of a checkpoint, or of a pack it refers to


def same(one: AnyEntry | None, other: AnyEntry | None) -> bool:
    """Whether two entries of one key are of one publication, and lie in one place."""
    if one is other:
        return True
    if one is None or other is None:
        return False
    return one.generation == other.generation and one.name == other.name


def unchanged(one: AnyEntry | None, other: AnyEntry) -> bool:
    """Whether a value can be moved as *other* says it is: `same`, place and deadline."""
    return (
        one is not None
        and same(one, other)
        and (one.birth, one.expires) == (other.birth, other.expires)
    )


class Index:
    """The live entries of a manifest.

    Parameters
    ----------
    birth : int
        The highest birth number ever given.
    base : Base, optional
        What a checkpoint has seen.
    rebuild : callable, optional
        Makes an index without a base, from the log, when the checkpoint turns out to be
        damaged.

    Attributes
    ----------
    get : callable
        key → its live entry as far as the log was read, or None. O(1).
    has : callable
        key → whether it has one, for less.
    last_birth : int
        The highest birth of an entry here.
    records : int
        How many entries were applied; those that are not live any more are waste.
    batches : list of Batch
        Those that were applied.
    inline : dict
        Keys whose value lies in the log until it is settled.
    due : float
        The next deadline of an entry [Unix time]; infinity: there is none.
    expired : dict of key to entry
        What `expire` has ended and no record has yet.
    hidden : set of int
        Rows of the base whose key is gone, or born anew.
    file_nbytes : int
        Bytes of the live values that have a file each.
    noted : int
        How many of them a checkpoint has.
    journal : list of key, or None
        Keys that changed, from when somebody put an empty list there; None again once it
        would be shorter to look at all keys.
    """

    def __init__(
        self,
        birth: int = 0,
        base: Base | None = None,
        rebuild: Callable[[], Index] | None = None,
    ) -> None:
        self.birth = birth
        self.records = self.noted = 0
        self.base: Base | None = None
        self.batches: list[Batch]
        self.inline: dict[Hashable, None]
        self.expired: dict[Hashable, AnyEntry] = {}
        # (deadline, order, key); the key of a row of the base is a `_Row`
        self._deadlines: list[tuple[float, int, Any]]
        self._order = count()
        self.get: Callable[[Hashable], AnyEntry | None]
        self.has: Callable[[Hashable], bool]
        self._rebuild = rebuild
        self.journal: list[Hashable] | None
        self._clear()
        if base is None:
            return
        self.base = base
        self.get, self.has = self._get_both, self._has_both
        self.last_birth = base.last_birth
        self.records = self.noted = base.about.records
        self.file_nbytes = base.about.file_nbytes
        self.batches = [*base.batches]
        self.inline = {base.key(row): None for row in base.about.inline}
        self._count = len(base)
        about = base.about
        # Sorted, so it is a heap already.
        self._deadlines = [
            (deadline, next(self._order), _Row(row))
            for deadline, row in zip(about.deadlines, about.expiring, strict=True)
        ]
        self.due = about.deadlines[0] if about.deadlines else NEVER

    def _clear(self) -> None:
        self._replace({})
        self.base = None
        self.last_birth = self.file_nbytes = 0
        self.batches, self.inline = [], {}
        self.journal = None
        self.due = NEVER
        self._deadlines = []
        self.expired.clear()
        self.hidden: set[int] = set()
        self._count = 0  # of live keys, where there is a base
        self._in_order = True
        # Keys born last and their births, in order; some may be gone. Empty: not known.
        self._newest: deque[tuple[Hashable, int]] = deque(maxlen=MOST_NEWEST)
        self._looked = 8  # keys that were looked for at once
        # The key last asked of the base, its row, its entry: who reads a value, or
        # deletes it, asks several times, and what the base says never changes.
        self._latest: tuple[Any, int, AnyEntry | None] = (MISSING, -1, None)

    def __len__(self) -> int:
        return len(self.entries) if self.base is None else self._count

    def keys(self) -> list[Hashable]:
        """The live keys in order of birth. O(keys)."""
        return [key for key, _ in self.items()] if self.base else [*self.ordered()]

    def items(self) -> list[tuple[Hashable, AnyEntry]]:
        """The live entries in order of birth. O(keys)."""
        return [*self.ordered().items()]

    def ordered(self) -> dict[Hashable, AnyEntry]:
        """The live entries in order of birth, as a dict.

        O(1), or O(n log n) once after keys were published in another order; with a
        checkpoint O(n).
        """
        if self.base is not None:
            return self._ordered_both()
        if not self._in_order:
            self._replace(_by_birth(self.entries))
            self._in_order = True
        return self.entries

    def last(self) -> Any:
        """The key that was born last; there must be one. O(1) on average."""
        while True:
            while self._newest:
                key, birth = self._newest[-1]
                entry = self.get(key)
                if entry is not None and entry.birth == birth:
                    return key
                self._newest.pop()  # it went since
            # Some more each time: a look at the end of a dict passes all that went there.
            self._looked = min(2 * self._looked, MOST_NEWEST)
            self._newest.extend(self._born_last(self._looked))

    def _born_last(self, count: int) -> list[tuple[Hashable, int]]:
        """Some of the keys that were born last, and their births, in order."""
        base = self.base
        if base is None:
            some = [*islice(reversed(self.ordered().items()), count)]
            return [(key, entry.birth) for key, entry in reversed(some)]
        live = (pair for pair in self.entries.items() if pair[1] is not None)
        some = heapq.nlargest(count, live, key=_order)
        try:
            rows = range(len(base) - 1, -1, -1)
            for row in islice(filterfalse(self.hidden.__contains__, rows), count):
                key = base.key(row)
                if key not in self.entries:
                    some.append((key, base.entry(row)))
        except LOST:
            self.lose_base()
            return self._born_last(count)
        # Not all of them: further down there may be others in between.
        some = sorted(some, key=_order)[-count:]
        return [(key, entry.birth) for key, entry in some]

    def next_birth(self) -> int:
        """A birth number higher than every one seen."""
        self.birth += 1
        return self.birth

    def apply(self, key: Hashable, entry: Entry) -> None:
        """Let one record change the live entries."""
        self.change(key, entry, None if entry.gone == "all" else self.get(key))

    def change(self, key: Hashable, entry: Entry, old: AnyEntry | None) -> None:
        """`apply`, where *old* is known to be the live entry of *key*."""
        self.records += 1
        if self.journal is not None:
            self.note([key])
        if entry.value is not None and entry.expires is None:
            # Small values that are published one by one: every process that has the
            # chest open comes here with each of them.
            birth = entry.birth
            if old is None:
                if birth > self.last_birth and self.base is None and not self.expired:
                    self.entries[key], self.inline[key] = entry, None
                    self.last_birth = birth
                    if birth > self.birth:
                        self.birth = birth
                    if self._newest:
                        self._newest.append((key, birth))
                    return
            elif (
                type(old) is Entry
                and old.value is not None
                and old.birth == birth
                and old.expires is None
            ):
                self.entries[key] = entry
                return
        self._change(key, entry, old)

    def _change(self, key: Hashable, entry: Entry, old: AnyEntry | None) -> None:
        """`change`, whatever there is to do."""
        if entry.gone == "all":
            self._clear()
            return
        if old is not None:
            self._outdate(key, old)
        if self.expired:
            self.expired.pop(key, None)
        if entry.gone:
            self._remove(key, old)
        else:
            self._take(key, entry, old)

    def _take(self, key: Hashable, entry: Entry, old: AnyEntry | None) -> None:
        """Let *entry* live in the place of *old*, which is outdated already."""
        if entry.value is None:
            self.file_nbytes += entry.size
        elif entry.expires is None:
            self.inline[key] = None
        self._put(key, entry, entry.birth, old)
        if entry.expires is not None:
            item: tuple[float, int, Any] = entry.expires, next(self._order), key
            heapq.heappush(self._deadlines, item)
            if len(self._deadlines) > MOST_DEADLINES + 2 * len(self):
                self._forget_deadlines()
            self.due = self._deadlines[0][0]

    def _forget_deadlines(self) -> None:
        """Drop deadlines that entries do not have any more. O(deadlines)."""
        # A key that is touched again and again leaves one each time.
        kept = []
        for item in self._deadlines:
            deadline, _, key = item
            entry = None if type(key) is _Row else self.get(key)
            if type(key) is _Row or (entry is not None and entry.expires == deadline):
                kept.append(item)
        self._deadlines = kept
        heapq.heapify(kept)

    def held(self, key: Hashable) -> AnyEntry | None:
        """The entry whose value is on the disk still: the live one, or one that expired."""
        return self.get(key) or self.expired.get(key)

    def expire(self, now: float) -> list[Hashable]:
        """Let entries go whose deadline is not after *now*; returns their keys.

        They stand in `expired` until a record ends them. O(log n) each.
        """
        base, gone = self.base, list[Hashable]()
        while self.due <= now:
            deadline, _, key = heapq.heappop(self._deadlines)
            self.due = self._deadlines[0][0] if self._deadlines else NEVER
            if type(key) is _Row:
                key = self._base_key(key)
            entry = self.get(key)
            # Else it was deleted, replaced, or given another deadline since.
            if entry is not None and entry.expires == deadline:
                self._end(key, entry)
                gone.append(key)
        if gone and self.journal is not None:
            self.note(gone)
        # Without its base the index was made anew, and expired what it had to.
        return gone if self.base is base else [*self.expired]

    def end_again(self, expired: Mapping[Hashable, AnyEntry]) -> None:
        """Let go what another index of the same log had `expired`, and nobody set since.

        Whatever the clock says: it may have been set back.
        """
        for key, old in expired.items():
            entry = self.get(key)
            known = old.generation, old.expires
            if entry is not None and (entry.generation, entry.expires) == known:
                self._end(key, entry)

    def _end(self, key: Hashable, entry: AnyEntry) -> None:
        self._outdate(key, entry)
        self._remove(key, entry)
        self.expired[key] = entry

    def _base_key(self, row: int) -> Any:
        assert self.base is not None
        try:
            return self.base.key(row)
        except LOST:
            self.lose_base()
            return None  # whose deadline it was is in the heap anew

    def apply_batch(
        self, batch: Batch, named: Sequence[Hashable], dead: frozenset[int]
    ) -> None:
        """Let the record of a batch change the live entries; *named* are its keys."""
        self.batches.append(batch)
        self.records += batch.record.count
        entries = self.entries
        if self.journal is not None:
            self.note(named)
        for key in named if self.expired else ():
            self.expired.pop(key, None)
        births = batch.births()
        new = births[0] > self.last_birth and births == sorted(births)
        if new and not dead and self.are_new(named):
            # The usual case, new keys in order, at the speed of C.
            packed = map(Packed, repeat(batch), range(len(named)))
            entries.update(zip(named, packed, strict=True))
            self._count += len(named)
            self.last_birth = births[-1]
            self.birth = max(self.birth, births[-1])
            self._newest.clear()
            return
        for place, key in enumerate(named):
            if place in dead:
                batch.kill(place)
                continue
            old = self.get(key)
            if old is not None:
                self._outdate(key, old)
            self._put(key, Packed(batch, place), births[place], old)

    def are_new(self, named: Sequence[Hashable]) -> bool:
        """Whether none of these keys was ever here, as far as is known in memory."""
        if not self.entries.keys().isdisjoint(named):
            return False
        return self.base is None or not any(map(self.has, named))

    def note(self, changed: Sequence[Hashable]) -> None:
        """Add keys to the `journal`, if anybody reads it."""
        if self.journal is not None:
            self.journal.extend(changed)
            if len(self.journal) > MOST_NOTED + len(self):
                self.journal = None

    def pack_nbytes(self) -> int:
        """Bytes of all packed values, live or not. O(batches)."""
        return sum(batch.nbytes for batch in self.batches)

    def names(self) -> set[str]:
        """Every file that the live entries may need. O(keys in no batch)."""
        names = {entry.name for entry in self.filed()}
        names.update(batch.name for batch in self.batches)
        names.discard("")
        return names

    def filed(self) -> list[AnyEntry]:
        """The entries in no batch, and all that expired. O(them)."""
        found: list[AnyEntry] = [
            entry for entry in [*self.entries.values()] if type(entry) is Entry
        ]
        found += self.expired.values()
        if self.base is not None:
            try:
                found += (e for row, e in self.base.alone() if row not in self.hidden)
            except LOST:
                self.lose_base()
                return self.filed()
        return found

    # -- over a checkpoint -------------------------------------------------------------

    def _get_both(self, key: Hashable) -> AnyEntry | None:
        entry: AnyEntry | None = self.entries.get(key, MISSING)
        if entry is not MISSING:
            return entry
        latest = self._latest
        if latest[0] is key:
            return latest[2]
        base = self.base
        assert base is not None
        try:
            row, entry = base.find(key)
        except LOST:
            self.lose_base()
            return self.get(key)
        self._latest = key, row, entry
        return entry

    def _has_both(self, key: Hashable) -> bool:
        entry: AnyEntry | None = self.entries.get(key, MISSING)
        if entry is not MISSING:
            return entry is not None
        base = self.base
        assert base is not None
        try:
            return base.find(key)[0] >= 0
        except LOST:
            self.lose_base()
            return self.has(key)

    def _row(self, key: Hashable) -> int:
        """The row of the base that still speaks for *key*; -1 when none does."""
        if self.base is None:
            return -1
        latest = self._latest
        row = latest[1] if latest[0] is key else self.base.find(key)[0]
        return -1 if row in self.hidden else row

    def _ordered_both(self) -> dict[Hashable, AnyEntry]:
        base, hidden, entries = self.base, self.hidden, self.entries
        assert base is not None
        try:
            found: dict[Hashable, AnyEntry] = {}
            for row, key in enumerate(base.keys()):
                if row not in hidden:
                    found[key] = entries.get(key) or base.entry(row)
        except LOST:
            self.lose_base()
            return self.ordered()
        for key, entry in entries.items():
            if entry is not None and key not in found:
                found[key] = entry
        return found if self._in_order else _by_birth(found)

    def succeed(self, other: Index, *, same_log: bool) -> None:
        """Go on where *other* was, which was read from the same log, or its elder."""
        self.end_again(other.expired)
        if same_log:  # else they have no record any more that has to be ended
            self.expired = {**other.expired, **self.expired}
        self.journal = other.journal

    def lose_base(self) -> None:
        """Go on without a checkpoint that is damaged: read the log instead."""
        assert self._rebuild is not None
        fresh = self._rebuild()
        birth = max(self.birth, fresh.birth)
        self.__dict__.update(fresh.__dict__)
        self.birth = birth
        if self.base is None:
            self._replace(self.entries)

    # -- steps -------------------------------------------------------------------------

    def _put(
        self, key: Hashable, entry: AnyEntry, birth: int, old: AnyEntry | None
    ) -> None:
        """Make *entry* the live one, noting whether the order of births holds."""
        kept = old is not None and old.birth == birth
        if self.base is not None:
            if old is None:
                self._count += 1
            row = self._row(key)
            if row >= 0 and not kept:
                self.hidden.add(row)
            if old is None:
                self.entries.pop(key, None)  # a key that is born anew stands last
        if old is not None and not kept:
            # Moved. Not taken out and put in again: who reads without the lock would miss
            # it meanwhile.
            self._in_order = False
        if birth >= self.last_birth:
            self.last_birth = birth
            self.birth = max(self.birth, birth)
            if self._newest and not kept:
                self._newest.append((key, birth))
        elif not kept:
            self._in_order = False
            self._newest.clear()
            self._looked = 8
        self.entries[key] = entry

    def _remove(self, key: Hashable, old: AnyEntry | None) -> None:
        row = self._row(key)
        if row >= 0:
            self.hidden.add(row)
            self.entries[key] = None
        elif self.base is not None and old is not None:
            self.entries[key] = None
        else:
            self.entries.pop(key, None)
        if self.base is not None and old is not None:
            self._count -= 1

    def _outdate(self, key: Hashable, old: AnyEntry) -> None:
        """An entry is replaced or deleted."""
        if type(old) is Packed:
            old.batch.kill(old.place)
        elif old.value is not None:
            self.inline.pop(key, None)
        else:
            self.file_nbytes -= old.size

    def _replace(self, entries: dict[Hashable, AnyEntry]) -> None:
        self.entries: dict[Hashable, Any] = entries
        self.get, self.has = entries.get, entries.__contains__


class _Row(int):
    """A row of the base, among the deadlines of keys."""


def _by_birth(entries: dict[Hashable, AnyEntry]) -> dict[Hashable, AnyEntry]:
    return dict(sorted(entries.items(), key=_order))


def _order(item: tuple[Hashable, AnyEntry]) -> tuple[int, int]:
    """What keys are sorted by."""
    return item[1].birth, item[1].generation
