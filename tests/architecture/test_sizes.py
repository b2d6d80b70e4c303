"""Sizes that keep rooms livable. A warning light: a split that makes the way longer is
worse than a number that is raised with a reason."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

import pytest

from tests.architecture.house import ROOT, SOURCES, tree

if TYPE_CHECKING:
    from pathlib import Path

FILE_LINES = 470  # all of these count code: docstrings, comments and blank lines do not
CLASS_LINES = 410  # Index, Manifest, and Chest with its names of 1.x are the longest
FUNCTION_LINES = 60
PUBLIC_NAMES = 45  # of Chest, besides those that dict and chest 1.x brought
OLD_NAMES = {
    "drop",
    "flush",
    "get_from_disk",
    "inmem",
    "key_to_filename",
    "lock",
    "move_to_disk",
    "prefetch",
    "shrink",
    "write_keys",
}


def described(node: ast.AST) -> set[int]:
    """Numbers of the lines of all docstrings in *node*, which may well be long."""
    found: set[int] = set()
    for each in ast.walk(node):
        has = isinstance(each, ast.Module | ast.ClassDef | ast.FunctionDef)
        if has and ast.get_docstring(each) is not None:
            first = each.body[0]
            found.update(range(first.lineno, first.end_lineno + 1))
    return found


def code_lines(node: ast.AST, text: list[str]) -> int:
    """Lines that are neither blank, nor comment, nor docstring."""
    first = getattr(node, "lineno", 1)
    last = getattr(node, "end_lineno", len(text))
    skipped = described(node)
    return sum(
        number not in skipped
        and bool(line := text[number - 1].strip())
        and not line.startswith("#")
        for number in range(first, last + 1)
    )


def too_long(path: Path) -> list[str]:
    """What of a source file is longer than its kind should be."""
    text = path.read_text(encoding="utf-8").splitlines()
    rooms = [("the file", code_lines(tree(path), text), FILE_LINES)]
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.ClassDef):
            rooms.append((node.name, code_lines(node, text), CLASS_LINES))
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            rooms.append((node.name, code_lines(node, text), FUNCTION_LINES))
    return [f"{name}: {size} lines" for name, size, most in rooms if size > most]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_classes_and_functions_stay_short(path):
    assert too_long(path) == []


def test_the_measure_sees_a_long_function(tmp_path):
    path = tmp_path / "x.py"
    path.write_text("def f():\n" + "    f()\n" * FUNCTION_LINES)

    assert too_long(path) == [f"f: {FUNCTION_LINES + 1} lines"]


def test_chest_has_a_face_one_can_remember():
    from chest import Chest

    public = {name for name in dir(Chest) if not name.startswith("_")}

    assert len(public - set(dir(dict)) - OLD_NAMES) <= PUBLIC_NAMES
