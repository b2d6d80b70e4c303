from __future__ import annotations

import datetime
import decimal
import math
import pathlib
import pickle
import types
import uuid
import zoneinfo

import msgspec
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chest import errors
from chest.formats import footer
from chest.formats.data import MAGIC, Data
from chest.protocols import Source
from tests.unit.format_files import (
    FILE_ID,
    FullDisk,
    check_every_flip,
    check_every_truncation,
    dump,
    load,
    load_bytes,
    source,
)

FORM = Data()
UTC = datetime.UTC
BERLIN = zoneinfo.ZoneInfo("Europe/Berlin")


class MemorySink:
    path = "memory"

    def __init__(self):
        self.data = bytearray()

    def write(self, buffers):
        for each in buffers:
            self.data += each

    def restart(self):
        self.data.clear()


def written(value):
    sink = MemorySink()
    FORM.dump(value, sink, key="'k'", file_id=FILE_ID)
    return bytes(sink.data)


def crafted(node, buffers=()):
    """A file with correct checksums around whatever somebody made up."""
    sink = MemorySink()
    body = footer.Body(sink)
    body.add(node if isinstance(node, bytes) else msgspec.json.encode(node))
    for each in buffers:
        body.add_payload(bytes(-body.at % 64), memoryview(each), readonly=True)
    body.finish(MAGIC, "'k'", FILE_ID, None)
    return bytes(sink.data)


def alike(left, right):
    """Equal and of the same types all the way down, NaN and −0.0 included."""
    if isinstance(right, (set, frozenset)):
        return type(left) is type(right) and left == right
    return type(left) is type(right) and repr(left) == repr(right)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "value"


VALUES = [
    None,
    True,
    0,
    -(2**63),
    2**63,
    -(10**100),
    1.0,
    -0.0,
    math.inf,
    math.nan,
    complex(-0.0, math.nan),
    "",
    "é\0\U0001f600",
    "\ud800 alone",
    b"",
    b"x" * 5000,
    bytearray(b"abc"),
    bytearray(5000),
    [],
    (),
    {},
    set(),
    frozenset({1, "a"}),
    [1, (2.0, [True, {"a": {3}}])],
    {1: "int", "1": "str", (1, frozenset({b"k"})): None, None: [], 2.5: {}},
    datetime.datetime(2020, 1, 2, 3, 4, 5, 6),
    datetime.datetime(2020, 10, 25, 2, 30, tzinfo=BERLIN, fold=1),
    datetime.datetime(2020, 1, 1, tzinfo=UTC),
    datetime.datetime.max,
    datetime.date(1, 1, 1),
    datetime.time(23, 59, 59, 999999, tzinfo=UTC),
    datetime.timedelta(-1, 5, 7),
    datetime.timezone(datetime.timedelta(hours=-3, microseconds=1), "here"),
    datetime.timezone(datetime.timedelta(hours=2)),
    UTC,
    BERLIN,
    decimal.Decimal("-1.500E+7"),
    decimal.Decimal("sNaN123"),
    uuid.UUID(int=7),
    pathlib.Path("/a/b c"),
    range(5, -(10**30), -3),
    np.float64(0.1),
    np.int8(-3),
    np.bool_(True),
    np.datetime64("2020-01-01T00:00", "25m"),
    np.str_("é"),
    np.bytes_(b"ab"),
    np.void(b"\0ab"),
    np.array((1, 2.5), [("a", "<i2"), ("b", ">f8")])[()],
]


@pytest.mark.parametrize("value", VALUES)
@pytest.mark.parametrize("mapped", [True, False])
def test_plain_values_come_back_with_their_exact_types(path, value, mapped):
    receipt = dump(FORM, value, path)
    assert alike(load(FORM, path, mapped=mapped), value)
    assert FORM.digest(value) == receipt.digest


PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.complex_numbers()
    | st.text(st.characters())
    | st.binary()
    | st.decimals()
    | st.datetimes(timezones=st.none() | st.just(UTC))
    | st.timedeltas(),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=4).map(tuple)
        | st.dictionaries(st.text() | st.tuples(st.integers()), inner, max_size=4)
    ),
    max_leaves=20,
)


@given(PLAIN)
def test_any_nesting_of_plain_values_comes_back(value):
    assert alike(load_bytes(FORM, written(value)), value)


ARRAYS = {
    "c": lambda: np.arange(30000.0).reshape(100, -1),
    "fortran": lambda: np.arange(12).reshape(3, 4).T,
    "strided": lambda: np.arange(30000)[::-3],
    "0-d": lambda: np.array(3.5),
    "empty": lambda: np.zeros((3, 0, 2), "i2"),
    "strings": lambda: np.array(["a", "bcé"]),
    "bytes": lambda: np.array([b"a", b"bc"]),
    "big-endian": lambda: np.arange(5, dtype=">i4"),
    "complex": lambda: np.arange(5) * 1j,
    "times": lambda: np.array(["2020-01-01", "NaT"], "M8[25s]"),
    "spans": lambda: np.arange(10000).astype("m8[ns]"),
    "void": lambda: np.zeros(4, "V7"),
    "bool": lambda: np.arange(10000) % 2 == 0,
    "struct": lambda: np.ones(3, [("é", "i1"), ("b", "f8", (2, 3)), ("t", "M8[s]")]),
    "aligned": lambda: np.ones(3, np.dtype([("a", "i1"), ("b", "f8")], align=True)),
    "nested": lambda: np.ones(3, [("in", [("x", ">u2")]), ("y", "U3")]),
    "gaps": lambda: np.zeros(
        2,
        {
            "names": ["b", "a"],
            "formats": ["i4", "i1"],
            "offsets": [8, 0],
            "itemsize": 16,
        },
    ),
}


@pytest.mark.parametrize("kind", ARRAYS)
@pytest.mark.parametrize("way", ["read-only", "writable", "copied"])
def test_arrays_come_back_exactly(path, kind, way):
    array = ARRAYS[kind]()
    receipt = dump(FORM, array, path)
    mapped, writable = way != "copied", way == "writable"
    value = load(FORM, path, mapped=mapped, writable=writable, full=True)
    assert type(value) is np.ndarray
    assert value.dtype == array.dtype
    assert value.dtype.isalignedstruct == array.dtype.isalignedstruct
    assert value.shape == array.shape
    assert value.tobytes() == array.tobytes()
    if array.flags.f_contiguous:
        assert value.flags.f_contiguous
    if array.nbytes > 1024:
        assert value.flags.writeable is (way != "read-only")
    assert FORM.digest(value) == receipt.digest


def test_large_arrays_are_slices_of_the_map(path):
    dump(FORM, ["some text", np.arange(1000.0)], path)
    where = source(path)
    array = FORM.load(where, file_id=FILE_ID, full=False)[1]
    assert np.shares_memory(array, np.frombuffer(where.data, "u1"))
    assert array.ctypes.data % 64 == 0


def test_read_only_arrays_stay_read_only(path):
    arrays = [np.arange(3), np.arange(3000)]
    for each in arrays:
        each.flags.writeable = False
    dump(FORM, arrays, path)
    found = load(FORM, path, writable=True)
    assert [each.flags.writeable for each in found] == [False, False]


def frames():
    pandas = pytest.importorskip("pandas")
    pytest.importorskip("pyarrow")
    frame = pandas.DataFrame(
        {
            "x": np.arange(1000.0),
            "n": pandas.array([1, None] * 500, dtype="Int64"),
            "t": pandas.date_range("2000", periods=1000, freq="h", tz="UTC"),
            "s": pandas.Series([f"row {n}" for n in range(1000)], dtype="string"),
            "c": pandas.Categorical(["a", "b"] * 500),
        }
    )
    return pandas, frame


@pytest.mark.parametrize("mapped", [True, False])
def test_frames_and_series_come_back_exactly(path, mapped):
    pandas, frame = frames()
    for each in (
        frame,
        frame.set_index("t"),
        frame.set_index(["c", "x"]),
        frame[["x", "s"]][:0],
    ):
        receipt = dump(FORM, each, path)
        value = load(FORM, path, mapped=mapped)
        pandas.testing.assert_frame_equal(value, each, check_exact=True)
        assert FORM.digest(each) == receipt.digest
    for series in (frame["x"], frame["c"].rename(None), frame["t"].rename(("a", 1))):
        dump(FORM, [series], path)
        pandas.testing.assert_series_equal(load(FORM, path)[0], series)
    table = __import__("pyarrow").Table.from_pandas(frame)
    dump(FORM, {"t": table}, path)
    assert load(FORM, path, mapped=mapped)["t"].equals(table, check_metadata=True)


def test_frames_that_arrow_would_change_are_refused(path):
    pandas, frame = frames()
    mixed = pandas.DataFrame({"a": [1, "x"]}, dtype=object)
    tuples = pandas.DataFrame({"a": [(1, 2), (3, 4)]})
    for each in (mixed, tuples, {"deep": [mixed]}, frame[["c"]][:0]):
        with pytest.raises(errors.EncodingError, match="Arrow"):
            dump(FORM, each, path)


# refusals


class Text(str):
    __slots__ = ()


@pytest.mark.parametrize(
    ("value", "where"),
    [
        (object(), r"value is a builtins\.object"),
        ([1, {"a": (len,)}], r"value\[1\]\['a'\]\[0\] is a builtins\.builtin_function"),
        ({Text("k"): 1}, r"value\.keys\(\) is a tests.*Text"),
        ({"s": {Text("k")}}, r"value\['s'\]\.pop\(\) is a"),
        (types.SimpleNamespace(), "SimpleNamespace"),
        (np.array([None]), "dtype object"),
        (np.ma.array([1]), r"numpy\.ma.*MaskedArray"),
        (np.zeros(2, [("a", "O")]), "not plain bytes"),
        (
            datetime.datetime(2020, 1, 1, tzinfo=type("Z", (datetime.tzinfo,), {})()),
            "Z",
        ),
    ],
)
def test_what_is_not_data_is_refused_with_its_place(path, value, where):
    with pytest.raises(errors.EncodingError, match=where):
        dump(FORM, value, path)
    assert path.read_bytes() == b""
    assert FORM.digest(value) is None


def test_cycles_are_refused_and_repetition_is_not(path):
    loop = [1]
    loop.append({"again": loop})
    with pytest.raises(errors.EncodingError, match="contains itself"):
        dump(FORM, loop, path)
    part = [1, 2]
    dump(FORM, [part, part, [part]], path)
    assert load(FORM, path) == [[1, 2], [1, 2], [[1, 2]]]


@pytest.mark.parametrize("wrap", [lambda v: [v], lambda v: {"k": v}, lambda v: (v,)])
def test_deep_nesting_is_refused_cleanly_and_the_rest_comes_back(path, wrap):
    value = 1
    for _ in range(150):
        value = wrap(value)
    dump(FORM, value, path)
    assert load(FORM, path) == value
    for depth in (1, 100_000):
        for _ in range(depth):
            value = wrap(value)
        with pytest.raises(errors.EncodingError, match="nested"):
            dump(FORM, value, path)
        while isinstance(value, (list, tuple, dict)):  # not to end the deep way
            value = value["k"] if isinstance(value, dict) else value[0]


def test_errors_of_the_sink_pass_through():
    with pytest.raises(OSError, match="No space left"):
        FORM.dump([1], FullDisk(), key="'k'", file_id=FILE_ID)


def test_sets_have_one_digest_whatever_their_order():
    names = [f"name {number}" for number in range(50)]
    assert FORM.digest(set(names)) == FORM.digest({*names[25:], *names[:25]})


def test_the_digest_depends_on_the_value_alone(path, tmp_path):
    value = [np.arange(5000), "x"]
    one = dump(FORM, value, path, key="'a'", file_id="0" * 16)
    two = dump(FORM, value, tmp_path / "two", key="'bbbb'", file_id="1" * 16)
    assert one == two
    value[0][7] = 0
    assert FORM.digest(value) != one.digest


# hostile and damaged files

SMALL = [1, "text", 2.5, {"k": np.arange(3)}, datetime.date(2020, 1, 1)]


def test_no_flipped_bit_goes_unnoticed():
    check_every_flip(FORM, written(SMALL), lambda found: alike(found, SMALL))


def test_no_truncation_goes_unnoticed():
    check_every_truncation(FORM, written(SMALL))


def test_a_pickle_is_never_read(tmp_path):
    class Bomb:
        def __reduce__(self):
            return pathlib.Path.touch, (tmp_path / "boom",)

    content = pickle.dumps(Bomb())
    for data in (content, crafted(content)):
        for file_id in (FILE_ID, None):
            where = Source("somewhere", memoryview(data), False, False, "k")
            with pytest.raises(errors.CorruptValueError):
                FORM.load(where, file_id=file_id, full=True)
    assert not (tmp_path / "boom").exists()


NODES = [
    {},
    [],
    ["nonsense", 1],
    [[]],
    [1, 2],
    ["d", 1],
    ["d", ["l"], 1],
    ["s", ["l"]],
    ["i", "xyz"],
    ["i"],
    ["i", 5],
    ["f", "00"],
    ["c", "00"],
    ["r", "0", "1", "0"],
    ["dt", "yesterday", 0, None],
    ["dt", "2020-01-01", 7, None],
    ["dt", "2020-01-01", 0, "UTC"],
    ["tz", ["td", 5, 0, 0], None],
    ["td", 10**15, 0, 0],
    ["td", "1", 0, 0],
    ["zi", "../../etc/passwd"],
    ["zi", 1],
    ["de", "one"],
    ["id", "1"],
    ["u", "ff"],
    ["p", 5],
    ["b", 0],
    ["b", -1],
    ["b", "not base64"],
    ["b", None],
    ["a", "|O", [1], "C", "AAAAAAAAAAA="],
    ["a", "<O8", [1], "C", "AAAAAAAAAAA="],
    ["a", "<f8", [2], "C", "AAAAAAAAAAA="],
    ["a", "<f8", [-1, -1], "C", "AAAAAAAAAAA="],
    ["a", "<f8", [2**62, 4], "C", ""],
    ["a", "<f8", [0, 2**62, 2**62], "C", ""],
    ["a", "<f8", "1", "C", "AAAAAAAAAAA="],
    ["a", "<f8", [1], "Z", "AAAAAAAAAAA="],
    ["a", "f8,O", [1], "C", "AAAAAAAAAAA="],
    ["a", {"names": ["a"], "formats": ["|O"], "offsets": [0], "itemsize": 8}, [1], "C"],
    ["a", {"base": "<f8"}, [1], "C", "AAAAAAAAAAA="],
    ["a", {"base": "<f8", "shape": [2**40]}, [1], "C", "AAAAAAAAAAA="],
    ["n", "<f8", "AAAA"],
    ["at", "AAAA"],
    ["df", ""],
    ["se", None, "AAAA"],
]


@pytest.mark.parametrize("node", NODES, ids=str)
def test_impossible_texts_are_corrupt_and_nothing_else(node):
    with pytest.raises(errors.CorruptValueError):
        load_bytes(FORM, crafted(node))


def test_bottomless_texts_are_corrupt():
    for text in (b"[" * 100_000, b'["l",' * 100_000 + b"1" + b"]" * 100_000, b"\xff"):
        with pytest.raises(errors.CorruptValueError):
            load_bytes(FORM, crafted(text))


def test_arrow_offsets_that_point_outside_are_found():
    arrow = pytest.importorskip("pyarrow")
    sink = arrow.BufferOutputStream()
    table = arrow.table({"s": ["abc", "def"] * 200})
    with arrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    stream = bytearray(sink.getvalue())
    at = stream.index((3).to_bytes(4, "little") + (6).to_bytes(4, "little"))
    stream[at : at + 4] = (2**30).to_bytes(4, "little")
    with pytest.raises(errors.CorruptValueError):
        load_bytes(FORM, crafted(["at", 0], [bytes(stream)]))


@pytest.mark.parametrize(
    "change",
    [
        {"buffers": [[0, 64, 10**9, True, "00"]]},
        {"buffers": [[0, -5, 3, True, "00"]]},
        {"buffers": [[5, 3, -2, True, "00"]]},
        {"buffers": [["a"]]},
        {"buffers": 5},
        {"id": None},
        {"version": 0},
        {"extra": 1},
    ],
    ids=str,
)
def test_impossible_footers_are_corrupt(change):
    import xxhash

    content = written([1])
    stop = footer.TRAILER.unpack(content[-32:])[0]
    fields = {**msgspec.json.decode(content[stop:-32]), **change}
    text = msgspec.json.encode(fields)
    check = xxhash.xxh3_64_intdigest(text) & 0xFFFFFFFF
    trailer = footer.TRAILER.pack(stop, len(text), check, stop, MAGIC)
    with pytest.raises(errors.CorruptValueError):
        load_bytes(FORM, content[:stop] + text + trailer)


def test_another_key_s_file_is_not_read(path):
    dump(FORM, 1, path, key="'other'", file_id="f" * 16)
    with pytest.raises(errors.CorruptValueError, match="the file of 'other'"):
        load(FORM, path)
    assert load(FORM, path, file_id=None) == 1


def test_a_missing_time_zone_is_no_damage():
    with pytest.raises(errors.DecodingError, match="Mars"):
        load_bytes(FORM, crafted(["zi", "Mars/Olympus"]))
