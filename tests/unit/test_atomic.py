"""Operations that are one step for everyone: transactions, counters, add, deadlines."""

from __future__ import annotations

import errno
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chest import Chest, errors, expiry, records
from chest.conditional import ABSENT, discard_if
from chest.index import Index
from chest.manifest import Manifest
from chest.writing import LOOK_EACH


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[Chest, Chest]]:
    """Two handles on one chest, which see each other as two processes do."""
    with Chest(tmp_path / "c") as one, Chest(tmp_path / "c") as other:
        yield one, other


class Clock:
    """The time, as a test sets it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.time = 1_000_000.0
        monkeypatch.setattr(expiry, "now", lambda: self.time)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def files(c: Chest) -> set[str]:
    return set(os.listdir(c.path))


class TestCounters:
    def test_an_increment_is_seen_by_others_when_it_returns(self, two) -> None:
        one, other = two
        assert one.incr("n") == 1
        assert other.incr("n", 5) == 6
        assert one["n"] == 6
        assert one.decr("n", 2) == 4 == other["n"]

    def test_a_missing_key_counts_as_the_default(self, two) -> None:
        assert two[0].incr("n", 1, 10) == 11
        with pytest.raises(KeyError, match="m"):
            two[0].incr("m", default=None)
        assert "m" not in two[1]

    def test_floats_and_numpy_numbers_are_counted_too(self, two) -> None:
        one, other = two
        one["x"] = np.float64(1.5)
        assert one.incr("x", 0.25) == 1.75 == other["x"]

    def test_what_is_no_number_is_refused_and_stays(self, two) -> None:
        one, _ = two
        one["x"] = [1]
        with pytest.raises(TypeError, match="'x' is a list"):
            one.incr("x", [2])
        assert one["x"] == [1]

    def test_no_increment_of_many_threads_is_lost(self, two) -> None:
        start = threading.Barrier(4)

        def count(c: Chest) -> None:
            start.wait()
            for _ in range(100):
                c.incr("n")

        threads = [threading.Thread(target=count, args=(two[i % 2],)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert two[0]["n"] == two[1]["n"] == 400

    @pytest.mark.parametrize("options", [{"pack": False}, {"format": "data"}])
    def test_they_work_where_nothing_lies_in_the_log(self, tmp_path, options) -> None:
        with Chest(tmp_path / "c", **options) as c:
            for _ in range(3):
                c.incr("n")
            assert c["n"] == 3
            assert files(c) == {".keys", "n"} | (files(c) & {"n-2", "n-3"})
        with Chest(tmp_path / "c", **options) as c:
            assert c["n"] == 3

    def test_what_is_published_one_by_one_is_counted_too(self, tmp_path) -> None:
        with Chest(tmp_path / "c", publish="each") as c:
            for number in range(50):
                c[number] = number
            c.incr("n")
            assert c.stats().writes == 51
            assert c.stats().written_nbytes > 51

    def test_a_closed_chest_says_so(self, tmp_path) -> None:
        c = Chest(tmp_path / "c")
        c.close()
        big = bytes(100_000)
        for change in (
            lambda: c.set("x", big, ttl=9),
            lambda: c.set_many({"x": big}, ttl=9),
            lambda: c.add("x", big),
            lambda: c.incr("x"),
        ):
            with pytest.raises(errors.ClosedError):
                change()

    def test_a_counter_survives_reopening(self, tmp_path) -> None:
        with Chest(tmp_path / "c") as c:
            c.incr("n", 41)
        with Chest(tmp_path / "c") as c:
            assert c.incr("n") == 42

    def test_a_readonly_chest_refuses(self, tmp_path) -> None:
        Chest(tmp_path / "c").close()
        with Chest(tmp_path / "c", readonly=True) as c:
            for change in (c.incr, lambda k: c.add(k, 1), lambda k: c.touch(k, 1)):
                with pytest.raises(errors.ReadOnlyError):
                    change("n")


class TestAdd:
    def test_only_the_first_of_two_adds(self, two) -> None:
        one, other = two
        assert one.add("k", "mine")
        assert not other.add("k", "yours")
        assert one["k"] == other["k"] == "mine"

    def test_one_of_many_threads_is_told_so(self, two) -> None:
        start, told = threading.Barrier(6), []

        def add(number: int) -> None:
            start.wait()
            if two[number % 2].add("k", number):
                told.append(number)

        threads = [threading.Thread(target=add, args=(i,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert told == [two[0]["k"]] == [two[1]["k"]]

    def test_what_was_not_added_leaves_no_file(self, two) -> None:
        one, other = two
        big = np.zeros(100_000)
        assert one.add("k", big)
        before = files(one)
        assert not other.add("k", big)
        assert files(one) == before


class TestTransact:
    def test_all_of_it_becomes_visible_at_once(self, two) -> None:
        one, other = two
        one.update(a=100, b=0, gone=1)

        def move(t: Any) -> int:
            t["a"] -= 10
            t["b"] += 10
            del t["gone"]
            assert "gone" not in t
            assert list(t) == ["a", "b"]
            assert other.get("b") is None  # nothing was published before, or is now
            return len(t)

        assert one.transact(move) == 2
        assert dict(other) == dict(one) == {"a": 90, "b": 10}

    def test_nothing_happens_when_it_raises(self, two) -> None:
        one, other = two
        one["a"], one["list"] = 1, [1]
        one.sync()
        before = os.stat(os.path.join(one.path, ".keys")).st_size

        def fail(t: Any) -> None:
            t["a"] = 2
            t["new"] = np.zeros(100_000)
            t["list"].append(2)
            del t["list"]
            raise RuntimeError

        with pytest.raises(RuntimeError):
            one.transact(fail)
        assert dict(one) == dict(other) == {"a": 1, "list": [1]}
        assert os.stat(os.path.join(one.path, ".keys")).st_size == before
        assert files(one) == {".keys", "list"} or files(one) == {".keys"}

    def test_a_value_that_cannot_be_written_undoes_all(self, two) -> None:
        one, other = two

        def change(t: Any) -> None:
            t["a"] = np.zeros(100_000)
            t["b"] = threading.Lock()

        with pytest.raises(errors.EncodingError, match='"b"'):
            one.transact(change)
        assert not one
        assert not other
        assert files(one) == {".keys"}

    def test_it_is_a_mapping_like_any_other(self, two) -> None:
        one, other = two
        one.set_many({"a": 1, "b": 2, "c": 3})

        def change(t: Any) -> list[Any]:
            found = [t.pop("a"), t.setdefault("d", 4), t.popitem(), t.get("x")]
            t.update(e=5)
            t["a"] = 6
            assert ("d" in t, "e" in t, "b" in t) == (False, True, True)
            assert "2 set" in repr(t)
            return found

        assert one.transact(change) == [1, 4, ("d", 4), None]
        assert list(other.items()) == [("b", 2), ("c", 3), ("e", 5), ("a", 6)]

    def test_popitem_of_nothing_is_a_key_error(self, two) -> None:
        with pytest.raises(KeyError, match="empty"):
            two[0].transact(lambda t: t.popitem())

    def test_a_value_in_it_is_a_copy(self, two) -> None:
        one, other = two
        one["x"] = [1]
        one.transact(lambda t: t["x"].append(2))
        assert one["x"] == other["x"] == [1]

        def change(t: Any) -> None:
            t["x"] = [*t["x"], 2]

        one.transact(change)
        assert one["x"] == other["x"] == [1, 2]

    def test_what_is_larger_than_the_budget_is_written_and_let_go(
        self, tmp_path
    ) -> None:
        with Chest(tmp_path / "c", available_memory=10_000) as c:
            c.transact(
                lambda t: t.update(a=bytes(20_000), b=bytes(9_000), c=bytes(9_000))
            )
            assert c.memory_usage <= 10_000
            assert {key: len(value) for key, value in c.items()} == {
                "a": 20_000,
                "b": 9_000,
                "c": 9_000,
            }


class TestPop:
    def test_a_value_that_another_replaces_meanwhile_is_not_lost(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        # Without memory the value is known by its entry only.
        with Chest(tmp_path / "c", available_memory=0) as one, Chest(one.path) as other:
            one["k"] = 1
            read, first = Chest._read, iter([True])

            def slow(self: Chest, key: Any, mapped: Any = None) -> Any:
                found = read(self, key, mapped)
                if next(first, False):
                    other.set_many({key: 2})
                    self.refresh()
                return found

            monkeypatch.setattr(Chest, "_read", slow)
            assert one.pop("k") == 2
            assert "k" not in other


class TestNames:
    @pytest.mark.parametrize(
        ("form", "size"), [("pickle", 100), ("pickle", 400_000), ("zarr", 100)]
    )
    def test_a_late_removal_never_hits_who_has_the_name_now(
        self, tmp_path: Path, form: str, size: int, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def value(number: int) -> Any:
            return np.full((size, 10), number, "i8")

        with (
            Chest(tmp_path / "c", format=form) as one,
            Chest(tmp_path / "c", format=form) as other,
        ):
            one.set_many({"x": value(6)})
            delete = one._spill.delete

            def late(names: Any) -> None:
                other.compact()  # its sweep takes what no record holds
                other.set_many({"x": value(8)})
                delete(names)

            with monkeypatch.context() as patch:
                patch.setattr(one._spill, "delete", late)
                one.delete_many(["x"])
            with Chest(one.path) as third:
                for c in (one, other, third):
                    assert (c["x"] == value(8)).all()

    @pytest.mark.parametrize(
        "change",
        [
            pytest.param(lambda c: c.incr("x"), id="incr"),
            pytest.param(lambda c: c.add("x", 1) or c.pop("x"), id="pop"),
            pytest.param(lambda c: c.__delitem__("x"), id="del"),
            pytest.param(lambda c: c.set("x", 1, ttl=60), id="set"),
            pytest.param(lambda c: c.set_many({"x": 1}), id="set_many"),
        ],
    )
    def test_a_file_goes_while_nobody_else_can_take_its_name(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Any
    ) -> None:
        with Chest(tmp_path / "c") as c:
            c["x"] = 1
            c.flush()
            assert os.path.basename(c.key_to_filename("x")) in os.listdir(c.path)
            delete, held = c._spill.store.delete, []

            def watched(name: str) -> Any:
                held.append(c._manifest.is_held_here())
                return delete(name)

            monkeypatch.setattr(c._spill.store, "delete", watched)
            change(c)
            assert held == [True]


class TestDeadlines:
    def test_an_expired_key_is_absent_for_every_operation(self, two, clock) -> None:
        one, other = two
        one["stays"] = 0
        one.set("k", "v", ttl=10)
        big = np.zeros(100_000)
        one.set("big", big, ttl=10)
        assert other["k"] == "v"
        assert other.expires("k") == clock.time + 10
        clock.time += 10
        for c in two:
            assert "k" not in c
            assert list(c) == ["stays"] or c is other
            assert c.get("k") is c.get("big") is None
            assert c.get_many(["k"]) == {}
            with pytest.raises(KeyError):
                del c["k"]
            with pytest.raises(KeyError):
                c.pop("k")
            with pytest.raises(KeyError):
                c.expires("k")
            assert not c.touch("k", 10)
        assert one.add("k", "new")
        assert other["k"] == "new"
        assert other.expires("k") is None

    def test_len_and_iteration_leave_it_out(self, two, clock) -> None:
        one, other = two
        for number in range(10):
            one.set(number, number, ttl=number + 1)
        assert len(other) == 10
        clock.time += 5
        assert list(one) == list(other) == [5, 6, 7, 8, 9]
        assert len(one) == len(other) == 5
        assert list(reversed(other)) == [9, 8, 7, 6, 5]

    def test_a_key_that_is_set_anew_lives_on(self, two, clock) -> None:
        one, other = two
        one.set("k", 1, ttl=10)
        one["k"] = 2
        clock.time += 11
        assert one["k"] == 2
        one.sync()
        assert other["k"] == 2
        assert other.expires("k") is None

    def test_touch_gives_another_deadline_or_none(self, two, clock) -> None:
        one, other = two
        one.set_many({n: n for n in range(100)})
        big = np.zeros(100_000)
        one.set_many({"big": big})
        one["dirty"] = "d"
        for key in (1, "big", "dirty"):
            assert other.touch(key, 5) or key == "dirty"
            assert one.touch(key, 10)
        clock.time += 6
        assert other[1] == 1
        assert other["dirty"] == "d"
        assert other.touch(1)
        clock.time += 10
        assert one[1] == 1
        assert "dirty" not in other
        assert "big" not in one

    def test_a_generation_survives_touch(self, two) -> None:
        one, other = two
        one["x"] = np.zeros(100_000)
        one.sync()
        before = other.entry("x").generation
        one.touch("x", 60)
        assert one.entry("x").generation == other.entry("x").generation == before

    def test_space_comes_back(self, two, clock) -> None:
        one, other = two
        one.set("big", np.zeros(100_000), ttl=1)
        one.set_many({n: bytes(100) for n in range(1000)}, ttl=1)
        assert "big" in files(one)
        clock.time += 2
        other.flush()
        assert files(other) == {".keys"}
        other.compact()
        assert os.stat(os.path.join(one.path, ".keys")).st_size < 200

    def test_a_reader_that_met_a_compaction_sees_deadlines_and_news(
        self, two, clock, monkeypatch
    ) -> None:
        one, _ = two
        one.set("k", 1, ttl=10)
        load, first = Manifest._load, iter([True])

        def slow(self: Manifest, *, checkpointed: bool = True) -> None:
            load(self, checkpointed=checkpointed)
            if next(first, False):
                self.seen = -1  # as when the file is marked as moved while it is read

        monkeypatch.setattr(Manifest, "_load", slow)
        with Chest(one.path) as reader:
            clock.time += 11
            one.set_many({"y": 2})
            assert "k" not in reader
            assert reader["y"] == 2

    def test_deadlines_that_are_put_off_again_and_again_take_no_room(
        self, two, clock
    ) -> None:
        one, other = two
        one["k"] = 1
        for number in range(3000):
            assert one.touch("k", 1000 + number)
        assert len(other) == 1
        for c in two:
            assert len(c._manifest.index._deadlines) < 1100
        clock.time += 1000 + 2999
        assert not one
        assert not other

    def test_a_clock_that_jumps_back_revives_nothing_that_was_ended(
        self, two, clock
    ) -> None:
        one, other = two
        one.set("k", 1, ttl=10)
        clock.time += 11
        assert "k" not in one
        clock.time -= 5
        assert "k" not in one
        one.flush()
        assert "k" not in other
        with Chest(one.path) as third:
            assert "k" not in third

    @pytest.mark.parametrize("size", [1, 100_000])
    def test_nor_does_it_when_another_compacts_who_has_not_seen_it_end(
        self, two, clock, size: int
    ) -> None:
        one, other = two
        one.set("k", np.zeros(size), ttl=10)
        clock.time += 11
        assert "k" not in one
        clock.time -= 5
        assert "k" in other
        other.compact()
        assert "k" not in one
        one.flush()
        assert "k" not in other
        one.set("k", 2, ttl=10)
        other.compact()
        assert one["k"] == 2

    def test_deadlines_survive_reopening_compaction_and_a_checkpoint(
        self, tmp_path, clock
    ) -> None:
        many = {n: n for n in range(17_000)}
        with Chest(tmp_path / "c") as c:
            c.set_many(many, ttl=10)
            c.set("later", 1, ttl=20)
            c.set("big", np.zeros(100_000), ttl=20)
            c["stays"] = 1
            c.compact()
            assert ".index" in files(c)
        with Chest(tmp_path / "c") as c:
            assert len(c) == 17_003
            assert c.expires("later") == clock.time + 20
            clock.time += 10
            assert list(c) == ["later", "big", "stays"]
        with Chest(tmp_path / "c") as c:
            assert list(c) == ["later", "big", "stays"]
            clock.time += 10
            assert list(c) == ["stays"]
            c.flush()
            assert "big" not in files(c)

    def test_a_damaged_checkpoint_revives_nothing(self, tmp_path, clock) -> None:
        with Chest(tmp_path / "c") as c:
            c.set_many({n: n for n in range(17_000)})
            for n in range(100):
                c.set(f"e{n}", n, ttl=10)
            c.compact()
        with Chest(tmp_path / "c") as c:
            clock.time += 11
            assert len(c) == 17_000
            clock.time -= 11
            c._manifest.index.lose_base()  # what a look does that meets the damage
            assert [c[n] for n in range(0, 17_000, 1000)] == list(
                range(0, 17_000, 1000)
            )
            assert len(c) == 17_000
            assert "e5" not in c

    def test_a_deadline_goes_with_a_copy(self, two, clock, tmp_path) -> None:
        one, _ = two
        one.set("small", 1, ttl=10)
        one.set("big", np.zeros(100_000), ttl=10)
        one["stays"] = 2
        with one.snapshot(tmp_path / "s") as copy:
            assert set(copy) == {"small", "big", "stays"}
            clock.time += 10
            assert list(copy) == ["stays"]

    def test_a_change_in_place_keeps_the_deadline(self, two, clock) -> None:
        one, other = two
        one.set("k", [1], ttl=10)
        one["k"].append(2)
        one.sync()
        assert other["k"] == [1, 2]
        with other.edit("k") as value:
            value.append(3)
        assert one["k"] == [1, 2, 3]
        assert one.incr("n") == 1
        assert one.touch("n", 10)
        assert one.incr("n") == 2
        clock.time += 10
        assert "k" not in one
        assert "k" not in other
        assert "n" not in other

    def test_clear_removes_what_has_expired(self, two, clock) -> None:
        one, _ = two
        one.set("big", np.zeros(100_000), ttl=1)
        clock.time += 2
        assert len(one) == 0
        one.clear()
        assert files(one) == {".keys"}

    @pytest.mark.parametrize(
        ("ttl", "error"), [(0, ValueError), (-1, ValueError), ("1", TypeError)]
    )
    def test_a_ttl_that_is_none_is_refused(self, two, ttl: Any, error: Any) -> None:
        with pytest.raises(error, match="ttl"):
            two[0].set("k", 1, ttl=ttl)
        assert "k" not in two[0]

    def test_a_chest_without_deadlines_never_asks_for_the_time(
        self, two, monkeypatch
    ) -> None:
        one, _ = two
        one["k"] = 1

        def never() -> float:
            raise AssertionError

        monkeypatch.setattr(expiry.Due, "__getitem__", lambda *_: never())
        assert one["k"] == 1


class TestBulk:
    def test_many_are_written_to_one_pack_and_published(self, two) -> None:
        one, other = two
        many = {n: bytes(100) for n in range(1000)}
        one.set_many(many)
        assert dict(other) == many
        assert len(files(one)) == 2
        assert len(one.inmem) == 1000

    def test_pairs_are_taken_as_well(self, two) -> None:
        two[0].set_many((n, n * n) for n in range(5))
        assert list(two[1].items()) == [(n, n * n) for n in range(5)]

    def test_get_many_gives_those_that_are_there_in_the_order_asked(self, two) -> None:
        one, other = two
        one.set_many({n: str(n) for n in range(1000)})
        one["big"] = np.arange(100_000)
        one["memory"] = "m"
        one.sync()
        asked = [999, "x", "big", 5, "memory", 0]
        found = other.get_many(asked)
        assert list(found) == [999, "big", 5, "memory", 0]
        assert (found[999], found[5], found["memory"]) == ("999", "5", "m")
        assert found["big"][-1] == 99_999

    def test_reading_all_leaves_memory_as_it_is(self, tmp_path) -> None:
        many = {n: bytes([n % 256]) * 100 for n in range(3000)}
        with Chest(tmp_path / "c") as c:
            c.set_many(many)
            c["big"] = np.zeros(200_000)
            c.flush()
            hot = c[7]
            assert list(c.inmem) == [7]
            assert dict(list(c.items())[:-1]) == many
            assert sum(1 for _ in c.values()) == 3001
            assert next(iter(reversed(c.items())))[0] == "big"
            assert list(c.inmem) == [7]
            assert c[7] is hot

    def test_values_in_memory_are_the_very_objects(self, two) -> None:
        one, _ = two
        value = [1]
        one["x"] = value
        assert next(iter(one.values())) is value
        assert one.get_many(["x"])["x"] is value

    def test_a_key_that_changes_after_it_was_read_ahead_is_read_again(
        self, two
    ) -> None:
        one, other = two
        one.set_many({n: n for n in range(100)})
        one.flush()
        pairs = iter(one.items())
        assert next(pairs) == (0, 0)
        other[1], other[2] = "new", "dirty"
        other.sync()
        del other[3]
        assert [next(pairs) for _ in range(3)] == [(1, "new"), (2, "dirty"), (4, 4)]

    def test_a_damaged_value_is_named(self, two) -> None:
        one, _ = two
        one.set_many({n: bytes(100) for n in range(100)})
        one.flush()
        [pack] = [name for name in files(one) if name.startswith(".pack")]
        with open(os.path.join(one.path, pack), "r+b") as file:
            file.seek(5 * 115 + 50)
            file.write(b"\xff")
        with pytest.raises(errors.CorruptValueError, match="5"):
            list(one.items())

    def test_delete_many_says_how_many_there_were(self, two) -> None:
        one, other = two
        one.set_many({n: n for n in range(100)})
        one["fresh"], one["both"] = 1, 1
        one.sync()
        one["both"], one["new"] = 2, 3
        assert one.delete_many([1, 2, 2, "x", "fresh", "both", "new"]) == 5
        assert len(one) == len(other) == 98
        assert one.delete_many([]) == 0

    def test_deleting_what_is_not_there_publishes_nothing(self, two) -> None:
        one, _ = two
        one["fresh"] = 1
        before = os.stat(os.path.join(one.path, ".keys")).st_size
        assert one.delete_many([]) == one.delete_many(["x", "y"]) == 0
        assert discard_if(one, "x", ABSENT).done
        assert one.delete_many(["fresh"]) == 1
        assert os.stat(os.path.join(one.path, ".keys")).st_size == before

    @pytest.mark.parametrize("ttl", [None, 100])
    @pytest.mark.parametrize("form", ["pickle", "data"])
    def test_what_cannot_be_written_holds_up_nothing_else(
        self, tmp_path: Path, form: str, ttl: float | None
    ) -> None:
        pairs = {"a": 1, "b": threading.Lock(), "c": 3}
        with (
            Chest(tmp_path / "c", format=form) as c,
            Chest(c.path, format=form) as other,
        ):
            with pytest.raises(errors.EncodingError, match='"b"'):
                c.set_many(pairs, ttl=ttl)
            assert dict(other) == {"a": 1, "c": 3}
            kept = ttl is None and form == "pickle"
            assert set(c.inmem) == ({"a", "b", "c"} if kept else {"a", "c"})
            c.pop("b", None)

    def test_a_miss_is_reported_for_what_is_read_and_nothing_else(
        self, tmp_path: Path
    ) -> None:
        missed: list[Any] = []
        with Chest(tmp_path / "c", on_miss=missed.append) as c:
            c.set_many({n: n for n in range(100)})
            c.flush()
            assert c.get_many(["nope", 1]) == {1: 1}
            assert c.pop(2) == 2
            assert c.pop("nope", None) is None
            assert missed == [1, 2]

    def test_files_of_the_deleted_go(self, two) -> None:
        one, _ = two
        one.update({n: np.zeros(100_000) for n in range(5)})
        one.flush()
        assert one.delete_many(range(5)) == 5
        assert files(one) == {".keys"}


class TestWithoutSlots:
    """A small value that cannot change is published without a slot (`chest.memory`)."""

    def test_it_is_kept_and_goes_with_its_bytes(self, tmp_path: Path) -> None:
        with Chest(tmp_path / "c", publish="each") as c:
            c["stays"] = 2.5
            for text in ("text", "\N{SNOWMAN}" * 50):  # which grows when it is pickled
                c["x"] = text
                assert not c._memory.slots
                assert c["x"] == text
                assert c.memory_usage == sys.getsizeof(text) + sys.getsizeof(2.5)
                del c["x"]
                assert c.memory_usage == sys.getsizeof(2.5)
            assert c.pop("stays") == 2.5
            assert (c.memory_usage, len(c), list(c)) == (0, 0, [])

    def test_it_goes_when_somebody_else_sets_or_deletes_it(self, two) -> None:
        one, other = two
        one.incr("n")
        one.add("gone", "text")
        assert not one._memory.slots
        assert other.incr("n") == 2
        del other["gone"]
        assert "gone" not in one
        assert (one["n"], one.incr("n"), other["n"]) == (2, 3, 3)
        assert one.memory_usage == sys.getsizeof(3)

    def test_it_is_not_kept_over_the_budget(self, tmp_path: Path) -> None:
        with Chest(tmp_path / "c", available_memory=100, publish="each") as c:
            for number in range(20):
                c[number] = f"text {number}"
                assert c.memory_usage <= 100
            assert [*c.values()] == [f"text {number}" for number in range(20)]

    def test_what_is_new_in_memory_is_published_in_its_place(self, two) -> None:
        one, other = two
        one["a"], one["b"] = 1, 2  # bare, and not published
        assert one.incr("a") == 2
        assert [*other.items()] == [("a", 2)]
        assert [*one.items()] == [("a", 2), ("b", 2)]
        del one["b"]
        assert [*one.items()] == [("a", 2)]
        one["c"] = 3
        one.sync()
        assert [*other.items()] == [("a", 2), ("c", 3)]


def test_a_set_beside_others_reads_nothing_of_theirs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = Chest(tmp_path / "c", publish="each")
    other = Chest(tmp_path / "c", publish="each")
    with one, other:
        decoded: list[bytes] = []
        decode = records._decode_entry
        monkeypatch.setattr(
            records, "_decode_entry", lambda body: decoded.append(body) or decode(body)
        )
        for number in range(100):
            one[f"one {number}"] = number
            other[f"other {number}"] = number
        assert not decoded
        assert len(one) == len(other) == 200
        assert [*one.items()] == [*other.items()]
        assert [*one][:3] == ["one 0", "other 0", "one 1"]
        assert one["other 99"] == 99


@pytest.mark.parametrize("there", ["memory", "file", "pack", "deadline"])
def test_what_has_to_be_known_is_read_before_a_set(there: str, tmp_path: Path) -> None:
    """Not only the value is replaced: so are its file, its deadline, what memory has."""
    path = tmp_path / "c"
    with Chest(path, publish="each") as one, Chest(path) as other:
        if there == "pack":
            one.set_many({f"{number}": "pack" for number in range(100)})
            one.flush()
        elif there == "file":
            one["7"] = "x" * 5_000
            one.flush()
        elif there == "deadline":
            one.set("7", 1, ttl=1e6)
        else:
            one["7"] = [1]
        other["y"] = 1
        other.sync()
        one["7"] = "new"
        other["z"] = 2
        other.sync()
        assert one["7"] == other["7"] == "new"
        assert one.expires("7") is None
        assert [*one.items()] == [*other.items()]
        one.flush()
        names = {one.entry(key).name for key in one}
        assert names >= {each.name for each in path.iterdir()} - {".keys", ".host"}


def test_a_counter_counts_on_whatever_becomes_of_it(tmp_path: Path) -> None:
    """The number of the last increment is used only while nobody changed it."""
    with Chest(tmp_path / "c") as c, Chest(tmp_path / "c") as other:
        assert [c.incr("n") for _ in range(3)] == [1, 2, 3]
        assert other.incr("n") == 4
        assert c.incr("n") == 5
        c["n"] = 10
        assert c.incr("n") == 11
        c.flush()
        assert c.incr("n", 2.5) == 13.5
        assert c.incr("n", -3.5) == 10
        del other["n"]
        assert c.incr("n") == 1
        assert c.incr("m") == 1
        assert c["n"] + c.incr("n") == 3
        assert c.incr("n") == 3
        assert c.incr("n", 10**400) == 10**400 + 3
        assert c.incr("n", -(10**400)) == 3
        c.touch("n", ttl=1e6)
        assert [c.incr("n"), c.incr("n")] == [4, 5]
        assert c.expires("n") is not None
        c.compact()
        assert c.incr("n") == 6
        assert c.transact(lambda t: t["n"]) == other["n"] == 6
        assert c.memory_usage <= c.available_memory


@pytest.mark.parametrize("in_memory", [False, True])
@pytest.mark.parametrize("edge", [0, 1 << 15, 1 << 30, 1 << 31, 1 << 63, -(1 << 31)])
def test_a_counter_is_exact_where_a_number_grows(
    tmp_path: Path, edge: int, in_memory: bool
) -> None:
    """Its pickle, its bytes in memory and on the disk; upwards and downwards."""
    with Chest(tmp_path / "c") as c, Chest(tmp_path / "c") as other:
        if in_memory:
            c["n"] = edge - 3
        else:
            c.incr("n", edge - 3)
        for step, places in ((1, 6), (-1, 6)):
            for _ in range(places):
                expected = c["n"] + step if in_memory else other["n"] + step
                assert c.incr("n", step) == expected
                number = other["n"] if not in_memory else c["n"]
                assert (number, type(number)) == (expected, int)
                entry = c._manifest.index.get("n")
                assert entry.nbytes == expected.__sizeof__()
                assert entry.size == len(entry.value)
                if in_memory:
                    assert c.memory_usage == entry.nbytes
    with Chest(tmp_path / "c") as c:
        assert c["n"] == edge - 3


def test_a_counter_of_a_closed_chest_is_refused(tmp_path: Path) -> None:
    c = Chest(tmp_path / "c")
    assert [c.incr("n"), c.incr("n")] == [1, 2]
    c.close()
    with pytest.raises(errors.ClosedError, match="closed"):
        c.incr("n")


def test_a_counter_whose_record_is_written_in_two_parts_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, parts = os.pwrite, []

    def short(fd: int, data: bytes, offset: int) -> int:
        parts.append(len(data))
        return write(fd, data[:7] if len(parts) == 1 else data, offset)

    with Chest(tmp_path / "c") as c, Chest(tmp_path / "c") as other:
        assert [c.incr("n"), c.incr("n")] == [1, 2]
        with monkeypatch.context() as patch:
            patch.setattr("chest.writing.os.pwrite", short)
            assert c.incr("n") == 3
        assert parts == [parts[0], parts[0] - 7]
        assert other.incr("n") == 4


def test_a_counter_that_the_disk_refuses_is_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.pwrite

    def refuse(fd: int, data: bytes, offset: int) -> int:
        write(fd, data[:7], offset)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with Chest(tmp_path / "c") as c, Chest(tmp_path / "c") as other:
        assert [c.incr("n"), c.incr("n")] == [1, 2]
        with monkeypatch.context() as patch:
            patch.setattr("chest.writing.os.pwrite", refuse)
            with pytest.raises(errors.StoreError, match="could not be written to"):
                c.incr("n")
        assert other["n"] == c["n"] == 2
        assert [other.incr("n"), c.incr("n")] == [3, 4]
    with Chest(tmp_path / "c") as c:
        assert c["n"] == 4


@pytest.mark.parametrize("before", range(LOOK_EACH - 2, LOOK_EACH + 2))
def test_a_counter_counts_on_where_others_have_compacted(
    tmp_path: Path, before: int
) -> None:
    """The log that is open has no name any more; that is no removal."""
    with Chest(tmp_path / "c") as c, Chest(tmp_path / "c") as other:
        for _ in range(before):
            c.incr("n")
        other.compact()
        assert c.incr("n") == before + 1
        assert other.incr("n") == before + 2


@pytest.mark.parametrize("act", ["incr", "add", "del", "set_many"])
def test_what_follows_an_interruption_within_a_transaction_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    """Written, and not known to be: the next record took its number."""
    acts: dict[str, Callable[[], object]] = {
        "incr": lambda: c.incr("n"),
        "add": lambda: c.add("new", 1),
        "del": lambda: c.__delitem__("old"),
        "set_many": lambda: c.set_many({"x": 1, "y": 2}),
    }

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    def change(t: Any) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(Index, "change", interrupted)
            with pytest.raises(KeyboardInterrupt):
                c.incr("n")
        acts[act]()

    with Chest(tmp_path / "c") as c, Chest(tmp_path / "c") as other:
        c.add("old", 0)
        assert [c.incr("n"), c.incr("n")] == [1, 2]
        c.transact(change)
        expected = dict(c.items())
        assert expected["n"] == (4 if act == "incr" else 3)
        assert dict(other.items()) == expected
        assert [other.incr("n"), c.incr("n")] == [expected["n"] + 1, expected["n"] + 2]
    with Chest(tmp_path / "c") as c:
        assert dict(c.items()) == {**expected, "n": expected["n"] + 2}


def test_a_counter_of_a_chest_that_was_removed_says_so(tmp_path: Path) -> None:
    """Not at once: who holds the log open looks for its name now and then."""
    with Chest(tmp_path / "c") as c:
        c.incr("n")
        shutil.rmtree(tmp_path / "c")

        def count() -> None:
            for _ in range(2 * LOOK_EACH):
                c.incr("n")

        with pytest.raises(errors.DroppedError, match="removed"):
            count()


class Looks(int):
    """A number whose adding looks at the counter, as a signal's handler might."""

    chest: Chest

    def __radd__(self, other: int) -> int:
        assert self.chest["n"] == other
        return other + int(self)


@pytest.mark.parametrize("in_memory", [False, True])
def test_a_counter_that_is_looked_at_amid_its_increment_is_exact(
    tmp_path: Path, in_memory: bool
) -> None:
    with Chest(tmp_path / "c") as c, Chest(tmp_path / "c") as other:
        Looks.chest = c
        if in_memory:
            c["n"] = 0
        assert [c.incr("n"), c.incr("n")] == [1, 2]
        assert c.incr("n", Looks(1)) == c["n"] == other["n"] == 3
        assert c.incr("n", Looks(1)) == 4
        c.available_memory = 0
        assert c.incr("n", Looks(1)) == c["n"] == 5
        assert c.memory_usage == 0
        assert other.incr("n") == 6


@pytest.mark.parametrize("act", ["incr", "set", "set beside others"])
def test_a_lock_that_ctrl_c_kept_from_ending_is_ended_first(
    tmp_path: Path, act: str
) -> None:
    """The depth was left, whether or not the lock was given back."""
    path = tmp_path / "c"
    for held in (False, True):
        with Chest(path, publish="each") as c, Chest(path, publish="each") as other:
            before = c.incr("n")
            manifest = c._manifest
            if held:
                manifest.enter()
            else:
                other["x"], other["y"] = 1, 2
                other.incr("n", 0)
                manifest._depth = 1
            if act == "incr":
                assert c.incr("n") == before + 1
            else:
                if act == "set":
                    c.refresh()
                c["z"] = 3
            assert not manifest.is_held_here()
            assert other.incr("m") > 0
            assert [*c.items()] == [*other.items()]
            assert c.verify() == []
        with Chest(path) as fresh:
            assert fresh.get("z", 3) == 3
