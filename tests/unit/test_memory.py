"""The memory tier: bytes, shared buffers, and who leaves."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from chest.eviction import policy
from chest.memory import RECENT, MemoryTier, Slot, weigh


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


def came(memory: MemoryTier, key: str, value: str) -> None:
    """Take in a new value as `Chest.__setitem__` does."""
    if memory.touched:
        memory.note()
    memory.values[key] = value
    memory.newest.append(key)
    memory.used += weigh(value)[0]


def test_a_bare_value_gets_a_slot_when_it_is_asked_for(memory: MemoryTier) -> None:
    came(memory, "new", "text")
    memory.came("read", "text", weigh("text")[0])
    used = memory.used
    assert not memory.slots
    new, read = memory.slot("new"), memory.slot("read")
    assert new is not None
    assert read is not None
    assert (new.dirty, read.dirty) == (True, False)
    assert memory.slot("new") is new
    assert memory.slot("absent") is None
    assert memory.used == used == new.nbytes + read.nbytes


def test_what_comes_and_goes_bare_leaves_no_trace(memory: MemoryTier) -> None:
    memory.came("stays", 1, 28)
    for number in range(3 * RECENT):
        memory.came("x", number, 28)
        memory.forget("x")
    memory.forget("none")
    assert (memory.values, memory.used) == ({"stays": 1}, 28)
    assert len(memory.uses) < 2 * RECENT
    memory.forget("stays")
    assert (memory.values, memory.used) == ({}, 0)


def test_only_what_is_new_among_bare_values_has_to_be_written(
    memory: MemoryTier,
) -> None:
    came(memory, "new", "text")
    memory.came("read", "text", weigh("text")[0])
    assert memory.dirty == 1
    assert memory.bare_fresh() == ["new"]
    assert [slot.key for slot in memory.unwritten()] == ["new"]
    memory.drop_bare()
    assert [*memory.values] == ["new"]
    memory.forget("new")
    assert memory.used == 0


def test_bytes_of_bare_values_go_wholly_though_a_str_grew_meanwhile(
    memory: MemoryTier,
) -> None:
    for key in "abc":
        text = key + "é" * 50
        came(memory, key, text)
        before = weigh(text)
        pickle.dumps(text, 5)  # keeps its UTF-8 in the str
        assert weigh(text) > before
    memory.slot("a")
    memory.drop_bare(["b"])
    memory.drop_bare(["c"])
    slot = memory.slot("a")
    assert slot is not None
    assert memory.used == slot.nbytes
    memory.drop(slot)
    assert memory.used == 0


@pytest.mark.parametrize("name", ["largest", "lru"])
def test_bare_and_other_values_leave_in_the_order_of_their_last_use(name: str) -> None:
    memory = MemoryTier(1_000, policy(name))
    came(memory, "a", "x" * 200)
    came(memory, "b", "x" * 200)
    memory.touched.append("a")
    memory.put("c", "x" * 200, *weigh("x" * 200))
    memory.came("d", "x" * 200, weigh("x" * 200)[0])
    memory.touched.append("c")
    came(memory, "e", "x" * 200)
    victims, _ = memory.victims(0)
    assert "".join(slot.key for slot in victims) == "badce"


@pytest.mark.parametrize("name", ["largest", "lru"])
def test_hits_between_sets_do_not_grow_it(name: str) -> None:
    memory = MemoryTier(10**9, policy(name))
    for round_ in range(100):
        for _ in range(200):
            memory.touched.append("a")
        came(memory, f"k{round_}", "x")
        memory.note()
        memory.forget(f"k{round_}")
    assert len(memory.uses) <= RECENT + 200


@pytest.mark.parametrize("together", [False, True])
def test_a_value_that_is_half_gone_is_not_offered_any_more(
    memory: MemoryTier, together: bool
) -> None:
    """Ctrl-C amid `drop`: else its slot would be a victim without a value."""

    class Interrupting(dict[str, object]):
        def pop(self, *arguments: Any) -> Any:
            raise KeyboardInterrupt

    slots = [put(memory, name, bytes(size)) for name, size in (("a", 60), ("b", 70))]
    slots[0].dirty = False
    memory.settle()
    whole, memory.values = memory.values, Interrupting(memory.values)
    drop = memory.drop_clean if together else lambda slots: memory.drop(slots[0])
    with pytest.raises(KeyboardInterrupt):
        drop(slots)
    memory.values = whole
    memory.mend()
    memory.settle()
    assert not slots[0].alive
    assert memory.slots.keys() == memory.values.keys() == {"a", "b"}
    assert memory.used == sum(slot.nbytes for slot in memory.slots.values())
    memory.drop(memory.slots["a"])
    memory.budget = 0
    victims, _ = memory.victims()
    assert victims == [memory.slots["b"]]
