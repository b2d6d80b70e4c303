"""Coming from other libraries, as the pages say."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest

from chest import Chest
from tests.architecture.house import ROOT
from tests.architecture.test_docs import blocks


def test_the_recipe_for_diskcache_brings_values_order_and_deadlines(
    tmp_path: Path,
) -> None:
    diskcache = pytest.importorskip("diskcache")
    page: dict[str, Any] = {"Chest": Chest}
    (recipe,) = [
        code for code in blocks(ROOT / "docs" / "howto.rst") if "move_in" in code
    ]
    exec(recipe, page)
    with diskcache.Cache(tmp_path / "old") as old:
        old["b"] = [1]
        old.set("over", 1, expire=0.001)
        old.set(("a", 1), b"x" * 100_000, expire=60)
        time.sleep(0.01)
    page["move_in"](tmp_path / "old", tmp_path / "new")
    with Chest(tmp_path / "new") as new:
        assert list(new.items()) == [("b", [1]), (("a", 1), b"x" * 100_000)]
        assert new.expires("b") is None
        assert 30 < new.expires(("a", 1)) - time.time() <= 60
