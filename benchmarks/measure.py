"""Clocks and memory readings, and a fair start for what is measured.

Owns: the timer, the reading of this process's real memory, priming.
Does not own: what is measured (`benchmarks.workloads`) or in which order
(`benchmarks.runner`).
"""

from __future__ import annotations

import gc
import mmap
import os
import time
from pathlib import Path
from typing import Self

__all__ = [
    "MB",
    "MiB",
    "Timer",
    "peak_memory",
    "prime",
    "prime_files",
    "real_memory",
    "reset_peak",
]

MiB = 1 << 20
MB = 1_000_000
CHUNK = 32 * MiB  # bytes in one write, as the workloads do
STATUS = Path("/proc/self/status")
CLEAR_REFS = Path("/proc/self/clear_refs")
RESET_PEAK = "5"  # proc(5): sets the peak resident size to the present one


class Timer:
    """Wall time of a ``with`` block.

    Examples
    --------
    >>> with Timer() as timer:
    ...     pass
    >>> timer.seconds < 1
    True
    """

    seconds: float

    def __enter__(self) -> Self:
        self._start = time.perf_counter()
        return self

    def __exit__(self, *exc: object) -> None:
        self.seconds = time.perf_counter() - self._start

    def per(self, count: int, unit: str) -> float:
        """Time for each of *count* operations in *unit*: s, ms, µs or ns."""
        scale = {"s": 1, "ms": 1e3, "µs": 1e6, "ns": 1e9}[unit]
        return self.seconds * scale / count


def prime(nbytes: int) -> None:
    """Touch and free *nbytes* of memory, so that the next to allocate finds it ready.

    A virtual machine gives memory that lies free for a second or two back to its host;
    the first to touch it again would pay for everybody. Never more than half of what
    is free.
    """
    gc.collect()
    size = max(min(nbytes, _free() // 2), mmap.PAGESIZE)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    with mmap.mmap(-1, size, flags=flags) as block:
        for page in range(0, size, mmap.PAGESIZE):
            block[page] = 1


def prime_files(folder: Path, nbytes: int) -> None:
    """Write and unlink *nbytes* in *folder*, so that the next writer finds pages ready.

    What `prime` frees does not serve files: of twelve writers after it, four were still
    five times too slow; after this, of twelve none.
    """
    gc.collect()
    name = folder / "prime"
    with open(name, "xb", buffering=0) as file:
        block = bytes(min(nbytes, CHUNK))
        for _ in range(min(nbytes, _free() // 2) // len(block)):
            file.write(block)
    name.unlink()


def _free() -> int:
    """Memory that is free now [bytes]."""
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _status(*fields: str) -> int:
    """Sum of *fields* of /proc/self/status [bytes]."""
    total = 0
    for line in STATUS.read_text().splitlines():
        name, _, rest = line.partition(":")
        if name in fields:
            total += int(rest.split()[0]) * 1024
    return total


def real_memory() -> int:
    """Anonymous and mapped memory of this process that is resident now [bytes]."""
    return _status("RssAnon", "RssFile", "RssShmem")


def reset_peak() -> None:
    """Forget the highest resident size, so that `peak_memory` starts anew."""
    CLEAR_REFS.write_text(RESET_PEAK)


def peak_memory() -> int:
    """Highest resident size since `reset_peak` [bytes]."""
    return _status("VmHWM")
