"""What kind of place a path is: which file system, and who can write there.

Owns: reading mounts, mode bits and groups.
Does not own: what is refused for it.
"""

from __future__ import annotations

import functools
import os
import stat
import sys

__all__ = ["boot", "filesystem", "is_private", "keeps_room", "network"]

COPY_ON_WRITE = frozenset(("bcachefs", "btrfs", "zfs"))

# Of these, several hosts can have one mounted; what one maps or locks (a folder above
# all) the others need not see. A FUSE file system may be anything.
NETWORK = frozenset(
    {
        "9p",
        "afs",
        "beegfs",
        "ceph",
        "cifs",
        "fuse",
        "gpfs",
        "lustre",
        "nfs",
        "nfs4",
        "orangefs",
        "panfs",
        "pvfs2",
        "smb2",
        "smb3",
        "smbfs",
        "vboxsf",
        "virtiofs",
    }
)


def filesystem(path: str) -> str:
    """The type of the file system *path* is on: ``"ext4"``, ``"nfs4"`` and so on.

    Returns
    -------
    str
        Lower case; empty where the system does not tell. Costs about 100 µs.
    """
    try:
        with open("/proc/self/mountinfo", "rb") as file:
            lines = file.read().splitlines()
    except OSError:
        return ""
    return _mounted(lines, os.fsencode(os.path.realpath(path)))


def keeps_room(path: str) -> bool:
    """Whether room that a file has on the disk serves each time it is written to.

    Not where what is changed is written elsewhere, as on btrfs and ZFS: there
    ``os.posix_fallocate`` promises nothing. Costs as `filesystem`.
    """
    return filesystem(path) not in COPY_ON_WRITE


def network(path: str, st: os.stat_result) -> str:
    """The type of the network file system *path* is on; empty on a local one.

    Parameters
    ----------
    path : str
    st : os.stat_result
        Of what is there. A file system with a block device is not looked up.
    """
    if not hasattr(os, "major") or os.major(st.st_dev):
        return ""
    kind = filesystem(path)
    return kind if kind in NETWORK or kind.startswith("fuse.") else ""


def _mounted(lines: list[bytes], path: bytes) -> str:
    """The type of the mount with the longest mount point above *path*."""
    longest, kind = -1, ""
    for line in lines:
        left, _, right = line.partition(b" - ")
        point = left.split(b" ")[4]
        for code in (b"\\040", b"\\011", b"\\012", b"\\134"):
            point = point.replace(code, bytes([int(code[1:], 8)]))
        inside = path == point or path.startswith(point.rstrip(b"/") + b"/")
        # A later mount on the same point hides the earlier one.
        if inside and len(point) >= longest:
            longest, kind = len(point), right.split(b" ")[0].decode("ascii", "replace")
    return kind.lower()


def is_private(st: os.stat_result) -> bool:
    """Whether only this user and root can write to a file or folder.

    It belongs to one of the two, and others have no write permission (a sticky bit does
    not help: they could still add names). A group may write if it is the private group
    of one of the two: named like the user and without other members.

    Parameters
    ----------
    st : os.stat_result
        Best from ``os.fstat`` of what was opened, so that it is not another file.

    Returns
    -------
    bool
        On Windows always True: its permissions are not in the mode bits.
    """
    if sys.platform == "win32":
        return True
    if st.st_uid not in (os.geteuid(), 0) or st.st_mode & stat.S_IWOTH:
        return False
    if not st.st_mode & stat.S_IWGRP:
        return True
    return _is_private_group(st.st_gid, os.geteuid())


@functools.lru_cache(maxsize=64)
def _is_private_group(gid: int, uid: int) -> bool:
    """Whether the group is that of this user, or of root, alone."""
    import grp
    import pwd

    try:
        group = grp.getgrgid(gid)
        owners = {pwd.getpwuid(number).pw_name for number in {uid, 0}}
    except KeyError:
        return False  # nobody knows who is in it
    return group.gr_name in owners and owners.issuperset(group.gr_mem)


def boot() -> int:
    """Which start of the machine this is: another number after the next one.

    Returns
    -------
    int
        Less than 2⁶⁴; 0 where the system does not tell.
    """
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return int(file.read().replace("-", "")[:16], 16)
    except (OSError, ValueError):
        return 0
