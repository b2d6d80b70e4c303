"""Pickles that lie compressed on disk."""

from __future__ import annotations

import os
import pathlib
import pickle
import sys

import numpy as np
import pytest

from chest import Chest, errors
from chest.formats import compressed

CODECS = ["zstd", "lz4"]
ZEROS = np.zeros(1 << 18)  # 2 MiB, which hardly take any room


@pytest.fixture(params=CODECS)
def codec(request):
    if request.param == "lz4":
        pytest.importorskip("lz4.frame")
    return request.param


def stored(c, key):
    return os.path.getsize(c.key_to_filename(key))


def noise(nbytes=6 << 20):
    return np.random.default_rng(0).integers(0, 256, nbytes, "u1")


def test_a_chest_compresses_its_files_and_gives_equal_values_back(tmp_path, codec):
    values = {"zeros": ZEROS, "text": "abc" * 100_000, "noise": noise(9 << 20)}
    with Chest(tmp_path / "c", compression=codec, pack=False) as c:
        for key, value in values.items():
            c[key] = value
        c.flush()
        assert stored(c, "zeros") < ZEROS.nbytes / 50
        assert c.entry("zeros").format == f"pickle+{codec}"
        assert c.stats().compression > 1
        for key, value in values.items():
            assert np.array_equal(c[key], value)
        assert c.verify() == []


def test_a_key_is_compressed_or_not_as_its_own_option_says(tmp_path):
    with Chest(tmp_path / "c") as c:
        c.set("small", ZEROS, compression="zstd")
        c["plain"] = ZEROS
        c.flush()
        assert stored(c, "small") < 10_000 < ZEROS.nbytes < stored(c, "plain")
    with Chest(tmp_path / "d", compression="zstd") as c:
        c.set("plain", ZEROS, compression=False)
        c.flush()
        assert stored(c, "plain") > ZEROS.nbytes


def test_auto_compresses_only_where_it_pays(tmp_path):
    with Chest(tmp_path / "c", compression="auto") as c:
        c["zeros"], c["noise"] = ZEROS, noise()
        c.flush()
        assert c.entry("zeros").format == "pickle+zstd"
        assert c.entry("noise").format == "pickle"
        assert (c["noise"] == noise()).all()
        assert not c["noise"].flags.writeable  # mapped, as if never tried


def test_the_stored_file_is_read_without_chest(tmp_path):
    with Chest(tmp_path / "c", compression="zstd") as c:
        c["x"] = ZEROS
        c.flush()
        data = pathlib.Path(c.key_to_filename("x")).read_bytes()
    from numcodecs import zstd

    assert (pickle.loads(zstd.decompress(data)) == ZEROS).all()


def test_a_codec_that_is_not_installed_is_told_before_anything_is_made(
    tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "lz4.frame", None)
    monkeypatch.setattr(compressed, "_codec", compressed._codec.__wrapped__)
    with pytest.raises(errors.MissingDependency, match=r"pip install 'chest\[lz4\]'"):
        Chest(tmp_path / "c", compression="lz4")
    assert not (tmp_path / "c").exists()
    with Chest(tmp_path / "d") as c:
        c.set("x", ZEROS, compression="lz4")
        with pytest.raises(errors.EncodingError, match=r"pip install 'chest\[lz4\]'"):
            c.sync()
        del c["x"]


def test_every_decoder_of_frames_passes_over_the_end(tmp_path):
    frame = pytest.importorskip("lz4.frame")
    with Chest(tmp_path / "c", compression="lz4") as c:
        c["x"] = value = np.zeros(2 << 20)  # several blocks
        c.flush()
        with frame.open(c.key_to_filename("x")) as file:
            assert (pickle.load(file) == value).all()


@pytest.mark.parametrize("place", [10, 0.5, -60, -30, -3])
def test_a_damaged_file_is_told_before_it_is_decompressed(tmp_path, codec, place):
    with Chest(tmp_path / "c", compression=codec) as c:
        c["x"] = noise(100_000)
        c.flush()
        path = c.key_to_filename("x")
        data = bytearray(pathlib.Path(path).read_bytes())
        data[int(place * len(data)) if place == 0.5 else place] ^= 1
        with open(path, "wb") as file:
            file.write(data)
        with pytest.raises(errors.CorruptValueError):
            c["x"]
        assert [problem.key for problem in c.verify()] == ["x"]


def test_a_changed_value_is_written_again_and_a_clean_one_is_not(tmp_path):
    with Chest(tmp_path / "c", compression="zstd") as c:
        c["x"] = ZEROS.tolist()
        c.flush()
        value = c["x"]
        c.flush()
        assert c.stats().writes == 1
        value = c["x"]
        value.append("more")
        c.flush()
        assert c.stats().writes == 2
        assert c["x"][-1] == "more"


def test_a_changed_array_is_not_lost(tmp_path):
    with Chest(tmp_path / "c", compression="zstd") as c:
        c["x"] = np.zeros(1 << 20)
        c.flush()
        assert c["x"].flags.writeable  # nothing is mapped
        c["x"][5] = 1
        c.flush()
        assert c["x"][5] == 1


def test_a_signed_chest_compresses_and_knows_a_foreign_file(tmp_path):
    with Chest(tmp_path / "c", compression="zstd", sign_key=b"k" * 32) as c:
        c["x"], c["y"] = ZEROS, ZEROS + 1
        c.flush()
        assert (c["x"] == 0).all()
        os.replace(c.key_to_filename("y"), c.key_to_filename("x"))
        with pytest.raises(errors.ChestError):
            c["x"], c.flush(), c["x"]
        c["y"] = None


def test_snapshots_links_and_copies_are_read_by_plain_chests(tmp_path):
    with Chest(tmp_path / "c", compression="zstd") as c, Chest(tmp_path / "d") as d:
        c["x"] = ZEROS
        with c.snapshot(tmp_path / "s") as s:
            assert os.path.samefile(s.key_to_filename("x"), c.key_to_filename("x"))
            assert (s["x"] == 0).all()
        d.update(c)
        assert (d["x"] == 0).all()
        assert d.verify() == []


def test_small_values_of_a_compressing_chest_share_packs(tmp_path):
    with Chest(tmp_path / "c", compression="zstd") as c:
        c.update({f"k{n}": "a" * 50 for n in range(1000)})
        c.flush()
        assert len(os.listdir(c.path)) < 10
        assert c["k7"] == "a" * 50


def test_what_cannot_be_compressed_is_refused(tmp_path):
    with pytest.raises(ValueError, match="compression='rar'"):
        Chest(tmp_path / "c", compression="rar")
    with pytest.raises(ValueError, match="for pickles"):
        Chest(tmp_path / "c", compression="zstd", trust="data")
    with Chest(tmp_path / "c", trust="data") as c:
        for options in ({}, {"format": "pickle"}, {"format": "data"}):
            with pytest.raises(ValueError, match="for pickles"):
                c.set("x", 1, compression="zstd", **options)


def test_a_chest_of_data_never_unpickles_what_is_compressed(tmp_path):
    with Chest(tmp_path / "c", compression="zstd") as c:
        c["x"] = ZEROS
    with (
        Chest(tmp_path / "c", trust="data") as c,
        pytest.raises(errors.UntrustedError),
    ):
        c["x"]


def test_what_pickle_refuses_leaves_no_file(tmp_path):
    with Chest(tmp_path / "c", compression="zstd") as c:
        c["x"] = (value for value in ZEROS)
        with pytest.raises(errors.EncodingError):
            c.flush()
        assert os.listdir(c.path) == [".keys"]
        c["x"] = lambda: 7  # cloudpickle begins anew
        c.set("y", [ZEROS, lambda: 8], compression="zstd")
        c.flush()
        assert (c["x"](), c["y"][1]()) == (7, 8)


def test_a_compressed_file_that_belongs_to_another_value_is_found(tmp_path, codec):
    with Chest(tmp_path / "c", compression=codec, pack=False) as c:
        for key in range(40):
            c[key] = np.zeros(10_000)
        c.flush()
        # The id in each makes some of them a byte longer: two are as long.
        sizes = [stored(c, key) for key in range(40)]
        key = next(key for key in range(40) if sizes[key] in sizes[:key])
        other = sizes.index(sizes[key])
        path = pathlib.Path(c.key_to_filename(key))
        path.write_bytes(pathlib.Path(c.key_to_filename(other)).read_bytes())
        assert [problem.key for problem in c.verify()] == [key]
