"""One dict for data that does not fit in memory.

Owns: the public names, each loaded from its home when it is first asked for, so that
``import chest`` costs next to nothing.
Does not own: any behaviour.

Examples
--------
>>> import chest
>>> chest.nbytes(b"abc") < 100
True
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from chest import errors

if TYPE_CHECKING:
    from chest.core import Chest
    from chest.memo import map, memoize
    from chest.ordered import Ordered
    from chest.queues.durable import DurableQueue
    from chest.queues.flushing import FlushQueue
    from chest.recovery import recover
    from chest.sizing import nbytes
    from chest.zarrstore import zarr_store

    __version__: str

__all__ = [
    "Chest",
    "DurableQueue",
    "FlushQueue",
    "Ordered",
    "errors",
    "map",
    "memoize",
    "nbytes",
    "recover",
    "zarr_store",
]

_HOMES = {
    "Chest": "chest.core",
    "DurableQueue": "chest.queues.durable",
    "FlushQueue": "chest.queues.flushing",
    "Ordered": "chest.ordered",
    "map": "chest.memo",
    "memoize": "chest.memo",
    "nbytes": "chest.sizing",
    "recover": "chest.recovery",
    "zarr_store": "chest.zarrstore",
}


def __getattr__(name: str) -> object:
    """Load a public name from its home, once."""
    if name == "__version__":
        from importlib.metadata import version

        value: object = version("chest")
    elif name in _HOMES:
        from importlib import import_module

        value = getattr(import_module(_HOMES[name]), name)
    else:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Name what is there and what would be loaded."""
    return sorted({*globals(), *__all__, "__version__"})
