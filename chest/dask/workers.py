"""The memory of a dask worker: a chest that spills as distributed asks for it.

Owns: what distributed calls on a worker's ``data``, its counters, and what becomes of a
value that cannot be spilled. Does not own: how values move, and who goes first.

distributed calls all of it on the thread of its event loop.
"""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import sys
import time
import weakref
from collections import defaultdict
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from chest import errors, sizing, system
from chest.core import Chest
from chest.dask.process import give_back_memory, limit_of, watch
from chest.dask.spilled import OnDisk, Sizes
from chest.dask.twins import Twins
from chest.formats.compressed import CODECS
from chest.memory import ROOM, SMALL, Slot, weigh
from chest.packing import FEWEST_PACKED
from chest.reprs import parse_bytes
from chest.settings import DEFAULT_MEMORY, Settings
from chest.sizing import nbytes

if TYPE_CHECKING:
    from distributed.spill import SpilledSize
    from distributed.worker import Worker

__all__ = ["SpillChest", "dask_setup"]

# Where whoever runs distributed looks for messages about spilling.
log = logging.getLogger("distributed.spill")

FOLDER = "chest"  # in the worker's own
NO_KEY = object()  # dask's keys are text, numbers and tuples
FULL = "Spill file on disk reached capacity; keeping data in memory"
FAILED = "Spill to disk failed; keeping data in memory"
GIVE_BACK_AFTER = 64 << 20  # bytes that left memory …
GIVE_BACK_SHARE = 16  # … or this share of the budget, if that is less
CUT = ("numpy", "pandas", "pyarrow")  # whose values are cut into views
LEAST_COPIED = 1 << 20  # bytes that a part must keep in memory to be copied out of them
LOOK_SHARE = 16  # of the process's limit comes in between two looks; no budget is less


class SpillChest(Chest):
    """The ``data`` of a dask worker, in place of distributed's ``SpillBuffer``.

    A value that was spilled comes back as a view of its file, at a cost that does not
    depend on its size, and is not written again when it leaves once more.

    Parameters
    ----------
    worker_local_directory : str, optional
        The worker's own folder, which distributed hands over; a folder in it is used, and
        removed at the end. Without it, a temporary one.
    available_memory : int, float or str
        Budget of bytes for values in memory. distributed does not tell it: 60 % of the
        worker's ``memory_limit`` is what `SpillBuffer` takes.
    max_spill : int, float or str, optional
        Bytes of files; beyond them values stay in memory.
    policy : {"idle", "largest", "lru", "costly"} or Policy
        Who leaves memory first; by default what was not in use for long, for its size.
    mapped : {"copy", "r", False}
        Spilled arrays come back writable, on private pages; read-only; or read.
    compression : {"zstd", "lz4", "auto"}, optional
        Of files, for a small or slow disk: what is compressed cannot be mapped, and is
        read as a whole.
    process_memory : int, float or str, optional
        Bytes that the whole process may take, with all that is no value. Beyond them
        values are spilled though the budget would take them. None: of the worker whose
        data this is, ``distributed.worker.memory.spill`` of its memory limit; elsewhere,
        as many as there are.

    See Also
    --------
    dask_setup : The same for every worker, by configuration.

    Notes
    -----
    A value that a task, or anybody else on the worker, still refers to is not read again
    but taken back as it is. Freed memory is returned to the system when distributed finds
    that the process has too much of it.

    The process is measured (40 µs) each time 1/16 of *process_memory* has come in, not
    only in distributed's own intervals: within one of them more values can be mapped
    than the process may take, and their pages come when a task touches them.

    What is in it is this worker's alone: nothing is published for others, and nothing is
    written when the worker ends.

    Examples
    --------
    >>> data = SpillChest(available_memory="100 kB")
    >>> data["x"], data["y"] = bytes(60_000), bytearray(50_000)
    >>> list(data.fast), list(data.slow)
    (['y'], ['x'])
    >>> data.evict()
    50000
    >>> data.spilled_total.memory > 110_000
    True
    >>> data.close()
    """

    #: Ever-increasing sums, (label, unit) → value, that Prometheus shows.
    cumulative_metrics: defaultdict[tuple[str, str], float]

    def __init__(
        self,
        worker_local_directory: str | None = None,
        available_memory: float | str = DEFAULT_MEMORY,
        max_spill: float | str | None = None,
        policy: Any = "idle",
        mapped: str | bool = "copy",
        process_memory: float | str | None = None,
        compression: str | None = None,
    ) -> None:
        from dask.sizeof import sizeof
        from distributed.metrics import context_meter
        from distributed.sizeof import safe_sizeof

        self._digest_metric = context_meter.digest_metric
        self._sizeof, self._told_of = safe_sizeof, sizeof.dispatch
        self._kinds: weakref.WeakSet[type] = weakref.WeakSet()  # of values that came
        self._max_spill = (
            None if max_spill is None else parse_bytes(max_spill, option="max_spill")
        )
        self.cumulative_metrics = defaultdict(float)
        self._spilled = Sizes()
        # Values that left memory while somebody else holds them, by key and generation:
        # what is set otherwise than by `__setitem__` must not be taken for them.
        self._held: weakref.WeakValueDictionary[tuple[Hashable, int], Any]
        self._held = weakref.WeakValueDictionary()
        self._setting: Hashable = NO_KEY
        self._refused: list[Exception] = []  # why the key that is being set stays
        self._spared = False  # so does it, since another cannot go
        self._stuck = False  # a value could not be spilled
        self._reported: set[Hashable] = set()
        self._process_limit: float | None = None  # until the first value comes
        if process_memory is not None:
            self._process_limit = parse_bytes(process_memory, option="process_memory")
        self._resident: Callable[[], int] = _resident
        self._arrived = self._untouched = 0  # bytes since the process was measured
        path = worker_local_directory and os.path.join(worker_local_directory, FOLDER)
        super().__init__(
            path=path,
            available_memory=available_memory,
            policy=policy,
            mapped=mapped,
            compression=compression,
            durability="memory",
        )

    def _start(self, path: str | os.PathLike[str] | None, settings: Settings) -> None:
        """Open the folder, which is removed at the end as a temporary one is."""
        super()._start(path, settings)
        self._explicitly_given_path = False
        self._twins = Twins(self._values, self._held_value)

    def __reduce__(self) -> NoReturn:
        """Refuse: workers are given the class and its arguments."""
        msg = "pass data=(SpillChest, {...}), so that each worker makes its own"
        raise TypeError(msg)

    # -- the mapping -------------------------------------------------------------------

    def __setitem__(self, key: Hashable, value: Any) -> None:
        """Keep *value*; others are spilled where memory is over the budget.

        Raises
        ------
        TypeError
            The value alone is larger than the budget and cannot be pickled. The key is
            forgotten. Where writing fails otherwise, values stay in memory and the log
            says so.
        """
        self._spilled.take(key)
        self._reported.discard(key)
        self._refused.clear()
        if self._max_spill is not None and self._manifest.index.has(key):
            super().__delitem__(key)  # its file takes the room of others
        if type(value) not in self._kinds:
            self._meet(type(value))
        value = self._without_the_rest(value)
        self._setting, self._spared = key, False
        try:
            super().__setitem__(key, value)
        finally:
            self._setting = NO_KEY
        if self._refused:
            self._refuse_or_report(key, self._refused.pop())
        slot = self._slots.get(key)
        if slot is not None and slot.nbytes >= LEAST_COPIED:
            self._twins.meet(key, value)
        self._note_arrival(slot.nbytes if slot else 0)

    def _meet(self, kind: type) -> None:
        """Count values of a type as dask was told to, if others than dask itself did."""
        self._kinds.add(kind)
        told = self._told_of(kind)
        if (getattr(told, "__module__", None) or "").partition(".")[0] != "dask":
            sizing.register(kind, told)

    def _without_the_rest(self, value: Any) -> Any:
        """A copy of what is the smaller part of something; anything else as it is.

        A part, as of the groups of a frame that is shuffled, keeps all that it is a part
        of in memory, which neither spilling it nor spilling the whole would free.
        """
        if type(value).__module__.partition(".")[0] not in CUT:
            return value  # what is pickled may be something else than it is
        if (kept := nbytes(value)) < LEAST_COPIED:
            return value
        if 2 * self._sizeof(value) > kept:
            return value
        buffers: list[pickle.PickleBuffer] = []
        try:
            stream = pickle.dumps(value, 5, buffer_callback=buffers.append)
            raw = [each.raw() for each in buffers]
            if 2 * (len(stream) + sum(each.nbytes for each in raw)) > kept:
                return value
            return pickle.loads(stream, buffers=[bytearray(each) for each in raw])
        except Exception:  # noqa: BLE001 - spilling it will meet it again, and say so
            return value

    def _refuse_or_report(self, key: Hashable, error: Exception) -> None:
        """Forget a value that cannot be spilled and is too large to stay, or log it."""
        if self._slots[key].nbytes > self._memory.budget and not _is_of_disk(error):
            del self[key]
            msg = f"Failed to pickle {key!r}"
            raise TypeError(msg) from error
        self._report(key, error)

    def __getitem__(self, key: Hashable) -> Any:
        """The value of *key*; one that was spilled is mapped, if it is large."""
        if key in self._values:
            value = super().__getitem__(key)
            slot = self._slots.get(key)
            self._count_metric("memory-read", slot.nbytes if slot else 0)
            return value
        entry = self._manifest.index.get(key)
        value = self._held_value(key)
        if entry is not None and value is not None:
            self._admit(key, value, entry, weigh(value), 0.0)
        else:
            value = self._read_back(key)
        if key in self._slots:
            self._spilled.take(key)
        else:
            self._hold(key, value)  # it is too large to be kept
        return value

    def _read_back(self, key: Hashable) -> Any:
        """The value of a key that was spilled, and that nobody holds."""
        before, began = self._spill.loaded_bytes, time.perf_counter()
        value = super().__getitem__(key)
        nbytes = self._spill.loaded_bytes - before
        self._count_metric("disk-read", nbytes, time.perf_counter() - began)
        if nbytes >= LEAST_COPIED:
            self._twins.meet(key, value)
        self._note_arrival(nbytes, untouched=True)
        return value

    def __delitem__(self, key: Hashable) -> None:
        """Remove *key* and its file; the value is not read."""
        slot = self._slots.get(key)
        if slot is not None and key in self._fresh:
            with self.lock:  # no record knows of it, and nobody else has this folder
                self._memory.drop(slot)
                del self._fresh[key]
        else:
            super().__delitem__(key)
        self._freed += slot.nbytes if slot else 0
        self._spilled.take(key)
        self._reported.discard(key)

    def clear(self) -> None:
        """Remove all keys and files."""
        for key in list(self):
            del self[key]

    # -- what distributed asks for -----------------------------------------------------

    @property
    def fast(self) -> Mapping[Any, Any]:
        """The values in memory, as a read-only mapping; looking is no use."""
        return self.inmem

    @property
    def slow(self) -> Mapping[Any, Any]:
        """The values on disk only, as a read-only mapping; looking does not keep them."""
        return OnDisk(self)

    memory, disk = fast, slow

    @property
    def spilled_total(self) -> SpilledSize:
        """Bytes of the values on disk only: ``memory`` they took, ``disk`` they take.

        Files of values that are in memory as well do not count; `stored_nbytes` has all.
        """
        return self._sizes().total

    def evict(self) -> int:
        """Spill the next value, whatever the budget; many small ones go together.

        Returns
        -------
        int
            Bytes that it took in memory; -1 when none could be spilled. The log says
            why. Never raises.
        """
        try:
            if self._stuck:
                self._stuck = False
                self._memory.retry()
            return self._evict_next()
        except Exception:  # distributed's monitor must go on, whatever happens
            log.exception(FAILED)
            return -1

    # -- steps -------------------------------------------------------------------------

    def _evict_next(self) -> int:
        """Let the next value go that can be spilled; its bytes, or -1."""
        while True:
            victims = self._next_victims()
            if not victims:
                return -1
            self._evict(victims)
            gone = [slot.nbytes for slot in victims if not slot.alive]
            if gone:
                self._trim_heap()
                return sum(gone)

    def _note_arrival(self, nbytes: int, *, untouched: bool = False) -> None:
        """Count what came in; spill, once it is much, while the process is too large."""
        if self._process_limit is None:
            self._process_limit = self._find_limit()
        self._arrived += nbytes
        if untouched:  # mapped: its pages are in no figure yet
            self._untouched += nbytes
        if self._arrived < self._process_limit / LOOK_SHARE:
            return
        goal = self._process_limit - self._untouched
        self._arrived = self._untouched = 0
        if self._freed and self._resident() > goal:
            self._freed = 0
            give_back_memory()
        while self._resident() > goal and self._evict_next() > 0:
            pass

    def _find_limit(self) -> float:
        """What the worker says whose data this is."""
        from distributed.worker import Worker

        for worker in list(Worker._instances):
            if worker.data is self:
                # What distributed itself goes by; tests of it replace it.
                self._resident = worker.monitor.get_process_memory
                watch(worker)
                return limit_of(worker.memory_manager)
        return float("inf")

    def _next_victims(self) -> list[Slot]:
        """Who leaves next: one, or so many small ones that a pack is worth it."""
        memory = self._memory
        count, share = len(self._slots), 0
        if count >= FEWEST_PACKED and memory.used // count < SMALL:
            share = memory.used // ROOM
        with self.lock:
            victims, leaving = memory.victims(memory.used - max(1, share))
            memory.left(leaving)
        return victims

    def _evict(self, victims: Sequence[Slot]) -> None:
        """Write victims where that is needed, and let them go; those that fail stay."""
        memory, spill = self._memory, self._spill
        if self._spared:
            victims = self._without_the_new(victims)
        if any(self._twins.of(slot.key) is not None for slot in victims):
            for slot in victims[:-1]:  # alone, so that the next one finds its file
                self._evict([slot])
            victims = victims[-1:]
            self._link(victims[0])
        values = [memory.values.get(slot.key) for slot in victims]
        count, nbytes = spill.written, spill.written_bytes
        began = time.perf_counter()
        allowed, failed = self._allowed(victims)
        failed += self._write_out(allowed, keep=False)
        if spill.written > count:
            seconds = time.perf_counter() - began
            nbytes = spill.written_bytes - nbytes
            self._count_metric("disk-write", nbytes, seconds, spill.written - count)
        for slot, value in zip(victims, values, strict=True):
            if not slot.alive:
                self._spills += 1
                self._freed += slot.nbytes
                entry = self._manifest.index.get(slot.key)
                if entry is not None:
                    self._spilled.add(slot.key, slot.nbytes, entry.size)
                self._hold(slot.key, value)
        for slot, error in failed:
            with self.lock:
                memory.keep(slot)
            self._stuck = True
            if slot.key == self._setting:
                self._refused[:] = [error]  # it is for `__setitem__` to say
            else:
                self._spared = self._setting is not NO_KEY
                self._report(slot.key, error)

    def _link(self, slot: Slot) -> None:
        """Give a value that another key has on disk a link to that one's file.

        A change since it was written is found as that of any clean value.
        """
        twin = self._twins.of(slot.key)
        if twin is None or not slot.dirty:
            return
        known, entry = self._slots.get(twin), self._manifest.index.get(twin)
        if entry is None or (known is not None and known.dirty):
            return
        with contextlib.suppress(OSError, errors.ChestError):  # then it is written
            written = self._spill.adopt(slot.key, self._spill, entry, 0)
            try:
                self._publish([(slot, written)])
            finally:
                self._spill.discard([written])  # what was not published
            if slot.entry is written.entry:  # it counts as written, which it was not
                self._spill.written -= 1
                self._spill.written_bytes -= written.entry.size

    def _without_the_new(self, victims: Sequence[Slot]) -> Sequence[Slot]:
        """The victims but for what is being set, if it fits and another could not go.

        It is the likeliest to be used next, and leaves with the next one that comes.
        """
        chosen: list[Slot] = []
        for slot in victims:
            if slot.key == self._setting and slot.nbytes <= self._memory.budget:
                with self.lock:
                    self._memory.keep(slot)
            else:
                chosen.append(slot)
        return chosen

    def _allowed(
        self, victims: Sequence[Slot]
    ) -> tuple[list[Slot], list[tuple[Slot, Exception]]]:
        """Those whose files there is room for, and those that must stay."""
        if self._max_spill is None:
            return list(victims), []
        allowed: list[Slot] = []
        failed: list[tuple[Slot, Exception]] = []
        room = self._max_spill - self.stored_nbytes
        for slot in victims:
            size = slot.nbytes if slot.dirty else 0
            if size > room:
                failed.append((slot, errors.StoreError(FULL, key=slot.key)))
            else:
                room -= size
                allowed.append(slot)
        return allowed, failed

    def _report(self, key: Hashable, error: Exception) -> None:
        """Log why a value stays in memory, once for each key."""
        if key in self._reported:
            return
        self._reported.add(key)
        if not _is_of_disk(error):
            log.error("Failed to pickle %r", key, exc_info=error)
        elif str(error) == FULL:
            log.warning(FULL)
        else:
            log.error(FAILED, exc_info=error)

    def _hold(self, key: Hashable, value: Any) -> None:
        """Remember a value for as long as somebody else does."""
        entry = self._manifest.index.get(key)
        if entry is not None:
            with contextlib.suppress(
                TypeError
            ):  # it takes no weak references, as a list
                self._held[key, entry.generation] = value

    def _held_value(self, key: Hashable) -> Any:
        """The value of a key on disk, if somebody holds it; or None."""
        entry = self._manifest.index.get(key)
        return entry and self._held.get((key, entry.generation))

    def _sizes(self) -> Sizes:
        """What is on disk only; counted anew where it was not distributed that moved it.

        All that distributed calls keeps count; the rest of a chest's methods do not.
        """
        sizes, values = self._spilled, self._values
        if len(sizes.by_key) != len(self) - len(values):
            with self.lock:
                sizes.clear()
                for key, entry in self._manifest.index.items():
                    if key not in values:
                        sizes.add(key, entry.nbytes or entry.size, entry.size)
        return sizes

    def _count_metric(
        self, label: str, nbytes: int, seconds: float | None = None, count: int = 1
    ) -> None:
        """Add to the sums, and to those of what the worker is doing just now."""
        figures = {"count": count, "bytes": nbytes, "seconds": seconds}
        for unit, figure in figures.items():
            if figure is not None:
                self.cumulative_metrics[label, unit] += figure
                self._digest_metric(label, figure, unit)

    def _trim_heap(self) -> None:
        """Have the allocator return memory, since the process has too much of it."""
        if self._freed >= min(GIVE_BACK_AFTER, self._memory.budget // GIVE_BACK_SHARE):
            self._freed = 0
            give_back_memory()


def _is_of_disk(error: Exception) -> bool:
    """Whether the disk refused, not the value."""
    return not isinstance(error, errors.EncodingError | errors.KeyEncodingError)


def _resident() -> int:
    """Bytes that the process takes; mapped ones as well, as distributed counts them."""
    return sum(system.real_memory())


def dask_setup(worker: Worker) -> None:
    """Give a worker that starts a `SpillChest`: dask calls this on a *preload*.

    With ``--preload chest.dask`` on the command line of ``dask worker``,
    ``preload="chest.dask"`` for a ``LocalCluster``, or for all of them the setting
    ``distributed.worker.preload``. The budget is ``distributed.worker.memory.target`` of
    the worker's memory limit; or, if that is less, what the process has left at its start
    of ``distributed.worker.memory.spill``, but at least 1/16 of this. ``max-spill`` holds
    as for distributed's own, and so does ``spill-compression`` where it is ``lz4`` or
    ``zstd``; else, as by default, nothing is compressed. A worker without memory limit, or
    with ``data=`` of its own, keeps what it has.

    Parameters
    ----------
    worker : distributed.Worker
        One that has no data yet.
    """
    import dask
    from distributed.spill import SpillBuffer

    manager = worker.memory_manager
    if type(manager.data) is not SpillBuffer:
        return
    share = manager.memory_target_fraction
    budget = int(manager.memory_limit * share) if share else sys.maxsize
    limit = limit_of(manager)
    left = limit - worker.monitor.get_process_memory()
    budget = int(min(budget, max(left, limit / LOOK_SHARE)))
    max_spill = None if manager.max_spill is False else manager.max_spill
    compression = dask.config.get("distributed.worker.memory.spill-compression", None)
    if compression not in CODECS:
        compression = None
    watch(worker)
    data = SpillChest(
        worker.local_directory, budget, max_spill, compression=compression
    )
    manager.data = worker.state.data = data
