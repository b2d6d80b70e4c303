"""What is public is said once, and what is said is there."""

from __future__ import annotations

import importlib
import inspect

import pytest

import chest
from tests.architecture.house import MODULES


def made_here(module) -> list[str]:
    """The public classes and functions that *module* defines itself."""
    return sorted(
        name
        for name, value in vars(module).items()
        if not name.startswith("_")
        and (inspect.isclass(value) or inspect.isfunction(value))
        and value.__module__ == module.__name__
    )


@pytest.mark.parametrize("name", MODULES)
def test_all_names_what_exists_and_names_it_once(name):
    # That it is sorted is ruff's to say (RUF022).
    module = importlib.import_module(name)
    stated = getattr(module, "__all__", [])

    assert len(stated) == len(set(stated))
    assert [each for each in stated if not hasattr(module, each)] == []


@pytest.mark.parametrize("name", MODULES)
def test_all_names_each_public_class_and_function_of_its_module(name):
    module = importlib.import_module(name)

    assert set(made_here(module)) - set(getattr(module, "__all__", ())) == set()


def test_each_class_and_function_is_exported_by_one_module():
    homes: dict[int, set[str]] = {}
    named: dict[int, str] = {}
    for name in MODULES:
        module = importlib.import_module(name)
        for each in getattr(module, "__all__", ()):
            value = getattr(module, each)
            if inspect.isclass(value) or inspect.isfunction(value):
                homes.setdefault(id(value), set()).add(name)
                named[id(value)] = each

    doors = {"chest", "chest.seeds"}  # which gather what others define
    twice = {named[key]: found - doors for key, found in homes.items()}

    assert {name: found for name, found in twice.items() if len(found) > 1} == {}


def test_the_package_exports_what_it_lists_and_nothing_by_accident():
    modules = {name.split(".")[1] for name in MODULES if "." in name}
    public = {
        name
        for name in vars(chest)
        if not name.startswith("_") and name not in modules - set(chest.__all__)
    }
    compiler = {"TYPE_CHECKING", "annotations"}

    assert public - compiler <= set(chest.__all__)
    assert all(getattr(chest, name) is not None for name in chest.__all__)
    assert set(chest.__all__) <= set(dir(chest))


def test_an_unknown_name_is_an_attribute_error_that_says_so():
    with pytest.raises(AttributeError, match="'chest' has no attribute 'chset'"):
        _ = chest.chset
