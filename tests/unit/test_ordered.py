"""A chest as an ordered dict: by position, from both ends, moved to either."""

from __future__ import annotations

import random
import sys
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import pytest

from chest import Chest, Ordered, base, errors, expiry, index, manifest, rewrite
from chest.spill import SpillTier


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[Ordered, Ordered]]:
    """Views of two handles on one chest, which see each other as two processes do."""
    with Chest(tmp_path / "c") as one, Chest(tmp_path / "c") as other:
        yield Ordered(one), Ordered(other)


@pytest.mark.parametrize("other", ["a path", {}, None])
def test_only_a_chest_has_an_ordered_view(other: object) -> None:
    with pytest.raises(TypeError, match="needs a Chest"):
        Ordered(other)  # type: ignore[arg-type]


def positions(o: Ordered) -> list[object]:
    """The keys, asked for one by one."""
    return [o.keys()[at] for at in range(len(o))]


def check_order(order: list[object], *views: Ordered) -> None:
    """What all handles, and one that is opened now, say of the order."""
    with Chest(views[0].chest.path, readonly=True) as late:
        for each in (*views, Ordered(late)):
            assert list(each.chest) == positions(each) == order


def agrees(o: Ordered, model: OrderedDict[object, object]) -> None:
    """All ways to ask for the order give that of the model."""
    wanted = list(model)
    assert list(o) == wanted
    assert o.keys()[:] == wanted
    assert list(reversed(o)) == wanted[::-1]
    assert [o.index(key) for key in wanted] == list(range(len(wanted)))


def test_a_look_walks_neither_all_changes_nor_all_keys(two) -> None:
    class Walked(list[object]):
        def __iter__(self) -> Iterator[object]:
            raise AssertionError

    o, _ = two
    index = o.chest._manifest.index
    o.chest.set_many({number: number for number in range(1000)})
    # A dict keeps the room of what was deleted, and whoever looks at an end passes it.
    assert sys.getsizeof(o.chest._fresh) < 1000
    assert o.first() == 0
    o._places._journal = index.journal = Walked(index.journal)
    for number in range(100):
        assert o.popitem(last=False) == (number, number)
    assert len(o.keys()[:]) == 900


def test_popitem_of_a_chest_does_not_list_all_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rewrite, "CHECKPOINT_FROM", 20)
    with Chest(tmp_path / "c") as c:
        c.set_many({number: number for number in range(500)})
    with Chest(tmp_path / "c") as c:
        assert c._manifest.index.base is not None
        c.set_many({500: 500, 501: 501})
        c[502] = 502
        monkeypatch.setattr(base.Base, "keys", None)
        monkeypatch.setattr(Chest, "_ordered", None)
        assert [c.popitem()[0] for _ in range(303)] == [*range(502, 199, -1)]


class TestPositions:
    def test_keys_values_and_pairs_are_had_by_position_and_slice(self, two) -> None:
        one, _ = two
        one.update(a=1, b=2, c=3, d=4)
        one.chest.sync()
        for o in two:
            assert (o.keys()[0], o.values()[1], o.items()[-1]) == ("a", 2, ("d", 4))
            assert o.keys()[1:3] == ["b", "c"]
            assert o.values()[::-2] == [4, 2]
            assert o.items()[3:] == [("d", 4)]
            assert (o.first(), o.last(), o.index("c")) == ("a", "d", 2)
            assert list(reversed(o.items())) == [
                *zip("dcba", (4, 3, 2, 1), strict=True)
            ]
            assert list(reversed(o.values())) == [4, 3, 2, 1]
            assert list(reversed(o.keys())) == ["d", "c", "b", "a"]

    def test_what_is_not_there_is_an_index_or_key_error(self, two) -> None:
        one, _ = two
        for end in (one.first, one.last, one.popitem):
            with pytest.raises(KeyError):
                end()
        one["a"] = 1
        for at in (1, -2):
            for view in (one.keys(), one.values(), one.items()):
                with pytest.raises(IndexError):
                    view[at]
        for wrong in (one.index, one.move_to_end):
            with pytest.raises(KeyError):
                wrong("b")
        assert one.keys()[5:] == one.values()[5:] == []

    def test_what_is_not_published_has_a_position_too(self, two) -> None:
        one, other = two
        one.update(a=1, b=2, c=3)
        assert positions(one) == ["a", "b", "c"]
        one.chest.move_to_disk("b")  # which publishes it alone
        assert positions(other) == ["b"]
        assert positions(one) == ["a", "b", "c"]
        del one["a"]
        one["a"] = 1
        assert positions(one) == ["b", "c", "a"]
        del one["c"], one["a"]
        assert positions(one) == ["b"]
        assert not one.chest.entry("b").dirty

    def test_births_that_two_gave_at_once_are_settled(self, two) -> None:
        one, other = two
        one.update(a=1, b=2)
        other.update(x=1, y=2)
        assert positions(one) == ["a", "b"]
        other.chest.sync()
        assert positions(one) == ["x", "y", "a", "b"]
        one.chest.sync()
        assert positions(other) == positions(one) == list(one)

    def test_births_given_before_another_wrote_the_log_anew_are_settled(
        self, two
    ) -> None:
        one, other = two
        one.update(a=1, b=2)
        assert positions(one) == ["a", "b"]  # so they have births
        other.update(x=1, y=2)
        other.chest.sync()
        other.chest.compact()
        one.chest.sync()
        order = ["x", "y", "a", "b"]
        check_order(order, one, other)
        one.update(x=3, a=4)  # they keep their places, whatever their generations
        one.chest.flush()
        one.chest.compact()
        check_order(order, one, other)

    def test_who_has_nothing_in_common_with_others_births_keeps_its_own(
        self, two
    ) -> None:
        one, other = two
        one.update(a=1, b=2, c=3)
        assert positions(one) == ["a", "b", "c"]
        one.chest.move_to_disk("b")  # which publishes it alone
        other.chest.compact()
        assert positions(one) == ["a", "b", "c"]
        one.chest.sync()
        check_order(["a", "b", "c"], one, other)

    @pytest.mark.parametrize("count", [3, 100], ids=["files", "packed"])
    def test_births_of_what_is_taken_over_are_nobody_elses(
        self, two, count, tmp_path, monkeypatch
    ) -> None:
        """Another process publishes while they are read."""
        one, other = two
        with Chest({f"k{i}": i for i in range(count)}, tmp_path / "source") as source:
            source.flush()
            raw, adopt = SpillTier.raw, SpillTier.adopt

            def publish(*_: object) -> None:
                if "x" not in other:
                    other["x"] = 1
                    other.chest.sync()

            monkeypatch.setattr(SpillTier, "raw", lambda *a: (publish(), raw(*a))[1])
            monkeypatch.setattr(
                SpillTier, "adopt", lambda *a: (publish(), adopt(*a))[1]
            )
            one.chest.update(source)
        order = ["x", *(f"k{i}" for i in range(count))]
        check_order(order, one, other)
        one["x"] = 2
        one.chest.flush()
        one.chest.compact()
        check_order(order, one, other)
        assert len({one.chest.entry(key).birth for key in order}) == count + 1

    def test_the_order_survives_reopening_and_overwriting(self, two) -> None:
        one, other = two
        for number in range(100):
            one[number] = number
        one[7] = "again"
        other[200] = 1
        other.chest.sync()
        one.chest.sync()  # 200 came before: it was published before
        with Chest(one.chest.path) as c:
            c[5] = "more"
            assert Ordered(c).keys()[:3] == [200, 0, 1]
            assert Ordered(c).index(5) == 6

    def test_expired_keys_have_none(self, two, monkeypatch) -> None:
        time = [1_000_000.0]
        monkeypatch.setattr(expiry, "now", lambda: time[0])
        one, _ = two
        one.chest.set("a", 1, ttl=10)
        one["b"] = 2
        assert one.first() == "a"
        time[0] += 11
        assert positions(one) == ["b"]

    def test_equal_births_stand_one_after_the_other(self, two) -> None:
        one, other = two
        one.update(a=1, b=2)
        one.chest.sync()
        birth = one.chest.entry("a").birth
        assert one.chest._amend("b", lambda entry: (None, birth))
        assert other.keys()[:] == ["a", "b"]
        assert positions(one) == ["a", "b"]
        del other["a"]
        assert positions(one) == ["b"]

    def test_a_view_that_was_not_looked_at_for_long_begins_anew(
        self, two, monkeypatch
    ) -> None:
        monkeypatch.setattr(index, "MOST_NOTED", 10)
        one, other = two
        one["a"] = 1
        assert other.keys()[:] == []
        one.chest.sync()
        assert other.first() == "a"
        noted = other.chest._manifest.index.journal
        for _ in range(30):
            one.chest.incr("m")
            one.chest.incr("n")
        assert other.last() == "n"
        assert other.chest._manifest.index.journal is not noted
        assert len(noted) < 20

    def test_two_views_of_one_chest_agree(self, two) -> None:
        one, _ = two
        same = Ordered(one.chest)
        for number in range(5):
            one[number] = number
            assert same.last() == one.last() == number
        one.chest.clear()
        assert len(same.keys()[:]) == len(one.keys()[:]) == 0


class TestEnds:
    def test_moved_keys_stand_there_for_all_and_after_reopening(self, two) -> None:
        one, other = two
        one.update(a=1, b=2, c=3)
        one.move_to_end("a")
        assert list(other) == ["a"]  # the others were not published, and it is
        one.chest.sync()
        assert list(other) == ["b", "c", "a"] == positions(other)
        other.move_to_end("a", last=False)
        other.move_to_end("c", last=False)
        assert list(one) == ["c", "a", "b"] == positions(one)
        one["d"] = 4
        one.chest.flush()
        with Chest(one.chest.path) as again:
            assert list(again) == ["c", "a", "b", "d"]
            assert list(again.items()) == [("c", 3), ("a", 1), ("b", 2), ("d", 4)]
            assert again.popitem() == ("d", 4)

    def test_one_that_stands_there_costs_nothing(self, two) -> None:
        one, _ = two
        one.update(a=1, b=2)
        one.chest.sync()
        size = Path(one.chest.path, ".keys").stat().st_size
        one.move_to_end("b")
        one.move_to_end("a", last=False)
        assert Path(one.chest.path, ".keys").stat().st_size == size

    def test_an_etag_and_a_deadline_stay(self, two) -> None:
        one, other = two
        one.chest.set("a", 1, ttl=1000)
        one["b"] = 2
        one.chest.sync()
        before = one.chest.expires("a"), one.chest.entry("a").generation
        other.move_to_end("a")
        assert before == (one.chest.expires("a"), one.chest.entry("a").generation)

    def test_a_value_that_is_dirty_elsewhere_keeps_the_new_place(self, two) -> None:
        one, other = two
        one.update(a=1, b=2)
        one.chest.sync()
        one["a"] = "newer"
        other.move_to_end("a")
        one.chest.incr("b")
        assert list(one) == ["b", "a"]
        one.chest.sync()
        assert list(other.items()) == [("b", 3), ("a", "newer")]
        other["a"] = "mine"
        one.move_to_end("a", last=False)
        other.chest.transact(lambda t: t.update(a="newest"))
        assert list(one.items()) == [("a", "newest"), ("b", 3)]

    def test_popitem_takes_from_either_end(self, two) -> None:
        one, other = two
        one.update(a=1, b=2, c=3)
        one.chest.sync()
        assert other.popitem(last=False) == ("a", 1)
        assert one.popitem() == ("c", 3)
        assert one.popitem(last=False) == ("b", 2)
        assert len(other) == 0

    def test_a_move_while_the_log_is_settled_is_not_undone(
        self, two, monkeypatch
    ) -> None:
        """A value of the log is written to a file; meanwhile its key is moved."""
        one, other = two
        one.chest.add("a", 1)
        one.chest.add("b", 2)
        real = type(one.chest._spill).unfold

        def unfold(tier, key, entry, theirs=None):
            if key == "a":
                other.move_to_end("a")
            return real(tier, key, entry, theirs)

        with monkeypatch.context() as patch:
            patch.setattr(type(one.chest._spill), "unfold", unfold)
            one.chest.flush()
        assert list(one) == ["b", "a"]
        one.chest.flush()
        assert list(other) == ["b", "a"]

    def test_a_deadline_given_while_the_log_is_settled_is_kept(
        self, two, monkeypatch
    ) -> None:
        one, other = two
        for number in range(70):
            one.chest.add(number, "value")
        real = type(one.chest._spill).raw

        def raw(tier, key, entry):
            if key == 5 and tier is one.chest._spill:
                other.chest.touch(5, 1000)
            return real(tier, key, entry)

        with monkeypatch.context() as patch:
            patch.setattr(type(one.chest._spill), "raw", raw)
            one.chest.flush()
        assert one.chest.expires(5) is not None
        assert one.chest.entry(6).name.startswith(".pack-")

    def test_a_readonly_chest_refuses(self, two) -> None:
        one, _ = two
        one.update(a=1, b=2)
        one.chest.sync()
        with Chest(one.chest.path, readonly=True) as c:
            o = Ordered(c)
            assert o.keys()[:] == ["a", "b"]
            with pytest.raises(errors.ReadOnlyError):
                o.move_to_end("a")


class TestMapping:
    def test_equality_minds_the_order_of_what_has_one(self, two) -> None:
        one, _ = two
        one.update(a=1, b=2)
        assert one == OrderedDict(a=1, b=2)
        assert one != OrderedDict(b=2, a=1)
        assert one == {"b": 2, "a": 1}
        assert one == one.chest
        assert one != OrderedDict(a=1)
        assert one != OrderedDict(a=1, b=3)
        assert one != 5
        with Chest({"b": 2, "a": 1}) as c:
            assert one != Ordered(c)
            Ordered(c).move_to_end("b")
            assert one == Ordered(c)

    def test_the_rest_is_as_the_chest_does_it(self, two) -> None:
        one, other = two
        assert one.setdefault("a", 5) == 5 == other["a"]
        assert one.pop("a") == 5
        assert one.pop("a", None) is None
        with pytest.raises(KeyError):
            one.pop("a")
        one["b"] = 1
        assert "b" in one
        assert repr(one).startswith("Ordered(<Chest")
        other.update(one, c=3)
        assert dict(one) == {"b": 1}
        other.chest.sync()
        assert dict(one) == {"b": 1, "c": 3}
        one.clear()
        assert dict(other) == {}


@pytest.mark.parametrize("seed", range(4))
def test_any_moves_leave_what_an_ordereddict_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Two handles, packs, checkpoints, compaction and reopening, at random."""
    monkeypatch.setattr(rewrite, "CHECKPOINT_FROM", 20)
    monkeypatch.setattr(manifest, "COMPACT_FROM", 100)
    luck, model = random.Random(seed), OrderedDict[object, object]()
    both = [Ordered(Chest(tmp_path / "c", publish="each")) for _ in range(2)]
    steps = ["set"] * 6 + ["del", "move", "move", "front", "pop", "popitem"]
    steps += ["flush", "compact", "reopen", "many", "look", "look", "clear", "last"]
    for turn in range(250):
        at = luck.randrange(2)
        o, step, key = both[at], luck.choice(steps), luck.randrange(60)
        known = luck.choice([*model]) if model else None
        if step == "set":
            o[key] = model[key] = turn
        elif step == "many":
            pairs = {luck.randrange(200): [turn, n] for n in range(80)}
            o.chest.set_many(pairs)
            model.update(pairs)
        elif step == "clear" and turn % 3:
            o.clear()
            model.clear()
        elif step == "look":
            agrees(o, model)
        elif step in ("flush", "compact"):
            getattr(o.chest, step)()
        elif step == "reopen":
            o.chest.close()
            both[at] = Ordered(Chest(tmp_path / "c", publish="each"))
        elif model:
            if step == "del":
                del o[known], model[known]
            elif step == "pop":
                assert o.pop(known) == model.pop(known)
            elif step == "last":
                for _ in range(luck.randrange(min(len(model), 30))):
                    assert o.chest.popitem() == model.popitem()
            elif step == "popitem":
                end = luck.random() < 0.5
                assert o.popitem(end) == model.popitem(end)
            elif step in ("move", "front"):
                o.move_to_end(known, step == "move")
                model.move_to_end(known, step == "move")
    for o in both:
        agrees(o, model)
        assert o == model
        o.chest.close()
    with Chest(tmp_path / "c") as c:
        agrees(Ordered(c), model)
        assert c.verify() == []
