"""Fingerprints of values: equal content, equal fingerprint, in every process.

Owns: the walk through a value, Python's own types, what is refused.
Does not own: arrays and frames (`libraries`), functions and classes (`code`).

A value becomes a *token*: plain scalars the bytes of ``marshal`` version 2, which is the
same in every Python; anything else ``#`` and the xxh3-128 of a tag and of the tokens of
its parts. Tokens end by themselves, so that parts can stand one after the other.
"""

from __future__ import annotations

import datetime
import decimal
import enum
import fractions
import functools
import marshal
import pathlib
import re
import types
import uuid
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import xxhash

from chest.errors import FingerprintError

__all__ = [
    "HANDLERS",
    "LIBRARIES",
    "Handler",
    "Walk",
    "fingerprint",
    "named",
    "refused",
    "sealed",
    "token",
]

SCALARS: Final = frozenset({type(None), bool, int, float, complex, str, bytes})
LONGEST_TOKEN: Final = 4096  # bytes; a longer text is hashed at once, not joined
VERSION: Final = 2  # of marshal: the last without references, which depend on identity

_digest = xxhash.xxh3_128_digest
_dumps = marshal.dumps


def fingerprint(value: Any, *, code: bool = True) -> str:
    """32 hexadecimal digits that stand for the content of *value*.

    Equal in every process, run and minor version of Python for values of equal type and
    content; the order of sets and dicts, the layout of arrays and the blocks of frames
    do not matter. ``1``, ``1.0`` and ``True`` differ.

    Of an object of one of the user's own classes the class's code counts as well, unless
    *code* is false; code is another in each minor version of Python.

    Costs the speed of xxh3-128 (about 8 GB/s) for arrays, which are not copied, and
    about a microsecond for each Python object that is no scalar in a flat list.

    Raises
    ------
    FingerprintError
        Another process could not find the same again: an iterator, a lock, an open file,
        a bare ``object()``.

    Examples
    --------
    >>> fingerprint({"a": 1, "b": {2, 3}}) == fingerprint({"b": {3, 2}, "a": 1})
    True
    >>> fingerprint(iter([1]))
    Traceback (most recent call last):
    chest.errors.FingerprintError: a list_iterator has no fingerprint: ...
    """
    return xxhash.xxh3_128_hexdigest(token(value, code=code))


def token(value: Any, *, code: bool = True) -> bytes:
    """Bytes that stand for *value*, and that `fingerprint` is made of."""
    return Walk(code=code).token(value)


class Walk:
    """One walk through a value.

    Shared parts are visited once; a part that holds itself is named by its distance.

    Parameters
    ----------
    code : bool
        Whether the code of functions and classes counts, or only their names.
    """

    __slots__ = ("_active", "_cycles", "_known", "code")

    def __init__(self, *, code: bool = True) -> None:
        self.code = code
        self._active: dict[int, int] = {}
        self._known: dict[
            int, tuple[Any, bytes]
        ] = {}  # the value, so that its id stays
        self._cycles = 0

    def token(self, value: Any) -> bytes:
        """What stands for *value*."""
        kind = type(value)
        if kind in SCALARS:
            return _scalar(value)
        number = id(value)
        known = self._known.get(number)
        if known is not None:
            return known[1]
        depth = self._active.get(number)
        if depth is not None:
            self._cycles += 1
            return sealed(b"cycle", _dumps(len(self._active) - depth, VERSION))
        handler = HANDLERS.get(kind) or _find(kind)
        self._active[number] = len(self._active)
        cycles = self._cycles
        try:
            found = handler(self, value)
        finally:
            del self._active[number]
        if cycles == self._cycles:  # else it depends on where the walk came from
            self._known[number] = value, found
        return found

    def tokens(self, values: Iterable[Any]) -> bytes:
        """What stands for all of them, in order."""
        return b"".join([self.token(value) for value in values])


Handler = Callable[[Walk, Any], bytes]


def sealed(tag: bytes, *parts: bytes) -> bytes:
    """A token of fixed length for something with these parts."""
    return b"#" + _digest(b"%b\0%b" % (tag, b"".join(parts)))


def refused(value: object, why: str) -> FingerprintError:
    """The error for a value that no other process could find again."""
    msg = f"a {type(value).__qualname__} has no fingerprint: {why}"
    return FingerprintError(msg)


def _scalar(value: Any) -> bytes:
    if type(value) is bytes:
        if len(value) > LONGEST_TOKEN:
            return b"#" + _digest(value)
        return _dumps(value, VERSION)
    text = _dumps(value, VERSION)
    return text if len(text) <= LONGEST_TOKEN else sealed(b"long", text)


def _flat(tag: bytes) -> Handler:
    """The handler of lists, or of tuples."""

    def handler(walk: Walk, value: Any) -> bytes:
        # Rows of plain numbers and texts need no step of ours for each of them.
        if SCALARS.issuperset(map(type, value)):
            return sealed(tag, b"flat", _dumps(value, VERSION))
        size = _dumps(len(value), VERSION)
        return sealed(tag, size, walk.tokens(value))

    return handler


def _unordered(walk: Walk, value: Iterable[Any]) -> bytes:
    return b"".join(sorted([walk.token(each) for each in value]))


def _set(walk: Walk, value: Any) -> bytes:
    tag = b"frozenset" if isinstance(value, frozenset) else b"set"
    return sealed(tag, _own_part(walk, value), _unordered(walk, value))


def _dict(walk: Walk, value: Any) -> bytes:
    pairs = [walk.token(key) + walk.token(held) for key, held in value.items()]
    if not isinstance(value, OrderedDict):
        pairs.sort()
    return sealed(b"dict", _own_part(walk, value), *pairs)


def _own_part(walk: Walk, value: Any) -> bytes:
    """Type and attributes of an instance of a subclass; nothing for the builtin."""
    kind = type(value)
    if kind in (set, frozenset, dict):
        return b""
    state = object.__getstate__(value)  # attributes, those in slots as well
    parts = [kind, state or {}]
    if isinstance(value, defaultdict):
        parts.append(value.default_factory)
    return walk.tokens(parts)


def _bytes(walk: Walk, value: Any) -> bytes:
    view = memoryview(value)
    if not view.c_contiguous:
        view = memoryview(view.tobytes())
    about = (type(value).__name__, view.format, view.shape)
    return sealed(b"buffer", _dumps(about, VERSION), _digest(view))


def _text(*names: str) -> Handler:
    """The handler of types that are their type's name and some attributes."""

    def handler(walk: Walk, value: Any) -> bytes:
        parts = [getattr(value, name) for name in names] or [str(value)]
        return sealed(b"text", walk.token(type(value)), walk.tokens(parts))

    return handler


def _enum(walk: Walk, value: Any) -> bytes:
    return sealed(
        b"enum", walk.token(type(value)), walk.tokens([value._name_, value._value_])
    )


def named(walk: Walk, value: Any) -> bytes:
    """What can be imported is its name, and that of the package that it comes from.

    Libraries move things from one of their modules to another between versions.
    """
    package = str(value.__module__).partition(".")[0]
    return sealed(b"named", _dumps(f"{package}.{value.__qualname__}", VERSION))


def _builtin(walk: Walk, value: Any) -> bytes:
    owner = value.__self__
    if owner is None or isinstance(owner, types.ModuleType):
        name = f"{value.__module__}.{value.__qualname__}"
        return sealed(b"named", _dumps(name, VERSION))
    return sealed(b"method", walk.token(owner), _dumps(value.__name__, VERSION))


def _module(walk: Walk, value: types.ModuleType) -> bytes:
    return sealed(b"module", _dumps(value.__name__, VERSION))


def _method(walk: Walk, value: Any) -> bytes:
    return sealed(b"method", walk.token(value.__self__), walk.token(value.__func__))


def _partial(walk: Walk, value: functools.partial[Any]) -> bytes:
    return sealed(
        b"partial", walk.tokens([value.func, value.args, dict(value.keywords)])
    )


def _instance(walk: Walk, value: Any) -> bytes:
    """Any other object is what pickle would keep of it."""
    if type(value) is object:
        raise refused(value, "nothing but its identity tells it from others")
    if isinstance(value, Iterator):
        raise refused(
            value, "it is used up by the call. Pass a list, or a function that makes it"
        )
    try:
        reduced: Any = value.__reduce_ex__(4)
    except Exception as error:
        raise refused(value, f"it cannot be pickled ({error})") from error
    if isinstance(reduced, str):
        home = getattr(value, "__module__", type(value).__module__)
        return sealed(b"named", _dumps(f"{home}.{reduced}", VERSION))
    make, given, *rest = reduced
    state, items, pairs = [*rest, None, None, None][:3]
    held = [make, given, state, list(items or ()), list(pairs or ())]
    return sealed(b"object", walk.tokens(held))


HANDLERS: Final[dict[type, Handler]] = {
    list: _flat(b"list"),
    tuple: _flat(b"tuple"),
    set: _set,
    frozenset: _set,
    dict: _dict,
    bytearray: _bytes,
    memoryview: _bytes,
    range: _text("start", "stop", "step"),
    slice: _text("start", "stop", "step"),
    type(...): _text(),
    type(NotImplemented): _text(),
    decimal.Decimal: _text(),
    fractions.Fraction: _text(),
    uuid.UUID: _text(),
    re.Pattern: _text("pattern", "flags"),
    datetime.date: _text(),
    datetime.datetime: _instance,  # its text says neither the zone nor the fold
    datetime.timedelta: _text("days", "seconds", "microseconds"),
    enum.Enum: _enum,
    pathlib.PurePath: _text(),
    functools.partial: _partial,
    types.MethodType: _method,
    types.BuiltinFunctionType: _builtin,
    types.ModuleType: _module,
    type: named,
}
"""Type → handler of its values, and of its subclasses' where no other is nearer."""

EXACT: Final = frozenset(
    {
        list,
        tuple,
        bytearray,
        decimal.Decimal,
        fractions.Fraction,
        uuid.UUID,
        datetime.date,
        datetime.timedelta,
        pathlib.PurePath,
    }
)  # types whose handler knows nothing of what others' subclasses add

LIBRARIES: Final[dict[tuple[str, str], Handler]] = {}
"""(module's first part, class's name) → handler, for types that are not imported here."""


def _find(kind: type) -> Handler:
    """The handler of a type that was not met before; remembered."""
    handler: Handler = _instance
    if not issubclass(kind, Iterator):
        for base in kind.__mro__:
            found = HANDLERS.get(base) or LIBRARIES.get(
                (base.__module__.partition(".")[0], base.__name__)
            )
            if found is not None and not _is_lossy(kind, base):
                handler = found
                break
    HANDLERS[kind] = handler
    return handler


def _is_lossy(kind: type, base: type) -> bool:
    """Whether the handler of *base* would miss what an instance of *kind* has more."""
    if kind is base or base not in EXACT:
        return False
    # Paths are instances of subclasses, which have nothing more.
    return kind.__module__.partition(".")[0] != base.__module__.partition(".")[0]
