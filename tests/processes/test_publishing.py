"""P8 and design §5: what others see, and when."""

from __future__ import annotations

import gc
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from chest import Chest, errors
from tests.leaks import open_files
from tests.processes import helpers

AT_ONCE: dict[str, Callable[[Chest], object]] = {
    "del": lambda c: c.__delitem__("a"),
    "pop": lambda c: c.pop("a"),
    "popitem": lambda c: c.popitem(),
    "clear": lambda c: c.clear(),
    "setdefault": lambda c: c.setdefault("new", [1]),
}
LATER: dict[str, Callable[[Chest], object]] = {
    "setitem": lambda c: c.__setitem__("new", 1),
    "set": lambda c: c.set("new", 1),
    "update": lambda c: c.update(new=1),
    "or": lambda c: c.__ior__({"new": 1}),
}
PUBLISHERS: dict[str, Callable[[Chest], object]] = {
    "flush": Chest.flush,
    "sync": Chest.sync,
    "close": Chest.close,
    "with": lambda c: c.__exit__(None, None, None),
    "pickle": pickle.dumps,
    "write_keys": Chest.write_keys,
    "spill": lambda c: setattr(c, "available_memory", 0),
}


@pytest.fixture
def filled(chest_dir: Path) -> Path:
    with Chest({"a": [1], "b": [2]}, chest_dir):
        pass
    return chest_dir


@pytest.mark.parametrize("name", AT_ONCE)
def test_published_when_the_call_returns(filled: Path, name: str) -> None:
    with Chest(filled) as mine, Chest(filled) as theirs:
        assert len(theirs) == 2
        AT_ONCE[name](mine)
        assert list(theirs) == list(mine)
        assert list(theirs) != ["a", "b"]
        assert len(theirs) == len(mine)
        assert dict(theirs) == dict(mine)


def test_edit_publishes_at_its_end(filled: Path) -> None:
    with Chest(filled) as mine, Chest(filled) as theirs:
        with mine.edit("a") as value:
            value.append(2)
            assert theirs["a"] == [1]
        assert theirs["a"] == [1, 2]


@pytest.mark.parametrize("publisher", PUBLISHERS)
@pytest.mark.parametrize("name", LATER)
def test_sets_are_published_later(filled: Path, name: str, publisher: str) -> None:
    mine, theirs = Chest(filled), Chest(filled)
    LATER[name](mine)
    assert "new" in mine
    assert "new" not in theirs
    PUBLISHERS[publisher](mine)
    assert "new" in theirs
    assert theirs["new"] == 1
    mine.close()
    theirs.close()


@pytest.mark.parametrize("name", LATER)
def test_publish_each_publishes_every_one(filled: Path, name: str) -> None:
    with Chest(filled, publish="each") as mine, Chest(filled) as theirs:
        LATER[name](mine)
        assert theirs["new"] == 1
        assert mine.inmem["new"] == 1


def test_others_see_overwriting_deleting_and_compaction(filled: Path) -> None:
    with Chest(filled) as mine, Chest(filled) as theirs:
        for number in range(20):
            assert theirs["b"] == ([2] if number == 0 else number - 1)
            mine["b"] = number
            mine["fresh"] = number
            mine.sync()
            assert theirs["b"] == number
            assert theirs.get("fresh") == number
            del mine["fresh"]
            assert "fresh" not in theirs
            mine.compact()
            assert dict(theirs) == {"a": [1], "b": number}


def test_both_write_by_turns(filled: Path) -> None:
    with Chest(filled) as one, Chest(filled) as two:
        for number in range(10):
            for writer, reader in ((one, two), (two, one)):
                writer[number] = [number]
                writer["b"] = writer is one
                writer.sync()
                assert reader["b"] is (writer is one)
                assert list(reader) == list(writer)


def test_a_value_set_here_and_published_there_stays_ours_until_published(
    filled: Path,
) -> None:
    """Whoever publishes last wins, as documented."""
    with Chest(filled) as mine, Chest(filled) as theirs:
        mine["a"] = "mine"
        theirs["a"] = "theirs"
        theirs.sync()
        assert mine["a"] == "mine"
        mine.sync()
        assert theirs["a"] == "mine"


@pytest.mark.parametrize("change", ["delete", "drop-all"])
def test_a_value_set_here_survives_its_deletion_elsewhere(
    filled: Path, change: str
) -> None:
    with Chest(filled) as mine, Chest(filled) as theirs:
        mine["a"] = "mine"
        mine["z"] = "fresh"
        if change == "delete":
            del theirs["a"]
        else:
            theirs.clear()
        assert mine["a"] == "mine"
        order = list(mine)
        assert len(mine) == len(order)
        mine.flush()
        assert list(mine) == list(theirs) == order
        assert theirs["a"] == "mine"


def test_iteration_and_views_survive_deletions_by_others(filled: Path) -> None:
    with Chest(filled) as mine, Chest(filled) as theirs:
        seen = []
        for key in mine:
            seen.append(key)
            theirs.clear()
        assert seen == ["a", "b"]
        mine.update(x=1, y=2)
        items = iter(mine.items())
        assert next(items) == ("x", 1)
        mine.clear()
        assert list(items) == []


def test_a_mapped_array_outlives_its_file(filled: Path) -> None:
    with Chest(filled) as mine, Chest(filled) as theirs:
        mine["big"] = np.arange(300_000)
        mine.flush()
        array = theirs["big"]
        mine["big"] = "replaced"
        mine.flush()
        del mine["a"]
        mine.compact()
        assert array[-1] == 299_999
        assert theirs["big"] == "replaced"


def test_other_processes_see_it(filled: Path) -> None:
    with Chest(filled) as c:
        c["new"] = "here"
        c.sync()
        script = """
import sys
from chest import Chest
with Chest(sys.argv[1]) as c:
    print(dict(c))
    c["back"] = "there"
"""
        assert helpers.run(script, filled) == ("{'a': [1], 'b': [2], 'new': 'here'}\n")
        assert c["back"] == "there"


def test_dropping_tells_the_others(
    filled: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (filled / "mine.txt").write_text("a file of the user's")
    with Chest(filled) as mine:
        theirs = Chest(filled)
        assert theirs["a"] == [1]
        assert theirs.incr("in the log") == 1
        mine.drop()
        for use in (len, list, lambda c: c["b"], lambda c: c.pop("a")):
            with pytest.raises(errors.DroppedError):
                use(theirs)
        with pytest.raises(errors.DroppedError):
            theirs.clear()
    assert os.listdir(filled) == ["mine.txt"]
    theirs.__del__()
    assert not caplog.text, "there was nothing that could not be written"


def test_what_another_deleted_cannot_be_moved_to_disk(filled: Path) -> None:
    with Chest(filled) as c, Chest(filled) as other:
        assert c["a"] == [1]
        del other["a"]
        with pytest.raises(KeyError):
            c.move_to_disk("a")


def test_dropping_closes_before_the_folder_goes(
    filled: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NFS and FUSE keep a deleted file in the folder as long as somebody has it open."""
    open_then: list[str] = []
    rmdir = os.rmdir

    def removing(path: str) -> None:
        open_then.extend(name for name in open_files() if name.startswith(path))
        rmdir(path)

    c = Chest(filled)
    c["a"] = c["b"]
    monkeypatch.setattr(os, "rmdir", removing)
    c.drop()
    assert open_then == []
    assert not filled.exists()


def test_a_closed_chest_refuses_every_use(filled: Path) -> None:
    c = Chest(filled)
    c.close()
    c.close()
    for use in (
        len,
        list,
        lambda c: c["a"],
        lambda c: c.get("a"),
        lambda c: c.__setitem__("a", 1),
        lambda c: c.pop("a"),
        lambda c: "a" in c,
        Chest.flush,
        Chest.stats,
        pickle.dumps,
        lambda c: c.__enter__(),
        lambda c: c.setdefault("a", 1),
        Chest.verify,
        Chest.compact,
        Chest.popitem,
    ):
        with pytest.raises(errors.ClosedError, match="closed"):
            use(c)
    assert "closed" in repr(c)


def test_pickled_handles_are_the_same_chest(filled: Path) -> None:
    c = Chest(filled, available_memory="5MB", mapped="copy")
    c["new"] = 5
    again = pickle.loads(pickle.dumps(c))
    assert again.path == c.path
    assert again.available_memory == 5e6
    assert dict(again) == dict(c) == {"a": [1], "b": [2], "new": 5}
    again.close()
    c.close()


def test_a_pickled_handle_of_a_temporary_chest_leaves_its_end_to_the_first() -> None:
    with Chest({"x": 1}) as c:
        again = pickle.loads(pickle.dumps(c))
        assert again["x"] == 1
        again.close()
        assert os.path.isdir(c.path)
    assert not os.path.exists(c.path)


def test_del_publishes_and_removes_what_is_temporary(filled: Path) -> None:
    c = Chest(filled)
    c["new"] = 1
    temporary = Chest({"x": 1})
    path = temporary.path
    del c, temporary
    gc.collect()
    assert not os.path.exists(path)
    with Chest(filled) as c:
        assert c["new"] == 1


def test_collecting_a_chest_in_a_cycle_publishes_it(filled: Path) -> None:
    cycle = [Chest(filled)]
    cycle[0]["new"] = cycle
    cycle[0]["more"] = 1
    cycle.append(cycle)
    del cycle[0]["new"], cycle
    gc.collect()
    with Chest(filled) as c:
        assert c["more"] == 1


def test_births_given_at_once_are_settled_by_publication(chest_dir: Path) -> None:
    with Chest(chest_dir) as a, Chest(chest_dir) as b:
        for i in range(100):
            a["a", i] = i
            b["b", i] = i
        a.flush()
        b.flush()
        order = [("a", i) for i in range(100)] + [("b", i) for i in range(100)]
        assert list(a) == list(b) == order
        for i in range(100):
            a["a", i] = -i
        a.flush()
        a.compact()
        assert list(a) == list(b) == order
    with Chest(chest_dir) as c:
        assert list(c) == order
