"""Several handles that publish each value at once, against one dict.

They look at one another only when a rule says so: what a writer passes over meanwhile must
be there, in its place, when it looks.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, rule

from chest import Chest, Ordered
from chest.manifest import Manifest
from tests.failures import faults, scenes
from tests.stateful.test_model import UPKEEP, run

WRITERS = 3
WHO = st.integers(0, WRITERS - 1)
NAMES = [*"abcdefgh", "é", 'q"\\', ("t", 1), 7]
KEYS = st.sampled_from(NAMES)
SMALL = st.one_of(st.integers(), st.text(max_size=5), st.booleans(), st.none())
VALUES = st.one_of(SMALL, SMALL, st.just("x" * 5_000), st.lists(SMALL, max_size=2))
SETS = st.lists(st.tuples(WHO, KEYS, VALUES), min_size=1, max_size=12)
LONG = 10_000_000.0  # seconds


class Writers(RuleBasedStateMachine):
    """The model is ``self.model``: what anybody should see who looks."""

    @initialize(
        budget=st.sampled_from([0, 1_000, 1_000_000]),
        upkeep=UPKEEP,
    )
    def begin(self, budget: int, upkeep: int) -> None:
        self.patch = mock.patch.object(Manifest, "upkeep_nbytes", upkeep)
        self.patch.start()
        self.top = tempfile.mkdtemp()
        self.path = os.path.join(self.top, "c")
        self.budget = budget
        self.writers = [self.opened() for _ in range(WRITERS)]
        self.model: dict[Any, Any] = {}

    def opened(self) -> Chest:
        return Chest(self.path, available_memory=self.budget, publish="each")

    @rule(sets=SETS)
    def set(self, sets: list[tuple[int, Any, Any]]) -> None:
        for who, key, value in sets:
            self.writers[who][key] = value
            self.model[key] = value

    @rule(who=WHO, key=KEYS)
    def delete(self, who: int, key: Any) -> None:
        assert (self.writers[who].pop(key, "none") == "none") == (key not in self.model)
        self.model.pop(key, None)

    @rule(counts=st.lists(st.tuples(WHO, st.integers(-3, 3)), max_size=9))
    def count(self, counts: list[tuple[int, int]]) -> None:
        for who, delta in counts:
            total = self.writers[who].incr("count", delta)
            self.model["count"] = self.model.get("count", 0) + delta
            assert total == self.model["count"]

    @rule(who=WHO, key=KEYS, value=SMALL)
    def add(self, who: int, key: Any, value: Any) -> None:
        assert self.writers[who].add(key, value) == (key not in self.model)
        self.model.setdefault(key, value)

    @rule(who=WHO, key=KEYS, value=VALUES)
    def set_with_a_deadline(self, who: int, key: Any, value: Any) -> None:
        self.writers[who].set(key, value, ttl=LONG)
        self.model[key] = value

    @rule(who=WHO, many=st.dictionaries(KEYS, VALUES, max_size=6))
    def set_many(self, who: int, many: dict[Any, Any]) -> None:
        self.writers[who].set_many(many)
        self.model.update(many)

    @rule(who=WHO, key=KEYS, last=st.booleans())
    def move(self, who: int, key: Any, last: bool) -> None:
        if key in self.model:
            Ordered(self.writers[who]).move_to_end(key, last=last)
            rest = dict(self.model)
            moved = {key: rest.pop(key)}
            self.model = rest | moved if last else moved | rest

    @rule(who=WHO)
    def clear(self, who: int) -> None:
        self.writers[who].clear()
        self.model.clear()

    @rule(who=WHO)
    def flush(self, who: int) -> None:
        self.writers[who].flush()

    @rule(who=WHO)
    def compact(self, who: int) -> None:
        self.writers[who].compact()

    @rule(who=WHO)
    def reopen(self, who: int) -> None:
        self.writers[who].close()
        self.writers[who] = self.opened()

    @rule(text=st.sampled_from([b"x", b"0123456789abcdef {", b"\0" * 700, b"\t"]))
    def torn_tail(self, text: bytes) -> None:
        """What a writer that died left of its record."""
        with open(os.path.join(self.path, ".keys"), "ab") as log:
            log.write(text)

    @rule(who=WHO, key=KEYS, value=SMALL, at=st.integers(1, 9), torn=st.booleans())
    def crash(self, who: int, key: Any, value: Any, at: int, torn: bool) -> None:
        """A forked child dies in the middle of setting one key."""

        def work() -> None:
            with faults.acting(faults.dying(at, torn=torn), faults.WRITES):
                with Chest(self.path, publish="each") as c:
                    c[key] = value

        log = Path(self.top, "error")
        status = faults.in_child(work, log)
        assert status in (0, faults.DIED), log.read_text()
        with Chest(self.path) as fresh:
            seen = fresh.get(key, "none")
        if status == 0 or not scenes.same(seen, self.model.get(key, "none")):
            self.model[key] = value

    @rule(who=WHO)
    def look(self, who: int) -> None:
        c = self.writers[who]
        assert list(c.items()) == list(self.model.items())
        assert c.verify() == []

    def teardown(self) -> None:
        self.patch.stop()
        if not hasattr(self, "model"):
            return
        with Chest(self.path, readonly=True) as fresh:
            known = facts(fresh)
            assert list(fresh.items()) == list(self.model.items())
        for who in range(WRITERS):
            self.look(who)
            assert facts(self.writers[who]) == known
        for each in self.writers:
            each.close()
        shutil.rmtree(self.top)


def facts(c: Chest) -> dict[Any, tuple[int, int]]:
    """Generation and birth of each key, which all have to agree about."""
    index = c._manifest.index
    return {key: (entry.generation, entry.birth) for key, entry in index.items()}


@pytest.mark.timeout(300)
def test_writers_that_do_not_look_lose_nothing_and_agree() -> None:
    run(Writers, 60, 30)


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_writers_that_do_not_look_lose_nothing_and_agree_for_long() -> None:
    run(Writers, 2_000, 60)
