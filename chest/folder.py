"""One open folder: its files by name, its lock, its sync.

Owns: every call that names a file of a chest. Names are relative to the open descriptor,
so the folder may be moved while a chest is open, and ``..``, absolute names or links
planted inside never lead out of it. Where the system has no such calls (Windows) names
are joined to the path.
Does not own: what the names mean.
"""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
import shutil
import stat
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager

from chest import errors, system
from chest.protocols import Buffer

__all__ = [
    "DAMAGED",
    "DEAD",
    "HOLDER",
    "ITEMS",
    "LEASES",
    "MANIFEST",
    "OF_QUEUE",
    "PACK",
    "QUEUE",
    "QUEUE_STATE",
    "SEAL",
    "SPARE",
    "TEMPORARY",
    "VALUE",
    "Aside",
    "Folder",
    "refusals",
    "refused",
]

PACK = ".pack-"  # how names of packs begin
MANIFEST = ".keys"  # the file that says that a folder is a chest
DAMAGED = f"{MANIFEST}-damaged-"  # how names of those begin that were made anew
TEMPORARY = ".tmp-"  # how names of unpublished files and folders begin
SPARE = f"{TEMPORARY}spare-"  # of folders that wait for the next change of an array
SEAL = ".chest"  # the file that says that a folder is one value
LOCK, HOST = ".lock", ".host"  # on network file systems: the lock, and who uses it
QUEUE = ".queue-"  # how names of the folders of queues begin
QUEUE_STATE = "state"  # the file in them that has a word for pollers, as a manifest has
ITEMS, DEAD, LEASES = "items-", "dead-", "leases-"  # how names of their others begin
VALUE, HOLDER = "value-", ".holder-"
OF_QUEUE = (QUEUE_STATE, ITEMS, DEAD, LEASES, VALUE, HOLDER, TEMPORARY)
RESERVING = frozenset({"btrfs", "ext4", "tmpfs", "xfs"})
PRIVATE_FILE, PRIVATE_FOLDER = 0o600, 0o700
SHORT_NAP, LONG_NAP = 0.0002, 0.01  # seconds until a folder is asked for again

_BASE = getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
# A planted link or FIFO must neither lead out of the folder nor block.
_SAFE = _BASE | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)

_NO_LOCKS = (
    "This file system has no locks: mount it with them (NFS needs its lock service, "
    "Lustre the option flock), or keep the chest on a local disk"
)
_HINTS = {
    errno.ENOSPC: "Free some space (c.trim() helps); nothing was lost",
    errno.EDQUOT: "Your quota is used up; nothing was lost",
    errno.EMFILE: "Too many files are open: raise the limit (ulimit -n)",
    errno.ENFILE: "Too many files are open on this machine",
    errno.EACCES: "Check who owns the folder and its mode",
    errno.EPERM: "Check who owns the folder and its mode",
    errno.EROFS: "Open it with readonly=True",
    errno.ENAMETOOLONG: "The folder's own path is too long",
    errno.ENOLCK: _NO_LOCKS,
    errno.ENOSYS: _NO_LOCKS,
    errno.EOPNOTSUPP: _NO_LOCKS,
}


class Folder:
    """An open folder.

    Parameters
    ----------
    path : str
        An existing folder.
    file_mode, folder_mode : int
        Permissions of what is made in it; the umask narrows them further.

    Raises
    ------
    StoreError
        There is no such folder, or no permission.
    """

    __slots__ = (
        "_fd",
        "_host_fd",
        "_reserves",
        "file_mode",
        "folder_mode",
        "lock_fd",
        "network",
        "path",
    )

    def __init__(
        self,
        path: str,
        *,
        file_mode: int = PRIVATE_FILE,
        folder_mode: int = PRIVATE_FOLDER,
    ) -> None:
        self.path = path
        self.file_mode, self.folder_mode = file_mode, folder_mode
        self._fd = self.lock_fd = self._host_fd = -1
        self._reserves: bool | None = None
        try:
            self._fd = system.Descriptor(system.open_directory(path))
            self.network = system.network(path, self.status())
            self._choose_lock()
        except OSError as error:
            self.close()
            raise refused(error, path, "could not be opened") from error

    def twin(self) -> Folder:
        """The same open folder for one who goes on when this is closed; takes no lock."""
        twin = Folder.__new__(Folder)
        twin.path, twin.network = self.path, self.network
        twin.file_mode, twin.folder_mode = self.file_mode, self.folder_mode
        twin._fd, twin._reserves = (
            self.check_open(),
            self.reserves,
        )  # asked once for all
        twin.lock_fd = twin._host_fd = -1
        return twin

    def check_open(self) -> int:
        """Raise ClosedError when it was closed, as by another thread.

        Returns the descriptor, which stays open as long as the caller refers to it.
        """
        fd = self._fd
        if fd < 0:
            msg = f"{self.path} was closed meanwhile: open it again"
            raise errors.ClosedError(msg, path=self.path)
        return fd

    @property
    def reserves(self) -> bool:
        """Whether room for a file can be reserved at no cost."""
        # Elsewhere the C library would write into every block to reserve it.
        if self._reserves is None:
            self._reserves = system.filesystem(self.path) in RESERVING
        return self._reserves

    def join(self, name: str) -> str:
        """The full path of *name*."""
        if system.POSIX:
            return f"{self.path}/{name}"
        return os.path.join(self.path, *name.split("/"))

    # -- files -------------------------------------------------------------------------

    def open(self, name: str, flags: int = os.O_RDONLY) -> int:
        """Open a regular file without following links.

        Raises
        ------
        FileNotFoundError
            There is none.
        OSError
            As ``os.open``; ``ELOOP`` for a link, ``EINVAL`` for what is no plain file.
        """
        return self.opened(name, flags)[0]

    def opened(self, name: str, flags: int = os.O_RDONLY) -> tuple[int, os.stat_result]:
        """`open`, and what ``fstat`` says of the file."""
        at: int | None = self.check_open()
        last, opened = name, 0
        if "/" in name or not system.POSIX:
            at, last, opened = self._walk(name)
        try:
            fd = os.open(last, flags | _SAFE, self.file_mode, dir_fd=at)
        finally:
            at = _let_go(opened)
        try:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode):
                raise OSError(errno.EINVAL, "not a regular file", self.join(name))
        except BaseException:
            system.close(fd)
            raise
        return fd, status

    def create_temporary(self) -> tuple[int, str]:
        """A new file, open and locked by its descriptor, and its name.

        The lock says that somebody is still writing; the sweep respects it.
        """
        return self.create(lambda: f"{TEMPORARY}{os.getpid():x}-{secrets.token_hex(4)}")

    def create(self, choose: Callable[[], str]) -> tuple[int, str]:
        """A new file with a name that *choose* gives, open and locked, and the name.

        Raises
        ------
        DroppedError
            There is no such folder any more.
        OSError
            As ``os.open``.
        """
        while True:
            name = choose()
            try:
                fd = self.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            except FileNotFoundError:
                self._check_there()
                raise
            try:
                system.lock(fd)
                # The sweep may have come between the two calls and unlinked it.
                if os.fstat(fd).st_nlink:
                    return fd, name
            except BaseException:
                system.close(fd)
                self.unlink(name, missing_ok=True)
                raise
            system.close(fd)

    def write_aside(self, name: str, pieces: Sequence[Buffer], *, sync: bool) -> None:
        """Write a whole file under a temporary name and rename it into place.

        Raises
        ------
        OSError
            The disk refused; what had the name before still has it.
        """
        aside = Aside(self, pieces)
        try:
            aside.place(name, sync=sync)
        finally:
            aside.discard()

    def create_folder(self) -> tuple[int, str]:
        """A new temporary folder, open and locked by its descriptor, and its name."""
        while True:
            name = f"{TEMPORARY}{os.getpid():x}-{secrets.token_hex(4)}"
            try:
                os.mkdir(self._here(name), self.folder_mode, dir_fd=self._at())
            except FileNotFoundError:
                self._check_there()
                raise
            try:
                fd = self._open_folder(name)
            except FileNotFoundError:
                continue  # the sweep came between the calls
            try:
                system.lock(fd)
                # It may have come between these, too.
                if self._is_at(fd, name):
                    return fd, name
            except BaseException:
                system.close(fd)
                self.remove_folder(name)
                raise
            system.close(fd)

    def _check_there(self) -> None:
        """Raise DroppedError where the folder itself has gone."""
        if not self.status().st_nlink:
            msg = f"{self.path} was dropped by another process"
            raise errors.DroppedError(msg, path=self.path)

    def open_folder(self, name: str) -> int:
        """Open a folder that is a value; nobody removes it before it is closed.

        Raises
        ------
        FileNotFoundError
            There is none.
        OSError
            As ``os.open``.
        """
        fd = self._open_folder(name)
        nap = SHORT_NAP
        try:
            # Not waited for in the system: who has it alone may have taken its name, to
            # make another generation of it, and keep it as long as that takes.
            while not (shared := system.try_share(fd)) and self._is_at(fd, name):
                time.sleep(nap)
                nap = min(2 * nap, LONG_NAP)
            if not shared or not self._is_at(fd, name):
                raise FileNotFoundError(errno.ENOENT, "removed", self.join(name))
        except BaseException:
            system.close(fd)
            raise
        return fd

    def claim_folder(self, name: str) -> tuple[int, str] | None:
        """Make a folder temporary, open and locked; None where it is gone or in use.

        Its descriptor and its new name are returned, as of `create_folder`.
        """
        try:
            fd = self._open_folder(name)
        except OSError:
            return None
        try:
            if system.try_lock(fd) and self._is_at(fd, name):
                return fd, self.set_aside(name)
        except BaseException:
            system.close(fd)
            raise
        system.close(fd)
        return None

    @staticmethod
    def close_folder(fd: int) -> None:
        """Let go of a folder that `open_folder` opened."""
        system.close(fd)

    def remove_folder(self, name: str) -> bool:
        """Remove a folder with all that is in it; False when somebody has it open.

        It loses its name first, so that nobody ever sees a part of it.
        """
        try:
            fd = self._open_folder(name)
        except FileNotFoundError:
            return True
        try:
            if not system.try_lock(fd):
                return False
            if self._is_at(fd, name):
                gone = name
                if not name.startswith(TEMPORARY):
                    gone = f"{TEMPORARY}{os.getpid():x}-{secrets.token_hex(4)}"
                    self._rename_out(name, gone)
                shutil.rmtree(self._here(gone), dir_fd=self._at())
        finally:
            system.close(fd)
        self._prune(name)
        return True

    def _rename_out(self, name: str, gone: str) -> None:
        at, last, opened = self._walk(name)
        try:
            os.rename(last, self._here(gone), src_dir_fd=at, dst_dir_fd=self._at())
        finally:
            at = _let_go(opened)

    def _open_folder(self, name: str) -> int:
        at, last, opened = self._walk(name)
        try:
            flags = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | _SAFE
            return os.open(last, flags, dir_fd=at)
        finally:
            at = _let_go(opened)

    def _is_at(self, fd: int, name: str) -> bool:
        """The folder that is open still has this name."""
        found = self.stat(name)
        return found is not None and os.path.samestat(found, os.fstat(fd))

    def rename(self, old: str, new: str) -> None:
        """Give the temporary file *old* the name *new*, replacing what has it."""
        at, last, opened = self._walk(new, make=True)
        try:
            os.rename(self._here(old), last, src_dir_fd=self._at(), dst_dir_fd=at)
        finally:
            at = _let_go(opened)

    def link(self, source: str, new: str) -> None:
        """Make *new* a hard link to the file at the full path *source*."""
        os.link(source, self._here(new), dst_dir_fd=self._at(), follow_symlinks=False)

    def unlink(self, name: str, *, missing_ok: bool = False) -> None:
        """Remove a file, and the folders inside this one that it leaves empty."""
        try:
            at, last, opened = self._walk(name)
        except (FileNotFoundError, NotADirectoryError):
            if missing_ok:
                return
            raise
        try:
            os.unlink(last, dir_fd=at)
        except FileNotFoundError:
            if not missing_ok:
                raise
        finally:
            at = _let_go(opened)
        self._prune(name)

    def set_aside(self, name: str) -> str:
        """Give a file or folder the name of an unpublished one, and return that.

        Who has it open goes on.
        """
        aside = f"{TEMPORARY}{os.getpid():x}-{secrets.token_hex(4)}"
        self._rename_out(name, aside)
        self._prune(name)
        return aside

    def _prune(self, name: str) -> None:
        """Remove the folders inside this one that *name*'s going leaves empty."""
        while "/" in name:
            name = name.rpartition("/")[0]
            try:
                os.rmdir(self._here(name), dir_fd=self._at())
            except OSError:
                return  # not empty, or somebody else removed it: both are fine

    def stat(self, name: str) -> os.stat_result | None:
        """What ``lstat`` says of *name*; None when nothing has it."""
        try:
            return os.stat(self._here(name), dir_fd=self._at(), follow_symlinks=False)
        except (FileNotFoundError, NotADirectoryError):
            return None

    def names(self) -> Iterator[str]:
        """Every file in the folder and below, in no order; a sealed folder is one.

        None of a queue's, and none of another chest's that lies below.
        """
        waiting = [""]
        while waiting:
            prefix = waiting.pop()
            if prefix and self.stat(prefix + MANIFEST) is not None:
                continue
            try:
                with os.scandir(os.path.join(self.path, prefix)) as found:
                    items = list(found)
            except FileNotFoundError:
                continue  # removed since its parent was read
            for item in items:
                name = f"{prefix}{item.name}"
                if item.is_dir(follow_symlinks=False):
                    if self._is_value(name):
                        yield name
                    elif not item.name.startswith(QUEUE):
                        waiting.append(name + "/")
                elif item.is_file(follow_symlinks=False):
                    yield name

    def queues(self) -> list[str]:
        """The names of the folders of queues that lie in this one."""
        with os.scandir(self.path) as found:
            return [
                item.name
                for item in found
                if item.name.startswith(QUEUE) and item.is_dir(follow_symlinks=False)
            ]

    def _is_value(self, name: str) -> bool:
        """A folder that counts as one file: a value, or a draft of one."""
        return name.startswith(TEMPORARY) or self.stat(f"{name}/{SEAL}") is not None

    def status(self) -> os.stat_result:
        """``fstat`` of the folder itself."""
        fd = self.check_open()
        return os.fstat(fd) if system.POSIX else os.stat(self.path)

    # -- the folder --------------------------------------------------------------------

    def lock(self, timeout: float | None = None) -> bool:
        """Take the lock between processes; False when *timeout* [s] went by."""
        if self.lock_fd < 0:
            self.lock_fd = self.open(LOCK, os.O_RDWR | os.O_CREAT)
        return system.lock(self.lock_fd, timeout)

    def unlock(self) -> None:
        """Give the lock back."""
        system.unlock(self.lock_fd)

    def holder(self) -> str:
        """Who holds the lock, for a message."""
        return system.holder(self.lock_fd)

    def _choose_lock(self) -> None:
        """The folder's own descriptor carries the lock, where it may."""
        # On network file systems it would be this host's own; that of a file that is
        # open for writing the server knows, where it knows any. `lock` opens that.
        self.lock_fd = -1 if self.network else int(self._fd)

    def claim(self, timeout: float | None = None) -> None:
        """On a network file system, keep other hosts out as long as this is open.

        Raises
        ------
        StoreError
            Another host has it open, or there are no locks.
        LockTimeout
            Somebody held the lock for *timeout* seconds.
        """
        if not self.network or self._host_fd >= 0:
            return
        with refusals(self.path, "could not be locked"):
            if not self.lock(timeout):
                msg = f"{self.path} is locked by {self.holder()}; waited {timeout} s"
                raise errors.LockTimeout(msg, path=self.path)
            try:
                self._host_fd = self.open(HOST, os.O_RDWR | os.O_CREAT)
                other = system.claim(self._host_fd)
            finally:
                self.unlock()
        if other:
            msg = (
                f"{self.path} is on a network file system ({self.network}), where a chest "
                f"is for one host at a time, and {other} has it open. Close it there, or "
                "open it here with readonly=True"
            )
            raise errors.StoreError(msg, path=self.path, errno=errno.EBUSY)

    def sync(self, name: str = "") -> None:
        """Wait until the disk has the folder's names, also those of *name*'s folders."""
        while "/" in name:
            name = name.rpartition("/")[0]
            fd = os.open(self._here(name), os.O_RDONLY | _BASE, dir_fd=self._at())
            try:
                system.sync_directory(fd)
            finally:
                system.close(fd)
        system.sync_directory(self.check_open())

    def after_fork(self) -> None:
        """Stop sharing the parent's descriptor, and with it its lock."""
        if self._fd < 0 or not system.POSIX:
            return
        shared = self._fd
        self._fd = system.Descriptor(os.open(".", os.O_RDONLY | _BASE, dir_fd=shared))
        assert isinstance(shared, system.Descriptor)
        shared.close()  # whoever refers to it: as long as it is open, so is their lock
        if self.network and self.lock_fd >= 0:
            system.close(self.lock_fd)
        self._choose_lock()

    def close(self) -> None:
        """Release the descriptor. Safe to call twice, and while other threads use it."""
        if self.lock_fd not in (-1, self._fd):
            system.close(self.lock_fd)
        self.lock_fd = self._fd = -1
        if self._host_fd >= 0:
            system.close(self._host_fd)
            self._host_fd = -1

    def _at(self) -> int | None:
        fd = self.check_open()
        return fd if system.POSIX else None

    def _here(self, name: str) -> str:
        return name if system.POSIX else self.join(name)

    def _walk(self, name: str, *, make: bool = False) -> tuple[int | None, str, int]:
        """(folder descriptor, last part of the name, descriptor to close or 0)."""
        if not system.POSIX:
            if make and "/" in name:
                os.makedirs(os.path.dirname(self.join(name)), exist_ok=True)
            return None, self.join(name), 0
        *folders, last = name.split("/")
        at, opened = self.check_open(), 0
        flags = os.O_RDONLY | os.O_DIRECTORY | _SAFE
        try:
            for part in folders:
                if make:
                    # The open below tells whether what is there is a folder.
                    with contextlib.suppress(FileExistsError):
                        os.mkdir(part, self.folder_mode, dir_fd=at)
                inner = os.open(part, flags, dir_fd=at)
                if opened:
                    system.close(opened)
                at = opened = inner
        except BaseException:
            at = _let_go(opened)
            raise
        return at, last, opened


def _let_go(opened: int) -> int:
    """Close what `_walk` opened; -1 is to take the place of the folder's descriptor.

    The traceback of an error may be kept, and with it what its frames refer to.
    """
    if opened:
        system.close(opened)
    return -1


class Aside:
    """A file that is written under a temporary name until it takes another's place.

    Parameters
    ----------
    home : Folder
    pieces : iterable of bytes-like
        What it begins with.

    Raises
    ------
    OSError
        The disk refused; nothing is left.

    Attributes
    ----------
    placed : bool
        It has its name.
    """

    __slots__ = ("_fd", "_home", "_name", "placed")

    def __init__(self, home: Folder, pieces: Iterable[Buffer]) -> None:
        self._home = home = home.twin()
        self.placed = False
        self._fd = -1
        try:
            self._fd, self._name = home.create_temporary()
            if isinstance(pieces, Sequence):
                self.write(pieces)
            else:
                for piece in pieces:
                    self.write([piece])
        except BaseException:
            self.discard()
            raise

    def write(self, pieces: Sequence[Buffer]) -> None:
        """Append to it."""
        system.write_all(self._fd, pieces)

    def place(self, name: str, *, sync: bool) -> None:
        """Give it its name, replacing what has it; with *sync* wait for the disk."""
        if sync:
            system.sync_file(self._fd)
        else:
            system.flush_file(self._fd)
        self._home.rename(self._name, name)
        self.placed = True
        fd, self._fd = self._fd, -1
        system.close(fd)
        if sync:
            self._home.sync()

    def discard(self) -> None:
        """Remove it, unless it has its name. Safe to call twice."""
        if self._fd >= 0:
            fd, self._fd = self._fd, -1
            try:
                # One that cannot be removed is left to the sweep.
                with contextlib.suppress(OSError):
                    self._home.unlink(self._name, missing_ok=True)
            finally:
                system.close(fd)
        self._home.close()


def refusals(path: str, what: str, key: object = None) -> AbstractContextManager[None]:
    """Raise what the system says within the block as `StoreError`."""
    return _Refusals(path, what, key)


class _Refusals:
    """`refusals`; every look at what others published goes through one."""

    # A class, because a generator would take longer than the look.
    __slots__ = ("_key", "_path", "_what")

    def __init__(self, path: str, what: str, key: object) -> None:
        self._path, self._what, self._key = path, what, key

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if isinstance(error, OSError) and not isinstance(error, errors.ChestError):
            raise refused(error, self._path, self._what, self._key) from error


def refused(
    error: OSError, path: str, what: str, key: object = None
) -> errors.StoreError:
    """A `StoreError` for what the system said, with the way out where there is one."""
    reason = error.strerror or str(error)
    of = "" if key is None else f" (key {errors.short(key)})"
    hint = _HINTS.get(error.errno or 0, "")
    return errors.StoreError(
        f"{path}{of} {what}: {reason}." + (f" {hint}." if hint else ""),
        key=key,
        path=path,
        errno=error.errno,
    )
