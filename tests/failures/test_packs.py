"""P9, P10: packs that were damaged, lost, refused, or left by somebody who died."""

from __future__ import annotations

import errno
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chest import Chest, errors
from chest.manifest import Manifest
from chest.packs import HEAD
from tests.failures import faults, scenes

CONTENTS = {f"k{i}": [i, "x" * (i % 5)] for i in range(64)}


@pytest.fixture
def packed(chest_dir: Path) -> Path:
    with Chest(CONTENTS, chest_dir):
        pass
    return chest_dir


def only_pack(folder: Path) -> Path:
    (pack,) = folder.glob(".pack-*")
    return pack


def check_damaged(folder: Path) -> int:
    """Each key is equal or raises with its name; the number of those that raise."""
    try:
        c = Chest(folder, readonly=True)
    except errors.CorruptChestError as error:
        assert str(only_pack(folder)) in str(error)
        assert error.path == str(only_pack(folder))
        return len(CONTENTS)
    bad = set()
    assert list(c) == list(CONTENTS)
    for key, value in CONTENTS.items():
        try:
            assert c[key] == value
        except errors.CorruptValueError as error:
            assert error.key == key
            assert error.path == str(only_pack(folder))
            bad.add(key)
    assert {problem.key for problem in c.verify()} == bad
    c.close()
    return len(bad)


def test_a_flipped_byte_of_a_pack_hurts_one_value_or_is_told_at_once(
    packed: Path,
) -> None:
    pack = only_pack(packed)
    good = pack.read_bytes()
    with Chest(packed, readonly=True) as c:
        (batch,) = c._manifest.index.batches
        first, last = batch.record.at, batch.record.at + batch.record.size
    hurt = []
    for place in range(len(good)):
        bad = bytearray(good)
        bad[place] ^= 0x10
        pack.write_bytes(bad)
        hurt.append(check_damaged(packed))
    assert set(hurt[first:last]) == {len(CONTENTS)}
    assert set(hurt[: HEAD.size]) == {0}  # only who has no manifest needs it
    assert set(hurt[HEAD.size : first - 8]) == {1}
    assert set(hurt[first - 8 : first]) <= {0, 1}  # what aligns the index is nobody's


def test_any_truncation_of_a_pack_is_told(packed: Path) -> None:
    pack = only_pack(packed)
    good = pack.read_bytes()
    for size in range(len(good)):
        pack.write_bytes(good[:size])
        with pytest.raises(errors.CorruptChestError, match="damaged"):
            Chest(packed)
        assert pack.read_bytes() == good[:size]


def test_a_pack_cut_while_a_chest_is_open_hurts_only_what_was_cut(packed: Path) -> None:
    c = Chest(packed)
    size = only_pack(packed).stat().st_size
    os.truncate(only_pack(packed), HEAD.size + 40)
    lost = 0
    for key, value in CONTENTS.items():
        try:
            assert c[key] == value
        except errors.CorruptValueError as error:
            assert error.key == key
            lost += 1
    assert 0 < lost < len(CONTENTS)
    os.truncate(only_pack(packed), size)
    c._memory.clear()
    c._release()


def test_verify_reads_the_index_of_a_batch_as_well(packed: Path) -> None:
    """What an open chest needs no more, the next one needs."""
    c = Chest(packed, readonly=True)
    size = only_pack(packed).stat().st_size
    with open(only_pack(packed), "r+b") as file:
        file.seek(size - 1)
        file.write(b"!")
    assert dict(c) == CONTENTS
    (problem,) = c.verify()
    assert problem.path == str(only_pack(packed))
    assert "batch" in problem.message
    c.close()


def test_bytes_behind_the_last_batch_are_nobodys(packed: Path) -> None:
    """A torn tail: what a writer that died had appended and not published."""
    with open(only_pack(packed), "ab") as file:
        file.write(os.urandom(5000))
    with Chest(packed) as c:
        assert dict(c) == CONTENTS
        assert c.verify() == []


def test_a_lost_pack_is_no_empty_chest(packed: Path) -> None:
    only_pack(packed).unlink()
    with pytest.raises(errors.CorruptChestError, match=r"64 values, is missing"):
        Chest(packed)


def test_packs_without_a_manifest_are_no_empty_chest(packed: Path) -> None:
    (packed / ".keys").unlink()
    with pytest.raises(errors.CorruptChestError, match=r"\.keys"):
        Chest(packed)
    assert only_pack(packed).exists()
    assert not (packed / ".keys").exists()


def test_another_chests_pack_is_not_this_ones(packed: Path, tmp_path: Path) -> None:
    """Of the same size, with the same keys."""
    with Chest({key: [-1, *value[1:]] for key, value in CONTENTS.items()}) as other:
        other.flush()
        theirs = only_pack(Path(other.path)).read_bytes()
    only_pack(packed).write_bytes(theirs)
    with pytest.raises(errors.CorruptChestError):
        Chest(packed)


def test_a_damaged_value_hinders_neither_flush_nor_compaction(packed: Path) -> None:
    pack = only_pack(packed)
    with Chest(packed, readonly=True) as c:
        place = c._manifest.index.get("k60").batch.where(60)[0]
    bad = bytearray(pack.read_bytes())
    bad[place + 3] ^= 0xFF
    pack.write_bytes(bad)
    c = Chest(packed)
    for number in range(50):
        del c[f"k{number}"]
    c["new"] = 1
    c.flush()  # most of the pack is dead, so it is rewritten
    c.compact()
    assert [problem.key for problem in c.verify()] == ["k60"]
    with pytest.raises(errors.CorruptValueError, match="'k60'"):
        c["k60"]
    del c["k60"]
    c.flush()
    c.compact()
    assert c.verify() == []
    expected = {f"k{i}": CONTENTS[f"k{i}"] for i in range(50, 64) if i != 60}
    assert dict(c) == {**expected, "new": 1}
    assert not pack.exists()
    c.close()


def test_a_damaged_value_makes_no_flush_compact_twice(
    packed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pack that could not be emptied is tried again when more of it is dead."""
    pack = only_pack(packed)
    with Chest(packed, readonly=True) as c:
        place = c._manifest.index.get("k60").batch.where(60)[0]
    bad = bytearray(pack.read_bytes())
    bad[place + 3] ^= 0xFF
    pack.write_bytes(bad)
    compactions: list[str] = []
    take = Manifest.take
    monkeypatch.setattr(
        Manifest,
        "take",
        lambda self, new: (compactions.append(self.path), take(self, new))[1],
    )
    with Chest(packed) as c:
        for number in range(50):
            del c[f"k{number}"]
        c.flush()
        assert len(compactions) == 1
        for number in range(3):
            c["new"] = number
            c.flush()
        assert len(compactions) == 1
        del c["k60"]
        c.flush()
        assert len(compactions) == 2
        assert not pack.exists()


def test_a_pack_that_others_can_write_is_not_loaded(packed: Path) -> None:
    only_pack(packed).chmod(0o666)
    with pytest.raises(errors.UntrustedError, match="chmod go-w"):
        Chest(packed)["k1"]
    with Chest(packed, trust="any") as c:
        assert dict(c) == CONTENTS
    only_pack(packed).chmod(0o600)
    packed.chmod(0o777)
    with pytest.raises(errors.UntrustedError):
        Chest(packed)
    packed.chmod(0o700)


def test_without_pickle_no_pack_is_loaded(packed: Path) -> None:
    with Chest(packed, trust="data", format="data") as c:
        with pytest.raises(errors.UntrustedError):
            c["k1"]
        c.update(dict.fromkeys(CONTENTS, 7))
        c.flush()
        assert not any(c.entry(key).name.startswith(".pack") for key in c)


# -- refusals --------------------------------------------------------------------------


STOCK = {**CONTENTS, **{f"e{i}": i for i in range(40)}}
NEWER = dict.fromkeys(CONTENTS, "newer")
other: Any = None


@pytest.fixture(scope="module")
def stock(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One batch in one pack; and another chest to take over from."""
    global other
    folder = tmp_path_factory.mktemp("stock")
    with Chest(STOCK, folder / "c"):
        pass
    with Chest(NEWER) as other:
        other.flush()
        assert other["k0"] == "newer"  # its pack is open from now on
        yield folder / "c"


def half_dead(c: Chest) -> None:
    """So that the compaction rewrites the pack."""
    c.update(NEWER)
    c.flush()
    c.compact()


def read(c: Chest) -> None:
    c._spill.packs.forget(c.entry("k5").name)
    assert c["k5"] == CONTENTS["k5"]


OPERATIONS: dict[str, tuple[Callable[[Chest], object], dict[str, Any]]] = {
    "clear": (Chest.clear, {}),
    "compact": (half_dead, {**STOCK, **NEWER}),
    "read": (read, STOCK),
    "unpack": (lambda c: c.unpack("k5"), STOCK),
    "update": (lambda c: c.update(other), {**STOCK, **NEWER}),
}


def fault_at(
    name: str, stock: Path, path: Path, number: int, first: int, forever: bool
) -> bool:
    """One operation with one fault; False when the fault came too late to matter."""
    operation, new = OPERATIONS[name]
    shutil.rmtree(path, ignore_errors=True)
    shutil.copytree(stock, path)
    act = faults.failing(number, first, forever=forever)
    failed, c = False, Chest(path)
    with faults.acting(act, faults.WRITES | faults.READS) as system:
        try:
            operation(c)
        except errors.StoreError as error:
            assert error.errno == number
            failed = True
    for key in {*c, *STOCK}:
        states = [new.get(key)] + [STOCK.get(key)] * failed
        assert c.get(key) in states, key
    got = dict(c)
    c["after"] = 1
    c.flush()
    c.compact()
    c.close()
    with Chest(path) as c:
        assert dict(c) == {**got, "after": 1}
        assert c.verify() == []
        held = {c.entry(key).name for key in c}
    assert scenes.files_in(path) == {".keys", *held}
    return system.count >= first


@pytest.mark.parametrize("forever", [False, True], ids=["once", "for-ever"])
@pytest.mark.parametrize("code", ["ENOSPC", "EMFILE"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_refusal_while_packs_are_used_loses_nothing(
    name: str, code: str, forever: bool, stock: Path, tmp_path: Path
) -> None:
    path, first = tmp_path / "c", 1
    while fault_at(name, stock, path, getattr(errno, code), first, forever):
        first += 1
    assert first > 1


# -- the dead --------------------------------------------------------------------------


def test_a_killed_writers_pack_is_swept_when_nothing_in_it_lives(
    chest_dir: Path, tmp_path: Path
) -> None:
    def die(*, published: bool) -> None:
        c = Chest(chest_dir)
        c.update({f"dead{i}": i for i in range(64)})
        if published:
            c.flush()
        else:
            act = faults.dying(1, torn=False)
            with faults.acting(act, frozenset({"pwrite"})):  # of the record
                c.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    with Chest(chest_dir) as c:
        log = tmp_path / "error"
        assert faults.in_child(lambda: die(published=True), log) == -signal.SIGKILL
        assert faults.in_child(lambda: die(published=False), log) == faults.DIED
        assert len(list(chest_dir.glob(".pack-*"))) == 2
        assert len(c) == 64
        c.compact()
        assert len(list(chest_dir.glob(".pack-*"))) == 1
        assert {c[key] for key in c} == set(range(64))
        c.clear()
        assert list(chest_dir.glob(".pack-*")) == []
        c.compact()
    assert scenes.files_in(chest_dir) == {".keys"}


def test_what_is_never_published_of_a_pack_is_nobodys(chest_dir: Path) -> None:
    """The lock is not to be had after the batch was written."""
    c, other = Chest(chest_dir, timeout=0), Chest(chest_dir)
    c.update(CONTENTS)
    with other._spill.exclusive(), pytest.raises(errors.LockTimeout):
        c.flush()
    assert dict(other) == {}
    assert dict(c) == CONTENTS
    c.flush()
    assert dict(other) == CONTENTS
    assert c.verify() == other.verify() == []
    c.close()
    other.close()


def test_a_pack_reaches_the_disk_before_its_record(chest_dir: Path) -> None:
    """durability="power": file, its name, record, log; only then it is acknowledged."""
    calls: list[tuple[str, str]] = []

    def act(count: int, name: str, real: Any, args: Any, kwargs: Any) -> Any:
        if name in ("writev", "pwrite", "fsync"):
            target = os.path.basename(os.readlink(f"/proc/self/fd/{args[0]}"))
            calls.append((name, target.partition("-")[0]))
        return real(*args, **kwargs)

    with Chest(chest_dir, durability="power") as c:
        for folder in ([("fsync", chest_dir.name)], []):  # only a new pack has a name
            calls.clear()
            c.update({f"{len(c)}-{i}": i for i in range(64)})
            with faults.acting(act, faults.WRITES):
                c.sync()
            assert calls == [
                ("writev", ".pack"),
                ("fsync", ".pack"),
                *folder,
                ("pwrite", ".keys"),
                ("fsync", ".keys"),
            ]
