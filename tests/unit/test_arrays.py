"""Arrays on disk: exact, changed in place, streamed, lazy."""

from __future__ import annotations

import errno
import gc
import os
import pickle
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import zarr

from chest import Chest, errors, system
from chest.folder import Folder


@pytest.fixture
def chest(tmp_path):
    with Chest(tmp_path / "chest", format="zarr") as c:
        yield c


def folders(chest):
    return sorted(name for name in os.listdir(chest.path) if name != ".keys")


def same(a, b):
    """Type, dtype, shape, memory order and bits."""
    assert type(a) is type(b)
    if not isinstance(a, np.ndarray):
        return a == b
    assert a.dtype == b.dtype
    assert a.dtype.metadata == b.dtype.metadata
    assert a.dtype.isalignedstruct == b.dtype.isalignedstruct
    assert a.shape == b.shape
    assert a.dtype.fields == b.dtype.fields
    if a.flags.f_contiguous and not a.flags.c_contiguous:
        assert b.flags.f_contiguous
    if a.dtype == object or isinstance(a, np.ma.MaskedArray):
        return repr(a) == repr(b)
    if a.dtype.char == "T":
        return (a == b).all()
    return a.tobytes() == b.tobytes()


class Sub(np.ndarray):
    pass


BASE = np.arange(60).reshape(3, 4, 5)
VALUES = {
    **{
        f"dtype {code}": np.arange(12).reshape(3, 4).astype(code)
        for code in "? i1 i2 i4 i8 u1 u2 u4 u8 f2 f4 f8 c8 c16 g G >i2 >u8 >f4 >f8 "
        ">c16 S5 >U7 U3 V8".split()
    },
    "days": np.array(["2020-01-01", "NaT"], "M8[D]"),
    "seconds": np.arange(5).astype("m8[25s]"),
    "big-endian times": np.arange(5).astype(">M8[ns]"),
    "signed zero and NaN": np.array([-0.0, 0.0, np.nan, -np.nan, np.inf]),
    "NaN with a payload": np.array([0x7FF8DEADBEEF0001], "u8").view("f8"),
    "only zeros": np.zeros((5, 5)),
    "Fortran": np.asfortranarray(BASE),
    "Fortran, big-endian": np.asfortranarray(BASE.astype(">f4")),
    "transposed": BASE.transpose(2, 0, 1),
    "strided": BASE[:, ::2],
    "negative": BASE[::-1, :, ::-1],
    "broadcast": np.broadcast_to(np.arange(3), (4, 3)),
    "0-d": np.array(5.0),
    "scalar": np.float64(3),
    "empty": np.empty((3, 0, 2)),
    "struct": np.zeros(3, [("a", "i4"), ("b", "f8")]),
    "aligned": np.zeros(3, np.dtype([("a", "i1"), ("b", "f8")], align=True)),
    "nested": np.zeros(3, [("a", [("x", "i4")], (2,))]),
    "objects": np.array([1, "a", None], object),
    "strings": np.array(["a", "bcd"], np.dtypes.StringDType()),
    "masked": np.ma.masked_array([1, 2, 3], [0, 1, 0]),
    "records": np.rec.array([(1, 2.0)], dtype=[("a", "i4"), ("b", "f8")]),
    "subclass": np.arange(4).view(Sub),
    "metadata": np.zeros(3, np.dtype("f8", metadata={"unit": "m"})),
    "many dimensions": np.zeros([1] * 40),
    "titles": np.zeros(
        3, {"names": ["a", "b"], "formats": ["i4", "f8"], "titles": ["A", "B"]}
    ),
    "offsets": np.zeros(
        3,
        {
            "names": ["a", "b"],
            "formats": ["i4", ">f8"],
            "offsets": [8, 16],
            "itemsize": 32,
        },
    ),
    "strings with a missing value": np.array(
        ["a", None], np.dtypes.StringDType(na_object=None)
    ),
    "0-d struct": np.array((1, 2.0), [("a", "i4"), ("b", "f8")]),
    "0-d times": np.array("2020-01-01", "M8[D]"),
    "complex NaN": np.array([complex(np.nan, -0.0), complex(-np.inf, np.nan)]),
    "signed zeros alone": np.full((4, 4), -0.0),
    "no item": np.empty(0, "f4"),
    "no length": np.zeros(3, "S0"),
    "masked times": np.ma.masked_array(np.arange(3).astype("M8[s]"), [1, 0, 0]),
    "a list": [1, 2],
}


@pytest.mark.filterwarnings("ignore:metadata on a dtype")
@pytest.mark.parametrize("name", VALUES)
def test_every_dtype_and_layout_comes_back_as_it_was(name, chest):
    value = VALUES[name]

    chest["x"] = value
    chest.flush()

    assert same(chest["x"], value)


@pytest.mark.filterwarnings("ignore:The 'generic' unit")
def test_times_without_a_unit_are_pickled(chest):
    chest["x"] = np.array([1, 2], "m8")
    chest.flush()

    assert chest.entry("x").format == "pickle"
    assert same(chest["x"], np.array([1, 2], "m8"))


def test_one_array_is_one_folder_that_zarr_opens_as_it_stands(chest):
    a = np.arange(1000.0).reshape(100, 10)
    chest.set("big", a, chunks=(30, 10))
    chest["list"] = [1]
    chest.flush()

    assert folders(chest) == ["big.zarr", "list"]
    z = zarr.open_array(chest.key_to_filename("big"), mode="r")
    assert z.chunks == (30, 10)
    assert (z[:] == a).all()
    assert chest.entry("big").format == "zarr"
    assert chest.verify() == []


def test_shards_and_codecs_are_passed_on(chest):
    a = np.arange(10_000).reshape(100, 100)
    codec = zarr.codecs.BloscCodec(cname="lz4")
    chest.set("x", a, shards=(50, 100), chunks=(10, 100), compressors=codec)
    chest.flush()

    z = zarr.open_array(chest.key_to_filename("x"), mode="r")
    assert (z.shards, z.chunks) == ((50, 100), (10, 100))
    assert (chest["x"] == a).all()
    assert (chest.zarr("x")[5:7] == a[5:7]).all()


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in")
def test_a_codec_that_is_not_read_back_is_refused_and_the_value_stays(chest):
    import zarr.codecs.numcodecs as more

    chest.set("x", np.arange(10), filters=[zarr.codecs.TransposeCodec(order=(0,))])
    chest.flush()
    chest.set("x", np.arange(10), compressors=more.BZ2())
    with pytest.raises(errors.EncodingError, match=r"codec numcodecs\.bz2"):
        chest.flush()
    assert (chest["x"] == np.arange(10)).all()
    del chest["x"]


def test_options_that_zarr_refuses_are_an_error_that_names_the_key(chest):
    chest.set("x", np.arange(10), chunks=(3, 3))

    with pytest.raises(errors.EncodingError) as caught:
        chest.flush()

    assert caught.value.key == "x"
    assert folders(chest) == []
    del chest["x"]


def test_options_of_no_format_are_refused(tmp_path):
    with Chest(tmp_path / "c") as c:
        with pytest.raises(TypeError, match="takes no chunks="):
            c.set("x", np.arange(3), chunks=(1,))
        with pytest.raises(TypeError, match="takes no chunk="):
            c.set("x", np.arange(3), format="zarr", chunk=(1,))
        with pytest.raises(TypeError, match=r"takes no expire=; ttl= "):
            c.set("x", 1, expire=60)
        assert "x" not in c
        c.set("y", np.zeros((2, 2)), format="zarr", chunks=(1,))
        with pytest.raises(errors.EncodingError, match="zarr refuses 'y'"):
            c.flush()
        del c["y"]
        with pytest.raises(ValueError, match="mode="):
            c.zarr("x", mode="w")


def test_one_key_of_a_plain_chest_can_be_zarr(tmp_path):
    with Chest(tmp_path / "c") as c:
        c.set("x", np.arange(5), format="zarr")
        c["y"] = np.arange(5)
        c.flush()
        assert folders(c) == ["x.zarr", "y"]
    with Chest(tmp_path / "c") as c:
        assert (c["x"] == c["y"]).all()


def test_trust_in_data_alone_writes_and_reads_arrays(tmp_path):
    with Chest(tmp_path / "c", format="zarr", trust="data") as c:
        c["x"] = np.arange(5)
        with pytest.raises(errors.EncodingError):
            c["y"] = object()
    with Chest(tmp_path / "c", trust="data") as c:
        assert (c["x"] == np.arange(5)).all()


def test_a_signed_chest_keeps_arrays_in_files(tmp_path):
    with Chest(tmp_path / "c", format="zarr", sign_key=b"k" * 32) as c:
        c["x"] = np.arange(5)
        c.flush()
        assert folders(c) == ["x"]
        with pytest.raises(ValueError, match="sign_key"):
            c.set("x", np.arange(5), format="zarr")
        with pytest.raises(ValueError, match="sign_key"):
            c.create("x", 3)


def test_an_array_that_was_changed_in_memory_is_written_again(tmp_path):
    with Chest(tmp_path / "c", format="zarr", mapped="copy") as c:
        c["x"] = np.zeros(10)
        c.flush()
        c["x"][3] = 5
        c.flush()
        assert c["x"][3] == 5
        written = c.stats().writes
        c.flush()
        assert c.stats().writes == written


def test_a_read_array_is_read_only_and_edit_changes_it(chest):
    chest["x"] = np.zeros(10)
    chest.flush()
    with pytest.raises(ValueError, match="read-only"):
        chest["x"][0] = 1
    with chest.edit("x") as value:
        value[0] = 1
    chest.flush()

    assert chest["x"][0] == 1
    assert chest.entry("x").format == "zarr"


def test_overwriting_and_deleting_leave_no_folder(chest):
    for n in range(3):
        chest["x"] = np.full(10, n)
        chest.flush()
    assert len(folders(chest)) == 1
    chest["x"] = "text"
    chest.flush()
    assert folders(chest) == ["x"]
    chest["y"] = np.arange(3)
    chest.flush()
    del chest["y"], chest["x"]
    assert folders(chest) == []


def test_a_name_that_is_taken_gives_way(chest):
    os.mkdir(os.path.join(chest.path, "x.zarr"))
    chest["x"] = np.arange(3)
    chest.flush()

    assert folders(chest) == ["x.zarr", "x~1.zarr"]
    del chest["x"]
    os.rmdir(os.path.join(chest.path, "x.zarr"))


def test_snapshot_copy_and_update_link_the_chunks(chest, tmp_path):
    chest["x"] = np.arange(100)
    with chest.snapshot(tmp_path / "s") as s:
        chunk = os.path.join(s.key_to_filename("x"), "c.0")
        assert os.stat(chunk).st_nlink == 2
        chest.zarr("x")[:] = 0
        assert (s["x"] == np.arange(100)).all()
        assert s.verify() == []
        s.zarr("x")[0] = 7
        assert (chest["x"] == 0).all()


def test_drop_removes_the_folders(tmp_path):
    c = Chest(tmp_path / "c", format="zarr")
    c["x"] = np.arange(3)
    c.flush()
    c.drop()
    assert not (tmp_path / "c").exists()


def test_trim_and_the_budget_of_the_disk_see_the_bytes_of_folders(tmp_path):
    a = np.random.default_rng(0).integers(0, 255, 100_000, "u1")
    with Chest(tmp_path / "c", format="zarr") as c:
        for n in range(3):
            c[n] = a
            c.flush()
        assert 300_000 < c.stored_nbytes < 310_000
        assert c.trim(bytes=210_000) == 1
        assert len(c) == 2
        assert len(folders(c)) == 2


# -- damage --------------------------------------------------------------------------------


def test_a_missing_chunk_is_an_error_and_not_zeros(chest):
    chest.set("x", np.arange(100), chunks=(10,))
    chest.flush()
    os.unlink(os.path.join(chest.key_to_filename("x"), "c.3"))

    for read in (
        lambda: chest["x"],
        lambda: chest.zarr("x")[35],
        lambda: chest.array("x")[30:40],
    ):
        with pytest.raises(errors.CorruptValueError, match=r"c\.3 is missing"):
            read()
    assert (chest.zarr("x")[:10] == np.arange(10)).all()
    assert [problem.key for problem in chest.verify()] == ["x"]
    del chest["x"]


@pytest.mark.parametrize("name", ["c.0", "zarr.json", ".chest"])
def test_a_flipped_bit_is_found_before_anything_is_decoded(name, chest):
    chest.set("x", np.arange(100), compressors=None)
    chest.flush()
    path = os.path.join(chest.key_to_filename("x"), name)
    with open(path, "r+b") as file:
        file.seek(20)
        byte = file.read(1)[0]
        file.seek(20)
        file.write(bytes([byte ^ 1]))

    with pytest.raises(errors.CorruptValueError, match="checksum"):
        chest["x"]
    assert len(chest.verify()) == 1
    del chest["x"]


def test_a_folder_that_is_gone_or_another_is_an_error_with_the_key(chest):
    chest["x"], chest["y"] = np.arange(3), np.arange(4)
    chest.flush()
    x, y = chest.key_to_filename("x"), chest.key_to_filename("y")
    shutil.rmtree(x)
    with pytest.raises(errors.CorruptValueError, match="missing"):
        chest["x"]
    shutil.copytree(y, x)
    with pytest.raises(errors.CorruptValueError, match="another value"):
        chest["x"]
    assert [problem.key for problem in chest.verify()] == ["x"]
    del chest["x"]


@pytest.mark.timeout(60)
@pytest.mark.parametrize("ask", ["array", "zarr"])
def test_a_folder_that_is_gone_is_told_by_whoever_asks_for_it(ask, chest):
    chest["x"] = np.arange(10)
    chest.flush()
    shutil.rmtree(chest.key_to_filename("x"))

    with pytest.raises(errors.CorruptValueError, match="'x', is missing"):
        getattr(chest, ask)("x")

    del chest["x"]


def test_a_link_in_place_of_the_seal_is_found_and_not_followed(chest, tmp_path):
    chest["x"] = np.arange(10)
    chest.flush()
    seal = os.path.join(chest.key_to_filename("x"), ".chest")
    os.rename(seal, tmp_path / "away")
    os.symlink(tmp_path / "away", seal)

    assert [problem.key for problem in chest.verify()] == ["x"]
    with pytest.raises(errors.StoreError, match="could not be read"):
        chest["x"]

    del chest["x"]


def test_a_seal_that_leads_out_of_the_folder_is_refused(chest):
    from chest.formats import zarr_

    chest["x"] = np.arange(3)
    chest.flush()
    entry = chest._manifest.index.get("x")
    fd = os.open(chest.key_to_filename("x"), os.O_RDONLY)
    piece = zarr_.Piece(3, "0" * 32)
    zarr_.write_seal(
        fd, zarr_.Seal(file_id=entry.file_id, pieces={"../../secret": piece})
    )
    os.close(fd)

    with pytest.raises(errors.CorruptValueError, match=r"names '\.\./\.\./secret'"):
        chest["x"]
    del chest["x"]


# -- changed in place ----------------------------------------------------------------------


def test_each_change_is_published_and_leaves_one_folder(chest, tmp_path):
    chest["x"] = np.zeros((20, 5))
    z = chest.zarr("x")
    with Chest(chest.path) as other:
        assert (other["x"] == 0).all()
        seen = []
        for change in (
            lambda: z.__setitem__(slice(0, 2), 1),
            lambda: z.append(np.ones((2, 5))),
            lambda: z.resize((30, 5)),
            lambda: z.attrs.__setitem__("unit", "m"),
            lambda: z.update_attributes({"n": 1}),
            lambda: z.oindex.__setitem__(([3, 5], slice(None)), 2),
            lambda: z.vindex.__setitem__(([7], [1]), 2),
            lambda: z.set_basic_selection((slice(9, 10),), 3),
        ):
            change()
            seen.append(other.entry("x").generation)
            # What zarr's own thread still has open goes later.
            assert len([n for n in folders(chest) if not n.startswith(".tmp-")]) == 1
        assert len({*seen}) == 8
        value = np.zeros((30, 5))
        value[0:2] = value[20:22] = 1
        value[[3, 5]] = value[7, 1] = 2
        value[9] = 3
        assert (other["x"] == value).all()
        assert dict(other.zarr("x", "r").attrs) == {"unit": "m", "n": 1}
    assert (z[:] == value).all()
    assert (chest["x"] == value).all()
    assert z.shape == (30, 5)
    assert chest.verify() == []


def test_unchanged_chunks_are_linked_and_not_written(chest, tmp_path):
    chest.set("x", np.zeros(100), chunks=(10,))
    with chest.snapshot(tmp_path / "s") as s:
        before = {
            n: os.stat(os.path.join(s.key_to_filename("x"), f"c.{n}")).st_ino
            for n in range(10)
        }
        chest.zarr("x")[35] = 1
        now = chest.key_to_filename("x")
        after = {n: os.stat(os.path.join(now, f"c.{n}")).st_ino for n in range(10)}

    assert {n for n in before if before[n] != after[n]} == {3}


def test_a_with_block_is_one_publication(chest):
    chest["x"] = np.zeros(10)
    chest.sync()
    with Chest(chest.path) as other, chest.zarr("x") as z:
        z[0] = 1
        z[1] = 2
        assert z[1] == 2
        assert (other["x"] == 0).all()
    assert list(chest["x"][:2]) == [1, 2]


def test_a_with_block_that_raises_changes_nothing(chest):
    chest["x"] = np.zeros(10)
    with pytest.raises(ZeroDivisionError), chest.zarr("x") as z:  # noqa: PT012
        z[:] = 1
        raise ZeroDivisionError
    assert (chest["x"] == 0).all()
    assert len(folders(chest)) == 1
    z[0] = 5
    assert chest["x"][0] == 5


def test_a_block_without_changes_publishes_nothing(chest):
    chest["x"] = np.zeros(10)
    with chest.zarr("x"):
        before = chest.entry("x").generation
    assert chest.entry("x").generation == before


def test_readers_keep_the_array_that_they_have(chest):
    chest.set("x", np.arange(100), chunks=(10,))
    lazy = chest.array("x")
    chest.zarr("x")[:] = 0
    chest["x"] = np.ones(3)
    chest.flush()
    del chest["x"]

    assert (lazy[:] == np.arange(100)).all()

    del lazy
    for _ in range(100):  # zarr's thread may hold what it has just read
        gc.collect()
        chest.compact()
        if not folders(chest):
            break
    assert folders(chest) == []


@pytest.mark.parametrize("at", ["next change", "close"])
def test_a_folder_that_was_read_when_it_was_replaced_goes_later(at, tmp_path):
    with Chest(tmp_path / "c", format="zarr") as c:
        c["x"], c["y"] = np.zeros(10), np.zeros(10)
        c.sync()
        fd = c._spill.hold("x", c._manifest.index.get("x"))
        c.zarr("x")[0] = 1
        assert len(folders(c)) == 3
        c._spill.store.home.close_folder(fd)
        if at == "next change":
            c.zarr("y")[0] = 1
            assert len(folders(c)) == 2
    assert len(folders(c)) == 2


def test_what_is_newer_in_memory_is_what_is_changed(chest):
    chest["x"] = np.zeros(10)
    chest.flush()
    chest["x"] = np.ones(10)
    chest.zarr("x")[0] = 5

    assert list(chest["x"][:2]) == [5, 1]


def test_what_was_changed_in_memory_in_place_is_what_is_changed_on_disk(tmp_path):
    with Chest(tmp_path / "c") as c:
        c.set("x", np.zeros(10), format="zarr", mapped="copy")
        c.flush()
        c["x"][3] = 5
        c.zarr("x")[0] = 1
        assert list(c["x"][:4]) == [1, 0, 0, 5]
        c["x"][4] = 6
        with c.zarr("x") as z:
            z[5] = 7
        assert list(c["x"][:6]) == [1, 0, 0, 5, 6, 7]


def test_threads_that_change_one_chunk_take_turns(chest):
    chest["x"] = np.zeros(40, "i8")
    chest.flush()
    start = threading.Barrier(4)

    def work(mine):
        start.wait()
        for n in range(10):
            chest.zarr("x")[mine * 10 + n] = 1

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert (chest["x"] == 1).all()
    chest.compact()
    assert len(folders(chest)) == 1


def in_threads(work, count=4):
    """Run *work* with 0, 1, 2 … in threads at once; no error of theirs is lost."""
    start = threading.Barrier(count)

    def begin(mine):
        start.wait()
        work(mine)

    with ThreadPoolExecutor(count) as pool:
        for future in [pool.submit(begin, mine) for mine in range(count)]:
            future.result()


def test_threads_that_share_one_object_lose_no_change(chest):
    chest.set("x", np.zeros(40, "i8"), chunks=(10,))
    z = chest.zarr("x")

    def work(mine):
        for n in range(10):
            z[n * 4 + mine] = 1
            assert z[n * 4 + mine] == 1

    in_threads(work)

    assert (chest["x"] == 1).all()


def test_threads_that_write_in_an_open_block_are_one_change(chest):
    chest.set("x", np.zeros(40, "i8"), chunks=(10,))
    chest.sync()
    before = chest.entry("x").generation
    with chest.zarr("x") as z:

        def work(mine):
            for n in range(10):
                z[mine * 10 + n] += 1

        in_threads(work)
        assert chest.entry("x").generation == before
    assert (chest["x"] == 1).all()
    assert chest.entry("x").generation == before + 1


def test_a_block_is_not_published_while_another_thread_writes_in_it(chest):
    chest["x"] = np.zeros(10)
    z = chest.zarr("x")
    writing, may_end = threading.Event(), threading.Event()

    def slowly(array):
        writing.set()
        may_end.wait(20)
        array[3] = 5

    with ThreadPoolExecutor(2) as pool:
        z.__enter__()
        writer = pool.submit(z.change, slowly)
        writing.wait(20)
        end = pool.submit(z.__exit__, None, None, None)
        may_end.set()
        writer.result()
        end.result()

    assert chest["x"][3] == 5


def test_a_shared_object_waits_no_longer_than_the_timeout(tmp_path):
    with Chest(tmp_path / "c", format="zarr", timeout=0.01) as c:
        c["x"] = np.zeros(3)
        z = c.zarr("x")

        def nested(array):
            with ThreadPoolExecutor(1) as pool:
                late = pool.submit(z.__setitem__, 0, 1)
                with pytest.raises(errors.LockTimeout, match="another thread"):
                    late.result()
                # Who reads does not wait.
                assert pool.submit(z.__getitem__, 0).result() == 0
            array[0] = 2

        z.change(nested)
        assert z[0] == 2


def test_an_array_on_disk_travels_as_path_and_key(chest):
    chest["x"] = np.arange(5)

    again = pickle.loads(pickle.dumps(chest.zarr("x", mode="r")))

    assert (again[:] == np.arange(5)).all()
    assert again.mode == "r"
    again._chest.close()


def test_two_blocks_of_one_thread_are_an_error_and_no_deadlock(chest):
    chest["x"] = np.zeros(3)
    with chest.zarr("x") as z:
        with pytest.raises(RuntimeError, match="use the object of that block"):
            chest.zarr("x")[0] = 1
        with pytest.raises(RuntimeError, match="open already"):
            z.__enter__()


def test_a_key_that_is_set_or_deleted_meanwhile_wins_over_the_change(chest):
    chest["x"] = np.zeros(3)
    with pytest.raises(errors.StoreError, match="set by somebody else"):  # noqa: PT012
        with chest.zarr("x") as z:
            z[0] = 5
            chest["x"] = np.ones(3)
            chest.sync()
    assert (chest["x"] == 1).all()
    with pytest.raises(KeyError):  # noqa: PT012
        with chest.zarr("x") as z:
            z[0] = 5
            del chest["x"]
    assert "x" not in chest
    del z
    chest.compact()  # what the block held open
    assert folders(chest) == []


def test_a_folder_that_the_sweep_took_before_it_was_locked_is_made_anew(
    chest, monkeypatch
):
    open_folder, taken = Folder._open_folder, []

    def late(home, name):
        if not taken:
            taken.append(name)
            os.rmdir(home.join(name))
        return open_folder(home, name)

    monkeypatch.setattr(Folder, "_open_folder", late)
    chest["x"] = np.arange(10)
    chest.sync()

    assert taken
    assert len(folders(chest)) == 1


def test_a_folder_that_goes_before_a_change_opens_it_is_looked_for_again(chest):
    chest["x"] = np.arange(10)
    z = chest.zarr("x")
    hold, asked = chest._spill.hold, []

    def late(key, entry):
        asked.append(entry)
        if len(asked) == 1:
            raise FileNotFoundError
        return hold(key, entry)

    chest._spill.hold = late
    z[0] = 5

    assert z[0] == 5


def test_what_cannot_be_changed_says_why(chest, tmp_path):
    chest["x"], chest["y"] = np.zeros(3), "text"
    with pytest.raises(KeyError):
        chest.zarr("z")
    with pytest.raises(TypeError, match="no zarr array"):
        chest.zarr("y")
    with pytest.raises(errors.ReadOnlyError):
        chest.zarr("x", mode="r")[0] = 1
    with Chest(chest.path, readonly=True) as other:
        with pytest.raises(errors.ReadOnlyError):
            other.zarr("x")[0] = 1
        assert other.zarr("x")[0] == 0


def test_a_change_waits_no_longer_than_the_timeout(tmp_path):
    with Chest(tmp_path / "c", format="zarr", timeout=0.01) as c:
        c["x"] = np.zeros(3)
        caught = []

        def other():
            try:
                c.zarr("x")[0] = 1
            except errors.LockTimeout as error:
                caught.append(error)

        with c.zarr("x"):
            thread = threading.Thread(target=other)
            thread.start()
            thread.join()
        assert len(caught) == 1


@pytest.mark.parametrize(
    ("selection", "shape"),
    [(0, (7,)), (slice(0, 2), (3, 5)), (..., (2, 20, 5)), ((0, 1), (2,)), (0, (1, 3))],
)
def test_what_numpy_would_not_assign_is_refused_and_not_cut(selection, shape, chest):
    chest["x"] = np.zeros((20, 5))
    with pytest.raises(ValueError, match="cannot be assigned to a part of shape"):
        chest.zarr("x")[selection] = np.ones(shape)
    assert (chest["x"] == 0).all()


@pytest.mark.parametrize(
    ("selection", "shape"),
    [
        (0, (1, 5)),
        (slice(0, 2), (5,)),
        (..., (20, 1)),
        ((0, 1), ()),
        ((slice(None), 2), (1,)),
    ],
)
def test_what_numpy_would_assign_is_assigned(selection, shape, chest):
    value = np.zeros((20, 5))
    chest["x"] = value
    chest.zarr("x")[selection] = np.full(shape, 3.0)
    value[selection] = np.full(shape, 3.0)
    assert (chest["x"] == value).all()


def test_a_shape_of_other_dimensions_is_refused_in_words(chest):
    chest["x"] = np.zeros((20, 5))
    with pytest.raises(ValueError, match="none of 2 dimensions"):
        chest.zarr("x").resize((30,))
    with pytest.raises(RuntimeError, match="no with block"):
        chest.zarr("x").__exit__(None, None, None)


def test_a_live_array_shows_what_it_can_and_what_became_of_it(chest):
    chest["x"] = np.zeros((20, 5))
    z = chest.zarr("x")
    assert {"nchunks_initialized", "oindex", "append", "chunks"} <= {*dir(z)}
    assert not z.read_only
    assert chest.zarr("x", "r").read_only
    with pytest.raises(ValueError, match="copy=False"):
        np.array(z, copy=False)
    assert repr(z) == "<LiveArray 'x' float64 (20, 5)>"
    del chest["x"]
    assert repr(z) == "<LiveArray 'x': KeyError>"
    chest.close()
    assert repr(z) == "<LiveArray 'x': ClosedError>"


def test_dask_knows_a_live_array_that_was_changed_from_what_it_was(chest):
    da = pytest.importorskip("dask.array")
    chest["x"] = np.zeros(20)
    z = chest.zarr("x")
    names = [da.from_array(z).name for _ in range(2)]
    z[0] = 1

    assert names[0] == names[1] != da.from_array(z).name


def test_what_zarr_still_writes_when_a_change_is_interrupted_is_waited_for(
    chest, monkeypatch
):
    from chest import pieces
    from chest.formats import zarr_

    chest.set("x", np.zeros(40), chunks=(10,))
    z = chest.zarr("x")
    writing, may_write = threading.Event(), threading.Event()
    write, end = pieces.write, zarr_.FolderStore.end

    def late(folder, name, data):
        if name == "c.0":
            writing.set()
            assert may_write.wait(20)
        return write(folder, name, data)

    def ended(store):
        may_write.set()
        end(store)
        assert {"c.0"} <= store.fresh

    monkeypatch.setattr(pieces, "write", late)
    monkeypatch.setattr(zarr_.FolderStore, "end", ended)
    stores = []

    def interrupted(array):
        stores.append(array.store)
        pool.submit(array.__setitem__, slice(0, 10), 1)
        assert writing.wait(20)
        raise KeyboardInterrupt

    with ThreadPoolExecutor(1) as pool, pytest.raises(KeyboardInterrupt):
        z.change(interrupted)

    with pytest.raises(RuntimeError, match="is over"):
        stores[0]._set("c.1", np.zeros(10))
    assert len(folders(chest)) == 1
    assert (chest["x"] == 0).all()


def test_big_endian_and_fortran_stay_when_changed(chest):
    a = np.asfortranarray(np.arange(6.0).reshape(2, 3).astype(">f8"))
    chest["x"] = a
    chest.zarr("x")[0, 0] = 9

    assert chest["x"].dtype == ">f8"
    assert chest["x"].flags.f_contiguous
    assert chest.array("x").dtype == chest.array("x")[:1].dtype == ">f8"


# -- made and streamed ---------------------------------------------------------------------


def test_an_array_of_no_dimensions_is_made_stored_and_found_by_others(chest):
    z = chest.create("x", (), "f8")
    z[...] = 6
    chest.store("y", np.array(5, "i2"))

    with Chest(chest.path) as other:
        assert (other["x"], other["y"]) == (6, 5)
        assert other["x"].shape == ()
        assert type(other.entry("x").nbytes) is int


def test_byte_order_and_memory_order_of_a_source_come_back(chest):
    a = np.asfortranarray(np.arange(6.0).reshape(2, 3).astype(">f8"))
    chest.store("x", a)
    chest.create("y", np.int64(3), ">i2")[:] = 5

    assert same(np.array(chest["x"], order="K"), a)
    assert chest["y"].dtype == ">i2"
    assert (chest["y"] == 5).all()


def test_a_source_that_zarr_would_change_is_refused(chest, tmp_path):
    with pytest.raises(errors.EncodingError, match="keeps no mask"):
        chest.store("x", np.ma.masked_array([1, 2], [0, 1]))
    aligned = np.dtype([("a", "i1"), ("b", "f8")], align=True)
    with pytest.raises(errors.EncodingError, match="would pack"):
        chest.store("x", np.zeros(3, aligned))
    np.savez(tmp_path / "a.npz", a=np.ones(3))
    with pytest.raises(errors.EncodingError, match="several arrays"):
        chest.store("x", tmp_path / "a.npz")
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(errors.EncodingError, match=r"is no \.npy file"):
        chest.store("x", tmp_path / "a.txt")
    with pytest.raises(FileNotFoundError):
        chest.store("x", tmp_path / "none.npy")
    assert folders(chest) == []


@pytest.mark.parametrize("source", [None, 3.5, {}.keys])
def test_what_is_no_source_is_a_type_error_that_says_what_is(source, chest):
    with pytest.raises(TypeError, match="a source is an array, blocks of one"):
        chest.store("x", source)


def test_store_takes_what_xarray_wraps(chest):
    xr = pytest.importorskip("xarray")
    da = pytest.importorskip("dask.array")
    for a in (np.ones((3, 3)), da.ones((3, 3), chunks=2)):
        assert chest.store("x", xr.DataArray(a), progress=False)[:].sum() == 9


def test_create_makes_an_array_that_is_there_at_once(chest):
    z = chest.create("x", (10, 4), "i2", chunks=(5, 4), fill_value=7)
    z[0] = 1

    with Chest(chest.path) as other:
        assert other["x"].dtype == "i2"
        assert other["x"].sum() == 9 * 4 * 7 + 4
    chest.create("x", 3)
    assert chest["x"].shape == (3,)
    assert len(folders(chest)) == 1


def test_store_takes_blocks_memmaps_files_and_zarr_arrays(chest, tmp_path):
    a = np.random.default_rng(0).random((103, 7))
    np.save(tmp_path / "a.npy", a)
    sources = {
        "array": a,
        "blocks": (a[n : n + 10] for n in range(0, 103, 10)),
        "large blocks": iter([a[:50], a[50:]]),
        "memmap": np.load(tmp_path / "a.npy", mmap_mode="r"),
        "file": tmp_path / "a.npy",
        "zarr": zarr.create_array(zarr.storage.MemoryStore(), data=a),
        "live": chest.store("z", a),
    }
    for name, source in sources.items():
        z = chest.store(name, source, chunks=(16, 7))
        assert z.chunks == (16, 7)
        assert same(np.array(chest[name]), a), name
    assert chest.verify() == []


def test_store_takes_what_h5py_gives(chest, tmp_path):
    h5py = pytest.importorskip("h5py")
    a = np.arange(30).reshape(10, 3)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        chest.store("x", file.create_dataset("a", data=a))

    assert (chest["x"] == a).all()


@pytest.mark.parametrize("chunks", [(10, 10), (7, 10), ((1, 9, 15), (25,))])
@pytest.mark.parametrize("own", [None, (6, 4)])
def test_store_takes_dask_arrays_of_any_chunks(chunks, own, chest):
    da = pytest.importorskip("dask.array")
    a = np.arange(625).reshape(25, 25)
    layout = {} if own is None else {"chunks": own}

    z = chest.store("x", da.from_array(a, chunks=chunks) + 1, **layout)

    assert (z[:] == a + 1).all()
    assert own is None or z.chunks == own


def test_a_source_that_breaks_off_leaves_the_old_value(chest):
    chest["x"] = np.arange(3)
    chest.flush()

    def blocks():
        yield np.ones((5, 2))
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        chest.store("x", blocks())
    for bad in (iter([]), iter([np.ones(3), np.ones((3, 2))]), iter([np.float64(1)])):
        with pytest.raises(errors.EncodingError):
            chest.store("x", bad)
    assert (chest["x"] == np.arange(3)).all()
    assert len(folders(chest)) == 1


def test_a_full_disk_leaves_the_old_value_and_nothing_else(chest, monkeypatch):
    from chest import pieces

    a = np.random.default_rng(0).random((40, 10))
    chest.store("x", a, chunks=(10, 10))
    write = pieces.write

    def full(folder, name, data):
        if name.startswith("c.2"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(folder, name, data)

    monkeypatch.setattr(pieces, "write", full)
    for change in (
        lambda: chest.store("x", a + 1, chunks=(10, 10)),
        lambda: chest.store("y", (a for _ in range(3)), chunks=(10, 10)),
        lambda: chest.zarr("x").__setitem__(slice(None), 5),
    ):
        with pytest.raises(errors.StoreError, match="Free some space") as caught:
            change()
        assert caught.value.errno == errno.ENOSPC
    assert len(folders(chest)) == 1
    assert (chest["x"] == a).all()


def test_a_chunk_that_a_source_did_not_write_is_an_error(chest):
    class Part:
        shape, dtype = (10,), np.dtype("i4")
        __dask_graph__ = chunks = None

        def store(self, target, **_):
            target[:5] = np.ones(5, "i4")

    Part.chunks, Part.chunksize = ((5, 5),), (5,)

    with pytest.raises(errors.EncodingError, match="1 of 2 chunks"):
        chest.store("x", Part())
    assert "x" not in chest
    assert folders(chest) == []


# -- lazy ----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["pickle", "zarr"])
def test_a_lazy_array_serves_numpy_dask_and_xarray(form, tmp_path):
    da = pytest.importorskip("dask.array")
    xarray = pytest.importorskip("xarray")
    a = np.arange(400_000.0).reshape(1000, 400)
    with Chest(tmp_path / "c", format=form) as c:
        c["x"] = a
        c.flush()
        lazy = c.array("x")

        assert (lazy.shape, lazy.dtype, lazy.ndim) == (a.shape, a.dtype, 2)
        assert (lazy.size, lazy.nbytes, len(lazy)) == (a.size, a.nbytes, 1000)
        assert (np.asarray(lazy) == a).all()
        assert lazy[5, 7] == a[5, 7]
        x = da.from_array(lazy, chunks=(250, 400))
        assert x.name == da.from_array(c.array("x"), chunks=(250, 400)).name
        assert float(x.sum().compute(scheduler="sync")) == a.sum()
        assert float(xarray.DataArray(x).mean()) == a.mean()
        if form == "pickle":
            assert lazy[5:].base is not None
            assert not lazy[5:].flags.writeable
        before = x.name
        c["x"] = a + 1
        c.flush()
        assert da.from_array(c.array("x"), chunks=(250, 400)).name != before
        assert lazy[5, 7] == a[5, 7]
        del x, lazy


def test_a_lazy_array_travels_as_path_and_key(chest):
    chest["x"] = np.arange(5)

    again = pickle.loads(pickle.dumps(chest.array("x")))

    assert (again[:] == np.arange(5)).all()
    again._again[0].close()


def test_only_arrays_are_lazy(chest):
    chest["x"] = "text"
    with pytest.raises(TypeError, match="is a str"):
        chest.array("x")
    with pytest.raises(KeyError):
        chest.array("y")


@pytest.mark.parametrize(
    "selection",
    [
        slice(3, 47),
        (slice(3, 47), slice(None)),
        (slice(None, -1), slice(2, 5)),
        (slice(5, 40), [0, 3]),
        (slice(0, 50, 2), slice(None)),
        (slice(4, 45), ...),
        ...,
        (),
    ],
    ids=str,
)
@pytest.mark.parametrize("shards", [None, (20, 6)], ids=["chunks", "shards"])
def test_a_large_assignment_in_steps_is_what_numpy_makes_of_it(
    chest, monkeypatch, selection, shards
):
    if shards and selection == (slice(5, 40), [0, 3]):
        pytest.skip("zarr itself cannot assign to a list of columns of shards")
    monkeypatch.setattr("chest.live.AT_A_TIME", 1)
    expected = np.zeros((50, 6))
    chest.set("x", expected.copy(), chunks=(10, 6), shards=shards)
    new = np.random.default_rng(0).random(expected[selection].shape)
    expected[selection] = new
    chest.sync()
    before = chest.entry("x").generation
    chest.zarr("x")[selection] = new
    assert (chest["x"] == expected).all()
    assert chest.entry("x").generation == before + 1


def test_all_chunks_of_an_array_lie_in_one_folder(chest):
    chest.set("x", np.zeros((40, 40)), chunks=(10, 10))
    chest.flush()
    inside = os.listdir(chest.key_to_filename("x"))
    assert sorted(inside) == sorted(
        [".chest", "zarr.json", *(f"c.{n}.{m}" for n in range(4) for m in range(4))]
    )


@pytest.mark.parametrize("pack", [True, False], ids=["pack", "log"])
def test_small_arrays_are_told_apart_by_what_is_in_them(pack, tmp_path):
    tokenize = pytest.importorskip("dask.base").tokenize
    with Chest(tmp_path / "c") as c:
        for n in range(100 if pack else 1):
            c[n] = np.arange(3) + n
        if pack:
            c.flush()
        else:
            c.sync()
        old, again = c.array(0), c.array(0)
        assert tokenize(old) == tokenize(again)
        for n in range(100 if pack else 1):
            c[n] = np.arange(3) * 2
        if pack:
            c.flush()
        else:
            c.sync()
        new = c.array(0)
        assert c.entry(0).stored_nbytes < 1000
        assert list(old[:]) == [0, 1, 2]
        assert list(new[:]) == [0, 2, 4]
        assert tokenize(old) != tokenize(new)


def test_fields_of_records_and_single_objects_are_had_from_a_lazy_array(tmp_path):
    table = np.array([(1, 2.5), (3, 4.5)], [("a", "i4"), ("b", "f8")])
    with Chest(tmp_path / "c") as c:
        c["table"], c["objects"] = table, np.array([1, "a", None], object)
        lazy = c.array("table")
        assert list(lazy["b"]) == [2.5, 4.5]
        assert lazy[["b", "a"]].dtype.names == ("b", "a")
        assert lazy[1]["a"] == 3
        objects = c.array("objects")
        assert (objects[0], objects[1], objects[2]) == (1, "a", None)
        assert objects[1:].dtype == object


def test_files_that_were_linked_are_on_the_medium_before_a_change_is_published(
    tmp_path, monkeypatch
):
    with Chest(tmp_path / "c", format="zarr") as c:
        c.set("x", np.zeros(30), chunks=(10,))
    synced, sync = set(), system.sync_file

    def watched(fd):
        synced.add(os.fstat(fd).st_ino)
        sync(fd)

    monkeypatch.setattr(system, "sync_file", watched)
    with Chest(tmp_path / "c", durability="power") as c:
        c.zarr("x")[0] = 1
        folder = c.key_to_filename("x")
        inside = {entry.inode() for entry in os.scandir(folder)}
    assert len(inside) == 5
    assert inside <= synced


def test_what_a_file_system_refuses_when_a_file_is_closed_is_an_error(
    chest, monkeypatch
):
    chest["x"] = np.zeros(30)
    chest.flush()

    def refuses(fd):
        raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    monkeypatch.setattr(system, "flush_file", refuses)
    with pytest.raises(errors.StoreError, match="quota"):
        chest.zarr("x")[0] = 1
    with pytest.raises(OSError, match="quota"):
        chest._spill.store.home.write_aside("note", [b"x"], sync=False)
    chest["y"] = np.zeros(3)
    with pytest.raises(errors.StoreError, match="quota"):
        chest.sync()
    monkeypatch.undo()

    assert chest.zarr("x")[0] == 0
    assert len(folders(chest)) == 1


def test_the_digest_of_a_strided_array_is_taken_in_large_slices(monkeypatch):
    from chest.formats import zarr_

    whole = np.arange(600_000.0)
    digest = zarr_.value_digest(whole[::3].copy())
    calls, contiguous = [], np.ascontiguousarray

    def watched(part):
        calls.append(part.nbytes)
        return contiguous(part)

    monkeypatch.setattr(np, "ascontiguousarray", watched)

    assert zarr_.value_digest(whole[::3]) == digest
    assert len(calls) == 2
    assert max(calls) <= 1 << 20
    for view in (whole.reshape(600, 10, 100)[:, ::3], whole.reshape(2, -1)[:, ::2]):
        assert zarr_.value_digest(view) == zarr_.value_digest(view.copy())


def test_blocks_of_another_byte_order_are_streamed(chest):
    blocks = [(np.arange(5.0) + n).astype(">f8") for n in range(3)]

    z = chest.store("x", iter(blocks))

    assert (z[:] == np.concatenate(blocks)).all()
    assert chest["x"].dtype == np.dtype(">f8")
    with pytest.raises(errors.EncodingError, match="dtype float32"):
        chest.store("y", iter([np.zeros(3), np.zeros(3, "f4")]))


def test_the_rows_of_many_small_blocks_are_counted_once(chest):
    counted = 0

    class Block(np.ndarray):
        def __len__(self):
            nonlocal counted
            counted += 1
            return super().__len__()

    blocks = [np.full((1, 2), n).view(Block) for n in range(200)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(np, "asarray", lambda block: block)
        z = chest.store("x", iter(blocks), chunks=(300, 2))

    assert (z[:, 1] == np.arange(200)).all()
    assert counted <= 3 * len(blocks)
