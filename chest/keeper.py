"""What a chest does with its memory tier, wherever the rest of its values lie.

Owns: making room, the budget, what is told of memory, and what users see that is made of
simpler steps of either kind of chest. Does not own: how a value is written or got
(`chest.engine`, `chest.objects.engine`), or what exists.
"""

from __future__ import annotations

import contextlib
import threading
import warnings
from abc import abstractmethod
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, Self, TypeVar

from chest import errors, facts, reprs, system
from chest.errors import short
from chest.face import Face
from chest.formats.compressed import form_of
from chest.memory import MemoryTier, Options, Slot
from chest.nesting import Nesting
from chest.settings import WORDS, Settings, Spelled, check_word

__all__ = ["Keeper", "kept_by_allocator", "reopen"]

GIVE_BACK_AFTER = 64 << 20  # bytes that left memory; asking the allocator takes 1-5 ms
K = TypeVar("K", bound="Keeper")
KEPT_NBYTES = 32 << 20  # larger blocks go back at once (glibc's largest mmap threshold)


class Keeper(Face):
    """A mapping that keeps values in memory under a byte budget, the rest elsewhere."""

    __slots__ = ()

    path: str
    lock: threading.RLock
    _closed: bool
    _freed: int
    _memory: MemoryTier
    _nesting: Nesting
    _savers: list[Any]
    _settings: Settings
    _slots: Any
    _spills: int
    _values: dict[Hashable, Any]

    # -- what it is made of ------------------------------------------------------------

    @abstractmethod
    def _start(self, path: Any, settings: Settings) -> None:
        """Open the place and take up work."""

    @abstractmethod
    def _look(self) -> None:
        """See what others published, as far as it is not asked for each time."""

    @abstractmethod
    def _write_out(
        self, slots: Sequence[Slot], *, keep: bool
    ) -> list[tuple[Slot, Exception]]:
        """Write and publish what is dirty or was changed in place; let all go, or keep.

        Returns
        -------
        list
            The slots that could not be written, and why. They stay, dirty.
        """

    @abstractmethod
    def _sync(self, *, keep: bool) -> None:
        """Write everything; raise the first error after all the rest was written."""

    @abstractmethod
    def _set_soon(self, key: Hashable, value: Any) -> None:
        """Take a value in; it is published by the caller."""

    @abstractmethod
    def _set_expiring(self, pairs: Iterable[tuple[Any, Any]], ttl: float) -> None:
        """Set and publish pairs that end in *ttl* seconds."""

    @abstractmethod
    def _is_at_hand(self, key: Hashable) -> bool:
        """Whether memory has the value of *key*, to be served as it is."""

    @abstractmethod
    def _fetch_missed(self, keys: Sequence[Hashable]) -> None:
        """Read values into memory without reporting a miss."""

    @abstractmethod
    def _put(
        self,
        key: Hashable,
        value: Any,
        options: Options | None = None,
        expires: float | None = None,
    ) -> Any:
        """Set *key* and publish it."""

    @abstractmethod
    def _private(self, key: Hashable) -> tuple[Any, Any]:
        """A value as it is published now, for the caller alone, and its entry; KeyError."""

    @abstractmethod
    def _known(self, key: Hashable) -> tuple[Slot | None, Any]:
        """Slot and entry of *key*, at least one of them; KeyError."""

    @abstractmethod
    def _told(self, key: Hashable, entry: Any) -> dict[str, Any]:
        """What `entry` says of *key* in this kind of place only."""

    @abstractmethod
    def _check_writable(self) -> None:
        """Raise `ReadOnlyError` where nothing is written."""

    @abstractmethod
    def key_to_filename(self, key: Hashable) -> str:
        """Where the value of *key* lies, or that will."""

    @abstractmethod
    def _known_size(self) -> tuple[int, int] | None:
        """Keys, and bytes stored; None where that would have to be asked for."""

    @abstractmethod
    def close(self) -> None:
        """Publish everything; safe to call twice."""

    @abstractmethod
    def incr(self, key: Hashable, delta: Any = 1, default: Any = 0) -> Any:
        """Add *delta* to a number and return the sum; published at once."""

    def _adopts(self, other: Any, *, overwrite: bool) -> bool:
        """Take over *other* in a quicker way than pair by pair, if there is one."""
        return False

    # -- making room -------------------------------------------------------------------

    def _make_room(self, key: Hashable) -> None:
        """Bring memory within the budget after *key* was set."""
        if self._closed:
            if key in self._memory.values:  # it came too late, and is nowhere else
                self._check_open()
            return
        slot = self._slots.get(key)
        if slot is not None and slot.nbytes > self._memory.budget:
            self._evict([slot])  # it is not kept, so nobody has to leave for it
        self.shrink()

    def shrink(self) -> None:
        """Spill values until memory is within the budget; nothing when it is.

        A value that cannot be written stays, with a `SpillWarning` that names it.
        """
        memory = self._memory
        while memory.used > memory.budget:
            with self.lock:
                victims, leaving = memory.victims()
            if not victims:
                return
            try:
                self._evict(victims)
            finally:
                with self.lock:
                    memory.left(leaving)

    def _evict(self, victims: Sequence[Slot]) -> None:
        """Write victims where that is needed, and let them go."""
        leaving, stay = kept_by_allocator(victims), list(victims)
        failed: list[tuple[Slot, Exception]] = []
        try:
            for slot in victims:
                self._settings.on_overflow(slot.key)
            failed = self._write_out(victims, keep=False)
            stay = [slot for slot, _ in failed]
        finally:
            # Also when a hook raises: what is not offered again would never leave.
            with self.lock:
                for slot in stay:
                    self._memory.keep(slot)
        self._give_back(leaving)
        self._spills += len(victims) - len(failed)
        for slot, error in () if self._closed else failed:
            warnings.warn(
                f"{short(slot.key)} stays in memory, over the budget of {self.path}: "
                f"{error}",
                errors.SpillWarning,
                stacklevel=4,
            )

    def _give_back(self, nbytes: int) -> None:
        """Have the allocator return freed memory, once enough has been freed."""
        # Without this the process keeps what left: it lies free, in small pieces.
        self._freed += nbytes
        if self._freed >= GIVE_BACK_AFTER:
            self._freed = 0
            system.give_back_memory()

    @staticmethod
    def _raise_first(failed: Sequence[tuple[Slot, Exception]]) -> None:
        if failed:
            error = failed[0][1]
            if len(failed) > 1:
                error.add_note(f"{len(failed) - 1} more values could not be written")
            raise error

    # -- what is told of memory --------------------------------------------------------

    @property
    def available_memory(self) -> float:
        """The budget for values in memory [bytes]; may be set at any time."""
        return self._memory.budget

    @available_memory.setter
    def available_memory(self, budget: float | str) -> None:
        self._memory.budget = reprs.parse_bytes(
            budget, option="available_memory", limit=system.memory_limit
        )
        self.shrink()

    @property
    def memory_usage(self) -> int:
        """Bytes that the values in memory take; shared buffers count once."""
        return self._memory.used

    @property
    def inmem(self) -> Mapping[Any, Any]:
        """The values in memory, as a read-only mapping."""
        return _InMemory(self)

    def _stats(self, **counted: Any) -> facts.Stats:
        """What memory counts, with what was *counted* elsewhere."""
        with self.lock:
            dirty = self._memory.dirty
        return facts.Stats(
            in_memory=len(self._slots),
            dirty=dirty,
            memory_usage=self._memory.used,
            available_memory=self._memory.budget,
            hits=self._memory.hits,
            spills=self._spills,
            saved=sum(each.saved for each in self._savers),
            **counted,
        )

    def __repr__(self) -> str:
        """One line, for which nothing is read or asked for."""
        kind, memory = type(self).__name__, self._memory
        if self._closed:
            return f"<{kind} at {self.path}: closed>"
        known = self._known_size()
        keys, held = known[0] if known else None, len(self._slots)
        return reprs.line(kind, self.path, keys, held, memory.used, memory.budget)

    __str__ = __repr__

    def _repr_html_(self) -> str:
        """A table for notebooks; reads nothing."""
        if self._closed:
            return reprs.html(repr(self), [], [])
        rows = [("path", self.path), ("in memory", reprs.count_text(len(self._slots)))]
        known = self._known_size()
        if known is not None:
            rows.insert(1, ("keys", reprs.count_text(known[0])))
            rows.append(("on disk", reprs.bytes_text(known[1])))
        rows.append(("spills", reprs.count_text(self._spills)))
        bars = [("memory", self._memory.used, int(min(self._memory.budget, 2**63)))]
        return reprs.html(type(self).__name__, rows, bars)

    # -- many keys ---------------------------------------------------------------------

    def get_many(self, keys: Iterable[Hashable]) -> dict[Any, Any]:
        """The values of those *keys* that are there, as a dict in the order of *keys*.

        Values are read in the order in which they lie on disk, or got from a store
        sixteen at a time, and are not kept: what was not in memory is the caller's own
        copy.

        Raises
        ------
        CorruptValueError, DecodingError, UntrustedError
            As reading one of them.

        Examples
        --------
        >>> from chest import Chest
        >>> with Chest({"a": 1, "b": 2, "c": 3}) as c:
        ...     c.get_many(["c", "x", "a"])
        {'c': 3, 'a': 1}
        """
        return dict(self._pairs(keys))

    def set_many(
        self,
        pairs: Mapping[Any, Any] | Iterable[tuple[Any, Any]],
        *,
        ttl: float | None = None,
    ) -> None:
        """Set many values and publish them; all are visible to others on return.

        Many small values go into one pack, so this is the quickest way to write them;
        into a store of objects sixteen go at a time. They are not one transaction: others
        may see some before the rest (`transact` is all or nothing).

        Parameters
        ----------
        pairs : Mapping or iterable of pairs
        ttl : float, optional
            Seconds after which all of them count as absent.

        Raises
        ------
        EncodingError, StoreError
            For the first value that could not be written; those that could are published.
            Of those that could not, one that was refused at once (by the format
            ``"data"``) or has a *ttl* is as it was before; others stay in memory.
        """
        given = pairs.items() if isinstance(pairs, Mapping) else pairs
        if ttl is not None:
            self._set_expiring(given, ttl)
            return
        named: dict[Hashable, None] = {}
        refused: list[errors.ChestError] = []
        for key, value in given:
            try:
                self._set_soon(key, value)
            except errors.EncodingError as error:
                refused.append(error)
            else:
                named[key] = None
        with self.lock:
            slots = [self._slots[key] for key in named if key in self._slots]
        failed = self._write_out(slots, keep=True)
        if refused:
            raise refused[0]
        self._raise_first(failed)

    def update(self, other: Any = (), /, overwrite: Any = True, **more: Any) -> None:
        """Take over pairs, as ``dict.update`` does; between folders by hard link.

        Parameters
        ----------
        other : Mapping, iterable of pairs, or Chest
            A chest in a folder is synced first, and its files are linked into another
            folder, not copied, where the file system can; they are independent from then
            on.
        overwrite : bool
            False keeps the values of keys that are there already. With any other value
            than a bool, ``overwrite`` is a key like other keywords.
        """
        if not isinstance(overwrite, bool):
            more["overwrite"], overwrite = overwrite, True
        if self._adopts(other, overwrite=overwrite):
            other = ()
        keyed = isinstance(other, Mapping) or hasattr(other, "keys")
        if keyed:  # dict.update asks for keys(), whatever iteration gives
            pairs: Any = ((key, other[key]) for key in other.keys())  # noqa: SIM118
        else:
            pairs = other
        for source in (pairs, more.items()):
            for key, value in source:
                if overwrite or key not in self:
                    self[key] = value

    # -- one key -----------------------------------------------------------------------

    def decr(self, key: Hashable, delta: Any = 1, default: Any = 0) -> Any:
        """Subtract *delta* from a number and return the difference; see `incr`."""
        return self.incr(key, -delta, default)

    @contextlib.contextmanager
    def edit(self, key: Hashable) -> Iterator[Any]:
        """A copy of the value to change in a ``with`` block; stored at its end.

        On an exception nothing is stored. The value is published before the copy is
        made, so that no change of the block can reach it.

        Examples
        --------
        >>> from chest import Chest
        >>> c = Chest()
        >>> c["x"] = [1, 2]
        >>> with c.edit("x") as value:
        ...     value.append(3)
        >>> c["x"]
        [1, 2, 3]
        """
        self._check_writable()
        value, entry = self._private(key)
        yield value
        self._put(key, value, (entry.format, entry.mapped), entry.expires)

    def expires(self, key: Hashable) -> float | None:
        """When *key* ends, as Unix time [s]; None: never.

        Raises
        ------
        KeyError
            There is no such key.
        """
        slot, entry = self._known(key)
        # What was set and not published yet has no deadline.
        return None if entry is None or (slot and slot.dirty) else entry.expires

    def entry(self, key: Hashable) -> facts.KeyFacts:
        """What is known of *key* without loading its value.

        Raises
        ------
        KeyError
            There is no such key.
        """
        slot, entry = self._known(key)
        path = self.key_to_filename(key)
        stored = entry.format if entry is not None else self._settings.format
        own = slot.options[0] if slot is not None and slot.options else None
        return facts.KeyFacts(
            key=key,
            path=path,
            name=path.removeprefix(self.path).lstrip("/"),
            format=own or stored,
            nbytes=slot.nbytes if slot is not None else entry.nbytes,
            stored_nbytes=entry.size if entry is not None else 0,
            in_memory=slot is not None,
            dirty=slot is not None and slot.dirty,
            **self._told(key, entry),
        )

    def _own_options(
        self,
        format: str | None,
        mapped: Any,
        compression: str | bool | None,
        words: tuple[object, ...],
    ) -> Options:
        """A key's own format, one of *words*, and ``mapped=``, as they are kept."""
        options = self._settings
        if compression is not None:
            check_word("compression", compression, WORDS["compression"])
            form = format or options.format
            if form != "pickle" or options.trust == "data":
                msg = f"compression= is for pickles, this key has format={str(form)!r}"
                raise ValueError(msg)
            format = Spelled(form_of(compression), {"compression": compression})
        elif format is not None:
            check_word("format", format, words)
            if format == "zarr" and options.sign_key is not None:
                msg = "format='zarr' cannot be had with sign_key="
                raise ValueError(msg)
            if format == "pickle" and options.trust == "data":
                msg = "format='pickle' cannot be had with trust='data'"
                raise ValueError(msg)
        if mapped is not None:
            check_word("mapped", mapped, WORDS["mapped"])
        return format, "no" if mapped is False else mapped

    # -- the rest ----------------------------------------------------------------------

    def flush(self) -> None:
        """Write and publish every value that needs it, and empty the memory.

        Values that were changed in place since they were read are written again; others
        are not written twice.

        Raises
        ------
        EncodingError, StoreError
            For the first value that could not be written; it stays in memory, and so do
            others that failed (a note says how many). The rest is published.
        """
        self._sync(keep=False)

    def sync(self) -> None:
        """Write and publish every value that needs it, and keep all in memory.

        Raises
        ------
        EncodingError, StoreError
            As `flush`.
        """
        self._sync(keep=True)

    def __enter__(self) -> Self:
        self._check_open()
        return self

    def __exit__(self, *exception: object) -> None:
        """`close`; an explicit path is kept, a temporary folder is removed."""
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Travel as place and options; what is dirty is published first."""
        self._check_open()
        # A value of the chest's own may refer to it, as a lambda of a notebook does: what
        # is dirty is just being published.
        if not (self._settings.readonly or self._nesting.depth):
            self.sync()
        return reopen, (type(self), self.path, self._settings)

    def before_fork(self) -> None:
        """Wait until no thread is in the middle of a change."""
        self.lock.acquire()

    def after_fork_in_parent(self) -> None:
        """Let the threads go on."""
        self.lock.release()

    def _check_open(self) -> None:
        if self._closed:
            self._refuse()

    def _refuse(self) -> NoReturn:
        msg = f"the chest at {self.path} is closed: open it again with Chest(path)"
        raise errors.ClosedError(msg, path=self.path)

    # -- names of chest 1.x ------------------------------------------------------------

    def prefetch(self, keys: Any) -> None:
        """Read a key, or each of a list of keys, into memory; no miss is reported."""
        wanted = keys if isinstance(keys, list | set | frozenset) else [keys]
        self._look()
        self._fetch_missed([key for key in wanted if not self._is_at_hand(key)])

    def move_to_disk(self, key: Hashable) -> None:
        """Write the value of *key* and let it go from memory."""
        self._look()
        slot = self._slots.get(key)
        if slot is None:
            if key not in self:
                raise KeyError(key)
            return
        self._settings.on_overflow(key)
        self._raise_first(self._write_out([slot], keep=False))

    def get_from_disk(self, key: Hashable) -> None:
        """Read the value of *key* into memory; nothing when it is there."""
        self.prefetch([key])

    def write_keys(self) -> None:
        """`sync`."""
        self.sync()


def reopen(kind: type[K], place: str | None, options: Settings) -> K:
    """Open a chest at a path or an address, with options that were checked."""
    new = kind.__new__(kind)
    new._closed = True
    new._start(place, options)
    return new


def kept_by_allocator(slots: Iterable[Slot]) -> int:
    """Bytes that stay with the process when these values go, unless it is asked."""
    return sum(slot.nbytes for slot in slots if slot.nbytes < KEPT_NBYTES)


class _InMemory(Mapping[Any, Any]):
    """The values in memory; looking at one is no use of it."""

    __slots__ = ("_chest",)

    def __init__(self, chest: Keeper) -> None:
        self._chest = chest

    def __getitem__(self, key: Hashable) -> Any:
        return self._chest._values[key]

    def __iter__(self) -> Iterator[Any]:
        return iter([*self._chest._slots])

    def __len__(self) -> int:
        return len(self._chest._slots)

    def __repr__(self) -> str:
        return f"<{len(self)} values in memory>"
