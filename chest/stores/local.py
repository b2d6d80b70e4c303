"""A folder of write-once files.

Owns: unpublished files (drafts), the choice of a free name, reading and mapping, and who
may have written what is read. Does not own: which files exist for the chest (the
manifest), or what is in them (the formats).

Invariants
----------
L1  A file that has a published name is never changed; a new value gets a new file.
L2  A draft is locked by its writer until it is published or discarded.
L3  No name is taken twice, whatever the file system thinks of case and Unicode.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
from collections.abc import Collection, Iterable, Iterator, Sequence

from chest import errors, system
from chest.folder import PACK, SEAL, TEMPORARY, Folder, refusals, refused
from chest.protocols import Buffer, Source

__all__ = ["MAP_FROM", "Discard", "Draft", "FolderDraft", "LocalStore", "untrusted"]

MAGICS = (b"CHESTPK1", b"CHESTDT1", b"CHESTPZ1")  # at the end of the formats' files
log = logging.getLogger("chest")

MAP_FROM = 1 << 20  # bytes; below, reading a file is quicker than mapping it


class Draft:
    """A file that is being written and that nobody else sees.

    Attributes
    ----------
    path : str
        Its full path, for formats that open it themselves.
    size : int
        Bytes written so far.
    """

    __slots__ = ("_fd", "_home", "name", "path", "size")
    suffix = ""  # of the name it will get

    def __init__(self, home: Folder) -> None:
        self._home = home = home.twin()  # it is removed also when the chest was closed
        self.size = 0
        try:
            self._fd, self.name = home.create_temporary()
        except BaseException:
            home.close()
            raise
        self.path = home.join(self.name)

    def write(self, buffers: Sequence[Buffer]) -> None:
        """Append the buffers, all of them, uncopied."""
        at = self.size if self._home.reserves else None
        self.size += system.write_all(self._fd, buffers, reserve_at=at)

    def restart(self) -> None:
        """Forget all that was written."""
        os.ftruncate(self._fd, 0)
        os.lseek(self._fd, 0, os.SEEK_SET)
        self.size = 0

    def adopt(self, path: str) -> bool:
        """Become a hard link to the file at *path*; False where none can be made."""
        name = f"{self.name}-link"
        try:
            self._home.link(path, name)
        except OSError:
            return False  # another file system, or one without links: it is copied
        try:
            fd = self._home.open(name)
        except FileNotFoundError:
            return False  # the sweep came between the calls
        try:
            # Unless somebody else adopts it just now, or the sweep took it.
            adopted = system.try_lock(fd) and self._home.stat(name) is not None
            if adopted:
                self._home.unlink(self.name)
        except BaseException:
            system.close(fd)
            self._home.unlink(name, missing_ok=True)
            raise
        if not adopted:
            system.close(fd)
            self._home.unlink(name, missing_ok=True)
            return False
        system.close(self._fd)
        self._fd, self.name, self.path = fd, name, self._home.join(name)
        return True

    def finish(self, *, sync: bool) -> None:
        """Note the size (a format may have written by the path) and wait for the disk."""
        self.size = os.fstat(self._fd).st_size
        if sync:
            system.sync_file(self._fd)
        else:
            system.flush_file(self._fd)

    def view(self) -> memoryview:
        """All that was written, as a map."""
        return system.map_file(self._fd, self.size)

    def release(self) -> None:
        """Give up the lock: the file is published, or gone. Safe to call twice."""
        if self._fd >= 0:
            system.close(self._fd)
            self._fd = -1
            self._home.close()

    def discard(self) -> None:
        """Remove the file. Safe to call twice, and after it was published.

        One that cannot be removed is left to the sweep.
        """
        if self._fd >= 0:
            try:
                self._home.unlink(self.name, missing_ok=True)
            except OSError as error:
                log.info("%s is left: %s", self.path, error)
            finally:
                self.release()

    def __del__(self) -> None:
        """Let the sweep have what was forgotten, as by Ctrl-C."""
        if getattr(self, "_fd", -1) >= 0:
            self.release()


class FolderDraft:
    """A folder that is being filled and that nobody else sees.

    Parameters
    ----------
    home : Folder
    taken : tuple of int and str, optional
        An open and locked temporary folder with files in it, and its name.

    Attributes
    ----------
    path : str
        Its full path.
    fd : int
        Its descriptor, which holds its lock.
    """

    __slots__ = ("_home", "fd", "name", "path")
    suffix = ".zarr"  # what other tools know such a folder by

    def __init__(self, home: Folder, taken: tuple[int, str] | None = None) -> None:
        self._home = home = home.twin()  # as in `Draft`
        try:
            self.fd, self.name = taken or home.create_folder()
        except BaseException:
            home.close()
            raise
        self.path = home.join(self.name)

    def finish(self, *, sync: bool) -> None:
        """Wait for the disk.

        Also for files that have another link: who wrote them may not have waited.
        """
        if not sync:
            return
        for _, _, files, at in os.fwalk(".", dir_fd=self.fd):
            for name in files:
                fd = os.open(name, os.O_RDONLY, dir_fd=at)
                try:
                    system.sync_file(fd)
                finally:
                    system.close(fd)
            system.sync_directory(at)

    def keep(self, name: str, without: Iterable[str]) -> None:
        """Give the folder a name for `LocalStore.draft_from`; some files are removed.

        Raises
        ------
        OSError
            The disk refused; it is a draft as before.
        """
        for each in without:
            os.unlink(each, dir_fd=self.fd)
        self._home.rename(self.name, name)
        self.release()

    def release(self) -> None:
        """Give up the lock: the folder is published, or gone. Safe to call twice."""
        self._unlock()
        self._home.close()

    def _unlock(self) -> None:
        if self.fd >= 0:
            system.close(self.fd)
            self.fd = -1

    def discard(self) -> None:
        """Remove the folder. Safe to call twice, and after it was published.

        What cannot be removed is left to the sweep.
        """
        if self.fd < 0:
            return
        self._unlock()
        try:
            self._home.remove_folder(self.name)
        except OSError as error:
            log.info("%s is left: %s", self.path, error)
        finally:
            self._home.close()


class Discard:
    """A sink that keeps nothing: to see whether a value can be written."""

    def __init__(self, path: str) -> None:
        self.path = path

    def write(self, buffers: Sequence[Buffer]) -> None:
        """Forget the buffers."""

    def restart(self) -> None:
        """Nothing: there is nothing to forget."""


class LocalStore:
    """The value files of one chest.

    Parameters
    ----------
    home : Folder
        Where they lie.
    private : bool
        Refuse to read what runs code from a file that somebody else could have written.
    folder_is_private : bool
        Nobody else can write to the folder.
    """

    def __init__(self, home: Folder, *, private: bool, folder_is_private: bool) -> None:
        self.home = home
        self._private = private
        self._folder_is_private = folder_is_private

    def draft(self) -> Draft:
        """Begin a new file."""
        return Draft(self.home)

    def folder_draft(self) -> FolderDraft:
        """Begin a new value that is a folder."""
        return FolderDraft(self.home)

    def draft_from(self, name: str) -> FolderDraft | None:
        """Make a draft of a folder that is nobody's value; None: gone, or in use."""
        taken = self.home.claim_folder(name)
        return None if taken is None else FolderDraft(self.home, taken)

    def free_name(self, wanted: str, suffix: str = "") -> str:
        """The name a file that wants to be called *wanted* gets now."""
        if "/" in wanted and not self._has_room(wanted):
            wanted = wanted.replace("/", "+")
        name, count = wanted + suffix, 0
        while self.home.stat(name) is not None:
            count += 1
            name = f"{wanted}~{count}{suffix}"
        return name

    def place(self, draft: Draft | FolderDraft, wanted: str) -> str:
        """Give the draft a free name and return it. Called under the manifest's lock."""
        while True:
            name = self.free_name(wanted, draft.suffix)
            try:
                self.home.rename(draft.name, name)
            except FileNotFoundError:
                # Another process removed the last file of the folder after it was made.
                if self.home.stat(draft.name) is None:
                    raise
                continue
            draft.name, draft.path = name, self.home.join(name)
            return name

    def source(
        self,
        name: str,
        *,
        key: object,
        size: int | None,
        mapped: str | None,
        runs_code: bool,
        private: bool = False,
    ) -> Source:
        """Open a value's file for a format.

        Parameters
        ----------
        name : str
            As the manifest has it.
        key : object
            For messages.
        size : int or None
            Bytes that it must have; ``None``: not known.
        mapped : {"r", "copy", None}
            Values may keep slices of a read-only map, of a private one, or of none.
        runs_code : bool
            Making the value may run code that is named in the file.
        private : bool
            Read it into memory that nobody else can change afterwards.

        Raises
        ------
        FileNotFoundError
            It is gone; the caller looks at the manifest again.
        CorruptValueError
            Its size is wrong, or it is no plain file.
        UntrustedError
            Somebody else could have written it.
        """
        path = self.home.join(name)
        try:
            fd, status = self.home.opened(name)
        except OSError as error:
            if error.errno == errno.ENOENT:
                raise
            if error.errno in (errno.ELOOP, errno.EINVAL, errno.ENOTDIR, errno.EISDIR):
                msg = (
                    f"{path}, the value of {errors.short(key)}, is not a plain file: "
                    f"{error.strerror}"
                )
                raise errors.CorruptValueError(
                    msg,
                    key=key,
                    path=path,
                ) from error
            raise refused(error, path, "could not be opened", key) from error
        try:
            if runs_code and self._private:
                self.check_private(path, status, key)
            if size is not None and status.st_size != size:
                msg = (
                    f"{path}, the value of {errors.short(key)}, has {status.st_size} "
                    f"bytes instead of {size}. Delete the key, or restore the file"
                )
                raise errors.CorruptValueError(
                    msg,
                    key=key,
                    path=path,
                )
            if private or status.st_size < MAP_FROM:
                data = memoryview(system.read_all(fd, 0, status.st_size))
                return Source(path, data, False, False, key)
            # Even a value that may keep no slices is decoded from a map: reading the
            # file first would hold it in memory twice.
            writable = mapped == "copy"
            data = system.map_file(fd, status.st_size, writable=writable)
            return Source(path, data, mapped is not None, writable, key)
        except OSError as error:
            if isinstance(error, errors.ChestError):
                raise
            raise refused(error, path, "could not be read", key) from error
        finally:
            system.close(fd)

    def delete(self, name: str) -> bool:
        """Remove what no record holds any more; no error when it is gone.

        False: it is a folder that somebody reads, and is left for later.
        """
        status = self.home.stat(name)
        if status is None or not stat.S_ISDIR(status.st_mode):
            self.home.unlink(name, missing_ok=True)
        elif not self.home.remove_folder(name):
            log.info("%s is left: somebody reads it", self.home.join(name))
            return False
        return True

    def set_aside(self, name: str) -> str:
        """Take its name from a value, for `delete`; returns the one that it has now."""
        return self.home.set_aside(name)

    def used(self, name: str) -> None:
        """Remember that the file was used now, for `chest.Chest.trim`."""
        # A folder that we may only read keeps no such note; nothing depends on it.
        with contextlib.suppress(OSError):
            os.utime(self.home.join(name), follow_symlinks=False)

    def read_ahead(self, name: str) -> None:
        """Ask the system to read a file from the disk meanwhile; nothing is waited for."""
        try:
            fd = self.home.open(name)
        except OSError:
            return  # who reads it for good will say what is wrong
        try:
            system.read_ahead(fd)
        finally:
            system.close(fd)

    def sealed(self) -> Iterator[str]:
        """Files that end as our formats do, and packs: values, published or not."""
        for name in self.home.names():
            if name.startswith("."):
                if name.startswith(PACK):
                    yield name
            elif self._is_sealed(name):
                yield name

    def listed(self) -> list[str]:
        """The names of all files, whosever they are. O(files); no lock."""
        with refusals(self.home.path, "could not be swept"):
            return list(self.home.names())

    def orphans(self, held: Collection[str], listed: Iterable[str]) -> Iterator[str]:
        """Files of ours among *listed* that nobody holds. Called under the lock.

        Drafts whose writer died, and values whose record was never written or was
        replaced before their writer died. A file in the user's own format cannot be
        told from a foreign one, so it is left alone.

        Whoever removes a draft does so before asking for the next: its lock is held
        until then. A writer that has just made it waits for the lock, and sees.
        """
        for name in listed:
            if name in held:
                continue
            status = self.home.stat(name)
            if status is not None and stat.S_ISDIR(status.st_mode):
                if self._is_left(name):
                    yield name
                continue
            if not name.startswith((TEMPORARY, PACK)):
                if self._is_sealed(name):
                    yield name
                continue
            try:
                fd = self.home.open(name)
            except OSError:
                continue  # gone, or planted: not ours to remove
            try:
                free = system.try_lock(fd)
                if free and not name.startswith(PACK):
                    yield name
            finally:
                system.close(fd)
            if free and name.startswith(PACK):
                yield name  # removing it takes its lock again

    def _is_left(self, name: str) -> bool:
        """Nobody has the folder open."""
        try:
            fd = system.open_directory(self.home.join(name))
        except OSError:
            return False  # gone, or not ours to remove
        try:
            return system.try_lock(fd)
        finally:
            system.close(fd)

    def _is_sealed(self, name: str) -> bool:
        """The last bytes are the magic of one of our formats, or it is a sealed folder."""
        if self.home.stat(f"{name}/{SEAL}") is not None:
            return True
        try:
            fd = self.home.open(name)
        except OSError:
            return False
        try:
            size = os.fstat(fd).st_size
            length = len(MAGICS[0])
            return (
                size > length and system.read_all(fd, size - length, length) in MAGICS
            )
        finally:
            system.close(fd)

    def check_private(
        self, path: str, status: os.stat_result, key: object = None
    ) -> None:
        """Raise UntrustedError where somebody else could have written a pickle."""
        if not self._private:
            return
        if not self._folder_is_private:
            raise untrusted(self.home.path, self.home.status(), key)
        if not system.is_private(status):
            raise untrusted(path, status, key)

    def _has_room(self, wanted: str) -> bool:
        """No file has the name of one of the folders."""
        name = wanted
        while "/" in name:
            name = name.rpartition("/")[0]
            found = self.home.stat(name)
            if found is not None:
                return stat.S_ISDIR(found.st_mode)
        return True


def untrusted(
    path: str, status: os.stat_result, key: object = None
) -> errors.UntrustedError:
    """The error for a file or folder that somebody else could have written."""
    mode = stat.S_IMODE(status.st_mode)
    return errors.UntrustedError(
        f"{path} belongs to user {status.st_uid} with mode {mode:o}, so somebody else "
        f"could have written it, and a pickle in it could run their code. Ways out: "
        f"chmod go-w {path} (if it is yours); trust='data' (values that need no pickle); "
        f"sign_key= with trust='any'; trust='any' (at your own risk)",
        key=key,
        path=path,
    )
