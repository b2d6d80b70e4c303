"""The checks that guard every test must themselves be able to fail."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from tests import leaks


def test_an_open_file_is_seen(tmp_path):
    before = leaks.open_files()

    with open(tmp_path / "x", "wb"):
        assert leaks.open_files() - before == Counter([str(tmp_path / "x")])

    assert leaks.open_files() == before


def test_a_child_is_seen_until_it_is_waited_for():
    before = leaks.child_processes()

    with subprocess.Popen([sys.executable, "-c", ""]) as child:
        assert leaks.child_processes() - before == {child.pid}

    assert leaks.child_processes() == before


def test_a_temporary_chest_is_seen():
    before = leaks.temporary_chests()
    path = tempfile.mkdtemp(suffix=".chest")

    assert leaks.temporary_chests() - before == {os.path.basename(path)}

    Path(path).rmdir()


def test_temporary_files_of_tests_stay_in_the_tests_own_folder(tmp_path_factory):
    root = tmp_path_factory.getbasetemp()

    assert Path(tempfile.gettempdir()).is_relative_to(root)
    assert os.environ["TMPDIR"] == tempfile.gettempdir()
