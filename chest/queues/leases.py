"""Who holds which item until when, and whether he is still alive.

Owns: the events in ``leases-0`` and ``leases-1``, the table that they come to, the files
``.holder-<id>``. Does not own: the items, or what is done with one that came back.

An event has 56 bytes: a checksum, what happened, how often the item was taken, its
number, its position, until when, for how long, and by whom. Only the first bytes of one
of the two files are published, as the state says; when much of it is past, the living
part is written to the other one.

Times are those of the system's monotonic clock, which all processes share and nobody can
set. A time that lies further ahead than it was meant to is of an earlier start of the
system, and is past.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import secrets
import struct
from collections import Counter
from collections.abc import Callable
from heapq import heapify, heappop, heappush

import xxhash

from chest import errors, system
from chest.folder import HOLDER, LEASES, Folder, refused
from chest.queues.header import EPOCH, EVENTS, State
from chest.queues.items import segment_of

__all__ = ["Holder", "Lease", "Leases"]

TAKEN, BACK, DONE = range(1, 4)  # what happens to a lease
NEVER_PAST = 1024  # events; fewer are not worth rewriting
BURY_EVERY = 0.1  # seconds between two looks for holders that died

log = logging.getLogger("chest")
_event = struct.Struct("<QIIQQddQ")
_digest = xxhash.xxh3_64_intdigest
EVENT = _event.size


@dataclasses.dataclass(slots=True)
class Lease:
    """One item that was taken and neither acknowledged nor given up.

    Attributes
    ----------
    number, position : int
        Of the item.
    tries : int
        How often it was taken.
    until, span : float
        When it comes back, on the monotonic clock, and how long that was from then [s].
    holder : int
        Who has it; 0: nobody, it was given back.
    due : bool
        It is waiting for somebody to take it again.
    """

    number: int
    position: int
    tries: int
    until: float
    span: float
    holder: int
    due: bool = False


class Leases:
    """The leases of one queue, as this process has read them.

    Parameters
    ----------
    home : Folder
        The queue's.
    clock : callable
        The monotonic time [s].
    sync : bool
        Wait for the disk before an event is published.
    """

    def __init__(self, home: Folder, clock: Callable[[], float], *, sync: bool) -> None:
        self._home = home
        self._clock = clock
        self._sync = sync
        self._fds: dict[int, int] = {}
        self._looked = 0.0
        self.reset()

    def reset(self) -> None:
        """Forget what was read; it is read again when it is needed."""
        self._epoch, self._at = -1, 0
        self.table: dict[int, Lease] = {}
        self._timers: list[tuple[float, int]] = []
        self._due: list[int] = []
        self._pins: Counter[int] = Counter()

    # -- events ------------------------------------------------------------------------

    def catch_up(self, state: State) -> None:
        """Read what was published since the last time.

        Raises
        ------
        CorruptChestError
            An event is damaged.
        """
        if state[EPOCH] != self._epoch:
            self.reset()
            self._epoch = state[EPOCH]
        if self._at >= state[EVENTS]:
            return
        try:
            fd = self._file(self._epoch)
            data = system.read_all(fd, self._at, state[EVENTS] - self._at)
        except OSError as error:
            raise self._refused(error, "could not be read") from error
        now = self._clock()
        whole = len(data) == state[EVENTS] - self._at
        for at in range(0, len(data) - EVENT + 1, EVENT):
            event = data[at : at + EVENT]
            check, kind, *fields = _event.unpack(event)
            if _digest(event[8:], self._at) != check:
                whole = False
                break
            self._apply(kind, Lease(fields[1], fields[2], fields[0], *fields[3:]), now)
            self._at += EVENT
        if not whole:
            path = self._home.join(f"{LEASES}{self._epoch & 1}")
            msg = (
                f"{path} is damaged at byte {self._at}: who holds which item is not "
                f"known. Close all handles of the queue and open it again: items that "
                f"were taken lately come once more"
            )
            raise errors.CorruptChestError(msg, path=path)

    def take(self, state: State, lease: Lease) -> None:
        """Note that somebody took an item, or keeps it for longer."""
        self._add(state, TAKEN, lease)

    def give_back(self, state: State, lease: Lease) -> None:
        """Note that an item is to be taken again, from ``lease.until`` on."""
        self._add(state, BACK, lease)

    def end(self, state: State, lease: Lease) -> None:
        """Note that an item is done with."""
        self._add(state, DONE, lease)
        if not self.table or state[EVENTS] > EVENT * max(
            NEVER_PAST, 4 * len(self.table)
        ):
            self._rewrite(state)

    def _add(self, state: State, kind: int, lease: Lease) -> None:
        """Append an event; nobody sees it before the state is published."""
        try:
            fd = self._file(state[EPOCH])
            system.pwrite_all(fd, _line(kind, lease, state[EVENTS]), state[EVENTS])
            if self._sync:
                system.sync_file(fd)
        except OSError as error:
            raise self._refused(error, "takes no further event") from error
        self._apply(kind, lease, self._clock())
        state[EVENTS] += EVENT
        self._at = state[EVENTS]

    def _rewrite(self, state: State) -> None:
        """Go on in the other file, with what is alive."""
        leases = self.table.values()
        kinds = [TAKEN if lease.holder else BACK for lease in leases]
        data = b"".join(
            _line(kind, lease, EVENT * i)
            for i, (kind, lease) in enumerate(zip(kinds, leases, strict=True))
        )
        try:
            if data:
                fd = self._file(state[EPOCH] + 1)
                system.pwrite_all(fd, data, 0)
                if self._sync:
                    system.sync_file(fd)
        except OSError as error:
            raise self._refused(error, "could not be written anew") from error
        state[EPOCH] += 1
        state[EVENTS] = self._at = len(data)
        self._epoch = state[EPOCH]
        # Nobody waits any more for what is past.
        self._timers = [(each.until, each.number) for each in leases if not each.due]
        self._due = [each.number for each in leases if each.due]
        heapify(self._timers)
        heapify(self._due)

    def _apply(self, kind: int, lease: Lease, now: float) -> None:
        """Let the table follow an event."""
        old = self.table.pop(lease.number, None)
        if old is not None:
            self._pin(old.position, -1)
        if kind == DONE:
            return
        lease.until = min(lease.until, now + lease.span)
        self.table[lease.number] = lease
        self._pin(lease.position, 1)
        heappush(self._timers, (lease.until, lease.number))

    # -- what came back ----------------------------------------------------------------

    def collect(self, is_alive: Callable[[int], bool]) -> None:
        """Find leases that ran out, and, from time to time, holders that died."""
        now = self._clock()
        while self._timers and self._timers[0][0] <= now:
            until, number = heappop(self._timers)
            lease = self.table.get(number)
            if lease is not None and lease.until == until:
                self._come_back(lease)
        if now - self._looked < BURY_EVERY:
            return
        self._looked = now
        holders = {lease.holder for lease in self.table.values()} - {0}
        dead = {holder for holder in holders if not is_alive(holder)}
        for lease in list(self.table.values()) if dead else ():
            if lease.holder in dead:
                self._come_back(lease)

    def _come_back(self, lease: Lease) -> None:
        if not lease.due:
            lease.due = True
            heappush(self._due, lease.number)

    def first_due(self) -> Lease | None:
        """The oldest item that waits to be taken again."""
        while self._due:
            lease = self.table.get(self._due[0])
            if lease is not None and lease.due:
                return lease
            heappop(self._due)
        return None

    def count_due(self) -> int:
        """How many items wait to be taken again."""
        return sum(lease.due for lease in self.table.values())

    def may_come_back(self) -> bool:
        """Whether `collect` may find something now."""
        if not self.table:
            return False
        now = self._clock()
        late = bool(self._timers) and self._timers[0][0] <= now
        return late or now - self._looked >= BURY_EVERY

    def is_pinned(self, segment: int) -> bool:
        """Whether somebody holds an item in this segment."""
        return self._pins[segment] > 0

    def _pin(self, position: int, count: int) -> None:
        segment = segment_of(position)
        self._pins[segment] += count
        if not self._pins[segment]:
            del self._pins[segment]

    # -- files -------------------------------------------------------------------------

    def close(self) -> None:
        """Release the descriptors."""
        for fd in self._fds.values():
            system.close(fd)
        self._fds.clear()

    def _file(self, epoch: int) -> int:
        twin = epoch & 1
        if twin not in self._fds:
            flags = os.O_RDWR | os.O_CREAT
            self._fds[twin] = self._home.open(f"{LEASES}{twin}", flags)
            if self._sync:
                self._home.sync()
        return self._fds[twin]

    def _refused(self, error: OSError, what: str) -> errors.StoreError:
        return refused(error, self._home.join(f"{LEASES}{self._epoch & 1}"), what)


def _line(kind: int, lease: Lease, at: int) -> bytes:
    """An event as it lies at byte *at*."""
    times = (lease.until, lease.span)
    rest = _event.pack(
        0, kind, lease.tries, lease.number, lease.position, *times, lease.holder
    )[8:]
    return _digest(rest, at).to_bytes(8, "little") + rest


class Holder:
    """An open handle, as other processes see it: a file that is locked while it lives.

    Parameters
    ----------
    home : Folder
        The queue's.
    """

    def __init__(self, home: Folder) -> None:
        self._home = home
        self.id = 0
        self._fd = -1

    def enter(self) -> None:
        """Appear; again after a fork."""
        if self._fd < 0:
            self._fd, name = _appear(self._home)
            self.id = int(name.removeprefix(HOLDER), 16)

    def is_alive(self, holder: int) -> bool:
        """Whether a holder is there; the file of a dead one is removed."""
        return holder == self.id or _is_locked(self._home, f"{HOLDER}{holder:016x}")

    def is_alone(self) -> bool:
        """Whether no other handle is open, in this or any other process."""
        mine, alone = f"{HOLDER}{self.id:016x}", True
        for name in list(self._home.names()):
            # All are looked at, so that the files of all dead ones go.
            if name.startswith(HOLDER) and name != mine:
                alone = not _is_locked(self._home, name) and alone
        return alone

    def leave(self) -> None:
        """Disappear, and with it every lease; never raises."""
        if self._fd >= 0:
            try:
                _remove(self._home, f"{HOLDER}{self.id:016x}")
            finally:
                self.forget()

    def forget(self) -> None:
        """Give up a descriptor that a forked child inherited."""
        if self._fd >= 0:
            system.close(self._fd)
            self._fd, self.id = -1, 0


def _appear(home: Folder) -> tuple[int, str]:
    """A new file that says that somebody is there, open and locked, and its name."""
    # Never 0, which stands for nobody.
    return home.create(lambda: f"{HOLDER}{secrets.randbits(64) | 1:016x}")


def _remove(home: Folder, name: str) -> None:
    """Delete the file of a holder that goes or has died."""
    try:
        home.unlink(name, missing_ok=True)
    except OSError as error:
        # Nobody has its lock, and that is what counts. The next one tries again.
        log.info("%s is left: %s", home.join(name), error)


def _is_locked(home: Folder, name: str) -> bool:
    """Whether somebody has the lock of this file; it is removed if not."""
    try:
        fd = home.open(name, os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        if not system.try_lock(fd):
            return True
        _remove(home, name)
        return False
    finally:
        system.close(fd)
