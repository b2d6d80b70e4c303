"""A helper thread, to do two things at once inside one call.

Owns: the few threads that are kept for it, and dropping them in a forked child.
Does not own: what is done in them.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, ParamSpec, TypeVar

from chest.system.files import POSIX

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["run_beside"]

P = ParamSpec("P")
T = TypeVar("T")

MOST_IDLE = 4  # helper threads kept for the next call
PATIENCE = 0.5  # seconds a helper waits for it


class _Task:
    """A call under way in a helper thread."""

    __slots__ = ("call", "done", "error", "result")

    def __init__(self, call: Callable[[], Any]) -> None:
        self.call: Callable[[], Any] | None = call
        self.error: BaseException | None = None
        self.result: Any = None
        self.done = threading.Lock()
        self.done.acquire()

    def run(self) -> None:
        """Do it, and let the waiting thread go on."""
        call, self.call = self.call, None
        try:
            if call is not None:
                self.result = call()
        except BaseException as error:  # noqa: BLE001 - raised where it is waited for
            self.error = error
        finally:
            self.done.release()

    def wait(self) -> Any:
        """Wait for the end; the result or the exception of the call."""
        self.done.acquire()
        self.done.release()
        if self.error is not None:
            raise self.error
        return self.result


_idle: list[SimpleQueue[_Task]] = []
if POSIX:
    # Threads do not survive a fork: a queue kept would wait for a reader for ever.
    os.register_at_fork(after_in_child=_idle.clear)


def _help(tasks: SimpleQueue[_Task]) -> None:
    """A helper thread's life: run tasks until none came for a while."""
    while True:
        try:
            task = tasks.get(timeout=PATIENCE)
        except Empty:
            try:
                _idle.remove(tasks)
            except ValueError:
                continue  # somebody has just chosen this thread: the task is coming
            return
        task.run()
        del task  # and with it the result, which may be large
        if len(_idle) >= MOST_IDLE:
            return
        _idle.append(tasks)


def run_beside(
    fn: Callable[P, T], *args: P.args, **kwargs: P.kwargs
) -> Callable[[], T]:
    """Start ``fn(*args)`` in a helper thread, while the caller does something else.

    Worth it for calls that release the interpreter's lock for 100 µs or more; handing
    over costs about 20 µs. Where no thread can be had (the interpreter is shutting
    down), *fn* runs before this returns.

    Returns
    -------
    callable
        Waits for the end, and returns what *fn* returned or raises what it raised.
        Always call it: it is the only way to learn of an exception.

    Examples
    --------
    >>> wait = run_beside(sum, [1, 2, 3])
    >>> wait()
    6
    """
    task = _Task(functools.partial(fn, *args, **kwargs))
    if sys.is_finalizing():
        task.run()
        return task.wait
    try:
        tasks = _idle.pop()
    except IndexError:
        tasks = SimpleQueue()
        try:
            threading.Thread(
                target=_help, args=(tasks,), name="chest-helper", daemon=True
            ).start()
        except RuntimeError:
            task.run()
            return task.wait
    tasks.put(task)
    return task.wait
