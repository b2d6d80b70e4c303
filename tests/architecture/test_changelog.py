"""The version is written in setup.cfg; the changelog's top entry speaks of it."""

from __future__ import annotations

import configparser
import importlib.metadata
import re

import pytest

import chest
from tests.architecture.house import ROOT


def stated_version() -> str:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    return config["metadata"]["version"]


def test_the_top_entry_of_the_changelog_is_this_version():
    text = (ROOT / "docs" / "changelog.rst").read_text(encoding="utf-8")
    entries = re.findall(r"^(\d+\.\d+\.\d+) — .+\n-+$", text, flags=re.MULTILINE)

    assert entries[0] == stated_version()


def test_the_installed_package_is_this_version():
    try:
        importlib.metadata.distribution("chest")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("chest runs from its sources and is not installed")

    assert chest.__version__ == stated_version()
