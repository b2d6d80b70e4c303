"""Folders of arrays that a change replaced: kept for the next change, and read no more."""

from __future__ import annotations

import os
import random
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from chest import Chest, errors, system
from chest.folder import SPARE

CHUNKS = 50  # so many that a replaced folder is worth keeping


@pytest.fixture
def chest(tmp_path):
    with Chest(tmp_path / "chest", format="zarr") as c:
        c.set("x", np.zeros(CHUNKS * 10), chunks=(10,))
        c.sync()
        yield c


def folders(chest):
    return sorted(name for name in os.listdir(chest.path) if name != ".keys")


def spares(chest):
    return [name for name in folders(chest) if name.startswith(SPARE)]


@pytest.fixture
def links(monkeypatch):
    """The names of files that are linked, as they are."""
    made: list[str] = []
    link = os.link

    def counted(source, target, **options):
        made.append(os.path.basename(source))
        return link(source, target, **options)

    monkeypatch.setattr(os, "link", counted)
    return made


def test_a_change_links_what_the_last_one_changed_and_not_every_chunk(chest, links):
    z = chest.zarr("x")
    z[0] = 1
    assert len(links) == CHUNKS  # all but one, and zarr.json
    del links[:]
    z[11] = 1
    assert links == ["c.0"]
    del links[:]
    z[22] = 1
    assert links == ["c.1"]
    assert list(chest["x"][[0, 11, 22]]) == [1, 1, 1]
    assert chest["x"].sum() == 3
    assert chest.verify() == []


def test_a_block_that_changes_nothing_or_raises_leaves_the_links_to_the_next(
    chest, links
):
    z = chest.zarr("x")
    z[0] = 1
    z[0] = 1  # the same once more
    with pytest.raises(ZeroDivisionError), z:  # noqa: PT012
        z[11] = z[22] = 2
        z.resize(400)
        raise ZeroDivisionError
    del links[:]
    z[33] = 3

    thrown_away = {f"c.{n}" for n in range(40, CHUNKS)}
    assert {*links} == thrown_away | {"zarr.json", "c.0", "c.1", "c.2"}
    assert chest["x"].shape == (CHUNKS * 10,)
    assert chest["x"].sum() == 4
    assert chest.verify() == []
    del links[:]
    z[44] = 4
    assert links == ["c.3"]


def test_what_was_replaced_takes_no_room_on_the_disk(chest):
    z = chest.zarr("x")
    z[:] = 1
    (spare,) = spares(chest)

    assert set(os.listdir(os.path.join(chest.path, spare))) <= {"zarr.json"}


@pytest.mark.parametrize(
    "end", ["close", "compact", "delete", "set", "another process's set", "drop"]
)
def test_a_kept_folder_goes_with_the_chest_the_key_and_the_next_compaction(end, chest):
    chest.zarr("x")[0] = 1
    assert len(spares(chest)) == 1
    if end == "close":
        chest.close()
    elif end == "compact":
        chest.compact()
    elif end == "delete":
        del chest["x"]
    elif end == "set":
        chest["x"] = np.zeros(3)
        chest.sync()
    elif end == "drop":
        chest.drop()
        assert not os.path.exists(chest.path)
        return
    else:
        with Chest(chest.path) as other:
            other["x"] = [1]
            other.sync()

    assert spares(chest) == []
    assert len(folders(chest)) == (end != "delete")


def test_a_folder_that_comes_too_late_for_the_next_change_goes_with_the_one_after(
    chest,
):
    keep, late = chest._spill.keep_folder, []

    def slowly(*what):
        if not late:
            with Chest(chest.path) as other:
                other.zarr("x")[11] = 1
            late.append(what)
        return keep(*what)

    chest._spill.keep_folder = slowly
    z = chest.zarr("x")
    z[0] = 1
    z[22] = 1

    assert late
    assert len(spares(chest)) == 1
    assert chest["x"].sum() == 3


def test_the_folders_that_are_kept_are_few(chest, monkeypatch):
    monkeypatch.setattr("chest.arraytier.MOST_SPARES", 2)
    for key in "abcd":
        chest.set(key, np.zeros(CHUNKS), chunks=(1,))
        chest.zarr(key)[0] = 1

    assert len(spares(chest)) == 2


def test_a_change_of_another_process_takes_the_kept_folder(chest, links):
    chest.zarr("x")[0] = 1
    del links[:]
    with Chest(chest.path) as other:
        other.zarr("x")[11] = 1

        assert links == ["c.0"]
        assert chest["x"].sum() == 2


def test_a_folder_that_somebody_reads_is_not_taken(chest, links):
    z = chest.zarr("x")
    z[0] = 1
    old = chest.array("x")
    z[0] = 2
    z[0] = 3

    assert old[:].sum() == 1
    assert z[:].sum() == 3


def test_a_snapshot_keeps_what_it_has_whatever_is_written_over_its_links(
    chest, tmp_path
):
    z = chest.zarr("x")
    z[0] = 1
    with chest.snapshot(tmp_path / "s") as s:
        for value in (2, 3):
            with z:
                z[:20] = value
                z[:10] = value  # over what the block has just written
        assert s["x"].sum() == 1
        assert s.verify() == []
    assert chest.verify() == []


def test_a_file_that_does_not_belong_to_the_array_is_not_taken_over(chest):
    z = chest.zarr("x")
    z[0] = 1
    (spare,) = spares(chest)
    for name in ("c.7", "other"):
        path = os.path.join(chest.path, spare, name)
        if os.path.exists(path):
            os.unlink(path)
        with open(path, "wb") as file:
            file.write(b"not a chunk")
    z[11] = 2

    assert chest.verify() == []
    assert not os.path.exists(os.path.join(chest.key_to_filename("x"), "other"))


def test_a_kept_folder_that_cannot_be_cleared_is_removed(chest, monkeypatch):
    unlink = os.unlink

    def refused(name, **options):
        if name == ".chest":
            raise PermissionError(13, "refused")
        return unlink(name, **options)

    monkeypatch.setattr(os, "unlink", refused)
    chest.zarr("x")[0] = 1
    monkeypatch.undo()

    assert spares(chest) == []
    assert chest["x"][0] == 1


@pytest.mark.parametrize("looks", ["entry", "array"])
def test_who_reads_does_not_wait_for_a_folder_that_is_being_filled_anew(
    looks, chest, monkeypatch
):
    """A3: it opened the folder before it was replaced, and asks for its lock after."""
    z = chest.zarr("x")
    z[0] = 1
    asked, filled, read = (threading.Event() for _ in range(3))
    reader: list[int] = []
    try_share = system.try_share

    def late(fd):
        if threading.get_ident() in reader and not asked.is_set():
            asked.set()
            assert filled.wait(20)
        return try_share(fd)

    monkeypatch.setattr(system, "try_share", late)

    def look():
        reader.append(threading.get_ident())
        with Chest(chest.path) as other:
            seen = other["x"] if looks == "entry" else other.zarr("x", "r")[:]
        read.set()
        return seen

    with ThreadPoolExecutor(1) as pool:
        result = pool.submit(look)
        assert asked.wait(20)
        z[0] = 2  # the folder that the reader has opened is kept
        with z:  # and taken, to be filled
            z[0] = 3
            filled.set()
            assert read.wait(20)
            assert result.result()[0] == 2
    assert chest["x"][0] == 3


@pytest.mark.parametrize("looks", ["entry", "array", "lazy"])
def test_a_name_that_a_newer_generation_has_got_is_looked_for_again(looks, chest):
    """The folder that had the name when the entry was looked up is another one now."""
    name = os.path.basename(chest.key_to_filename("x"))
    with Chest(chest.path) as other:
        hold, asked = other._spill.hold, []

        def late(key, entry):
            if not asked:
                asked.append(entry.name)
                z = chest.zarr("x")
                z[0] = 1
                z[0] = 2
                assert os.path.basename(chest.key_to_filename("x")) == name
            return hold(key, entry)

        other._spill.hold = late
        if looks == "entry":
            value = other["x"]
        elif looks == "array":
            value = other.zarr("x", "r")[:]
        else:
            value = other.array("x")[:]
        assert value[0] == 2
        assert asked == [name]


def test_a_seal_that_is_not_the_entrys_is_told_when_nobody_changed_the_key(chest):
    chest.set("y", np.zeros(3))
    chest.sync()
    here, there = chest.key_to_filename("x"), chest.key_to_filename("y")
    os.rename(here, here + "-")
    os.rename(there, here)
    with pytest.raises(errors.CorruptValueError, match="belongs to another value"):
        chest.zarr("x")


def test_the_folder_of_a_replaced_array_goes_by_a_name_that_nobody_else_gets(
    chest, tmp_path
):
    """Between the publication and the removal another process takes the old name."""
    chest.set("y", np.zeros(3))
    chest.sync()
    name = os.path.basename(chest.key_to_filename("y"))
    delete, named = chest._spill.delete, []

    def late(names):
        if not named:
            named.append(name)
            with Chest(chest.path) as other:
                other.zarr("y")[0] = 2
                assert os.path.basename(other.key_to_filename("y")) == name
        delete(names)

    chest._spill.delete = late
    chest.zarr("y")[0] = 1

    assert named
    assert list(chest["y"]) == [2, 0, 0]
    with Chest(chest.path) as other:
        assert list(other["y"]) == [2, 0, 0]
        assert other.verify() == []


@pytest.mark.parametrize("seed", range(4))
def test_changes_by_two_chests_with_readers_and_snapshots_are_what_numpy_makes(
    seed, chest, tmp_path
):
    draw = random.Random(seed)
    value, kept = np.zeros(CHUNKS * 10), []
    with Chest(chest.path) as other:
        live = [c.zarr("x") for c in (chest, other)]
        for step in range(40):
            z = draw.choice(live)
            start = draw.randrange(len(value) - 20)
            stop = start + draw.randrange(1, 20)
            kind = draw.choice(["set", "set", "block", "grow", "cut", "read", "snap"])
            if kind == "set":
                z[start:stop] = value[start:stop] = step
            elif kind == "block":
                with z:
                    z[start:stop] = step
                    z[start] = -1
                value[start:stop], value[start] = step, -1
            elif kind == "grow" and len(value) < 600:
                z.append(np.full(15, step))
                value = np.append(value, np.full(15, step))
            elif kind == "cut" and len(value) > 400:
                z.resize(len(value) - 13)
                value = value[:-13].copy()
            elif kind == "read":
                kept = [*kept[-2:], (z._chest.array("x"), value.copy())]
            elif kind == "snap":
                with chest.snapshot(tmp_path / f"s{step}") as s:
                    assert (s["x"] == value).all()
                    assert s.verify() == []
            for lazy, then in kept:
                assert (lazy[:] == then).all()
            assert (draw.choice(live)[:] == value).all()
            assert chest.verify() == []
        del kept[:], live[:], z
        assert (other["x"] == value).all()
    chest.close()
    assert len([n for n in folders(chest) if not n.startswith(".tmp-")]) == 1
