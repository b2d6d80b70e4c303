"""Chest and dask beside distributed's SpillBuffer: ``python -m benchmarks.dask``.

Owns: its workloads and their table. Rivals run one after the other in each repetition.
Does not own: the workloads of `benchmarks.workloads`, which take no cluster.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import logging
import statistics
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.measure import MB, MiB, Timer
from chest import Chest

__all__ = ["main"]

Figures = dict[str, float]
LEAST_LIMIT = 300 * MB  # with less, a worker has no room; it holds no --quick size


@contextlib.contextmanager
def one_worker(kind: str, folder: Path, limit: int) -> Iterator[Any]:
    """A client of a cluster of one worker, a process of two threads."""
    import dask
    from distributed import Client, LocalCluster

    preload = ["chest.dask"] if kind == "chest" else []
    with (
        dask.config.set({"distributed.worker.memory.terminate": False}),
        LocalCluster(
            n_workers=1,
            threads_per_worker=2,
            memory_limit=limit if limit >= LEAST_LIMIT else 4 * LEAST_LIMIT,
            preload=preload,
            local_directory=str(folder),
            dashboard_address=None,
            silence_logs=logging.ERROR,
        ) as cluster,
        Client(cluster) as client,
    ):
        yield client


def sums(client: Any, timer: Timer) -> Figures:
    """What it took, what the worker wrote and how often it was paused."""

    def ask(dask_worker: Any) -> tuple[float, int]:
        logs = [text for _, text in dask_worker.get_logs()]
        paused = sum("Pausing worker" in text for text in logs)
        return dask_worker.data.cumulative_metrics["disk-write", "bytes"], paused

    ((written, paused),) = client.run(ask).values()
    return {"time [s]": timer.seconds, "written [MB]": written / MB, "pauses": paused}


def product(kind: str, folder: Path, limit: int) -> Figures:
    """``x @ x.T`` at three times the memory limit of one worker.

    Wide, so that moving blocks takes the time and not the products; blocks of a hundredth
    of the limit, since a process has 40 % of a small limit before it has any data.
    """
    import dask.array as da
    from distributed import wait

    rows, columns = 2000, 3 * limit // 8 // 2000
    blocks = 60 if limit >= LEAST_LIMIT else 2
    with one_worker(kind, folder, limit) as client:
        rng = da.random.default_rng(1)
        with Timer() as timer:
            x = rng.random(
                (rows, columns), chunks=(rows // 4, columns // blocks)
            ).persist()
            wait(x)
            (x @ x.T).sum().compute()
        del x
        return sums(client, timer)


def shuffle(method: str, kind: str, folder: Path, limit: int) -> Figures:
    """A frame of three times the memory limit of one worker by a column of numbers."""
    import dask
    import dask.dataframe as dd
    import pandas as pd
    from distributed import wait

    parts = 120 if limit >= LEAST_LIMIT else 6
    rows = 3 * limit // 32 // parts

    def make(number: int) -> Any:
        rng = np.random.default_rng(number)
        columns = {name: rng.random(rows) for name in "abc"}
        return pd.DataFrame({"key": rng.integers(0, 10**7, rows), **columns})

    with (
        dask.config.set({"dataframe.shuffle.method": method}),
        one_worker(kind, folder, limit) as client,
    ):
        with Timer() as timer:
            frame = dd.from_map(make, range(parts), meta=make(0).iloc[:0]).persist()
            wait(frame)
            frame.shuffle("key").a.sum().compute()
        del frame
        return sums(client, timer)


def get_spilled(kind: str, folder: Path, nbytes: int) -> Figures:
    """Get of a spilled array, nobody else holding it."""
    from distributed.spill import SpillBuffer

    from chest.dask import SpillChest

    make: Any = SpillChest if kind == "chest" else SpillBuffer
    data = make(str(folder), 10**9)
    data["x"] = np.random.default_rng(1).random(nbytes // 8)
    data.evict()
    with Timer() as timer:
        data["x"]
    del data["x"]
    return {"time [ms]": timer.per(1, "ms")}


def second_run(kind: str, folder: Path, tasks: int) -> Figures:
    """A stored graph once more: what a hit costs."""
    import dask.local

    from chest.dask import Results

    graph = _graph(tasks)
    keys = list(graph)
    if kind == "plain":
        with Timer() as timer:
            dask.local.get_sync(graph, keys)
        return {"per task [µs]": timer.per(tasks, "µs")}
    with Chest(folder) as c, Results(c, min_cost=0):
        dask.local.get_sync(graph, keys)
    with Chest(folder) as c, Results(c, min_cost=0), Timer() as timer:
        dask.local.get_sync(graph, keys)
    return {"per task [µs]": timer.per(tasks, "µs")}


def nothing_stored(kind: str, folder: Path, tasks: int) -> Figures:
    """Tiny tasks, none of which takes long enough to be kept."""
    import dask.threaded

    from chest.dask import Results

    graph = _graph(tasks)
    keys = list(graph)
    with Chest(folder) as c:
        c["another"] = 1
        if kind == "plain":
            with Timer() as timer:
                dask.threaded.get(graph, keys)
        else:
            with Results(c), Timer() as timer:
                dask.threaded.get(graph, keys)
    return {"time [s]": timer.seconds}


def _graph(tasks: int) -> dict[Any, Any]:
    return {("increment", i): (_increment, i) for i in range(tasks)}


def _increment(x: int) -> int:
    return x + 1


# function, its size, its size for --quick, repetitions, rivals
WORKLOADS: dict[str, tuple[Callable[[str, Path, int], Figures], int, int, int, str]] = {
    "product": (product, 400 * MB, 8 * MB, 3, "SpillBuffer"),
    "shuffle_tasks": (
        functools.partial(shuffle, "tasks"),
        800 * MB,
        8 * MB,
        1,
        "SpillBuffer",
    ),
    "shuffle_p2p": (
        functools.partial(shuffle, "p2p"),
        800 * MB,
        8 * MB,
        3,
        "SpillBuffer",
    ),
    "get_spilled": (get_spilled, 64 * MiB, 4 * MiB, 7, "SpillBuffer"),
    "second_run": (second_run, 1000, 50, 5, "plain"),
    "nothing_stored": (nothing_stored, 10_000, 100, 7, "plain"),
}


def main(argv: list[str] | None = None) -> None:
    """Run the workloads that are named, or all, and print medians."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.dask")
    parser.add_argument("workloads", nargs="*", default=list(WORKLOADS))
    parser.add_argument("--quick", action="store_true", help="does it run?")
    arguments = parser.parse_args(argv)
    for name in arguments.workloads:
        run, full, quick, repeat, rival = WORKLOADS[name]
        samples: dict[str, list[Figures]] = {"chest": [], rival: []}
        for _ in range(1 if arguments.quick else repeat):
            for kind, found in samples.items():
                with tempfile.TemporaryDirectory() as folder:
                    size = quick if arguments.quick else full
                    found.append(run(kind, Path(folder), size))
        for figure in samples["chest"][0]:
            ours, theirs = (
                statistics.median(sample[figure] for sample in found)
                for found in samples.values()
            )
            ratio = ours / theirs if theirs else float("nan")
            print(
                f"{name:15} {figure:14} chest {ours:10.3f}  {rival} {theirs:10.3f}  "
                f"ratio {ratio:.3f}"
            )


if __name__ == "__main__":
    main()
