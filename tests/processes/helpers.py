"""Other processes that use a chest: functions that can be sent to them, and scripts."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from chest import Chest

ROOT = Path(__file__).parents[2]


def run(script: str, *args: object, status: int = 0) -> str:
    """Run Python code in a new interpreter; what it printed. It must not complain."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=ROOT,
        check=False,
    )
    assert done.stderr == ""
    assert done.returncode == status
    return done.stdout


def forked(work: Callable[[], object], alarm: int = 20) -> int:
    """Run *work* in a forked child that ends like any process; its exit status."""
    import signal

    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            signal.alarm(alarm)
            work()
            status = 0
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def write_and_return(chest: Chest, key: str, value: Any) -> None:
    """Set a key, and leave without a flush."""
    chest[key] = value


def open_and_write(path: str, key: str, value: Any) -> None:
    """Open a chest, set a key, and leave without a flush or close."""
    global kept
    kept = Chest(path)
    kept[key] = value


kept: Chest


def write_many(path: str, name: int, count: int) -> None:
    """Set, overwrite and delete keys of one's own, with a small budget."""
    with Chest(path, available_memory=20_000) as c:
        for i in range(count):
            c[f"{name}-{i}"] = [name, i] * 50
            if i % 7 == 0:
                c.flush()
            if i % 5 == 0:
                c[f"{name}-{i}"] = "again"
            if i % 10 == 9:
                del c[f"{name}-{i}"]
            if i % 50 == 49:
                c.compact()


def race(path: str, barrier: Any, me: int, rounds: int, results: Any) -> None:
    """Ask for the same keys as others do at the same moment."""
    with Chest(path) as c:
        for i in range(rounds):
            barrier.wait()
            got = c.setdefault(f"set-{i}", me)
            barrier.wait()
            taken = c.pop(f"set-{i}", None) is not None
            results.put((i, me, got, taken))
