"""A log read for what is left of it.

Owns: finding the whole records among damaged ones, and what they come to, with the
checkpoint's help. Does not own: values that no record speaks of (`chest.recovery`).

A record's check is seeded with its number, so a record that was lost, or whose line was
broken in two, shifts the numbers of those behind it: they are looked for nearby.
"""

from __future__ import annotations

import os
import re
from collections.abc import Hashable, Iterator
from typing import NamedTuple

import msgspec

from chest import errors, keys, system
from chest.base import INDEX, About, alone
from chest.batches import Batch, dead_places, is_dead
from chest.checkpoint import Checkpoint, Damaged
from chest.facts import Problem
from chest.folder import Folder
from chest.index import Index
from chest.log import NAME
from chest.packs import Packs
from chest.records import MAGIC, SIGNED, WORD, Entry, Header, Lines

__all__ = ["Replay"]

NEAR = 1024  # how far a record's number may be from where it was expected
FAR = 1 << 16  # the same, of the first record behind a first line that is damaged


class _Line(NamedTuple):
    """A line of the log and where it begins."""

    at: int
    text: bytes


class Replay:
    """What a log, as far as it is whole, and its checkpoint say.

    Parameters
    ----------
    home : Folder
    packs : Packs
    lines : Lines

    Attributes
    ----------
    index : Index
        The entries that live.
    id : str
        The chest's; empty: not known.
    generation : int
        Of the last record that is known of.
    whole : bool
        The log is there, undamaged and not cut short.
    damaged, read : int
        Damaged records, and whole ones.
    problems : list of Problem
    ended : dict of key to int
        Keys that a whole record ended, and its number.
    ended_all : int
        The number of the last record that ended all keys, or that the checkpoint saw.

    Raises
    ------
    SignatureError
        The log is signed and there is no key, or another; or the other way round.
    VersionError
        A newer chest wrote it.
    """

    def __init__(self, home: Folder, packs: Packs, lines: Lines) -> None:
        self._home, self._packs, self._lines = home, packs, lines
        self.index = Index()
        self.id = ""
        self.generation = self.damaged = self.ended_all = self.read = 0
        self.problems: list[Problem] = []
        self.ended: dict[Hashable, int] = {}
        data = self._read(NAME)
        first, found = self._first_line(data)
        self.whole = first is not None
        number = -1 if first is None else first.generation
        self.generation = max(number, 0)
        about = self._checkpoint(first)
        if about is not None and (first is None or about.position <= len(data)):
            self._take_checkpoint(about)
            number = about.generation
            found = [line for line in found if line.at >= about.position]
        self._replay(found, number)
        if not lines.unsigned and first is None and not self.read:
            raise lines.corrupt(0, "nothing in it is whole and signed")
        torn = data[: WORD.stop][WORD.start :]
        if re.fullmatch(rb"[0-9a-f]{8}", torn) and int(torn, 16) > len(data):
            self.whole = False  # records that were announced are not there
        self.whole = self.whole and not self.damaged and not self.problems

    def _read(self, name: str) -> bytes:
        """A file of the folder; nothing where there is none."""
        try:
            fd = self._home.open(name)
        except FileNotFoundError:
            return b""
        try:
            return system.read_all(fd, 0, os.fstat(fd).st_size)
        finally:
            system.close(fd)

    # -- the log -----------------------------------------------------------------------

    def _first_line(self, data: bytes) -> tuple[Header | None, list[_Line]]:
        """What the first line says, if it is whole, and the lines after it."""
        parts = data.split(b"\n")
        lines, at = [], 0
        for text in parts:
            lines.append(_Line(at, text))
            at += len(text) + 1
        is_signed = any(_is_signed(line.text) for line in lines[1:])
        if is_signed == self._lines.unsigned and len(lines) > 2:
            # Says what is wrong: with a key too many, or without one.
            self._lines.is_check(b"0" * (SIGNED if is_signed else 16), b"", 0)
        if not data.startswith(MAGIC):
            return None, lines
        header, rest = self._header(parts[0]), lines[1:]
        if header is None:
            self.damaged += 1
            for head, tail in _broken(parts[0]):
                header = self._header(head)
                if header is not None:
                    rest = [_Line(len(head) + 1, tail), *rest]
                    break
        if header is not None:
            self.id, self.index = header.id, Index(header.birth, header.birth)
        return header, rest

    def _header(self, line: bytes) -> Header | None:
        """The first line, if it is whole."""
        try:
            return self._lines.read_first(line + b"\n")
        except errors.VersionError:
            raise
        except errors.CorruptError:
            return None

    def _replay(self, lines: list[_Line], number: int) -> None:
        """Apply the records that are whole; *number* is that before the first, or -1."""
        for place, line in enumerate(lines):
            last = place == len(lines) - 1
            if last and not line.text:
                return  # behind the last line feed
            if self._take(line.text, number):
                number = self.generation
            elif last:
                # Torn: it was being written, and never published; but for one that is
                # whole but for its end.
                self.damaged += self._take(line.text[:-1], number)
            else:
                self.damaged += 1
                number += number >= 0
                for head, tail in _broken(line.text):
                    if self._take(head, number - 1) | self._take(tail, number):
                        number = self.generation
                        break

    def _take(self, text: bytes, number: int) -> bool:
        """Apply the record of a line, if it is whole; *number* is the last one's."""
        found = self._entries(text, number)
        if found is None:
            return False
        self.generation, entries = found
        self.read += 1
        for entry in entries:
            self._apply(entry, self.generation)
        return True

    def _entries(self, text: bytes, number: int) -> tuple[int, list[Entry]] | None:
        """The number and the entries of a record; None when it is damaged."""
        check, _, body = text.partition(b" ")
        for candidate in _numbers(number, body):
            try:
                if self._lines.is_check(check, body, candidate):
                    entries = self._lines.read(text, candidate, 0)
                    return None if entries is None else (candidate, entries)
            except errors.ChestError:
                return None  # a check of another length, or nonsense under a good one
        return None

    def _apply(self, entry: Entry, number: int) -> None:
        """Let one entry change what lives."""
        entry.generation = entry.generation or number
        if entry.gone == "all":
            self.ended_all, self.ended = number, {}
            self.index.apply(None, entry)
            return
        if entry.count:
            self._apply_batch(entry)
            return
        try:
            key = keys.decode(entry.text, None)
        except (ValueError, TypeError):
            self.damaged += 1
            return
        if entry.gone:
            self.ended[key] = number
        else:
            self.ended.pop(key, None)
        self.index.apply(key, entry)

    def _apply_batch(self, record: Entry) -> None:
        """The same of a batch, unless its own index is damaged or gone."""
        if is_dead(record):
            self.index.apply_batch(Batch(record), (), dead_places(record))
            return
        try:
            batch = Batch(record, self._packs.block(record))
            named = batch.keys(None)
        except (errors.ChestError, OSError, ValueError) as error:
            path = self._home.join(record.name)
            text = f"{record.count} values cannot be told: {error}"
            self.problems.append(Problem(None, path, text))
            return
        dead = dead_places(record)
        for place, key in enumerate(named) if self.ended else ():
            if place not in dead:
                self.ended.pop(key, None)
        self.index.apply_batch(batch, named, dead)

    # -- the checkpoint ----------------------------------------------------------------

    def _checkpoint(self, first: Header | None) -> About | None:
        """What the checkpoint says of its log, if it is whole and this log's."""
        if not self._lines.unsigned:
            return None  # nothing in it is signed
        try:
            data = memoryview(bytearray(self._read(INDEX)))
            self._table = Checkpoint(data)
            self._table.check()
            about = msgspec.json.decode(self._table.about, type=About)
        except (Damaged, OSError, ValueError):
            return None
        if first is not None and (about.id, about.first) != (
            first.id,
            first.generation,
        ):
            return None
        return about

    def _take_checkpoint(self, about: About) -> None:
        """Begin with what the checkpoint says."""
        self.id = self.id or about.id
        self.generation = max(self.generation, about.generation)
        self.ended_all = about.generation
        self.index = Index(max(self.index.birth, about.birth), about.birth)
        for record in about.batches:
            self._apply_batch(record)
        for entry in alone(self._table):
            self._apply(entry, about.generation)


def _numbers(number: int, body: bytes) -> Iterator[int]:
    """Which numbers a record may have, the likeliest first; *number* is the last one's."""
    if number >= 0:
        yield number + 1
        for shift in range(1, NEAR):
            yield number + 1 + shift
            if number + 1 > shift:
                yield number + 1 - shift
        return
    # Behind a compaction each entry carries a generation, which is lower.
    found = re.search(rb'"g":(\d+)', body)
    lowest = int(found[1]) if found else 0
    yield from range(lowest, lowest + FAR)


def _broken(line: bytes) -> Iterator[tuple[bytes, bytes]]:
    """The ways in which a line may be two, whose line feed is damaged."""
    for match in re.finditer(rb"[0-9a-f]{16}(?:[0-9a-f]{16})? \t?[\[{]", line):
        if match.start():
            yield line[: match.start() - 1], line[match.start() :]


def _is_signed(line: bytes) -> bool:
    """Whether a line has a keyed check in front."""
    return re.match(rb"[0-9a-f]{32} \t?[\[{]", line) is not None
