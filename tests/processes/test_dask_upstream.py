"""distributed's own tests of a worker's memory, with SpillChest in SpillBuffer's place.

They are in no wheel, and not here. They come from the first of these that has them:
``CHEST_DISTRIBUTED_TESTS``, a folder (of a clone: ``distributed/tests``); the tag of the
installed version on GitHub, or at ``CHEST_DISTRIBUTED_RAW``; Debian's package. Where they
are older than what is installed, some fail with either: all that pass with SpillBuffer
must pass. Slow ones run as well: it is distributed's conftest that leaves them out.

Of a file of 2024, with 2026.8.0, 37 tests pass with either, and 14 fail with either: 11
are of attributes and methods that are no more, two take the scheduler's ``unrunnable`` for
a set, one expects an error's old words. With these three written as things are now, 40
pass with either. Of Debian 12's, of 2022, 24 pass with either and 21 fail with either.

``policy="lru"``, since test_spill_constrained wants the older of two values of other sizes
to go; chest's own, "idle", takes the one of 500 bytes before the one of 200. All others
pass with that as well.
"""

from __future__ import annotations

import http.server
import os
import re
import shutil
import subprocess
import sys
import threading
import urllib.request
from pathlib import Path

import pytest

distributed = pytest.importorskip("distributed")

ROOT = Path(__file__).parents[2]
NAME = "test_worker_memory.py"
RAW = "https://raw.githubusercontent.com/dask/distributed"
PACKAGE = "python3-distributed"
FEWEST = 20  # that pass with SpillBuffer, so that the test cannot pass on nothing
CONFTEST = """
import os

import distributed.spill
import distributed.worker_memory
import distributed.worker_state_machine as machine
from distributed.utils_test import *

if os.environ["DATA"] == "chest":
    from chest.dask import SpillChest

    class Buffer(SpillChest):
        def __init__(self, spill_directory, target, max_spill=False):
            most = None if max_spill is False else max_spill
            folder = os.path.dirname(spill_directory)
            super().__init__(folder, target, most, policy="lru")

    distributed.spill.SpillBuffer = distributed.worker_memory.SpillBuffer = Buffer

# What older tests import.
distributed.spill.has_zict_210 = distributed.spill.has_zict_220 = True
if not hasattr(machine, "DigestMetric"):
    machine.DigestMetric = object
"""


def fetched(folder: Path, name: str = NAME) -> Path:
    """The file with the tests, in *folder* if it had to be fetched, or a skipped test."""
    if given := os.environ.get("CHEST_DISTRIBUTED_TESTS"):
        return Path(given) / name
    found = downloaded(folder, name) or unpacked(folder, name)
    if found is None:
        pytest.skip("CHEST_DISTRIBUTED_TESTS is not set; nothing was fetched instead")
    return found


def downloaded(folder: Path, name: str) -> Path | None:
    """The file as it was when what is installed was released."""
    raw = os.environ.get("CHEST_DISTRIBUTED_RAW", RAW)
    url = f"{raw}/{distributed.__version__}/distributed/tests/{name}"
    try:
        with urllib.request.urlopen(url, timeout=10) as answer:
            text = answer.read()
    except OSError:  # not reached, or not found
        return None
    (folder / "downloaded").mkdir()
    path = folder / "downloaded" / name
    path.write_bytes(text)
    return path


def unpacked(folder: Path, name: str) -> Path | None:
    """The file from Debian's package."""
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        return None
    subprocess.run(["apt-get", "download", PACKAGE], cwd=folder, capture_output=True)
    for found in folder.glob(f"{PACKAGE}_*.deb"):
        subprocess.run(["dpkg-deb", "-x", found, folder], check=True)
    return next(folder.glob(f"usr/**/tests/{name}"), None)


def passed(folder: Path, data: str, *names: str) -> set[str]:
    """Those of the tests with these names, or of all, that pass with *data*."""
    command = [sys.executable, "-m", "pytest", "-rA", "-q", "-p", "no:xdist"]
    which = [f"{NAME}::{name}" for name in names] or [NAME]
    run = subprocess.run(
        [
            *command,
            "-p",
            "no:cacheprovider",
            "--timeout=60",
            "-c",
            "pytest.ini",
            *which,
        ],
        cwd=folder,
        env={**os.environ, "DATA": data, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    return set(re.findall(r"^PASSED \S+::(.+)", run.stdout, flags=re.MULTILINE))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_passes_with_distributeds_own_buffer_passes_with_a_chest(tmp_path):
    shutil.copy(fetched(tmp_path), tmp_path / NAME)
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = slow\n")

    expected = passed(tmp_path, "buffer")

    assert len(expected) >= FEWEST
    missing = expected - passed(tmp_path, "chest")
    if missing:  # some wait for seconds of the clock, on a machine that others load
        missing -= passed(tmp_path, "chest", *missing)
    assert missing == set()


# -- where they come from --------------------------------------------------------------


@pytest.fixture
def raw(monkeypatch, tmp_path):
    """A folder that is served in GitHub's place."""
    served = tmp_path / "raw"
    served.mkdir()

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(served))

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    host, port = server.server_address
    monkeypatch.setenv("CHEST_DISTRIBUTED_RAW", f"http://{host}:{port}")
    monkeypatch.setenv("no_proxy", host)
    monkeypatch.delenv("CHEST_DISTRIBUTED_TESTS", raising=False)
    yield served
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_file_is_that_of_the_version_which_is_installed(raw, tmp_path):
    there = raw / distributed.__version__ / "distributed" / "tests"
    there.mkdir(parents=True)
    (there / NAME).write_text("def test_nothing(): pass\n")

    assert fetched(tmp_path).read_text() == "def test_nothing(): pass\n"


def test_a_folder_that_was_named_comes_first(raw, tmp_path, monkeypatch):
    monkeypatch.setenv("CHEST_DISTRIBUTED_TESTS", str(tmp_path))

    assert fetched(tmp_path) == tmp_path / NAME


@pytest.mark.usefixtures("raw")
def test_what_cannot_be_fetched_skips_the_test(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(pytest.skip.Exception, match="nothing was fetched"):
        fetched(tmp_path)
