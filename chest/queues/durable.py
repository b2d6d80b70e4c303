"""The queue that users see: `queue.Queue`, for many processes, in files.

Owns: putting and getting, and waiting. Does not own: leases (`lending`), and how any of it
lies on disk.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import queue
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from numbers import Real
from typing import Any

from chest import errors
from chest.core import Chest
from chest.objects.atomic import refuse_objects
from chest.queues import header as h
from chest.queues.coding import IN_FILE, Coded
from chest.queues.header import State
from chest.queues.items import DamagedError, Record, segment_of
from chest.queues.lending import Lending
from chest.settings import Settings

__all__ = ["DurableQueue", "ShutDown"]

FIRST_NAP, LONGEST_NAP = (
    0.0002,
    0.005,
)  # seconds; 200 looks a second take 0.4 % of a core


if hasattr(queue, "ShutDown"):
    ShutDown = queue.ShutDown
else:

    class ShutDown(Exception):  # type: ignore[no-redef]
        """The queue was shut down; ``queue.ShutDown`` where Python has it."""


def _is_number(value: object) -> bool:
    return isinstance(value, Real)


class DurableQueue(Lending):
    """A first-in, first-out queue in files, shared by any number of processes.

    It has the interface of `queue.Queue`, and what is in it survives the processes.

    Parameters
    ----------
    path : str, PathLike or Chest
        The folder that the queue lies in, as a hidden folder of its own; made where
        there is none. A chest may live there too: neither sees the other. A chest given
        here lends its folder and its settings for safety and durability.
    maxsize : int
        `put` waits while so many items wait; 0 or less: never. Each handle has its own.
    name : str
        Of the queue, where a folder has several: letters, digits, ``-`` and ``_``.
    lease : float, optional
        Seconds for which an item that `get` returned is only lent: it comes back, before
        all others, unless `ack` is called in that time, and at once when the process that
        has it dies or closes the queue. ``None``: what `get` returned is gone.
    tries : int, optional
        After so many times an item that came back goes to `dead_letters` instead.
        ``None``: it may come back for ever.
    durability, trust, sign_key, timeout, umask, verify
        As those of `chest.Chest`, when *path* is no chest. With ``durability="power"``
        each operation waits for the disk.
    clock, sleep : callable
        The monotonic time and how to wait, both in seconds; for tests.

    Raises
    ------
    UntrustedError
        Somebody else can write to the folder.
    ReadOnlyError
        The chest was opened with ``readonly=True``.

    Notes
    -----
    An item up to 64 KiB is a record in a log, a larger one has a file, from which its
    arrays are mapped (privately: they may be changed). A handle may be used by many
    threads, on both sides of a fork, and can be pickled.

    What `put` returned from survives ``kill -9``. Without a lease each item is returned
    once; a process that is killed in the middle of `get` takes its item with it.

    Examples
    --------
    >>> q = DurableQueue("jobs")
    >>> q.put("first")
    >>> q.put({"x": 1})
    >>> q.close()
    >>> with DurableQueue("jobs") as q:
    ...     q.get(), q.get(), q.empty()
    ('first', {'x': 1}, True)
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | Chest,
        maxsize: int = 0,
        *,
        name: str = "queue",
        lease: float | None = None,
        tries: int | None = None,
        durability: str = "process",
        trust: str = "owner",
        sign_key: Any = None,
        timeout: float | None = None,
        umask: bool = False,
        verify: str = "stream",
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        refuse_objects(path, "a queue")
        if isinstance(path, Chest):
            path._manifest.check_writable()
            settings = dataclasses.replace(path._settings, key_to_filename=str)
            self._chest, path = path, path.path  # a temporary one lives as long as we
        else:
            settings = Settings(
                durability=durability,
                trust=trust,
                sign_key=sign_key,
                timeout=timeout,
                umask=umask,
                verify=verify,
            )
        self._set_up(maxsize, lease, tries, sleep)
        self._start(path, name, settings, clock)

    def _set_up(
        self,
        maxsize: int,
        lease: float | None,
        tries: int | None,
        sleep: Callable[[float], object],
    ) -> None:
        if not (lease is None or (_is_number(lease) and lease > 0)):
            msg = f"lease={lease!r}: seconds above 0, or None"
            raise ValueError(msg)
        if tries is not None and tries < 1:
            msg = f"tries={tries!r}: at least 1, or None"
            raise ValueError(msg)
        if tries is not None and lease is None:
            msg = (
                f"tries={tries!r} needs lease=: without, what was got never comes back"
            )
            raise ValueError(msg)
        self.maxsize, self.lease, self.tries = maxsize, lease, tries
        self._sleep = sleep
        self._mine, self._mine_lock = {}, threading.Lock()

    def __repr__(self) -> str:
        """One line, without reading an item."""
        kind = type(self).__name__
        if self._closed:
            return f"<{kind} {self.name!r} in {self._outer}: closed>"
        try:
            size = self.qsize()
        except errors.DroppedError:
            what = "dropped"
        else:
            what = "1 item" if size == 1 else f"{size} items"
        return f"<{kind} {self.name!r} in {self._outer}: {what}>"

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as path and options; what is leased stays with this handle."""
        if self._closed:
            self._refuse()
        how = (self.maxsize, self.lease, self.tries)
        return _reopen, (type(self), self._outer, self.name, self._settings, how)

    # -- put ---------------------------------------------------------------------------

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Put *item* at the end; when this returns, all processes can get it.

        Parameters
        ----------
        item : object
            Anything that a chest can store. It is encoded here: what is changed in it
            later is not changed in the queue.
        block : bool
            Wait while the queue is full.
        timeout : float, optional
            Seconds to wait at most.

        Raises
        ------
        queue.Full
            There was no room.
        ShutDown
            The queue takes no more items.
        EncodingError, StoreError
            The item cannot be stored. The queue is as it was.
        ValueError
            *timeout* is negative.

        Notes
        -----
        About 5 µs for a small item; the lock is held for one write.
        """
        if timeout is not None and block:
            _check_timeout(timeout)
        coded = self._coder.encode(item)
        draft = coded[2]
        try:
            if draft is not None or not self._put_small(coded):
                self._until(lambda: self._put((coded,)), queue.Full, block, timeout)
        finally:
            if draft is not None:
                draft.discard()  # unless it was published

    def put_nowait(self, item: Any) -> None:
        """``put(item, block=False)``."""
        self.put(item, block=False)

    def put_many(
        self, items: Iterable[Any], block: bool = True, timeout: float | None = None
    ) -> None:
        """Put all *items*, or none of them: they become visible at once.

        Raises
        ------
        queue.Full
            There was no room for all.
        ValueError
            They are more than *maxsize*, or *timeout* is negative.
        """
        if timeout is not None and block:
            _check_timeout(timeout)
        coded: list[Coded] = []
        try:
            for item in items:
                coded.append(self._coder.encode(item))  # noqa: PERF401 - see finally
            if 0 < self.maxsize < len(coded):
                msg = f"{len(coded)} items never fit a queue of {self.maxsize}"
                raise ValueError(msg)
            if coded:
                self._until(lambda: self._put(coded), queue.Full, block, timeout)
        finally:
            for _, _, draft in coded:
                if draft is not None:
                    draft.discard()

    def _put_small(self, coded: Coded) -> bool:
        """`_put` of one item without a file, in three quarters of the time."""
        with self._mutex, self._door as state:
            if state[h.FLAGS]:
                raise ShutDown
            if self.maxsize > 0 and not self._size(state) < self.maxsize:
                return False
            number = state[h.PUTS]
            head = self._items.append(state[h.HEAD], number, coded[0], coded[1])
            if self._sync:
                self._items.sync(head)
            state[h.UNFINISHED] += 1
            state[h.HEAD], state[h.PUTS] = head, number + 1
            self._header.write(state)
        return True

    def _put(self, coded: Sequence[Coded]) -> bool:
        """Append and publish; False when there is no room."""
        with self._mutex, self._door as state:
            if state[h.FLAGS]:
                raise ShutDown
            if self.maxsize > 0 and len(coded) > self.maxsize - self._size(state):
                return False
            head, number = state[h.HEAD], state[h.PUTS]
            for kind, payload, draft in coded:
                if draft is not None:
                    self._coder.place(number, draft)
                head = self._items.append(head, number, kind, payload)
                number += 1
            if self._sync:
                self._items.sync(head)
            state[h.UNFINISHED] += number - state[h.PUTS]
            state[h.HEAD], state[h.PUTS] = head, number
            # Before it is published: after Ctrl-C `put` discards what was not released.
            # A file that nobody knows of is written over, or swept.
            for _, _, draft in coded:
                if draft is not None:
                    draft.release()
            self._header.write(state)
        return True

    # -- get ---------------------------------------------------------------------------

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Take the first item; no other process gets it.

        Parameters
        ----------
        block : bool
            Wait while the queue is empty: at most 10 ms longer than until another
            process puts something, with less than 1 % of a core.
        timeout : float, optional
            Seconds to wait at most.

        Returns
        -------
        object
            With a lease: the object to give to `ack` or `nack`.

        Raises
        ------
        queue.Empty
            Nothing came.
        ShutDown
            Nothing will come.
        CorruptValueError
            Items were damaged on disk, and are lost; the next call goes on behind them.
        DecodingError, UntrustedError, SignatureError
            The item cannot be read here. It is among the `dead_letters`, and the next
            call goes on.
        ValueError
            *timeout* is negative.

        Notes
        -----
        About 5 µs for a small item. The lock is not held while the item is decoded.
        """
        if timeout is not None and block:
            _check_timeout(timeout)
        taken = self._take()
        if taken is None:
            taken = self._until(self._take, queue.Empty, block, timeout)
        record, tries = taken
        kind = record.kind
        try:
            item = self._coder.decode(record.number, kind, record.payload)
        except errors.ChestError as error:
            self._give_up(record, tries)
            error.add_note("The item was put among the dead letters of the queue")
            raise
        if tries:
            self._note(item, record, tries)
        elif kind in IN_FILE:
            self._coder.remove(record.number, kind)
        return item

    def get_nowait(self) -> Any:
        """``get(block=False)``."""
        return self.get(block=False)

    def _take(self) -> tuple[Record, int] | None:
        """Take the first record, and how often it was tried; 0 without a lease."""
        with self._mutex, self._door as state:
            if state[h.FLAGS] & h.SHUT_AT_ONCE:
                raise ShutDown
            if state[h.EVENTS]:
                found = self._take_returned(state)
                if found is not None:
                    return found
            tail = state[h.TAIL]
            if tail == state[h.HEAD]:
                if state[h.FLAGS]:
                    raise ShutDown
                return None
            try:
                record = self._items.read(tail, state[h.HEAD])
            except DamagedError:
                raise self._skip_damage(state) from None
            tries = 0
            if self.lease is not None:
                self._leases.catch_up(state)
                tries = self._lend(state, record, 1)
            state[h.TAIL], state[h.TAKES] = record.after, record.number + 1
            self._header.write(state)
            if self._sync:
                self._header.sync()
            if segment_of(tail) != segment_of(record.at):
                self._remove_passed(state, segment_of(tail))
            return record, tries

    def _skip_damage(self, state: State) -> errors.CorruptValueError:
        """Go on behind damaged items; the error that says how many are lost."""
        at, head = state[h.TAIL], state[h.HEAD]
        state[h.TAIL] = self._items.resume(at + 1, head)
        first, state[h.TAKES] = state[h.TAKES], self._first_number(state)
        lost = state[h.TAKES] - first
        state[h.UNFINISHED] = max(state[h.UNFINISHED] - lost, 0)
        self._publish_removal(state)
        return self._lost(at, lost)

    # -- waiting -----------------------------------------------------------------------

    def _until(
        self,
        attempt: Callable[[], Any],
        error: type[Exception],
        block: bool,
        timeout: float | None,
    ) -> Any:
        """Try again whenever something changed, until it gives something true."""
        words = self._header.words
        end = math.inf if timeout is None else self._clock() + timeout
        nap = FIRST_NAP
        while True:
            seen = words[1]
            found = attempt()
            if found:
                return found
            while words[1] == seen and not self._closed:
                left = end - self._clock() if block else 0
                if left <= 0:
                    raise error
                self._sleep(min(nap, left))
                nap = min(nap * 2, LONGEST_NAP)
                if self._leases.may_come_back():
                    break

    def qsize(self) -> int:
        """How many items wait; those that are leased do not count. Costs 1 µs."""
        state = self._look()
        if state[h.FLAGS] & h.SHUT_AT_ONCE:
            return 0
        if not state[h.EVENTS]:
            return state[h.PUTS] - state[h.TAKES]
        with self._mutex, self._door as state:
            return self._size(state)

    def _size(self, state: State) -> int:
        waiting = state[h.PUTS] - state[h.TAKES]
        if not state[h.EVENTS]:
            return waiting
        self._leases.catch_up(state)
        self._leases.collect(self._holder.is_alive)
        return waiting + self._leases.count_due()

    def _look(self) -> State:
        """The state without the lock."""
        if self._closed:
            self._refuse()
        return self._header.glimpse()

    def empty(self) -> bool:
        """Whether no item waits; it may be otherwise the next moment."""
        return not self.qsize()

    def full(self) -> bool:
        """Whether `put` would wait; it may be otherwise the next moment."""
        return 0 < self.maxsize <= self.qsize()

    # -- what is done ------------------------------------------------------------------

    @property
    def unfinished_tasks(self) -> int:
        """Items that were put and not reported as done, leased ones among them.

        When nobody has the queue open, those that are gone count as done.
        """
        return self._look()[h.UNFINISHED]

    def task_done(self) -> None:
        """Report one item that `get` returned as done; with a lease `ack` does that.

        Raises
        ------
        ValueError
            More were reported than put.
        """
        with self._mutex, self._door as state:
            if state[h.UNFINISHED] <= 0:
                msg = "task_done() called too many times"
                raise ValueError(msg)
            state[h.UNFINISHED] -= 1
            self._publish(state)

    def join(self) -> None:
        """Wait until every item that was put, by any process, is reported as done."""
        self._until(lambda: not self._look()[h.UNFINISHED], queue.Empty, True, None)

    @property
    def is_shutdown(self) -> bool:
        """Whether `shutdown` was called, by any process."""
        return bool(self._look()[h.FLAGS])

    def shutdown(self, immediate: bool = False) -> None:
        """Let every `put` raise `ShutDown`, and `get` once the queue is empty.

        It holds in all processes, until the queue is opened when nobody has it open.

        Parameters
        ----------
        immediate : bool
            `get` raises at once. Unlike those of `queue.Queue` the items stay: they are
            there when the queue is opened anew. For `join` they count as done.
        """
        with self._mutex, self._door as state:
            state[h.FLAGS] |= h.SHUT
            if immediate:
                state[h.FLAGS] |= h.SHUT_AT_ONCE
                waiting = self._size(state)
                state[h.UNFINISHED] = max(state[h.UNFINISHED] - waiting, 0)
            self._publish(state)

    @contextlib.contextmanager
    def taking(self, block: bool = True, timeout: float | None = None) -> Iterator[Any]:
        """`get` for a ``with`` block: `ack` at its end, `nack` when it raises.

        Examples
        --------
        >>> q = DurableQueue("jobs", lease=60)
        >>> q.put("clean")
        >>> with q.taking() as job:
        ...     job
        'clean'
        >>> q.unfinished_tasks
        0
        """
        item = self.get(block, timeout)
        try:
            yield item
        except BaseException:
            self.nack(item)
            raise
        self.ack(item)

    # -- all at once, for FlushQueue ---------------------------------------------------

    def _read_all(self) -> tuple[State, list[Record], list[Any]]:
        """The state, and all waiting items, up to damage; they stay.

        Raises
        ------
        CorruptValueError
            The first ones are damaged, and are lost.
        DecodingError, UntrustedError, SignatureError
            One cannot be read here.
        """
        while True:
            with self._mutex, self._door as state:
                records, at = list[Record](), state[h.TAIL]
                while at != state[h.HEAD]:
                    try:
                        record = self._items.read(at, state[h.HEAD])
                    except DamagedError:
                        if records:
                            break
                        raise self._skip_damage(state) from None
                    records.append(record)
                    at = record.after
            try:
                items = [self._coder.decode(*record[:3]) for record in records]
            except errors.ChestError:
                if self._look()[h.TAKES] == state[h.TAKES]:
                    raise
                continue  # somebody has taken it meanwhile
            return state, records, items

    def _remove_all(self, before: State, records: list[Record]) -> bool:
        """Take what `_read_all` gave; the queue goes with it if nothing else is in it.

        False: somebody else has taken something since, and nothing is changed.
        """
        with self._mutex, self._door as state:
            if state[h.TAKES] != before[h.TAKES]:
                return False
            first = segment_of(state[h.TAIL])
            if records:
                last = records[-1]
                state[h.TAIL], state[h.TAKES] = last.after, last.number + 1
            state[h.UNFINISHED] = max(state[h.UNFINISHED] - len(records), 0)
            waits = state[h.TAIL] != state[h.HEAD] or state[h.EVENTS]
            if not waits and state[h.DEAD_TAIL] == state[h.DEAD_HEAD]:
                self._go()
                return True
            self._leases.catch_up(state)
            self._publish_removal(state)
            self._remove_passed(state, first)
        for record in records:
            self._coder.remove(record.number, record.kind)
        return True


def _check_timeout(timeout: float) -> None:
    if timeout < 0:
        msg = "'timeout' must be a non-negative number"
        raise ValueError(msg)


def _reopen(
    kind: type[DurableQueue],
    path: str,
    name: str,
    settings: Settings,
    how: tuple[int, float | None, int | None],
) -> DurableQueue:
    """Open a queue that travelled as path and options."""
    new = kind.__new__(kind)
    new._set_up(*how, time.sleep)
    new._start(path, name, settings, time.monotonic)
    return new
