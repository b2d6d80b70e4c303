"""The process of a dask worker, which has less memory than it would take.

Owns: that memory which nobody uses goes back to the system, and that the worker goes on
then. Does not own: what is in use, which is the chest's to spill (`workers`).
"""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from chest import system

if TYPE_CHECKING:
    from distributed.worker import Worker
    from distributed.worker_memory import WorkerMemoryManager

__all__ = ["give_back_memory", "limit_of", "watch"]

NAME = "chest-relief"  # of what the worker does now and then
INTERVAL = 1000  # milliseconds
SENDERS = "distributed.p2p.comm.concurrency"
SENDERS_BY_DEFAULT = 10
POOL = "ARROW_DEFAULT_MEMORY_POOL"  # by which users tell Arrow whom to ask for memory


def limit_of(manager: WorkerMemoryManager) -> float:
    """Bytes of the process beyond which distributed has values spilled."""
    if not manager.memory_limit or manager.memory_spill_fraction is False:
        return float("inf")
    limit: float = manager.memory_limit * manager.memory_spill_fraction
    return limit


def give_back_memory() -> None:
    """Have the C library and Arrow return what they keep for later."""
    system.give_back_memory()
    arrow = sys.modules.get("pyarrow")
    if arrow is not None:
        arrow.default_memory_pool().release_unused()


def watch(worker: Worker) -> None:
    """See to it that memory which nobody uses does not pause the worker for ever.

    A worker that is paused runs no task, and what allocators keep is given back by the
    next one that asks them for more: all that distributed does about it is to wait.
    """
    limit = limit_of(worker.memory_manager)
    if limit == float("inf") or NAME in worker.periodic_callbacks:
        return
    from distributed.core import Status
    from tornado.ioloop import PeriodicCallback

    if worker.nanny is not None:  # the process is the worker's own
        _share_allocator()
        _shuffle_in_turn()
    resident = worker.monitor.get_process_memory

    def relieve() -> None:
        if resident() > limit:
            give_back_memory()

    relief = PeriodicCallback(relieve, INTERVAL)
    worker.periodic_callbacks[NAME] = relief
    if worker.status in (Status.running, Status.paused):  # else it starts them itself
        relief.start()


def _share_allocator() -> None:
    """Let Arrow use the C library's allocator, unless the user has said which.

    Its own keeps tens of megabytes for each thread, and gives back those of the thread
    that asks for it: not those of the threads that ran the tasks.
    """
    if POOL in os.environ:
        return
    os.environ[POOL] = "system"  # for an Arrow that is yet to be loaded
    arrow = sys.modules.get("pyarrow")
    if arrow is not None:
        arrow.set_memory_pool(arrow.system_memory_pool())


def _shuffle_in_turn() -> None:
    """Let a shuffle send one message at a time, unless the user has said how many.

    Each of ten senders holds on to what it sent last until it gets more to send, up to a
    partition; a join has two shuffles. Neither counts as in the shuffle's buffers.
    """
    import dask

    if dask.config.get(SENDERS, None) == SENDERS_BY_DEFAULT:
        dask.config.set({SENDERS: 1})
