"""Results of dask tasks that outlive the run, in a chest.

Owns: under what name a result is kept, which results may be kept at all, and how a graph
is changed so that what is there is not computed again. Does not own: running the graph.

A key of dask's names a result only if it is the same in every session. Those that are
drawn at random are recognised, and so are those of tasks that depend on them, and of those
that read what can change under its name; they are left alone.
"""

from __future__ import annotations

import contextlib
import logging
import re
import sys
import time
import warnings
import weakref
from collections.abc import Callable, Hashable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from threading import BoundedSemaphore
from typing import Any, Self, cast

import dask
import dask.threaded
from dask._task_spec import Alias, Dict, Task, TaskRef, convert_legacy_graph
from dask.base import (
    collections_to_expr,
    get_scheduler,
    normalize_token,
    tokenize,
    unpack_collections,
)
from dask.callbacks import Callback
from dask.core import flatten

from chest.core import Chest
from chest.errors import ChestError, short
from chest.keeper import reopen
from chest.memo.elsewhere import running_client
from chest.settings import Settings

__all__ = ["Results", "Shelf", "checkpoint", "compute", "get", "name_of"]

log = logging.getLogger("chest")

SPACE = "chest.dask"
MIN_COST = 0.1  # seconds
MOST_WAITING = 4  # results that wait to be written: each is held in memory
UUID = "[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}"
# Drawn at random, or made from an address and not from what lies there: of dask's own
# readers, these (the second is of `read_text`); others have the time of the file.
ADDRESSES = "from-zarr|file_to_blocks|from-npy-stack|read_(?:orc|hdf)"
VOLATILE = re.compile(f"hlgfinalizecompute|{ADDRESSES}|{UUID}")
OUTSIDE = (
    "zarr",
    "h5py",
    "netCDF4",
    "tables",
    "tiledb",
)  # they change under their names

_checkpoints: set[str] = set()  # names of collections that are to be kept


class Shelf:
    """A chest as tasks see it: it travels without being flushed, and results leave memory.

    In another process the chest is opened once, by path and options.
    """

    def __init__(self, chest: Chest) -> None:
        if not isinstance(cast("object", chest), Chest):
            msg = f"a Chest is needed to keep results in, not {short(chest)}"
            raise TypeError(msg)
        self.chest = chest
        _opened[chest.path] = chest

    def __reduce__(self) -> tuple[Any, ...]:
        return _shelf, (type(self.chest), self.chest.path, self.chest._settings)

    def __dask_tokenize__(self) -> tuple[str, str]:
        return SPACE, self.chest._identity  # another one may lie at the path later

    def load(self, name: Hashable) -> Any:
        """The value, for the caller alone: nobody sees what is changed in it."""
        return self.chest._copy_of(name)

    def version(self, key: Hashable) -> int | str:
        """Which value a key has."""
        facts = self.chest.entry(key)
        return facts.etag or facts.generation

    def view(self, key: Hashable, version: int | str) -> Any:
        """The value as a read-only view of its file, if it is still that one.

        Raises
        ------
        ValueError
            The key was set again since the collection was made.
        """
        value, found = self.chest._view_of(key)
        if found != version:
            msg = (
                f"{short(key)} in {self.chest.path} was set again since the collection "
                f"was made: make it anew"
            )
            raise ValueError(msg)
        return value

    def keep(self, name: Hashable, value: Any) -> None:
        """Store and publish a result; one that cannot be stored is logged, not raised."""
        try:
            self.chest[name] = value
            self.chest.move_to_disk(name)
        except Exception as error:
            # A value may raise anything when it is weighed or written, and the task that
            # returned it has succeeded.
            log.warning("%s is not kept: %s", short(name), error, exc_info=True)
            with contextlib.suppress(ChestError):
                self.chest.pop(name, None)


_opened: weakref.WeakValueDictionary[str, Chest] = weakref.WeakValueDictionary()
_held: dict[str, Chest] = {}  # those that were opened for tasks of another process


def _shelf(kind: type[Chest], path: str, options: Settings) -> Shelf:
    chest = _opened.get(path)
    if chest is None or chest._closed:
        chest = _held[path] = reopen(kind, path, options)
    return Shelf(chest)


def _normalize_frozenset(held: frozenset[Any]) -> tuple[Any, ...]:
    """What dask's names say of a frozenset: as of a set, the same in every session.

    dask pickles it, in an order that differs from session to session.
    """
    return type(held), sorted(map(tokenize, held))


normalize_token.register(frozenset, _normalize_frozenset)


def name_of(key: Hashable) -> tuple[str, str, Hashable]:
    """The key in the chest under which the result of the task *key* is kept.

    Functions are told apart by their pickles, which the version of Python changes, and
    what a task of one name does may change with dask's.
    """
    return SPACE, f"{sys.version_info[0]}.{sys.version_info[1]}-{dask.__version__}", key


# ------------------------------------------------------------------ what may be kept


class _Stable:
    """Whether keys of one graph mean the same in every session; remembers the answers."""

    def __init__(self, graph: Mapping[Any, Any]) -> None:
        self._graph = graph
        self._known: dict[Any, bool] = {}

    def __call__(self, key: Any) -> bool:
        """Whether *key* and all that it depends on are stable."""
        known, graph = self._known, self._graph
        stack = [key]  # no recursion: chains may be long
        while stack:
            each = stack[-1]
            if each in known:
                stack.pop()
                continue
            node = graph.get(each)
            needed = () if node is None else node.dependencies
            unknown = [one for one in needed if one not in known]
            if unknown:
                stack += unknown
                continue
            known[each] = _is_stable(each, node) and all(known[one] for one in needed)
            stack.pop()
        return known[key]


def _is_stable(key: Any, node: Any) -> bool:
    """Whether a task, but for what it depends on, means the same in every session."""
    if VOLATILE.search(str(key[0] if isinstance(key, tuple) else key)):
        return False
    if node is None:
        return True
    if not isinstance(node, Task):
        value = getattr(node, "value", None)
        return type(value).__module__.partition(".")[0] not in OUTSIDE
    for part in (*node.args, *node.kwargs.values()):
        if type(part).__module__.partition(".")[0] in OUTSIDE:
            return False
        if (
            node.has_subgraph()
            and isinstance(part, dict)
            # Tasks that were fused: their names stand inside.
            and not all(_is_stable(inner, each) for inner, each in part.items())
        ):
            return False
    return True


def _marked(key: Any) -> bool:
    """Whether the key is of a collection that `checkpoint` made."""
    return (key[0] if isinstance(key, tuple) else key) in _checkpoints


# ------------------------------------------------------------------- local schedulers


class Results(Callback):
    """Keep what tasks return, and do not run tasks whose result is there.

    For dask's own schedulers (``"threads"``, ``"processes"``, ``"synchronous"``), as a
    context manager. With a distributed client use `compute` or `get`: when the block ends
    and only such a client ran in it, a RuntimeWarning says so.

    Parameters
    ----------
    chest : Chest
        Results are published in it as they come.
    min_cost : float
        Seconds that a task must have taken to be kept; 0 keeps all of them. What
        `checkpoint` marked is kept whatever it took.

    Notes
    -----
    Keys are dask's own, with the versions of Python and dask. A task whose key is not
    stable between sessions is neither kept nor found; see `chest.dask`.

    Results are written by one thread beside the run. One that cannot be written is
    logged, and the run goes on.

    Examples
    --------
    >>> import dask
    >>> from chest import Chest
    >>> calls = []
    >>> double = dask.delayed(lambda x: calls.append(x) or 2 * x, pure=True)
    >>> with Chest() as c, Results(c, min_cost=0):
    ...     dask.compute(double(1), scheduler="sync")
    ...     dask.compute(double(1), scheduler="sync")
    (2,)
    (2,)
    >>> calls
    [1]
    """

    def __init__(self, chest: Chest, min_cost: float = MIN_COST) -> None:
        super().__init__()
        self._shelf, self._min_cost = Shelf(chest), min_cost
        self._runs: dict[int, _Run] = {}
        self._used = False

    def __enter__(self) -> Self:
        """Keep results from now on."""
        self._used = False
        super().__enter__()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        """Keep no more; say so if a distributed client ran what there was to run."""
        super().__exit__(kind, error, trace)
        if error is None and not self._used and running_client() is not None:
            msg = (
                "chest.dask.Results kept nothing: dask's own schedulers ran nothing in its "
                "block, and it does not see what a distributed client runs. Use "
                "chest.dask.compute(..., store=c), or scheduler='threads'"
            )
            warnings.warn(msg, RuntimeWarning, stacklevel=2)

    def _start(self, dsk: dict[Any, Any]) -> None:
        self._used = True
        run = self._runs[id(dsk)] = _Run(self._shelf, dsk)
        run.use_hits()

    def _pretask(self, key: Any, dsk: Any, state: Any) -> None:
        self._runs[id(dsk)].began[key] = time.perf_counter()

    def _posttask(
        self, key: Any, value: Any, dsk: Any, state: Any, worker: Any
    ) -> None:
        run = self._runs[id(dsk)]
        cost = time.perf_counter() - run.began.pop(key)
        if cost >= self._min_cost or (_checkpoints and _marked(key)):
            run.keep(key, value)

    def _finish(self, dsk: Any, state: Any, errored: bool) -> None:
        self._runs.pop(id(dsk)).finish()


class _Run:
    """One graph that a local scheduler runs."""

    def __init__(self, shelf: Shelf, graph: dict[Any, Any]) -> None:
        self.began: dict[Any, float] = {}
        self._shelf, self._graph = shelf, graph
        self._stable = _Stable(dict(graph))
        self._hits: set[Any] = set()
        self._writer: ThreadPoolExecutor | None = None
        self._room = BoundedSemaphore(MOST_WAITING)

    def use_hits(self) -> None:
        """Replace tasks by loading; what is upstream of them is asked for by nobody."""
        there = self._shelf.chest._there()
        if not len(there):
            return
        for key, node in self._graph.items():
            if not isinstance(node, Task) or (name := name_of(key)) not in there:
                continue
            if self._stable(key):
                self._graph[key] = Task(key, _load, self._shelf, name)
                self._hits.add(key)

    def keep(self, key: Any, value: Any) -> None:
        """Have a result written; waits when too many are waiting."""
        task = self._graph.get(key)
        if key in self._hits or not isinstance(task, Task) or not self._stable(key):
            return
        if self._writer is None:
            self._writer = ThreadPoolExecutor(1)
        self._room.acquire()
        self._writer.submit(self._write, name_of(key), value)

    def _write(self, name: Hashable, value: Any) -> None:
        try:
            self._shelf.keep(name, value)
        finally:
            self._room.release()

    def finish(self) -> None:
        """Wait until all is written."""
        if self._writer is not None:
            self._writer.shutdown()


# --------------------------------------------------------------------- any scheduler


def get(
    chest: Chest, base: Callable[..., Any] | None = None, min_cost: float = 0.0
) -> Callable[..., Any]:
    """A ``scheduler=`` that keeps results, upon any other.

    Workers save and load through the chest's folder, which all of them must see.

    Parameters
    ----------
    chest : Chest
    base : callable, optional
        What runs the graph: ``client.get``, `dask.threaded.get` (default), …
    min_cost : float
        Seconds that a task must have taken to be kept; 0 keeps all of them.

    Returns
    -------
    callable
        For ``dask.compute(…, scheduler=…)``.

    See Also
    --------
    compute : Keeps the last step as well, whose key ``dask.compute`` draws at random.
    """
    shelf, run = Shelf(chest), dask.threaded.get if base is None else base

    def get_with_results(dsk: Any, keys: Any, **options: Any) -> Any:
        graph = convert_legacy_graph(
            dict(getattr(dsk, "__dask_graph__", lambda: dsk)())
        )
        wanted = list(flatten(keys)) if isinstance(keys, list) else [keys]
        return run(_rewritten(graph, wanted, shelf, min_cost), keys, **options)

    return get_with_results


def _rewritten(
    graph: Mapping[Any, Any], wanted: Iterable[Any], shelf: Shelf, min_cost: float
) -> dict[Any, Any]:
    """The graph with loading in place of what is there, and saving around the rest."""
    stable, new, stack = _Stable(graph), dict[Any, Any](), list(wanted)
    there = shelf.chest._there()
    filled = bool(len(there))
    while stack:
        key = stack.pop()
        if key in new or key not in graph:
            continue
        node, name = graph[key], name_of(key)
        if not isinstance(node, Task) or not stable(key):
            new[key] = node
        elif filled and name in there:
            new[key] = Task(key, _load, shelf, name)
            continue
        else:
            needed = Dict({each: TaskRef(each) for each in node.dependencies})
            least = 0.0 if _marked(key) else min_cost
            new[key] = Task(key, _run, _Box(node), shelf, name, least, needed)
        stack += node.dependencies
    return new


class _Box:
    """Hides a task from dask, which would run it."""

    __slots__ = ("task",)

    def __init__(self, task: Any) -> None:
        self.task = task

    def __reduce__(self) -> tuple[Any, ...]:
        return _Box, (self.task,)


def _load(shelf: Shelf, name: Hashable) -> Any:
    return shelf.load(name)


def _run(
    box: _Box, shelf: Shelf, name: Hashable, min_cost: float, values: dict[Any, Any]
) -> Any:
    """Run a task, and keep what it returns if it took long enough."""
    began = time.perf_counter()
    value = box.task(values)
    if time.perf_counter() - began >= min_cost:
        shelf.keep(name, value)
    return value


def compute(
    *args: Any,
    store: Chest,
    min_cost: float = 0.0,
    scheduler: Any = None,
    optimize_graph: bool = True,
    **options: Any,
) -> tuple[Any, ...]:
    """``dask.compute`` that runs no task whose result is in *store*, and keeps the rest.

    Parameters
    ----------
    *args : object
        Collections, and builtin containers of them.
    store : Chest
        Results are published in it as they come, by whichever process made them.
    min_cost : float
        Seconds that a task must have taken to be kept; 0 keeps all of them.
    scheduler : str, callable or Client, optional
        As for ``dask.compute``: a running Client is used unless something is said.
    optimize_graph : bool
        False keeps each step apart, so that more of them are found by other graphs.
    **options : object
        For the scheduler.

    Returns
    -------
    tuple
        One result for each argument.

    Examples
    --------
    >>> import dask.array as da
    >>> from chest import Chest
    >>> x = da.ones((4, 4), chunks=2)
    >>> with Chest() as c:
    ...     compute(x.sum(), store=c)
    (np.float64(16.0),)
    """
    collections, repack = unpack_collections(*args)
    if not collections:
        return args
    base = get_scheduler(scheduler=scheduler, collections=collections)
    # One by one: the names of their steps do not depend on what else is computed, and
    # dask returns those of several kinds in another order.
    graph, keys = {}, []
    for each in collections:
        expr = collections_to_expr([each], optimize_graph).optimize()
        graph.update(expr.__dask_graph__())
        keys += expr.__dask_keys__()
    found = get(store, base, min_cost)(graph, keys, **options)
    finished = []
    for each, result in zip(collections, found, strict=True):
        function, more = each.__dask_postcompute__()
        finished.append(function(result, *more))
    return tuple(repack(finished))


def checkpoint(x: Any) -> Any:
    """Mark a point of a computation whose results are to be kept, whatever they took.

    dask runs several steps in one task, under a name that depends on what comes after.
    What is marked keeps its own, so that other computations upon it find its results.

    Parameters
    ----------
    x : dask collection

    Returns
    -------
    dask collection
        The same, to go on with; nothing is computed.

    Examples
    --------
    >>> import dask.array as da
    >>> from chest import Chest
    >>> x = checkpoint(da.ones((4, 4), chunks=2) + 1)
    >>> with Chest() as c, Results(c):
    ...     x.sum().compute(scheduler="sync")
    ...     len(c)
    np.float64(32.0)
    4
    """
    expr = collections_to_expr([x], True).optimize()
    keys = list(flatten(expr.__dask_keys__()))
    graph = convert_legacy_graph(dict(expr.__dask_graph__()))
    for key in keys:
        _checkpoints.add(key[0] if isinstance(key, tuple) else key)
        graph[key] = _unfused(graph, key)
    if hasattr(x, "divisions"):  # its own way back takes all keys for partitions
        from dask.dataframe.dask_expr._collection import from_graph

        return from_graph(graph, x._meta, x.divisions, keys, "checkpoint")
    rebuild, state = x.__dask_postpersist__()
    return rebuild(graph, *state)


class _Unfused(Task):
    """A task that dask does not merge into those that use it."""

    __slots__ = ()

    @property
    def block_fusion(self) -> bool:
        """What dask asks before it merges."""
        return True


def _unfused(graph: Mapping[Any, Any], key: Any) -> Any:
    """The task of a key, not to be merged."""
    node = graph[key]
    while isinstance(node, Alias) and node.target in graph:
        node = graph[node.target]  # merged ones have names of their own
    return (
        _Unfused(key, node.func, *node.args, **node.kwargs)
        if (type(node) is Task)
        else graph[key]
    )
