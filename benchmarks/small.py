"""Small pairs by size and by number, and how a chest grows.

Imported by `benchmarks.runner`, so that they stand among the `WORKLOADS`.
"""

from __future__ import annotations

import random
import shutil
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

from benchmarks.data import SEED, name, names, pairs, shuffled
from benchmarks.measure import MB, MiB, Timer, prime, prime_files, real_memory
from benchmarks.plan import Case, Figures, Goal, Rival, Workload
from benchmarks.workloads import ABOUT, PLENTY, SMALL_RIVALS, WORKLOADS, workload

__all__ = ["growth"]

ROWS = {  # name: (bytes of a value, pairs)
    "rows_10B": (10, 100_000),
    "rows_100B": (100, 100_000),
    "rows_1KB": (1_000, 100_000),
    "rows_10KB": (10_000, 10_000),
    "rows_100KB": (100_000, 1_000),
    "rows_1e3": (100, 1_000),
    "rows_1e6": (100, 1_000_000),
}
GOALS = (  # as asked at 100 bytes and 100,000 pairs
    Goal("set [µs]", at_least=15, against="diskcache"),
    Goal("set [µs]", at_least=0.2, against="lmdb"),
    Goal("get [µs]", at_least=2, against="diskcache"),
    Goal("get [µs]", at_least=0.22, against="lmdb"),
    Goal("del [µs]", at_least=8, against="diskcache"),
    Goal("delete_many [µs]", at_least=15, against="diskcache"),
    Goal("incr [µs]", at_least=5, against="diskcache"),
)
STORES = tuple(rival for rival in SMALL_RIVALS if rival != "log")
# Enough that a database has written its own log back several times; fewer of who takes
# longer than so many seconds.
INCREMENTS, INCREMENT_SECONDS, FIRST_INCREMENTS = 10_000, 2.0, 10
LIMITS = {"rows_1e6": 300.0}  # seconds for all that a rival has to do there
GROWTH_BUDGET = 500 * MB  # bytes of memory, whatever the number of keys
SAMPLED = 10_000  # keys that are read, and as many deleted


def _rows(nbytes: int, pairs_asked: int, *, limited: bool) -> Callable[[Case], Figures]:
    """The function that measures so many values of *nbytes* characters."""

    def measure(case: Case) -> Figures:
        count = case.count(pairs_asked, limited=limited)
        data = pairs(shuffled(names(count)), nbytes)
        prime_files(case.folder, (nbytes + 400) * len(data))
        with case.open(PLENTY) as store, Timer() as written:
            for key, value in data:
                store.set(key, value)
            store.flush()
        keys = shuffled([key for key, _ in data])
        half = len(keys) // 2
        with case.open(PLENTY) as store:
            prime((nbytes + 400) * len(data))
            with Timer() as read:
                for key in keys:
                    store.get(key)
        with case.open(PLENTY) as store:
            with Timer() as deleted:
                for key in keys[:half]:
                    store.delete(key)
                store.flush()
            with Timer() as together:
                store.delete_many(keys[half:])
                store.flush()
            store.set("counter", 0)
            store.flush()
            increments = _increments(store)
            with Timer() as counted:
                for _ in range(increments):
                    store.increment("counter")
        return {
            "set [µs]": written.per(len(data), "µs"),
            "get [µs]": read.per(len(keys), "µs"),
            "del [µs]": deleted.per(half, "µs"),
            "delete_many [µs]": together.per(len(keys) - half, "µs"),
            "incr [µs]": counted.per(increments, "µs"),
        }

    return measure


def _increments(store: Rival) -> int:
    """How many a rival is to make, by the first of them."""
    with Timer() as timer:
        for _ in range(FIRST_INCREMENTS):
            store.increment("counter")
    return min(
        INCREMENTS, int(INCREMENT_SECONDS * 1e6 / timer.per(FIRST_INCREMENTS, "µs"))
    )


def _enter_rows() -> None:
    """Enter a workload for each of `ROWS`."""
    for title, (nbytes, count) in ROWS.items():
        limit = LIMITS.get(title)
        ABOUT[title] = f"set, get, del and incr with {count:,} values of {nbytes:,} B"
        WORKLOADS[title] = Workload(
            title,
            ABOUT[title],
            _rows(nbytes, count, limited=limit is not None),
            rivals=STORES,
            baselines=("lmdb", "diskcache"),
            goals=GOALS if title == "rows_100B" else (),
            repeat=1 if limit else 3,
            limit=limit,
            clean=True,
            asked=True,
        )


_enter_rows()
ABOUT["growth"] = "open, memory, set, get, delete, compact at 1,000 … 10,000,000 keys"


@workload(rivals=("chest",), repeat=1, clean=True, asked=True)
def growth(case: Case) -> Figures:
    """What depends on the number of keys."""
    figures: Figures = {}
    warm = case.inside("warm")
    apart(_grow, warm, min(case.sizes.grown))
    for count in case.sizes.grown:
        inner = case.inside(str(count))
        found = apart(_grow, inner, count) | apart(_use, inner, count, warm)
        figures |= {f"{count} keys: {figure}": each for figure, each in found.items()}
        shutil.rmtree(inner.folder)
    return figures


def apart(step: Callable[..., Figures], *arguments: object) -> Figures:
    """Run *step* in its own process: memory freed before would hide what it takes."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(step, *arguments).result()


def _grow(case: Case, count: int) -> Figures:
    """Make a chest of *count* keys."""
    case.folder.mkdir()
    value = pairs([name(0)])[0][1]
    with case.open(GROWTH_BUDGET) as store, Timer() as written:
        for number in range(count):
            store.set(name(number), value)
        store.flush()
    return {"set [µs]": written.per(count, "µs")}


def _use(case: Case, count: int, warm: Case) -> Figures:
    """Open it, and read, delete and compact."""
    with warm.open(GROWTH_BUDGET) as store:  # the first pays for what is imported
        store.get(name(0))
    sample = random.Random(SEED).sample(range(count), min(SAMPLED, count // 2))
    some = [name(number) for number in sample]
    prime(MiB)
    start = real_memory()
    with Timer() as opening:
        chest: Any = case.rival(case.folder, GROWTH_BUDGET)
        chest.get(name(count // 2))
    memory = max(real_memory() - start, 0)
    with Timer() as read:
        for key in some:
            chest.get(key)
    with Timer() as deleted:
        for key in some:
            chest.delete(key)
        chest.flush()
    with Timer() as compacted:
        chest.mapping.compact()
    chest.close()
    return {
        "open [ms]": opening.per(1, "ms"),
        "memory per key [B]": memory / count,
        "get [µs]": read.per(len(some), "µs"),
        "delete [µs]": deleted.per(len(some), "µs"),
        "compact [ms]": compacted.per(1, "ms"),
    }
