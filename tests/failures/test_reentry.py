"""P10: what a chest calls may use the chest: it works, or it is an error that says so."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chest import Chest, errors
from chest.log import LogFile
from chest.memory import MemoryTier
from chest.rewrite import Rewrite

chest: Any = None  # the one that `Calling` and the others use
use: Callable[[Any], Any] = len


@pytest.fixture(autouse=True)
def _nothing_is_used() -> Iterator[None]:
    global chest, use
    yield
    chest, use = None, len


class Calling:
    """Uses the chest whenever it is pickled."""

    def __init__(self, number: int = 0) -> None:
        self.number = number

    def __reduce__(self) -> tuple[Any, ...]:
        if chest is not None:
            use(chest)
        return Calling, (self.number,)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Calling) and other.number == self.number

    __hash__ = None  # type: ignore[assignment]


class Dying:
    """Uses the chest when it dies."""

    def __reduce__(self) -> tuple[Any, ...]:
        return str, ("dead",)

    def __del__(self) -> None:
        if chest is not None:
            use(chest)


class Referring:
    """Knows the chest that it lies in."""

    def __init__(self, home: Any) -> None:
        self.home = home

    def __reduce__(self) -> tuple[Any, ...]:
        return Referring, (self.home,)


WRITING = [
    lambda c: c.flush(),
    lambda c: c.sync(),
    lambda c: c.close(),
    lambda c: c.compact(),
]


@pytest.mark.parametrize("count", [1, 300])
@pytest.mark.parametrize("writes", WRITING[:3])
def test_a_value_that_flushes_its_chest_when_it_is_pickled_is_an_error_with_its_key(
    chest_dir: Path, writes: Callable[[Any], Any], count: int
) -> None:
    global chest, use
    chest = c = Chest(chest_dir)
    use = writes
    c.update({("odd", number): Calling(number) for number in range(count)})
    c.update({("even", number): [number] for number in range(count)})
    with pytest.raises(errors.EncodingError, match=r"'odd'.*must not flush"):
        c.flush()
    assert c["odd", 0] == Calling(0)
    chest = None
    c["after"] = 1
    c.close()
    with Chest(chest_dir) as again:
        assert len(again) == 2 * count + 1
        assert again["odd", count - 1] == Calling(count - 1)
        assert again["even", count - 1] == [count - 1]
        assert again.verify() == []


@pytest.mark.parametrize("place", ["folder", "store"])
def test_a_value_that_refers_to_its_own_chest_is_stored(
    tmp_path: Path, place: str
) -> None:
    address = str(tmp_path / "c")
    if place == "store":
        pytest.importorskip("obstore")
        address = f"file://{tmp_path}/c"
    with Chest(address, trust="any") as c:
        c.update({number: Referring(c) for number in range(100)})
        c["large"] = [Referring(c), bytes(1 << 17)]
        c["x"] = 1
        c.flush()
        with c.get_many([99])[99].home as same:  # which the chest does not keep
            assert same["x"] == 1


def test_a_value_that_flushes_its_store_when_it_is_pickled_is_an_error(
    tmp_path: Path,
) -> None:
    global chest, use
    pytest.importorskip("obstore")
    with Chest(f"file://{tmp_path}/c", trust="any") as c:
        chest, use = c, lambda c: c.flush()
        c["odd"], c["even"] = Calling(), 1
        with pytest.raises(errors.EncodingError, match=r"'odd'.*must not flush"):
            c.flush()
        chest = None


@pytest.mark.parametrize(
    "does",
    [
        lambda c: c.incr("count"),
        lambda c: c.flush(),
        lambda c: c.pop("a", None),
        lambda c: c.popitem(),
        lambda c: c.compact(),
    ],
)
@pytest.mark.parametrize(
    "ends",
    [
        lambda c: c.__setitem__("x", 1),
        lambda c: c.set_many({"x": 1}),
        lambda c: c.__delitem__("x"),
        lambda c: c.delete_many(["x", "y"]),
        lambda c: c.flush(),
        lambda c: c.clear(),
    ],
)
def test_a_value_that_uses_the_chest_when_it_dies_leaves_it_whole(
    chest_dir: Path, does: Callable[[Any], Any], ends: Callable[[Any], Any]
) -> None:
    global chest, use
    used: list[None] = []

    def note(c: Any) -> None:
        if not used:
            used.append(None)
            with contextlib.suppress(KeyError):  # there is nothing left
                does(c)

    with Chest(chest_dir) as c:
        c.update(a=1, b=[2], c=3)
        chest, use = c, note
        c["y"], c["x"] = Dying(), Dying()
        ends(c)
        chest = None
        assert used
        live = dict(c)
        c.flush()
        assert c.memory_usage == 0
    with Chest(chest_dir) as again:
        assert dict(again) == {
            key: "dead" if isinstance(value, Dying) else value
            for key, value in live.items()
        }


@pytest.fixture
def handled() -> Iterator[list[Any]]:
    """What came of the chest's `use` in the handler of a signal."""
    results: list[Any] = []

    def handle(*_: object) -> None:
        try:
            results.append(use(chest))
        except Exception as error:
            results.append(error)

    before = signal.signal(signal.SIGUSR1, handle)
    yield results
    signal.signal(signal.SIGUSR1, before)


def signal_in(monkeypatch: pytest.MonkeyPatch, kind: type, name: str) -> None:
    """Have a signal come before and after the first call of a method."""
    real, calls = getattr(kind, name), list[None]()

    def called(*args: Any, **options: Any) -> Any:
        first = not calls
        calls.append(None)
        if first:
            signal.raise_signal(signal.SIGUSR1)
        result = real(*args, **options)
        if first:
            signal.raise_signal(signal.SIGUSR1)
        return result

    monkeypatch.setattr(kind, name, called)


@pytest.mark.parametrize(
    "writes", [*WRITING, lambda c: c.incr("n"), lambda c: c.clear()]
)
@pytest.mark.parametrize(
    "works", [lambda c: c.incr("n"), lambda c: c.flush(), lambda c: c.pop("b")]
)
def test_a_signal_handler_cannot_write_amid_a_record_and_the_log_stays_whole(
    chest_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    handled: list[Any],
    works: Callable[[Any], Any],
    writes: Callable[[Any], Any],
) -> None:
    global chest, use
    with Chest(chest_dir) as c:
        c.update(n=5, b=[2])
        c.flush()
        c["x"] = [1]
        chest, use = c, writes
        signal_in(monkeypatch, LogFile, "_write")
        works(c)
        assert [type(each) for each in handled] == [errors.ReentryError] * 2
        live = dict(c)
    with Chest(chest_dir) as again:
        assert dict(again) == live


def test_a_signal_handler_may_look_while_a_log_takes_the_place_of_another(
    chest_dir: Path, monkeypatch: pytest.MonkeyPatch, handled: list[Any]
) -> None:
    global chest, use
    with Chest(chest_dir) as c:
        c.update(a=1, b=[2])
        c.flush()
        chest, use = c, lambda c: (c["a"], c["b"], len(c))
        signal_in(monkeypatch, Rewrite, "place")
        c.compact()
        assert handled == [(1, [2], 2)] * 2
        assert dict(c) == {"a": 1, "b": [2]}


def test_a_signal_handler_may_flush_and_close_while_a_value_is_pickled(
    chest_dir: Path, handled: list[Any]
) -> None:
    global chest, use
    flushes = lambda c: signal.raise_signal(signal.SIGUSR1)  # noqa: E731
    used: list[None] = []

    def once(c: Any) -> None:
        nonlocal used
        if not used:
            used.append(None)
            flushes(c)
        elif len(used) == 1:
            used.append(None)
            c.close()

    c = Chest(chest_dir)
    c["x"], c["y"] = Calling(), 1
    chest, use = c, once
    with pytest.raises(errors.ClosedError):
        c.flush()
    with Chest(chest_dir) as again:
        chest = None
        assert dict(again) == {"x": Calling(), "y": 1}


def test_a_set_that_a_signal_handler_closes_the_chest_in_is_not_lost_silently(
    chest_dir: Path, monkeypatch: pytest.MonkeyPatch, handled: list[Any]
) -> None:
    global chest, use
    chest, use = Chest(chest_dir), lambda c: c.close()
    signal_in(monkeypatch, MemoryTier, "put")
    with pytest.raises(errors.ClosedError):
        chest["x"] = [1]
    assert handled == [None, None]


@pytest.mark.parametrize("ends", [lambda c: c.close(), lambda c: c.drop()])
def test_a_chest_is_not_closed_within_its_own_transaction(
    chest_dir: Path, ends: Callable[[Any], Any]
) -> None:
    with Chest(chest_dir) as c:

        def change(t: Any) -> None:
            t["x"] = 1
            ends(c)

        with pytest.raises(errors.ReentryError, match="changed by this very thread"):
            c.transact(change)
        assert dict(c) == {}
        c["y"] = 2
    assert os.listdir(chest_dir)
    with Chest(chest_dir) as c:
        assert dict(c) == {"y": 2}
