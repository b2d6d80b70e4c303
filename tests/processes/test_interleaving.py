"""P8: two operations at once are as one after the other, wherever one of them stands.

One process is stopped after each of its system calls in turn, and while it stands another
does a whole operation. What both were told, and what is left, must be as if one had done
all of it before the other. The second may also find the lock taken: then it comes after.
"""

from __future__ import annotations

import contextlib
import itertools
import multiprocessing
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chest import Chest, Ordered, errors
from chest.conditional import discard_if, etag, set_if
from tests.failures import faults

BIG = b"x" * 5000  # has a file of its own


def delete(c: Chest) -> str:
    try:
        del c["x"]
    except KeyError:
        return "was not there"
    return "deleted"


def exchange(c: Chest) -> Any:
    def change(t: Any) -> Any:
        t["y"], t["x"] = t.get("x"), 7
        return t["y"]

    return c.transact(change)


def compact(c: Chest) -> None:
    c.compact()  # how many orphans it found depends on what the other has begun


def move(c: Chest) -> Any:
    try:
        return Ordered(c).move_to_end("x")
    except KeyError:
        return "was not there"


# Of the first value of "x", which a chest that is copied has everywhere.
FIRST = 1

OPERATIONS: dict[str, Callable[[Chest], Any]] = {
    "set": lambda c: c.__setitem__("x", 5),
    "set_big": lambda c: c.__setitem__("x", BIG),
    "get": lambda c: c.get("x"),
    "delete": delete,
    "pop": lambda c: c.pop("x", None),
    "incr": lambda c: c.incr("x") if isinstance(c.get("x"), int) else None,
    "add": lambda c: c.add("x", 6),
    "transact": exchange,
    "set_if": lambda c: set_if(c, "x", 8, FIRST).done,
    "discard_if": lambda c: discard_if(c, "x", FIRST).done,
    "move": move,
    "touch": lambda c: c.touch("x", None),
    "flush": lambda c: c.flush(),
    "compact": compact,
    "clear": lambda c: c.clear(),
}
STOPPED = ("set", "set_big", "delete", "incr", "transact", "move", "flush", "compact")
MEANWHILE = [name for name in OPERATIONS if name != "set_big"]
OFTEN = {"set", "transact", "flush"}, {"get", "set", "pop", "set_if", "move", "compact"}
PAIRS = [
    pytest.param(
        first,
        second,
        marks=() if first in OFTEN[0] and second in OFTEN[1] else pytest.mark.slow,
    )
    for first in STOPPED
    for second in MEANWHILE
]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "c"
    with Chest(path, publish="each") as c:
        c["x"] = 1
        c["z"] = 2
        assert etag(c, "x") == FIRST
        for name in list(c._spill.store.home.names()):
            assert name == ".keys"  # both values lie in the log
        shutil.copytree(path, path.with_name("copy"))
    return path.with_name("copy")


def contents(path: Path) -> list[Any]:
    with Chest(path) as c:
        assert c.verify() == []
        return [*c.items()]


def in_turn(template: Path, folder: Path, *names: str) -> tuple[Any, ...]:
    """What each is told, and what is left, one after the other."""
    shutil.copytree(template, folder)
    told = {}
    with Chest(folder, publish="each") as one, Chest(folder, publish="each") as other:
        for c, name in zip((one, other), names, strict=True):
            c.get("z")
            told[name, c is one] = OPERATIONS[name](c)
    return told, contents(folder)


def stopping(at: int, pipe: Any) -> faults.Act:
    """Say so after the call *at*, and wait until told to go on."""

    def act(count, name, real, args, kwargs):
        try:
            return real(*args, **kwargs)
        finally:
            if count == at:
                pipe.send(name)
                pipe.recv()

    return act


def stopped(path: str, name: str, at: int, pipe: Any) -> None:
    """The process that is stopped."""
    with Chest(path, publish="each") as c:
        c.get("z")
        with faults.acting(stopping(at, pipe), faults.WRITES):
            told = OPERATIONS[name](c)
    pipe.send((told,))
    pipe.close()


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_two_operations_at_once_are_as_one_after_the_other(
    first: str, second: str, template: Path, tmp_path: Path
) -> None:
    told, left = in_turn(template, tmp_path / "before", first, second)
    before = (told[first, True], told[second, False], left)
    told, left = in_turn(template, tmp_path / "after", second, first)
    after = (told[first, False], told[second, True], left)
    context = multiprocessing.get_context("fork")
    for at in itertools.count(1):
        path = tmp_path / str(at)
        shutil.copytree(template, path)
        with Chest(path, publish="each", timeout=0) as c:
            c.get("z")
            pipe, theirs = context.Pipe()
            child = context.Process(
                target=stopped, args=(str(path), first, at, theirs), daemon=True
            )
            child.start()
            theirs.close()
            said = pipe.recv()
            done = False
            if isinstance(said, str):
                with contextlib.suppress(errors.LockTimeout):
                    mine = OPERATIONS[second](c)
                    done = True
                pipe.send(None)
                [result] = pipe.recv()
            child.join()
            child.close()
            pipe.close()
            if not isinstance(said, str):
                assert at > 1 or first == "get"
                return  # it was not stopped any more: that was the last call
            if not done:
                mine = OPERATIONS[second](c)
        assert (result, mine, contents(path)) in (before, after), (at, said)
