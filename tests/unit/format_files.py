"""What the tests of formats share: real files, written and mapped as a store does."""

from __future__ import annotations

import os

import pytest

from chest import system
from chest.errors import CorruptValueError
from chest.protocols import Source

FILE_ID = "0123456789abcdef"


class FileSink:
    """A sink that counts its writes."""

    def __init__(self, path):
        self.path = str(path)
        self.writes = 0
        self.restarts = 0
        self._fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC)

    def write(self, buffers):
        self.writes += 1
        system.write_all(self._fd, buffers)

    def restart(self):
        self.restarts += 1
        os.lseek(self._fd, 0, os.SEEK_SET)
        os.ftruncate(self._fd, 0)

    def close(self):
        os.close(self._fd)


class FullDisk:
    """A sink that refuses."""

    path = "full"

    def write(self, buffers):
        raise OSError(28, "No space left on device")

    def restart(self):
        pass


def dump(form, value, path, *, key="'k'", file_id=FILE_ID):
    sink = FileSink(path)
    try:
        return form.dump(value, sink, key=key, file_id=file_id)
    finally:
        sink.close()


def source(path, *, mapped=True, writable=False):
    fd = os.open(path, os.O_RDONLY)
    try:
        size = os.fstat(fd).st_size
        if mapped:
            data = system.map_file(fd, size, writable=writable)
        else:
            data = memoryview(system.read_all(fd, 0, size))
    finally:
        os.close(fd)
    return Source(str(path), data, mapped, writable, "k")


def load(form, path, *, mapped=True, writable=False, full=False, file_id=FILE_ID):
    where = source(path, mapped=mapped, writable=writable)
    return form.load(where, file_id=file_id, full=full)


def load_bytes(form, data, *, mapped=False, full=True):
    where = Source("somewhere", memoryview(data), mapped, False, "k")
    return form.load(where, file_id=FILE_ID, full=full)


def check_every_flip(form, content, same):
    """Flip each bit-pattern of each byte: an error that says so, or the same value."""
    for mapped in (False, True):
        for at in range(len(content)):
            for mask in (0x01, 0x80, 0xFF):
                damaged = bytearray(content)
                damaged[at] ^= mask
                try:
                    value = load_bytes(form, damaged, mapped=mapped)
                except CorruptValueError:
                    continue
                assert same(value), f"byte {at} was flipped and nobody noticed"


def check_every_truncation(form, content):
    for mapped in (False, True):
        for size in range(len(content)):
            with pytest.raises(CorruptValueError):
                load_bytes(form, content[:size], mapped=mapped)
