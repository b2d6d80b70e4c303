"""From values to what JSON can say, and buffers.

Owns: which types are data, and the tag of each; refusing the rest.
Does not own: the way back (`chest.formats.data.decoding`), nor any file.
"""

from __future__ import annotations

import base64
import datetime
import decimal
import math
import pathlib
import struct
import sys
import uuid
import zoneinfo
from typing import TYPE_CHECKING, Any

import msgspec

from chest.errors import short
from chest.formats.data.decoding import make_dtype

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["Encoder", "RefusedError"]

CYCLE = "contains itself"
DEEPEST = 150  # levels; JSON readers and Python's stack both have a limit
INLINE = 1 << 10  # bytes; below, a buffer stands in the text

Node = Any  # what JSON can say

_to_json = msgspec.json.Encoder().encode


class RefusedError(Exception):
    """A part that is not data; the message completes “value[…] …”."""


class Encoder:
    """One value on its way to JSON and buffers."""

    def __init__(self) -> None:
        self.buffers: list[tuple[memoryview, bool]] = []
        self._path: list[str | tuple[object]] = []
        self._open: list[object] = []

    def place(self) -> str:
        """Where in the value the encoder is: ``['a'][3]``."""
        steps = self._path if len(self._path) <= 8 else [*self._path[:8], "…"]
        return "".join(s if isinstance(s, str) else f"[{short(s[0])}]" for s in steps)

    def value(self, value: Any) -> Node:
        """Any value."""
        kind = type(value)
        if value is None or kind is bool:
            return value
        if kind is str:
            return value if value.isascii() else _text(value)
        if kind is int:
            return value if -(1 << 63) <= value < 1 << 63 else ["i", _whole(value)]
        if kind is float:
            return value if math.isfinite(value) else ["f", _double(value)]
        if kind in CONTAINERS:
            return self._container(value)
        if (scalar := SCALARS.get(kind)) is not None:
            return scalar(value)
        if kind in (bytes, bytearray):
            return ["b" if kind is bytes else "ba", self._raw(memoryview(value))]
        return self._foreign(value, kind)

    def _container(self, value: Any) -> Node:
        """List, tuple, set, frozenset or dict."""
        # Compared by identity: an equal list inside a list is no cycle.
        if any(outer is value for outer in self._open):
            raise RefusedError(CYCLE)
        if len(self._open) >= DEEPEST:
            message = f"is nested more than {DEEPEST} levels deep"
            raise RefusedError(message)
        self._open.append(value)
        node: list[Node] = [CONTAINERS[type(value)]]
        if type(value) is dict:
            for key, item in value.items():
                node.append(self._at(".keys()", key))
                node.append(self._at((key,), item))
        elif type(value) in (set, frozenset):
            # Their order changes from process to process; the digest must not.
            node += sorted((self._at(".pop()", item) for item in value), key=_to_json)
        else:
            for number, item in enumerate(value):
                node.append(self._at((number,), item))
        self._open.pop()
        return node

    def _at(self, step: str | tuple[object], value: object) -> Node:
        """A part; if it is refused, the path still tells where it was."""
        self._path.append(step)
        node = self.value(value)
        self._path.pop()
        return node

    def _raw(self, data: memoryview, *, readonly: bool = True) -> int | str:
        """Bytes: in the text or as a buffer."""
        if data.nbytes < INLINE:
            return base64.b64encode(data).decode("ascii")
        self.buffers.append((data, readonly))
        return len(self.buffers) - 1

    def _foreign(self, value: Any, kind: type) -> Node:
        """The types of numpy, pandas and pyarrow, which may not be installed."""
        if _is(kind, "numpy", "ndarray"):
            return self._array(value)
        numpy = sys.modules.get("numpy")
        if numpy is not None and isinstance(value, numpy.generic):
            dtype = _dtype_node(value.dtype)
            return ["n", dtype, self._raw(memoryview(value.tobytes()))]
        if _is(kind, "pyarrow", "Table"):
            return ["at", self._table(value)]
        if _is(kind, "pandas", "DataFrame"):
            return ["df", self._frame(value)]
        if _is(kind, "pandas", "Series"):
            name = self._at(".name", value.name)
            return ["se", name, self._frame(value.to_frame("values"), value)]
        message = f"is a {kind.__module__}.{kind.__qualname__}"
        raise RefusedError(message)

    def _array(self, array: Any) -> Node:
        """A numpy array: its type, its shape and its bytes."""
        import numpy as np

        dtype = _dtype_node(array.dtype)
        fortran = array.flags.f_contiguous and not array.flags.c_contiguous
        flat = np.ascontiguousarray(array.T if fortran else array)
        data: Any = flat.reshape(-1).view(np.uint8) if array.size else b""
        readonly = not array.flags.writeable
        raw = self._raw(memoryview(data), readonly=readonly)
        # A buffer's flag stands in the footer: an array that comes back read-only
        # because it is mapped must keep its digest.
        tag = "ar" if readonly and type(raw) is str else "a"
        return [tag, dtype, list(array.shape), "F" if fortran else "C", raw]

    def _table(self, table: Any) -> int | str:
        """An Arrow table as an IPC stream."""
        return self._raw(memoryview(_arrow_stream(table)))

    def _frame(self, frame: Any, series: Any = None) -> int | str:
        """A pandas frame as an Arrow table, if it comes back exactly."""
        import pyarrow as pa

        try:
            stream = _arrow_stream(pa.Table.from_pandas(frame))
            with pa.ipc.open_stream(stream) as reader:
                back = reader.read_all().to_pandas()
            if series is None:
                _assert_same(frame, back)
            else:
                _assert_same(series, back["values"].rename(series.name))
        except (pa.ArrowException, AssertionError, TypeError, ValueError) as error:
            reason = str(error).strip().replace("\n", " ")
            message = f"would not come back from Arrow as it is: {reason}"
            raise RefusedError(message) from error
        return self._raw(memoryview(stream))


def _arrow_stream(table: Any) -> Any:
    """The Arrow buffer that holds a table in IPC format."""
    import pyarrow as pa

    sink = pa.BufferOutputStream()
    try:
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    except pa.ArrowException as error:
        message = f"cannot be written by Arrow: {error}"
        raise RefusedError(message) from error
    return sink.getvalue()


def _assert_same(left: Any, right: Any) -> None:
    """Raise AssertionError unless two frames or two series are the same."""
    import pandas.testing

    if left.attrs != right.attrs:
        message = "attrs differ"
        raise AssertionError(message)
    if left.ndim == 1:
        pandas.testing.assert_series_equal(left, right, check_exact=True)
    else:
        pandas.testing.assert_frame_equal(left, right, check_exact=True)


def _is(kind: type, module: str, name: str) -> bool:
    """Whether *kind* is that very type; imports nothing."""
    home = sys.modules.get(module)
    return home is not None and getattr(home, name, None) is kind


def _text(value: str) -> Node:
    """A string, which may hold surrogates that JSON cannot."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return ["u", value.encode("utf-8", "surrogatepass").hex()]
    return value


def _zone(zone: datetime.tzinfo | None) -> Node:
    """A time zone of the standard library."""
    if zone is None:
        return None
    if type(zone) is datetime.timezone:
        offset = zone.utcoffset(None)
        name = zone.tzname(None)
        unnamed = name == datetime.timezone(offset).tzname(None)
        return ["tz", _span(offset), None if unnamed else _text(name)]
    if type(zone) is zoneinfo.ZoneInfo and zone.key:
        return ["zi", zone.key]
    message = f"has a time zone that is a {type(zone).__qualname__}"
    raise RefusedError(message)


def _span(value: datetime.timedelta) -> Node:
    return ["td", value.days, value.seconds, value.microseconds]


def _moment(value: datetime.datetime | datetime.time) -> Node:
    tag = "dt" if isinstance(value, datetime.datetime) else "ti"
    naive = value.replace(tzinfo=None, fold=0).isoformat()
    return [tag, naive, value.fold, _zone(value.tzinfo)]


def _whole(value: int) -> str:
    return format(value, "x")


def _double(value: float) -> str:
    return struct.pack(">d", value).hex()


CONTAINERS: dict[type, str] = {
    list: "l",
    tuple: "t",
    set: "s",
    frozenset: "fs",
    dict: "d",
}
SCALARS: dict[type, Callable[[Any], Node]] = {
    complex: lambda value: ["c", _double(value.real), _double(value.imag)],
    range: lambda value: ["r", *map(_whole, (value.start, value.stop, value.step))],
    datetime.datetime: _moment,
    datetime.time: _moment,
    datetime.date: lambda value: ["da", value.isoformat()],
    datetime.timedelta: _span,
    datetime.timezone: _zone,
    zoneinfo.ZoneInfo: _zone,
    decimal.Decimal: lambda value: ["de", str(value)],
    uuid.UUID: lambda value: ["id", value.hex],
    type(pathlib.Path()): lambda value: ["p", _text(str(value))],
}


def _dtype_node(dtype: Any) -> Node:
    """A numpy dtype as text, if it can be made again from that."""
    if dtype.hasobject or dtype.metadata or not dtype.itemsize:
        message = f"has the dtype {dtype}, whose items are not plain bytes"
        raise RefusedError(message)
    node: Node = dtype.str
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        node = {"base": _dtype_node(base), "shape": list(shape)}
    elif dtype.names is not None:
        fields = [dtype.fields[name] for name in dtype.names]
        node = {
            "names": list(dtype.names),
            "formats": [_dtype_node(field[0]) for field in fields],
            "offsets": [field[1] for field in fields],
            "itemsize": dtype.itemsize,
            "aligned": dtype.isalignedstruct,
        }
    try:
        again = make_dtype(node)
    except (TypeError, ValueError, KeyError):
        again = None  # a dtype of another package: refused below
    if again != dtype or again.type is not dtype.type:
        message = f"has the dtype {dtype!r}, which numpy alone does not know"
        raise RefusedError(message)
    return node
