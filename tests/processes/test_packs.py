"""P7, P8, P9: packs between processes, and across forks."""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chest import Chest
from tests.failures import scenes
from tests.processes import helpers

pytestmark = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)

FORK = multiprocessing.get_context("fork")
BATCH, ROUNDS = 70, 12


def many(name: object, number: int) -> dict[Any, Any]:
    return {(name, number, i): [name, number, i] for i in range(BATCH)}


def pack_and_replace(path: str, name: int) -> None:
    """Set batches, replace each by the next but one, and delete some keys."""
    with Chest(path, available_memory=20_000) as c:
        for number in range(ROUNDS):
            c.update(many(name, number))
            c.flush()
            if number >= 2:
                for i in range(BATCH):
                    c[name, number - 2, i] = "replaced"
                c.sync()
            if number % 4 == 3:
                for i in range(0, BATCH, 7):
                    del c[name, number, i]


def expected_of(name: int) -> dict[Any, Any]:
    model: dict[Any, Any] = {}
    for number in range(ROUNDS):
        model.update(many(name, number))
        if number >= 2:
            model.update({(name, number - 2, i): "replaced" for i in range(BATCH)})
        if number % 4 == 3:
            for i in range(0, BATCH, 7):
                del model[name, number, i]
    return model


def compact_until(path: str, stop: Any) -> None:
    with Chest(path) as c:
        while not stop.is_set():
            c.compact()


def test_processes_that_pack_into_one_folder_while_one_compacts_lose_nothing(
    chest_dir: Path,
) -> None:
    path, stop = str(chest_dir), FORK.Event()
    Chest(path).close()
    writers = [
        FORK.Process(target=pack_and_replace, args=(path, name)) for name in range(4)
    ]
    compactor = FORK.Process(target=compact_until, args=(path, stop))
    for child in (compactor, *writers):
        child.start()
    for child in writers:
        child.join(60)
    stop.set()
    compactor.join(30)
    assert [child.exitcode for child in (compactor, *writers)] == [0] * 5
    for child in (compactor, *writers):
        child.close()
    expected: dict[Any, Any] = {}
    for name in range(4):
        expected.update(expected_of(name))
    with Chest(path) as c:
        assert c.verify() == []
        assert dict(c) == expected
        order = list(c)
        for name in range(4):  # each one's keys keep their order
            assert [key for key in order if key[0] == name] == list(expected_of(name))
        c.compact()
        assert list(c) == order
        held = {c.entry(key).name for key in c}
    assert scenes.files_in(path) - {".index"} == {".keys", *held}


def rewrite_and_clear(path: str, stop: Any) -> None:
    with Chest(path) as c:
        number = 0
        while not stop.is_set():
            number += 1
            c.update({i: [number] * 3 for i in range(BATCH)})
            c.flush()
            c.update({i: [number + 0.5] * 3 for i in range(BATCH * 2 // 3)})
            c.flush()  # which rewrites the first pack
            if number % 3 == 0:
                c.clear()


def test_a_reader_goes_on_while_packs_are_rewritten_and_cleared(
    chest_dir: Path,
) -> None:
    path, stop = str(chest_dir), FORK.Event()
    Chest(path).close()
    writer = FORK.Process(target=rewrite_and_clear, args=(path, stop))
    writer.start()
    seen = set()
    try:
        with Chest(path, readonly=True, available_memory=0) as c:
            while len(seen) < 12:
                for key, value in c.items():
                    assert value == [value[0]] * 3, key
                    seen.add(value[0])
                assert c.verify() == []
        for _ in range(20):
            with Chest(path, readonly=True) as c:
                assert len(c) in (0, BATCH)
    finally:
        stop.set()
        writer.join(30)
    assert writer.exitcode == 0
    writer.close()


def test_births_that_two_processes_gave_at_once_lose_no_value(chest_dir: Path) -> None:
    """Both set the same keys, each in an order of its own; the last to flush wins."""
    keys = list(range(BATCH))
    with Chest(chest_dir) as c, Chest(chest_dir) as other:
        c.update(dict.fromkeys(keys, "c"))
        other.update(dict.fromkeys(reversed(keys), "other"))
        c.flush()
        other.flush()
        assert other.stats().dirty == 0
        assert set(c.values()) == {"other"}
        assert list(c) == list(other) == keys  # who published first decides
        c.compact()
        assert list(c) == list(other) == keys
        other.update(dict.fromkeys(keys, "again"))
        for key in keys[:35]:
            del c[key]
        c.update(dict.fromkeys(keys[:35], "anew"))
        c.flush()
        other.flush()
        order = [*keys[35:], *keys[:35]]
        assert dict(c) == dict.fromkeys(keys, "again")
        assert list(c) == list(other) == order
    with Chest(chest_dir) as c:
        assert dict(c) == dict.fromkeys(keys, "again")
        assert list(c) == order


def test_parent_and_child_both_go_on_packing_after_a_fork(chest_dir: Path) -> None:
    c = Chest(chest_dir)
    c.update(many("before", 0))
    c.flush()  # a pack is begun

    def child() -> None:
        for number in range(3):
            c.update(many("child", number))
            c.flush()
            assert c["before", 0, 5] == ["before", 0, 5]

    def parent() -> None:
        for number in range(3):
            c.update(many("parent", number))
            c.flush()

    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.alarm(20)
            child()
            status = 0
        finally:
            os._exit(status)
    parent()
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    expected = many("before", 0)
    for number in range(3):
        expected.update(many("child", number))
        expected.update(many("parent", number))
    assert dict(c) == expected
    assert c.verify() == []
    assert len({c.entry(key).name for key in c}) == 2
    c.close()
    with Chest(chest_dir) as c:
        assert dict(c) == expected


def test_what_a_child_inherits_is_packed_by_its_own_flush(chest_dir: Path) -> None:
    c = Chest(chest_dir)
    c.update(many("both", 0))

    def child() -> None:
        c.flush()
        assert c.memory_usage == 0
        assert c.stats().dirty == 0

    assert helpers.forked(child) == 0
    assert dict(Chest(chest_dir, readonly=True)) == many("both", 0)
    c["both", 0, 3] = "the parent's"
    c.flush()
    assert dict(c) == {**many("both", 0), ("both", 0, 3): "the parent's"}
    c.close()


def test_an_inherited_value_gives_way_to_what_was_published_since(
    chest_dir: Path,
) -> None:
    c = Chest(chest_dir)
    c.update(many("both", 0))

    def child() -> None:
        with Chest(chest_dir) as other:
            other.update(dict.fromkeys(many("both", 0), "since"))
        c.flush()
        assert c.memory_usage == 0
        assert set(c.values()) == {"since"}

    assert helpers.forked(child) == 0
    assert set(Chest(chest_dir, readonly=True).values()) == {"since"}
    c._memory.clear()
    c._fresh.clear()
    c._release()


def test_a_fork_while_threads_pack_neither_hangs_nor_mixes(chest_dir: Path) -> None:
    c = Chest(chest_dir)
    stop = threading.Event()

    def write(name: str) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            c.update(many(name, number % 3))
            c.flush()

    threads = [threading.Thread(target=write, args=(name,)) for name in "ab"]
    for thread in threads:
        thread.start()
    try:
        for number in range(15):

            def child(number: int = number) -> None:
                c.update(many("child", number))
                c.flush()
                assert c["child", number, 1] == ["child", number, 1]

            assert helpers.forked(child) == 0
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    c.flush()
    assert c.verify() == []
    for number in range(15):
        expected = many("child", number)
        assert {key: c[key] for key in expected} == expected
    c.close()


@pytest.fixture
def writer_with_a_pack(chest_dir: Path) -> Iterator[Any]:
    """Another process that holds a pack, and packs once more when it is told."""
    mine, theirs = FORK.Pipe()
    child = FORK.Process(target=pack_when_told, args=(str(chest_dir), theirs))
    child.start()
    assert mine.recv() == "packed"
    yield mine
    mine.send(None)
    child.join(30)
    assert child.exitcode == 0
    child.close()
    mine.close()
    theirs.close()


def pack_when_told(path: str, pipe: Any) -> None:
    with Chest(path) as c:
        number = 0
        while True:
            c.update(many("theirs", number))
            c.flush()
            pipe.send("packed")
            if pipe.recv() is None:
                return
            number += 1


def test_a_clear_while_another_process_holds_a_pack(
    chest_dir: Path, writer_with_a_pack: Any
) -> None:
    with Chest(chest_dir) as c:
        assert dict(c) == many("theirs", 0)
        c.clear()
        assert dict(c) == {}
        c.compact()
        writer_with_a_pack.send("more")
        assert writer_with_a_pack.recv() == "packed"
        assert dict(c) == many("theirs", 1)
        assert c.verify() == []
    with Chest(chest_dir) as c:
        assert dict(c) == many("theirs", 1)


def test_a_compaction_leaves_what_another_process_appends_to(
    chest_dir: Path, writer_with_a_pack: Any
) -> None:
    with Chest(chest_dir) as c:
        for key in list(many("theirs", 0))[:40]:
            del c[key]
        c.compact()  # moves the others out of that pack
        writer_with_a_pack.send("more")
        assert writer_with_a_pack.recv() == "packed"
        rest = dict(list(many("theirs", 0).items())[40:])
        assert dict(c) == {**rest, **many("theirs", 1)}
        assert c.verify() == []


def test_a_dropped_chest_leaves_no_pack_of_another_process(chest_dir: Path) -> None:
    mine, theirs = FORK.Pipe()
    child = FORK.Process(target=hold_a_pack, args=(str(chest_dir), theirs))
    child.start()
    assert mine.recv() == "packed"
    Chest(chest_dir).drop()
    assert not chest_dir.exists()
    mine.send(None)
    child.join(30)
    assert child.exitcode == 0
    child.close()
    mine.close()
    theirs.close()


def hold_a_pack(path: str, pipe: Any) -> None:
    c = Chest(path)
    c.update(many("theirs", 0))
    c.flush()
    pipe.send("packed")
    pipe.recv()
    os._exit(0)
