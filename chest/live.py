"""Arrays on disk that are changed in place, with the interface of zarr's.

Owns: what users see of them, which step of theirs is a change, and its beginning and end.
Does not own: where a change is written and how it is published (`chest.generations`).
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Hashable, Iterator, MutableMapping
from typing import Any, Self

from chest import errors, keys
from chest.arraytier import reading, zarr_
from chest.errors import short
from chest.generations import (
    MOST_LOOKS,
    Filling,
    folder_entry,
    pinned,
    too_fast,
    turn,
)
from chest.index import AnyEntry, same
from chest.upkeep import Upkeep

__all__ = ["LiveArray"]

AT_A_TIME = 16 << 20  # bytes of whole chunks that one step of an assignment changes


class LiveArray:
    """An array in a chest, with the interface of ``zarr.Array``; `chest.Chest.zarr`.

    What it shows is what was published last. Each assignment, `resize`, `append` and
    change of `attrs` is one publication; several are in a ``with`` block, at whose end
    all of them are published, or none after an exception.

    Parameters
    ----------
    chest : Chest
    key : Hashable
    mode : {"r", "r+"}

    Notes
    -----
    Attributes and methods that are not named here are zarr's, for reading. Threads may
    share it, but a ``with`` block is one change, whoever writes in it.

    Threads see a change when it is published, but what is written in a block at once.

    A change writes the chunks it touches, and a seal that names all (2 µs for each). The
    first one links the other chunks to another folder as well (20 µs for each); from then
    on two folders take turns, and the next change links what the last one changed. While
    somebody reads the older of them a change links all chunks again. In the block no lock
    of the chest is held, but others that want to change the same key wait for its end.
    Readers never wait.
    """

    __slots__ = ("__weakref__", "_change", "_chest", "_key", "_lock", "_seen", "mode")

    def __init__(self, chest: Upkeep, key: Hashable, mode: str) -> None:
        self._chest, self._key, self.mode = chest, key, mode
        self._change: _Change | None = None
        self._seen: tuple[AnyEntry, Any, Any] | None = None  # entry, array, seal
        self._lock = threading.RLock()  # held while something is written or published
        self._now()

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as the chest's path, the key and the mode."""
        return type(self), (self._chest, self._key, self.mode)

    # -- read --------------------------------------------------------------------------

    def _now(self) -> Any:
        """Zarr's array as it is now."""
        change = self._change
        if change is not None and change.is_seen:
            return change.array
        for _ in range(MOST_LOOKS):
            entry = folder_entry(self._chest, self._key)
            seen = self._seen
            if seen is not None and same(seen[0], entry):
                return seen[1]
            # Where it was replaced it is looked for again.
            with contextlib.suppress(FileNotFoundError), self._while_open():
                array, seal = pinned(self._chest, self._key, entry)
                self._seen = entry, array, seal
                return array
        raise too_fast(self._chest, self._key)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._now(), name)

    def __getitem__(self, selection: Any) -> Any:
        """A part of the array, read from its chunks alone."""
        with self._reading() as array:
            return array[selection]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        if copy is False:
            msg = "an array on disk is read into memory: copy=False cannot be had"
            raise ValueError(msg)
        with self._reading() as array:
            return array.__array__(dtype)

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        """What tells its content as it is now from others, without reading it."""
        entry = folder_entry(self._chest, self._key)
        return (
            "chest.LiveArray",
            self._chest.path,
            keys.text(self._key),
            entry.file_id,
        )

    def __len__(self) -> int:
        return int(self._now().shape[0])

    def __iter__(self) -> Iterator[Any]:
        return (self[row] for row in range(len(self)))

    def __repr__(self) -> str:
        try:
            array = self._now()
        except (errors.ChestError, KeyError, TypeError) as error:
            # Deleted, replaced or closed: a debugger asks all the same.
            return f"<LiveArray {short(self._key)}: {type(error).__name__}>"
        return f"<LiveArray {short(self._key)} {array.dtype} {array.shape}>"

    def __dir__(self) -> list[str]:
        return sorted({*super().__dir__(), *dir(self._now())})

    @contextlib.contextmanager
    def _reading(self) -> Iterator[Any]:
        """Zarr's array as it is now, in a block in which it stays open."""
        change = self._change
        open_block = change is not None and change.is_seen
        # What is published holds its own folder; a block is another thread's to end.
        lock: Any = self._lock if open_block else contextlib.nullcontext()
        with self._while_open(), reading(self._chest.path, self._key), lock:
            yield self._now()

    @contextlib.contextmanager
    def _while_open(self) -> Iterator[None]:
        """Raise ClosedError for what fails because the chest was closed meanwhile."""
        try:
            yield
        except (OSError, errors.CorruptError):
            self._chest._check_open()  # the files of a temporary one are gone
            raise

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Keep other threads from changing it through this object."""
        chest, key = self._chest, self._key
        timeout = chest._settings.timeout
        most = threading.TIMEOUT_MAX if timeout is None else timeout
        if not self._lock.acquire(timeout=min(most, threading.TIMEOUT_MAX)):
            msg = f"{short(key)} in {chest.path} is being changed by another thread"
            raise errors.LockTimeout(msg, key=key, path=chest.path)
        try:
            yield
        finally:
            self._lock.release()

    @property
    def read_only(self) -> bool:
        """Changes are refused."""
        return self.mode == "r" or bool(self._chest._settings.readonly)

    @property
    def attrs(self) -> MutableMapping[str, Any]:
        """The array's attributes; each change is one publication."""
        return _Attributes(self)

    @property
    def oindex(self) -> _Indexer:
        """Orthogonal indexing, as zarr's."""
        return _Indexer(self, "oindex")

    @property
    def vindex(self) -> _Indexer:
        """Indexing by coordinates or a mask, as zarr's."""
        return _Indexer(self, "vindex")

    @property
    def blocks(self) -> _Indexer:
        """Indexing by chunk, as zarr's."""
        return _Indexer(self, "blocks")

    # -- change ------------------------------------------------------------------------

    def __setitem__(self, selection: Any, value: Any) -> None:
        """Change a part of the array on disk, some chunks at a time."""

        def assign(array: Any) -> None:
            fitting = _fitting(array.shape, selection, value)
            for part, rows in _parts(array, selection, fitting):
                array[part] = rows

        self.change(assign)

    def resize(self, new_shape: Any) -> None:
        """Change the shape; what is new reads as the fill value."""

        def resize(array: Any) -> None:
            new = new_shape if isinstance(new_shape, tuple | list) else (new_shape,)
            if len(new) != array.ndim:
                msg = f"shape {new_shape} is none of {array.ndim} dimensions"
                raise ValueError(msg)
            array.resize(new_shape)

        self.change(resize)

    def append(self, data: Any, axis: int = 0) -> tuple[int, ...]:
        """Grow along an axis; the new shape is returned."""
        shape: tuple[int, ...] = self.change(lambda array: array.append(data, axis))
        return shape

    def update_attributes(self, new_attributes: dict[str, Any]) -> Self:
        """Set some attributes."""
        self.change(lambda array: array.update_attributes(new_attributes))
        return self

    def set_basic_selection(self, selection: Any, value: Any, **options: Any) -> None:
        """As zarr's."""
        self.change(lambda z: z.set_basic_selection(selection, value, **options))

    def set_orthogonal_selection(
        self, selection: Any, value: Any, **options: Any
    ) -> None:
        """As zarr's."""
        self.change(lambda z: z.set_orthogonal_selection(selection, value, **options))

    def set_coordinate_selection(
        self, selection: Any, value: Any, **options: Any
    ) -> None:
        """As zarr's."""
        self.change(lambda z: z.set_coordinate_selection(selection, value, **options))

    def set_mask_selection(self, mask: Any, value: Any, **options: Any) -> None:
        """As zarr's."""
        self.change(lambda z: z.set_mask_selection(mask, value, **options))

    def set_block_selection(self, selection: Any, value: Any, **options: Any) -> None:
        """As zarr's."""
        self.change(lambda z: z.set_block_selection(selection, value, **options))

    def change(self, step: Callable[[Any], Any]) -> Any:
        """Call *step* with a ``zarr.Array`` to change, and publish what it did.

        Raises
        ------
        KeyError
            Somebody deleted the key.
        ReadOnlyError
            The mode is ``"r"``, or the chest is read only.
        LockTimeout
            Somebody else changes the key for longer than the chest's ``timeout``.
        StoreError
            The disk refused, or somebody set the key meanwhile. The array is as before.
        """
        with self._while_open(), self._alone():
            if self._change is not None:
                return step(self._change.array)
            with contextlib.ExitStack() as stack:
                change = self._begin(threading.get_ident())
                stack.push(self._end)
                return step(change.array)

    def __enter__(self) -> Self:
        with self._alone():
            if self._change is not None:
                msg = f"this with block for {short(self._key)} is open already"
                raise RuntimeError(msg)
            self._begin()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        with self._lock:  # others that write in this block come to an end first
            if self._change is None:
                msg = f"no with block for {short(self._key)} is open"
                raise RuntimeError(msg)
            self._end(kind)

    def _begin(self, thread: int = 0) -> _Change:
        """Open a change, that of one thread or that of a block."""
        if self.mode == "r":
            msg = f"{short(self._key)} was opened with mode='r'"
            raise errors.ReadOnlyError(msg, key=self._key, path=self._chest.path)
        # What is in memory and newer, or was changed there in place, is published first.
        slot = self._chest._slots.get(self._key)
        if slot is not None:
            self._chest._raise_first(self._chest._write_out([slot], keep=True))
        self._now()
        change = _Change(self._chest, self._key, thread, self._seen)
        self._change = change
        return change

    def _end(self, kind: object, *_: object) -> None:
        """Publish the change, or forget it after an exception."""
        change, self._change = self._change, None
        assert change is not None
        if change.pid != os.getpid():
            change.leave()
            return
        try:
            replaced = change.publish() if kind is None else []
        finally:
            change.close()
        if replaced:
            self._seen = None  # it holds the folder that goes now
            self._chest._spill.delete(change.keep(replaced))
            self._chest._written_more()


def _fitting(shape: tuple[int, ...], selection: Any, value: Any) -> Any:
    """A value in the shape of the part that it is assigned to, as numpy has it.

    Zarr cuts one that is too large, and refuses others that fit.
    """
    wanted = selection if isinstance(selection, tuple) else (selection,)
    simple = all(isinstance(part, int | slice) or part is ... for part in wanted)
    given: tuple[int, ...] = getattr(value, "shape", ())
    if not given or not simple:
        return value
    import numpy as np

    try:
        part = np.broadcast_to(False, shape)[selection].shape
    except IndexError:
        return value  # zarr has a word for it
    if given == part:
        return value
    try:
        whole = np.asarray(value)
        while whole.ndim > len(part) and len(whole) == 1:
            whole = whole[0]
        return np.broadcast_to(whole, part)
    except ValueError as error:
        msg = f"an array of shape {given} cannot be assigned to a part of shape {part}"
        raise ValueError(msg) from error


def _parts(array: Any, selection: Any, value: Any) -> Iterator[tuple[Any, Any]]:
    """An assignment as several of whole rows of chunks, where the value is a large one.

    Zarr holds ten chunks at a time in memory, each before and after compression.
    """
    rows, *rest = (
        selection if isinstance(selection, tuple) and selection else [selection]
    )
    shape: tuple[int, ...] = getattr(value, "shape", ())
    if isinstance(rows, slice) and len(shape) == array.ndim:
        start, stop, stride = rows.indices(array.shape[0])
        deep = (array.shards or array.chunks)[0]
        wide = max(1, array.nbytes // max(1, array.shape[0]) * deep)
        step = deep * max(1, AT_A_TIME // wide)
        if stride == 1 and stop - start == shape[0] > step:
            while start < stop:
                end = min(stop, start - start % step + step)
                yield (slice(start, end), *rest), value[: end - start]
                value, start = value[end - start :], end
            return
    yield selection, value


class _Change:
    """One change of one array, from its turn to its publication.

    Parameters
    ----------
    chest : Chest
    key : Hashable
    thread : int
        The only thread that sees it; 0: all do.
    seen : tuple, optional
        An entry of the key, its array and its seal, which need not be read again.
    """

    def __init__(
        self,
        chest: Upkeep,
        key: Hashable,
        thread: int,
        seen: tuple[AnyEntry, Any, Any] | None,
    ) -> None:
        self._chest, self._key, self._thread = chest, key, thread
        self.pid = os.getpid()
        self._stack = contextlib.ExitStack()
        with contextlib.ExitStack() as stack:
            self._base, fd = stack.enter_context(turn(chest, key))
            known = seen is not None and same(seen[0], self._base)
            seal = seen[2] if seen and known else chest._spill.seal(fd, key, self._base)
            self._filling = stack.enter_context(Filling(chest, key, seal, fd))
            with reading(chest.path, key):
                self.array = zarr_().open_array(self._filling.store)
            self._stack = stack.pop_all()

    def leave(self) -> None:
        """Let go of another process's change, in a child that was forked amid it."""
        self._filling.leave()
        self._stack.close()

    @property
    def is_seen(self) -> bool:
        """The thread that asks reads what was changed, not what was published."""
        return self._thread in (0, threading.get_ident())

    def publish(self) -> list[str]:
        """Publish the change; returns names for `keep` once `close` was called."""
        if not self._filling.changed:
            return []
        return self._filling.publish(self.array.nbytes, self._base)

    def keep(self, replaced: list[str]) -> list[str]:
        """Keep the replaced folder for the next change; returns names to delete."""
        return self._filling.keep(replaced)

    def close(self) -> None:
        """Give up the turn, and what was not published."""
        self._stack.close()


class _Attributes(MutableMapping[str, Any]):
    """The attributes of a live array."""

    def __init__(self, live: LiveArray) -> None:
        self._live = live

    def __getitem__(self, name: str) -> Any:
        return self._live._now().attrs[name]

    def __iter__(self) -> Iterator[str]:
        return iter([*self._live._now().attrs])

    def __len__(self) -> int:
        return len(self._live._now().attrs)

    def __setitem__(self, name: str, value: Any) -> None:
        self._live.change(lambda array: array.attrs.__setitem__(name, value))

    def __delitem__(self, name: str) -> None:
        self._live.change(lambda array: array.attrs.__delitem__(name))

    def update(self, *args: Any, **more: Any) -> None:
        """Set several in one publication."""
        new = dict(*args, **more)
        self._live.change(lambda array: array.attrs.update(new))

    def put(self, new: dict[str, Any]) -> None:
        """Replace all in one publication."""
        self._live.change(lambda array: array.attrs.put(new))

    def asdict(self) -> dict[str, Any]:
        """All of them."""
        return dict(self)

    def __repr__(self) -> str:
        return repr(dict(self))


class _Indexer:
    """Another way of indexing a live array."""

    def __init__(self, live: LiveArray, name: str) -> None:
        self._live, self._name = live, name

    def __getitem__(self, selection: Any) -> Any:
        with self._live._reading() as array:
            return getattr(array, self._name)[selection]

    def __setitem__(self, selection: Any, value: Any) -> None:
        name = self._name
        self._live.change(lambda z: getattr(z, name).__setitem__(selection, value))
