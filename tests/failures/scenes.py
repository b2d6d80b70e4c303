"""What chests do while something goes wrong, and the state after each step.

A scene is a generator over a chest's path. It yields the whole expected contents each
time something was acknowledged.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from chest import Chest

State = dict[Any, Any]
Scene = Callable[[str], Iterator[State]]

OLD = {
    "a": [1, "old"],
    "big": np.arange(10_000.0),
    ("one", "two"): "nested",
    "gone": b"deleted in most scenes" * 40,
}
BIG = np.arange(9_000.0)[::-1].copy()
SMALL = {f"p{i}": [i, "small"] for i in range(100)}


def prepare(path: Path) -> Path:
    """A chest that holds OLD."""
    with Chest(path) as c:
        c.update(OLD)
    return path


def setting(path: str) -> Iterator[State]:
    """A new key, published alone."""
    with Chest(path) as c:
        yield OLD
        c["new"] = BIG
        c.sync()
        yield {**OLD, "new": BIG}
        c["new2"] = 2
    yield {**OLD, "new": BIG, "new2": 2}


def overwriting(path: str) -> Iterator[State]:
    """A value replaced twice."""
    with Chest(path) as c:
        c["a"] = "newer"
        c.flush()
        yield {**OLD, "a": "newer"}
        c["a"] = "newest"
        c["big"] = BIG
        c.flush()
        yield {**OLD, "a": "newest", "big": BIG}


def deleting(path: str) -> Iterator[State]:
    """Keys removed one by one, also the last of a folder."""
    state = dict(OLD)
    with Chest(path) as c:
        for key in ("gone", ("one", "two"), "a"):
            del c[key]
            del state[key]
            yield dict(state)
        assert c.popitem()[0] == "big"
        yield {}


def spilling(path: str) -> Iterator[State]:
    """More than the budget holds; what is spilled is acknowledged by the flush."""
    new = {f"s{i}": np.full(1000, i) for i in range(4)}
    with Chest(path, available_memory=10_000) as c:
        c.update(new)
        c.flush()
        yield {**OLD, **new}


def compacting(path: str) -> Iterator[State]:
    """The log written anew, after a deletion that must not come back."""
    with Chest(path) as c:
        del c["gone"]
        state = {key: value for key, value in OLD.items() if key != "gone"}
        yield state
        c.compact()
        yield state
        c["a"] = "newer"
        c.sync()
        yield {**state, "a": "newer"}


def clearing(path: str) -> Iterator[State]:
    """All keys removed at once, then one set."""
    with Chest(path) as c:
        c.clear()
        yield {}
        c["a"] = 1
        c.sync()
        yield {"a": 1}


def settling(path: str) -> Iterator[State]:
    """Read-modify-write, published when it returns."""
    with Chest(path) as c:
        c.setdefault("new", 5)
        yield {**OLD, "new": 5}
        with c.edit("a") as value:
            value.append("edited")
        yield {**OLD, "new": 5, "a": [1, "old", "edited"]}
        c.pop("new")
        yield {**OLD, "a": [1, "old", "edited"]}


def linking(path: str) -> Iterator[State]:
    """Files taken over from another chest."""
    other = f"{path}-other"
    with Chest(path) as c, Chest(other) as theirs:
        c.update(theirs)
        yield {**OLD, "a": "theirs", "more": BIG}


def dropping(path: str) -> Iterator[State]:
    """The whole chest removed: whoever opens it then has the old one, or an empty one."""
    Chest(path).drop()
    yield {}


def opening(path: str) -> Iterator[State]:
    """A new chest is made and opened."""
    shutil.rmtree(path, ignore_errors=True)
    with Chest(path) as c:
        yield {}
        c["a"] = 1
    yield {"a": 1}


def packing(path: str) -> Iterator[State]:
    """Many small values in one file, which is rewritten once half of them are dead."""
    state = {**OLD, **SMALL}
    with Chest(path) as c:
        c.update(SMALL)
        c.flush()
        yield dict(state)
        newer = {key: ["newer", key] for key in list(SMALL)[:70]}
        state.update(newer)
        c.update(newer)
        c.flush()  # which compacts
        yield dict(state)
        for key in list(SMALL)[80:82]:
            del c[key]
            del state[key]
            yield dict(state)
        c.compact()
        yield dict(state)


def packing_over(path: str) -> Iterator[State]:
    """Packed values that are cleared, taken from another chest, and unpacked."""
    theirs = f"{path}-packed"
    with Chest(SMALL, theirs) as other:
        other.flush()
        with Chest(path) as c:
            c.update(other)
            yield {**OLD, **SMALL}
            c.unpack("p3")
            yield {**OLD, **SMALL}
            c.clear()
            yield {}
            c.update(SMALL)
            c.sync()
            yield SMALL


def inlining(path: str) -> Iterator[State]:
    """Small values that lie in the log, until a flush gives them files or a pack."""
    state = dict(OLD)
    with Chest(path) as c:
        for number, (key, value) in enumerate(SMALL.items()):
            c[key] = state[key] = value
            if number in (1, 50, 99):
                c.sync()
                yield dict(state)
            if number == 2:
                c.flush()
                yield dict(state)
        c.flush()
        yield dict(state)


SCENES: dict[str, Scene] = {
    scene.__name__: scene
    for scene in (
        setting,
        overwriting,
        deleting,
        spilling,
        compacting,
        clearing,
        settling,
        linking,
        dropping,
        opening,
        packing,
        packing_over,
        inlining,
    )
}


def states_of(scene: Scene, path: str) -> list[State]:
    """The contents before, and after each acknowledged step."""
    return [OLD if scene is not opening else {}, *scene(path)]


def same(mine: Any, theirs: Any) -> bool:
    """Equal, also for arrays."""
    if isinstance(mine, np.ndarray):
        return isinstance(theirs, np.ndarray) and np.array_equal(mine, theirs)
    return type(mine) is type(theirs) and mine == theirs


def equal(mine: Any, theirs: State) -> bool:
    """Two mappings hold the same."""
    return set(mine) == set(theirs) and all(same(mine[k], theirs[k]) for k in theirs)


def files_in(path: str | Path) -> set[str]:
    """All regular files below a folder, relative to it."""
    return {
        os.path.relpath(os.path.join(folder, name), path)
        for folder, _, names in os.walk(path)
        for name in names
    }
