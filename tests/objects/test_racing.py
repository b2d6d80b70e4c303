"""P6, P8: threads of one handle that come between a request and what follows it."""

from __future__ import annotations

import itertools
import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from chest import Chest, conditional, errors, expiry

obstore = pytest.importorskip("obstore", reason="obstore is not installed")

_numbers = itertools.count()


@pytest.fixture
def c() -> Iterator[Any]:
    """A handle that never asks by itself whether a value in memory is still the same."""
    with Chest(f"memory://racing-{next(_numbers)}", max_age=float("inf")) as chest:
        yield chest
        chest.drop()


@pytest.fixture
def during(c: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Have something done once, right after the next request of a kind."""

    def patch(request: str, act: Callable[[], object]) -> None:
        real, acts = getattr(c._store, request), [act]

        def slow(*args: Any, **options: Any) -> Any:
            answer = real(*args, **options)
            if request == "list":
                answer = iter([*answer])
            while acts:
                acts.pop()()
            return answer

        monkeypatch.setattr(c._store, request, slow)

    return patch


def flushed(c: Any, key: str, value: Any) -> None:
    c[key] = value
    c.flush()


def set_and_sync(c: Any, key: str, value: Any) -> None:
    c[key] = value
    c.sync()


# -- reading -----------------------------------------------------------------------------


@pytest.mark.parametrize("publish", [flushed, set_and_sync])
def test_a_slow_get_never_takes_the_place_of_what_was_put_meanwhile(
    c: Any, during: Any, publish: Any
) -> None:
    flushed(c, "x", "old")
    during("get", lambda: publish(c, "x", "new"))
    assert c["x"] in ("old", "new")
    assert c["x"] == "new"


@pytest.mark.parametrize(
    "remove",
    [lambda c: c.pop("x"), lambda c: c.__delitem__("x"), lambda c: c.clear()],
    ids=["pop", "del", "clear"],
)
def test_a_slow_get_brings_nothing_back_that_was_removed_meanwhile(
    c: Any, during: Any, remove: Any
) -> None:
    flushed(c, "x", "old")
    during("get", lambda: remove(c))
    assert c["x"] == "old"
    assert "x" not in c
    assert list(c) == []
    assert c.memory_usage == 0


def test_a_key_that_is_put_during_the_listing_is_not_missed(
    c: Any, during: Any
) -> None:
    c["x"] = 1
    during("list", c.flush)
    assert list(c) == ["x"]


# -- changing ----------------------------------------------------------------------------

CHANGES: dict[str, Callable[[Any], object]] = {
    "incr": lambda c: c.incr("x"),
    "pop": lambda c: c.pop("x"),
    "set": lambda c: c.set("x", 0, ttl=100),
    "transact": lambda c: c.transact(lambda t: t.update(x=t["x"] + 1)),
    "transform": lambda c: conditional.transform(c, "x", lambda x: x + 1),
    "touch": lambda c: c.touch("x", 100),
    "discard_if": lambda c: conditional.discard_if(c, "x", conditional.etag(c, "x")),
    "set_if": lambda c: conditional.set_if(c, "x", 0, conditional.etag(c, "x")),
}


@pytest.mark.parametrize("name", CHANGES)
def test_what_another_thread_sets_during_a_change_is_not_lost(
    c: Any, during: Any, name: str
) -> None:
    """It comes after the change: taking it for the old value would lose an update."""
    flushed(c, "x", 1)
    assert c.honours == (True, True)
    act = lambda: c.__setitem__("x", 100)  # noqa: E731
    during("put" if name == "set" else "replace", act)
    CHANGES[name](c)
    assert c["x"] == 100
    c.flush()
    assert c["x"] == 100


def test_what_another_thread_sets_during_a_deletion_is_not_lost(
    c: Any, during: Any
) -> None:
    flushed(c, "x", 1)
    during("delete", lambda: c.__setitem__("x", 100))
    del c["x"]
    assert c["x"] == 100


def test_what_another_thread_sets_during_clear_is_not_lost(c: Any, during: Any) -> None:
    c["y"] = 1
    flushed(c, "x", 1)
    c["y"] = 2
    during("delete", lambda: c.__setitem__("x", 100))
    c.clear()
    assert dict(c) == {"x": 100}


def test_what_another_thread_sets_during_close_is_put(c: Any, during: Any) -> None:
    c["x"] = 1
    during("put", lambda: c.__setitem__("late", 2))
    c.close()
    again = Chest(c.path)
    assert dict(again) == {"late": 2, "x": 1}
    c._closed = False  # for the fixture
    again.close()


def test_a_clear_that_the_store_refuses_loses_nothing(
    c: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed(c, "x", 1)
    c["y"] = 2
    with monkeypatch.context() as patch:

        def refuse(*args: Any) -> None:
            raise OSError(5, "no")

        patch.setattr(obstore, "delete", refuse)
        with pytest.raises(errors.StoreError):
            c.clear()
    assert dict(c) == {"x": 1, "y": 2}


def test_compact_spares_what_is_put_meanwhile(c: Any, during: Any) -> None:
    c["x"] = 1
    assert c.pop("x") == 1
    flushed(c, "y", 1)
    c.pop("y")
    during("list", lambda: flushed(c, "z", 3))
    assert c.compact() == 1
    assert dict(c) == {"z": 3}


# -- one thread --------------------------------------------------------------------------


def test_a_deadline_by_touch_takes_the_key_out_of_listings(
    c: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    c["y"] = 2
    flushed(c, "x", 1)
    assert c.touch("x", 100)
    later = expiry.now() + 200
    monkeypatch.setattr(expiry, "now", lambda: later)
    assert list(c) == ["y"]
    assert [*c._deadlines] == ["x", "y"]
    c.compact()
    assert list(c) == ["y"]
    assert [*c._deadlines] == ["y"]


def test_an_added_array_is_known_by_all_its_bytes(c: Any) -> None:
    c.add("x", np.zeros(1000))
    c.set("y", np.zeros(1000), ttl=100)
    assert c.entry("x").nbytes == c.entry("y").nbytes
    c.flush()
    assert c.entry("x").nbytes == c.entry("y").nbytes >= 8000


def test_transform_writes_nothing_where_nothing_is_written(c: Any) -> None:
    flushed(c, "x", 1)
    with Chest(c.path, readonly=True) as reader:
        with pytest.raises(errors.ReadOnlyError):
            conditional.transform(reader, "x", lambda x: x + 1)
    assert c["x"] == 1


def test_a_damaged_value_can_be_deleted(c: Any) -> None:
    flushed(c, "x", 1)
    obstore.put(c._store._store, "x", b"no value of a chest's" * 10)
    with pytest.raises(errors.CorruptValueError, match="delete it"):
        c["x"]
    assert "x" in c
    del c["x"]
    assert "x" not in c


def test_what_others_keep_in_the_place_is_left_alone(c: Any) -> None:
    store = c._store._store
    for name in ("data/table.csv", "notes/x"):
        obstore.put(store, name, b"theirs")
    flushed(c, "x", 1)
    assert c.stored_nbytes < 1000
    assert list(c) == ["x"]
    c.compact()
    c.clear()
    assert {meta["path"] for page in obstore.list(store) for meta in page} == {
        "data/table.csv",
        "notes/x",
    }


# -- many threads ------------------------------------------------------------------------


@pytest.mark.parametrize("max_age", [0, float("inf")])
def test_a_thread_sees_its_own_changes_whatever_others_do(max_age: float) -> None:
    """Each key is changed by one thread; all get, spill, flush and list them all."""
    wrong: list[Any] = []

    def step(c: Any, draw: random.Random, key: Any, have: Any) -> Any:
        new = [draw.random()] * 20
        act = draw.choice(["set", "end", "pop", "del", "flush", "get", "list", "incr"])
        if act == "set":
            c[key] = have = new
        elif act == "end":
            c.set(key, new, ttl=1000)
            have = new
        elif act == "pop":
            wrong.extend([] if c.pop(key, None) == have else [act])
            have = None
        elif act == "del" and have is not None:
            del c[key]
            have = None
        elif act == "flush":
            c.flush()
        elif act == "list":
            wrong.extend([] if (key in set(c)) == (have is not None) else [act])
        elif act == "incr":
            c.incr("all")
        wrong.extend([] if c.get(key) == have else ["get", act])
        return have

    def work(c: Any, number: int) -> None:
        draw, have = random.Random(number), None
        for _ in range(150):
            have = step(c, draw, number, have)
            c.get((number + 1) % 4)

    with Chest("memory://", max_age=max_age, available_memory=3000) as c:
        threads = [threading.Thread(target=work, args=(c, n)) for n in range(4)]
        for each in threads:
            each.start()
        for each in threads:
            each.join()
    assert wrong == []
