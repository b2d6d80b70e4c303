"""What becomes of a value that meets one that another published since it was set."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chest import Chest, errors


def merged(key: object, mine: list[Any], theirs: list[Any]) -> list[Any]:
    return sorted({*mine, *theirs})


@pytest.fixture
def theirs(tmp_path: Path) -> Iterator[Chest]:
    """A handle of the other process, so to speak; it publishes at once."""
    with Chest(tmp_path / "c", publish="each") as c:
        yield c


def mine(theirs: Chest, hook: Callable[..., Any] | None, **options: Any) -> Chest:
    return Chest(theirs.path, on_conflict=hook, **options)


def test_without_a_hook_the_last_publication_wins(theirs: Chest) -> None:
    with mine(theirs, None) as c:
        c["x"] = [1]
        theirs["x"] = [2]
        c.sync()
        assert theirs["x"] == [1]


@pytest.mark.parametrize("publish", ["sync", "flush", "close", "move_to_disk"])
def test_what_the_hook_returns_is_published(theirs: Chest, publish: str) -> None:
    with mine(theirs, merged) as c:
        c["x"] = [1]
        theirs["x"] = [2]
        assert c["x"] == [1]
        getattr(c, publish)(*["x"] * (publish == "move_to_disk"))
    assert theirs["x"] == [1, 2]


def test_it_is_asked_only_where_somebody_published_since(theirs: Chest) -> None:
    asked: list[tuple[Any, ...]] = []

    def hook(*given: Any) -> Any:
        asked.append(given)
        return given[1]

    theirs.update(old=1, moved=2, touched=3, deleted=4)
    with mine(theirs, hook) as c:
        for key in ("old", "new", "moved", "touched", "deleted"):
            c[key] = "mine"
        theirs["other"] = 1
        theirs.flush()
        theirs.touch("touched", 1000)
        theirs.compact()
        del theirs["deleted"]
        c.sync()
        c["old"] = "again"
        c.sync()
        theirs["old"] = "theirs"
        c["old"] = "knowing it"
        c.sync()
    assert asked == []
    assert theirs["deleted"] == "mine"


def test_many_packed_values_ask_for_those_in_conflict_only(theirs: Chest) -> None:
    asked: list[Any] = []

    def hook(key: Any, mine: Any, theirs: Any) -> Any:
        asked.append(key)
        return [*mine, *theirs]

    with mine(theirs, hook) as c:
        c.update({number: ["mine"] for number in range(200)})
        theirs.set_many({number: ["theirs"] for number in range(0, 200, 10)})
        c.flush()
    assert asked == list(range(0, 200, 10))
    assert theirs[10] == ["mine", "theirs"]
    assert theirs[11] == ["mine"]


def test_a_spill_asks_too(theirs: Chest) -> None:
    with mine(theirs, merged, available_memory=10_000) as c:
        c["x"] = [1]
        theirs["x"] = [2]
        c["y"] = list(range(1000))
        c["z"] = list(range(1000))
        c.move_to_disk("x")
        assert theirs["x"] == [1, 2]
        assert c.memory_usage <= c.available_memory


def test_a_key_that_is_published_again_while_the_hook_runs_asks_again(
    theirs: Chest,
) -> None:
    calls: list[list[int]] = []

    def hook(key: Any, mine: list[int], theirs_: list[int]) -> list[int]:
        calls.append(theirs_)
        if len(calls) < 3:
            theirs["x"] = [*theirs_, 10 + len(calls)]
        return merged(key, mine, theirs_)

    with mine(theirs, hook) as c:
        c["x"] = [1]
        theirs["x"] = [2]
        c.sync()
        assert theirs["x"] == [1, 2, 11, 12]
        assert len(calls) == 3


def test_no_lock_is_held_while_it_runs(theirs: Chest) -> None:
    def hook(key: Any, mine: Any, theirs_: Any) -> Any:
        assert not c._manifest.is_held_here()
        theirs["other"] = "published meanwhile"
        return c["other"]

    with mine(theirs, hook, timeout=0) as c:
        c["x"] = 1
        theirs["x"] = 2
        c.sync()
        assert theirs["x"] == "published meanwhile"


def test_a_hook_that_raises_leaves_both_values_and_the_rest_is_written(
    theirs: Chest,
) -> None:
    answers: list[Any] = [ArithmeticError("no"), "settled"]

    def hook(key: Any, mine: Any, theirs_: Any) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with mine(theirs, hook) as c:
        c.update(x=1, y=1)
        theirs["x"] = 2
        with pytest.raises(ArithmeticError):
            c.sync()
        assert (c["x"], theirs["x"], theirs["y"]) == (1, 2, 1)
        c.sync()
        assert theirs["x"] == "settled"


def test_a_key_that_others_replace_all_the_time_is_an_error_in_the_end(
    theirs: Chest,
) -> None:
    def hook(key: Any, mine: Any, theirs_: int) -> int:
        theirs["x"] = theirs_ + 1
        return 0

    with mine(theirs, hook) as c:
        c["x"] = 1
        theirs["x"] = 1
        with pytest.raises(errors.StoreError, match="faster"):
            c.sync()
        assert theirs["x"] > 1
        theirs.clear()
    assert theirs["x"] == 0
