"""The workloads. Each is a small function that measures one rival once."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from benchmarks.data import array, frame, name, names, pairs, shuffled
from benchmarks.measure import (
    MB,
    MiB,
    Timer,
    peak_memory,
    prime,
    prime_files,
    real_memory,
    reset_peak,
)
from benchmarks.memo import memoized
from benchmarks.plan import Case, Figures, Goal, Rival, Workload

__all__ = ["ABOUT", "WORKLOADS"]

ABOUT = {
    "flush_arrays": "set and flush 8 float64 arrays of 32 MiB, checksums included",
    "flush_one": "set and flush one float64 array of 32 MiB",
    "load_array": "first get of an array of 32 MiB and of one of 1 GiB, reopened",
    "load_tensor": "first get of a tensor of 32 MiB and of one of 1 GiB, reopened",
    "sum_loaded": "get and sum 8 arrays of 32 MiB, reopened",
    "load_frame": "get an Arrow-backed DataFrame of a million rows, reopened",
    "bounded": "200 arrays of 32 MiB under 512 MB: written, then twice read and summed",
    "spill_peak": "extra memory at the peak while one array of 1 GiB is written out",
    "small_get": "get 100,000 values of 100 characters from memory, random order",
    "small_set": "set 100,000 values of 100 characters in memory, random order",
    "small_write": "set 100,000 values of 100 characters and flush",
    "small_read": "get 100,000 values of 100 characters, reopened, random order",
    "small_delete": "delete 100,000 values of 100 characters and flush, reopened",
    "open_many": "open a store of 1,000 … 1,000,000 keys and get one",
    "lookups": "get a missing key, `in` and `len` among 100,000 keys, reopened",
    "memo_hit": "a memoized function with a small argument, found 1,000 times",
    "memo_array": "a memoized function with an argument of 10 MiB, found",
}
WORKLOADS: dict[str, Workload] = {}

PLENTY = 4_000 * MB  # bytes: a budget that these workloads never fill
ROUNDS = 1_000  # of a call too short for a clock
ALLOWANCE = 64 * MB  # bytes over the budget: what is at work at any moment


def workload(**settings: Any) -> Callable[[Callable[[Case], Figures]], Any]:
    """Enter a function among the `WORKLOADS` under its own name."""

    def enter(run: Callable[[Case], Figures]) -> Callable[[Case], Figures]:
        name = run.__name__
        WORKLOADS[name] = Workload(name, ABOUT[name], run, **settings)
        return run

    return enter


ARRAY_RIVALS = ("raw", "chest", "np.save", "joblib", "diskcache", "zarr", "chest-0.2.3")


def _flush(case: Case, count: int) -> Figures:
    """Time set and flush of *count* arrays."""
    data = [(key, array(case.sizes.array_bytes)) for key in names(count)]
    with case.open(PLENTY) as store:
        # What a first use imports is not what is measured.
        store.set("first", array(case.sizes.array_bytes))
        store.flush()
        prime_files(case.folder, count * case.sizes.array_bytes)
        with Timer() as timer:
            for key, value in data:
                store.set(key, value)
            store.flush()
    return {"time [ms]": timer.per(1, "ms")}


@workload(
    rivals=ARRAY_RIVALS,
    baselines=("raw",),
    goals=(Goal("time [ms]", at_least=0.95, against="raw"),),
    repeat=9,
    clean=True,
)
def flush_arrays(case: Case) -> Figures:
    """Spill speed, several at once."""
    return _flush(case, case.sizes.arrays)


@workload(
    rivals=ARRAY_RIVALS,
    baselines=("raw",),
    goals=(Goal("time [ms]", at_least=0.85, against="raw"),),
    repeat=15,
    clean=True,
)
def flush_one(case: Case) -> Figures:
    """Spill speed, one alone."""
    return _flush(case, 1)


def _write_arrays(case: Case) -> None:
    """Leave small and big arrays in the folder."""
    with case.open(PLENTY) as store:
        for key in ["first", *names(case.sizes.arrays)]:
            store.set(key, array(case.sizes.array_bytes))
        store.flush()


def _write_one_and_big(case: Case) -> None:
    """Leave two equal arrays and a big one in the folder."""
    with case.open(PLENTY) as store:
        for key in ("first", "one"):
            store.set(key, array(case.sizes.array_bytes))
        store.set("big", array(case.sizes.big_bytes))
        store.flush()


@workload(
    prepare=_write_one_and_big,
    rivals=("raw", "chest", "np.save", "joblib"),
    baselines=("raw",),
    goals=(Goal("array [µs]", at_most=100), Goal("big array [µs]", at_most=100)),
)
def load_array(case: Case) -> Figures:
    """Reload without copying: cost independent of size."""
    return _first_gets(case)


def _first_gets(case: Case) -> Figures:
    """Time the first get of one value and of a big one."""
    figures = {}
    with case.open(PLENTY) as store:
        store.get("first")
        for key, figure in (("one", "array [µs]"), ("big", "big array [µs]")):
            with Timer() as timer:
                value = store.get(key)
            figures[figure] = timer.per(1, "µs")
            del value
    return figures


def _write_tensors(case: Case) -> None:
    """Leave two equal tensors and a big one in the folder."""
    from torch import from_numpy

    with case.open(PLENTY) as store:
        for key in ("first", "one"):
            store.set(key, from_numpy(array(case.sizes.array_bytes)))
        store.set("big", from_numpy(array(case.sizes.big_bytes)))
        store.flush()


@workload(
    prepare=_write_tensors,
    rivals=("chest", "pickle", "joblib"),
    goals=(Goal("array [µs]", at_most=100), Goal("big array [µs]", at_most=100)),
    needs=("torch",),
)
def load_tensor(case: Case) -> Figures:
    """Reload a tensor without copying."""
    return _first_gets(case)


@workload(
    prepare=_write_arrays,
    rivals=ARRAY_RIVALS,
    baselines=("raw",),
    goals=(Goal("time [ms]", at_least=0.95, against="raw"),),
    repeat=9,
)
def sum_loaded(case: Case) -> Figures:
    """Reload and really read."""
    with case.open(PLENTY) as store:
        float(store.get("first").sum())
        prime(2 * case.sizes.arrays * case.sizes.array_bytes)
        with Timer() as timer:
            for key in names(case.sizes.arrays):
                float(store.get(key).sum())
    return {"time [ms]": timer.per(1, "ms")}


def _write_frames(case: Case) -> None:
    """Leave two equal frames in the folder."""
    data = frame(case.sizes.rows)
    with case.open(PLENTY) as store:
        for key in ("first", "one"):
            store.set(key, data)
        store.flush()


@workload(
    prepare=_write_frames,
    rivals=("pickle", "chest", "joblib", "diskcache"),
    baselines=("pickle",),
    goals=(Goal("time [ms]", at_least=40, against="pickle"),),
    needs=("pandas", "pyarrow"),
    alone=True,
)
def load_frame(case: Case) -> Figures:
    """Reload a table."""
    with case.open(PLENTY) as store:
        prime(400 * case.sizes.rows)
        # Imports pandas and pyarrow, and warms the code that loads.
        store.get("first")
        with Timer() as timer:
            value = store.get("one")
        del value
    return {"time [ms]": timer.per(1, "ms")}


def _read_all(store: Rival, keys: list[str], watch: Callable[[], None]) -> None:
    """Get and sum all arrays in a random order."""
    for key in shuffled(keys):
        value = store.get(key)
        float(value.sum())
        # While it is held: what is mapped only for a moment is memory as well.
        watch()
        del value


@workload(
    rivals=("np.save", "chest", "SpillBuffer", "joblib", "chest-0.2.3"),
    baselines=("np.save", "SpillBuffer"),
    goals=(
        Goal("total [s]", at_most=1.2, against="np.save"),
        Goal("total [s]", at_least=2.3, against="SpillBuffer"),
        Goal(
            "memory over start [MB]",
            at_most=lambda sizes: (1.3 * sizes.budget + ALLOWANCE) / MB,
        ),
    ),
    repeat=2,
    alone=True,
    clean=True,
)
def bounded(case: Case) -> Figures:
    """More data than memory."""
    keys = names(case.sizes.bounded)
    highest = 0

    def watch() -> None:
        nonlocal highest
        highest = max(highest, real_memory())

    prime(case.sizes.budget)
    prime_files(case.folder, case.sizes.bounded * case.sizes.array_bytes)
    # numpy is not part of anybody's budget.
    array(8).sum()
    with case.open(case.sizes.budget) as store:
        start = real_memory()
        with Timer() as writing:
            for seed, key in enumerate(keys):
                store.set(key, array(case.sizes.array_bytes, seed))
                watch()
        with Timer() as first:
            _read_all(store, keys, watch)
        with Timer() as second:
            _read_all(store, keys, watch)
    phases = (writing.seconds, first.seconds, second.seconds)
    return {
        "total [s]": sum(phases),
        "write [s]": phases[0],
        "read 1 [s]": phases[1],
        "read 2 [s]": phases[2],
        "memory over start [MB]": (highest - start) / MB,
    }


@workload(
    rivals=("chest", "np.save", "SpillBuffer", "joblib"),
    goals=(Goal("peak [MiB]", at_most=64),),
    repeat=3,
    alone=True,
    clean=True,
)
def spill_peak(case: Case) -> Figures:
    """Memory needed to free memory."""
    value = array(case.sizes.big_bytes)
    with case.open(2 * case.sizes.big_bytes) as store:
        # Imports and small buffers are not what is measured.
        store.set("first", array(case.sizes.array_bytes))
        store.flush()
        reset_peak()
        start = real_memory()
        store.set("big", value)
        store.flush()
        peak = peak_memory() - start
    return {"peak [MiB]": max(peak, 0) / MiB}


SMALL_RIVALS = (
    "log",
    "chest",
    "lmdb",
    "diskcache",
    "sqlitedict",
    "shelve",
    "zict.File",
    "iodict",
    "chest-0.2.3",
    "persidict",
)


@workload(
    rivals=("dict", "chest", "zict.LRU", "chest-0.2.3", "SpillBuffer"),
    baselines=("dict", "zict.LRU"),
    goals=(Goal("get [ns]", at_least=2.5, against="zict.LRU"),),
)
def small_get(case: Case) -> Figures:
    """A hit in memory."""
    keys = names(case.keys)
    with case.open(PLENTY) as store:
        for key, value in pairs(keys):
            store.set(key, value)
        keys = shuffled(keys)
        get = store.get
        prime(MiB)
        with Timer() as timer:
            for key in keys:
                get(key)
    return {"get [ns]": timer.per(len(keys), "ns")}


@workload(
    rivals=("dict", "chest", "zict.LRU", "chest-0.2.3", "SpillBuffer"),
    baselines=("dict", "zict.LRU"),
    goals=(Goal("set [ns]", at_least=2, against="zict.LRU"),),
)
def small_set(case: Case) -> Figures:
    """A new value in memory."""
    data = pairs(shuffled(names(case.keys)))
    with case.open(PLENTY) as store:
        put = store.set
        prime(MiB)
        with Timer() as timer:
            for key, value in data:
                put(key, value)
    return {"set [ns]": timer.per(len(data), "ns")}


def _fill(case: Case) -> None:
    """Leave the small values in the folder."""
    with case.open(PLENTY) as store:
        for key, value in pairs(names(case.keys)):
            store.set(key, value)
        store.flush()


@workload(
    rivals=SMALL_RIVALS,
    baselines=("log", "lmdb", "diskcache"),
    repeat=3,
)
def small_write(case: Case) -> Figures:
    """Many small values to disk."""
    data = pairs(shuffled(names(case.keys)))
    with case.open(PLENTY) as store:
        put = store.set
        prime_files(case.folder, 512 * len(data))
        with Timer() as timer:
            for key, value in data:
                put(key, value)
            store.flush()
    return {"set [µs]": timer.per(len(data), "µs")}


@workload(
    prepare=_fill,
    rivals=SMALL_RIVALS,
    baselines=("log", "lmdb", "diskcache"),
    repeat=3,
)
def small_read(case: Case) -> Figures:
    """Many small values from disk."""
    keys = shuffled(names(case.keys))
    with case.open(PLENTY) as store:
        get = store.get
        prime(512 * len(keys))
        with Timer() as timer:
            for key in keys:
                get(key)
    return {"get [µs]": timer.per(len(keys), "µs")}


@workload(
    rivals=SMALL_RIVALS,
    baselines=("log", "lmdb", "diskcache"),
    repeat=3,
)
def small_delete(case: Case) -> Figures:
    """Many small values away."""
    _fill(case)
    keys = shuffled(names(case.keys))
    with case.open(PLENTY) as store:
        delete = store.delete
        prime(MiB)
        with Timer() as timer:
            for key in keys:
                delete(key)
            store.flush()
    return {"delete [µs]": timer.per(len(keys), "µs")}


def _fill_many(case: Case) -> None:
    """Leave a store of each size, in folders of their own."""
    for count in case.sizes.opened:
        inner = case.inside(str(count))
        inner.folder.mkdir()
        with inner.open(PLENTY) as store:
            for key, value in pairs(names(count)):
                store.set(key, value)
            store.flush()


@workload(
    prepare=_fill_many,
    rivals=("log", "chest", "lmdb", "diskcache"),
    baselines=("log", "lmdb", "diskcache"),
    repeat=3,
    alone=True,
)
def open_many(case: Case) -> Figures:
    """Cost of opening: must not depend on the number of keys."""
    figures = {}
    # The first opening pays for what is imported.
    with case.inside(str(case.sizes.opened[0])).open(PLENTY) as store:
        store.get(name(0))
    for count in case.sizes.opened:
        inner = case.inside(str(count))
        key = name(count // 2)
        prime(MiB)
        start = real_memory()
        with Timer() as timer:
            opened = inner.rival(inner.folder, PLENTY)
            opened.get(key)
        figures[f"{count} keys [ms]"] = timer.per(1, "ms")
        figures[f"{count} keys [MiB]"] = max(real_memory() - start, 0) / MiB
        opened.close()
    return figures


@workload(
    rivals=("dict", "chest", "log", "lmdb", "diskcache", "sqlitedict"),
    baselines=("dict", "lmdb", "diskcache"),
    repeat=3,
)
def lookups(case: Case) -> Figures:
    """What needs no value."""
    with case.open(PLENTY) as store:
        for key, value in pairs(names(case.keys)):
            store.set(key, value)
        store.flush()
        if not case.rival.reopens:
            return _look_up(store, case.keys)
    with case.open(PLENTY) as store:
        return _look_up(store, case.keys)


def _look_up(store: Rival, count: int) -> Figures:
    """Time misses, membership and length."""
    present = shuffled(names(count))
    absent = [f"absent{key}" for key in present]
    get, contains, length = store.get, store.contains, store.length
    # A store may read its index at the first question; that is `open_many`'s figure.
    contains(present[0])
    missed = 0
    prime(MiB)
    with Timer() as misses:
        for key in absent:
            try:
                get(key)
            except KeyError:
                missed += 1
    with Timer() as inside:
        for key in present:
            contains(key)
    with Timer() as outside:
        for key in absent:
            contains(key)
    with Timer() as lengths:
        for _ in range(ROUNDS):
            length()
    if missed != count:
        message = f"{count - missed} absent keys were found"
        raise ValueError(message)
    return {
        "missing key [ns]": misses.per(count, "ns"),
        "in, present [ns]": inside.per(count, "ns"),
        "in, absent [ns]": outside.per(count, "ns"),
        "len [ns]": lengths.per(ROUNDS, "ns"),
    }


def _double(x: int) -> int:
    return 2 * x


@workload(
    rivals=("chest", "diskcache", "joblib"),
    baselines=("diskcache", "joblib"),
    goals=(
        Goal("hit [µs]", at_least=6, against="diskcache"),
        Goal("hit [µs]", at_least=40, against="joblib"),
    ),
)
def memo_hit(case: Case) -> Figures:
    """Results that are there: a small argument."""
    with memoized(case, _double, PLENTY) as double:
        double(21)
        double(21)
        with Timer() as timer:
            for _ in range(ROUNDS):
                double(21)
    return {"hit [µs]": timer.per(ROUNDS, "µs")}


def _total(values: Any) -> float:
    return float(values.sum())


@workload(
    rivals=("chest", "diskcache", "joblib"),
    baselines=("diskcache", "joblib"),
    goals=(
        Goal("hit [ms]", at_least=5, against="diskcache"),
        Goal("hit [ms]", at_least=5, against="joblib"),
    ),
)
def memo_array(case: Case) -> Figures:
    """Results that are there: a large argument, which has to be hashed."""
    values = array(min(10 * MiB, case.sizes.array_bytes))
    with memoized(case, _total, PLENTY) as total:
        total(values)
        total(values)
        with Timer() as timer:
            for _ in range(5):
                total(values)
    return {"hit [ms]": timer.per(5, "ms")}
