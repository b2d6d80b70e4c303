"""A chest as a store of zarr.

Owns: zarr's names as keys of a chest, and reading through to a slower store. Does not
own: what the bytes mean (zarr), how they are kept (the chest).

Imported when `chest.zarr_store` is first asked for: this module loads zarr.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections.abc import AsyncIterator, Iterable
from typing import Any, Self

from zarr.abc.store import (
    ByteRequest,
    OffsetByteRequest,
    RangeByteRequest,
    Store,
    SuffixByteRequest,
)
from zarr.core.buffer import Buffer, BufferPrototype, default_buffer_prototype

from chest.core import Chest

__all__ = ["ChestStore", "zarr_store"]


def zarr_store(
    chest: Chest,
    origin: Store | None = None,
    *,
    prefix: str = "",
    read_only: bool = False,
) -> ChestStore:
    """A zarr store whose bytes lie in a chest: in memory under its budget, else on disk.

    Parameters
    ----------
    chest : Chest
        Holds each of zarr's objects under its name, as ``bytes``. Other keys may lie
        beside them. What is set is published as ``chest[key] = value`` is: by
        ``chest.flush()`` or `close`, or at once with ``publish="each"``.
    origin : zarr.abc.store.Store, optional
        A slower store. What is read of it stays in the chest and is not read again; what
        is written goes to it first. Its names are listed, not the chest's. Changes that
        others make to it are not seen for what the chest has: ``chest.clear()``.
    prefix : str
        Put before zarr's names, for several stores in one chest.
    read_only : bool
        Refuse changes.

    Returns
    -------
    ChestStore
        To be given to ``zarr.open``, ``xarray.open_zarr`` and the like as ``store=``. It
        does not own the chest: closing the store leaves the chest open.

    Notes
    -----
    A hit in memory costs some microseconds; a value on disk is read in a thread, so that
    other chunks go on meanwhile. A part of an object (zarr reads them of shards) brings
    the whole object into the chest. Listing is O(keys).

    An object larger than the chest's budget is not kept in memory, and one that the disk
    has no room for is served from *origin* all the same.

    Examples
    --------
    >>> import zarr
    >>> from chest import Chest, zarr_store
    >>> with Chest(available_memory="100MB") as c:
    ...     z = zarr.create_array(zarr_store(c), shape=100, chunks=50, dtype="i4")
    ...     z[:] = 1
    ...     sorted(c), int(z[:].sum())
    (['c/0', 'c/1', 'zarr.json'], 100)
    """
    return ChestStore(chest, origin, prefix=prefix, read_only=read_only)


class _Changes:
    """How often a chest was changed through stores of this process, and their lock."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.count = 0  # what was read before the last of them is old


_changes: weakref.WeakValueDictionary[str, _Changes] = weakref.WeakValueDictionary()
_guard = threading.Lock()


def _changes_of(chest: Chest) -> _Changes:
    """What all stores of a chest share: zarr makes another one to read only."""
    with _guard:
        return _changes.setdefault(chest.path, _Changes())


class ChestStore(Store):
    """See `zarr_store`, which makes one."""

    def __init__(
        self,
        chest: Chest,
        origin: Store | None = None,
        *,
        prefix: str = "",
        read_only: bool = False,
    ) -> None:
        super().__init__(read_only=read_only)
        self.chest = chest
        self.origin = origin
        self.prefix = prefix
        self._changes = _changes_of(chest)

    supports_writes = True
    supports_deletes = True

    @property
    def supports_listing(self) -> bool:
        """A chest can list its keys; an origin perhaps not."""
        return self.origin is None or bool(self.origin.supports_listing)

    def with_read_only(self, read_only: bool = False) -> Self:
        """The same chest and origin, with or without changes."""
        kind = type(self)
        return kind(self.chest, self.origin, prefix=self.prefix, read_only=read_only)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, type(self))
            and self.chest.path == other.chest.path
            and self.origin == other.origin
            and self.prefix == other.prefix
            and self.read_only == other.read_only
        )

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"ChestStore({str(self)!r})"

    def __str__(self) -> str:
        text = f"chest://{self.chest.path}"
        if self.prefix:
            text += f"#{self.prefix}"
        return text if self.origin is None else f"{text} over {self.origin}"

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        del state["_changes"]
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._changes = _changes_of(self.chest)

    # -- read --------------------------------------------------------------------------

    async def get(
        self,
        key: str,
        prototype: BufferPrototype | None = None,
        byte_range: ByteRequest | None = None,
    ) -> Buffer | None:
        """The bytes of an object, or a part of them; None: there is none."""
        await self._ensure_open()
        data = await self._bytes(key)
        if data is None:
            return None
        buffer = (prototype or default_buffer_prototype()).buffer
        return buffer.from_bytes(_part(data, byte_range))

    async def get_partial_values(
        self,
        prototype: BufferPrototype,
        key_ranges: Iterable[tuple[str, ByteRequest | None]],
    ) -> list[Buffer | None]:
        """`get` of several."""
        parts = [self.get(key, prototype, part) for key, part in key_ranges]
        return list(await asyncio.gather(*parts))

    async def exists(self, key: str) -> bool:
        """Whether there is such an object; nothing is read."""
        if self.prefix + key in self.chest:
            return True
        return self.origin is not None and bool(await self.origin.exists(key))

    async def getsize(self, key: str) -> int:
        """Bytes of an object, which comes into the chest for it.

        Raises
        ------
        FileNotFoundError
            There is none.
        """
        data = await self._bytes(key)
        if data is None:
            raise FileNotFoundError(key)
        return len(data)

    async def _bytes(self, key: str) -> bytes | None:
        """A whole object, from the chest or else from the origin."""
        name = self.prefix + key
        if name in self.chest.inmem:
            data = self.chest.get(name)  # or from the disk, when it has just left
        elif name in self.chest:
            data = await asyncio.to_thread(self.chest.get, name)
        else:
            data = None
        if data is not None:
            return _checked(name, data)
        return None if self.origin is None else await self._fetch(key)

    async def _fetch(self, key: str) -> bytes | None:
        """A whole object of the origin, which stays in the chest."""
        assert self.origin is not None
        changes = self._changes.count
        found = await self.origin.get(key, default_buffer_prototype())
        if found is None:
            return None
        data: bytes = found.to_bytes()
        if not self.chest._settings.readonly:
            await self._in_turn(self._admit, self.prefix + key, data, changes)
        return data

    def _admit(self, name: str, data: bytes, changes: int) -> None:
        """Keep what was read, unless something was written since."""
        with self._changes.lock:
            if self._changes.count == changes and name not in self.chest:
                self.chest[name] = data

    # -- change ------------------------------------------------------------------------

    async def set(self, key: str, value: Buffer) -> None:
        """Put an object: in the origin first, then in the chest."""
        self._check_writable()
        await self._ensure_open()
        data = _bytes_of(value)
        name = self.prefix + key
        if self.origin is not None:
            try:
                await self.origin.set(key, value)
            except BaseException:
                self._forget(name)  # nobody knows what the origin has now
                raise
        await self._in_turn(self._put, name, data)

    async def set_if_not_exists(self, key: str, value: Buffer) -> None:
        """Put an object unless there is one; of several callers the first wins."""
        self._check_writable()
        await self._ensure_open()
        if self.origin is not None:
            await self.origin.set_if_not_exists(key, value)
            return
        data = _bytes_of(value)
        await asyncio.to_thread(self.chest.setdefault, self.prefix + key, data)

    async def delete(self, key: str) -> None:
        """Remove an object, from the origin too; none is no error."""
        self._check_writable()
        await self._ensure_open()
        try:
            if self.origin is not None:
                await self.origin.delete(key)
        finally:
            await asyncio.to_thread(self._forget, self.prefix + key)

    async def delete_dir(self, prefix: str) -> None:
        """Remove all objects below *prefix*."""
        self._check_writable()
        await self._ensure_open()
        if prefix and not prefix.endswith("/"):
            prefix += "/"
        try:
            if self.origin is not None:
                await self.origin.delete_dir(prefix)
        finally:
            await asyncio.to_thread(self._forget_below, prefix)

    async def clear(self) -> None:
        """Remove all objects of this store; other keys of the chest stay."""
        self._check_writable()
        await self._ensure_open()
        try:
            if self.origin is not None:
                await self.origin.clear()
        finally:
            await asyncio.to_thread(self._forget_below, "")

    async def _in_turn(self, change: Any, name: str, data: bytes, *more: int) -> None:
        """Keep a value; in a thread when others have to be written for it."""
        chest = self.chest
        if chest.memory_usage + len(data) < chest.available_memory:
            change(name, data, *more)
        else:
            await asyncio.to_thread(change, name, data, *more)

    def _put(self, name: str, data: bytes) -> None:
        with self._changes.lock:
            self._changes.count += 1
            self.chest[name] = data

    def _forget(self, *names: str) -> None:
        with self._changes.lock:
            self._changes.count += 1
            for name in names:
                self.chest.pop(name, None)

    def _forget_below(self, prefix: str) -> None:
        self._forget(*[self.prefix + key for key in self._keys(prefix)])

    # -- list --------------------------------------------------------------------------

    async def list(self) -> AsyncIterator[str]:
        """All names."""
        async for key in self.list_prefix(""):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """The names that begin with *prefix*."""
        if self.origin is not None:
            async for key in self.origin.list_prefix(prefix):
                yield key
            return
        for key in self._keys(prefix):
            yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """The names and folders right below *prefix*, each once."""
        if self.origin is not None:
            async for key in self.origin.list_dir(prefix):
                yield key
            return
        prefix = prefix.rstrip("/") + "/" if prefix.rstrip("/") else ""
        seen = {key.removeprefix(prefix).split("/")[0] for key in self._keys(prefix)}
        for key in sorted(seen):
            yield key

    def _keys(self, prefix: str) -> Iterable[str]:
        """The names in the chest that begin with *prefix*."""
        start, cut = self.prefix + prefix, len(self.prefix)
        return [
            key[cut:]
            for key in self.chest
            if isinstance(key, str) and key.startswith(start)
        ]


def _bytes_of(value: object) -> bytes:
    """A copy of what zarr hands over: it may be a view of the user's array."""
    if not isinstance(value, Buffer):
        msg = f"a zarr Buffer is needed, not {type(value).__name__}"
        raise TypeError(msg)
    data: bytes = value.to_bytes()
    return data


def _checked(name: str, data: object) -> bytes:
    if type(data) is not bytes:
        kind = type(data).__name__
        msg = f"{name!r} in the chest is a {kind}, not bytes: use a prefix= for zarr"
        raise TypeError(msg)
    return data


def _part(data: bytes, byte_range: ByteRequest | None) -> bytes:
    """The part of *data* that zarr asks for."""
    if byte_range is None:
        return data
    if isinstance(byte_range, RangeByteRequest):
        return data[byte_range.start : byte_range.end]
    if isinstance(byte_range, OffsetByteRequest):
        return data[byte_range.offset :]
    if isinstance(byte_range, SuffixByteRequest):
        return data[max(0, len(data) - byte_range.suffix) :]
    msg = f"Unexpected byte_range, got {byte_range}."
    raise ValueError(msg)
