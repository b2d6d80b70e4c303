"""P8, P9: forks under load, and several processes on one chest."""

from __future__ import annotations

import itertools
import multiprocessing
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from chest import Chest, errors
from chest.index import Index
from chest.rewrite import Rewrite
from chest.stores.local import LocalStore
from tests.processes import helpers

pytestmark = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)


def fork_under_load(folder: Path, forks: int) -> None:
    """Fork while two threads write; each child writes and reads, or is killed."""
    c = Chest(folder, available_memory=10_000)
    stop = threading.Event()

    def write(name: int) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            c[name, number % 10] = [number] * 20
            if number % 10 == 0:
                c.flush()

    threads = [threading.Thread(target=write, args=(name,)) for name in range(2)]
    for thread in threads:
        thread.start()
    try:
        for number in range(forks):

            def child(number: int = number) -> None:
                c["child", number] = number
                c.flush()
                assert c["child", number] == number
                assert len(c) >= number

            assert helpers.forked(child) == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    c.flush()
    assert c.verify() == []
    assert {key for key in c if key[0] == "child"} == {
        ("child", number) for number in range(forks)
    }
    c.close()


def test_forks_while_threads_write_never_hang(chest_dir: Path) -> None:
    fork_under_load(chest_dir, 50)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_thousand_forks_while_threads_write_never_hang(chest_dir: Path) -> None:
    fork_under_load(chest_dir, 1000)


def test_a_killed_child_does_not_keep_its_parents_lock(chest_dir: Path) -> None:
    """F9: the lock belongs to the open file, which a plain fork would share."""
    read, write = multiprocessing.Pipe(duplex=False)
    with Chest(chest_dir, timeout=10) as c, Chest(chest_dir, timeout=10) as other:
        c["x"] = 1
        c.sync()
        context = multiprocessing.get_context("fork")
        child = context.Process(target=wait_for, args=(read,), daemon=True)
        with c._spill.exclusive():
            child.start()
        other["y"] = 2
        other.sync()  # would wait for the child if that still had the lock
        write.send(None)
        child.join()
        child.close()
        assert dict(c) == {"x": 1, "y": 2}
    read.close()
    write.close()


def wait_for(read: multiprocessing.connection.Connection) -> None:
    read.recv()


def test_four_processes_with_keys_of_their_own_lose_none(chest_dir: Path) -> None:
    context = multiprocessing.get_context("fork")
    count = 100
    children = [
        context.Process(target=helpers.write_many, args=(str(chest_dir), name, count))
        for name in range(4)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join(100)
        assert child.exitcode == 0
        child.close()
    with Chest(chest_dir) as c:
        expected = {
            f"{name}-{i}": "again" if i % 5 == 0 else [name, i] * 50
            for name in range(4)
            for i in range(count)
            if i % 10 != 9
        }
        assert dict(c) == expected
        assert c.verify() == []


def test_of_two_that_race_for_a_key_one_wins(chest_dir: Path) -> None:
    context = multiprocessing.get_context("fork")
    barrier, results, rounds = context.Barrier(2), context.SimpleQueue(), 50
    children = [
        context.Process(
            target=helpers.race, args=(str(chest_dir), barrier, me, rounds, results)
        )
        for me in range(2)
    ]
    for child in children:
        child.start()
    found: dict[int, list[tuple[int, int, bool]]] = {}
    for _ in range(2 * rounds):
        number, me, got, taken = results.get()
        found.setdefault(number, []).append((me, got, taken))
    for child in children:
        child.join(60)
        assert child.exitcode == 0
        child.close()
    for number in range(rounds):
        (_, got, taken), (_, theirs, taken_too) = found[number]
        assert got == theirs, "setdefault gave two values"
        assert taken + taken_too == 1, "pop gave one value to two, or to none"


def test_threads_of_one_chest_agree(chest_dir: Path) -> None:
    c = Chest(chest_dir, available_memory=5_000)
    won: list[int] = []
    start = threading.Barrier(4)

    def work(me: int) -> None:
        start.wait()
        for i in range(50):
            c[me, i] = [i] * 10
            assert c[me, i] == [i] * 10
            if c.setdefault(("shared", i), me) == me and c.pop(("shared", i), None):
                won.append(i)
            if i % 10 == 0:
                c.flush()

    threads = [threading.Thread(target=work, args=(me,)) for me in range(1, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {key for key in c if key[0] != "shared"} == {
        (me, i) for me in range(1, 5) for i in range(50)
    }
    assert c.memory_usage <= c.available_memory
    c.close()
    with Chest(chest_dir) as c:
        assert c.verify() == []
        assert all(c[me, i] == [i] * 10 for me in range(1, 5) for i in range(50))


def test_a_lock_that_is_held_names_its_holder(chest_dir: Path) -> None:
    with Chest(chest_dir) as c, Chest(chest_dir, timeout=0) as other:
        other["x"] = 1
        with c._spill.exclusive():
            with pytest.raises(errors.LockTimeout, match=r"locked by .*process \d+"):
                other.flush()
        assert other["x"] == 1
        other.flush()
        assert c["x"] == 1


@pytest.mark.parametrize("keys", [1, 50, 500])
def test_close_keeps_the_newest_value_that_another_thread_set(
    chest_dir: Path, keys: int
) -> None:
    """A set either is there after the close, or raised ClosedError."""
    c = Chest(chest_dir)
    done: dict[int, int] = {}
    begun = threading.Event()

    def work() -> None:
        for i in itertools.count():
            try:
                c[i % keys] = i
            except errors.ClosedError:
                return
            done[i % keys] = i
            if i > 2 * keys:
                begun.set()

    thread = threading.Thread(target=work)
    thread.start()
    begun.wait()
    c.close()
    thread.join()
    with Chest(chest_dir) as again:
        assert dict(again) == done


@pytest.mark.parametrize("keys", [1, 50, 500])
def test_flush_publishes_keys_that_are_being_set_all_the_time(
    chest_dir: Path, keys: int
) -> None:
    begun, over = threading.Event(), threading.Event()
    with Chest(chest_dir) as c, Chest(chest_dir) as other:

        def work() -> None:
            for i in itertools.count():
                c[i % keys] = i
                if i > 2 * keys:
                    begun.set()
                if over.is_set():
                    return

        thread = threading.Thread(target=work)
        thread.start()
        begun.wait()
        c.flush()
        assert set(other) == set(range(keys))
        over.set()
        thread.join()


def test_an_edit_that_cannot_be_stored_leaves_the_old_value(chest_dir: Path) -> None:
    with Chest(chest_dir) as c:
        c["x"] = [1]
        with pytest.raises(errors.EncodingError), c.edit("x") as value:
            value.append(threading.Lock())
        assert c["x"] == [1]
        c.flush()
        assert c["x"] == [1]


def test_no_thread_reads_what_another_is_about_to_let_go(
    chest_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would read, without the lock, what another process has replaced long ago."""
    with Chest(chest_dir) as c, Chest(chest_dir, publish="each") as other:
        other["x"] = 1
        assert c["x"] == 1
        looked: list[bool] = []
        drop = c._memory.drop

        def dropping(slot):
            looked.append(c._word[1] != c._seen)  # a reader takes the lock, that is
            drop(slot)

        monkeypatch.setattr(c._memory, "drop", dropping)
        other["x"] = 2
        assert c["x"] == 2
        assert looked == [True]


def test_a_chest_that_is_opened_in_the_middle_of_a_compaction_sees_what_follows(
    chest_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old file says that it is on its way out, and would never say more."""
    opened: list[Chest] = []
    place = Rewrite.place

    def placing(self, *, sync):
        opened.append(Chest(chest_dir))
        place(self, sync=sync)

    with Chest(chest_dir, publish="each") as c:
        c["x"] = 1
        with monkeypatch.context() as patch:
            patch.setattr(Rewrite, "place", placing)
            c.compact()
        c["x"] = 2
        with opened[0] as other:
            assert other["x"] == 2


def test_no_thread_misses_a_key_while_another_reads_the_log_anew(
    chest_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Chest(chest_dir) as c, Chest(chest_dir, publish="each") as other:
        other.update(dict.fromkeys(range(10), 1))
        assert len(c) == 10
        found: list[bool] = []
        apply = Index.apply

        def applying(self, key, entry):
            found.append(c._manifest.index.get(9) is not None)
            apply(self, key, entry)

        other.compact()
        with monkeypatch.context() as patch:
            patch.setattr(Index, "apply", applying)
            assert 9 in c
        assert found
        assert all(found)


def test_a_new_chest_that_another_fills_while_it_is_opened_has_lost_nothing(
    chest_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sealed = LocalStore.sealed

    def filled_first(self: LocalStore) -> Iterator[str]:
        monkeypatch.setattr(LocalStore, "sealed", sealed)
        with Chest(chest_dir) as other:
            other["x"] = [1]
        return sealed(self)

    monkeypatch.setattr(LocalStore, "sealed", filled_first)
    with Chest(chest_dir) as c:
        assert dict(c) == {"x": [1]}
