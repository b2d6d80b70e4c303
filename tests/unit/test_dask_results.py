"""Results of dask tasks in a chest, and chests as dask collections."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("dask")

import dask
import dask.array as da
import dask.bag as db

from chest import Chest
from chest.dask import Results, array, bag, checkpoint, compute, dataframe, get
from chest.dask.results import name_of
from tests.processes import helpers

pytestmark = pytest.mark.filterwarnings("ignore:Computing mixed collections")


class Counted:
    """A function that notes its calls in a file, for whichever process runs it."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)

    def __call__(self, block):
        with open(self.path, "a") as file:
            file.write("x")
        return block * 2

    def __dask_tokenize__(self):
        return "Counted"

    @property
    def calls(self) -> int:
        return os.path.getsize(self.path) if os.path.exists(self.path) else 0


@pytest.fixture
def double(tmp_path):
    return Counted(tmp_path / "calls")


@pytest.fixture
def blocks(double):
    x = da.from_array(np.arange(100.0), chunks=25)
    return x.map_blocks(double, dtype=float, meta=np.empty(0))


@pytest.mark.parametrize("scheduler", ["sync", "threads"])
def test_a_second_run_computes_nothing_that_the_first_one_kept(
    chest_dir, blocks, double, scheduler
):
    with Chest(chest_dir) as c, Results(c, min_cost=0):
        first = blocks.sum().compute(scheduler=scheduler)
    assert double.calls == 4

    with Chest(chest_dir) as c, Results(c, min_cost=0):
        assert blocks.sum().compute(scheduler=scheduler) == first == 9900
    assert double.calls == 4


@pytest.mark.parametrize(
    "scheduler",
    ["sync", "threads", pytest.param("processes", marks=pytest.mark.slow)],
)
def test_compute_keeps_the_last_step_too(chest_dir, blocks, double, scheduler):
    for _ in range(2):
        with Chest(chest_dir) as c:
            (total, again), same = compute(
                [blocks.sum(), blocks.sum()],
                "as it is",
                store=c,
                scheduler=scheduler,
            )
            assert (total, again, same) == (9900, 9900, "as it is")
    assert double.calls == 4


def test_without_dask_the_error_says_what_to_install():
    script = """
import sys
sys.modules["dask"] = None
import chest
try:
    import chest.dask
except chest.errors.MissingDependency as error:
    print(error)
"""
    assert helpers.run(script) == "chest.dask needs dask: pip install 'chest[dask]'\n"


def test_a_path_is_no_chest_to_keep_results_in():
    with pytest.raises(TypeError, match="a Chest is needed"):
        Results("results")
    with pytest.raises(TypeError, match="a Chest is needed"):
        compute(da.ones(3), store="results")


def test_another_process_finds_what_was_kept(chest_dir, tmp_path):
    script = """
        import sys, dask, chest.dask
        from chest import Chest

        @dask.delayed(pure=True)
        def slow(x):
            print("ran")
            return x + 1

        with Chest(sys.argv[1]) as c, chest.dask.Results(c, 0):
            print(slow(slow(1)).compute(scheduler="sync"))
        """
    import textwrap

    script = textwrap.dedent(script)

    assert helpers.run(script, chest_dir).split() == ["ran", "ran", "3"]
    assert helpers.run(script, chest_dir).split() == ["3"]


def test_a_frozenset_has_the_same_name_in_every_process(chest_dir):
    script = """
import dask.base, chest.dask
print(dask.base.tokenize(frozenset("abcdefgh")), dask.base.tokenize({1: frozenset()}))
"""

    names = {helpers.run(script, chest_dir) for _ in range(2)}

    assert len(names) == 1
    assert len({*names.pop().split(), dask.base.tokenize({*"abcdefgh"})}) == 3


def test_only_tasks_that_took_long_enough_are_kept(chest_dir, blocks):
    with Chest(chest_dir) as c, Results(c, min_cost=1000):
        blocks.sum().compute(scheduler="sync")
        assert len(c) == 0


def test_keys_that_are_drawn_at_random_are_left_alone(chest_dir):
    impure = dask.delayed(lambda: 1)()
    pure = dask.delayed(lambda x: x, pure=True)(impure)

    with Chest(chest_dir) as c, Results(c, min_cost=0):
        assert pure.compute(scheduler="sync") == 1
        assert len(c) == 0
    assert uuid.UUID(impure.key[-36:]).version == 4


def test_what_reads_a_store_that_changes_under_its_name_is_left_alone(
    tmp_path, chest_dir
):
    zarr = pytest.importorskip("zarr")
    z = zarr.create_array(str(tmp_path / "z"), data=np.zeros(4), chunks=(2,))

    with Chest(chest_dir) as c, Results(c, min_cost=0):
        for made in (da.from_zarr, da.from_array):
            assert made(z).sum().compute(scheduler="sync") == 0
            z[:] = 1
            assert made(z).sum().compute(scheduler="sync") == 4
            z[:] = 0
        assert len(c) == 0


def lines(path, value):
    path.write_text(f"{value}\n" * 4)
    return db.read_text(str(path)).map(int).sum()


def stack(path, value):
    da.to_npy_stack(str(path), da.full(4, value, chunks=2))
    return da.from_npy_stack(str(path)).sum()


def orc(path, value):
    dd = pytest.importorskip("dask.dataframe")
    pd = pytest.importorskip("pandas")
    pd.DataFrame({"x": [value] * 4}).to_orc(path)
    return dd.read_orc(str(path)).x.sum()


def csv(path, value):
    dd = pytest.importorskip("dask.dataframe")
    path.write_text("x\n" + f"{value}\n" * 4)
    return dd.read_csv(str(path)).x.sum()


@pytest.mark.parametrize("made", [lines, stack, orc, csv])
def test_a_file_that_was_written_anew_is_read_anew(tmp_path, chest_dir, made):
    with Chest(chest_dir) as c:
        for value in (1, 2):
            lazy = made(tmp_path / "x", value)
            assert compute(lazy, store=c, scheduler="sync") == (4 * value,)
            with Results(c, min_cost=0):
                assert lazy.compute(scheduler="sync") == 4 * value


def test_a_result_that_cannot_be_stored_does_not_end_the_run(chest_dir, caplog):
    lazy = dask.delayed(lambda: (i for i in range(3)), pure=True)()

    with Chest(chest_dir) as c, Results(c, min_cost=0):
        assert list(lazy.compute(scheduler="sync")) == [0, 1, 2]
        assert len(c) == 0
    assert "is not kept" in caplog.text


class Unmeasurable:
    """A value that raises an error of its own when it is weighed."""

    def __chest_nbytes__(self):
        raise ZeroDivisionError("not me")

    def __getstate__(self):
        raise ZeroDivisionError("not me")


@pytest.mark.parametrize("way", ["results", "compute"])
def test_whatever_a_value_raises_is_logged_and_the_task_succeeds(
    chest_dir, caplog, way
):
    lazy = dask.delayed(Unmeasurable, pure=True)()

    with Chest(chest_dir) as c:
        if way == "results":
            with Results(c, min_cost=0):
                value = lazy.compute(scheduler="sync")
        else:
            (value,) = compute(lazy, store=c, scheduler="sync")
        assert type(value) is Unmeasurable
        assert len(c) == 0
    assert "is not kept" in caplog.text
    assert "not me" in caplog.text


def test_an_error_that_is_no_chests_own_is_logged_as_well(
    chest_dir, caplog, monkeypatch
):
    lazy = dask.delayed(lambda: 1, pure=True)()

    def refuse(*_: object) -> None:
        raise MemoryError("no room")

    with Chest(chest_dir) as c, Results(c, min_cost=0):
        monkeypatch.setattr(Chest, "move_to_disk", refuse)
        assert lazy.compute(scheduler="sync") == 1
        assert len(c) == 0
    assert "MemoryError: no room" in caplog.text


def test_an_error_of_a_task_is_raised_and_what_was_done_is_kept(chest_dir):
    one = dask.delayed(lambda: 1, pure=True)()
    bad = dask.delayed(lambda x: x / 0, pure=True)(one)

    with Chest(chest_dir) as c:
        with Results(c, min_cost=0), pytest.raises(ZeroDivisionError):
            bad.compute(scheduler="sync")
        assert list(c) == [name_of(one.key)]


def test_what_is_changed_in_a_result_does_not_reach_the_chest(chest_dir):
    one = dask.delayed(np.zeros, pure=True)(300_000)
    with Chest(chest_dir) as c:
        for _ in range(3):
            (value,) = compute(one, store=c)
            assert value[0] == 0
            value[0] = 7


def test_a_result_that_looks_like_a_task_is_not_run(chest_dir):
    odd = dask.delayed(lambda: (len, [1, 2, 3]), pure=True)()

    with Chest(chest_dir) as c, Results(c, min_cost=0):
        for _ in range(2):
            assert odd.compute(scheduler="sync") == (len, [1, 2, 3])


def test_results_of_other_versions_are_not_found(
    chest_dir, blocks, double, monkeypatch
):
    with Chest(chest_dir) as c:
        compute(blocks.sum(), store=c)
        monkeypatch.setattr(dask, "__version__", "0")
        compute(blocks.sum(), store=c)
    assert double.calls == 8


def test_a_checkpoint_is_found_by_other_computations_upon_it(chest_dir, blocks, double):
    marked = checkpoint(blocks)

    with Chest(chest_dir) as c, Results(c, min_cost=1000):
        assert marked.sum().compute(scheduler="sync") == 9900
        assert (marked + 1).max().compute(scheduler="sync") == 199
        assert len(c) == 4
    assert double.calls == 4


def test_a_checkpoint_of_a_frame_has_its_partitions_alone(chest_dir, double):
    dd, pd = pytest.importorskip("dask.dataframe"), pytest.importorskip("pandas")
    frame = dd.from_pandas(pd.DataFrame({"x": range(8)}), npartitions=2)
    marked = checkpoint(frame.map_partitions(double, meta={"x": int}))

    with Chest(chest_dir) as c, Results(c, min_cost=1000):
        assert marked.x.sum().compute(scheduler="sync") == 56
        assert marked.x.max().compute(scheduler="sync") == 14
    assert double.calls == 2


def test_get_wraps_any_scheduler(chest_dir, blocks, double):
    with Chest(chest_dir) as c:
        scheduler = get(c, dask.get)
        assert blocks.sum().compute(scheduler=scheduler) == 9900
        assert (blocks.sum() + 1).compute(scheduler=scheduler) == 9901
        assert get(c)({"x": (sum, [1, 2])}, "x") == 3
    assert double.calls == 4


class Watched(Chest):
    """Notes what memory it uses after each value that is set or got."""

    def __init__(self, **options):
        self.used = []
        super().__init__(**options)

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        self.used.append(self.memory_usage)

    def __getitem__(self, key):
        value = super().__getitem__(key)
        self.used.append(self.memory_usage)
        return value


def test_a_chest_holds_what_a_local_scheduler_has_under_way():
    x = da.random.default_rng(1).random((800, 800), chunks=200)  # 5 MB
    expected = (x @ x.T).sum().compute(scheduler="threads")

    with Watched(available_memory="1 MB") as c:
        total = (x @ x.T).sum().compute(scheduler="threads", cache=c)

        assert total == pytest.approx(expected)
        assert len(c.used) > 32
        assert max(c.used) <= 1_000_000
        assert c.stats().spills > 0


# -- collections ----------------------------------------------------------------------


def test_an_array_of_a_chest_is_read_in_parts(chest_dir):
    with Chest(chest_dir) as c:
        c["x"] = np.arange(600_000.0).reshape(600, 1000)

        x = array(c, "x", chunks=(200, 1000))

        assert x.numblocks == (3, 1)
        assert x[250:260].sum().compute() == c["x"][250:260].sum()


def test_names_of_collections_follow_key_and_generation(chest_dir):
    with Chest(chest_dir) as c:
        c["x"] = c["y"] = np.arange(4)
        first, other = array(c, "x"), array(c, "y")
        assert first.name == array(c, "x").name != other.name

        c["x"] = np.zeros(4)
        c.sync()

        assert array(c, "x").name != first.name
        with pytest.raises(ValueError, match=r"'x' in .* was set again"):
            first.compute(scheduler="sync")


def test_results_upon_a_chests_array_are_never_stale(chest_dir):
    with Chest(chest_dir) as c, Chest() as results:
        for value in (1, 2):
            c["x"] = np.full(4, value)
            assert compute(array(c, "x").sum(), store=results) == (4 * value,)


def test_a_value_that_is_no_array_is_refused(chest_dir):
    with Chest({"x": 1}, chest_dir) as c:
        with pytest.raises(TypeError, match="no array"):
            array(c, "x")
        with pytest.raises(KeyError):
            array(c, "y")


def test_bags_and_frames_take_keys_in_order(chest_dir):
    pd = pytest.importorskip("pandas")
    with Chest({i: i for i in range(10)}, chest_dir) as c:
        assert bag(c, partition_size=3).npartitions == 4
        assert list(bag(c, [3, 1]).compute(scheduler="sync")) == [3, 1]
    with Chest({i: pd.DataFrame({"x": [i]}) for i in range(3)}) as c:
        assert list(dataframe(c, [2, 0]).x.compute(scheduler="sync")) == [2, 0]
