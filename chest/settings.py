"""What a chest was opened with: checked once, and all that travels in a pickled handle.

Owns: the words that the options take, and their defaults. Does not own: what they do.
"""

from __future__ import annotations

import builtins
import contextlib
import dataclasses
import os
import pickle
import re
from collections.abc import Callable, Hashable, Iterator, Sequence
from numbers import Real
from typing import IO, Any

from chest import errors, keys, reprs
from chest.system import memory_limit

__all__ = [
    "DEFAULT_MEMORY",
    "NAMES",
    "Settings",
    "Spelled",
    "absolute",
    "check_word",
    "is_address",
    "nothing",
    "open_many",
    "pickle_dump",
]

DEFAULT_MEMORY = 1e9  # bytes, as in chest 0.2.3

# Options of a store that go into a pickled handle; all others may be secrets.
TRAVELS = frozenset(
    {
        "account_name",
        "aws_endpoint",
        "aws_region",
        "endpoint",
        "region",
        "retry_config",
        "skip_signature",
        "virtual_hosted_style_request",
    }
)

CLIENT_TRAVELS = frozenset({"allow_http", "connect_timeout", "read_timeout", "timeout"})

WORDS: dict[str, tuple[object, ...]] = {
    "mode": ("b", "t"),
    "format": ("pickle", "data", "custom", "zarr"),
    "mapped": ("r", "copy", False),
    "publish": ("flush", "each"),
    "durability": ("memory", "process", "power"),
    "trust": ("owner", "data", "any"),
    "verify": ("stream", "full"),
    "compression": (None, False, "zstd", "lz4", "auto"),
    "pack": (True, False),
    "readonly": (True, False),
    "umask": (True, False),
}

FUNCTIONS = (
    "dump",
    "load",
    "key_to_filename",
    "on_miss",
    "on_overflow",
    "open",
    "open_many",
)


def pickle_dump(value: object, file: IO[bytes]) -> None:
    """Pickle *value* into an open file: the ``dump`` of a chest that was given none."""
    pickle.dump(value, file, protocol=5)


def nothing(key: Hashable) -> None:
    """Do nothing: the hook of a chest that was given none."""


@contextlib.contextmanager
def open_many(paths: Sequence[str], mode: str = "rb") -> Iterator[list[IO[Any]]]:
    """Open some files for the time of a ``with`` block."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(builtins.open(path, mode)) for path in paths]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """The options of one chest; see `chest.Chest` for what they mean.

    Raises
    ------
    ValueError
        An option has a value that it does not take; the message lists those it does.
    """

    available_memory: Any = DEFAULT_MEMORY
    dump: Callable[..., object] = pickle_dump
    load: Callable[..., object] = pickle.load
    key_to_filename: Callable[[Hashable], str] = keys.key_to_filename
    on_miss: Callable[[Any], object] = nothing
    on_overflow: Callable[[Any], object] = nothing
    on_conflict: Callable[[Any, Any, Any], Any] | None = None
    open: Callable[..., Any] = builtins.open
    open_many: Callable[..., Any] = open_many
    mode: str = "b"
    format: str = "pickle"
    policy: Any = "largest"
    pack: bool = True
    mapped: str | bool = "r"
    publish: str = "flush"
    durability: str = "process"
    trust: str = "owner"
    sign_key: Any = dataclasses.field(default=None, repr=False)  # secret
    verify: str = "stream"
    readonly: bool = False
    timeout: float | None = None
    available_disk: Any = None
    umask: bool = False
    compression: str | bool | None = None
    storage: Any = dataclasses.field(default=None, repr=False)  # may hold secrets
    max_age: float = 1.0

    def __post_init__(self) -> None:
        budget = reprs.parse_bytes(
            self.available_memory, option="available_memory", limit=memory_limit
        )
        object.__setattr__(self, "available_memory", budget)
        if self.available_disk is not None:
            disk = reprs.parse_bytes(self.available_disk, option="available_disk")
            object.__setattr__(self, "available_disk", disk)
        _check_seconds("timeout", self.timeout)
        _check_seconds("max_age", self.max_age)
        if not (self.storage is None or callable(self.storage)):
            object.__setattr__(self, "storage", dict(self.storage))
        if self.trust == "data" and self.format == "pickle":
            object.__setattr__(self, "format", "data")
        if self.is_custom and self.format == "pickle":
            object.__setattr__(self, "format", "custom")
        for option, words in WORDS.items():
            check_word(option, getattr(self, option), words)
        self._check_functions()
        if self.trust == "data" and self.is_custom:
            msg = "trust='data' cannot be had with a dump=, load= or open= of yours"
            raise ValueError(msg)
        if self.compression and self.fallback != "pickle":
            msg = f"compression= is for pickles, this chest has {self.fallback!r} files"
            raise ValueError(msg)
        if self.format == "custom" and not self.is_custom:
            msg = "format='custom' needs dump= and load=, or open="
            raise ValueError(msg)

    def _check_functions(self) -> None:
        given = {name: getattr(self, name) for name in FUNCTIONS}
        if self.on_conflict is not None:
            given["on_conflict"] = self.on_conflict
        for option, function in given.items():
            if not callable(function):
                msg = f"{option}={errors.short(function)}: a function is needed"
                raise ValueError(msg)

    @property
    def is_custom(self) -> bool:
        """The user brought functions to write and read values with."""
        return (
            self.dump is not pickle_dump
            or self.load is not pickle.load
            or self.open is not builtins.open
        )

    @property
    def fallback(self) -> str:
        """The format of what is no array, where arrays have one of their own."""
        if self.trust == "data":
            return "data"
        return "custom" if self.is_custom else "pickle"

    @property
    def budget(self) -> int:
        """``available_memory`` in bytes."""
        return int(self.available_memory)

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        if isinstance(self.sign_key, bytes):
            # A handle lies about in queues and on disks, the key must not.
            msg = (
                "a chest with the bytes of a key as sign_key= cannot be pickled, because "
                "the key would travel with it: pass sign_key='env:NAME' or a function"
            )
            raise TypeError(msg)
        if isinstance(self.storage, dict):
            named = self.storage
            state["storage"] = {name: named[name] for name in named if name in TRAVELS}
            client = named.get("client_options", {})
            kept = {name: client[name] for name in client if name in CLIENT_TRAVELS}
            state["storage"]["client_options"] = kept
        return state


class Spelled(str):
    """A format's name, with the options that one value is to be written with.

    Examples
    --------
    >>> form = Spelled("zarr", {"chunks": (10,)})
    >>> form == "zarr", form.options
    (True, {'chunks': (10,)})
    """

    options: dict[str, Any]

    def __new__(cls, name: str, options: dict[str, Any]) -> Spelled:
        """The name, with options."""
        new = super().__new__(cls, name)
        new.options = options
        return new


def check_word(option: str, value: object, words: tuple[object, ...]) -> None:
    """Raise ValueError unless *value* is one of *words*."""
    if not any(value is word or value == word for word in words):
        msg = f"{option}={value!r}: one of {', '.join(map(repr, words))}"
        raise ValueError(msg)


def _check_seconds(option: str, seconds: object) -> None:
    """Raise ValueError unless *seconds* is a time, or None for a timeout."""
    if option == "timeout" and seconds is None:
        return
    number = isinstance(seconds, Real) and not isinstance(seconds, bool)
    if not (number and seconds >= 0):  # type: ignore[operator]
        never = ", or None to wait for ever" if option == "timeout" else ""
        msg = f"{option}={seconds!r}: seconds, 0 or more{never}"
        raise ValueError(msg)


is_address = re.compile(r"[A-Za-z][A-Za-z0-9+.\-]*://").match  # of a store of objects
is_collapsed = re.compile(r"(s3|gs|az|file|memory):/[^/]").match  # was an address once


def absolute(path: object) -> str:
    """The full path of a chest's folder, ``~`` expanded.

    Raises
    ------
    TypeError
        It is no path.
    ValueError
        It is empty, or the address of a remote store.
    """
    if not isinstance(path, str | os.PathLike):
        msg = f"path={errors.short(path)}: the name of a folder is needed, as text"
        raise TypeError(msg)
    text = os.fspath(path)
    if not text:
        msg = "path='': name a folder; '.' is the present one"
        raise ValueError(msg)
    if is_collapsed(text):
        msg = f"{text!r}: an address has two slashes; pathlib takes one out, so pass a str"
        raise ValueError(msg)
    if "://" in text:
        msg = f"{text}: a path is needed, only chest.Chest itself takes an address"
        raise ValueError(msg)
    return os.path.abspath(os.path.expanduser(text))


NAMES = tuple(field.name for field in dataclasses.fields(Settings))
