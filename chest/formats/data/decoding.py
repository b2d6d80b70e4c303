"""From what JSON can say, and buffers, back to values.

Owns: making each type that a tag stands for, and no other.
Does not own: checksums, checked before; but the file is not trusted all the same.
"""

from __future__ import annotations

import base64
import datetime
import decimal
import math
import pathlib
import re
import struct
import uuid
import zoneinfo
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from chest.protocols import Buffer

__all__ = ["Decoder", "make_dtype"]

PLAIN_DTYPE = re.compile(r"[<>|=]([?biufcmMSUV]\d+)(\[\d*[a-zA-Z]+\])?")

Node = Any  # what JSON can say


def make_dtype(node: Node) -> Any:
    """The dtype that a node describes; ValueError for any other text."""
    import numpy as np

    if isinstance(node, str):
        if not PLAIN_DTYPE.fullmatch(node):
            message = f"{node!r} is no dtype"
            raise ValueError(message)
        return np.dtype(node)
    if "base" in node:
        return np.dtype((make_dtype(node["base"]), tuple(node["shape"])))
    fields = {name: node[name] for name in ("names", "offsets", "itemsize")}
    fields["formats"] = [make_dtype(part) for part in node["formats"]]
    make: Any = np.dtype
    return make(fields, align=node["aligned"])


class Decoder:
    """One value on its way back.

    Parameters
    ----------
    buffers : list of bytes-like
        What the numbers in the nodes refer to; arrays are made upon them.
    """

    def __init__(self, buffers: list[Buffer]) -> None:
        self._buffers = buffers

    def value(self, node: Node) -> Any:
        """Any value; an impossible node raises whatever its type raises."""
        if type(node) is not list:
            if type(node) is dict:
                message = "an object where a value should be"
                raise ValueError(message)
            return node
        tag, *rest = node
        if (collect := COLLECTIONS.get(tag)) is not None:
            return collect([self.value(item) for item in rest])
        if tag == "d":
            keys, items = rest[::2], rest[1::2]
            pairs = zip(keys, items, strict=True)
            return {self.value(key): self.value(item) for key, item in pairs}
        if (simple := SIMPLE.get(tag)) is not None:
            return simple(*rest)
        if tag in ("dt", "ti"):
            naive, fold, zone = rest
            made = MOMENTS[tag](naive)
            return made.replace(fold=fold, tzinfo=self.value(zone))
        if tag == "tz":
            offset, name = map(self.value, rest)
            extra = () if name is None else (name,)
            return datetime.timezone(offset, *extra)
        if tag == "p":
            return pathlib.Path(self.value(*rest))
        return self._buffered(tag, *rest)

    def _raw(self, raw: int | str) -> Buffer:
        """The bytes of a node, from the text or from a buffer."""
        if isinstance(raw, str):
            return bytearray(base64.b64decode(raw, validate=True))
        return self._buffers[raw if raw >= 0 else len(self._buffers)]

    def _buffered(self, tag: str, *rest: Node) -> Any:
        """What is made of a buffer."""
        raw = self._raw(rest[-1])
        if tag in ("b", "ba"):
            return bytes(raw) if tag == "b" else bytearray(raw)
        if tag in ("a", "ar"):
            return _array(raw if tag == "a" else bytes(raw), *rest[:-1])
        if tag == "n":
            return _array(raw, rest[0], (), "C")[()]
        table = _table(raw)
        if tag == "at":
            return table
        if tag == "df":
            return table.to_pandas()
        if tag == "se":
            return table.to_pandas()["values"].rename(self.value(rest[0]))
        message = f"{tag!r} is no tag"
        raise ValueError(message)


def _array(raw: Buffer, dtype: Node, shape: Any, order: Any) -> Any:
    """A numpy array upon the bytes."""
    import numpy as np

    made = make_dtype(dtype)
    if math.prod(shape) * made.itemsize != len(raw) or min(shape, default=0) < 0:
        message = "an array and its buffer differ in size"
        raise ValueError(message)
    array = np.ndarray(tuple(shape), made, raw or None, order=order)
    if isinstance(raw, bytes):
        array.flags.writeable = False
    return array


def _table(raw: Buffer) -> Any:
    """An Arrow table upon the bytes, every offset in it checked."""
    import pyarrow as pa

    with pa.ipc.open_stream(pa.py_buffer(raw)) as reader:
        table = reader.read_all()
    table.validate(full=True)
    return table


def _undouble(text: str) -> float:
    (value,) = struct.unpack(">d", bytes.fromhex(text))
    return float(value)


COLLECTIONS: dict[str, Callable[[Iterable[Any]], Any]] = {
    "l": list,
    "t": tuple,
    "s": set,
    "fs": frozenset,
}
MOMENTS: dict[str, Callable[[str], Any]] = {
    "dt": datetime.datetime.fromisoformat,
    "ti": datetime.time.fromisoformat,
}
SIMPLE: dict[str, Callable[..., Any]] = {
    "i": lambda text: int(text, 16),
    "f": _undouble,
    "u": lambda text: bytes.fromhex(text).decode("utf-8", "surrogatepass"),
    "c": lambda real, imag: complex(_undouble(real), _undouble(imag)),
    "r": lambda *parts: range(*(int(part, 16) for part in parts)),
    "da": datetime.date.fromisoformat,
    "td": lambda days, s, us: datetime.timedelta(days, s, us),
    "de": decimal.Decimal,
    "id": uuid.UUID,
    "zi": zoneinfo.ZoneInfo,
}
