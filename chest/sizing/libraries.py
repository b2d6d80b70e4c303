"""What other libraries' values hold, known without importing any of them.

Owns: one handler per kind of buffer, array, frame, table, tensor and picture.
Does not own: which handler serves a type, the walk.
"""

from __future__ import annotations

import math
import sys
from array import array
from mmap import mmap
from typing import TYPE_CHECKING, Any, Final

from chest.sizing import kinds

if TYPE_CHECKING:
    from collections.abc import Callable

    from chest.sizing.walk import Handler, Walk

__all__ = ["bytes_like"]

TEXTS_READ: Final = 64  # elements of a StringDType array
INLINE: Final = 15  # bytes of text that numpy's StringDType keeps in the element


def bytes_like(walk: Walk, value: Any) -> None:
    """Count a bytearray, array.array or map, under the name that its views use."""
    walk.own(0 if walk.top else object.__sizeof__(value))
    walk.buffer(id(value), _capacity(value))


def _capacity(owner: Any) -> int:
    """Bytes of the memory behind an object with a buffer."""
    if isinstance(owner, (bytes, bytearray, mmap)):
        return len(owner)
    if isinstance(owner, array):
        return len(owner) * owner.itemsize
    with memoryview(owner) as view:
        return view.nbytes


def _memoryview(walk: Walk, value: memoryview) -> None:
    """Count what a memoryview keeps alive."""
    walk.own(0 if walk.top else kinds.shallow(value))
    _owner(walk, value.obj, value.nbytes)


def _owner(walk: Walk, owner: Any, otherwise: int) -> None:
    """Count the memory of *owner*, going down to its root."""
    while type(owner) is memoryview:
        owner = owner.obj
    numpy = sys.modules.get("numpy")
    if numpy is not None and isinstance(owner, numpy.ndarray):
        _root_of_array(walk, owner)
    elif hasattr(owner, "address") and hasattr(owner, "size"):
        _arrow_buffer(walk, owner)
    else:
        try:
            size = _capacity(owner)
        except (TypeError, ValueError, BufferError):
            # It does not show its memory (a capsule, an adapter): the view knows some.
            size = otherwise
        walk.buffer(id(owner), size)


def _numpy(value: Any) -> Handler | None:
    numpy = sys.modules["numpy"]
    if isinstance(value, numpy.ndarray):
        return _array
    return kinds.handle if isinstance(value, numpy.generic) else None


def _array(walk: Walk, value: Any) -> None:
    """Count the root owner of an array, and the objects in it."""
    if not walk.top:
        walk.own(object.__sizeof__(value))
    _root_of_array(walk, value)
    kind = value.dtype.kind
    if kind == "O":
        flat, count = value.flat, value.size
        walk.children(
            count, lambda walk, wanted: [flat[i] for i in walk.positions(count, wanted)]
        )
    elif kind == "V" and value.dtype.hasobject:
        names = value.dtype.names or ()
        walk.children(len(names), lambda walk, wanted: [value[n] for n in names])
    elif kind == "T":
        _long_texts(walk, value)
    if type(value) is not sys.modules["numpy"].ndarray:
        kinds.attributes(walk, value)


def _root_of_array(walk: Walk, value: Any) -> None:
    """Count the memory an array lies in, whoever owns it."""
    ndarray = sys.modules["numpy"].ndarray
    root = value
    while root.base is not None:
        below = root.base
        if not isinstance(below, ndarray) and hasattr(below, "__array_interface__"):
            # as_strided puts a dummy between the view and what it was made upon.
            below = getattr(below, "base", below)
        if not isinstance(below, ndarray):
            _owner(walk, below, _distinct_bytes(value))
            return
        root = below
    walk.buffer(root.__array_interface__["data"][0], _distinct_bytes(root))


def _distinct_bytes(value: Any) -> int:
    """Bytes of an array's elements, those that a stride of 0 repeats once."""
    if 0 not in value.strides:
        return int(value.nbytes)
    sides = zip(value.shape, value.strides, strict=True)
    return int(value.itemsize * math.prod(n for n, stride in sides if stride))


def _long_texts(walk: Walk, value: Any) -> None:
    """Count the texts of numpy's StringDType that do not fit into their elements."""
    count = value.size
    texts = [value.flat[i] for i in walk.positions(count, min(count, TEXTS_READ))]
    sizes = [len(text.encode()) for text in texts if isinstance(text, str)]
    outside = sum(size for size in sizes if size > INLINE)
    walk.own(outside * count / max(1, len(texts)))


def _arrow(value: Any) -> Handler | None:
    arrow = sys.modules["pyarrow"]
    if isinstance(value, (arrow.Table, arrow.RecordBatch)):
        return _arrow_table
    if isinstance(value, arrow.ChunkedArray):
        return _arrow_chunked
    if isinstance(value, arrow.Array):
        return _arrow_array
    return _arrow_buffer if isinstance(value, arrow.Buffer) else None


def _arrow_table(walk: Walk, value: Any) -> None:
    walk.own(object.__sizeof__(value))
    count = value.num_columns
    walk.children(
        count,
        lambda walk, wanted: [value.column(i) for i in walk.positions(count, wanted)],
    )


def _arrow_chunked(walk: Walk, value: Any) -> None:
    walk.own(object.__sizeof__(value))
    count = value.num_chunks
    walk.children(
        count,
        lambda walk, wanted: [value.chunk(i) for i in walk.positions(count, wanted)],
    )


def _arrow_array(walk: Walk, value: Any) -> None:
    walk.own(object.__sizeof__(value))
    for buffer in value.buffers():
        if buffer is not None:
            _arrow_buffer(walk, buffer)
    categories = getattr(value, "dictionary", None)
    if categories is not None:
        walk.children(1, lambda walk, wanted: [categories])


def _arrow_buffer(walk: Walk, value: Any) -> None:
    """Count the root of a buffer, unless it is in another device's memory."""
    while getattr(value, "parent", None) is not None:
        value = value.parent
    if getattr(value, "is_cpu", True):
        walk.buffer(value.address, value.size)


def _pandas(value: Any) -> Handler | None:
    """Frames, series and indices hold arrays, all of which the walk meets."""
    # Asking for their size would make a series of each column, and read every text.
    told_by = getattr(type(value).__sizeof__, "__module__", "")
    return kinds.reachable if told_by.startswith("pandas.") else None


def _polars(value: Any) -> Handler | None:
    return _estimated if hasattr(value, "estimated_size") else None


def _estimated(walk: Walk, value: Any) -> None:
    walk.own(value.estimated_size())


def _torch(value: Any) -> Handler | None:
    return _tensor if hasattr(value, "untyped_storage") else None


def _tensor(walk: Walk, value: Any) -> None:
    """Count a tensor's storage, unless it is in another device's memory."""
    walk.own(0 if walk.top else object.__sizeof__(value))
    storage = value.untyped_storage()
    if value.device.type == "cpu":
        walk.buffer(storage.data_ptr(), storage.nbytes())


def _pillow(value: Any) -> Handler | None:
    return _picture if hasattr(value, "mode") and hasattr(value, "size") else None


def _picture(walk: Walk, value: Any) -> None:
    """Count the pixels as they are kept: one byte, or four, or two."""
    width, height = value.size
    of_mode = {"1": 1, "L": 1, "P": 1}
    pixel = of_mode.get(value.mode, 2 if value.mode.startswith("I;16") else 4)
    walk.own(width * height * pixel + kinds.shallow(value))
    kinds.attributes(walk, value)


def _zarr(value: Any) -> Handler | None:
    return kinds.handle if hasattr(value, "store") else None


CHOOSERS: Final[dict[str, Callable[[Any], Handler | None]]] = {
    "numpy": _numpy,
    "pyarrow": _arrow,
    "pandas": _pandas,
    "polars": _polars,
    "torch": _torch,
    "PIL": _pillow,
    "zarr": _zarr,
}
"""Top package of a type → what handles its values, if it is one of those known."""


HANDLERS: Final[dict[type, Handler]] = {
    bytearray: bytes_like,
    array: bytes_like,
    mmap: bytes_like,
    memoryview: _memoryview,
}
"""Builtin type with a buffer → handler."""
