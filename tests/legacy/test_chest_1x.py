"""What chest 0.2.3 promised, and folders that it wrote."""

from __future__ import annotations

import gzip
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chest import Chest, core, errors
from tests.failures import faults, scenes

DATA = Path(__file__).parents[1] / "data" / "chest-0.2.3"
JSON: dict[str, Any] = {"dump": json.dump, "load": json.load, "mode": "t"}
PICKLED = {
    "x": [1, 2, 3],
    "text": "naïve",
    1: "one",
    ("one", "two"): {"nested": (1, 2)},
    ("a", "b", "c"): None,
    "array": np.arange(12.0).reshape(3, 4),
    3.5: b"bytes\x00\xff",
    "2013-01-31": {1, 2},
}
WRITTEN = {"x": [1, 2, 3], ("one", "two"): {"nested": [1, 2]}, 1: "one"}


def copy_of(name: str, folder: Path) -> Path:
    """A fixture folder with private modes, whatever the checkout gave it."""
    shutil.copytree(DATA / name, folder)
    for path in [folder, *folder.rglob("*")]:
        path.chmod(0o700 if path.is_dir() else 0o600)
    return folder


@pytest.fixture
def pickled(tmp_path: Path) -> Path:
    return copy_of("pickle", tmp_path / "c")


@pytest.fixture
def written(tmp_path: Path) -> Path:
    return copy_of("json", tmp_path / "c")


def test_an_old_folder_of_compressed_files_opens(chest_dir: Path) -> None:
    for name, content in [("x", [1, 2]), (".keys", [("x", "x")])]:
        with gzip.open(chest_dir / name, "wb") as file:
            pickle.dump(content, file, protocol=1)
    with Chest(chest_dir, open=gzip.open) as c:
        c["y"] = 3
    with Chest(chest_dir, open=gzip.open) as c:
        assert dict(c) == {"x": [1, 2], "y": 3}


@pytest.mark.parametrize("readonly", [False, True])
def test_an_old_folder_opens_in_its_order(pickled: Path, readonly: bool) -> None:
    before = scenes.files_in(pickled)
    keys = (pickled / ".keys").read_bytes()
    with Chest(pickled, readonly=readonly) as c:
        assert list(c) == list(PICKLED)
        assert scenes.equal(c, PICKLED)
        assert c.verify() == []
    assert scenes.files_in(pickled) == before
    assert ((pickled / ".keys").read_bytes() == keys) is readonly
    with Chest(pickled) as c:
        assert list(c) == list(PICKLED)
        assert scenes.equal(c, PICKLED)


def test_an_old_folder_is_written_and_goes_on(pickled: Path) -> None:
    with Chest(pickled) as c:
        c["x"].append(4)
        c["new"] = 5
        del c[1]
        c["one", "three"] = 13
        c.compact()
    expected = {**PICKLED, "x": [1, 2, 3, 4], "new": 5, ("one", "three"): 13}
    del expected[1]
    with Chest(pickled) as c:
        assert list(c) == list(expected)
        assert scenes.equal(c, expected)
        assert c.verify() == []
        held = {c.entry(key).name for key in c}
    assert scenes.files_in(pickled) == {".keys", *held}


@pytest.mark.parametrize("readonly", [False, True])
def test_an_old_json_folder_opens(written: Path, readonly: bool) -> None:
    with Chest(written, readonly=readonly, **JSON) as c:
        assert dict(c) == WRITTEN
        assert list(c) == list(WRITTEN)
    if not readonly:
        with Chest(written, **JSON) as c:
            c["x"].append(4)
            c["y"] = {"a": None}
        with Chest(written, **JSON) as c:
            assert dict(c) == {**WRITTEN, "x": [1, 2, 3, 4], "y": {"a": None}}
            assert c.verify() == []


def test_values_read_from_an_old_folder_are_not_rewritten(pickled: Path) -> None:
    with Chest(pickled) as c:
        for key in c:
            c[key]
        c.flush()
        assert c.stats().writes == 0


def test_a_lost_or_damaged_old_value_is_reported(pickled: Path) -> None:
    (pickled / "x").unlink()
    (pickled / "text").write_bytes(b"")
    with Chest(pickled) as c:
        for key in ("x", "text"):
            with pytest.raises(errors.CorruptValueError):
                c.get(key)
        assert "x" in [problem.key for problem in c.verify()]
        assert c[1] == "one"


@pytest.mark.parametrize("size", [0, 1, 10, 200, 300])
def test_a_damaged_old_key_list_is_no_empty_chest(pickled: Path, size: int) -> None:
    os.truncate(pickled / ".keys", size)
    with pytest.raises(errors.CorruptChestError):
        Chest(pickled)
    assert (pickled / ".keys").stat().st_size == size
    assert (pickled / "x").exists()


def test_names_that_lead_out_of_an_old_folder_are_refused(pickled: Path) -> None:
    for name in ("../x", "/etc/passwd", "a/../../x"):
        (pickled / ".keys").write_bytes(pickle.dumps([("x", name)], protocol=1))
        with pytest.raises(errors.CorruptChestError):
            Chest(pickled)


def test_taking_over_an_old_folder_may_be_killed_at_any_call(tmp_path: Path) -> None:
    status, at = faults.DIED, 0
    while status == faults.DIED:
        at += 1
        folder = copy_of("pickle", tmp_path / f"c{at}")

        def work(folder: Path = folder, at: int = at) -> None:
            with faults.acting(faults.dying(at, torn=True), faults.WRITES):
                Chest(folder).close()

        status = faults.in_child(work, tmp_path / "error")
        assert status in (0, faults.DIED), (tmp_path / "error").read_text()
        with Chest(folder) as c:
            assert scenes.equal(c, PICKLED)
            assert list(c) == list(PICKLED)


# -- the suite of 2016, told anew ------------------------------------------------------


def test_names_of_1x_are_there() -> None:
    with Chest() as c:
        c[1] = "one"
        assert core.nbytes("x") < 100
        assert core.key_to_filename(("one", "two")) == "_one/two"
        assert (c.mode, c.load is pickle.load) == ("b", True)
        c.move_to_disk(1)
        assert 1 not in c.inmem
        with open(c.key_to_filename(1), "rb") as file:
            assert c.load(file) == "one"
        c.get_from_disk(1)
        assert 1 in c.inmem
        c.write_keys()
        with c.lock:
            c.shrink()
        with c.open_many([c.key_to_filename(1)], "rb") as files:
            assert pickle.load(files[0]) == "one"


def test_data_of_the_constructor_are_keys() -> None:
    """They were none in 0.2.3."""
    with Chest({"x": 1}, available_memory=100) as c:
        assert list(c) == ["x"]


def test_numbers_and_their_texts_are_two_keys() -> None:
    """They shared one file in 0.2.3."""
    with Chest({1: "int", "1": "str"}) as c:
        c.flush()
        assert (c[1], c["1"]) == ("int", "str")


def test_setting_after_a_flush_is_safe() -> None:
    """It could raise KeyError from the heap in 0.2.3."""
    with Chest(available_memory=3000) as c:
        for i in range(50):
            c[i] = np.arange(100)
            if i % 7 == 0:
                c.flush()
            c[i // 2] = np.arange(50)
        assert len(c) == 50


def test_misses_call_on_miss_and_prefetch_does_not() -> None:
    def refuse(key: object) -> None:
        raise KeyError(key)

    with Chest(on_miss=refuse) as c:
        c.update({1: 1, 2: 2})
        c.flush()
        with pytest.raises(KeyError):
            c[1]
        c.prefetch(1)
        c.prefetch([1, 2])
        assert (c[1], c[2]) == (1, 2)


def test_a_value_that_cannot_be_dumped_stays_in_memory() -> None:
    class Stubborn:
        def __reduce__(self) -> Any:
            raise TypeError("no")

    with Chest(available_memory=1_000) as c:
        c["a"] = stubborn = Stubborn()
        c.update({i: [i] * 10 for i in range(50)})
        with pytest.warns(errors.SpillWarning, match="'a' stays"):
            c.available_memory = 0
        assert list(c.inmem) == ["a"]
        assert c["a"] is stubborn
        assert not os.path.exists(c.key_to_filename("a"))
        del c["a"]


def test_tuples_are_nested_folders(tmp_path: Path) -> None:
    with Chest(path=tmp_path / "c") as c:
        c["one"] = 1
        c["one", "two"] = 12
        c["one", "three"] = 13
        c.flush()
        assert sorted(os.listdir(c.path)) == [".keys", "_one", "one"]
        assert sorted(os.listdir(tmp_path / "c" / "_one")) == ["three", "two"]


def test_own_names_are_kept_by_a_moved_folder(tmp_path: Path) -> None:
    def name(key: object) -> str:
        return f"v{abs(hash(key)) % 1000}"

    with Chest(path=tmp_path / "a", key_to_filename=name) as c:
        c["spam", "eggs"] = "both"
    os.rename(tmp_path / "a", tmp_path / "b")
    with Chest(path=tmp_path / "b") as c, Chest(path=tmp_path / "d") as other:
        other.update(c)
        other.flush()
        assert other["spam", "eggs"] == "both"
