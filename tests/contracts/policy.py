"""What every policy promises: a kit of tests to inherit from.

A subclass sets ``make`` and ``rank``; the rest is the same for all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from hypothesis import strategies as st

from chest.eviction import Idle


@dataclass(eq=False)
class FakeSlot:
    """A slot made of plain fields, hashed by identity."""

    key: int
    nbytes: int = 1
    tick: int = 0
    cost: float = 1.0
    alive: bool = True


def drain(order: Any) -> list[FakeSlot]:
    """Pop until nothing is left."""
    return list(iter(order.pop, None))


SIZES = st.integers(0, 5)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), SIZES),
        st.tuples(st.sampled_from(["hit", "kill", "pop", "put_back"]), st.integers(0)),
    ),
    max_size=60,
)


class PolicyContract:
    """Inherit, set ``make``, and say by ``rank`` what goes first."""

    make: ClassVar[Callable[[], Any]]

    @staticmethod
    def rank(slot: FakeSlot) -> float:
        """The score that this policy should go by."""
        raise NotImplementedError

    def expected(self, slots: list[FakeSlot]) -> list[FakeSlot]:
        """The whole order, told in the plainest way."""
        return sorted(slots, key=lambda slot: (self.rank(slot), slot.tick))

    def slots(self, count: int) -> list[FakeSlot]:
        """Slots of repeating sizes and costs in a shuffled order of use."""
        return [
            FakeSlot(i, nbytes=i * 7919 % 53, tick=i * 31 % count, cost=i % 5 + 0.5)
            for i in range(count)
        ]

    def filled(self, slots: list[FakeSlot]) -> Any:
        """A policy that holds these slots."""
        order = type(self).make()
        for slot in slots:
            order.add(slot)
        return order

    def test_an_empty_policy_has_no_victim(self) -> None:
        assert type(self).make().pop() is None

    def test_everything_leaves_in_the_promised_order(self) -> None:
        for count in (3, 60, 1009):
            slots = self.slots(count)
            assert drain(self.filled(slots)) == self.expected(slots)

    def test_the_dead_are_never_offered(self) -> None:
        slots = self.slots(1009)
        order = self.filled(slots)
        first = order.pop()
        for slot in slots[::3]:
            slot.alive = False
        left = [slot for slot in slots if slot.alive and slot is not first]
        assert drain(order) == self.expected(left)

    def test_a_hit_between_two_pops_counts(self) -> None:
        slots = self.slots(1009)
        order = self.filled(slots)
        gone = [order.pop() for _ in range(5)]
        left = [slot for slot in slots if slot not in gone]
        for tick, slot in enumerate(left[::2], start=10_000):
            slot.tick = tick
        assert drain(order) == self.expected(left)

    def test_a_victim_put_back_waits_for_the_next_add(self) -> None:
        slots = self.slots(101)
        order = self.filled(slots)
        first = order.pop()
        late = FakeSlot(999, tick=5000)
        order.add(late)
        order.put_back(first)
        rest = drain(order)
        assert rest == self.expected([*(set(slots) - {first}), late])
        last = FakeSlot(1000, tick=5001)
        order.add(last)
        assert drain(order) == self.expected([first, last])

    def test_overwriting_one_key_for_ever_does_not_grow_it(self) -> None:
        order = type(self).make()
        previous = FakeSlot(0)
        held = 0
        for tick in range(20_000):
            slot = FakeSlot(0, tick=tick)
            order.add(slot)
            previous.alive = False
            previous = slot
            held = max(held, footprint(order))
        assert held < 3000
        assert drain(order) == [previous]

    def test_overwriting_with_evictions_between_does_not_grow_it(self) -> None:
        order = type(self).make()
        held = 0
        for tick in range(10_000):
            stays, goes = FakeSlot(0, tick=tick), FakeSlot(1, tick=tick)
            order.add(stays)
            order.add(goes)
            order.pop()
            stays.alive = goes.alive = False
            held = max(held, footprint(order))
        assert held < 3000

    def check_against_a_sorted_list(self, steps: list[tuple[str, int]]) -> None:
        """Replay *steps* (from ``STEPS``) on the policy and on a plain list."""
        order = type(self).make()
        held: list[FakeSlot] = []
        aside: list[FakeSlot] = []
        for tick, (what, n) in enumerate(steps):
            if what == "add":
                held += [FakeSlot(tick, nbytes=n, tick=tick, cost=n % 3), *aside]
                order.add(held[-1 - len(aside)])
                aside = []
            elif what == "hit" and held:
                held[n % len(held)].tick = tick
            elif what == "kill" and held:
                held.pop(n % len(held)).alive = False
            elif what in ("pop", "put_back"):
                best = self.expected(held)[:1]
                victim = order.pop()
                assert victim is (best[0] if best else None)
                if victim is not None:
                    held.remove(victim)
                    if what == "put_back":
                        order.put_back(victim)
                        aside.append(victim)
        assert drain(order) == self.expected(held)


def footprint(order: Any) -> int:
    """How many slots it holds on to, alive or dead."""
    if isinstance(order, Idle):
        places = [*order._classes.values(), order._aside]
    else:
        places = [order._newcomers, order._run, order._heap or [], order._aside]
    return sum(map(len, places))
