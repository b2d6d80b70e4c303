"""dask's results in a bucket: workers save and load through it, sessions find them."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest

pytest.importorskip("obstore", reason="obstore is not installed")
pytest.importorskip("distributed", reason="distributed is not installed")

import dask
import dask.array as da
from distributed import Client, LocalCluster

from chest import Chest
from chest.dask import Results, array, compute


def blocks(calls: list[int]) -> Any:
    def block(block_id: Any = None) -> Any:
        calls.append(1)
        return np.full((10, 10), block_id[0])

    return da.map_blocks(
        block, chunks=((10,) * 4, (10,)), meta=np.empty((0, 0)), name="blocks"
    )


def test_a_second_run_computes_nothing(bucket: str) -> None:
    calls: list[int] = []
    with Chest(bucket, trust="any") as c, Results(c, min_cost=0):
        first = dask.compute(blocks(calls), scheduler="threads")
        assert len(calls) == 4
    with Chest(bucket, trust="any") as c, Results(c, min_cost=0):
        again = dask.compute(blocks(calls), scheduler="threads")
        assert len(calls) == 4
        assert np.array_equal(first, again)


def test_workers_share_results_through_the_bucket(bucket: str, tmp_path: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        cluster = LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            dashboard_address=None,
            local_directory=str(tmp_path),
        )
    with cluster, Client(cluster) as client, Chest(bucket, trust="any") as c:
        x = da.arange(40, chunks=10) + 1
        assert compute(x.sum(), store=c, scheduler=client) == (820,)
        assert len(c) > 4
        with Chest(bucket, trust="any") as other:
            assert compute(x.sum(), store=other) == (820,)
            assert other.stats().writes == 0


def test_a_stored_array_as_a_collection_is_of_one_version(bucket: str) -> None:
    with Chest(bucket, trust="any") as c:
        c["x"] = np.arange(1000.0)
        x = array(c, "x", chunks=100)
        assert x.sum().compute(scheduler="sync") == 499500
        assert array(c, "x", chunks=100).name == x.name
        c["x"] = np.zeros(1000)
        c.flush()
        assert array(c, "x", chunks=100).name != x.name
        with pytest.raises(ValueError, match="set again"):
            x.sum().compute(scheduler="sync")
