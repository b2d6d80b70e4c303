"""The spill tier: values on disk.

Owns: the way of a value to its file and into the manifest, and back. Does not own: what
is in memory, or when anything is written.

Write: `encode` (no lock) → `publish` (under the lock: name, append) → unlink the old file.
Read: manifest → store (open, map) → format.

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
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import NamedTuple

import xxhash

from chest import errors, keys, system
from chest.folder import refusals, refused
from chest.manifest import Manifest
from chest.protocols import Format
from chest.records import Entry
from chest.signing import Key
from chest.stores.local import Draft, LocalStore

__all__ = ["Job", "Loaded", "SpillTier", "Written", "missing"]

BESIDE_FROM = 8 << 20  # bytes in all; below, a second writer costs more than it gains
RUN_CODE = frozenset({"pickle", "custom"})  # formats that name code to be run
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
    """A value in a file that nobody else sees yet."""

    key: Hashable
    entry: Entry
    draft: Draft


class Loaded(NamedTuple):
    """A value read back."""

    value: object
    mapped: bool  # it may hold slices of a read-only map
    seconds: float


class SpillTier:
    """The files and the manifest of one chest.

    Parameters
    ----------
    store : LocalStore
    manifest : Manifest
    formats : dict of str to Format
        By the name that entries carry.
    wanted_name : callable
        key → the name its file should have.
    full : bool
        Check mapped bytes as well (``verify="full"``).
    key : Key or None
        Signs and checks files in a signed chest.
    """

    def __init__(
        self,
        store: LocalStore,
        manifest: Manifest,
        formats: dict[str, Format],
        *,
        wanted_name: WantedName,
        full: bool,
        key: Key | None,
    ) -> None:
        self.store = store
        self.manifest = manifest
        self._formats = formats
        self._wanted_name = wanted_name
        self._full = full
        self._key = key
        self._file_ids = _file_ids()
        self.written = self.written_bytes = 0
        self.loaded = self.loaded_bytes = 0

    def exclusive(self) -> AbstractContextManager[None]:
        """Hold the lock between processes; see `Manifest.exclusive`."""
        return self.manifest.exclusive()

    def name(self, key: Hashable) -> str:
        """The name a new file for *key* would get now."""
        return self.store.free_name(self._checked_name(key))

    # -- write -------------------------------------------------------------------------

    def encode_many(self, jobs: Sequence[Job]) -> list[Written | Exception]:
        """Write many values, two at a time where that pays; no lock.

        Returns
        -------
        list
            In the order of *jobs*; an exception where one could not be written.
        """
        if len(jobs) < 2 or sum(job.nbytes for job in jobs) < BESIDE_FROM:
            return [self._attempt(job) for job in jobs]
        results: list[Written | Exception] = [errors.ChestError("not begun")] * len(
            jobs
        )
        waiting = deque(enumerate(jobs))

        def work() -> None:
            while True:
                try:
                    place, job = waiting.popleft()
                except IndexError:
                    return
                results[place] = self._attempt(job)

        wait = system.run_beside(work)
        try:
            work()
        finally:
            wait()
        return results

    def encode(self, job: Job) -> Written:
        """Write one value to a file that nobody sees yet; no lock.

        Raises
        ------
        EncodingError, KeyEncodingError
            The value or the key cannot be written. No file is left.
        StoreError
            The disk refused. No file is left.
        """
        try:
            draft = self.store.draft()
        except OSError as error:
            path = self.store.home.path
            raise refused(error, path, "takes no new file", job.key) from error
        try:
            return self._encode(job, draft)
        except OSError as error:
            draft.discard()
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

    def publish(self, batch: Sequence[Written]) -> list[str]:
        """Name the files and append one record; called within `exclusive`.

        Returns
        -------
        list of str
            Names that no record holds any more, for `delete` once the lock is free.

        Raises
        ------
        StoreError
            The disk refused. None of the batch was published, no file is left.
        """
        if not batch:
            return []
        manifest, store = self.manifest, self.store
        replaced: list[str] = []
        try:
            for key, entry, draft in batch:
                entry.name = store.place(draft, self._checked_name(key))
                old = manifest.index.get(key)
                if old is not None:
                    replaced.append(old.name)
            if manifest.sync:
                for name in {os.path.dirname(entry.name) for _, entry, _ in batch}:
                    store.home.sync(name + "/" if name else "")
            manifest.append([(key, entry) for key, entry, _ in batch])
        except OSError as error:
            self.discard(batch)
            if isinstance(error, errors.ChestError):
                raise
            raise refused(error, store.home.path, "takes no new name") from error
        except BaseException:
            self.discard(batch)
            raise
        for _, entry, draft in batch:
            draft.release()
            self.written_bytes += entry.size
        self.written += len(batch)
        return replaced

    def discard(self, batch: Iterable[Written]) -> None:
        """Forget values that were written but not published."""
        for written in batch:
            written.draft.discard()

    def remove(self, gone: Sequence[Hashable]) -> list[str]:
        """Append tombstones; called within `exclusive`. Returns names to `delete`."""
        entries = [self.manifest.index.get(key) for key in gone]
        pairs = [
            (key, Entry(entry.text, gone="key"))
            for key, entry in zip(gone, entries, strict=True)
            if entry is not None
        ]
        self.manifest.append(pairs)
        return [entry.name for entry in entries if entry is not None]

    def remove_all(self) -> list[str]:
        """Append the record that ends all keys; called within `exclusive`."""
        names = [entry.name for entry in self.manifest.index.entries.values()]
        self.manifest.append([(None, Entry(gone="all"))])
        return names

    def delete(self, names: Iterable[str]) -> None:
        """Remove files that no record holds any more; no lock.

        One that cannot be removed is left to the sweep: what it held is replaced already.
        """
        for name in names:
            try:
                self.store.delete(name)
            except OSError as error:
                log.info("%s is left: %s", self.store.home.join(name), error)

    def digest(self, value: object, entry: Entry) -> str | None:
        """What *value* would be written as now; None: it cannot be told."""
        return self._format(entry, None).digest(value)

    # -- read --------------------------------------------------------------------------

    def read(self, key: Hashable, entry: Entry, mapped: str | None) -> Loaded:
        """Read one value; no lock.

        Raises
        ------
        FileNotFoundError
            The file is gone: look at the manifest again.
        CorruptValueError, DecodingError, UntrustedError, SignatureError
            The value is there but cannot be had; see `chest.errors`.
        """
        began = time.perf_counter()
        form = self._format(entry, key)
        size = entry.size if entry.digest else None
        source = self.store.source(
            entry.name,
            key=key,
            size=size,
            mapped=mapped,
            runs_code=entry.format in RUN_CODE,
        )
        if self._key is not None:
            self._key.check_file(source, entry.signature)
        if entry.format == "custom" and entry.digest:
            self._check_whole(source.data, entry, key, source.path)
        value = form.load(source, file_id=entry.file_id or None, full=self._full)
        self.loaded += 1
        self.loaded_bytes += len(source.data)
        held = source.mapped and not source.writable
        return Loaded(value, held, time.perf_counter() - began)

    def verify(self, key: Hashable, entry: Entry) -> errors.ChestError | None:
        """Read every byte of one value without making it; the error when it is bad."""
        try:
            form = self._format(entry, key)
            source = self.store.source(
                entry.name,
                key=key,
                size=entry.size if entry.digest else None,
                mapped="r",
                runs_code=False,
            )
            if self._key is not None:
                self._key.check_file(source, entry.signature)
            if entry.format == "custom":
                if entry.digest:
                    self._check_whole(source.data, entry, key, source.path)
            else:
                form.check(source, file_id=entry.file_id or None)
        except errors.ChestError as error:
            return error
        except FileNotFoundError as error:
            return missing(self.store.home.join(entry.name), key, error)
        return None

    # -- upkeep ------------------------------------------------------------------------

    def adopt(self, key: Hashable, path: str, entry: Entry) -> Written:
        """Take over another chest's file by hard link, or by copy where none can be.

        Parameters
        ----------
        key : Hashable
        path : str
            The other chest's file.
        entry : Entry
            The other chest's entry, with the birth that the key has here.
        """
        with refusals(self.store.home.path, f"takes no copy of {path}", key):
            draft = self.store.draft()
            try:
                linked = draft.adopt(path)
                if not linked:
                    with open(path, "rb") as file:
                        while block := file.read(1 << 20):
                            draft.write([block])
                draft.finish(sync=self.manifest.sync)
                if self._key is not None:
                    entry.signature = self._key.sign_file(draft.view())
            except BaseException:
                draft.discard()
                raise
        return Written(key, entry, draft)

    def sweep(self) -> int:
        """Remove files of writers that died; called within `exclusive`. O(files)."""
        held = {entry.name for entry in self.manifest.index.entries.values()}
        with refusals(self.store.home.path, "could not be swept"):
            orphans = list(self.store.orphans(held))
        self.delete(orphans)
        return len(orphans)

    def close(self) -> None:
        """Release the descriptors. Safe to call twice."""
        self.manifest.close()

    def after_fork(self) -> None:
        """Stop sharing descriptors with the parent, in the child."""
        self.manifest.after_fork()
        self._file_ids = _file_ids()

    # -- steps -------------------------------------------------------------------------

    def _attempt(self, job: Job) -> Written | Exception:
        """`encode`, with the exception as a result: others of the batch go on."""
        try:
            return self.encode(job)
        except errors.ChestError as error:
            return error

    def _encode(self, job: Job, draft: Draft) -> Written:
        form = self._formats[job.format]
        text = keys.text(job.key)
        file_id = next(self._file_ids)
        receipt = form.dump(job.value, draft, key=text, file_id=file_id)
        draft.finish(sync=self.manifest.sync)
        entry = Entry(
            keys.encode(job.key),
            job.birth,
            size=draft.size,
            digest=receipt.digest,
            format=job.format,
            file_id=file_id,
            nbytes=job.nbytes,
            cost=round(job.cost, 6),
            python=receipt.python,
            mapped=job.mapped,
        )
        if self._key is not None:
            entry.signature = self._key.sign_file(draft.view())
        return Written(job.key, entry, draft)

    def _format(self, entry: Entry, key: object) -> Format:
        form = self._formats.get(entry.format)
        if form is not None:
            return form
        path = self.store.home.join(entry.name)
        ways = {
            "custom": "it was written by a dump= of the user's: open the chest with the "
            "same dump= and load=",
            "pickle": "it is a pickle, and trust='data' reads none",
        }
        reason = ways.get(
            entry.format, f"its format {entry.format!r} is not known here"
        )
        kind = (
            errors.UntrustedError if entry.format == "pickle" else errors.DecodingError
        )
        msg = f"{path} cannot be read: {reason}"
        raise kind(msg, key=key, path=path)

    def _check_whole(
        self, data: memoryview, entry: Entry, key: object, path: str
    ) -> None:
        """The digest of a file in the user's own format is that of its bytes."""
        if xxhash.xxh3_128_hexdigest(data) != entry.digest:
            msg = (
                f"{path}, the value of {errors.short(key)}, is damaged: its checksum "
                f"does not fit. Delete the key, or restore the file"
            )
            raise errors.CorruptValueError(
                msg,
                key=key,
                path=path,
            )

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


def missing(path: str, key: object, error: OSError) -> errors.CorruptValueError:
    """The error for a value whose file is gone though the manifest holds it."""
    problem = errors.CorruptValueError(
        f"{path}, the value of {errors.short(key)}, is missing. Delete the key, or "
        f"restore the file",
        key=key,
        path=path,
    )
    problem.__cause__ = error
    return problem


def _file_ids() -> Iterator[str]:
    """Names that no other file of any chest carries, 16 hexadecimal digits each."""
    start = secrets.randbits(64)
    return (f"{(start + n) & (2**64 - 1):016x}" for n in itertools.count())
