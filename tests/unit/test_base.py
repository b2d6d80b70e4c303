"""What a checkpoint says of many keys at once, and what became of them since."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from chest import Chest, base, rewrite
from chest.base import INDEX, Base
from chest.checkpoint import Checkpoint

SMALL: dict[Any, Any] = {f"k{i}": [i] for i in range(300)}
OTHER: dict[Any, Any] = {1: "int", ("a", 2): "tuple", b"b": "bytes", "é\ud800": "lone"}
LARGE: dict[Any, Any] = {f"large{i}": "x" * 100_000 for i in range(9)}


@pytest.fixture(autouse=True)
def early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Checkpoints, and look-ups of many keys together, at a few keys."""
    monkeypatch.setattr(rewrite, "CHECKPOINT_FROM", 20)
    monkeypatch.setattr(base, "MANY", 2)


@pytest.fixture
def seen(chest_dir: Path) -> Chest:
    """A chest whose pairs were all seen by a checkpoint: packed, and in files."""
    with Chest(SMALL | OTHER, chest_dir) as c:
        c.sync()
        c.update(LARGE)
    return Chest(chest_dir)


def base_of(c: Chest) -> Base:
    found = c._manifest.index.base
    assert found is not None
    return found


@pytest.mark.parametrize("others", [{}, OTHER], ids=["only str", "keys of all kinds"])
def test_many_keys_are_found_as_each_of_them_is(
    others: dict[Any, Any], seen: Chest
) -> None:
    asked = [*SMALL, *LARGE, *others, "none", "k", "", "k2999"]
    random.Random(0).shuffle(asked)
    with seen as c:
        one = base_of(c)
        found = one.find_many(asked)
        assert found == {key: each for key in asked if (each := one.find(key))}
        assert found.keys() == {*SMALL, *LARGE, *others}


def test_a_key_that_shares_its_hash_with_others_is_found(
    chest_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "_digest", lambda text: len(text))
    with Chest(SMALL, chest_dir) as c:
        c.sync()
    with Chest(chest_dir) as c:
        found = base_of(c).find_many([*SMALL, "x9", "x10"])
        assert found == {key: base_of(c).find(key) for key in SMALL}
        assert all(key in c for key in SMALL)
        assert not any(key in c for key in ("x9", "x10"))


def test_whoever_asks_for_one_key_gets_the_same_answer(seen: Chest) -> None:
    asked = [*SMALL, *LARGE, *OTHER, "none", "", "é\ud801", ("a", 3), 2]

    def compare(c: Chest) -> None:
        index, there = c._manifest.index, {*c}
        for key in asked:
            entry = index.get(key)
            assert index.find(key) == entry == index.get(key)
            assert index.has(key) == (entry is not None) == (key in there)

    with seen as c:
        compare(c)
        # Now there are newer entries, and None, which go before the rows.
        c.delete_many(["k1", "large1", 1, "é\ud800"])
        c.set_many({"k2": "anew", "none": "new", 2: "new"})
        compare(c)


def test_many_keys_are_deleted_for_everyone_at_once(
    seen: Chest, chest_dir: Path
) -> None:
    gone = [*SMALL][::2] + [*LARGE][:4] + [*OTHER][:2] + ["none", "new1", "unpublished"]
    with seen as c, Chest(chest_dir) as other:
        c["k1"], c["new1"], c["new2"] = "replaced", "new", "new"
        c.sync()
        del c["k2"]
        c["k2"] = "anew"
        c["unpublished"] = 1
        expected = {**c}
        del expected["k0"]
        for key in expected.keys() & {*gone}:
            del expected[key]
        assert dict(other) != expected

        assert c.delete_many(gone) == 150 + 4 + 2 + 2
        with Chest(chest_dir, readonly=True) as late:
            mine, theirs = (
                {name: (each.count, each.dead) for name, each in packs.items()}
                for packs in (c._manifest.index.packs, late._manifest.index.packs)
            )
        assert mine == theirs

        for each in (c, other):
            assert list(each.items()) == list(expected.items())
            assert len(each) == len(expected)
            assert not any(key in each for key in gone)
            assert each.get_many(gone) == {}
        c["k0"] = "born anew"
        c.sync()
        assert list(other)[-1] == "k0"
        assert other.verify() == []
    with Chest(chest_dir) as c:
        assert dict(c) == expected | {"k0": "born anew"}


def test_keys_that_were_overwritten_by_the_pack_keep_their_places(
    seen: Chest, chest_dir: Path
) -> None:
    with seen as c, Chest(chest_dir) as other:
        order = [*c]
        del c["k5"]
        c.set_many(dict.fromkeys(reversed([*SMALL, *LARGE]), "anew"))
        order = [key for key in order if key != "k5"] + ["k5"]
        for each in (c, other):
            assert [*each] == order
            assert len(each) == len(order)
            assert each["k7"] == "anew"
        assert not [*chest_dir.glob("large*")]
        births = {key: c.entry(key).birth for key in c}
        assert sorted(births, key=births.__getitem__) == order


def test_the_last_keys_are_popped_one_by_one_whoever_removed_others(
    seen: Chest, chest_dir: Path
) -> None:
    with seen as c, Chest(chest_dir) as other:
        order = [*c]
        c.delete_many(order[-100:-1] + order[:50])
        other["k60"] = "keeps its place"
        other.sync()
        order = order[50:-100] + order[-1:]
        while order:
            assert c.popitem()[0] == order.pop()
        assert [*other] == []


def test_a_key_that_is_born_anew_stands_last_and_never_shows_what_it_was(
    seen: Chest, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who reads without the lock looks at any moment."""

    class Watched(dict[Any, Any]):
        """Has a reader look after each change."""

        def pop(self, key: Any, *default: Any) -> Any:
            found = super().pop(key, *default)
            looks.append(index.get("k1"))
            return found

        def __setitem__(self, key: Any, entry: Any) -> None:
            super().__setitem__(key, entry)
            looks.append(index.get("k1"))

    looks: list[Any] = []
    with seen as c:
        for key in ("k1", "k2"):
            del c[key]
        index = c._manifest.index
        was = base_of(c).find("k1")
        index._replace(Watched(index.entries))
        c.add("k2", "anew")
        c.add("k1", "anew")
        assert was not in looks
        assert looks[-1] is not None
        assert [*c][-2:] == ["k2", "k1"]
        assert c.popitem() == ("k1", "anew")


def test_without_its_checkpoint_a_chest_deletes_the_same(
    seen: Chest, chest_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with seen as c:
        file = chest_dir / INDEX
        data = bytearray(file.read_bytes())
        for at in range(4096, len(data), 4096):
            data[at] ^= 1
        file.write_bytes(data)  # in place: the chest has it mapped

        assert c.delete_many([*SMALL][10:]) == len(SMALL) - 10
        assert dict(c) == dict([*SMALL.items()][:10]) | OTHER | LARGE


def test_a_few_keys_are_looked_up_without_numpy(
    seen: Chest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(base, "MANY", 20)
    monkeypatch.delattr(Checkpoint, "find_many")
    with seen as c:
        assert c.delete_many([*SMALL][:19]) == 19
