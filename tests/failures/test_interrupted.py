"""P10: Ctrl-C at any line leaves each value old or new, and the chest goes on.

All lines would take an hour: of each operation some are taken, evenly.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chest import Chest, DurableQueue, errors
from tests.failures import faults, scenes
from tests.failures.interrupts import Lines, close_left, interrupted

Step = Callable[[Chest], object]
MANY = {f"p{i}": i for i in range(70)}


def publish_each(c: Chest) -> None:
    for number in range(3):
        c.incr("count")
        c.add(f"new{number}", [number])


def publish_others(c: Chest) -> None:
    c.set_many(MANY)
    c.incr(("t", 1))
    c.delete_many(["a", "p3", "p4"])
    c.transact(lambda t: t.update(x=1, y=2))


def publish_after_all_went(c: Chest) -> None:
    c.clear()
    c.add("b", "newer")


def compact_and_go_on(c: Chest) -> None:
    c.set_many(MANY)
    c.compact()
    c.incr("count")


NEWS: dict[str, Step] = {
    step.__name__: step
    for step in (
        publish_each,
        publish_others,
        publish_after_all_went,
        compact_and_go_on,
    )
}


@pytest.mark.parametrize("name", NEWS)
def test_ctrl_c_while_others_news_are_read_is_harmless(
    name: str, tmp_path: Path
) -> None:
    template = tmp_path / "template"
    with Chest({"a": 1, "b": [2], "c": 3}, template) as c:
        c.sync()
        c["d"] = 4
        c.sync()
    at, path = 0, tmp_path / "c"
    while True:
        at += 1
        shutil.copytree(template, path)
        lines = Lines(at, ["manifest.py", "tail.py", "index.py", "ledger.py"])
        with Chest(path) as writer, Chest(path) as reader:
            assert reader["b"] == [2]  # it is in memory
            NEWS[name](writer)
            with interrupted(lines):
                reader.refresh()
            expected = [*writer.items()]
            assert [*reader.items()] == expected, lines.where
            reader.incr("count")
            writer.incr("count")
            assert [*reader.items()] == [*writer.items()], lines.where
        with Chest(path) as c:
            assert dict(c) == {**dict(expected), "count": c["count"]}, lines.where
        close_left(path)
        shutil.rmtree(path)
        if not lines.where:
            break
    assert at > 20


@pytest.mark.parametrize("known", [False, True])
def test_ctrl_c_while_one_value_is_set_beside_others_is_harmless(
    known: bool, tmp_path: Path
) -> None:
    """What it passes over, and what it counts on, is whole afterwards."""
    at = 0
    while True:
        at += 1
        path = tmp_path / f"{at}"
        lines = Lines(at, ["manifest.py", "writing.py", "log.py", "publications.py"])
        with Chest(path, publish="each") as c, Chest(path, publish="each") as other:
            other["a"], other["b"] = 1, 2
            c.incr("count")
            if known:
                other.refresh()
            else:
                c["a"] = 3
            with interrupted(lines):
                other["new"] = 4
                other.incr("count")
            count, new = c["count"], c.get("new")
            assert (count, new) in [(1, None), (1, 4), (2, 4)], lines.where
            c["c"] = 5
            other["d"] = 6
            assert other.incr("count") == count + 1, lines.where
            assert [*c.items()] == [*other.items()], lines.where
        with Chest(path) as fresh:
            # One that was not told yet may have been found since.
            assert fresh.get("new") in ({None, 4} if new is None else {4}), lines.where
            order = ["a", "b", "count", *(["new"] if "new" in fresh else []), "c", "d"]
            assert [*fresh] == order, lines.where
            assert fresh["a"] == (1 if known else 3), lines.where
        close_left(path)
        shutil.rmtree(path)
        if not lines.where:
            break
    assert at > 40


def test_news_that_cannot_be_read_just_now_are_read_the_next_time(
    tmp_path: Path,
) -> None:
    """A pack cannot be opened, behind records that were read already."""
    first, path = 0, tmp_path / "c"
    while True:
        first += 1
        with Chest(path) as writer, Chest(path) as reader:
            publish_each(writer)
            publish_others(writer)
            act = faults.failing(errno.EMFILE, first, forever=False)
            with (
                faults.acting(act, faults.READS | {"open"}) as system,
                contextlib.suppress(errors.StoreError),
            ):
                reader.refresh()
            assert [*reader.items()] == [*writer.items()], first
            writer.clear()
        if system.count < first:
            break
    assert first > 4


BIG = np.arange(9_000.0)[::-1].copy()
STORED: scenes.State = {
    "a": [1],
    "n": 5,
    "big": np.arange(10_000.0),
    ("one", "two"): "nested",
    **MANY,
    "late": 1,
}
UNPUBLISHED: scenes.State = {"dirty": [7], "bare": 8, "a": [1, 2]}
BEFORE = {**STORED, **UNPUBLISHED}
GONE = ["a", "dirty", "p1", "p2", "big"]
POINTS = 12  # of each operation


def edit(c: Chest) -> None:
    with c.edit("a") as value:
        value.append(3)


def change_some(c: Chest) -> None:
    c.transact(lambda t: (t.update(a=9, x=BIG), t.pop("p5")))


def spill(c: Chest) -> None:
    c.available_memory = 100


OPERATIONS: dict[str, tuple[Step, scenes.State]] = {
    # What each leaves, apart from what was there; None: the key is gone.
    "set": (lambda c: c.__setitem__("new", [1]), {"new": [1]}),
    "set bare": (lambda c: c.__setitem__("new", 1), {"new": 1}),
    "overwrite": (lambda c: c.__setitem__("big", BIG), {"big": BIG}),
    "set oddly": (lambda c: c.set("new", BIG, mapped="copy"), {"new": BIG}),
    "set for a while": (lambda c: c.set("a", BIG, ttl=1e6), {"a": BIG}),
    "set many": (lambda c: c.set_many({f"s{i}": i for i in range(80)}), {}),
    "flush": (Chest.flush, {}),
    "sync": (Chest.sync, {}),
    "spill": (spill, {}),
    "compact": (Chest.compact, {}),
    "incr": (lambda c: c.incr("n"), {"n": 6}),
    "incr from nothing": (lambda c: c.incr("new"), {"new": 1}),
    "add": (lambda c: c.add("new", BIG), {"new": BIG}),
    "delete": (lambda c: c.__delitem__("a"), {"a": None}),
    "delete a file": (lambda c: c.__delitem__("big"), {"big": None}),
    "pop": (lambda c: c.pop("p3"), {"p3": None}),
    "pop the last": (Chest.popitem, {"bare": None}),
    "delete many": (lambda c: c.delete_many(GONE), dict.fromkeys(GONE)),
    "transact": (change_some, {"a": 9, "x": BIG, "p5": None}),
    "clear": (Chest.clear, dict.fromkeys(BEFORE)),
    "touch": (lambda c: c.touch("p4", 1e6), {}),
    "edit": (edit, {"a": [1, 2, 3]}),
    "read": (lambda c: (c["big"], c["p7"], c["late"]), {}),
}
OPERATIONS["set many"][1].update({f"s{i}": i for i in range(80)})
AT_ONCE = {"delete many", "transact", "clear"}


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stored") / "c"
    with Chest({**STORED}, path) as c:
        del c["late"]
        c.flush()
        c["late"] = 1
        c.sync()
        shutil.copytree(path, path.with_name("as it is"))  # what is in the log still
    return path.with_name("as it is")


def check_states(name: str, c: Chest, where: str) -> scenes.State:
    """Each value is old or new, all ways to ask agree; what there is."""
    new = OPERATIONS[name][1]
    got = dict(c.items())
    assert len(c) == len(got), where
    changed = set()
    for key in {*got, *BEFORE, *new}:
        old = BEFORE.get(key)
        is_old = scenes.same(got.get(key), old)
        assert is_old or scenes.same(got.get(key), new.get(key, old)), (where, key)
        assert (key in c) == (key in got), (where, key)
        assert scenes.same(c.get(key), got.get(key)), (where, key)
        if key in new:
            changed.add(is_old)
    assert len(changed) < 2 or name not in AT_ONCE, where
    return got


def interrupt_at(name: str, at: int, stored: Path, path: Path) -> Lines:
    """One operation with Ctrl-C at one line, and all that must hold then."""
    shutil.copytree(stored, path)
    lines = Lines(at)
    with Chest(path) as c, Chest(path, timeout=0) as other:
        c.update(UNPUBLISHED)
        assert (c["n"], c["p3"]) == (5, 3)  # they are in memory
        with interrupted(lines):
            OPERATIONS[name][0](c)
        where = lines.where
        other.incr("probe")  # the lock is free, for threads as well
        del other["probe"]
        assert not c.lock._is_owned(), where  # type: ignore[attr-defined]
        now = check_states(name, c, where)
        c.flush()
        assert c.memory_usage == 0, where
        for each in (c, other):
            assert scenes.equal(check_states(name, each, where), now), where
        assert (other.incr("probe"), c.incr("probe"), other.pop("probe")) == (1, 2, 2)
        assert c.verify() == [], where
        c.compact()
    with Chest(path) as c:
        assert scenes.equal(check_states(name, c, where), now), where
        files = scenes.files_in(path) - {".index"}
        assert files == {".keys"} | c._manifest.index.names(), where
    close_left(path)
    shutil.rmtree(path)
    return lines


@pytest.mark.parametrize("name", OPERATIONS)
def test_ctrl_c_at_any_line_leaves_values_old_or_new_and_the_locks_free(
    name: str, stored: Path, tmp_path: Path
) -> None:
    path = tmp_path / "c"
    count = interrupt_at(name, 0, stored, path).count
    assert count > 10
    for at in range(1, count, max(1, count // POINTS)):
        interrupt_at(name, at, stored, path)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", OPERATIONS)
def test_ctrl_c_at_each_line_does(name: str, stored: Path, tmp_path: Path) -> None:
    path = tmp_path / "c"
    at = 1
    while interrupt_at(name, at, stored, path).where:
        at += 1


LARGE = "x" * 100_000
Items = list[Any]


def take_all(q: DurableQueue) -> Items:
    return [q.get_nowait() for _ in range(q.qsize())]


QUEUE_OPERATIONS: dict[str, tuple[Callable[[DurableQueue], object], list[Items]]] = {
    # What may be in the queue then, which began with two items.
    "put": (lambda q: q.put(3), [[1, LARGE], [1, LARGE, 3]]),
    "put a large one": (lambda q: q.put(LARGE), [[1, LARGE], [1, LARGE, LARGE]]),
    "put many": (
        lambda q: q.put_many([3, LARGE]),
        [[1, LARGE], [1, LARGE, 3, LARGE]],
    ),
    "get": (lambda q: q.get(), [[1, LARGE], [LARGE]]),
    "get two": (lambda q: (q.get(), q.get()), [[1, LARGE], [LARGE], []]),
    "lease and ack": (lambda q: q.ack(q.get()), [[1, LARGE], [LARGE]]),
    "lease and nack": (lambda q: q.nack(q.get()), [[1, LARGE]]),
    "size": (lambda q: q.qsize(), [[1, LARGE]]),
}


def interrupt_queue_at(name: str, at: int, path: Path) -> Lines:
    """As `interrupt_at`, for a queue."""
    step, states = QUEUE_OPERATIONS[name]
    leased = "lease" in name
    lines = Lines(at)
    q = DurableQueue(path, lease=60 if leased else None)
    q.put_many([1, LARGE])
    with interrupted(lines):
        step(q)
    where = lines.where
    with DurableQueue(path, timeout=0) as other:
        other.put("more")
        assert q.qsize() == other.qsize(), where
    if leased:  # what the handle had comes back
        q.close()
        q = DurableQueue(path)
    assert take_all(q) in [[*state, "more"] for state in states], where
    q.put(LARGE)
    assert q.get() == LARGE
    q.close()
    close_left(path)
    with DurableQueue(path) as q:
        names = {*os.listdir(q.path)} - {"state", "leases-0", "leases-1"}
        assert not {each for each in names if each.startswith((".tmp", "value"))}, where
        q.drop()
    return lines


@pytest.mark.parametrize("name", QUEUE_OPERATIONS)
def test_ctrl_c_at_any_line_of_a_queue_costs_at_most_the_item_that_was_being_taken(
    name: str, tmp_path: Path
) -> None:
    count = interrupt_queue_at(name, 0, tmp_path).count
    for at in range(1, count, max(1, count // 40)):
        interrupt_queue_at(name, at, tmp_path)
