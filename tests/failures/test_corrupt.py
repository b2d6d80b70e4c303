"""P9: what is damaged is reported with its name; never read as data, nor as empty."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from chest import Chest, errors
from tests.failures import scenes

REFUSALS = (errors.CorruptChestError, errors.VersionError, errors.SignatureError)
CONTENTS = {"a": [1, 2], ("b", 1): "two", b"c": 3.5, "d": {"x": 1}}


@pytest.fixture
def manifest(chest_dir: Path) -> Path:
    """Four records: one batch, one single, a tombstone, an overwrite."""
    with Chest(chest_dir) as c:
        c.update({"a": 0, ("b", 1): "two", b"c": 3.5})
        c.sync()
        c["gone"] = 1
        c.sync()
        del c["gone"]
        c["d"] = {"x": 1}
        c.sync()
        c["a"] = [1, 2]
    return chest_dir / ".keys"


@pytest.mark.parametrize("flip", [0x01, 0x20, 0x80, 0xFF])
def test_a_flipped_byte_of_the_manifest_is_never_taken_for_fewer_keys(
    manifest: Path, flip: int
) -> None:
    """0x20 makes a zero of a space: a lone zero is no sector that never arrived."""
    good = manifest.read_bytes()
    refused = 0
    for place in range(len(good)):
        bad = bytearray(good)
        bad[place] ^= flip
        manifest.write_bytes(bad)
        try:
            c = Chest(manifest.parent, readonly=True)
        except REFUSALS as error:
            refused += 1
            assert str(manifest) in str(error)
            assert isinstance(error, errors.VersionError | errors.CorruptError)
        else:
            assert dict(c) == CONTENTS, place
            c.close()
        assert manifest.read_bytes() == bad, "a refused manifest was changed"
    assert refused > len(good) - 40  # the word for pollers and the like may differ


def test_a_zeroed_byte_of_the_manifest_is_never_taken_for_fewer_keys(
    manifest: Path,
) -> None:
    good = manifest.read_bytes()
    for place in range(len(good)):
        manifest.write_bytes(good[:place] + b"\0" + good[place + 1 :])
        try:
            c = Chest(manifest.parent, readonly=True)
        except REFUSALS:
            continue
        assert dict(c) == CONTENTS, place
        c.close()


def test_any_truncation_of_the_last_record_leaves_the_rest_which_goes_on(
    manifest: Path,
) -> None:
    """F5: the torn tail is cut off before the next append, or that is lost as well."""
    good = manifest.read_bytes()
    last = good.rindex(b"\n", 0, -1) + 1
    before = {**CONTENTS, "a": 0}
    for size in range(last, len(good)):
        folder = manifest.parent.parent / f"torn-{size}"
        shutil.copytree(manifest.parent, folder)
        os.truncate(folder / ".keys", size)
        with Chest(folder) as c:
            assert list(c) == list(before)
            del c["a"]  # its first file was removed when it was overwritten
            c["new"] = size
        with Chest(folder) as c:
            assert c["new"] == size
            assert set(c) == {*CONTENTS, "new"} - {"a"}
            assert c.verify() == []
        shutil.rmtree(folder)


@pytest.mark.parametrize("content", [b"", b"\n", b"{}", b"\0" * 4096, b"chest", b"x"])
def test_a_foreign_manifest_is_no_empty_chest(manifest: Path, content: bytes) -> None:
    manifest.write_bytes(content)
    with pytest.raises(errors.CorruptChestError):
        Chest(manifest.parent)
    assert manifest.read_bytes() == content


def test_a_manifest_cut_within_its_first_line_is_refused(manifest: Path) -> None:
    good = manifest.read_bytes()
    first = good.index(b"\n") + 1
    for size in range(first):
        manifest.write_bytes(good[:size])
        with pytest.raises(errors.CorruptChestError):
            Chest(manifest.parent)


def test_a_lost_manifest_is_no_empty_chest(manifest: Path) -> None:
    manifest.unlink()
    with pytest.raises(errors.CorruptChestError, match=r"\.keys"):
        Chest(manifest.parent)
    assert not manifest.exists()


def test_sectors_that_never_arrived_are_a_torn_record(chest_dir: Path) -> None:
    """A power cut may keep a later sector and lose an earlier one: zeros, then text."""
    with Chest(chest_dir, pack=False) as c:
        c["a"] = 1
        c.sync()
        size = (chest_dir / ".keys").stat().st_size
        c.update({f"k{i}": i for i in range(40)})
    manifest = chest_dir / ".keys"
    text = bytearray(manifest.read_bytes())
    end = (size // 512 + 2) * 512
    assert end < len(text)
    text[size:end] = bytes(end - size)
    manifest.write_bytes(text)
    with Chest(chest_dir, pack=False) as c:
        assert dict(c) == {"a": 1}
        c["b"] = 2
    with Chest(chest_dir, pack=False) as c:
        assert dict(c) == {"a": 1, "b": 2}


def test_a_newer_version_is_refused(manifest: Path) -> None:
    text = manifest.read_bytes()
    manifest.write_bytes(text.replace(b"chest 1 ", b"chest 2 ", 1))
    with pytest.raises(errors.VersionError, match="pip install -U chest"):
        Chest(manifest.parent)


# -- values ----------------------------------------------------------------------------

VALUES = {
    "victim": [1, "text", {"a": 2.5}],
    "array": np.arange(20_000.0),
    "mapped": np.arange(200_000.0),
    "other": [2, "text", {"a": 2.5}],
}


@pytest.fixture
def values(chest_dir: Path) -> Path:
    with Chest(VALUES, chest_dir):
        pass
    return chest_dir


def check_damaged(folder: Path, key: str, **options: object) -> None:
    """The key raises (not a KeyError), the others do not, and deleting helps."""
    c = Chest(folder, **options)
    with pytest.raises(errors.CorruptValueError) as caught:
        c.get(key)
    assert caught.value.key == key
    assert caught.value.path == str(folder / key)
    assert not isinstance(caught.value, KeyError)
    assert key in c
    assert [problem.key for problem in c.verify()] == [key]
    for name in VALUES:
        if name != key:
            assert scenes.same(c[name], VALUES[name])
    del c[key]
    assert c.verify() == []
    c[key] = "new"
    c.close()
    with Chest(folder) as c:
        assert c[key] == "new"


def damages(path: Path, other: Path) -> Iterator[str]:
    """Damage a file in every way; the name of each."""
    good = path.read_bytes()
    for name, bad in {
        "emptied": b"",
        "truncated": good[:-1],
        "halved": good[: len(good) // 2],
        "longer": good + b"\0",
        "zeroed": bytes(len(good)),
        "garbage": os.urandom(len(good)),
        "swapped": other.read_bytes(),
    }.items():
        path.write_bytes(bad)
        yield name
    path.unlink()
    yield "missing"
    path.symlink_to(other)
    yield "link"
    path.unlink()
    path.mkdir()
    yield "folder"
    path.rmdir()
    os.mkfifo(path)
    yield "pipe"


@pytest.mark.parametrize("key", ["victim", "array"])
def test_a_damaged_value_raises_and_leaves_the_others_alone(
    values: Path, tmp_path: Path, key: str
) -> None:
    """F7; a file of the same size, another key's, is told by its id."""
    for number, name in enumerate(damages(values / key, values / "other")):
        copy = tmp_path / f"{number}"
        shutil.copytree(values, copy, symlinks=True, ignore=lambda *_: [key])
        if name != "missing":
            source = values / key
            if name == "folder":
                (copy / key).mkdir()
            elif name == "pipe":
                os.mkfifo(copy / key)
            else:
                shutil.copy(source, copy / key, follow_symlinks=False)
        check_damaged(copy, key)


def test_every_flipped_byte_of_a_value_is_noticed(values: Path) -> None:
    path = values / "victim"
    good = path.read_bytes()
    c = Chest(values, available_memory=0)
    for place in range(len(good)):
        bad = bytearray(good)
        bad[place] ^= 0x10
        path.write_bytes(bad)
        with pytest.raises(errors.CorruptValueError):
            c["victim"]
    path.write_bytes(good)
    assert c["victim"] == VALUES["victim"]
    c.close()


def test_a_flipped_byte_of_mapped_data_is_found_by_verify(values: Path) -> None:
    """verify="stream" does not read what it hands out mapped: that would undo P5."""
    with open(values / "mapped", "r+b") as file:
        file.seek(800_000)
        file.write(b"\xff")
    with Chest(values) as c:
        assert c["mapped"].shape == (200_000,)
        assert [problem.key for problem in c.verify()] == ["mapped"]
    check_damaged(values, "mapped", verify="full")


def test_an_older_file_of_the_same_key_is_not_its_value(values: Path) -> None:
    old = (values / "victim").read_bytes()
    with Chest(values) as c:
        c["victim"] = [9, "text", {"a": 2.5}]
        c.flush()
        path = Path(c.key_to_filename("victim"))
        assert path.stat().st_size == len(old)
        path.write_bytes(old)
        with pytest.raises(errors.CorruptValueError):
            c["victim"]
