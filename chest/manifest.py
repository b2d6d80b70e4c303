"""The manifest: the only statement of what exists.

Owns: the file ``.keys`` (its lines, its lock, its compaction) and the live entries that
replaying it leaves. Does not own: the values' files, or what is in memory.

The file is text, one record a line::

    chest 1 <word> {"id":"…","generation":0,"birth":0} <check>
    <check> {"k":"x","b":1,"n":"x","z":112,"d":"…","i":"…"}
    <check> {"k":"x","gone":"key"}
    <check> [{"k":"a",…},{"k":"b",…}]

``<check>`` is the xxh3 of the JSON text, seeded with the record's number, as 16 hexadecimal
digits, or in a signed chest 32 digits of a keyed hash. A list is a batch: all of it is
visible or none. ``<word>`` is the log's length, 8 hexadecimal digits at byte 8; it is a
hint for pollers, who read it through a map, and eight dashes once another file has taken
this one's place.

Invariants
----------
M1  `append` is the one publication point; it happens under the exclusive lock.
M2  A writer appends behind a whole record, whose number it knows; it has cut off a torn
    tail. But for values that are set whatever was there, it has read everything before.
M3  A damaged record is an error, never a missing one; only the last line can be torn.
M4  Compaction and drop mark the old file, so whoever has it mapped opens the new one.
M5  What was live before a compaction is live after it, with generation and birth; what
    was gone stays gone.
"""

from __future__ import annotations

import contextlib
import logging
import os
import secrets
from collections.abc import (
    Callable,
    Hashable,
    Iterator,
)
from contextlib import AbstractContextManager

from chest import errors, folder, keys, lifetime, system
from chest.base import INDEX, open_base
from chest.index import LOST, Index
from chest.log import IS_MOVED, MOVED, NAME, Unmapped
from chest.packs import Packs
from chest.records import MAGIC, Entry, Lines, Signer
from chest.rewrite import Rewrite, Source, starts_checkpoint
from chest.system import POSIX, locks
from chest.writing import LOOK_EACH, Writing

__all__ = ["Manifest"]

CHECKPOINT_SHARE = 8  # a checkpoint is written when 1/8 of the entries are newer
log = logging.getLogger("chest")

FEW = 4096  # bytes that are read at once of what others published meanwhile
COMPACT_FROM = 1024  # records; a shorter log is not worth rewriting


class Manifest(Writing):
    """The live entries of one chest's folder, and the only way to change them.

    Parameters
    ----------
    home : Folder
        The chest's folder; closed with the manifest.
    packs : Packs
        Reads the batches that records refer to; closed with the manifest.
    readonly : bool
        Nothing is written, no lock is taken.
    sync : bool
        Wait for the disk at each publication (durability ``"power"``).
    timeout : float or None
        Seconds to wait for another process's lock; ``None``: for ever.
    load_key : callable, optional
        Loads a pickled key; without it such keys are `chest.keys.Opaque`.
    sign : callable, optional
        Makes the check of a record in a signed chest.
    legacy : callable, optional
        Turns the bytes of a foreign ``.keys`` (chest 0.2.3) into (key, name) pairs.
    legacy_format : str
        Who reads the values of such a chest.

    Notes
    -----
    Not thread-safe: the chest's own lock is held around every call but reading `word`.
    """

    def __init__(
        self,
        home: folder.Folder,
        packs: Packs,
        *,
        readonly: bool = False,
        sync: bool = False,
        timeout: float | None = None,
        load_key: keys.Loader | None = None,
        sign: Signer | None = None,
        legacy: Callable[[bytes], list[tuple[Hashable, str]]] | None = None,
        legacy_format: str = "pickle",
    ) -> None:
        self.path = home.join(NAME)
        self._home = home
        self._packs = packs
        self.readonly = readonly
        self.sync = sync
        self.timeout = timeout
        # One call takes the lock, and nothing that was written is in doubt later.
        self._ordinary = (
            POSIX and timeout is None and not (readonly or sync or home.network)
        )
        self.load_key = load_key
        self._lines = Lines(self.path, sign)
        self._legacy = legacy
        self._legacy_format = legacy_format
        self._depth = 0
        self._fd = -1
        self._suspect = False
        self.word = Unmapped()
        self.index = self._growing = Index()  # seen by threads without the lock; filled
        self.changed: set[Hashable] = set()
        self.reloaded = False
        self.id = ""
        self.seen = 0
        self._position = self.generation = self._start = self._first = 0
        self._opening = 0  # how often the log was opened
        self._in_doubt = False  # what was read last, or published, is known in part
        self._unread = None
        self._turn, self.overgrown = 0, False
        try:
            with folder.refusals(self.path, "could not be read"):
                self._register()
                self._open()
        except BaseException:
            self.close()
            raise

    # -- what exists -------------------------------------------------------------------

    def tail(self) -> bool:
        """Read what others appended; True when there was something.

        The keys it speaks of are added to `changed`; when the whole log had to be read
        again, `reloaded` is set instead. Lock: none.
        """
        with folder.refusals(self.path, "could not be read"):
            if self._in_doubt or (self.word[1] == IS_MOVED and self._was_replaced()):
                self._reopen()
                return True
            try:
                return self._read_new()
            except errors.CorruptChestError:
                # A pack that it speaks of went with the log, since the look above; or a
                # record was read, was taken back, and another lies there. Else it is
                # found again.
                self._reopen()
                return True

    # -- change ------------------------------------------------------------------------

    def exclusive(self) -> AbstractContextManager[None]:
        """Hold the lock between processes, with everything read and a torn tail cut off.

        Raises
        ------
        LockTimeout
            Somebody else held the lock for `timeout` seconds.
        ReadOnlyError
            The chest was opened with ``readonly=True``.
        DroppedError
            The folder or the manifest was removed meanwhile.
        """
        return _Exclusive(self)

    def enter(self) -> None:
        """Begin what `exclusive` does; `leave` must follow. May be nested."""
        if self.readonly:
            self.check_writable()
        if self._depth:
            if self._in_doubt:  # what was published within was cut short
                self._prepare_to_write()
            self._depth += 1
            return
        try:
            # What is read before the lock, nobody waits for.
            if self._unread is not None:
                self.tail()
            elif self.word[1] != self.seen:
                self._read_few()
            self._lock()
            self._see_all()
        except BaseException as error:
            self.leave()
            if isinstance(error, OSError) and not isinstance(error, errors.ChestError):
                raise self._refused(error, "could not be read") from error
            raise

    def leave(self) -> None:
        """End what `enter` began."""
        if self._depth == 1:
            # In this order: who is interrupted before gives it back once more.
            locks.flock(self._home.lock_fd, locks.FREE)
            self._depth = 0
            if lifetime.postponed:
                lifetime.work_off()
        elif self._depth:
            self._depth -= 1
        # Else it was given back by `publish_one`; or in a child that was forked meanwhile,
        # where it is the parent's.

    def free(self) -> None:
        """End what Ctrl-C has kept from ending; nobody is within `exclusive`."""
        if self._depth:
            self._unlock()

    @property
    def wasteful(self) -> bool:
        """The log holds more than twice as many entries as live ones.

        Or it is long, and has more than twice as many records as it would have anew:
        so many more that a new checkpoint, of all keys, pays as well.
        """
        index = self.index
        if index.records > COMPACT_FROM + 2 * len(index):
            return True
        if self._position <= self.upkeep_nbytes:
            return False
        records, anew = self.generation - self._first, len(index.batches) + index.alone
        return records > COMPACT_FROM + 2 * anew + len(index) // CHECKPOINT_SHARE

    @property
    def wants_checkpoint(self) -> bool:
        """Opening would read so much of the log that a checkpoint pays."""
        since, live = self.index.records - self.index.noted, len(self.index)
        return (
            self._lines.unsigned
            and starts_checkpoint(since)
            and since * CHECKPOINT_SHARE > live > 0  # one of nothing is none
        )

    def rewrite(self) -> Rewrite:
        """What the log comes to now, to be written anew; within `exclusive`.

        O(what is newer than the checkpoint), for a copy.
        """
        read = self.generation, self._position
        source = Source(self.id, self._first, *read, self._opening)
        return Rewrite(self._home, self._lines, self.index, source)

    def take(self, rewrite: Rewrite) -> bool:
        """Go on with what `rewrite` began and somebody wrote; within `exclusive`.

        False, and nothing happens, when another log has taken this one's place since. A
        crash at any point leaves one of the two. O(what was published since).

        Raises
        ------
        StoreError
            The disk refused; the log in use is as it was.
        """
        if rewrite.source.opening != self._opening or not rewrite.stands():
            return False
        if rewrite.has_log:
            offset, number = rewrite.source.position, rewrite.source.generation
            with folder.refusals(self.path, "could not be read"):
                data = system.read_all(self._fd, offset, self._position - offset)
            for entries in _records(self._lines, data, number, offset):
                rewrite.append(entries)
            self._set_word(MOVED)  # before the rename: nobody may miss it (M4)
        try:
            rewrite.place(sync=self.sync)
        except Exception:
            # Not after Ctrl-C: the new file may have its name already, and who looks
            # finds out.
            if not rewrite.placed:
                self._announce()
            raise
        before, changed, reloaded = self.index, {*self.changed}, self.reloaded
        with folder.refusals(self.path, "could not be read"):
            self._open()
        self.changed, self.reloaded = changed, reloaded
        self.index.succeed(before, same_log=not rewrite.has_log)
        self._announce()
        return True

    def compact(self) -> None:
        """Rewrite the log at once, with the live entries only; within `exclusive`."""
        rewrite = self.rewrite()
        try:
            rewrite.write(log=True)
            self.take(rewrite)
        finally:
            rewrite.discard()

    def close(self) -> None:
        """Release the descriptors. Safe to call twice."""
        self.word = Unmapped()
        if self._fd >= 0:
            system.close(self._fd)
            self._fd = -1
        self._home.close()  # first: no thread begins a pack any more
        self._packs.close()

    def after_fork(self) -> None:
        """Stop sharing the parent's lock: open the folder anew, in the child."""
        # flock belongs to the open file description, which parent and child share: the
        # child would keep the parent's lock alive, and release it under its feet.
        self._depth = 0
        self._packs.after_fork()
        self._home.after_fork()

    # -- the file ----------------------------------------------------------------------

    def _open(self) -> None:
        """Open ``.keys``, making one where there is none, and read all of it."""
        flags = os.O_RDONLY if self.readonly else os.O_RDWR
        try:
            fd = self._home.open(NAME, flags)
        except FileNotFoundError:
            if self._fd >= 0:
                raise self._dropped() from None
            if self.readonly:
                msg = f"{self._home.path} is not a chest: it has no {NAME}"
                raise errors.ChestError(msg, path=self._home.path) from None
            self._create()
            fd = self._home.open(NAME, flags)
        except OSError as error:
            raise self._refused(error, "could not be opened") from error
        self._go_back()
        before = self._fd, self.word, self.index, self.generation, self._position
        try:
            self._fd = fd
            self._opening += 1
            self._load()
        except BaseException as error:
            corrupt = isinstance(error, errors.CorruptChestError)
            replaced = corrupt and self._was_replaced()
            # What was known of the old file stays true until this one can be read.
            self._fd, self.word, self.index, self.generation, self._position = before
            self._growing = self.index
            system.close(fd)
            if not replaced:
                raise
            self._open()  # packs that it speaks of went with it
            return
        if before[0] >= 0:
            system.close(before[0])

    def _load(self, *, checkpointed: bool = True) -> None:
        """Read the file from where the checkpoint ends, or from the start."""
        head = system.read_all(self._fd, 0, 4096)
        if head.startswith(MAGIC):
            line = head[: head.find(b"\n") + 1]
            header = self._lines.read_first(line)
            self.id = header.id
            self._first = self.generation = header.generation
            # Births that were given here and not published yet count as well.
            given = max(header.birth, self.index.birth)
            self._growing = Index(given, header.birth)
            self.word = self._map_word()
            self._position = self._start = len(line)
            self._unread = None
            if checkpointed:
                self._load_checkpoint()
            self._read_new()
            self._growing.end_again(self.index.expired)
            self.index = self._growing
            self.seen = self._at_position()
            self._set_turn()
            self.overgrown &= self._position > self.upkeep_nbytes
            self.changed, self.reloaded = set(), False
        elif head and self._legacy is not None:
            self._load_legacy()
        else:
            raise self._lines.corrupt(0, "it does not begin like a manifest")

    def _load_checkpoint(self) -> None:
        """Begin with what a checkpoint of this very log has seen, if there is one."""
        size = os.fstat(self._fd).st_size
        base = open_base(
            self._home, self._packs, self.load_key, (self.id, self._first), size
        )
        if base is None:
            return
        about = base.about
        try:
            given = max(about.birth, self._growing.birth)
            index = Index(given, about.birth, base, self._reread)
        except LOST as error:
            log.info("%s is not used: %s", self._home.join(INDEX), error)
            return
        self._growing = index
        self.generation, self._position = about.generation, about.position

    def _reread(self) -> Index:
        """The index made from the log alone: the checkpoint is damaged."""
        log.info("%s is damaged; the log is read instead", self._home.join(INDEX))
        lost, shown = self._growing, self.index
        changed, reloaded = {*self.changed}, self.reloaded
        if self._was_replaced():
            self._reopen()
        else:
            self._load(checkpointed=False)
            self.changed, self.reloaded = changed, reloaded
        # Who asks is in the middle of a step of the old index, and makes it the new one.
        fresh, self.index, self._growing = self.index, shown, lost
        return fresh

    def _load_legacy(self) -> None:
        """Take over the ``.keys`` of chest 0.2.3: a dumped list of (key, name)."""
        size = os.fstat(self._fd).st_size
        assert self._legacy is not None
        pairs = self._legacy(system.read_all(self._fd, 0, size))
        self.id, self.generation = secrets.token_hex(8), 0
        self.index = self._growing = Index()
        self.word, self.seen, self._position = Unmapped(), 0, size
        for key, name in pairs:
            path, birth = self._home.join(name), self.index.next_birth()
            self.index.apply(key, _of_file(key, name, path, birth, self._legacy_format))
        if not self.readonly:
            self._lock()
            try:
                self.compact()
            finally:
                self._unlock()

    def _read_new(self, size: int = -1) -> bool:
        """Apply the whole records after `_position`; True when there were some.

        *size* is that of the log, where it is known.
        """
        if size < 0:
            size = os.lseek(self._fd, 0, os.SEEK_END)
        self._go_back()
        begin = self._position
        if size < begin:  # a record was taken back: its fsync had failed
            self._reopen()
        if size <= begin:
            return size < begin
        data = system.read_all(self._fd, begin, size - begin)
        word = self.word
        try:
            if self._take_plain(data, begin) < len(data):
                self._take_others(data, begin)
            self._caught_up(word)
        except BaseException:  # also Ctrl-C, and a pack that cannot be read just now
            self.doubt()
            raise
        return self._position != begin

    def _caught_up(self, word: object) -> None:
        """End a reading that began with that *word*, which is the open file's."""
        if self.word is word:
            self.seen = self._at_position()
            return
        # The checkpoint turned out to be damaged on the way, and `_reread` has read all
        # of the log; what was applied after that came too late.
        self._load(checkpointed=False)
        self.reloaded = True

    def _read_few(self) -> None:
        """`_read_new` as far as it goes with one read, and there are plain records."""
        # One call less than to ask for the size first.
        if self._in_doubt:
            return
        self._go_back()
        data = system.read(self._fd, self._position, FEW)
        word = self.word
        try:
            self._take_plain(data, self._position)
            self._caught_up(word)
        except BaseException:
            self.doubt()
            raise

    def _see_all(self) -> None:
        """Read everything, with the lock held."""
        # As mostly: nobody has said, or written, anything since; or it is the little
        # that others publish one by one. The file's end is asked for because a writer
        # may have died in its record, or between it and its word.
        if self.word[1] != self.seen:
            self._read_few()
        sure = not self._suspect and self.generation % LOOK_EACH
        if (
            not sure
            or self.word[1] != self.seen
            or os.lseek(self._fd, 0, os.SEEK_END) != self._position
        ):
            self._prepare_to_write()

    def _prepare_to_write(self) -> None:
        """Read everything and cut off a torn tail (M2); called with the lock held."""
        if self._in_doubt:
            self._reopen()
            self._announce()  # who was interrupted may not have
        if self.word[1] == IS_MOVED:
            if self._was_replaced():
                self._reopen()
            else:
                # Whoever marked it was killed before the new file took its place.
                self._announce()
        if not self.generation % LOOK_EACH:
            self._check_there()
        size = os.lseek(self._fd, 0, os.SEEK_END)
        if size != self._position:
            self._read_new(size)
            if size > self._position:
                torn = size - self._position
                log.info("%s: a torn record of %d bytes is cut off", self.path, torn)
                os.ftruncate(self._fd, self._position)
        if self.word[1] != self.seen:
            self._announce()  # whoever wrote last died before it could
        if self._suspect:
            # A failed fsync leaves pages that claim to be clean: never believe them.
            self.compact()
            self._suspect = False

    def _reopen(self) -> None:
        self.doubt()
        self._open()
        self.reloaded, self._in_doubt = True, False


class _Exclusive:
    """`Manifest.enter` and `Manifest.leave` as a ``with`` block."""

    __slots__ = ("_manifest",)

    def __init__(self, manifest: Manifest) -> None:
        self._manifest = manifest

    def __enter__(self) -> None:
        self._manifest.enter()

    def __exit__(self, *exception: object) -> None:
        self._manifest.leave()


def _of_file(key: Hashable, name: str, path: str, birth: int, format: str) -> Entry:
    """The entry of a value's file that says nothing of itself."""
    entry = Entry(keys.encode(key), birth, name, format=format)
    with contextlib.suppress(FileNotFoundError):  # reported when it is read
        entry.size = os.stat(path).st_size
    return entry


def _records(
    lines: Lines, data: bytes, number: int, offset: int
) -> Iterator[list[Entry]]:
    """The records after the *number*-th, each entry with its generation.

    *data* is what the log has from *offset* on.
    """
    for line in data.split(b"\n")[:-1]:
        number += 1
        entries = lines.read(line, number, offset)
        if entries is None:
            raise lines.corrupt(offset, f"record {number} is damaged")
        for entry in entries:
            entry.generation = entry.generation or number
        offset += len(line) + 1
        yield entries
