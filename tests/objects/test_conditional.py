"""Etags and compare-and-set on objects."""

from __future__ import annotations

from typing import Any

import pytest

from chest import Chest
from chest.conditional import (
    ABSENT,
    Outcome,
    Tagged,
    discard_if,
    etag,
    get_with_etag,
    set_if,
    transform,
)

pytest.importorskip("obstore", reason="obstore is not installed")


@pytest.fixture(params=["s3", "memory"])
def c(request: pytest.FixtureRequest, bucket: str) -> Any:
    place = "memory://" if request.param == "memory" else bucket
    with Chest(place, trust="any") as c:
        yield c


def test_set_if_of_several_one_succeeds(c: Any) -> None:
    assert etag(c, "x") is ABSENT
    first = set_if(c, "x", "me", ABSENT)
    assert first == Outcome(True, etag(c, "x"), "me")
    assert set_if(c, "x", "you", ABSENT) == Outcome(False, first.etag, "me")
    second = set_if(c, "x", "you", first.etag)
    assert second.done
    assert second.etag != first.etag
    assert set_if(c, "x", "me", first.etag) == Outcome(False, second.etag, "you")


def test_an_etag_never_comes_back(c: Any) -> None:
    seen = set()
    for value in (1, 2, 1, 2):
        c["x"] = value
        seen.add(etag(c, "x"))
    assert len(seen) == 4


def test_a_value_comes_with_its_etag_as_a_copy(c: Any) -> None:
    c["x"] = [1]
    value, tag = get_with_etag(c, "x")
    value.append(2)
    assert c["x"] == [1]
    assert set_if(c, "x", value, tag).done
    assert c["x"] == [1, 2]
    c["x"].append(3)
    assert etag(c, "x") not in (tag, ABSENT)
    assert get_with_etag(c, "none") == Tagged(ABSENT, ABSENT)


def test_discard_if(c: Any) -> None:
    assert discard_if(c, "x", ABSENT).done
    c["x"] = 1
    old = etag(c, "x")
    c["x"] = 2
    assert discard_if(c, "x", old) == Outcome(False, etag(c, "x"), 2)
    assert discard_if(c, "x", etag(c, "x")) == Outcome(True, ABSENT, ABSENT)
    assert "x" not in c
    assert set_if(c, "x", 3, ABSENT, ttl=100).done
    assert c.expires("x") is not None


def test_transform_loses_no_change_of_others(c: Any) -> None:
    tries = []

    def add(value: Any) -> Any:
        tries.append(value)
        if len(tries) == 1:
            with Chest(c.path, trust="any") as other:
                other["x"] = 10
        return 1 if value is ABSENT else value + 1

    if not c.path.startswith("memory"):
        assert transform(c, "x", add).value == 11
        assert tries == [ABSENT, 10]
    assert transform(c, "y", lambda value: 5).value == 5
    assert transform(c, "y", lambda value: ABSENT) == Outcome(True, ABSENT, ABSENT)
    assert "y" not in c
    with pytest.raises(ZeroDivisionError):
        transform(c, "x", lambda value: 1 / 0)
