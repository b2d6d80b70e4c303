"""Which hosts use a folder on a network file system: one at a time.

Owns: how a host is told from another, and the note of the one that uses a folder.
Does not own: which folders have such a note.
"""

from __future__ import annotations

import os
import platform

from chest.system import files, locks, places

__all__ = ["claim", "this_host"]

LONGEST_NOTE = 1000  # bytes


def this_host() -> str:
    """Name and identity of this host: another one after each start of the machine."""
    import uuid

    return f"{platform.node()} {places.boot() or uuid.getnode():x}"


def claim(fd: int) -> str:
    """Use a folder from this host as long as *fd* is open, unless another host does.

    Parameters
    ----------
    fd : int
        The folder's note, open for reading and writing. Only one process may be in here
        at a time.

    Returns
    -------
    str
        The name of the other host; empty when there is none.

    Raises
    ------
    OSError
        The file system has no locks.

    Notes
    -----
    Each process holds a shared lock of the note, which the file system gives up when the
    process ends; so a note of a host without processes is written anew.
    """
    here = this_host()
    locks.share(fd)
    noted = files.read_all(fd, 0, LONGEST_NOTE).decode("utf-8", "replace")
    if noted == here:
        return ""
    if not locks.try_lock(fd):
        return noted.partition(" ")[0] or "unknown"
    os.ftruncate(fd, 0)
    files.pwrite_all(fd, here.encode(), 0)
    locks.share(fd)
    return ""
