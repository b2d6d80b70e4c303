"""P10: Ctrl-C at any line leaves each value old or new, and the chest goes on."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from chest import Chest, errors
from tests.failures import faults
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
        lines = Lines(at, ["manifest.py", "index.py", "ledger.py"])
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
