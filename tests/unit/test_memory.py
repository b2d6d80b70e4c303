"""The memory tier: bytes, shared buffers, and who leaves."""

from __future__ import annotations

import numpy as np
import pytest

from chest.eviction import policy
from chest.memory import MemoryTier, Slot, weigh


@pytest.fixture
def memory() -> MemoryTier:
    return MemoryTier(100_000, policy("largest"))


def put(memory: MemoryTier, key: str, value: object) -> Slot:
    return memory.put(key, value, *weigh(value), memory.slots.get(key))


def test_bytes_come_and_go_with_their_slots(memory: MemoryTier) -> None:
    for value in (1, "text", [1, [2, 3]], np.zeros(1000), {"a": b"x" * 100}):
        slot = put(memory, "x", value)
        assert memory.used == slot.nbytes > 0
        assert slot.dirty
        assert slot.alive
    memory.drop(slot)
    memory.drop(slot)
    assert memory.used == 0
    assert not slot.alive


def test_the_old_slot_dies_when_its_key_is_set_anew(memory: MemoryTier) -> None:
    old = put(memory, "x", [1])
    new = put(memory, "x", [2])
    assert (old.alive, new.alive) == (False, True)
    assert memory.slots == {"x": new}
    memory.drop(new)
    assert memory.used == 0


def test_a_shared_buffer_counts_until_its_last_slot_goes(memory: MemoryTier) -> None:
    base = np.zeros(50_000, "u1")
    slots = [put(memory, str(n), base[n:]) for n in range(3)]
    assert memory.used < 51_000
    for slot in slots[:2]:
        memory.drop(slot)
        assert memory.used > 49_000
    memory.drop(slots[2])
    assert memory.used == 0


def test_victims_bring_the_bytes_within_the_budget_largest_first(
    memory: MemoryTier,
) -> None:
    for name, size in (("a", 20_000), ("b", 50_000), ("c", 40_000), ("d", 10_000)):
        put(memory, name, bytes(size))
    victims, leaving = memory.victims()
    assert [slot.key for slot in victims] == ["b"]
    assert leaving >= 50_000
    # They are on their way out: nobody else has to go for their bytes.
    assert memory.victims() == ([], 0)
    memory.left(leaving)
    memory.keep(victims[0])
    again, leaving = memory.victims()
    assert [slot.key for slot in again] == ["c"], "b could not be written just now"
    memory.drop(again[0])
    memory.left(leaving)
    assert memory.used <= memory.budget


def test_small_victims_leave_until_a_sixteenth_is_free(memory: MemoryTier) -> None:
    for number in range(1_000):
        put(memory, str(number), bytes(200))
    _, leaving = memory.victims()
    left = memory.used - leaving
    assert 0.9 * memory.budget < left <= memory.budget * 15 / 16


def test_clear_leaves_nothing(memory: MemoryTier) -> None:
    base = np.zeros(1000)
    for number in range(5):
        put(memory, str(number), base)
    memory.clear()
    assert memory.used == 0
    assert not memory.slots
