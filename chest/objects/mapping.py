"""A chest in a store of objects: the mapping that users see.

Owns: the semantics of ``dict`` over objects, what is known about keys, which operations
of a chest in a folder have no meaning here. Does not own: how values move (`engine`),
what is exact between processes (`atomic`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Hashable, Iterable, Iterator
from itertools import islice
from typing import Any, NoReturn, Self
from urllib.parse import quote

from chest import errors, expiry, facts, reprs
from chest.keeper import reopen
from chest.memory import Options, Slot
from chest.objects.atomic import MISSING, ObjectAtomic
from chest.objects.engine import LARGE
from chest.objects.ledger import WINDOW, about
from chest.objects.naming import OWN
from chest.objects.sealing import GONE_NBYTES, Stored
from chest.opening import temporary_folder
from chest.settings import Settings
from chest.stores.objects import forget_memory

__all__ = ["ObjectChest", "open_chest"]

AHEAD_NBYTES = 8 * LARGE  # of them together, about

# What a chest in a folder takes and this one does not, and its default.
FOLDER_ONLY = ("available_disk", "on_conflict", "umask")
OWN_FORMAT = ("dump", "load", "open", "open_many", "mode", "key_to_filename")


class ObjectChest(ObjectAtomic):
    """A dict with its values in memory under a byte budget, the rest in a bucket.

    Made by ``chest.Chest("s3://bucket/prefix")``; also ``gs://``, ``az://``,
    ``file:///folder`` and ``memory://``. ``isinstance(c, Chest)`` is true of it. See
    `chest.Chest` for the options.

    Notes
    -----
    One object holds one value, and its name is the key. What is set is put when it is
    spilled, or by `flush`, `sync`, `close`, leaving ``with``, or the end of the process;
    ``publish="each"`` puts it at once.

    A value that is not in memory is always asked for. One that is in memory is served for
    `max_age` seconds without asking, then the store is asked whether it is still the
    same; `refresh` has all of them asked for. ``in`` asks for one key, ``len`` and
    iteration for a listing. Keys come in the order of their objects' names.

    All methods may be called from any thread. A handle can be pickled: it travels as its
    address and options, without what may be secret in ``storage=``. A forked child
    cannot use it.

    Examples
    --------
    >>> from chest import Chest
    >>> with Chest("memory://") as c:
    ...     c["x"] = [1, 2, 3]
    ...     c.incr("hits"), c["x"], list(c)
    (1, [1, 2, 3], ['hits', 'x'])
    """

    # -- one key -----------------------------------------------------------------------

    def __getitem__(self, key: Hashable) -> Any:
        """The value of *key*; without a request when it is in memory and fresh.

        Raises
        ------
        KeyError
            There is no such key.
        CorruptValueError, DecodingError, UntrustedError, SignatureError
            There is, but its value cannot be had.
        StoreError
            The store does not answer.
        """
        if self._valid(key) is not None:
            next(self._memory.counter)
            self._memory.touched.append(key)
            with contextlib.suppress(KeyError):  # another thread has just let it go
                return self._values[key]
        return self._fetch(key)[0]

    def __setitem__(self, key: Hashable, value: Any) -> None:
        """Keep *value*; published at the next spill, flush or close."""
        self._set(key, value, None)

    def set(
        self,
        key: Hashable,
        value: Any,
        *,
        format: str | None = None,
        mapped: Any = None,
        ttl: float | None = None,
        compression: str | bool | None = None,
    ) -> None:
        """``c[key] = value`` with options of the key's own; see `chest.Chest.set`."""
        if format == "zarr":
            self._no_folder("format='zarr'")
        options = self._own_options(format, mapped, compression, ("pickle", "data"))
        if ttl is None:
            self._set(key, value, options)
        else:
            self._put(key, value, options, expiry.deadline(ttl))

    def _set(self, key: Hashable, value: Any, options: Options | None) -> None:
        self._check_writable()
        if self._settings.publish == "each":
            self._put(key, value, options)
            return
        self._check_settable(key, value, options)
        self._keep_in_memory(key, value, options)

    def _check_settable(
        self, key: Hashable, value: Any, options: Options | None
    ) -> None:
        """Refuse now what could not be put later."""
        self._check_writable()
        name = self._name(key)
        form = (options or (None,))[0] or self._settings.format
        if form == "data":
            job = self._job(key, value, options, nbytes=0)
            self._sealer.check_storable(job, self._store.url(name))

    def _set_soon(self, key: Hashable, value: Any) -> None:
        # docstring inherited
        self._check_settable(key, value, None)
        self._keep_in_memory(key, value)

    def __delitem__(self, key: Hashable) -> None:
        """Remove *key* for everyone, at once; its value is not read."""
        self._check_writable()
        name = self._name(key)
        with about(key), self._key_lock(name):
            slot = self._slots.get(key)
            there = self._is_there(key, name)
            if there:
                self._store.delete([name])
            unput = slot is not None and slot.dirty
            self._drop_all(key, slot)
            if not there and not unput:
                raise KeyError(key)

    def __contains__(self, key: Any) -> bool:
        """Whether *key* is there; one small request unless it is in memory and fresh."""
        self._check_open()
        if self._valid(key) is not None:
            return True
        return self._is_there(key, self._name(key))

    def popitem(self) -> tuple[Any, Any]:
        """Remove the key that comes last, and return it with its value."""
        while True:
            key = next(reversed(self), MISSING)
            if key is MISSING:
                msg = "popitem(): the chest is empty"
                raise KeyError(msg)
            with contextlib.suppress(KeyError):  # somebody else took it: the next one
                return key, self.pop(key)

    # -- all keys ----------------------------------------------------------------------

    def __iter__(self) -> Iterator[Any]:
        """The keys in the order of their objects' names, as they are now."""
        return iter([*self._keys_by_name().values()])

    def __reversed__(self) -> Iterator[Any]:
        """The keys, the last one first."""
        return iter([*self._keys_by_name().values()][::-1])

    def __len__(self) -> int:
        """How many keys there are; a request for each 1,000."""
        return len(self._keys_by_name())

    def clear(self) -> None:
        """Remove all keys for everyone, and the marks of those that were removed."""
        self._check_writable()
        with contextlib.ExitStack() as held:
            # All of them, so that no put that has begun comes after it.
            for lock in self._key_locks:
                held.enter_context(lock)
            with self.lock:
                before = [*self._slots.values()]
            self._store.delete([*self._listed()])
            with self.lock:
                self._turns = [turn + 1 for turn in self._turns]
                clean = [each for each in self._slots.values() if not each.dirty]
                for slot in (*before, *clean):
                    self._memory.drop(slot)

    # -- many keys ---------------------------------------------------------------------

    def delete_many(self, keys: Iterable[Hashable]) -> int:
        """Delete those *keys* that are there, for everyone.

        Returns
        -------
        int
            How many there were.
        """

        def delete(key: Hashable) -> bool:
            try:
                del self[key]
            except KeyError:
                return False
            return True

        return sum(self._at_once(delete, [*dict.fromkeys(keys)]))

    def _pairs(self, keys: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        """Those *keys* that are there, with their values, which are not kept."""
        rest, width = iter(keys), 1
        while window := list(islice(rest, width)):
            before = self._loaded_nbytes
            values = self._at_once(self._glance, window)
            for key, value in zip(window, values, strict=True):
                if value is not MISSING:
                    yield key, value
            del values
            # As many ahead as fit, should the next ones be as large as these.
            each = max(1, (self._loaded_nbytes - before) // len(window))
            width = max(1, min(2 * width, WINDOW, AHEAD_NBYTES // each))

    def _glance(self, key: Any) -> Any:
        """The value of *key* without any trace in memory; MISSING."""
        try:
            if self._valid(key) is not None:
                with contextlib.suppress(KeyError):  # another thread let it go
                    return self._values[key]
            return self._fetch(key, admit=False)[0]
        except KeyError:
            return MISSING

    # -- knowing -----------------------------------------------------------------------

    @property
    def max_age(self) -> float:
        """Seconds for which a value in memory is served without asking the store."""
        return self._settings.max_age

    @property
    def honours(self) -> tuple[bool, bool]:
        """Whether the store honours puts "if there is none", and "if it is the same".

        Tried once in a process, by five small requests.
        """
        self._check_writable()
        return self._store.honours

    @property
    def stored_nbytes(self) -> int:
        """Bytes of all objects; a request for each 1,000."""
        return sum(each.size for _, each in self._living().values())

    def key_to_filename(self, key: Hashable) -> str:
        """The address of the object that holds the value of *key*, or that will."""
        return self._store.url(self._name(key))

    def _known(self, key: Hashable) -> tuple[Slot | None, Stored | None]:
        # docstring inherited
        self._check_open()
        slot, entry = self._slots.get(key), self._entry(key, self._name(key))
        if entry is None and (slot is None or not slot.dirty):
            raise KeyError(key)
        return slot, entry

    def _told(self, key: Hashable, entry: Stored | None) -> dict[str, Any]:
        # docstring inherited
        return {"generation": 0, "birth": 0, "etag": entry.etag if entry else ""}

    def modified(self, key: Hashable) -> float:
        """When the value of *key* was put, as Unix time [s] of the store.

        Raises
        ------
        KeyError
            There is no such key, or it was not put yet.
        """
        found, entry = self._find(key, self._name(key))
        if found is None or entry is None:
            raise KeyError(key)
        return found.modified

    def modified_all(self) -> dict[Any, float]:
        """When each value was put; a request for each 1,000 keys."""
        return {key: each.modified for key, each in self._living().values()}

    @property
    def _identity(self) -> str:
        """What tells this chest from others."""
        return self.path

    def _written_before(self, keys: Iterable[Any], seconds: float) -> list[Any]:
        """Those that were computed, or else put, that long ago."""
        now = time.time()

        def age(key: Any) -> float:
            found, entry = self._find(key, self._name(key))
            if found is None or entry is None:
                return -1.0
            return now - (entry.made or found.modified)

        wanted = [*keys]
        ages = self._at_once(age, wanted)
        old = zip(wanted, ages, strict=True)
        return [key for key, each in old if each >= max(0.0, seconds)]

    def stats(self) -> facts.Stats:
        """Counts since this handle was opened, and the present state. Asks for a list."""
        unput, live = self._unput(), self._living()
        return self._stats(
            keys=len(unput.keys() | live.keys()),
            stored_nbytes=sum(each.size for _, each in live.values()),
            available_disk=float("inf"),
            misses=self._loaded,
            writes=self._written,
            written_nbytes=self._written_nbytes,
            loads=self._loaded,
            loaded_nbytes=self._loaded_nbytes,
            compression=self._sealer.compression,
        )

    def _known_size(self) -> None:
        # docstring inherited
        return None

    def refresh(self) -> None:
        """Ask the store about every value in memory when it is next wanted."""
        self._check_open()
        with self.lock:
            for slot in self._slots.values():
                if isinstance(slot.entry, Stored):
                    slot.entry.until = 0.0

    def verify(self, *, progress: bool = False) -> list[facts.Problem]:
        """Get every object and compare it with its checksums and signature.

        Parameters
        ----------
        progress : bool
            Show a progress bar.

        Returns
        -------
        list of Problem
            Empty when all is well. Nothing is changed.
        """
        problems = []
        named = [*self._keys_by_name().items()]
        for name, key in reprs.shown(named, "verify", show=progress):
            found = self._store.get(name)
            if found is None or found.size <= GONE_NBYTES:
                continue
            url = self._store.url(name)
            try:
                self._sealer.check(found.data, name, key, url)
            except errors.ChestError as error:
                problems.append(facts.Problem(key, url, str(error)))
        return problems

    def compact(self) -> int:
        """Remove the marks of keys that were popped, and values whose deadline passed.

        Only while nobody else changes the chest: a store of objects removes without a
        condition, so a value that is put at this very moment could go with its mark.

        Returns
        -------
        int
            How many objects were removed.
        """
        self._check_writable()
        # Of one listing, so that what others put since is not taken for old.
        listed = self._listed()
        old = [*(listed.keys() - self._living(listed).keys())]
        self._store.delete(old)
        return len(old)

    # -- what has no meaning here ------------------------------------------------------

    def _no_folder(self, what: str) -> NoReturn:
        self._unsupported(what, "use a chest in a folder: Chest('folder')")

    def zarr(self, key: Hashable, **options: Any) -> NoReturn:
        """Not here: raises `UnsupportedError`. zarr itself opens buckets."""
        self._no_folder(f"zarr({errors.short(key)})")

    def snapshot(self, path: str | os.PathLike[str]) -> NoReturn:
        """Not here: raises `UnsupportedError`."""
        self._unsupported("snapshot()", f"Chest({os.fspath(path)!r}).update(c) copies")

    def array(self, key: Hashable) -> NoReturn:
        """Not here: raises `UnsupportedError`."""
        self._no_folder(f"array({errors.short(key)})")

    def create(self, *args: Any, **options: Any) -> NoReturn:
        """Not here: raises `UnsupportedError`."""
        self._no_folder("create()")

    def store(self, *args: Any, **options: Any) -> NoReturn:
        """Not here: raises `UnsupportedError`."""
        self._no_folder("store()")

    def unpack(self, key: Hashable) -> str:
        """The address of *key*'s object: each value has its own."""
        self.move_to_disk(key)
        return self.key_to_filename(key)

    def trim(self, *args: Any, **options: Any) -> NoReturn:
        """Not here: raises `UnsupportedError`."""
        self._unsupported("trim()", "set ttl=, or have the bucket delete old objects")

    # -- lifetime ----------------------------------------------------------------------

    def close(self) -> None:
        """Publish everything. Safe to call twice.

        When something cannot be put the error is raised and the chest stays open, with
        the value in it.
        """
        ours = not self._settings.readonly and not self._temporary
        while not self._closed:
            if ours:
                self._put_last(serial=False)
            with self.lock:
                slots = self._slots.values()
                if ours and any(each.dirty and not each.inherited for each in slots):
                    continue  # set by another thread meanwhile
                self._release()

    def drop(self) -> None:
        """Delete all objects of the chest, for everyone."""
        if self._closed:
            if not self._temporary:
                reopen(type(self), self.path, self._settings).drop()
            return
        self._check_writable()
        self.clear()
        self._store.delete([each.name for each in self._store.list(OWN)])
        self._store.remove_folder(only_empty=True)
        forget_memory(self.path)
        self._release()

    def __del__(self) -> None:
        """Put what is dirty; a value that cannot be put is logged."""
        # Half-made handles have no attributes; at_exit never raises.
        if not getattr(self, "_closed", True):
            self.at_exit()

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as address and options; what is dirty is put first."""
        if self.path.startswith("memory:"):
            msg = f"{self.path} is in the memory of this process: it cannot be pickled"
            raise TypeError(msg)
        return super().__reduce__()

    def _like(self, path: Any) -> Self:
        """An empty chest with the same options, in a temporary folder."""
        folder = "file://" + quote(temporary_folder())
        trust = "any" if self._settings.trust == "owner" else self._settings.trust
        options = dataclasses.replace(
            self._settings, readonly=False, trust=trust, storage=None
        )
        new = reopen(type(self), folder, options)
        new._temporary = True
        return new


def open_chest(address: str, options: dict[str, Any]) -> ObjectChest:
    """The chest at an address, with those options of `chest.Chest` that were given.

    Raises
    ------
    ValueError, TypeError
        An option that has no meaning there, or an unknown one.
    """
    data = options.pop("data", None)
    plain = Settings()
    for name in (*FOLDER_ONLY, *OWN_FORMAT):
        if name in options and options[name] != getattr(plain, name):
            msg = f"{name}= is for a chest in a folder, {address} is none"
            raise ValueError(msg)
    if options.get("format") == "zarr":
        msg = f"format='zarr' is for a chest in a folder, {address} is none"
        raise ValueError(msg)
    if options.get("available_memory", "") is None:
        del options["available_memory"]
    new = reopen(ObjectChest, address, Settings(**options))
    if data is not None:
        new.update(data)
    return new
