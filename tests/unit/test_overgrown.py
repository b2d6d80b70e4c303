"""A log that nobody flushes is kept short, by one of those who write."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chest import Chest, errors
from chest.conditional import ABSENT, set_if, transform
from chest.manifest import Manifest
from chest.rewrite import Rewrite

UPKEEP_NBYTES = 16_384
TIMES = 1_200  # of what makes records of 70 bytes and more
Step = Callable[[Chest, int], object]


def set_and_delete(c: Chest, i: int) -> None:
    c.add("passing", i)
    del c["passing"]


def set_and_sync(c: Chest, i: int) -> None:
    c[f"k{i % 90}"] = i
    c.sync()


STEPS: dict[str, Step] = {
    "each new": lambda c, i: c.set(f"k{i}", "x" * 40),
    "each again": lambda c, i: c.set(f"k{i % 90}", i),
    "large": lambda c, i: c.set(f"k{i % 3}", "x" * 5_000),
    "incr": lambda c, i: c.incr("n"),
    "incr of many": lambda c, i: c.incr(i % 90),
    "add": lambda c, i: c.add(f"k{i}", "x"),
    "del": set_and_delete,
    "pop": lambda c, i: c.pop("passing") if i % 2 else c.add("passing", i),
    "touch": lambda c, i: c.touch("kept", 1_000_000 + i),
    "transact": lambda c, i: c.transact(lambda t: t.update(a=i, b=i)),
    "deadlines": lambda c, i: c.set(f"k{i % 90}", i, ttl=1e6),
    "set_if": lambda c, i: set_if(c, f"k{i}", i, ABSENT),
    "transform": lambda c, i: transform(
        c, "n", lambda old: 1 if old is ABSENT else old + 1
    ),
}


@pytest.fixture(autouse=True)
def short_logs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Manifest, "upkeep_nbytes", UPKEEP_NBYTES)
    monkeypatch.setattr("chest.manifest.COMPACT_FROM", 8)


def log_nbytes(c: Chest) -> int:
    return os.path.getsize(c._manifest.path)


@pytest.mark.parametrize("name", [*STEPS, "sync"])
def test_a_log_that_nobody_flushes_stays_short(name: str, tmp_path: Path) -> None:
    step = STEPS.get(name, set_and_sync)
    publish = "flush" if name == "sync" else "each"
    path = tmp_path / "c"
    with Chest(path, publish=publish) as c, Chest(path) as other:
        c["kept"] = "old"
        c.sync()
        lengths, inline = [], []
        for i in range(TIMES):
            step(c, i)
            lengths.append(log_nbytes(c))
            inline.append(len(c._manifest.index.inline))
        assert max(lengths) < 4 * UPKEEP_NBYTES
        assert max(inline) < 2 * UPKEEP_NBYTES / 70
        assert lengths != sorted(lengths)  # it was written anew
        expected = dict(c.items())
        assert expected == dict(other.items())
        assert expected["kept"] == "old"
        assert c.verify() == []
    with Chest(path) as c:
        assert dict(c.items()) == expected


def test_one_of_several_writers_looks_after_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The one whose record goes beyond a multiple, and each time but once."""
    tidied: list[int] = []
    path = tmp_path / "c"
    writers = [Chest(path, publish="each") for _ in range(3)]
    monkeypatch.setattr(
        Chest, "_tidy", lambda c, **_: tidied.append(log_nbytes(c) // UPKEEP_NBYTES)
    )
    for i in range(TIMES):
        writers[i % 3][f"k{i}"] = "x"
        writers[i % 2].incr("n")
    assert tidied == [*range(1, log_nbytes(writers[0]) // UPKEEP_NBYTES + 1)]
    assert len(tidied) > 5
    monkeypatch.undo()
    for each in writers:
        each.close()
    with Chest(path) as c:
        assert c["n"] == TIMES == len(c) - 1


def test_who_passes_over_what_others_set_looks_after_the_log_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once so much was passed over that it has to be read; nobody knows it before."""
    most = 3 * UPKEEP_NBYTES
    monkeypatch.setattr("chest.writing.MOST_UNSEEN", most)
    path = tmp_path / "c"
    with Chest(path, publish="each") as one, Chest(path, publish="each") as other:
        lengths = []
        for i in range(TIMES):
            one[f"a{i}"] = i
            other[f"b{i}"] = i
            lengths.append(log_nbytes(one))
        assert most < max(lengths) < most + 2 * UPKEEP_NBYTES
        assert lengths[-1] < most
        assert len(one) == len(other) == 2 * TIMES
        assert one["b7"] == other["a7"] == 7


def test_what_was_published_stays_when_tidying_up_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(c: Chest) -> None:
        raise errors.StoreError("the disk is full", path=c.path)

    monkeypatch.setattr(Chest, "_settle", refuse)
    with Chest(tmp_path / "c", publish="each") as c:
        with caplog.at_level(logging.WARNING, "chest"):
            for i in range(TIMES):
                c[f"k{i}"] = i
        assert len(c) == TIMES
        crossed = log_nbytes(c) // UPKEEP_NBYTES
        assert [record.message for record in caplog.records] == crossed * [
            f"{c.path} was not tidied up: the disk is full"
        ]
        monkeypatch.undo()
        c["last"] = 1
    with Chest(tmp_path / "c") as c:
        assert len(c) == TIMES + 1


@pytest.mark.parametrize("dropped_by", ["another thread", "another chest"])
def test_a_folder_that_is_dropped_meanwhile_goes(
    dropped_by: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Though who tidies up puts a file into it; and there is nothing to warn of."""
    path = tmp_path / "c"
    begun, emptied, written, dropped = (threading.Event() for _ in range(4))
    write, release = Rewrite.write, Chest._release

    def slow(rewrite: Rewrite, *, log: bool) -> None:
        begun.set()
        assert emptied.wait(60)
        write(rewrite, log=log)
        written.set()
        assert dropped.wait(60)

    def with_a_file_in_it(c: Chest) -> None:
        emptied.set()
        assert written.wait(60)
        release(c)

    monkeypatch.setattr(Rewrite, "write", slow)
    monkeypatch.setattr(Chest, "_release", with_a_file_in_it)
    c, other = Chest(path), Chest(path)

    def count() -> None:
        with contextlib.suppress(errors.ClosedError, errors.DroppedError):
            while True:
                c.incr("n")

    thread = threading.Thread(target=count)
    with caplog.at_level(logging.WARNING, "chest"):
        thread.start()
        assert begun.wait(60)
        (c if dropped_by == "another thread" else other).drop()
        assert path.exists()
        dropped.set()
        thread.join()
    assert not path.exists()
    assert caplog.records == []
    for each in (c, other):
        with contextlib.suppress(errors.DroppedError):
            each.close()


def test_within_a_transaction_nothing_is_tidied_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """But by what follows it."""
    held: list[bool] = []
    tidy = Chest._tidy

    def watched(c: Chest, **options: Any) -> None:
        held.append(c.lock._is_owned() or c._manifest._depth > 0)  # type: ignore[attr-defined]
        tidy(c, **options)

    monkeypatch.setattr(Chest, "_tidy", watched)
    with Chest(tmp_path / "c", publish="each") as c:
        with c.lock:
            c["a"] = [*range(2_000)]
            c.set_many(dict.fromkeys(range(60), "x" * 900))
            c["b"] = 1
            for _ in range(70):
                c.incr("n")
        assert held == []
        c["c"] = 1
        assert held
        assert not any(held)
        assert len(c._manifest.index.inline) == 0
        assert c["n"] == 70


def test_a_long_log_of_few_records_is_written_anew_by_a_flush(tmp_path: Path) -> None:
    """Values that have moved to packs leave it, though each key lives."""
    with Chest(tmp_path / "c") as c:
        with c.lock:
            for i in range(200):
                c.add(i, "x" * 200)
        assert log_nbytes(c) > 3 * UPKEEP_NBYTES
        c.flush()
        assert log_nbytes(c) < UPKEEP_NBYTES
        assert [*c] == [*range(200)]
        assert c[7] == "x" * 200
