"""Sphinx's settings; warnings are errors wherever the pages are built."""

from __future__ import annotations

import configparser
from pathlib import Path

config = configparser.ConfigParser()
config.read(Path(__file__).parents[1] / "setup.cfg", encoding="utf-8")

project = "chest"
author = config["metadata"]["author"]
copyright = f"2026, {author}"
release = version = config["metadata"]["version"]

extensions = ["numpydoc", "sphinx.ext.autodoc"]
exclude_patterns = ["_build"]
nitpicky = False  # numpydoc's types are words for people, not names to resolve
numpydoc_show_class_members = False
autodoc_member_order = "groupwise"
autodoc_preserve_defaults = True
python_maximum_signature_line_length = 88
default_role = "py:obj"

html_theme = "pydata_sphinx_theme"
html_theme_options = {"show_toc_level": 2, "navigation_with_keys": False}
html_show_sourcelink = False
