"""P1, P2: what a chest in a folder and one in a store of objects do alike."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from chest import Chest

_numbers = itertools.count()
_without = importlib.util.find_spec("obstore") is None


@pytest.fixture(
    params=[
        "folder",
        pytest.param(
            "store", marks=pytest.mark.skipif(_without, reason="obstore is missing")
        ),
    ]
)
def make(request: pytest.FixtureRequest) -> Iterator[Callable[..., Any]]:
    """Open a chest with options, in either kind of place."""
    made = []

    def open_one(**options: Any) -> Any:
        address = f"memory://keeper-{next(_numbers)}"
        place = (address,) if request.param == "store" else ()
        made.append(Chest(*place, **options))
        return made[-1]

    yield open_one
    for each in made:
        each.drop()


def test_what_a_hook_kept_from_leaving_leaves_when_it_raises_no_more(make: Any) -> None:
    fails = [True]

    def hook(key: Any) -> None:
        if fails:
            raise RuntimeError(key)

    c = make(available_memory=2000, on_overflow=hook)
    for number in range(8):
        with contextlib.suppress(RuntimeError):
            c[number] = "x" * 500
    assert c.memory_usage > 2000
    fails.clear()
    c["y"] = 1
    assert c.memory_usage <= 2000
    assert len(c) == 9


def test_no_miss_is_reported_of_what_is_read_ahead(make: Any) -> None:
    missed: list[Any] = []
    c = make(on_miss=missed.append)
    c.update(a=1, b=2, c=3)
    c.flush()
    c.prefetch(["a", "b"])
    c.get_from_disk("b")
    assert missed == []
    assert sorted(c.inmem) == ["a", "b"]
    assert c["c"] == 3
    assert missed == ["c"]


def test_a_move_to_disk_is_told_to_the_hook(make: Any) -> None:
    told: list[Any] = []
    c = make(on_overflow=told.append)
    c["x"] = 1
    c.move_to_disk("x")
    assert told == ["x"]
    assert "x" not in c.inmem
    c.move_to_disk("x")
    with pytest.raises(KeyError):
        c.move_to_disk("y")


def test_a_table_for_notebooks_asks_for_nothing(make: Any) -> None:
    c = make(available_memory="1 MB")
    c["x"] = "y" * 1000
    table = c._repr_html_()
    assert c.path in table
    assert "in memory" in table
    c.close()
    assert "closed" in c._repr_html_()
    assert repr(c).endswith("closed>")


def test_a_closed_chest_can_be_dropped(make: Any) -> None:
    c = make()
    c["x"] = 1
    c.close()
    c.drop()
    with pytest.raises(ValueError, match="closed"):
        c["x"]


def test_statistics_count_compressed_bytes(make: Any) -> None:
    c = make(compression="zstd", pack=False)
    c["x"] = ["text"] * 100_000
    c.flush()
    assert c.stats().compression > 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"format": "bogus"}, "format="),
        ({"compression": "bogus"}, "compression="),
        ({"compression": "zstd", "format": "data"}, "for pickles"),
        ({"mapped": "bogus"}, "mapped="),
    ],
)
def test_an_option_that_a_key_does_not_take_is_refused(
    make: Any, options: Any, message: str
) -> None:
    c = make()
    with pytest.raises(ValueError, match=message):
        c.set("x", 1, **options)
    assert "x" not in c


def test_an_option_that_means_the_other_trust_is_refused(make: Any) -> None:
    c = make(trust="data")
    with pytest.raises(ValueError, match="trust="):
        c.set("x", 1, format="pickle")
    with pytest.raises(ValueError, match="for pickles"):
        c.set("x", 1, compression="zstd")
