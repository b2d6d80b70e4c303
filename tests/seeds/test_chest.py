"""chest 0.2.3: the program of its document, and none of its defects (D1 to D13).

Folders that it wrote, and its names, are looked at in ``tests/legacy``.
"""

from __future__ import annotations

import errno
import json
import os
import pickle
import threading
from collections.abc import MutableMapping
from pathlib import Path

import numpy as np
import pytest

from chest import Chest, errors, nbytes
from tests.processes.helpers import run


def test_the_documents_program_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    c = Chest()
    c["x"] = [1, 2, 3]
    assert c["x"] == [1, 2, 3]
    c.flush()
    assert sorted(os.listdir(c.path)) == [".keys", "x"]
    with open(c.key_to_filename("x"), "rb") as file:
        assert pickle.load(file) == [1, 2, 3]
    c2 = Chest(path=c.path)
    assert list(c2.keys()) == ["x"]
    assert c2["x"] == [1, 2, 3]
    c2.close()
    c.close()

    monkeypatch.chdir(tmp_path)
    c = Chest(path="my-chest", dump=json.dump, load=json.load, mode="t")
    c["x"] = [1, 2, 3]
    c.flush()
    with open(c.key_to_filename("x")) as file:
        assert json.load(file) == [1, 2, 3]
    c.close()


def test_it_is_a_mapping_of_todays_python() -> None:
    """D1."""
    with Chest() as c:
        assert isinstance(c, MutableMapping)


def test_a_hit_in_memory_is_a_use() -> None:
    """D2."""
    with Chest(policy="lru", available_memory=100_000) as c:
        c["a"], c["b"] = bytes(40_000), bytes(40_000)
        _ = c["a"]
        c["c"] = bytes(40_000)
        assert list(c.inmem) == ["a", "c"]


@pytest.mark.filterwarnings("ignore::chest.errors.SpillWarning")
def test_spilling_goes_on_after_a_flush_and_past_what_cannot_be_written() -> None:
    """D3."""
    with Chest(available_memory=100_000) as c:
        c["a"] = bytes(90_000)
        c.flush()
        c["b"] = bytes(90_000)
        c["lock"] = threading.Lock(), bytes(50_000)
        for number in range(5):
            c[number] = bytes(60_000)
        assert set(c.inmem) == {"lock"}
        assert len(c) == 8
        del c["lock"]


def test_first_contents_are_counted_spilled_and_saved(tmp_path: Path) -> None:
    """D4."""
    data = {"x": [1], "y": bytes(90_000)}
    with Chest(data, tmp_path / "c", available_memory=50_000) as c:
        assert (len(c), "x" in c, set(c.inmem)) == (2, True, {"x"})
        data["z"] = 1
        assert "z" not in c
    with Chest(tmp_path / "c") as c:
        assert dict(c) == {"x": [1], "y": bytes(90_000)}


def test_a_value_that_changed_after_it_was_written_is_written_again() -> None:
    """D5."""
    with Chest() as c:
        c["x"] = [1]
        c.flush()
        c["x"].append(2)
        c.move_to_disk("x")
        assert c["x"] == [1, 2]


def test_no_two_keys_share_a_file() -> None:
    """D6."""
    alike = [1, "1", "_a", ("a", "b"), "a", "A", ("A", "b"), (1,), "(1,)", "('a', 'b')"]
    with Chest(pack=False) as c:
        c.update((key, repr(key)) for key in alike)
        c.flush()
        names = [c.key_to_filename(key) for key in alike]
        assert len({*names}) == len(alike)
        assert dict(c) == {key: repr(key) for key in alike}


def test_the_old_value_is_there_until_the_new_one_is(tmp_path: Path) -> None:
    """D7."""
    with Chest(tmp_path / "c") as c:
        c["x"] = "old"
    run(
        "import os, sys, chest; c = chest.Chest(sys.argv[1]); c['x'] = 'new'; os._exit(0)",
        tmp_path / "c",
    )
    with Chest(tmp_path / "c") as c:
        assert c["x"] == "old"


def test_a_damaged_list_of_keys_is_no_empty_chest(tmp_path: Path) -> None:
    """D8."""
    with Chest(tmp_path / "c") as c:
        c["x"] = 1
    log = tmp_path / "c" / ".keys"
    log.write_bytes(b"?" + log.read_bytes()[1:])
    with pytest.raises(errors.CorruptChestError):
        Chest(tmp_path / "c")
    assert (tmp_path / "c" / "x").exists()


def test_leaving_a_block_and_the_interpreter_save_all(tmp_path: Path) -> None:
    """D9."""
    script = "import sys, chest; c = chest.Chest(path=sys.argv[1]); c['y'] = 2"
    with Chest(path=tmp_path / "c") as c:
        c["x"] = 1
    run(script, tmp_path / "c")
    with Chest(path=tmp_path / "c") as c:
        assert dict(c) == {"x": 1, "y": 2}


@pytest.mark.timeout(20)
def test_a_hook_may_use_the_chest_and_a_chest_can_be_pickled() -> None:
    """D10."""
    told: list[object] = []
    c = Chest(available_memory=50_000, on_overflow=lambda key: told.append(c[key][:1]))
    c["a"], c["b"] = bytes(40_000), bytes(40_000)
    assert told == [b"\0"]
    c.close()
    with Chest() as c:
        c["x"] = 1
        with pickle.loads(pickle.dumps(c)) as other:
            assert other["x"] == 1


def test_update_takes_what_a_dicts_does_and_needs_no_links(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """D11."""

    def refuse(*args: object, **more: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "link", refuse)
    with Chest() as c, Chest({"big": bytes(100_000)}) as other:
        c.update({"a": 1})
        c.update([("b", 2)], c=3)
        c.update(other)
        assert dict(c) == {"a": 1, "b": 2, "c": 3, "big": bytes(100_000)}


def test_overwriting_keeps_the_place_and_containers_count_what_they_hold() -> None:
    """D12."""
    with Chest() as c:
        c["a"], c["b"] = 1, 2
        c["a"] = [np.zeros(100_000)]
        assert list(c) == ["a", "b"]
        assert c.memory_usage > nbytes([np.zeros(100_000)]) > 800_000


def test_pickles_are_of_protocol_5(tmp_path: Path) -> None:
    """D13."""
    with Chest(tmp_path / "c") as c:
        c["x"] = [1, 2, 3]
        c.flush()
        assert Path(c.key_to_filename("x")).read_bytes()[:2] == b"\x80\x05"
    with Chest(tmp_path / "c", readonly=True) as c, pytest.raises(errors.ReadOnlyError):
        c["x"] = 1
