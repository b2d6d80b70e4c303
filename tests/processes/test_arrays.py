"""Arrays on disk between processes: killed in mid-change, and taking turns."""

from __future__ import annotations

import multiprocessing
import os
import signal

import numpy as np
import pytest

from chest import Chest
from tests.processes import helpers

SPAWN = multiprocessing.get_context("spawn")
FEW, MANY = 6, 40  # chunks: of many the replaced folder serves the next change


def change_until_killed(path: str, kill_at: int) -> None:
    """Change every chunk, and die at the *kill_at*th call that touches the disk."""
    with Chest(path) as c:
        z = c.zarr("x")
        z.attrs["unit"] = "m"
        count = 0

        def counted(call):
            def step(*args, **options):
                nonlocal count
                count += 1
                if count == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(*args, **options)

            return step

        for name in ("open", "link", "mkdir", "rename", "write", "unlink", "rmdir"):
            setattr(os, name, counted(getattr(os, name)))
        with z:
            z[:-1] = 1
            z.append(np.ones(10))


def set_own_items(path: str, mine: int, start) -> None:
    """Write to one chunk as others do."""
    with Chest(path) as c:
        z = c.zarr("x")
        start.wait()
        for n in range(8):
            z[mine * 8 + n] = mine + 1


def make(path, chunks: int) -> None:
    with Chest(path) as c:
        c.set("x", np.zeros(chunks * 10), format="zarr", chunks=(10,))


def check_old_or_new(path, chunks: int) -> bool:
    with Chest(path) as c:
        value = c["x"]
        is_new = len(value) == (chunks + 1) * 10
        assert (value[: -11 if is_new else None] == is_new).all()
        assert c.verify() == []
        c.zarr("x")[0] = 5
        c.compact()
        assert sorted(os.listdir(path)) == sorted(
            [".keys", os.path.basename(c.key_to_filename("x"))]
        )
    return is_new


@pytest.mark.parametrize(("chunks", "kill_at"), [(FEW, 17), (FEW, 33), (MANY, 150)])
def test_killed_in_the_middle_of_a_change_the_array_is_old_or_new(
    chunks, kill_at, tmp_path
):
    make(tmp_path / "c", chunks)
    child = SPAWN.Process(
        target=change_until_killed, args=(str(tmp_path / "c"), kill_at)
    )
    child.start()
    child.join()

    killed = child.exitcode == -signal.SIGKILL
    assert killed or check_old_or_new(tmp_path / "c", chunks)
    check_old_or_new(tmp_path / "c", chunks)


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("chunks", [FEW, MANY])
def test_killed_at_any_call_of_a_change_the_array_is_old_or_new(chunks, tmp_path):
    states, kill_at = [], 0
    while True:
        kill_at += 1
        path = tmp_path / str(kill_at)
        make(path, chunks)
        child = SPAWN.Process(target=change_until_killed, args=(str(path), kill_at))
        child.start()
        child.join()
        states.append(check_old_or_new(path, chunks))
        if child.exitcode == 0:
            break
    # Old until the publication, new from then on.
    assert states == sorted(states)
    assert len({*states}) == 2


def test_processes_that_change_one_chunk_lose_no_update(tmp_path):
    path = tmp_path / "c"
    with Chest(path) as c:
        c.set("x", np.zeros(16, "i8"), format="zarr")
    start = SPAWN.Barrier(2)
    children = [
        SPAWN.Process(target=set_own_items, args=(str(path), n, start))
        for n in range(2)
    ]
    for child in children:
        child.start()
    for child in children:
        child.join()

    with Chest(path) as c:
        assert list(c["x"]) == [1] * 8 + [2] * 8
        c.compact()
        assert len(os.listdir(path)) == 2


@pytest.mark.parametrize("ends", ["raises", "ends the block", "exits"])
def test_a_child_that_is_forked_in_a_block_leaves_the_change_to_its_parent(
    ends, tmp_path
):
    with Chest(tmp_path / "c") as c:
        c.set("x", np.zeros(40), format="zarr", chunks=(1,))
        z = c.zarr("x")
        z[0] = 1
        z.__enter__()
        z[1] = 2
        child = os.fork()
        if not child:
            status = 1
            try:
                assert z[1] == 2
                with pytest.raises(RuntimeError, match="another process's"):
                    z[2] = 5
                if ends != "exits":
                    z.__exit__(ValueError if ends == "raises" else None, None, None)
                    assert z[1] == 0
                    status = 0
                else:
                    status = 0
            finally:
                os._exit(status)
        assert os.waitpid(child, 0)[1] == 0
        z[3] = 4
        z.__exit__(None, None, None)

        assert list(c["x"][:5]) == [1, 2, 0, 4, 0]
        assert c.verify() == []
        z[4] = 5
        assert c["x"].sum() == 12


BEGIN = """
import sys
import numpy as np
from chest import Chest
c = Chest(sys.argv[1])
"""


@pytest.mark.parametrize("warm", [False, True], ids=["first", "later"])
def test_arrays_that_are_set_last_are_published_when_the_interpreter_ends(
    warm, tmp_path
):
    script = BEGIN + (
        "c.set('a', np.zeros(3), format='zarr')\n"
        f"{'c.sync()' if warm else ''}\n"
        "c['p'] = 'x' * 100_000\n"
        "c.set('y', np.arange(5), format='zarr')\n"
        "c.set('z', np.arange(10), format='zarr')\n"
        "c['q'] = [1] * 5000\n"
    )

    helpers.run(script, tmp_path / "c")

    with Chest(tmp_path / "c") as c:
        assert {*c} == {"a", "p", "y", "z", "q"}
        assert (c["y"] == np.arange(5)).all()
        assert (c["z"] == np.arange(10)).all()


def test_an_array_that_was_changed_in_memory_is_published_when_the_interpreter_ends(
    tmp_path,
):
    script = BEGIN + (
        "c.set('z', np.zeros(10), format='zarr', mapped='copy')\n"
        "c.sync()\n"
        "c.flush()\n"
        "c['z'][3] = 5\n"
        "c['p'] = 'x' * 100_000\n"
    )

    helpers.run(script, tmp_path / "c")

    with Chest(tmp_path / "c") as c:
        assert c["z"][3] == 5
        assert len(c["p"]) == 100_000
