"""A manifest that was lost or damaged is made anew from what else is there."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import chest
from chest import Chest, errors, rewrite
from chest.cli import main
from chest.facts import Recovered
from chest.packs import HEAD
from tests.failures import faults, scenes

SMALL = {f"p{i}": [i, "small"] for i in range(80)}
FILES = {
    "a": [1, "old"],
    "big": np.arange(30_000.0),
    ("one", "two"): "nested" * 300,
    b"bytes": "x" * 9000,
}
KEY = b"a key of thirty-two bytes, or so"


class Planted:
    """A key that runs code when it is loaded."""

    loaded = 0

    def __reduce__(self) -> Any:
        return planted, ()

    def __hash__(self) -> int:
        return 1

    def __eq__(self, other: object) -> bool:
        return type(other) is Planted


def planted() -> Planted:
    Planted.loaded += 1
    return Planted()


def fill(path: Path, **options: Any) -> dict[Any, Any]:
    """A chest with files, packs and arrays, some of which were replaced or deleted."""
    with Chest(path, **options) as c:
        c.update(FILES)
        c.flush()
        c.update(SMALL)
        c.flush()
        c["a"] = [2, "newer"]
        c["p3"] = "replaced in a file" * 100
        c.set("zarr", np.arange(1000).reshape(10, 100), format="zarr")
        c.set("packed tight", "z" * 100_000, compression="zstd")
        c.flush()
        del c["p7"], c["big"]
        return dict(c)


@pytest.fixture
def filled(chest_dir: Path) -> dict[Any, Any]:
    return fill(chest_dir)


@pytest.fixture
def copies(chest_dir: Path, tmp_path: Path) -> Iterator[Any]:
    """A copy of the chest as it is now, again and again."""

    def make() -> Path:
        path = tmp_path / "copy"
        shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(chest_dir, path)
        return path

    return make


def check(
    path: Path, expected: dict[Any, Any], report: Recovered, **options: Any
) -> None:
    """All of *expected* is there, nothing is damaged, and the chest goes on."""
    with Chest(path, **options) as c:
        assert report.keys == len(c)
        assert c.verify() == []
        for key, value in expected.items():
            assert scenes.same(c[key], value), key
        got = dict(c)
        births = [c.entry(key).birth for key in c]
        assert births == sorted(set(births))
        c["after"] = 1
        c.update({f"later{i}": i for i in range(70)})
        c.flush()
        del c["after"]
        c.compact()
        order = list(c)
    with Chest(path, **options) as c:
        assert list(c) == order
        assert scenes.equal(c, {**got, **{f"later{i}": i for i in range(70)}})
        assert c.verify() == []


def test_a_lost_log_is_rebuilt_from_files_packs_and_folders(
    chest_dir: Path, filled: dict[Any, Any]
) -> None:
    (chest_dir / ".keys").unlink()
    with pytest.raises(errors.CorruptChestError, match=r"chest recover"):
        Chest(chest_dir)
    report = chest.recover(chest_dir)
    assert (report.problems, report.told, report.kept) == ([], 0, "")
    with Chest(chest_dir, readonly=True) as c:
        # What was deleted from a pack is in it still, and nothing says that it was.
        assert set(c) == {*filled, "p7"}
        assert [key for key in c if key in SMALL and key != "p3"] == [
            key for key in SMALL if key != "p3"
        ]
        assert set(report.uncertain) == set(c)
    check(chest_dir, filled, report)


def test_with_the_checkpoint_a_lost_log_is_rebuilt_as_it_was(
    chest_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewrite, "CHECKPOINT_FROM", 20)
    fill(chest_dir)
    with Chest(chest_dir) as c:
        c.compact()
        expected = dict(c)
        before = {key: (c.entry(key).birth, c.entry(key).generation) for key in c}
        monkeypatch.undo()
        c.update({f"since{i}": i for i in range(70)})
        c["file since"] = "x" * 9000
    (chest_dir / ".keys").unlink()
    report = chest.recover(chest_dir)
    assert (report.problems, report.told) == ([], len(expected))
    assert set(report.uncertain) == {f"since{i}" for i in range(70)} | {"file since"}
    with Chest(chest_dir, readonly=True) as c:
        assert list(c)[: len(before)] == list(before)
        for key, known in before.items():
            assert (c.entry(key).birth, c.entry(key).generation) == known
        assert "p7" not in c
    check(chest_dir, {**expected, "since3": 3, "file since": "x" * 9000}, report)


def test_a_whole_log_is_left_as_it_is(chest_dir: Path, filled: dict[Any, Any]) -> None:
    before = scenes.files_in(chest_dir), (chest_dir / ".keys").read_bytes()
    report = chest.recover(chest_dir)
    assert report == Recovered(keys=len(filled), told=len(filled))
    assert (scenes.files_in(chest_dir), (chest_dir / ".keys").read_bytes()) == before


def test_a_damaged_record_loses_what_it_said_and_no_more(
    chest_dir: Path, filled: dict[Any, Any], copies: Any
) -> None:
    """Each record in turn: by a flipped byte, and as a line that is gone."""
    lines = (chest_dir / ".keys").read_bytes().splitlines(keepends=True)
    for number in range(len(lines)):
        flipped = bytearray(lines[number])
        flipped[len(flipped) // 2] ^= 0x01
        for damage in (bytes(flipped), b"", b"\0" * 700 + b"\n"):
            path = copies()
            (path / ".keys").write_bytes(
                b"".join([*lines[:number], damage, *lines[number + 1 :]])
            )
            report = chest.recover(path)
            if damage:
                assert report.records == 1
                with open(report.kept, "rb") as kept:
                    assert damage[-20:] in kept.read()
            with Chest(path, readonly=True) as c:
                for key, value in filled.items():
                    assert scenes.same(c[key], value), (number, key)
                assert set(c) - set(filled) <= {"p7"}
                assert set(report.uncertain) <= set(c)
    check(path, filled, report)


def test_a_log_that_is_cut_short_anywhere_is_rebuilt(
    chest_dir: Path, filled: dict[Any, Any], copies: Any
) -> None:
    whole = (chest_dir / ".keys").read_bytes()
    ends = [at + 1 for at in range(len(whole)) if whole[at : at + 1] == b"\n"]
    for size in {0, 3, *ends, *(end - 5 for end in ends)} - {len(whole)}:
        path = copies()
        (path / ".keys").write_bytes(whole[:size])
        report = chest.recover(path)
        with Chest(path, readonly=True) as c:
            for key, value in filled.items():
                assert scenes.same(c[key], value), (size, key)
            # A deletion that was cut off: of the pack's key it may be unknown.
            assert set(c) - set(filled) <= {"p7"}
    check(path, filled, report)


def test_any_byte_of_the_log_may_be_damaged(chest_dir: Path, copies: Any) -> None:
    with Chest(chest_dir) as c:
        c["x"] = "x" * 5000
        c.flush()
        c["y"] = "y" * 5000
        c.flush()
    whole = (chest_dir / ".keys").read_bytes()
    path = copies()
    for at in range(len(whole)):
        for bits in (0x01, 0x80):
            bad = bytearray(whole)
            bad[at] ^= bits
            (path / ".keys").write_bytes(bad)
            try:
                chest.recover(path)
            except errors.VersionError:
                assert whole[:at] == b"chest "  # the digit of the version
                continue
            with Chest(path, readonly=True) as c:
                assert dict(c) == {"x": "x" * 5000, "y": "y" * 5000}, (at, bits)


def test_a_damaged_index_of_a_batch_loses_that_batch_alone(chest_dir: Path) -> None:
    more = {f"q{i}": i for i in range(70)}
    with Chest(chest_dir) as c:
        c.update(SMALL)
        c.flush()
        c.update(more)
        c.flush()
        c["file"] = "x" * 9000
        first, second = c._manifest.index.batches
        at = first.record.at + 3
        assert first.name == second.name
    pack = chest_dir / first.name
    data = bytearray(pack.read_bytes())
    data[at] ^= 0xFF
    pack.write_bytes(data)
    with pytest.raises(errors.CorruptChestError):
        Chest(chest_dir)
    report = chest.recover(chest_dir)
    assert "80 values" in report.problems[0].message
    assert {problem.path for problem in report.problems} == {str(pack)}
    check(chest_dir, {**more, "file": "x" * 9000}, report)


def test_a_damaged_head_of_a_batch_matters_only_without_the_log(
    chest_dir: Path,
) -> None:
    with Chest(SMALL, chest_dir) as c:
        c.flush()
        c.update({f"q{i}": i for i in range(70)})
        c.flush()
        (name,) = {c.entry(key).name for key in c}
    data = bytearray((chest_dir / name).read_bytes())
    data[HEAD.size - 30] ^= 0xFF
    (chest_dir / name).write_bytes(data)
    with Chest(chest_dir) as c:
        assert len(c) == 150
        assert c.verify() == []
    (chest_dir / ".keys").unlink()
    report = chest.recover(chest_dir)
    check(chest_dir, {f"q{i}": i for i in range(70)}, report)
    assert report.keys == 70


def test_a_value_that_holds_the_bytes_of_a_pack_is_no_batch(chest_dir: Path) -> None:
    with Chest({**SMALL, "forged": 1}, chest_dir / "other") as other:
        other.flush()
        (name,) = {other.entry(key).name for key in other}
    theirs = (chest_dir / "other" / name).read_bytes()
    mine = {f"m{i}": theirs[:4000] for i in range(70)}
    with Chest(mine, chest_dir / "c") as c:
        c.flush()
        assert c.entry("m1").name.startswith(".pack-")
    (chest_dir / "c" / ".keys").unlink()
    report = chest.recover(chest_dir / "c")
    check(chest_dir / "c", mine, report)
    assert report.keys == 70


def test_damaged_and_missing_values_are_told(
    chest_dir: Path, filled: dict[Any, Any]
) -> None:
    with Chest(chest_dir, readonly=True) as c:
        nested, packed = c.entry(("one", "two")).path, c._manifest.index.get("p5")
        missing = c.entry(b"bytes").path
        pack, place = chest_dir / packed.name, packed.batch.where(5)[0]
    for path, at in ((Path(nested), 100), (pack, place)):
        data = bytearray(path.read_bytes())
        data[at] ^= 0xFF
        path.write_bytes(data)
    os.unlink(missing)
    with open(chest_dir / ".keys", "r+b") as log:  # the first record
        log.seek(log.read().index(b"\n") + 30)
        log.write(b"?")
    report = chest.recover(chest_dir)
    told = {problem.key for problem in report.problems}
    paths = {problem.path for problem in report.problems}
    assert "p5" in told
    assert nested in paths
    with Chest(chest_dir, readonly=True) as c:
        assert b"bytes" not in c
        with pytest.raises(errors.CorruptValueError):
            c["p5"]
        for key in set(filled) - {"p5", b"bytes", ("one", "two")}:
            assert scenes.same(c[key], filled[key]), key


def test_deadlines_and_values_in_the_log_survive_a_damaged_neighbour(
    chest_dir: Path,
) -> None:
    with Chest(chest_dir) as c:
        c["first"] = "x" * 5000
        c.flush()
        c.set("soon", 1, ttl=10_000)
        c.sync()
        c.incr("n", 5)
        expires = c.expires("soon")
        data = (chest_dir / ".keys").read_bytes()
        damaged = bytearray(data)
        damaged[data.index(b"\n") + 25] ^= 1
        shutil.copytree(chest_dir, chest_dir.parent / "other")
    other = chest_dir.parent / "other"
    (other / ".keys").write_bytes(damaged)
    report = chest.recover(other)
    assert report.uncertain == ["first"]
    with Chest(other) as c:
        assert dict(c) == {"soon": 1, "n": 5, "first": "x" * 5000}
        assert c.expires("soon") == expires


def test_what_was_deleted_stays_so_where_a_record_says_it(chest_dir: Path) -> None:
    with Chest(chest_dir) as c:
        c.update(SMALL)
        c.flush()
        c["file"] = "x" * 9000
        c.flush()
        del c["p7"]
    lines = (chest_dir / ".keys").read_bytes().splitlines(keepends=True)
    lines[1] = b"?" + lines[1][1:]  # that of the batch
    (chest_dir / ".keys").write_bytes(b"".join(lines))
    report = chest.recover(chest_dir)
    assert report.told == 1
    with Chest(chest_dir) as c:
        assert "p7" not in c
        assert set(c) == {*SMALL, "file"} - {"p7"}


def test_nobodys_code_runs(chest_dir: Path) -> None:
    with Chest(chest_dir) as c:
        c[Planted()] = "x" * 9000
        c.update({(Planted(), i): i for i in range(70)})
        c["value"] = [Planted(), "x" * 9000]
        c.flush()
    (chest_dir / ".keys").unlink()
    Planted.loaded = 0
    report = chest.recover(chest_dir)
    assert (report.keys, Planted.loaded) == (72, 0)
    with Chest(chest_dir) as c:
        assert c[Planted()] == "x" * 9000
        assert c[Planted(), 5] == 5


def test_a_folder_that_others_can_write_is_not_recovered(
    chest_dir: Path, filled: dict[Any, Any]
) -> None:
    (chest_dir / ".keys").unlink()
    chest_dir.chmod(0o777)
    with pytest.raises(errors.UntrustedError):
        chest.recover(chest_dir)
    assert chest.recover(chest_dir, trust="any").keys == len(filled) + 1
    chest_dir.chmod(0o700)


def test_without_pickle_no_pickle_is_taken(chest_dir: Path) -> None:
    with Chest(chest_dir) as c:
        c["pickle"] = "x" * 5000
        c.set("data", "y" * 5000, format="data")
        c.flush()
    (chest_dir / ".keys").unlink()
    report = chest.recover(chest_dir, trust="data")
    assert report.uncertain == ["data"]
    assert "'data' reads none" in report.problems[0].message


def test_in_a_signed_chest_only_what_is_signed_is_kept(
    chest_dir: Path, copies: Any
) -> None:
    with Chest(chest_dir, sign_key=KEY) as c:
        c["a"] = "a" * 5000
        c.flush()
        c["b"] = "b" * 5000
        c.flush()
    with pytest.raises(errors.SignatureError, match="sign_key"):
        chest.recover(chest_dir)
    assert chest.recover(chest_dir, sign_key=KEY).kept == ""
    lines = (chest_dir / ".keys").read_bytes().splitlines(keepends=True)
    path = copies()
    (path / ".keys").write_bytes(lines[0] + b"?" + lines[1][1:] + lines[2])
    with pytest.raises(errors.SignatureError):
        chest.recover(path)
    with pytest.raises(errors.SignatureError):
        chest.recover(path, sign_key=KEY[::-1])
    report = chest.recover(path, sign_key=KEY)
    assert (report.keys, report.uncertain) == (1, [])
    check(path, {"b": "b" * 5000}, report, sign_key=KEY)
    path = copies()
    (path / ".keys").unlink()
    with pytest.raises(errors.SignatureError):
        chest.recover(path, sign_key=KEY)


def test_what_is_no_chest_is_refused(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ".keys").write_bytes(
        b"]q\x00(X\x01\x00\x00\x00aX\x01\x00\x00\x00atq\x01a."
    )
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(errors.ChestError):
            chest.recover(path)
    assert {path.name for path in tmp_path.iterdir()} == {"notes.txt", ".keys"}


def test_a_chest_below_is_not_taken_over(tmp_path: Path) -> None:
    Chest({"x": "x" * 5000}, tmp_path / "below").close()
    with pytest.raises(errors.ChestError, match="nothing"):
        chest.recover(tmp_path)
    Chest({"y": "y" * 5000}, tmp_path).close()
    (tmp_path / ".keys").unlink()
    assert chest.recover(tmp_path).keys == 1
    with Chest(tmp_path) as c:
        assert list(c) == ["y"]


def test_an_open_chest_goes_on_with_the_new_manifest(chest_dir: Path) -> None:
    with Chest(chest_dir) as c:
        c["a"] = "a" * 5000
        c.flush()
        c["b"] = 1
        data = bytearray((chest_dir / ".keys").read_bytes())
        data[data.index(b"\n") + 30] ^= 1
        with open(chest_dir / ".keys", "r+b") as log:
            log.write(data)
        assert chest.recover(chest_dir).keys == 1
        c["b"] = 2
        c.flush()
        assert dict(c) == {"a": "a" * 5000, "b": 2}
        assert dict(Chest(chest_dir, readonly=True)) == dict(c)


def test_a_recovery_waits_for_the_lock(chest_dir: Path, filled: dict[Any, Any]) -> None:
    with Chest(chest_dir) as c, c._spill.exclusive():
        with pytest.raises(errors.LockTimeout):
            chest.recover(chest_dir, timeout=0)


@pytest.mark.parametrize("lost", [False, True], ids=["damaged", "lost"])
def test_a_recovery_that_is_killed_at_any_call_can_be_repeated(
    lost: bool, chest_dir: Path, filled: dict[Any, Any], copies: Any, tmp_path: Path
) -> None:
    if lost:
        (chest_dir / ".keys").unlink()
    else:
        with open(chest_dir / ".keys", "r+b") as log:
            log.seek(log.read().index(b"\n") + 30)
            log.write(b"?")
    status, at = faults.DIED, 0
    while status == faults.DIED:
        at += 1
        path = copies()

        def work(path: Path = path, at: int = at) -> None:
            with faults.acting(faults.dying(at, torn=False), faults.WRITES):
                chest.recover(path)

        status = faults.in_child(work, tmp_path / "error")
        assert status in (0, faults.DIED), (tmp_path / "error").read_text()
        chest.recover(path)
        with Chest(path) as c:
            for key, value in filled.items():
                assert scenes.same(c[key], value), key
            c.compact()
        assert len(list(path.glob(".keys-damaged-*"))) == (not lost)
        assert not list(path.glob(".tmp-*"))
    assert at > 5


def test_a_dropped_chest_leaves_no_old_manifest(
    chest_dir: Path, filled: dict[Any, Any]
) -> None:
    with open(chest_dir / ".keys", "r+b") as log:
        log.seek(log.read().index(b"\n") + 30)
        log.write(b"?")
    assert chest.recover(chest_dir).kept == str(chest_dir / ".keys-damaged-1")
    Chest(chest_dir).drop()
    assert not chest_dir.exists()


def test_the_command_line_says_what_was_found(
    chest_dir: Path, filled: dict[Any, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    (chest_dir / ".keys").unlink()
    assert main(["recover", str(chest_dir), "--quiet"]) == 0
    shown = capsys.readouterr().out
    assert "uncertain" in shown
    assert str(len(filled) + 1) in shown
    assert main(["recover", str(chest_dir)]) == 0
    assert "as it was" in capsys.readouterr().out
    with open(chest_dir / ".keys", "r+b") as log:
        log.write(b"?")
    os.truncate(chest_dir / "a~1", 100)
    assert main(["recover", str(chest_dir)]) == 1
    assert str(chest_dir / "a~1") in capsys.readouterr().out
