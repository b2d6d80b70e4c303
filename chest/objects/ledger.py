"""What exists in a store of objects, as one handle sees it.

Owns: the names of keys' objects, what is known of one without its value, listings, the
locks, which way a handle may be used. Does not own: how values move (`engine`).
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn, TypeVar

from chest import errors, expiry
from chest.errors import short
from chest.eviction import policy as make_policy
from chest.keeper import Keeper
from chest.memory import MemoryTier, Slot
from chest.nesting import Nesting
from chest.objects.naming import LONGEST, OWN, PICKLED, key_of, name_of
from chest.objects.sealing import END_NBYTES, GONE_NBYTES, Sealer, Stored, untrusted
from chest.opening import formats, load_key
from chest.settings import Settings
from chest.signing import Key
from chest.stores import objects as stores
from chest.stores.objects import Found, Listed, Tag

__all__ = ["EXPIRING", "THREADS", "WINDOW", "ObjectLedger", "about", "is_over"]

log = logging.getLogger("chest")

THREADS = 16  # requests at a time
WINDOW = 2 * THREADS  # values got ahead of their turn, or put together
LOCKS = 256  # of keys; two keys may share one
EXPIRING = OWN + "expiring"  # an object that says that some values have a deadline

T = TypeVar("T")
U = TypeVar("U")


class ObjectLedger(Keeper):
    """The keys of one handle: those that have an object, and those only in memory."""

    _slots: dict[Hashable, Slot]

    def _start(self, address: str, options: Settings) -> None:
        """Open the store and take up work."""
        self._settings = options
        self._temporary = False
        key = None if options.sign_key is None else Key(options.sign_key)
        own = address.startswith("memory:")  # nobody else can have put anything there
        trusted = own or key is not None or options.trust == "any"
        if not trusted and options.trust == "owner":
            raise untrusted(address)
        self._loads_keys = key is None and trusted
        self._sealer = Sealer(
            formats(options),
            key=key,
            trusted=trusted,
            compression=options.compression,
            mapped=options.mapped,
        )
        self._store = stores.open_store(
            address,
            options.storage() if callable(options.storage) else options.storage or {},
            options.timeout,
            readonly=options.readonly,
        )
        self.path = self._store.address
        self._memory = MemoryTier(options.budget, make_policy(options.policy))
        self._slots, self._values = self._memory.slots, self._memory.values
        self._expiring = False  # whether a value here may have a deadline
        self._deadlines: dict[str, tuple[str, float | None]] = {}  # name → etag, end
        self._spills = self._freed = self._written = self._loaded = 0
        self._written_nbytes = self._loaded_nbytes = 0
        self._savers: list[Any] = []
        # Not within one another: another thread would wait for the key's lock.
        self._nesting = Nesting(self.path, deepest=1)
        self._pid = os.getpid()
        self._make_locks()
        self._closed = False

    def _make_locks(self) -> None:
        self.lock = threading.RLock()
        self._key_locks = [threading.RLock() for _ in range(LOCKS)]
        # How often this handle changed objects; keys share one as they share a lock.
        self._turns = [0] * LOCKS

    # -- names -------------------------------------------------------------------------

    def _name(self, key: Hashable) -> str:
        """The name of *key*'s object; refuses a key that can have none."""
        name = name_of(key)
        if len(name) + len(self.path) > LONGEST:
            msg = (
                f"the key {short(key)} would make a name of {len(name)} bytes, of which "
                f"an object's, with {self.path}, has {LONGEST} at most: shorten the key"
            )
            raise errors.KeyEncodingError(msg, key=key, path=self.path)
        if PICKLED in name and not self._loads_keys:
            msg = (
                f"the key {short(key)} of type {type(key).__name__} would have to be "
                f"pickled, and names in {self.path} could be anybody's: use text, "
                f"numbers, bytes and tuples of them, or trust='any' without sign_key="
            )
            raise errors.KeyEncodingError(msg, key=key, path=self.path)
        return name

    def _key_lock(self, name: str) -> threading.RLock:
        return self._key_locks[hash(name) % LOCKS]

    def _turn(self, name: str) -> int:
        """Grows with each change of the object of that name by this handle."""
        return self._turns[hash(name) % LOCKS]

    def _follow(self, name: str, key: Hashable, mine: Slot | None) -> bool:
        """The object is another now: what memory has of the old one goes. Lock held.

        *mine* is what the key had in memory when the change began. Returned is whether
        another thread has not set the key since; what it set stays, to be put later.
        """
        self._turns[hash(name) % LOCKS] += 1
        slot = self._slots.get(key)
        if slot is None or slot is mine:
            return True
        if not slot.dirty:
            self._memory.drop(slot)
        return not slot.dirty

    def _stamped(self, entry: Stored, tag: Tag) -> Stored:
        """The entry of an object that has that tag as of now."""
        entry.etag, entry.version = tag
        entry.until = time.monotonic() + self._settings.max_age
        return entry

    def _look(self) -> None:
        # docstring inherited
        self._check_open()  # what others do is seen at each request

    # -- entries and listings ----------------------------------------------------------

    def _entry(self, key: Hashable, name: str) -> Stored | None:
        """The entry of *key*'s object, as it is now; None: there is none."""
        found, entry = self._find(key, name)
        return None if found is None else entry

    def _is_there(self, key: Hashable, name: str) -> bool:
        """Whether *key* has an object that counts, damaged ones included."""
        try:
            return self._entry(key, name) is not None
        except errors.CorruptError:
            return True  # reading it tells, and it can be deleted

    def _find(self, key: Hashable, name: str) -> tuple[Found | None, Stored | None]:
        """What has the name: an object and its entry; None for it when it counts as none.

        That is, when it says that the key was removed, or its deadline has passed.
        """
        url, wanted = self._store.url(name), END_NBYTES
        while True:
            with about(key):
                found = self._store.get_end(name, wanted)
            if found is None or found.size <= GONE_NBYTES:
                return found, None
            entry = self._sealer.entry(found.data, found.size, key, url)
            if entry is not None:
                break
            wanted = found.size
        entry = self._stamped(entry, found.tag)
        return found, None if is_over(entry) else entry

    def _listed(self) -> dict[str, tuple[Any, Listed]]:
        """All that is called like a key, by name and in its order, with the key.

        Marks of removed keys and values whose deadline has passed are among it; what
        others keep in the same place is not.
        """
        self._check_open()
        load = load_key if self._loads_keys else None
        listed: dict[str, tuple[Any, Listed]] = {}
        for each in self._store.list():
            if each.name.startswith(OWN):
                self._expiring = self._expiring or each.name == EXPIRING
                continue
            try:
                listed[each.name] = key_of(each.name, load), each
            except ValueError as error:
                log.info("%s: %s", self.path, error)
        return {name: listed[name] for name in sorted(listed)}

    def _living(
        self, listed: dict[str, tuple[Any, Listed]] | None = None
    ) -> dict[str, tuple[Any, Listed]]:
        """`_listed`, of which *listed* may be one, without what counts as absent."""
        if listed is None:
            listed = self._listed()
        live = {
            name: pair for name, pair in listed.items() if pair[1].size > GONE_NBYTES
        }
        return self._unexpired(live) if self._expiring else live

    def _unexpired(
        self, listed: dict[str, tuple[Any, Listed]]
    ) -> dict[str, tuple[Any, Listed]]:
        """Those whose deadline has not passed; what is not known is asked for."""
        known = self._deadlines

        def look(pair: tuple[Any, Listed]) -> tuple[str, float | None]:
            key, each = pair
            try:
                found, entry = self._find(key, each.name)
            except (errors.CorruptError, errors.VersionError):
                return each.etag, None  # reading it will tell
            if found is None or entry is None:
                return each.etag, 0.0  # it went since, or its deadline has passed
            return found.tag.etag, entry.expires

        ask = {
            name: pair
            for name, pair in listed.items()
            if name not in known or known[name][0] != pair[1].etag
        }
        asked = dict(zip(ask, self._at_once(look, [*ask.values()]), strict=True))
        # Of those that are there still, so that it does not grow with all that ever were.
        ends = {name: asked.get(name) or known[name] for name in listed}
        self._deadlines, now = ends, expiry.now()
        return {
            name: pair
            for name, pair in listed.items()
            if (end := ends[name][1]) is None or end > now
        }

    def _keys_by_name(self) -> dict[str, Any]:
        """All keys by the names of their objects, in the order of these."""
        # First: what another thread puts meanwhile is in the listing, or here.
        unput = self._unput()
        named = {name: key for name, (key, _) in self._living().items()}
        if not unput.keys() <= named.keys():
            named = dict(sorted((named | unput).items()))
        return named

    def _unput(self) -> dict[str, Any]:
        """The keys whose values were not put yet, by name."""
        load = load_key if self._loads_keys else None
        with self.lock:
            dirty = [slot.key for slot in self._slots.values() if slot.dirty]
        return {name: key_of(name, load) for name in map(self._name, dirty)}

    # -- many at a time ----------------------------------------------------------------

    def _at_once(self, work: Callable[[T], U], items: Sequence[T]) -> list[U]:
        """Do *work* for all, some at a time, and return what it returned."""
        # At the interpreter's end no thread can be started any more.
        if len(items) < 2 or not threading.main_thread().is_alive():
            return [work(each) for each in items]
        with ThreadPoolExecutor(min(THREADS, len(items))) as pool:
            return list(pool.map(work, items))

    # -- refusals ------------------------------------------------------------------------

    def _check_writable(self) -> None:
        self._check_open()
        if self._settings.readonly:
            msg = f"{self.path} was opened with readonly=True"
            raise errors.ReadOnlyError(msg, path=self.path)
        stores.check_process(self.path)

    def _unsupported(self, what: str, way: str) -> NoReturn:
        msg = f"{self.path}: {what} is not to be had in an object store; {way}"
        raise errors.UnsupportedError(msg, path=self.path)


@contextlib.contextmanager
def about(key: Hashable) -> Iterator[None]:
    """Have what the store refuses within the block name the key."""
    try:
        yield
    except (errors.StoreError, errors.UnsupportedError) as error:
        error.key = key
        raise


def is_over(entry: Stored) -> bool:
    """The key's deadline has passed."""
    return entry.expires is not None and entry.expires <= expiry.now()
