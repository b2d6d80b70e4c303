"""Complete writes and reads, and bytes that are on the medium when we say so.

Owns: short writes and reads, and what ``fsync`` needs on which system.
Does not own: what the bytes mean, and when they must be safe.
"""

from __future__ import annotations

import errno
import logging
import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from chest.protocols import Buffer

__all__ = [
    "POSIX",
    "Descriptor",
    "close",
    "flush_file",
    "pwrite_all",
    "read",
    "read_ahead",
    "read_all",
    "sync_directory",
    "sync_file",
    "write_all",
]

log = logging.getLogger("chest")

POSIX: bool = os.name == "posix"

IOV_MAX = 1024 if not POSIX else max(16, os.sysconf("SC_IOV_MAX"))


RESERVE_FROM = 1 << 20  # bytes; below, the extra call costs more than it gains


def write_all(
    fd: int, buffers: Sequence[Buffer], *, reserve_at: int | None = None
) -> int:
    """Write all the buffers at the descriptor's position, without joining them.

    Parameters
    ----------
    fd : int
        Open for writing.
    buffers : sequence of bytes-like
        Contiguous; of any number and size.
    reserve_at : int, optional
        The descriptor's position, where the file system can reserve room: then large
        writes get theirs first, which makes them a third quicker on ext4 and tells of a
        full disk before a byte was written.

    Returns
    -------
    int
        Bytes written: the sum of the sizes.

    Raises
    ------
    OSError
        The disk refused; an unknown part has been written.
    """
    total = 0
    for start in range(0, len(buffers), IOV_MAX):
        batch = buffers[start : start + IOV_MAX]
        size = sum(_nbytes(piece) for piece in batch)
        if reserve_at is not None and size >= RESERVE_FROM:
            os.posix_fallocate(fd, reserve_at + total, size)
        done = _write_some(fd, batch)
        if done < size:
            _write_rest(fd, batch, done)
        total += size
    return total


def _nbytes(piece: Buffer) -> int:
    """Size in bytes, also of a view whose items are wider."""
    return piece.nbytes if isinstance(piece, memoryview) else len(piece)


def _write_some(fd: int, batch: Sequence[Buffer]) -> int:
    """One system call; may write less than all."""
    if len(batch) > 1 and hasattr(os, "writev"):
        return os.writev(fd, batch)
    return os.write(fd, batch[0]) if batch else 0


def _write_rest(fd: int, batch: Sequence[Buffer], done: int) -> None:
    """Go on after a short write that ended anywhere in the batch."""
    rest = [memoryview(piece).cast("B") for piece in batch if _nbytes(piece)]
    while rest:
        while rest and done >= len(rest[0]):
            done -= len(rest.pop(0))
        if rest:
            rest[0] = rest[0][done:]
            done = _write_some(fd, rest)


def read_ahead(fd: int) -> None:
    """Ask the system to have the whole file at hand soon, where it takes such wishes."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_WILLNEED)


def pwrite_all(fd: int, data: Buffer, offset: int) -> int:
    """Write all of *data* at *offset* (bytes); the number of bytes is returned.

    Raises
    ------
    OSError
        The disk refused; an unknown part has been written.
    """
    done = os.pwrite(fd, data, offset) if POSIX else _pwrite(fd, data, offset)
    if done == len(data):
        return done
    rest = memoryview(data).cast("B")[done:]
    while rest:
        offset += done
        done = _pwrite(fd, rest, offset)
        rest = rest[done:]
    return len(data)


def _pwrite(fd: int, data: Buffer, offset: int) -> int:
    """One write; may be short."""
    if POSIX:
        return os.pwrite(fd, data, offset)
    os.lseek(fd, offset, os.SEEK_SET)
    return os.write(fd, data)


def read_all(fd: int, offset: int, size: int) -> bytes:
    """Read *size* bytes from *offset*; fewer only where the file ends.

    Raises
    ------
    OSError
        The disk refused.
    """
    data = os.pread(fd, size, offset) if POSIX else read(fd, offset, size)
    if len(data) == size or not data:
        return data
    pieces = [data]
    while data and size > len(data):
        size, offset = size - len(data), offset + len(data)
        data = read(fd, offset, size)
        pieces.append(data)
    return b"".join(pieces)


def read(fd: int, offset: int, size: int) -> bytes:
    """Read up to *size* bytes from *offset*; fewer also where a signal came between."""
    if POSIX:
        return os.pread(fd, size, offset)
    os.lseek(fd, offset, os.SEEK_SET)
    return os.read(fd, size)


def close(fd: int) -> None:
    """Release a descriptor.

    What the system says then is logged only: the descriptor is gone all the same, and
    a file that was written was asked before (see `flush_file`).
    """
    try:
        os.close(fd)
    except OSError as error:
        log.info("closing a file: %s", error)


class Descriptor(int):
    """An open descriptor, closed with the last reference to it.

    So a thread that is in the middle of a call cannot find another file, of the same
    number, in the place of a folder that was closed meanwhile.
    """

    _open = True

    def close(self) -> None:
        """Release it now. Safe to call twice."""
        if self._open:
            self._open = False
            close(self)

    __del__ = close


def flush_file(fd: int) -> None:
    """Learn what a file system that writes when a file is closed (NFS) refuses.

    Raises
    ------
    OSError
        The disk refused; an unknown part was written.
    """
    if POSIX:
        os.close(os.dup(fd))


def sync_file(fd: int) -> None:
    """Return when the file's bytes are on the medium, also on macOS.

    Raises
    ------
    OSError
        They may not be there, and trying again proves nothing.
    """
    if sys.platform == "darwin":
        import fcntl

        try:
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
            return
        except OSError as error:
            if error.errno not in (errno.ENOTSUP, errno.EINVAL, errno.ENOTTY):
                raise
    os.fsync(fd)


def sync_directory(fd: int) -> None:
    """Return when the names in the directory are on the medium.

    Raises
    ------
    OSError
        As `sync_file`.
    """
    if POSIX:
        sync_file(fd)
