"""Memoized functions in a process that has a dask client: workers compute."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import threading
import warnings

import numpy as np
import pytest

import chest
from chest import Chest, memoize

distributed = pytest.importorskip("distributed")


def start(**options):
    """A cluster on this machine."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return distributed.LocalCluster(dashboard_address=None, **options)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    home = str(tmp_path_factory.mktemp("workers"))
    with start(n_workers=1, threads_per_worker=4, local_directory=home) as made:
        yield made


@pytest.fixture
def client(cluster):
    with distributed.Client(cluster) as made:
        yield made


@pytest.fixture
def c(chest_dir):
    with Chest(chest_dir) as made:
        yield made


def where(x):
    """The process that computes."""
    return x, os.getpid()


def worker_of(client):
    (pid,) = client.run(os.getpid).values()
    return pid


def test_a_missing_result_is_computed_by_a_worker_and_is_in_the_chest(client, c):
    f = memoize(c)(where)

    assert f(1) == (1, worker_of(client))
    assert f.was_hit is False
    assert c[f.key(1)] == (1, worker_of(client))
    assert f(1) == (1, worker_of(client))
    assert f.was_hit is True
    assert f.cache_info()[:3] == (1, 1, 1)


def test_without_a_client_it_is_computed_here(c):
    assert memoize(c)(where)(1) == (1, os.getpid())


def test_submit_false_computes_here(client, c):
    assert memoize(c, submit=False)(where)(1) == (1, os.getpid())


def test_an_array_comes_back_as_a_map_of_the_workers_file(client, c):
    f = memoize(c)(lambda n: np.arange(n))

    found = f(10**6)

    assert not found.flags.writeable
    assert found[-1] == 10**6 - 1


MODULE = """
import os
import chest

c = chest.Chest({path})


class Thing:
    @chest.memoize(c)
    def where(self, *, x):
        return x, os.getpid()


@chest.memoize(c)
def where(x):
    return x, os.getpid()
"""


@pytest.fixture
def module(client, tmp_path, monkeypatch):
    """Write and import a module, which workers find as well."""

    def write(name, path):
        (tmp_path / f"{name}.py").write_text(MODULE.format(path=path))
        client.run(lambda: sys.path.insert(0, str(tmp_path)))
        monkeypatch.syspath_prepend(tmp_path)
        made.append(importlib.import_module(name))
        return made[-1]

    made = []
    yield write
    for each in made:
        each.c.close()


def test_methods_and_keywords_of_a_module_go_to_a_worker(client, module, chest_dir):
    thing = module("of_all_processes", repr(str(chest_dir))).Thing()

    assert thing.where(x=[1]) == ([1], worker_of(client))
    assert thing.where.was_hit is False
    assert thing.where(x=[1]) == ([1], worker_of(client))
    assert thing.where.was_hit is True


def test_a_large_argument_is_sent_without_a_warning(client, c):
    x = np.random.default_rng(1).random(2_000_000)

    total, pid = memoize(c)(lambda x: (float(x.sum()), os.getpid()))(x)

    assert total == float(x.sum())
    assert pid == worker_of(client)


def test_an_error_of_the_function_is_raised_here(client, c):
    def fail(x):
        raise LookupError(os.getpid())

    f = memoize(c)(fail)

    with pytest.raises(LookupError) as raised:
        f(1)
    assert raised.value.args == (worker_of(client),)
    assert len(c) == 0


def test_an_error_that_is_kept_is_raised_again_without_computing(client, c, tmp_path):
    calls = tmp_path / "calls"

    def fail(x, path):
        with open(path, "a") as file:
            file.write("x")
        raise LookupError(x)

    f = memoize(c, on_error="cache")(fail)

    for _ in range(2):
        with pytest.raises(LookupError):
            f(1, str(calls))
    assert calls.read_text() == "x"


def test_what_cannot_be_pickled_is_computed_here(client, c):
    f = memoize(c, ignore="lock")(lambda x, lock: (x, os.getpid()))

    assert f(1, threading.Lock()) == (1, os.getpid())
    assert f(1, None) == (1, os.getpid())
    assert f.was_hit


@pytest.mark.parametrize("options", [{}, {"durability": "memory"}])
def test_a_chest_that_nobody_else_relies_on_is_filled_here(client, chest_dir, options):
    path = chest_dir if options else None
    with Chest(path=path, **options) as c:
        assert memoize(c)(where)(1) == (1, os.getpid())


def test_a_worker_that_has_another_chest_at_that_name_computes_nothing(
    client, module, tmp_path
):
    there = module("of_each_process", f"f'{tmp_path}/{{os.getpid()}}'")

    assert there.where(1) == (1, os.getpid())
    assert len(there.c) == 1
    with Chest(tmp_path / str(worker_of(client))) as theirs:
        assert len(theirs) == 0


def test_a_worker_that_does_not_see_the_folder_computes_nothing(client, tmp_path):
    with Chest(tmp_path / "a" / "chest") as c:
        f = memoize(c)(where)
        # As on another machine: there is nothing at the path, though the chest is open.
        os.rename(tmp_path / "a", tmp_path / "b")
        refused, *_ = client.submit(
            chest.memo.elsewhere._computed, *sent(f, 1), pure=False
        ).result()
        os.rename(tmp_path / "b", tmp_path / "a")

    assert "FileNotFoundError" in refused


def sent(f, x):
    """What is sent of a call."""
    import cloudpickle

    payload = cloudpickle.dumps(chest.memo.elsewhere._Sent(f))
    return payload, cloudpickle.dumps(((x,), {})), f.key(x), f.chest._identity


def test_threads_that_ask_for_the_same_have_it_computed_once(client, c, tmp_path):
    calls = tmp_path / "calls"

    def record(x, path):
        with open(path, "a") as file:
            file.write("x")
        return [x]

    f, found = memoize(c)(record), []
    threads = [
        threading.Thread(target=lambda: found.append(f(1, str(calls))))
        for _ in range(4)
    ]
    for each in threads:
        each.start()
    for each in threads:
        each.join()

    assert found == [[1]] * 4
    assert calls.read_text() == "x"


def test_what_a_step_calls_is_computed_within_its_task(client, c):
    inner = memoize(c)(where)
    outer = memoize(c)(lambda x: (inner(x), os.getpid()))

    assert outer(1) == ((1, worker_of(client)), worker_of(client))
    assert len(c) == 2


def test_a_function_that_calls_itself_ends(client, c):
    @memoize(c)
    def factorial(n):
        return 1 if n == 0 else n * factorial(n - 1)

    assert factorial(5) == 120


def test_a_result_that_ends_at_once_is_handed_over(client, c):
    assert memoize(c, ttl=1e-6)(where)(1) == (1, worker_of(client))


def test_workers_in_this_process_compute_too(c):
    f = memoize(c)(lambda x: (x, threading.current_thread().name))
    with (
        start(n_workers=1, threads_per_worker=1, processes=False) as made,
        distributed.Client(made),
    ):
        assert f(1) == (1, f.chest[f.key(1)][1])
        assert f(2)[1] != threading.current_thread().name
    chest.memo.elsewhere.loaded.cache_clear()


def test_an_executor_that_is_given_computes_though_a_client_is_there(client, c):
    from concurrent.futures import ThreadPoolExecutor

    f = memoize(c)(where)
    with ThreadPoolExecutor(1) as pool:
        found = chest.map(f, [1], executor=pool, progress=False)
    assert list(found) == [(1, os.getpid())]
    chest.memo.elsewhere.loaded.cache_clear()


def test_a_program_without_dask_does_not_import_it(chest_dir):
    program = (
        "import sys, chest\n"
        f"with chest.Chest({str(chest_dir)!r}) as c:\n"
        "    assert chest.memoize(c)(abs)(-1) == 1\n"
        "assert not {'dask', 'distributed'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
