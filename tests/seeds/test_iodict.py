"""IODict: each program of its document, and none of its defects (D1 to D12)."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import queue
import signal
import threading
from pathlib import Path

import pytest

import chest.seeds as iodict
from chest import Chest, Ordered, errors
from tests.seeds.helpers import killed_while_writing

LISTED = """
__class__ __delattr__ __delitem__ __dict__ __dir__ __doc__ __enter__ __eq__ __exit__
__format__ __ge__ __getattribute__ __getitem__ __gt__ __hash__ __init__
__init_subclass__ __iter__ __le__ __len__ __lt__ __module__ __ne__ __new__ __reduce__
__reduce_ex__ __repr__ __setattr__ __setitem__ __sizeof__ __str__ __subclasshook__
__weakref__ _lock clear copy fromkeys get items keys pop popitem setdefault update values
"""


@pytest.fixture
def data(chest_dir):
    with iodict.IODict(path=chest_dir) as made:
        yield made


def test_the_documents_first_program_runs(chest_dir):
    data = iodict.IODict(path=str(chest_dir))
    data["key"] = "value"

    assert repr(data) == "{'key': 'value'}"
    assert set(LISTED.split()) <= set(dir(data))
    data.close()


def test_the_documents_program_with_a_lock_runs(chest_dir):
    """D8: the document passes what makes a lock, and not one."""
    for lock in (threading.Lock, threading.Lock(), multiprocessing.Lock, None):
        data = iodict.IODict(path=chest_dir, lock=lock)
        data["key"] = "value"
        assert data.pop("key") == "value"
        data.close()


def test_what_is_no_lock_is_refused(chest_dir):
    with pytest.raises(TypeError, match="is no lock"):
        iodict.IODict(path=chest_dir, lock=3)


def test_the_lock_is_held_once_for_each_operation(chest_dir):
    taken = []

    class Counted:
        def __enter__(self):
            taken.append("in")

        def __exit__(self, *exception):
            taken.append("out")

    with iodict.IODict(chest_dir, lock=Counted) as data:
        data["x"] = 1
        assert data.setdefault("x") == data["x"] == data.pop("x")
        data.clear()

    assert taken == ["in", "out"] * 5


def test_setdefault_keeps_what_is_there(data):
    """D1."""
    data["x"] = 1

    assert data.setdefault("x", 2) == 1
    assert data.setdefault("y", 2) == 2
    assert dict(data) == {"x": 1, "y": 2}


@pytest.mark.parametrize("default", [None, 0, "", [], False])
def test_pop_returns_a_false_default(data, default):
    """D2."""
    assert data.pop("x", default) == default
    with pytest.raises(KeyError):
        data.pop("x")


def test_a_copy_is_independent(data):
    """D3."""
    data["x"] = 1
    other = data.copy()
    other["y"] = 2

    assert (dict(data), dict(other)) == ({"x": 1}, {"x": 1, "y": 2})
    other.close()
    assert data["x"] == 1


def test_fromkeys_returns_a_new_dict(data, tmp_path):
    """D3."""
    with data.fromkeys("ab", 0) as made:
        assert (dict(made), len(data)) == ({"a": 0, "b": 0}, 0)
    with iodict.IODict.fromkeys("ab", path=tmp_path / "made") as made:
        assert dict(made) == {"a": None, "b": None}


def test_counting_and_looking_list_no_folder(data, monkeypatch):
    """D4."""
    data.update((number, number) for number in range(5))
    with monkeypatch.context() as patch:
        for name in ("listdir", "scandir"):
            patch.setattr(os, name, None)

        assert 3 in data
        assert len(data) == 5
        assert data.popitem() == (0, 0)


def test_popitem_lists_the_keys_once_for_all(data, monkeypatch):
    """D4."""
    listed = []
    ask = Chest.__iter__
    monkeypatch.setattr(Chest, "__iter__", lambda c: listed.append(1) or ask(c))
    data.update((number, number) for number in range(50))

    assert [data.popitem()[0] for _ in range(50)] == [*range(50)]
    assert len(listed) == 1


def test_popitem_takes_the_oldest_whatever_happened_since(data):
    data.update(zip("abcd", range(4), strict=True))
    taken = [data.popitem()[0]]
    del data["b"]
    data["b"] = "set anew, so the newest"
    data["c"] = "keeps its place"
    with iodict.IODict(data._chest.path) as other:
        taken.append(other.popitem()[0])
        other["e"] = 4

    taken += [data.popitem()[0] for _ in range(3)]

    assert taken == ["a", "c", "d", "b", "e"]
    with pytest.raises(KeyError, match="dictionary is empty"):
        data.popitem()


def test_popitem_takes_a_key_that_was_moved_to_the_front(data, monkeypatch):
    """It listed the keys for ever."""
    listed = []
    ask = Chest.__iter__

    def few(chest):
        listed.append(1)
        assert len(listed) < 5
        return ask(chest)

    data.update(zip("abc", range(3), strict=True))
    Ordered(data._chest).move_to_end("c", last=False)
    monkeypatch.setattr(Chest, "__iter__", few)

    assert [data.popitem()[0] for _ in range(3)] == ["c", "a", "b"]


@pytest.mark.parametrize("key", [1, ("a", 2), None, b"x", 1.5, frozenset("ab")])
def test_any_hashable_key_is_taken(data, key):
    """D5."""
    data[key] = "value"

    assert data[key] == "value"
    assert list(data) == [key]


def test_no_key_leads_out_of_the_folder(chest_dir):
    """D6."""
    for key in ("../escaped", "/etc/passwd", "a/b", "x" * 300, "..", ""):
        with iodict.IODict(chest_dir) as data:
            data[key] = key
        with iodict.IODict(chest_dir) as data:
            assert data[key] == key
    assert os.listdir(chest_dir.parent) == [chest_dir.name]


def test_a_killed_writer_leaves_each_value_whole(chest_dir):
    """D7."""
    last = killed_while_writing(chest_dir, write_values)

    with iodict.IODict(chest_dir) as data:
        assert data["x"] in ([last] * 1000, [last + 1] * 1000)


def write_values(path: str, written) -> None:
    data = iodict.IODict(path)
    for number in range(10**6):
        data["x"] = [number] * 1000
        written(number)


def test_leaving_a_with_block_keeps_everything(chest_dir):
    """D9."""
    with iodict.IODict(chest_dir) as data:
        data["x"] = 1
    with pytest.raises(KeyError, match="none"):
        with iodict.IODict(chest_dir) as data:
            data["none"]

    with iodict.IODict(chest_dir) as data:
        assert dict(data) == {"x": 1}


def test_keys_need_no_attributes_of_files(data, monkeypatch):
    """D11."""
    for name in ("getxattr", "setxattr", "listxattr"):
        monkeypatch.setattr(os, name, None, raising=False)
    data["x"] = 1

    assert list(data) == ["x"]


def test_the_repr_reads_no_large_value(data):
    """D12."""
    data["x"] = "x" * 100_000
    data.update(dict.fromkeys(range(200)))

    assert repr(data).startswith("{'x': <")
    assert repr(data).endswith("98: None, …}")


def test_it_compares_like_a_dict_and_updates_from_pairs(data, tmp_path):
    """D12."""
    data.update([("x", 1)], y=2)
    with iodict.IODict.fromkeys("xy", path=tmp_path / "other") as other:
        other.update({"y": 2, "x": 1})

        assert data == other
    assert data == {"x": 1, "y": 2}
    assert data != {"x": 1}


def test_the_order_is_that_of_birth_after_a_restart(chest_dir):
    with iodict.IODict(chest_dir) as data:
        data.update({"b": 1, "a": 2})
        data["b"] = 3
        data["c"] = 4
    with iodict.IODict(chest_dir) as data:
        assert list(data) == ["b", "a", "c"]
        assert list(reversed(data)) == ["c", "a", "b"]
        assert list(data.__iter__(index=1)) == ["a"]
        assert list(data.items()) == [("b", 3), ("a", 2), ("c", 4)]
        assert (list(data.keys()), list(data.values())) == (["b", "a", "c"], [3, 2, 4])
        data.clear()
        assert len(data) == 0


def test_it_travels_to_another_process(chest_dir):
    with iodict.IODict(chest_dir) as data:
        data["x"] = 1
        with pickle.loads(pickle.dumps(data)) as other:
            other["y"] = 2
        assert dict(data) == {"x": 1, "y": 2}


def test_each_item_is_popped_by_one_process(chest_dir):
    context = multiprocessing.get_context("fork")
    with iodict.IODict(chest_dir) as data:
        data.update((number, number) for number in range(200))
    results = context.SimpleQueue()
    takers = [
        context.Process(target=take_all, args=(str(chest_dir), results))
        for _ in range(2)
    ]
    for taker in takers:
        taker.start()

    taken = results.get() + results.get()

    for taker in takers:
        taker.join()
        taker.close()
    results.close()
    assert sorted(taken) == [*range(200)]


def take_all(path: str, results) -> None:
    signal.alarm(20)
    taken = []
    with iodict.IODict(path) as data:
        while data:
            try:
                taken.append(data.popitem()[0])
            except KeyError:
                break
    results.put(taken)


def test_the_documents_programs_with_queues_run(tmp_path: Path):
    q = iodict.DurableQueue(path=tmp_path / "durable")
    q.put("test")
    assert q.get() == "test"
    q.close()

    class NewQueue(queue.Queue, iodict.FlushQueue):
        def __init__(self, path, lock=None, semaphore=None):
            super().__init__()
            self.path = path
            self.lock = lock
            self.semaphore = semaphore

    q = NewQueue(path=tmp_path / "flushed")
    q.put("test")
    sizes = [q.qsize()]
    q.flush()
    sizes.append(q.qsize())
    q.ingest()
    sizes.append(q.qsize())

    assert (sizes, q.get()) == ([1, 0, 1], "test")


def put(path: str) -> None:
    with iodict.DurableQueue(path) as q:
        q.put("theirs")


def test_a_queue_is_a_whole_one_for_all_processes(chest_dir: Path) -> None:
    """D10: it had no size, and knew nothing of what others put."""
    context = multiprocessing.get_context("fork")
    with iodict.DurableQueue(chest_dir, maxsize=1) as q:
        child = context.Process(target=put, args=(str(chest_dir),))
        child.start()
        assert q.get(timeout=60) == "theirs"
        child.join()
        child.close()
        q.put("mine")
        assert q.full()
        with pytest.raises(queue.Full):
            q.put_nowait("more")
        assert q.get() == "mine"
        q.task_done()
        q.task_done()
        q.join()


def test_saving_a_queue_swallows_no_error(chest_dir: Path) -> None:
    """D10."""

    class Saved(queue.Queue, iodict.FlushQueue):
        path = str(chest_dir)

    q = Saved()
    q.put(threading.Lock())
    with pytest.raises(errors.EncodingError):
        q.flush()
    assert q.qsize() == 1
