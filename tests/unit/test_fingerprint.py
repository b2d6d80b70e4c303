"""Fingerprints: the same for what is equal, in every process and every Python."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import datetime
import enum
import functools
import itertools
import linecache
import pathlib
import subprocess
import sys
import threading
import types
import zoneinfo
from decimal import Decimal
from typing import Any, ClassVar

import pytest

from chest import Chest, errors
from chest.fingerprint import Code, fingerprint, is_own, token

numbered = itertools.count()


def define(source: str, **names: Any) -> dict[str, Any]:
    """Run code as a notebook's cell: its globals."""
    file = f"<cell {next(numbered)}>"
    linecache.cache[file] = len(source), None, source.splitlines(True), file
    space: dict[str, Any] = {"__name__": "notebook", **names}
    exec(compile(source, file, "exec"), space)
    return space


def code(source: str, **names: Any) -> bytes:
    """The fingerprint of a function ``f`` that is defined so."""
    return Code(define(source, **names)["f"]).token


@dataclasses.dataclass
class Point:
    x: float
    y: float = 0.0


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


Pair = collections.namedtuple("Pair", "a b")

PLAIN = {
    "numbers": [None, 1, 1.0, True, 2**80, -0.0, 1j],
    "text": ["é", "x" * 9999, b"a", b"a" * 9999, "\ud800"],
    "nested": {"a": [1, (2, {3, "x"})], 2: frozenset("ab"), None: {}},
    "decimal": Decimal("1.10"),
    "time": [datetime.date(2013, 1, 1), datetime.timedelta(hours=1)],
    "zone": datetime.datetime(2013, 1, 1, tzinfo=datetime.UTC),
    "path": pathlib.PurePosixPath("/a/b"),
    "function": functools.partial(len),
    "range": [range(3), slice(1, None), ...],
    "ordered": collections.OrderedDict(a=1, b=2),
}


PINNED = {
    "numbers": "57ae37cc5dcf",
    "text": "38aa70ca9aba",
    "nested": "430806c44411",
    "decimal": "b2d131e4aca9",
    "time": "c3e7089ae48b",
    "zone": "aa09789fbe46",
    "path": "fee48423a672",
    "function": "e9ae2e465a4a",
    "range": "6b370635de61",
    "ordered": "2c49d53709ea",
}


def pinned(value: Any) -> str:
    return fingerprint(value)[:12]


# ---------------------------------------------------------------------------- values


def test_plain_data_have_the_fingerprints_they_always_had():
    assert {name: pinned(value) for name, value in PLAIN.items()} == PINNED


def test_equal_numbers_of_other_types_are_other_values():
    found = {fingerprint(value) for value in (1, 1.0, True, "1", b"1", 0.0, -0.0, 1j)}

    assert len(found) == 8


def test_containers_of_other_types_are_other_values():
    values: list[Any] = [[], (), {}, set(), frozenset(), "", b"", bytearray(), [[]]]

    assert len({fingerprint(value) for value in values}) == len(values)


def test_neighbours_do_not_run_together():
    values: list[Any] = [["ab", "c"], ["a", "bc"], [["ab"], "c"], ["ab", ["c"]]]

    assert len({fingerprint(value) for value in values}) == len(values)


def test_sets_and_dicts_count_in_any_order():
    names = [f"name-{number}" for number in range(50)]

    forward, backward = set(names), set()
    backward.update(reversed(names))
    assert fingerprint(forward) == fingerprint(backward)
    assert fingerprint(dict.fromkeys(names)) == fingerprint(
        dict.fromkeys(reversed(names))
    )


def test_the_order_of_an_ordered_dict_counts():
    one, other = collections.OrderedDict(a=1, b=2), collections.OrderedDict(b=2, a=1)

    assert fingerprint(one) != fingerprint(other)


def test_identity_does_not_matter():
    shared = [1, 2]

    assert fingerprint([shared, shared]) == fingerprint([[1, 2], [1, 2]])
    assert fingerprint(["a" + str(1)] * 2) == fingerprint(["a1", "".join("a1")])


def test_what_holds_itself_has_a_fingerprint():
    one: list[Any] = [1]
    one.append(one)
    other: list[Any] = [1]
    other.append(other)

    assert fingerprint(one) == fingerprint(other) != fingerprint([1, [1]])


def test_objects_are_their_class_and_their_state():
    assert fingerprint(Point(1)) == fingerprint(Point(1)) != fingerprint(Point(2))
    assert fingerprint(Colour.RED) != fingerprint(Colour.BLUE)
    assert fingerprint(Pair(1, 2)) != fingerprint((1, 2))
    assert fingerprint(Pair(1, 2)) == fingerprint(Pair(1, 2))


def test_subclasses_of_containers_keep_their_attributes():
    class Named(dict):  # type: ignore[type-arg]
        name = ""

    one, other = Named(a=1), Named(a=1)
    other.name = "other"

    assert fingerprint(one) != fingerprint(other)
    assert fingerprint(collections.Counter("aab")) == fingerprint(
        collections.Counter("baa")
    )


def test_what_no_other_process_finds_again_is_refused():
    lock = threading.Lock()
    for value, reason in [
        (object(), "identity"),
        (iter([1]), "used up"),
        ((each for each in "a"), "used up"),
        (lock, "cannot be pickled"),
        ([{"deep": lock}], "cannot be pickled"),
    ]:
        with pytest.raises(errors.FingerprintError, match=reason):
            fingerprint(value)


def test_the_hash_seed_does_not_matter():
    script = (
        "from chest.fingerprint import fingerprint as f;"
        "print(f([{'a','b','c'}, {'x': {1, 'y'}}, frozenset('abc')]))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }

    assert len(found) == 1


# ---------------------------------------------------------------- arrays and frames


def test_arrays_are_their_content_whatever_their_layout():
    np = pytest.importorskip("numpy")
    a = np.arange(200_000.0).reshape(400, 500)

    same = [a.copy("F"), np.array(a[::-1])[::-1], np.hstack([a, a])[:, :500]]

    assert {fingerprint(each) for each in [a, *same]} == {fingerprint(a)}
    other = [a.T, a.astype("f4"), a.ravel(), a + 1, a.astype(">f8")]
    assert len({fingerprint(each) for each in [a, *other]}) == 6


def test_what_lies_between_or_under_the_elements_does_not_count():
    np = pytest.importorskip("numpy")
    kind = np.dtype({"names": ["a", "b"], "formats": ["u1", "f8"], "offsets": [0, 8]})
    one, other = np.zeros(3, kind), np.frombuffer(b"\xff" * 48, kind).copy()
    other["a"], other["b"] = 0, 0
    masked = [np.ma.masked_array([1, under], [False, True]) for under in (2, 3)]

    assert fingerprint(one) == fingerprint(other)
    assert fingerprint(masked[0]) == fingerprint(masked[1])
    assert fingerprint(np.longdouble(1) / 3) == fingerprint(np.longdouble(1) / 3)


def test_odd_arrays_have_fingerprints():
    np = pytest.importorskip("numpy")
    arrays = [
        np.array(["a", None, 1], object),
        np.array("2013-01-01", "M8[D]"),
        np.empty((0, 3)),
        np.array(1),
        np.array(["ab"]),
        np.rec.array([(1, 2.0)]),
        np.float64(1),
        np.dtype("f8"),
        np.random.default_rng(1),
    ]

    assert len({fingerprint(each) for each in arrays}) == len(arrays)


def test_equal_frames_are_one_whatever_their_blocks():
    """joblib/joblib#1611: equal frames had other hashes."""
    pd = pytest.importorskip("pandas")
    one = pd.DataFrame({"a": [1, 2], "b": ["x", None], "c": [1.5, 2.5], "d": [3, 4]})
    other = pd.DataFrame({"a": [1, 2], "b": ["x", None]}, index=pd.Index([0, 1]))
    other["c"] = [1.5, 2.5]
    other["d"] = [3, 4]

    assert fingerprint(one) == fingerprint(other)
    assert fingerprint(one) == fingerprint(other.copy())
    for changed in (one.rename(columns={"a": "A"}), one[::-1], one.astype({"a": "f8"})):
        assert fingerprint(changed) != fingerprint(one)


def test_all_kinds_of_columns_count():
    pd = pytest.importorskip("pandas")

    def make(last: int) -> Any:
        return pd.DataFrame(
            {
                "time": pd.to_datetime(["2013-01-01", "2013-01-02"]).tz_localize("UTC"),
                "kind": pd.Categorical(["a", "b"]),
                "maybe": pd.array([None, last], "Int64"),
                "period": pd.period_range("2013", periods=2, freq="M"),
                "text": pd.array(["x", None], "string"),
            },
            index=pd.MultiIndex.from_tuples([(1, "a"), (2, "b")], names=["n", "t"]),
        )

    assert fingerprint(make(1)) == fingerprint(make(1)) != fingerprint(make(2))
    assert fingerprint(make(1)["text"]) == fingerprint(make(2)["text"])


def test_tables_are_one_however_they_are_cut():
    pa = pytest.importorskip("pyarrow")
    columns = {
        "n": [1, None, 3, 4],
        "t": ["a", "bc", None, ""],
        "b": [True, None, False, True],
        "l": [[1], [2, 3], None, []],
        "d": [1.5, 2.5, 3.5, 4.5],
    }
    whole = pa.table(columns)
    cut = pa.concat_tables([whole.slice(0, 1), whole.slice(1, 2), whole.slice(3)])
    other = pa.table({**columns, "t": ["ab", "c", None, ""]})

    assert fingerprint(whole) == fingerprint(cut) != fingerprint(other)
    sliced = pa.table({k: [None, *v] for k, v in columns.items()}).slice(1)
    assert fingerprint(sliced) == fingerprint(whole)


def test_other_libraries_values_are_their_content():
    pl = pytest.importorskip("polars")
    scipy = pytest.importorskip("scipy.sparse")
    xr = pytest.importorskip("xarray")

    def make(last: int) -> list[Any]:
        return [
            pl.DataFrame({"a": [1, last], "b": ["x", None]}),
            pl.Series("s", [1, last]),
            scipy.csr_array([[1, 0], [0, last]]),
            xr.DataArray([1, last], dims="x", coords={"x": [10, 20]}),
            xr.Dataset({"v": ("x", [1, last])}, attrs={"unit": "m"}),
        ]

    for one, same, other in zip(make(1), make(1), make(2), strict=True):
        assert fingerprint(one) == fingerprint(same) != fingerprint(other)


def test_a_mapped_array_is_hashed_once(chest_dir: pathlib.Path, monkeypatch: Any):
    np = pytest.importorskip("numpy")
    from chest.fingerprint import libraries

    with Chest(chest_dir) as c:
        c["a"] = np.arange(1_000_000.0)
        c.flush()
        first = fingerprint(c["a"])
        monkeypatch.setattr(libraries, "_buffer", None)  # would be called

        assert fingerprint(c["a"]) == first
        assert fingerprint(c["a"].reshape(1000, -1).reshape(-1)) == first
        monkeypatch.undo()
        assert fingerprint(np.arange(1_000_000.0)) == first


def test_a_read_only_view_of_what_can_change_is_hashed_each_time():
    np = pytest.importorskip("numpy")
    a = np.arange(100_000.0)
    view = a.view()
    view.flags.writeable = False
    before = fingerprint(view)
    a[0] = 7

    assert fingerprint(view) != before


# ------------------------------------------------------------------------------ code

PLAINEST = "def f(x):\n    return g(x) + 1\ndef g(x):\n    return x * 2\n"


def test_comments_docstrings_and_lines_do_not_count():
    """joblib/joblib#1533: any edit of the text threw the results away."""
    said = (
        "\n\n# about f\ndef f(x):\n    '''Doc.'''\n    # why\n\n    return g(x) + 1\n"
        "def g(x: int) -> int:\n    'Doc.'\n    return x * 2\n"
    )

    assert code(PLAINEST) == code(said)


def test_what_is_done_counts():
    assert code(PLAINEST) != code(PLAINEST.replace("+ 1", "+ 2"))


def test_a_helper_counts():
    """joblib/joblib#1287: a changed helper gave old results."""
    assert code(PLAINEST) != code(PLAINEST.replace("* 2", "* 3"))


def test_a_helper_of_a_helper_counts_and_recursion_ends():
    text = "def f(x): return g(x)\ndef g(x): return h(x)\ndef h(x): return x and f(0)\n"

    assert code(text) == code(text) != code(text.replace("x and", "x or"))


@pytest.mark.parametrize("value", [1, "a", (1, "b"), frozenset({1}), None, 1.5])
def test_immutable_globals_count(value):
    text = "def f(): return K"

    assert code(text, K=value) == code(text, K=value) != code(text, K=("other",))


@pytest.mark.parametrize("value", [[1], {"a": 1}, {1}, bytearray(b"a")])
def test_mutable_globals_do_not_count(value):
    assert code("def f(): return K", K=value) == code("def f(): return K", K=[2])


def test_a_closure_counts_where_it_is_immutable():
    text = "def make(k, held):\n    def f(): return k, held\n    return f\n"
    make = define(text)["make"]

    def of(*captured: Any) -> bytes:
        return Code(make(*captured)).token

    assert of(1, [1]) == of(1, [2]) != of(2, [1])


def test_what_a_function_counts_up_itself_is_state():
    text = "n = {}\ndef f():\n    global n\n    n += 1\n    return 5\n"

    assert code(text.format(0)) == code(text.format(3))


def test_nested_functions_and_classes_count():
    text = (
        "def f(x):\n    class A:\n        'Doc.'\n        k = 1\n"
        "    return [y + K for y in x], (lambda z: z), A\n"
    )

    assert code(text, K=1) != code(text, K=2)
    assert code(text, K=1) != code(text.replace("k = 1", "k = 2"), K=1)
    assert code(text, K=1) == code("\n\n" + text.replace("Doc", "Other"), K=1)


def test_classes_count_with_their_methods_and_bases():
    text = (
        "class A:\n    def m(self): return {}\nclass B(A): pass\ndef f(): return B()\n"
    )

    assert code(text.format(1)) == code(text.format(1)) != code(text.format(2))


def test_modules_of_ones_own_are_followed(monkeypatch):
    module = types.ModuleType("own_helpers")
    monkeypatch.setitem(sys.modules, "own_helpers", module)
    text = "def f(): return own_helpers.g()"
    exec("def g(): return 1", vars(module))
    one = code(text, own_helpers=module)
    within = code("def f():\n    from own_helpers import g\n    return g()")
    exec("def g(): return 2", vars(module))

    assert code(text, own_helpers=module) != one
    assert code("def f():\n    from own_helpers import g\n    return g()") != within


@pytest.fixture
def own_package(monkeypatch, tmp_path):
    """A package of the user's own, with modules that were not imported yet."""
    name = f"own_package_{next(numbered)}"
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").write_text("def top(): return 1\n")
    for each in ("mod", "other"):
        (folder / f"{each}.py").write_text(
            "n = 0\ndef g(): return h()\ndef h(): return 1\n"
            "def count():\n    global n\n    n += 1\n"
        )
    monkeypatch.syspath_prepend(tmp_path)
    yield name
    for each in [each for each in sys.modules if each.partition(".")[0] == name]:
        del sys.modules[each]


@pytest.mark.parametrize(
    "text",
    [
        "def f():\n    import {}.mod\n    return {}.mod.g()",
        "def f():\n    import {}.mod as m\n    return m.g()",
        "def f():\n    from {} import mod\n    return mod.g()",
        "def f():\n    from {} import other, mod as m\n    return m.g()",
        "def f():\n    from {}.mod import g\n    return g()",
        "import {}.mod as own\ndef f():\n    m = own\n    return m.g()",
        "import {}.mod as own\ndef f():\n    return getattr(own, 'g')()",
        "import {}.mod as own\ndef make(m): return lambda: m.g()\nf = make(own)",
        "import {}.mod as own\ndef f(m=own):\n    return m.g()",
    ],
)
def test_modules_of_ones_own_are_followed_wherever_they_are_met(own_package, text):
    f = define(text.replace("{}", own_package))["f"]
    held = Code(f)
    module = sys.modules[f"{own_package}.mod"]
    module.n = 7  # what a function of its own counts up is state
    assert held.token == Code(f).token
    assert f() == 1

    module.h = lambda: 2

    assert not held.holds()
    assert Code(f).token != held.token


def test_an_imported_package_of_ones_own_is_followed_where_its_name_is_bound(
    own_package,
):
    text = "def f():\n    import {}.mod\n    return {}.top()"
    f = define(text.replace("{}", own_package))["f"]
    held = Code(f)

    sys.modules[own_package].top = lambda: 2

    assert not held.holds()
    assert Code(f).token != held.token


def test_what_is_installed_is_its_name():
    assert is_own(__file__)
    assert not is_own(pathlib.__file__)
    assert not is_own(pytest.__file__)
    assert code("def f(): return dumps(1)", dumps=__import__("json").dumps)


@pytest.mark.parametrize("folder", ["site-packages", "dist-packages"])
def test_what_another_environment_has_installed_is_not_the_users(tmp_path, folder):
    assert not is_own(str(tmp_path / folder / "package" / "__init__.py"))
    assert is_own(str(tmp_path / f"my-{folder}" / "package" / "__init__.py"))


def test_wrappers_are_looked_through():
    text = "def g(x): return x + {}\ng = wrap(g)\ndef f(x): return g(x)\n"
    for wrap in (functools.cache, staticmethod, functools.partial):
        one, other = (code(text.format(n), wrap=wrap) for n in (1, 2))
        assert one != other


def test_a_frozen_dataclass_counts_as_a_constant():
    kind = dataclasses.make_dataclass("Config", ["k"], frozen=True)

    assert code("def f(): return K", K=kind(1)) != code("def f(): return K", K=kind(2))


@pytest.mark.parametrize(
    "change",
    [
        "g = len",
        "def g(x): return x",
        "len = 3",
        "K = 2",
        "del K",
        "g.__code__ = (lambda x: x).__code__",
        "g.__defaults__ = (3,)",
        "g.__kwdefaults__ = {'z': 3}",
        "g.__kwdefaults__['z'] = 3",
        "g.__kwdefaults__.clear()",
        "B.m = g",
        "A.m = g",
    ],
)
def test_a_change_of_anything_that_counts_is_noticed(change):
    space = define(
        "K = 1\ndef g(x, y=1, *, z=2): return len(x)\n"
        "class A:\n def m(self): pass\nclass B(A): pass\n"
        "def f(x): return g(x), K, B().m()\n"
    )
    held = Code(space["f"])
    assert held.holds()

    exec(change, space)

    assert not held.holds()


@pytest.mark.parametrize(
    "change",
    ["g.register(str, len)", "g.register(int, len)"],
)
def test_a_function_that_is_registered_later_is_noticed(change):
    space = define(
        "import functools\n@functools.singledispatch\ndef g(x): return 1\n"
        "@g.register\ndef _(x: int): return 2\ndef f(x): return g(x)"
    )
    held = Code(space["f"])
    assert held.holds()

    exec(change, space)

    assert not held.holds()
    assert Code(space["f"]).token != held.token


def test_members_of_an_enumeration_count_by_name_type_and_value():
    text = "import enum\nclass E(enum.Enum):\n A = {}\n B = {}\ndef f(): return E"

    assert code(text.format(1, 2)) == code(text.format(1, 2))
    assert code(text.format(1, 2)) != code(text.format("'1'", 2))
    assert code(text.format("object()", 2)) == code(text.format("object()", 2))
    one, other = (text.format(f"(lambda: {n},)", 2) for n in (1, 2))
    assert code(one) == code(one) != code(other)


def test_a_captured_member_without_fingerprint_is_no_error():
    text = "import enum\nclass E(enum.Enum):\n A = object()\nK = E.A\ndef f(): return K"

    assert code(text) == code(text)


@dataclasses.dataclass(frozen=True)
class Settings:
    x: int
    y: dataclasses.InitVar[int]
    z: ClassVar[int]


def test_a_frozen_dataclass_counts_by_its_fields_alone():
    def of(x: int, y: int) -> bytes:
        return code("def f(): return K", K=Settings(x, y))

    assert of(1, 2) == of(1, 3) != of(2, 2)


def test_a_change_of_anything_else_is_not():
    space = define("other = 1\ndef f(x): return x\n")
    held = Code(space["f"])

    space["other"] = 2

    assert held.holds()


def test_a_function_is_an_argument_by_its_code():
    one, same, other = (define(f"def f(x): return x + {n}")["f"] for n in (1, 1, 2))

    assert token(one) == token(same) != token(other)
    assert token(len) != token(sum)
    assert token([].append) != token([1].append)


def test_functions_of_one_name_in_two_modules_of_a_package_are_two():
    linalg = pytest.importorskip("scipy.linalg")
    sparse = pytest.importorskip("scipy.sparse.linalg")

    assert fingerprint(linalg.norm) != fingerprint(sparse.norm)
    assert fingerprint(linalg.norm, code=False) != fingerprint(sparse.norm, code=False)


def test_lambdas_of_an_installed_module_are_told_apart():
    one, other = (
        eval(compile(f"lambda x: x + {n}", pathlib.__file__, "eval")) for n in (1, 2)
    )

    assert not is_own(one.__code__.co_filename)
    assert fingerprint(one) != fingerprint(other)
    assert fingerprint(one, code=False) != fingerprint(other, code=False)


def test_what_an_installed_decorator_wraps_counts():
    one, other = (define(f"def f(): yield {n}")["f"] for n in (1, 2))

    for more in ({}, {"code": False}):
        found = [
            fingerprint(contextlib.contextmanager(f), **more) for f in (one, other)
        ]
        assert found[0] != found[1]


class Slotted(dict):
    __slots__ = ("x",)

    def __init__(self, x: int) -> None:
        self.x = x


class SlottedSet(set):
    __slots__ = ("x",)

    def __init__(self, x: int) -> None:
        self.x = x


def moment(hours: int, **more: Any) -> datetime.datetime:
    zone = datetime.timezone(datetime.timedelta(hours=hours))
    return datetime.datetime(2020, 1, 1, tzinfo=zone, **more)


@pytest.mark.parametrize(
    "pair",
    [
        lambda: (
            moment(1),
            moment(1).replace(tzinfo=zoneinfo.ZoneInfo("Europe/Berlin")),
        ),
        lambda: (datetime.datetime(2020, 1, 1), datetime.datetime(2020, 1, 1, fold=1)),
        lambda: (collections.defaultdict(int, a=1), collections.defaultdict(str, a=1)),
        lambda: (Slotted(1), Slotted(2)),
        lambda: (SlottedSet(1), SlottedSet(2)),
    ],
    ids=["zone", "fold", "factory", "slots of a dict", "slots of a set"],
)
def test_what_equality_does_not_show_counts(pair):
    one, other = pair()

    assert one == other
    assert fingerprint(one) != fingerprint(other)
    assert fingerprint(one) == fingerprint(pair()[0])


def test_times_of_pandas_are_told_apart_by_zone_and_unit():
    pd = pytest.importorskip("pandas")
    times = [
        pd.Timestamp("2020-01-01", tz="Europe/Berlin"),
        pd.Timestamp("2020-01-01", tz="Etc/GMT-1"),
        pd.Timestamp("2020-01-01").as_unit("s"),
        pd.Timestamp("2020-01-01").as_unit("ns"),
    ]

    assert len({fingerprint(time) for time in times}) == 4


def test_a_column_with_gaps_in_a_buffer_that_is_too_long_has_a_fingerprint():
    pa = pytest.importorskip("pyarrow")
    buffers = [pa.py_buffer(b"\x05"), pa.py_buffer(bytes(range(29)))]
    long = pa.Array.from_buffers(pa.int64(), 3, buffers)

    assert fingerprint(long) == fingerprint(pa.array(long.to_pylist()))


def test_what_a_subclass_of_a_frame_declares_counts():
    pd = pytest.importorskip("pandas")

    class Measured(pd.DataFrame):
        _metadata = ("unit",)

    one, other = Measured({"a": [1]}), Measured({"a": [1]})
    one.unit, other.unit = "m", "km"

    assert fingerprint(one) != fingerprint(other)


def test_a_column_that_may_have_gaps_is_another():
    pa = pytest.importorskip("pyarrow")
    strict = pa.schema([pa.field("a", pa.int64(), nullable=False)])

    assert fingerprint(pa.table({"a": [1]}, schema=strict)) != fingerprint(
        pa.table({"a": [1]})
    )


@pytest.mark.parametrize(
    "text",
    [
        "def f(x): return dict({}=x)",
        "def h(x, k=['{}']): return k\ndef f(x): return h(x)",
        "def h(x, *, k={{'{}'}}): return k\ndef f(x): return h(x)",
        "class A:\n def m(self): return '{}'\na = A()\ndef f(x): return a.m()",
        "class M(type):\n def __call__(self): return '{}'\n"
        "class A(metaclass=M): pass\ndef f(x): return A()",
        "k = '{}'.upper\ndef f(x): return k()",
        "k = slice('{}')\ndef f(x): return k",
        "import operator\nk = operator.itemgetter('{}')\ndef f(x): return k(x)",
        "import numpy\nk = numpy.str_('{}')\ndef f(x): return k",
        "import numpy\nk = numpy.bool_('{}' == 'a')\ndef f(x): return k",
        "import numpy\nk = numpy.dtype([('{}', 'i4')])\ndef f(x): return k",
        "import functools\n@functools.singledispatch\ndef g(x): return 1\n"
        "@g.register\ndef _(x: int): return '{}'\ndef f(x): return g(x)",
        "import functools\nclass A:\n @functools.singledispatchmethod\n"
        " def m(self, x): return '{}'\ndef f(x): return A().m(x)",
        "import functools\nclass A:\n def n(self, k): return k\n"
        " m = functools.partialmethod(n, '{}')\ndef f(x): return A().m()",
        "class D:\n def __init__(self, g): self.g = g\n"
        " def __call__(self, x): return self.g(x)\n"
        "@D\ndef h(x): return '{}'\ndef f(x): return h(x)",
        "import functools\nclass D:\n"
        " def __init__(self, g): functools.update_wrapper(self, g)\n"
        " def __call__(self, x): return self.__wrapped__(x), '{}'\n"
        "@D\ndef h(x): return x\ndef f(x): return h(x)",
        "import numpy\n@numpy.vectorize\ndef h(x): return '{}'\ndef f(x): return h(x)",
    ],
)
def test_code_that_stands_in_odd_places_counts(text):
    one, other, again = (
        Code(define(text.format(each))["f"]).token for each in ("a", "b", "a")
    )

    assert one != other
    assert one == again
