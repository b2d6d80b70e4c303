"""Keys as text, and keys as file names.

Owns: which keys are one key on disk (those that are equal in a ``dict``), the JSON value
that stands for a key in the manifest, and the name its file would like to have.
Does not own: what exists, or whether a name is taken (the store settles that).

Text form: ``str``, ``bool``, ``None`` and numbers of 64 bits stand for themselves, a tuple
is an array, anything else is an object with one member that names the type::

    "x"   1   1.5   null   true   ["one", 2]
    {"bytes": "AP8="}  {"set": ["a", "b"]}  {"int": "0x10000000000000000"}
    {"float": "nan"}   {"decimal": "1.10"}  {"complex": [1.0, 2.0]}
    {"fraction": "1/3"}  {"text": "<UTF-16, base64>"}  {"pickle": "…"}

Subclasses of ``str``, numbers and ``tuple`` that are equal to the plain value (numpy
scalars, enums with a mixed-in type, named tuples) are written as the plain value. A
pickled key runs code when it is read, so it is read only where values may be (see
`decode`).
"""

from __future__ import annotations

import base64
import hashlib
import math
import pickle
import re
from collections.abc import Callable, Hashable, Sequence
from decimal import Decimal
from fractions import Fraction
from numbers import Number
from typing import Any

import msgspec

from chest import errors

__all__ = [
    "NAN",
    "PLAIN",
    "Loader",
    "Opaque",
    "canonical",
    "decode",
    "decode_many",
    "encode",
    "key_to_filename",
    "line",
    "lines",
    "text",
]

Json = Any  # what msgspec makes of one JSON value
Loader = Callable[[bytes], Any]

PLAIN = frozenset({str, int, bool, bytes, type(None)})  # can always be encoded
SMALLEST, LARGEST = -(2**63), 2**64 - 1  # what a JSON integer may be, for msgspec
LONGEST_NAME = 100  # characters; file systems take 255 bytes, suffixes need some
LONGEST_SLUG = 40  # characters kept of a key that is no good name as it stands
DEEPEST_FOLDER = 8  # parts of a tuple that become folders

NAN = float("nan")  # of old chests: one for all that is read, which is found again

_encode_json = msgspec.json.Encoder().encode
_good_name = re.compile(r"[A-Za-z0-9_](?:[A-Za-z0-9_.\-]*[A-Za-z0-9_\-])?").fullmatch
_reserved = re.compile(  # names that Windows keeps for devices, with any suffix
    r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE
).fullmatch


class Opaque:
    """A pickled key that may not be loaded here, or cannot.

    Stands for the key in listings; equal only to itself read again.
    """

    __slots__ = ("pickled",)

    def __init__(self, pickled: bytes) -> None:
        self.pickled = pickled

    def __hash__(self) -> int:
        return hash(self.pickled)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Opaque) and other.pickled == self.pickled

    def __repr__(self) -> str:
        return f"<pickled key of {len(self.pickled)} bytes, not loaded>"


def encode(key: Any) -> Json:
    """The JSON value that stands for *key*, of the key's own type where it is plain.

    Raises
    ------
    TypeError
        *key* is not hashable.
    KeyEncodingError
        *key* cannot be pickled, or what is read back would be another key.

    Examples
    --------
    >>> encode(("one", 2)), encode(b"ab"), encode(frozenset("a"))
    (['one', 2], {'bytes': 'YWI='}, {'set': ['a']})
    """
    kind = type(key)
    if kind is str:
        return key if key.isascii() else _encode_text(key)
    if key is None or kind is bool:
        return key
    if kind is int:
        return _encode_int(key)
    hash(key)
    if kind is tuple:
        return [encode(part) for part in key]
    if kind is frozenset:
        parts = [encode(part) for part in key]
        return {"set": sorted(parts, key=_encode_json)}
    if kind is bytes:
        return {"bytes": _base64(key)}
    if _is_numpy_bool(kind):
        return bool(key)
    if isinstance(key, Number):
        number = _encode_number(key)
        if number is not None:
            return number
    plain = _as_plain(key)
    return _encode_pickle(key) if plain is None else encode(plain)


def decode(value: Json, load: Loader | None = None) -> Any:
    """The key that `encode` turned into *value*.

    Parameters
    ----------
    value : JSON value
        As msgspec decodes it.
    load : callable, optional
        Turns the bytes of a pickled key into the key. Without it such a key comes back
        as an `Opaque`, and nothing of it runs.

    Examples
    --------
    >>> decode(["one", {"bytes": "YWI="}])
    ('one', b'ab')
    """
    if isinstance(value, list):
        return tuple([decode(part, load) for part in value])
    if not isinstance(value, dict):
        return value
    if len(value) != 1:
        msg = f"not the text of a key: {errors.short(value)}"
        raise ValueError(msg)
    ((kind, content),) = value.items()
    if kind == "pickle":
        pickled = base64.b64decode(content)
        return Opaque(pickled) if load is None else load(pickled)
    if kind == "set":
        return frozenset([decode(part, load) for part in content])
    if kind not in _DECODERS:
        msg = f"a key of a kind this version does not know: {kind!r}"
        raise ValueError(msg)
    return _DECODERS[kind](content)


def decode_many(values: list[Json], load: Loader | None = None) -> list[Any]:
    """`decode` of each."""
    if {*map(type, values)} == {str}:
        return values
    return [decode(value, load) for value in values]


def text(key: Hashable) -> str:
    """`encode` as one line of JSON text.

    Examples
    --------
    >>> text(("one", None))
    '["one",null]'
    """
    return _encode_json(encode(key)).decode()


def line(key: Hashable) -> bytes:
    """`text` as bytes."""
    if type(key) is str:
        try:
            return _encode_json(key)
        except UnicodeEncodeError:
            pass  # lone surrogates: `encode` has a way
    return _encode_json(encode(key))


def lines(keys: Sequence[Hashable]) -> list[bytes]:
    """`line` of each."""
    if {*map(type, keys)} == {str}:
        try:
            return [*map(_encode_json, keys)]
        except UnicodeEncodeError:
            pass  # as in `line`
    return [*map(line, keys)]


def canonical(key: Hashable) -> bytes:
    """Text that is the same for two keys if, and only if, they are one key in a dict.

    Pickled keys are the exception: what is equal may pickle differently.

    Examples
    --------
    >>> canonical(1) == canonical(True) == canonical(1.0) != canonical("1")
    True
    """
    return line(key if type(key) is str else _normal(key))


def key_to_filename(key: Hashable) -> str:
    """The name that the file of *key* gets when it is free, with ``/`` between folders.

    Identifiers, dates and the like stay as they are, a tuple becomes folders, other
    keys become what is legible of them and a digest.

    Examples
    --------
    >>> key_to_filename("x"), key_to_filename(("one", "two"))
    ('x', '_one/two')
    >>> key_to_filename(1), key_to_filename("2013-01-31")
    ('int_1', '2013-01-31')
    """
    if isinstance(key, tuple) and 1 < len(key) <= DEEPEST_FOLDER:
        folders = ["_" + _part_name(part) for part in key[:-1]]
        return "/".join([*folders, _part_name(key[-1])])
    return _part_name(key)


def _part_name(key: Any) -> str:
    """One component of a file name for a key, or for a part of a tuple."""
    if _is_numpy_bool(type(key)):
        key = bool(key)
    if isinstance(key, str):
        if len(key) <= LONGEST_NAME and _good_name(key) and not _reserved(key):
            return str.__str__(key)
        legible = str.__str__(key)
    elif isinstance(key, Number) and (number := _normal(key)) == number:
        huge = isinstance(number, int) and number.bit_length() > LARGEST.bit_length()
        legible = f"{type(number).__name__}_{hex(number) if huge else number!r}"
        if len(legible) < LONGEST_NAME and _good_name(legible):
            return legible
    else:
        legible = type(key).__name__
    slug = re.sub(r"[^A-Za-z0-9]+", "_", legible[:LONGEST_SLUG]).strip("_")
    digest = hashlib.blake2b(canonical(key), digest_size=8).hexdigest()
    return f"{slug}_{digest}" if slug else f"key_{digest}"


def _normal(key: Any) -> Any:
    """The plainest key that is equal to *key*."""
    if isinstance(key, bool) or _is_numpy_bool(type(key)):
        return int(key)
    if isinstance(key, tuple):
        return tuple([_normal(part) for part in key])
    if isinstance(key, frozenset):
        return frozenset([_normal(part) for part in key])
    if not isinstance(key, Number):
        return key
    if isinstance(key, complex) and key.imag == 0:
        key = key.real
    try:
        whole = int(key)
    except (TypeError, ValueError, OverflowError):
        return key  # complex, nan and infinities have no integer
    if whole == key:
        return whole
    try:
        inexact = float(key)
        return inexact if inexact == key else Fraction(key)
    except (TypeError, ValueError, OverflowError):
        return key


def _is_numpy_bool(kind: type) -> bool:
    """Numpy's truth value, which is equal to Python's but no number."""
    return kind.__module__ == "numpy" and kind.__name__ in ("bool", "bool_")


def _encode_text(key: str) -> Json:
    """A str; one with lone surrogates is not UTF-8, so JSON cannot hold it."""
    try:
        key.encode()
    except UnicodeEncodeError:
        # Not as UTF-16, where two of them that follow one another are another text.
        return {"text": _base64(key.encode("utf-8", "surrogatepass"))}
    return key


def _encode_int(key: int) -> Json:
    return key if SMALLEST <= key <= LARGEST else {"int": hex(key)}


def _encode_number(key: Any) -> Json:
    """A number that is not a plain int, or None when it has to be pickled."""
    if key != key and key is not NAN:
        raise _lost(key)
    kind = type(key)
    if kind is Decimal:
        return {"decimal": str(key)}
    if kind is Fraction:
        return {"fraction": str(key)}
    if kind is float:
        return key if math.isfinite(key) else {"float": repr(key)}
    if kind is complex:
        return {"complex": [_encode_number(key.real), _encode_number(key.imag)]}
    bases: tuple[Any, ...] = (int, float, complex)
    for plain in bases:
        try:
            value = plain(key)
        except (TypeError, ValueError, OverflowError):
            continue
        if value == key and hash(value) == hash(key):
            return encode(value)
    return None


def _as_plain(key: Any) -> Any:
    """The str, bytes, tuple or frozenset that a key of a subclass is equal to."""
    bases: tuple[Any, ...] = (str, bytes, tuple, frozenset)
    for plain in bases:
        if isinstance(key, plain):
            value = plain.__new__(plain, key) if plain is not str else str.__str__(key)
            if type(value) is plain and value == key and hash(value) == hash(key):
                return value
    return None


def _encode_pickle(key: Hashable) -> Json:
    if type(key) is Opaque:
        return {"pickle": _base64(key.pickled)}
    try:
        pickled = pickle.dumps(key, protocol=5)
        is_found = pickle.loads(pickled) in {key}
    except MemoryError:
        raise
    except Exception as error:  # a key's own methods may raise anything
        msg = (
            f"the key {errors.short(key)} of type {type(key).__name__} cannot be "
            f"pickled, so it cannot be a key of a chest: {error}"
        )
        raise errors.KeyEncodingError(
            msg,
            key=key,
        ) from error
    if not is_found:
        raise _lost(key)
    return {"pickle": _base64(pickled)}


def _lost(key: Hashable) -> errors.KeyEncodingError:
    """The error for a key that only the very same object is equal to."""
    # Each of its records would speak of another key, for whoever reads them.
    msg = (
        f"the key {errors.short(key)} of type {type(key).__name__} cannot be a key of a "
        f"chest: what is read back is not equal to it, so nobody could find it again. A "
        f"class needs __eq__ and __hash__; for nan use None, or the text 'nan'"
    )
    return errors.KeyEncodingError(msg, key=key)


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _decode_float(content: str) -> float:
    number = float(content)
    return NAN if number != number else number


def _decode_complex(parts: list[Json]) -> complex:
    real, imag = (float(decode(part)) for part in parts)
    return complex(real, imag)


_DECODERS: dict[str, Callable[[Any], Hashable]] = {
    "bytes": base64.b64decode,
    "complex": _decode_complex,
    "decimal": Decimal,
    "float": _decode_float,
    "fraction": Fraction,
    "int": lambda content: int(content, 16),
    "text": lambda content: base64.b64decode(content).decode("utf-8", "surrogatepass"),
}
