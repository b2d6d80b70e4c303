"""An open queue: its folder, its lock, its state, and what happens to it at a fork.

Owns: opening and recovery, the two locks and their order, closing and dropping. Does not
own: putting and getting (`durable`).

Locks, always in this order: the handle's own (threads), the folder's (processes). While
they are held nothing is encoded, decoded or called back.
"""

from __future__ import annotations

import logging
import os
import re
import threading
from collections.abc import Callable
from typing import Any, NoReturn, Self

from chest import errors, lifetime, system
from chest.folder import (
    DEAD,
    ITEMS,
    OF_QUEUE,
    QUEUE,
    QUEUE_STATE,
    TEMPORARY,
    VALUE,
    Folder,
    refusals,
)
from chest.opening import open_folder
from chest.queues import header as h
from chest.queues.coding import Coder
from chest.queues.header import Header, State
from chest.queues.items import SHIFT, DamagedError, Items, segment_of
from chest.queues.leases import Holder, Leases
from chest.settings import Settings, absolute
from chest.signing import Key
from chest.stores.local import LocalStore, untrusted
from chest.system import locks

__all__ = ["Door", "Handle"]

log = logging.getLogger("chest")


class Door:
    """The folder's lock of a queue, as a context manager that gives the state.

    The handle's `_mutex` is held around it, which Python gives back whatever happens.
    """

    __slots__ = ("_handle", "_is_open", "_waits")

    def __init__(self, handle: Handle) -> None:
        self._handle = handle
        self._is_open = False
        self._waits = handle._timeout is None and system.POSIX  # as long as it takes

    def __enter__(self) -> State:
        handle = self._handle
        if handle._closed:
            handle._refuse()
        home = handle._home
        try:
            if self._waits:
                locks.flock(home.lock_fd, locks.EXCLUSIVE)
            elif not home.lock(handle._timeout):
                handle._refuse_locked()
            if self._is_open:
                handle._leases.reset()  # Ctrl-C came when it was about to be closed
            self._is_open = True
            if handle._renew:
                handle._appear_again()
            return handle._header.read()
        except BaseException:
            home.unlock()
            raise

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        try:
            if kind is not None:
                self._handle._leases.reset()  # it may have noted what was not published
            self._is_open = False
        finally:
            locks.flock(self._handle._home.lock_fd, locks.FREE)


class Handle:
    """What all operations of one open queue stand on."""

    path: str
    name: str

    def _start(
        self,
        path: str | os.PathLike[str],
        name: str,
        settings: Settings,
        clock: Callable[[], float],
    ) -> None:
        """Open the queue, or make it."""
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,100}", name):
            msg = f"name={name!r}: 1 to 100 letters, digits, '-' and '_'"
            raise ValueError(msg)
        self._outer, self.name = absolute(path), name
        self.path = os.path.join(self._outer, QUEUE + name)
        self._settings, self._clock = settings, clock
        self._timeout = settings.timeout
        self._sync = settings.durability == "power"
        self._key = None if settings.sign_key is None else Key(settings.sign_key)
        self._renew = False
        self._mutex, self._door = threading.Lock(), Door(self)
        self._open()
        self._closed = False
        lifetime.register(self)

    # -- opening -----------------------------------------------------------------------

    def _open(self) -> None:
        """Open the folder and take up its state."""
        while True:
            store = self._open_store()
            self._home = home = store.home
            try:
                if not home.lock(self._timeout):
                    self._refuse_locked()
                try:
                    # Dropped between the two calls: another folder has the name now.
                    if home.status().st_nlink:
                        self._begin(store)
                        return
                finally:
                    home.unlock()
            except BaseException:
                home.close()
                raise
            home.close()

    def _open_store(self) -> LocalStore:
        """The queue's folder, made where there is none, and who may write to it."""
        private = self._settings.trust == "owner"
        ours = True
        for path in (self._outer, self.path):
            home = open_folder(path, self._settings)
            try:
                with refusals(path, "could not be read"):
                    ours = system.is_private(home.status()) and ours
                if private and not ours:
                    raise untrusted(path, home.status())
                if home.network:
                    msg = (
                        f"{path} is on a network file system, where processes share no "
                        f"memory: keep the queue in a local folder"
                    )
                    raise errors.StoreError(msg, path=path)
            except BaseException:
                home.close()
                raise
            if path is self._outer:
                home.close()
        return LocalStore(home, private=private, folder_is_private=ours)

    def _begin(self, store: LocalStore) -> None:
        """Read or make the state, appear among the holders, mend what is to be mended."""
        home, check, sync = store.home, store.check_private, self._sync
        sign = None if self._key is None else self._key.sign_record
        self._items = Items(home, ITEMS, check, sign, sync=sync)
        self._dead = Items(home, DEAD, check, sign, sync=sync)
        self._leases = Leases(home, self._clock, sync=sync)
        self._coder = Coder(store, self._settings, self._key)
        self._holder = Holder(home)
        self._header = Header(home)
        try:
            with refusals(self.path, "could not be opened"):
                self._read_state()
                self._holder.enter()
                if self._holder.is_alone():
                    self._tidy()
        except BaseException:
            self._release()
            raise

    def _read_state(self) -> None:
        """Map the state; made anew where there is none, or where it is damaged."""
        whole = self._header.open(keep=self._sync)
        if whole and self._header.is_moved:
            # Whoever dropped the queue was killed before all of it was gone.
            self._remove_files()
            whole = False
        if not whole:
            self._header.close()
            self._header = Header(self._home)
            self._header.create(self._rebuilt(), sync=self._sync)
            self._header.open(keep=self._sync)

    def _rebuilt(self) -> State:
        """The state that the files come to; that of a new queue where there are none."""
        state = [0] * 11
        for items, tail, head in (
            (self._items, h.TAIL, h.HEAD),
            (self._dead, h.DEAD_TAIL, h.DEAD_HEAD),
        ):
            segments = items.segments()
            if not segments:
                continue
            state[tail] = segments[0] << SHIFT
            for segment in reversed(segments):
                at = segment << SHIFT
                state[head], last = items.follow(at, gaps=items is self._dead)
                if last is not None:
                    break
            log.info("%s: its state was lost and is rebuilt", self.path)
            if items is self._items and last is not None:
                state[h.PUTS] = last + 1
                state[h.TAKES] = self._first_number(state)
        if state[h.TAIL] == state[h.HEAD]:
            # No item gives the next number, and those of dead letters are in use.
            after = [number + 1 for number in self._dead_numbers(state)]
            state[h.PUTS] = state[h.TAKES] = max([state[h.PUTS], *after])
        return state

    def _first_number(self, state: State) -> int:
        """The number of the item at the tail."""
        tail, head = state[h.TAIL], state[h.HEAD]
        while tail != head:
            try:
                return self._items.read(tail, head).number
            except DamagedError:
                tail = self._items.resume(tail, head)
        return state[h.PUTS]

    def _tidy(self) -> None:
        """Begin anew where nobody else has the queue open: mend, and sweep."""
        state = self._header.read()
        state[h.FLAGS] = 0
        boot = system.boot()
        if boot == 0 or state[h.BOOT] != boot:
            # The system stopped: what had reached the disk may be ahead of the state.
            end, last = self._items.follow(state[h.HEAD])
            if last is not None and last >= state[h.PUTS]:
                state[h.HEAD], state[h.PUTS] = end, last + 1
            state[h.BOOT] = boot
        try:
            self._leases.catch_up(state)
        except errors.CorruptChestError as error:
            log.warning("%s", error)
            self._forget_leases(state)
        waiting = state[h.PUTS] - state[h.TAKES]
        state[h.UNFINISHED] = waiting + len(self._leases.table)
        self._header.write(state)
        self._sweep(state)

    def _forget_leases(self, state: State) -> None:
        """Let what was taken lately come once more."""
        segments = self._items.segments()
        if segments and segments[0] <= segment_of(state[h.TAIL]):
            state[h.TAIL] = segments[0] << SHIFT
            state[h.TAKES] = self._first_number(state)
        state[h.EPOCH] += 1
        state[h.EVENTS] = 0
        self._leases.catch_up(state)

    def _sweep(self, state: State) -> None:
        """Remove what those who were killed have left."""
        home, held = self._home, {*self._leases.table, *self._dead_numbers(state)}
        for name in list(home.names()):
            if name.startswith(VALUE):
                number = int(name[len(VALUE) :], 16)
                waits = state[h.TAKES] <= number < state[h.PUTS]
                if not waits and number not in held:
                    home.unlink(name, missing_ok=True)
            elif name.startswith(TEMPORARY) and _is_free(home, name):
                home.unlink(name, missing_ok=True)
        for segment in self._items.segments():
            passed = segment < segment_of(state[h.TAIL])
            if passed and not self._leases.is_pinned(segment):
                self._items.remove(segment)
        for segment in self._dead.segments():
            if segment < segment_of(state[h.DEAD_TAIL]):
                self._dead.remove(segment)

    def _dead_numbers(self, state: State) -> list[int]:
        """The numbers of the dead letters, which may have value files."""
        return [record.number for record in self._dead_records(state)]

    def _dead_records(self, state: State) -> list[Any]:
        """The records of the dead letters, as far as they are whole."""
        at, head, found = state[h.DEAD_TAIL], state[h.DEAD_HEAD], []
        while at != head:
            try:
                record = self._dead.read(at, head)
            except DamagedError:
                log.warning("%s: a dead letter is damaged and passed over", self.path)
                at = self._dead.resume(at + 1, head)
                continue
            found.append(record)
            at = record.after
        return found

    # -- locks -------------------------------------------------------------------------

    def _appear_again(self) -> None:
        """Tell the others of this forked child."""
        self._holder.enter()
        self._renew = False

    def _refuse_locked(self) -> NoReturn:
        msg = (
            f"{self.path} is locked by {self._home.holder()}; waited "
            f"{self._timeout} s. Pass a longer timeout, or end that process"
        )
        raise errors.LockTimeout(msg, path=self.path)

    def _publish(self, state: State) -> None:
        """Let everything that *state* says be so, for everyone (Q1)."""
        self._header.write(state)

    def _publish_removal(self, state: State) -> None:
        """`_publish` of what must not come again after a power cut."""
        self._header.write(state)
        if self._sync:
            self._header.sync()

    def _refuse(self) -> NoReturn:
        msg = f"the queue in {self.path} is closed"
        raise errors.ClosedError(msg, path=self.path)

    # -- the end -----------------------------------------------------------------------

    def close(self) -> None:
        """Release the folder; what this handle has leased comes back to the others.

        Safe to call twice. Threads that wait in `get` or `put` get `ClosedError`.
        """
        with self._mutex:
            if not self._closed:
                self._release()

    def drop(self) -> None:
        """Delete the queue and all that is in it, for everyone.

        Other handles get `DroppedError`. The folder that it lies in stays.
        """
        with self._mutex, self._door:
            self._go()
        self.close()

    def _go(self) -> None:
        """Publish that the queue is gone, and remove its files."""
        self._header.mark_moved()
        if self._sync:
            self._header.sync()
        self._remove_files()
        try:
            os.rmdir(self.path)
        except OSError:
            log.info("%s is left: files in it are not the queue's", self.path)

    def _remove_files(self) -> None:
        """Delete what we made in the folder; the state last, which says that it goes."""
        names = [name for name in self._home.names() if name.startswith(OF_QUEUE)]
        for name in sorted(names, key=lambda name: name == QUEUE_STATE):
            self._home.unlink(name, missing_ok=True)

    def _release(self) -> None:
        """Give up the descriptors. The map of the state goes with the handle."""
        lifetime.forget(self)
        self._closed = True
        self._holder.leave()
        for each in (self._items, self._dead, self._leases, self._header, self._home):
            each.close()

    def __enter__(self) -> Self:
        if self._closed:
            self._refuse()
        return self

    def __exit__(self, *exception: object) -> None:
        """`close`: what is in the queue stays in it."""
        self.close()

    _closed = True  # until there is something to close

    def __del__(self) -> None:
        if not self._closed:
            self._release()

    # -- lifetime ----------------------------------------------------------------------

    def before_fork(self) -> None:
        """Wait until no thread is in the middle of an operation."""
        self._mutex.acquire()

    def after_fork_in_parent(self) -> None:
        """Let the threads go on."""
        self._mutex.release()

    def after_fork_in_child(self) -> None:
        """Stop sharing locks and descriptors; what is leased is the parent's."""
        self._mutex, self._door = threading.Lock(), Door(self)
        if self._closed:
            return
        self._home.after_fork()
        self._holder.forget()
        self._renew = True

    def at_exit(self) -> None:
        """Give back what is leased; everything else is published already."""
        if not self._closed:
            self._release()


def _is_free(home: Folder, name: str) -> bool:
    """Whether nobody writes to this temporary file any more."""
    try:
        fd = home.open(name)
    except OSError:
        return False  # gone, or planted: not ours to remove
    try:
        return system.try_lock(fd)
    finally:
        system.close(fd)
