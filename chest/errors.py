"""The exception tree.

Every error chest raises on purpose is a :class:`ChestError`, carries the
``key`` and the ``path`` it speaks of, and is at the same time the builtin a
``dict`` user would expect to catch. A missing key is a plain ``KeyError``.

::

    ChestError
    ├── KeyEncodingError     (TypeError)        a key that cannot be stored
    ├── EncodingError        (TypeError)        a value that cannot be stored
    ├── FingerprintError     (TypeError)        an argument of no lasting fingerprint
    ├── DecodingError        (ValueError)       a stored value that cannot be read back
    ├── UntrustedError       (PermissionError)  a pickle somebody else could have written
    ├── CorruptError         (ValueError)
    │   ├── CorruptValueError                   a value's file is damaged or missing
    │   ├── CorruptChestError                   the manifest is damaged
    │   └── SignatureError                      a signature is missing or wrong
    ├── VersionError         (ValueError)       written by a newer chest
    ├── ClosedError          (ValueError)       used after ``close()``
    ├── DroppedError         (FileNotFoundError) somebody removed the chest
    ├── ReadOnlyError        (PermissionError)  written to with ``readonly=True``
    ├── ReentryError         (RuntimeError)     changed amid a change of the same thread
    ├── StoreError           (OSError)          the disk refused: full, no permission, …
    ├── LockTimeout          (TimeoutError)     somebody else holds the lock
    ├── UnsupportedError     (NotImplementedError) this place or store cannot do it
    └── MissingDependency    (ImportError)      an extra is not installed
"""

from __future__ import annotations

import os

__all__ = [
    "ChestError",
    "ClosedError",
    "CorruptChestError",
    "CorruptError",
    "CorruptValueError",
    "DecodingError",
    "DroppedError",
    "EncodingError",
    "FingerprintError",
    "KeyEncodingError",
    "LockTimeout",
    "MissingDependency",
    "ReadOnlyError",
    "ReentryError",
    "SignatureError",
    "SpillWarning",
    "StoreError",
    "UnsupportedError",
    "UntrustedError",
    "VersionError",
    "short",
]

LONGEST_SHOWN = 80  # characters of a key's repr in a message


def short(key: object) -> str:
    """``repr(key)`` cut to a length that fits a message.

    Examples
    --------
    >>> short("x")
    "'x'"
    >>> len(short("x" * 1000))
    80
    """
    text = repr(key)
    if len(text) <= LONGEST_SHOWN:
        return text
    return text[: LONGEST_SHOWN - 1] + "…"


class ChestError(Exception):
    """The root of all errors that chest raises on purpose.

    Parameters
    ----------
    message : str
        What happened, where, and what to do about it.
    key : object, optional
        The key it happened to.
    path : str or PathLike, optional
        The file or folder it happened to.
    """

    key: object
    path: str | None

    def __init__(
        self,
        message: str,
        *,
        key: object = None,
        path: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__(message)
        self.key = key
        self.path = None if path is None else os.fspath(path)

    def __str__(self) -> str:
        # OSError has a __str__ of its own that would hide the message.
        return str(self.args[0]) if self.args else ""

    def __reduce__(self) -> tuple[object, ...]:
        # Errors travel between processes; keyword arguments need help.
        return _rebuild, (type(self), self.args, self.__dict__)


def _rebuild(
    kind: type[ChestError], args: tuple[object, ...], state: dict[str, object]
) -> ChestError:
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


class KeyEncodingError(ChestError, TypeError):
    """The key cannot be written down: it cannot be pickled."""


class EncodingError(ChestError, TypeError):
    """The value cannot be stored; it stays in memory, nothing was published."""


class FingerprintError(ChestError, TypeError):
    """Another process could not find a value's fingerprint again; nothing was called."""


class DecodingError(ChestError, ValueError):
    """The stored bytes are whole, but could not be made into a value here."""


class UntrustedError(ChestError, PermissionError):
    """Reading would have run a pickle that somebody else could have written."""


class CorruptError(ChestError, ValueError):
    """Stored bytes are not what was written."""


class CorruptValueError(CorruptError):
    """A value's file is damaged, cut short, missing or another key's."""


class CorruptChestError(CorruptError):
    """The manifest is damaged; it is never taken for an empty chest."""


class SignatureError(CorruptError):
    """A signature is missing or does not fit the key that was given."""


class VersionError(ChestError, ValueError):
    """The chest was written by a newer version of this package."""


class ClosedError(ChestError, ValueError):
    """The chest was closed."""


class DroppedError(ChestError, FileNotFoundError):
    """The chest's folder was removed while it was open."""


class ReadOnlyError(ChestError, PermissionError):
    """The chest was opened with ``readonly=True``."""


class ReentryError(ChestError, RuntimeError):
    """A thread that is just publishing to the chest was made to change it."""


class StoreError(ChestError, OSError):
    """The disk refused: full, no permission, too many open files, …

    ``errno`` is that of the system's error, which is the ``__cause__``.
    """

    def __init__(
        self,
        message: str,
        *,
        key: object = None,
        path: str | os.PathLike[str] | None = None,
        errno: int | None = None,
    ) -> None:
        super().__init__(message, key=key, path=path)
        self.errno = errno


class LockTimeout(ChestError, TimeoutError):
    """Somebody else kept the chest locked for longer than ``timeout``."""


class UnsupportedError(ChestError, NotImplementedError):
    """The place where the chest lies cannot do this; the message has the way out."""


class MissingDependency(ChestError, ImportError):
    """An optional package is needed; the message has the ``pip install`` line."""


class SpillWarning(RuntimeWarning):
    """A value could not be written and stays in memory, over the budget."""
