"""The chest: dict first (P1), the budget (P2, P3), files (P4), maps (P5), changes (P6)."""

from __future__ import annotations

import contextlib
import dataclasses
import gzip
import json
import os
import pickle
import shutil
import sys
import threading
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

from chest import Chest, DurableQueue, errors, nbytes
from tests.contracts.mapping import KEYS, MappingContract


class OnDisk(MappingContract):
    """Chests below a test's own folder, closed at its end."""

    options: ClassVar[dict[str, Any]] = {}

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> Iterator[None]:
        self.folder, self.made = tmp_path, []
        yield
        for made in self.made:
            made.close()

    def make(self) -> Chest:
        made = Chest(self.folder / f"c{len(self.made)}", **self.options)
        self.made.append(made)
        return made


class TestWithRoom(OnDisk):
    pass


class TestWithoutMemory(OnDisk):
    options: ClassVar[dict[str, Any]] = {"available_memory": 0}


class TestPublishingEach(OnDisk):
    options: ClassVar[dict[str, Any]] = {"publish": "each"}


class TestFlushed(OnDisk):
    def after(self, c: Chest) -> Chest:
        c.flush()
        return c


class TestReopened(OnDisk):
    def after(self, c: Chest) -> Chest:
        c.close()
        again = Chest(c.path)
        self.made.append(again)
        return again


class TestCompacted(OnDisk):
    def after(self, c: Chest) -> Chest:
        c.sync()
        c.compact()
        return c


class TestWithoutPickle(OnDisk):
    """trust="data" cannot keep keys that need pickle; the rest is the same."""

    options: ClassVar[dict[str, Any]] = {"trust": "data"}

    @pytest.mark.parametrize("key", [key for key in KEYS if type(key) in (str, int)])
    def test_any_key_stores_and_returns(self, c: Any, key: Any) -> None:
        super().test_any_key_stores_and_returns(c, key)

    test_keys_that_differ_never_collide = None


del OnDisk


# -- making one ------------------------------------------------------------------------


def test_the_first_argument_is_data_or_path(tmp_path: Path) -> None:
    for given in (tmp_path / "a", str(tmp_path / "b")):
        with Chest(given) as c:
            assert c.path == str(given)
    with Chest({"x": 1}) as c:
        assert dict(c) == {"x": 1}
        assert os.path.isdir(c.path)
    with Chest([("x", 1)], tmp_path / "c") as c:
        assert dict(c) == {"x": 1}
    with Chest(path=tmp_path / "c", data={"y": 2}) as c:
        assert dict(c) == {"x": 1, "y": 2}


def test_missing_parents_are_made(tmp_path: Path) -> None:
    with Chest({"x": 1}, tmp_path / "a" / "b" / "c"):
        pass
    assert (tmp_path / "a" / "b" / "c" / "x").is_file()


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(errors.StoreError) as caught:
        Chest(tmp_path / "file")
    assert caught.value.path == str(tmp_path / "file")


def test_a_temporary_folder_is_removed_at_the_end() -> None:
    with Chest({"x": 1}) as c:
        c.flush()
        assert os.path.isdir(c.path)
    assert not os.path.exists(c.path)


def test_fromkeys() -> None:
    with Chest.fromkeys("ab", 1) as c:
        assert dict(c) == {"a": 1, "b": 1}


def test_foreign_files_in_the_folder_stay(chest_dir: Path) -> None:
    (chest_dir / "x").write_text("mine")
    with Chest({"x": 1}, chest_dir) as c:
        c.flush()
        assert c.key_to_filename("x") != str(chest_dir / "x")
        c.compact()
        c.drop()
    assert (chest_dir / "x").read_text() == "mine"


# -- P2, P3: the budget ----------------------------------------------------------------


def within(c: Chest) -> None:
    assert c.memory_usage <= c.available_memory


def test_the_budget_holds_after_every_operation(chest_dir: Path) -> None:
    c = Chest(chest_dir, available_memory=20_000)
    for i in range(200):
        c[i % 40] = np.full(i % 37 * 20, i)
        within(c)
        c.get(i // 3 % 40)
        within(c)
        c.setdefault(f"d{i % 5}", [0] * 300)
        within(c)
        if i % 10 == 0 and i > 40:
            with c.edit(i % 40) as value:
                value[:] = 0
            within(c)
            c.pop(f"d{i % 5}")
            c.prefetch([1, 2, 3])
            within(c)
    c.available_memory = 5_000
    within(c)
    c.available_memory = "1kB"
    within(c)
    c.flush()
    assert c.memory_usage == 0
    c.close()


def test_the_largest_go_first(chest_dir: Path) -> None:
    with Chest(chest_dir, available_memory=100_000) as c:
        for name, size in (("small", 10_000), ("large", 40_000), ("middle", 30_000)):
            c[name] = bytes(size)
        c["new"] = bytes(30_000)
        assert set(c.inmem) == {"small", "middle", "new"}


def test_of_equals_the_least_recently_used_goes_first(chest_dir: Path) -> None:
    with Chest(chest_dir, available_memory=50_000) as c:
        for name in "abcd":
            c[name] = bytes(10_000)
        c["a"]
        c["c"]
        c["e"] = bytes(10_000)
        assert "b" not in c.inmem
        assert {"a", "c"} <= set(c.inmem)


def test_what_is_larger_than_the_budget_is_handed_out_not_kept(chest_dir: Path) -> None:
    with Chest(chest_dir, available_memory=10_000) as c:
        c["small"] = [1]
        c["huge"] = np.arange(10_000)
        assert set(c.inmem) == {"small"}
        assert (c["huge"] == np.arange(10_000)).all()
        assert set(c.inmem) == {"small"}
        assert os.path.exists(c.key_to_filename("huge"))


def test_shared_buffers_count_once(chest_dir: Path) -> None:
    base = np.zeros(100_000, "u1")
    with Chest(chest_dir, available_memory=250_000) as c:
        for i in range(20):
            c[i] = base[i:]
        assert len(c.inmem) == 20
        assert c.memory_usage < 150_000
        del c[0]
        assert c.memory_usage >= 99_981
        for i in range(1, 20):
            del c[i]
        assert c.memory_usage == 0


def test_a_mapped_value_counts_and_goes_for_free(chest_dir: Path) -> None:
    with Chest(chest_dir, available_memory="4MB") as c:
        for i in range(3):
            c[i] = np.full(200_000, i)
        c.flush()
        writes = c.stats().writes
        for i in range(3):
            assert c[i][0] == i
            assert 1_600_000 <= c.memory_usage <= c.available_memory
        assert c.stats().writes == writes == 3
        assert len(c.inmem) == 2


def test_nothing_is_written_twice_while_it_is_clean(chest_dir: Path) -> None:
    values = {"list": [1, [2]], "array": np.arange(100.0), "set": {"a", "b"}, "n": 5}
    with Chest(chest_dir) as c:
        c.update(values)
        c.sync()
        assert c.stats().writes == 4
        c.sync()
        c.flush()
        for key in values:
            c[key]
        c.flush()
        c.available_memory = 0
        for key in values:
            c[key]
        assert c.stats().writes == 4
    with Chest(chest_dir) as c:
        for key in values:
            c[key]
        c.flush()
        assert c.stats().writes == 0


def test_many_small_values_leave_together(chest_dir: Path) -> None:
    with Chest(chest_dir, available_memory=100_000) as c:
        for i in range(2_000):
            c[i] = bytes(100)
            within(c)
        spills = c.stats().spills
        assert spills > 0
        assert len(list(c)) == 2_000
        # A full budget does not mean one record for each new value.
        assert (chest_dir / ".keys").read_bytes().count(b"\n") < spills / 5


def test_hooks_are_called_with_the_key(chest_dir: Path) -> None:
    missed, spilled = [], []
    with Chest(chest_dir, on_miss=missed.append, on_overflow=spilled.append) as c:
        c.update(a=[1], b=[2])
        c["a"]
        assert (missed, spilled) == ([], [])
        c.available_memory = 0
        assert sorted(spilled) == ["a", "b"]
        c["a"]
        assert missed == ["a"]
        c.prefetch("b")
        assert missed == ["a"]


# -- P4: files -------------------------------------------------------------------------


def test_one_value_is_one_plain_file(chest_dir: Path) -> None:
    with Chest(chest_dir) as c:
        c["x"] = [1, 2, 3]
        c.flush()
        assert sorted(os.listdir(c.path)) == [".keys", "x"]
        with open(c.key_to_filename("x"), "rb") as file:
            assert pickle.load(file) == [1, 2, 3]


@pytest.mark.parametrize(
    "value",
    [np.arange(300_000.0), {"a": np.arange(50_000), "b": b"x" * 100_000}, {1}, None],
    ids=["array", "buffers", "set", "none"],
)
def test_plain_pickle_reads_every_file(chest_dir: Path, value: Any) -> None:
    with Chest({"x": value}, chest_dir) as c:
        c.flush()
        with open(c.key_to_filename("x"), "rb") as file:
            assert repr(pickle.load(file)) == repr(value)


def test_overwriting_and_deleting_leave_one_file_or_none(chest_dir: Path) -> None:
    with Chest(chest_dir) as c:
        for i in range(5):
            c["x"] = [i]
            c["one", "two"] = i
            c.flush()
            assert len(os.listdir(c.path)) == 3
        del c["one", "two"]
        assert len(os.listdir(c.path)) == 2
        c.clear()
        assert os.listdir(c.path) == [".keys"]


def test_no_key_leaves_the_folder(tmp_path: Path) -> None:
    with Chest(tmp_path / "c", pack=False) as c:
        for number, key in enumerate(KEYS):
            c[key] = number
        c.flush()
        names = {os.path.realpath(c.key_to_filename(key)) for key in KEYS}
    assert len(names) == len(KEYS)
    assert all(name.startswith(f"{tmp_path}/c/") for name in names)
    assert os.listdir(tmp_path) == ["c"]
    for folder, _, files in os.walk(tmp_path):
        for name in files:
            if name != ".keys":
                assert name.isascii()
                assert len(os.path.join(folder, name)) < len(str(tmp_path)) + 800
                assert len(name) <= 140


def test_the_folder_may_be_moved(chest_dir: Path, tmp_path: Path) -> None:
    with Chest(chest_dir) as c:
        c["x"] = [1]
        c.flush()
        os.rename(chest_dir, tmp_path / "moved")
        assert c["x"] == [1]
        c["y"] = 2
    with Chest(tmp_path / "moved") as c:
        assert dict(c) == {"x": [1], "y": 2}


def test_own_names_must_stay_inside(chest_dir: Path) -> None:
    with Chest(chest_dir, key_to_filename=lambda key: f"../{key}") as c:
        c["x"] = 1
        with pytest.raises(errors.KeyEncodingError, match=r"\.\./x"):
            c.flush()
        del c["x"]
    with Chest(chest_dir, key_to_filename=lambda key: "same") as c:
        c.update(a=1, b=2)
        c.flush()
        assert dict(c) == {"a": 1, "b": 2}


def test_snapshots_are_independent(chest_dir: Path, tmp_path: Path) -> None:
    with Chest(chest_dir) as c:
        c.update(x=[1], big=np.arange(200_000))
        with c.snapshot(tmp_path / "then") as then:
            c["x"] = [2]
            del c["big"]
            c.flush()
            assert then["x"] == [1]
        with pytest.raises(FileExistsError):
            c.snapshot(tmp_path / "then")
    shutil.rmtree(chest_dir)
    with Chest(tmp_path / "then") as then:
        assert list(then) == ["x", "big"]
        assert then["big"].sum() == np.arange(200_000).sum()
        assert then.verify() == []


def test_update_from_a_chest_links_files(chest_dir: Path, tmp_path: Path) -> None:
    with Chest({"x": [1], "y": 2}, chest_dir) as source, Chest(tmp_path / "b") as c:
        c["y"] = "here"
        c.update(source, overwrite=False)
        assert dict(c) == {"y": "here", "x": [1]}
        inodes = [os.stat(chest.key_to_filename("x")).st_ino for chest in (source, c)]
        assert inodes[0] == inodes[1]
        c.update(source)
        assert dict(c) == {"y": 2, "x": [1]}
        del source["x"]
        assert c["x"] == [1]


# -- P5, P6: maps and changes ----------------------------------------------------------

BIG = np.arange(200_000.0)


def test_mapped_arrays_are_read_only(chest_dir: Path) -> None:
    with Chest({"x": BIG}, chest_dir) as c:
        c.flush()
        x = c["x"]
        assert not x.flags.writeable
        with pytest.raises(ValueError, match="read-only"):
            x[0] = 1
        assert c["x"] is x


@pytest.mark.parametrize("mapped", ["copy", False])
@pytest.mark.parametrize("whose", ["chest's", "key's"])
def test_writable_arrays_are_stored_when_they_were_changed(
    chest_dir: Path, mapped: Any, whose: str
) -> None:
    with Chest(chest_dir, mapped=mapped if whose == "chest's" else "r") as c:
        c.set("x", BIG, mapped=mapped if whose == "key's" else None)
        c.flush()
        c["x"]
        c.flush()
        assert c.stats().writes == 1
        c["x"][0] = 7
        c.flush()
        assert c.stats().writes == 2
        assert c["x"][0] == 7
    with Chest(chest_dir) as c:
        assert c["x"][0] == 7
        assert c["x"].flags.writeable is (whose == "key's")


@pytest.mark.parametrize("leave", ["flush", "evict", "close", "sync"])
def test_a_list_changed_in_place_after_it_was_read_is_stored(
    chest_dir: Path, leave: str
) -> None:
    c = Chest({"x": [1], "y": {"a": [1]}}, chest_dir)
    c.flush()
    c["x"].append(2)
    c["y"]["a"].append(2)
    if leave == "evict":
        c.available_memory = 0
    else:
        getattr(c, leave)()
    with Chest(chest_dir) as again:
        assert dict(again) == {"x": [1, 2], "y": {"a": [1, 2]}}
    c.close()


def test_the_bytes_that_others_store_are_seen_at_once(chest_dir: Path) -> None:
    """P8."""
    with Chest(chest_dir) as c, Chest(chest_dir) as other:
        c["x"] = b"x" * 10_000
        c.flush()
        assert other.stored_nbytes == c.stored_nbytes > 10_000


def test_a_value_changed_in_place_after_sync_is_stored(chest_dir: Path) -> None:
    with Chest(chest_dir) as c:
        value = c["x"] = [1]
        c.sync()
        value.append(2)
    with Chest(chest_dir) as c:
        assert c["x"] == [1, 2]


def test_edit_stores_on_success(chest_dir: Path) -> None:
    with Chest({"x": [1], "big": BIG}, chest_dir) as c:
        with c.edit("x") as value:
            value.append(2)
        c.flush()
        with c.edit("big") as value:
            value[0] = 5
        assert c["x"] == [1, 2]
        assert c["big"][0] == 5
    with Chest(chest_dir) as c:
        assert c["x"] == [1, 2]
        assert c["big"][0] == 5


def spoil(value: Any) -> None:
    value[0] = 99
    raise ZeroDivisionError


@pytest.mark.parametrize("flushed", [True, False])
def test_edit_changes_nothing_on_an_exception(chest_dir: Path, flushed: bool) -> None:
    with Chest({"x": [1], "big": BIG}, chest_dir) as c:
        if flushed:
            c.flush()
        for key in c:
            with pytest.raises(ZeroDivisionError), c.edit(key) as value:
                spoil(value)
        assert c["x"] == [1]
        assert c["big"][0] == 0
    with Chest(chest_dir) as c:
        assert c["x"] == [1]
        assert c["big"][0] == 0


def test_edit_sees_what_was_changed_in_place_before(chest_dir: Path) -> None:
    with Chest({"x": [1]}, chest_dir) as c:
        c.flush()
        c["x"].append(2)
        with c.edit("x") as value:
            value.append(3)
        assert c["x"] == [1, 2, 3]


def test_edit_of_a_missing_key(chest_dir: Path) -> None:
    with Chest(chest_dir) as c, pytest.raises(KeyError), c.edit("x"):
        pass


def test_sets_read_in_another_process_are_not_rewritten(chest_dir: Path) -> None:
    """Their pickles depend on the hash seed."""
    from tests.processes import helpers

    words = {f"word-{i}" for i in range(50)}
    script = """
import os, sys
from chest import Chest
with Chest(sys.argv[1]) as c:
    assert len(c["x"]) == 50
    c.flush()
    assert c.stats().writes == 0
    c["x"].add("new")
    c.flush()
    assert c.stats().writes == 1
    c["x"].remove("new")
"""
    with Chest({"x": words}, chest_dir) as c:
        c.flush()
        for _ in range(3):
            helpers.run(script, chest_dir)
            assert c["x"] == words


# -- the rest of the face --------------------------------------------------------------


def test_own_format(chest_dir: Path) -> None:
    import json

    options: ClassVar[dict[str, Any]] = {
        "dump": json.dump,
        "load": json.load,
        "mode": "t",
    }
    with Chest({"x": [1]}, chest_dir, **options) as c:
        c.flush()
        assert Path(c.key_to_filename("x")).read_text() == "[1]"
        c["x"].append(2)
        c.flush()
        assert c["x"] == [1, 2]
        c["bad"] = {1}
        with pytest.raises(errors.EncodingError):
            c.flush()
        del c["bad"]
    with Chest(chest_dir) as c, pytest.raises(errors.DecodingError, match="dump="):
        c["x"]
    with Chest(chest_dir, **options) as c:
        assert c.verify() == []
        Path(c.key_to_filename("x")).write_text("[1, 3]")
        assert len(c.verify()) == 1
        with pytest.raises(errors.CorruptValueError):
            c["x"]


def test_entry_and_stats_tell_without_loading(chest_dir: Path) -> None:
    with Chest({"x": [1]}, chest_dir) as c:
        assert c.entry("x").dirty
        c.flush()
        facts = c.entry("x")
        assert (facts.name, facts.dirty, facts.in_memory) == ("x", False, False)
        assert facts.stored_nbytes == os.path.getsize(facts.path)
        assert facts.generation > 0
        stats = c.stats()
        assert (stats.keys, stats.loads, stats.writes) == (1, 0, 1)
        c["x"], c["x"]
        assert (c.stats().hits, c.stats().misses) == (1, 1)
        with pytest.raises(KeyError):
            c.entry("y")


def test_available_disk_deletes_the_least_recently_used(chest_dir: Path) -> None:
    with Chest(chest_dir, available_disk=100_000, publish="each") as c:
        for i in range(10):
            c[i] = bytes(20_000)
            assert c.stats().stored_nbytes <= 100_000
        assert 9 in c
        assert 0 not in c
        assert len(c) == 4


def test_trim_needs_a_limit(chest_dir: Path) -> None:
    with Chest({i: bytes(1000) for i in range(5)}, chest_dir) as c:
        c.flush()
        with pytest.raises(TypeError):
            c.trim()
        assert c.trim(bytes=0) == 5
        assert len(c) == 0


def test_long_logs_compact_themselves(chest_dir: Path) -> None:
    with Chest(chest_dir, publish="each") as c:
        for i in range(2_500):
            c["x"] = i
        c.flush()
        assert (chest_dir / ".keys").stat().st_size < 200_000
        assert c["x"] == 2_499


def test_repr_says_where_and_how_much(chest_dir: Path) -> None:
    with Chest({"x": 1}, chest_dir) as c:
        assert str(chest_dir) in repr(c)
        assert str(chest_dir) in c._repr_html_()
        assert dict(c.inmem) == {"x": 1}
        assert "1 value" in repr(c.inmem)


def test_drop_deletes_everything(tmp_path: Path) -> None:
    c = Chest({"x": 1, ("a", "b"): 2}, tmp_path / "c")
    c.flush()
    c.drop()
    assert os.listdir(tmp_path) == []
    c = Chest({"x": 1}, tmp_path / "c")
    c.close()
    c.drop()
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("anew", [False, True], ids=["gone", "made anew"])
def test_whoever_writes_to_a_chest_that_was_dropped_is_told(
    anew: bool, tmp_path: Path
) -> None:
    path, large = tmp_path / "c", np.arange(10_000.0)
    c, other = Chest(path), Chest({"z": large})
    c.drop()
    with contextlib.ExitStack() as stack:
        c = Chest(path)
        Chest(path).drop()
        if anew:
            stack.enter_context(Chest({"new": 1}, path)).sync()
        for use in (
            lambda: c.set("x", large, ttl=5),
            lambda: c.update(other),
            lambda: c.set_many({"x": large}),
            c.flush,
            c.close,
        ):
            with pytest.raises(errors.DroppedError):
                use()
        c._release()
    other.close()
    if anew:
        with Chest(path) as c:
            assert dict(c) == {"new": 1}


def test_a_chest_leaves_chests_and_queues_below_it_alone(chest_dir: Path) -> None:
    with (
        Chest({"x": 1}, chest_dir) as c,
        Chest({"y": 2, ("a", "b"): 3}, chest_dir / "sub" / "chest") as below,
        DurableQueue(chest_dir / "sub" / "queue") as queue,
    ):
        below.flush()
        queue.put(np.zeros(100_000))
        c.flush()
        assert c.compact() == 0
        assert c.verify() == below.verify() == []
        c.drop()
        assert dict(below) == {"y": 2, ("a", "b"): 3}
        assert queue.get().shape == (100_000,)


def test_a_folder_of_chests_may_become_one(chest_dir: Path) -> None:
    Chest({"x": 1}, chest_dir / "below").close()
    with Chest({"y": 2}, chest_dir) as c:
        assert dict(c) == {"y": 2}
    with Chest(chest_dir / "below") as below:
        assert dict(below) == {"x": 1}


def test_a_key_whose_class_is_gone_costs_no_other_key(
    chest_dir: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = types.ModuleType("a_script_of_its_own")
    gone.Key = dataclasses.make_dataclass("Key", ["n"], frozen=True)
    gone.Key.__module__ = gone.__name__
    monkeypatch.setitem(sys.modules, gone.__name__, gone)
    with Chest({"x": 1, gone.Key(1): 2, ("part", gone.Key(2)): 3}, chest_dir):
        pass
    monkeypatch.delitem(sys.modules, gone.__name__)
    with Chest(chest_dir) as c, Chest(chest_dir) as theirs:
        assert c["x"] == 1
        assert [*c.values()] == [1, 2, 3]
        assert "a_script_of_its_own" in caplog.text
        (plain, opaque, (part, _)) = c
        assert (plain, part, c[opaque]) == ("x", "part", 2)
        assert "not loaded" in repr(opaque)
        c.compact()
        del c[opaque]
        assert [*theirs.values()] == [1, 3]
    monkeypatch.setitem(sys.modules, gone.__name__, gone)
    with Chest(chest_dir) as c:
        assert [key[1].n for key in c if key != "x"] == [2]


def test_a_look_that_waited_until_the_chest_was_closed_says_so(chest_dir: Path) -> None:
    """Another thread closes it; before, what was closed already was read."""
    c, asked, told = Chest(chest_dir), threading.Event(), list[BaseException]()
    lock = c.lock

    class Watched:
        def __enter__(self) -> None:
            asked.set()
            lock.acquire()

        def __exit__(self, *_: object) -> None:
            lock.release()

    def look() -> None:
        try:
            c.refresh()
        except errors.ChestError as error:
            told.append(error)

    thread = threading.Thread(target=look)
    with lock:
        c.lock = Watched()  # type: ignore[assignment]
        thread.start()
        asked.wait()
        c.close()
    thread.join()
    assert [type(error) for error in told] == [errors.ClosedError]


def test_nbytes_of_the_face() -> None:
    assert nbytes(np.zeros(1000)) >= 8000


@pytest.mark.parametrize("change", ["set", "delete", "clear"])
@pytest.mark.parametrize("leave", ["flush", "sync", "evict"])
def test_a_value_replaced_while_it_is_written_is_not_published(
    chest_dir: Path, change: str, leave: str
) -> None:
    """C3: nothing is locked while bytes move, so identity decides afterwards."""
    changes = {
        "set": lambda: c.__setitem__("x", "newer"),
        "delete": lambda: c.__delitem__("x"),
        "clear": lambda: c.clear(),
    }

    class Slow:
        def __reduce__(self) -> Any:
            if "x" in c and isinstance(c.inmem.get("x"), Slow):
                changes[change]()
            return int, ()

    expected = {"x": "newer"} if change == "set" else {}
    with Chest(chest_dir) as c:
        c["x"] = Slow()
        if leave == "evict":
            c.available_memory = 0
        else:
            getattr(c, leave)()
        assert dict(c) == expected
    with Chest(chest_dir) as c:
        assert dict(c) == expected
        c.compact()
        assert len(os.listdir(chest_dir)) == 1 + len(expected)


def test_a_readonly_chest_can_be_copied(chest_dir: Path, tmp_path: Path) -> None:
    with Chest(chest_dir) as c:
        c["x"] = [1]
    with Chest(chest_dir, readonly=True) as c:
        with c.copy() as copied, c | {"y": 2} as both, c.snapshot(tmp_path / "s") as s:
            copied["z"] = 3
            assert dict(both) == {"x": [1], "y": 2}
            assert dict(s) == {"x": [1]}
        assert dict(c) == {"x": [1]}


def test_prefetch_opens_files_together_by_the_users_function(chest_dir: Path) -> None:
    opened: list[int] = []

    @contextlib.contextmanager
    def together(paths: list[str], mode: str) -> Iterator[list[Any]]:
        opened.append(len(paths))
        with contextlib.ExitStack() as stack:
            yield [stack.enter_context(open(path, mode)) for path in paths]

    options = {"dump": json.dump, "load": json.load, "mode": "t"}
    with Chest(chest_dir, open_many=together, **options) as c:
        c.update({str(i): [i] for i in range(5)})
        c.flush()
        c.prefetch([str(i) for i in range(5)])
        assert opened == [5]
        assert dict(c.inmem) == {str(i): [i] for i in range(5)}


def test_chests_that_open_files_differently_copy_by_value(
    chest_dir: Path, tmp_path: Path
) -> None:
    options = {"dump": pickle.dump, "load": lambda file: pickle.load(file)}
    with (
        Chest(chest_dir, **options) as plain,
        Chest(tmp_path / "z", open=gzip.open, **options) as zipped,
    ):
        plain["x"] = [1]
        zipped.update(plain)
        zipped.flush()
        assert zipped["x"] == [1]
