"""The house keeps its floors: the contracts stand in setup.cfg."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.architecture.house import ROOT


@pytest.mark.timeout(300)
def test_every_module_imports_only_from_the_floors_below_it():
    pytest.importorskip("importlinter", reason="import-linter is not installed")
    code = (
        "import sys; from importlinter.cli import lint_imports;"
        "sys.exit(lint_imports('setup.cfg', no_cache=True))"
    )

    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True
    )

    assert run.returncode == 0, run.stdout + run.stderr
