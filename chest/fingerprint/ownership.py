"""Whose a file or a module is: the user's own, or installed.

Owns: where installed code lies, and importing what a function would import.
Does not own: what is made of the difference (`code`).
"""

from __future__ import annotations

import functools
import importlib.util
import os
import pathlib
import site
import sys
import sysconfig
import types
from typing import Any

__all__ = ["is_own", "is_own_module", "own_import", "own_imports"]

# Where installers put packages, also those of an environment that this one looks into.
PACKAGES = (f"{os.sep}site-packages{os.sep}", f"{os.sep}dist-packages{os.sep}")


@functools.cache
def _installed() -> tuple[str, ...]:
    """Folders of what is installed: the standard library, packages, chest itself."""
    paths = sysconfig.get_paths()
    found = [paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib")]
    found += [*site.getsitepackages(), site.getusersitepackages()]
    found.append(str(pathlib.Path(__file__).parents[1]))
    return tuple({os.path.realpath(path) + os.sep for path in found})


@functools.lru_cache(maxsize=4096)
def is_own(file: str) -> bool:
    """Whether code of this file is the user's: not installed, and not Python's.

    Examples
    --------
    >>> is_own("<stdin>"), is_own(os.__file__)
    (True, False)
    """
    if file.startswith("<"):
        return not file.startswith("<frozen ")
    real = os.path.realpath(file)
    return not real.startswith(_installed()) and not any(p in real for p in PACKAGES)


def is_own_module(name: str) -> bool:
    """Whether a module is the user's; one without a file is, unless it is built in."""
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    if file is not None:
        return is_own(file)
    return name not in sys.builtin_module_names


def own_import(home: str, space: dict[str, Any]) -> types.ModuleType | None:
    """A module of the user's own that a function imports when it runs."""
    try:
        name = importlib.util.resolve_name(home, space.get("__package__"))
        if name not in sys.modules:
            spec = importlib.util.find_spec(name)
            if spec is None or (spec.origin and not is_own(spec.origin)):
                return None  # a folder without __init__ has no origin
            importlib.import_module(name)
    except (ImportError, ValueError):
        return None  # the function itself will say so, if it comes to that
    return sys.modules[name] if is_own_module(name) else None


def own_imports(home: str, space: dict[str, Any]) -> list[types.ModuleType]:
    """The user's own modules among those that ``import a.b.c`` imports."""
    found: list[types.ModuleType] = []
    parts = home.split(".")
    for most in range(1, len(parts) + 1):
        module = own_import(".".join(parts[:most]), space)
        if module is None:
            break
        found.append(module)
    return found
