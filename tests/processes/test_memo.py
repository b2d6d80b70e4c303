"""P8, P9: memoized functions in several processes, killed ones among them."""

from __future__ import annotations

import multiprocessing
import os
import select
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import chest
from chest import Chest, memoize
from tests.processes import helpers

pytestmark = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)

ASK = """
import os, sys
import chest

with chest.Chest(sys.argv[1]) as c:
    @chest.memoize(c)
    def slow(x):
        # One line each in a file that all append to; then the parent says go on.
        os.write(int(sys.argv[2]), b"computing\\n")
        if os.read(int(sys.argv[3]), 1) == b"":
            os._exit(3)
        return [x, os.getpid()]
    os.write(int(sys.argv[2]), b"asking\\n")
    print(slow(1)[0], slow.cache_info().misses)
"""


class Asking:
    """A process that asks for one result, and tells when it computes it."""

    def __init__(
        self, folder: Path, computing: int, go: int, script: str = ASK
    ) -> None:
        self.process: Any = subprocess.Popen(
            [
                sys.executable,
                "-W",
                "error",
                "-c",
                script,
                *map(str, (folder, computing, go)),
            ],
            stdout=subprocess.PIPE,
            text=True,
            cwd=helpers.ROOT,
            pass_fds=(computing, go),
        )

    def said(self) -> str:
        return self.process.communicate(timeout=60)[0].strip()


@pytest.fixture
def pipes() -> Any:
    pairs = os.pipe(), os.pipe()
    yield pairs
    for pair in pairs:
        for fd in pair:
            os.close(fd)


def test_eight_processes_that_ask_for_one_result_compute_it_once(chest_dir, pipes):
    (told, computing), (go, say) = pipes
    asking = [Asking(chest_dir, computing, go) for _ in range(8)]

    heard = b""
    while heard.count(b"\n") < 9:
        heard += os.read(told, 100)
    assert sorted(heard.split()) == [b"asking"] * 8 + [b"computing"]
    assert not select.select([told], [], [], 0)[0]
    os.write(say, b"." * 8)
    said = [each.said() for each in asking]

    assert sorted(said) == ["1 0"] * 7 + ["1 1"]
    assert os.listdir(chest_dir) != []
    assert not [name for name in os.listdir(chest_dir) if name.startswith(".tmp")]


def line(told: int) -> bytes:
    """One line that a process wrote, and nothing of the next."""
    found = b""
    while not found.endswith(b"\n"):
        found += os.read(told, 1)
    return found


def test_when_the_process_that_computes_is_killed_another_takes_over(chest_dir, pipes):
    (told, computing), (go, say) = pipes
    first = Asking(chest_dir, computing, go)
    assert line(told) == b"asking\n"
    assert line(told) == b"computing\n"
    second = Asking(chest_dir, computing, go)
    assert line(told) == b"asking\n"

    first.process.kill()
    first.said()
    assert line(told) == b"computing\n"
    os.write(say, b".")

    assert second.said() == "1 1"
    with Chest(chest_dir) as c:
        c.compact()
    assert sorted(os.listdir(chest_dir)) == [".keys", "_memo"]


FORKING = """
import os, sys
import chest

c = chest.Chest(sys.argv[1])
@chest.memoize(c)
def slow(x):
    if os.fork() == 0:
        os.read(int(sys.argv[3]), 1)
        os._exit(0)
    os.write(int(sys.argv[2]), b"computing\\n")
    os.read(int(sys.argv[3]), 1)
slow(1)
"""


def test_a_child_made_while_computing_does_not_keep_the_right_to_compute(
    chest_dir, pipes
):
    (told, computing), (go, say) = pipes
    # The same code has the same result; the lock is asked for by its name.
    first = Asking(chest_dir, computing, go, FORKING)
    assert os.read(told, 100) == b"computing\n"
    first.process.kill()
    first.process.wait()
    first.process.stdout.close()  # the child lives still, and has the other end

    second = Asking(chest_dir, computing, go, FORKING)
    assert os.read(told, 100) == b"computing\n"  # it would wait for ever
    os.write(say, b"...")
    second.process.wait(60)
    second.process.stdout.close()


def test_a_forked_child_and_its_parent_share_results(chest_dir):
    with Chest(chest_dir) as c:
        f = memoize(c)(lambda x: [x, os.getpid()])

        assert helpers.forked(lambda: f(1)) == 0

        assert f(1)[1] != os.getpid()
        assert f.was_hit


def test_map_in_processes_resumes_and_computes_nothing_twice(chest_dir):
    with Chest(chest_dir) as c:

        @memoize(c)
        def square(x):
            return [x * x, os.getpid()]

        square(2)
        found = chest.map(square, range(6), processes=2, progress=False)

        assert [each[0] for each in found] == [x * x for x in range(6)]
        assert os.getpid() not in {found[n][1] for n in range(6) if n != 2}
        assert square.cache_info().misses == 1


INTERRUPTED = """
import os, sys, signal
import chest

def main():
    # A shell in the background has its children ignore it.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with chest.Chest(sys.argv[1]) as c:
        @chest.memoize(c)
        def step(x):
            if x == 3 and not os.path.exists(sys.argv[2]):
                open(sys.argv[2], "w").close()
                os.killpg(0, signal.SIGINT)
                signal.pause()
            return x
        try:
            print(list(chest.map(step, range(5), processes=1, progress=False)))
        except KeyboardInterrupt:
            print("interrupted", len(c))

if __name__ == "__main__":
    main()
"""


def test_ctrl_c_ends_a_map_in_processes_and_keeps_what_was_computed(
    chest_dir, tmp_path
):
    script = tmp_path / "script.py"
    script.write_text(INTERRUPTED)

    def run() -> str:
        return subprocess.run(
            [sys.executable, str(script), str(chest_dir), str(tmp_path / "flag")],
            stdout=subprocess.PIPE,
            text=True,
            timeout=60,
            cwd=helpers.ROOT,
            env={**os.environ, "PYTHONPATH": str(helpers.ROOT)},
            start_new_session=True,
            check=True,
        ).stdout.strip()

    assert run() == "interrupted 3"
    assert run() == "[0, 1, 2, 3, 4]"


def test_map_runs_on_a_dask_cluster(chest_dir):
    distributed = pytest.importorskip("distributed")
    with (
        Chest(chest_dir) as c,
        distributed.LocalCluster(
            n_workers=1,
            threads_per_worker=2,
            processes=False,
            dashboard_address=":0",
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        f = memoize(c)(lambda x: x * 2)
        f(1)

        found = chest.map(f, range(4), executor=client, progress=False)

        assert list(found) == [0, 2, 4, 6]
        assert f.cache_info().misses == 1
    chest.memo.elsewhere.loaded.cache_clear()


def nested(i: int) -> tuple[bool, list[int]]:
    """Whether it runs in a task, and what it maps there itself."""
    import distributed

    in_task = hasattr(distributed.worker.thread_state, "execution_state")
    with Chest() as inner:
        return in_task, list(chest.map(memoize(inner)(abs), [-i], progress=False))


def test_map_goes_to_the_dask_client_that_is_running_but_not_from_its_tasks(chest_dir):
    distributed = pytest.importorskip("distributed")
    with Chest(chest_dir) as c:
        f = memoize(c)(nested)
        with (
            distributed.LocalCluster(
                n_workers=1,
                threads_per_worker=1,
                processes=False,
                dashboard_address=":0",
            ) as cluster,
            distributed.Client(cluster),
        ):
            found = chest.map(f, range(2), progress=False)
            assert list(found) == [(True, [0]), (True, [1])]
        assert list(chest.map(f, [2], progress=False)) == [(False, [2])]
    chest.memo.elsewhere.loaded.cache_clear()


def open_and_ask(path: str, barrier: Any, found: Any) -> None:
    with Chest(path) as c:
        f = memoize(c, version=1)(one_result)
        barrier.wait()
        found.put((f(1), f.cache_info().misses))


def one_result(x: int) -> list[int]:
    return [x] * 100_000


@pytest.mark.parametrize(
    "method", ["fork", pytest.param("spawn", marks=pytest.mark.slow)]
)
def test_results_are_shared_however_processes_are_made(chest_dir, method):
    if method not in multiprocessing.get_all_start_methods():
        pytest.skip(f"no {method} here")
    context = multiprocessing.get_context(method)
    barrier, found = context.Barrier(3), context.Queue()
    workers = [
        context.Process(target=open_and_ask, args=(str(chest_dir), barrier, found))
        for _ in range(3)
    ]
    for worker in workers:
        worker.start()
    results = [found.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    found.close()
    found.join_thread()

    assert [value for value, _ in results] == [[1] * 100_000] * 3
    assert sum(misses for _, misses in results) == 1
