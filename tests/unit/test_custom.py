from __future__ import annotations

import gzip
import json
import pickle

import pytest

from chest import errors
from chest.formats.custom import Custom
from tests.unit.format_files import dump, load

OPENED = open


def make(write, read, mode="b", opener=OPENED):
    return Custom(write, read, mode, opener)


@pytest.mark.parametrize(
    "form",
    [
        make(pickle.dump, pickle.load),
        make(json.dump, json.load, "t"),
        make(json.dump, json.load, ""),
        make(pickle.dump, pickle.load, "b", gzip.open),
    ],
    ids=["pickle", "json", "text", "gzip"],
)
def test_values_come_back_from_the_user_s_own_format(tmp_path, form):
    value = {"a": [1, 2, None], "é": "ü"}
    receipt = dump(form, value, tmp_path / "x")
    assert load(form, tmp_path / "x") == value
    assert len(receipt.digest) == 32


def test_the_file_is_what_the_user_wrote_and_nothing_else(tmp_path):
    dump(make(json.dump, json.load, "t"), [1], tmp_path / "x")
    assert (tmp_path / "x").read_text() == "[1]"


@pytest.mark.parametrize("mode", ["b", "t"])
def test_the_digest_in_memory_is_that_of_the_file(tmp_path, mode):
    write = pickle.dump if mode == "b" else json.dump
    form = make(write, None, mode)
    assert dump(form, ["é", 1], tmp_path / "x").digest == form.digest(["é", 1])
    assert form.digest(["é", 2]) != form.digest(["é", 1])


def test_the_digest_is_unknown_where_only_a_real_file_will_do():
    def write(value, file):
        file.write(b"%d" % file.fileno())

    assert make(write, None).digest(1) is None
    assert make(pickle.dump, pickle.load, "b", gzip.open).digest(1) is None


def test_what_dump_raises_comes_out_as_the_cause(tmp_path):
    form = make(json.dump, json.load, "t")
    with pytest.raises(errors.EncodingError, match=r"'k'.*set.*dump") as caught:
        dump(form, {1}, tmp_path / "x")
    assert isinstance(caught.value.__cause__, TypeError)


def test_what_load_raises_comes_out_as_the_cause(tmp_path):
    (tmp_path / "x").write_text("{")
    with pytest.raises(errors.DecodingError, match=r"'k'.*load") as caught:
        load(make(json.dump, json.load, "t"), tmp_path / "x")
    assert isinstance(caught.value.__cause__, json.JSONDecodeError)


def test_errors_of_the_disk_pass_through(tmp_path):
    def full(value, file):
        raise OSError(28, "No space left on device")

    form = make(full, full)
    with pytest.raises(OSError, match="No space left"):
        dump(form, 1, tmp_path / "x")
    with pytest.raises(FileNotFoundError):
        form._open(tmp_path / "missing", "rb")


def test_lack_of_memory_is_not_blamed_on_the_value(tmp_path):
    def hungry(*_):
        raise MemoryError

    form = make(hungry, hungry)
    for action in (lambda: dump(form, 1, tmp_path / "x"), lambda: form.digest(1)):
        with pytest.raises(MemoryError):
            action()
