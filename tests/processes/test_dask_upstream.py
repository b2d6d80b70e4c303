"""distributed's own tests of a worker's memory, with SpillChest in SpillBuffer's place.

They are in no wheel. ``CHEST_DISTRIBUTED_TESTS`` names a folder that has them (of a clone:
``distributed/tests``); otherwise Debian's package is fetched, whose tests are older than
what is installed, so that some fail with either: all that pass with SpillBuffer must pass.
Of Debian 12's, 24 pass with either and 21 fail with either: they test options that are no
more, names of files that zict has changed since, and the scheduler's data structures.

``policy="lru"``, since test_spill_constrained wants the older of two values of other sizes
to go; chest's own, "idle", takes the one of 500 bytes before the one of 200.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("distributed")

ROOT = Path(__file__).parents[2]
NAME = "test_worker_memory.py"
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


def fetched(folder: Path) -> Path:
    """The file with the tests, or a skipped test."""
    given = os.environ.get("CHEST_DISTRIBUTED_TESTS")
    if given:
        return Path(given) / NAME
    if not (shutil.which("apt-get") and shutil.which("dpkg-deb")):
        pytest.skip("CHEST_DISTRIBUTED_TESTS is not set, and there is no apt-get")
    package = "python3-distributed"
    subprocess.run(["apt-get", "download", package], cwd=folder, capture_output=True)
    for found in folder.glob(f"{package}_*.deb"):
        subprocess.run(["dpkg-deb", "-x", found, folder], check=True)
        return next(folder.glob(f"usr/**/tests/{NAME}"))
    pytest.skip(f"{package} cannot be fetched")


def passed(folder: Path, data: str) -> set[str]:
    """Names of the tests that pass with *data*."""
    command = [sys.executable, "-m", "pytest", "-rA", "-q", "-p", "no:xdist"]
    run = subprocess.run(
        [*command, "-p", "no:cacheprovider", "--timeout=60", "-c", "pytest.ini", NAME],
        cwd=folder,
        env={**os.environ, "DATA": data, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    return set(re.findall(r"^PASSED \S+::(\S+)", run.stdout, flags=re.MULTILINE))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_what_passes_with_distributeds_own_buffer_passes_with_a_chest(tmp_path):
    shutil.copy(fetched(tmp_path), tmp_path / NAME)
    (tmp_path / "conftest.py").write_text(CONFTEST)
    (tmp_path / "pytest.ini").write_text("[pytest]\nmarkers = slow\n")

    expected = passed(tmp_path, "buffer")

    assert len(expected) > 15
    assert expected - passed(tmp_path, "chest") == set()
