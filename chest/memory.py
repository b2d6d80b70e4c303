"""The memory tier: values, their bytes, and who leaves when there are too many.

Owns: what is in memory, how many bytes it takes, which of it is dirty. Does not own: what
exists, or how a value is written.

Invariants
----------
T1  `used` is the plain bytes of all slots plus each shared buffer once.
T2  A slot is in `slots` exactly as long as it is alive.
T3  `values` has the keys of `slots`; a hit changes neither.
"""

from __future__ import annotations

import itertools
import sys
from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterable
from typing import Any

import msgspec

from chest import eviction, sizing
from chest.index import AnyEntry
from chest.protocols import Policy

__all__ = ["MemoryTier", "Options", "Slot", "Weight", "weigh"]

SMALL = 4096  # bytes; victims below it leave many at a time
ROOM = 16  # small victims leave until 1/ROOM of the budget is free
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
    birth : int
        Orders the keys.
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
        What the manifest said when it was loaded or written.
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
    tick: int
    birth: int
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


class MemoryTier:
    """Values in memory under a byte budget.

    Parameters
    ----------
    budget : int
        Bytes.
    policy : Policy
        Chooses who leaves.

    Notes
    -----
    Not thread-safe but for what a hit does; the chest's lock is held around the rest. A
    hit looks into `values`, and calls `count` and `touch`: no slot is touched, which
    would be another two cache misses.
    """

    def __init__(self, budget: int, policy: Policy) -> None:
        self.budget = budget
        self.policy = policy
        self.values: dict[Hashable, Any] = {}
        self.slots: dict[Hashable, Slot] = {}
        self.used = 0
        self.count = itertools.count().__next__  # of hits
        self._looks = 0  # at that count
        self._tick = 0
        self._touched: deque[Hashable] = deque(maxlen=RECENT)
        self.touch: Callable[[Hashable], object] = self._touched.append
        if isinstance(policy, eviction.LeastRecent):
            self.touch = self._note
        self._leaving = 0
        self._buffers: dict[int, list[int]] = {}  # address: [slots, bytes]

    def put(
        self,
        key: Hashable,
        value: Any,
        birth: int,
        plain: int,
        buffers: dict[int, int] | None,
        known: Slot | None = None,
        options: Options | None = None,
    ) -> Slot:
        """Take *value* in, dirty, in place of the slot *known* that *key* has. O(1)."""
        if self._touched:
            self.settle()
        self._tick = tick = self._tick + 1
        if buffers is None:
            slot = Slot(key, plain, tick, birth, plain)
        else:
            total = plain + sum(buffers.values())
            slot = Slot(key, total, tick, birth, plain, buffers, False)
            self._share(buffers)
        if options:
            slot.options = options
        if known is not None:  # a newcomer stands at the end (see `_offer_newcomers`)
            self._release(self.slots.pop(key))
        self.slots[key] = slot
        self.values[key] = value
        self.used += plain
        return slot

    def put_read(
        self, key: Hashable, value: Any, entry: AnyEntry, weight: Weight, birth: int
    ) -> bool:
        """Take in *value*, just read, of a key that has no slot; False: too large. O(1).

        As `put`, in one step: this is the way of every small value that is read.
        """
        plain, buffers = weight
        total = plain
        fixed = buffers is None
        if buffers is not None:
            total += sum(buffers.values())
        if total > self.budget:
            return False
        if self._touched:
            self.settle()
        self._tick = tick = self._tick + 1
        # fmt: off
        self.slots[key] = Slot(
            key, total, tick, birth, plain, buffers, fixed, PICKLED, False, True, entry
        )
        # fmt: on
        self.values[key] = value
        if buffers is not None:
            self._share(buffers)
        self.used += plain
        return True

    def drop(self, slot: Slot) -> None:
        """Let a value go; nothing happens when it has gone already."""
        if slot.alive:
            del self.slots[slot.key], self.values[slot.key]
            self._release(slot)

    def drop_clean(self, slots: Iterable[Slot], stay: Collection[int] = ()) -> None:
        """Let those go that are not dirty, but for the ids in *stay*."""
        known, values = self.slots, self.values
        for slot in slots:
            if slot.dirty or not slot.alive or (stay and id(slot) in stay):
                continue
            del known[slot.key], values[slot.key]
            if slot.buffers is None:  # the steps of `_release`, without the call
                slot.alive = False
                self.used -= slot.plain
            else:
                self._release(slot)

    def clear(self) -> None:
        """Let all values go."""
        for slot in list(self.slots.values()):
            self.drop(slot)

    def victims(self, goal: int | None = None) -> tuple[list[Slot], int]:
        """Slots whose going would bring `used` to *goal*, and their bytes.

        Without a goal it is the budget.

        Large ones just so many as are needed; small ones until 1/16 of the budget is
        free, so that a full budget does not mean one file for each new value. They
        stay until they are dropped, and are offered again only after `keep`. The bytes
        count as leaving until `left` takes them back.
        """
        self.settle()
        self._offer_newcomers()
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
        if slot.alive and slot.offered:  # else it is a newcomer still
            self.policy.put_back(slot)

    def retry(self) -> None:
        """Offer those that could not be written again, though nothing has come."""
        # A policy offers them after the next `add`; a dead slot is as good as any.
        self.policy.add(Slot(None, 0, 0, 0, 0, alive=False))

    @property
    def hits(self) -> int:
        """Values found in memory."""
        self._looks += 1
        return self.count() - self._looks + 1

    def settle(self) -> None:
        """Bring the latest hits into the order of use."""
        touched, slots = self._touched, self.slots
        while touched:
            slot = slots.get(touched.popleft())
            if slot is not None:
                self._tick += 1
                slot.tick = self._tick

    def _note(self, key: Hashable) -> None:
        """`touch` where recency is all that counts: no hit may be forgotten."""
        slot = self.slots.get(key)
        if slot is not None:
            self._tick += 1
            slot.tick = self._tick

    def _offer_newcomers(self) -> None:
        """Tell the policy of the slots that came since it was last asked."""
        # A set must not pay for it: newcomers are those at the end of `slots`.
        newcomers = []
        for slot in reversed(self.slots.values()):
            if slot.offered:
                break
            slot.offered = True
            newcomers.append(slot)
        for slot in reversed(newcomers):
            self.policy.add(slot)

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
                self.used += size
                continue
            known[0] += 1
            if size > known[1]:  # what is known of a buffer may grow, never shrink
                self.used += size - known[1]
                known[1] = size

    def _release(self, slot: Slot) -> None:
        """Take the bytes of a slot off."""
        slot.alive = False
        self.used -= slot.plain
        for address in slot.buffers or ():
            known = self._buffers[address]
            known[0] -= 1
            if not known[0]:
                del self._buffers[address]
                self.used -= known[1]
