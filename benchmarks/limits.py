"""What a program does without any store: the limits that rivals are held against."""

from __future__ import annotations

import os
import pickle
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.plan import Rival

__all__ = ["Dict", "Log", "NpSave", "Pickle", "Raw"]

WRITE_BUFFER = 1 << 20  # bytes: the log's


class Dict(Rival):
    """Limit in memory: a plain dict."""

    name = "dict"
    reopens = False

    def __init__(self, folder: Path, budget: int) -> None:
        self._bind({})


class Raw(Rival):
    """Limit for arrays: ``os.write`` of the bytes to new files, ``np.memmap`` back."""

    name = "raw"

    def __init__(self, folder: Path, budget: int) -> None:
        self._memmap = import_module("numpy").memmap
        self._folder = folder

    def set(self, key: str, value: Any) -> None:
        """Write the array's bytes to a file named after its key."""
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL
        descriptor = os.open(self._folder / key, flags, 0o600)
        left = memoryview(value).cast("B")
        # A single write stops at 2 GiB.
        while left:
            left = left[os.write(descriptor, left) :]
        os.close(descriptor)

    def get(self, key: str) -> Any:
        """Map the file as float64."""
        return self._memmap(self._folder / key, dtype="f8", mode="r")


class NpSave(Rival):
    """``np.save`` to new files, ``np.load(mmap_mode='r')`` back; no memory tier."""

    name = "np.save"

    def __init__(self, folder: Path, budget: int) -> None:
        self._numpy = import_module("numpy")
        self._folder = folder

    def set(self, key: str, value: Any) -> None:
        """Save to a file named after the key."""
        self._numpy.save(self._folder / f"{key}.npy", value)

    def get(self, key: str) -> Any:
        """Map the file."""
        return self._numpy.load(self._folder / f"{key}.npy", mmap_mode="r")


class Pickle(Rival):
    """``pickle.dump`` (protocol 5) and ``pickle.load``, one file per value."""

    name = "pickle"
    slow = 10

    def __init__(self, folder: Path, budget: int) -> None:
        self._folder = folder

    def set(self, key: str, value: Any) -> None:
        """Dump to a file named after the key."""
        with open(self._folder / key, "wb") as file:
            pickle.dump(value, file, protocol=5)

    def get(self, key: str) -> Any:
        """Load the file."""
        with open(self._folder / key, "rb") as file:
            return pickle.load(file)


class Log(Rival):
    """Limit for small values: buffered append, ``os.pread`` + ``loads``, dict index."""

    name = "log"

    def __init__(self, folder: Path, budget: int) -> None:
        self._file = open(folder / "log", "ab", buffering=WRITE_BUFFER)  # noqa: SIM115
        self._descriptor = os.open(folder / "log", os.O_RDONLY)
        self._saved = folder / "index"
        self._index: dict[str, tuple[int, int]] = {}
        if self._saved.exists():
            self._index = pickle.loads(self._saved.read_bytes())
        self._end = self._file.tell()
        self.contains = self._index.__contains__
        self.length = self._index.__len__

    def _append(self, record: tuple[Any, ...]) -> tuple[int, int]:
        """Add one record; return its place and size."""
        data = pickle.dumps(record, 5)
        place = self._end, self._file.write(data)
        self._end += place[1]
        return place

    def set(self, key: str, value: Any) -> None:
        """Append the pair."""
        self._index[key] = self._append((key, value))

    def get(self, key: str) -> Any:
        """Read the record back; it must have been flushed."""
        offset, size = self._index[key]
        return pickle.loads(os.pread(self._descriptor, size, offset))[1]

    def delete(self, key: str) -> None:
        """Append a tombstone."""
        del self._index[key]
        self._append((key,))

    def flush(self) -> None:
        """Hand the buffer to the system."""
        self._file.flush()

    def close(self) -> None:
        """Close the log and leave its index beside it."""
        self._file.close()
        os.close(self._descriptor)
        self._saved.write_bytes(pickle.dumps(self._index, 5))
