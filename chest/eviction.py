"""Who is evicted first.

Owns: the order in which values leave memory; the only user of heapdict.
Does not own: what happens to a victim, when one is needed, any lock. The caller holds
the chest's lock around every call.
"""

from __future__ import annotations

import heapq
import itertools
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from chest import protocols

__all__ = ["Costly", "Idle", "Largest", "LeastRecent", "policy"]

FEW: Final = 64  # slots that always go through the heap one by one
SHARE: Final = 16  # … as do newcomers below 1/16 of what is already in order
PRUNE_FROM: Final = 1024  # newcomers; below this nobody looks for dead ones


class _Ordered:
    """Victims by ``(score, tick)``, smallest first; a subclass says what the score is.

    Slots stand in one of three places: *newcomers*, unordered, so that ``add`` is an
    append; *run*, a list sorted once by the C sort; *heap*, a heapdict with those that
    came, or were used, since the run was sorted. A hit only stores a larger ``tick``,
    which can only move a slot back. So each candidate is looked at when its turn comes,
    and put into the heap under its new tick if it was used since: the order is exact.
    """

    def __init__(self) -> None:
        self._newcomers: list[protocols.Slot] = []
        self._prune_at = PRUNE_FROM
        self._run: list[protocols.Slot] = []  # the next victim last
        self._ticks: list[int] = []  # of the run, as they were when it was sorted
        self._heap: Any = None  # made by the first pop
        self._aside: list[protocols.Slot] = []

    @staticmethod
    def score(slot: protocols.Slot) -> float:
        """What is compared before the tick; fixed while a slot is in here."""
        raise NotImplementedError

    def add(self, slot: protocols.Slot) -> None:
        """Offer *slot* as a victim from now on.

        O(1): an append; slots that died are forgotten now and then, so that overwriting
        one key for ever does not grow this.

        Parameters
        ----------
        slot : Slot
            Not in here yet. Its ``nbytes`` and ``cost`` stay as they are while it is.
        """
        self._newcomers.append(slot)
        if len(self._newcomers) > self._prune_at:
            self._gather()

    def pop(self) -> protocols.Slot | None:
        """Take out the next victim.

        Amortised O(log n); the first call after many ``add`` sorts them all.

        Returns
        -------
        Slot or None
            Alive, and no longer in here; None when there is none left.
        """
        while True:
            self._absorb()
            slot, tick = self._next()
            if slot is None:
                return None
            if not slot.alive:
                continue
            if slot.tick == tick:
                return slot
            self._push(slot)

    def put_back(self, slot: protocols.Slot) -> None:
        """Take *slot* back, offering it again only after the next ``add``.

        For a victim that could not be spilled: the caller goes on with others, and does
        not try the same one for ever.
        """
        # What came before now must not count as the next add.
        self._absorb()
        self._aside.append(slot)

    def _absorb(self) -> None:
        """Bring the newcomers into the order."""
        newcomers = self._newcomers
        if newcomers and self._aside:
            newcomers += self._aside
            self._aside = []
        if self._heap is None:
            import heapdict

            self._heap = heapdict.heapdict()
        if len(newcomers) + len(self._heap) > FEW + len(self._run) // SHARE:
            self._gather()
            self._sort()
            return
        for slot in newcomers:
            if slot.alive:
                self._push(slot)
        newcomers.clear()

    def _push(self, slot: protocols.Slot) -> None:
        """Put a slot into the heap under its present tick."""
        self._heap[slot] = (self.score(slot), slot.tick)

    def _gather(self) -> None:
        """Make everybody alive a newcomer again."""
        everybody: Iterable[protocols.Slot] = itertools.chain(
            reversed(self._run), self._heap or (), self._newcomers
        )
        self._newcomers = [slot for slot in everybody if slot.alive]
        self._run, self._ticks = [], []
        if self._heap is not None:
            self._heap.clear()
        self._prune_at = max(PRUNE_FROM, 2 * len(self._newcomers))

    def _sort(self) -> None:
        """Turn the newcomers into the run."""
        slots, self._newcomers = self._newcomers, []
        # Hits take no lock: a tick that grows after this line is seen by pop.
        ticks = [slot.tick for slot in slots]
        scores = [self.score(slot) for slot in slots]
        # Two stable sorts by plain numbers are several times as fast as one by pairs.
        order = sorted(range(len(slots)), key=ticks.__getitem__)
        order.sort(key=scores.__getitem__)
        order.reverse()
        self._run = [slots[i] for i in order]
        self._ticks = [ticks[i] for i in order]

    def _next(self) -> tuple[protocols.Slot | None, int]:
        """Take out the first of run and heap, with the tick it stood under."""
        if self._run and self._run_is_first():
            return self._run.pop(), self._ticks.pop()
        if not self._heap:
            return None, 0
        slot, (_, tick) = self._heap.popitem()
        return slot, tick

    def _run_is_first(self) -> bool:
        if not self._heap:
            return True
        _, first = self._heap.peekitem()
        return bool((self.score(self._run[-1]), self._ticks[-1]) < first)


class Largest(_Ordered):
    """The largest goes first; among equals the one not used for longest.

    Examples
    --------
    >>> from dataclasses import dataclass
    >>> @dataclass(eq=False)
    ... class Slot:
    ...     key: str
    ...     nbytes: int
    ...     tick: int
    ...     cost: float = 0.0
    ...     alive: bool = True
    >>> order = Largest()
    >>> for tick, (key, nbytes) in enumerate([("a", 10), ("b", 99), ("c", 10)]):
    ...     order.add(Slot(key, nbytes, tick))
    >>> [order.pop().key for _ in range(3)]
    ['b', 'a', 'c']
    """

    @staticmethod
    def score(slot: protocols.Slot) -> float:
        """Minus its bytes."""
        return -slot.nbytes


class LeastRecent(_Ordered):
    """The one not used for longest goes first, whatever its size."""

    @staticmethod
    def score(slot: protocols.Slot) -> float:
        """The same for all, so that only the tick decides."""
        return 0


class Costly(_Ordered):
    """What is cheapest to get back, in seconds per byte it frees, goes first."""

    @staticmethod
    def score(slot: protocols.Slot) -> float:
        """Seconds per byte."""
        return slot.cost / max(slot.nbytes, 1)


class Idle:
    """Bytes, times the uses of others since its own last one: the most goes first.

    What is in use stays, however large it is, and so do small values that would free
    little. Sizes within a power of two count as equal: among them the one not used for
    longest is the candidate, so that few are looked at.

    Examples
    --------
    >>> from dataclasses import dataclass
    >>> @dataclass(eq=False)
    ... class Slot:
    ...     key: str
    ...     nbytes: int
    ...     tick: int
    ...     cost: float = 0.0
    ...     alive: bool = True
    >>> order = Idle()
    >>> for tick, (key, nbytes) in enumerate([("a", 40), ("b", 10), ("c", 70)]):
    ...     order.add(Slot(key, nbytes, tick))
    >>> [order.pop().key for _ in range(3)]
    ['a', 'c', 'b']
    """

    def __init__(self) -> None:
        # By the size's power of two, heaps of (tick when it was put there, number, slot).
        self._classes: dict[int, list[tuple[int, int, protocols.Slot]]] = {}
        self._numbers = itertools.count()  # no two entries are equal
        self._count, self._prune_at = 0, PRUNE_FROM
        self._now = 0  # the latest use that was seen
        self._aside: list[protocols.Slot] = []

    def add(self, slot: protocols.Slot) -> None:
        """Offer *slot* as a victim from now on. O(log n)."""
        aside, self._aside = self._aside, []
        for each in (slot, *aside):
            self._push(each)
        if self._count > self._prune_at:
            self._prune()

    def pop(self) -> protocols.Slot | None:
        """Take out the next victim; None when there is none left.

        Amortised O(log n), and a look at one slot of each power of two.
        """
        firsts = [heap for heap in self._classes.values() if self._has_first(heap)]
        if not firsts:
            return None
        heap = max(firsts, key=self._weight)
        self._count -= 1
        return heapq.heappop(heap)[2]

    def put_back(self, slot: protocols.Slot) -> None:
        """Take *slot* back, offering it again only after the next `add`."""
        self._aside.append(slot)

    def _push(self, slot: protocols.Slot) -> None:
        heap = self._classes.setdefault(slot.nbytes.bit_length(), [])
        heapq.heappush(heap, (slot.tick, next(self._numbers), slot))
        self._count += 1
        self._now = max(self._now, slot.tick)

    def _has_first(self, heap: list[tuple[int, int, protocols.Slot]]) -> bool:
        """Bring the slot not used for longest to the front, if there is one."""
        while heap:
            tick, number, slot = heap[0]
            if not slot.alive:
                heapq.heappop(heap)
                self._count -= 1
            elif slot.tick != tick:  # it was used since
                heapq.heapreplace(heap, (slot.tick, number, slot))
                self._now = max(self._now, slot.tick)
            else:
                return True
        return False

    def _weight(self, heap: list[tuple[int, int, protocols.Slot]]) -> tuple[int, int]:
        """Bytes times age of the first of a heap; its age where that is equal."""
        tick, _, slot = heap[0]
        return slot.nbytes * (self._now - tick + 1), -tick

    def _prune(self) -> None:
        """Forget the dead."""
        entries = [each for heap in self._classes.values() for each in heap]
        self._classes, self._count = {}, 0
        for _, _, slot in entries:
            if slot.alive:
                self._push(slot)
        self._prune_at = max(PRUNE_FROM, 2 * self._count)


BY_NAME: Final[dict[str, type[protocols.Policy]]] = {
    "largest": Largest,
    "lru": LeastRecent,
    "costly": Costly,
    "idle": Idle,
}


def policy(wanted: str | protocols.Policy | type[protocols.Policy]) -> protocols.Policy:
    """Make the policy that *wanted* names.

    Parameters
    ----------
    wanted : str or Policy or type
        ``"largest"``, ``"lru"``, ``"costly"``, a class to be made without arguments, or
        an object with ``add`` and ``pop``, which serves one chest only.

    Returns
    -------
    Policy
        A fresh one, unless an object was given.

    Raises
    ------
    ValueError
        For a name that is not known.
    TypeError
        For anything without ``add`` and ``pop``.

    Examples
    --------
    >>> policy("lru")  # doctest: +ELLIPSIS
    <chest.eviction.LeastRecent object at 0x...>
    """
    if isinstance(wanted, str):
        if wanted not in BY_NAME:
            names = ", ".join(map(repr, BY_NAME))
            message = f"unknown policy {wanted!r}: choose one of {names}"
            raise ValueError(message)
        return BY_NAME[wanted]()
    made = wanted() if isinstance(wanted, type) else wanted
    for method in ("add", "pop"):
        if not callable(getattr(made, method, None)):
            message = (
                f"{wanted!r} is no policy: it has no method {method!r} "
                "(see chest.protocols.Policy)"
            )
            raise TypeError(message)
    return made
