"""What a chest is opened with."""

from __future__ import annotations

import gzip
import json
import os
import pathlib
import pickle
from typing import Any

import pytest

from chest import Chest
from chest.errors import ChestError
from chest.settings import Settings, absolute
from chest.system import memory_limit


@pytest.mark.parametrize(
    "options",
    [
        {"mode": "x"},
        {"format": "yaml"},
        {"mapped": True},
        {"mapped": "w"},
        {"publish": "never"},
        {"durability": "ever"},
        {"trust": "nobody"},
        {"verify": "none"},
        {"available_memory": "4 parsecs"},
        {"available_memory": -1},
        {"available_memory": "120%"},
        {"available_disk": "50%"},
        {"timeout": "x"},
        {"timeout": -1},
        {"timeout": float("nan")},
        {"timeout": True},
        {"format": "custom"},
        {"trust": "data", "dump": json.dump},
        {"policy": "random"},
        {"sign_key": b"short"},
        {"pack": "yes"},
        {"readonly": "no"},
        {"umask": 0o22},
        {"dump": "json"},
        {"on_miss": None},
        {"on_conflict": "mine"},
    ],
)
def test_options_that_are_not_taken_are_refused(
    options: dict[str, Any], tmp_path: Any
) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Chest(path=tmp_path / "c", **options)
    assert not (tmp_path / "c").exists()


@pytest.mark.parametrize(
    "options", [{"policy": "random"}, {"sign_key": b"short"}, {"readonly": True}]
)
def test_a_chest_that_was_refused_leaves_no_temporary_folder(
    options: dict[str, Any], tmp_path: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.tempdir", os.fspath(tmp_path))
    with pytest.raises((ValueError, ChestError)):
        Chest(**options)
    assert os.listdir(tmp_path) == []


def test_an_open_of_the_users_is_a_format_by_itself(tmp_path: Any) -> None:
    with Chest(path=tmp_path / "c", open=gzip.open) as c:
        c["x"] = [1, 2]
        c.flush()
        with gzip.open(c.key_to_filename("x")) as file:
            assert pickle.load(file) == [1, 2]
        assert c["x"] == [1, 2]


def test_the_words_that_are_taken_are_listed() -> None:
    with pytest.raises(ValueError, match="'owner', 'data', 'any'"):
        Settings(trust="all")


@pytest.mark.parametrize(
    ("given", "expected"),
    [(1000, 1000), (1e9, 1e9), ("4GB", 4e9), ("1kB", 1000), (0, 0)],
)
def test_budgets_in_words(given: Any, expected: float) -> None:
    assert Settings(available_memory=given).budget == expected


def test_a_share_is_of_the_memory_this_process_may_use() -> None:
    budget = Settings(available_memory="25%").budget
    assert budget == pytest.approx(memory_limit() / 4, rel=0.01)


def test_settings_travel() -> None:
    settings = Settings(
        available_memory="1MB", dump=json.dump, load=json.load, mode="t"
    )
    assert pickle.loads(pickle.dumps(settings)) == settings
    assert settings.format == "custom"


def test_paths_are_made_absolute(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert absolute("~/c") == "/home/me/c"
    assert absolute("c") == os.path.join(os.getcwd(), "c")
    with pytest.raises(ValueError, match=r"'\.' is the present one"):
        absolute("")  # from a variable that was not set, mostly
    for no_path in (b"c", 5, {"x": 1}):
        with pytest.raises(TypeError, match="name of a folder"):
            Chest(path=no_path)
    with pytest.raises(TypeError, match="name of a folder"):
        Chest(b"c")
    for collapsed in ("s3:/bucket/prefix", pathlib.Path("s3://bucket/prefix")):
        with pytest.raises(ValueError, match="two slashes"):
            Chest(collapsed)
    with pytest.raises(ValueError, match="s3://bucket"):
        absolute("s3://bucket/prefix")
