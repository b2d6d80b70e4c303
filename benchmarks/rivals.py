"""The stores that are measured, and the table of all of them with the limits."""

from __future__ import annotations

import pickle
import shelve
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks import legacy
from benchmarks.limits import Dict, Log, NpSave, Pickle, Raw
from benchmarks.plan import Rival

__all__ = ["RIVALS"]

LMDB_MAP = 1 << 36  # bytes of address space; the file grows as needed


class Chest(Rival):
    """The present package."""

    name = "chest"

    def __init__(self, folder: Path, budget: int) -> None:
        chest = import_module("chest")
        self._bind(chest.Chest(path=folder / "chest", available_memory=budget))

    def delete_many(self, keys: list[str]) -> None:
        # docstring inherited
        self.mapping.delete_many(keys)

    def increment(self, key: str) -> None:
        # docstring inherited
        self.mapping.incr(key)

    def flush(self) -> None:
        # docstring inherited
        self.mapping.flush()

    def close(self) -> None:
        # docstring inherited
        self.mapping.close()


class Legacy(Rival):
    """chest 0.2.3 of 2016; one file per value, pickle protocol 1."""

    name = "chest-0.2.3"
    slow = 20

    def __init__(self, folder: Path, budget: int) -> None:
        self._bind(
            legacy.load().Chest(path=str(folder / "old"), available_memory=budget)
        )

    def flush(self) -> None:
        # docstring inherited
        self.mapping.flush()

    @classmethod
    def absence(cls) -> str:
        # docstring inherited
        return legacy.absence()


class ZictLRU(Rival):
    """``zict.LRU`` over a dict, never full."""

    name = "zict.LRU"
    needs = ("zict",)
    reopens = False

    def __init__(self, folder: Path, budget: int) -> None:
        self._bind(import_module("zict").LRU(budget, {}))


class ZictFile(Rival):
    """``zict.File`` with pickle, one file per value."""

    name = "zict.File"
    needs = ("zict",)
    slow = 10

    def __init__(self, folder: Path, budget: int) -> None:
        zict = import_module("zict")
        files = zict.File(str(folder / "zict"))
        self._bind(zict.Func(_dumps, pickle.loads, files))


def _dumps(value: Any) -> bytes:
    """Pickle with the protocol that all rivals get."""
    return pickle.dumps(value, protocol=5)


class SpillBuffer(Rival):
    """What a dask worker keeps its results in."""

    name = "SpillBuffer"
    needs = ("distributed",)
    reopens = False
    slow = 10

    def __init__(self, folder: Path, budget: int) -> None:
        spill = import_module("distributed.spill")
        self._bind(spill.SpillBuffer(str(folder / "spill"), target=budget))

    def close(self) -> None:
        # docstring inherited
        self.mapping.close()

    def flush(self) -> None:
        # docstring inherited
        while self.mapping.fast:
            if self.mapping.evict() < 0:
                message = "SpillBuffer could not evict"
                raise OSError(message)


class Joblib(Rival):
    """``joblib.dump`` and ``joblib.load(mmap_mode='r')``, one file per value."""

    name = "joblib"
    needs = ("joblib",)
    slow = 10

    def __init__(self, folder: Path, budget: int) -> None:
        self._joblib = import_module("joblib")
        self._folder = folder

    def set(self, key: str, value: Any) -> None:
        """Dump to a file named after the key."""
        self._joblib.dump(value, self._folder / key)

    def get(self, key: str) -> Any:
        """Load the file, arrays mapped."""
        return self._joblib.load(self._folder / key, mmap_mode="r")


class Diskcache(Rival):
    """``diskcache.Cache`` that never culls."""

    name = "diskcache"
    needs = ("diskcache",)

    def __init__(self, folder: Path, budget: int) -> None:
        cache = import_module("diskcache").Cache(
            str(folder / "diskcache"), size_limit=1 << 60, eviction_policy="none"
        )
        self._bind(cache)

    def increment(self, key: str) -> None:
        # docstring inherited
        self.mapping.incr(key)

    def close(self) -> None:
        # docstring inherited
        self.mapping.close()


class Shelve(Rival):
    """``shelve`` upon whatever ``dbm`` this Python has."""

    name = "shelve"
    slow = 20

    def __init__(self, folder: Path, budget: int) -> None:
        self._bind(shelve.open(str(folder / "shelf"), protocol=5))  # noqa: SIM115

    def flush(self) -> None:
        # docstring inherited
        self.mapping.sync()

    def close(self) -> None:
        # docstring inherited
        self.mapping.close()


class Zarr(Rival):
    """One zarr v3 array per key, default chunks and compression."""

    name = "zarr"
    needs = ("zarr",)

    def __init__(self, folder: Path, budget: int) -> None:
        self._zarr = import_module("zarr")
        self._folder = folder

    def set(self, key: str, value: Any) -> None:
        """Create the array."""
        self._zarr.create_array(str(self._folder / key), data=value)

    def get(self, key: str) -> Any:
        """Read the whole array."""
        return self._zarr.open_array(str(self._folder / key), mode="r")[...]


class Lmdb(Rival):
    """LMDB with pickled values, one transaction up to each flush, no fsync."""

    name = "lmdb"
    needs = ("lmdb",)

    def __init__(self, folder: Path, budget: int) -> None:
        self._env = import_module("lmdb").open(
            str(folder / "lmdb"), map_size=LMDB_MAP, sync=False, metasync=False
        )
        self._txn = self._env.begin(write=True)

    def set(self, key: str, value: Any) -> None:
        """Put the pickled value."""
        self._txn.put(key.encode(), pickle.dumps(value, 5))

    def get(self, key: str) -> Any:
        """Load the value."""
        data = self._txn.get(key.encode())
        if data is None:
            raise KeyError(key)
        return pickle.loads(data)

    def delete(self, key: str) -> None:
        """Delete the key."""
        self._txn.delete(key.encode())

    def contains(self, key: str) -> bool:
        """Whether the key is there."""
        return self._txn.get(key.encode()) is not None

    def length(self) -> int:
        """How many keys there are."""
        return int(self._txn.stat()["entries"])

    def flush(self) -> None:
        # docstring inherited
        self._txn.commit()
        self._txn = self._env.begin(write=True)

    def close(self) -> None:
        # docstring inherited
        self._txn.commit()
        self._env.close()


class Sqlitedict(Rival):
    """``SqliteDict``, committed at each flush."""

    name = "sqlitedict"
    needs = ("sqlitedict",)
    slow = 10

    def __init__(self, folder: Path, budget: int) -> None:
        self._bind(
            import_module("sqlitedict").SqliteDict(
                str(folder / "pairs.sqlite"), autocommit=False
            )
        )

    def flush(self) -> None:
        # docstring inherited
        self.mapping.commit()

    def close(self) -> None:
        # docstring inherited
        self.mapping.close()


class Persidict(Rival):
    """``persidict.FileDirDict``, one file per value."""

    name = "persidict"
    needs = ("persidict",)
    slow = 200

    def __init__(self, folder: Path, budget: int) -> None:
        self._bind(import_module("persidict").FileDirDict(base_dir=str(folder / "pd")))


class Iodict(Rival):
    """``iodict.IODict``, one file per value."""

    name = "iodict"
    needs = ("iodict",)
    slow = 10

    def __init__(self, folder: Path, budget: int) -> None:
        iodict = import_module("iodict").IODict(path=str(folder / "iodict"))
        self.get = iodict.__getitem__
        self.set = iodict.__setitem__
        self.delete = iodict.__delitem__
        # It has no __contains__; `in` walks over all keys.
        self.contains = lambda key: key in iodict
        self.length = iodict.__len__


class Litequeue(Rival):
    """``litequeue.LiteQueue``; of this rival there is only a queue."""

    name = "litequeue"
    needs = ("litequeue",)

    def __init__(self, folder: Path, budget: int) -> None:
        queue = import_module("litequeue").LiteQueue(str(folder / "queue.sqlite"))
        self.set = lambda key, value: queue.put(value)
        self.get = lambda key: queue.pop().data
        self.close = queue.close


class PersistQueue(Rival):
    """``persistqueue.Queue`` that saves each step; of this there is only a queue."""

    name = "persist-queue"
    needs = ("persistqueue",)

    def __init__(self, folder: Path, budget: int) -> None:
        module = import_module("persistqueue")
        queue = module.Queue(str(folder / "queue"), autosave=True)
        self.set = lambda key, value: queue.put(value)
        self.get = lambda key: queue.get()


RIVALS: dict[str, type[Rival]] = {
    rival.name: rival
    for rival in (
        Chest,
        Legacy,
        Dict,
        Raw,
        NpSave,
        Pickle,
        Log,
        ZictLRU,
        ZictFile,
        SpillBuffer,
        Joblib,
        Diskcache,
        Shelve,
        Zarr,
        Lmdb,
        Sqlitedict,
        Persidict,
        Iodict,
        Litequeue,
        PersistQueue,
    )
}
