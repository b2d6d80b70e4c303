"""What a mapping of ours promises: dict's semantics (P1), as a kit to inherit from.

A subclass sets ``make``; ``after`` may do something (flush, reopen) between two steps.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Hashable, MutableMapping
from dataclasses import dataclass
from decimal import Decimal
from fractions import Fraction
from typing import Any, NamedTuple

import numpy as np
import pytest

from chest import errors


class Colour(enum.Enum):
    RED = 1


class Level(enum.IntEnum):
    LOW = 1


class Word(str):
    __slots__ = ()


@dataclass(frozen=True)
class Point:
    x: int
    y: int


class Pair(NamedTuple):
    a: int
    b: int


# Keys that no two of are equal, and that a careless name or text would mix up.
KEYS: list[Hashable] = [
    "a", "A", "1", "1.0", "None", "True", "", " ", ".", "..", "../up", "/abs", "a/b",
    "a\\b", "nul\0", ".keys", ".tmp-1", "~", "a~1", "con", "CON", "nul.txt", "x" * 500,
    "x" * 499 + "y", "é", "e\u0301", "straße", "STRASSE", "\ud800", "\udfff\ud800",
    "\n", "%2e", "*?<>|:", "_a", "_a/b", "a+b", "key", "ключ", "🗝", "int_1",
    "deadbeef.zarr", "-", "a.", "a ", "{}", '["a"]', '{"int":"0x1"}',
    b"a", b"", b"\xff\0", 0, 1, -1, 2, 10**30, -(10**30), 2**63, 2**64, 2**200, 0.5,
    1e300, float("inf"), -float("inf"), 0.1, Decimal("0.1"), Fraction(1, 3), 1j, 1 + 2j,
    None, (), ("a",), ("a", "b"), (("a", "b"),), ("_a", "b"), ("a", ("b",)), (1, "1"),
    ("1", 1), ("..", ".."), ("", ""), ("a", "..", "b"), (None,), tuple("abcdefghijkl"),
    frozenset(), frozenset({1, 2}), frozenset({"1", "2"}), frozenset({("a",)}),
    Colour.RED, Point(1, 2), Point(2, 1), Pair(3, 4), len, int, range(3),
    np.datetime64("2020-01-01"), np.timedelta64(3, "s"),
]  # fmt: skip

# Equal in a dict, so one key here as well.
SAME: list[tuple[Hashable, ...]] = [
    (1, 1.0, True, Decimal(1), Fraction(1), Level.LOW, 1 + 0j),
    (1, np.int64(1), np.float32(1), np.bool_(True), np.uint8(1)),
    (0, False, 0.0, -0.0, np.bool_(False)),
    (0.5, Decimal("0.5"), Fraction(1, 2), np.float64(0.5)),
    ("a", Word("a"), np.str_("a")),
    (b"a", np.bytes_(b"a")),
    ((3, 4), Pair(3, 4), (3.0, np.int8(4))),
    (frozenset({1, 2}), frozenset({2.0, True})),
    (2**70, float(2**70), Decimal(2**70)),
    (("a", (1, None)), ("a", (True, None))),
]


class MappingContract:
    """Inherit, and set ``make``: an empty mapping."""

    def make(self) -> MutableMapping[Any, Any]:
        """A new, empty mapping."""
        raise NotImplementedError

    def after(self, c: MutableMapping[Any, Any]) -> MutableMapping[Any, Any]:
        """The same mapping later: as it is, flushed, or reopened."""
        return c

    def order(self, model: dict[Any, Any]) -> list[Any]:
        """The keys of *model* in the order that the mapping gives them."""
        return list(model)

    @pytest.fixture
    def c(self) -> MutableMapping[Any, Any]:
        return self.make()

    def test_order_is_that_of_first_setting(self, c: Any) -> None:
        for key in "zax":
            c[key] = key
        c["z"] = "overwritten"
        c = self.after(c)
        c["m"] = 1
        c["a"] = 2
        c = self.after(c)
        assert list(c) == ["z", "a", "x", "m"]
        assert list(reversed(c)) == ["m", "x", "a", "z"]
        assert list(c.values()) == ["overwritten", 2, "x", 1]
        assert next(iter(c.items())) == ("z", "overwritten")
        assert list(reversed(c.keys())) == ["m", "x", "a", "z"]
        assert list(reversed(c.values())) == [1, "x", 2, "overwritten"]
        assert list(reversed(c.items()))[-1] == ("z", "overwritten")

    def test_deleted_and_set_again_comes_last(self, c: Any) -> None:
        c.update(a=1, b=2)
        c = self.after(c)
        del c["a"]
        c["a"] = 3
        c = self.after(c)
        assert list(c.items()) == [("b", 2), ("a", 3)]

    @pytest.mark.parametrize("key", KEYS)
    def test_any_key_stores_and_returns(self, c: Any, key: Hashable) -> None:
        c[key] = "value"
        c = self.after(c)
        assert c[key] == "value"
        assert key in c
        assert list(c) == [key]
        assert type(next(iter(c))) in (type(key), tuple)
        del c[key]
        c = self.after(c)
        assert key not in c
        assert len(c) == 0

    def test_keys_that_differ_never_collide(self, c: Any) -> None:
        for number, key in enumerate(KEYS):
            c[key] = number
        assert len(c) == len(KEYS)
        c = self.after(c)
        assert list(c) == KEYS
        for number, key in enumerate(KEYS):
            assert c[key] == number

    @pytest.mark.parametrize("keys", SAME, ids=lambda keys: repr(keys[0]))
    def test_keys_that_are_equal_are_one(
        self, c: Any, keys: tuple[Hashable, ...]
    ) -> None:
        for key in keys:
            for other in keys:
                c[key] = "first"
                c = self.after(c)
                assert c[other] == "first"
                c[other] = "second"
                c = self.after(c)
                assert c[key] == "second"
                assert len(c) == 1
                del c[key]
                assert other not in c
                assert len(c) == 0

    def test_a_key_that_would_not_be_found_again_is_refused(self, c: Any) -> None:
        class Lonely:
            """Equal to nothing else, as objects are."""

        nans = float("nan"), ("a", math.nan), Decimal("NaN"), complex(1, math.nan)
        for key in (*nans, frozenset(nans), np.float32("nan"), Lonely()):
            with pytest.raises(errors.KeyEncodingError, match=r"(?i)nan|Lonely"):
                c[key] = 1
            with pytest.raises(errors.KeyEncodingError, match=r"(?i)nan|Lonely"):
                c.setdefault(key, 1)
        assert len(self.after(c)) == 0

    def test_unhashable_keys_raise_as_in_a_dict(self, c: Any) -> None:
        for use in (
            lambda: c[[]],
            lambda: c.__setitem__([], 1),
            lambda: c.get({}),
            lambda: c.setdefault([], 1),
            lambda: c.pop([]),
            lambda: [] in c,
            lambda: c.__delitem__(([],)),
        ):
            with pytest.raises(TypeError):
                use()
        assert len(c) == 0

    def test_missing_keys_raise_as_in_a_dict(self, c: Any) -> None:
        c["here"] = 1
        c = self.after(c)
        for use in (
            lambda: c["there"],
            lambda: c.__delitem__("there"),
            lambda: c.pop("there"),
            lambda: c[("there", 1)],
        ):
            with pytest.raises(KeyError) as caught:
                use()
            assert type(caught.value) is KeyError
        assert c.get("there") is None
        assert c.get("there", 5) == 5
        assert c.pop("there", None) is None

    def test_update_takes_all_forms_of_dict(self, c: Any) -> None:
        class Keyed:
            def keys(self) -> list[str]:
                return ["k"]

            def __getitem__(self, key: str) -> str:
                return key * 2

        model: dict[Any, Any] = {}
        for mapping in (c, model):
            mapping.update({"a": 1})
            mapping.update([("b", 2), ["a", 3]])
            mapping.update(c=3, self=4, other=5)
            mapping.update({"d": 4}, e=5)
            mapping.update(Keyed())
            mapping.update()
            mapping.update(iter([("i", 9)]))
        c = self.after(c)
        assert dict(c) == model
        assert list(c) == self.order(model)
        for bad in (5, [1], [("a",)]):
            with pytest.raises((TypeError, ValueError)):
                c.update(bad)

    def test_union_operators(self, c: Any) -> None:
        c.update(a=1, b=2)
        c = self.after(c)
        model = {"a": 1, "b": 2}
        for mine, theirs in (
            (c | {"b": 3, "x": 4}, model | {"b": 3, "x": 4}),
            ({"b": 3, "x": 4} | c, {"b": 3, "x": 4} | model),
        ):
            assert type(mine) is type(c)
            assert dict(mine) == theirs
            assert list(mine) == self.order(theirs)
            mine.close()
        before = c
        c |= {"b": 5}
        c |= [("y", 6)]
        assert c is before
        assert dict(self.after(c)) == {"a": 1, "b": 5, "y": 6}
        with pytest.raises(TypeError):
            c | [("a", 1)]
        with pytest.raises(TypeError):
            5 | c

    def test_equality_is_that_of_dict(self, c: Any) -> None:
        c.update(a=1, b=[2])
        c = self.after(c)
        assert c == {"b": [2], "a": 1}
        assert c == {"b": [2], "a": 1}
        assert c != {"a": 1}
        assert c != {"a": 1, "b": [3]}
        assert c != {"a": 1, "x": [2]}
        assert c != [("a", 1)]
        with pytest.raises(TypeError):
            hash(c)

    def test_copy_is_independent(self, c: Any) -> None:
        c.update(a=1, b=[2])
        c = self.after(c)
        copy = c.copy()
        copy["a"] = 5
        copy["b"] = [2, 3]
        copy["new"] = 1
        copy.flush()
        assert dict(c) == {"a": 1, "b": [2]}
        assert dict(copy) == {"a": 5, "b": [2, 3], "new": 1}
        copy.close()

    def test_setdefault(self, c: Any) -> None:
        assert c.setdefault("a", [1]) == [1]
        c = self.after(c)
        assert c.setdefault("a", [2]) == [1]
        assert c.setdefault("none") is None
        assert dict(c) == {"a": [1], "none": None}

    def test_pop_and_popitem(self, c: Any) -> None:
        c.update(a=1, b=2, c=3)
        c = self.after(c)
        assert c.popitem() == ("c", 3)
        assert c.pop("a") == 1
        c["a"] = 4
        c["b"] = 5
        assert c.popitem() == ("a", 4)
        c = self.after(c)
        assert c.popitem() == ("b", 5)
        for _ in range(2):
            with pytest.raises(KeyError):
                c.popitem()

    def test_clear(self, c: Any) -> None:
        c.update(a=1, b=2)
        c = self.after(c)
        c["new"] = 3
        c.clear()
        assert dict(c) == {}
        c["b"] = 1
        c = self.after(c)
        assert dict(c) == {"b": 1}

    def test_deleting_while_iterating_is_allowed(self, c: Any) -> None:
        c.update(dict.fromkeys("abc", 1))
        c = self.after(c)
        for key in c:
            del c[key]
        assert len(c) == 0

    def test_views_are_live_and_set_like(self, c: Any) -> None:
        c["a"] = 1
        keys, items, values = c.keys(), c.items(), c.values()
        c["b"] = 2
        assert keys & {"b", "x"} == {"b"}
        assert ("b", 2) in items
        assert 2 in values
        assert len(keys) == len(items) == len(values) == 2

    def test_a_key_may_be_overwritten_with_any_kind_of_value(self, c: Any) -> None:
        for value in (
            1,
            [1],
            np.arange(3),
            "x" * 100_000,
            None,
            {1: 2},
            np.arange(1e5),
        ):
            c["x"] = value
            c = self.after(c)
            got = c["x"]
            assert type(got) is type(value)
            assert (
                np.array_equal(got, value) if hasattr(value, "dtype") else got == value
            )
