"""The door to chest 0.2.3 of 2016, loaded beside the present package.

Its sdist is taken from ``--legacy FILE``, or fetched by pip with ``--legacy download``.
It imports ``collections.MutableMapping``, gone since Python 3.10, which is lent to it
while it is imported.
"""

from __future__ import annotations

import collections
import collections.abc
import importlib.util
import os
import subprocess
import sys
import tarfile
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["SDIST", "absence", "download", "load"]

SDIST = "CHEST_LEGACY_SDIST"  # environment: the children measure it too
MODULE = "chest_0_2_3"


def download(folder: Path) -> Path:
    """Let pip fetch the sdist into *folder* and return its path.

    Raises
    ------
    subprocess.CalledProcessError
        pip could not fetch it.
    """
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
    where = ["--no-binary", "chest", "--dest", str(folder), "chest==0.2.3"]
    subprocess.run(pip + where, check=True)
    return next(folder.glob("chest-0.2.3*"))


def absence() -> str:
    """Why it cannot be measured; empty when it can."""
    if not Path(os.environ.get(SDIST, "")).is_file():
        return "needs --legacy FILE or --legacy download"
    return ""


def load() -> Any:
    """Return the old package, imported once under a name of its own."""
    if MODULE in sys.modules:
        return sys.modules[MODULE]
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(os.environ[SDIST]) as archive:
            archive.extractall(folder, filter="data")
        init = next(Path(folder).glob("*/chest/__init__.py"))
        spec = importlib.util.spec_from_file_location(
            MODULE, init, submodule_search_locations=[str(init.parent)]
        )
        if spec is None or spec.loader is None:
            raise ImportError(MODULE)
        module = importlib.util.module_from_spec(spec)
        with _names_of_2016():
            # Relative imports inside look their package up by name.
            sys.modules[MODULE] = module
            spec.loader.exec_module(module)
    return module


@contextmanager
def _names_of_2016() -> Iterator[None]:
    """Lend ``collections`` the name that old code expects."""
    names = vars(collections)
    names["MutableMapping"] = collections.abc.MutableMapping
    try:
        with warnings.catch_warnings():
            # Its regular expressions predate the warning about escapes.
            warnings.simplefilter("ignore")
            yield
    finally:
        del names["MutableMapping"]
