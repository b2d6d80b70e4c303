"""``import chest`` is light: counted in modules, because seconds depend on the day."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

HEAVY = {
    "asyncio",
    "cloudpickle",
    "ctypes",
    "dask",
    "distributed",
    "heapdict",
    "msgspec",
    "multiprocessing",
    "numcodecs",
    "numpy",
    "obstore",
    "pandas",
    "pyarrow",
    "tqdm",
    "xxhash",
    "zarr",
}
HEAVY_WITH_CHEST = HEAVY - {"heapdict", "msgspec", "xxhash"}
MOST_MODULES = 30  # loaded by `import chest` beyond those of the bare interpreter
MOST_MODULES_WITH_CHEST = 153  # the same once the class itself is asked for


def loaded_by(statement: str) -> set[str]:
    code = (
        "import json, sys; before = set(sys.modules)\n"
        f"{statement}\n"
        "print(json.dumps(sorted(set(sys.modules) - before)))"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return set(json.loads(run.stdout))


@pytest.mark.parametrize(
    ("statement", "heavy", "most"),
    [
        ("import chest", HEAVY, MOST_MODULES),
        ("from chest import Chest", HEAVY_WITH_CHEST, MOST_MODULES_WITH_CHEST),
    ],
)
def test_import_loads_nothing_heavy(statement, heavy, most):
    loaded = loaded_by(statement)

    assert {name.split(".")[0] for name in loaded} & heavy == set()
    assert len(loaded) <= most, sorted(loaded)


def test_the_measure_sees_a_heavy_import():
    assert "ctypes" in loaded_by("import ctypes")
