"""Who is evicted first."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given

from chest import eviction
from tests.contracts.policy import STEPS, FakeSlot, PolicyContract, drain


class TestLargest(PolicyContract):
    make = eviction.Largest

    @staticmethod
    def rank(slot: FakeSlot) -> float:
        return -slot.nbytes

    def test_the_largest_goes_first_and_ties_to_the_least_recent(self) -> None:
        slots = [FakeSlot(i, nbytes=n) for i, n in enumerate([10, 99, 10, 10])]
        for tick, i in enumerate([2, 0, 1, 3]):
            slots[i].tick = tick
        assert [slot.key for slot in drain(self.filled(slots))] == [1, 2, 0, 3]

    @given(STEPS)
    def test_it_agrees_with_a_sorted_list(self, steps: list[tuple[str, int]]) -> None:
        self.check_against_a_sorted_list(steps)


class TestLeastRecent(PolicyContract):
    make = eviction.LeastRecent

    @staticmethod
    def rank(slot: FakeSlot) -> float:
        return 0

    def test_size_does_not_matter(self) -> None:
        slots = [FakeSlot(0, nbytes=1, tick=0), FakeSlot(1, nbytes=99, tick=1)]
        assert [slot.key for slot in drain(self.filled(slots))] == [0, 1]

    @given(STEPS)
    def test_it_agrees_with_a_sorted_list(self, steps: list[tuple[str, int]]) -> None:
        self.check_against_a_sorted_list(steps)


class TestIdle(PolicyContract):
    make = eviction.Idle

    def filled(self, slots: list[FakeSlot]) -> eviction.Idle:
        """Remember when it is: the latest use, also of a slot that died."""
        self.now = max(slot.tick for slot in slots)
        return super().filled(slots)

    def expected(self, slots: list[FakeSlot]) -> list[FakeSlot]:
        """Of each power of two the least recent; of these the most bytes times age."""
        left = list(slots)
        now = max(self.now, *(slot.tick for slot in slots))
        order = []
        while left:
            firsts: dict[int, FakeSlot] = {}
            for slot in sorted(left, key=lambda slot: slot.tick):
                firsts.setdefault(slot.nbytes.bit_length(), slot)
            order.append(
                max(
                    firsts.values(),
                    key=lambda slot: (slot.nbytes * (now - slot.tick + 1), -slot.tick),
                )
            )
            left.remove(order[-1])
        return order

    def test_a_hit_between_two_pops_counts(self) -> None:
        slots = [FakeSlot(i, nbytes=100, tick=i) for i in range(100)]
        order = self.filled(slots)
        gone = [order.pop() for _ in range(5)]
        for tick, slot in enumerate(slots[5::2], start=1000):
            slot.tick = tick
        assert [*gone, *drain(order)] == [*slots[:5], *slots[6::2], *slots[5::2]]

    def test_a_large_one_in_use_stays_until_others_were_not_used_for_long(self) -> None:
        large = FakeSlot(0, nbytes=1000, tick=0)
        small = [FakeSlot(i, nbytes=100, tick=i) for i in range(1, 30)]
        order = self.filled([large, *small])
        large.tick = 30
        order.add(FakeSlot(99, nbytes=1, tick=31))

        left = [order.pop() for _ in range(10)]

        assert left == small[:10]

    def test_among_those_not_in_use_the_large_one_goes_first(self) -> None:
        small, large = FakeSlot(0, nbytes=100, tick=0), FakeSlot(1, nbytes=1000, tick=1)
        order = self.filled([small, large, FakeSlot(2, nbytes=1, tick=9)])

        assert [slot.key for slot in drain(order)] == [1, 0, 2]


class TestCostly(PolicyContract):
    make = eviction.Costly

    @staticmethod
    def rank(slot: FakeSlot) -> float:
        return slot.cost / max(1, slot.nbytes)

    def test_what_is_dear_per_byte_stays_longest(self) -> None:
        dear = FakeSlot(0, nbytes=10, cost=60.0, tick=0)
        cheap = FakeSlot(1, nbytes=10, cost=0.1, tick=1)
        large = FakeSlot(2, nbytes=10**6, cost=60.0, tick=2)
        order = self.filled([dear, cheap, large])
        assert [slot.key for slot in drain(order)] == [2, 1, 0]

    def test_a_value_of_no_bytes_can_be_evicted(self) -> None:
        assert drain(self.filled([FakeSlot(0, nbytes=0)]))[0].key == 0

    @given(STEPS)
    def test_it_agrees_with_a_sorted_list(self, steps: list[tuple[str, int]]) -> None:
        self.check_against_a_sorted_list(steps)


def test_a_policy_is_named_by_text_class_or_object() -> None:
    mine = eviction.Costly()
    assert type(eviction.policy("largest")) is eviction.Largest
    assert type(eviction.policy("lru")) is eviction.LeastRecent
    assert type(eviction.policy("costly")) is eviction.Costly
    assert type(eviction.policy(eviction.LeastRecent)) is eviction.LeastRecent
    assert eviction.policy(mine) is mine


def test_two_chests_do_not_share_a_policy_that_was_named() -> None:
    assert eviction.policy("lru") is not eviction.policy("lru")


def test_an_unknown_policy_is_refused_with_the_known_names() -> None:
    with pytest.raises(ValueError, match=r"'smallest'.*'largest', 'lru', 'costly'"):
        eviction.policy("smallest")
    with pytest.raises(TypeError, match="no method 'add'"):
        eviction.policy(3)  # type: ignore[arg-type]


def test_heapdict_is_not_imported_before_the_first_victim_is_wanted() -> None:
    code = (
        "import sys; from chest import eviction; e = eviction.Largest(); e.add(None);"
        "assert 'heapdict' not in sys.modules;"
        "assert eviction.Largest().pop() is None; assert 'heapdict' in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
