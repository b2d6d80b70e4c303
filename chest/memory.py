"""The memory tier: values, their bytes, and who leaves when there are too many.

Owns: what is in memory, how many bytes it takes, which of it is dirty. Does not own: what
exists, or how a value is written.

Invariants
----------
T1  `used` is the plain bytes of all slots plus each shared buffer once.
T2  A slot is in `slots` exactly as long as it is alive.
T3  A hit changes nothing but the slot's tick.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Hashable
from typing import Any

import msgspec

from chest import sizing
from chest.protocols import Policy
from chest.records import Entry

__all__ = ["GONE", "MemoryTier", "Options", "Slot", "Weight", "weigh"]

SMALL = 4096  # bytes; victims below it leave many at a time
ROOM = 16  # small victims leave until 1/ROOM of the budget is free
MOST_VICTIMS = (
    8192  # taken at once, so that the first is gone before the last is chosen
)

_SCALARS = sizing.SCALARS
_measure = sizing.measure
_getsizeof = sys.getsizeof

Weight = tuple[int, dict[int, int] | None]  # bytes; shared buffers, None: immutable
GONE: Any = object()  # the value of a slot that is not alive any more
Options = tuple[str | None, str | None]  # a key's own format and mapped=


def weigh(value: Any) -> Weight:
    """How many bytes *value* takes; no buffers for what can never change."""
    if type(value) in _SCALARS:
        return _getsizeof(value), None
    return _measure(value)


# Not tracked by the collector: a million tracked slots would make each full collection
# visit them all. A value that refers to its own chest is freed when the chest is closed.
class Slot(msgspec.Struct, eq=False, gc=False):
    """One value in memory.

    Attributes
    ----------
    key, value : object
    nbytes : int
        All bytes it keeps alive, shared ones too.
    tick : int
        When it was last used: the highest is the latest.
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
    entry : Entry or None
        What the manifest said when it was loaded or written.
    inherited : bool
        Dirty, but set by the process that this one was forked from.
    cost : float
        Seconds to make or load it.
    """

    key: Any
    value: Any
    nbytes: int
    tick: int
    birth: int
    plain: int
    buffers: dict[int, int] | None = None
    fixed: bool = False
    options: Options | None = None
    dirty: bool = True
    alive: bool = True
    entry: Entry | None = None
    inherited: bool = False
    cost: float = 0.0


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
    Not thread-safe but for reading `slots`; the chest's lock is held around the rest.
    """

    def __init__(self, budget: int, policy: Policy) -> None:
        self.budget = budget
        self.policy = policy
        self.slots: dict[Hashable, Slot] = {}
        self.used = 0
        self.tick = itertools.count(1).__next__
        self._other_ticks = 0  # those that were no hits
        self._offer = policy.add
        self._leaving = 0
        self._buffers: dict[int, list[int]] = {}  # address: [slots, bytes]

    def put(
        self,
        key: Hashable,
        value: Any,
        birth: int,
        weight: Weight,
        options: Options | None = None,
    ) -> Slot:
        """Take *value* in, dirty, in place of what *key* had. O(1)."""
        plain, buffers = weight
        total = plain
        if buffers:
            total += sum(buffers.values())
            self._share(buffers)
        tick, fixed = self.tick(), buffers is None
        slot = Slot(key, value, total, tick, birth, plain, buffers, fixed, options)
        slots = self.slots
        if key in slots:
            self._release(slots[key])
        slots[key] = slot
        self.used += plain
        self._other_ticks += 1
        if total <= self.budget:  # one that is larger is not kept
            self._offer(slot)
        return slot

    def drop(self, slot: Slot) -> None:
        """Let a value go; nothing happens when it has gone already."""
        if slot.alive:
            del self.slots[slot.key]
            self._release(slot)

    def clear(self) -> None:
        """Let all values go."""
        for slot in list(self.slots.values()):
            self.drop(slot)

    def victims(self) -> tuple[list[Slot], int]:
        """Slots whose going would bring `used` within the budget, and their bytes.

        Large ones just so many as are needed; small ones until 1/16 of the budget is
        free, so that a full budget does not mean one file for each new value. They
        stay until they are dropped, and are offered again only after `keep`. The bytes
        count as leaving until `left` takes them back.
        """
        chosen: list[Slot] = []
        left = before = self.used - self._leaving
        goal = self.budget
        while left > goal and len(chosen) < MOST_VICTIMS:
            slot = self.policy.pop()
            if slot is None:
                break
            assert isinstance(slot, Slot)
            chosen.append(slot)
            left -= self._exclusive(slot)
            if slot.nbytes < SMALL:
                goal = self.budget - self.budget // ROOM
        self._leaving += before - left
        return chosen, before - left

    def left(self, nbytes: int) -> None:
        """The victims of one call of `victims` were dealt with."""
        self._leaving -= nbytes

    def keep(self, slot: Slot) -> None:
        """A victim could not be written: it stays, and is a candidate again later."""
        if slot.alive:
            self.policy.put_back(slot)

    @property
    def hits(self) -> int:
        """Values found in memory."""
        self._other_ticks += 1
        return self.tick() - self._other_ticks

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
        """Take the bytes of a slot off, and forget its value."""
        slot.alive = False
        self.used -= slot.plain
        for address in slot.buffers or ():
            known = self._buffers[address]
            known[0] -= 1
            if not known[0]:
                del self._buffers[address]
                self.used -= known[1]
        slot.value = GONE  # the policy may hold the slot for a while yet
