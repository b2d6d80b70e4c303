"""A seam between chest and the system: count its calls, fail or die at one of them.

Owns: which calls count, and what happens at the n-th. Does not own: what must hold then.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chest import manifest
from chest.system import locks

WRITES = frozenset(
    [
        "open",
        "close",
        "write",
        "writev",
        "pwrite",
        "rename",
        "unlink",
        "link",
        "mkdir",
        "makedirs",
        "rmdir",
        "ftruncate",
        "posix_fallocate",
        "fsync",
        "utime",
    ]
)
READS = frozenset(["fstat", "stat", "lseek", "pread", "read", "scandir"])
DIED = 77  # exit status of a child that died where it was told to
PATIENCE = 30  # seconds until a child that hangs is ended; others may load the machine

Act = Callable[[int, str, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


class System:
    """Stands for the module ``os``, and passes each counted call to *act*."""

    def __init__(self, act: Act, names: frozenset[str]) -> None:
        self.act = act
        self.names = names
        self.count = 0

    def __getattr__(self, name: str) -> Any:
        real = getattr(os, name)
        return self.wrap(name, real) if name in self.names else real

    def wrap(self, name: str, real: Callable[..., Any]) -> Callable[..., Any]:
        """*real*, counted."""

        def call(*args: Any, **kwargs: Any) -> Any:
            self.count += 1
            try:
                return self.act(self.count, name, real, args, kwargs)
            finally:
                # A folder is open as long as a frame of a traceback refers to it.
                del args, kwargs

        return call


@contextlib.contextmanager
def acting(act: Act, names: frozenset[str]) -> Iterator[System]:
    """Route the calls *names* of chest's modules, and its locks, through *act*.

    Without the reads among *names* (whoever fails them, fails alone) the shared word is
    a call as well.
    """
    system = System(act, names)
    with pytest.MonkeyPatch.context() as patch:
        for name, module in list(sys.modules.items()):
            if name.startswith("chest.") and getattr(module, "os", None) is os:
                patch.setattr(module, "os", system)
        taken = system.wrap("flock", locks.flock)
        given = locks.flock

        def flock(fd: int, operation: int) -> None:
            """A lock that is given back is no call: nothing depends on it."""
            (given if operation == locks.FREE else taken)(fd, operation)

        patch.setattr(locks, "flock", flock)
        # The shared word changes what others see without a call to the system.
        if not names & READS:
            word = system.wrap("word", manifest.Manifest._set_word)
            patch.setattr(manifest.Manifest, "_set_word", lambda *args: word(*args))
        yield system


def failing(number: int, first: int, *, forever: bool) -> Act:
    """Raise OSError(*number*) at the call *first*, and at all later ones if *forever*."""

    def act(
        count: int,
        name: str,
        real: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        if count == first or (forever and count > first):
            if name == "close":
                real(*args)  # a close that fails has closed nevertheless
            del args, kwargs  # as in `System.wrap`
            raise OSError(number, os.strerror(number))
        return real(*args, **kwargs)

    return act


def dying(at: int, *, torn: bool) -> Act:
    """End the process before the call *at*; a write is done by half first if *torn*."""

    def act(
        count: int,
        name: str,
        real: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
    ) -> Any:
        if count == at:
            if torn and name in ("write", "pwrite"):
                half = memoryview(args[1]).cast("B")
                real(args[0], half[: len(half) // 2], *args[2:])
            elif torn and name == "writev":
                joined = b"".join(bytes(memoryview(part).cast("B")) for part in args[1])
                os.write(args[0], joined[: len(joined) // 2])
            os._exit(DIED)
        return real(*args, **kwargs)

    return act


def _give_up(*_: object) -> None:
    raise TimeoutError("the child hangs")


def in_child(work: Callable[[], None], log: Path) -> int:
    """Run *work* in a forked child; its exit status. What it raises is in *log*."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.signal(signal.SIGALRM, _give_up)
            signal.alarm(PATIENCE)
            work()
            status = 0
        except BaseException:
            log.write_text(traceback.format_exc())
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
