"""The classes of the projects that chest grew from, under their own names.

Owns: the names, so that a program of theirs runs with its import line changed.
Does not own: any behaviour; each class is a thin layer upon `chest.Chest`.

Examples
--------
>>> import chest.seeds as iodict
>>> with iodict.IODict(path="store") as data:
...     data["key"] = "value"
...     data
{'key': 'value'}
"""

from __future__ import annotations

from chest.queues.durable import DurableQueue
from chest.queues.flushing import FlushQueue
from chest.seeds.datastore import DataStore, get_instance
from chest.seeds.iodict import IODict
from chest.seeds.leakdb import (
    DefaultStorage,
    PersistentQueueStorage,
    PersistentStorage,
    QueueStorage,
    UnprocessedError,
)
from chest.seeds.persidict import FileDirDict, S3Dict

__all__ = [
    "DataStore",
    "DefaultStorage",
    "DurableQueue",
    "FileDirDict",
    "FlushQueue",
    "IODict",
    "PersistentQueueStorage",
    "PersistentStorage",
    "QueueStorage",
    "S3Dict",
    "UnprocessedError",
    "get_instance",
]
