"""Fixtures of all tests, and the checks that are on for every one of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import hypothesis
import pytest

from tests import buckets, leaks

if TYPE_CHECKING:
    from pathlib import Path

collect_ignore = ["typing"]  # for type checkers; never run

hypothesis.settings.register_profile("fast", deadline=None, max_examples=50)
hypothesis.settings.register_profile("soak", deadline=None, max_examples=5000)
hypothesis.settings.load_profile("fast")


def pytest_configure(config: pytest.Config) -> None:
    # As a plugin its fixtures also guard the doctests, which are not below tests/.
    config.pluginmanager.register(leaks, "chest-leaks")
    config.pluginmanager.register(buckets, "chest-buckets")


@pytest.fixture
def chest_dir(tmp_path: Path) -> Path:
    """An empty folder that nobody else can read or write, as a chest wants it."""
    path = tmp_path / "chest"
    path.mkdir(mode=0o700)
    return path
