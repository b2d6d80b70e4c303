"""Arrays on disk: read in parts, changed in place, larger than memory.

Owns: the chest's methods for them, streaming, and the lazy array. Does not own: changes
(`chest.live`), zarr (`chest.formats.zarr_`).
"""

from __future__ import annotations

import itertools
import math
import operator
import os
import threading
from collections.abc import Hashable, Iterable, Iterator
from typing import Any

from chest import keys, settings
from chest.arraytier import is_folder, reading, zarr_
from chest.errors import EncodingError, short
from chest.generations import Filling, folder_entry, pinned
from chest.index import AnyEntry
from chest.live import LiveArray
from chest.small import is_small
from chest.upkeep import Upkeep

__all__ = ["Arrays", "LazyArray"]

# What of zarr.create_array can be said of one value.
LAYOUT = frozenset(
    {
        "attributes",
        "chunk_key_encoding",
        "chunks",
        "compressors",
        "dimension_names",
        "fill_value",
        "filters",
        "order",
        "serializer",
        "shards",
    }
)
STEP_NBYTES = 64 << 20  # read of a source at once


class Arrays(Upkeep):
    """What a chest can do with arrays on disk."""

    __slots__ = ()

    def zarr(self, key: Hashable, mode: str = "r+") -> LiveArray:
        """The array of *key* on disk, to read and change in parts without loading it.

        Parameters
        ----------
        key : Hashable
            Its value was set with ``format="zarr"``, or made by `create` or `store`.
        mode : {"r+", "r"}
            ``"r"`` refuses changes.

        Returns
        -------
        LiveArray
            With the interface of ``zarr.Array``. Each assignment, ``resize``, ``append``
            and change of ``attrs`` is published when it returns; a ``with`` block
            publishes all of its changes at its end, and none after an exception. Others
            see the old array or the new one, also when the process is killed.

        Raises
        ------
        KeyError
            There is no such key.
        TypeError
            Its value is no array in a folder.

        Notes
        -----
        Who changes one key takes turns with others; readers do not wait. A change costs
        the chunks that it touches, the first one a hard link for each of the others too.
        Arrays that were handed out before, snapshots and links keep the old content.

        Examples
        --------
        >>> import numpy as np
        >>> from chest import Chest
        >>> c = Chest()
        >>> c.set("x", np.zeros((100, 10)), format="zarr", chunks=(10, 10))
        >>> z = c.zarr("x")
        >>> z[10:20] = 1
        >>> with c.zarr("x") as z:
        ...     z.append(np.ones((5, 10)))
        ...     z.attrs["unit"] = "m"
        (105, 10)
        >>> c["x"].sum(), z.attrs["unit"]
        (np.float64(150.0), 'm')
        >>> c.close()
        """
        settings.check_word("mode", mode, ("r+", "r"))
        return LiveArray(self, key, mode)

    def array(self, key: Hashable) -> LazyArray:
        """The array of *key* as it is now, read-only and loaded when it is indexed.

        Parameters
        ----------
        key : Hashable
            Its value is a numpy array, in whatever format.

        Returns
        -------
        LazyArray
            With ``shape``, ``dtype``, ``ndim`` and slices, so that
            ``dask.array.from_array(c.array(key))`` and numpy can use it. It stays as it
            is when the key is changed or deleted.

        Raises
        ------
        KeyError
            There is no such key.
        TypeError
            Its value is no numpy array.

        Examples
        --------
        >>> import numpy as np
        >>> from chest import Chest
        >>> c = Chest()
        >>> c["x"] = np.arange(10)
        >>> c.array("x")[2:4]
        array([2, 3])
        >>> c.close()
        """
        return LazyArray(self, key)

    def create(
        self, key: Hashable, shape: Any, dtype: Any = float, **layout: Any
    ) -> LiveArray:
        """Make an array on disk that may be larger than memory, and publish it.

        Parameters
        ----------
        key : Hashable
            Its old value is replaced.
        shape : int or sequence of int
        dtype : numpy dtype
        **layout
            ``chunks=``, ``shards=``, ``compressors=``, ``fill_value=`` and what else
            ``zarr.create_array`` takes. Chunks are 8 MiB of whole rows if not given.

        Returns
        -------
        LiveArray
            As `zarr` returns. It reads as the fill value, 0 if not given, where nothing
            was written.

        Raises
        ------
        EncodingError
            zarr refuses the dtype or the layout.
        StoreError
            The disk refused. The old value stands.

        Examples
        --------
        >>> from chest import Chest
        >>> c = Chest()
        >>> z = c.create("x", (1000, 1000), "f4", chunks=(100, 1000))
        >>> z[5] = 1
        >>> float(z[5, 0]), z.chunks
        (1.0, (100, 1000))
        >>> c.close()
        """
        import numpy as np

        shape = tuple(shape) if np.iterable(shape) else (operator.index(shape),)
        with self._filling(key) as filling:
            native = np.dtype(dtype).newbyteorder("=")
            made = zarr_().create(filling.store, shape, native, whole=False, **layout)
            filling.keep_layout(np.dtype(dtype))
            replaced = filling.publish(made.nbytes)
        self._spill.delete(replaced)
        return LiveArray(self, key, "r+")

    def store(
        self, key: Hashable, source: Any, *, progress: bool = True, **layout: Any
    ) -> LiveArray:
        """Write a source that need not fit in memory to an array on disk; publish it.

        Parameters
        ----------
        key : Hashable
            Its old value is replaced at the end.
        source : array-like, iterable of arrays, or path
            What has ``shape``, ``dtype`` and slices (numpy, memmap, h5py, zarr), a dask
            array, blocks that follow one another along the first axis, or the path of a
            ``.npy`` file.
        progress : bool
            Show a progress bar, where somebody sees it.
        **layout
            As for `create`.

        Returns
        -------
        LiveArray
            As `zarr` returns.

        Raises
        ------
        EncodingError
            zarr refuses the dtype or layout or would change it, a block has another
            shape, a part of the source is missing, or the file holds no such array. The
            old value stands.
        TypeError
            The source is nothing of these.
        StoreError
            The disk refused. The old value stands.

        Notes
        -----
        Some chunks at a time are in memory. dask's own chunks are taken over when they
        are regular; others are written one after the other, because zarr's chunks would
        be written by two tasks at once.

        Examples
        --------
        >>> import numpy as np
        >>> from chest import Chest
        >>> c = Chest()
        >>> z = c.store("x", (np.full((10, 3), i) for i in range(4)))
        >>> z.shape, int(z[:].sum())
        ((40, 3), 180)
        >>> c.close()
        """
        source = _checked_source(source, key)
        with self._filling(key) as filling:
            if not hasattr(source, "shape"):
                made, dtype = _store_blocks(filling.store, source, progress, layout)
                filling.keep_layout(dtype)
            else:
                made = _store_array(filling.store, source, progress, layout)
                filling.keep_layout(source.dtype, getattr(source, "flags", None))
            zarr_().check_whole(made, filling.store)
            replaced = filling.publish(made.nbytes)
        self._spill.delete(replaced)
        self._written_more()
        return LiveArray(self, key, "r+")

    def _filling(self, key: Hashable) -> Filling:
        keys.encode(key)
        self._look()
        if self._settings.sign_key is not None:
            msg = "arrays in folders cannot be had with sign_key="
            raise ValueError(msg)
        return Filling(self, key)

    def _layout(self, form: str, layout: dict[str, Any]) -> str:
        """The format *form* with options for one value."""
        odd = sorted(layout.keys() - LAYOUT)
        if odd:
            hint = "; ttl= says how many seconds a key lives" if "expire" in odd else ""
            msg = f"set() takes no {', '.join(odd)}={hint}"
            raise TypeError(msg)
        if form != "zarr":
            msg = f"format={form!r} takes no {', '.join(layout)}="
            raise TypeError(msg)
        return settings.Spelled(form, layout)


# -- streaming ---------------------------------------------------------------------------


def _checked_source(source: Any, key: Hashable) -> Any:
    """A source as something with a shape and slices, or as blocks.

    Raises
    ------
    EncodingError, TypeError
        It is neither; or zarr would not give it back.
    """
    import numpy as np

    if isinstance(source, str | os.PathLike):
        path = os.fspath(source)
        try:
            source = np.load(path, mmap_mode="r", allow_pickle=False)
        except (ValueError, EOFError) as error:
            msg = f"{path} is no .npy file of an array that needs no pickle: {error}"
            raise EncodingError(msg, key=key, path=path) from error
        if not isinstance(source, np.ndarray):
            source.close()
            msg = f"{path} holds several arrays: load it, and give one of them"
            raise EncodingError(msg, key=key, path=path)
    if isinstance(source, np.ma.MaskedArray):
        msg = f"zarr keeps no mask: c[{short(key)}] = array pickles it"
        raise EncodingError(msg, key=key)
    if hasattr(source, "__dask_graph__") and not hasattr(source, "chunksize"):
        source = getattr(
            source, "data", source
        )  # of xarray, which wraps what dask or numpy has
    is_array = hasattr(source, "shape") and hasattr(source, "dtype")
    if not is_array and (hasattr(source, "shape") or not np.iterable(source)):
        msg = (
            f"a source is an array, blocks of one, or the path of a .npy file, not "
            f"{type(source).__qualname__}"
        )
        raise TypeError(msg)
    return source


class _Counted:
    """An array that a progress bar watches being written."""

    def __init__(self, array: Any, bar: Any) -> None:
        self._array, self._bar = array, bar
        self.shape, self.dtype = array.shape, array.dtype

    def __setitem__(self, selection: Any, value: Any) -> None:
        self._array[selection] = value
        self._bar.update(getattr(value, "nbytes", 0))


def _bar(total: int | None, *, show: bool) -> Any:
    from tqdm import tqdm

    # No thread that outlives the bar, and nothing where nobody looks (a log file).
    kind: Any = type("Bar", (tqdm,), {"monitor_interval": 0})
    hidden = None if show else True
    return kind(
        total=total,
        desc="store",
        unit="B",
        unit_scale=True,
        leave=False,
        disable=hidden,
    )


def _store_array(store: Any, source: Any, show: bool, layout: dict[str, Any]) -> Any:
    """Write what has a shape."""
    import numpy as np

    dtype = np.dtype(source.dtype).newbyteorder("=")
    is_dask = hasattr(source, "__dask_graph__")
    if is_dask and any(math.isnan(length) for length in source.shape):
        msg = "the dask array does not know its shape: call compute_chunk_sizes() first"
        raise EncodingError(msg, key=store.key, path=store.path)
    regular = is_dask and _is_regular(source.chunks)
    if regular:
        layout.setdefault("chunks", source.chunksize)
    made = zarr_().create(store, source.shape, dtype, **layout)
    blocks = made.shards or made.chunks
    with _bar(made.nbytes, show=show) as bar:
        if is_dask:
            safe = regular and _fits(source.chunksize, blocks)
            lock = False if safe else threading.Lock()
            # Threads: the draft cannot travel to other processes.
            source.store(_Counted(made, bar), lock=lock, scheduler="threads")
        else:
            for selection in _steps(source.shape, blocks, dtype.itemsize):
                part = np.asarray(source[selection])
                made[selection] = part
                bar.update(part.nbytes)
    return made


def _is_regular(chunks: tuple[tuple[int, ...], ...]) -> bool:
    """All chunks of an axis have one length, but for a shorter one at its end."""
    return all(len({*axis[:-1], max(axis)}) == 1 for axis in chunks)


def _fits(given: tuple[int, ...], blocks: tuple[int, ...]) -> bool:
    """Each zarr chunk lies in one of the given chunks."""
    return all(g % b == 0 for g, b in zip(given, blocks, strict=True))


def _steps(
    shape: tuple[int, ...], blocks: tuple[int, ...], itemsize: int
) -> Iterator[tuple[slice, ...]]:
    """Slices of whole chunks, of about 64 MiB or one chunk, that cover the array."""
    steps = list(blocks)
    for axis in reversed(range(len(shape))):
        room = STEP_NBYTES // max(1, math.prod(steps) * itemsize)
        steps[axis] *= max(1, min(room, -(-shape[axis] // blocks[axis])))
    ranges = [range(0, end, step) for end, step in zip(shape, steps, strict=True)]
    for starts in itertools.product(*ranges):
        yield tuple(
            slice(start, min(start + step, end))
            for start, step, end in zip(starts, steps, shape, strict=True)
        )


def _store_blocks(
    store: Any, source: Iterable[Any], show: bool, layout: dict[str, Any]
) -> tuple[Any, Any]:
    """Write blocks that follow one another, whole chunks at a time.

    Returns zarr's array, and the dtype of the first block.
    """
    import numpy as np

    made: Any = None
    dtype: Any = None
    waiting: list[Any] = []
    rows = done = ready = 0
    with _bar(None, show=show) as bar:
        for each in source:
            block = np.asarray(each)
            if made is None:
                made, dtype = _begin(store, block, layout), block.dtype
                rows = (made.shards or made.chunks)[0]
            native = block.dtype.newbyteorder("=")
            if block.shape[1:] != made.shape[1:] or native != made.dtype:
                msg = f"a block has shape {block.shape} and dtype {block.dtype}"
                raise EncodingError(msg, key=store.key, path=store.path)
            waiting.append(block)
            ready += len(block)
            if ready >= rows:
                whole = np.concatenate(waiting)
                cut = ready - ready % rows
                made.resize((done + cut, *made.shape[1:]))
                made[done : done + cut] = whole[:cut]
                # Copied: a view would keep the whole.
                waiting, done = [whole[cut:].copy()], done + cut
                ready -= cut
            bar.update(block.nbytes)
        if made is None:
            msg = "the source has no block"
            raise EncodingError(msg, key=store.key, path=store.path)
        rest = np.concatenate(waiting)
        made.resize((done + len(rest), *made.shape[1:]))
        if len(rest):
            made[done:] = rest
    return made, dtype


def _begin(store: Any, block: Any, layout: dict[str, Any]) -> Any:
    """An array of no rows for blocks like this one."""
    if not block.ndim:
        msg = "a block needs at least one dimension"
        raise EncodingError(msg, key=store.key, path=store.path)
    if "chunks" not in layout:
        many = (1 << 40, *block.shape[1:])
        layout["chunks"] = zarr_().good_chunks(many, block.dtype.itemsize)
    dtype = block.dtype.newbyteorder("=")
    return zarr_().create(store, (0, *block.shape[1:]), dtype, **layout)


# -- the lazy array ----------------------------------------------------------------------


class LazyArray:
    """A stored array as it was when this was made; `chest.Chest.array` makes one.

    Attributes
    ----------
    shape : tuple of int
    dtype : numpy.dtype
    chunks : tuple of int or None
        Of an array in a folder.
    """

    def __init__(self, chest: Upkeep, key: Hashable) -> None:
        self._key, self._path = key, chest.path
        entry, self._array, seal = _opened(chest, key)
        digest: Any = entry.digest
        if is_small(entry):  # what it was read from may have been moved since
            digest = chest._spill.digest(self._array, entry)
        self._token = (chest.path, keys.text(key), entry.file_id, digest)
        self._again = (chest, key)
        self.chunks = getattr(self._array, "chunks", None)
        self.shape: tuple[int, ...] = self._array.shape
        self._own = seal.dtype if seal is not None else ""
        self.dtype = _dtype(self._array, self._own)

    @property
    def ndim(self) -> int:
        """Number of dimensions."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of items."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes that the whole would take in memory."""
        return self.size * int(self.dtype.itemsize)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, selection: Any) -> Any:
        """A part: of a mapped file a view, of a folder the chunks that it lies in."""
        with reading(self._path, self._key):
            part = self._array[selection]
        # What zarr gives is in the byte order of this machine.
        return part.astype(self.dtype, copy=False) if self._own else part

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        import numpy as np

        whole = np.asarray(self[...])
        if dtype is not None and whole.dtype != dtype:
            if copy is False:
                msg = f"{whole.dtype} becomes {dtype} by a copy alone"
                raise ValueError(msg)
            return whole.astype(dtype)
        return whole.copy() if copy else whole

    def __dask_tokenize__(self) -> tuple[Any, ...]:
        """What tells this array from others, without reading it."""
        return ("chest.LazyArray", *self._token)

    def __repr__(self) -> str:
        return f"<LazyArray {short(self._key)} {self.dtype} {self.shape}>"

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as the chest's path and the key: it is looked up anew there."""
        return type(self), self._again


def _opened(chest: Upkeep, key: Hashable) -> tuple[AnyEntry, Any, Any]:
    """The published entry of *key*, its array to be indexed, and its seal or None."""
    import numpy as np

    chest._look()
    slot = chest._slots.get(key)
    if slot is not None:
        chest._raise_first(chest._write_out([slot], keep=True))
    entry = chest._manifest.index.get(key)
    while entry is not None and is_folder(entry):
        try:
            return entry, *pinned(chest, key, entry)
        except FileNotFoundError:
            entry = folder_entry(chest, key)
    value, entry, _ = chest._read(key, mapped="r")
    if not isinstance(value, np.ndarray):
        msg = (
            f"the value of {short(key)} is a {type(value).__qualname__}, no numpy array"
        )
        raise TypeError(msg)
    value = value.view()
    value.flags.writeable = False
    return entry, value, None


def _dtype(array: Any, own: str) -> Any:
    import numpy as np

    return np.dtype(own or array.dtype)
