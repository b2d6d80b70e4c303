"""P7: many small values go into packs, and are the same values there."""

from __future__ import annotations

import os
import pickle
import tracemalloc
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from sys import getsizeof
from typing import Any

import numpy as np
import pytest

from chest import Chest, errors
from chest.batches import Batch
from chest.packing import FEWEST_PACKED, MOST_PACKS
from tests.failures import scenes

MANY = {f"k{i}": [i, "small"] for i in range(FEWEST_PACKED)}


def packs_in(folder: Path) -> list[str]:
    return sorted(name for name in os.listdir(folder) if name.startswith(".pack-"))


def etags(c: Chest) -> dict[Any, int]:
    return {key: c.entry(key).generation for key in c}


# -- what is packed --------------------------------------------------------------------


@pytest.mark.parametrize("write", [Chest.flush, Chest.sync, Chest.close])
def test_many_small_values_that_are_written_at_once_take_one_file(
    chest_dir: Path, write: Any
) -> None:
    c = Chest(MANY, chest_dir)
    write(c)
    assert len(packs_in(chest_dir)) == 1
    assert len(os.listdir(chest_dir)) == 2
    c.close()
    with Chest(chest_dir) as c:
        assert dict(c) == MANY
        assert list(c) == list(MANY)
        assert c.verify() == []


def test_births_are_looked_up_once_for_all_values_of_a_pack(
    chest_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To find those without one, all that were published before are passed."""
    looks: list[Any] = []
    born = Chest._born
    monkeypatch.setattr(Chest, "_born", lambda c: (looks.append(c), born(c))[1])
    with Chest(chest_dir) as c:
        c.set_many((f"k{i}", i) for i in range(1000))
        assert len(looks) < 10


def test_a_few_small_values_get_a_file_each(chest_dir: Path) -> None:
    few = dict(list(MANY.items())[:-1])
    with Chest(few, chest_dir) as c:
        c.flush()
        assert sorted(os.listdir(chest_dir)) == sorted([".keys", *few])


def test_without_packs_each_value_has_its_file(chest_dir: Path) -> None:
    with Chest(MANY, chest_dir, pack=False) as c:
        c.sync()
        c["lone"] = 1
        c.sync()
        assert sorted(os.listdir(chest_dir)) == sorted([".keys", "lone", *MANY])
        for key, value in MANY.items():
            with open(c.key_to_filename(key), "rb") as file:
                assert pickle.load(file) == value


def test_without_packs_those_of_others_are_read(chest_dir: Path) -> None:
    with Chest(MANY, chest_dir):
        pass
    with Chest(chest_dir, pack=False) as c:
        assert dict(c) == MANY
        c["k1"] = "newer"
        c.update({f"more{i}": i for i in range(100)})
    assert len(packs_in(chest_dir)) == 1
    with Chest(chest_dir) as c:
        assert c["k1"] == "newer"
        assert len(c) == 100 + len(MANY)


def test_signed_and_data_chests_have_no_packs(tmp_path: Path) -> None:
    for number, options in enumerate(
        ({"sign_key": b"k" * 32}, {"format": "data", "trust": "data"})
    ):
        path = tmp_path / str(number)
        with Chest(MANY, path, **options) as c:
            c.flush()
        assert packs_in(path) == []
        with Chest(path, **options) as c:
            assert dict(c) == MANY


def test_what_is_large_or_has_options_of_its_own_is_not_packed(chest_dir: Path) -> None:
    own = {"large": b"x" * 65536, "array": np.arange(9000), "code": lambda: 5}
    with Chest(MANY, chest_dir) as c:
        c.update(own)
        c.set("data", [1], format="data")
        c.set("copied", [2], mapped="copy")
        c.flush()
        names = {key: c.entry(key).name for key in c}
        assert {names.pop(key) for key in MANY} == set(packs_in(chest_dir))
        assert names == {
            key: key for key in ("large", "array", "code", "data", "copied")
        }
        assert c["code"]() == 5
        assert c["data"] == [1]


def test_what_cannot_become_small_is_not_pickled_to_see_it(
    chest_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = {f"l{i}": letter * 70_000 for i, letter in enumerate(["a", b"b"])}
    wide = {f"w{i}": "a" * 40_000 + "\u4e00" for i in range(FEWEST_PACKED)}
    pickled: list[Any] = []
    monkeypatch.setattr(
        "chest.packing._dumps", lambda v: (pickled.append(v), pickle.dumps(v, 5))[1]
    )
    with Chest(large | wide, chest_dir) as c:
        c.flush()
        assert sorted(os.listdir(chest_dir))[2:] == [*large]
        assert len(packs_in(chest_dir)) == 1
        assert all(getsizeof(value) > 70_000 for value in wide.values())
        assert pickled == [*wide.values()]
    with Chest(chest_dir) as c:
        assert dict(c) == large | wide


@pytest.mark.parametrize("kind", [bytes, list])
@pytest.mark.parametrize(("count", "size"), [(6_000, 8_000), (60, 1_000_000)])
def test_a_flush_holds_little_more_than_the_values(
    chest_dir: Path, kind: type, count: int, size: int
) -> None:
    """Their pickles are made a batch at a time, and those of large ones not at all."""
    text = b"x" * (size - 100)
    with Chest(chest_dir, available_memory="1 GB") as c:
        for number in range(count):
            value = b"%08d" % number + text
            c[f"k{number}"] = value if kind is bytes else [value]
        tracemalloc.start()
        try:
            c.sync()
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert most < 40 << 20
        assert c[f"k{count - 1}"] is not None


def test_what_is_read_ahead_from_packs_is_bounded(
    chest_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    many = {f"k{number}": bytes([number]) * 1000 for number in range(200)}
    with Chest(many, chest_dir):
        pass
    monkeypatch.setattr("chest.bulk.PACKED_AHEAD_NBYTES", 10_000)
    with Chest(chest_dir) as c:
        window = list(many)
        assert 10 <= len(c._read_ahead(window)) <= 12
        assert dict(c.items()) == many


def test_a_key_that_is_a_pickled_object_is_found_in_a_pack(chest_dir: Path) -> None:
    keys = [
        *(Fraction(i, 7) for i in range(40)),
        *((i, frozenset([f"{i}"])) for i in range(40)),
        None,
        b"\0",
        "ä\n\u2028",
        2.5,
        np.str_("s"),
    ]
    with Chest({key: [i] for i, key in enumerate(keys)}, chest_dir) as c:
        c.flush()
        assert len(packs_in(chest_dir)) == 1
    with Chest(chest_dir) as c:
        assert list(c) == keys
        assert all(c[key] == [i] for i, key in enumerate(keys))
        c[1] = "the same key as Fraction(7, 7)"
        assert len(c) == len(keys)
        c.flush()
        c.compact()
        assert list(c) == keys
    with Chest(chest_dir) as c:
        assert c[Fraction(14, 14)] == "the same key as Fraction(7, 7)"
        assert list(c) == keys


def test_what_leaves_a_full_memory_goes_by_the_pack(chest_dir: Path) -> None:
    with Chest(chest_dir, available_memory=200_000) as c:
        for i in range(5000):
            c[i] = [i]
            assert c.memory_usage <= 200_000
        c.flush()
        assert len(os.listdir(chest_dir)) < 60
        assert [c[i] for i in range(5000)] == [[i] for i in range(5000)]


def test_two_values_of_one_object_are_two_values(chest_dir: Path) -> None:
    shared = ["shared"]
    with Chest(chest_dir) as c:
        c.update(dict.fromkeys(range(70), shared))
        c.flush()
        c[3].append("changed")
        c.flush()
        assert c[3] == ["shared", "changed"]
        assert c[4] == ["shared"]


def test_a_packed_value_that_was_changed_in_place_is_written_again(
    chest_dir: Path,
) -> None:
    with Chest(MANY, chest_dir) as c:
        c.flush()
        c["k5"].append("changed")
        before = etags(c)
        c.flush()
        assert c["k5"] == [5, "small", "changed"]
        after = etags(c)
        assert {key for key in MANY if before[key] != after[key]} == {"k5"}


def test_a_change_in_place_survives_that_another_moves_the_pack(
    chest_dir: Path,
) -> None:
    with Chest(MANY, chest_dir):
        pass
    (old,) = packs_in(chest_dir)
    with Chest(chest_dir) as c, Chest(chest_dir) as other:
        c["k60"].append("before")
        assert c["k62"] == [62, "small"]
        before = etags(c)["k62"]
        for i in range(40):
            del other[f"k{i}"]
        other.compact()
        assert old not in packs_in(chest_dir)
        assert len(c) == len(MANY) - 40  # so it has seen the compaction
        c.flush()
        assert other["k60"] == [60, "small", "before"]
        assert etags(other)["k62"] == before  # it was moved, not changed


# -- files and facts -------------------------------------------------------------------


def test_key_to_filename_names_the_pack_and_unpack_gives_a_file(
    chest_dir: Path,
) -> None:
    with Chest(MANY, chest_dir) as c:
        assert c.key_to_filename("k1") == str(chest_dir / "k1")
        c.flush()
        (pack,) = packs_in(chest_dir)
        assert c.key_to_filename("k1") == str(chest_dir / pack)
        before = etags(c)
        assert c["k2"] == [2, "small"]  # one that is in memory, one that is not
        for key in ("k1", "k2"):
            assert c.unpack(key) == str(chest_dir / key)
            with open(chest_dir / key, "rb") as file:
                assert pickle.load(file) == MANY[key]
            assert c.unpack(key) == str(chest_dir / key)
        assert etags(c) == before
        c["k3"] = "dirty"
        assert c.unpack("k3") == str(chest_dir / "k3")
        with pytest.raises(KeyError):
            c.unpack("none")
        assert c.verify() == []
    with Chest(chest_dir) as c:
        assert dict(c) == {**MANY, "k3": "dirty"}
        assert list(c) == list(MANY)


def test_a_readonly_chest_reads_packs_and_removes_none(chest_dir: Path) -> None:
    with Chest(MANY, chest_dir):
        pass
    (chest_dir / ".pack-orphan").write_bytes(b"x")
    with Chest(chest_dir, readonly=True) as c:
        assert dict(c) == MANY
        assert c.verify() == []
        for change in (c.compact, c.clear, lambda: c.unpack("k1")):
            with pytest.raises(errors.ReadOnlyError):
                change()
        c.flush()
    assert len(packs_in(chest_dir)) == 2


def test_drop_removes_packs_and_leaves_foreign_files(chest_dir: Path) -> None:
    foreign = chest_dir / "mine.txt"
    foreign.write_text("not chest's")
    c = Chest(MANY, chest_dir)
    c.flush()
    (chest_dir / ".pack-orphan").write_bytes(b"x")
    c.drop()
    assert os.listdir(chest_dir) == ["mine.txt"]
    with Chest(chest_dir) as c:
        assert dict(c) == {}


def test_drop_removes_the_checkpoint_and_the_folder(
    chest_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("chest.rewrite.CHECKPOINT_FROM", 64)
    for closed in (False, True):
        c = Chest(MANY, chest_dir)
        c.flush()
        assert (chest_dir / ".index").exists()
        if closed:
            c.close()
        c.drop()
        assert not chest_dir.exists()


def test_clear_leaves_no_pack_and_a_chest_that_opens(chest_dir: Path) -> None:
    reader = Chest(chest_dir)
    with Chest(MANY, chest_dir) as c:
        c.flush()
        assert reader["k1"] == [1, "small"]
        c.clear()
        assert packs_in(chest_dir) == []
        assert dict(reader) == {}
        c.update(MANY)
        c.flush()
        assert dict(reader) == MANY
        c.clear()
        c["a"] = 1
    reader.close()
    with Chest(chest_dir) as c:
        assert dict(c) == {"a": 1}
    assert sorted(os.listdir(chest_dir)) == [".keys", "a"]


# -- moves -----------------------------------------------------------------------------


def test_values_in_the_log_get_files_at_flush_and_keep_their_etags(
    chest_dir: Path,
) -> None:
    with Chest(chest_dir) as c:
        for i in range(5):
            c[i] = [i]
            c.sync()
        assert os.listdir(chest_dir) == [".keys"]
        assert c.key_to_filename(3) == str(chest_dir / "int_3")
        before = etags(c)
        assert len(set(before.values())) == 5
        c.flush()
        assert len(os.listdir(chest_dir)) == 6
        assert etags(c) == before
    with Chest(chest_dir) as c:
        assert etags(c) == before
        assert dict(c) == {i: [i] for i in range(5)}


def test_many_values_in_the_log_get_a_pack_at_flush_and_keep_their_etags(
    chest_dir: Path,
) -> None:
    with Chest(chest_dir) as c:
        for key, value in MANY.items():
            c[key] = value
            c.sync()
        before = etags(c)
        assert len(set(before.values())) == len(MANY)
        reader = Chest(chest_dir)
        c.flush()
        assert len(packs_in(chest_dir)) == 1
        assert etags(c) == etags(reader) == before
        assert list(reader.items()) == list(MANY.items())
        reader.close()
    with Chest(chest_dir) as c:
        assert etags(c) == before
        c.compact()
        assert etags(c) == before
        assert list(c.items()) == list(MANY.items())


def test_a_value_of_the_log_that_cannot_be_read_here_hinders_no_flush(
    chest_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its class is known to the process that wrote it."""
    with Chest(chest_dir) as c:
        c["theirs"] = Known()
        c["other"] = 5
        c.sync()
        with monkeypatch.context() as patch:
            patch.delattr(f"{__name__}.Known")
            with Chest(chest_dir) as mine:
                with pytest.raises(errors.DecodingError):
                    mine["theirs"]
                mine["mine"] = 1
                mine.flush()
                assert mine["other"] == 5
        assert type(c["theirs"]) is Known
        c.flush()
    with Chest(chest_dir) as c:
        assert type(c["theirs"]) is Known
        assert dict(c) == {"theirs": c["theirs"], "other": 5, "mine": 1}


def test_a_value_of_a_pack_that_cannot_be_read_here_is_no_missing_key(
    chest_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Chest(MANY | {"theirs": Known()}, chest_dir) as c:
        c.flush()
        assert c.entry("theirs").name in packs_in(chest_dir)
    missed: list[str] = []
    with Chest(chest_dir, on_miss=missed.append) as c:
        with monkeypatch.context() as patch:
            patch.delattr(f"{__name__}.Known")
            for ask in (c.__getitem__, c.get):
                with pytest.raises(errors.DecodingError) as caught:
                    ask("theirs")
                assert caught.value.key == "theirs"
            assert c["k1"] == MANY["k1"]
            assert c.stats().loads == 1
        assert type(c["theirs"]) is Known
        assert missed == ["theirs", "theirs", "k1", "theirs"]
    with (
        Chest(chest_dir, trust="data") as c,
        pytest.raises(errors.UntrustedError, match="trust='data'"),
    ):
        c["theirs"]


class Known:
    """A class that a process may not have."""


def test_a_pack_is_rewritten_once_more_than_half_of_it_is_dead(
    chest_dir: Path,
) -> None:
    with Chest(MANY, chest_dir) as c:
        c.flush()
        (first,) = packs_in(chest_dir)
        half = len(MANY) // 2
        for i in range(half):
            del c[f"k{i}"]
        before = etags(c)
        reader = Chest(chest_dir)
        assert reader[f"k{half}"] == [half, "small"]  # the old pack is open there
        c.compact()
        assert packs_in(chest_dir) == [first]
        del c[f"k{half}"]
        del before[f"k{half}"]
        size = (chest_dir / first).stat().st_size
        c.compact()
        (second,) = packs_in(chest_dir)
        assert second != first
        assert (chest_dir / second).stat().st_size < size
        left = dict(list(MANY.items())[half + 1 :])
        assert list(reader.items()) == list(c.items()) == list(left.items())
        assert etags(c) == etags(reader) == before
        reader.close()
    with Chest(chest_dir) as c:
        assert list(c.items()) == list(left.items())
        assert etags(c) == before


def test_flush_rewrites_a_pack_whose_values_were_overwritten(chest_dir: Path) -> None:
    with Chest(MANY, chest_dir) as c:
        for turn in range(20):
            c.update(dict.fromkeys(MANY, turn))
            c.flush()
        assert len(packs_in(chest_dir)) == 1
        assert c.stats().stored_nbytes < 20 * len(MANY)
        assert list(c.items()) == [(key, 19) for key in MANY]


def test_many_packs_are_merged(chest_dir: Path) -> None:
    expected: dict[Any, int] = {}
    for number in range(MOST_PACKS + 1):
        with Chest(chest_dir) as c:
            more = {(number, i): i for i in range(FEWEST_PACKED)}
            c.update(more)
            expected.update(more)
    assert len(packs_in(chest_dir)) == 1
    with Chest(chest_dir) as c:
        assert list(c.items()) == list(expected.items())
        assert c.verify() == []
        assert len({c.entry((number, 0)).generation for number in range(5)}) == 5


def test_compaction_brings_back_nothing_and_keeps_the_order(chest_dir: Path) -> None:
    model: dict[Any, Any] = {}
    with Chest(chest_dir) as c:
        for number in range(6):
            more = {(number, i): [i] for i in range(70)}
            model.update(more)
            c.update(more)
            model[f"file{number}"] = c[f"file{number}"] = np.arange(2000) + number
            c.flush()
            for i in range(0, 70, 2 + number % 3):
                del c[number, i], model[number, i]
            for i in range(1, 70, 2):
                if (number, i) in model:
                    c[number, i] = model[number, i] = "newer"
            if number % 2:
                c.compact()
        c.flush()
        c.compact()
        assert list(c) == list(model)
        before = etags(c)
    with Chest(chest_dir) as c:
        assert list(c) == list(model)
        assert scenes.equal(c, model)
        assert etags(c) == before
        c.compact()
        assert list(c) == list(model)
        assert etags(c) == before
        assert scenes.files_in(chest_dir) == {
            ".keys",
            *(c.entry(key).name for key in c),
        }


# -- between chests --------------------------------------------------------------------


def test_update_takes_over_packed_values(chest_dir: Path, tmp_path: Path) -> None:
    with Chest(MANY, tmp_path / "other") as other, Chest(chest_dir) as c:
        c.update({"first": 1, "k7": "overwritten"})
        other.flush()
        c.update(other)
        assert list(c) == ["first", "k7", *(key for key in MANY if key != "k7")]
        assert dict(c) == {**MANY, "first": 1}
        assert len(packs_in(chest_dir)) == 1
        c.update({"k1": "mine"})
        c.update(other, overwrite=False)
        assert c["k1"] == "mine"
        other.drop()
        c.flush()
        assert dict(c) == {**MANY, "first": 1, "k1": "mine"}
        assert c.verify() == []


def test_a_few_packed_values_taken_over_get_files(
    chest_dir: Path, tmp_path: Path
) -> None:
    with Chest(MANY, tmp_path / "other") as other, Chest(chest_dir) as c:
        other.flush()
        c.update({key: 0 for key in MANY if key not in ("k3", "k9")})
        c.update(other, overwrite=False)
        assert {c.entry(key).name for key in ("k3", "k9")} == {"k3", "k9"}
        assert c["k9"] == [9, "small"]


def test_a_snapshot_has_packs_of_its_own(chest_dir: Path, tmp_path: Path) -> None:
    with Chest(MANY, chest_dir) as c:
        new = c.snapshot(tmp_path / "copy")
        c.clear()
        assert list(new.items()) == list(MANY.items())
        new.close()
    with Chest(tmp_path / "copy") as new:
        assert dict(new) == MANY


def test_a_budget_for_the_disk_deletes_the_oldest_packed_values(
    chest_dir: Path,
) -> None:
    with Chest(chest_dir, available_disk=100_000) as c:
        for number in range(30):
            c.update({(number, i): b"x" * 100 for i in range(FEWEST_PACKED)})
            c.flush()
        assert (29, 0) in c
        assert (0, 0) not in c
        live = sum(c.entry(key).stored_nbytes for key in c)
        assert live <= 100_000
        stored = sum((chest_dir / name).stat().st_size for name in packs_in(chest_dir))
        assert stored < 5 * 100_000
        assert c.verify() == []


def test_trim_deletes_packed_values(chest_dir: Path) -> None:
    with Chest(MANY, chest_dir) as c:
        c.flush()
        assert c.trim(bytes=0) == len(MANY)
        assert dict(c) == {}
        c.compact()
        assert packs_in(chest_dir) == []


ANEW = "a value"


def _overwritten(c: Chest) -> None:
    c["k3"] = "newer"


def _deleted(c: Chest) -> None:
    del c["k3"]


def _born_anew(c: Chest) -> None:
    del c["k3"]
    c["k3"] = ANEW  # the very same object, at another place


def _looked_at(c: Chest) -> None:
    assert c.entry("k3").dirty


def _published_elsewhere(c: Chest) -> None:
    with Chest(c.path) as other:
        other["k3"] = "theirs"


def _others_came_first(c: Chest) -> None:
    with Chest(c.path) as other:
        other["z"] = "theirs"


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize(
    ("meanwhile", "k3", "order"),
    [
        (_overwritten, "newer", "k0 k1 k2 k3 … k99"),
        (_deleted, None, "k0 k1 k2 k4 … k99"),
        (_born_anew, ANEW, "k0 k1 k2 k4 … k99 k3"),
        (_looked_at, ANEW, "k0 k1 k2 k3 … k99"),
        (_published_elsewhere, ANEW, "k3 k0 k1 k2 … k99"),
        (_others_came_first, ANEW, "z k0 k1 k2 k3 … k99"),
    ],
)
def test_what_others_do_while_small_values_are_written_is_not_lost(
    chest_dir: Path,
    monkeypatch: pytest.MonkeyPatch,
    meanwhile: Callable[[Chest], None],
    k3: str | None,
    order: str,
    *,
    keep: bool,
) -> None:
    with Chest(chest_dir) as c:
        for number in range(100):
            c[f"k{number}"] = ANEW
        write = c._spill.pack

        def once(*arguments: Any) -> Batch:
            monkeypatch.undo()
            batch = write(*arguments)
            meanwhile(c)
            return batch

        monkeypatch.setattr(c._spill, "pack", once)
        c.sync() if keep else c.flush()
        assert c.get("k3") == k3
        assert c.stats().dirty == 0
        named = [*c]
    begin, end = order.split(" … ")
    assert named[: len(begin.split())] == begin.split()
    assert named[-len(end.split()) :] == end.split()
    with Chest(chest_dir, readonly=True) as again:
        assert [*again] == named
        assert again.get("k3") == k3
        assert len(again) == len(set(named))
    if not keep:
        assert c.memory_usage == 0


def test_clean_values_leave_memory_without_a_look_at_the_manifest(
    chest_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Chest(chest_dir) as c:
        c.update((n, "x" * 100) for n in range(1000))
        c.flush()
        assert all(c[n] == "x" * 100 for n in range(1000))
        monkeypatch.setattr(c._manifest.index, "get", None)
        c.available_memory = 0
        monkeypatch.undo()
        assert c.memory_usage == 0
