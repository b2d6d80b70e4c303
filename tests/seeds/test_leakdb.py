"""LeakDB: each program of its document, and none of its defects (D1 to D10)."""

from __future__ import annotations

import logging
import multiprocessing
import subprocess
import sys
import threading

import pytest

from chest import errors
from chest.seeds import (
    DefaultStorage,
    PersistentQueueStorage,
    PersistentStorage,
    QueueStorage,
    UnprocessedError,
)
from tests.processes.helpers import forked, run

KINDS = [DefaultStorage, QueueStorage, PersistentStorage, PersistentQueueStorage]
ON_DISK = [PersistentStorage, PersistentQueueStorage]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__)
def leak(request, chest_dir):
    arguments = (chest_dir,) if request.param in ON_DISK else ()
    with request.param(*arguments) as made:
        yield made


class Recorder(QueueStorage):
    """Keeps what it processed; refuses or raises for keys that it is told of."""

    def __init__(self, **options):
        super().__init__(**options)
        self.seen, self.refused, self.bad = [], set(), set()

    def worker_process(self, item):
        self.seen.append((item["operation"], item["item"]))
        key = next(iter(item["item"]))
        if key in self.bad:
            raise OSError(key)
        return key not in self.refused


def test_the_documents_program_runs(chest_dir):
    leak = PersistentQueueStorage(filename=str(chest_dir / "foobar.db"))

    leak.set("bar", {"foo": "bar"})
    leak.set("foo", 2, key_prefix="bar_")
    assert leak.incr(key="bar_foo", delta=5) == 7
    assert leak.incr(key="foobar", initial_value=1000) == 1000
    assert leak.get_multi(keys=["bar", "foobar"]) == {
        "foobar": 1000,
        "bar": {"foo": "bar"},
    }
    size, queued, kept = str(leak).split(" :: ")
    assert size.startswith(str(chest_dir / "foobar.db"))
    assert size.endswith(" bytes")
    assert (queued, kept) == ("3 items in queue", "3 items in storage memory")
    shown = repr(leak.flush(force=True))
    assert shown.endswith(" :: 0 items in queue :: 3 items in storage memory")
    leak.close()


def test_the_documents_queue_runs(caplog):
    logger = logging.getLogger("mine")

    class MyQueueStorage(QueueStorage):
        def worker_process(self, item):
            logger.info("process item :: {}".format(item))  # noqa: UP032
            return True

    with caplog.at_level(logging.INFO, "mine"):
        storage = MyQueueStorage()
        storage.set("foo", 1)
        storage.flush(force=True)
        storage.close()

    assert "process item :: {'operation': 'set', 'item': {'foo': 1}" in caplog.text


def test_the_documents_queue_is_flushed_by_itself(chest_dir):
    storage = PersistentQueueStorage(filename=chest_dir, maxsize=1, workers=1)
    storage.set("foo", 1)

    assert "0 items in queue" in repr(storage)
    with PersistentStorage(chest_dir) as other:
        assert other["foo"] == 1
    storage.close()


def test_numbers_are_returned(leak):
    """D1."""
    assert leak.incr("x") == 1
    assert leak.incr("x", 10) == 11
    assert leak.decr("x", 12) == -1
    assert leak.set("y", 1) is True
    assert leak.set_multi({"a": 1, "b": 2}, key_prefix="k_") is True
    assert leak.get_multi(["k_a", "k_b", "x", "none"]) == {"k_a": 1, "k_b": 2, "x": -1}


def test_zero_is_a_number_like_others(leak):
    """D2."""
    leak["x"] = 0

    assert leak.incr("x", initial_value=100) == 1
    assert leak.decr("x") == 0
    assert leak.decr("x") == -1
    assert leak.incr("y", initial_value=0) == 0
    with pytest.raises(KeyError):
        leak.decr("none")


@pytest.mark.parametrize("kind", ON_DISK)
def test_deleting_a_false_value_is_kept(kind, chest_dir):
    """D3."""
    with kind(chest_dir) as leak:
        leak["x"] = 0
        leak["y"] = ""
    with kind(chest_dir) as leak:
        assert leak.delete("x") == 0
        assert leak.pop("y") == ""
        assert leak.delete("none") is False
    with kind(chest_dir) as leak:
        assert len(leak) == 0


def test_what_cannot_be_counted_is_a_value_error(leak):
    """D4."""
    leak["x"] = "text"

    for call in (leak.incr, leak.decr):
        with pytest.raises(ValueError, match="is no number"):
            call("x")
        for delta in (-1, "1", None, 1j):
            with pytest.raises(ValueError, match="not below 0"):
                call("n", delta)
    with pytest.raises(ValueError, match="is no number"):
        leak.incr("n", initial_value="1")
    assert dict(leak) == {"x": "text"}


def change_in_every_way(leak):
    leak["a"] = 1
    leak.update(b=2, c=3)
    assert leak.setdefault("d", 4) == 4
    assert leak.setdefault("d", 5) == 4
    assert leak.pop("a") == 1
    assert leak.pop("none", 0) == 0
    del leak["b"]
    assert leak.popitem() == ("d", 4)
    leak.incr("n")
    leak.decr("n")


@pytest.mark.parametrize("kind", ON_DISK)
def test_every_change_is_kept(kind, chest_dir):
    """D5."""
    with kind(chest_dir) as leak:
        change_in_every_way(leak)
    with kind(chest_dir) as leak:
        assert dict(leak.items()) == {"c": 3, "n": 0}
        assert (list(leak), list(leak.keys()), list(leak.values())) == (
            ["c", "n"],
            ["c", "n"],
            [3, 0],
        )
        leak.clear()
    with kind(chest_dir) as leak:
        assert dict(leak) == {}


def test_every_change_comes_to_the_hook():
    """D5."""
    told = []

    class Told(DefaultStorage):
        def hook(self, operation, item):
            told.append((operation, item))

    with Told() as leak:
        change_in_every_way(leak)
        leak.clear()

    sets = [item for operation, item in told if operation == "set"]
    gone = [item for operation, item in told if operation == "delete"]
    assert sets == [{"a": 1}, {"b": 2}, {"c": 3}, {"d": 4}, {"n": 1}, {"n": 0}]
    assert gone == ["a", "b", "d", "c", "n"]


def test_close_writes_what_is_queued(chest_dir):
    """D6."""
    with PersistentQueueStorage(chest_dir) as leak:
        leak["x"] = [1]
        with PersistentStorage(chest_dir) as other:
            assert "x" not in other
    with PersistentStorage(chest_dir) as other:
        assert other["x"] == [1]


def test_the_end_of_the_process_writes_what_is_queued(chest_dir):
    """D6."""
    run(
        "import sys; from chest.seeds import PersistentQueueStorage as P\n"
        "leak = P(sys.argv[1]); leak.set('x', [1])",
        chest_dir,
    )

    with PersistentStorage(chest_dir) as other:
        assert other["x"] == [1]


def test_errors_are_raised(chest_dir):
    """D7."""
    with PersistentStorage(chest_dir) as leak:
        with pytest.raises(errors.EncodingError):
            leak.set("x", threading.Lock())
        with pytest.raises(TypeError):
            leak.get_multi([[]])
        assert len(leak) == 0


def test_importing_it_sets_no_logging_up():
    """D7."""
    code = "import logging, chest.seeds; print(logging.getLogger().handlers)"

    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


@pytest.mark.timeout(20)
def test_an_item_that_fails_is_tried_once_a_flush_and_kept():
    """D8."""
    storage = Recorder(maxsize=2, workers=2)
    storage.refused = {"x"}
    storage["x"] = 1
    storage["y"] = 2

    assert sorted(str(item) for _, item in storage.seen) == ["{'x': 1}", "{'y': 2}"]
    storage["z"] = 3
    assert len(storage.seen) == 2, "one item is new, and two fill the queue"
    assert "1 items in queue" in repr(storage.flush(force=True))
    with pytest.raises(UnprocessedError, match="1 items were not processed"):
        storage.close()
    storage.refused = set()
    storage.close()
    storage.close()


def test_an_error_of_a_worker_is_raised_when_the_rest_is_done(caplog):
    """D8."""
    storage = Recorder()
    storage.bad = {"x"}
    storage.update(x=1, y=2)

    with pytest.raises(OSError, match="x"):
        storage.flush(force=True)
    assert "1 items in queue" in repr(storage)
    with pytest.raises(OSError, match="x"):
        storage.close()
    storage.close(discard=True)
    assert "stays in the queue" in caplog.text


def test_an_error_of_a_worker_is_not_the_next_settings(caplog):
    storage = Recorder(maxsize=2)
    storage.bad = {"x"}
    storage.update(x=1, y=2)

    assert dict(storage) == {"x": 1, "y": 2}
    assert "stays in the queue" in caplog.text
    storage.close(discard=True)


@pytest.mark.parametrize("workers", [1, 4])
def test_changes_of_one_key_are_processed_in_order(workers):
    storage = Recorder(workers=workers)
    for number in range(20):
        storage.set(number % 3, number)
    storage.flush(force=True)

    for key in range(3):
        seen = [item[key] for _, item in storage.seen if key in item]
        assert seen == sorted(seen)
    assert len(storage.seen) == 20
    storage.close()


def test_after_one_that_fails_later_changes_of_its_key_wait():
    storage = Recorder()
    storage.refused = {"x"}
    storage["x"] = 1
    storage["x"] = 2
    storage.flush(force=True)
    storage.refused = set()
    storage.flush(force=True)

    assert [item["x"] for _, item in storage.seen] == [1, 1, 2]
    storage.close()


def test_a_worker_may_use_the_storage():
    class Counting(QueueStorage):
        def worker_process(self, item):
            if "seen" not in item["item"]:
                self.incr("seen")
                self.flush(force=True)
            return True

    with Counting(maxsize=1, workers=3) as storage:
        storage["a"] = 1
        storage["b"] = 2

        assert storage["seen"] == 2


def test_a_forked_child_leaves_the_queue_to_its_parent():
    storage = Recorder()
    storage["x"] = 1

    def work() -> None:
        storage.flush(force=True)
        assert storage.seen == []

    assert forked(work) == 0
    storage.close()
    assert storage.seen == [("set", {"x": 1})]


def test_a_storage_needs_workers():
    with pytest.raises(ValueError, match="one is needed"):
        QueueStorage(workers=0)


def test_what_does_not_fit_in_memory_goes_to_disk():
    """D9."""
    with DefaultStorage() as leak:
        leak._chest.available_memory = 10_000
        leak.update((number, bytes(1000)) for number in range(30))

        assert leak._chest.memory_usage <= 10_000
        assert all(leak[number] == bytes(1000) for number in range(30))


def test_counters_are_exact_between_processes_and_threads(chest_dir):
    """D9, D10."""
    context = multiprocessing.get_context("fork")
    processes = [
        context.Process(target=count, args=(str(chest_dir), 100)) for _ in range(2)
    ]
    for process in processes:
        process.start()
    with PersistentStorage(chest_dir) as leak:
        threads = [
            threading.Thread(target=lambda: [leak.incr("n") for _ in range(100)])
            for _ in range(2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for process in processes:
            process.join()
            process.close()

        assert leak["n"] == 400


def count(path: str, times: int) -> None:
    with PersistentStorage(path) as leak:
        for _ in range(times):
            leak.incr("n")
