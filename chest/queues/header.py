"""The state that all handles of a queue share: eleven numbers in a mapped file.

Owns: the file ``state``, and how its numbers change at once. Does not own: what they mean
to the queue, the lock under which they change.

The file is one page::

    0    "CHESTQU1"
    8    how often the state was changed; odd and even choose one of the two blocks
    64   a block: eleven little-endian 64-bit numbers and their checksum
    192  the other block

A change fills the block that is not in use and then stores the word at 8. A process that
is killed before the store has changed nothing. Pollers look at that word alone. In a
queue that was dropped it is `MOVED`, as in a chest's manifest.
"""

from __future__ import annotations

import os
import struct
from typing import Any

import xxhash

from chest import errors, system
from chest.folder import QUEUE_STATE, Folder
from chest.log import MOVED

__all__ = ["Header", "State"]

MAGIC = b"CHESTQU1"
NBYTES = 4096  # one page
IS_MOVED = int.from_bytes(MOVED, "little")
BLOCKS = (64, 192)
# What the numbers are, by their place.
(
    HEAD,  # position behind the last item that was published
    TAIL,  # position of the first item that nobody has taken
    PUTS,  # items that were put, since the queue was made: the next one's number
    TAKES,  # number of the item at TAIL
    UNFINISHED,  # items that were put and not yet reported as done
    FLAGS,
    EPOCH,  # which file of leases is in use, by its lowest bit
    EVENTS,  # bytes of it that are published
    DEAD_TAIL,  # position of the first dead letter
    DEAD_HEAD,  # position behind the last one
    BOOT,  # start of the system under which the state was last checked
) = range(11)
SHUT, SHUT_AT_ONCE = 1, 2  # FLAGS

State = list[int]

_numbers = struct.Struct("<11Q")
_block = struct.Struct("<11Q8s")
_pack = _numbers.pack
_unpack = _numbers.unpack_from
_check = xxhash.xxh3_64_digest


class Header:
    """The mapped state of one queue.

    Parameters
    ----------
    home : Folder
        The queue's.
    """

    __slots__ = ("_bytes", "_fd", "_home", "words")

    def __init__(self, home: Folder) -> None:
        self._home = home
        self._fd = -1
        self.words: Any = None
        self._bytes: Any = None

    def open(self, *, keep: bool) -> bool:
        """Map the file; False when there is none, or when it is no state.

        Parameters
        ----------
        keep : bool
            Keep it open, for `sync`.
        """
        try:
            fd = self._home.open(QUEUE_STATE, os.O_RDWR)
        except FileNotFoundError:
            return False
        try:
            if os.fstat(fd).st_size != NBYTES:
                return False
            self.words = system.map_shared_words(fd, NBYTES)
            self._bytes = self.words.cast("B")
            if keep:
                self._fd, fd = fd, -1
        finally:
            if fd >= 0:
                system.close(fd)
        return bytes(self._bytes[:8]) == MAGIC and (self.is_moved or self._is_whole())

    def create(self, state: State, *, sync: bool) -> None:
        """Write a new file aside and rename it into place."""
        first = _block.pack(*state, _check(_pack(*state)))
        page = bytearray(NBYTES)
        page[:8] = MAGIC
        for at in BLOCKS:
            page[at : at + _block.size] = first
        self._home.write_aside(QUEUE_STATE, [page], sync=sync)

    @property
    def is_moved(self) -> bool:
        """The queue was dropped."""
        return bool(self.words[1] == IS_MOVED)

    def _is_whole(self) -> bool:
        at = BLOCKS[self.words[1] & 1]
        data = bytes(self._bytes[at : at + _block.size])
        return _check(data[:-8]) == data[-8:]

    def read(self) -> State:
        """The numbers; under the lock."""
        changes = self.words[1]
        if changes == IS_MOVED:
            msg = f"{self._home.path} was dropped by another process"
            raise errors.DroppedError(msg, path=self._home.path)
        return list(_unpack(self._bytes, BLOCKS[changes & 1]))

    def glimpse(self) -> State:
        """The numbers as they were at one moment; without the lock."""
        while True:
            changes = self.words[1]
            state = self.read()
            # The block that was read is written again only after this word changed.
            if self.words[1] == changes:
                return state

    def write(self, state: State) -> None:
        """Publish the numbers, all at once; under the lock."""
        changes = self.words[1] + 1
        at = BLOCKS[changes & 1]
        data = _pack(*state)
        self._bytes[at : at + 96] = data + _check(data)
        self.words[1] = changes

    def sync(self) -> None:
        """Wait until the disk has the state."""
        system.sync_file(self._fd)

    def mark_moved(self) -> None:
        """Tell everyone that the queue was dropped."""
        self.words[1] = IS_MOVED

    def close(self) -> None:
        """Release the descriptor; the map goes with the last reference."""
        if self._fd >= 0:
            system.close(self._fd)
            self._fd = -1
