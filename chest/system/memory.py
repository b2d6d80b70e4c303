"""How much memory there is, and how much of it this process uses.

Owns: asking the system, its control groups and its C library.
Does not own: the budget.
"""

from __future__ import annotations

import functools
import itertools
import os
import sys
from typing import TYPE_CHECKING

from chest.system.files import POSIX

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["give_back_memory", "memory_limit", "real_memory"]


def real_memory() -> tuple[int, int]:
    """Bytes of physical memory this process uses: its own, and of mapped files.

    Mapped files' clean pages are given up by the system whenever it needs room; the
    first number is the one that a budget must hold. Costs about 40 µs on Linux.

    Returns
    -------
    anonymous, mapped : int
        Where the system does not tell them apart, all is anonymous.

    Examples
    --------
    >>> anonymous, mapped = real_memory()
    >>> anonymous > 0
    True
    """
    try:
        with open("/proc/self/status", "rb") as file:
            text = file.read()
        return _kilobytes(text, b"RssAnon:"), _kilobytes(text, b"RssFile:")
    except (OSError, ValueError):
        return _resident(), 0


def _kilobytes(text: bytes, name: bytes) -> int:
    """The bytes that a line of ``/proc/self/status`` states in kB."""
    return int(text[text.index(name) + len(name) :].split(None, 1)[0]) * 1024


def _resident() -> int:
    """Resident bytes by psutil, else the peak that the system has noted, else 0."""
    try:
        import psutil

        return int(psutil.Process().memory_info().rss)
    except ImportError:
        if sys.platform == "win32":
            return 0
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def memory_limit() -> int:
    """Bytes of memory this process may use at most.

    The least of the machine's memory, the limits of the control groups it is in
    (containers, batch systems) and ``ulimit -v``.

    Examples
    --------
    >>> memory_limit() > 0
    True
    """
    return min([_physical(), *_cgroup_limits(), *_address_space()])


def _physical() -> int:
    """Memory of the machine; a guess of 1 GiB where nobody tells."""
    if POSIX:
        try:
            return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
        except (OSError, ValueError):
            return 1 << 30
    try:
        import psutil

        return int(psutil.virtual_memory().total)
    except ImportError:
        return 1 << 30


def _address_space() -> list[int]:
    """``ulimit -v``, if one is set."""
    if sys.platform == "win32":
        return []
    import resource

    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    return [] if soft == resource.RLIM_INFINITY else [soft]


def _cgroup_limits(
    membership: str = "/proc/self/cgroup", root: str = "/sys/fs/cgroup"
) -> list[int]:
    """The limits of all control groups this process is in, versions 1 and 2."""
    try:
        with open(membership, encoding="utf-8", errors="replace") as file:
            lines = [line.rstrip("\n").split(":", 2) for line in file]
    except OSError:
        return []
    limits = []
    for number, controllers, group in (line for line in lines if len(line) == 3):
        if number == "0" and not controllers:
            places = [(root, "memory.max"), (f"{root}/unified", "memory.max")]
        elif "memory" in controllers.split(","):
            places = [(f"{root}/memory", "memory.limit_in_bytes")]
        else:
            continue
        for place, name in places:
            parts = [part for part in group.split("/") if part not in ("", "..")]
            # A limit binds all groups below it. Inside a container the mount shows
            # the group itself as its root, so the root counts as well.
            for path in itertools.accumulate(parts, os.path.join, initial=place):
                limits += _limit(os.path.join(path, name))
    return limits


def _limit(path: str) -> list[int]:
    """The number in a control group's file; none when unlimited or not there."""
    try:
        with open(path, encoding="ascii") as file:
            return [int(file.read())]
    except (OSError, ValueError):
        return []


def give_back_memory() -> None:
    """Return freed memory to the system where the C library keeps it (glibc)."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@functools.cache
def _malloc_trim() -> Callable[[int], object] | None:
    """The C library's ``malloc_trim``, if it has one."""
    if not POSIX:
        return None
    import ctypes

    return getattr(ctypes.CDLL(None), "malloc_trim", None)
