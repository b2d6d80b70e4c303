"""Fingerprints of arrays, frames and tables: by content, whatever their layout.

Owns: one handler per type of numpy, pandas, pyarrow, polars, scipy, xarray and torch, and
the memory of arrays that cannot have changed. Imports none of them: whoever has such a
value has.
Does not own: the walk.
"""

from __future__ import annotations

import marshal
import weakref
from typing import Any, Final

import xxhash

from chest import system
from chest.fingerprint.values import LIBRARIES, VERSION, Walk, sealed

__all__: list[str] = []

REMEMBER: Final = 1 << 16  # bytes; hashing less is quicker than looking it up
STRIP: Final = 1 << 20  # bytes that are copied at once from an array with gaps

_digest = xxhash.xxh3_128_digest

# id of a map: (the map, digests by address, layout and type), while the map lives.
_remembered: dict[int, tuple[Any, dict[Any, bytes]]] = {}


def _plain(*about: Any) -> bytes:
    return marshal.dumps(about, VERSION)


# --------------------------------------------------------------------------- numpy


def _array(walk: Walk, value: Any) -> bytes:
    """Type, shape, and the elements in C order."""
    about = _plain(value.dtype.str, value.shape)
    kind = type(value)
    if kind.__name__ in ("ndarray", "memmap") and kind.__module__.startswith("numpy"):
        return sealed(b"array", about, _elements(walk, value))
    import numpy as np

    parts = [kind, dict(getattr(value, "__dict__", None) or {})]
    return sealed(
        b"array", about, walk.tokens(parts), _elements(walk, value.view(np.ndarray))
    )


def _elements(walk: Walk, value: Any) -> bytes:
    dtype = value.dtype
    if dtype.names is not None:  # what lies between the fields is nobody's
        return walk.tokens([dtype.names, *[value[name] for name in dtype.names]])
    if dtype.hasobject or dtype.kind == "T":
        return walk.token(value.ravel().tolist())
    if dtype.char in "gG":  # some of their bytes are never written
        return walk.token([str(each) for each in value.ravel()])
    if not value.size:
        return b""
    key = _where(value)
    if key is None:
        return _buffer(value)
    owner, place = key
    known = _remembered.get(id(owner))
    if known is None or known[0]() is not owner:
        number = id(owner)
        forget = weakref.ref(owner, lambda _: _remembered.pop(number, None))
        known = _remembered[number] = forget, {}
    found = known[1].get(place)
    if found is None:
        found = known[1][place] = _buffer(value)
    return found


def _buffer(value: Any) -> bytes:
    """Digest of the elements in C order, uncopied where they lie so."""
    import numpy as np

    if value.flags.c_contiguous:
        return _digest(value.reshape(-1).view(np.uint8))
    hasher = xxhash.xxh3_128()
    strips = np.nditer(
        value,
        flags=["external_loop", "buffered", "zerosize_ok"],
        order="C",
        buffersize=max(1, STRIP // value.itemsize),
    )
    for strip in strips:
        piece: Any = np.ascontiguousarray(strip).view(np.uint8)
        hasher.update(piece)
    return hasher.digest()


def _where(value: Any) -> tuple[Any, Any] | None:
    """The map of one of our files and the place in it, of what cannot have changed."""
    if value.nbytes < REMEMBER or value.flags.writeable:
        return None
    base: Any = value
    while hasattr(base, "flags"):
        base = base.base
    if type(base) is not memoryview or not base.readonly:
        return None
    if type(base.obj) is not system.FileMap:
        return None
    return base.obj, (
        value.__array_interface__["data"][0],
        value.shape,
        value.strides,
        value.dtype.str,
    )


def _masked(walk: Walk, value: Any) -> bytes:
    """What lies under the mask does not count."""
    import numpy as np

    mask = np.ma.getmaskarray(value)
    data = value.filled(np.zeros((), value.dtype)[()])
    return sealed(b"masked", walk.tokens([data, mask, value.fill_value]))


def _number(walk: Walk, value: Any) -> bytes:
    """One number of numpy's."""
    import numpy as np

    return sealed(b"number", walk.token(np.asarray(value)))


def _dtype(walk: Walk, value: Any) -> bytes:
    return sealed(b"dtype", _plain(repr(value)))


# -------------------------------------------------------------------------- pandas


def _frame(walk: Walk, value: Any) -> bytes:
    """Index, columns and each column: not the blocks they lie in."""
    columns = [value.iloc[:, place].array for place in range(value.shape[1])]
    held = [type(value), value.columns, value.index, dict(value.attrs)]
    return sealed(b"frame", walk.tokens(held), *[_column(walk, one) for one in columns])


def _series(walk: Walk, value: Any) -> bytes:
    held = [type(value), value.name, value.index, dict(value.attrs)]
    return sealed(b"series", walk.tokens(held), _column(walk, value.array))


def _index(walk: Walk, value: Any) -> bytes:
    """Labels and names. A range is equal to the same labels written out."""
    if type(value).__name__ == "MultiIndex":
        levels = [value.get_level_values(place) for place in range(value.nlevels)]
        return sealed(b"multi", _plain(value.nlevels), walk.tokens(levels))
    named = walk.token(value.name)
    if type(value).__name__ == "RangeIndex":
        import numpy as np

        labels = np.arange(value.start, value.stop, value.step)
        return sealed(b"index", named, walk.token(labels))
    return sealed(b"index", named, _column(walk, value.array))


def _column(walk: Walk, array: Any) -> bytes:
    """An array of pandas: numpy's, or one of its own kinds."""
    name = type(array).__name__
    if name == "NumpyExtensionArray":
        return walk.token(array.to_numpy())
    about = _plain(name, str(array.dtype))
    if name == "Categorical":
        held = [array.codes, array.categories, array.ordered]
        return sealed(b"column", about, walk.tokens(held))
    if name in ("DatetimeArray", "TimedeltaArray"):
        return sealed(b"column", about, walk.token(array.asi8))
    missing = array.isna()
    if hasattr(array, "__arrow_array__") and name.startswith("Arrow"):
        return sealed(b"column", about, walk.token(array.__arrow_array__()))
    plain = getattr(array.dtype, "numpy_dtype", None)
    if plain is not None and plain.kind in "iufb":
        data = array.to_numpy(dtype=plain, na_value=plain.type(0))
        return sealed(b"column", about, walk.tokens([data, missing]))
    held = [None if gone else each for each, gone in zip(array, missing, strict=True)]
    return sealed(b"column", about, walk.token(held))


# ---------------------------------------------------------------- arrow and polars


def _table(walk: Walk, value: Any) -> bytes:
    """Schema and columns of a table or a batch; not how they are cut into chunks."""
    schema = value.schema
    about = _plain(schema.names, [str(each) for each in schema])
    columns = [_chunks(walk, column) for column in value.columns]
    meta = walk.token(dict(schema.metadata or {}))
    return sealed(b"table", about, meta, *columns)


def _chunks(walk: Walk, value: Any) -> bytes:
    """A column: lengths, what is missing, and the bytes of what is not."""
    import pyarrow as pa

    chunks = value.chunks if isinstance(value, pa.ChunkedArray) else [value]
    kind = value.type
    about = _plain(str(kind), len(value))
    if not (pa.types.is_primitive(kind) or _is_text(kind)) or pa.types.is_boolean(kind):
        return sealed(b"arrow", about, walk.token(value.to_pylist()))
    hashers = [xxhash.xxh3_128() for _ in range(3)]
    for chunk in chunks:
        _chunk(chunk, *hashers)
    return sealed(b"arrow", about, *[hasher.digest() for hasher in hashers])


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    test = pa.types
    return bool(
        test.is_string(kind)
        or test.is_binary(kind)
        or test.is_large_string(kind)
        or test.is_large_binary(kind)
    )


def _chunk(chunk: Any, gaps: Any, lengths: Any, data: Any) -> None:
    """Add one chunk to the digests of a column."""
    import numpy as np

    if not len(chunk):
        return
    missing = chunk.is_null().to_numpy(zero_copy_only=False)
    gaps.update(missing)
    if not _is_text(chunk.type):
        if chunk.null_count:
            # What lies under a gap is anything; nothing of it may count.
            _, buffer = chunk.buffers()
            width = chunk.type.bit_width // 8
            whole = np.frombuffer(buffer, np.uint8).reshape(-1, width)
            data.update(whole[chunk.offset : chunk.offset + len(chunk)][~missing])
            return
        width = chunk.type.bit_width // 8
        first = chunk.offset * width
        data.update(memoryview(chunk.buffers()[1])[first : first + len(chunk) * width])
        return
    if chunk.null_count:
        chunk = chunk.fill_null(b"" if "binary" in str(chunk.type) else "")
    wide = np.int64 if str(chunk.type).startswith("large") else np.int32
    _, places, content = chunk.buffers()
    ends = np.frombuffer(places, wide)[chunk.offset : chunk.offset + len(chunk) + 1]
    lengths.update(np.diff(ends).astype(np.int64))
    if content is not None:
        data.update(memoryview(content)[int(ends[0]) : int(ends[-1])])


def _polars(walk: Walk, value: Any) -> bytes:
    """As arrow has it, which shares the memory."""
    about = _plain(type(value).__name__, value.name, str(value.dtype))
    return sealed(b"polars", about, walk.token(value.to_arrow()))


def _polars_frame(walk: Walk, value: Any) -> bytes:
    kinds = [str(kind) for kind in value.dtypes]
    about = _plain(type(value).__name__, value.columns, kinds)
    return sealed(b"polars", about, walk.token(value.to_arrow()))


# ------------------------------------------------------------------------- others

SPARSE = ("data", "indices", "indptr", "row", "col", "coords", "offsets", "rows")


def _sparse(walk: Walk, value: Any) -> bytes:
    """The arrays of its format; flags that scipy sets on the way do not count."""
    held = {name: getattr(value, name) for name in SPARSE if hasattr(value, name)}
    if value.format == "dok":
        held["items"] = dict(value.items())
    return sealed(
        b"sparse", walk.tokens([type(value).__name__, value.shape, value.dtype, held])
    )


def _labelled(walk: Walk, value: Any) -> bytes:
    """A variable, array or data set of xarray."""
    names = [type(value).__name__, getattr(value, "name", None), dict(value.attrs)]
    if type(value).__name__ == "Dataset":
        held: Any = {name: value.variables[name] for name in value.variables}
        names.append(sorted(map(str, value.coords)))
    else:
        coords = getattr(value, "coords", {})
        held = [value.dims, value.values, {k: coords[k].variable for k in coords}]
    return sealed(b"labelled", walk.tokens([*names, held]))


def _tensor(walk: Walk, value: Any) -> bytes:
    import torch

    about = _plain(str(value.dtype), tuple(value.shape), bool(value.requires_grad))
    data = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return sealed(b"tensor", about, walk.token(data.numpy()))


LIBRARIES.update(
    {
        ("numpy", "ndarray"): _array,
        ("numpy", "MaskedArray"): _masked,
        ("numpy", "generic"): _number,
        ("numpy", "dtype"): _dtype,
        ("pandas", "DataFrame"): _frame,
        ("pandas", "Series"): _series,
        ("pandas", "Index"): _index,
        ("pandas", "ExtensionArray"): _column,
        ("pyarrow", "Table"): _table,
        ("pyarrow", "RecordBatch"): _table,
        ("pyarrow", "ChunkedArray"): _chunks,
        ("pyarrow", "Array"): _chunks,
        ("polars", "DataFrame"): _polars_frame,
        ("polars", "Series"): _polars,
        ("scipy", "_spbase"): _sparse,
        ("xarray", "DataArray"): _labelled,
        ("xarray", "Dataset"): _labelled,
        ("xarray", "Variable"): _labelled,
        ("torch", "Tensor"): _tensor,
    }
)
