"""What exists: the live entries that replaying the manifest leaves.

Owns: the entries by key, their order of birth, the birth numbers, which of a pack's values
are live. Does not own: the log they come from.

What a checkpoint has seen is asked of the checkpoint; what happened since lies over it in
a dict, where None stands for a key that is gone. A row of the checkpoint speaks for its
key as long as that dict does not have the key.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from itertools import islice, repeat
from typing import Any

from chest.base import LOST, AnyEntry, Base
from chest.batches import Batch, Packed, Tally
from chest.expiry import NEVER, Deadlines
from chest.records import Entry

__all__ = ["LOST", "AnyEntry", "Index", "same", "unchanged"]

MISSING: Any = object()
MOST_DEADLINES = 1024  # more than twice the keys; those that hold no more are dropped
MOST_NEWEST = 4096  # keys born last that are known at once
MOST_NOTED = 1 << 16  # keys more than there are; whoever reads the journal starts anew


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
        The highest birth number ever given, by records or to keys in memory.
    last_birth : int
        The highest that a record has given.
    base : Base, optional
        What a checkpoint has seen.
    rebuild : callable, optional
        Makes an index without a base, from the log, when the checkpoint turns out to be
        damaged.

    Attributes
    ----------
    get : callable
        key → its live entry as far as the log was read, or None. O(1).
    find : callable
        `get` for who asks about a key but once, for less.
    has : callable
        key → whether it has one, for less still.
    last_birth : int
        The highest birth that a record has given, whatever became of it.
    records : int
        How many entries were applied; those that are not live any more are waste.
    batches : list of Batch
        Those that were applied.
    packs : dict of str to Tally
        What those of each pack come to.
    inline : dict
        Keys whose value lies in the log until it is settled.
    due : float
        The next deadline of an entry [Unix time]; infinity: there is none.
    expired : dict of key to entry
        What `expire` has ended and no record has yet.
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
        last_birth: int = 0,
        base: Base | None = None,
        rebuild: Callable[[], Index] | None = None,
    ) -> None:
        self.birth, self.last_birth = birth, last_birth
        self.records = self.noted = 0
        self.base: Base | None = None
        self.batches: list[Batch]
        self.packs: dict[str, Tally]
        self.inline: dict[Hashable, None]
        self.expired: dict[Hashable, AnyEntry] = {}
        self._deadlines: Deadlines
        self.find: Callable[[Hashable], AnyEntry | None]
        self.get: Callable[[Hashable], AnyEntry | None]
        self.has: Callable[[Hashable], bool]
        self._rebuild = rebuild
        self.journal: list[Hashable] | None
        self._clear()
        if base is None:
            return
        self.base = base
        self._replace(self.entries)
        self.records = self.noted = base.about.records
        self.file_nbytes = base.about.file_nbytes
        self.batches = [*base.batches]
        for batch in self.batches:
            batch.join(self.packs)
        self.inline = {base.key(row): None for row in base.about.inline}
        self._count = self._end_row = len(base)
        about = base.about
        for deadline, row in zip(about.deadlines, about.expiring, strict=True):
            self._deadlines.add(deadline, _Row(row))
        self.due = self._deadlines.next

    def _clear(self) -> None:
        self.base = None
        self._replace({})
        self.file_nbytes = 0
        self.batches, self.packs, self.inline = [], {}, {}
        self.journal = None
        self.due, self._deadlines = NEVER, Deadlines()
        self.expired.clear()
        self._count = 0  # of live keys, where there is a base
        self._in_order = True
        self._reborn = False  # keys of `entries` were gone: not in order, over a base
        self._end_row = 0  # of the base; from here on newer entries speak for all keys
        # Keys born last and their births, in order; some may be gone. Empty: not known.
        self._newest: deque[tuple[Hashable, int]] = deque(maxlen=MOST_NEWEST)
        self._looked = 8  # keys that were looked for at once

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
            some += islice(self._last_rows(base), count)
        except LOST:
            self.lose_base()
            return self._born_last(count)
        # Not all of them: further down there may be others in between.
        some = sorted(some, key=_order)[-count:]
        return [(key, entry.birth) for key, entry in some]

    def _last_rows(self, base: Base) -> Iterator[tuple[Hashable, AnyEntry]]:
        """The rows that still speak for their keys, the last first."""
        entries, row, passed = self.entries, self._end_row, True
        while row:
            row -= 1
            key = base.key(row)
            if key not in entries:
                passed = False
                yield key, base.entry(row)
            elif passed:
                self._end_row = row  # not to be passed again

    def births_from(self, lowest: int) -> set[int]:
        """The births that are not below *lowest*; some of them may be past."""
        live = (entry.birth for entry in [*self.entries.values()] if entry is not None)
        found = {birth for birth in live if birth >= lowest}
        if self.base is not None:
            try:
                found.update(self.base.births_from(lowest))
            except LOST:
                self.lose_base()
                return self.births_from(lowest)
        return found

    def next_birth(self) -> int:
        """A birth number higher than every one seen."""
        self.birth += 1
        return self.birth

    def find_many(self, named: Collection[Hashable]) -> dict[Any, AnyEntry]:
        """Those of these keys that are live, and their entries."""
        entries, found = self.entries, dict[Any, AnyEntry]()
        unknown = named
        if not entries.keys().isdisjoint(named):
            unknown = [key for key in named if key not in entries]
            known = ((key, entries.get(key)) for key in named)
            found = {key: entry for key, entry in known if entry is not None}
        if self.base is None or not unknown:
            return found
        try:
            return found | self.base.find_many([*unknown])
        except LOST:
            self.lose_base()
            return self.find_many(named)

    def end_many(self, named: Sequence[Hashable], live: Mapping[Any, AnyEntry]) -> None:
        """Let one record end all these keys; *live* is what `find_many` says of them."""
        self.records += len(named)
        self.note(named)
        for key in named if self.expired else ():
            self.expired.pop(key, None)
        self._outdate_many(live)
        if self.base is None:
            for key in live:
                del self.entries[key]
        else:
            self.entries.update(dict.fromkeys(live))  # lest a row speaks for them
            self._count -= len(live)

    def end(self, key: Hashable, old: AnyEntry) -> None:
        """Let one record end a key whose live entry is *old*."""
        self.records += 1
        self.note([key])
        self._end(key, old)
        del self.expired[key]  # the record has ended it

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
            if not birth:
                birth = self.last_birth + 1 if old is None else old.birth
                entry.birth = birth
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
            self._deadlines.add(entry.expires, key)
            if len(self._deadlines) > MOST_DEADLINES + 2 * len(self):
                # A key that is touched again and again leaves one each time.
                self._deadlines.keep(self._ends)
            self.due = self._deadlines.next

    def _ends(self, deadline: float, key: Any) -> bool:
        """Whether an entry may have that deadline still."""
        entry = None if type(key) is _Row else self.get(key)
        return type(key) is _Row or (entry is not None and entry.expires == deadline)

    def held(self, key: Hashable) -> AnyEntry | None:
        """The entry whose value is on the disk still: the live one, or one that expired."""
        return self.get(key) or self.expired.get(key)

    def expire(self, now: float) -> list[Hashable]:
        """Let entries go whose deadline is not after *now*; returns their keys.

        They stand in `expired` until a record ends them. O(log n) each.
        """
        base, gone = self.base, list[Hashable]()
        while self.due <= now:
            deadline, key = self._deadlines.pop()
            self.due = self._deadlines.next
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
        self,
        batch: Batch,
        named: Sequence[Hashable],
        dead: frozenset[int],
        live: Mapping[Any, AnyEntry] | None = None,
    ) -> None:
        """Let the record of a batch change the live entries; *named* are its keys.

        *live* is what `find_many` says of those that are not in *dead* places.
        """
        if len(dead) == batch.record.count:
            self._bury(batch, dead)
            return
        places = [*range(len(named))]
        if dead:
            places = [place for place in places if place not in dead]
        if live is None:
            live = self.find_many([named[place] for place in places] if dead else named)
        self.batches.append(batch)
        batch.join(self.packs)
        self.records += batch.record.count
        entries = self.entries
        if self.journal is not None:
            self.note(named)
        for key in named if self.expired else ():
            self.expired.pop(key, None)
        if dead:
            batch.kill_many(dead)
        births = batch.births()
        new = births[0] > self.last_birth and births == sorted(births)
        # Keys that were deleted since the checkpoint are there, as None.
        if new and not (dead or live) and entries.keys().isdisjoint(named):
            # The usual case, new keys in order, at the speed of C.
            packed = map(Packed, repeat(batch), places)
            entries.update(zip(named, packed, strict=True))
            self._count += len(named)
            self.last_birth = births[-1]
            self.birth = max(self.birth, births[-1])
            self._newest.clear()
            return
        self._outdate_many(live)
        for place in places:
            key, birth = named[place], births[place]
            old = live.get(key)
            if old is not None and old.birth == birth:
                entries[key] = Packed(batch, place)  # as `_put`, where nothing moves
            else:
                self._put(key, Packed(batch, place), birth, old)

    def _bury(self, batch: Batch, dead: frozenset[int]) -> None:
        """`apply_batch` where nothing is live: it takes room in its pack, and no more."""
        self.batches.append(batch)
        batch.join(self.packs)
        batch.kill_many(dead)
        self.records += batch.record.count

    def note(self, changed: Sequence[Hashable]) -> None:
        """Add keys to the `journal`, if anybody reads it."""
        if self.journal is not None:
            self.journal.extend(changed)
            if len(self.journal) > MOST_NOTED + len(self):
                self.journal = None

    @property
    def alone(self) -> int:
        """How many live entries are in no batch. O(packs)."""
        packs = self.packs.values()
        return len(self) - sum(tally.count - tally.dead for tally in packs)

    def pack_nbytes(self) -> int:
        """Bytes of all packed values, live or not. O(packs)."""
        return sum(tally.nbytes for tally in self.packs.values())

    def names(self) -> set[str]:
        """Every file that the live entries may need. O(keys in no batch)."""
        names = {entry.name for entry in self.filed()}
        names.update(self.packs)
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
                alone, newer = self.base.alone(), self.entries
                found += (entry for key, entry in alone if key not in newer)
            except LOST:
                self.lose_base()
                return self.filed()
        return found

    # -- over a checkpoint -------------------------------------------------------------

    def _remembering(
        self, find: Callable[[Hashable], AnyEntry | None]
    ) -> Callable[[Hashable], AnyEntry | None]:
        """`find`, where the one who asks may ask again."""
        # The key that was found last, and its entry, which is true as long as there is
        # no newer one: who changes or removes a key asks several times.
        latest: tuple[Any, AnyEntry | None] = (MISSING, None)

        def get(key: Hashable) -> AnyEntry | None:
            nonlocal latest
            known, entry = latest
            if known is key and key not in self.entries:
                return entry
            entry = find(key)
            if entry is not None:
                latest = key, entry
            return entry

        return get

    def _find_anew(self, key: Hashable) -> AnyEntry | None:
        if self.base is not None:  # else another thread has met the damage as well
            self.lose_base()
        return self.find(key)

    def _ordered_both(self) -> dict[Hashable, AnyEntry]:
        base: Any = self.base
        entries = self.entries
        try:
            found: dict[Hashable, AnyEntry] = {}
            for row, key in enumerate(base.keys()):
                newer = entries.get(key, MISSING)
                if newer is MISSING:
                    found[key] = base.entry(row)
                elif newer is not None and newer.birth == base.birth(row):
                    found[key] = newer  # else it was born anew, or moved
        except LOST:
            self.lose_base()
            return self.ordered()
        born = [pair for pair in entries.items() if pair[1] and pair[0] not in found]
        found.update(sorted(born, key=_order) if self._reborn else born)
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
        if self.base is not None and old is None:
            self._count += 1
            # It stays where it is: who reads without the lock would find its row meanwhile.
            self._reborn = self._reborn or key in self.entries
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
        if self.base is None:
            self.entries.pop(key, None)
        elif old is not None:
            self.entries[key] = None  # lest a row speaks for it
            self._count -= 1

    def _outdate(self, key: Hashable, old: AnyEntry) -> None:
        """An entry is replaced or deleted."""
        if type(old) is Packed:
            old.batch.kill(old.place)
        elif old.value is not None:
            self.inline.pop(key, None)
        else:
            self.file_nbytes -= old.size

    def _outdate_many(self, live: Mapping[Any, AnyEntry]) -> None:
        """`_outdate` for entries that one record replaces or deletes."""
        packed: dict[Batch, list[int]] = {}
        for key, old in live.items():
            if type(old) is Packed:
                packed.setdefault(old.batch, []).append(old.place)
            else:
                self._outdate(key, old)
        for batch, places in packed.items():
            batch.kill_many(places)

    def _replace(self, entries: dict[Hashable, AnyEntry]) -> None:
        self.entries: dict[Hashable, Any] = entries
        if self.base is None:
            self.get = self.find = entries.get
            self.has = entries.__contains__
        else:
            self.find, self.has = self.base.lookups(entries, self._find_anew)
            self.get = self._remembering(self.find)


class _Row(int):
    """A row of the base, among the deadlines of keys."""


def _by_birth(entries: dict[Hashable, AnyEntry]) -> dict[Hashable, AnyEntry]:
    return dict(sorted(entries.items(), key=_order))


def _order(item: tuple[Hashable, AnyEntry]) -> tuple[int, int]:
    """What keys are sorted by."""
    return item[1].birth, item[1].generation
