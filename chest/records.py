"""The manifest's lines: a record as text, and its check.

Owns: what a record says (`Entry`), the first line, how both are written and checked. Does
not own: the file, its lock, what replaying it leaves.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Sequence
from typing import Any, Literal

import msgspec
import xxhash

from chest import errors

__all__ = ["MAGIC", "MARK", "Entry", "Header", "Lines", "Signer"]

MAGIC = b"chest "
VERSION = 1
SECTOR = 512  # bytes; a disk writes at least so many, or none
WORD = slice(8, 16)  # where the first line has the word for pollers
MARK = b"\t"  # before a record's JSON text, in which it cannot be
CHECK, SIGNED = 16, 32  # hexadecimal digits before a record: checksum, keyed hash
MOST_PLAIN = 4096  # lines read at once

Signer = Callable[[bytes, int], bytes]  # (JSON text, record's number) → 32 hex digits


class Entry(
    msgspec.Struct,
    omit_defaults=True,
    gc=False,
    rename={
        "text": "k",
        "birth": "b",
        "name": "n",
        "size": "z",
        "digest": "d",
        "format": "f",
        "file_id": "i",
        "nbytes": "m",
        "cost": "c",
        "python": "py",
        "mapped": "w",
        "signature": "s",
        "expires": "t",
        "value": "v",
        "count": "q",
        "start": "o",
        "at": "a",
        "rewritten": "r",
        "dead": "x",
        "made": "e",
        "generation": "g",
    },
):
    """The live fact that a record leaves about a key. Treated as immutable.

    Attributes
    ----------
    text : JSON value
        The key, as `chest.keys.encode` writes it.
    birth : int
        Orders the keys; given when the key was first set. 0, of a value in the log: that
        of the key's entry before, or one more than the highest of any record.
    name : str
        The value's file, relative to the chest's folder, ``/`` between folders.
    size : int
        Bytes of that file.
    digest : str
        Of the value, 32 hexadecimal digits; empty: not known (written by chest 0.2.3).
    format : str
        Which format reads it.
    file_id : str
        What the file's footer must say; empty: not known.
    nbytes : int
        Bytes the value took in memory when it was written.
    cost : float
        Seconds it took to make or load, for the policy ``"costly"``.
    made : int
        Unix time when it was computed, of results of memoized functions; of a batch the
        latest. 0: not known.
    python : int or None
        Minor version of Python that must read it.
    mapped : str or None
        The key's own ``mapped=``, when it has one.
    signature : str
        Keyed hash over the file, in a signed chest.
    expires : float or None
        Unix time [s] from which the key counts as absent.
    gone : str
        ``"key"``: a tombstone; ``"all"``: so is everything before; ``""``: live.
    generation : int
        The record's number, shown to users as etag.
    value : bytes or None
        The pickle itself, of a small value that has no file yet.
    count : int
        How many values a batch in a pack has; 0: this is no batch. Then ``name`` is the
        pack, ``size`` and ``digest`` are those of the batch's index, ``birth`` is the
        lowest of its births.
    start, at : int
        Where in the pack the batch's first value and its index lie.
    rewritten : bool
        The batch's index has a column of generations.
    dead : bytes or None
        Bits of the batch's values that are not live; compaction writes them down.
    """

    text: Any = None
    birth: int = 0
    name: str = ""
    size: int = 0
    digest: str = ""
    format: str = "pickle"
    file_id: str = ""
    nbytes: int = 0
    cost: float = 0.0
    python: int | None = None
    mapped: str | None = None
    signature: str = ""
    expires: float | None = None
    gone: str = ""
    generation: int = 0
    value: bytes | None = None
    count: int = 0
    start: int = 0
    at: int = 0
    rewritten: bool = False
    dead: bytes | None = None
    made: int = 0


class _Ended(
    msgspec.Struct, gc=False, forbid_unknown_fields=True, rename={"text": "k"}
):
    """A tombstone alone: an `Entry` for each of very many would take longer."""

    text: Any
    gone: Literal["key"]


class Header(msgspec.Struct, omit_defaults=True):
    """What the first line says of the whole file."""

    id: str
    generation: int = 0  # records before this file's first
    birth: int = 0  # highest birth number ever given
    signed: bool = False


_digest = xxhash.xxh3_64_hexdigest
_encode = msgspec.json.Encoder().encode
_decode_record = msgspec.json.Decoder(Entry | list[Entry]).decode
_decode_entry = msgspec.json.Decoder(Entry).decode
_decode_ended = msgspec.json.Decoder(list[_Ended]).decode
_decode_header = msgspec.json.Decoder(Header).decode


class Lines:
    """Writes and reads the lines of one manifest.

    Parameters
    ----------
    path : str
        Of the manifest, for messages.
    sign : callable, optional
        Makes the check of a record in a signed chest.
    """

    def __init__(self, path: str, sign: Signer | None) -> None:
        self.path = path
        self._sign = sign
        # (record, number) → the line of the record that is so many-th of the log.
        self.line: Callable[[Entry | list[Entry], int], bytes] = _line
        if sign is not None:
            self.line = lambda record, number: self._checked(_encode(record), number)

    @property
    def unsigned(self) -> bool:
        """Records carry checksums; a checkpoint, which has no signature, may be used."""
        return self._sign is None

    def first(self, header: Header) -> bytes:
        """The first line; its word says that nothing follows."""
        header.signed = self._sign is not None
        body = _encode(header)
        line = b"%s%d %%08x %s %s\n" % (MAGIC, VERSION, body, self._check(body, 0))
        return line.replace(b"%08x", b"%08x" % (len(line) + 4), 1)

    def marked(self, record: Entry | list[Entry], number: int) -> bytes:
        """`line`, with a `MARK`: nobody passes it over, who writes without reading."""
        return self._checked(MARK + _encode(record), number)

    def ending(self, texts: Sequence[bytes], number: int) -> bytes:
        """The line of the record that ends the keys with these JSON texts."""
        # What `line` makes of a tombstone for each, without making them.
        one = b',"gone":"key"}'
        body = b'{"k":' + (one + b',{"k":').join(texts) + one
        return self._checked(body if len(texts) == 1 else b"[%b]" % body, number)

    def read_first(self, line: bytes) -> Header:
        """What the first line says.

        Raises
        ------
        VersionError
            A newer chest wrote it.
        CorruptChestError, SignatureError
            Its check does not fit.
        """
        if not line:
            raise self.corrupt(0, "its first line is cut short")
        version = line[len(MAGIC) :].partition(b" ")[0]
        if version.isdigit() and int(version) > VERSION:
            msg = (
                f"{self.path} was written by a newer chest (format {int(version)}, "
                f"this one reads {VERSION}): pip install -U chest"
            )
            raise errors.VersionError(
                msg,
                path=self.path,
            )
        body, _, check = line[WORD.stop + 1 : -1].rpartition(b" ")
        if not self.is_check(check, body, 0):
            raise self.corrupt(0, "its first line is damaged")
        try:
            return _decode_header(body)
        except msgspec.MsgspecError as error:
            raise self.corrupt(0, str(error)) from error

    def read(self, line: bytes, number: int, offset: int) -> list[Entry] | None:
        """The entries of one line; None when its check does not fit.

        Raises
        ------
        CorruptChestError
            The check fits and the text makes no sense.
        """
        check, _, body = line.partition(b" ")
        if not self.is_check(check, body, number):
            return None
        try:
            record = _decode_record(body)
        except msgspec.MsgspecError as error:
            raise self.corrupt(offset, str(error)) from error
        return record if isinstance(record, list) else [record]

    def ended(self, line: bytes, number: int) -> list[Any] | None:
        """The texts of the keys that `ending` wrote, where there are several.

        None where `read` is needed: for other lines, and for damaged ones.
        """
        check, _, body = line.partition(b" ")
        if not (body.startswith(b'[{"k":') and body.endswith(b',"gone":"key"}]')):
            return None
        if not self.is_check(check, body, number):
            return None
        try:
            return [each.text for each in _decode_ended(body)]
        except msgspec.MsgspecError:
            return None  # the last of them ends a key, others do not

    def plain(
        self, data: bytes, start: int, number: int
    ) -> tuple[list[Entry], int, int]:
        """The entries of lines that speak of one key each, which is a str.

        Of *data* from *start* on, where the *number*-th record begins, up to a line that
        needs `read` (signed, damaged, a list, a batch, the end of all keys): its number
        and where it begins are returned as well; or up to the `MOST_PLAIN`-th. A counter
        that the next line counts on is passed over.
        """
        found: list[Entry] = []
        find, digest, decode = data.find, _digest, _decode_entry
        most = 0 if self._sign is not None else number + MOST_PLAIN
        same = b"\n"  # how the body of the last began, up to its value; no body does so
        passed = -1  # where the line before begins, if it is passed over
        while number < most and (end := find(b"\n", start)) >= 0:
            body = data[start + CHECK + 1 : end]
            if not data.startswith(digest(body, number).encode() + b" ", start):
                break
            if body.startswith(same) and data.startswith(same, end + CHECK + 2):
                # No file, no other place: nothing is left of it once the next is there.
                passed, start, number = start, end + 1, number + 1
                continue
            try:
                entry = decode(body)
            except msgspec.MsgspecError:
                break
            if type(entry.text) is not str:
                break  # also where it speaks of many keys
            if not entry.generation:
                entry.generation = number
            same, size = b"\n", body.find(b',"z":')
            if entry.value is not None and size > 0:
                same = body[: size + 5]
            found.append(entry)
            passed, start, number = -1, end + 1, number + 1
        if passed >= 0:  # the next is not there, as a whole
            start, number = passed, number - 1
        return found, number, start

    def is_check(self, check: bytes, body: bytes, number: int) -> bool:
        """Whether *check* is that of *body* as the *number*-th record."""
        if len(check) == SIGNED and self._sign is None:
            msg = f"{self.path} is signed: pass the key it was made with as sign_key="
            raise errors.SignatureError(
                msg,
                path=self.path,
            )
        if len(check) == CHECK and self._sign is not None:
            msg = f"{self.path} is not signed: open it without sign_key="
            raise errors.SignatureError(msg, path=self.path)
        return secrets.compare_digest(check, self._check(body, number))

    def check_torn(self, data: bytes, start: int, offset: int, read: int) -> None:
        """Pass over a last record that a power cut left half-written; else it is damage.

        It follows record *read*, and begins at *start* of the *data* from *offset* on.
        """
        # Blocks that never reached the disk read as zeros, and JSON text has none.
        end = data.index(b"\n", start)
        offset += start
        if end + 1 == len(data) and _is_torn(data[start:end], offset):
            return
        raise self.corrupt(offset, f"record {read + 1} is damaged")

    def check_newline(self, rest: bytes, offset: int, read: int) -> None:
        """A last line without its end is torn, unless only the end is damaged."""
        check, _, body = rest[:-1].partition(b" ")
        if rest and self.is_check(check, body, read + 1):
            raise self.corrupt(offset, f"the end of record {read + 1} is damaged")

    def corrupt(self, offset: int, what: str) -> errors.CorruptError:
        """The error for damage at byte *offset*."""
        folder = os.path.dirname(self.path)
        untouched = (
            "Nothing was changed; the values' files are untouched, and "
            f"'chest recover {folder}' makes the manifest anew from what is whole"
        )
        if self._sign is None:
            msg = f"{self.path} is damaged at byte {offset}: {what}. {untouched}"
            return errors.CorruptChestError(msg, path=self.path)
        msg = (
            f"{self.path} does not carry the signature of this sign_key= at byte "
            f"{offset} ({what}): another key made it, somebody without the key changed "
            f"it, or it is damaged. {untouched}"
        )
        return errors.SignatureError(msg, path=self.path)

    def _checked(self, body: bytes, number: int) -> bytes:
        """The line of the record with that text."""
        if self._sign is not None:
            return b"%b %b\n" % (self._sign(body, number), body)
        return _digest(body, number).encode() + b" " + body + b"\n"

    def _check(self, body: bytes, number: int) -> bytes:
        if self._sign is not None:
            return self._sign(body, number)
        return _digest(body, number).encode()


def _line(record: Entry | list[Entry], number: int) -> bytes:
    """A record with a checksum."""
    body = _encode(record)
    return _digest(body, number).encode() + b" " + body + b"\n"


def _is_torn(line: bytes, offset: int) -> bool:
    """Whole sectors of zeros are in the line, as far as they were written for it."""
    holes = [match.span() for match in re.finditer(rb"\0+", line)]
    return bool(holes) and all(
        (begin == 0 or not (offset + begin) % SECTOR) and not (offset + end) % SECTOR
        for begin, end in holes
    )
