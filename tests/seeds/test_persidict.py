"""persidict: each program of its document, and none of its defects (D1 to D10)."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import random
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from chest import Chest, errors
from chest.seeds import FileDirDict


@pytest.fixture
def d(chest_dir):
    with FileDirDict(dir_name=chest_dir) as made:
        yield made


def filled(path: Path) -> FileDirDict:
    """The document's dictionary."""
    my_dictionary = FileDirDict(dir_name=path)
    my_dictionary["Eliza"] = "MIT Eliza was a mock Rogerian psychotherapist."
    my_dictionary["Eliza", "year"] = 1965
    my_dictionary["Eliza", "authors"] = ["Joseph Weizenbaum", "George Bernard Shaw"]
    my_dictionary["Shoebox"] = "IBM Shoebox performed arithmetic on voice command."
    my_dictionary["Shoebox", "year"] = 1961
    my_dictionary["Shoebox", "authors"] = ["W.C. Dersch", "E.A. Quade"]
    return my_dictionary


def test_the_documents_programs_run(chest_dir, capsys):
    my_dictionary = filled(chest_dir)
    for k in my_dictionary.keys():  # noqa: SIM118
        print(list(k), "==", my_dictionary[k])
    assert "Eliza" in my_dictionary, "Something is wrong"
    del my_dictionary
    new_dict = FileDirDict(dir_name=chest_dir)
    print("len(new_dict) == ", len(new_dict))

    assert capsys.readouterr().out.splitlines() == [
        "['Eliza'] == MIT Eliza was a mock Rogerian psychotherapist.",
        "['Eliza', 'year'] == 1965",
        "['Eliza', 'authors'] == ['Joseph Weizenbaum', 'George Bernard Shaw']",
        "['Shoebox'] == IBM Shoebox performed arithmetic on voice command.",
        "['Shoebox', 'year'] == 1961",
        "['Shoebox', 'authors'] == ['W.C. Dersch', 'E.A. Quade']",
        "len(new_dict) ==  6",
    ]
    new_dict.close()


def test_each_value_is_a_plain_file_in_a_tree(chest_dir):
    with filled(chest_dir) as d:
        files = {
            str(path.relative_to(chest_dir)): pickle.loads(path.read_bytes())
            for path in chest_dir.rglob("[!.]*")
            if path.is_file()
        }

        assert len(files) == len(d) == 6
        assert files["_Eliza/year"] == 1965
        assert files["Shoebox"] == d["Shoebox"]


@pytest.mark.parametrize(
    "key", ["a", ("a", "b"), ["a", ["b", ("c",)]], ("A-Z.~=()",), "x" * 253]
)
def test_safe_strings_and_sequences_of_them_are_keys(d, key):
    d[key] = 1

    assert d[key] == 1
    assert d.pop(list(d)[0]) == 1  # noqa: RUF015


def test_a_string_and_a_sequence_of_it_are_one_key(d):
    d["a"] = 1
    d["a", "b"] = 2

    assert d[("a",)] == d[["a"]] == 1
    assert d[("a", "b")] == d[["a", ["b"]]] == 2
    assert list(d) == [("a",), ("a", "b")]


@pytest.mark.parametrize(
    ("key", "kind"),
    [
        ("", ValueError),
        ("a b", ValueError),
        ("ä", ValueError),
        ("a/b", ValueError),
        ("..", ValueError),
        (".", ValueError),
        ("x" * 254, ValueError),
        ("a\n", ValueError),
        ((), ValueError),
        (("a", ""), ValueError),
        (1, TypeError),
        (None, TypeError),
        (b"a", TypeError),
        (("a", 1), TypeError),
        ({"a"}, TypeError),
    ],
)
def test_any_other_key_is_refused(d, key, kind):
    for use in (
        d.__getitem__,
        d.__contains__,
        d.pop,
        d.setdefault,
        d.get_subdict,
        lambda key: d.__setitem__(key, 1),
    ):
        if use == d.get_subdict and key == ():
            continue
        with pytest.raises(kind):
            use(key)
    assert len(d) == 0


def test_keys_that_differ_in_case_are_two(d):
    d["a"], d["A"] = 1, 2

    assert (d["a"], d["A"]) == (1, 2)


def test_setting_in_two_processes_at_once_loses_nothing(chest_dir):
    """D1."""
    context = multiprocessing.get_context("fork")
    results, barrier = context.SimpleQueue(), context.Barrier(2)
    askers = [
        context.Process(target=ask_first, args=(str(chest_dir), barrier, results, me))
        for me in range(2)
    ]
    for asker in askers:
        asker.start()
    first, second = results.get(), results.get()
    for asker in askers:
        asker.join()
        asker.close()
    results.close()

    assert first == second


def ask_first(path: str, barrier, results, me: int) -> None:
    with FileDirDict(path) as d:
        barrier.wait()
        results.put([d.setdefault(f"key{number}", me) for number in range(50)])


def test_what_cannot_be_pickled_is_refused_at_once(d, monkeypatch):
    """D2."""
    monkeypatch.setattr(time, "sleep", None)

    with pytest.raises(errors.EncodingError):
        d["x"] = threading.Lock()
    assert len(d) == 0


def test_a_damaged_file_is_an_error_at_once(chest_dir, monkeypatch):
    """D2."""
    with FileDirDict(chest_dir) as d:
        d["x"] = [1, 2, 3]
    data = (chest_dir / "x").read_bytes()
    (chest_dir / "x").write_bytes(data[:10] + b"?" + data[11:])
    monkeypatch.setattr(time, "sleep", None)

    with FileDirDict(chest_dir) as d, pytest.raises(errors.CorruptValueError):
        d["x"]


def test_a_value_that_is_in_memory_is_not_read_again(d):
    """D3."""
    d["x"] = value = [1, 2]

    assert d["x"] is value


def test_looking_lists_no_folder(d, monkeypatch):
    """D4."""
    d["a"], d["a", "b"] = 1, 2
    with monkeypatch.context() as patch:
        for name in ("listdir", "scandir"):
            patch.setattr(os, name, None)

        assert len(d) == 2
        assert d.random_key() in d
        assert d.newest_keys() == [("a", "b"), ("a",)]
        assert list(d.subdicts()) == ["a"]
        assert str(d) == f"FileDirDict(dir_name={d.dir_name!r})"


def test_keys_can_be_walked_twice(d):
    """D4."""
    d["a"] = 1
    keys = d.keys()

    assert list(keys) == list(keys) == [("a",)]


def test_it_travels_to_another_process(d):
    """D5."""
    d["a", "b"] = 1
    with pickle.loads(pickle.dumps(d.get_subdict("a"))) as other:
        other["c"] = 2

    assert dict(d) == {("a", "b"): 1, ("a", "c"): 2}


def test_comparing_arrays_does_not_say_false(chest_dir, d):
    """D9: a dict of arrays raises as well."""
    d["x"] = np.arange(3)

    with pytest.raises(ValueError, match="truth value"):
        _ = d == {("x",): np.arange(3)}
    d["x"] = 1
    assert d == {("x",): 1}


def test_a_subdict_shows_and_changes_a_part(chest_dir):
    with filled(chest_dir) as d:
        eliza = d.get_subdict("Eliza")

        assert dict(eliza.items()) == {
            ("year",): 1965,
            ("authors",): ["Joseph Weizenbaum", "George Bernard Shaw"],
        }
        eliza["year"] = 1966
        eliza["teacher", "name"] = "Doolittle"
        assert d["Eliza", "year"] == 1966
        assert eliza.get_subdict("teacher")["name"] == "Doolittle"
        assert list(eliza.subdicts()) == ["teacher"]
        assert {name: len(part) for name, part in d.subdicts().items()} == {
            "Eliza": 3,
            "Shoebox": 2,
        }
        assert eliza.popitem() == (("teacher", "name"), "Doolittle")
        assert repr(eliza).endswith(".get_subdict(('Eliza',))")
        eliza.clear()
        assert (len(eliza), len(d), eliza.random_key()) == (0, 4, None)
        with pytest.raises(KeyError, match="empty"):
            eliza.popitem()
        d.clear()
        assert list(d.values()) == []


def test_keys_are_found_by_the_age_of_their_values(d):
    for number, name in enumerate("abcd"):
        d["keys", name] = number
        os.utime(d._chest.entry(("keys", name)).path, (0, 1000 + number))
    os.utime(d._chest.entry(("keys", "a")).path, (0, 2000))
    part = d.get_subdict("keys")

    assert part.timestamp("b") == d.timestamp(("keys", "b")) == 1001
    assert part.oldest_keys() == [("b",), ("c",), ("d",), ("a",)]
    assert part.newest_keys(2) == [("a",), ("d",)]
    assert d.oldest_keys(1) == [("keys", "b")]
    assert part.newest_keys(0) == []
    with pytest.raises(KeyError):
        d.timestamp("none")


def test_a_value_set_now_has_the_time_of_now(d):
    before = time.time()
    d["x"] = 1

    assert before - 1 < d.timestamp("x") < time.time() + 1


def test_values_that_a_chest_wrote_have_an_age_as_well(d, chest_dir):
    with Chest(chest_dir, publish="each") as c:
        c["x"] = 1
        c["a", "b"] = 2

        assert set(d.newest_keys()) == {("x",), ("a", "b")}


def test_a_random_key_is_any_and_leaves_random_alone(d):
    d.update(dict.fromkeys("ab", 1))
    state = random.getstate()

    assert {d.random_key() for _ in range(100)} == {("a",), ("b",)}
    assert random.getstate() == state
    assert d.setdefault("c", 3) == 3
    assert d.pop("none", 0) == 0
    with pytest.raises(KeyError):
        d.pop("none")


def test_keys_that_others_delete_are_passed_over(d, chest_dir):
    d.update({name: name for name in "abc"})
    seen = []
    with Chest(chest_dir) as other:
        for key, value in d.items():
            seen.append((key, value))
            other.pop("b", None)

    assert seen == [(("a",), "a"), (("c",), "c")]
    assert list(d.values()) == ["a", "c"]
