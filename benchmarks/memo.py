"""Memoized functions: ours, and those of the rivals that have them.

Owns: how a function is memoized by each. Does not own: what is measured
(`benchmarks.workloads`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any

from benchmarks.plan import Case

__all__ = ["memoized"]

Function = Callable[[Any], Any]


@contextmanager
def memoized(case: Case, function: Function, budget: int) -> Iterator[Function]:
    """*function*, memoized by the case's rival."""
    if case.rival.name == "joblib":
        memory = import_module("joblib").Memory(case.folder / "memory", verbose=0)
        yield memory.cache(function)
        return
    with case.open(budget) as store:
        if case.rival.name == "diskcache":
            yield store.mapping.memoize()(function)
        else:
            yield import_module("chest").memoize(store.mapping)(function)
