from __future__ import annotations

import datetime
import gc
import io
import pickle
import pickletools
import struct
import sys
import tracemalloc
import types

import numpy as np
import pytest
import xxhash

from chest import errors
from chest.formats import footer, pickle5
from chest.formats.pickle5 import Pickle5
from chest.protocols import NeedsPrivateMap
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

FORM = Pickle5()
LARGE = 100_000


def numbers(n=LARGE):
    return np.arange(n, dtype="f8")


def same(left, right):
    return (
        type(left) is type(right)
        and getattr(left, "dtype", None) == getattr(right, "dtype", None)
        and np.array_equal(np.ma.getdata(left), np.ma.getdata(right))
    )


def is_mapped(array, view):
    return np.may_share_memory(np.ma.getdata(array), np.frombuffer(view, "u1"))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "value"


ARRAYS = {
    "c": lambda: numbers().reshape(100, -1),
    "fortran": lambda: numbers().reshape(100, -1).T,
    "strided": lambda: numbers()[::2],
    "negative": lambda: numbers()[::-1],
    "datetime": lambda: numbers().astype("M8[ns]"),
    "timedelta strided": lambda: numbers().astype("m8[s]")[::3],
    "big-endian": lambda: numbers().astype(">f4"),
    "strings": lambda: numbers().astype("U8"),
    "struct": lambda: np.zeros(LARGE, [("a", "i4"), ("b", "f8", (2,))]),
    "struct with time": lambda: np.zeros(LARGE, [("t", "M8[s]"), ("x", "f4")]),
    "bool": lambda: numbers() > 5,
    "longdouble": lambda: numbers().astype(np.longdouble),
    "record": lambda: np.rec.fromarrays([numbers(), numbers()], names="a,b"),
}


@pytest.mark.parametrize("kind", ARRAYS)
def test_large_arrays_come_back_as_slices_of_the_map(path, kind):
    array = ARRAYS[kind]()
    dump(FORM, array, path)
    with path.open("rb") as file:
        assert same(pickle.load(file), array)
    for writable in (False, True):
        where = source(path, writable=writable)
        value = FORM.load(where, file_id=FILE_ID, full=True)
        assert same(value, array)
        assert value.flags.writeable is writable
        assert is_mapped(value, where.data)
        assert value.ctypes.data % footer.ALIGNMENT == 0
    copied = load(FORM, path, mapped=False)
    assert same(copied, array)
    assert copied.flags.writeable


def test_memory_mapped_arrays_of_numpy_are_written_without_their_file(tmp_path, path):
    array = np.memmap(tmp_path / "raw", "f8", "w+", shape=LARGE)
    array[:] = 7
    dump(FORM, array, path)
    where = source(path)
    value = FORM.load(where, file_id=FILE_ID, full=False)
    assert type(value) is np.memmap
    assert is_mapped(value, where.data)
    assert same(value, array)


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize("mask", ["array", "none"])
def test_masked_arrays_keep_mask_fill_value_and_hardness(path, hard, mask):
    array = np.ma.MaskedArray(
        numbers(), numbers() > 9 if mask == "array" else np.ma.nomask
    )
    array = np.ma.MaskedArray(array, fill_value=5, hard_mask=hard)
    dump(FORM, array, path)
    where = source(path)
    value = FORM.load(where, file_id=FILE_ID, full=True)
    with path.open("rb") as file:
        plain = pickle.load(file)
    for each in (value, plain):
        assert type(each) is np.ma.MaskedArray
        assert same(each, array)
        assert np.array_equal(each.mask, array.mask)
        assert each.fill_value == 5
        assert each.hardmask == hard
    assert (value.mask is np.ma.nomask) == (array.mask is np.ma.nomask)
    assert is_mapped(value.data, where.data)


def test_a_masked_array_of_another_base_class_goes_the_ordinary_way(path):
    array = np.ma.MaskedArray(np.rec.fromarrays([numbers()], names="a"))
    dump(FORM, array, path)
    assert type(load(FORM, path).data) is np.recarray


def test_containers_keep_identity_between_mapped_arrays(path):
    array = numbers()
    dump(FORM, {"a": [array, array], "b": (array[:10], "text")}, path)
    value = load(FORM, path)
    assert value["a"][0] is value["a"][1]
    assert same(value["b"][0], array[:10])


def test_read_only_arrays_stay_read_only_on_a_writable_map(path):
    array = numbers()
    array.flags.writeable = False
    dump(FORM, [array, numbers()], path)
    for mapped in (True, False):
        frozen, free = load(FORM, path, mapped=mapped, writable=mapped)
        assert not frozen.flags.writeable
        assert free.flags.writeable


def test_small_arrays_are_copied_and_writable(path):
    dump(FORM, np.arange(10), path)
    value = load(FORM, path)
    assert value.flags.writeable
    assert same(value, np.arange(10))


@pytest.mark.parametrize(
    "value",
    [
        None,
        1,
        "é" * 100_000,
        b"x" * 5_000_000,
        bytearray(200_000),
        [1, [2, {3: (4,)}]],
        datetime.datetime(2020, 1, 1),
        np.array([None, "a"], dtype=object),
        list(range(300_000)),
        {"text": "__main__ and cloudpickle and CodeType"},
        io.UnsupportedOperation,
    ],
    ids=lambda value: type(value).__name__,
)
@pytest.mark.parametrize("mapped", [True, False])
def test_everything_else_comes_back_equal(path, value, mapped):
    receipt = dump(FORM, value, path)
    assert receipt.python is None
    found = load(FORM, path, mapped=mapped)
    with path.open("rb") as file:
        plain = pickle.load(file)
    for each in (found, plain):
        assert type(each) is type(value)
        assert np.all(each == value)
    assert FORM.digest(value) == receipt.digest


def test_frames_with_times_and_strings_come_back_mapped_and_equal(path):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame(
        {
            "x": numbers(),
            "t": pandas.date_range("2000", periods=LARGE, freq="s"),
            "s": [f"row {number}" for number in range(LARGE)],
            "c": pandas.Categorical(["a", "b"] * (LARGE // 2)),
        }
    )
    dump(FORM, frame, path)
    where = source(path)
    value = FORM.load(where, file_id=FILE_ID, full=True)
    pandas.testing.assert_frame_equal(value, frame)
    pandas.testing.assert_frame_equal(pandas.read_pickle(path), frame)
    assert is_mapped(value["x"].to_numpy(), where.data)
    assert is_mapped(value["t"].to_numpy().view("i8"), where.data)


def test_arrow_tables_come_back_mapped(path):
    arrow = pytest.importorskip("pyarrow")
    table = arrow.table({"a": numbers(), "b": ["x"] * LARGE})
    dump(FORM, table, path)
    before = arrow.total_allocated_bytes()
    value = load(FORM, path)
    assert arrow.total_allocated_bytes() - before < 100_000
    assert value.equals(table)


def test_the_stream_is_one_valid_pickle_up_to_the_footer(path):
    dump(FORM, [numbers(), "between", numbers() > 3], path)
    content = path.read_bytes()
    found = list(pickletools.genops(io.BytesIO(content)))
    opcode, _, stop = found[-1]
    at, length, check, again, magic = struct.unpack("<QIIQ8s", content[-32:])
    assert opcode.name == "STOP"
    assert at == again == stop + 1
    assert at + length + 32 == len(content)
    assert magic == b"CHESTPK1"
    assert xxhash.xxh3_64_intdigest(content[at:-32]) & 0xFFFFFFFF == check
    assert b'"key":"' in content[at:-32]
    assert FILE_ID.encode() in content[at:-32]


@pytest.mark.parametrize("end", range(200))
@pytest.mark.parametrize("header", [5, 9])
def test_pads_align_and_are_no_ops(end, header):
    pad = pickle5._pad(end, header)
    assert (end + len(pad) + header) % 64 == 0
    assert pickle.loads(b"\x80\x05K\x07" + pad + b".") == 7


def test_a_pickler_that_copies_buffers_still_gives_a_valid_file(path, monkeypatch):
    class Copying(pickle._Pickler):
        dispatch_table = pickle5._Pickler.dispatch_table

    monkeypatch.setattr(pickle5, "_Pickler", Copying)
    dump(FORM, [numbers()], path)
    assert same(load(FORM, path)[0], numbers())


def test_a_buffer_after_an_unknown_header_is_taken_in_band():
    body = footer.Body(None)
    file = pickle5._File(body, plain=True)
    file.write(b"something else")
    file.write(pickle.PickleBuffer(b"x" * LARGE))
    file.flush()
    assert body.at == len(b"something else") + LARGE


# digests


def test_the_digest_depends_on_the_value_alone(path, tmp_path):
    value = {"x": numbers(), "y": [1, 2]}
    one = dump(FORM, value, path, key="'a'", file_id="0" * 16)
    two = dump(FORM, value, tmp_path / "two", key="'a longer key'", file_id="f" * 16)
    assert one == two
    assert FORM.digest(value) == one.digest
    value["x"][5] += 1
    assert FORM.digest(value) != one.digest
    assert FORM.digest({"x": numbers(), "y": [1, 3]}) != one.digest


def test_buffers_of_a_read_only_map_are_recognised_without_being_read(
    path, tmp_path, monkeypatch
):
    receipt = dump(FORM, numbers(), path)
    value = load(FORM, path)
    hashed = []
    real = xxhash.xxh3_64_hexdigest
    monkeypatch.setattr(
        xxhash, "xxh3_64_hexdigest", lambda data: hashed.append(1) or real(data)
    )
    assert FORM.digest(value) == receipt.digest
    assert dump(FORM, value, tmp_path / "copy") == receipt
    assert hashed == []
    assert same(load(FORM, tmp_path / "copy", full=True), numbers())


def test_buffers_of_a_writable_map_are_read(path):
    receipt = dump(FORM, numbers(), path)
    value = load(FORM, path, writable=True)
    assert FORM.digest(value) == receipt.digest
    value[3] = 77
    assert FORM.digest(value) != receipt.digest


def test_addresses_are_forgotten_with_the_map(path):
    dump(FORM, [numbers(), numbers() + 1], path)
    gc.collect()
    before = len(footer._known), len(footer._forget)
    value = load(FORM, path)
    assert len(footer._known) == before[0] + 2
    part = value[1][10:20]
    del value
    assert len(footer._known) == before[0] + 2
    del part
    gc.collect()
    assert (len(footer._known), len(footer._forget)) == before


# code by value


class Local:
    def __init__(self, x):
        self.x = x

    def double(self):
        return 2 * self.x


def test_functions_and_local_classes_are_pickled_by_value(path):
    array = numbers()
    receipt = dump(FORM, lambda n: n + array.sum(), path)
    assert receipt.python == sys.version_info.minor
    assert load(FORM, path)(1) == array.sum() + 1


def test_classes_of_main_are_pickled_by_value(path, monkeypatch):
    main = types.ModuleType("__main__")
    exec("class Point:\n    def twice(self):\n        return 2 * self.x\n", vars(main))
    monkeypatch.setitem(sys.modules, "__main__", main)
    point = main.Point()
    point.x = numbers()
    receipt = dump(FORM, [point, list(range(100_000))], path)
    assert receipt.python == sys.version_info.minor
    monkeypatch.setitem(sys.modules, "__main__", types.ModuleType("__main__"))
    found = load(FORM, path)[0]
    assert same(found.twice(), 2 * numbers())
    assert b"Point" in path.read_bytes()


LARGE_TEXTS = ["a" * LARGE, b"a" * LARGE, bytearray(LARGE), "é" * 300_000]


@pytest.mark.parametrize("text", LARGE_TEXTS, ids=lambda text: type(text).__name__)
def test_classes_of_main_are_found_around_large_texts(path, monkeypatch, text):
    main = types.ModuleType("__main__")
    exec("class Point:\n    def one(self):\n        return 1\n", vars(main))
    monkeypatch.setitem(sys.modules, "__main__", main)
    for value in ([main.Point(), text], [text, main.Point()], [text, main.Point, text]):
        assert dump(FORM, value, path).python == sys.version_info.minor
        assert load(FORM, path)[value.index(text)] == text


@pytest.mark.parametrize("text", LARGE_TEXTS, ids=lambda text: type(text).__name__)
def test_nothing_is_looked_for_in_large_texts(path, monkeypatch, text):
    marks = [pickle5.MAIN, pickle5.CLOUDPICKLE, pickle5.CODE]
    value = bytes(text, "utf-8") if isinstance(text, str) else bytes(text)
    value = b"".join(marks) + value
    monkeypatch.setattr(pickle5, "_cloud_pickler", None)
    for each in (value, bytearray(value), [value, value[::-1]]):
        assert dump(FORM, each, path).python is None
        assert load(FORM, path) == each


def test_importable_classes_are_pickled_by_name(path):
    assert dump(FORM, Local(3), path).python is None
    assert load(FORM, path).double() == 6


def test_code_of_another_python_is_refused_before_it_runs(path, monkeypatch):
    dump(FORM, lambda: 1, path)
    other = types.SimpleNamespace(minor=sys.version_info.minor + 1)
    monkeypatch.setattr(pickle5.sys, "version_info", other)
    monkeypatch.setattr(pickle5, "unpickle", None)
    with pytest.raises(errors.DecodingError, match=r"code of Python 3\.\d+"):
        load(FORM, path)


# errors


class Unwilling:
    def __init__(self, error):
        self.error = error

    def __reduce__(self):
        raise self.error


@pytest.mark.parametrize(
    "cause",
    [
        ValueError("v"),
        TypeError("t"),
        AttributeError("a"),
        OSError("o"),
        KeyError("k"),
        RecursionError("r"),
        StopIteration(),
        pickle.PicklingError("p"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_a_value_raises_comes_out_as_the_cause(path, cause):
    with pytest.raises(errors.EncodingError, match=r"'k'.*builtins.list") as caught:
        dump(FORM, [Unwilling(cause)], path)
    assert caught.value.__cause__ is cause
    assert FORM.digest([Unwilling(cause)]) is None


@pytest.mark.parametrize("cause", [MemoryError(), KeyboardInterrupt(), SystemExit()])
def test_what_is_not_the_value_s_fault_is_not_blamed_on_it(path, cause):
    with pytest.raises(type(cause)) as caught:
        dump(FORM, [Unwilling(cause)], path)
    assert caught.value is cause


@pytest.mark.parametrize(
    "value",
    [1, numbers(1000), numbers(), numbers(10**6), ["x" * 1000] * 5000, lambda: 0],
    ids=["int", "small", "buffer", "large", "in-band", "function"],
)
def test_errors_of_the_sink_pass_through(value):
    with pytest.raises(OSError, match="No space left") as caught:
        FORM.dump(value, FullDisk(), key="'k'", file_id=FILE_ID)
    assert type(caught.value) is OSError


def test_an_open_file_is_refused_alone_and_beside_code(path):
    with open(__file__) as file:
        for value in (file, (file, lambda: 0)):
            with pytest.raises(errors.EncodingError, match="cannot be pickled"):
                dump(FORM, value, path)


def test_an_unpicklable_value_is_refused_with_its_reason(path):
    with pytest.raises(errors.EncodingError, match="cannot pickle 'generator'"):
        dump(FORM, (n for n in range(3)), path)


def test_a_missing_module_is_named(path, monkeypatch):
    module = types.ModuleType("gone_tomorrow")
    exec("class Thing: pass", vars(module))
    module.Thing.__module__ = "gone_tomorrow"
    monkeypatch.setitem(sys.modules, "gone_tomorrow", module)
    dump(FORM, module.Thing(), path)
    monkeypatch.delitem(sys.modules, "gone_tomorrow")
    with pytest.raises(errors.DecodingError, match="gone_tomorrow") as caught:
        load(FORM, path)
    assert isinstance(caught.value.__cause__, ModuleNotFoundError)
    del module.Thing
    monkeypatch.setitem(sys.modules, "gone_tomorrow", module)
    with pytest.raises(errors.DecodingError, match="renamed or moved"):
        load(FORM, path)


def test_another_key_s_file_is_not_read(path, monkeypatch):
    dump(FORM, 1, path, key="'other'", file_id="f" * 16)
    monkeypatch.setattr(pickle5, "unpickle", None)
    with pytest.raises(errors.CorruptValueError, match="the file of 'other'"):
        load(FORM, path)


def test_any_file_id_will_do_where_none_is_known(path):
    dump(FORM, [1], path, file_id="f" * 16)
    assert load(FORM, path, file_id=None) == [1]


@pytest.mark.parametrize("protocol", range(6))
def test_a_plain_pickle_is_read_where_no_file_id_is_known(path, protocol):
    path.write_bytes(pickle.dumps([1, "a"], protocol))
    assert load(FORM, path, file_id=None) == [1, "a"]
    with pytest.raises(errors.CorruptValueError):
        load(FORM, path)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(errors.CorruptValueError, match="no whole pickle"):
        load(FORM, path, file_id=None)


def test_a_newer_layout_is_refused_as_such(path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(footer, "VERSION", 2)
        dump(FORM, 1, path)
    with pytest.raises(errors.VersionError, match="upgrade chest"):
        load(FORM, path)


def test_no_flipped_bit_goes_unnoticed(path):
    value = [1, "text", 2.5, (None, True)]
    dump(FORM, value, path)
    check_every_flip(FORM, path.read_bytes(), lambda found: found == value)


def test_no_flipped_bit_near_a_buffer_goes_unnoticed(path, monkeypatch):
    monkeypatch.setattr(pickle5, "LARGE", 0)
    array = np.zeros(8192)
    dump(FORM, ["a", array, "b"], path)
    content = path.read_bytes()
    for mapped in (False, True):
        near = [*range(400), 40_000, *range(len(content) - 500, len(content))]
        for at in near:
            damaged = bytearray(content)
            damaged[at] ^= 0x10
            try:
                found = load_bytes(FORM, damaged, mapped=mapped)
            except errors.CorruptValueError:
                continue
            assert found[0] == "a"
            assert found[2] == "b"
            assert same(found[1], array)


def test_no_truncation_goes_unnoticed(path):
    dump(FORM, [1, "text", 2.5], path)
    check_every_truncation(FORM, path.read_bytes())


def test_damage_in_a_mapped_buffer_is_found_by_a_full_check(path):
    dump(FORM, numbers(), path)
    content = bytearray(path.read_bytes())
    content[5000] ^= 1
    path.write_bytes(content)
    load(FORM, path)
    for arguments in ({"full": True}, {"mapped": False}):
        with pytest.raises(errors.CorruptValueError, match="buffer at"):
            load(FORM, path, **arguments)


# cost


def test_writing_a_large_array_takes_no_memory(path):
    array = np.ones(8 << 20)
    tracemalloc.start()
    try:
        dump(FORM, {"a": array, "t": array.view("M8[s]")}, path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 8 << 20


def test_a_long_list_is_streamed(path):
    value = [str(number).encode() * 100 for number in range(100_000)]
    tracemalloc.start()
    try:
        dump(FORM, value, path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # The pickler's memo is most of it; the file has 50 MB.
    assert peak < path.stat().st_size // 2


def test_tensors_ask_for_a_private_map(path, monkeypatch):
    """Real ones are tried in test_torch, where there is a torch."""

    class Tensor:
        """Enough of torch's to see what is made of it."""

        device = types.SimpleNamespace(type="cpu")
        layout = "strided"
        is_quantized = requires_grad = False
        _backward_hooks = None

        def __init__(self, array):
            self.array = array

        def __getattribute__(self, name):
            if name == "__dict__":
                return {}
            return object.__getattribute__(self, name)

        nbytes = property(lambda self: self.array.nbytes)

        def is_contiguous(self):
            return True

        def is_conj(self):
            return False

        is_neg = is_conj

        def numpy(self):
            return self.array

    def from_numpy(array):
        return Tensor(array)

    torch = types.ModuleType("torch")
    torch.Tensor, torch.from_numpy, torch.strided = Tensor, from_numpy, "strided"
    for each in (Tensor, from_numpy):
        each.__module__, each.__qualname__ = "torch", each.__name__
    monkeypatch.setitem(sys.modules, "torch", torch)
    monkeypatch.setattr(pickle5._Pickler, "dispatch_table", pickle5._Reducers())
    dump(FORM, Tensor(numbers()), path)
    with pytest.raises(NeedsPrivateMap):
        load(FORM, path)
    for mapped in (True, False):
        where = source(path, mapped=mapped, writable=mapped)
        found = FORM.load(where, file_id=FILE_ID, full=True)
        assert same(found.array, numbers())
        assert found.array.flags.writeable
        assert is_mapped(found.array, where.data) is mapped
