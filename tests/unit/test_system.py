from __future__ import annotations

import gc
import mmap
import os
import stat
import sys
import threading
from types import SimpleNamespace

import pytest

from chest import system
from chest.system import files, memory, places, threads

posix = pytest.mark.skipif(not system.POSIX, reason="needs POSIX")


@pytest.fixture
def file(tmp_path):
    fd = os.open(tmp_path / "file", os.O_RDWR | os.O_CREAT)
    yield fd
    os.close(fd)


def descriptors():
    return len(os.listdir("/proc/self/fd"))


# locks


def test_a_lock_excludes_another_open_directory(tmp_path):
    one, two = (system.open_directory(str(tmp_path)) for _ in range(2))
    assert system.lock(one)
    assert not system.try_lock(two)
    assert not system.lock(two, timeout=0.01)
    system.unlock(one)
    assert system.lock(two, timeout=0)
    os.close(one)
    os.close(two)


def test_waiting_with_a_timeout_gets_the_lock_when_it_is_given_back(tmp_path):
    one, two = (system.open_directory(str(tmp_path)) for _ in range(2))
    system.lock(one)
    wait = system.run_beside(system.lock, two, 60)
    system.unlock(one)
    assert wait()
    os.close(one)
    os.close(two)


def test_unlocking_twice_is_no_error(tmp_path):
    fd = system.open_directory(str(tmp_path))
    system.unlock(fd)
    system.unlock(fd)
    os.close(fd)


def test_a_lock_on_a_closed_descriptor_is_an_error(tmp_path):
    fd = system.open_directory(str(tmp_path))
    os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        system.try_lock(fd)


def test_a_missing_directory_cannot_be_opened(tmp_path):
    with pytest.raises(FileNotFoundError):
        system.open_directory(str(tmp_path / "missing"))


# writes and reads


@pytest.mark.parametrize("most", [1, 2, 3, 7, 10**9])
def test_short_writes_are_continued_wherever_they_end(file, monkeypatch, most):
    real = os.writev

    def writev(fd, buffers):
        joined = b"".join(buffers)[:most]
        return real(fd, [joined])

    monkeypatch.setattr(os, "writev", writev)
    monkeypatch.setattr(os, "write", lambda fd, data: writev(fd, [data]))
    pieces = [b"ab", b"", bytearray(b"cdefg"), memoryview(b"hijklmnop"), b"q"]
    assert system.write_all(file, pieces) == 17
    assert system.read_all(file, 0, 100) == b"abcdefghijklmnopq"


def test_more_buffers_than_one_call_takes_are_all_written(file):
    pieces = [b"%d," % number for number in range(3 * files.IOV_MAX + 1)]
    assert system.write_all(file, pieces) == len(b"".join(pieces))
    assert system.read_all(file, 0, 10**6) == b"".join(pieces)


def test_a_view_of_wide_items_is_counted_in_bytes(file):
    words = memoryview(bytes(80)).cast("Q")
    assert system.write_all(file, [words, words]) == 160
    assert system.write_all(file, []) == 0


def test_short_pwrites_and_preads_are_continued(file, monkeypatch):
    write, read = os.pwrite, os.pread
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: write(fd, data[:3], at))
    monkeypatch.setattr(os, "pread", lambda fd, size, at: read(fd, min(size, 3), at))
    assert system.pwrite_all(file, b"0123456789", 5) == 10
    assert system.read_all(file, 5, 10) == b"0123456789"
    assert system.read_all(file, 10, 99) == b"56789"
    assert system.read_all(file, 99, 9) == b""


def test_files_and_directories_can_be_synced(file, tmp_path):
    system.sync_file(file)
    fd = system.open_directory(str(tmp_path))
    system.sync_directory(fd)
    os.close(fd)
    with pytest.raises(OSError, match="Bad file descriptor"):
        system.sync_file(fd)


# maps


def test_a_map_may_begin_within_the_file(file):
    page = mmap.ALLOCATIONGRANULARITY
    os.write(file, bytes(page) + b"hello" * 2000)
    assert system.map_file(file, 10000, start=page) == b"hello" * 2000
    with pytest.raises(ValueError):  # noqa: PT011
        system.map_file(file, 10001, start=page)


def test_a_map_shows_the_file_read_only(file):
    os.write(file, b"hello" * 2000)
    view = system.map_file(file, 10000)
    assert view.readonly
    assert view.nbytes == 10000
    assert view == b"hello" * 2000
    assert isinstance(view.obj, mmap.mmap)
    with pytest.raises(TypeError):
        view[0] = 1


def test_an_array_on_a_map_cannot_be_made_writable(file):
    np = pytest.importorskip("numpy")
    os.write(file, bytes(8000))
    array = np.frombuffer(system.map_file(file, 8000))
    assert not array.flags.writeable
    with pytest.raises(ValueError, match="WRITEABLE"):
        array.flags.writeable = True


def test_writing_to_a_private_map_leaves_the_file_alone(file):
    os.write(file, b"a" * 5000)
    view = system.map_file(file, 5000, writable=True)
    view[4999] = ord("b")
    assert not view.readonly
    assert view[4999] == ord("b")
    assert system.read_all(file, 4999, 1) == b"a"


@posix
def test_maps_hold_no_descriptor_and_outlive_theirs(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"x" * 4097)
    before = descriptors()
    views = []
    for writable in (False, True) * 100:
        fd = os.open(path, os.O_RDONLY)
        views.append(system.map_file(fd, 4097, writable=writable))
        os.close(fd)
    assert descriptors() == before
    path.unlink()
    assert all(view[4096] == ord("x") for view in views)


@posix
def test_a_slice_keeps_the_map_and_the_last_one_frees_it(file):
    size = 1234567
    os.ftruncate(file, size)

    def maps():
        with open("/proc/self/maps") as lines:
            return sum("/file" in line for line in lines)

    before = maps()
    part = system.map_file(file, size)[1000:2000]
    assert maps() == before + 1
    assert bytes(part) == bytes(1000)
    del part
    gc.collect()
    assert maps() == before


def test_nothing_is_left_after_thousands_of_maps_of_many_sizes(file):
    os.ftruncate(file, 10**6)

    def work():
        for size in range(1, 2000):
            system.map_file(file, size)[:1].release()
        gc.collect()
        return len(gc.get_objects())

    work()
    assert abs(work() - work()) < 50


def test_an_empty_file_can_be_mapped(file):
    assert system.map_file(file, 0).nbytes == 0
    assert system.map_file(file, 0).readonly
    assert not system.map_file(file, 0, writable=True).readonly


def test_a_map_longer_than_its_file_is_refused(file):
    os.ftruncate(file, 10)
    with pytest.raises(ValueError, match=r"size|short"):
        system.map_file(file, 11)


def test_a_map_without_a_file_is_refused_and_leaves_nothing(tmp_path):
    fd = os.open(tmp_path / "x", os.O_WRONLY | os.O_CREAT)
    os.ftruncate(fd, 10)
    with pytest.raises(PermissionError):
        system.map_file(fd, 10)
    os.close(fd)


def test_shared_words_are_seen_through_every_map_and_the_file(file):
    os.ftruncate(file, 64)
    one, two = (system.map_shared_words(file, 64) for _ in range(2))
    one[7] = 2**64 - 1
    assert two[7] == 2**64 - 1
    assert system.read_all(file, 56, 8) == b"\xff" * 8
    assert len(one) == 8


def test_address_is_where_the_bytes_are():
    data = memoryview(bytearray(100))
    assert system.address(data[10:]) - system.address(data) == 10
    assert system.address(data.toreadonly()) == system.address(data)


# memory


def test_touched_memory_shows_as_anonymous_and_mapped_files_as_mapped(tmp_path):
    size = 64 << 20
    anonymous, mapped = system.real_memory()
    # Not from the allocator, which may have as much lying free from earlier tests.
    block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    block.write(b"x" * size)
    more, _ = system.real_memory()
    assert more - anonymous > size * 0.8
    (tmp_path / "file").write_bytes(block[:])
    fd = os.open(tmp_path / "file", os.O_RDONLY)
    view = system.map_file(fd, size)
    os.close(fd)
    assert bytes(view[:: mmap.PAGESIZE])[:3] == b"xxx"
    assert system.real_memory()[1] - mapped > size * 0.8


def test_real_memory_works_without_proc(monkeypatch):
    def refuse(*args, **kwargs):
        raise FileNotFoundError

    monkeypatch.setattr("builtins.open", refuse)
    monkeypatch.setitem(sys.modules, "psutil", None)
    anonymous, mapped = system.real_memory()
    assert anonymous > 1 << 20
    assert mapped == 0


def test_the_memory_limit_is_the_least_of_all(monkeypatch):
    monkeypatch.setattr(memory, "_physical", lambda: 100)
    monkeypatch.setattr(memory, "_cgroup_limits", lambda: [70, 80])
    monkeypatch.setattr(memory, "_address_space", lambda: [90])
    assert system.memory_limit() == 70


def test_limits_of_all_control_groups_above_are_found(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "memory" / "job").mkdir(parents=True)
    (tmp_path / "a" / "memory.max").write_text("5000\n")
    (tmp_path / "a" / "b" / "memory.max").write_text("max\n")
    (tmp_path / "memory" / "job" / "memory.limit_in_bytes").write_text("7000\n")
    membership = tmp_path / "cgroup"
    membership.write_text("4:cpu,memory:/job\n3:cpu:/x\n0::/a/b\n")
    found = memory._cgroup_limits(str(membership), str(tmp_path))
    assert sorted(found) == [5000, 7000]
    assert memory._cgroup_limits(str(tmp_path / "missing"), str(tmp_path)) == []


def test_giving_back_memory_is_never_an_error():
    system.give_back_memory()


# file systems and permissions


def test_the_mount_with_the_longest_point_decides():
    lines = [
        b"1 0 8:1 / / rw - ext4 /dev/a rw",
        b"2 1 0:5 / /home rw shared:1 - NFS4 server:/x rw",
        b"3 1 0:6 / /with\\040blank rw - tmpfs none rw",
        b"4 1 0:7 / /home rw - fuse.sshfs x rw",
    ]
    assert places._mounted(lines, b"/etc") == "ext4"
    assert places._mounted(lines, b"/homes/x") == "ext4"
    assert places._mounted(lines, b"/with blank/x") == "tmpfs"
    assert places._mounted(lines, b"/home/x") == "fuse.sshfs"
    assert places._mounted(lines[:2], b"/home") == "nfs4"


@pytest.mark.skipif(not os.path.exists("/proc/self/mountinfo"), reason="needs Linux")
def test_the_file_system_of_proc_is_proc():
    assert system.filesystem("/proc/self") == "proc"
    assert system.filesystem("/") not in ("", "proc")


def status(mode, uid=None, gid=None):
    return SimpleNamespace(
        st_mode=mode,
        st_uid=os.geteuid() if uid is None else uid,
        st_gid=os.getegid() if gid is None else gid,
    )


@posix
def test_private_means_that_nobody_else_can_write():
    assert system.is_private(status(0o600))
    assert system.is_private(status(0o755))
    assert system.is_private(status(0o644, uid=0))
    assert not system.is_private(status(0o600, uid=54321))
    assert not system.is_private(status(0o602))
    assert not system.is_private(status(stat.S_ISVTX | 0o777))
    assert not system.is_private(status(0o620, gid=54321))


@posix
def test_a_private_group_counts_as_its_user(monkeypatch):
    import grp
    import pwd

    groups = {
        7: ("me", []),
        8: ("me", ["me", "you"]),
        9: ("staff", []),
        10: ("me", ["me"]),
    }

    def getgrgid(gid):
        name, members = groups[gid]
        return SimpleNamespace(gr_name=name, gr_mem=members)

    monkeypatch.setattr(grp, "getgrgid", getgrgid)
    monkeypatch.setattr(pwd, "getpwuid", lambda uid: SimpleNamespace(pw_name="me"))
    places._is_private_group.cache_clear()
    answers = {
        gid: system.is_private(status(0o660, gid=gid)) for gid in (7, 8, 9, 10, 11)
    }
    places._is_private_group.cache_clear()
    assert answers == {7: True, 8: False, 9: False, 10: True, 11: False}


# helper thread


def test_two_calls_run_at_the_same_time():
    meeting = threading.Barrier(2, timeout=30)
    wait = system.run_beside(meeting.wait)
    meeting.wait()
    assert wait() in (0, 1)


def test_an_exception_comes_out_where_it_is_waited_for():
    wait = system.run_beside(int, "x")
    with pytest.raises(ValueError, match="invalid literal"):
        wait()
    assert system.run_beside(int, "7")() == 7


def test_helpers_are_used_again():
    before = threading.active_count()
    for _ in range(100):
        system.run_beside(int)()
    assert threading.active_count() <= before + threads.MOST_IDLE + 1


def test_a_helper_that_is_chosen_while_it_gives_up_still_serves(monkeypatch):
    class LateQueue:
        """Its first wait ends without a task, though one is on the way."""

        waits = 0

        def get(self, timeout):
            self.waits += 1
            if self.waits == 1:
                raise threads.Empty
            return task

    monkeypatch.setattr(threads, "_idle", [])
    monkeypatch.setattr(threads, "MOST_IDLE", 0)
    task = threads._Task(threading.get_ident)
    threads._help(LateQueue())
    assert task.wait() == threading.get_ident()


def test_helpers_end_when_nothing_comes(monkeypatch):
    monkeypatch.setattr(threads, "PATIENCE", 0)
    queue = threads.SimpleQueue()
    monkeypatch.setattr(threads, "_idle", [queue])
    threads._help(queue)
    assert threads._idle == []


def test_many_calls_at_once_all_end():
    waits = [system.run_beside(pow, number, 2) for number in range(50)]
    assert [wait() for wait in waits] == [number**2 for number in range(50)]


def test_without_threads_the_call_runs_at_once(monkeypatch):
    def refuse(self):
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threads, "_idle", [])
    monkeypatch.setattr(threading.Thread, "start", refuse)
    assert system.run_beside(threading.get_ident)() == threading.get_ident()


def test_while_the_interpreter_shuts_down_the_call_runs_at_once(monkeypatch):
    monkeypatch.setattr(sys, "is_finalizing", lambda: True)
    assert system.run_beside(threading.get_ident)() == threading.get_ident()


@posix
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_forked_child_makes_its_own_helpers():
    system.run_beside(int)()
    pid = os.fork()
    if pid == 0:
        answer = 1
        try:
            answer = 0 if system.run_beside(int, "5")() == 5 else 2
        finally:
            os._exit(answer)
    assert os.waitpid(pid, 0) == (pid, 0)


def test_pages_of_a_private_map_are_untouched_until_they_are_written_to(tmp_path):
    path = tmp_path / "x"
    path.write_bytes(bytes(1 << 20))
    fd = os.open(path, os.O_RDONLY)
    view = system.map_file(fd, 1 << 20, writable=True)
    os.close(fd)
    place = system.address(view)
    assert bytes(view) == bytes(1 << 20)
    assert system.untouched(place, 1 << 20)

    view[500_000] = 1

    assert not system.untouched(place, 1 << 20)
    assert not system.untouched(place + 500_000, 1)
    assert system.untouched(place, 400_000)
    assert system.untouched(place + 600_000, 400_000)


def test_no_page_is_untouched_where_the_system_does_not_tell(tmp_path, monkeypatch):
    monkeypatch.setattr("chest.system.maps.PAGES", str(tmp_path / "none"))

    assert not system.untouched(0, 1)
