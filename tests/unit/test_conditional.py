"""Changes on a condition: etags, compare and set, the optimistic loop."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from chest import Chest, errors, expiry
from chest.conditional import (
    ABSENT,
    MOST_TRIES,
    Outcome,
    discard_if,
    etag,
    get_with_etag,
    set_if,
    transform,
)


@pytest.fixture
def two(tmp_path: Path) -> Iterator[tuple[Chest, Chest]]:
    """Two handles on one chest, which see each other as two processes do."""
    with Chest(tmp_path / "c") as one, Chest(tmp_path / "c") as other:
        yield one, other


class TestEtags:
    def test_every_publication_of_a_key_gives_it_another(self, two) -> None:
        one, other = two
        seen = [etag(one, "x")]
        for value in (1, 1, [2], 1):
            one["x"] = value
            seen.append(etag(one, "x"))
        assert seen[0] is ABSENT
        assert len(set(seen)) == 5
        assert etag(other, "x") == seen[-1]

    def test_those_of_other_keys_stay(self, two) -> None:
        one, other = two
        one.update(x=1, y=2)
        before = etag(one, "x"), etag(one, "y")
        other["y"] = 3
        assert etag(one, "x") == before[0]
        other.sync()
        assert etag(one, "y") != before[1]

    def test_they_survive_packs_compaction_touch_and_reopening(self, two) -> None:
        one, other = two
        for number in range(100):
            one.add(number, "value")
        before = [etag(other, number) for number in range(100)]
        one.flush()
        assert one.entry(5).name.startswith(".pack-")
        one.touch(5, 1000)
        one.unpack(6)
        other.delete_many(range(50, 80))
        one.compact()
        kept = [*range(50), *range(80, 100)]
        assert [etag(other, number) for number in kept] == [before[n] for n in kept]
        with Chest(one.path) as again:
            assert [etag(again, number) for number in kept] == [before[n] for n in kept]

    def test_a_key_that_comes_back_has_another(self, two) -> None:
        one, other = two
        one["x"] = 1
        before = etag(one, "x")
        del other["x"]
        assert etag(one, "x") is ABSENT
        other.add("x", 1)
        assert etag(one, "x") not in (before, ABSENT)

    def test_a_change_in_place_gives_another(self, two) -> None:
        one, other = two
        one["x"] = [1]
        before = etag(one, "x")
        one["x"].append(2)
        assert etag(one, "x") != before
        assert other["x"] == [1, 2]

    def test_a_value_comes_with_its_own(self, two) -> None:
        one, other = two
        assert get_with_etag(one, "x") == (ABSENT, ABSENT)
        one["x"] = 1.5
        assert get_with_etag(one, "x") == (1.5, etag(other, "x"))
        assert get_with_etag(other, "x") == (1.5, etag(one, "x"))

    @pytest.mark.parametrize("size", [3, 300_000])
    def test_a_value_that_comes_with_it_may_be_changed(self, two, size: int) -> None:
        one, _ = two
        one["x"] = np.zeros(size)
        one.flush()
        value, tag = get_with_etag(one, "x")
        value[0] = 1
        assert one["x"][0] == 0
        one.flush()
        assert set_if(one, "x", value, tag).done
        assert one["x"][0] == 1

    def test_the_sentinel_is_false_and_one_of_a_kind(self) -> None:
        import pickle

        assert not ABSENT
        assert pickle.loads(pickle.dumps(ABSENT)) is ABSENT
        assert repr(ABSENT) == "ABSENT"

    def test_a_readonly_chest_has_them(self, two) -> None:
        one, _ = two
        one["x"] = 1
        one.sync()
        with Chest(one.path, readonly=True) as c:
            assert get_with_etag(c, "x") == (1, etag(one, "x"))
            with pytest.raises(errors.ReadOnlyError):
                set_if(c, "x", 2, etag(c, "x"))


class TestSetIf:
    def test_only_one_of_two_that_saw_the_same_succeeds(self, two) -> None:
        one, other = two
        one["x"] = "old"
        tag = etag(one, "x")
        first = set_if(other, "x", "new", tag)
        assert first == Outcome(True, etag(one, "x"), "new")
        assert set_if(one, "x", "mine", tag) == (False, first.etag, "new")
        assert one["x"] == other["x"] == "new"

    def test_absent_means_that_the_key_is_not_there(self, two) -> None:
        one, other = two
        assert set_if(one, "x", 1, ABSENT).done
        assert set_if(other, "x", 2, ABSENT) == (False, etag(one, "x"), 1)
        assert set_if(other, "y", 2, 77) == (False, ABSENT, ABSENT)

    def test_a_value_of_this_process_that_is_not_published_is_in_the_way(
        self, two
    ) -> None:
        one, _ = two
        one["x"] = 1
        tag = etag(one, "x")
        one["x"] = 2
        outcome = set_if(one, "x", 3, tag)
        assert (outcome.done, outcome.value) == (False, 2)
        assert set_if(one, "x", 3, outcome.etag).done

    def test_one_of_many_threads_of_two_handles_wins(self, two) -> None:
        start, won = threading.Barrier(8), []

        def work(me: int) -> None:
            start.wait()
            for turn in range(20):
                if set_if(two[me % 2], turn, me, ABSENT).done:
                    won.append((turn, me))

        threads = [threading.Thread(target=work, args=(me,)) for me in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert dict(won) == dict(two[0])
        assert len(won) == 20

    def test_what_somebody_sets_while_it_is_encoded_is_in_the_way(self, two) -> None:
        one, other = two
        one["x"] = "old"
        tag = etag(one, "x")

        class Slow:
            def __reduce__(self):
                other["x"] = "theirs"
                other.sync()
                return (Slow, ())

        before = sorted(os.listdir(one.path))
        assert set_if(one, "x", Slow(), tag)[::2] == (False, "theirs")
        assert sorted(os.listdir(one.path)) == before  # no file is left

    def test_it_tries_again_when_an_absent_key_came_and_went(
        self, two, monkeypatch
    ) -> None:
        one, other = two
        real, times = Chest._put_if, []

        def put_if(c, new, allowed):
            if c is not one:
                return real(c, new, allowed)
            times.append(1)
            if len(times) > 1:
                return real(c, new, allowed)
            other.add("x", "theirs")
            done = real(c, new, allowed)
            other.pop("x")
            return done

        monkeypatch.setattr(Chest, "_put_if", put_if)
        assert set_if(one, "x", 1, ABSENT).done
        assert len(times) == 2

    def test_a_value_that_cannot_be_written_changes_nothing(self, two) -> None:
        one, other = two
        one["x"] = 1
        tag = etag(one, "x")
        with pytest.raises(errors.EncodingError):
            set_if(one, "x", threading.Lock(), tag)
        assert (one["x"], etag(other, "x")) == (1, tag)

    def test_it_may_have_a_deadline(self, two, monkeypatch) -> None:
        time = [1_000_000.0]
        monkeypatch.setattr(expiry, "now", lambda: time[0])
        one, other = two
        assert set_if(one, "x", 1, ABSENT, ttl=10).done
        time[0] += 11
        assert etag(other, "x") is ABSENT
        assert set_if(other, "x", 2, ABSENT).done
        assert other.expires("x") is None


class TestDiscardIf:
    def test_it_deletes_what_was_seen_and_nothing_newer(self, two) -> None:
        one, other = two
        one["x"] = 1
        tag = etag(other, "x")
        one["x"] = 2
        one.sync()
        assert discard_if(other, "x", tag) == (False, etag(one, "x"), 2)
        assert discard_if(other, "x", etag(other, "x")) == (True, ABSENT, ABSENT)
        assert "x" not in one

    def test_a_value_of_this_process_that_is_not_published_stays(self, two) -> None:
        one, _ = two
        one["x"] = 1
        tag = etag(one, "x")
        one["x"] = 2
        assert not discard_if(one, "x", tag).done
        assert one["x"] == 2

    def test_nothing_is_in_the_way_of_an_absent_key(self, two) -> None:
        assert discard_if(two[0], "x", ABSENT) == (True, ABSENT, ABSENT)
        assert discard_if(two[0], "x", 5) == (False, ABSENT, ABSENT)


class TestTransform:
    def test_no_change_of_many_threads_of_two_handles_is_lost(self, two) -> None:
        def append(mine, had):
            return [*(had or ()), mine]

        def work(me: int) -> None:
            for turn in range(25):
                mine = (me, turn)
                transform(two[me % 2], "x", partial(append, mine))

        threads = [threading.Thread(target=work, args=(me,)) for me in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert sorted(two[0]["x"]) == [
            (me, turn) for me in range(4) for turn in range(25)
        ]

    def test_it_ends_when_others_are_always_quicker(self, two) -> None:
        one, other = two
        one["n"] = 0
        tries = []

        def change(value: int) -> int:
            tries.append(value)
            if len(tries) <= MOST_TRIES:
                other.incr("n")
            return value + 100

        assert transform(one, "n", change).value == MOST_TRIES + 100
        assert len(tries) == MOST_TRIES + 1

    def test_what_it_is_given_is_a_copy(self, two) -> None:
        one, _ = two
        one["x"] = [1]

        def fail(value: list[int]) -> None:
            value.append(2)
            raise ArithmeticError

        with pytest.raises(ArithmeticError):
            transform(one, "x", fail)
        assert one["x"] == [1]

    def test_a_key_may_be_deleted_or_left_absent(self, two) -> None:
        one, other = two
        one["x"] = 1
        assert transform(one, "x", lambda _: ABSENT) == (True, ABSENT, ABSENT)
        assert "x" not in other
        assert transform(one, "x", lambda value: value) == (True, ABSENT, ABSENT)

    def test_a_deadline_stays(self, two) -> None:
        one, other = two
        one.set("x", 1, ttl=1000)
        before = other.expires("x")
        transform(one, "x", lambda value: value + 1)
        assert other.expires("x") == before
