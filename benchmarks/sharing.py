"""One store, several processes: each operation is seen by all when it returns.

Imported by `benchmarks.runner`, so that these stand among the `WORKLOADS`.
"""

from __future__ import annotations

import fcntl
import os
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from multiprocessing import get_context
from random import Random
from typing import Any, NamedTuple

from benchmarks.measure import Timer
from benchmarks.plan import Case, Figures, Goal
from benchmarks.workloads import ABOUT, PLENTY, ROUNDS, workload

__all__ = ["poll", "share_get", "share_incr", "share_set"]

ABOUT.update(
    share_incr="4 processes, 10,000 increments of one key each",
    share_set="4 processes, 20,000 values of 100 characters each, published one by one",
    share_get="4 processes get 20,000 values of 100 characters each, random order",
    poll="see that nobody published anything",
)
PROCESSES = 4
COUNTED = 10  # keys of the sizes for one increment of each process
SET = 5  # and for one value
MAP_NBYTES = 1 << 34
RIVALS = ("chest", "diskcache", "lmdb", "log")


class Store(NamedTuple):
    """A store of one process; each call is one publication."""

    get: Callable[[str], Any]
    set: Callable[[str, Any], Any]
    incr: Callable[[str], Any]


@contextmanager
def _shared(case: Case) -> Iterator[Store]:
    """The rival, as each of several processes opens it."""
    folder, name = str(case.folder / "shared"), case.rival.name
    if name == "chest":
        with import_module("chest").Chest(
            folder, available_memory=PLENTY, publish="each"
        ) as c:
            yield Store(c.__getitem__, c.__setitem__, c.incr)
    elif name == "diskcache":
        with import_module("diskcache").Cache(
            folder, size_limit=1 << 60, eviction_policy="none", timeout=600
        ) as cache:
            yield Store(cache.__getitem__, cache.__setitem__, cache.incr)
    elif name == "lmdb":
        with _lmdb(folder) as store:
            yield store
    else:
        with _log(folder) as store:
            yield store


@contextmanager
def _lmdb(folder: str) -> Iterator[Store]:
    """A transaction for each operation, no fsync."""
    env = import_module("lmdb").open(
        folder, map_size=MAP_NBYTES, sync=False, metasync=False
    )

    def get(key: str) -> Any:
        with env.begin() as txn:
            return pickle.loads(txn.get(key.encode()))

    def put(key: str, value: Any) -> None:
        with env.begin(write=True) as txn:
            txn.put(key.encode(), pickle.dumps(value, 5))

    def incr(key: str) -> None:
        with env.begin(write=True) as txn:
            value = txn.get(key.encode())
            txn.put(key.encode(), pickle.dumps(pickle.loads(value) + 1 if value else 1))

    try:
        yield Store(get, put, incr)
    finally:
        env.close()


@contextmanager
def _log(folder: str) -> Iterator[Store]:
    """The limit: a lock, and one write at the end of a file that is never read."""
    os.makedirs(folder, exist_ok=True)
    fd = os.open(f"{folder}/log", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def put(key: str, value: Any = 1) -> None:
        data = pickle.dumps((key, value), 5)
        fcntl.flock(fd, fcntl.LOCK_EX)
        os.write(fd, data)
        fcntl.flock(fd, fcntl.LOCK_UN)

    try:
        yield Store(str, put, put)
    finally:
        os.close(fd)


def _incr(store: Store, me: int, count: int) -> None:
    for _ in range(count):
        store.incr("n")


def _set(store: Store, me: int, count: int) -> None:
    for number in range(count):
        store.set(f"{me}-{number}", "x" * 100)


def _get(store: Store, me: int, count: int) -> None:
    names = [f"{me}-{number}" for number in range(count)]
    Random(me).shuffle(names)
    for name in names:
        store.get(name)


Work = Callable[[Store, int, int], None]


def _process(case: Case, work: Work, me: int, count: int, start: Any, end: Any) -> None:
    """One of the processes."""
    with _shared(case) as store:
        start.wait()
        work(store, me, count)
        end.wait()


def _together(case: Case, work: Work, count: int) -> float:
    """Microseconds of an operation, all processes taken together."""
    context = get_context("fork")
    start, end = (context.Barrier(PROCESSES + 1) for _ in range(2))
    with _shared(case):
        pass  # made once
    children = [
        context.Process(target=_process, args=(case, work, me, count, start, end))
        for me in range(PROCESSES)
    ]
    for child in children:
        child.start()
    start.wait()
    with Timer() as timer:
        end.wait()
    for child in children:
        child.join()
    return timer.per(PROCESSES * count, "µs")


@workload(
    rivals=RIVALS,
    baselines=("diskcache", "log"),
    goals=(
        Goal("time [µs]", at_least=3, against="diskcache"),
        Goal("time [µs]", at_least=0.8, against="log"),
    ),
)
def share_incr(case: Case) -> Figures:
    """Increments, exact."""
    count = case.keys // COUNTED
    figure = _together(case, _incr, count)
    if case.rival.name != "log":
        with _shared(case) as store:
            if store.get("n") != PROCESSES * count:
                message = f"{store.get('n')} of {PROCESSES * count} increments"
                raise ArithmeticError(message)
    return {"time [µs]": figure}


@workload(
    rivals=RIVALS,
    baselines=("diskcache", "lmdb"),
    goals=(
        Goal("time [µs]", at_least=8, against="diskcache"),
        Goal("time [µs]", at_least=2, against="lmdb"),
    ),
)
def share_set(case: Case) -> Figures:
    """Values published one by one."""
    count = case.keys // SET
    figure = _together(case, _set, count)
    if case.rival.name != "log":
        with _shared(case) as store:
            _get(store, PROCESSES - 1, count)  # none was lost
    return {"time [µs]": figure}


def _fill(case: Case) -> None:
    with _shared(case) as store:
        for me in range(PROCESSES):
            _set(store, me, case.keys // SET)


@workload(
    prepare=_fill,
    rivals=("chest", "diskcache", "lmdb"),
    baselines=("diskcache", "lmdb"),
    goals=(
        Goal("time [µs]", at_least=2, against="diskcache"),
        Goal("time [µs]", at_least=1, against="lmdb"),
    ),
)
def share_get(case: Case) -> Figures:
    """Values that others wrote, each once."""
    return {"time [µs]": _together(case, _get, case.keys // SET)}


@workload(rivals=("chest",), goals=(Goal("time [µs]", at_most=0.3),))
def poll(case: Case) -> Figures:
    """What each operation does first."""
    with case.open(PLENTY) as store:
        store.set("x", 1)
        store.flush()
        look, rounds = store.mapping._look, range(100 * ROUNDS)
        with Timer() as timer:
            for _ in rounds:
                look()
    return {"time [µs]": timer.per(len(rounds), "µs")}
