"""Maps of files that hold no descriptor.

Owns: how a file comes into memory without being read, and at what address.
Does not own: which files are mapped; see there what must never happen to them.
"""

from __future__ import annotations

import functools
import mmap
import os
import sys
from typing import TYPE_CHECKING, Any

from chest.system.files import POSIX

if TYPE_CHECKING:
    from collections.abc import Callable

    from chest.protocols import Buffer

__all__ = [
    "FileMap",
    "address",
    "map_file",
    "map_shared",
    "map_shared_words",
    "untouched",
]

HUGE = 2 << 20  # bytes; a reservation of whole huge pages is given an aligned address,
ALIGN_FROM = 16 << 20  # and then 32 MiB take 16 page faults to read instead of 500
PAGES, WORD = "/proc/self/pagemap", 8  # bytes for each page
HERE, OF_FILE = 3 << 62, 1 << 61  # the page has memory or swap; it shows a file


class FileMap(mmap.mmap):
    """A map of a file that nobody changes; told by its type from others' maps."""

    __slots__ = ()


def map_file(
    fd: int, size: int, *, start: int = 0, writable: bool = False
) -> memoryview:
    """Map *size* bytes of a file into memory, from *start* on.

    The descriptor may be closed afterwards and none is held: thousands of maps need
    none. The map lives as long as the view or any slice of it, and is an
    `FileMap`, found as ``view.obj``. Costs about 10 µs, whatever the size.

    Parameters
    ----------
    fd : int
        Open for reading.
    size : int
        Bytes, at most those of the file from there on; 0 gives an empty view.
    start : int
        A multiple of `mmap.ALLOCATIONGRANULARITY`.
    writable : bool
        Private pages: what is written into them stays in this process, the file is
        untouched. Otherwise the view is read-only.

    Returns
    -------
    memoryview
        Of bytes. A file that is cut short while it is mapped kills the process at the
        next touch: mapped files are unlinked or replaced, never changed.

    Raises
    ------
    OSError
        No address space, too many maps, or the file cannot be mapped.
    ValueError
        The file ends before them.
    """
    if size == 0:
        return memoryview(bytearray()) if writable else memoryview(b"")
    access = mmap.ACCESS_COPY if writable else mmap.ACCESS_READ
    return memoryview(_map(fd, size, access, start))[:size]


def map_shared(fd: int, size: int, *, start: int = 0) -> FileMap:
    """Map *size* bytes of a file, from *start* on, to be written to.

    What is written into the map is in the file, for all who read or map it, and stays
    there when this process is killed.

    Parameters
    ----------
    fd : int
        Open for reading and writing; may be closed afterwards.
    size : int
        Bytes, at most those of the file from there on. They should have their room on
        the disk (``os.posix_fallocate``): a page that finds none kills the process.
    start : int
        A multiple of `mmap.ALLOCATIONGRANULARITY`.

    Raises
    ------
    OSError, ValueError
        As `map_file`.
    """
    return _map(fd, size, mmap.ACCESS_WRITE, start)


def map_shared_words(fd: int, size: int, *, writable: bool = True) -> memoryview:
    """Map the first *size* bytes of a file as words that all processes share.

    Parameters
    ----------
    fd : int
        Open for reading, and for writing when *writable*; may be closed afterwards.
    size : int
        Bytes, a multiple of 8, at most the size of the file.
    writable : bool
        The words may be changed; all processes see the change.

    Returns
    -------
    memoryview
        Of unsigned 64-bit words; an aligned word is read and written whole.

    Raises
    ------
    OSError, ValueError
        As `map_file`.
    """
    access = mmap.ACCESS_WRITE if writable else mmap.ACCESS_READ
    return memoryview(_map(fd, size, access))[:size].cast("Q")


def address(buffer: Buffer | memoryview) -> int:
    """Where in memory a contiguous buffer begins. Costs 1 µs.

    Examples
    --------
    >>> data = memoryview(bytes(10))
    >>> address(data[3:]) - address(data)
    3
    """
    import ctypes

    # A Py_buffer; its first field is the address. It is filled and released here.
    record = ctypes.create_string_buffer(256)
    get, release = _buffer_calls()
    get(buffer, record, 0)
    try:
        return ctypes.c_size_t.from_buffer(record).value
    finally:
        release(record)


def untouched(address: int, size: int) -> bool:
    """Whether no page of a part of a private map was written to.

    Asks the system which pages are still the file's; reads none of them. Costs 10 µs
    and 2 µs per MiB; False where the system does not tell.

    Parameters
    ----------
    address, size : int
        Of bytes in a map that `map_file` made with *writable*.

    Examples
    --------
    >>> untouched(address(bytearray(10)), 10)  # the process's own memory is no file's
    False
    """
    import numpy as np

    first = address // mmap.PAGESIZE
    count = (address + size - 1) // mmap.PAGESIZE - first + 1
    words = np.empty(count, np.uint64)
    try:
        with open(PAGES, "rb", buffering=0) as file:
            file.seek(first * WORD)
            if file.readinto(words.data) != count * WORD:
                return False
    except OSError:
        return False
    # A page that was written to is here, or swapped out, and no file's any more.
    return not bool(np.any((words & HERE != 0) & (words & OF_FILE == 0)))


@functools.cache
def _buffer_calls() -> tuple[Callable[..., Any], Callable[..., Any]]:
    """``PyObject_GetBuffer`` and ``PyBuffer_Release``."""
    import ctypes

    get = ctypes.PYFUNCTYPE(
        ctypes.c_int, ctypes.py_object, ctypes.c_void_p, ctypes.c_int
    )(("PyObject_GetBuffer", ctypes.pythonapi))
    release = ctypes.PYFUNCTYPE(None, ctypes.c_void_p)(
        ("PyBuffer_Release", ctypes.pythonapi)
    )
    return get, release


if sys.version_info >= (3, 13):

    def _map(fd: int, size: int, access: int, start: int = 0) -> FileMap:
        """Map without keeping a descriptor."""
        if POSIX:
            return FileMap(fd, size, access=access, offset=start, trackfd=False)
        return FileMap(fd, size, access=access, offset=start)

else:

    def _map(fd: int, size: int, access: int, start: int = 0) -> FileMap:
        """Map without keeping a descriptor: the file goes over an anonymous map."""
        if not POSIX:
            return FileMap(fd, size, access=access, offset=start)
        if os.fstat(fd).st_size < start + size:
            message = f"the file is shorter than the {size} bytes to map"
            raise ValueError(message)
        protection, flags = mmap.PROT_READ, mmap.MAP_SHARED
        if access != mmap.ACCESS_READ:
            protection |= mmap.PROT_WRITE
        if access == mmap.ACCESS_COPY:
            flags = mmap.MAP_PRIVATE
        reserved = size if size < ALIGN_FROM else -(-size // HUGE) * HUGE
        place = FileMap(-1, reserved, mmap.MAP_PRIVATE | mmap.MAP_ANON, protection)
        where = address(memoryview(place))
        _map_over(where, size, protection, flags, (fd, start))
        return place

    MAP_FIXED = 0x10  # the same on Linux, macOS and the BSDs

    def _map_over(
        at: int, size: int, protection: int, flags: int, what: tuple[int, int]
    ) -> None:
        """Replace the pages of a map by those of a file; the owner unmaps them."""
        import ctypes

        if _mmap_call()(at, size, protection, flags | MAP_FIXED, *what) != at:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))

    @functools.cache
    def _mmap_call() -> Callable[..., Any]:
        """The C library's ``mmap``."""
        import ctypes

        call = ctypes.CDLL(None, use_errno=True).mmap
        call.restype = ctypes.c_size_t
        call.argtypes = [ctypes.c_size_t, ctypes.c_size_t, *[ctypes.c_int] * 3]
        call.argtypes = [*call.argtypes, ctypes.c_long]
        return call
