"""Items in files that only grow: how a record is framed, appended, found and checked.

Owns: the segments and the bytes of a record. Does not own: which records are published
(the state), or what is in them (`coding`).

A record is its frame, the payload, and in a signed queue a signature::

    u64 check   xxh3 of what follows in the frame and of the payload, seeded with the
                record's position, so that nothing is taken for a record elsewhere
    u64 number  of the item
    u32 size    of the payload
    u32 kind    how the payload is read; the end of a segment is a kind of its own, and
                the highest bit says that a signature follows

A position is a segment's number, shifted by 32 bits, and an offset in it.
"""

from __future__ import annotations

import logging
import os
import struct
from collections.abc import Callable, Sequence
from mmap import ALLOCATIONGRANULARITY
from typing import NamedTuple

import xxhash

from chest import errors, system
from chest.folder import Folder, refused
from chest.records import SIGNED, Signer
from chest.system import FileMap

__all__ = ["DamagedError", "Items", "Record", "segment_of"]

SEGMENT_NBYTES = 1 << 20  # a segment that has more gets no further record
AHEAD_NBYTES = 1 << 16  # read at once
WINDOW_NBYTES = 1 << 17  # of a segment that are mapped to append to
COPIED_NBYTES = 1 << 12  # a larger record is written; moving the window takes 20 µs
MOST_OPEN = 4  # segments whose descriptor is kept
SHIFT, OFFSET = 32, (1 << 32) - 1
SIGNED_BIT = 1 << 31
END = 0  # the kind that says: go on in the next segment

log = logging.getLogger("chest")
_check_of = struct.Struct("<Q").pack
_body_of = struct.Struct("<QII").pack
_frame = struct.Struct("<QQII")
_write = system.pwrite_all
_digest = xxhash.xxh3_64_intdigest
FRAME = _frame.size

Check = Callable[[str, os.stat_result], object]


class Record(NamedTuple):
    """One item as it lies in a segment.

    Attributes
    ----------
    number : int
        Of the item.
    kind : int
        How the payload is read.
    payload : bytes
    at, after : int
        Its position, and that behind it.
    """

    number: int
    kind: int
    payload: bytes
    at: int
    after: int


class DamagedError(Exception):
    """A signal: there is no whole record at this position."""


def segment_of(position: int) -> int:
    """The number of the segment that a position is in."""
    return position >> SHIFT


class Items:
    """The segments of one queue, as this process reads and writes them.

    Parameters
    ----------
    home : Folder
        The queue's.
    prefix : str
        How the names of the segments begin.
    check : callable
        (path, status) of a segment; raises when its pickles may not be loaded.
    sign : callable, optional
        Signs a record, in a signed queue.
    sync : bool
        Wait for the disk before a record is published.
    """

    def __init__(
        self,
        home: Folder,
        prefix: str,
        check: Check,
        sign: Signer | None,
        *,
        sync: bool,
    ) -> None:
        self._home = home
        self._prefix = prefix
        self._check = check
        self._sign = sign
        self._bit = SIGNED_BIT if sign else 0
        self._sync = sync
        self._fds: dict[int, int] = {}
        self._keeps_room: bool | None = None  # asked when it is first needed
        self._window: FileMap | None = None
        self._window_at = self._window_end = 0  # positions
        self._ahead = b""
        self._ahead_at = self._ahead_end = 0  # positions

    # -- writing -----------------------------------------------------------------------

    def write(self, head: int, records: Sequence[tuple[int, int, bytes]]) -> int:
        """Write (number, kind, payload) from *head* on; the position behind the last.

        Nobody sees them before the state is published. What a failed call has written
        is overwritten by the next.

        Raises
        ------
        StoreError
            The disk refused.
        """
        first = head
        for number, kind, payload in records:
            head = self.append(head, number, kind, payload)
        if self._sync and head != first:
            self.sync(head)
        return head

    def append(self, head: int, number: int, kind: int, payload: bytes) -> int:
        """`write` of one record, which does not wait for the disk."""
        try:
            if head & OFFSET >= SEGMENT_NBYTES:
                head = self._end(head)
            body = _body_of(number, len(payload), kind | self._bit) + payload
            data = _check_of(_digest(body, head)) + body
            if self._sign is not None:
                data += self._sign(body, head)
            after = head + len(data)
            if not self._window_at <= head <= after <= self._window_end:
                fd = self._fds.get(head >> SHIFT)
                if fd is None:
                    fd = self._open(head >> SHIFT, make=True)
                if len(data) > COPIED_NBYTES or not self._move_window(fd, head):
                    return head + _write(fd, data, head & OFFSET)
            window, at = self._window, head - self._window_at
            assert window is not None
            window[at : at + len(data)] = data
            return after
        except OSError as error:
            raise self._refused(error, head) from error

    def _move_window(self, fd: int, head: int) -> bool:
        """Map the part of a segment that begins at *head*; whether that was possible."""
        # A copy takes 0.1 µs, a write 1. Only who has the lock writes behind the head,
        # and readers go as far as the head: they never see half a copy. What is mapped
        # has room on the disk, so that copying cannot fail.
        if self._keeps_room is None:
            self._keeps_room = system.keeps_room(self._home.path)
        if not self._keeps_room:
            return False
        start = (head & OFFSET) - (head & OFFSET) % ALLOCATIONGRANULARITY
        try:
            os.posix_fallocate(fd, start, WINDOW_NBYTES)
            self._window = system.map_shared(fd, WINDOW_NBYTES, start=start)
        except (AttributeError, OSError) as error:
            # The disk is full, perhaps, and has room for this record still.
            log.debug("%s: not mapped to append: %s", self._home.path, error)
            self._forget_window()
            return False
        self._window_at = (head >> SHIFT << SHIFT) + start
        self._window_end = self._window_at + WINDOW_NBYTES
        return True

    def sync(self, head: int) -> None:
        """Wait until the disk has all that was written before *head*.

        Raises
        ------
        StoreError
            It may not have it.
        """
        try:
            system.sync_file(self._open(head >> SHIFT))
        except OSError as error:
            raise self._refused(error, head) from error

    def _refused(self, error: OSError, head: int) -> OSError:
        if isinstance(error, errors.ChestError):
            return error
        path = self._home.join(self._name(head >> SHIFT))
        return refused(error, path, "takes no further item")

    def _end(self, head: int) -> int:
        """Close a segment; the position at which the next begins."""
        fd = self._open(head >> SHIFT)
        body = _body_of(0, 0, END | self._bit)
        data = _check_of(_digest(body, head)) + body
        if self._sign is not None:
            data += self._sign(body, head)
        _write(fd, data, head & OFFSET)
        if self._sync:
            system.sync_file(fd)
        return (head >> SHIFT) + 1 << SHIFT

    # -- reading -----------------------------------------------------------------------

    def read(self, position: int, head: int) -> Record:
        """The record at *position*, which lies before *head*.

        Raises
        ------
        DamagedError
            There is no whole record.
        UntrustedError
            Somebody else could have written it.
        StoreError
            The disk refused.
        """
        if not self._ahead_at <= position < self._ahead_end:
            self._read_ahead(position, head, AHEAD_NBYTES)
        ahead, at = self._ahead, position - self._ahead_at
        if at + FRAME > len(ahead):
            return self._read_again(position, head, FRAME)
        check, number, size, kind = _frame.unpack_from(ahead, at)
        trail = SIGNED if kind & SIGNED_BIT else 0
        end = at + FRAME + size
        if end + trail > len(ahead):
            return self._read_again(position, head, FRAME + size + trail)
        body = ahead[at + 8 : end]
        if _digest(body, position) != check:
            raise DamagedError
        if trail or self._bit:
            self._check_signature(position, kind, body, ahead[end : end + trail])
            kind ^= SIGNED_BIT
        if kind == END:
            return self.read((position >> SHIFT) + 1 << SHIFT, head)
        after = position + FRAME + size + trail
        return Record(number, kind, body[16:], position, after)

    def _read_again(self, position: int, head: int, size: int) -> Record:
        """`read` of a record of which only a part was read ahead."""
        if size > 2 * SEGMENT_NBYTES:
            raise DamagedError  # no record is: what looks like its size is damaged
        self._read_ahead(position, head, max(size, AHEAD_NBYTES))
        if len(self._ahead) < size:
            raise DamagedError
        return self.read(position, head)

    def _read_ahead(self, position: int, head: int, size: int) -> None:
        """Read from *position* on, but nothing that was not published yet."""
        segment = position >> SHIFT
        if segment == head >> SHIFT:
            size = min(size, head - position)
        try:
            fd = self._fds.get(segment)
            if fd is None:
                fd = self._open(segment)
            self._ahead = system.read_all(fd, position & OFFSET, size)
        except FileNotFoundError:
            raise DamagedError from None
        except OSError as error:
            if isinstance(error, errors.ChestError):
                raise
            path = self._home.join(self._name(segment))
            raise refused(error, path, "could not be read") from error
        self._ahead_at = position
        self._ahead_end = position + len(self._ahead)

    def _check_signature(
        self, position: int, kind: int, body: bytes, found: bytes
    ) -> None:
        path = self._home.join(self._name(position >> SHIFT))
        if self._sign is None:
            msg = f"{path} is signed: pass the key it was made with as sign_key="
        elif not kind & SIGNED_BIT:
            msg = f"{path} is not signed: open the queue without sign_key="
        elif found == self._sign(body, position):
            return
        else:
            msg = (
                f"{path} does not carry the signature of this sign_key= at byte "
                f"{position & OFFSET}: it was changed by somebody without the key"
            )
        raise errors.SignatureError(msg, path=path)

    # -- after a crash of the system ---------------------------------------------------

    def follow(self, position: int, *, gaps: bool = False) -> tuple[int, int | None]:
        """(position behind the last whole record from *position* on, its number).

        Parameters
        ----------
        position : int
        gaps : bool
            The numbers need not be consecutive. Where they must be, one that is not is
            that of an older record.
        """
        number = None
        while True:
            self._ahead_end = 0  # what was read ahead may have ended at the old head
            limit = (position >> SHIFT) + 2 << SHIFT
            try:
                record = self.read(position, limit)
            except DamagedError:
                break
            if not gaps and number is not None and record.number != number + 1:
                break
            position, number = record.after, record.number
        self._ahead, self._ahead_at, self._ahead_end = b"", 0, 0
        return position, number

    def resume(self, position: int, head: int) -> int:
        """The next position with a whole record behind damage, or *head*. O(segment)."""
        for segment in range(position >> SHIFT, (head >> SHIFT) + 1):
            first = max(position, segment << SHIFT)
            if first >= head:
                break
            self._ahead_end = 0
            try:
                self._read_ahead(first, head, 2 * SEGMENT_NBYTES)
            except DamagedError:
                continue  # the whole segment is missing
            data = self._ahead
            for at in range(first != segment << SHIFT, len(data) - FRAME + 1):
                check, _, size, kind = _frame.unpack_from(data, at)
                end = at + FRAME + size
                if (
                    end <= len(data)
                    and _digest(data[at + 8 : end], first + at) == check
                ):
                    if kind & ~SIGNED_BIT != END:
                        return first + at
                    break
        return head

    def segments(self) -> list[int]:
        """The numbers of the segments that are there, in order."""
        return sorted(
            int(name[len(self._prefix) :], 16)
            for name in self._home.names()
            if name.startswith(self._prefix)
        )

    # -- files -------------------------------------------------------------------------

    def remove(self, segment: int) -> None:
        """Delete a segment that nobody needs any more.

        One that cannot be deleted is no error: that its items are gone is published. It
        goes when the queue is next opened by nobody else.
        """
        fd = self._fds.pop(segment, None)
        if fd is not None:
            system.close(fd)
        if segment == self._window_at >> SHIFT:
            self._forget_window()
        name = self._name(segment)
        try:
            self._home.unlink(name, missing_ok=True)
        except OSError as error:
            log.info("%s is left: %s", self._home.join(name), error)

    def _forget_window(self) -> None:
        self._window, self._window_at, self._window_end = None, 0, 0

    def close(self) -> None:
        """Release the descriptors, and the map."""
        self._forget_window()
        for fd in self._fds.values():
            system.close(fd)
        self._fds.clear()

    def _name(self, segment: int) -> str:
        return f"{self._prefix}{segment:04x}"

    def _open(self, segment: int, *, make: bool = False) -> int:
        """The descriptor of a segment."""
        fd = self._fds.get(segment)
        if fd is not None:
            return fd
        name = self._name(segment)
        fd = self._home.open(name, os.O_RDWR | (os.O_CREAT if make else 0))
        try:
            self._check(self._home.join(name), os.fstat(fd))
            if make and self._sync:
                self._home.sync()
        except BaseException:
            system.close(fd)
            raise
        if len(self._fds) >= MOST_OPEN:
            system.close(self._fds.pop(next(iter(self._fds))))
        self._fds[segment] = fd
        return fd
