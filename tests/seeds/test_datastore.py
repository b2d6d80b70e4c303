"""key-value-ds: each program of its document, and none of its defects (D1 to D6)."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import pytest

import chest.seeds as key_value_ds
from chest import expiry
from tests.processes.helpers import forked
from tests.seeds.helpers import killed_while_writing


@pytest.fixture
def store(chest_dir):
    with key_value_ds.get_instance(chest_dir) as made:
        yield made


@pytest.fixture
def clock(monkeypatch):
    """The time, to be set by the test."""
    now = [1e9]
    monkeypatch.setattr(expiry, "now", lambda: now[0])
    return now


def test_the_documents_programs_run(clock):
    ds_instance = key_value_ds.get_instance()

    data_key = "test_key"
    data_value = {"value": 1}
    time_to_live = 5 * 1000
    ds_instance.create(data_key, data_value, ttl=time_to_live)
    assert ds_instance.get("test_key") == {"value": 1}
    ds_instance.delete("test_key")
    with pytest.raises(ValueError, match="not in the store"):
        ds_instance.get("test_key")
    ds_instance.delete_all()

    assert "LOCAL_STORAGE_" in ds_instance.path
    ds_instance.close()
    shutil.rmtree(ds_instance.path)


def test_the_cost_of_a_write_is_that_of_its_value(store, chest_dir):
    """D1."""
    store.create("x", {"value": 1})

    sizes = [path.stat().st_size for path in chest_dir.rglob("*") if path.is_file()]
    assert sum(sizes) < 10_000


def test_ttl_is_in_seconds(store, clock):
    """D2: the document says both."""
    store.create("x", {}, ttl=5)
    clock[0] += 4.9
    assert store.get("x") == {}
    clock[0] += 0.2
    for ask in (store.get, store.__getitem__):
        with pytest.raises(ValueError, match="its time is over"):
            ask("x")
    store.delete("x")


def test_an_expired_key_can_be_created(store, clock):
    """D3."""
    store.create("x", {"a": 1}, ttl=5)
    clock[0] += 6

    assert "x" not in store
    store.create("x", {"a": 2})

    clock[0] += 100
    assert store["x"] == {"a": 2}


def test_the_cap_is_on_bytes_of_json(store):
    """D4."""
    store.create("fits", {"x": "a" * (16 * 1024 - len('{"x":""}'))})
    with pytest.raises(ValueError, match="takes 16385 bytes"):
        store.create("large", {"x": "a" * (16 * 1024 - len('{"x":""}') + 1)})
    with pytest.raises(ValueError, match="bytes as JSON"):
        store.create("deep", {"x": {"y": ["ä" * 10_000]}})

    assert list(store) == ["fits"]


def test_caps_can_be_set(chest_dir):
    with key_value_ds.get_instance(
        chest_dir, max_key_len=3, max_value_size=10
    ) as store:
        store.create("abc", {"a": 1})
        with pytest.raises(ValueError, match="of 3 characters at most"):
            store.create("abcd", {})
        with pytest.raises(ValueError, match="10 are allowed"):
            store.create("x", {"a": "too long"})


def test_a_killed_writer_leaves_what_it_created(chest_dir):
    """D5."""
    last = killed_while_writing(chest_dir, create_many)

    with key_value_ds.get_instance(chest_dir) as store:
        assert last + 1 <= len(store) <= last + 2
        assert all(store[key] == {"number": int(key)} for key in store)


def create_many(path: str, created) -> None:
    store = key_value_ds.get_instance(path)
    for number in range(10**6):
        store.create(str(number), {"number": number})
        created(number)


def test_it_can_be_closed_replaced_counted_and_listed(chest_dir, capsys):
    """D6."""
    store = key_value_ds.get_instance(chest_dir)
    store.create("x", {"a": 1}, ttl=50)
    store.create("y", {"a": 2})
    store.replace("x", {"a": 3})
    store.flush()

    assert (list(store), len(store), "x" in store) == (["x", "y"], 2, True)
    assert store["x"] == {"a": 3}
    with pytest.raises(ValueError, match="not in the store"):
        store.replace("z", {})
    assert repr(store) == f"<DataStore at {chest_dir}>"
    store.close()
    store.close()

    with key_value_ds.get_instance(chest_dir) as store:
        assert store.path == str(chest_dir)
        assert store["y"] == {"a": 2}
    assert capsys.readouterr().out == ""


def test_a_second_opening_is_refused(store, chest_dir):
    with pytest.raises(BlockingIOError, match=f"by process {os.getpid()}"):
        key_value_ds.get_instance(chest_dir)
    store.create("x", {})


def test_another_process_is_refused_until_it_is_closed(chest_dir):
    code = f"from chest.seeds import get_instance; get_instance({str(chest_dir)!r})"
    with key_value_ds.get_instance(chest_dir):
        second = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True
        )
        assert "BlockingIOError" in second.stderr
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


def test_a_store_that_was_forgotten_gives_its_lock_back(chest_dir):
    key_value_ds.get_instance(chest_dir).create("x", {})

    with key_value_ds.get_instance(chest_dir) as store:
        assert "x" in store


def test_a_forked_child_is_a_second_process(store, chest_dir):
    def work() -> None:
        with pytest.raises(BlockingIOError, match="this is a child"):
            store.create("x", {})
        store.close()

    assert forked(work) == 0
    with pytest.raises(BlockingIOError):
        key_value_ds.get_instance(chest_dir)
    assert len(store) == 0


@pytest.mark.parametrize(
    ("key", "value", "ttl"),
    [
        (1, {}, None),
        ("x" * 33, {}, None),
        ("x", [1], None),
        ("x", {"a": {1, 2}}, None),
        ("x", {"a": float("nan")}, None),
        ("x", {1: 2}, None),
        ("x", {"a": (1, 2)}, None),
        ("x", {"a": "\ud800"}, None),
        ("x", {}, "soon"),
        ("x", {}, 1.5),
        ("x", {}, 0),
        ("x", {}, -1),
    ],
)
def test_what_is_not_as_it_must_be_is_refused(store, key, value, ttl):
    with pytest.raises(ValueError, match=r".+"):
        store.create(key, value, ttl)

    assert len(store) == 0


def test_a_key_is_created_once(store):
    store.create("x", {"a": 1})

    with pytest.raises(ValueError, match="there already"):
        store.create("x", {"a": 2})
    assert store.get("x") == {"a": 1}


def test_of_threads_that_create_one_key_one_succeeds(store):
    start, refused = threading.Barrier(8), []

    def create(number):
        start.wait()
        try:
            store.create("x", {"number": number})
        except ValueError:
            refused.append(number)

    threads = [threading.Thread(target=create, args=(each,)) for each in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert len(refused) == 7
    assert store["x"]["number"] not in refused


def test_what_was_got_is_ones_own(store):
    store.create("x", {"a": [1]})
    store["x"]["a"].append(2)

    assert store["x"] == {"a": [1]}


def test_each_value_is_a_file_of_json(store, chest_dir: Path):
    store.create("x", {"a": "ä"})

    assert json.loads((chest_dir / "x").read_bytes()) == {"a": "ä"}
