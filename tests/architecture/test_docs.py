"""Every example in README.rst and docs/ runs, and the pages build without a warning."""

from __future__ import annotations

import doctest
import importlib.util
import re
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING

import pytest

from tests.architecture.house import ROOT

if TYPE_CHECKING:
    from pathlib import Path

PAGES = [ROOT / "README.rst", *sorted((ROOT / "docs").glob("*.rst"))]
BLOCK = re.compile(
    r"^\.\. code(?:-block)?:: python\n(?: +:.*\n)*((?:\n| +.*\n)+)", re.MULTILINE
)
FLAGS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def examples(text: str) -> list[doctest.Example]:
    """All examples of a page in order: prompts, and Python blocks without prompts."""
    found = doctest.DocTestParser().get_examples(text)
    for block in BLOCK.finditer(text):
        code = textwrap.dedent(block[1])
        if ">>>" not in code and not needs_torch(code):
            line = text.count("\n", 0, block.start())
            # A doctest example is one statement; a block may be several.
            source = f"exec({code!r}, globals())\n"
            found.append(doctest.Example(source, "", lineno=line))
    return sorted(found, key=lambda example: example.lineno)


def blocks(page: Path) -> list[str]:
    """The Python blocks of a page."""
    text = page.read_text(encoding="utf-8")
    return [textwrap.dedent(block[1]) for block in BLOCK.finditer(text)]


def needs_torch(code: str) -> bool:
    """Whether a block needs torch, and it is not here: a gigabyte that no extra takes."""
    return "import torch" in code and importlib.util.find_spec("torch") is None


def test_a_block_without_prompts_is_run_in_its_place():
    text = "\n.. code:: python\n\n    a = 1\n    b = a\n\n>>> b\n1\n"

    first, second = examples(text)

    assert "b = a" in first.source
    assert (second.source, second.want) == ("b\n", "1\n")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_example_of_the_page_runs(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(tmp_path)
    text = page.read_text(encoding="utf-8")
    test = doctest.DocTest(examples(text), {}, page.name, str(page), 0, text)
    report: list[str] = []

    result = doctest.DocTestRunner(optionflags=FLAGS).run(test, out=report.append)

    assert result.failed == 0, "".join(report)


@pytest.mark.timeout(300)
def test_the_pages_build_without_a_warning(tmp_path: Path):
    for module in ("sphinx", "numpydoc", "pydata_sphinx_theme"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")
    options = ["-q", "-W", "--keep-going", "-b", "html"]
    doctrees = ["-d", str(tmp_path / "doctrees")]
    pages = ["docs", str(tmp_path / "html")]

    run = subprocess.run(
        [sys.executable, "-m", "sphinx", *options, *doctrees, *pages],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )

    assert run.returncode == 0, run.stdout + run.stderr
    assert (tmp_path / "html" / "index.html").exists()
