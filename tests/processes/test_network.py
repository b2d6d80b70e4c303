"""Network file systems: read instead of mapped, locked by a file, one host at a time.

A folder of a memory file system stands for one; that it is one is said by a fixture. The
tests at the foot (``-m root``) use a real one: bindfs, a FUSE file system that shows one
folder as another.
"""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from chest import Chest, DurableQueue, errors, system
from chest.log import Polled
from chest.system import hosts, locks, places
from tests.processes.helpers import ROOT, forked


@pytest.fixture
def remote(monkeypatch, chest_dir):
    """A folder that is taken to be on NFS."""
    monkeypatch.setattr(system, "network", lambda path, st: "nfs4")
    return chest_dir


def status(device: int) -> os.stat_result:
    return os.stat_result((stat.S_IFDIR | 0o700, 1, device, 1, 0, 0, 0, 0, 0, 0))


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        *((kind, kind) for kind in ("nfs", "nfs4", "cifs", "smb3", "lustre", "beegfs")),
        *((kind, kind) for kind in ("gpfs", "ceph", "9p", "fuse", "fuse.sshfs")),
        *((kind, "") for kind in ("tmpfs", "btrfs", "overlay", "zfs", "fuseblk", "")),
    ],
)
def test_network_file_systems_are_told_by_their_type(monkeypatch, kind, expected):
    monkeypatch.setattr(places, "filesystem", lambda path: kind)

    assert system.network("/x", status(os.makedev(0, 50))) == expected


def test_a_disk_is_not_looked_up(monkeypatch):
    monkeypatch.setattr(places, "filesystem", None)

    assert system.network("/x", status(os.makedev(254, 0))) == ""


def test_chests_see_each_other_without_a_map(remote):
    with Chest(remote, publish="each") as c, Chest(remote, publish="each") as other:
        assert isinstance(c._manifest.word, Polled)
        c["x"] = 1
        assert other["x"] == 1
        other["x"] = 2
        assert c["x"] == 2
        other.compact()
        other["y"] = 3
        assert dict(c) == {"x": 2, "y": 3}
        with Chest(remote, readonly=True) as reader:
            del c["x"]
            assert list(reader) == ["y"]


def test_dropping_leaves_nothing_and_tells_the_others(remote):
    theirs = Chest(remote)
    theirs["x"] = 1
    theirs.sync()

    Chest(remote).drop()

    assert not remote.exists()
    with pytest.raises(errors.DroppedError):
        len(theirs)
    theirs.__del__()


def test_counters_are_exact_between_processes(remote):
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=count, args=(remote,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        process.close()

    with Chest(remote) as c:
        assert c["n"] == 200


def count(path: Path) -> None:
    with Chest(path) as c:
        for number in range(100):
            c.incr("n")
            if number % 40 == 0:
                c.compact()


def test_a_forked_child_has_a_lock_of_its_own(remote):
    with Chest(remote, timeout=0.01) as c:
        c.incr("n")

        def wait_in_vain() -> None:
            for ask in (lambda: c.incr("n"), lambda: Chest(remote, timeout=0.01)):
                with pytest.raises(errors.LockTimeout):
                    ask()

        with c._spill.exclusive():
            assert forked(wait_in_vain) == 0
        assert forked(lambda: c.incr("n")) == 0
        assert c["n"] == 2


def test_a_second_host_is_told_who_has_it_open(remote, monkeypatch):
    with Chest(remote, publish="each") as c:
        c["x"] = 1
        monkeypatch.setattr(hosts, "this_host", lambda: "elsewhere 1")
        with pytest.raises(errors.StoreError, match="one host at a time") as caught:
            Chest(remote)
        assert caught.value.errno == errno.EBUSY
        with Chest(remote, readonly=True) as reader:
            assert reader["x"] == 1
        c["x"] = 2

    with Chest(remote) as c:
        assert c["x"] == 2
    assert (remote / ".host").read_text() == "elsewhere 1"


def test_two_processes_of_one_host_are_let_in(remote):
    with Chest(remote), Chest(remote) as c:
        assert forked(lambda: c.set("x", 1)) == 0


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_an_error_with_a_way_out(
    remote, monkeypatch, number
):
    def refuse(fd, operation):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(locks, "flock", refuse)

    with pytest.raises(errors.StoreError, match="option flock"):
        Chest(remote)
    assert os.listdir(remote) == [".lock"]


@pytest.fixture
def fuse(tmp_path: Path) -> Iterator[Path]:
    if shutil.which("bindfs") is None:
        pytest.skip("bindfs is not installed")
    shown = tmp_path / "shown"
    for folder in (tmp_path / "real", shown):
        folder.mkdir(mode=0o700)
    subprocess.run(["bindfs", tmp_path / "real", shown], check=True)
    try:
        yield shown / "chest"
    finally:
        subprocess.run(["umount", shown], check=True)


@pytest.mark.root
def test_a_fuse_file_system_is_told_by_its_mount(fuse: Path) -> None:
    with Chest(fuse, publish="each") as c, Chest(fuse, publish="each") as other:
        assert c._spill.store.home.network == "fuse"
        assert isinstance(c._manifest.word, Polled)
        c["x"] = 1
        assert other["x"] == 1
        other.compact()
        other["y"] = 3
        assert dict(c) == {"x": 1, "y": 3}
        c.set_many({number: bytes(100) for number in range(1000)})
        assert len(other) == 1002
        assert other.verify() == []
    with pytest.raises(errors.StoreError, match="network file system"):
        DurableQueue(fuse)


@pytest.mark.root
def test_counters_are_exact_on_fuse(fuse: Path) -> None:
    test_counters_are_exact_between_processes(fuse)


@pytest.mark.root
def test_dropping_leaves_nothing_on_fuse(fuse: Path) -> None:
    c = Chest(fuse)
    c.set_many({number: bytes(100) for number in range(1000)})
    c.drop()
    assert not fuse.exists()


@pytest.mark.root
def test_a_second_host_is_refused_on_fuse_until_the_first_is_killed(fuse: Path) -> None:
    """A name of its own makes a host; the lock is the kernel's, so this one knows both."""
    elsewhere = (
        "import socket, sys, chest; socket.sethostname('elsewhere')\n"
        "c = chest.Chest(sys.argv[1]); c.incr('n')\n"
        "print(flush=True); sys.stdin.read()"
    )
    first = subprocess.Popen(
        ["unshare", "--uts", sys.executable, "-c", elsewhere, fuse],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        cwd=ROOT,
    )
    with first:
        first.stdout.readline()
        with pytest.raises(errors.StoreError, match="elsewhere has it open"):
            Chest(fuse)
        with Chest(fuse, readonly=True) as reader:
            assert reader["n"] == 1
        first.kill()
    with Chest(fuse) as c:
        assert c.incr("n") == 2
