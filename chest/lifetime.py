"""The ends of a process, and its forks.

Owns: which chests are open in this process, and calling them when it forks, exits, or
ends as a child of multiprocessing. Does not own: what a chest does then.
"""

from __future__ import annotations

import atexit
import os
import sys
import threading
import weakref
from typing import Protocol

__all__ = [
    "Member",
    "forget",
    "is_ending",
    "postpone",
    "postponed",
    "register",
    "work_off",
]

FINALIZE_FIRST = 100  # multiprocessing runs finalizers of high priority first


class Member(Protocol):
    """What is called."""

    def before_fork(self) -> None:
        """Stop all writing threads of this process at a safe point."""

    def after_fork_in_parent(self) -> None:
        """Let them go on."""

    def after_fork_in_child(self) -> None:
        """Become independent of the parent."""

    def at_exit(self) -> None:
        """Publish what must not be lost. Must not raise."""


# By id: a mapping that compares by its items has no hash.
_members: weakref.WeakValueDictionary[int, Member] = weakref.WeakValueDictionary()
# Reentrant: collecting garbage may close a chest in the middle of anything.
_guard = threading.RLock()
_held: list[Member] = []
postponed: list[Member] = []  # what `work_off` has to do
_installed = False
_ending = False


def register(member: Member) -> None:
    """Call *member* from now on, as long as it lives."""
    global _installed
    with _guard:
        _members[id(member)] = member
        if not _installed:
            _installed = True
            atexit.register(_at_end)
            if hasattr(os, "register_at_fork"):
                os.register_at_fork(
                    before=_before_fork,
                    after_in_parent=_after_in_parent,
                    after_in_child=_after_in_child,
                )
            _watch_child()


def postpone(member: Member) -> None:
    """Call *member*'s `at_exit` when this process next gives a folder's lock back."""
    postponed.append(member)


def work_off() -> None:
    """Call those that were postponed."""
    while postponed:
        try:
            member = postponed.pop()
        except IndexError:
            return  # another thread was quicker
        member.at_exit()


def forget(member: Member) -> None:
    """Do not call *member* any more."""
    with _guard:
        _members.pop(id(member), None)


def is_ending() -> bool:
    """The interpreter is at its end: no thread can be had any more, nor a pool's."""
    return _ending


def _living() -> list[Member]:
    """The open chests; safe when one is collected meanwhile."""
    return [member for ref in _members.valuerefs() if (member := ref()) is not None]


def _at_end() -> None:
    global _ending
    _ending = True
    _at_exit()


def _at_exit(_: object = None) -> None:
    for member in _living():
        member.at_exit()


def _before_fork() -> None:
    # The members' locks come first: who holds one may wait for the guard, in `forget`.
    # Always in one order, so that two forking threads cannot wait for one another.
    for member in sorted(_living(), key=id):
        member.before_fork()
        _held.append(member)
    _guard.acquire()


def _after_in_parent() -> None:
    _guard.release()
    while _held:
        _held.pop().after_fork_in_parent()


def _after_in_child() -> None:
    global _guard
    _guard = threading.RLock()
    _held.clear()
    for member in _living():
        member.after_fork_in_child()
    _watch_child()


def _watch_child() -> None:
    """Have multiprocessing call `_at_exit`: its children end without ``atexit``."""
    util = sys.modules.get("multiprocessing.util")
    process = sys.modules.get("multiprocessing.process")
    if util is None or process is None:
        return
    # A child forgets all finalizers when it begins, then runs these. A chest that is an
    # argument of the child's function is made before that.
    util.register_after_fork(_guard, _add_finalizer)
    if process.parent_process() is not None:
        _add_finalizer()


def _add_finalizer(_: object = None) -> None:
    util = sys.modules["multiprocessing.util"]
    util.Finalize(None, _at_exit, exitpriority=FINALIZE_FIRST)
