"""Design §5: the end of a process publishes, silently, however the process was made."""

from __future__ import annotations

import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest

from chest import Chest
from tests.processes import helpers

METHODS = ["fork", "spawn", "forkserver"]
pytestmark = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)


def joined(method: str, work: object, *args: object) -> None:
    process = multiprocessing.get_context(method).Process(target=work, args=args)
    process.start()
    process.join(60)
    assert process.exitcode == 0
    process.close()


@pytest.mark.parametrize("method", METHODS)
def test_the_end_of_a_child_publishes(method: str, chest_dir: Path) -> None:
    joined(method, helpers.open_and_write, str(chest_dir), "x", [1])
    with Chest(chest_dir) as c:
        assert dict(c) == {"x": [1]}


@pytest.mark.parametrize("method", METHODS)
def test_the_end_of_a_child_publishes_what_it_set_through_a_handle(
    method: str, chest_dir: Path
) -> None:
    with Chest(chest_dir) as c:
        c["mine"] = [0]
        joined(method, helpers.write_and_return, c, "x", [1])
        assert dict(c) == {"mine": [0], "x": [1]}


def test_a_forked_child_leaves_to_the_parent_what_the_parent_set(
    chest_dir: Path,
) -> None:
    with Chest(chest_dir) as c, Chest(chest_dir) as looker:
        c["mine"] = "set before the fork"
        joined("fork", helpers.write_and_return, c, "x", 1)
        assert dict(looker) == {"x": 1}
        c["mine"] = "set after the fork"
    with Chest(chest_dir) as c:
        assert dict(c) == {"x": 1, "mine": "set after the fork"}


def test_a_forked_child_may_flush_for_the_parent_but_not_over_it(
    chest_dir: Path,
) -> None:
    with Chest(chest_dir) as c:
        c["a"] = "parent"
        assert helpers.forked(c.flush) == 0
        assert c["a"] == "parent"
        c["a"] = "parent, later"
        c.sync()
        assert helpers.forked(c.flush) == 0
        assert c["a"] == "parent, later"
    with Chest(chest_dir) as c:
        assert c["a"] == "parent, later"


@pytest.mark.parametrize("method", METHODS)
def test_a_child_leaves_a_temporary_folder_alone(method: str) -> None:
    with Chest() as c:
        c["x"] = 1
        c.sync()
        joined(method, helpers.write_and_return, c, "y", 2)
        assert os.path.isdir(c.path)
        assert c["x"] == 1
        assert c["y"] == 2
    assert not os.path.exists(c.path)


def test_who_only_read_a_temporary_chest_ends_silently_after_its_owner() -> None:
    script = """
import pickle, sys
from chest import Chest
owner = Chest()
owner["x"] = [1]
owner.sync()
reader = pickle.loads(pickle.dumps(owner))
assert reader["x"] == [1]
owner.close()
"""
    assert helpers.run(script) == ""
    assert helpers.run(script + "reader.close()") == ""


def test_the_end_of_the_interpreter_publishes_silently(chest_dir: Path) -> None:
    script = """
import sys
from chest import Chest
c = Chest(sys.argv[1])
c["x"] = [1]
temporary = Chest({"y": 1})
temporary.flush()
print(temporary.path)
"""
    path = helpers.run(script, chest_dir).strip()
    assert not os.path.exists(path)
    with Chest(chest_dir) as c:
        assert dict(c) == {"x": [1]}


@pytest.mark.parametrize(
    "holder",
    [
        "import builtins; builtins.held = c",
        "import sys; sys.modules['held'] = c",
        "held = [c]; held.append(held)",
        "import threading; t = threading.local(); t.c = c",
        "class A:\n    held = c\n    def __del__(self): self.held['late'] = 1\na = A()",
        "import atexit; atexit.register(lambda: c.__setitem__('late', 1))",
        "import numpy as np; c['big'] = np.arange(300000); c.flush(); big = c['big']",
    ],
)
def test_wherever_a_chest_is_held_the_shutdown_is_silent(
    holder: str, chest_dir: Path
) -> None:
    script = "import sys\nfrom chest import Chest\nc = Chest(sys.argv[1])\nc['x'] = 1\n"
    if "late" in holder and "class" in holder:
        # After the chest was closed at exit, using it raises, which Python reports.
        script += holder.replace("self.held['late'] = 1", "repr(self.held)")
    else:
        script += holder
    helpers.run(script, chest_dir)
    with Chest(chest_dir) as c:
        assert c["x"] == 1


def test_sys_exit_and_an_exception_publish(chest_dir: Path) -> None:
    script = """
import sys
from chest import Chest
c = Chest(sys.argv[1])
c["x"] = 1
sys.exit(3)
"""
    helpers.run(script, chest_dir, status=3)
    with Chest(chest_dir) as c:
        assert c["x"] == 1


def test_what_cannot_be_written_at_exit_is_logged_and_the_rest_published(
    chest_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Stubborn:
        def __reduce__(self) -> str:
            raise RuntimeError("not me")

    c = Chest(chest_dir)
    c["bad"], c["good"] = Stubborn(), 1
    c.__del__()
    assert "could not be written" in caplog.text
    with Chest(chest_dir) as c:
        assert dict(c) == {"good": 1}


def test_a_killed_process_loses_only_what_was_not_published(chest_dir: Path) -> None:
    script = """
import os, signal, sys
from chest import Chest
c = Chest(sys.argv[1])
c["published"] = 1
c.sync()
c["not"] = 2
os.kill(os.getpid(), signal.SIGKILL)
"""
    helpers.run(script, chest_dir, status=-9)
    with Chest(chest_dir) as c:
        assert dict(c) == {"published": 1}


def test_what_nobody_expected_of_one_value_at_exit_costs_no_other_value(
    chest_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    c = Chest(chest_dir)
    for n in range(5):
        c[n] = [n] * 5000
    encode = c._spill.encode

    def fails(job: Any) -> Any:
        if job.key == 2:
            raise ZeroDivisionError
        return encode(job)

    c._spill.encode = fails  # type: ignore[method-assign]
    c.at_exit()
    assert "ZeroDivisionError" in caplog.text
    with Chest(chest_dir) as c:
        assert {*c} == {0, 1, 3, 4}
    assert [name for name in os.listdir(chest_dir) if name.startswith(".tmp")] == []
