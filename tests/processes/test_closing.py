"""P8, P10: a chest that one thread closes while others are using it."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chest import Chest, errors
from chest.folder import Folder

pytest.importorskip("zarr")

Use = Callable[[Chest, int], Any]
SIZE = 3000  # bytes; no value of the budget below, so that it is read and written
USES: dict[str, Use] = {
    "get from a file": lambda c, _: (c["file"], c.get("file"), c.get_many(["file"])),
    "get from a pack": lambda c, n: (c["pack", n % 100], "none" in c),
    "get of what is in memory": lambda c, _: c["bare"],
    "set": lambda c, n: c.__setitem__(n % 10, bytes(SIZE)),
    "flush": lambda c, n: (c.__setitem__("new", [n]), c.flush()),
    "sync": lambda c, n: (c.__setitem__("new", [n]), c.sync()),
    "many": lambda c, n: (
        c.set_many({("pack", i): n for i in range(100)}),
        c.compact(),
    ),
    "incr": lambda c, _: c.incr("count"),
    "pop": lambda c, n: (c.setdefault("gone", n), c.pop("gone", None)),
    "iterate": lambda c, _: (list(c), list(c.items()), len(c), next(reversed(c))),
    "entry": lambda c, _: (c.entry("bare"), c.stats(), c.trim(older_than=1e9)),
    "verify": lambda c, _: c.verify(),
    "zarr": lambda c, n: c.zarr("array").__setitem__(0, n),
    "part of a zarr": lambda c, _: c.zarr("array")[5:50],
    "zarr anew": lambda c, n: (
        c.set("new array", np.arange(50) + n, format="zarr"),
        c.flush(),
    ),
}


def filled(path: Path | None) -> Chest:
    c = Chest(path, available_memory=2 * SIZE)
    c["file"] = bytes(SIZE)
    c.set("array", np.arange(100), format="zarr")
    c.set_many({("pack", i): i for i in range(100)})
    c.flush()
    c["bare"] = 1
    return c


@pytest.mark.parametrize("temporary", [False, True])
@pytest.mark.parametrize("use", USES)
def test_threads_that_use_a_chest_that_is_closed_get_closed_error(
    tmp_path: Path, use: str, temporary: bool
) -> None:
    c = filled(None if temporary else tmp_path / "chest")
    ended: list[BaseException] = []
    begun = threading.Barrier(3)

    def work() -> None:
        begun.wait()
        number = 0
        try:
            while True:
                USES[use](c, number)
                number += 1
        except BaseException as error:
            ended.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    begun.wait()
    c.close()
    for thread in threads:
        thread.join()
    assert [type(error) for error in ended] == [errors.ClosedError] * 2, ended
    if temporary:
        assert not os.path.exists(c.path)
    else:
        left = {name for name in os.listdir(c.path) if name.startswith(".tmp-")}
        assert all(name.startswith(".tmp-spare-") for name in left)
        with Chest(c.path) as again:
            assert again["bare"] == 1
            assert again.verify() == []


def overtaken(
    monkeypatch: pytest.MonkeyPatch, c: Chest, name: str, other: Path
) -> list[int]:
    """Close *c* when it is about to ask for a file; its number becomes that of *other*."""
    walk, opened = Folder._walk, list[int]()

    def close() -> None:
        c.close()
        # As many as it takes to have every number that is free now.
        opened.extend(os.open(other, os.O_RDONLY) for _ in range(20))

    def walk_slowly(self: Folder, wanted: str, **options: Any) -> Any:
        found = walk(self, wanted, **options)
        if wanted == name and self.path == c.path and not c._closed:
            thread = threading.Thread(target=close)
            thread.start()
            thread.join()
        return found

    monkeypatch.setattr(Folder, "_walk", walk_slowly)
    # A file without folders in its name is opened without that walk.
    check_open = Folder.check_open

    def check_slowly(self: Folder) -> int:
        found = check_open(self)
        if self.path == c.path and not c._closed and not opened:
            asks = sys._getframe(1)
            if asks.f_code.co_name == "opened" and asks.f_locals["name"] == name:
                thread = threading.Thread(target=close)
                thread.start()
                thread.join()
        return found

    monkeypatch.setattr(Folder, "check_open", check_slowly)
    return opened


def test_a_read_that_a_close_overtakes_finds_no_other_folders_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Chest(tmp_path / "chest") as c, Chest(tmp_path / "other") as other:
        for each in (c, other):
            each["x"] = each.path
            each.flush()
        opened = overtaken(monkeypatch, c, "x", tmp_path / "other")
        assert c["x"] == c.path
        assert opened
        for fd in opened:
            os.close(fd)


def test_a_removal_that_a_close_overtakes_hits_no_other_folders_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    c = Chest(tmp_path / "chest")
    (other / "x").write_text("theirs")
    (tmp_path / "chest" / "x").write_text("ours")
    opened = overtaken(monkeypatch, c, "x", other)
    c._spill.delete(["x"])
    assert opened
    for fd in opened:
        os.close(fd)
    assert (other / "x").read_text() == "theirs"
    assert not (tmp_path / "chest" / "x").exists()


def test_a_value_that_was_being_written_when_its_chest_was_closed_leaves_no_file(
    chest_dir: Path,
) -> None:
    begun, closed = threading.Event(), threading.Event()

    class Slow:
        def __reduce__(self) -> tuple[Any, ...]:
            if threading.current_thread() is writer:
                begun.set()
                closed.wait()
            return str, ("slow",)

    c = Chest(chest_dir)
    c["x"] = Slow()
    ended: list[BaseException] = []

    def write() -> None:
        try:
            c.flush()
        except errors.ClosedError as error:
            ended.append(error)

    writer = threading.Thread(target=write)
    writer.start()
    begun.wait()
    c.close()
    closed.set()
    writer.join()
    assert len(ended) == 1
    assert sorted(os.listdir(chest_dir)) == [".keys", "x"]
    with Chest(chest_dir) as again:
        assert again["x"] == "slow"


def test_a_look_that_a_close_overtakes_does_not_say_that_nothing_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Memory is emptied by `close`, and with it what a temporary chest has only there."""
    looks: list[Callable[[Chest], Any]] = [
        lambda c: c["x"],
        lambda c: c.get("x"),
        lambda c: "x" in c,
        len,
        list,
        lambda c: list(reversed(c)),
        lambda c: c.get_many(["x"]),
        lambda c: c.pop("x", None),
        lambda c: c.popitem(),
        lambda c: c.entry("x"),
    ]

    class Word:
        """What each operation looks at first."""

        def __getitem__(self, _: int) -> int:
            c._word = word
            c.close()
            return c._seen

    for look in looks:
        c = Chest()
        c["x"] = 1
        word, c._word = c._word, Word()
        with pytest.raises(errors.ClosedError):
            look(c)
