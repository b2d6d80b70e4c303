"""A live `queue.Queue` that can be saved to disk and brought back.

Owns: `FlushQueue`. Does not own: how items lie on disk (`durable`).
"""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any, ClassVar

from chest import errors
from chest.queues.durable import DurableQueue

__all__ = ["FlushQueue"]

NAME = "flushed"


class FlushQueue:
    """A mixin for subclasses of `queue.Queue`, `queue.LifoQueue` or `queue.PriorityQueue`.

    Set ``self.path``, the folder that items are saved in; others may use it too.

    Attributes
    ----------
    path : str or PathLike
    options : dict
        How the folder is opened: ``durability=``, ``trust=``, ``sign_key=``, … of
        `DurableQueue`.

    Notes
    -----
    An item is either live or on disk: whoever is killed, at any moment, nothing that was
    saved is lost or doubled. What is live dies with its process, as always.

    Examples
    --------
    >>> import queue
    >>> class Jobs(FlushQueue, queue.Queue):
    ...     path = "jobs"
    >>> q = Jobs()
    >>> q.put("a")
    >>> q.put("b")
    >>> q.flush()
    >>> q.qsize()
    0
    >>> q.ingest()
    >>> q.get(), q.get()
    ('a', 'b')
    """

    path: str | os.PathLike[str]
    options: ClassVar[dict[str, Any]] = {}

    # Those of queue.Queue.
    queue: Any
    mutex: threading.Lock
    not_empty: threading.Condition
    not_full: threading.Condition
    all_tasks_done: threading.Condition
    unfinished_tasks: int

    def flush(self) -> None:
        """Move all items to disk, behind those that were saved before.

        Threads that use the queue wait meanwhile. The items count as done for `join`.

        Raises
        ------
        EncodingError, StoreError
            An item cannot be saved. All are live still, and none was saved.
        """
        with self.mutex:
            items = list(self.queue)
            if not items:
                return
            while True:
                try:
                    with DurableQueue(self.path, name=NAME, **self.options) as saved:
                        saved.put_many(items)
                    break
                except errors.DroppedError:
                    continue  # another process has just taken all and removed it
            self.queue.clear()
            self.unfinished_tasks = max(self.unfinished_tasks - len(items), 0)
            if not self.unfinished_tasks:
                self.all_tasks_done.notify_all()
            self.not_full.notify_all()

    def ingest(self) -> None:
        """Bring all saved items back, before those that are live; nothing when none is.

        *maxsize* is not looked at. The files on disk go, but for items that somebody
        has leased from them, and dead letters.

        Raises
        ------
        DecodingError, UntrustedError
            A saved item cannot be read. All of them are on disk still.
        CorruptValueError
            Items were damaged on disk, and are lost. Those before them are live, those
            behind them are on disk: the next call brings them.
        """
        with self.mutex:
            live, items = list(self.queue), list[Any]()
            try:
                with DurableQueue(self.path, name=NAME, **self.options) as saved:
                    while True:
                        state, records, more = saved._read_all()
                        # Nobody gets them before the mutex is free, and then they are
                        # gone from the disk.
                        self._make_live([*items, *more, *live])
                        if saved._remove_all(state, records):
                            items += more
                            if not records:
                                break
            except errors.DroppedError:
                pass  # all is taken, by this process or another
            finally:
                self._make_live([*items, *live])
                self.unfinished_tasks += len(items)
                self.not_empty.notify(len(items))

    def _make_live(self, items: list[Any]) -> None:
        self.queue.clear()
        for item in items:
            self._put(item)

    if TYPE_CHECKING:

        def _put(self, item: Any) -> None: ...
