"""Keys as names of objects, and back.

Owns: the name of a key's object, from which the key can be told, so that a listing of
names is the list of keys. Does not own: what a key is as text (`chest.keys`).

::

    "x-1"          x-1                 a text: letters, digits, - _ . as they are
    "a b"          a!20b               else the bytes of its UTF-8, hexadecimal
    ("one", "two") _one/two            a tuple of several: folders, which begin with _
    1  None  0.5   (1)  (null)  (0.5)  anything else: its JSON text in brackets
    "xxx…"         xxx…!/xxx…          more than 200 characters: cut, each ! goes on

Neither ``.`` nor ``_`` begins the name of a text, so none leads out of the prefix, names
in ``.chest/`` are free for the chest itself, and in a folder a value is never in the way
of others below it. Keys that are equal have one name: that of the plainest, as
`chest.keys.canonical` has it. So ``True`` and ``1.0`` come back as ``1``.
"""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import msgspec

from chest import errors, keys

__all__ = ["LONGEST", "OWN", "PICKLED", "key_of", "name_of", "named", "text_of"]

OWN = ".chest/"  # begins the names of what is no value
LONGEST = 1024  # bytes of a name with its prefix, in all stores
LONGEST_PART = 200  # characters; file systems take 255 bytes
PICKLED = "!22pickle!22"  # in the names of keys that are pickled

_plain = re.compile(r"[A-Za-z0-9\-][A-Za-z0-9\-_.]{0,199}").fullmatch
_escaped = re.compile(r"[^A-Za-z0-9\-_.]")
_code = re.compile(r"((?:![0-9A-F]{2})+)")
_from_json = msgspec.json.Decoder().decode
_to_json = msgspec.json.Encoder().encode


def name_of(key: Hashable) -> str:
    """The name of the object of *key*.

    Raises
    ------
    TypeError
        *key* is not hashable.
    KeyEncodingError
        *key* cannot be pickled.

    Examples
    --------
    >>> name_of("x"), name_of("a/b"), name_of(("one", 2)), name_of(None)
    ('x', 'a!2Fb', '_one/(2)', '(null)')
    """
    if type(key) is str and _plain(key):
        return key
    return named(text_of(key))


def text_of(key: Hashable) -> Any:
    """The JSON value that stands for *key*, the same for keys that are equal."""
    return _from_json(keys.canonical(key))


def key_of(name: str, load: keys.Loader | None = None) -> Any:
    """The key whose object has that name.

    Parameters
    ----------
    name : str
    load : callable, optional
        As that of `chest.keys.decode`.

    Raises
    ------
    ValueError
        It is no key's.

    Examples
    --------
    >>> key_of("a!2Fb"), key_of("_one/(2)"), key_of("(null)")
    ('a/b', ('one', 2), None)
    """
    if _plain(name):
        return name
    parts, begun = [], ""
    for each in name.split("/"):
        begun += each
        if each.endswith("!"):
            begun = begun[:-1]
        else:
            parts.append(begun)
            begun = ""
    *folders, last = [*parts, begun] if begun else parts
    if not all(each.startswith("_") for each in folders):
        raise _foreign(name)
    values = [_value(each[1:], name) for each in folders]
    value = [*values, _value(last, name)] if values else _value(last, name)
    key = keys.decode(value, load)
    # Else two names would be one key. What is pickled may pickle otherwise now.
    if (named(value) if PICKLED in name else name_of(key)) != name:
        raise _foreign(name)
    return key


def named(value: Any) -> str:
    """The name for what `text_of` gives."""
    if isinstance(value, list) and len(value) > 1:
        parts = ["_" + _part(each) for each in value[:-1]]
        return "/".join(map(_cut, [*parts, _part(value[-1])]))
    return _cut(_part(value))


def _part(value: Any) -> str:
    """One part of a name, for a JSON value."""
    if isinstance(value, str) and value:
        first = "" if value[0] not in "._" else f"!{ord(value[0]):02X}"
        return first + _escape(value[1:] if first else value)
    return f"({_escape(_to_json(value).decode())})"


def _value(part: str, name: str) -> Any:
    """The JSON value of one part."""
    if part.startswith("(") and part.endswith(")"):
        return _from_json(_unescape(part[1:-1]))
    if not part or part[0] in "._(":
        raise _foreign(name)
    return _unescape(part)


def _escape(text: str) -> str:
    return _escaped.sub(
        lambda found: "".join(f"!{byte:02X}" for byte in found[0].encode()), text
    )


def _unescape(text: str) -> str:
    return _code.sub(
        lambda found: bytes.fromhex(found[0].replace("!", "")).decode(), text
    )


def _cut(part: str) -> str:
    """A part in pieces that a file system takes as names."""
    if len(part) <= LONGEST_PART:
        return part
    starts = range(0, len(part), LONGEST_PART)
    *pieces, last = (part[start : start + LONGEST_PART] for start in starts)
    if last in (".", ".."):  # no name, but a folder and the one above it
        last = f"!2E{last[1:]}"
    return "!/".join([*pieces, last])


def _foreign(name: str) -> ValueError:
    msg = f"{errors.short(name)} is not the name of a key's object"
    return ValueError(msg)
