"""Pickles in fewer bytes: the file of `chest.formats.pickle5` as frames of a codec.

Owns: which codecs there are, the blocks of a compressed file and its end, whether
compression pays. Does not own: what is compressed (`chest.formats.pickle5`), who asks for
it.

The file is a plain ``.zst`` or ``.lz4`` file whose content is the pickle::

    frame_0 … frame_n    each of up to 4 MiB of the pickle
    skippable frame      which every decoder passes over:
        50 2A 4D 18 <u32 size>
        JSON             bytes of each frame, before and after compression
        <16 bytes>       xxh3_128 of all that comes before them in the file
        <u32 n> CHESTPZ1     n: bytes of the JSON

The codecs are imported when the first value is written or read.
"""

from __future__ import annotations

import functools
import struct
from importlib import import_module
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec
import xxhash

from chest.errors import DecodingError, EncodingError, MissingDependency
from chest.formats.footer import corrupt
from chest.protocols import Format, Receipt, Source

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from chest.protocols import Buffer, Sink

__all__ = [
    "CODECS",
    "Compressed",
    "NotWorthIt",
    "check_codec",
    "dump_if_it_pays",
    "form_of",
    "ratio",
]

CODECS = ("zstd", "lz4")
PACKAGES = {"zstd": ("numcodecs", "numcodecs"), "lz4": ("lz4", "'chest[lz4]'")}
AUTO = "pickle+auto"  # never written down: the trial decides what is
BLOCK = 4 << 20  # bytes compressed at a time
WORTH = 0.8  # of its size: what "auto" must get the first block down to
SKIPPED = struct.Struct("<II")  # magic, size of what follows
TRAILER = struct.Struct("<16sI8s")
SKIPPABLE, MAGIC = 0x184D2A50, b"CHESTPZ1"

_sizes = msgspec.json.Decoder(list[tuple[int, int]]).decode


class NotWorthIt(Exception):
    """From `Compressed.dump`: the first block hardly becomes smaller."""


class _Codec(NamedTuple):
    compress: Callable[[Any], bytes]
    decompress: Callable[[Any], bytes]


class Compressed:
    """Any picklable object, pickled and compressed.

    Parameters
    ----------
    codec : {"zstd", "lz4"}
    pickle : Format
        Makes the pickle.

    Attributes
    ----------
    raw, stored : int
        Bytes of what was written, before and after compression.

    Examples
    --------
    >>> from chest.formats.pickle5 import Pickle5
    >>> Compressed("zstd", Pickle5()).name
    'pickle+zstd'
    """

    def __init__(self, codec: str, pickle: Format) -> None:
        self.name = f"pickle+{codec}"
        self.raw = self.stored = 0
        self._codec = codec
        self._pickle = pickle

    def dump(
        self,
        value: object,
        sink: Sink,
        *,
        key: str,
        file_id: str,
        worth: float | None = None,
    ) -> Receipt:
        """Write *value*, a block after the other; the digest is that of its pickle.

        Raises
        ------
        EncodingError
            The value cannot be pickled, or the codec is not installed.
        NotWorthIt
            The first block takes more than *worth* of its size. The sink is to be
            started again.
        OSError
            From the sink, as it came.
        """
        try:
            codec = _codec(self._codec)
        except ImportError as error:
            msg = f"compression={self._codec!r} needs {_package(self._codec)}"
            raise EncodingError(msg, key=key) from error
        blocks = _Blocks(sink, codec, worth)
        receipt = self._pickle.dump(value, blocks, key=key, file_id=file_id)
        raw, stored = blocks.finish()
        self.raw += raw
        self.stored += stored
        return receipt

    def digest(self, value: object) -> str | None:
        """What `dump` would return as digest; nothing is compressed for it."""
        return self._pickle.digest(value)

    def load(self, source: Source, *, file_id: str | None, full: bool) -> object:
        """Read a value back; nothing of it is mapped.

        Raises
        ------
        CorruptValueError
            The file is damaged; told before anything is decompressed.
        DecodingError
            The codec, a module, or a Python that the value needs is not here.
        """
        plain = self.plain(source)
        return self._pickle.load(plain, file_id=file_id, full=full)

    def check(self, source: Source, *, file_id: str | None) -> None:
        """Raise what `load` would if a byte of the file is not what was written."""
        self._pickle.check(self.plain(source), file_id=file_id)

    def plain(self, source: Source) -> Source:
        """The file as it was before compression, in memory; raises as `check`."""
        sizes = _checked(source)
        try:
            codec = _codec(self._codec)
        except ImportError as error:
            msg = f"{source.path} can be read with {_package(self._codec)}"
            raise DecodingError(msg, key=source.key, path=source.path) from error
        data, start, at = bytearray(sum(raw for raw, _ in sizes)), 0, 0
        for raw, stored in sizes:
            try:
                block = codec.decompress(source.data[at : at + stored])
            except RuntimeError as error:  # what the codecs raise
                raise corrupt(source, f"{self._codec}: {error}") from error
            if len(block) != raw:
                raise corrupt(source, "a block has not the size that was written")
            data[start : start + raw] = block
            start, at = start + raw, at + stored
        return source._replace(data=memoryview(data), mapped=False, writable=False)


def form_of(compression: str | bool | None) -> str:
    """The format that a chest's or a key's ``compression=`` asks for.

    Examples
    --------
    >>> form_of("zstd"), form_of(None), form_of(False)
    ('pickle+zstd', 'pickle', 'pickle')
    """
    return f"pickle+{compression}" if compression else "pickle"


# -- steps -------------------------------------------------------------------------------


def dump_if_it_pays(
    formats: Mapping[str, Format],
    name: str,
    value: object,
    sink: Sink,
    *,
    key: str,
    file_id: str,
) -> tuple[Format, Receipt]:
    """Write *value* in the format *name* of *formats*; `AUTO`: compressed if that pays."""
    form = formats[form_of("zstd") if name == AUTO else str(name)]
    if name != AUTO:
        return form, form.dump(value, sink, key=key, file_id=file_id)
    assert isinstance(form, Compressed)
    try:
        return form, form.dump(value, sink, key=key, file_id=file_id, worth=WORTH)
    except NotWorthIt:
        sink.restart()
        form = formats["pickle"]
        return form, form.dump(value, sink, key=key, file_id=file_id)


def ratio(formats: Mapping[str, Format]) -> float:
    """Bytes before compression over those after, of what was compressed; or 1."""
    made = [form for form in formats.values() if isinstance(form, Compressed)]
    stored = sum(form.stored for form in made)
    return sum(form.raw for form in made) / stored if stored else 1.0


class _Blocks:
    """A sink in front of another one: cuts what comes into blocks, compresses them."""

    def __init__(self, sink: Sink, codec: _Codec, worth: float | None) -> None:
        self.path = sink.path
        self._sink, self._codec, self._worth = sink, codec, worth
        self._begin()

    def _begin(self) -> None:
        self._waiting = bytearray()
        self._sizes: list[tuple[int, int]] = []
        self._hasher = xxhash.xxh3_128()

    def restart(self) -> None:
        """Forget all that was written."""
        self._begin()
        self._sink.restart()

    def write(self, buffers: Sequence[Buffer]) -> None:
        """Take some bytes."""
        for buffer in buffers:
            view = memoryview(buffer).cast("B")
            while view.nbytes:
                if not self._waiting and view.nbytes >= BLOCK:
                    taken = BLOCK  # uncopied
                    self._compress(view[:BLOCK])
                else:
                    taken = min(BLOCK - len(self._waiting), view.nbytes)
                    self._waiting += view[:taken]
                    if len(self._waiting) == BLOCK:
                        self._compress_waiting()
                view = view[taken:]

    def _compress_waiting(self) -> None:
        waiting, self._waiting = self._waiting, bytearray()
        self._compress(waiting)

    def _compress(self, data: Buffer) -> None:
        block = self._codec.compress(data)
        first = not self._sizes
        if first and self._worth is not None and len(block) > self._worth * len(data):
            raise NotWorthIt
        self._sizes.append((len(data), len(block)))
        self._put(block)

    def _put(self, data: bytes) -> None:
        self._hasher.update(data)
        self._sink.write([data])

    def finish(self) -> tuple[int, int]:
        """Write what waits, and the end; bytes before and after compression."""
        if self._waiting:
            self._compress_waiting()
        text = msgspec.json.encode(self._sizes)
        self._put(SKIPPED.pack(SKIPPABLE, len(text) + TRAILER.size) + text)
        self._sink.write([TRAILER.pack(self._hasher.digest(), len(text), MAGIC)])
        return sum(raw for raw, _ in self._sizes), sum(n for _, n in self._sizes)


def _checked(source: Source) -> list[tuple[int, int]]:
    """The sizes of the blocks of a file whose every byte was checked."""
    data = source.data
    if data.nbytes < TRAILER.size or data[-len(MAGIC) :] != MAGIC:
        raise corrupt(source, "its end is missing, or it is no compressed file")
    end = data.nbytes - TRAILER.size
    digest, length, _ = TRAILER.unpack(data[end:])
    if xxhash.xxh3_128_digest(data[:end]) != digest:
        raise corrupt(source, "its checksum is wrong")
    try:
        sizes = _sizes(data[max(0, end - length) : end])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise corrupt(source, "its end makes no sense") from error
    if sum(stored for _, stored in sizes) + SKIPPED.size + length != end:
        raise corrupt(source, "its blocks are not as long as the file")
    return sizes


def check_codec(name: object) -> None:
    """Raise `MissingDependency` if *name* is a codec of an extra that is not installed."""
    if name == "lz4":
        try:
            _codec("lz4")
        except ImportError as error:
            msg = f"compression='lz4' needs {_package('lz4')}"
            raise MissingDependency(msg) from error


def _package(codec: str) -> str:
    """What has to be installed for a codec."""
    return f"the package {PACKAGES[codec][0]}: pip install {PACKAGES[codec][1]}"


@functools.cache
def _codec(name: str) -> _Codec:
    """The functions of a codec."""
    if name == "zstd":
        module = import_module("numcodecs.zstd")
        return _Codec(functools.partial(module.compress, level=1), module.decompress)
    module = import_module("lz4.frame")
    compress = functools.partial(module.compress, store_size=True)
    return _Codec(compress, module.decompress)
