"""Two handles on one place against a dict; moves include reopening and compaction."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from chest import Chest
from chest.objects.naming import name_of

pytest.importorskip("obstore", reason="obstore is not installed")

_numbers = itertools.count()
KEYS = st.sampled_from(["a", "b", ("a", "b"), 1, b"x"])
VALUES = st.sampled_from([0, "text", [1, 2], "x" * 5000, 2.5])


class Handles(RuleBasedStateMachine):
    """Each operation is done by one of two handles, whose values the other sees."""

    @initialize(budget=st.sampled_from([0, 6000, 10**6]))
    def open(self, budget: int) -> None:
        self.address = f"memory://stateful/{next(_numbers)}"
        self.budget = budget
        self.model: dict[Any, Any] = {}
        self.handles = [self.opened(), self.opened()]

    def opened(self) -> Any:
        return Chest(self.address, available_memory=self.budget, max_age=0)

    def teardown(self) -> None:
        if hasattr(self, "handles"):
            for c in self.handles:
                c.close()
            Chest(self.address).drop()

    def publish(self) -> None:
        """What one set, the other must not overwrite with what it set before."""
        for c in self.handles:
            c.sync()

    @rule(who=st.sampled_from([0, 1]), key=KEYS, value=VALUES, flush=st.booleans())
    def set(self, who: int, key: Any, value: Any, flush: bool) -> None:
        self.publish()
        self.handles[who][key] = value
        self.model[key] = value
        if flush:
            self.handles[who].flush()

    @rule(who=st.sampled_from([0, 1]), key=KEYS)
    def get(self, who: int, key: Any) -> None:
        self.publish()
        assert self.handles[who].get(key, "none") == self.model.get(key, "none")
        assert (key in self.handles[who]) == (key in self.model)

    @rule(who=st.sampled_from([0, 1]), key=KEYS)
    def append(self, who: int, key: Any) -> None:
        self.publish()
        if isinstance(self.model.get(key), list):
            self.model[key] = [*self.model[key], 3]
            with self.handles[who].edit(key) as value:
                value.append(3)

    @rule(who=st.sampled_from([0, 1]), key=KEYS)
    def delete(self, who: int, key: Any) -> None:
        self.publish()
        if key in self.model:
            del self.handles[who][key], self.model[key]
        else:
            with pytest.raises(KeyError):
                del self.handles[who][key]

    @rule(who=st.sampled_from([0, 1]), key=KEYS)
    def pop(self, who: int, key: Any) -> None:
        self.publish()
        assert self.handles[who].pop(key, "none") == self.model.pop(key, "none")

    @rule(who=st.sampled_from([0, 1]))
    def popitem(self, who: int) -> None:
        self.publish()
        if self.model:
            key = max(self.model, key=name_of)
            assert self.handles[who].popitem() == (key, self.model.pop(key))

    @rule(who=st.sampled_from([0, 1]), key=KEYS, value=VALUES)
    def add(self, who: int, key: Any, value: Any) -> None:
        self.publish()
        assert self.handles[who].add(key, value) == (key not in self.model)
        self.model.setdefault(key, value)

    @rule(who=st.sampled_from([0, 1]), key=KEYS)
    def incr(self, who: int, key: Any) -> None:
        self.publish()
        if isinstance(self.model.get(key, 0), int | float):
            self.model[key] = self.model.get(key, 0) + 1
            assert self.handles[who].incr(key) == self.model[key]

    @rule(who=st.sampled_from([0, 1]), key=KEYS, value=VALUES)
    def set_and_forget(self, who: int, key: Any, value: Any) -> None:
        self.publish()
        self.handles[who].set(key, value, ttl=1000)
        self.model[key] = value

    @rule(who=st.sampled_from([0, 1]))
    def reopen(self, who: int) -> None:
        self.handles[who].close()
        self.handles[who] = self.opened()

    @rule(who=st.sampled_from([0, 1]))
    def compact(self, who: int) -> None:
        self.publish()
        self.handles[who].compact()

    @rule(who=st.sampled_from([0, 1]))
    def clear(self, who: int) -> None:
        self.publish()
        self.handles[who].clear()
        self.model.clear()

    @rule(who=st.sampled_from([0, 1]))
    def all(self, who: int) -> None:
        self.publish()
        c = self.handles[who]
        assert dict(c.items()) == self.model
        assert list(c) == sorted(self.model, key=name_of)
        assert len(c) == len(self.model)
        assert c.verify() == []

    @invariant()
    def budget_holds(self) -> None:
        for c in getattr(self, "handles", ()):
            assert c.memory_usage <= self.budget


TestHandles = Handles.TestCase
