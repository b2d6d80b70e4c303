"""The queue that users see: `queue.Queue`, for many processes, in files.

Owns: putting and getting, waiting, leases as users see them, dead letters. Does not own:
how any of it lies on disk.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import queue
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from chest import errors
from chest.core import Chest
from chest.queues import header as h
from chest.queues.coding import IN_FILE, Coded, value_name
from chest.queues.handle import Handle
from chest.queues.header import State
from chest.queues.items import DamagedError, Record, segment_of
from chest.queues.leases import Lease
from chest.settings import Settings

__all__ = ["DeadLetter", "DurableQueue", "ShutDown"]

FIRST_NAP, LONGEST_NAP = (
    0.0002,
    0.005,
)  # seconds; 200 looks a second take 0.4 % of a core
TRIES = 8  # bits of a dead letter's kind below those that say how often it was tried


if hasattr(queue, "ShutDown"):
    ShutDown = queue.ShutDown
else:

    class ShutDown(Exception):  # type: ignore[no-redef]
        """The queue was shut down; ``queue.ShutDown`` where Python has it."""


@dataclasses.dataclass(frozen=True, slots=True)
class DeadLetter:
    """An item that was given up.

    Attributes
    ----------
    item : object
        None where it cannot be read.
    tries : int
        How often it was taken.
    error : Exception or None
        Why it cannot be read.
    """

    item: Any
    tries: int
    error: Exception | None


class DurableQueue(Handle):
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
        if lease is not None and not lease > 0:
            msg = f"lease={lease!r}: seconds above 0, or None"
            raise ValueError(msg)
        if tries is not None and tries < 1:
            msg = f"tries={tries!r}: at least 1, or None"
            raise ValueError(msg)
        self.maxsize, self.lease, self.tries = maxsize, lease, tries
        self._sleep = sleep
        # What this handle has leased, by identity: items need not be hashable.
        self._mine: dict[int, list[tuple[Any, Record, int]]] = {}

    def __repr__(self) -> str:
        """One line, without reading an item."""
        kind = type(self).__name__
        if self._closed:
            return f"<{kind} {self.name!r} in {self._outer}: closed>"
        return f"<{kind} {self.name!r} in {self._outer}: {self.qsize()} items>"

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
        try:
            if not self._put((coded,)):
                self._until(lambda: self._put((coded,)), queue.Full, block, timeout)
        finally:
            if (draft := coded[2]) is not None:
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

    def _put(self, coded: Sequence[Coded]) -> bool:
        """Append and publish; False when there is no room."""
        with self._door as state:
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
            self._header.write(state)
            for _, _, draft in coded:
                if draft is not None:
                    draft.release()
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
            self._mine.setdefault(id(item), []).append((item, record, tries))
        elif kind in IN_FILE:
            self._coder.remove(record.number, kind)
        return item

    def get_nowait(self) -> Any:
        """``get(block=False)``."""
        return self.get(block=False)

    def _take(self) -> tuple[Record, int] | None:
        """Take the first record, and how often it was tried; 0 without a lease."""
        with self._door as state:
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

    def _take_returned(self, state: State) -> tuple[Record, int] | None:
        """Take the oldest item that came back; those tried too often go."""
        leases = self._leases
        leases.catch_up(state)
        leases.collect(self._holder.is_alive)
        while (lease := leases.first_due()) is not None:
            record = self._read_leased(state, lease)
            if record is None:
                continue
            if self.tries is not None and lease.tries >= self.tries:
                self._bury(state, record, lease.tries)
                leases.end(state, lease)
                self._publish_removal(state)
                continue
            if self.lease is None:
                tries = 0
                leases.end(state, lease)
            else:
                tries = self._lend(state, record, lease.tries + 1)
            self._publish_removal(state)
            self._clear(state, lease)
            return record, tries
        return None

    def _read_leased(self, state: State, lease: Lease) -> Record | None:
        """The record of a lease; None when it is damaged, and then it is lost."""
        try:
            return self._items.read(lease.position, state[h.HEAD])
        except DamagedError:
            self._leases.end(state, lease)
            state[h.UNFINISHED] = max(state[h.UNFINISHED] - 1, 0)
            self._publish_removal(state)
            raise self._lost(lease.position, 1) from None

    def _skip_damage(self, state: State) -> errors.CorruptValueError:
        """Go on behind damaged items; the error that says how many are lost."""
        at, head = state[h.TAIL], state[h.HEAD]
        state[h.TAIL] = self._items.resume(at + 1, head)
        first, state[h.TAKES] = state[h.TAKES], self._first_number(state)
        lost = state[h.TAKES] - first
        state[h.UNFINISHED] = max(state[h.UNFINISHED] - lost, 0)
        self._publish_removal(state)
        return self._lost(at, lost)

    def _lost(self, position: int, count: int) -> errors.CorruptValueError:
        msg = (
            f"{count} items of the queue in {self.path} are damaged from byte "
            f"{position & 0xFFFFFFFF} of segment {segment_of(position)} on, and are "
            f"lost; the next get goes on behind them"
        )
        return errors.CorruptValueError(msg, path=self.path)

    def _remove_passed(self, state: State, segment: int) -> None:
        """Delete segments before the tail that nobody holds an item in."""
        for each in range(segment, segment_of(state[h.TAIL])):
            if not self._leases.is_pinned(each):
                self._items.remove(each)

    def _clear(self, state: State, lease: Lease) -> None:
        """Delete the segment of a lease that ended, if it was the last one's."""
        segment = segment_of(lease.position)
        if segment < segment_of(state[h.TAIL]):
            self._remove_passed(state, segment)

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
        with self._door as state:
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
        with self._door as state:
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
        with self._door as state:
            state[h.FLAGS] |= h.SHUT
            if immediate:
                state[h.FLAGS] |= h.SHUT_AT_ONCE
                waiting = self._size(state)
                state[h.UNFINISHED] = max(state[h.UNFINISHED] - waiting, 0)
            self._publish(state)

    # -- leases ------------------------------------------------------------------------

    def _lend(self, state: State, record: Record, tries: int) -> int:
        """Note that this handle has an item for a while."""
        span = float(self.lease or 0)
        until = self._clock() + span
        holder = self._holder.id
        lease = Lease(record.number, record.at, tries, until, span, holder)
        self._leases.take(state, lease)
        return tries

    def ack(self, item: Any) -> bool:
        """Say that a leased item is done with: it is gone, and counts for `join`.

        Parameters
        ----------
        item : object
            The very object that `get` returned.

        Returns
        -------
        bool
            False: the lease had run out, and somebody else has taken the item since.

        Raises
        ------
        ValueError
            This handle has not leased *item*.
        """
        with self._leased(item) as (record, tries), self._door as state:
            lease = self._still_mine(state, record, tries)
            if lease is None:
                return False
            self._leases.end(state, lease)
            state[h.UNFINISHED] = max(state[h.UNFINISHED] - 1, 0)
            self._publish_removal(state)
            self._clear(state, lease)
        self._coder.remove(record.number, record.kind)
        return True

    def nack(self, item: Any, delay: float = 0) -> bool:
        """Give a leased item back, to be taken again before all others.

        Parameters
        ----------
        item : object
            The very object that `get` returned.
        delay : float
            Seconds until it may be taken.

        Returns
        -------
        bool
            False: as for `ack`.

        Raises
        ------
        ValueError
            This handle has not leased *item*, or *delay* is negative.
        """
        if delay < 0:
            msg = "'delay' must be a non-negative number"
            raise ValueError(msg)
        with self._leased(item) as (record, tries), self._door as state:
            lease = self._still_mine(state, record, tries)
            if lease is None:
                return False
            if self.tries is not None and tries >= self.tries:
                self._bury(state, record, tries)
                self._leases.end(state, lease)
            else:
                until = self._clock() + delay
                back = dataclasses.replace(lease, until=until, span=delay, holder=0)
                self._leases.give_back(state, back)
            self._publish_removal(state)
        return True

    def extend(self, item: Any, seconds: float) -> bool:
        """Keep a leased item for *seconds* from now.

        Returns
        -------
        bool
            False: as for `ack`.

        Raises
        ------
        ValueError
            This handle has not leased *item*.
        """
        with self._leased(item, keep=True) as (record, tries), self._door as state:
            lease = self._still_mine(state, record, tries)
            if lease is None:
                return False
            until = self._clock() + seconds
            longer = dataclasses.replace(lease, until=until, span=seconds, due=False)
            self._leases.take(state, longer)
            self._publish(state)
        return True

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

    @contextlib.contextmanager
    def _leased(self, item: Any, *, keep: bool = False) -> Iterator[tuple[Record, int]]:
        """What this handle knows of an item that it has leased, and forgets then."""
        leased = self._mine.get(id(item))
        if not leased:
            msg = "not the object that get() of this queue, with its lease, returned"
            raise ValueError(msg)
        mine = leased.pop()
        try:
            yield mine[1:]
        except BaseException:
            keep = True  # it can be tried again
            raise
        finally:
            if keep:
                self._mine.setdefault(id(item), leased).append(mine)
            elif not leased:
                self._mine.pop(id(item), None)

    def after_fork_in_child(self) -> None:
        # docstring inherited
        super().after_fork_in_child()
        self._mine = {}

    def _still_mine(self, state: State, record: Record, tries: int) -> Lease | None:
        """The lease of an item, unless somebody else has the item since."""
        self._leases.catch_up(state)
        lease = self._leases.table.get(record.number)
        if lease is None or (lease.holder, lease.tries) != (self._holder.id, tries):
            return None
        return lease

    # -- dead letters ------------------------------------------------------------------

    def _bury(self, state: State, record: Record, tries: int) -> None:
        """Write an item among the dead letters."""
        kind = record.kind | tries << TRIES
        letter = (record.number, kind, record.payload)
        state[h.DEAD_HEAD] = self._dead.write(state[h.DEAD_HEAD], [letter])
        state[h.UNFINISHED] = max(state[h.UNFINISHED] - 1, 0)

    def _give_up(self, record: Record, tries: int) -> None:
        """Put an item that cannot be read among the dead letters."""
        with self._door as state:
            if tries:
                lease = self._still_mine(state, record, tries)
                if lease is None:
                    return
                self._leases.end(state, lease)
            self._bury(state, record, tries or 1)
            self._publish_removal(state)

    def dead_letters(self) -> list[DeadLetter]:
        """The items that were given up, the oldest first.

        They were taken *tries* times without an `ack`, or could not be read.
        """
        with self._door as state:
            records = self._dead_records(state)
        return [self._letter(record) for record in records]

    def _letter(self, record: Record) -> DeadLetter:
        kind, tries = record.kind & (1 << TRIES) - 1, record.kind >> TRIES
        try:
            item = self._coder.decode(record.number, kind, record.payload)
        except errors.ChestError as error:
            return DeadLetter(None, tries, error)
        return DeadLetter(item, tries, None)

    def revive(self) -> int:
        """Put all dead letters at the end of the queue again; how many they were."""
        with self._door as state:
            letters = self._dead_records(state)
            records, moved = [], []
            for number, letter in enumerate(letters, state[h.PUTS]):
                kind = letter.kind & (1 << TRIES) - 1
                if kind in IN_FILE:
                    old = self._home.join(value_name(letter.number))
                    self._home.link(old, value_name(number))
                    moved.append(value_name(letter.number))
                records.append((number, kind, letter.payload))
            state[h.HEAD] = self._items.write(state[h.HEAD], records)
            state[h.PUTS] += len(records)
            state[h.UNFINISHED] += len(records)
            self._forget_dead(state)
        for name in moved:
            self._coder.store.delete(name)
        return len(letters)

    def clear_dead_letters(self) -> int:
        """Delete all dead letters; how many they were."""
        with self._door as state:
            letters = self._dead_records(state)
            self._forget_dead(state)
        for letter in letters:
            self._coder.remove(letter.number, letter.kind & (1 << TRIES) - 1)
        return len(letters)

    def _forget_dead(self, state: State) -> None:
        """Publish that there are no dead letters any more, and go on in a new file."""
        first, last = segment_of(state[h.DEAD_TAIL]), segment_of(state[h.DEAD_HEAD])
        if state[h.DEAD_TAIL] != state[h.DEAD_HEAD]:
            state[h.DEAD_TAIL] = state[h.DEAD_HEAD] = last + 1 << 32
        self._publish_removal(state)
        for segment in range(first, segment_of(state[h.DEAD_TAIL])):
            self._dead.remove(segment)

    @contextlib.contextmanager
    def _dropping(self) -> Iterator[list[Any]]:
        """All waiting items; at the end of the block the queue goes, unless it raises."""
        with self._door as state:
            records, at = [], state[h.TAIL]
            while at != state[h.HEAD]:
                try:
                    record = self._items.read(at, state[h.HEAD])
                except DamagedError:
                    raise self._skip_damage(state) from None
                records.append(record)
                at = record.after
            yield [
                self._coder.decode(record.number, record.kind, record.payload)
                for record in records
            ]
            self._go()


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
