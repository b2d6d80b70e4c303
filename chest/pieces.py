"""The files of one open folder, by its descriptor.

Owns: reading, mapping, writing and linking them without following links. Does not own:
which folder it is, and what the files mean.
"""

from __future__ import annotations

import contextlib
import itertools
import os

from chest import system

__all__ = ["common_files", "content", "link_or_copy", "make_folders", "read", "write"]

MAP_FROM = 1 << 20  # bytes: checking and decoding a map is quicker than a copy

_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW
_WRITE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW


def read(folder: int, name: str, start: int = 0, size: int | None = None) -> bytes:
    """A file in the folder that is open as *folder*, or a part of it."""
    fd = os.open(name, _READ, dir_fd=folder)
    try:
        wanted = os.fstat(fd).st_size if size is None else size
        return system.read_all(fd, start, wanted)
    finally:
        system.close(fd)


def content(folder: int, name: str, start: int, size: int) -> bytes | memoryview:
    """A part of a file as `_read` gives it, or a map of the whole where it is large."""
    if start or size < MAP_FROM:
        return read(folder, name, start, size)
    fd = os.open(name, _READ, dir_fd=folder)
    try:
        if os.fstat(fd).st_size != size:
            return system.read_all(fd, start, size)
        return system.map_file(fd, size)
    finally:
        system.close(fd)


def write(folder: int, name: str, data: bytes | memoryview) -> int:
    """A new file in the folder that is open as *folder*, with its mode for files."""
    # Executable bits make sense for the folder only.
    mode = os.fstat(folder).st_mode & 0o666
    try:
        fd = os.open(name, _WRITE, mode, dir_fd=folder)
    except FileExistsError:
        # Never written over: what has the name may be a link to what was published.
        os.unlink(name, dir_fd=folder)
        fd = os.open(name, _WRITE, mode, dir_fd=folder)
    try:
        size = system.write_all(fd, [data])
        system.flush_file(fd)
        return size
    finally:
        system.close(fd)


def make_folders(folder: int, name: str) -> None:
    """The folders of *name* in the one that is open as *folder*."""
    mode = os.fstat(folder).st_mode & 0o777
    for part in itertools.accumulate(name.split("/"), "{}/{}".format):
        with contextlib.suppress(FileExistsError):
            os.mkdir(part, mode, dir_fd=folder)


def common_files(draft: int, base: int) -> set[str]:
    """Names of the files of a draft that are links to those of another open folder.

    All others are removed from the draft.

    Raises
    ------
    OSError
        The disk refused.
    """
    with os.scandir(base) as found:
        numbers = {each.name: each.inode() for each in found}
    common = set()
    with os.scandir(draft) as found:
        for each in found:
            if numbers.get(each.name) == each.inode():
                common.add(each.name)
            else:
                os.unlink(each.name, dir_fd=draft)
    return common


def link_or_copy(source: int, name: str, target: int) -> None:
    """Have the file *name* of one open folder in another; nothing when it is there."""
    try:
        os.link(name, name, src_dir_fd=source, dst_dir_fd=target, follow_symlinks=False)
    except FileExistsError:
        return
    except FileNotFoundError:
        raise
    except OSError:  # another file system, one without links, or too many of them
        write(target, name, read(source, name))
