"""What replaying the manifest leaves: live entries, their order, what is dead."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chest.batches import Batch, Columns
from chest.folder import Folder
from chest.index import Index, same
from chest.packs import Packs
from chest.records import Entry


@pytest.fixture
def packs(chest_dir: Path) -> Iterator[Packs]:
    home = Folder(str(chest_dir))
    packs = Packs(home, lambda path, status: None)
    yield packs
    packs.close()
    home.close()


def batch(packs: Packs, births: dict[Any, int], generation: int) -> Batch:
    small = Columns([*births], [*births.values()], [b"x" * 10] * len(births))
    batch = packs.write(small, sync=False)
    batch.record.generation = generation
    return batch


def put(index: Index, packs: Packs, births: dict[Any, int], *dead: int) -> Batch:
    new = batch(packs, births, index.records + 1)
    index.apply_batch(new, list(births), frozenset(dead))
    return new


def alone(index: Index, key: Any, birth: int, **more: Any) -> Entry:
    entry = Entry(key, birth, str(key), size=100, generation=index.records + 1, **more)
    index.apply(key, entry)
    return entry


def test_a_batch_of_new_keys_is_live_in_order(packs: Packs) -> None:
    index = Index()
    first = put(index, packs, {"b": 1, "a": 2, "c": 3})
    assert list(index.ordered()) == ["b", "a", "c"]
    assert (len(index), index.birth, index.last_birth, index.records) == (3, 3, 3, 3)
    assert first.left(first.gone) == [0, 1, 2]
    assert index.names() == {first.name}
    assert index.get("a").birth == 2
    assert index.get("none") is None


def test_the_dead_of_a_batch_are_counted_whoever_replaces_them(packs: Packs) -> None:
    index = Index()
    first = put(index, packs, {"a": 1, "b": 2, "c": 3, "d": 4})
    assert first.dead == 0
    second = put(index, packs, {"b": 2, "new": 5})
    alone(index, "c", 3)
    index.apply("d", Entry("d", gone="key"))
    assert (first.dead, second.dead) == (3, 0)
    assert list(index.ordered()) == ["a", "b", "c", "new"]
    assert first.left(first.gone) == [0]
    assert second.left(second.gone) == [0, 1]
    assert index.file_nbytes == 100
    put(index, packs, {"c": 3})
    assert index.file_nbytes == 0
    assert list(index.ordered()) == ["a", "b", "c", "new"]


def test_each_pack_knows_what_its_batches_come_to(packs: Packs) -> None:
    index = Index()

    def check() -> None:
        for name, tally in index.packs.items():
            mine = [each for each in index.batches if each.name == name]
            assert tally.count == sum(each.record.count for each in mine)
            assert tally.dead == sum(each.dead for each in mine)
            assert tally.nbytes == sum(each.nbytes for each in mine)
        assert index.packs.keys() == {each.name for each in index.batches}

    put(index, packs, {"a": 1, "b": 2, "c": 3}, 1)
    put(index, packs, {"d": 4, "e": 5})
    packs.end()
    put(index, packs, {"a": 1, "f": 6, "g": 7})
    check()
    assert len(index.packs) == 2
    alone(index, "d", 4)
    index.apply("c", Entry("c", gone="key"))
    index.end_many(["e", "f"], index.find_many(["e", "f"]))
    check()
    assert sum(tally.dead for tally in index.packs.values()) == 6
    index.apply(None, Entry(gone="all"))
    check()


def test_dead_places_of_a_batch_replace_nothing(packs: Packs) -> None:
    index = Index()
    first = put(index, packs, {"a": 1, "b": 2})
    second = put(index, packs, {"a": 1, "b": 2, "c": 3}, 0, 2)
    assert (first.dead, second.dead) == (1, 2)
    assert index.get("a").batch is first
    assert index.get("b").batch is second
    assert index.get("c") is None
    assert len(index) == 2


def test_births_out_of_order_put_keys_where_they_belong(packs: Packs) -> None:
    index = Index()
    put(index, packs, {"late": 10, "later": 11})
    put(index, packs, {"z": 9, "early": 2})
    alone(index, "middle", 5)
    assert list(index.ordered()) == ["early", "middle", "z", "late", "later"]
    assert index.birth == 11
    assert index.next_birth() == 12


def test_births_that_two_gave_at_once_go_by_publication(packs: Packs) -> None:
    index = Index()
    put(index, packs, {"a": 1, "b": 2})
    put(index, packs, {"c": 1, "d": 2})
    assert list(index.ordered()) == ["a", "c", "b", "d"]


def test_the_end_of_all_leaves_births_and_nothing_else(packs: Packs) -> None:
    index = Index()
    put(index, packs, {"a": 1, "b": 2})
    alone(index, "c", 3)
    index.apply("i", Entry("i", 4, value=b"x", generation=9))
    index.apply(None, Entry(gone="all"))
    assert len(index) == 0
    assert list(index.ordered()) == []
    assert (index.batches, index.inline) == ([], {})
    assert (index.file_nbytes, index.pack_nbytes(), index.birth) == (0, 0, 4)
    put(index, packs, {"a": 5})
    assert list(index.ordered()) == ["a"]


def test_values_in_the_log_are_known_until_they_get_a_place(packs: Packs) -> None:
    index = Index()
    for birth, key in enumerate(("file", "pack", "gone", "stays"), 1):
        index.apply(key, Entry(key, birth, value=b"x", generation=birth))
    assert list(index.inline) == ["file", "pack", "gone", "stays"]
    assert index.file_nbytes == 0
    alone(index, "file", 1)
    put(index, packs, {"pack": 2})
    index.apply("gone", Entry("gone", gone="key"))
    assert list(index.inline) == ["stays"]
    assert index.file_nbytes == 100
    assert "" not in index.names()


def test_a_tombstone_for_a_key_that_is_not_there_changes_nothing(packs: Packs) -> None:
    index = Index()
    first = put(index, packs, {"a": 1})
    index.apply("b", Entry("b", gone="key"))
    assert list(index.ordered()) == ["a"]
    assert first.dead == 0


def test_two_entries_are_the_same_in_one_place_of_one_publication(
    packs: Packs,
) -> None:
    index = Index()
    put(index, packs, {"a": 1, "b": 2})
    one = index.get("a")
    packs.end()
    moved = batch(packs, {"a": 1}, one.generation)
    index.apply_batch(moved, ["a"], frozenset())
    assert same(one, one)
    assert same(None, None)
    assert not same(one, None)
    assert not same(one, index.get("a"))
