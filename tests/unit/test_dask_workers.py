"""SpillChest: what distributed's own SpillBuffer promises to a worker, and more."""

from __future__ import annotations

import array
import logging
import os
import pickle
import sys
import uuid
import weakref

import numpy as np
import pytest

pytest.importorskip("distributed")

from distributed.utils import RateLimiterFilter

from chest.dask import SpillChest
from chest.dask import workers as module

KB = 1000


@pytest.fixture
def make(tmp_path, caplog, monkeypatch):
    """Make SpillChests, each in a worker's folder of its own."""
    made = []
    # distributed's loggers keep their messages to themselves, and some to one in 10 s.
    RateLimiterFilter.reset_timer("distributed.spill")
    monkeypatch.setattr(module.log, "propagate", False)
    module.log.addHandler(caplog.handler)

    def new(available_memory=290 * KB, **options) -> SpillChest:
        home = tmp_path / str(len(made))
        home.mkdir()
        made.append(SpillChest(str(home), available_memory, **options))
        return made[-1]

    yield new
    module.log.removeHandler(caplog.handler)
    for each in made:
        each.close()


def array_of(nbytes: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random(nbytes // 8)


def placed(data: SpillChest) -> tuple[set, set]:
    return set(data.fast), set(data.slow)


def test_memory_spills_when_it_is_over_the_budget_and_counts_both_sizes(make):
    data = make(policy="lru")

    for key in "abc":
        data[key] = array_of(100 * KB)

    assert placed(data) == ({"b", "c"}, {"a"})
    assert data.memory.keys() == data.fast.keys()
    assert data.disk.keys() == data.slow.keys()
    memory, disk = data.spilled_total
    assert memory >= 100 * KB
    assert 100 * KB < disk < 101 * KB


def test_a_value_that_comes_back_pushes_out_another(make):
    data = make(policy="lru")
    for seed, key in enumerate("abc"):
        data[key] = array_of(100 * KB, seed)

    assert (data["a"] == array_of(100 * KB, 0)).all()

    assert placed(data) == ({"a", "c"}, {"b"})


def test_a_deleted_key_is_in_neither_place_and_moves_no_other(make):
    data = make(policy="lru")
    for key in "abcd":
        data[key] = array_of(100 * KB)

    del data["a"], data["d"]

    assert placed(data) == ({"c"}, {"b"})
    assert data.spilled_total.memory < 101 * KB
    with pytest.raises(KeyError):
        data["a"]
    with pytest.raises(KeyError):
        del data["d"]


def test_deleting_a_spilled_value_does_not_read_it(make):
    data = make()
    data["x"] = array_of(100 * KB)
    data.evict()
    before = data.stats().loads

    del data["x"]

    assert data.stats().loads == before
    assert data.spilled_total == (0, 0)
    assert not os.path.exists(os.path.join(data.path, "x"))


def test_overwriting_a_spilled_value_brings_the_key_to_memory(make):
    data = make()
    data["x"] = array_of(100 * KB)
    data.evict()

    data["x"] = "short"

    assert placed(data) == ({"x"}, set())
    assert data["x"] == "short"
    assert data.spilled_total == (0, 0)


def test_a_spilled_value_that_is_overwritten_pushes_out_another(make):
    data = make(policy="lru")
    for key in "abc":
        data[key] = array_of(100 * KB)

    data["a"] = array_of(150 * KB)

    assert placed(data) == ({"a", "c"}, {"b"})
    assert data.spilled_total.memory < 101 * KB


def test_a_spilled_value_is_overwritten_on_disk_by_one_larger_than_the_budget(make):
    data = make(100 * KB)
    data["small"] = 1
    data["x"] = array_of(90 * KB)
    data.evict()

    data["x"] = array_of(200 * KB, 1)

    assert placed(data) == ({"small"}, {"x"})
    assert 200 * KB <= data.spilled_total.memory < 201 * KB
    assert (data["x"] == array_of(200 * KB, 1)).all()
    assert len(os.listdir(data.path)) == 2  # of which one is the manifest


def test_with_no_budget_all_is_on_disk_and_sizes_are_those_of_the_files(make):
    data = make(0)

    data["a"], data["b"] = "a" * 100, array.array("d", range(100))

    assert placed(data) == (set(), {"a", "b"})
    files = [os.path.getsize(data.key_to_filename(key)) for key in "ab"]
    assert data.spilled_total == (sys.getsizeof("a" * 100) + 800, sum(files))


def test_a_value_larger_than_the_budget_goes_to_disk_at_once(make):
    data = make(100 * KB)
    data["small"] = 1

    data["x"] = array_of(200 * KB)

    assert placed(data) == ({"small"}, {"x"})
    assert data["x"].nbytes == 200 * KB
    assert placed(data) == ({"small"}, {"x"})


def test_clear_leaves_nothing(make):
    data = make(100 * KB)
    data["x"], data["y"] = array_of(200 * KB), 1

    data.clear()

    assert len(data) == 0
    assert data.spilled_total == (0, 0)


@pytest.mark.parametrize("key", ["x", ("x", 0, 1), 1, 1.5, b"x", ("a-1", ("b", 2))])
def test_every_kind_of_key_that_dask_has_can_be_spilled(make, key):
    data = make()
    data[key] = [1, 2]

    assert data.evict() > 0

    assert list(data.slow) == [key]
    assert data[key] == [1, 2]


def test_one_and_the_text_one_are_two_keys(make):
    data = make()
    data[1], data["1"] = "number", "text"
    while data.fast:
        data.evict()

    assert dict(data) == {1: "number", "1": "text"}


# -- the other ways of a chest ---------------------------------------------------------


WAYS = {
    "pop": lambda data: data.pop("x"),
    "popitem": lambda data: data.popitem(),
    "delete_many": lambda data: data.delete_many(["x"]),
    "set": lambda data: data.set("x", 1),
    "set_many": lambda data: data.set_many({"x": 1}),
    "transact": lambda data: data.transact(lambda change: change.pop("x")),
    "get_from_disk": lambda data: data.get_from_disk("x"),
    "flush": lambda data: [data["x"], data.flush()],
}


@pytest.mark.parametrize("way", WAYS)
def test_what_is_on_disk_is_known_whichever_way_it_went(make, way):
    data = make()
    data["y"], data["x"] = array_of(50 * KB), array_of(100 * KB, 1)
    while data.fast:
        data.evict()

    WAYS[way](data)

    assert set(data.slow) == set(data) - set(data.fast)
    files = [os.path.getsize(data.key_to_filename(key)) for key in data.slow]
    assert data.spilled_total.disk == sum(files)
    assert data.spilled_total.memory >= 50 * KB


def test_pop_gives_a_spilled_value_and_removes_its_file(make):
    data = make()
    data["x"] = array_of(100 * KB)
    data.evict()

    assert data.pop("x").nbytes == 100 * KB
    assert data.pop("x", None) is None
    assert "x" not in os.listdir(data.path)


@pytest.mark.parametrize("new", [[1, 2], array_of(50 * KB, 1)], ids=["list", "array"])
def test_a_held_value_is_not_taken_for_what_was_set_in_another_way(make, new):
    data = make()
    held = data["x"] = array_of(100 * KB)
    data.evict()
    data.set("x", new)

    data.flush()

    assert data["x"] is not held
    assert np.array_equal(data["x"], new)


# -- what is not written or read twice ------------------------------------------------


@pytest.mark.parametrize("nbytes", [100 * KB, 2000 * KB])
@pytest.mark.parametrize("mapped", ["copy", "r"])
def test_a_clean_value_is_not_written_again(make, nbytes, mapped):
    data = make(10_000 * KB, mapped=mapped)
    data["x"] = array_of(nbytes)
    data.evict()
    assert data["x"].nbytes == nbytes
    written = data.stats().written_nbytes

    assert data.evict() > 0

    assert placed(data) == (set(), {"x"})
    assert data.stats().written_nbytes == written
    assert nbytes <= data.spilled_total.memory < nbytes + KB


def test_a_value_that_has_two_keys_is_written_once(make):
    data = make(10_000 * KB)
    data["x"] = array_of(2000 * KB)
    data.evict()
    data["y"] = data["x"]
    written = data.stats().written_nbytes

    while data.fast:
        data.evict()

    assert data.stats().written_nbytes == written
    del data["x"]
    assert (data["y"] == array_of(2000 * KB)).all()
    assert data.verify() == []


def test_the_first_of_two_keys_to_leave_is_written(make):
    data = make(10_000 * KB)
    data["x"] = data["y"] = array_of(2000 * KB)

    while data.fast:
        data.evict()

    assert data.stats().written_nbytes < 2100 * KB
    assert (data["x"] == data["y"]).all()


def test_a_value_of_two_keys_that_was_changed_is_written_for_both(make):
    data = make(10_000 * KB)
    data["x"] = array_of(2000 * KB)
    data.evict()
    data["y"] = value = data["x"]
    value[100_000] = 7
    del value

    while data.fast:
        data.evict()

    assert data["x"][100_000] == data["y"][100_000] == 7


def test_keys_of_values_that_went_are_not_taken_for_those_of_others(make):
    data = make(100_000 * KB)
    for i in range(300):
        data[i] = array_of(1100 * KB, i)
        del data[i]
        data["kept", i % 5] = array_of(1100 * KB, i)

    while data.fast:
        data.evict()

    for i in range(295, 300):
        assert (data["kept", i % 5] == array_of(1100 * KB, i)).all()
    assert len(data._twins._keys) < 100


def test_a_value_that_was_changed_in_place_is_written_again(make):
    data = make(10_000 * KB)
    data["x"] = array_of(2000 * KB)
    data.evict()
    data["x"][100_000] = 7
    data.evict()

    assert placed(data) == (set(), {"x"})
    assert data["x"][100_000] == 7


def test_spilled_arrays_come_back_writable_and_as_views_of_their_file(make):
    data = make(10_000 * KB)
    data["x"] = array_of(2000 * KB)
    data.evict()

    value = data["x"]

    assert value.flags.writeable
    assert not value.flags.owndata


def test_a_value_that_somebody_holds_is_not_read_again(make):
    data = make()
    value = data["x"] = array_of(100 * KB)
    data.evict()
    before = data.stats().loads

    assert data["x"] is value
    assert data.stats().loads == before
    assert placed(data) == ({"x"}, set())


def test_a_held_value_that_is_too_large_to_keep_is_not_read_again(make):
    data = make(100 * KB)
    data["x"] = array_of(200 * KB)

    value = data["x"]

    assert data["x"] is value
    assert placed(data) == (set(), {"x"})


def test_a_held_value_that_was_changed_is_written_again(make):
    data = make()
    value = data["x"] = array_of(100 * KB)
    data.evict()
    value[0] = 7
    assert data["x"] is value
    del value

    data.evict()

    assert data["x"][0] == 7


class Numbered:
    """A value that shows whether it was unpickled."""

    __slots__ = ("id",)

    def __init__(self):
        self.id = uuid.uuid4()

    def __reduce__(self):
        return (type(self), ())


class Referable(Numbered):
    __slots__ = ("__weakref__",)


@pytest.mark.parametrize(("kind", "same"), [(Referable, True), (Numbered, False)])
def test_only_types_that_take_weak_references_are_remembered(make, kind, same):
    data = make()
    value = data["x"] = kind()
    data.evict()

    assert (data["x"] is value) == same


@pytest.mark.parametrize(("kind", "same"), [(Referable, True), (Numbered, False)])
def test_a_value_that_was_read_is_remembered_for_as_long_as_it_is_held(
    make, kind, same
):
    data = make()
    first = data["x"] = kind()
    data.evict()
    number = first.id
    del first

    value = data["x"]
    data.evict()

    assert value.id != number
    assert (data["x"] is value) == same


def test_nothing_keeps_a_value_that_left(make):
    data = make()
    value = data["x"] = Referable()
    there = weakref.ref(value)
    data.evict()
    del value

    assert there() is None


def test_looking_at_slow_brings_nothing_to_memory(make):
    data = make()
    data["x"] = [1, 2]
    data.evict()

    assert dict(data.slow) == {"x": [1, 2]}
    assert placed(data) == (set(), {"x"})
    with pytest.raises(KeyError):
        data.slow["y"]
    assert repr(data.slow) == "<1 values on disk>"


# -- what a value keeps alive ---------------------------------------------------------


def test_a_part_of_a_mapped_value_does_not_keep_the_map(make):
    data = make(10_000 * KB)
    data["x"] = array_of(4000 * KB)
    data.evict()
    part = data["x"][1000:2000]
    expected = part.copy()

    data["part"] = part
    data.evict()

    assert placed(data) == ({"part"}, {"x"})
    assert data.memory_usage < 10 * KB
    assert (data["part"] == expected).all()


def test_a_part_of_a_frame_does_not_keep_the_rest(make):
    pd = pytest.importorskip("pandas")
    data = make(10_000 * KB)
    whole = pd.DataFrame({"a": array_of(4000 * KB), "b": "text"})

    data["part"] = whole[1000:2000]

    assert data.memory_usage < 100 * KB
    pd.testing.assert_frame_equal(data["part"], whole[1000:2000])


class Handle:
    """It has much, and is something else when it is pickled."""

    def __init__(self):
        self.held = array_of(4000 * KB)

    def __reduce__(self):
        return list, ()


def test_what_is_the_larger_part_or_no_part_stays_as_it_is(make):
    data = make(10_000 * KB)
    whole, handle = array_of(4000 * KB), Handle()
    larger, objects = whole[100_000:], np.array([whole, lambda: 1], object)[:1]

    data["larger"], data["handle"], data["objects"] = larger, handle, objects

    assert data["larger"] is larger
    assert data["handle"] is handle
    assert data["objects"] is objects


# -- evict ----------------------------------------------------------------------------


def test_evict_returns_what_left_and_minus_one_when_there_is_nothing(make):
    data = make()
    assert data.evict() == -1
    data["x"] = array_of(100 * KB)

    assert data.evict() == 100 * KB
    assert data.evict() == -1


def test_evict_takes_one_large_value_at_a_time(make):
    data = make(10_000 * KB)
    for i in range(10):
        data[i] = array_of(100 * KB, i)

    data.evict()

    assert len(data.slow) == 1


def test_evict_takes_many_small_values_together(make):
    data = make(10_000 * KB)
    for i in range(2000):
        data[i] = str(i)

    data.evict()

    assert 64 <= len(data.slow) <= 500
    assert {key: data[key] for key in range(2000)} == {i: str(i) for i in range(2000)}


class Bad:
    """A value that cannot be pickled, of a size of its choice."""

    def __init__(self, nbytes):
        self.nbytes = nbytes

    def __getstate__(self):
        raise ValueError("not me")

    def __sizeof__(self):
        return self.nbytes


def test_a_large_value_that_cannot_be_pickled_is_refused_and_forgotten(make, caplog):
    data = make(100 * KB)

    with pytest.raises(TypeError, match="Failed to pickle 'x'") as raised:
        data["x"] = Bad(200 * KB)

    causes = [raised.value]
    while causes[-1].__cause__:
        causes.append(causes[-1].__cause__)
    assert str(causes[-1]) == "not me"

    assert placed(data) == (set(), set())
    assert not caplog.records
    data["x"] = 1
    assert data["x"] == 1


def test_a_small_value_that_cannot_be_pickled_stays_and_is_logged_once(make, caplog):
    data = make(100 * KB)
    data["bad"] = Bad(60 * KB)

    data["x"] = array_of(50 * KB)
    data["y"] = array_of(60 * KB, 1)
    data.evict()

    assert "bad" in data.fast
    assert set(data.slow) <= {"x", "y"}
    messages = [record.getMessage() for record in caplog.records]
    assert messages == ["Failed to pickle 'bad'"]
    assert caplog.records[0].exc_info
    assert caplog.records[0].name == "distributed.spill"


def test_a_small_value_that_cannot_be_pickled_may_be_the_one_that_is_set(make, caplog):
    data = make(100 * KB, policy="largest")
    data["x"] = array_of(50 * KB)

    data["bad"] = Bad(60 * KB)

    assert placed(data) == ({"bad"}, {"x"})
    assert "Failed to pickle 'bad'" in caplog.text


def test_what_was_just_set_does_not_leave_for_one_that_cannot_be_pickled(make, caplog):
    data = make(100 * KB, policy="lru")
    data["bad"] = Bad(60 * KB)

    data["x"] = array_of(50 * KB)
    assert placed(data) == ({"bad", "x"}, set())
    data["y"] = array_of(60 * KB, 1)

    assert placed(data) == ({"bad", "y"}, {"x"})
    assert data.evict() == 60 * KB


def test_evict_goes_on_with_others_where_one_cannot_be_pickled(make, caplog):
    data = make()
    data["bad"], data["x"] = Bad(60 * KB), array_of(50 * KB)

    assert data.evict() == 50 * KB
    assert data.evict() == -1
    assert "Failed to pickle 'bad'" in caplog.text


def test_a_full_disk_keeps_all_values_in_memory(make, caplog, monkeypatch):
    data = make(100 * KB)

    def refuse(*_: object, **__: object) -> int:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("chest.system.write_all", refuse)
        data["large"] = array_of(200 * KB)
        data["x"] = array_of(50 * KB)
        assert data.evict() == -1
    assert placed(data) == ({"large", "x"}, set())
    assert "Spill to disk failed; keeping data in memory" in caplog.text

    assert data.evict() == 200 * KB


def test_where_it_must_not_write_values_stay_in_memory(make, caplog, monkeypatch):
    data = make(100 * KB, policy="lru")
    data["there"] = array_of(200 * KB)

    def refuse(*_: object, **__: object) -> int:
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr("chest.system.write_all", refuse)
        data["large"] = array_of(200 * KB)
        assert placed(data) == ({"large"}, {"there"})
        del data["large"]
        data["x"] = array_of(60 * KB)
        data["y"] = array_of(60 * KB)

    assert placed(data) == ({"x", "y"}, {"there"})
    assert "Spill to disk failed; keeping data in memory" in caplog.text


def test_evict_never_raises(make, caplog, monkeypatch):
    data = make()
    data["x"] = 1
    monkeypatch.setattr(SpillChest, "_write_out", lambda *_, **__: 1 / 0)

    assert data.evict() == -1
    assert "ZeroDivisionError" in caplog.text


def test_max_spill_keeps_values_in_memory(make, caplog):
    data = make(100 * KB, max_spill=250 * KB, policy="lru")
    for i in range(3):
        data[i] = array_of(90 * KB, i)

    data[3] = array_of(90 * KB, 3)

    assert placed(data) == ({2, 3}, {0, 1})
    assert "Spill file on disk reached capacity" in caplog.text
    del data[0]
    data.evict()
    assert len(data.slow) == 2


def test_what_is_set_anew_beyond_max_spill_stays_and_makes_room_for_others(
    make, caplog
):
    data = make(100 * KB, max_spill=250 * KB, policy="lru")
    data["a"] = array_of(200 * KB)
    data["b"], data["c"] = array_of(60 * KB), array_of(60 * KB, 1)
    assert placed(data) == ({"b", "c"}, {"a"})

    data["a"] = array_of(300 * KB)

    assert placed(data) == ({"a"}, {"b", "c"})
    data["a"] = array_of(310 * KB)
    assert placed(data) == ({"a"}, {"b", "c"})
    messages = [record.getMessage() for record in caplog.records]
    assert set(messages) == {module.FULL}


# -- figures --------------------------------------------------------------------------


def test_the_sums_of_reads_and_writes_grow(make):
    data = make()
    data["x"] = array.array("d", range(1000))
    assert not data.cumulative_metrics

    data["x"]
    data.evict()
    data["x"]

    sums = data.cumulative_metrics
    labels = ["memory-read", "disk-read", "disk-write"]
    assert [sums[label, "count"] for label in labels] == [1, 1, 1]
    assert all(sums[label, "bytes"] >= 8000 for label in labels)
    assert ("memory-read", "seconds") not in sums
    assert sums["disk-read", "seconds"] > 0


def test_the_sums_are_those_of_the_files(make):
    data = make(100 * KB, policy="lru")
    data["a"] = array_of(60 * KB)
    data["b"] = b""
    del data["b"]
    data["a"]  # from memory
    data["c"] = array_of(70 * KB, 1)  # a goes
    data.evict()  # c goes
    data["d"] = array_of(200 * KB, 2)  # it goes at once
    files = {key: os.path.getsize(data.key_to_filename(key)) for key in "acd"}
    data["c"], data["d"]  # from disk

    assert placed(data) == ({"c"}, {"a", "d"})
    sums = data.cumulative_metrics
    assert {each: sums[each] for each in sums if each[1] != "seconds"} == {
        ("memory-read", "count"): 1,
        ("memory-read", "bytes"): 60 * KB,
        ("disk-write", "count"): 3,
        ("disk-write", "bytes"): sum(files.values()),
        ("disk-read", "count"): 2,
        ("disk-read", "bytes"): files["c"] + files["d"],
    }
    assert all(value > 0 for value in sums.values())


def test_the_sums_reach_what_the_worker_is_doing_just_now(make):
    from distributed.metrics import context_meter

    data, seen = make(), []
    data["x"] = 1

    with context_meter.add_callback(lambda label, value, unit: seen.append(label)):
        data["x"]

    assert seen == ["memory-read", "memory-read"]


def test_memory_is_given_back_to_the_system_when_distributed_evicts(make, monkeypatch):
    data, calls = make(), []
    monkeypatch.setattr("chest.system.give_back_memory", lambda: calls.append(1))
    for i in range(4):
        data[i] = array_of(50 * KB, i)
    del data[0]

    assert calls == []
    data.evict()
    assert calls == [1]


class Measured:
    """A value of which only dask knows how large it is."""


def test_a_size_that_dask_was_told_counts(make, monkeypatch):
    from dask.sizeof import sizeof

    from chest.sizing import walk

    monkeypatch.setattr(walk, "_REGISTERED", {})
    monkeypatch.setattr(sizeof, "_lookup", sizeof._lookup | {Measured: len})
    sizeof.register(Measured, lambda value: 5_000_000)
    data = make(10_000 * KB)

    data["x"], data["y"] = Measured(), array_of(100 * KB)

    assert data.memory_usage == 5100 * KB
    assert data.evict() == 5000 * KB
    assert list(data.slow) == ["x"]
    walk._HANDLERS.clear()


@pytest.mark.parametrize(("codec", "most"), [(None, 21 * KB), ("zstd", 1 * KB)])
def test_files_can_be_compressed(make, codec, most):
    data = make(1, compression=codec)

    data["x"] = "x" * 20 * KB

    assert data.spilled_total.disk < most
    assert data["x"] == "x" * 20 * KB


# -- the process ----------------------------------------------------------------------


@pytest.fixture
def process(monkeypatch):
    """A process whose size is what the test says, less what has left memory."""

    class Process:
        size = 0

        def measure(self):
            left = self.data.stats().spills * 100 * KB
            return self.size - left, 0

    process = Process()
    monkeypatch.setattr("chest.system.real_memory", process.measure)
    return process


def test_a_process_that_is_too_large_spills_though_the_budget_would_do(make, process):
    data = process.data = make(10_000 * KB, process_memory=1600 * KB)
    for i in range(4):
        data[i] = array_of(100 * KB, i)
    assert not data.slow

    process.size = 1750 * KB
    data[4] = array_of(100 * KB, 4)

    assert len(data.slow) == 2
    assert data.memory_usage < 310 * KB


def test_a_process_is_measured_once_a_sixteenth_of_its_limit_came_in(make, process):
    data = process.data = make(10_000 * KB, process_memory=3200 * KB)
    process.size = 3400 * KB

    data["x"] = array_of(100 * KB)
    assert not data.slow
    data["y"] = array_of(100 * KB, 1)

    assert set(data.slow) == {"x", "y"}


def test_mapped_bytes_count_before_anybody_touches_them(make, process):
    data = process.data = make(10_000 * KB, process_memory=32_000 * KB)
    data["x"] = array_of(2000 * KB)
    data["y"] = array_of(1000 * KB, 1)
    data.evict()
    assert placed(data) == ({"y"}, {"x"})
    process.size = 30_150 * KB  # with all that is mapped it is 50 kB too large

    assert data["x"].nbytes == 2000 * KB

    assert len(data.slow) == 1


def test_a_process_that_stays_too_large_ends_with_nothing_to_spill(make, process):
    data = process.data = make(10_000 * KB, process_memory=1600 * KB)
    process.size = 10**9

    value = data["x"] = array_of(100 * KB)

    assert placed(data) == (set(), {"x"})
    assert data["x"] is value


# -- its folder -----------------------------------------------------------------------


def test_the_folder_lies_in_the_workers_and_goes_without_being_written(tmp_path):
    data = SpillChest(str(tmp_path))
    data["x"] = 1
    assert os.listdir(tmp_path) == ["chest"]

    data.close()

    assert os.listdir(tmp_path) == []


def test_it_cannot_be_pickled_because_each_worker_makes_its_own(make):
    with pytest.raises(TypeError, match="each worker makes its own"):
        pickle.dumps(make())


def test_messages_go_where_distributed_has_its_own():
    assert module.log is logging.getLogger("distributed.spill")
