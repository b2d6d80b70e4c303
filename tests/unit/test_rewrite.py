"""A log that is written anew while others go on, and its checkpoint."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chest import Chest, Ordered, errors, packing, rewrite
from chest.base import INDEX
from chest.packs import Packs
from chest.rewrite import Rewrite

MANY = {f"k{i}": [i] for i in range(100)}


@pytest.fixture(autouse=True)
def early_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rewrite, "CHECKPOINT_FROM", 20)


@pytest.fixture
def meanwhile(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], Any]], None]:
    """Have something happen between the writing of the new files and their taking up."""

    def arrange(act: Callable[[], Any]) -> None:
        acts, write = [act], Rewrite.write

        def writing(self: Rewrite, *, log: bool) -> None:
            write(self, log=log)
            if acts:
                acts.pop()()

        monkeypatch.setattr(Rewrite, "write", writing)

    return arrange


def facts(c: Chest) -> dict[Any, tuple[int, int]]:
    return {key: (c.entry(key).birth, c.entry(key).generation) for key in c}


def check_all_agree(c: Chest, expected: dict[Any, Any], *others: Chest) -> None:
    """Contents, order, births and generations; also of whoever opens it now."""
    known = facts(c)
    with Chest(c.path, readonly=True) as fresh:
        for each in (c, *others, fresh):
            assert list(each.items()) == list(expected.items())
            assert facts(each) == known
            assert each.verify() == []


@pytest.mark.parametrize("prepared", ["packed", "inline", "files"])
def test_what_others_publish_during_a_compaction_is_in_the_new_log(
    prepared: str, chest_dir: Path, meanwhile: Callable[[Callable[[], Any]], None]
) -> None:
    expected: dict[Any, Any] = dict(MANY)
    with Chest(MANY, chest_dir, pack=prepared != "files") as c, Chest(chest_dir) as o:
        c.sync()
        if prepared == "inline":
            c.setdefault("k0", 0)

        def others_go_on() -> None:
            del o["k3"]
            o["k4"] = "anew"
            o["k200"] = "new"
            o.sync()
            o.update(dict.fromkeys(list(MANY)[50:], "a pack of its own"))
            o.sync()
            o.pop("k7")
            o["k7"] = "born again"
            o.sync()

        del expected["k3"], expected["k7"]
        expected |= {"k4": "anew", "k200": "new"}
        expected |= dict.fromkeys(list(MANY)[50:], "a pack of its own")
        expected["k7"] = "born again"
        meanwhile(others_go_on)
        c.compact()
        assert b'"generation"' in (chest_dir / ".keys").read_bytes().split(b"\n")[0]
        check_all_agree(c, expected, o)
        c.compact()
        check_all_agree(c, expected, o)


def packs_of(c: Chest) -> set[str]:
    return {path.name for path in Path(c.path).glob(".pack-*")}


def test_what_others_publish_while_packs_are_emptied_is_in_the_new_log(
    chest_dir: Path, meanwhile: Callable[[Callable[[], Any]], None]
) -> None:
    expected: dict[Any, Any] = dict(MANY)
    with Chest(MANY | {"gone": 0}, chest_dir) as c, Chest(chest_dir) as other:
        c.sync()
        c.update({f"dead{i}": i for i in range(200)})
        c.sync()
        c.delete_many(["gone", *(f"dead{i}" for i in range(200))])
        before = packs_of(c)
        births = facts(c)

        def others_go_on() -> None:
            other.delete_many(["k3", "k60"])
            other["k4"] = "replaced"
            other.sync()
            other.pop("k7")
            other["k7"] = "born again"
            other.touch("k8", ttl=10_000)
            Ordered(other).move_to_end("k9", last=False)
            other.unpack("k10")
            other.update({key: "a pack" for key in [*MANY][20:90] if key != "k60"})
            other.sync()

        for key in ("k3", "k60", "k7", "k9"):
            del expected[key]
        repacked = expected.keys() & {*[*MANY][20:90]}
        expected |= {"k4": "replaced"} | dict.fromkeys(repacked, "a pack")
        expected = {"k9": MANY["k9"]} | expected | {"k7": "born again"}
        meanwhile(others_go_on)
        c.compact()
        assert not packs_of(c) & before
        check_all_agree(c, expected, other)
        assert other.expires("k8") is not None
        assert facts(c)["k5"] == births["k5"]
        c.compact()
        check_all_agree(c, expected, other)


def test_no_lock_is_held_while_values_move(
    chest_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    held: list[tuple[str, bool]] = []
    real = {"write": Packs.write, "read_many": Packs.read_many}
    with Chest(MANY, chest_dir) as c:
        c.update({f"dead{i}": i for i in range(200)})
        c.sync()
        c.delete_many([f"dead{i}" for i in range(200)])

        for name in real:

            def note(*args: Any, name: str = name, **options: Any) -> Any:
                held.append((name, c._manifest.is_held_here()))
                return real[name](*args, **options)

            monkeypatch.setattr(Packs, name, note)
        c.compact()
    assert held == [("read_many", False), ("write", False)]


def test_values_whose_new_pack_was_swept_meanwhile_move_again(
    chest_dir: Path, meanwhile: Callable[[Callable[[], Any]], None]
) -> None:
    with Chest(MANY, chest_dir) as c, Chest(chest_dir) as other:
        c.update({f"dead{i}": i for i in range(200)})
        c.sync()
        c.delete_many([f"dead{i}" for i in range(200)])
        before = packs_of(c)

        def sweep() -> None:
            for name in packs_of(c) - before:
                (chest_dir / name).unlink()

        meanwhile(sweep)
        c.compact()
        assert not packs_of(c) & before
        check_all_agree(c, MANY, other)


def test_a_value_in_memory_knows_where_it_lies_after_its_pack_was_emptied(
    chest_dir: Path,
) -> None:
    values = {key: [*value] for key, value in MANY.items()}
    with Chest(values, chest_dir) as c, Chest(chest_dir) as other:
        c.update({f"dead{i}": i for i in range(200)})
        c.sync()
        assert other["k1"] == MANY["k1"]
        c.delete_many([f"dead{i}" for i in range(200)])
        c.compact()
        assert Path(c.key_to_filename("k1")).exists()
        c["k1"].append("changed in place")
        c.flush()
        expected = MANY | {"k1": [1, "changed in place"]}
        check_all_agree(c, expected, other)


def test_a_clear_during_a_compaction_stays(
    chest_dir: Path, meanwhile: Callable[[Callable[[], Any]], None]
) -> None:
    with Chest(MANY, chest_dir) as c, Chest(chest_dir) as other:
        c.flush()
        meanwhile(other.clear)
        c.compact()
        check_all_agree(c, {}, other)
        c.update(MANY)
        c.flush()
        check_all_agree(c, MANY, other)


def test_two_compactions_at_once_leave_what_the_later_one_saw(
    chest_dir: Path, meanwhile: Callable[[Callable[[], Any]], None]
) -> None:
    with Chest(MANY, chest_dir) as c, Chest(chest_dir) as other:
        c.flush()

        def compact_and_delete() -> None:
            other.compact()
            del other["k1"]

        meanwhile(compact_and_delete)
        c.compact()
        assert b"gone" not in (chest_dir / ".keys").read_bytes()
        check_all_agree(c, {k: v for k, v in MANY.items() if k != "k1"}, other)


def test_whoever_is_always_too_late_ends_under_the_lock(
    chest_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, compactions = Rewrite.write, []
    with Chest(MANY, chest_dir) as c, Chest(chest_dir) as other:
        c.flush()

        def writing(self: Rewrite, *, log: bool) -> None:
            write(self, log=log)
            if not c._manifest.is_held_here() and len(compactions) < 50:
                compactions.append(log)
                with monkeypatch.context() as patch:
                    patch.setattr(Rewrite, "write", write)
                    other.compact()

        monkeypatch.setattr(Rewrite, "write", writing)
        c.compact()
        assert len(compactions) == 3
        check_all_agree(c, MANY, other)
    assert list(chest_dir.glob(".tmp-*")) == []


def test_no_lock_is_held_while_a_log_or_a_checkpoint_is_written(
    chest_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write, held = Rewrite.write, []
    with Chest(MANY, chest_dir) as c:

        def writing(self: Rewrite, *, log: bool) -> None:
            held.append((log, c._manifest.is_held_here()))
            write(self, log=log)

        monkeypatch.setattr(Rewrite, "write", writing)
        c.flush()
        c.compact()
    assert held == [(False, False), (True, False)]


def test_what_was_published_while_a_checkpoint_was_written_is_read_from_the_log(
    chest_dir: Path, meanwhile: Callable[[Callable[[], Any]], None]
) -> None:
    with Chest(MANY, chest_dir) as c, Chest(chest_dir) as other:
        meanwhile(lambda: (other.pop("k5"), other.setdefault("new", 1)))
        c.flush()
        assert (chest_dir / INDEX).exists()
        expected = {key: value for key, value in MANY.items() if key != "k5"}
        check_all_agree(c, {**expected, "new": 1}, other)


def test_after_a_checkpoint_no_key_is_kept_in_memory(chest_dir: Path) -> None:
    with Chest(MANY, chest_dir) as c:
        c.flush()
        assert c._manifest.index.entries == {}
        assert c._manifest.index.base is not None
        c["k5"] = "newer"
        del c["k6"]
        c.sync()
        assert list(c._manifest.index.entries) == ["k6", "k5"]
        assert dict(c) == {k: v for k, v in MANY.items() if k != "k6"} | {"k5": "newer"}


def test_who_comes_after_very_many_deletions_need_not_read_them(
    chest_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chest.bulk.VERY_MANY", 90)
    with Chest(MANY, chest_dir) as c, Chest(chest_dir) as other:
        c.flush()
        assert c.delete_many([*MANY][10:]) == 90
        for each in (c, other, Chest(chest_dir, readonly=True)):
            assert list(each.items()) == [*MANY.items()][:10]
            if each is not other:
                assert each._manifest.index.entries == {}
        each.close()
        assert c.delete_many(["k1"]) == 1  # for one it is not worth it
        assert list(c._manifest.index.entries) == ["k1"]


def test_when_nothing_is_left_the_log_is_not_read_anew(
    chest_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A checkpoint of nothing is none."""
    monkeypatch.setattr("chest.bulk.VERY_MANY", 1)
    with Chest(MANY, chest_dir) as c:
        c.flush()
        opened = c._manifest._opening
        assert c.delete_many([*MANY]) == len(MANY)
        assert c._manifest._opening == opened
        assert not c
    with Chest(chest_dir) as c:
        assert not c


@pytest.mark.parametrize("write", ["_checkpoint", "compact"])
def test_a_batch_of_which_nothing_lives_counts_as_long_as_its_pack_is_there(
    write: str, chest_dir: Path
) -> None:
    """Else a pack with little alive in it would never be found to be half dead."""
    parts = [{f"{part}-{i}": [part, i] for i in range(100)} for part in range(4)]
    with Chest(chest_dir) as c, Chest(chest_dir) as other:
        for part in parts:
            c.set_many(part)
        (pack,) = packs_of(c)
        stored = c.stored_nbytes
        for dead, part in enumerate(parts[:2], 1):
            c.delete_many(part)
            getattr(c, write)()
            with Chest(chest_dir, readonly=True) as late:
                for each in (c, other, late):
                    assert each.stored_nbytes == stored
                    tally = each._manifest.index.packs[pack]
                    assert (tally.count, tally.dead) == (400, 100 * dead)
        c.delete_many(parts[2])
        c.flush()  # which compacts
        assert pack not in packs_of(c)
        assert c.stored_nbytes < stored / 3
        check_all_agree(c, parts[3], other)


def test_of_a_batch_of_which_nothing_lives_nothing_is_read(chest_dir: Path) -> None:
    parts = [{f"{part}-{i}": [part, i] for i in range(100)} for part in range(3)]
    with Chest(chest_dir) as c:
        for part in parts:
            c.set_many(part)
        c.delete_many(parts[1])
        c.compact()
        dead = c._manifest.index.batches[1].record
        (pack,) = packs_of(c)
    data = bytearray((chest_dir / pack).read_bytes())
    data[dead.at : dead.at + dead.size] = bytes(dead.size)
    (chest_dir / pack).write_bytes(data)
    for without in (False, True):
        if without:
            (chest_dir / INDEX).unlink()
        with Chest(chest_dir) as c:
            check_all_agree(c, parts[0] | parts[2])
            c.compact()


def test_a_flush_of_very_many_keys_does_not_keep_them_all_in_memory(
    chest_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chest.packs.BATCH_KEYS", 100)
    monkeypatch.setattr(packing, "MOST_NEWER", 300)
    write, newer = Rewrite.write, []
    many = {f"k{i}": [i] for i in range(3000)}
    with Chest(many, chest_dir) as c:

        def writing(self: Rewrite, *, log: bool) -> None:
            newer.append(len(c._manifest.index.entries))
            write(self, log=log)

        monkeypatch.setattr(Rewrite, "write", writing)
        c.sync()
        assert newer == [300, 400, 800]  # more than half of all keys each time
        check_all_agree(c, many)


def test_who_follows_the_keys_need_not_begin_anew_after_a_checkpoint(
    chest_dir: Path,
) -> None:
    with Chest(MANY, chest_dir) as c:
        ordered = Ordered(c)
        assert ordered.first() == "k0"
        c["a"] = 1
        noted = c._manifest.index.journal
        assert noted is not None
        c.flush()
        assert c._manifest.index.base is not None
        assert c._manifest.index.journal is noted
        assert ordered.last() == "a"


def test_what_expires_while_a_checkpoint_is_written_leaves_no_file(
    chest_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    meanwhile: Callable[[Callable[[], Any]], None],
) -> None:
    now = 1000.0
    monkeypatch.setattr("chest.expiry.now", lambda: now)
    with Chest(MANY, chest_dir) as c:
        c.set("soon", "x" * 5000, ttl=10)

        def pass_by() -> None:
            nonlocal now
            now = 1020.0
            assert "soon" not in c

        meanwhile(pass_by)
        c.flush()
        assert (chest_dir / INDEX).exists()
        assert (chest_dir / "soon").exists()
        check_all_agree(c, MANY)
        c.flush()
        assert not (chest_dir / "soon").exists()
        c.compact()
        check_all_agree(c, MANY)


@pytest.mark.parametrize("checkpointed", [False, True])
def test_keys_that_are_not_published_keep_their_places(
    checkpointed: bool, chest_dir: Path
) -> None:
    """What is read back of one's own log is no news, which others could have told."""
    with Chest(chest_dir) as c:
        if checkpointed:
            c.update(MANY)
            c.flush()
        c["first"] = 1
        c.setdefault("second", 2)
        c["third"] = 3
        c.compact()
        assert list(c)[-3:] == ["first", "second", "third"]
    with Chest(chest_dir) as c:
        assert list(c)[-3:] == ["first", "second", "third"]


def test_a_checkpoint_that_is_lost_moves_no_key_that_is_not_published(
    chest_dir: Path,
) -> None:
    with Chest(MANY, chest_dir) as c:
        c.flush()
        c["first"] = 1
        c.setdefault("second", 2)
        with c._publishing():
            c._manifest.index.lose_base()
        c.refresh()
        assert list(c) == [*MANY, "first", "second"]


@pytest.mark.parametrize("publish", ["each", "packs", "tombstones"])
def test_a_damaged_checkpoint_hinders_nobody_who_reads_what_others_published(
    publish: str, chest_dir: Path
) -> None:
    with Chest({f"k{i}": [i] for i in range(1000)}, chest_dir) as c:
        c.sync()
    with Chest(chest_dir) as c, Chest(chest_dir) as other:
        file = chest_dir / INDEX
        data = bytearray(file.read_bytes())
        for at in range(len(data) // 2, len(data) * 9 // 10, 256):
            data[at] ^= 1  # where keys are looked up, which opening did not touch
        file.write_bytes(data)  # in place: both have it mapped
        for number in range(4):
            if publish == "each":
                other[f"new{number}"] = number
                other.sync()
                del other[f"new{number - 1}" if number else "k7"]
            elif publish == "packs":
                other.set_many({f"{number}-{i}": i for i in range(70)})
                other.set_many({f"k{i}": number for i in range(70)})
            else:
                other.delete_many([f"k{10 * number + i}" for i in range(10)])
        assert dict(c) == dict(other)
        assert list(c) == list(other)
        assert c._manifest.index.packs.keys() == other._manifest.index.packs.keys()
        expected = dict(other)
        c["after"] = expected["after"] = 1
        c.sync()
        check_all_agree(c, expected, other)


def test_a_damaged_checkpoint_is_no_hindrance_to_a_compaction(chest_dir: Path) -> None:
    with Chest(MANY, chest_dir) as c:
        c.flush()
    path = chest_dir / INDEX
    data = bytearray(path.read_bytes())
    with Chest(chest_dir) as c:  # it has looked at the header only
        data[-300] ^= 0xFF
        for at in range(1000, len(data) - 100, 50):
            data[at] ^= 0xFF
        path.write_bytes(data)
        c.compact()
        check_all_agree(c, MANY)


def test_a_page_that_the_log_leads_to_may_be_damaged(
    chest_dir: Path, tmp_path: Path
) -> None:
    expected: dict[Any, Any] = {f"k{number}": number for number in range(2000)}
    with Chest(expected, chest_dir) as c:
        c.flush()
    writer = Chest(chest_dir, publish="each")
    for number in range(0, 2000, 20):  # looks at every page
        writer[f"k{number}"] = expected[f"k{number}"] = "new"
        if not number % 500:
            more = {f"k{number + 1}": "pack", f"m{number}": [number] * 100}
            writer.set_many(more)
            del writer[f"k{number + 2}"], expected[f"k{number + 2}"]
            expected |= more
    killed = tmp_path / "killed"
    shutil.copytree(chest_dir, killed)
    writer.close()
    good = (killed / INDEX).read_bytes()
    for page in range(0, len(good), 4096):
        bad = bytearray(good)
        bad[min(page + 100, len(bad) - 1)] ^= 1
        (killed / INDEX).write_bytes(bad)
        with Chest(killed, readonly=True) as c:
            assert [*c.items()] == [*expected.items()]


def test_a_page_that_others_lead_to_may_be_damaged(
    chest_dir: Path, tmp_path: Path
) -> None:
    expected: dict[Any, Any] = {f"k{number}": number for number in range(2000)}
    with Chest(expected, chest_dir) as c:
        c.flush()
    expected |= {f"k{number}": "new" for number in range(0, 2000, 20)}
    good = (chest_dir / INDEX).read_bytes()
    for page in range(0, len(good), 4096):
        folder = tmp_path / f"damaged at {page}"
        shutil.copytree(chest_dir, folder)
        bad = bytearray(good)
        bad[min(page + 100, len(bad) - 1)] ^= 1
        (folder / INDEX).write_bytes(bad)
        with Chest(folder) as one, Chest(folder, publish="each") as other:
            for number in range(0, 2000, 20):
                other[f"k{number}"] = "new"
            assert [*one.items()] == [*other.items()] == [*expected.items()]


def test_a_full_disk_leaves_no_checkpoint_and_a_whole_log(
    chest_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Chest(MANY, chest_dir) as c:
        c.flush()
        (chest_dir / INDEX).unlink()
        del c["k1"]

        def fail(*_: object) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr("chest.rewrite.rows", fail)
            c.compact()
        assert not (chest_dir / INDEX).exists()
        with monkeypatch.context() as patch:
            patch.setattr("chest.rewrite.Aside", fail)
            with pytest.raises(errors.StoreError, match=r"\.keys .*No space"):
                c.compact()
        check_all_agree(c, {k: v for k, v in MANY.items() if k != "k1"})


def test_compaction_says_which_values_of_a_batch_are_dead(chest_dir: Path) -> None:
    """Also of those that a checkpoint, or the log, said to be dead before."""
    expected = dict(MANY)
    with Chest(MANY, chest_dir) as c:
        c.flush()
    for number in range(0, 30, 3):
        with Chest(chest_dir) as c:
            for key in (f"k{number}", f"k{number + 30}"):
                del c[key]
                del expected[key]
            c.compact()
            check_all_agree(c, expected)
            (batch,) = c._manifest.index.batches
            assert batch.dead == len(MANY) - len(expected)
        (chest_dir / INDEX).unlink()
        with Chest(chest_dir) as c:
            check_all_agree(c, expected)
