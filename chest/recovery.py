"""A manifest that was lost or damaged, made anew from what else is there.

Owns: which values that no record speaks of are taken, and putting the new manifest in the
place of the old. Does not own: reading what is left of the log (`chest.replay`).

Nothing is decoded, so nobody's code runs: keys are taken as text, values by their
checksums. Only a new ``.keys`` and ``.index`` are written; no value is touched.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Hashable, Iterable, Iterator
from typing import Any, NamedTuple, cast

import msgspec

from chest import errors, keys, reprs, system
from chest.batches import Batch, Packed, dead_bits
from chest.facts import Problem, Recovered
from chest.folder import DAMAGED, PACK, SEAL, Folder, refusals
from chest.formats import footer as frame
from chest.formats.compressed import CODECS, Compressed, form_of
from chest.index import AnyEntry
from chest.log import MOVED, NAME
from chest.manifest import Manifest
from chest.opening import formats, open_folder
from chest.packs import Packs
from chest.protocols import Source as File
from chest.readtier import ReadTier
from chest.records import MAGIC, WORD, Entry, Lines
from chest.replay import Replay
from chest.rewrite import Rewrite, Source
from chest.settings import Settings, absolute
from chest.signing import Key
from chest.small import is_small
from chest.stores.local import LocalStore, untrusted

__all__ = ["recover"]

PLAIN = {b"CHESTPK1": "pickle", b"CHESTDT1": "data"}
COMPRESSED = b"CHESTPZ1"


class _Found(NamedTuple):
    """A value that no record speaks of: its own file, or a place in a batch."""

    when: float  # it was written
    entry: Entry  # its own, or the batch's
    place: int = -1  # in the batch


def recover(
    path: str | os.PathLike[str], *, progress: bool = False, **options: Any
) -> Recovered:
    """Make the manifest of a chest anew that was lost or damaged.

    What the checkpoint and the whole records of the log say is kept: keys, their order,
    generations, deadlines. Values that they do not speak of are taken from the files and
    packs, the newest of each key. The old manifest stays beside, as
    ``.keys-damaged-<number>``. A manifest that is whole is left as it is.

    Parameters
    ----------
    path : str or path
        The chest's folder. Others may have it open; they wait, and go on with the new
        manifest.
    progress : bool
        Show a progress bar.
    **options
        ``trust``, ``sign_key``, ``timeout`` and ``durability``, as of `chest.Chest`.

    Returns
    -------
    Recovered
        What was found, what is damaged, and which keys are uncertain: they may have been
        deleted, or have had a newer value.

    Raises
    ------
    ChestError
        It is no folder of a chest.
    UntrustedError
        Somebody else could have written the folder.
    SignatureError
        It is signed and *sign_key* is missing or another, or nothing signed is left.
    LockTimeout
        Somebody else held the lock for *timeout* seconds.
    StoreError
        The disk refused; the old manifest is as it was.

    Notes
    -----
    Reads every value once, to check it. In a signed chest, where a file's signature
    stands in its record, only what whole records speak of is kept. Values in the format
    of your own ``dump=``, and files of chest 0.2.3, do not say whose they are; those in
    the log are gone with their record.

    Examples
    --------
    >>> import chest, os
    >>> with chest.Chest("treasure") as c:
    ...     c["gold"] = list(range(1000))
    >>> os.unlink("treasure/.keys")
    >>> chest.recover("treasure").keys
    1
    >>> with chest.Chest("treasure") as c:
    ...     sum(c["gold"])
    499500
    """
    settings = Settings(**options)
    folder = absolute(path)
    if not os.path.isdir(folder):
        msg = f"{folder} is no folder of a chest"
        raise errors.ChestError(msg, path=folder)
    key = None if settings.sign_key is None else Key(settings.sign_key)
    home = open_folder(folder, settings)
    try:
        with refusals(folder, "could not be read"):
            ours = system.is_private(home.status())
            if settings.trust == "owner" and not ours:
                raise untrusted(folder, home.status())
        home.claim(settings.timeout)
        with refusals(folder, "could not be locked"):
            if not home.lock(settings.timeout):
                msg = f"{folder} is locked by {home.holder()}; waited {settings.timeout} s"
                raise errors.LockTimeout(msg, path=folder)
        try:
            with refusals(folder, "could not be recovered"):
                return _Recovery(home, settings, key, private=ours).run(progress)
        finally:
            home.unlock()
    finally:
        home.close()


class _Recovery:
    """One recovery, with the folder's lock held."""

    def __init__(
        self, home: Folder, settings: Settings, key: Key | None, *, private: bool
    ) -> None:
        trusts = settings.trust == "owner"
        self._home, self._settings = home, settings
        self._store = LocalStore(home, private=trusts, folder_is_private=private)
        self._packs = Packs(home, self._store.check_private)
        self._formats = formats(settings)
        # Nothing is published while values are checked.
        nobody = cast("Manifest", None)
        self._tier = ReadTier(
            self._store, self._packs, nobody, self._formats, full=True, key=key
        )
        sign = None if key is None else key.sign_record
        self._lines = Lines(home.join(NAME), sign)
        self._report = Recovered()
        self._batches: dict[int, Batch] = {}
        self._written: dict[tuple[str, int], float] = {}  # when each batch was

    def run(self, progress: bool) -> Recovered:
        """All of it."""
        try:
            return self._run(progress)
        finally:
            self._packs.close()

    def _run(self, progress: bool) -> Recovered:
        replay, report = Replay(self._home, self._packs, self._lines), self._report
        if replay.whole:
            report.keys = report.told = len(replay.index)
            return report
        report.problems, report.records = replay.problems, replay.damaged
        names = sorted(self._home.names())
        if not (replay.id or replay.read or any(self._store.sealed())):
            # Also the key list of chest 0.2.3, whose files say nothing.
            msg = f"{self._home.path} holds nothing that a chest can be made from"
            raise errors.ChestError(msg, path=self._home.path)
        self._check_told(replay, progress)
        report.told = len(replay.index)
        if self._lines.unsigned:
            self._take_found(replay, self._found(replay, names, progress))
        report.keys = len(replay.index)
        self._replace(replay)
        return report

    # -- what records speak of ---------------------------------------------------------

    def _check_told(self, replay: Replay, progress: bool) -> None:
        """Read every value that is known; forget those that are gone."""
        entries = replay.index.items()
        self._bad: set[Hashable] = set()
        for key, entry in reprs.shown(entries, "check", show=progress):
            error = self._tier.verify(key, entry)
            if error is None or not isinstance(error, errors.CorruptError):
                continue  # what a format says that is not read here is no damage
            path = self._home.join(entry.name)
            self._report.problems.append(Problem(key, path, str(error)))
            self._bad.add(key)
            if entry.name and self._home.stat(entry.name) is None:
                replay.index.apply(key, Entry(entry.text, gone="key"))

    # -- what no record speaks of ------------------------------------------------------

    def _found(
        self, replay: Replay, names: Iterable[str], progress: bool
    ) -> dict[Hashable, _Found]:
        """The newest value of each key in files and batches that nobody speaks of."""
        held = replay.index.names()
        known = {(batch.name, batch.record.start) for batch in replay.index.batches}
        newest: dict[Hashable, _Found] = {}
        for name in reprs.shown(sorted(names), "search", show=progress):
            found: Iterable[tuple[Hashable, _Found]] = ()
            if name.startswith(PACK):
                found = self._in_pack(name, known, replay)
            elif not name.startswith(".") and name not in held:
                found = self._in_file(name)
            for key, each in found:
                other = newest.get(key)
                if other is None or other.when <= each.when:
                    newest[key] = each
        return newest

    def _in_pack(
        self, name: str, known: set[tuple[str, int]], replay: Replay
    ) -> Iterator[tuple[Hashable, _Found]]:
        """The values of a pack's batches that the log does not speak of."""
        try:
            walked = list(self._packs.walk(name))
        except (OSError, errors.ChestError) as error:
            self._problem(name, error)
            return
        for record, when in walked:
            self._written[name, record.start] = when
            told = record.generation < replay.ended_all  # then they are known, or dead
            if (name, record.start) in known or told:
                continue
            try:
                batch = Batch(record, self._packs.block(record))
                named = batch.keys(None)
            except (OSError, ValueError, errors.ChestError) as error:
                self._problem(name, error)
                continue
            self._batches[id(record)] = batch
            whole = {at for at, _ in self._packs.read_many(batch, range(len(named)))}
            for place, key in enumerate(named):
                if place not in whole:
                    path = self._home.join(name)
                    self._report.problems.append(Problem(key, path, "damaged"))
                elif replay.ended.get(key, -1) <= record.generation:
                    yield key, _Found(when, record, place)

    def _in_file(self, name: str) -> Iterator[tuple[Hashable, _Found]]:
        """The value of a file that says whose it is."""
        status = self._home.stat(name)
        if status is None:
            return
        is_folder = stat.S_ISDIR(status.st_mode)
        try:
            entry = self._sealed(name) if is_folder else self._footed(name)
            if entry is not None:
                yield keys.decode(entry.text, None), _Found(status.st_mtime, entry)
        except (OSError, ValueError, errors.ChestError) as error:
            self._problem(name, error)

    def _footed(self, name: str) -> Entry | None:
        """The entry of a file with a footer, every byte of which was checked."""
        source = self._store.source(
            name, key=name, size=None, mapped="r", runs_code=False
        )
        magic = bytes(source.data[-8:])
        form = PLAIN.get(magic, self._codec(source) if magic == COMPRESSED else "")
        if not form:
            return None  # not ours, or in a format that does not say
        if form not in self._formats:
            msg = f"{source.path} is a pickle, and trust='data' reads none"
            raise errors.UntrustedError(msg, path=source.path)
        reader = self._formats[form]
        size = len(source.data)
        if isinstance(reader, Compressed):
            source, reader = reader.plain(source), self._formats["pickle"]
            magic = b"CHESTPK1"
        footer = frame.open_footer(source, magic, None)
        reader.check(source, file_id=footer.id)
        return Entry(
            msgspec.json.decode(footer.key),
            name=name,
            size=size,
            digest=frame.value_digest(footer),
            format=form,
            file_id=footer.id,
            python=footer.python,
        )

    @staticmethod
    def _codec(source: File) -> str:
        """The format of a compressed file, by how its first frame begins."""
        begins = {b"\x28\xb5\x2f\xfd": "zstd", b"\x04\x22\x4d\x18": "lz4"}
        codec = begins.get(bytes(source.data[:4]), "")
        return form_of(codec) if codec in CODECS else ""

    def _sealed(self, name: str) -> Entry:
        """The entry of a folder that is an array, every byte of which was checked."""
        from chest.formats import zarr_

        path = self._home.join(name)
        fd = self._home.open_folder(name)
        try:
            seal = zarr_.read_seal(fd, path, name)
            room = self._home.stat(f"{name}/{SEAL}")
        finally:
            self._home.close_folder(fd)
        entry = Entry(
            msgspec.json.decode(seal.key),
            name=name,
            size=seal.nbytes + (room.st_size if room else 0),
            digest=seal.digest(),
            format="zarr",
            file_id=seal.file_id,
        )
        self._tier.check_array(name, entry)
        return entry

    def _problem(self, name: str, error: Exception) -> None:
        self._report.problems.append(Problem(None, self._home.join(name), str(error)))

    def _take_found(self, replay: Replay, newest: dict[Hashable, _Found]) -> None:
        """Let those live whose key has no value that is known and whole."""
        index = replay.index
        taken = {
            key: found
            for key, found in newest.items()
            if key in self._bad or self._is_newer(found, index.get(key))
        }
        places: dict[int, dict[int, Hashable]] = {}
        for key, found in taken.items():
            if found.place >= 0:
                places.setdefault(id(found.entry), {})[found.place] = key
        batches = [self._batches[each] for each in places]
        for batch in sorted(batches, key=lambda batch: batch.record.birth):
            live = places[id(batch.record)]
            dead = frozenset(range(batch.record.count)) - live.keys()
            batch.record.generation = replay.generation = replay.generation + 1
            if dead:
                batch.record.dead = dead_bits(batch.record.count, dead)
            index.apply_batch(batch, batch.keys(None), dead)
        files = [(found.when, found.entry, key) for key, found in taken.items()]
        for _, entry, key in sorted(files, key=lambda each: each[:1]):
            if entry.count:
                continue
            old = index.get(key)
            entry.birth = old.birth if old else index.next_birth()
            entry.generation = replay.generation = replay.generation + 1
            index.apply(key, entry)
        self._report.uncertain = [key for key in index.ordered() if key in taken]

    def _is_newer(self, found: _Found, told: AnyEntry | None) -> bool:
        """Whether a value that no record speaks of came after the one they tell of.

        A file goes once its key has a new value, so one that is there was not replaced.
        """
        if told is None:
            return True
        if not is_small(told):
            return False
        if found.place >= 0:
            return found.entry.generation >= told.generation
        if type(told) is not Packed:
            return True
        record = told.batch.record
        return found.when > self._written.get((record.name, record.start), 0.0)

    # -- the new manifest --------------------------------------------------------------

    def _replace(self, replay: Replay) -> None:
        """Write a manifest of what lives, and put it in the place of the old one."""
        word = replay.id or secrets.token_hex(8)
        source = Source(word, 0, replay.generation + 1, 0, 0)
        rewrite = Rewrite(self._home, self._lines, replay.index, source)
        try:
            rewrite.write(log=True)
            self._keep_old()
            rewrite.place(sync=self._settings.durability == "power")
        finally:
            rewrite.discard()

    def _keep_old(self) -> None:
        """Give the old manifest a second name, and tell those who have it open."""
        status = self._home.stat(NAME)
        if status is None:
            return
        number, name = 1, f"{DAMAGED}1"
        # One that a recovery kept that was killed before it ended is the same file.
        while (there := self._home.stat(name)) and not os.path.samestat(there, status):
            number += 1
            name = f"{DAMAGED}{number}"
        if there is None:
            self._home.link(self._home.join(NAME), name)
        self._report.kept = self._home.join(name)
        fd = self._home.open(NAME, os.O_RDWR)
        try:
            if system.read_all(fd, 0, len(MAGIC)) == MAGIC:
                system.pwrite_all(fd, MOVED, WORD.start)
        finally:
            system.close(fd)
