"""The demonstration: twenty times more data than memory, checked value by value.

Owns: the run and its report.
Does not own: the values (`chest.samples`), the command line (`chest.cli`).

Values are never held: each can be made again from its key, so that a value read back is
compared with its source, exactly, without a second copy of the data.
"""

from __future__ import annotations

import errno
import gc
import os
import random
import shutil
import statistics
import sys
import tempfile
import time
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import TYPE_CHECKING, Any

from chest import errors, reprs, samples, sizing, system

if TYPE_CHECKING:
    from chest.core import Chest

__all__ = ["Report", "run"]

SMALLEST_BUDGET = 1_000_000  # bytes; the least under which some cut of the data fits
SPARE_ROOM = 64_000_000  # bytes of disk beyond what the values are expected to take
SHOWN = 5  # keys named when values differ


@dataclass
class Report:
    """What a run saw. Sizes are in bytes, times in seconds.

    Attributes
    ----------
    source, path, filesystem : str
        Where the values came from and went to; `kept`: whether that folder stays.
    values, nbytes, stored_nbytes : int
        How many values, their bytes in memory, and in files.
    budget, highest : int
        The memory allowed, and the highest ``memory_usage`` seen.
    real, anonymous, mapped : int
        Highest growth of the process's real memory after the source was loaded: in all,
        its own, and of mapped files.
    spills : int
        Values written to free memory, while filling.
    reloads : list of float
        Time of each read of a value that was not in memory; ``largest_reload``: of the
        largest value.
    write, read, verify, whole : float
        Time spent in the chest while filling and flushing it; reading back and summing;
        making again and comparing; everything.
    differing : list of tuple
        Keys that are missing, misplaced, or not equal to their source.
    """

    source: str
    path: str
    filesystem: str
    kept: bool
    budget: int
    values: int = 0
    nbytes: int = 0
    stored_nbytes: int = 0
    highest: int = 0
    real: int = 0
    anonymous: int = 0
    mapped: int = 0
    spills: int = 0
    reloads: list[float] = field(default_factory=list)
    largest_reload: float = 0.0
    write: float = 0.0
    read: float = 0.0
    verify: float = 0.0
    whole: float = 0.0
    differing: list[samples.Key] = field(default_factory=list)

    def text(self) -> str:
        """The report as a table, and one sentence that says what was seen."""
        size, seconds = reprs.bytes_text, reprs.seconds_text
        kept = "kept" if self.kept else "removed"
        median = statistics.median(self.reloads) if self.reloads else 0.0
        rows = [
            ("source", self.source),
            ("folder", f"{self.path} ({self.filesystem}, {kept})"),
            ("values", f"{self.values:,}"),
            ("bytes", f"{size(self.nbytes)} ({size(self.stored_nbytes)} in files)"),
            (
                "budget",
                f"{size(self.budget)} (1/{self.nbytes / self.budget:.0f} of the bytes)",
            ),
            ("highest memory_usage", size(self.highest)),
            (
                "growth of real memory",
                f"{size(self.real)} at most, with the value at hand (anonymous "
                f"{size(self.anonymous)}, mapped files {size(self.mapped)})",
            ),
            ("spills", f"{self.spills:,}"),
            (
                "reload",
                f"{seconds(median)} (median of {len(self.reloads):,}), "
                f"{seconds(self.largest_reload)} (the largest value)",
            ),
            ("written", self._rate(self.write)),
            ("read in random order", self._rate(self.read)),
            ("verified", self._rate(self.verify)),
            ("whole run", seconds(self.whole)),
        ]
        return f"{reprs.table(('chest demo', ''), rows)}\n\n{self.sentence()}"

    def _rate(self, spent: float) -> str:
        rate = reprs.bytes_text(int(self.nbytes / max(spent, 1e-9)))
        return f"{rate}/s ({reprs.seconds_text(spent)})"

    def sentence(self) -> str:
        """What the reader just saw, in one sentence."""
        size = reprs.bytes_text
        if self.differing:
            shown = ", ".join(map(repr, self.differing[:SHOWN]))
            return (
                f"{len(self.differing):,} of {self.values:,} values did not come back "
                f"equal to their source: {shown}"
            )
        return (
            f"You have just seen a dict keep {size(self.nbytes)} in "
            f"{size(self.highest)} of memory: {self.values:,} values went in and came "
            "back in random order, and after it was closed and reopened, each was "
            "exactly equal to its source."
        )


class _Run:
    """One run over a source, and the memory it takes."""

    def __init__(self, source: samples.Source, report: Report, *, quiet: bool) -> None:
        self._source = source
        self._report = report
        self._quiet = quiet
        self._sizes: dict[samples.Key, int] = {}
        gc.collect()
        # Free memory of the heap would be used first and hide growth.
        system.give_back_memory()
        self._start = system.real_memory()

    def fill(self, chest: Chest, size: int) -> None:
        """Set values until their bytes reach *size*."""
        report, clock = self._report, time.perf_counter
        with _bar("fill", size, self._quiet) as bar:
            for key in self._source.keys(report.budget // 2):
                value = self._source.value(key)
                self._sizes[key] = nbytes = sizing.nbytes(value)
                before = clock()
                chest[key] = value
                report.write += clock() - before
                self._look(chest)
                bar.update(nbytes)
                report.nbytes += nbytes
                if report.nbytes >= size:
                    break
        report.values = len(self._sizes)
        report.spills = chest.stats().spills
        before = clock()
        chest.flush()
        report.write += clock() - before

    def read(self, chest: Chest, seed: int) -> None:
        """Read every value back in random order, and every number in it."""
        report, clock = self._report, time.perf_counter
        order = list(self._sizes)
        random.Random(seed).shuffle(order)
        largest = max(self._sizes.values())
        start = clock()
        with _bar("read", report.nbytes, self._quiet) as bar:
            for key in order:
                absent = key not in chest.inmem
                before = clock()
                value = chest[key]
                spent = clock() - before
                if absent:
                    report.reloads.append(spent)
                if self._sizes[key] == largest:
                    report.largest_reload = spent
                samples.touch(value)
                self._look(chest)
                bar.update(self._sizes[key])
        report.read = clock() - start

    def verify(self, chest: Chest) -> None:
        """Compare the keys, in order, and every value made from the source again."""
        report = self._report
        start = time.perf_counter()
        differing = {
            found or meant  # whichever is there: one of both may have more keys
            for found, meant in zip_longest(chest, self._sizes)
            if found != meant
        }
        with _bar("verify", report.nbytes, self._quiet) as bar:
            for key, nbytes in self._sizes.items():
                if key not in chest or not samples.same(
                    chest[key], self._source.value(key)
                ):
                    differing.add(key)
                self._look(chest)
                bar.update(nbytes)
        report.differing = list(differing)
        report.verify = time.perf_counter() - start

    def _look(self, chest: Chest) -> None:
        """Take the memory of now into the report."""
        (anonymous, mapped), report = system.real_memory(), self._report
        anonymous -= self._start[0]
        mapped -= self._start[1]
        report.highest = max(report.highest, chest.memory_usage)
        report.anonymous = max(report.anonymous, anonymous)
        report.mapped = max(report.mapped, mapped)
        report.real = max(report.real, anonymous + mapped)


def run(
    *,
    size: int = 2_000_000_000,
    budget: int = 100_000_000,
    path: str | None = None,
    seed: int = 0,
    quiet: bool = False,
) -> Report:
    """Fill a chest beyond its budget, read it back, reopen it and check every value.

    Parameters
    ----------
    size : int
        Bytes of values to keep, at least.
    budget : int
        Bytes the chest may hold in memory; no value takes much more than half of it.
    path : str, optional
        New or empty folder for the chest, which stays there. By default a temporary
        folder that is removed, whatever happens.
    seed : int
        Decides which values, and in which order.
    quiet : bool
        Show no progress on standard error.

    Returns
    -------
    Report
        What was seen; ``differing`` is empty when all came back.

    Raises
    ------
    ValueError
        A budget below 1 MB, or a folder that has something in it.
    StoreError
        Not enough room on the disk; nothing was written.
    KeyboardInterrupt
        Ctrl-C; what is left was said on standard error.

    Examples
    --------
    >>> from chest import demo
    >>> report = demo.run(size=4_000_000, budget=1_000_000, quiet=True)
    >>> report.differing, report.highest <= report.budget
    ([], True)
    """
    if budget < SMALLEST_BUDGET:
        least = reprs.bytes_text(SMALLEST_BUDGET)
        message = f"the demo needs a budget of {least} or more"
        raise ValueError(message)
    if path is not None and os.path.exists(path) and os.listdir(path):
        message = f"{path} has something in it; the demo needs a new folder"
        raise ValueError(message)
    _check_room(path or tempfile.gettempdir(), size)
    folder = path or tempfile.mkdtemp(prefix="chest-demo-", suffix=".chest")
    try:
        return _run(folder, path is not None, size, budget, seed, quiet)
    except KeyboardInterrupt:
        left = "the temporary folder was removed, nothing is left"
        if path is not None:
            left = f"what was written stays in {path}; `chest info {path}` describes it"
        print(f"\nchest demo: stopped; {left}", file=sys.stderr)
        raise
    finally:
        if path is None:
            shutil.rmtree(folder)


def _run(
    folder: str, kept: bool, size: int, budget: int, seed: int, quiet: bool
) -> Report:
    """All of a run, but for what goes before and comes after."""
    from chest.core import Chest

    start = time.perf_counter()
    if not quiet:
        print("loading the source …", file=sys.stderr)
    source = samples.source(seed)
    if not quiet:
        print(source.title, file=sys.stderr)
    report = Report(source.title, folder, system.filesystem(folder), kept, budget)
    run = _Run(source, report, quiet=quiet)
    with Chest(folder, available_memory=budget) as chest:
        run.fill(chest, size)
        run.read(chest, seed)
    with Chest(folder, available_memory=budget) as chest:
        run.verify(chest)
        report.stored_nbytes = chest.stats().stored_nbytes
    report.whole = time.perf_counter() - start
    return report


def _check_room(folder: str, size: int) -> None:
    """Refuse before anything is written that would not fit."""
    folder = os.path.abspath(folder)
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    needed = size + size // 10 + SPARE_ROOM
    free = shutil.disk_usage(folder).free
    if free < needed:
        message = (
            f"the demo needs {reprs.bytes_text(needed)} of disk, {folder} has "
            f"{reprs.bytes_text(free)}: choose a smaller --size or another --path"
        )
        raise errors.StoreError(message, path=folder, errno=errno.ENOSPC)


def _bar(label: str, total: int, quiet: bool) -> Any:
    """A progress bar over bytes."""
    from tqdm import tqdm

    bar = type("Bar", (tqdm,), {"monitor_interval": 0})  # no thread of its own
    return bar(
        desc=f"{label:>8}",
        total=total,
        unit="B",
        unit_scale=True,
        mininterval=0.2 if sys.stderr.isatty() else 10.0,  # [s]; a file needs few
        disable=quiet,
        dynamic_ncols=True,
    )
