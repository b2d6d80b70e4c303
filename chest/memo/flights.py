"""Single flight: one computation of a missing result, in all threads and processes.

Owns: who computes, how the others wait, and that a crash hands the right on. Does not
own: what is computed, or where it is kept.

Between threads a future says when the one that computes has done. Between processes it
is the lock of a temporary file, of which the system takes care when its holder dies: the
next one gets it. The sweep takes files that nobody holds.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import logging
import os
import threading
from collections.abc import AsyncIterator, Iterator
from contextvars import ContextVar

from chest import errors, system
from chest.folder import TEMPORARY, Folder

__all__ = ["alone", "alone_async", "among_threads"]

log = logging.getLogger("chest")

LONGEST_NAP = 0.05  # seconds between two looks of a coroutine at another process

Name = tuple[str, str]  # folder and fingerprint

_guard = threading.Lock()
_flights: dict[Name, concurrent.futures.Future[None]] = {}
_held: set[int] = set()  # descriptors of the locks, had or waited for
_inherited: frozenset[Name] = frozenset()  # computed by the process we were forked from
_mine: ContextVar[frozenset[Name]] = ContextVar("mine", default=frozenset())


@contextlib.contextmanager
def alone(home: Folder, fingerprint: str) -> Iterator[None]:
    """Be the only one in the block for this fingerprint and folder; wait for others.

    Whoever comes in looks first whether the result is there by now. Whoever is in it
    already, by recursion, goes on.
    """
    name = home.path, fingerprint
    if _is_inside(name):
        yield
        return
    while (other := _enter(name)) is not None:
        other.result()
    try:
        fd = _open(home, fingerprint)
        while fd is not None and not _take(fd, block=True):
            fd = _open(home, fingerprint)
        with _flying(home, name, fd):
            yield
    finally:
        _leave(name)


@contextlib.contextmanager
def among_threads(home: Folder, fingerprint: str) -> Iterator[None]:
    """`alone` in this process only, for what other processes compute under its lock."""
    name = home.path, fingerprint
    while (other := _enter(name)) is not None:
        other.result()
    try:
        yield
    finally:
        _leave(name)


@contextlib.asynccontextmanager
async def alone_async(home: Folder, fingerprint: str) -> AsyncIterator[None]:
    """`alone` for coroutines: other tasks run while it waits."""
    import asyncio

    name = home.path, fingerprint
    if _is_inside(name):
        yield
        return
    while (other := _enter(name)) is not None:
        # A waiter that is cancelled must not cancel what the others wait for.
        await asyncio.shield(asyncio.wrap_future(other))
    try:
        fd, nap = _open(home, fingerprint), LONGEST_NAP / 64
        while fd is not None and not _take(fd, block=False):
            await asyncio.sleep(nap)
            fd, nap = _open(home, fingerprint), min(2 * nap, LONGEST_NAP)
        with _flying(home, name, fd):
            yield
    finally:
        _leave(name)


def _is_inside(name: Name) -> bool:
    return name in _mine.get() or name in _inherited


def _enter(name: Name) -> concurrent.futures.Future[None] | None:
    """Become the one of this process; or what to wait for."""
    with _guard:
        other = _flights.get(name)
        if other is None:
            _flights[name] = concurrent.futures.Future()
        return other


def _leave(name: Name) -> None:
    with _guard:
        mine = _flights.pop(name, None)  # a child that was forked inside has none
    if mine is not None:
        mine.set_result(None)


def _open(home: Folder, fingerprint: str) -> int | None:
    """The file whose lock is the right to compute; None where there can be none."""
    try:
        fd = home.open(_file(fingerprint), os.O_RDWR | os.O_CREAT)
    except OSError as error:
        # A full disk, say. It is better to compute twice than not at all.
        log.info("%s: no lock for a computation: %s", home.path, error)
        return None
    _held.add(fd)  # also while it waits: a child that is forked then must close it
    return fd


def _take(fd: int, *, block: bool) -> bool:
    """Get the lock; False, and closed, when the file is held or was removed."""
    try:
        got = system.lock(fd) if block else system.try_lock(fd)
        if got and os.fstat(fd).st_nlink:
            return True
    except BaseException:
        _close(fd)
        raise
    _close(fd)
    return False


def _close(fd: int) -> None:
    _held.discard(fd)
    system.close(fd)


@contextlib.contextmanager
def _flying(home: Folder, name: Name, fd: int | None) -> Iterator[None]:
    """Hold the lock for the block, then remove its file."""
    inside = _mine.set(_mine.get() | {name})
    try:
        yield
    finally:
        _mine.reset(inside)
        if fd is not None and fd in _held:  # not in a child that was forked inside
            _held.discard(fd)
            with contextlib.suppress(
                OSError, errors.ChestError
            ):  # the folder was dropped
                home.unlink(_file(name[1]), missing_ok=True)
            # Children that were made meanwhile may have the descriptor, too.
            system.unlock(fd)
            system.close(fd)


def _file(fingerprint: str) -> str:
    return f"{TEMPORARY}memo-{fingerprint}"


def _after_fork() -> None:
    """In a child: others' computations are the parent's, and so are their locks."""
    global _guard, _inherited
    _guard = threading.Lock()
    _inherited = _inherited | frozenset(_flights)
    _flights.clear()
    for fd in _held:
        system.close(fd)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
