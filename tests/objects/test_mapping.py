"""P1, P12: an object chest is a dict; what differs is said in docs/objects.rst."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Hashable
from decimal import Decimal
from typing import Any, ClassVar

import numpy as np
import pytest

from chest import Chest, DurableQueue, Ordered, errors
from chest.objects.naming import key_of, name_of
from tests.contracts.mapping import KEYS, SAME, MappingContract

pytest.importorskip("obstore", reason="obstore is not installed")
mapping_tests = pytest.importorskip("test.mapping_tests")

_numbers = itertools.count()
CHANGED = ("1e+300", "Decimal('0.1')")  # come back as an int and as a Fraction


def by_name(keys: Any) -> list[Any]:
    return sorted(keys, key=name_of)


class ObjectContract(MappingContract):
    """The kit, with the order of names in the place of the order of setting."""

    def order(self, model: dict[Any, Any]) -> list[Any]:
        return by_name(model)

    def test_order_is_that_of_first_setting(self, c: Any) -> None:
        for key in "zax":
            c[key] = key
        c["z"] = "overwritten"
        c = self.after(c)
        c["m"] = 1
        assert list(c) == ["a", "m", "x", "z"]
        assert list(reversed(c)) == ["z", "x", "m", "a"]
        assert list(c.values()) == ["a", 1, "x", "overwritten"]
        assert list(c.items())[-1] == ("z", "overwritten")
        assert next(reversed(c.items())) == ("z", "overwritten")
        assert list(reversed(c.keys())) == list(reversed(c))

    def test_deleted_and_set_again_comes_last(self, c: Any) -> None:
        c.update(a=1, b=2)
        c = self.after(c)
        del c["a"]
        c["a"] = 3
        c = self.after(c)
        assert list(c.items()) == [("a", 3), ("b", 2)]

    def test_pop_and_popitem(self, c: Any) -> None:
        c.update(a=1, b=2, c=3)
        c = self.after(c)
        assert c.popitem() == ("c", 3)
        assert c.pop("a") == 1
        c["a"] = 4
        c["b"] = 5
        assert c.popitem() == ("b", 5)
        c = self.after(c)
        assert c.popitem() == ("a", 4)
        for _ in range(2):
            with pytest.raises(KeyError):
                c.popitem()

    def test_keys_that_differ_never_collide(self, c: Any) -> None:
        for number, key in enumerate(KEYS):
            c[key] = number
        assert len(c) == len(KEYS)
        c = self.after(c)
        assert list(c) == by_name(KEYS)
        assert c.get_many(KEYS) == {key: n for n, key in enumerate(KEYS)}

    @pytest.mark.parametrize("key", [k for k in KEYS if repr(k) not in CHANGED])
    def test_any_key_stores_and_returns(self, c: Any, key: Hashable) -> None:
        super().test_any_key_stores_and_returns(c, key)

    def test_a_key_comes_back_in_its_plainest_form(self, c: Any) -> None:
        c[True] = 1
        c[1e20] = 2
        c[Decimal("0.5")] = 3
        assert [type(key) for key in self.after(c)] == [int, float, int]


class TestInMemory(ObjectContract):
    @pytest.fixture
    def c(self) -> Any:
        with Chest("memory://") as c:
            yield c


class TestFlushed(TestInMemory):
    def after(self, c: Any) -> Any:
        c.flush()
        return c


class TestReopened(ObjectContract):
    @pytest.fixture
    def c(self) -> Any:
        address = f"memory://{next(_numbers)}/prefix"
        self.opened: list[Any] = [Chest(address)]
        yield self.opened[0]
        self.opened[-1].drop()

    def after(self, c: Any) -> Any:
        c.close()
        self.opened.append(Chest(c.path))
        return self.opened[-1]


class TestOnS3(ObjectContract):
    @pytest.fixture
    def c(self, bucket: str) -> Any:
        with Chest(bucket, trust="any") as c:
            yield c

    def after(self, c: Any) -> Any:
        c.flush()
        return c


class TestPublishingEach(ObjectContract):
    @pytest.fixture
    def c(self) -> Any:
        with Chest("memory://", publish="each") as c:
            yield c


class TestWithoutMemory(ObjectContract):
    @pytest.fixture
    def c(self) -> Any:
        with Chest("memory://", available_memory=0) as c:
            yield c


class Python(mapping_tests.BasicTestMappingProtocol):
    """CPython's own tests of the mapping protocol."""

    type2test = Chest
    options: ClassVar[dict[str, Any]] = {}

    def _empty_mapping(self) -> Any:
        made = Chest("memory://", **self.options)
        self.addCleanup(made.close)
        return made

    def _full_mapping(self, data: dict[Any, Any]) -> Any:
        made = self._empty_mapping()
        made.update(data)
        return made


class TestPythonsOwn(Python):
    pass


class TestPythonsOwnEach(Python):
    options: ClassVar[dict[str, Any]] = {"publish": "each", "max_age": 0}


del Python, MappingContract, ObjectContract


# -- names -------------------------------------------------------------------------------


def test_a_name_tells_the_key_and_never_leads_out_of_the_prefix() -> None:
    import pickle

    names = [name_of(key) for key in KEYS]
    assert len(set(names)) == len(KEYS)
    assert [key_of(name, pickle.loads) for name in names] == KEYS
    for name in names:
        for part in name.split("/"):
            assert part not in ("", ".", "..")
            assert not part.startswith(".")
            assert len(part) <= 201
            assert part.isascii()
    for equal in SAME:
        assert len({name_of(key) for key in equal}) == 1


@pytest.mark.parametrize(
    "name",
    [
        *("a b", "", ".", "_a", "_a/", "a/b", "!41", "_a//b", "(x)", "a!", "x" * 201),
        *("(1.0)", ".chest/x", "a!/b", "!ZZ", "()", "x/", "(true)", "!FF"),
        "(!7B!22x!22!3A1!7D)",
    ],
)
def test_what_no_key_is_called_is_told_from_names(name: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        key_of(name)


def test_objects_that_are_no_keys_are_passed_over(bucket: str) -> None:
    import obstore

    with Chest(bucket, trust="any") as c:
        c["x"] = 1
        c.flush()
        for name in ("a b", "x/", "_folder/"):
            obstore.put(c._store._store, name, b"something else, not of a chest")
        assert list(c) == ["x"]


def test_a_key_too_long_for_a_name_is_refused(bucket: str) -> None:
    with Chest(bucket, trust="any") as c:
        c["x" * 900] = 1
        with pytest.raises(errors.KeyEncodingError, match="shorten"):
            c["x" * 1000] = 1
        assert list(c) == ["x" * 900]


# -- what is said ------------------------------------------------------------------------


def test_it_is_a_chest_to_everyone_who_asks() -> None:
    with Chest("memory://") as c:
        assert isinstance(c, Chest)
        assert issubclass(type(c), Chest)
        assert not isinstance({}, Chest)
        assert type(c).__name__ == "ObjectChest"


def test_repr_asks_nobody(bucket: str) -> None:
    with Chest(bucket, trust="any", available_memory="1MB") as c:
        c["x"] = "y"
        size = sys.getsizeof("y")
        assert repr(c) == f"<ObjectChest at {bucket}: 1 in memory, {size} B of 1 MB>"
    assert repr(c) == f"<ObjectChest at {bucket}: closed>"


def test_facts_of_a_key_and_counts() -> None:
    with Chest("memory://facts/of") as c:
        c["x"] = np.zeros(1000)
        assert c.entry("x").dirty
        assert c.entry("x").etag == ""
        c.flush()
        facts = c.entry("x")
        assert facts.path == c.key_to_filename("x") == "memory://facts/of/x"
        assert (facts.nbytes, facts.in_memory, facts.format) == (8000, False, "pickle")
        assert facts.etag
        assert c["x"].shape == c["x"].shape == (1000,)
        stats = c.stats()
        assert (stats.keys, stats.writes, stats.loads, stats.hits) == (1, 1, 1, 1)
        assert stats.stored_nbytes == c.stored_nbytes > 8000
        with pytest.raises(KeyError):
            c.entry("y")
        c.drop()


@pytest.mark.parametrize(
    "use",
    [
        lambda c: c.zarr("x"),
        lambda c: c.snapshot("folder"),
        lambda c: c.trim(),
        lambda c: c.set("x", 1, format="zarr"),
        lambda c: c.transact(lambda t: [*t]),
        lambda c: Ordered(c),
        lambda c: DurableQueue(c),
    ],
)
def test_what_cannot_be_had_says_what_can(use: Any) -> None:
    with Chest("memory://") as c:
        with pytest.raises(errors.UnsupportedError, match="not to be had"):
            use(c)
        with pytest.raises(NotImplementedError):
            use(c)


@pytest.mark.parametrize(
    "options",
    [{"dump": repr}, {"on_conflict": max}, {"available_disk": 5}, {"format": "zarr"}],
)
def test_options_of_folders_are_refused(options: Any) -> None:
    with pytest.raises(ValueError, match="is for a chest in a folder"):
        Chest("memory://", **options)


def test_options_of_stores_are_refused_for_folders(chest_dir: Any) -> None:
    with pytest.raises(ValueError, match="storage="):
        Chest(chest_dir, storage={})
    own = type("Own", (Chest,), {"__slots__": ()})
    with pytest.raises(ValueError, match="address"):
        own("memory://")


def test_an_unknown_address_or_option_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot be opened"):
        Chest("ftp://somewhere", trust="any")
    with pytest.raises(ValueError, match="no_such"):
        Chest("s3://bucket", trust="any", storage={"no_such": 1})
    with pytest.raises(TypeError):
        Chest("memory://", no_such=1)
