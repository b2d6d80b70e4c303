"""Chests in real dask clusters: workers that spill, die, and share results."""

from __future__ import annotations

import os
import signal
import threading
import warnings

import numpy as np
import pytest

pytest.importorskip("distributed")

import dask
import dask.array as da
import dask.dataframe as dd
import pandas as pd
from distributed import Client, LocalCluster, Worker, wait

from chest import Chest
from chest.dask import Results, SpillChest, compute, get

MB = 1_000_000


@pytest.fixture
def cluster(tmp_path):
    """Start clusters in a folder that must be empty afterwards."""
    started = []

    def start(**options):
        home = tmp_path / "workers"
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            made = LocalCluster(
                dashboard_address=None,
                local_directory=str(home),
                threads_per_worker=1,
                **options,
            )
        client = Client(made)
        started.append((client, made, home))
        return client

    yield start
    while started:
        client, made, home = started.pop()
        workers = [each for each in made.workers.values() if isinstance(each, Worker)]
        client.close()
        made.close()
        for worker in workers:  # of this process, which does not end with them
            worker.data.close()
        left = [name for _, _, names in os.walk(home) for name in names]
        assert [name for name in left if not name.endswith("lock")] == []


def test_a_worker_spills_into_a_chest_and_shows_it(cluster):
    options = {"available_memory": 4 * MB}
    client = cluster(
        n_workers=1, processes=False, memory_limit="1GB", data=(SpillChest, options)
    )
    x = da.random.default_rng(1).random((2000, 1000), chunks=(250, 1000)).persist()
    wait(x)

    (worker,) = client.cluster.workers.values()
    assert type(worker.data) is SpillChest
    assert worker.data.memory_usage <= 4 * MB
    assert worker.data.slow
    assert x.sum().compute() > 0

    client.sync(worker.heartbeat)
    (state,) = client.cluster.scheduler.workers.values()
    assert state.metrics["spilled_bytes"]["disk"] > 8 * MB
    del x, state, worker


def test_the_preload_gives_each_worker_its_own_budget(cluster):
    client = cluster(
        n_workers=1, processes=False, memory_limit="10GB", preload="chest.dask"
    )

    (worker,) = client.cluster.workers.values()

    assert type(worker.data) is SpillChest is type(worker.state.data)
    assert worker.data.available_memory == 6000 * MB
    assert client.submit(sum, [1, 2]).result() == 3
    del worker


def test_the_budget_is_what_the_process_has_left(cluster):
    client = cluster(
        n_workers=1, processes=False, memory_limit="10MB", preload="chest.dask"
    )

    (worker,) = client.cluster.workers.values()

    # This process has more than 7 MB, so it is the least: a sixteenth of them.
    assert worker.data.available_memory == 7 * MB // 16
    del worker


def test_a_chest_finds_the_limit_of_the_worker_whose_data_it_is(cluster):
    options = {"available_memory": "1GB"}
    client = cluster(
        n_workers=1, processes=False, memory_limit="40MB", data=(SpillChest, options)
    )
    x = client.submit(np.ones, 4 * MB // 8)
    wait(x)

    (worker,) = client.cluster.workers.values()

    assert list(worker.data.slow) == [x.key]  # this process has more than 28 MB
    del worker, x


def test_results_say_that_a_client_runs_past_them(cluster, chest_dir):
    cluster(n_workers=1, processes=False, memory_limit="1GB")
    x = da.ones(4, chunks=2).sum()

    with (
        Chest(chest_dir) as c,
        pytest.warns(RuntimeWarning, match="does not see what a distributed client"),
        Results(c, min_cost=0),
    ):
        assert x.compute() == 4
    with Chest(chest_dir) as c, Results(c, min_cost=0):
        assert x.compute(scheduler="threads") == 4
        assert len(c) > 0


GIVEN = {"data": (SpillChest, {"available_memory": "180MB"})}  # 60 %, as many have it


@pytest.mark.slow
@pytest.mark.parametrize(
    ("workers", "options"),
    [(1, {"preload": "chest.dask"}), (2, {"preload": "chest.dask"}), (2, GIVEN)],
    ids=["one", "two", "two-with-a-budget-that-is-too-large"],
)
def test_a_product_five_times_larger_than_the_memory_finishes(
    cluster, workers, options
):
    limit = 300 * MB  # half of it is taken before there is any data
    client = cluster(n_workers=workers, memory_limit=limit, **options)
    n = int((5 * workers * limit / 8) ** 0.5)
    x = (da.zeros((n, n), chunks=(12 * MB // 8 // n, n)) + 1).persist()
    wait(x)

    assert (x @ x.sum(axis=0)).sum().compute() == float(n) ** 3
    spilled = client.run(lambda dask_worker: dask_worker.data.spilled_total.disk)
    assert sum(spilled.values()) > 4 * workers * limit


def test_a_worker_with_a_process_of_its_own_leaves_no_memory_to_others(cluster):
    def ask(dask_worker):
        import pyarrow

        relief = dask_worker.periodic_callbacks["chest-relief"]
        pool, senders = (
            pyarrow.default_memory_pool(),
            "distributed.p2p.comm.concurrency",
        )
        return relief.is_running(), pool.backend_name, dask.config.get(senders)

    client = cluster(n_workers=1, memory_limit="1GB", preload="chest.dask")

    assert [*client.run(ask).values()] == [(True, "system", 1)]


def test_memory_that_nobody_uses_is_given_back_by_a_worker_that_does_nothing(
    cluster, monkeypatch
):
    given_back = threading.Event()
    monkeypatch.setattr("chest.system.give_back_memory", given_back.set)
    cluster(n_workers=1, processes=False, memory_limit="10MB", preload="chest.dask")

    assert given_back.wait(60)  # this process has more than 10 MB


def test_a_worker_in_the_users_process_leaves_its_settings_alone(cluster):
    before = dask.config.get("distributed.p2p.comm.concurrency")
    cluster(n_workers=1, processes=False, memory_limit="1GB", preload="chest.dask")

    assert dask.config.get("distributed.p2p.comm.concurrency") == before
    assert "ARROW_DEFAULT_MEMORY_POOL" not in os.environ


def numbered(part, parts, rows, names):
    """Rows of a frame whose keys are each in one part, and are in no order."""
    key = np.random.default_rng(part).permutation(rows) * parts + part
    return pd.DataFrame({"key": key, **dict.fromkeys(names, key + 1)})


def matching(frame):
    """How many rows there are in which all columns are those of the key."""
    wrong = [(frame[name] != frame.key + 1).any() for name in "abcdef"]
    return pd.Series([0 if any(wrong) else len(frame)])


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_join_five_times_larger_than_the_memory_finishes(cluster):
    limit, parts = 400 * MB, 100  # more than half of it is taken without any data
    client = cluster(n_workers=1, memory_limit=limit, preload="chest.dask")
    started = client.run(os.getpid)
    rows = 5 * limit // parts // 2 // 32  # two frames of four columns
    left, right = (
        dd.from_map(
            numbered,
            range(parts),
            parts=parts,
            rows=rows,
            names=names,
            meta=numbered(0, 1, 0, names),
        )
        for names in ("abc", "def")
    )

    with dask.config.set({"dataframe.shuffle.method": "p2p"}):  # the default
        joined = left.merge(right, on="key")
        found = joined.map_partitions(matching, meta=pd.Series([0])).sum().compute()

    assert found == parts * rows
    assert client.run(os.getpid) == started  # no worker was killed on the way


@pytest.mark.slow
def test_the_run_ends_right_though_a_worker_is_killed(cluster):
    client = cluster(n_workers=2, memory_limit="300MB", preload="chest.dask")
    x = (da.zeros((8000, 8000), chunks=(400, 8000)) + 1).persist()
    wait(x)
    pids = list(client.run(os.getpid).values())
    result = client.compute((x @ x.sum(axis=0)).sum())

    os.kill(pids[0], signal.SIGKILL)

    assert result.result(timeout=100) == 8000.0**3


@pytest.mark.slow
def test_workers_share_results_and_a_second_session_computes_nothing(
    cluster, chest_dir, tmp_path
):
    calls = str(tmp_path / "calls")

    def double(block):
        with open(calls, "a") as file:
            file.write("x")
        return block * 2

    x = da.from_array(np.arange(100.0), chunks=25)
    x = x.map_blocks(double, dtype=float, meta=np.empty(0))
    client = cluster(n_workers=2, memory_limit="1GB")
    with Chest(chest_dir) as c:
        assert compute(x.sum(), store=c) == (9900,)
    assert os.path.getsize(calls) == 4

    with Chest(chest_dir) as c:
        assert compute(x.sum(), store=c, scheduler=client) == (9900,)
        assert dask.compute(x.mean(), scheduler=get(c, client.get)) == (99,)
    assert os.path.getsize(calls) <= 8
