"""The chest itself: the mapping that users see.

Owns: the semantics of ``dict``, each method a few steps of the engine's, and the names of
chest 1.x at the foot. Does not own: how values move, or when they are published.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import pickle
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from typing import Any, Self

from chest import expiry, keys, lifetime, settings
from chest.arrays import Arrays
from chest.atomic import Atomic
from chest.face import Face
from chest.keeper import reopen
from chest.keys import PLAIN
from chest.keys import key_to_filename as key_to_filename  # chest 1.x has it here
from chest.ledger import generation
from chest.memory import Options, weigh
from chest.settings import (
    Settings,
    is_address,
    nothing,
    open_many,
    pickle_dump,
)
from chest.sizing import SCALARS, measure
from chest.sizing import nbytes as nbytes  # and this

__all__ = ["Chest"]


class Chest(Arrays, Atomic):
    """A dict that keeps its values in memory under a byte budget, the rest on disk.

    Parameters
    ----------
    data : Mapping or iterable of pairs, optional
        First contents. A str or PathLike given here is the *path*.
    path : str or PathLike, optional
        The folder; made with mode 0700 where there is none. Without one a temporary
        folder is used, and removed at the end.
    available_memory : int, float or str
        Budget of bytes for values in memory: a number, ``"4GB"``, or ``"25%"`` of the
        memory that this process may use.
    dump, load : callable
        Write a value to an open file and read it back, like those of `json`. Given
        either, values are kept in your own format.
    key_to_filename : callable
        key → relative name of its file.
    on_miss, on_overflow : callable
        Called with the key before a value is read from disk, and before one is written
        because memory is full.
    on_conflict : callable, optional
        (key, mine, theirs) → the value to publish, called before a value of this process
        is published over one that another has published since it was set. None: the last
        publication wins.
    open, open_many : callable
        Open one file, or a list of files as a context manager, for *dump* and *load*.
    mode : {"b", "t"}
        Binary or text files for *dump* and *load*.
    format : {"pickle", "data", "zarr"}
        How values are written. ``"data"`` never uses pickle and refuses what needs it;
        with ``"zarr"`` each array of numbers is a zarr array in a folder of its own.
    policy : {"largest", "lru", "costly", "idle"} or Policy
        Who leaves memory first.
    pack : bool
        Many small values that are written at once go into one file; a lone one has its
        own. False: each has its own.
    mapped : {"r", "copy", False}
        Large values come back as views of their mapped file: read-only, private and
        writable, or not at all (they are read).
    publish : {"flush", "each"}
        When ``c[key] = value`` becomes visible to others: when it is spilled or flushed,
        or at once.
    durability : {"process", "power", "memory"}
        What a published value survives: the death of any process; also a power cut; or
        nothing is promised.
    trust : {"owner", "data", "any"}
        Pickles are loaded only where nobody but this user (or root) can have written
        them; never; or always, at your own risk.
    sign_key : bytes, callable or "env:NAME", optional
        Every file and record carries, and must carry, a keyed hash made with it.
    verify : {"stream", "full"}
        Check all that is decoded; or mapped bytes as well, each time they are mapped.
    readonly : bool
        Nothing is written, not even a lock is taken.
    timeout : float, optional
        Seconds to wait for another process's lock; ``None``: as long as it takes.
    available_disk : int or str, optional
        Budget of bytes for files; the least recently used keys are deleted beyond it.
    umask : bool
        Make files and folders with the modes that the umask leaves, not 0600 and 0700.
    compression : {"zstd", "lz4", "auto"}, optional
        Of pickles with a file of their own, which are then read, not mapped. ``"auto"``
        compresses (zstd) those whose first 4 MiB become a fifth smaller. Of several
        values in one file none is compressed; arrays in folders have zarr's compressors.
    storage : Mapping or callable, optional
        Of an address: what obstore's store takes (``endpoint``, ``region``, …), or a
        function that returns it. What is not given comes from the environment.
    max_age : float
        Of an address: seconds for which a value in memory is served without asking
        whether it is still the same. 0: it is always asked; ``inf``: after `refresh` only.

    Raises
    ------
    ValueError
        An option has a value that it does not take.
    UntrustedError
        The folder can be written to by somebody else.
    CorruptChestError, VersionError, SignatureError
        The folder's manifest cannot be read; nothing was changed.

    Notes
    -----
    What is set is *published*, that is, visible to other processes and safe from a crash,
    when it is spilled, or by `flush`, `sync`, `close`, leaving ``with``, or the end of the
    process. ``del``, `pop`, `popitem`, `setdefault`, `clear` and `edit` publish at once.

    All methods may be called from any thread. A chest may be used on both sides of a
    fork, and can be pickled: it travels as its path and options.

    Examples
    --------
    >>> c = Chest(available_memory="100MB")
    >>> c["x"] = [1, 2, 3]
    >>> c["x"]
    [1, 2, 3]
    >>> c.flush()
    >>> import os
    >>> sorted(os.listdir(c.path))
    ['.keys', 'x']
    >>> c.close()
    """

    __slots__ = ()

    def __new__(
        cls, data: Any = None, path: Any = None, *args: Any, **options: Any
    ) -> Self:
        """A chest in a folder, or an `ObjectChest` where the path is an address."""
        place = data if path is None else path
        if cls is Chest and isinstance(place, str) and is_address(place):
            from inspect import signature

            from chest.objects.mapping import open_chest

            bound = signature(cls.__init__).bind(None, data, path, *args, **options)
            given = {name: bound.arguments[name] for name in [*bound.arguments][3:]}
            return open_chest(  # type: ignore[return-value]
                place, {"data": None if path is None else data, **given}
            )
        return super().__new__(cls)

    @classmethod
    def __subclasshook__(cls, kind: type) -> Any:
        # An object chest shares the face only, but is a chest to everyone who asks.
        if cls is Chest and Face in kind.__mro__:
            return True
        return NotImplemented

    def __init__(
        self,
        data: Any = None,
        path: str | os.PathLike[str] | None = None,
        available_memory: float | str | None = None,
        dump: Callable[..., object] = pickle_dump,
        load: Callable[..., object] = pickle.load,
        key_to_filename: Callable[[Any], str] = key_to_filename,
        on_miss: Callable[[Any], object] = nothing,
        on_overflow: Callable[[Any], object] = nothing,
        open: Callable[..., Any] = open,
        open_many: Callable[..., Any] = open_many,
        mode: str = "b",
        *,
        on_conflict: Callable[[Any, Any, Any], Any] | None = None,
        format: str = "pickle",
        policy: Any = "largest",
        pack: bool = True,
        mapped: str | bool = "r",
        publish: str = "flush",
        durability: str = "process",
        trust: str = "owner",
        sign_key: Any = None,
        verify: str = "stream",
        readonly: bool = False,
        timeout: float | None = None,
        available_disk: float | str | None = None,
        umask: bool = False,
        compression: str | bool | None = None,
        storage: Any = None,
        max_age: float = 1.0,
    ) -> None:
        self._closed = True  # until there is something to close
        if path is None and isinstance(data, str | bytes | os.PathLike):
            data, path = None, data
        if available_memory is None:
            available_memory = settings.DEFAULT_MEMORY
        if storage is not None:
            msg = "storage= is for stores of objects, this path is no address of one"
            raise ValueError(msg)
        given = locals()
        options = {name: given[name] for name in settings.NAMES}
        self._start(path, Settings(**options))
        if data is not None:
            self.update(data)

    # -- one key -----------------------------------------------------------------------

    def __getitem__(self, key: Hashable) -> Any:
        """The value of *key*; O(1) and without a lock when it is in memory.

        Raises
        ------
        KeyError
            There is no such key.
        CorruptValueError, DecodingError, UntrustedError
            There is, but its value cannot be had.
        """
        if self._word[1] != self._seen:
            self.refresh()
        # Asking twice is quicker than keeping the value meanwhile: the value's memory is
        # touched last, so that the processor need not wait for it.
        if key in self._values:
            next(self._hits)
            self._touched.append(key)
            try:
                return self._values[key]
            except KeyError:
                pass  # another thread has just let it go
        index = self._manifest.index
        records, entry = index.records, index.find(key)
        if entry is not None:
            return self._load(key, entry, index, records)
        try:
            return self._values[key]  # another thread may just have brought it
        except KeyError:
            self._check_open()  # or closed the chest, and memory is empty
            raise

    def get(self, key: Hashable, default: Any = None) -> Any:
        """The value of *key*, or *default* when there is no such key; as ``c[key]``.

        Raises
        ------
        CorruptValueError, DecodingError, UntrustedError
            There is, but its value cannot be had.
        """
        if self._word[1] != self._seen:
            self.refresh()
        try:
            if key in self._values:
                return self[key]
            # Many ask for what is not there, and an exception takes longer than this.
            index = self._manifest.index
            records, entry = index.records, index.find(key)
            if entry is None:
                value = self._values.get(key, default)
                if self._closed:  # by another thread: memory is empty
                    self._refuse()
                return value
            return self._load(key, entry, index, records)
        except KeyError:  # another thread has just deleted it
            return default

    def __setitem__(  # noqa: C901, PLR0912 - each call would cost a tenth
        self, key: Hashable, value: Any
    ) -> None:
        """Keep *value*; published at the next spill, flush or close."""
        if self._unusual or type(key) not in PLAIN:
            (self._put if self._each else self._set)(key, value, None)
            return
        if self._word[1] != self._seen:
            self.refresh()
        if type(value) in SCALARS:
            plain, buffers = value.__sizeof__(), None  # what `getsizeof` asks, for less
        else:
            plain, buffers = measure(value)
        memory = self._memory
        self._acquire()
        try:
            if self._closed:  # by another thread, since the look above
                self._refuse()
            if key in self._values or self._manifest.index.has(key):
                memory.put(key, value, plain, buffers, self._slots.get(key))
            elif buffers is None:
                # What the memory tier calls bare: all that is done for a new small value.
                if memory.touched:
                    memory.note()
                self._values[key] = value
                memory.newest.append(key)
                memory.used += plain
            else:
                slot = memory.put(key, value, plain, buffers)
                if slot.alive and slot.dirty:  # else a signal's handler has flushed it
                    memory.fresh[key] = None
        except BaseException as error:
            self._cut_short(error)
            raise
        finally:
            self._unlock()
        if memory.used > memory.budget:
            self._make_room(key)

    def set(
        self,
        key: Hashable,
        value: Any,
        *,
        format: str | None = None,
        mapped: Any = None,
        ttl: float | None = None,
        compression: str | bool | None = None,
        **layout: Any,
    ) -> None:
        """``c[key] = value`` with options of the key's own.

        Parameters
        ----------
        key : Hashable
        value : object
        ttl : float, optional
            Seconds from now after which the key counts as absent for every operation.
            Such a value is published at once. Setting the key again without it takes
            the deadline away.
        format : {"pickle", "data", "zarr"}, optional
            Instead of the chest's. With ``"zarr"`` an array lies in a folder of its own,
            in chunks (see `zarr`); what zarr does not give back exactly is pickled.
        mapped : {"r", "copy", False}, optional
            Instead of the chest's; written down with the value.
        compression : {"zstd", "lz4", "auto", False}, optional
            Instead of the chest's, of a pickle. Such a value is not mapped but read.
        **layout
            With ``format="zarr"``: ``chunks=``, ``shards=``, ``compressors=`` and what else
            ``zarr.create_array`` takes.

        Raises
        ------
        ValueError
            An option has a value that it does not take.
        TypeError
            There is no such option of the format.
        EncodingError
            With ``publish="each"`` or ``format="data"``: the value cannot be written.
        """
        if layout:
            format = self._layout(format or self._settings.format, layout)
        words = settings.WORDS["format"]
        options = self._own_options(format, mapped, compression, words)
        if format is not None and compression is None:
            self._check_settable(key, value, options)
        if ttl is None:
            self._set(key, value, options)
        else:
            self._put(key, value, options, expiry.deadline(ttl))

    def _set(
        self,
        key: Hashable,
        value: Any,
        options: Options | None,
    ) -> None:
        if self._each:
            self._put(key, value, options)
            return
        self._look()
        if self._unusual:
            self._check_settable(key, value, options)
        if type(key) not in keys.PLAIN:
            keys.encode(key)  # a key that cannot be written is refused here, not later
        weight = weigh(value)
        memory = self._memory
        with self.lock, self._whole():
            self._check_open()
            known, entry = self._slots.get(key), self._manifest.index.get(key)
            slot = memory.put(key, value, *weight, known, options)
            slot.seen = generation(entry)
            if entry is None and slot.alive and slot.dirty:
                memory.fresh.setdefault(key, None)
        if memory.used > memory.budget:
            self._make_room(key)

    def _set_soon(self, key: Hashable, value: Any) -> None:
        # docstring inherited
        self._set(key, value, None)

    def __delitem__(self, key: Hashable) -> None:
        """Remove *key* for everyone, at once; its value is not read."""
        held = self._values.get(key)  # its __del__ may use the chest
        lock = self._begin()
        try:
            names = self._remove(key)
        except BaseException as error:
            self._cut_short(error)
            raise
        finally:
            self._end(lock)
        del held
        if names:
            self._spill.delete(names)

    def __contains__(self, key: Any) -> bool:
        """Whether *key* is there; O(1), nothing is read."""
        if self._word[1] != self._seen:
            self.refresh()
        found = key in self._values or self._manifest.index.has(key)
        if not found and self._closed:  # as in `get`
            self._refuse()
        return found

    def popitem(self) -> tuple[Any, Any]:
        """Remove the key that came last, and return it with its value."""
        while True:
            self._look()
            with self.lock:
                self._check_open()
                key = self._last()
            with contextlib.suppress(KeyError):  # somebody else took it: the next one
                return key, self.pop(key)

    # -- all keys ----------------------------------------------------------------------

    def __iter__(self) -> Iterator[Any]:
        """The keys in the order in which they were first set, as they are now."""
        self._look()
        with self.lock:
            self._check_open()
            return iter(self._ordered())

    def __reversed__(self) -> Iterator[Any]:
        """The keys, the last one first."""
        self._look()
        with self.lock:
            self._check_open()
            return reversed(self._ordered())

    def clear(self) -> None:
        """Remove all keys for everyone, at once."""
        with self._publishing():
            index = self._manifest.index
            names, before = list[str](), self._manifest.written
            try:
                if len(index) or index.expired:
                    names = self._spill.remove_all()
                self._memory.clear()
            except BaseException:
                if self._manifest.written != before:
                    self._memory.clear()  # published: it must not come back
                raise
        self._spill.delete(names)

    def _adopts(self, other: Any, *, overwrite: bool) -> bool:
        # docstring inherited
        linked = Chest in type(other).__mro__ and other._can_be_linked_to(self)
        if linked:
            self._adopt(other, overwrite=overwrite)
        return linked

    def snapshot(self, path: str | os.PathLike[str]) -> Self:
        """Flush, then make a chest at *path* of hard links: independent from then on.

        Across file systems the files are copied.

        Raises
        ------
        FileExistsError
            There is something at *path* already.
        """
        if os.path.lexists(path):
            msg = f"{os.fspath(path)} is there already"
            raise FileExistsError(msg)
        self.flush()
        new = self._like(path)
        new.update(self)
        new.flush()
        return new

    @classmethod
    def fromkeys(cls, keys: Iterable[Hashable], value: Any = None) -> Self:
        """A new chest in a temporary folder with one value for all *keys*."""
        new = cls()
        for key in keys:
            new[key] = value
        return new

    # -- disk --------------------------------------------------------------------------

    def close(self) -> None:
        """Publish everything and release the folder; a temporary one is removed.

        Safe to call twice. When something cannot be written the error is raised and the
        chest stays open, with the value in it.
        """
        if self._closed:
            return
        self._check_idle()
        ours = self._explicitly_given_path and not self._settings.readonly
        if ours:
            self.flush()
        with self.lock:  # what other threads have set since
            if ours and not self._closed:
                self.flush()
            self._release()

    def drop(self) -> None:
        """Delete the chest from the disk, for everyone.

        Only what chest made is removed; the folder goes with it if nothing else is in
        it. Other processes that have it open get `DroppedError`.
        """
        if self._closed:
            if os.path.isdir(self.path):
                reopen(type(self), self.path, self._settings).drop()
            return
        self._check_idle()
        with self.lock:  # lest another thread finds it open, without its files
            self._remove_files()
        self._remove_folder()

    # -- lifetime ----------------------------------------------------------------------

    def _fetch_missed(self, keys: Sequence[Hashable]) -> None:
        # docstring inherited
        if self._settings.is_custom and self._settings.open_many is not open_many:
            self._fetch_together(keys)
        else:
            super()._fetch_missed(keys)

    def __del__(self) -> None:
        """Close what was left open; a value that cannot be written is logged."""
        # Half-made chests have no attributes; at_exit never raises.
        if getattr(self, "_closed", True):
            return
        if self._manifest.is_held_here():
            # The collector may have come while this very thread holds the folder's lock
            # through another handle: waiting for it would be waiting for oneself.
            lifetime.postpone(self)
            if not self._manifest.is_held_here():
                lifetime.work_off()  # another thread did, and has just let go
        else:
            self.at_exit()

    def _like(self, path: Any) -> Self:
        """An empty chest with the same options."""
        options = dataclasses.replace(self._settings, readonly=False)
        return reopen(type(self), path, options)

    # -- names of chest 1.x ------------------------------------------------------------

    @property
    def dump(self) -> Callable[..., object]:
        """The function that writes a value to an open file."""
        return self._settings.dump

    @property
    def load(self) -> Callable[..., object]:
        """The function that reads a value from an open file."""
        return self._settings.load

    @property
    def mode(self) -> str:
        """``"b"`` or ``"t"``: how files are opened for `dump` and `load`."""
        return self._settings.mode

    @property
    def open(self) -> Callable[..., Any]:
        """The function that opens a file for `dump` and `load`."""
        return self._settings.open

    @property
    def open_many(self) -> Callable[..., Any]:
        """The function that opens a list of files for `load`."""
        return self._settings.open_many
