"""The spill tier: values on disk.

Owns: the way of a value to its file and into the manifest. Does not own: what is in memory,
when anything is written, or how it is read back (`chest.readtier`).

Write: `encode` (no lock) → `publish` (under the lock: name, append) → unlink the old file.

Invariants
----------
S1  Nothing is unlinked before the record that replaces it was published.
S2  A failed `encode` or `publish` leaves no file and no record.
"""

from __future__ import annotations

import itertools
import logging
import os
import secrets
from collections.abc import (
    Callable,
    Collection,
    Hashable,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import AbstractContextManager
from typing import NamedTuple

import msgspec

from chest import errors, keys
from chest.arraytier import is_folder, zarr_
from chest.folder import PACK, TEMPORARY, refusals, refused
from chest.formats.compressed import dump_if_it_pays, form_of, ratio
from chest.index import AnyEntry
from chest.manifest import Manifest
from chest.memory import weigh
from chest.nesting import Nesting
from chest.packs import Packs
from chest.protocols import Format, Receipt
from chest.readtier import ReadTier
from chest.records import Entry
from chest.settings import Spelled
from chest.signing import Key
from chest.small import is_small
from chest.stores.local import Discard, Draft, FolderDraft, LocalStore

__all__ = ["Job", "SpillTier", "Written", "line_of"]

log = logging.getLogger("chest")

MOST_DRAFTS = 64  # files written before they are published: each holds a descriptor

WantedName = Callable[[Hashable], str]


class Job(NamedTuple):
    """One value to write."""

    key: Hashable
    value: object
    birth: int
    nbytes: int
    cost: float
    format: str
    mapped: str | None


class Written(NamedTuple):
    """A value in a file that nobody else sees yet, or that goes into the log itself."""

    key: Hashable
    entry: Entry
    draft: Draft | FolderDraft | None


class SpillTier(ReadTier):
    """The files and the manifest of one chest.

    Parameters
    ----------
    store : LocalStore
    packs : Packs
    manifest : Manifest
    formats : dict of str to Format
        By the name that entries carry.
    wanted_name : callable
        key → the name its file should have.
    full : bool
        Check mapped bytes as well (``verify="full"``).
    key : Key or None
        Signs and checks files in a signed chest.
    fallback : str
        The format of what is no array, where arrays have one of their own.
    compression : {"zstd", "lz4", "auto"} or None
        Of pickles whose key does not say otherwise.
    """

    def __init__(
        self,
        store: LocalStore,
        packs: Packs,
        manifest: Manifest,
        formats: dict[str, Format],
        *,
        wanted_name: WantedName,
        full: bool,
        key: Key | None,
        fallback: str = "pickle",
        compression: str | bool | None = None,
    ) -> None:
        super().__init__(store, packs, manifest, formats, full=full, key=key)
        self._wanted_name = wanted_name
        self._fallback = fallback
        self._compressed = form_of(compression)
        self._file_number = _file_numbers()
        self._left: set[str] = set()  # replaced folders that somebody reads
        self.nesting = Nesting(store.home.path)

    def exclusive(self) -> AbstractContextManager[None]:
        """Hold the lock between processes; see `Manifest.exclusive`."""
        return self.manifest.exclusive()

    def name(self, key: Hashable, value: object = None, form: str = "") -> str:
        """The name a new file for *key* would get now, written in the format *form*."""
        suffix = FolderDraft.suffix if self._gets_folder(form, value) else ""
        return self.store.free_name(self._checked_name(key), suffix)

    def _gets_folder(self, form: str, value: object) -> bool:
        # A folder's checksums are no protection from somebody who writes them anew.
        return form == "zarr" and self._key is None and self.is_array(value)

    def new_file_id(self) -> str:
        """A name that no other file of any chest carries."""
        return f"{self._file_number() & (2**64 - 1):016x}"

    # -- write -------------------------------------------------------------------------

    def encode_many(self, jobs: Sequence[Job]) -> list[Written | Exception]:
        """Write many values, one after the other; no lock.

        Checksums are computed beside the writing already; a second writer was measured
        to gain half in the best runs and to lose as much in others, on two cores.

        Returns
        -------
        list
            In the order of *jobs*; an exception where one could not be written.
        """
        written: list[Written | Exception] = []
        try:
            for job in jobs:
                written.append(self._attempt(job))  # noqa: PERF401 - discarded below
        except BaseException:
            self.discard(each for each in written if isinstance(each, Written))
            raise
        return written

    def encode(self, job: Job) -> Written:
        """Write one value to a file that nobody sees yet; no lock.

        Raises
        ------
        EncodingError, KeyEncodingError
            The value or the key cannot be written. No file is left.
        StoreError
            The disk refused. No file is left.
        """
        self.manifest.check_writable()
        with self.nesting.pickling(job.key):
            try:
                return self._encode_as_asked(job)
            except RuntimeError as error:
                if job.format != "zarr":
                    raise
                # When the interpreter ends, zarr cannot write any more.
                log.info("%s is no zarr array: %s", errors.short(job.key), error)
                return self._encode_as_asked(job._replace(format=self._fallback))

    def _encode_as_asked(self, job: Job) -> Written:
        draft: Draft | FolderDraft
        folder = self._gets_folder(job.format, job.value)
        if job.format == "zarr" and not folder:
            job = job._replace(format=self._fallback)
        try:
            draft = self.store.folder_draft() if folder else self.store.draft()
        except errors.DroppedError:
            self.store.home.check_open()  # as below
            raise
        except OSError as error:
            path = self.store.home.path
            raise refused(error, path, "takes no new file", job.key) from error
        try:
            if isinstance(draft, FolderDraft):
                return self._encode_array(job, draft)
            return self._encode(job, draft)
        except (OSError, errors.CorruptError) as error:
            draft.discard()
            self.store.home.check_open()  # a temporary folder goes when it is closed
            if isinstance(error, errors.ChestError):
                raise
            raise refused(error, draft.path, "could not be written", job.key) from error
        except errors.EncodingError as error:
            draft.discard()
            error.key, error.path = job.key, self.store.home.join(self.name(job.key))
            raise
        except BaseException:
            draft.discard()
            raise

    def inline(self, job: Job, data: bytes) -> Written:
        """A small value for the log itself."""
        entry = Entry(
            keys.encode(job.key),
            job.birth,
            size=len(data),
            nbytes=job.nbytes,
            mapped=job.mapped,
            value=data,
        )
        return Written(job.key, entry, None)

    def unfold(
        self, key: Hashable, entry: AnyEntry, theirs: SpillTier | None = None
    ) -> Written:
        """A file for a value that lies in a log or in a pack, as it is; no lock."""
        value = (theirs or self).read_small(key, entry)
        nbytes = entry.nbytes or weigh(value)[0]
        job = Job(key, value, entry.birth, nbytes, entry.cost, "pickle", entry.mapped)
        written = self.encode(job)
        written.entry.generation = entry.generation
        written.entry.expires = entry.expires
        written.entry.made = entry.made
        return written

    def publish(
        self,
        batch: Sequence[Written],
        *,
        gone: Sequence[Hashable] = (),
        moved: bool = False,
    ) -> list[str]:
        """Name the files and append one record; called within `exclusive`.

        The keys that are *gone*, which must be there, end in the same record, before
        those of the batch are set.

        Returns
        -------
        list of str
            Names that no record holds any more, for `delete` once the lock is free.

        Raises
        ------
        StoreError
            The disk refused. None of the batch was published, no file is left.
        """
        find = self.manifest.index.held
        ended = [(key, entry) for key in gone if (entry := find(key)) is not None]
        old = [entry for _, entry in ended]
        old += [entry for key, _, _ in batch if (entry := find(key)) is not None]
        pairs = [(key, Entry(each.text, gone="key")) for key, each in ended]
        pairs += [(key, entry) for key, entry, _ in batch]
        if not pairs:
            return []
        files = [each for each in batch if each.draft is not None]
        if not files:
            self.manifest.append(pairs, moved=moved)
        else:
            self._publish_files(files, pairs, moved=moved)
        if not moved:
            self.written += len(batch)
            self.written_bytes += sum(entry.size for _, entry, _ in batch)
        return self.retire(old)

    def _publish_files(
        self,
        files: Sequence[Written],
        pairs: Sequence[tuple[Hashable, Entry]],
        *,
        moved: bool,
    ) -> None:
        """Name *files* and append the record that speaks of them; or leave neither."""
        before = self.manifest.written
        try:
            with refusals(self.store.home.path, "takes no new name"):
                self._place(files)
                self.manifest.append(pairs, moved=moved)
            self._release(files)
        except BaseException:
            # Ctrl-C may come when the record is there already.
            if self.manifest.written == before:
                self.discard(files)
            else:
                self._release(files)
            raise

    @staticmethod
    def _release(batch: Iterable[Written]) -> None:
        """Let go of files that are published."""
        for written in batch:
            if written.draft is not None:
                written.draft.release()

    def _place(self, batch: Sequence[Written]) -> None:
        """Give the files their names."""
        for key, entry, draft in batch:
            assert draft is not None
            entry.name = self.store.place(draft, self._checked_name(key))
        if self.manifest.sync:
            for name in {os.path.dirname(entry.name) for _, entry, _ in batch}:
                self.store.home.sync(name + "/" if name else "")

    def discard(self, batch: Iterable[Written]) -> None:
        """Forget values that were written but not published."""
        for written in batch:
            if written.draft is not None:
                written.draft.discard()

    def remove(self, gone: Mapping[Hashable, AnyEntry]) -> list[str]:
        """Append tombstones; called within `exclusive`. Returns names to `delete`.

        *gone* has the live entry of each key, so that it need not be looked up again.
        """
        if gone:
            self.manifest.end(_texts(gone), gone)
        return self.retire(gone.values())

    def remove_all(self) -> list[str]:
        """Append the record that ends all keys; called within `exclusive`.

        Returns names to `delete`. Packs are removed here: whoever has one may publish
        another batch in it as soon as the lock is free.
        """
        index = self.manifest.index
        old, packs = index.filed(), {*index.packs}
        self.manifest.append([(None, Entry(gone="all"))])
        if packs:
            try:
                self.manifest.compact()  # the log names them no more
            except errors.StoreError as error:
                log.info("packs of %s are left: %s", self.store.home.path, error)
            else:
                self.delete(packs)
        return self.retire(old)

    def delete(self, names: Iterable[str]) -> None:
        """Remove files that no record holds any more; no lock.

        One that cannot be removed is left to the sweep: what it held is replaced already.
        A folder that somebody reads is tried again the next time, and by `close`.
        """
        again, self._left = self._left, set()
        for name in again.union(names):
            try:
                if name.startswith(PACK):
                    self.packs.delete(name)
                elif not self.store.delete(name) and name.startswith(TEMPORARY):
                    self._left.add(name)  # a name that nobody else will have
            except (OSError, errors.ClosedError) as error:
                log.info("%s is left: %s", self.store.home.join(name), error)

    def check_storable(self, key: Hashable, value: object, form: str) -> None:
        """Raise EncodingError when the format "data" refuses *value*; no lock."""
        if form == "zarr" and self._fallback == "data" and not self.is_array(value):
            form = "data"
        if form == "data":
            sink = Discard(self.store.home.join(self.name(key)))
            text = keys.text(key)
            try:
                self._formats[form].dump(value, sink, key=text, file_id="0" * 16)
            except errors.EncodingError as error:
                error.key, error.path = key, sink.path
                raise

    # -- upkeep ------------------------------------------------------------------------

    def adopt(
        self, key: Hashable, theirs: SpillTier, entry: AnyEntry, birth: int
    ) -> Written:
        """Take over another chest's value: its file by hard link, or by copy.

        Parameters
        ----------
        key : Hashable
        theirs : SpillTier
            The other chest's.
        entry : AnyEntry
            Theirs.
        birth : int
            That the key has here.
        """
        if is_small(entry):
            if entry.expires is not None and entry.value is not None:
                # A pack has no deadlines, and a file for each would be too many.
                new = self.in_log(key, entry.value, birth, entry.nbytes, entry)
                new.generation = 0
                return Written(key, new, None)
            written = self.unfold(key, entry, theirs)
            written.entry.birth, written.entry.generation = birth, 0
            return written
        path = theirs.store.home.join(entry.name)
        assert type(entry) is Entry
        new = msgspec.structs.replace(entry, birth=birth, generation=0, signature="")
        with refusals(self.store.home.path, f"takes no copy of {path}", key):
            self.manifest.check_writable()
            if is_folder(entry):
                return self._adopt_array(key, theirs, entry, new)
            draft = self.store.draft()
            try:
                if not draft.adopt(path):
                    with open(path, "rb") as file:
                        while block := file.read(1 << 20):
                            draft.write([block])
                draft.finish(sync=self.manifest.sync)
                if self._key is not None:
                    new.signature = self._key.sign_file(draft.view())
            except BaseException:
                draft.discard()
                raise
        return Written(key, new, draft)

    def _adopt_array(
        self, key: Hashable, theirs: SpillTier, entry: Entry, new: Entry
    ) -> Written:
        draft = self.store.folder_draft()
        try:
            self.link_array(key, theirs, entry, draft)
        except BaseException:
            draft.discard()
            raise
        return Written(key, new, draft)

    def sweep(self, held: Collection[str], listed: Iterable[str]) -> int:
        """Remove files of writers that died; called within `exclusive`.

        Those of the *listed* that are not *held*, by the manifest as it is now.
        """
        count = 0
        with refusals(self.store.home.path, "could not be swept"):
            for name in self.store.orphans(held, listed):
                self.delete([name])  # at once: its lock is held as far as the next one
                count += 1
        return count

    def close(self) -> None:
        """Release the descriptors. Safe to call twice."""
        self.delete(self.spares())
        self.manifest.close()

    def after_fork(self) -> None:
        """Stop sharing descriptors with the parent, in the child."""
        self.manifest.after_fork()
        self.nesting.after_fork()
        self._left = set()
        self.spares()  # the parent's to remove
        self._file_number = _file_numbers()

    # -- steps -------------------------------------------------------------------------

    def _attempt(self, job: Job) -> Written | Exception:
        """`encode`, with the exception as a result: others of the batch go on."""
        try:
            return self.encode(job)
        except errors.ChestError as error:
            return error

    def _encode(self, job: Job, draft: Draft) -> Written:
        file_id = self.new_file_id()
        form, receipt = self._dump(job, draft, file_id)
        draft.finish(sync=self.manifest.sync)
        entry = Entry(
            keys.encode(job.key),
            job.birth,
            size=draft.size,
            digest=receipt.digest,
            format=form.name,
            file_id=file_id,
            nbytes=job.nbytes,
            cost=round(job.cost, 6),
            python=receipt.python,
            mapped=job.mapped,
        )
        if self._key is not None:
            entry.signature = self._key.sign_file(draft.view())
        return Written(job.key, entry, draft)

    def _dump(self, job: Job, draft: Draft, file_id: str) -> tuple[Format, Receipt]:
        """Write the value in the format that was asked for, or that pays."""
        name, text = job.format, keys.text(job.key)
        if name == "pickle" and not isinstance(name, Spelled):
            name = self._compressed
        return dump_if_it_pays(
            self._formats, name, job.value, draft, key=text, file_id=file_id
        )

    @property
    def compression(self) -> float:
        """Bytes before compression over those after, of what was compressed; or 1."""
        return ratio(self._formats)

    def _encode_array(self, job: Job, draft: FolderDraft) -> Written:
        seal = zarr_().Seal(key=keys.text(job.key), file_id=self.new_file_id())
        options = getattr(job.format, "options", {})
        digest = zarr_().dump(
            job.value,
            draft.fd,
            path=draft.path,
            key=job.key,
            seal=seal,
            options=options,
        )
        entry = self.draft_entry(
            job.key,
            draft,
            seal,
            digest,
            birth=job.birth,
            nbytes=job.nbytes,
            cost=round(job.cost, 6),
            mapped=job.mapped,
        )
        return Written(job.key, entry, draft)

    def _checked_name(self, key: Hashable) -> str:
        """The wanted name, which may come from the user's own function."""
        name = self._wanted_name(key).replace(os.sep, "/")
        parts = name.split("/")
        if any(not part or part.startswith(".") or "\0" in part for part in parts):
            msg = (
                f"key_to_filename gave {name!r} for {errors.short(key)}: a relative "
                f"name is needed, no part of which is empty or begins with a dot"
            )
            raise errors.KeyEncodingError(
                msg,
                key=key,
            )
        return name


def _texts(live: Mapping[Hashable, AnyEntry]) -> list[bytes]:
    """The JSON texts of these keys, which have these entries."""
    if {*map(type, live)} == {str}:
        return keys.lines([*live])
    return [line_of(key, entry) for key, entry in live.items()]


def line_of(key: Hashable, entry: AnyEntry) -> bytes:
    """The JSON text of a key that has this entry."""
    # A str is its own text, which need not be read from a pack.
    return keys.line(key) if type(key) is str else msgspec.json.encode(entry.text)


def _file_numbers() -> Callable[[], int]:
    """Gives numbers that no other process gives, one after the other."""
    # No generator: that refuses a thread while it runs for another.
    return itertools.count(secrets.randbits(64)).__next__
