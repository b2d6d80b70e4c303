"""The log's file: its lock, its word for pollers, how it is written and replaced.

Owns: the descriptor of ``.keys``, the exclusive lock, the word. Does not own: what the
records say (`chest.records`), or what they come to (`chest.manifest`).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import weakref
from binascii import hexlify
from typing import Any

from chest import errors, folder, lifetime, system
from chest.records import Header, Lines
from chest.system import POSIX, locks

__all__ = ["NAME", "LogFile", "Polled", "Unmapped", "integer", "word_at"]

NAME = folder.MANIFEST
MOVED = b"--------"  # the word of a file that is no longer the manifest
IS_MOVED = int.from_bytes(MOVED, "little")
NO_WORD = -2  # equal to no word, nor to what stands for one
integer = int.from_bytes

# Those of this process, by id.
_open: weakref.WeakValueDictionary[int, LogFile] = weakref.WeakValueDictionary()


class LogFile:
    """The file of one chest's manifest."""

    readonly: bool
    sync: bool
    timeout: float | None
    path: str
    word: Any
    seen: int  # the word of a log that ends at `_position`
    _home: folder.Folder
    _lines: Lines
    _fd: int
    _position: int
    _suspect: bool  # a write to the disk failed: what is there need not be
    _depth: int  # how often the lock was taken by this handle
    # Whoever writes beyond a multiple of so many bytes has to keep the log short: 100,000
    # increments, or as many small values as are packed in half a second.
    upkeep_nbytes = 1 << 23
    _turn: int  # the next multiple
    overgrown: bool  # a record was written here beyond one
    _identity: tuple[int, int]  # of the folder

    def _register(self) -> None:
        """Say which folder's lock this handle takes."""
        status = self._home.status()
        self._identity = status.st_dev, status.st_ino
        _open[id(self)] = self

    def check_writable(self) -> None:
        """Raise ReadOnlyError in a chest that was opened with ``readonly=True``."""
        if self.readonly:
            msg = f"{self._home.path} was opened with readonly=True"
            raise errors.ReadOnlyError(msg, path=self._home.path)

    def mark_moved(self) -> None:
        """Tell everyone who has this file mapped to look at the folder again."""
        self.overgrown = False
        self._set_word(MOVED)

    def _was_replaced(self) -> bool:
        """Another file carries the manifest's name now, or none does."""
        now = self._home.stat(NAME)
        if now is None:
            raise self._dropped()
        return not os.path.samestat(now, os.fstat(self._fd))

    def _check_there(self) -> None:
        """Raise DroppedError when the open file has no name any more."""
        if not os.fstat(self._fd).st_nlink:
            msg = f"{self._home.path} was removed while this chest was open"
            raise errors.DroppedError(msg, path=self._home.path)

    def _dropped(self) -> errors.DroppedError:
        msg = f"{self._home.path} was dropped by another process"
        return errors.DroppedError(msg, path=self._home.path)

    def _create(self) -> None:
        """Put an empty manifest into the folder, unless somebody else just did."""
        self._lock()
        try:
            # Two processes open a new chest: the second waited here for the first.
            if self._home.stat(NAME) is None:
                first = self._lines.first(Header(secrets.token_hex(8)))
                with folder.refusals(self.path, "could not be written anew"):
                    self._home.write_aside(NAME, [first], sync=self.sync)
        finally:
            self._unlock()

    def _write(self, line: bytes) -> int:
        """Write a record at the end of the log, and say so; or nothing of it is left.

        Returns the word that says so.
        """
        # Most publications come here: calls are few, and spelled out.
        end, size = self._position, len(line)
        try:
            done = os.pwrite(self._fd, line, end) if POSIX else 0
            if done < size:
                system.pwrite_all(self._fd, line[done:], end + done)
            if self.sync:
                system.sync_file(self._fd)
            self._position = end + size
            if end + size > self._turn:
                self._pass_turn(end)
        except BaseException as error:
            self._not_written(error, line, end)
            raise
        word = self.word
        if type(word) is not memoryview:
            return end + size
        length = ((end + size) & 0xFFFFFFFF).to_bytes(4, "big")
        word[1] = seen = integer(hexlify(length), "little")
        return seen

    def _not_written(self, error: BaseException, line: bytes, end: int) -> None:
        """Make good what an error left of a record that was to be written at *end*."""
        if isinstance(error, OSError):
            self._take_back(end)
            self._suspect = self.sync
            raise self._refused(error, "could not be written to") from error
        # Ctrl-C
        if system.read_all(self._fd, end, len(line)) == line:
            self._position = end + len(line)  # others may have read it
            self._announce()
        else:
            self._take_back(end)

    def _pass_turn(self, begin: int) -> None:
        """Note that the log is longer than it should become without being looked after.

        That is up to one of those who write: whose record, from *begin* on, says so.
        """
        self._set_turn()
        self.overgrown |= begin <= self._turn - self.upkeep_nbytes

    def _set_turn(self) -> None:
        self._turn = (self._position // self.upkeep_nbytes + 1) * self.upkeep_nbytes

    @property
    def written(self) -> int:
        """Bytes of the log, as far as they were read or published here."""
        return self._position

    def _at_position(self) -> int:
        """What the word is while the log ends where it was read to."""
        is_mapped = type(self.word) is memoryview
        return word_at(self._position) if is_mapped else self._position

    def _announce(self) -> None:
        """Let pollers see where the log ends, as far as it was read."""
        self.seen = self._at_position()
        if type(self.word) is memoryview:
            self.word[1] = self.seen

    def _map_word(self) -> Any:
        """The word of the open file, or what does its work where it cannot be shared."""
        if not self._home.network:
            return system.map_shared_words(self._fd, 16, writable=not self.readonly)
        return Polled(self._home, os.fstat(self._fd))

    def _set_word(self, word: bytes) -> None:
        if not isinstance(self.word, Unmapped):
            self.word[1] = int.from_bytes(word, "little")

    def _take_back(self, end: int) -> None:
        """Cut off what a failed write left."""
        # When this fails as well, the next writer finds a torn tail and cuts it (M2).
        with contextlib.suppress(OSError):
            os.ftruncate(self._fd, end)

    def is_held_here(self) -> bool:
        """Whether this process holds the folder's lock, by this or another handle."""
        handles = [ref() for ref in _open.valuerefs()]
        return any(
            each._depth > 0 and each._identity == self._identity
            for each in handles
            if each is not None
        )

    def _unlock(self) -> None:
        """Give the lock back, and work off what waited for it."""
        # In this order: who is interrupted before gives it back once more.
        locks.flock(self._home.lock_fd, locks.FREE)
        self._depth = 0
        if lifetime.postponed:
            lifetime.work_off()

    def _lock(self) -> None:
        """Take the lock between processes."""
        try:
            if self.timeout is None and POSIX and self._home.lock_fd >= 0:
                locks.flock(self._home.lock_fd, locks.EXCLUSIVE)
                self._depth = 1
                return
            got = self._home.lock(self.timeout)
            self._depth = int(got)
        except OSError as error:
            raise self._refused(error, "could not be locked") from error
        except BaseException:  # Ctrl-C: nobody knows that we have it, if we do
            if self._home.lock_fd >= 0:
                self._unlock()
            raise
        if not got:
            msg = (
                f"{self._home.path} is locked by {self._home.holder()}; waited "
                f"{self.timeout} s. Pass a longer timeout=, or end that process"
            )
            raise errors.LockTimeout(
                msg,
                path=self._home.path,
            )

    def _refused(self, error: OSError, what: str) -> errors.StoreError:
        return folder.refused(error, self.path, what)


def word_at(end: int) -> int:
    """The word of a log that ends there, as it is read from the map."""
    return integer(hexlify((end & 0xFFFFFFFF).to_bytes(4, "big")), "little")


class Unmapped:
    """Stands for the word of a file that has none: always different, so always read."""

    def __getitem__(self, index: int) -> int:
        return -1


class Polled(Unmapped):
    """Does the work of a word on a network file system, whose maps hosts do not share.

    Parameters
    ----------
    home : Folder
    status : os.stat_result
        Of the log that is open.
    """

    def __init__(self, home: folder.Folder, status: os.stat_result) -> None:
        self._home, self._status = home, status

    def __getitem__(self, index: int) -> int:
        """The log's size; that it was moved once its name is another file's."""
        now = self._home.stat(NAME)
        if now is None or not os.path.samestat(now, self._status):
            return IS_MOVED
        return now.st_size
