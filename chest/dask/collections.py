"""Values of a chest as dask collections.

Owns: how a value, or several, become an array, a frame or a bag whose parts are views of
the files. Does not own: the values.

The name of a collection says which chest, key and generation it was made of; a value that
was set again since is refused when it is computed, and never confused with the old one.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable
from typing import Any

from dask.base import tokenize

from chest.core import Chest
from chest.dask.results import SPACE, Shelf

__all__ = ["array", "bag", "dataframe"]


def array(
    chest: Chest, key: Hashable | list[Any], chunks: Any = "auto", axis: int = 0
) -> Any:
    """The array that is the value of *key*, as a dask array.

    Tasks map the file and take their part of it, so that nothing is read that is not
    used; workers must see the chest's folder.

    Parameters
    ----------
    chest : Chest
        What is dirty in it is published first.
    key : Hashable, or list of them
        Of a list, the arrays are joined along *axis*.
    chunks : object
        As for ``dask.array.from_array``; -1 makes one of each value.
    axis : int

    Returns
    -------
    dask.array.Array

    Raises
    ------
    KeyError
        There is no such key.
    TypeError
        The value is no array.

    Examples
    --------
    >>> import numpy as np
    >>> from chest import Chest
    >>> with Chest() as c:
    ...     c["x"] = np.arange(6.0).reshape(2, 3)
    ...     array(c, ["x", "x"]).sum(axis=0).compute()
    array([ 6., 10., 14.])
    """
    import dask.array as da

    if isinstance(key, list):
        parts = [array(chest, each, chunks) for each in key]
        return da.concatenate(parts, axis=axis)
    chest.sync()
    source = _ArrayInChest(Shelf(chest), key)
    name = f"chest-array-{tokenize(source, chunks)}"
    return da.from_array(source, chunks=chunks, name=name, meta=source.meta)


def dataframe(chest: Chest, keys: Iterable[Hashable] | None = None) -> Any:
    """The frames that are the values of *keys*, as one dask frame.

    Parameters
    ----------
    chest : Chest
        What is dirty in it is published first.
    keys : iterable of Hashable, optional
        One partition each, in this order; all of them otherwise.

    Returns
    -------
    dask.dataframe.DataFrame

    Examples
    --------
    >>> import pandas as pd
    >>> from chest import Chest
    >>> with Chest() as c:
    ...     c["a"], c["b"] = pd.DataFrame({"x": [1, 2]}), pd.DataFrame({"x": [3]})
    ...     dataframe(c).x.sum().compute(scheduler="sync")
    np.int64(6)
    """
    import dask.dataframe as dd

    chest.sync()
    wanted, shelf = list(chest if keys is None else keys), Shelf(chest)
    sources = [(key, shelf.version(key)) for key in wanted]
    meta = chest[wanted[0]].iloc[:0]
    return dd.from_map(_view, sources, args=[shelf], meta=meta, label="chest-dataframe")


def bag(
    chest: Chest, keys: Iterable[Hashable] | None = None, partition_size: int = 100
) -> Any:
    """The values of *keys* as a dask bag.

    Parameters
    ----------
    chest : Chest
        What is dirty in it is published first.
    keys : iterable of Hashable, optional
        All of them otherwise.
    partition_size : int
        How many values one task reads.

    Returns
    -------
    dask.bag.Bag

    Examples
    --------
    >>> from chest import Chest
    >>> with Chest() as c:
    ...     c.update(a=1, b=2, c=3)
    ...     bag(c).sum().compute(scheduler="sync")
    6
    """
    import dask.bag as db
    from dask._task_spec import Task

    chest.sync()
    wanted, shelf = list(chest if keys is None else keys), Shelf(chest)
    sources = [(key, shelf.version(key)) for key in wanted]
    name = f"chest-bag-{tokenize(SPACE, shelf, sources, partition_size)}"
    starts = range(0, len(sources), partition_size)
    graph = {
        (name, i): Task(
            (name, i), _views, sources[start : start + partition_size], shelf
        )
        for i, start in enumerate(starts)
    }
    return db.Bag(graph, name, len(graph))


def _view(source: tuple[Hashable, int], shelf: Shelf) -> Any:
    return shelf.view(*source)


def _views(sources: list[tuple[Hashable, int]], shelf: Shelf) -> list[Any]:
    return [shelf.view(*source) for source in sources]


class _ArrayInChest:
    """What dask asks of an array: its shape, and parts of it."""

    def __init__(self, shelf: Shelf, key: Hashable) -> None:
        version = shelf.version(key)
        value = shelf.view(key, version)
        if not all(hasattr(value, name) for name in ("shape", "dtype", "__array__")):
            msg = f"the value of {key!r} is a {type(value).__name__}, no array"
            raise TypeError(msg)
        self._shelf, self._key, self._version = shelf, key, version
        self.shape, self.dtype, self.ndim = value.shape, value.dtype, value.ndim
        self.meta = value[(slice(0, 0),) * value.ndim]

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        return (*self._shelf.__dask_tokenize__(), self._key, self._version)

    def __getitem__(self, part: Any) -> Any:
        return self._shelf.view(self._key, self._version)[part]
