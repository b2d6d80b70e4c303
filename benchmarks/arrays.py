"""Arrays on disk: the workloads of ``format="zarr"`` and ``zarr_store``.

Imported by `benchmarks.runner`, so that they stand among the `WORKLOADS`.
"""

from __future__ import annotations

import asyncio
from importlib import import_module
from typing import Any

from benchmarks.data import array
from benchmarks.measure import (
    MB,
    MiB,
    Timer,
    peak_memory,
    prime,
    prime_files,
    real_memory,
    reset_peak,
)
from benchmarks.plan import Case, Figures, Goal, Rival
from benchmarks.workloads import ABOUT, PLENTY, workload

__all__ = ["zarr_change", "zarr_dask", "zarr_hot", "zarr_read", "zarr_write"]

ABOUT.update(
    zarr_write="write one float64 array of 1 GiB in chunks, same codec",
    zarr_read="read one float64 array of 1 GiB in chunks, reopened",
    zarr_change="change 1 % of an array of 4 GiB on disk",
    zarr_dask="store a dask array of 16 GiB under a budget of 512 MB",
    zarr_hot="read a hot tenth of the chunks of a store with 20 ms of latency, again",
)
RIVALS = ("zarr", "chest")
COLUMNS = 1024  # of the two-dimensional arrays, float64
CHUNK = (1024, COLUMNS)  # 8 MiB
LATENCY = 0.02  # seconds added to each read
HOT_CHUNKS, ROUNDS = 10, 10


def _set(store: Rival, key: str, value: Any) -> None:
    """Write an array as zarr, through chest or without."""
    if store.name == "chest":
        store.mapping.set(key, value, format="zarr", chunks=CHUNK)
        store.flush()
    else:
        path = str(store._folder / key)
        import_module("zarr").create_array(path, data=value, chunks=CHUNK)


def _live(store: Rival, key: str) -> Any:
    """The array on disk, to be changed."""
    if store.name == "chest":
        return store.mapping.zarr(key)
    return import_module("zarr").open_array(str(store._folder / key), mode="r+")


def _plane(nbytes: int) -> Any:
    return array(nbytes - nbytes % (8 * COLUMNS)).reshape(-1, COLUMNS)


@workload(
    rivals=RIVALS,
    baselines=("zarr",),
    goals=(Goal("time [ms]", at_least=0.95, against="zarr"),),
    clean=True,
)
def zarr_write(case: Case) -> Figures:
    """What the checksums, the seal and the publication cost."""
    value = _plane(case.sizes.big_bytes)
    with case.open(PLENTY) as store:
        _set(store, "first", value[:1])
        prime_files(case.folder, value.nbytes)
        with Timer() as timer:
            _set(store, "big", value)
    return {"time [ms]": timer.per(1, "ms")}


def _write_big(case: Case) -> None:
    with case.open(PLENTY) as store:
        _set(store, "first", _plane(case.sizes.array_bytes))
        _set(store, "big", _plane(case.sizes.big_bytes))


@workload(
    prepare=_write_big,
    rivals=RIVALS,
    baselines=("zarr",),
    goals=(Goal("time [ms]", at_least=0.95, against="zarr"),),
)
def zarr_read(case: Case) -> Figures:
    """What checking each chunk costs."""
    with case.open(PLENTY) as store:
        store.get("first")
        prime(2 * case.sizes.big_bytes)
        with Timer() as timer:
            value = store.get("big")
    del value
    return {"time [ms]": timer.per(1, "ms")}


def _write_huge(case: Case) -> None:
    with case.open(PLENTY) as store:
        rows = 4 * case.sizes.big_bytes // (8 * COLUMNS)
        block = _plane(CHUNK[0] * 8 * COLUMNS)
        if store.name == "chest":
            blocks = [block] * (rows // len(block))
            store.mapping.store("huge", iter(blocks), chunks=CHUNK, progress=False)
            return
        path = str(store._folder / "huge")
        shape = (rows // len(block) * len(block), COLUMNS)
        new = import_module("zarr").create_array(
            path, shape=shape, dtype="f8", chunks=CHUNK
        )
        for start in range(0, shape[0], len(block)):
            new[start : start + len(block)] = block


@workload(
    prepare=_write_huge,
    rivals=RIVALS,
    baselines=("zarr",),
    goals=(Goal("memory over start [MB]", at_most=100),),
    alone=True,
    repeat=3,
)
def zarr_change(case: Case) -> Figures:
    """Time in proportion to the change; zarr changes in place, without a way back."""
    with case.open(PLENTY) as store:
        live = _live(store, "huge")
        rows = max(1, live.shape[0] // 100)
        new = _plane(rows * 8 * COLUMNS)
        live[:1] = 0  # imports, threads
        reset_peak()
        start = real_memory()
        with Timer() as timer:
            live[rows : 2 * rows] = new
        peak = peak_memory() - start
        with Timer() as single:
            live[:1] = 1
    return {
        "time [ms]": timer.per(1, "ms"),
        "one row [ms]": single.per(1, "ms"),
        "memory over start [MB]": max(peak, 0) / MB,
    }


@workload(
    rivals=RIVALS,
    baselines=("zarr",),
    goals=(Goal("memory over start [MB]", at_most=1000),),
    needs=("dask.array",),
    alone=True,
    repeat=1,
    clean=True,
)
def zarr_dask(case: Case) -> Figures:
    """An array that is larger than memory, streamed."""
    da = import_module("dask.array")
    rows = max(CHUNK[0], 16 * case.sizes.big_bytes // (8 * COLUMNS))
    flat = da.arange(rows * COLUMNS, chunks=CHUNK[0] * COLUMNS, dtype="f8")
    source = flat.reshape(rows, COLUMNS)
    with case.open(case.sizes.budget) as store:
        _set(store, "first", _plane(8 * COLUMNS))
        reset_peak()
        start = real_memory()
        with Timer() as timer:
            if store.name == "chest":
                store.mapping.store("huge", source, progress=False)
            else:
                shape = {"shape": source.shape, "dtype": "f8", "chunks": CHUNK}
                path = str(case.folder / "huge")
                target = import_module("zarr").create_array(path, **shape)
                source.store(target, lock=False, scheduler="threads")
        peak = peak_memory() - start
    return {"time [s]": timer.seconds, "memory over start [MB]": max(peak, 0) / MB}


def _slow(store: Any) -> Any:
    """The same store, each read 20 ms later."""
    wrapper = import_module("zarr.storage").WrapperStore

    class Slow(wrapper):  # type: ignore[misc, valid-type]
        async def get(self, *args: Any, **options: Any) -> Any:
            await asyncio.sleep(LATENCY)
            return await super().get(*args, **options)

    return Slow(store)


@workload(
    rivals=RIVALS,
    baselines=("zarr",),
    goals=(Goal("per chunk [ms]", at_least=20, against="zarr"),),
    repeat=3,
    clean=True,
)
def zarr_hot(case: Case) -> Figures:
    """What a cache in front of a slow store gains."""
    zarr = import_module("zarr")
    value = array(max(case.sizes.array_bytes // 4, MiB))
    step = len(value) // (10 * HOT_CHUNKS)
    local = zarr.storage.LocalStore(case.folder / "origin")
    hot = value[: step * 10 * HOT_CHUNKS]
    # The cache is what is measured, not the codec.
    zarr.create_array(local, data=hot, chunks=step, compressors=None)
    with case.open(PLENTY) as store:
        origin: Any = _slow(local)
        if store.name == "chest":
            origin = import_module("chest").zarr_store(store.mapping, origin)
        live = zarr.open_array(origin, mode="r")
        parts = [slice(n * 10 * step, n * 10 * step + step) for n in range(HOT_CHUNKS)]
        with Timer() as first:
            for part in parts:
                live[part]  # read, and dropped
        with Timer() as timer:
            for _ in range(ROUNDS):
                for part in parts:
                    live[part]
    return {
        "per chunk [ms]": timer.per(HOT_CHUNKS * ROUNDS, "ms"),
        "first time, per chunk [ms]": first.per(HOT_CHUNKS, "ms"),
    }
