"""One call of a memoized function on the dask cluster of a client that is running.

Owns: which client there is, what can be sent to it, and what its worker does. Does not
own: the result's key and how it is computed (`decorator`), many items (`pipeline`).

The worker keeps the result in the chest, and only what cannot be kept there is sent back.
It computes under the lock that every process takes; here it is only seen to that no two
threads send the same call.
"""

from __future__ import annotations

import functools
import logging
import os
import pickle
import sys
import time
import uuid
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from chest import errors
from chest.core import Chest
from chest.keeper import reopen
from chest.memo import flights

if TYPE_CHECKING:
    from chest.memo.decorator import Memo
    from chest.settings import Settings

__all__ = ["MISSING", "answer", "loaded", "running_client"]

log = logging.getLogger("chest")

MISSING: Any = object()
LARGE = 1 << 20  # bytes that are not sent through the scheduler

Key = tuple[str, str, str]


def running_client() -> Any:
    """The dask client that this process has, if there is one that can be waited for."""
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return None
    # A task that waited for others of its own worker could wait for ever.
    if hasattr(distributed.worker.thread_state, "execution_state"):
        return None
    try:
        client = distributed.default_client()
    except ValueError:
        return None
    return None if client.asynchronous else client


@functools.lru_cache(maxsize=8)
def loaded(payload: bytes, identity: str = "") -> Any:
    """A memoized function that was sent, unpickled once for all calls, its chest open."""
    return pickle.loads(payload)


def answer(
    memo: Memo[Any, Any], key: Key, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> Any:
    """The result of a call that a worker computed; `MISSING`: it is to be done here."""
    client = running_client()
    if client is None or not _is_shared(memo.chest):
        return MISSING
    with flights.among_threads(memo._home, f"sent-{key[2]}"):
        found = memo._find(key)  # another thread had sent it
        return _sent(client, memo, key, args, kwargs) if found is MISSING else found[0]


def _is_shared(chest: Chest) -> bool:
    """Whether others can open it, and may rely on what they find."""
    given = getattr(chest, "_explicitly_given_path", True)
    return given and chest._settings.durability != "memory"


def _sent(
    client: Any,
    memo: Memo[Any, Any],
    key: Key,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
) -> Any:
    import cloudpickle

    try:
        payload = cloudpickle.dumps(_Sent(memo))
        call: Any = cloudpickle.dumps((args, kwargs))
    except Exception as error:  # noqa: BLE001 - pickling runs anybody's code
        log.info("%s is computed here, it cannot be sent: %s", memo.name, error)
        return MISSING
    start = time.perf_counter()
    if len(call) > LARGE:
        call = client.scatter(call, hash=False)
    name = f"{memo.name.rpartition('.')[2]}-{uuid.uuid4()}"
    task = payload, call, key, memo.chest._identity
    future = client.submit(_computed, *task, key=name, pure=False)
    try:
        refused, kept, value = future.result()
    except Exception:
        memo._computed(start)
        raise
    finally:
        future.release()  # also when Ctrl-C ends the waiting
    if refused:
        log.info("%s is computed here, a worker cannot: %s", memo.name, refused)
        return MISSING
    if kept:
        try:
            value, _ = memo.chest._fresh_value(key)
        except (KeyError, errors.CorruptValueError, errors.DecodingError):
            return MISSING  # it was deleted since, or damaged
    memo._computed(start)
    return value


def _computed(
    payload: bytes, call: bytes, key: Key, identity: str
) -> tuple[str, bool, Any]:
    """On a worker: why it cannot compute the call, whether it is kept; else the value."""
    try:
        memo = loaded(payload, identity)
        args, kwargs = pickle.loads(call)
        if memo.chest._identity != identity:
            return f"{memo.chest.path} is another chest there", False, None
        if memo.key(*args, **kwargs) != key:
            return "its code is another one there", False, None
    except Exception as error:  # noqa: BLE001 - as for pickling
        return f"{type(error).__name__}: {error}", False, None
    value = memo._answer_here(key, args, kwargs)
    kept = key in memo.chest
    return "", kept, None if kept else value


class _Sent:
    """A memoized function that travels without having its chest written out."""

    def __init__(self, memo: Memo[Any, Any]) -> None:
        self._memo = memo

    def __reduce__(self) -> tuple[Any, ...] | str:
        parts = self._memo.__reduce__()
        if isinstance(parts, str):
            return _same, (self._memo,)  # by its name
        make, (kind, chest, *rest) = parts
        return make, (kind, _SentChest(chest), *rest)


class _SentChest:
    """The chest of such a function; what it has to publish is there already."""

    def __init__(self, chest: Chest) -> None:
        self._chest = chest

    def __reduce__(self) -> tuple[Any, ...]:
        chest = self._chest
        if chest.path.startswith("memory:"):
            return chest.__reduce__()  # which says that it cannot
        return _open_there, (type(chest), chest.path, chest._settings)


def _same(memo: Memo[Any, Any]) -> Memo[Any, Any]:
    return memo


def _open_there(kind: type[Chest], path: str, options: Settings) -> Chest:
    """Open a chest of another machine, perhaps; none is made here in its place."""
    if "://" not in path and not os.path.isdir(path):
        raise FileNotFoundError(path)
    return reopen(kind, path, options)
