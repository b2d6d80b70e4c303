r"""Plain pickles whose large buffers can be mapped.

Owns: how any Python object becomes a file that ``pickle.load`` of every Python from 3.8
on reads with nothing of ours installed, and that we read without copying.
Does not own: whether a pickle may be read here at all (trust is checked by the caller,
before `Pickle5.load`), and when a file is mapped.

The file (see `chest.formats.footer` for its end) is one protocol-5 pickle::

    0          80 05  95 <u64> …                  frames, as the pickler makes them
    end_i      'C' <u8 n> <n zero bytes> '0'      SHORT_BINBYTES, POP: pads to 64 bytes
               'B' <u32 n> | 8e <u64 n> | 96 <u64 n>    the header of the buffer
    payload_i  <n bytes>                          a read-only or writable buffer, raw
    …          94 …  '.'                          MEMOIZE, more of the same, STOP
    stop       the footer; its magic is CHESTPK1

``pickle.load`` sees bytes and bytearrays that are pushed, and pads that are pushed and
popped; it stops at STOP. We put ``NEXT_BUFFER`` (``97``, and ``98`` where it is
read-only) in the place of pad, header and payload, and give ``pickle.loads`` slices of
the map as its buffers. MEMOIZE follows in both cases, so the memo's numbers agree.
"""

from __future__ import annotations

import copyreg
import functools
import io
import pickle
import sys
from collections import ChainMap
from typing import TYPE_CHECKING, Any

from chest.errors import DecodingError, EncodingError, short
from chest.formats import footer as frame
from chest.protocols import NeedsPrivateMap, Receipt, Source
from chest.sizing import SCALARS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from chest.protocols import Buffer, Sink

__all__ = ["Pickle5", "undecodable", "unpickle"]

MAGIC = b"CHESTPK1"
LARGE = 1 << 16  # bytes; from here on the C pickler hands buffers over uncopied
SHORT_BINBYTES, POP = b"C", b"0"
BINBYTES, BINBYTES8, BYTEARRAY8 = b"B", b"\x8e", b"\x96"
BINUNICODE, BINUNICODE8 = b"X", b"\x8d"
NEXT_BUFFER, READONLY_BUFFER = b"\x97", b"\x98"
# How a pickle names these: an opcode for short strings, the length, the string.
MAIN = b"\x8c\x08__main__"
CLOUDPICKLE, CODE = b"\x8c\x17cloudpickle.cloudpickle", b"\x8c\x08CodeType"

# What pickle raises where cloudpickle may do better.
FAILURES = pickle.PicklingError | AttributeError | TypeError

Reduced = Any  # what a reducer may return: a tuple of 2 to 6, or a name


class Pickle5:
    """Any picklable object as a plain pickle with aligned buffers.

    Functions, and classes of ``__main__``, are pickled by value with cloudpickle.

    Examples
    --------
    >>> format = Pickle5()
    >>> format.name
    'pickle'
    >>> format.digest([1, 2, 3]) == format.digest([1, 2, 3])
    True
    """

    name = "pickle"

    def dump(self, value: object, sink: Sink, *, key: str, file_id: str) -> Receipt:
        """Write *value* in one pass, without a copy of its large buffers.

        Parameters
        ----------
        value : object
            Anything that pickle or cloudpickle can store.
        sink : Sink
            Receives batches of about 1 MiB; started again where cloudpickle is needed.
        key : str
            The manifest's text of the key.
        file_id : str
            16 hexadecimal digits.

        Returns
        -------
        Receipt
            Its digest does not depend on *key* and *file_id*.

        Raises
        ------
        EncodingError
            The value cannot be pickled; the cause is attached.
        OSError
            From the sink, as it came.
        """
        body, python = _pickled(value, sink, key)
        return Receipt(body.finish(MAGIC, key, file_id, python), python)

    def dumps(self, value: object) -> bytes | None:
        """The plain pickle of a small value; None where it takes more than pickle.

        That is, where a file has to be written to know, or to say what is wrong.
        """
        if type(value) in SCALARS:
            return pickle.dumps(value, 5)
        file = io.BytesIO()
        try:
            _Pickler(file, protocol=5).dump(value)
        except MemoryError:
            raise
        except Exception:  # noqa: BLE001 - writing the file meets it again, and tells
            return None
        data = file.getvalue()
        return None if b"__main__" in data or b"cloudpickle" in data else data

    # The value of a pickle that `dumps` made, and that was checked. This is `unpickle`,
    # without two calls of Python's, which would be a tenth of reading a small value.
    loads = staticmethod(pickle.loads)

    def digest(self, value: object) -> str | None:
        """What `dump` would return as digest; None where it cannot be pickled.

        Buffers in a read-only map of ours are recognised by their address, not read.
        """
        try:
            body, python = _pickled(value, None, "")
        except EncodingError:
            return None
        return body.finish(MAGIC, "", "", python)

    def load(self, source: Source, *, file_id: str | None, full: bool) -> object:
        """Read a value back.

        Parameters
        ----------
        source : Source
            If it is mapped, large buffers of the value are slices of the map, read-only
            unless the map is writable. Otherwise everything is copied.
        file_id : str or None
            ``None`` also accepts a pickle without our footer.
        full : bool
            Check mapped buffers as well.

        Returns
        -------
        object
            Costs about 10 µs for a mapped array of any size, and 35 µs with its map.

        Raises
        ------
        CorruptValueError
            The file is damaged, cut short, or not the one that was asked for.
        DecodingError
            The file is whole but needs a module, or a Python, that is not here.
        NeedsPrivateMap
            It holds tensors and the map is read-only. No value was made.
        """
        if file_id is None and not frame.is_sealed(source.data, MAGIC):
            return _load_legacy(source)
        footer = frame.open_footer(source, MAGIC, file_id)
        if not footer.buffers:
            whole = source.data[: footer.stop]
            frame.check_skeleton(source, footer, [whole])
            _check_python(source, footer.python)
            return _decoded(source, whole)
        parts = list(frame.pieces(source, footer))
        frame.check_skeleton(source, footer, parts)
        if full or not source.mapped:
            frame.check_payloads(source, footer)
        _check_python(source, footer.python)
        if not source.mapped:
            _check_gaps(source, footer)
            return _decoded(source, source.data[: footer.stop])
        skeleton = _skeleton(parts, footer.buffers)
        if not source.writable and b"from_numpy" in skeleton and b"torch" in skeleton:
            # A tensor knows no read-only memory: writing to it would kill the process.
            raise NeedsPrivateMap
        buffers = [source.data[at : at + size] for _, at, size, *_ in footer.buffers]
        value = _decoded(source, skeleton, buffers)
        frame.remember(source, footer)
        return value

    def check(self, source: Source, *, file_id: str | None) -> None:
        """Read every byte and raise `CorruptValueError` if one is not what was written.

        Nothing is unpickled; a pickle without our footer has no checksums to compare.
        """
        if file_id is None and not frame.is_sealed(source.data, MAGIC):
            return
        footer = frame.open_footer(source, MAGIC, file_id)
        frame.check_skeleton(source, footer, list(frame.pieces(source, footer)))
        frame.check_payloads(source, footer)
        _check_gaps(source, footer)


def unpickle(data: Buffer, buffers: Iterable[Buffer] | None = None) -> object:
    """Run a pickle. Only this and `Pickle5.loads` do: who gets here trusts the file."""
    return pickle.loads(data, buffers=buffers)


# --------------------------------------------------------------------- writing


class _NeedsCloudpickle(Exception):
    """A signal: a class of ``__main__`` was pickled by its name."""


class _File:
    """What the pickler writes to: sorts out buffers from in-band bytes."""

    def __init__(self, body: frame.Body, *, plain: bool) -> None:
        self.body = body
        self.plain = plain
        self.by_value = False
        self._last = b""
        self._seen_cloudpickle = False

    def write(self, data: bytes | pickle.PickleBuffer) -> None:
        """Take a frame, or the header of a buffer, or the buffer."""
        if isinstance(data, pickle.PickleBuffer):
            self._write_buffer(data.raw())
            return
        before, self._last = self._last, data
        self.body.add(before)
        if len(data) >= LARGE and before.endswith(_large_headers(len(data))):
            return  # one text or bytes, no opcodes
        if self.plain and MAIN in data:
            raise _NeedsCloudpickle
        if CLOUDPICKLE in data:
            self._seen_cloudpickle = True
        if self._seen_cloudpickle and CODE in data:
            self.by_value = True

    def flush(self) -> None:
        """Hand over the last in-band bytes, held back since they may be a header."""
        last, self._last = self._last, b""
        self.body.add(last)

    def _write_buffer(self, payload: memoryview) -> None:
        """Align a buffer, if the bytes before it are the header we expect."""
        header = _header(payload.nbytes, readonly=payload.readonly)
        if not self._last.endswith(header):
            # A pickler that works in another way: a valid pickle, not mapped by us.
            self.flush()
            self.body.add(bytes(payload))
            return
        self._last = self._last[: -len(header)]
        self.flush()
        gap = _pad(self.body.at, len(header)) + header
        self.body.add_payload(gap, payload, readonly=payload.readonly)


def _header(size: int, *, readonly: bool) -> bytes:
    """The opcode in front of a buffer."""
    if not readonly:
        return BYTEARRAY8 + size.to_bytes(8, "little")
    if size < 1 << 32:
        return BINBYTES + size.to_bytes(4, "little")
    return BINBYTES8 + size.to_bytes(8, "little")


def _large_headers(size: int) -> tuple[bytes, ...]:
    """The opcodes in front of a text or bytes, which are handed over by themselves."""
    wide = size.to_bytes(8, "little")
    headers: tuple[bytes, ...] = (
        BINUNICODE8 + wide,
        BINBYTES8 + wide,
        BYTEARRAY8 + wide,
    )
    if size < 1 << 32:
        headers += (BINUNICODE + wide[:4], BINBYTES + wide[:4])
    return headers


def _pad(end: int, header: int) -> bytes:
    """Opcodes without effect, so that what follows them and the header is aligned."""
    size = -(end + header) % frame.ALIGNMENT
    if size == 0:
        return b""
    if size < 3:
        size += frame.ALIGNMENT  # the opcodes alone take three bytes
    return SHORT_BINBYTES + bytes([size - 3]) + bytes(size - 3) + POP


def _pickled(
    value: object, sink: Sink | None, key: str
) -> tuple[frame.Body, int | None]:
    """One pass by pickle; a second one by cloudpickle where that is needed."""
    file, error = _pass(_Pickler, value, sink, plain=True)
    if isinstance(error, _NeedsCloudpickle | FAILURES):
        if sink is not None:
            sink.restart()
        file, second = _pass(_cloud_pickler(), value, sink, plain=False)
        error = second and (second if isinstance(error, _NeedsCloudpickle) else error)
    if error is not None:
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        message = (
            f"the value of key {key or 'unknown'}, a {kind}, cannot be pickled: "
            f"{type(error).__name__}: {error}. It was not stored."
        )
        raise EncodingError(message, key=key) from error
    return file.body, sys.version_info.minor if file.by_value else None


def _pass(
    pickler: Callable[..., Any], value: object, sink: Sink | None, *, plain: bool
) -> tuple[_File, Exception | None]:
    """Pickle once; an error of the value is returned, one of the sink is raised."""
    file = _File(frame.Body(sink), plain=plain)
    try:
        pickler(file, protocol=5).dump(value)
        file.flush()
    except MemoryError:
        raise
    except Exception as error:  # a __reduce__ may raise anything
        if error is file.body.failure:
            raise
        return file, error
    return file, None


def _reduce_array(array: Any) -> Reduced:
    """Let every large array without objects reach the file as one buffer."""
    dtype = array.dtype
    if array.nbytes < LARGE or dtype.hasobject or not dtype.itemsize:
        return array.__reduce_ex__(5)
    flags = array.flags
    if not (flags.c_contiguous or flags.f_contiguous):
        array = array.copy()
    try:
        memoryview(array)
    except (ValueError, TypeError, BufferError):
        # No buffer for times and for others' types, but there is one for their bytes.
        import numpy as np

        raw = "i8" if dtype.kind in "mM" else f"V{dtype.itemsize}"
        try:
            return np.ndarray.view, (array.view(raw), dtype)
        except (ValueError, TypeError):
            return array.__reduce_ex__(5)
    return array.__reduce_ex__(5)


def _reduce_subclass(array: Any) -> Reduced:
    """An array of a class that adds no state: the array, and which class."""
    import numpy as np

    if array.nbytes < LARGE or array.dtype.hasobject:
        return array.__reduce_ex__(5)
    return np.ndarray.view, (array.view(np.ndarray), type(array))


def _reduce_masked(array: Any) -> Reduced:
    """Data and mask as two arrays."""
    import numpy as np

    ordinary = type(array.data) is np.ndarray
    if array.nbytes < LARGE or array.dtype.hasobject or not ordinary:
        return array.__reduce_ex__(5)
    arguments = (array.data, array.mask, None, False, True, 0, array._fill_value)
    return np.ma.MaskedArray, (*arguments, True, array.hardmask, False)


def _reduce_tensor(tensor: Any) -> Reduced:
    """A tensor in main memory as an array and what makes a tensor of it again."""
    torch = sys.modules["torch"]
    plain = (
        tensor.device.type == "cpu"
        and tensor.layout is torch.strided
        and not (tensor.is_quantized or tensor.is_conj() or tensor.is_neg())
        and not (tensor.__dict__ or tensor._backward_hooks)
        and not any(getattr(tensor, "names", ()))
    )
    if not plain:
        return tensor.__reduce_ex__(5)
    if tensor.nbytes < LARGE:
        if tensor.untyped_storage().nbytes() >= LARGE:
            # A row, say: torch would write all that it is a row of.
            tensor = tensor.detach().clone().requires_grad_(tensor.requires_grad)
        return tensor.__reduce_ex__(5)
    if tensor.requires_grad:
        return torch.Tensor.requires_grad_, (tensor.detach(),)
    if not tensor.is_contiguous():
        steps = zip(tensor.shape, tensor.stride(), strict=True)
        span = 1 + sum((length - 1) * stride for length, stride in steps)
        if span > tensor.numel():  # a part with gaps, which need not be kept
            return _reduce_tensor(tensor.contiguous())
        flat = tensor.as_strided((span,), (1,))
        return torch.as_strided, (flat, tuple(tensor.shape), tensor.stride())
    try:
        return torch.from_numpy, (tensor.numpy(),)
    except (TypeError, RuntimeError):  # bfloat16 and others that numpy has not
        return torch.Tensor.view, (tensor.view(torch.uint8), tensor.dtype)


# By module and name, so that nothing is imported for it.
REDUCERS: dict[tuple[str, str], Callable[[Any], Reduced]] = {
    ("numpy", "ndarray"): _reduce_array,
    ("numpy", "memmap"): _reduce_subclass,
    ("numpy", "recarray"): _reduce_subclass,
    ("numpy.ma", "MaskedArray"): _reduce_masked,
    ("torch", "Tensor"): _reduce_tensor,
}


class _Reducers(dict[type, Any]):
    """Our reducers by type, each found when its type is first met; then copyreg's."""

    def __missing__(self, kind: type) -> Any:
        for (module, name), reducer in REDUCERS.items():
            if kind.__name__ == name:
                # Whoever has such an object has imported where its type comes from.
                home = sys.modules.get(module)
                if getattr(home, name, None) is kind:
                    self[kind] = reducer
                    return reducer
        return copyreg.dispatch_table[kind]


class _Pickler(pickle.Pickler):
    """The C pickler with our reducers."""

    dispatch_table = _Reducers()


@functools.cache
def _cloud_pickler() -> Callable[..., Any]:
    """Cloudpickle's pickler with our reducers."""
    import cloudpickle

    theirs = cloudpickle.Pickler
    # Cloudpickle would store what the file holds and give back another kind of object.
    refused = {io.TextIOWrapper: _refuse_file}
    table = ChainMap(refused, _Pickler.dispatch_table, theirs.dispatch_table)
    return type("_CloudPickler", (theirs,), {"dispatch_table": table})


def _refuse_file(file: io.TextIOWrapper) -> Reduced:
    msg = f"{file.name!r} is an open file; store its name, or what it holds"
    raise TypeError(msg)


# --------------------------------------------------------------------- reading


def _load_legacy(source: Source) -> object:
    """A pickle without footer: chest 0.2.3's, or one somebody put there."""
    try:
        return _decoded(source, source.data)
    except DecodingError as error:
        if isinstance(error.__cause__, pickle.UnpicklingError | EOFError):
            raise frame.corrupt(source, "it is no whole pickle") from error.__cause__
        raise


def _decoded(
    source: Source, data: Buffer, buffers: Iterable[Buffer] | None = None
) -> object:
    """Unpickle bytes that were checked."""
    try:
        return unpickle(data, buffers)
    except MemoryError:
        raise
    except Exception as error:  # a pickle may raise anything
        raise undecodable(source.path, source.key, error) from error


def undecodable(path: str, key: object, error: Exception) -> DecodingError:
    """Say what is missing here."""
    advice = "Read it where it was written, or set the key again."
    if isinstance(error, ModuleNotFoundError):
        advice = f"Install or import what provides {error.name!r}."
    elif isinstance(error, AttributeError | ImportError):
        advice = "A class or function it needs was renamed or moved; bring it back."
    message = (
        f"the value of key {short(key)} is whole, but cannot be unpickled here: "
        f"{type(error).__name__}: {error}. {advice} ({path})"
    )
    return DecodingError(message, key=key, path=path)


def _check_python(source: Source, minor: int | None) -> None:
    """Refuse code of another Python: running it crashes the process."""
    if minor is None or minor == sys.version_info.minor:
        return
    message = (
        f"the value of key {short(source.key)} holds code of Python 3.{minor}, which "
        f"this Python 3.{sys.version_info.minor} cannot run. Read it with Python "
        f"3.{minor}, or store functions and classes that can be imported. "
        f"({source.path})"
    )
    raise DecodingError(message, key=source.key, path=source.path)


def _check_gaps(source: Source, footer: frame.Footer) -> None:
    """Compare pads and headers, which no checksum covers, with what they must be."""
    for end, payload, size, readonly, _ in footer.buffers:
        header = _header(size, readonly=readonly)
        if source.data[end:payload] != _pad(end, len(header)) + header:
            raise frame.corrupt(
                source, f"the header of the buffer at {payload} is wrong"
            )


def _skeleton(parts: list[memoryview], buffers: list[frame.Entry]) -> bytes:
    """The pickle with each buffer replaced by a reference to the next one given."""
    joined: list[Buffer] = [parts[0]]
    for part, entry in zip(parts[1:], buffers, strict=True):
        joined.append(NEXT_BUFFER + READONLY_BUFFER if entry.readonly else NEXT_BUFFER)
        joined.append(part)
    return b"".join(joined)
