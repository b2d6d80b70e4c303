"""Values as data: what ``trust="data"`` writes and reads; no pickle, no code.

Owns: which types are data, and how each is written down so that it comes back equal and
of the same type, or is refused before anything is written.
Does not own: the frame of the file (`chest.formats.footer`; the magic is CHESTDT1).

The in-band bytes are one JSON text, at the very beginning of the file. ``null``,
booleans, strings, floats and integers of less than 64 bits stand for themselves;
everything else is a list that begins with a tag::

    ["l", …]  list        ["t", …]  tuple       ["s", …]  set     ["fs", …]  frozenset
    ["d", k, v, k, v, …]  dict                  ["i", "ff"]       int, hexadecimal
    ["f", "<16 digits>"]  float that is not finite, its 8 bytes
    ["c", re, im]         complex               ["u", "<hex>"]    str with surrogates
    ["b", raw]  bytes     ["ba", raw]  bytearray    ["p", str]    Path
    ["dt", iso, fold, tz]  ["da", iso]  ["ti", iso, fold, tz]  ["td", days, s, µs]
    ["tz", null | offset, name]  ["zi", zone]   ["de", "1.50"]    Decimal
    ["id", "<hex>"]  UUID  ["r", start, stop, step]  range
    ["a", dtype, shape, order, raw]   numpy array; "ar": read-only, in the text
    ["n", dtype, raw]     numpy scalar
    ["at", raw]  ["df", raw]  ["se", name, raw]   Arrow IPC

``raw`` is the number of a buffer, or a base64 string when it is shorter than 1 KiB.
Reading makes these types and nothing else: no name in the file is looked up.
"""

from __future__ import annotations

import zoneinfo
from typing import TYPE_CHECKING

import msgspec

from chest.errors import DecodingError, EncodingError, short
from chest.formats import footer as frame
from chest.formats.data.decoding import Decoder
from chest.formats.data.encoding import Encoder, RefusedError
from chest.protocols import Receipt

if TYPE_CHECKING:
    from chest.protocols import Buffer, Sink, Source

__all__ = ["Data"]

MAGIC = b"CHESTDT1"

_to_json = msgspec.json.Encoder().encode
_from_json = msgspec.json.Decoder().decode


class Data:
    """Arrays, tables, frames and plain containers, without pickle.

    Examples
    --------
    >>> Data().name
    'data'
    >>> Data().digest(lambda: None) is None
    True
    """

    name = "data"

    def dump(self, value: object, sink: Sink, *, key: str, file_id: str) -> Receipt:
        """Write *value*, or refuse it before anything is written.

        Raises
        ------
        EncodingError
            There is something inside that is not data, or too deep, or contains
            itself; the message has its type and place.
        OSError
            From the sink, as it came.
        """
        return Receipt(_written(value, sink, key, file_id))

    def digest(self, value: object) -> str | None:
        """What `dump` would return as digest; None where it would refuse."""
        try:
            return _written(value, None, "", "")
        except EncodingError:
            return None

    def load(self, source: Source, *, file_id: str | None, full: bool) -> object:
        """Read a value back; nothing in the file can make it run code.

        Raises
        ------
        CorruptValueError
            The file is damaged, or is not of this format.
        DecodingError
            The file is whole but needs a package, or a time zone, that is not here.
        """
        footer = frame.open_footer(source, MAGIC, file_id)
        parts = list(frame.pieces(source, footer))
        frame.check_skeleton(source, footer, parts)
        if full or not source.mapped:
            frame.check_payloads(source, footer)
        try:
            node = _from_json(b"".join(parts))
            value = Decoder(_buffers(source, footer)).value(node)
        except MemoryError:
            raise
        except (ImportError, zoneinfo.ZoneInfoNotFoundError) as error:
            raise _undecodable(source, error) from error
        except Exception as error:  # an impossible text fails in the type it names
            raise frame.corrupt(source, f"its text makes no sense ({error})") from error
        frame.remember(source, footer)
        return value

    def check(self, source: Source, *, file_id: str | None) -> None:
        """Read every byte and raise `CorruptValueError` if one is not what was written."""
        footer = frame.open_footer(source, MAGIC, file_id)
        frame.check_skeleton(source, footer, list(frame.pieces(source, footer)))
        frame.check_payloads(source, footer)


def _buffers(source: Source, footer: frame.Footer) -> list[Buffer]:
    """The file's buffers: slices of the map, or copies of one's own."""
    buffers: list[Buffer] = []
    for _, at, size, readonly, _ in footer.buffers:
        view = source.data[at : at + size]
        own = view if source.mapped else memoryview(bytearray(view))
        buffers.append(own.toreadonly() if readonly else own)
    return buffers


def _undecodable(source: Source, error: Exception) -> DecodingError:
    """Say what is missing here."""
    message = (
        f"the value of key {short(source.key)} is whole, but cannot be read here: "
        f"{error}. Install what it needs, tzdata for a time zone. ({source.path})"
    )
    return DecodingError(message, key=source.key, path=source.path)


# --------------------------------------------------------------------- writing


def _written(value: object, sink: Sink | None, key: str, file_id: str) -> str:
    """Encode all of it, then write; the digest is returned."""
    encoder = Encoder()
    try:
        text = _to_json(encoder.value(value))
    except RecursionError as error:
        raise _refused(value, key, encoder.place(), "is nested too deeply") from error
    except RefusedError as refused:
        what = str(refused)
        raise _refused(value, key, encoder.place(), what) from refused.__cause__
    body = frame.Body(sink)
    body.add(text)
    for payload, readonly in encoder.buffers:
        gap = bytes(-body.at % frame.ALIGNMENT)
        body.add_payload(gap, payload, readonly=readonly)
    return body.finish(MAGIC, key, file_id, None)


def _refused(value: object, key: str, place: str, what: str) -> EncodingError:
    """The error that names the type and the place."""
    message = (
        f"the value of key {key or 'unknown'}, a {type(value).__qualname__}, is not "
        f"data: value{place} {what}. With trust='data' pickle is never used; store "
        "arrays, tables, frames and plain containers, or open the chest with "
        "trust='owner'."
    )
    return EncodingError(message, key=key)
