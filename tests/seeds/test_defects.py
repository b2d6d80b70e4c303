"""Every defect that is known of the seeds has a test that it was not copied."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

# How many are known of each, and those that need none, with the reason.
KNOWN = {"chest": 13, "iodict": 12, "leakdb": 10, "datastore": 6, "persidict": 10}
NEED_NONE = {
    # Lacks of options that a chest has: the folder can be opened as one.
    ("persidict", 6),
    # What it depends on: `tests/architecture/test_import_cost.py` counts.
    ("persidict", 7),
    # jsonpickle, which runs code: there is no such format.
    ("persidict", 8),
    # Few characters in keys: so is it asked for.
    ("persidict", 10),
}


@pytest.mark.parametrize("seed", KNOWN)
def test_each_defect_has_a_test(seed: str) -> None:
    text = (Path(__file__).parent / f"test_{seed}.py").read_text(encoding="utf-8")
    # The first words of a test's docstring.
    shown = re.findall(r'def test_\w+\([^"]*?\) *(?:-> None)?:\n    """(D\d.*)', text)
    tested = {int(number) for line in shown for number in re.findall(r"D(\d+)", line)}
    every = set(range(1, KNOWN[seed] + 1))
    assert tested == every - {number for name, number in NEED_NONE if name == seed}
