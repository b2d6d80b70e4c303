"""The memory tier: values, their bytes, and who leaves when there are too many.

Owns: what is in memory, how many bytes it takes, which of it is dirty. Does not own: what
exists, or how a value is written.

A value that cannot change, and of which there is nothing to remember but its size, is
*bare*: it has no slot until somebody asks for one. It is dirty if its key is fresh; else
it is what the manifest says. So many small values come, are written and leave without a
slot for each.

Invariants
----------
T1  `used` is the plain bytes of all slots, each shared buffer once, and the bytes of what
    is bare.
T2  A slot is in `slots` exactly as long as it is alive.
T3  `values` has the keys of `slots` and of what is bare; a hit changes none of them.
T4  `fresh` and `newest` together are keys of `values`, in the order in which they came.
T5  A value that goes does so last: its ``__del__`` may use the chest, and so this tier.
"""

from __future__ import annotations

import itertools
import operator
import sys
import threading
from collections import deque
from collections.abc import (
    Collection,
    Hashable,
    Iterable,
    Iterator,
    Sequence,
)
from typing import Any

import msgspec

from chest import eviction, sizing
from chest.index import AnyEntry
from chest.protocols import Policy

__all__ = ["PICKLED", "MemoryTier", "Options", "Slot", "Slots", "Weight", "weigh"]

SMALL = 4096  # bytes; victims below it leave many at a time
ROOM = 16  # small victims leave until 1/ROOM of the budget is free
MOST_HITS = sys.maxsize
RECENT = 4096  # hits that are remembered until the next set, load or spill
MOST_VICTIMS = (
    8192  # taken at once, so that the first is gone before the last is chosen
)

_SCALARS = sizing.SCALARS
_measure = sizing.measure
_getsizeof = sys.getsizeof

Weight = tuple[int, dict[int, int] | None]  # bytes; shared buffers, None: immutable
Options = tuple[str | None, str | None]  # a key's own format and mapped=
PICKLED: Options = ("pickle", None)  # those of what was read from a pack


def weigh(value: Any) -> Weight:
    """How many bytes *value* takes; no buffers for what can never change."""
    if type(value) in _SCALARS:
        return _getsizeof(value), None
    return _measure(value)


# Not tracked by the collector: a million tracked slots would make each full collection
# visit them all.
class Slot(msgspec.Struct, eq=False, gc=False):
    """What is known of one value in memory.

    Attributes
    ----------
    key : object
    nbytes : int
        All bytes it keeps alive, shared ones too.
    tick : int
        When it was last used, as far as `MemoryTier.settle` has seen: the highest is
        the latest.
    plain : int
        Bytes that it shares with no other value.
    buffers : dict of int to int, or None
        Address and bytes of those that it may share.
    fixed : bool
        It cannot be changed in place, so it is not compared before it is dropped.
    options : Options or None
        The key's own format and ``mapped=``.
    dirty : bool
        Newer than the manifest.
    alive : bool
        Still in memory.
    entry : AnyEntry or None
        What the manifest said when it was loaded or written; None also of what came bare.
    inherited : bool
        Dirty, but set by the process that this one was forked from.
    cost : float
        Seconds to make or load it.
    offered : bool
        The policy knows of it.
    seen : int
        The generation of the key's entry when the value was taken to be written, or with
        an ``on_conflict`` when it was set.
    """

    key: Any
    nbytes: int
    plain: int
    buffers: dict[int, int] | None = None
    fixed: bool = True
    options: Options | None = None
    dirty: bool = True
    alive: bool = True
    entry: AnyEntry | None = None
    inherited: bool = False
    cost: float = 0.0
    offered: bool = False
    seen: int = 0
    tick: int = 0


class MemoryTier:
    """Values in memory under a byte budget.

    Parameters
    ----------
    budget : int
        Bytes.
    policy : Policy
        Chooses who leaves.

    Attributes
    ----------
    values : dict
        Key → value.
    slots : dict
        Key → slot, of what is not bare.
    fresh : dict of key to int or None
        Keys that no record has, and their births, which are given late.
    newest : list of key
        Bare ones that are not in `fresh` yet; `note` takes them over.
    changes : int
        Grows whenever a value in memory is replaced or goes, or gets a slot.

    Notes
    -----
    Not thread-safe but for what a hit does; the chest's lock is held around the rest. A
    hit looks into `values`, and takes one of `counter` and adds to `touched`: no slot is
    looked at, which would be another two cache misses.
    """

    def __init__(self, budget: int, policy: Policy) -> None:
        self.budget = budget
        self.policy = policy
        self.values: dict[Hashable, Any] = {}
        self.slots: dict[Hashable, Slot] = {}
        self.fresh: dict[Hashable, int | None] = {}
        self.newest: list[Hashable] = []
        self.used = self.changes = 0
        # What is left tells how many hits there were; the cheapest that Python has to
        # count with, a fifth less for a hit than `itertools.count`, which makes numbers.
        self.counter: Iterator[None] = itertools.repeat(None, MOST_HITS)
        self._tick = 0
        self._slotted = 0  # what of `used` is not bare
        # Keys in the order in which they came or were used, since `settle`; the latest
        # of them wait in `newest` and, after those, in `touched`.
        self.uses: list[Hashable] = []
        self.touched: deque[Hashable] | _LastUses = deque(maxlen=RECENT)
        if isinstance(policy, eviction.LeastRecent):
            self.touched = _LastUses()
        self._leaving = 0
        self._buffers: dict[int, list[int]] = {}  # address: [slots, bytes]

    def put(
        self,
        key: Hashable,
        value: Any,
        plain: int,
        buffers: dict[int, int] | None,
        known: Slot | None = None,
        options: Options | None = None,
    ) -> Slot:
        """Take *value* in, dirty, in place of the slot *known* that *key* has. O(1)."""
        old = self.values.get(key)  # T5
        self.note()
        if buffers is None:
            slot = Slot(key, plain, plain)
        else:
            total = plain + sum(buffers.values())
            slot = Slot(key, total, plain, buffers, False)
            self._share(buffers)
        if options:
            slot.options = options
        if known is not None:
            self._release(known)
        self.slots[key] = slot
        self.values[key] = value
        self.uses.append(key)
        self._count_bytes(plain)
        del old
        return slot

    def put_clean(
        self,
        key: Hashable,
        value: Any,
        weight: Weight,
        entry: AnyEntry,
        known: Slot | None = None,
        options: Options | None = None,
    ) -> Slot:
        """Take *value* in, which is what *entry* says, unless it is too large to stay."""
        old = self.values.get(key)  # T5
        slot = self.put(key, value, *weight, known, options)
        slot.dirty, slot.entry = False, entry
        if slot.nbytes > self.budget:
            self.drop(slot)
        del old
        return slot

    def came(self, key: Hashable, value: Any, plain: int) -> None:
        """Take in *value*, just read, that cannot change, of a key that is not there."""
        if self.newest or self.touched:
            self.note()
        self.values[key] = value
        self.uses.append(key)
        self.used += plain

    def slot(self, key: Hashable) -> Slot | None:
        """The slot of *key*, made if its value is bare; None: it is not in memory. O(1)."""
        slot = self.slots.get(key)
        if slot is None and key in self.values:
            self.note()
            slot = self._made(key)
        return slot

    def bare_fresh(self) -> list[Hashable]:
        """The keys of what is bare and dirty, in the order in which they came."""
        self.note()
        if not self.slots:
            return [*self.fresh]
        return [key for key in self.fresh if key not in self.slots]

    def unwritten(self) -> list[Slot]:
        """The slots of all that may differ from the manifest. O(those)."""
        for key in self.bare_fresh():
            self._made(key)
        return [*self.slots.values()]

    @property
    def dirty(self) -> int:
        """How many values are dirty. O(values)."""
        slotted = sum(slot.dirty for slot in self.slots.values())
        return slotted + len(self.bare_fresh())

    def drop(self, slot: Slot) -> None:
        """Let a value go; nothing happens when it has gone already."""
        if slot.alive:
            # In this order: after Ctrl-C `mend` knows one that is half gone, and the
            # policy does not offer it any more.
            self._release(slot)
            old = self.values.pop(slot.key)  # T5
            del self.slots[slot.key]
            del old

    def forget(self, key: Hashable) -> None:
        """Let go of what *key* has, if it has anything."""
        slot = self.slots.get(key)
        if slot is not None:
            self.drop(slot)
        elif key in self.values:
            if self.newest:
                self.note()
            self._bare_went((self.values.pop(key),))

    def forget_many(self, gone: Collection[Hashable]) -> None:
        """`forget` each of them, which are named once."""
        values, slots = self.values, self.slots
        bare: list[Hashable] = []
        for key in gone if values else ():
            slot = slots.get(key)
            if slot is not None:
                self.drop(slot)
            elif key in values:
                bare.append(key)
        if bare:
            self.drop_bare(bare)

    def drop_clean(self, slots: Iterable[Slot], stay: Collection[int] = ()) -> None:
        """Let those go that are not dirty, but for the ids in *stay*."""
        known, values = self.slots, self.values
        gone = []  # T5
        for slot in slots:
            if slot.dirty or not slot.alive or (stay and id(slot) in stay):
                continue
            self._release(slot)  # in the order of `drop`
            gone.append(values.pop(slot.key))
            del known[slot.key]
        self._none_left()
        del gone

    def drop_bare(self, gone: Iterable[Hashable] | None = None) -> None:
        """Let go of bare values: those of the keys *gone*, or all that are not fresh."""
        self.note()
        if gone is None:
            gone = self.values.keys() - self.slots.keys() - self.fresh.keys()
        self._bare_went([*map(self.values.pop, gone)])

    def clear(self) -> None:
        """Let all values go."""
        gone = [*self.values.values()]  # T5
        for slot in self.slots.values():
            slot.alive = False
        for held in (self.slots, self.values, self.fresh, self._buffers):
            held.clear()
        for listed in (self.newest, self.uses, self.touched):
            listed.clear()
        self.used = self._slotted = 0
        self.changes += 1
        del gone

    def mend(self) -> None:
        """Bring together what belongs together, after a change that was cut short."""
        self.note()
        for held in (self.slots, self.fresh):
            for key in [key for key in held if key not in self.values]:
                del held[key]
        self._buffers.clear()
        self.used = self._slotted = 0
        for key, old in [*self.slots.items()]:
            # New ones: who knows whether the policy has the old.
            self.slots[key] = new = msgspec.structs.replace(
                old, alive=True, offered=False
            )
            old.alive = False
            self._count_bytes(new.plain)
            self._share(new.buffers or {})
        bare = (value for key, value in self.values.items() if key not in self.slots)
        self.used += sum(map(_getsizeof, bare))
        self.uses = [*self.values]
        self.changes += 1

    def victims(self, goal: int | None = None) -> tuple[list[Slot], int]:
        """Slots whose going would bring `used` to *goal*, and their bytes.

        Without a goal it is the budget.

        Large ones just so many as are needed; small ones until 1/16 of the budget is
        free, so that a full budget does not mean one file for each new value. They
        stay until they are dropped, and are offered again only after `keep`. The bytes
        count as leaving until `left` takes them back.
        """
        self.settle()
        chosen: list[Slot] = []
        left = before = self.used - self._leaving
        if goal is None:
            goal = self.budget
        while left > goal and len(chosen) < MOST_VICTIMS:
            slot = self.policy.pop()
            if slot is None:
                break
            assert isinstance(slot, Slot)
            chosen.append(slot)
            left -= self._exclusive(slot)
            if slot.nbytes < SMALL:
                goal = min(goal, self.budget - self.budget // ROOM)
        self._leaving += before - left
        return chosen, before - left

    def left(self, nbytes: int) -> None:
        """The victims of one call of `victims` were dealt with."""
        self._leaving -= nbytes

    def keep(self, slot: Slot) -> None:
        """A victim could not be written: it stays, and is a candidate again later."""
        if slot.alive and slot.offered:  # else it will be
            self.policy.put_back(slot)

    def retry(self) -> None:
        """Offer those that could not be written again, though nothing has come."""
        # A policy offers them after the next `add`; a dead slot is as good as any.
        self.policy.add(Slot(None, 0, 0, alive=False))

    @property
    def hits(self) -> int:
        """Values found in memory."""
        return MOST_HITS - operator.length_hint(self.counter)

    def note(self) -> None:
        """Take over what came, and then what was used, since the last call."""
        newest, touched = self.newest, self.touched
        if newest:
            came = dict.fromkeys(newest)
            if newest:  # else a signal's handler has flushed them
                self.fresh.update(came)
            self.uses += newest
            newest.clear()
        if touched:
            # A hit of another thread between these two is forgotten, which costs nothing
            # but its place among those that leave.
            self.uses += touched
            touched.clear()
        if len(self.uses) > RECENT + 2 * len(self.values):
            self.uses = [*filter(self.values.__contains__, self.uses)]
            if len(self.uses) > RECENT + 2 * len(self.values):
                self.uses = [*reversed(dict.fromkeys(reversed(self.uses)))]

    def settle(self) -> None:
        """Give each value a slot, and bring them into the order of their last use."""
        self.note()
        slots, values, add = self.slots, self.values, self.policy.add
        tick = self._tick
        for key in self.uses:
            slot = slots.get(key)
            if slot is None:
                if key not in values:
                    continue
                slot = self._made(key)
            slot.tick = tick = tick + 1
            if not slot.offered:
                slot.offered = True
                add(slot)
        self._tick = tick
        self.uses.clear()

    def _made(self, key: Hashable) -> Slot:
        """A slot for a value that is bare."""
        plain = _getsizeof(self.values[key])
        slot = self.slots[key] = Slot(key, plain, plain)
        if key not in self.fresh:
            slot.dirty, slot.options = False, PICKLED
        self.changes += 1
        self._slotted += plain
        if len(self.values) == len(self.slots):
            self.used = self._slotted  # as in `drop_bare`
        return slot

    def _bare_went(self, values: Sequence[Any]) -> None:
        """Bare values went: take their bytes off."""
        self.changes += 1
        self._none_left()
        if len(self.uses) > RECENT + 2 * len(self.values):
            self.note()  # what comes and goes again and again leaves one each time
        if len(self.values) == len(self.slots):
            # Exact: a str may have grown since it came, by its own UTF-8.
            self.used = self._slotted
        else:
            self.used -= sum(map(_getsizeof, values))

    def _none_left(self) -> None:
        """Where no value is left, nothing is that was noted of one."""
        if not self.values:
            # Exact also after Ctrl-C in the middle of a change.
            self.uses.clear()
            self._buffers.clear()
            self.used = self._slotted = 0

    def _count_bytes(self, nbytes: int) -> None:
        """Add bytes of what is not bare."""
        self.used += nbytes
        self._slotted += nbytes

    def _exclusive(self, slot: Slot) -> int:
        """Bytes that would be free if *slot* went."""
        if not slot.buffers:
            return slot.plain
        alone = (
            size
            for address, size in slot.buffers.items()
            if self._buffers[address][0] == 1
        )
        return slot.plain + sum(alone)

    def _share(self, buffers: dict[int, int]) -> None:
        for address, size in buffers.items():
            known = self._buffers.get(address)
            if known is None:
                self._buffers[address] = [1, size]
                self._count_bytes(size)
                continue
            known[0] += 1
            if size > known[1]:  # what is known of a buffer may grow, never shrink
                self._count_bytes(size - known[1])
                known[1] = size

    def _release(self, slot: Slot) -> None:
        """Take the bytes of a slot off."""
        slot.alive = False
        self.changes += 1
        self._count_bytes(-slot.plain)
        for address in slot.buffers or ():
            known = self._buffers[address]
            known[0] -= 1
            if not known[0]:
                del self._buffers[address]
                self._count_bytes(-known[1])


class _LastUses(dict[Hashable, None]):
    """Each key in its last place: where recency is all that counts, none is forgotten."""

    __slots__ = ()

    def append(self, key: Hashable) -> None:
        """Put *key* last."""
        self.pop(key, None)
        self[key] = None


class Slots:
    """The slots of all values in memory by key, made when they are first asked for.

    Parameters
    ----------
    memory : MemoryTier
    lock : RLock
        The chest's.
    """

    __slots__ = ("_lock", "_memory", "_slots", "_values")

    def __init__(self, memory: MemoryTier, lock: threading.RLock) -> None:
        self._memory, self._lock = memory, lock
        self._slots, self._values = memory.slots, memory.values

    def get(self, key: Hashable) -> Slot | None:
        """The slot of *key*; None: its value is not in memory."""
        slot = self._slots.get(key)
        if slot is None and key in self._values:
            with self._lock:
                slot = self._memory.slot(key)
        return slot

    def __getitem__(self, key: Hashable) -> Slot:
        slot = self.get(key)
        if slot is None:
            raise KeyError(key)
        return slot

    def __contains__(self, key: Hashable) -> bool:
        return key in self._values

    def __iter__(self) -> Iterator[Hashable]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)
