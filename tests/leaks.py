"""What a test must not leave behind: files, threads, processes, temporary chests.

Owns: the fixtures that are on for every test and doctest.
Does not own: maps of files; a value that a test still holds keeps its map alive.
"""

from __future__ import annotations

import gc
import os
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

PATIENCE = 5  # seconds for a thread that is ending to end

# Started by libraries on first use and kept for the life of the process.
LASTING_THREADS = (
    "AsyncProcess",
    "Dask-",
    "IO loop",
    "Profile",
    "ThreadPoolExecutor-",
    "TCP-Executor",
    "asyncio_",
    "fsspecIO",
    "tqdm",
    "zarr",
)
LASTING_PROCESSES = (b"multiprocessing.resource_tracker", b"multiprocessing.forkserver")


@pytest.fixture(scope="session", autouse=True)
def own_temporary_directory(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[None]:
    """Give this process and its children a ``TMPDIR`` that no other test run uses."""
    with pytest.MonkeyPatch.context() as patch:
        path = str(tmp_path_factory.mktemp("T"))
        patch.setenv("TMPDIR", path)
        patch.setattr(tempfile, "tempdir", path)
        yield


@pytest.fixture(autouse=True)
def _doctests_write_elsewhere(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    if isinstance(request.node, pytest.DoctestItem):
        monkeypatch.chdir(request.getfixturevalue("tmp_path"))


@pytest.fixture(autouse=True)
def _nothing_left_behind(own_temporary_directory: None) -> Iterator[None]:
    files, threads = open_files(), set(threading.enumerate())
    processes, chests = child_processes(), temporary_chests()

    yield

    for thread in set(threading.enumerate()) - threads:
        if not thread.name.startswith(LASTING_THREADS):
            thread.join(PATIENCE)
            assert not thread.is_alive(), f"the test left {thread} running"
    if (
        open_files() - files
        or child_processes() - processes
        or temporary_chests() - chests
    ):
        gc.collect()  # costs 50 ms with pandas loaded, so only on suspicion
    # A thread of zarr's pool lets go of what it read a moment after it was waited for.
    patience = time.monotonic() + PATIENCE
    while open_files() - files and time.monotonic() < patience:
        time.sleep(0.01)
    left = [*(open_files() - files).elements()]
    assert not left, f"the test left files open: {left}"
    assert not child_processes() - processes, "the test left processes behind"
    assert not temporary_chests() - chests, "the test left temporary chests behind"


def open_files() -> Counter[str]:
    """Count this process's descriptors of files and folders, by path.

    Sockets, pipes and event loops are not files of a chest; libraries open them late
    and keep them.
    """
    found: Counter[str] = Counter()
    for descriptor in Path("/proc/self/fd").glob("*"):
        try:
            target = os.readlink(descriptor)
        except FileNotFoundError:  # the descriptor that listed the folder
            continue
        if target.startswith("/") and not target.startswith(("/dev/", "/proc/")):
            found[target] += 1
    return found


def child_processes() -> set[int]:
    """Find the children of all threads of this process, dead but unwaited included."""
    found = set()
    for task in Path("/proc/self/task").glob("*"):
        try:
            children = (task / "children").read_text().split()
        except (FileNotFoundError, ProcessLookupError):  # the thread has just ended
            continue
        found.update(int(pid) for pid in children)
    return {pid for pid in found if not _lasts(pid)}


def temporary_chests() -> set[str]:
    """Find the folders that chests without a path made and have not removed."""
    return {name for name in os.listdir(tempfile.gettempdir()) if ".chest" in name}


def _lasts(pid: int) -> bool:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):  # waited for since it was listed
        return True
    return any(word in command for word in LASTING_PROCESSES)
