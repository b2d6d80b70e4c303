"""The storages of LeakDB: counters and prefixes, in memory, queued, or on disk.

Owns: LeakDB's operations, its hook, and the queue of what was done. Does not own: how
values are kept.
"""

from __future__ import annotations

import datetime
import itertools
import logging
import os
import threading
from collections import deque
from collections.abc import (
    Hashable,
    ItemsView,
    Iterable,
    Iterator,
    KeysView,
    Mapping,
    MutableMapping,
    ValuesView,
)
from numbers import Number
from typing import Any, Self

from chest import errors
from chest.core import Chest
from chest.errors import short
from chest.log import NAME

__all__ = [
    "DefaultStorage",
    "PersistentQueueStorage",
    "PersistentStorage",
    "QueueStorage",
    "UnprocessedError",
]

log = logging.getLogger("chest")

MISSING: Any = object()
Item = dict[str, Any]


class UnprocessedError(errors.ChestError, RuntimeError):
    """A queue was to be closed, and some of its items could not be processed."""


class DefaultStorage(MutableMapping[Any, Any]):
    """A dict with LeakDB's operations; gone when it is closed.

    Parameters
    ----------
    data : Mapping or iterable of pairs, optional
        First contents.
    **more
        The same, as keywords.

    Notes
    -----
    What does not fit in memory is spilled to a temporary folder. Methods may be called
    from any thread.

    Examples
    --------
    >>> leak = DefaultStorage()
    >>> leak.set("foo", 2, key_prefix="bar_")
    True
    >>> leak.incr("bar_foo", delta=5), leak.decr("bar_foo")
    (7, 6)
    >>> leak.close()
    """

    def __init__(self, data: Any = (), /, **more: Any) -> None:
        self._chest = Chest()
        self.update(data, **more)

    # -- LeakDB's operations -----------------------------------------------------------

    def set(self, key: Any, value: Any, key_prefix: str | None = None) -> bool:
        """Set a key; True.

        Parameters
        ----------
        key : Hashable
        value : object
        key_prefix : str, optional
            Text that is put before the key, whose text follows it.
        """
        if key_prefix:
            key = f"{key_prefix}{key}"
        with self._chest.lock:
            self._chest[key] = value
            self.hook("set", {key: value})
        self._changed()
        return True

    def set_multi(
        self, mapping: Mapping[Any, Any], key_prefix: str | None = None
    ) -> bool:
        """`set` each pair of a mapping; True."""
        for key, value in mapping.items():
            self.set(key, value, key_prefix)
        return True

    def incr(self, key: Hashable, delta: Any = 1, initial_value: Any = None) -> Any:
        """Add *delta* to a number, and return the sum; exact between processes.

        Parameters
        ----------
        key : Hashable
        delta : number
            Not below 0.
        initial_value : number, optional
            What a key that is not there is set to; None: *delta*.

        Raises
        ------
        ValueError
            *delta* is below 0, or one of them or the value is no number.
        """
        start = delta if initial_value is None else initial_value
        return self._add(key, _step(delta), start)

    def decr(self, key: Hashable, delta: Any = 1) -> Any:
        """Subtract *delta* from a number, and return the difference, maybe below 0.

        Raises
        ------
        KeyError
            There is no such key.
        ValueError
            As `incr`.
        """
        return self._add(key, -_step(delta), None)

    def _add(self, key: Hashable, step: Any, start: Any) -> Any:
        """Add to a number; *start*: what it is set to where there is none."""
        if start is not None and not isinstance(start, Number):
            msg = f"initial_value={start!r} is no number"
            raise ValueError(msg)
        with self._chest.lock:
            while True:
                try:
                    number = self._chest.incr(key, step, default=None)
                except KeyError:
                    if start is None:
                        raise
                    if not self._chest.add(key, start):
                        continue  # another process has just set it
                    number = start
                except TypeError as error:
                    msg = f"{short(key)} is no number that {step!r} can be added to"
                    raise ValueError(msg) from error
                break
            self.hook("set", {key: number})
        self._changed()
        return number

    def get_multi(self, keys: Iterable[Hashable]) -> dict[Any, Any]:
        """The values of those *keys* that are there."""
        return self._chest.get_many(keys)

    def delete(self, key: Hashable) -> Any:
        """Remove a key and return its value; False when there is none (see also `pop`)."""
        return self.pop(key, False)

    def hook(self, operation: str, item: Any) -> None:
        """Called after each change, for subclasses; does nothing.

        No other thread can change the storage meanwhile, so it should be quick, and must
        not wait for one (as `QueueStorage.flush` does).

        Parameters
        ----------
        operation : {"set", "delete"}
        item : dict or key
            ``{key: value}`` that was set, or the key that was deleted.
        """

    def _changed(self) -> None:
        """Called after each change, without a lock."""

    # -- the mapping -------------------------------------------------------------------

    def __getitem__(self, key: Hashable) -> Any:
        return self._chest[key]

    def __setitem__(self, key: Hashable, value: Any) -> None:
        self.set(key, value)

    def __delitem__(self, key: Hashable) -> None:
        with self._chest.lock:
            del self._chest[key]
            self.hook("delete", key)
        self._changed()

    def __contains__(self, key: Any) -> bool:
        return key in self._chest

    def __iter__(self) -> Iterator[Any]:
        return iter(self._chest)

    def __len__(self) -> int:
        return len(self._chest)

    def keys(self) -> KeysView[Any]:
        """A view of the keys."""
        return self._chest.keys()

    def values(self) -> ValuesView[Any]:
        """A view of the values."""
        return self._chest.values()

    def items(self) -> ItemsView[Any, Any]:
        """A view of the pairs."""
        return self._chest.items()

    def pop(self, key: Hashable, default: Any = MISSING) -> Any:
        """Remove *key* and return its value."""
        with self._chest.lock:
            try:
                value = self._chest.pop(key)
            except KeyError:
                if default is MISSING:
                    raise
                return default
            self.hook("delete", key)
        self._changed()
        return value

    def popitem(self) -> tuple[Any, Any]:
        """Remove the key that came last, and return it with its value."""
        with self._chest.lock:
            key, value = self._chest.popitem()
            self.hook("delete", key)
        self._changed()
        return key, value

    def setdefault(self, key: Hashable, default: Any = None) -> Any:
        """The value of *key*, which is *default* from now on if there was none."""
        while True:
            with self._chest.lock:
                added = self._chest.add(key, default)
                if added:
                    self.hook("set", {key: default})
            if added:
                self._changed()
                return default
            try:
                return self._chest[key]
            except KeyError:
                continue  # deleted since

    def clear(self) -> None:
        """Remove all keys."""
        with self._chest.lock:
            gone = [*self._chest]
            self._chest.clear()
            for key in gone:
                self.hook("delete", key)
        self._changed()

    # -- lifetime ----------------------------------------------------------------------

    def __repr__(self) -> str:
        return f"{len(self._chest)} items in storage memory"

    def close(self) -> None:
        """Release memory and files. Safe to call twice."""
        self._chest.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """`close`."""
        self.close()


class QueueStorage(DefaultStorage):
    """A storage that also queues each change, for workers to do something with it.

    An item of the queue is a dict: ``operation`` and ``item`` as `hook` gets them, and
    the ``date`` (UTC).

    Parameters
    ----------
    maxsize : int
        Items in the queue at which a change flushes it; 0: it never does.
    workers : int
        Threads that process items at the same time, while it is flushed. Items of one
        key are processed one after the other, in their order.

    Examples
    --------
    >>> class Told(QueueStorage):
    ...     def worker_process(self, item):
    ...         print(item["operation"], item["item"])
    ...         return True
    >>> with Told(maxsize=2, workers=1) as storage:
    ...     storage["a"] = 1
    ...     storage.delete("a")
    set {'a': 1}
    delete a
    1
    """

    def __init__(self, maxsize: int = 0, workers: int = 10) -> None:
        DefaultStorage.__init__(self)
        self._make_queue(maxsize, workers)

    def _make_queue(self, maxsize: int, workers: int) -> None:
        if workers < 1:
            msg = f"workers={workers}: one is needed at least"
            raise ValueError(msg)
        self.maxsize, self.workers = maxsize, workers
        self._numbers = itertools.count()
        self._begin()

    def _begin(self) -> None:
        """Begin with an empty queue."""
        self._pid = os.getpid()
        self._waiting: dict[Hashable, Item] = {}
        self._tried = 0  # items among them that could not be processed
        self._flushing = threading.Lock()
        self._at_work: set[int] = set()  # threads that process items

    def worker_process(self, item: Item) -> bool:
        """Process one item; overridden to do something.

        Returns
        -------
        bool
            Whether it is done. One that is not, or that raises, stays in the queue, and
            so do later ones of its key; they are tried again by the next flush.
        """
        log.info("processed: %s", item)
        return True

    def hook(self, operation: str, item: Any) -> None:
        """Put the change into the queue."""
        self._look_for_fork()
        now = datetime.datetime.now(datetime.UTC)
        waiting = {"operation": operation, "item": item, "date": now}
        self._waiting[self._place(waiting)] = waiting

    def _place(self, item: Item) -> Hashable:
        """The item's place in the queue: one of its own."""
        return next(self._numbers)

    def _changed(self) -> None:
        self.flush()

    def flush(self, force: bool = False) -> Self:
        """Process what is in the queue, if it is full or *force* is true.

        Each item is tried once. Those that arrive meanwhile wait for the next flush.

        Returns
        -------
        QueueStorage
            The storage itself, whose text tells what is left in the queue.

        Raises
        ------
        Exception
            The first error of `worker_process`, when all other items were tried, if
            *force* is true; else it is logged, for it is another change's.
        """
        self._look_for_fork()
        full = 0 < self.maxsize <= len(self._waiting) - self._tried
        if not (force or full) or threading.get_ident() in self._at_work:
            return self
        # Of several threads that fill the queue one flushes it.
        if not self._flushing.acquire(blocking=force):
            return self
        try:
            with self._chest.lock:
                jobs = [*self._waiting.items()]
            raised = self._process(jobs)
        finally:
            self._flushing.release()
        if raised and force:
            raise raised[0]
        return self

    def _process(self, jobs: list[tuple[Hashable, Item]]) -> list[Exception]:
        """Try each item; those that are done leave the queue."""
        raised: list[Exception] = []
        groups: dict[Hashable, deque[tuple[Hashable, Item]]] = {}
        for place, item in jobs:
            groups.setdefault(_key_of(item), deque()).append((place, item))
        rest = deque(groups.values())

        def work() -> None:
            self._at_work.add(threading.get_ident())
            try:
                while rest:
                    try:
                        group = rest.popleft()
                    except IndexError:
                        return  # another worker took the last
                    self._process_group(group, raised)
            finally:
                self._at_work.discard(threading.get_ident())

        # This thread is one of the workers.
        others = min(self.workers, len(groups)) - 1
        threads = [threading.Thread(target=work) for _ in range(others)]
        try:
            for thread in threads:
                thread.start()
            work()
        finally:
            for thread in threads:
                if thread.ident is not None:
                    thread.join()
            self._tried = sum(self._waiting.get(place) is item for place, item in jobs)
        return raised

    def _process_group(
        self, group: deque[tuple[Hashable, Item]], raised: list[Exception]
    ) -> None:
        """Process items of one key in order, up to the first that cannot be."""
        for place, item in group:
            try:
                if not self.worker_process(item):
                    return
            except Exception as error:  # it may raise anything; flush tells
                log.warning("%s stays in the queue", short(item), exc_info=True)
                raised.append(error)
                return
            with self._chest.lock:
                if self._waiting.get(place) is item:
                    del self._waiting[place]

    def _look_for_fork(self) -> None:
        """In a forked child, leave what is queued to the parent."""
        if self._pid != os.getpid():
            self._begin()

    def __repr__(self) -> str:
        return f"{len(self._waiting)} items in queue :: {super().__repr__()}"

    def close(self, discard: bool = False) -> None:
        """`flush` all, then release memory and files. Safe to call twice.

        Parameters
        ----------
        discard : bool
            Give up what is in the queue.

        Raises
        ------
        UnprocessedError
            Items are left in the queue. The storage stays open.
        Exception
            As `flush`; the storage stays open.
        """
        if discard:
            self._begin()
        self.flush(force=True)
        if self._waiting:
            msg = (
                f"{len(self._waiting)} items were not processed. Try again, or give them "
                "up with close(discard=True)"
            )
            raise UnprocessedError(msg)
        super().close()


class PersistentStorage(DefaultStorage):
    """A storage on disk: each change is published when its method returns.

    Parameters
    ----------
    filename : str or PathLike
        The folder; made where there is none.
    writeback : bool
        Taken for the sake of old programs. Values that were changed in place are always
        found and written, at the latest by `close`.

    Notes
    -----
    Several processes can have it open and see one another's changes; `hook` is called
    for one's own.

    Examples
    --------
    >>> with PersistentStorage("counters") as storage:
    ...     storage.incr("visits")
    1
    >>> with PersistentStorage("counters") as storage:
    ...     storage.incr("visits")
    2
    """

    def __init__(
        self, filename: str | os.PathLike[str], writeback: bool = False
    ) -> None:
        self.filename = os.fspath(filename)
        self._chest = Chest(path=filename, publish="each")

    def __repr__(self) -> str:
        stored = os.stat(os.path.join(self._chest.path, NAME)).st_size
        stored += self._chest.stored_nbytes
        return f"{self.filename} {stored} bytes :: {super().__repr__()}"


class PersistentQueueStorage(PersistentStorage, QueueStorage):
    """A storage on disk whose writes wait in a queue.

    The queue has one item for each key, its latest change. What is in it is published
    by `flush`, `close`, and the end of the process; a process that is killed loses it.

    Parameters
    ----------
    filename : str or PathLike
        The folder; made where there is none.
    maxsize, workers : int
        As for `QueueStorage`.

    Notes
    -----
    Counters and deletions are published at once all the same: they are exact between
    processes.

    Examples
    --------
    >>> with PersistentQueueStorage("words") as leak:
    ...     leak.set("bar", {"foo": "bar"})
    ...     leak
    ...     leak.flush(force=True)
    True
    words ... bytes :: 1 items in queue :: 1 items in storage memory
    words ... bytes :: 0 items in queue :: 1 items in storage memory
    """

    def __init__(
        self, filename: str | os.PathLike[str], maxsize: int = 0, workers: int = 10
    ) -> None:
        self.filename = os.fspath(filename)
        self._chest = Chest(path=filename)
        self._make_queue(maxsize, workers)

    def worker_process(self, item: Item) -> bool:
        """Publish the value of the item's key."""
        self._chest._etag(_key_of(item))
        return True

    def _place(self, item: Item) -> Hashable:
        """The item's place in the queue: that of its key."""
        return _key_of(item)


def _key_of(item: Item) -> Hashable:
    """The key that an item of the queue speaks of."""
    key: Hashable
    (key,) = item["item"] if item["operation"] == "set" else (item["item"],)
    return key


def _step(delta: Any) -> Any:
    """A number to count by."""
    if not isinstance(delta, Number) or isinstance(delta, complex) or delta < 0:  # type: ignore[operator]
        msg = f"delta={delta!r}: a number is needed that is not below 0"
        raise ValueError(msg)
    return delta
