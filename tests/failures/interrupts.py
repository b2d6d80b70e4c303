"""Ctrl-C at a chosen line of chest, as the signal's handler would raise it there.

Owns: where it is raised. Does not own: what must hold then.
"""

from __future__ import annotations

import contextlib
import gc
import linecache
import os
import sys
from collections.abc import Collection, Iterator
from types import FrameType
from typing import Any

import chest

PACKAGE = os.path.dirname(chest.__file__)
# Python looks for signals when a function is called, a loop goes on, or a function of C
# has returned. So it sees none between a lock that was taken and the block that gives it
# back. In the very moment in which a function of ours begins to give it back it may: that
# cannot be helped.
UNSEEN = (
    "try:",
    "with self.lock",
    "with self._lock",
    "with self._mutex",
    "with self._leased(item)",
    "self._mutex,",
    "self._door as state,",
    "locks.flock(self._handle._home.lock_fd, locks.FREE)",
    'with open("/proc/self/mountinfo"',
    "with self._publishing(",
    "with (",
    "self._ledger._alone = self._alone",
    "self._alone = False",
    "manifest, depth = self._manifest, 0",
    "self._end(lock)",
    "self._ledger._end(self._lock)",
    "self._unlock()",
    "lock.release()",
)


class Lines:
    """Counts the lines of chest that are run, and raises KeyboardInterrupt at one.

    Parameters
    ----------
    at : int
        The number of that line, from 1 on; 0: none.
    files : collection of str
        Names of the only modules that count; empty: all do.
    passed : collection of str
        Names of functions that do not count.
    """

    def __init__(
        self, at: int, files: Collection[str] = (), passed: Collection[str] = ()
    ) -> None:
        self.at, self.count = at, 0
        self.where = ""
        self._files, self._passed = files, passed

    def __call__(self, frame: FrameType, event: str, _: Any) -> Any:
        """The trace function of a call: whether its lines count."""
        code = frame.f_code
        name = code.co_filename
        if not name.startswith(PACKAGE) or code.co_name in (*self._passed, "__del__"):
            return None
        if self._files and os.path.basename(name) not in self._files:
            return None
        return self._line

    def _line(self, frame: FrameType, event: str, _: Any) -> Any:
        if event != "line":
            return self._line
        code = frame.f_code
        text = linecache.getline(code.co_filename, frame.f_lineno).strip()
        if text.startswith(UNSEEN):
            return self._line
        self.count += 1
        if self.count == self.at:
            name = os.path.basename(code.co_filename)
            self.where = f"{name}:{frame.f_lineno} {code.co_name}"
            raise KeyboardInterrupt(self.where)
        return self._line


@contextlib.contextmanager
def interrupted(lines: Lines) -> Iterator[None]:
    """Run a block with Ctrl-C at one of its lines, which ends the block."""
    before = sys.gettrace()
    sys.settrace(lines)
    try:
        yield
    except KeyboardInterrupt:
        assert lines.where
    finally:
        sys.settrace(before)


def close_left(folder: str | os.PathLike[str]) -> None:
    """Close what is open below *folder*, which nobody uses any more.

    A descriptor that the system has just given belongs to nobody for a line or two. What
    belongs to garbage is not closed here: its owner would close the next one's.
    """
    if _left(folder):
        gc.collect()
    for fd in _left(folder):
        os.close(fd)


def _left(folder: str | os.PathLike[str]) -> list[int]:
    """The descriptors that are open below *folder*."""
    found = []
    for fd in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # the listing's own is closed already
            if os.readlink(f"/proc/self/fd/{fd}").startswith(os.fspath(folder)):
                found.append(int(fd))
    return found
