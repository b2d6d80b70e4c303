"""An open folder: names inside it, and nothing outside."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from chest import errors
from chest.folder import TEMPORARY, Folder, refusals, refused


@pytest.fixture
def folder(chest_dir: Path) -> Iterator[Folder]:
    made = Folder(str(chest_dir))
    yield made
    made.close()
    made.close()


def make(folder: Folder, name: str) -> None:
    fd, temporary = folder.create_temporary()
    os.write(fd, b"text")
    os.close(fd)
    folder.rename(temporary, name)


def test_temporary_files_are_private_locked_and_named_so(folder: Folder) -> None:
    fd, name = folder.create_temporary()
    other = folder.open(name)
    assert name.startswith(TEMPORARY)
    assert os.fstat(fd).st_mode & 0o777 == 0o600
    from chest import system

    assert not system.try_lock(other)
    os.close(fd)
    assert system.try_lock(other)
    os.close(other)


def test_folders_come_and_go_with_their_files(folder: Folder, chest_dir: Path) -> None:
    make(folder, "_a/_b/c")
    make(folder, "_a/d")
    assert set(folder.names()) == {"_a/_b/c", "_a/d"}
    folder.unlink("_a/_b/c")
    assert os.listdir(chest_dir / "_a") == ["d"]
    folder.unlink("_a/d")
    assert os.listdir(chest_dir) == []


def test_links_in_the_way_are_not_followed(folder: Folder, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("theirs")
    os.symlink(outside, os.path.join(folder.path, "_a"))
    os.symlink(outside / "file", os.path.join(folder.path, "x"))
    for name in ("_a/file", "x"):
        with pytest.raises(OSError, match=r"[Ll]ink|directory|levels"):
            folder.open(name)
    with pytest.raises(OSError, match=r"directory|levels"):
        make(folder, "_a/new")
    make(folder, "x")
    assert (outside / "file").read_text() == "theirs"
    assert os.listdir(outside) == ["file"]


def test_what_is_no_plain_file_is_refused_without_waiting(folder: Folder) -> None:
    os.mkfifo(folder.join("pipe"))
    os.mkdir(folder.join("folder"))
    for name in ("pipe", "folder"):
        with pytest.raises(OSError, match=r"regular|directory"):
            folder.open(name)


def test_unlink_of_what_is_gone(folder: Folder) -> None:
    folder.unlink("x", missing_ok=True)
    folder.unlink("_a/x", missing_ok=True)
    with pytest.raises(FileNotFoundError):
        folder.unlink("x")
    assert folder.stat("x") is None


def test_names_go_on_meaning_the_folder_when_it_is_moved(
    folder: Folder, tmp_path: Path
) -> None:
    os.rename(folder.path, tmp_path / "moved")
    make(folder, "x")
    assert os.listdir(tmp_path / "moved") == ["x"]


def test_what_the_system_refuses_names_path_key_and_way_out() -> None:
    error = refused(OSError(28, "No space left on device"), "/p", "is full", "k")
    assert (error.errno, error.path, error.key) == (28, "/p", "k")
    assert "trim" in str(error)
    with pytest.raises(errors.StoreError), refusals("/p", "is full"):
        raise OSError(28, "No space left on device")
    told = errors.DroppedError("gone")
    with pytest.raises(errors.DroppedError) as caught, refusals("/p", "x"):
        raise told
    assert caught.value is told


def test_a_missing_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(errors.StoreError) as caught:
        Folder(str(tmp_path / "nothing"))
    assert caught.value.path == str(tmp_path / "nothing")
