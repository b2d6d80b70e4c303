"""The user's own ``dump`` and ``load``.

Owns: calling them with an open file, as chest 1.x does.
Does not own: what they write. The file has no footer: its size and checksum are in
the manifest's entry.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import xxhash

from chest.errors import DecodingError, EncodingError, short
from chest.protocols import Receipt

if TYPE_CHECKING:
    from collections.abc import Callable

    from chest.protocols import Sink, Source

__all__ = ["Custom"]

CHUNK = 1 << 20  # bytes read back at a time


class Custom:
    """Values in the user's own file format.

    Parameters
    ----------
    dump : callable
        ``dump(value, file)`` writes a value to an open file.
    load : callable
        ``load(file)`` reads it back.
    mode : {'b', 't', ''}
        Binary or text.
    open : callable
        ``open(path, mode)`` gives the file, a context manager: `gzip.open`, say.

    Examples
    --------
    >>> import json
    >>> Custom(json.dump, json.load, "t", open).name
    'custom'
    """

    name = "custom"

    def __init__(
        self,
        dump: Callable[[Any, Any], object],
        load: Callable[[Any], object],
        mode: str,
        open: Callable[[str, str], Any],
    ) -> None:
        self._dump = dump
        self._load = load
        self._mode = mode
        self._open = open

    def dump(self, value: object, sink: Sink, *, key: str, file_id: str) -> Receipt:
        """Let the user's function write the file at ``sink.path``.

        Returns
        -------
        Receipt
            The digest is that of the file, which is read back for it.

        Raises
        ------
        EncodingError
            The user's function raised; the cause is attached.
        OSError
            The file could not be written.
        """
        del file_id  # there is no room for it in a file of the user's making
        try:
            with self._open(sink.path, "w" + self._mode) as file:
                self._dump(value, file)
        except (OSError, MemoryError):
            raise
        except Exception as error:  # the user's function may raise anything
            message = (
                f"the value of key {key}, a {type(value).__qualname__}, was refused by "
                f"dump: {type(error).__name__}: {error}. It was not stored."
            )
            raise EncodingError(message, key=key, path=sink.path) from error
        return Receipt(_hash_file(sink.path))

    def digest(self, value: object) -> str | None:
        """The digest of what the user's function writes to a file in memory.

        Returns
        -------
        str or None
            ``None``: it does not accept such a file, or ``open`` does more to the bytes
            than Python's own.
        """
        if self._open is not open:
            return None
        raw = io.BytesIO()
        file = raw if "b" in self._mode else io.TextIOWrapper(raw)
        try:
            self._dump(value, file)
            file.flush()
            return xxhash.xxh3_128_hexdigest(raw.getbuffer())
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001
            return None

    def load(self, source: Source, *, file_id: str | None, full: bool) -> object:
        """Let the user's function read the file at ``source.path``.

        Raises
        ------
        DecodingError
            The user's function raised; the cause is attached.
        OSError
            The file could not be read.
        """
        del file_id, full  # the manifest's entry has the checksum of the file
        try:
            with self._open(source.path, "r" + self._mode) as file:
                return self._load(file)
        except (OSError, MemoryError):
            raise
        except Exception as error:  # the user's function may raise anything
            message = (
                f"the value of key {short(source.key)} could not be read by load: "
                f"{type(error).__name__}: {error} ({source.path})"
            )
            raise DecodingError(message, key=source.key, path=source.path) from error

    def check(self, source: Source, *, file_id: str | None) -> None:
        """Nothing: the file has no checksum of its own, the manifest's entry has one."""


def _hash_file(path: str) -> str:
    """The digest of a file's bytes."""
    hasher = xxhash.xxh3_128()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK):
            hasher.update(chunk)
    return hasher.hexdigest()
