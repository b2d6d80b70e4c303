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

__all__ = ["Member", "forget", "register"]

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
_guard = threading.Lock()
_held: list[Member] = []
_installed = False


def register(member: Member) -> None:
    """Call *member* from now on, as long as it lives."""
    global _installed
    with _guard:
        _members[id(member)] = member
        if not _installed:
            _installed = True
            atexit.register(_at_exit)
            if hasattr(os, "register_at_fork"):
                os.register_at_fork(
                    before=_before_fork,
                    after_in_parent=_after_in_parent,
                    after_in_child=_after_in_child,
                )
            _watch_child()


def forget(member: Member) -> None:
    """Do not call *member* any more."""
    with _guard:
        _members.pop(id(member), None)


def _at_exit(_: object = None) -> None:
    for member in list(_members.values()):
        member.at_exit()


def _before_fork() -> None:
    # Always in one order, so that two forking threads cannot wait for one another.
    _guard.acquire()
    for member in sorted(_members.values(), key=id):
        member.before_fork()
        _held.append(member)


def _after_in_parent() -> None:
    while _held:
        _held.pop().after_fork_in_parent()
    _guard.release()


def _after_in_child() -> None:
    global _guard
    while _held:
        _held.pop().after_fork_in_child()
    _guard = threading.Lock()
    _watch_child(forked=True)


def _watch_child(*, forked: bool = False) -> None:
    """Have multiprocessing call `_at_exit`: its children end without ``atexit``."""
    util = sys.modules.get("multiprocessing.util")
    process = sys.modules.get("multiprocessing.process")
    if util is None or process is None:
        return
    if forked:
        # multiprocessing forgets all finalizers right after the fork, then runs these.
        util.register_after_fork(_guard, _add_finalizer)
    elif process.parent_process() is not None:
        _add_finalizer()


def _add_finalizer(_: object = None) -> None:
    util = sys.modules["multiprocessing.util"]
    util.Finalize(None, _at_exit, exitpriority=FINALIZE_FIRST)
