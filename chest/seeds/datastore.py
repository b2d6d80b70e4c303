"""The data store of key-value-ds: JSON objects, for one process at a time.

Owns: what may be stored, and the lock that keeps a second process out. Does not own: how
values are kept, or when they end.
"""

from __future__ import annotations

import json
import operator
import os
import tempfile
import uuid
import weakref
from collections.abc import Iterator
from typing import IO, Any, Self

from chest import system
from chest.core import Chest
from chest.errors import short

__all__ = ["DataStore", "get_instance"]

MOST_CHARACTERS = 32
MOST_BYTES = 16 * 1024
LOCK = ".one-process"  # in the chest's folder; no key's file begins with a dot


def get_instance(
    path: str | os.PathLike[str] | None = None,
    *,
    max_key_len: int = MOST_CHARACTERS,
    max_value_size: int = MOST_BYTES,
) -> DataStore:
    """Open a store of JSON objects that no other process can have open.

    Parameters
    ----------
    path : str or PathLike, optional
        The folder; made where there is none. None: a new one with a unique name in the
        folder for temporary files, which is kept; the store's ``path`` tells which.
    max_key_len : int
        Characters that a key may have.
    max_value_size : int
        Bytes that a value may have as JSON text, in UTF-8 and without spaces.

    Returns
    -------
    DataStore

    Raises
    ------
    BlockingIOError
        It is open already, here or in another process.

    Examples
    --------
    >>> store = get_instance("objects")
    >>> store.create("test_key", {"value": 1}, ttl=5)
    >>> store.get("test_key")
    {'value': 1}
    >>> store.delete("test_key")
    >>> store.close()
    """
    if path is None:
        path = os.path.join(tempfile.gettempdir(), f"LOCAL_STORAGE_{uuid.uuid4()}")
    return DataStore(path, max_key_len, max_value_size)


class DataStore:
    """JSON objects under short keys; made by `get_instance`, which says what is what.

    Every change is published when its method returns. Methods may be called from any
    thread. Each value is a file of JSON text.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        max_key_len: int = MOST_CHARACTERS,
        max_value_size: int = MOST_BYTES,
    ) -> None:
        self.max_key_len, self.max_value_size = max_key_len, max_value_size
        self._pid = os.getpid()
        self._chest = Chest(path=path, dump=_dump, load=_load, publish="each")
        self.path = self._chest.path
        try:
            self._fd = _lock(self.path)
        except BaseException:
            self._chest.close()
            raise
        # A program that never closes it gives the lock back as well.
        self._release = weakref.finalize(self, system.close, self._fd)

    def create(self, key: str, value: dict[str, Any], ttl: int | None = None) -> None:
        """Store an object under a new key.

        Parameters
        ----------
        key : str
        value : dict
            What JSON can hold: it comes back equal.
        ttl : int, optional
            Seconds after which it counts as absent.

        Raises
        ------
        ValueError
            The key is there, or something is not as it must be; nothing was stored.
        """
        if not self._there().add(*self._checked(key, value), ttl=_seconds(ttl)):
            msg = f"{short(key)} is there already: delete it first, or use replace"
            raise ValueError(msg)

    def replace(self, key: str, value: dict[str, Any], ttl: int | None = None) -> None:
        """Store another object under a key that is there; see `create`.

        Without *ttl* it has no end any more.

        Raises
        ------
        ValueError
            The key is not there, or something is not as it must be; nothing was stored.
        """
        chest = self._there()
        key, data = self._checked(key, value)
        seconds = _seconds(ttl)
        with chest.lock:  # there are no other processes
            if key not in chest:
                raise ValueError(_absent(key))
            chest.set(key, data, ttl=seconds)

    def get(self, key: str) -> Any:
        """The object under *key*: a copy of one's own.

        Raises
        ------
        ValueError
            There is none, or its time is over.
        """
        try:
            return json.loads(self._there()[key])
        except KeyError:
            raise ValueError(_absent(key)) from None

    __getitem__ = get

    def delete(self, key: str) -> None:
        """Remove *key*; nothing happens when it is not there."""
        self._there().pop(key, None)

    def delete_all(self) -> None:
        """Remove all keys, at once."""
        self._there().clear()

    def flush(self) -> None:
        """Empty the memory; there is nothing to write that is not written."""
        self._there().flush()

    def __contains__(self, key: object) -> bool:
        return key in self._there()

    def __iter__(self) -> Iterator[str]:
        """The keys, the oldest first."""
        return iter(self._there())

    def __len__(self) -> int:
        return len(self._there())

    def __repr__(self) -> str:
        return f"<{type(self).__name__} at {self.path}>"

    def close(self) -> None:
        """Let others open it. Safe to call twice."""
        self._chest.close()
        if self._release.alive and self._pid == os.getpid():
            # A forked child shares the lock: closing would leave it locked.
            system.unlock(self._fd)
        self._release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """`close`."""
        self.close()

    def _there(self) -> Chest:
        """The chest, in the process that opened it."""
        if self._pid != os.getpid():
            msg = f"{self.path} was opened by process {self._pid}, and this is a child"
            raise BlockingIOError(msg)
        return self._chest

    def _checked(self, key: object, value: object) -> tuple[str, bytes]:
        """Key and JSON text, if they are as they must be."""
        if not isinstance(key, str) or len(key) > self.max_key_len:
            msg = (
                f"{short(key)}: a key is a str of {self.max_key_len} characters at most"
            )
            raise ValueError(msg)
        if not isinstance(value, dict):
            msg = f"the value of {short(key)} is no dict, so it is no JSON object"
            raise ValueError(msg)
        try:
            text = json.dumps(
                value, ensure_ascii=False, allow_nan=False, separators=(",", ":")
            )
            data = text.encode()
        except (TypeError, ValueError, RecursionError) as error:
            msg = f"the value of {short(key)} cannot be written as JSON: {error}"
            raise ValueError(msg) from error
        if len(data) > self.max_value_size:
            msg = (
                f"the value of {short(key)} takes {len(data)} bytes as JSON; "
                f"{self.max_value_size} are allowed"
            )
            raise ValueError(msg)
        if json.loads(data) != value:
            msg = (
                f"the value of {short(key)} would come back changed: JSON has only "
                "strings as keys, and no tuples"
            )
            raise ValueError(msg)
        return key, data


def _lock(folder: str) -> int:
    """A descriptor that holds the store's lock."""
    safe = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    fd = os.open(os.path.join(folder, LOCK), os.O_RDWR | os.O_CREAT | safe, 0o600)
    try:
        if not system.try_lock(fd):
            msg = f"{folder} is locked already, by {system.holder(fd)}"
            raise BlockingIOError(msg)
    except BaseException:
        system.close(fd)
        raise
    return fd


def _seconds(ttl: Any) -> float | None:
    if ttl is None:
        return None
    try:
        return float(operator.index(ttl))
    except TypeError:
        msg = f"ttl={ttl!r}: an integer is needed, of seconds"
        raise ValueError(msg) from None


def _absent(key: object) -> str:
    return f"{short(key)} is not in the store, or its time is over"


def _dump(data: bytes, file: IO[bytes]) -> None:
    """Write JSON text."""
    file.write(data)


def _load(file: IO[bytes]) -> bytes:
    """Read JSON text."""
    return file.read()
