"""P1: CPython's own tests of the mapping protocol, where Python has them with it."""

from __future__ import annotations

from typing import Any, ClassVar

import pytest

from chest import Chest

mapping_tests = pytest.importorskip("test.mapping_tests")


class Python(mapping_tests.BasicTestMappingProtocol):
    """CPython's own tests of the mapping protocol."""

    def _empty_mapping(self) -> Chest:
        return self._make()

    def _full_mapping(self, data: dict[Any, Any]) -> Chest:
        made = self._make()
        made.update(data)
        return self.later(made)

    def _make(self) -> Chest:
        made = Chest(**self.options)
        self.addCleanup(made.close)
        return made

    options: ClassVar[dict[str, Any]] = {}

    def later(self, c: Chest) -> Chest:
        return c


class TestPythonsOwn(Python):
    type2test = Chest


class TestPythonsOwnWithoutMemory(Python):
    type2test = Chest
    options: ClassVar[dict[str, Any]] = {"available_memory": 0}


class TestPythonsOwnFlushed(Python):
    type2test = Chest

    def later(self, c: Chest) -> Chest:
        c.flush()
        return c


class TestPythonsOwnReopened(Python):
    type2test = Chest

    def later(self, c: Chest) -> Chest:
        c.flush()
        again = Chest(c.path)
        self.addCleanup(again.close)
        return again


del Python
