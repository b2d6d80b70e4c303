"""A process that writes until it is killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable
from typing import Any

AFTER = 50  # acknowledged writes


def killed_while_writing(path: Any, write: Callable[[str, Any], None]) -> int:
    """Kill a process after some of its writes; the number of the last acknowledged."""
    context = multiprocessing.get_context("fork")
    read, send = context.Pipe(duplex=False)
    child = context.Process(target=write, args=(str(path), send.send))
    child.start()
    send.close()
    while (last := read.recv()) < AFTER:
        pass
    os.kill(child.pid or 0, signal.SIGKILL)
    try:
        while True:
            last = read.recv()
    except EOFError:
        read.close()
    child.join()
    child.close()
    return int(last)
