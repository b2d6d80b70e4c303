"""User code that must type-check: run by mypy, never by Python."""

from __future__ import annotations

import os
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any, assert_type

import chest
from chest import Chest, nbytes
from chest.errors import ChestError, CorruptValueError

version: str = chest.__version__


def a_chest_is_a_mutable_mapping(given: MutableMapping[Any, Any]) -> None:
    given["x"] = [1, 2, 3]


def every_way_to_make_one(folder: Path) -> None:
    Chest()
    Chest({"x": 1})
    Chest("features")
    Chest(folder)
    Chest(path=folder, available_memory="4GB")
    Chest(path=str(folder), available_memory=1e9, durability="power")
    Chest(path=os.fspath(folder), mapped="copy", publish="each", readonly=True)


def a_working_day(folder: Path) -> None:
    with Chest(folder) as c:
        a_chest_is_a_mutable_mapping(c)
        c["x"] = 1
        c.set("y", 2, mapped="copy")
        c.update({"z": 3})
        c |= {"w": 4}
        value = c["x"] + c.get("y", 0)
        with c.edit("x") as inner:
            inner.append(value)
        c.flush()
        assert_type(c.path, str)
        assert_type(c.key_to_filename("x"), str)
        assert_type(c.memory_usage, int)
        assert_type(len(c), int)


def errors_carry_what_they_speak_of(c: Chest) -> None:
    try:
        c["x"]
    except CorruptValueError as error:
        assert_type(error.path, str | None)
    except ChestError as error:
        assert_type(error.key, object)


assert_type(nbytes(b"abc"), int)
