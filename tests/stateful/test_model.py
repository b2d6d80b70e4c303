"""A chest against a dict, through moves that no test of one thing combines."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import hypothesis
import hypothesis.stateful
import numpy as np
import pytest
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from chest import Chest
from chest.manifest import Manifest
from tests.failures import faults, scenes

KEYS = st.sampled_from(
    ["a", "b", "A", "c~1", 1, "1", ("a", "b"), ("a", "c"), None, b"a", "../x"]
)
VALUES = st.one_of(
    st.integers(),
    st.lists(st.integers(0, 9), max_size=5),
    st.text(max_size=3),
    st.sampled_from([3, 300, 10_000]).map(lambda size: list(range(size))),
    st.sampled_from([10, 1_000, 9_000, 140_000]).map(np.arange),
    st.sets(st.text(max_size=2), max_size=4),
)
PAIRS = st.dictionaries(KEYS, VALUES, max_size=4)
MANY = st.tuples(st.integers(0, 60), st.integers(70, 200), st.integers(0, 9))
UPKEEP = st.sampled_from([300, 3_000, 1 << 23])  # bytes of the log
BUDGETS = st.sampled_from([0, 1_000, 30_000, 1_000_000, 1_000_000_000])


class AgainstDict(RuleBasedStateMachine):
    """The model is ``self.model``: what this process should see."""

    @initialize(budget=BUDGETS, upkeep=UPKEEP)
    def begin(self, budget: int, upkeep: int) -> None:
        self.patch = mock.patch.object(Manifest, "upkeep_nbytes", upkeep)
        self.patch.start()
        self.top = tempfile.mkdtemp()
        self.path = os.path.join(self.top, "c")
        self.c = Chest(self.path, available_memory=budget)
        self.model: dict[Any, Any] = {}
        self.published = True  # everything in the model is on disk

    # -- dict's own moves --------------------------------------------------------------

    @rule(key=KEYS, value=VALUES)
    def set(self, key: Any, value: Any) -> None:
        self.c[key] = value
        self.model[key] = _copied(value)
        self.published = False

    @rule(key=KEYS)
    def delete(self, key: Any) -> None:
        for mapping in (self.c, self.model):
            if key in self.model or mapping is self.c:
                try:
                    del mapping[key]
                except KeyError:
                    assert key not in self.model

    @rule(key=KEYS)
    def pop(self, key: Any) -> None:
        assert scenes.same(self.c.pop(key, "none"), self.model.pop(key, "none"))

    @precondition(lambda self: self.model)
    @rule()
    def popitem(self) -> None:
        (key, value), (theirs, expected) = self.c.popitem(), self.model.popitem()
        assert type(key) is type(theirs)
        assert key == theirs
        assert scenes.same(value, expected)

    @rule(key=KEYS, value=VALUES)
    def setdefault(self, key: Any, value: Any) -> None:
        got = self.c.setdefault(key, value)
        assert scenes.same(got, self.model.setdefault(key, _copied(value)))

    @rule(pairs=PAIRS)
    def update(self, pairs: dict[Any, Any]) -> None:
        self.c.update(pairs)
        self.model.update({key: _copied(value) for key, value in pairs.items()})
        self.published = False

    @rule()
    def clear(self) -> None:
        self.c.clear()
        self.model.clear()

    @rule(key=KEYS)
    def get(self, key: Any) -> None:
        assert scenes.same(self.c.get(key), self.model.get(key))

    @rule(key=KEYS, item=st.integers(0, 9))
    def change_in_place(self, key: Any, item: int) -> None:
        """The chest stores it as long as it holds the value."""
        value = self.c.get(key)
        if isinstance(value, list) and self.c.inmem.get(key) is value:
            value.append(item)
            self.model[key].append(item)
            self.published = False

    @rule(key=KEYS, item=st.integers(0, 9))
    def edit(self, key: Any, item: int) -> None:
        if isinstance(self.model.get(key), list):
            with self.c.edit(key) as value:
                value.append(item)
            self.model[key].append(item)

    @rule(which=MANY)
    def set_many(self, which: tuple[int, int, int]) -> None:
        """So many small values go into packs."""
        pairs = _many(*which)
        self.c.update(pairs)
        self.model.update({key: value.copy() for key, value in pairs.items()})
        self.published = False

    @precondition(lambda self: len(self.model) > 70)
    @rule(first=st.integers(0, 3), step=st.integers(2, 4))
    def delete_many(self, first: int, step: int) -> None:
        for key in list(self.model)[first::step]:
            del self.c[key], self.model[key]

    # -- chest's moves -----------------------------------------------------------------

    @rule()
    def flush(self) -> None:
        self.c.flush()
        assert self.c.memory_usage == 0
        self.published = True

    @rule()
    def sync(self) -> None:
        self.c.sync()
        self.published = True

    @rule()
    def compact(self) -> None:
        self.c.compact()

    @rule(budget=BUDGETS)
    def change_budget(self, budget: int) -> None:
        self.c.available_memory = budget

    @rule(budget=BUDGETS)
    def reopen(self, budget: int) -> None:
        self.c.close()
        self.c = Chest(self.path, available_memory=budget)
        self.published = True

    @precondition(lambda self: self.published)
    @rule(key=KEYS, value=VALUES)
    def another_handle(self, key: Any, value: Any) -> None:
        with Chest(self.path, available_memory=0) as other:
            assert list(other) == list(self.model)
            other[key] = value
        self.model[key] = _copied(value)

    @precondition(lambda self: self.published)
    @rule(key=KEYS)
    def another_handle_deletes(self, key: Any) -> None:
        with Chest(self.path) as other:
            other.pop(key, None)
        self.model.pop(key, None)

    @precondition(lambda self: self.published)
    @rule(which=MANY)
    def another_handle_sets_many(self, which: tuple[int, int, int]) -> None:
        pairs = _many(*which)
        with Chest(self.path) as other:
            other.update(pairs)
        self.model.update(pairs)

    @rule()
    def another_handle_compacts(self) -> None:
        with Chest(self.path) as other:
            other.compact()

    @precondition(lambda self: self.published)
    @rule(which=MANY, at=st.integers(1, 40), torn=st.booleans())
    def crash_in_a_pack(self, which: tuple[int, int, int], at: int, torn: bool) -> None:
        """A forked child dies in the middle of publishing many: all of them, or none."""
        pairs = _many(*which)

        def work() -> None:
            with faults.acting(faults.dying(at, torn=torn), faults.WRITES):
                with Chest(self.path) as c:
                    c.update(pairs)

        log = Path(self.top, "error")
        status = faults.in_child(work, log)
        assert status in (0, faults.DIED), log.read_text()
        self.c.refresh()
        if status == 0 or any(self.c.get(key) != self.model.get(key) for key in pairs):
            self.model.update(pairs)

    @precondition(lambda self: self.published)
    @rule(key=KEYS, value=VALUES, at=st.integers(1, 30), torn=st.booleans())
    def crash(self, key: Any, value: Any, at: int, torn: bool) -> None:
        """A forked child dies in the middle of publishing one key."""

        def work() -> None:
            with faults.acting(faults.dying(at, torn=torn), faults.WRITES):
                with Chest(self.path) as c:
                    c[key] = value

        log = Path(self.top, "error")
        status = faults.in_child(work, log)
        assert status in (0, faults.DIED), log.read_text()
        # It may have died after the record, but before it could tell anybody.
        self.c.refresh()
        if status == 0 or not scenes.same(self.c.get(key), self.model.get(key)):
            self.model[key] = _copied(value)

    @precondition(lambda self: self.published)
    @rule(text=st.sampled_from([b"x", b"0123456789abcdef {", b"\0" * 700, b" "]))
    def torn_tail(self, text: bytes) -> None:
        """What a writer that died left of its record."""
        with open(os.path.join(self.path, ".keys"), "ab") as log:
            log.write(text)

    # -- what must hold ----------------------------------------------------------------

    @invariant()
    def the_same(self) -> None:
        if not hasattr(self, "c"):
            return
        assert len(self.c) == len(self.model)
        assert list(self.c) == list(self.model)
        for key, value in self.model.items():
            assert scenes.same(self.c[key], value), key
        assert self.c.memory_usage <= self.c.available_memory

    @invariant()
    def whole(self) -> None:
        if hasattr(self, "c"):
            assert self.c.verify() == []

    def teardown(self) -> None:
        if hasattr(self, "c"):
            self.patch.stop()
            self.c.close()
            with Chest(self.path) as c:
                assert list(c) == list(self.model)
                assert scenes.equal(c, self.model)
                c.compact()
                held = {c.entry(key).name for key in c}
            assert scenes.files_in(self.path) == {".keys", *held}
            shutil.rmtree(self.top)


def _many(first: int, count: int, number: int) -> dict[Any, Any]:
    """Pairs that overlap with others of the kind."""
    return {(i, "many"): [number, i] for i in range(first, first + count)}


def _copied(value: Any) -> Any:
    """The model's own object, so that a change of ours does not reach it."""
    return value.copy() if hasattr(value, "copy") else value


def run(machine: type[RuleBasedStateMachine], examples: int, steps: int) -> None:
    hypothesis.stateful.run_state_machine_as_test(
        machine,
        settings=hypothesis.settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        ),
    )


@pytest.mark.timeout(300)  # 30 s alone, 100 s on a machine that others load
def test_a_chest_is_a_dict_whatever_happens() -> None:
    run(AgainstDict, 100, 30)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_a_chest_is_a_dict_whatever_happens_for_long() -> None:
    run(AgainstDict, 2_000, 60)
