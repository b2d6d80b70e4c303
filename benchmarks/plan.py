"""What a workload and a rival are, what is asked of chest, how much data there is.

Owns: `Workload`, `Rival`, `Goal`, `Sizes`, `Case`. Does not own: the workloads, the
rivals, nor how they are run.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.measure import MB, MiB

__all__ = [
    "FULL",
    "QUICK",
    "TINY",
    "Case",
    "Figures",
    "Goal",
    "Rival",
    "Sizes",
    "Workload",
]

SLOW_PAIRS = 1_000  # for a rival that would take minutes
Figures = dict[str, float]  # "name [unit]" → figure; less is always better


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much data; the same workloads run in minutes, seconds or instants.

    Attributes
    ----------
    arrays : int
        Arrays in the workloads that take several.
    array_bytes : int
        Of each of them.
    big_bytes : int
        Of the one large array.
    rows : int
        Of the DataFrame.
    bounded : int
        Arrays in the bounded run.
    budget : int
        Memory for the bounded run [bytes].
    keys : int
        Small pairs.
    opened : tuple of int
        Numbers of keys that are opened.
    grown : tuple of int
        Numbers of keys that a chest grows to.
    """

    arrays: int
    array_bytes: int
    big_bytes: int
    rows: int
    bounded: int
    budget: int
    keys: int
    opened: tuple[int, ...]
    grown: tuple[int, ...]


FULL = Sizes(
    arrays=8,
    array_bytes=32 * MiB,
    big_bytes=1024 * MiB,
    rows=1_000_000,
    bounded=200,
    budget=512 * MB,
    keys=100_000,
    opened=(1_000, 10_000, 100_000, 1_000_000),
    grown=(1_000, 10_000, 100_000, 1_000_000, 10_000_000),
)
QUICK = Sizes(
    arrays=4,
    array_bytes=8 * MiB,
    big_bytes=64 * MiB,
    rows=50_000,
    bounded=24,
    budget=48 * MB,
    keys=4_000,
    opened=(1_000, 10_000),
    grown=(1_000, 10_000),
)
TINY = Sizes(
    arrays=2,
    array_bytes=MiB // 4,
    big_bytes=2 * MiB,
    rows=500,
    bounded=6,
    budget=MB,
    keys=60,
    opened=(20,),
    grown=(20,),
)


@dataclass(frozen=True, slots=True)
class Goal:
    """What is asked of chest in one figure.

    Attributes
    ----------
    figure : str
        Which of the workload's figures.
    at_least : float, optional
        Times as fast as *against*.
    at_most : float, optional
        Times the time of *against*; without *against*, in the figure's own unit.
    against : str, optional
        The rival it is compared with.
    """

    figure: str
    at_least: float | None = None
    at_most: float | Callable[[Sizes], float] | None = None
    against: str | None = None

    def limit(self, sizes: Sizes) -> float:
        """The number to keep; from `at_least`, else from `at_most`."""
        if self.at_least is not None:
            return self.at_least
        if callable(self.at_most):
            return self.at_most(sizes)
        if self.at_most is None:
            raise ValueError(self.figure)
        return self.at_most

    def text(self, sizes: Sizes) -> str:
        """As the table shows it."""
        limit = f"{self.limit(sizes):g}"
        if self.at_least is not None:
            return f"≥ {limit} × {self.against}"
        if self.against is not None:
            return f"time ≤ {limit} × {self.against}"
        return f"≤ {limit}"

    def met(self, value: float, sizes: Sizes) -> bool:
        """Whether *value* keeps it: a speed ratio with *against*, else the figure."""
        limit = self.limit(sizes)
        if self.at_least is not None:
            return value >= limit
        if self.against is not None:
            return value >= 1 / limit
        return value <= limit


class Rival:
    """One open store in *folder*, given *budget* bytes of memory where it has one.

    Where the store is a mapping, ``get``, ``set``, ``delete``, ``contains`` and
    ``length`` *are* its own bound methods, so that the interface costs nothing.

    Attributes
    ----------
    name : str
        As on the command line and in the tables.
    needs : tuple of str
        Modules that have to be importable.
    reopens : bool
        What was flushed is there again after ``close`` and a new start; the others
        live in memory, or use the disk only while they are open.
    slow : int
        It gets this many times fewer small keys; figures are per key.
    """

    name: ClassVar[str]
    needs: ClassVar[tuple[str, ...]] = ()
    reopens: ClassVar[bool] = True
    slow: ClassVar[int] = 1

    get: Callable[[str], Any]
    set: Callable[[str, Any], None]
    delete: Callable[[str], None]
    contains: Callable[[str], bool]
    length: Callable[[], int]

    def __init__(self, folder: Path, budget: int) -> None:
        raise NotImplementedError  # each store opens in its own way

    @classmethod
    def absence(cls) -> str:
        """Why it cannot be measured here; empty when it can."""
        for module in cls.needs:
            if importlib.util.find_spec(module) is None:
                return f"{module} is not installed"
        return ""

    def flush(self) -> None:
        """Write what is only in memory. Nothing to do for most."""

    def delete_many(self, keys: list[str]) -> None:
        """Delete all of *keys*; one by one, where the store has no other way."""
        for key in keys:
            self.delete(key)

    def increment(self, key: str) -> None:
        """Add one to a number and publish it; for many stores that is not atomic."""
        self.set(key, self.get(key) + 1)
        self.flush()

    def close(self) -> None:
        """Release files and memory."""

    def _bind(self, mapping: Any) -> None:
        """Make the mapping's own methods ours."""
        self.mapping = mapping
        self.get = mapping.__getitem__
        self.set = mapping.__setitem__
        self.delete = mapping.__delitem__
        self.contains = mapping.__contains__
        self.length = mapping.__len__


@dataclass(frozen=True, slots=True)
class Case:
    """What a workload's function is given: whom to measure, how much, where.

    Attributes
    ----------
    rival : type of Rival
        The store to open.
    sizes : Sizes
        How much data.
    folder : Path
        Its own directory: fresh, or as `prepare` left it.
    """

    rival: type[Rival]
    sizes: Sizes
    folder: Path

    @property
    def keys(self) -> int:
        """Small pairs for this rival."""
        return max(self.sizes.keys // self.rival.slow, 10)

    def count(self, pairs: int, *, limited: bool = False) -> int:
        """So many of *pairs* for this rival: a slow one would take minutes.

        Where the time is *limited* it gets as many as the others.
        """
        slow = self.rival.slow > 1 and not limited
        most = SLOW_PAIRS if slow else self.sizes.opened[-1]
        return min(pairs, most, self.sizes.opened[-1])

    def inside(self, folder: str) -> Case:
        """The same case in a folder inside its own."""
        return replace(self, folder=self.folder / folder)

    @contextmanager
    def open(self, budget: int) -> Iterator[Rival]:
        """The rival, opened; closed at the end."""
        store = self.rival(self.folder, budget)
        try:
            yield store
        finally:
            store.close()


@dataclass(frozen=True, slots=True)
class Workload:
    """One thing to measure.

    Attributes
    ----------
    name, about : str
        As listed at the top of `benchmarks.workloads`.
    run : callable
        Measures one rival once.
    prepare : callable, optional
        Fills the rival's folder, once for all repetitions and outside of any clock.
    rivals : tuple of str
        Who takes part, in the order of the interleaving.
    baselines : tuple of str
        With whom all are compared, a column each.
    goals : tuple of Goal
        What is asked of chest.
    needs : tuple of str
        Modules that the data are made with.
    repeat : int
        Repetitions when none are asked for.
    alone : bool
        Each repetition in a process of its own.
    limit : float, optional
        Seconds that one repetition may take, in a process of its own; whoever takes
        longer is stopped, and the table says so. Slow rivals get as many keys as all.
    clean : bool
        Folders go after each repetition, instead of at the end. Deleting many files
        makes creating them slow for a long while, keeping many bytes fills the disk.
    asked : bool
        Only when it is asked for by name: it takes long.
    """

    name: str
    about: str
    run: Callable[[Case], Figures]
    prepare: Callable[[Case], None] | None = None
    rivals: tuple[str, ...] = ()
    baselines: tuple[str, ...] = ()
    goals: tuple[Goal, ...] = ()
    needs: tuple[str, ...] = ()
    repeat: int = 5
    alone: bool = False
    limit: float | None = None
    clean: bool = False
    asked: bool = False
