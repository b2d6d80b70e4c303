"""Queues: put and get items of 100 characters, one process; from hundreds to many.

Owns: the queue workloads, and what stands for a queue in each rival. Does not own: who
takes part otherwise, how it is run.
"""

from __future__ import annotations

import fcntl
import os
import pickle
import struct
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.measure import Timer
from benchmarks.plan import Case, Figures, Goal
from benchmarks.workloads import ABOUT, workload

__all__ = ["QUEUES"]

ABOUT["queue"] = "put and get 2,000 items of 100 characters, one process"
ABOUT["queue_growth"] = "put and get an item of 100 characters beside 100 … 100,000"

ITEM = "x" * 100
ROUNDS = 2_000  # items put, and then got
Queue = tuple[Callable[[Any], object], Callable[[], Any], Callable[[], object]]


class FlockLog:
    """Limit: flock, append, a stored offset; no checksum, no space comes back."""

    def __init__(self, folder: Path) -> None:
        flags = os.O_RDWR | os.O_CREAT
        self._log = os.open(folder / "log", flags | os.O_APPEND)
        self._place = os.open(folder / "offset", flags)
        os.pwrite(self._place, bytes(8), 0)
        self._size, self._offset = struct.Struct("<I"), struct.Struct("<Q")

    def put(self, item: Any) -> None:
        """Append the item."""
        data = pickle.dumps(item, 5)
        fcntl.flock(self._log, fcntl.LOCK_EX)
        os.write(self._log, self._size.pack(len(data)) + data)
        fcntl.flock(self._log, fcntl.LOCK_UN)

    def get(self) -> Any:
        """Read the item at the offset, and move it."""
        fcntl.flock(self._log, fcntl.LOCK_EX)
        (at,) = self._offset.unpack(os.pread(self._place, 8, 0))
        (size,) = self._size.unpack(os.pread(self._log, 4, at))
        data = os.pread(self._log, size, at + 4)
        os.pwrite(self._place, self._offset.pack(at + 4 + size), 0)
        fcntl.flock(self._log, fcntl.LOCK_UN)
        return pickle.loads(data)

    def close(self) -> None:
        """Close both files."""
        os.close(self._log)
        os.close(self._place)


def _chest(folder: Path) -> Queue:
    queue = import_module("chest").DurableQueue(folder)
    return queue.put, queue.get, queue.close


def _log(folder: Path) -> Queue:
    queue = FlockLog(folder)
    return queue.put, queue.get, queue.close


def _litequeue(folder: Path) -> Queue:
    queue = import_module("litequeue").LiteQueue(str(folder / "queue.sqlite"))
    return queue.put, lambda: queue.pop().data, queue.close


def _persist_queue(folder: Path) -> Queue:
    path = str(folder / "queue")
    queue = import_module("persistqueue").Queue(path, autosave=True)
    return queue.put, queue.get, lambda: None


def _diskcache(folder: Path) -> Queue:
    queue = import_module("diskcache").Deque(directory=str(folder))
    return queue.append, queue.popleft, queue.cache.close


def _iodict(folder: Path) -> Queue:
    queue = import_module("iodict").DurableQueue(path=str(folder / "queue"))
    return queue.put, queue.get, lambda: None


QUEUES: dict[str, Callable[[Path], Queue]] = {
    "chest": _chest,
    "log": _log,
    "litequeue": _litequeue,
    "persist-queue": _persist_queue,
    "diskcache": _diskcache,
    "iodict": _iodict,
}
OTHERS = ("litequeue", "persist-queue", "diskcache", "iodict")


def _goals(figure: str) -> tuple[Goal, ...]:
    return tuple(Goal(figure, at_least=8, against=rival) for rival in OTHERS)


@workload(
    rivals=tuple(QUEUES),
    baselines=("log", *OTHERS),
    goals=(*_goals("put [µs]"), *_goals("get [µs]")),
)
def queue(case: Case) -> Figures:
    """Speed of one process."""
    count = max(min(case.keys, ROUNDS) // case.rival.slow, 10)
    put, get, close = QUEUES[case.rival.name](case.folder)
    for _ in range(3):
        put(ITEM)
        get()
    with Timer() as putting:
        for _ in range(count):
            put(ITEM)
    with Timer() as getting:
        for _ in range(count):
            get()
    close()
    return {"put [µs]": putting.per(count, "µs"), "get [µs]": getting.per(count, "µs")}


@workload(rivals=("chest", "log"), baselines=("log",), repeat=3)
def queue_growth(case: Case) -> Figures:
    """No slow-down with the number of items that wait."""
    put, get, close = QUEUES[case.rival.name](case.folder)
    figures, waiting, rounds = {}, 0, min(case.keys, ROUNDS)
    for count in (100, 10_000, 100_000):
        while waiting < min(count, case.keys):
            put(ITEM)
            waiting += 1
        with Timer() as timer:
            for _ in range(rounds):
                put(ITEM)
                get()
        figures[f"beside {count} [µs]"] = timer.per(rounds, "µs")
    close()
    return figures
