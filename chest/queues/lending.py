"""Items that are lent: taken for a while, given back, given up.

Owns: leases as users see them, items that came back, dead letters. Does not own: putting,
the first taking of an item, waiting; how leases lie on disk (`leases`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterator
from typing import Any

from chest import errors
from chest.folder import refusals
from chest.queues import header as h
from chest.queues.coding import IN_FILE, value_name
from chest.queues.handle import Handle
from chest.queues.header import State
from chest.queues.items import DamagedError, Record, segment_of
from chest.queues.leases import Lease

__all__ = ["DeadLetter", "Lending"]

TRIES = 8  # bits of a dead letter's kind below those that say how often it was tried


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


class Lending(Handle):
    """A handle that lends items, and takes them back."""

    lease: float | None
    tries: int | None
    # What this handle has leased, by identity: items need not be hashable.
    _mine: dict[int, list[tuple[Any, Record, int]]]
    _mine_lock: threading.Lock  # around each look and change of it, and nothing else

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
            What `get` returned: the object itself, or one that equals it.

        Returns
        -------
        bool
            False: the lease had run out, and somebody else has taken the item since.

        Raises
        ------
        ValueError
            This handle has not leased *item*.
        """
        with self._leased(item) as (record, tries), self._mutex, self._door as state:
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
            What `get` returned: the object itself, or one that equals it.
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
        with self._leased(item) as (record, tries), self._mutex, self._door as state:
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
            self._clear(state, lease)
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
        with (
            self._leased(item, keep=True) as (record, tries),
            self._mutex,
            self._door as state,
        ):
            lease = self._still_mine(state, record, tries)
            if lease is None:
                return False
            until = self._clock() + seconds
            longer = dataclasses.replace(lease, until=until, span=seconds, due=False)
            self._leases.take(state, longer)
            self._publish(state)
        return True

    @contextlib.contextmanager
    def _leased(self, item: Any, *, keep: bool = False) -> Iterator[tuple[Record, int]]:
        """What this handle knows of an item that it has leased, and forgets then."""
        mine = self._claim(item, keep=keep)
        try:
            yield mine[1:]
        except BaseException:
            if not keep:
                self._note(*mine)  # it can be tried again
            raise

    def _claim(self, item: Any, *, keep: bool) -> tuple[Any, Record, int]:
        """What was noted of an item; the object itself, or else one that equals it."""
        mine = self._find(id(item), keep=keep)
        if mine is not None:
            return mine
        with self._mine_lock:
            alike = [
                held[-1][0]
                for held in self._mine.values()
                if type(held[-1][0]) is type(item)
            ]
        for each in alike:
            # Arrays never equal one another. Compared without the lock: it is the user's.
            if (each == item) is True:
                mine = self._find(id(each), keep=keep)
                if mine is not None:
                    return mine
        msg = f"{errors.short(item)} was not returned by get() of this queue's lease"
        raise ValueError(msg)

    def _find(self, place: int, *, keep: bool) -> tuple[Any, Record, int] | None:
        """What was noted last of the object with this identity."""
        with self._mine_lock:
            held = self._mine.get(place)
            if not held:
                return None
            if keep:
                return held[-1]
            mine = held.pop()
            if not held:
                del self._mine[place]
            return mine

    def _note(self, item: Any, record: Record, tries: int) -> None:
        """Remember an item that this handle has leased."""
        with self._mine_lock:
            self._mine.setdefault(id(item), []).append((item, record, tries))

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
        with self._mutex, self._door as state:
            lease = None
            if tries:
                lease = self._still_mine(state, record, tries)
                if lease is None:
                    return
                self._leases.end(state, lease)
            self._bury(state, record, tries or 1)
            self._publish_removal(state)
            if lease is not None:
                self._clear(state, lease)

    def dead_letters(self) -> list[DeadLetter]:
        """The items that were given up, the oldest first.

        They were taken *tries* times without an `ack`, or could not be read.
        """
        with self._mutex, self._door as state:
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
        with self._mutex, self._door as state:
            letters = self._dead_records(state)
            records, moved = [], []
            with refusals(self.path, "lets no dead letter be revived"):
                for number, letter in enumerate(letters, state[h.PUTS]):
                    kind = letter.kind & (1 << TRIES) - 1
                    if kind in IN_FILE:
                        self._link_value(letter.number, number)
                        moved.append((letter.number, kind))
                    records.append((number, kind, letter.payload))
                if self._sync and moved:
                    self._home.sync()
            state[h.HEAD] = self._items.write(state[h.HEAD], records)
            state[h.PUTS] += len(records)
            state[h.UNFINISHED] += len(records)
            self._forget_dead(state)
        for number, kind in moved:
            self._coder.remove(number, kind)
        return len(letters)

    def _link_value(self, old: int, new: int) -> None:
        """Let an item have another's value file; without one it will be unreadable."""
        name = value_name(new)
        self._home.unlink(name, missing_ok=True)  # of a call that failed half-way
        with contextlib.suppress(FileNotFoundError):
            self._home.link(self._home.join(value_name(old)), name)

    def clear_dead_letters(self) -> int:
        """Delete all dead letters; how many they were."""
        with self._mutex, self._door as state:
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

    # -- what came back ----------------------------------------------------------------

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
                self._clear(state, lease)
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
            self._clear(state, lease)
            raise self._lost(lease.position, 1) from None

    def _lost(self, position: int, count: int) -> errors.CorruptValueError:
        msg = (
            f"{count} items of the queue in {self.path} are damaged from byte "
            f"{position & 0xFFFFFFFF} of segment {segment_of(position)} on, and are "
            f"lost; the next get goes on behind them"
        )
        return errors.CorruptValueError(msg, path=self.path)

    def _remove_passed(self, state: State, segment: int) -> None:
        """Delete segments before the tail that nobody holds an item in."""
        self._leases.catch_up(state)
        for each in range(segment, segment_of(state[h.TAIL])):
            if not self._leases.is_pinned(each):
                self._items.remove(each)

    def _clear(self, state: State, lease: Lease) -> None:
        """Delete the segment of a lease that ended, if it was the last one's."""
        segment = segment_of(lease.position)
        if segment < segment_of(state[h.TAIL]):
            self._remove_passed(state, segment)

    def after_fork_in_child(self) -> None:
        """Forget what the parent has leased."""
        super().after_fork_in_child()
        self._mine, self._mine_lock = {}, threading.Lock()
