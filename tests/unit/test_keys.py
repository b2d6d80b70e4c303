"""Keys as text, and as file names."""

from __future__ import annotations

import pickle
import re
from collections.abc import Hashable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chest import Chest, errors, keys
from tests.contracts.mapping import KEYS, SAME

PLAIN = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.floats(allow_nan=False),
        st.text(st.characters()),
        st.binary(),
        st.fractions(),
        st.decimals(allow_nan=False),
        st.complex_numbers(allow_nan=False),
    ),
    lambda inner: st.one_of(
        st.tuples(inner), st.tuples(inner, inner), st.frozensets(inner, max_size=3)
    ),
    max_leaves=5,
)


@pytest.mark.parametrize("key", KEYS)
def test_text_is_read_back_as_an_equal_key(key: Hashable) -> None:
    import pickle

    again = keys.decode(msgspec.json.decode(keys.text(key)), pickle.loads)
    assert again == key
    assert hash(again) == hash(key)


@given(PLAIN)
def test_any_plain_key_is_read_back(key: Hashable) -> None:
    again = keys.decode(msgspec.json.decode(keys.text(key)))
    assert again == key
    assert hash(again) == hash(key)


@given(PLAIN, PLAIN)
def test_canonical_text_is_equal_when_the_keys_are(a: Hashable, b: Hashable) -> None:
    assert (keys.canonical(a) == keys.canonical(b)) == (a == b)


@pytest.mark.parametrize("same", SAME)
def test_equal_keys_want_one_name(same: tuple[Hashable, ...]) -> None:
    assert len({keys.canonical(key) for key in same}) == 1
    assert len({keys.key_to_filename(key) for key in same}) == 1


def test_different_keys_want_different_names() -> None:
    """But for a text that looks like a number's name; the store settles that."""
    odd = [key for key in KEYS if key != "int_1"]
    assert len({keys.key_to_filename(key) for key in odd}) == len(odd)


@given(PLAIN)
def test_names_are_safe_on_every_system(key: Hashable) -> None:
    for part in keys.key_to_filename(key).split("/"):
        assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.+\-]*", part)
        assert not part.endswith(".")
        assert len(part) <= 120
        assert part.partition(".")[0].lower() not in ("con", "nul", "aux", "prn")


@pytest.mark.parametrize(
    ("key", "name"),
    [
        ("x", "x"),
        ("_private", "_private"),
        ("2013-01-31", "2013-01-31"),
        ("big.zarr", "big.zarr"),
        (("one", "two"), "_one/two"),
        (("a", "b", "c"), "_a/_b/c"),
    ],
)
def test_identifiers_stay_and_tuples_become_folders(key: Hashable, name: str) -> None:
    assert keys.key_to_filename(key) == name


def test_a_key_that_cannot_be_pickled_is_refused() -> None:
    with pytest.raises(errors.KeyEncodingError) as caught:
        keys.encode(lambda: None)
    assert callable(caught.value.key)


@pytest.mark.parametrize("key", [[], {}, ([],), bytearray()])
def test_unhashable_keys_are_refused_as_by_a_dict(key: Hashable) -> None:
    with pytest.raises(TypeError):
        keys.encode(key)


def test_pickled_keys_are_opaque_without_a_loader() -> None:
    text = keys.encode(range(3))
    one, two = keys.decode(text), keys.decode(text)
    assert one == two
    assert hash(one) == hash(two)
    assert one != range(3)
    assert "not loaded" in repr(one)


@pytest.mark.parametrize("value", [{}, {"a": 1, "b": 2}, {"unknown": 1}])
def test_text_that_is_no_key_is_refused(value: object) -> None:
    with pytest.raises(ValueError, match="key"):
        keys.decode(value)


def test_surrogates_that_follow_one_another_are_not_the_character_of_the_pair(
    chest_dir: Path,
) -> None:
    pair, character = "\ud800\udc00", "\U00010000"
    for key in (pair, character, "\udc00\ud800", ("a", pair)):
        assert keys.decode(keys.encode(key)) == key
    with Chest(chest_dir) as c:
        c[pair], c[character] = "pair", "character"
    with Chest(chest_dir) as c:
        assert dict(c) == {pair: "pair", character: "character"}
        assert len({c.key_to_filename(key) for key in c}) == 2


class Lonely:
    """Equal to nothing but itself, as objects are."""


@pytest.mark.parametrize("use", ["set", "set_many", "incr", "add", "touch", "get"])
@pytest.mark.parametrize("key", [float("nan"), (1, float("nan")), Lonely()])
def test_a_key_that_would_be_another_one_when_it_is_read_leaves_the_chest_as_it_was(
    chest_dir: Path, use: str, key: Hashable
) -> None:
    with Chest(chest_dir) as c:
        c.update({number: number for number in range(10_000)})
        c.flush()  # which leaves a checkpoint
    with Chest(chest_dir) as c:
        if use == "touch":
            assert not c.touch(key, 10)
        elif use == "get":  # as a dict, which can be asked for anything
            assert key not in c
            assert c.get(key) is None
            assert c.pop(key, None) is None
        else:
            arguments: tuple[object, ...] = {
                "set_many": ({"y": 1, key: 1},),
                "incr": (key,),
            }.get(use, (key, 1))
            with pytest.raises(errors.KeyEncodingError, match="not equal to it"):
                getattr(c, use)(*arguments)
        c["x"] = 1
    with Chest(chest_dir) as c:
        assert {*c} - {"y"} == {*range(10_000), "x"}
        assert c.verify() == []


def test_a_nan_of_an_old_chest_is_found_replaced_and_deleted(chest_dir: Path) -> None:
    nan = float("nan")
    (chest_dir / ".keys").write_bytes(
        pickle.dumps([(nan, "n"), ("x", "x")], protocol=1)
    )
    for name in ("n", "x"):
        (chest_dir / name).write_bytes(pickle.dumps(name))
    for opened in range(3):
        with Chest(chest_dir) as c:
            key, other = c
            assert (str(key), other) == ("nan", "x")
            assert c[key] == (opened or "n")
            c[key] = opened + 1
            c.flush()
            c.compact()
            assert c[key] == opened + 1
    with Chest(chest_dir) as c:
        del c[key]
    with Chest(chest_dir) as c:
        assert dict(c) == {"x": "x"}
