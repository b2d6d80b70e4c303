"""Locks between processes.

Owns: one exclusive lock for each directory, and who holds it.
Does not own: what it guards, nor the locks between threads.
"""

from __future__ import annotations

import errno
import os
import sys
import time

from chest.system.files import POSIX

__all__ = [
    "holder",
    "lock",
    "open_directory",
    "share",
    "try_lock",
    "try_share",
    "unlock",
]

LONGEST_NAP = 0.02  # seconds between two tries for a lock


def open_directory(path: str) -> int:
    """Open a directory so that it can be locked and synced.

    On Windows, where a directory cannot be opened, a file ``.lock`` in it is opened
    (and made where it is missing).

    Parameters
    ----------
    path : str
        An existing directory.

    Returns
    -------
    int
        A descriptor that children made by ``exec`` do not inherit.

    Raises
    ------
    OSError
        There is no such directory, or no permission.
    """
    if POSIX:
        return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    return os.open(os.path.join(path, ".lock"), os.O_RDWR | os.O_CREAT)


def lock(fd: int, timeout: float | None = None) -> bool:
    """Take the exclusive lock of what *fd* has open.

    The lock belongs to the open file description: a forked child shares it, and it is
    gone when the last descriptor closes, also by ``kill -9``. Costs 1 µs when free.

    Parameters
    ----------
    fd : int
        From `open_directory` or ``os.open``.
    timeout : float, optional
        Seconds to try; ``None`` waits as long as it takes.

    Returns
    -------
    bool
        False: *timeout* went by and somebody else still holds it.

    Raises
    ------
    OSError
        The file system has no locks (``ENOLCK``, ``ENOSYS``), or a bad descriptor.
    """
    if timeout is None and POSIX:
        flock(fd, EXCLUSIVE)
        return True
    deadline = None if timeout is None else time.monotonic() + timeout
    nap = 0.0005
    while not try_lock(fd):
        left = nap if deadline is None else deadline - time.monotonic()
        if left <= 0:
            return False
        time.sleep(min(nap, left))
        nap = min(nap * 2, LONGEST_NAP)
    return True


def try_lock(fd: int) -> bool:
    """Take the exclusive lock if nobody else holds it; False otherwise.

    Raises
    ------
    OSError
        As `lock`.
    """
    return _tried(fd, EXCLUSIVE)


def share(fd: int) -> None:
    """Take a lock that others may share; waits while somebody has it alone.

    Raises
    ------
    OSError
        As `lock`.
    """
    if POSIX:
        flock(fd, SHARED)
    else:
        lock(fd)  # Windows knows no other here


def try_share(fd: int) -> bool:
    """Take a lock that others may share; False while somebody has it alone.

    Raises
    ------
    OSError
        As `lock`.
    """
    return _tried(fd, SHARED)


def _tried(fd: int, how: int) -> bool:
    try:
        flock(fd, how | AT_ONCE)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES):
            return False
        raise
    return True


if sys.platform != "win32":
    import fcntl

    EXCLUSIVE, SHARED = fcntl.LOCK_EX, fcntl.LOCK_SH
    AT_ONCE, FREE = fcntl.LOCK_NB, fcntl.LOCK_UN
    # The call itself, without a function around it: each publication makes two.
    flock = fcntl.flock

    def unlock(fd: int) -> None:
        """Give the lock back; no error when it was not held."""
        flock(fd, FREE)

else:
    SHARED, EXCLUSIVE, AT_ONCE, FREE = 1, 2, 4, 8

    def flock(fd: int, operation: int) -> None:
        """Lock the first byte, or give it back; never blocks, `lock` polls."""
        if operation == FREE:
            unlock(fd)
            return
        import msvcrt

        os.lseek(fd, 0, os.SEEK_SET)
        msvcrt.locking(fd, msvcrt.LK_NBLCK, 1)

    def unlock(fd: int) -> None:
        """Give the lock back; no error when it was not held."""
        import msvcrt

        os.lseek(fd, 0, os.SEEK_SET)
        try:
            msvcrt.locking(fd, msvcrt.LK_UNLCK, 1)
        except PermissionError:
            return  # Windows' way to say that it was not locked


def holder(fd: int) -> str:
    """Who holds the lock on what *fd* has open: ``"process 123"``, for a message.

    Reads ``/proc/locks`` where there is one; elsewhere ``"another process"``.
    """
    try:
        status = os.fstat(fd)
        with open("/proc/locks", encoding="ascii") as lines:
            for line in lines:
                words = line.split()
                if words[1] == "FLOCK" and words[5].endswith(f":{status.st_ino}"):
                    return f"process {words[4]}"
    except (OSError, IndexError):
        pass  # only a message is poorer for it
    return "another process"
