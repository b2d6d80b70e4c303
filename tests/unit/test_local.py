"""Write-once files: names, drafts, orphans."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from chest import errors
from chest.folder import Folder
from chest.stores.local import MAGICS, MAP_FROM, LocalStore


@pytest.fixture
def store(chest_dir: Path) -> Iterator[LocalStore]:
    home = Folder(str(chest_dir))
    yield LocalStore(home, private=True, folder_is_private=True)
    home.close()


def put(store: LocalStore, wanted: str, data: bytes = b"data") -> str:
    draft = store.draft()
    draft.write([data])
    draft.finish(sync=False)
    assert draft.size == len(data)
    name = store.place(draft, wanted)
    draft.release()
    draft.release()
    return name


def read(store: LocalStore, name: str, mapped: str | None = "r") -> memoryview:
    return store.source(name, key="k", size=None, mapped=mapped, runs_code=True).data


def test_a_name_is_never_taken_twice(store: LocalStore) -> None:
    """L1, L3."""
    names = [put(store, "x", bytes([n])) for n in range(4)]
    assert names == ["x", "x~1", "x~2", "x~3"]
    assert [bytes(read(store, name)) for name in names] == [b"\0", b"\1", b"\2", b"\3"]


def test_a_file_in_the_place_of_a_folder_is_gone_around(store: LocalStore) -> None:
    assert put(store, "_a") == "_a"
    assert put(store, "_a/b") == "_a+b"
    assert put(store, "_c/d") == "_c/d"
    assert put(store, "_c") == "_c~1"


def test_discarded_drafts_leave_nothing(store: LocalStore, chest_dir: Path) -> None:
    draft = store.draft()
    draft.write([b"data"])
    draft.restart()
    draft.write([b"d", b"a"])
    draft.finish(sync=True)
    assert bytes(draft.view()) == b"da"
    draft.discard()
    draft.discard()
    assert os.listdir(chest_dir) == []
    name = put(store, "x")
    assert os.listdir(chest_dir) == [name]


def test_large_files_are_mapped_small_ones_read(store: LocalStore) -> None:
    put(store, "small", bytes(MAP_FROM - 1))
    put(store, "large", bytes(MAP_FROM))
    source = store.source("small", key="k", size=None, mapped="r", runs_code=True)
    assert not source.mapped
    for mapped, writable in (("r", False), ("copy", True)):
        source = store.source(
            "large", key="k", size=MAP_FROM, mapped=mapped, runs_code=True
        )
        assert source.mapped
        assert source.writable is writable
        assert source.data.readonly is not writable


def test_a_wrong_size_is_told_before_anything_is_read(store: LocalStore) -> None:
    put(store, "x", b"12345")
    with pytest.raises(errors.CorruptValueError, match="5 bytes instead of 6"):
        store.source("x", key="k", size=6, mapped="r", runs_code=True)


def test_a_gone_file_is_the_callers_to_judge(store: LocalStore) -> None:
    with pytest.raises(FileNotFoundError):
        read(store, "x")


def test_a_file_that_others_could_write_runs_no_code(
    store: LocalStore, chest_dir: Path
) -> None:
    put(store, "x")
    (chest_dir / "x").chmod(0o602)
    with pytest.raises(errors.UntrustedError, match="602"):
        read(store, "x")
    store.source("x", key="k", size=4, mapped="r", runs_code=False)


def test_orphans_are_our_own_files_that_nobody_holds(
    store: LocalStore, chest_dir: Path
) -> None:
    put(store, "held", b"data" + MAGICS[0])
    put(store, "orphan", b"data" + MAGICS[0])
    put(store, "_a/orphan", b"data" + MAGICS[1])
    put(store, "foreign", b"a file of the user's")
    (chest_dir / ".tmp-dead").touch()
    (chest_dir / ".hidden").touch()
    writing = store.draft()
    assert set(store.orphans({"held"}, store.listed())) == {
        "orphan",
        "_a/orphan",
        ".tmp-dead",
    }
    writing.discard()


def test_a_linked_file_is_the_same_file(store: LocalStore, tmp_path: Path) -> None:
    (tmp_path / "theirs").write_bytes(b"shared")
    draft = store.draft()
    assert draft.adopt(str(tmp_path / "theirs"))
    draft.finish(sync=False)
    name = store.place(draft, "x")
    draft.release()
    assert (tmp_path / "theirs").samefile(store.home.join(name))
    assert list(store.home.names()) == ["x"]


def test_what_cannot_be_linked_is_told(store: LocalStore, tmp_path: Path) -> None:
    draft = store.draft()
    assert not draft.adopt(str(tmp_path / "nothing"))
    draft.discard()
    assert list(store.home.names()) == []
