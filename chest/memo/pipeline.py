"""One memoized function for many items.

Owns: which items are missing, who computes them, the progress bar. Does not own: one
call's result (`decorator`).
"""

from __future__ import annotations

import inspect
import pickle
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, cast, overload

from chest.errors import short
from chest.memo.decorator import Memo
from chest.memo.elsewhere import MISSING, loaded, running_client

if TYPE_CHECKING:
    from concurrent.futures import Executor

__all__ = ["Results", "map"]

GRACE = 0.2  # seconds in which Ctrl-C comes through
Call = tuple[Any, ...]


class Results(Sequence[Any]):
    """The results of `map`, in the order of the items; each is read when it is asked for.

    A result that was deleted since is computed again.
    """

    def __init__(
        self, function: Memo[Any, Any], calls: Sequence[Call], keys: Sequence[Any]
    ) -> None:
        self._function, self._calls, self._keys = function, calls, keys

    def __len__(self) -> int:
        return len(self._calls)

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> Results: ...
    def __getitem__(self, index: int | slice) -> Any:
        """One result, or some of them, unread."""
        if isinstance(index, slice):
            return Results(self._function, self._calls[index], self._keys[index])
        found = self._function._find(self._keys[index])
        if found is MISSING:
            return self._function(*self._calls[index])
        return found[0]

    def __repr__(self) -> str:
        return f"<{len(self)} results of {self._function.name}>"


def map(
    function: Memo[Any, Any],
    *iterables: Iterable[Any],
    processes: int | None = None,
    executor: Any = None,
    progress: bool = True,
) -> Results:
    """Call a memoized function for each item; only what is missing is computed.

    Each result is in the chest as soon as it is computed: a run that was interrupted, by
    Ctrl-C or a crash, goes on where it was when it is started again.

    Parameters
    ----------
    function : Memo
        Made by `chest.memoize`.
    *iterables : iterable
        The items; several are taken side by side, as by the builtin ``map``.
    processes : int, optional
        Compute in so many processes. They are made anew: a script needs
        ``if __name__ == "__main__":``, as always with multiprocessing.
    executor : concurrent.futures.Executor or distributed.Client, optional
        Compute there instead. Its processes must see the chest's folder. Without it, and
        without *processes*, a dask client that is running is used.
    progress : bool
        Show a progress bar.

    Returns
    -------
    Results
        A sequence; each result is read when it is asked for.

    Raises
    ------
    TypeError
        The function is not memoized, or a coroutine function.
    Exception
        What the function raised for an item, with a note that names it; what was
        computed before is kept, and what had not begun is not computed.

    Notes
    -----
    Equal items are computed once, also when another process works on the same list.

    Examples
    --------
    >>> from chest import Chest, map, memoize
    >>> c = Chest()
    >>> @memoize(c)
    ... def square(x):
    ...     return x * x
    >>> squares = map(square, range(5), progress=False)
    >>> list(squares)
    [0, 1, 4, 9, 16]
    >>> c.close()
    """
    if not isinstance(cast("object", function), Memo):
        msg = (
            f"map() needs a memoized function, as @chest.memoize(c) makes: {function!r}"
        )
        raise TypeError(msg)
    if inspect.iscoroutinefunction(function.__wrapped__):
        msg = f"{function.name} is a coroutine function: use asyncio.gather"
        raise TypeError(msg)
    calls = list(zip(*iterables, strict=False))
    keys = [function.key(*args) for args in calls]
    wanted = dict(zip(keys, calls, strict=True))
    missing = [args for key, args in wanted.items() if key not in function.chest]
    with _bar(len(wanted), len(wanted) - len(missing), function.name, progress) as bar:
        for _ in _computed(function, missing, processes, executor):
            bar.update()
    return Results(function, calls, keys)


def _computed(
    function: Memo[Any, Any],
    missing: Sequence[Call],
    processes: int | None,
    executor: Any,
) -> Iterator[None]:
    """Compute what is missing, a step for each."""
    if not missing:
        return
    if executor is None and processes is None:
        executor = running_client()
    if executor is not None:
        if hasattr(executor, "get_executor"):  # a dask client
            executor = executor.get_executor(pure=False)
        yield from _submitted(function, missing, executor)
    elif processes is not None:
        from concurrent.futures import ProcessPoolExecutor
        from multiprocessing import get_context

        workers = min(processes, len(missing))
        context = get_context("spawn")
        with ProcessPoolExecutor(workers, context, _end_at_once) as pool:
            yield from _submitted(function, missing, pool)
    else:
        for args in missing:
            with _naming(args):
                function(*args)
            yield


def _submitted(
    function: Memo[Any, Any], missing: Sequence[Call], executor: Executor
) -> Iterator[None]:
    """Compute elsewhere; what has not begun when one fails is called off."""
    from concurrent.futures import BrokenExecutor, as_completed

    import cloudpickle

    payload = cloudpickle.dumps(function)
    futures = {
        executor.submit(_run, payload, cloudpickle.dumps(args)): args
        for args in missing
    }
    try:
        for future in as_completed(futures):
            with _naming(futures[future]):
                future.result()
            yield
    except BrokenExecutor:
        # Ctrl-C ends the workers too, and their end may be seen before it comes here.
        time.sleep(GRACE)
        raise
    finally:
        for future in futures:
            future.cancel()


def _run(payload: bytes, args: bytes) -> None:
    """Compute one result in another process; it is in the chest then."""
    function, call = loaded(payload), pickle.loads(args)
    function._answer_here(function.key(*call), call, {})


def _end_at_once() -> None:
    """Let Ctrl-C end a worker; its parent says what there is to say."""
    import signal

    signal.signal(signal.SIGINT, signal.SIG_DFL)


class _naming:
    """Say in a note which item an exception belongs to."""

    __slots__ = ("_args",)

    def __init__(self, args: Call) -> None:
        self._args = args

    def __enter__(self) -> None:
        """Nothing yet."""

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, Exception):
            error.add_note(f"raised for the item {short(self._args)}")


def _bar(total: int, found: int, name: str, progress: bool) -> Any:
    from tqdm import tqdm

    # No thread that outlives the bar.
    bar: Any = type("Bar", (tqdm,), {"monitor_interval": 0})
    text = name.rpartition(".")[2]
    return bar(total=total, initial=found, desc=text, disable=not progress)
