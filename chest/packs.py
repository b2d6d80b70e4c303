"""Packs: files of many small values.

Owns: the bytes of a pack, and which file of this process the next batch goes
to. Does not own: which entries are live (the index), or when a value is packed.

A pack is append-only. Each batch is a head, the values, one after the other, and an index
(see `chest.batches`)::

    head  values…  pad to 8, or to a page  index

The manifest's record of the batch says where it lies and what its index's checksum is, so
that what was appended and not published is nobody's. The head says it again, for whoever
has lost the manifest. Its checksum covers the pack's name, which nobody knows before it is
made: the bytes of a value cannot pass for a batch.

Invariants
----------
K1  Bytes that a record refers to are never changed.
K2  Only the process that made a pack appends to it, and holds its lock while it may.
K3  A pack is removed under the manifest's lock, and only once the log does not name it.
"""

from __future__ import annotations

import bisect
import contextlib
import errno
import mmap
import os
import secrets
import struct
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import accumulate
from typing import Any, cast

import xxhash

from chest import errors, expiry, system
from chest.batches import Batch, Block, Columns, Packed, index_of
from chest.folder import PACK, Folder, refused
from chest.protocols import Buffer
from chest.records import Entry
from chest.system import FileMap

__all__ = ["Packs", "portions"]

PACK_NBYTES = 256 << 20  # a pack that is larger gets no further batch
BATCH_KEYS = 1 << 16  # keys of one batch at most
BATCH_NBYTES = 16 << 20  # of its values; it is in memory twice while it is written
MAPPED_FROM = (
    1 << 16
)  # bytes; a larger index begins at a page, so that it can be mapped
PAGE = 4096
GAP = 4096  # bytes of other values that are read along rather than left out
RUN = 1 << 20  # bytes of one read
MOST_OPEN = 128  # packs whose descriptor is kept for reading
NOT_PLAIN = (errno.ELOOP, errno.EINVAL, errno.EISDIR)  # a link, a pipe, a folder

HEAD = struct.Struct("<8sIIqQQQQQdQ")
HEAD_MAGIC = b"CHESTPB1"

_HALF = 0xFFFFFFFF
_digest = xxhash.xxh3_64_intdigest
_pread = os.pread if system.POSIX else None

Check = Callable[[str, os.stat_result], object]


class Packs:
    """The packs of one chest, as this process reads and writes them.

    Parameters
    ----------
    home : Folder
        Where they lie.
    check : callable
        (path, status) of a pack; raises when its pickles may not be loaded.
    mapped : float
        Bytes of packs that may be mapped at the same time; the rest is read.
    """

    def __init__(self, home: Folder, check: Check, mapped: float = 0) -> None:
        self._home = home
        self._check = check
        self._open: dict[str, int] = {}
        self._closed = False
        # A slice of a map takes a third of the time of a read. Elsewhere than on a local
        # disk a map does not show what other hosts write.
        self._maps: dict[str, FileMap] = {}
        self._mappable = 0 if home.network else mapped
        # One thread at a time appends to the pack, or ends it: a batch lies where its
        # record says, and no descriptor is closed while bytes go to it.
        self._lock = threading.Lock()
        self._writing = -1  # descriptor of the pack that takes the next batch
        self._name = ""
        self._end = 0

    def write(self, small: Columns, *, sync: bool, generation: int = 0) -> Batch:
        """Append one batch; nobody sees it before its record is published.

        *generation* is that of the last record that its writer knows of.

        Raises
        ------
        OSError
            The disk refused. What was written is nobody's, and is not used again.
        """
        base = min(small.births)
        block = index_of(small, base)
        record = Entry(
            birth=base,
            size=len(block),
            digest=f"{_digest(block):016x}",
            count=len(small),
            rewritten=small.rewritten,
            made=small.made,
        )
        values = b"".join(small.datas)
        self._append(record, values, block, generation, sync=sync)
        return Batch(record, block)

    def _append(
        self, record: Entry, values: bytes, block: bytes, generation: int, *, sync: bool
    ) -> None:
        """Write to the present pack, and note in *record* where that is."""
        with self._lock:
            begun = self._writing < 0 or self._end >= PACK_NBYTES
            if begun:
                self._begin()
            record.name, record.start = self._name, self._end + HEAD.size
            end = record.start + len(values)
            record.at = end + -end % (8 if len(block) < MAPPED_FROM else PAGE)
            try:
                head = _head(record, generation)
                pad = bytes(record.at - end)
                written = system.write_all(self._writing, [head, values, pad, block])
                if sync:
                    system.sync_file(self._writing)
                    if begun:
                        self._home.sync()  # the pack's name, before a record has it
                self._end += written
            except BaseException:  # also Ctrl-C: who knows where the file ends now
                self._stop()
                raise

    def walk(self, name: str) -> Iterator[tuple[Entry, float]]:
        """What a pack itself says of its batches: (record, when it was written).

        For who has no manifest: the batches are whole as far as their heads are, but
        need not have been published, and what became of their values is not known. The
        record's generation is the last that its writer knew of.

        Raises
        ------
        FileNotFoundError
            The pack is gone.
        OSError
            As ``os.open``.
        UntrustedError
            Somebody else could have written it.
        """
        fd = self._opened(name)
        try:
            data = system.map_file(fd, os.fstat(fd).st_size)
        finally:
            system.close(fd)
        at = _next_head(data, 0)
        while at >= 0:
            found = _headed(data, at, name)
            if found is None:
                at = _next_head(data, at + 1)
                continue
            yield found
            at = _next_head(data, found[0].at + found[0].size)

    def block(self, record: Entry) -> Block:
        """The index of a batch, checked; a large one is mapped where it lies.

        Raises
        ------
        CorruptChestError
            The pack is missing, or the batch's index is damaged.
        """
        path = self._home.join(record.name)
        expected = (24 if record.rewritten else 16) * record.count

        def is_good(block: Buffer) -> bool:
            return len(block) >= expected and f"{_digest(block):016x}" == record.digest

        try:
            block = self._mapped(record, is_good)
            if block is None:
                block = self._read(record.name, record.at, record.size, is_good)
        except OSError as error:
            if error.errno not in (errno.ENOENT, *NOT_PLAIN):
                raise
            state = "missing" if error.errno == errno.ENOENT else "not a plain file"
            message = f"{path}, which holds {record.count} values, is {state}"
            raise errors.CorruptChestError(message, path=path) from error
        if block is None:
            message = (
                f"{path} is damaged at byte {record.at}: a batch's checksum is wrong"
            )
            raise errors.CorruptChestError(message, path=path)
        return block

    def _mapped(self, record: Entry, is_good: Callable[[Buffer], bool]) -> Block | None:
        """The index of a batch as a map; None where it is to be read, or is damaged."""
        # What was looked up once stays known: 2 MB of 65,536 keys, which are the
        # system's to give back, not the process's.
        aligned = not record.at % mmap.ALLOCATIONGRANULARITY
        if not aligned or record.size < MAPPED_FROM or self._home.network:
            return None
        fd = self._opened(record.name)
        try:
            view = system.map_file(fd, record.size, start=record.at)
        except (OSError, ValueError):  # too many maps; cut short
            return None
        finally:
            system.close(fd)
        return cast("FileMap", view.obj) if is_good(view) else None

    def read(self, entry: Packed, key: object) -> bytes:
        """The pickle of one value, checked.

        Raises
        ------
        FileNotFoundError
            The pack is gone: look at the manifest again.
        CorruptValueError
            The bytes are not what was written.
        """
        batch, place = entry.batch, entry.place
        # `Batch.where`, without the call: the way of every small value that is read.
        ends = batch._columns or batch._table()
        first = ends[place - 1] if place else 0
        size, check = ends[place] - first, ends[batch._count + place]
        name, offset = batch.name, batch._start + first
        pack = self._maps.get(name)
        if pack is not None:
            data = pack[offset : offset + size]
            if _digest(data) & _HALF == check:
                return data
        return self._read_value(name, offset, size, check, key)

    def _read_value(
        self, name: str, offset: int, size: int, check: int, key: object
    ) -> bytes:
        """`read`, for a value that no map shows."""
        fd = self._open.get(name)
        if fd is not None and _pread is not None:
            try:
                data: bytes | None = _pread(fd, size, offset)
            except OSError:
                data = None  # as below: another thread has closed it
            if data is not None and _digest(data) & _HALF == check:
                return data
        path = self._home.join(name)
        try:
            data = self._read(
                name, offset, size, lambda data: _digest(data) & _HALF == check
            )
        except OSError as error:
            if error.errno == errno.ENOENT or isinstance(error, errors.ChestError):
                raise
            if error.errno not in NOT_PLAIN:
                raise refused(error, path, "could not be read", key) from error
            data = None
        if data is None:
            message = (
                f"{path}, which holds the value of {errors.short(key)}, is damaged at "
                f"byte {offset}. Delete the key, or restore the file"
            )
            raise errors.CorruptValueError(message, key=key, path=path)
        return data

    def read_many(
        self, batch: Batch, places: Sequence[int]
    ) -> Iterator[tuple[int, bytes]]:
        """(place, pickle) of values of one batch, those that are near in one read.

        *places* are sorted. What cannot be read, or fails its check, is left out: who
        reads it alone learns why.
        """
        runs: list[list[tuple[int, int, int, int]]] = []
        end = 0
        for place in places:
            offset, size, check = batch.where(place)
            if not runs or offset - end > GAP or end - runs[-1][0][1] > RUN:
                runs.append([])
            runs[-1].append((place, offset, size, check))
            end = offset + size
        for run in runs:
            start, (_, last, size, _) = run[0][1], run[-1]
            with contextlib.suppress(OSError, errors.ChestError):
                data = self._read(batch.name, start, last + size - start, bool)
                for place, offset, size, check in run:
                    each = (data or b"")[offset - start : offset - start + size]
                    if _digest(each) & _HALF == check:
                        yield place, each

    def is_there(self, name: str) -> bool:
        """The pack was not removed meanwhile; called under the manifest's lock."""
        return self._home.stat(name) is not None

    def delete(self, name: str) -> None:
        """Remove a pack that no record holds, unless another process still writes it.

        Called under the manifest's lock (K3).
        """
        with self._lock:
            if name == self._name:
                self._stop()
        self.forget(name)
        try:
            fd = self._home.open(name, os.O_RDWR)
        except FileNotFoundError:
            return
        try:
            if system.try_lock(fd):
                self._home.unlink(name, missing_ok=True)
        finally:
            system.close(fd)

    def end_unless(self, held: Collection[str]) -> None:
        """Append no more to the present pack if it is not among *held*."""
        with self._lock:
            if self._name not in held:
                self._stop()

    def keep_only(self, held: Collection[str]) -> None:
        """Let go of packs that others removed: their bytes are on the disk till then."""
        for name in [*self._open, *self._maps]:
            if name not in held:
                self.forget(name)

    def forget(self, name: str) -> None:
        """Let go of a pack that no record holds any more."""
        self._maps.pop(name, None)  # unmapped once no thread reads it
        fd = self._open.pop(name, -1)
        if fd >= 0:
            # A reader in another thread may be about to use the descriptor; what it
            # reads fails its check, and it opens one of its own.
            system.close(fd)

    def end(self) -> None:
        """Append no more to the present pack."""
        with self._lock:
            self._stop()

    def after_fork(self) -> None:
        """Leave the present pack to the parent, in the child."""
        # A thread that the child does not have may have held the lock.
        self._lock = threading.Lock()
        self._stop()

    def close(self) -> None:
        """Release all descriptors. Safe to call twice."""
        self._closed = (
            True  # first: a reader in another thread keeps nothing from now on
        )
        self.end()
        self.keep_only(())

    def _begin(self) -> None:
        """Begin a new pack, locked as long as this process may append to it."""
        self._stop()
        self._writing, self._name = self._home.create(
            lambda: f"{PACK}{secrets.token_hex(8)}"
        )

    def _stop(self) -> None:
        """Close the present pack."""
        writing, self._writing, self._name, self._end = self._writing, -1, "", 0
        if writing >= 0:
            system.close(writing)

    def _read(
        self, name: str, offset: int, size: int, is_good: Callable[[bytes], bool]
    ) -> bytes | None:
        """Bytes of a pack that are good; None when they are not."""
        pack = self._maps.get(name)
        if pack is not None:
            data = pack[offset : offset + size]
            if len(data) == size and is_good(data):  # else they were appended since
                return data
        fd = self._open.get(name)
        if fd is not None:
            # Another thread may close it meanwhile, and its number may then be that of
            # another file: only what is good is believed.
            with contextlib.suppress(OSError):
                data = system.read_all(fd, offset, size)
                if is_good(data):
                    return data
        fd = self._opened(name)
        try:
            data = system.read_all(fd, offset, size)
            if not is_good(data):
                return None
            self._keep(name, fd)
            fd = -1
            return data
        finally:
            if fd >= 0:
                system.close(fd)

    def _opened(self, name: str) -> int:
        """A descriptor to read a pack with, that nobody else has."""
        fd = self._home.open(name)
        try:
            self._check(self._home.join(name), os.fstat(fd))
        except BaseException:
            system.close(fd)
            raise
        return fd

    def _keep(self, name: str, fd: int) -> None:
        """Have others read with this descriptor as well, or with a map of the pack."""
        if self._map(name, fd) or self._open.setdefault(name, fd) != fd:
            system.close(fd)  # it is not needed, or another thread was quicker
        if self._closed:
            self.forget(name)
        for oldest in list(self._open)[: max(0, len(self._open) - MOST_OPEN)]:
            self.forget(oldest)

    def _map(self, name: str, fd: int) -> bool:
        """Map a pack, as long as it is now, unless too much is mapped; whether it is."""
        size = os.fstat(fd).st_size
        maps = [*self._maps.items()]  # at once: other threads change it
        others = sum(len(each) for other, each in maps if other != name)
        if others + size > self._mappable or len(self._maps) >= MOST_OPEN:
            return False
        try:
            view = system.map_file(fd, size)
        except OSError:  # no address space, or too many maps
            return False
        self._maps[name] = cast("FileMap", view.obj)
        return True


def _head(record: Entry, generation: int) -> bytes:
    """What stands in front of a batch's values."""
    head = HEAD.pack(
        HEAD_MAGIC,
        record.count,
        record.rewritten,
        record.birth,
        record.at,
        record.size,
        record.made,
        generation,
        int(record.digest, 16),
        expiry.now(),
        0,
    )[:-8]
    return head + _head_check(head, record.name)


def _head_check(head: bytes, name: str) -> bytes:
    return _digest(head + name.encode()).to_bytes(8, "little")


def _headed(data: memoryview, at: int, name: str) -> tuple[Entry, float] | None:
    """The batch whose head lies at *at*; None when there is none."""
    head = bytes(data[at : at + HEAD.size])
    if len(head) < HEAD.size or head[-8:] != _head_check(head[:-8], name):
        return None
    _, count, rewritten, birth, block, size, made, generation, digest, written, _ = (
        HEAD.unpack(head)
    )
    record = Entry(
        birth=birth,
        name=name,
        size=size,
        digest=f"{digest:016x}",
        count=count,
        start=at + HEAD.size,
        at=block,
        rewritten=bool(rewritten),
        made=made,
        generation=generation,
    )
    return record, written


def _next_head(data: memoryview, at: int) -> int:
    """Where the next head may begin; -1: nowhere."""
    whole: Any = data.obj
    return -1 if not len(data) else int(whole.find(HEAD_MAGIC, at))


def portions(sizes: Sequence[int]) -> Iterator[slice]:
    """Parts of values with these sizes [B], in order, each of which makes one batch.

    Examples
    --------
    >>> [*portions([1, 2, BATCH_NBYTES, 3])]
    [slice(0, 2, None), slice(2, 3, None), slice(3, 4, None)]
    """
    ends, start = [*accumulate(sizes)], 0
    while start < len(ends):
        before = ends[start - 1] if start else 0
        stop = bisect.bisect_right(ends, before + BATCH_NBYTES, start)
        stop = min(max(stop, start + 1), start + BATCH_KEYS)
        yield slice(start, stop)
        start = stop
