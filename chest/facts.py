"""What a chest tells about itself: plain values, no behaviour.

Owns: the words of `Chest.stats`, `Chest.entry` and `Chest.verify`. Does not own: how they
are counted or shown.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from typing import Any

__all__ = ["KeyFacts", "Problem", "Recovered", "Stats"]


@dataclasses.dataclass(frozen=True, slots=True)
class Stats:
    """Counts since the chest was opened, and its present state.

    Attributes
    ----------
    keys, in_memory, dirty : int
        Keys in all, with their value in memory, and with a value that is newer than what
        was published.
    memory_usage, available_memory : float
        Bytes in memory, and the budget.
    stored_nbytes, available_disk : float
        Bytes of the values on disk, dead ones in packs included, and their budget
        (infinite where none was given).
    hits, misses : int
        Values asked for and found in memory, or read from disk.
    spills : int
        Values that left memory because it was full.
    writes, written_nbytes, loads, loaded_nbytes : int
        Values written and read, and their bytes on disk. A mapped value counts with all
        of its bytes, though only those that are touched are read.
    saved : float
        Seconds that memoized functions did not have to compute.
    compression : float
        Bytes before compression over those after, of the pickles that were written
        compressed since the chest was opened; 1.0: none was.
    """

    keys: int
    in_memory: int
    dirty: int
    memory_usage: int
    available_memory: float
    stored_nbytes: int
    available_disk: float
    hits: int
    misses: int
    spills: int
    writes: int
    written_nbytes: int
    loads: int
    loaded_nbytes: int
    saved: float = 0.0
    compression: float = 1.0

    def as_dict(self) -> dict[str, Any]:
        """The same as a dict, for JSON."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, slots=True)
class KeyFacts:
    """What the chest knows of one key, without loading its value.

    Attributes
    ----------
    key : object
    path : str
        The value's file, the pack that it shares, or the file it will get.
    name : str
        The same, relative to the chest's folder.
    format : str
        Who reads it: ``"pickle"``, ``"pickle+zstd"`` or ``"pickle+lz4"`` (compressed),
        ``"data"``, ``"zarr"`` or ``"custom"``.
    nbytes : int
        Bytes in memory, when it is there or was last written; 0: not known, of a value
        that lies in a pack only.
    stored_nbytes : int
        Bytes on disk, of a small value those of its pickle; 0 as long as nothing was
        published.
    generation : int
        Grows with each publication; 0 as long as nothing was published, and in a store
        of objects.
    birth : int
        Orders the keys.
    in_memory, dirty : bool
        The value is in memory; it is newer than what was published.
    etag : str
        The object's, in a store of objects; empty as long as nothing was published.
    """

    key: Hashable
    path: str
    name: str
    format: str
    nbytes: int
    stored_nbytes: int
    generation: int
    birth: int
    in_memory: bool
    dirty: bool
    etag: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """One thing that `Chest.verify` found wrong.

    Attributes
    ----------
    key : object
        Whose value it is.
    path : str
        The file.
    message : str
        What is wrong, and what to do.
    """

    key: Hashable
    path: str
    message: str


@dataclasses.dataclass(slots=True)
class Recovered:
    """What `chest.recover` found, and what it could not tell.

    Attributes
    ----------
    keys : int
        Keys that the chest has now.
    told : int
        Of them, those that the checkpoint or whole records of the log speak of.
    uncertain : list of key
        Those that only a file or a pack speaks of: they may have been deleted, or have
        had a newer value that is lost.
    problems : list of Problem
        Values that were known and are damaged (these keys stay, and raise when they are
        read) or gone (these do not), and what could not be made use of; there the key
        is ``None``.
    records : int
        Damaged records of the log.
    kept : str
        Where the old manifest is now; empty: there was none, or it was whole and nothing
        was changed.
    """

    keys: int = 0
    told: int = 0
    uncertain: list[Any] = dataclasses.field(default_factory=list)
    problems: list[Problem] = dataclasses.field(default_factory=list)
    records: int = 0
    kept: str = ""
