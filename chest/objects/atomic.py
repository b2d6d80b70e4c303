"""Operations that read and write in one step, by puts on a condition.

Owns: insertion if absent, removal that only one gets, counters, deadlines, transactions
of one key, compare and set. Does not own: how values move, or whether a store honours
conditions (`chest.stores.objects`).

Each tries until nobody came in between; a put that was done, but whose answer was lost,
is known again by its nonce.
"""

from __future__ import annotations

import contextlib
import errno
import random
import time
from collections.abc import Callable, Hashable, Iterable, Iterator
from itertools import islice
from numbers import Number
from typing import Any, NamedTuple, TypeVar

from chest import errors, expiry
from chest.engine import is_readonly_array
from chest.errors import short
from chest.memory import Options, Slot, weigh
from chest.objects.engine import ObjectEngine
from chest.objects.ledger import WINDOW, about, is_over
from chest.objects.sealing import GONE_NBYTES, Job, Sealed, Stored, gone
from chest.sizing import SCALARS
from chest.stores.objects import Tag
from chest.transaction import Transaction

__all__ = ["ObjectAtomic", "refuse_objects"]

MISSING: Any = object()
FIRST_NAP, LONGEST_NAP = 0.002, 0.2  # seconds, before another try
T = TypeVar("T")

_random = random.Random()  # not the user's, whose numbers would change


class _State(NamedTuple):
    """What has a key's name now."""

    tag: Tag | None  # None: there is no object
    value: Any = MISSING
    entry: Stored | None = None  # None: the key is absent


class _NoLocks(NamedTuple):
    """In the place of a folder that has locks."""

    path: str

    def open(self, name: str, flags: int) -> int:
        """Refuse: who asks at the same time on two machines computes twice."""
        raise OSError(errno.ENOLCK, "no locks in a store of objects", name)


class ObjectAtomic(ObjectEngine):
    """An engine whose operations are exact between threads and processes."""

    def add(self, key: Hashable, value: Any, *, ttl: float | None = None) -> bool:
        """Set *key* if it is not there, and publish it; whether it was set.

        Of several processes that add one key at once, one is told True.

        Parameters
        ----------
        key : Hashable
        value : object
        ttl : float, optional
            Seconds after which the key counts as absent.
        """
        self._check_writable()
        expires = None if ttl is None else expiry.deadline(ttl)
        with self._changing(key) as name:
            mine = self._slots.get(key)
            if mine is not None and mine.dirty:
                return False
            return self._add(name, self._job(key, value, expires=expires), mine)

    def incr(self, key: Hashable, delta: Any = 1, default: Any = 0) -> Any:
        """Add *delta* to a number and return the sum; published at once.

        No increment of another process or thread is lost. A deadline that the key has
        stays.

        Parameters
        ----------
        key : Hashable
        delta : number
        default : number or None
            What a missing key counts as; None: it must be there.

        Raises
        ------
        KeyError
            There is no such key, and *default* is None.
        TypeError
            The value is no number; it is left as it is.
        """

        def sum_of(state: _State) -> Any:
            if state.entry is None and default is None:
                raise KeyError(key)
            number = default if state.entry is None else state.value
            if not isinstance(number, Number):
                msg = f"{short(key)} is a {type(number).__name__}, which has no sum"
                raise TypeError(msg)
            return number + delta

        return self._change(key, sum_of, quick=True)[0]

    def pop(self, key: Hashable, default: Any = MISSING) -> Any:
        """Remove *key* and return its value; only one of several callers gets it.

        A mark of 16 bytes stays in the place of the object, see `compact`.
        """
        self._check_writable()
        with self._changing(key) as name:
            for _ in _naps():
                with self.lock:
                    slot = self._slots.get(key)
                    unput = slot is not None and slot.dirty
                    value = self._values[key] if unput else None
                state = self._sight(key, name) if unput else self._state(key, name)
                if not unput and state.entry is None:
                    self._let_go(slot)
                    if default is MISSING:
                        raise KeyError(key)
                    return default
                if state.entry is None or self._bury(name, state):
                    self._drop_all(key, slot)
                    return value if unput else state.value
        raise AssertionError

    def touch(self, key: Hashable, ttl: float | None = None) -> bool:
        """Have *key* end in *ttl* seconds from now, or never; published at once.

        Returns
        -------
        bool
            Whether there is such a key.

        Notes
        -----
        The object is got and put again, so its etag changes.
        """
        self._check_writable()
        expires = None if ttl is None else expiry.deadline(ttl)
        with self._changing(key) as name:
            mine = self._settle(key)
            for _ in _naps():
                found = self._store.get(name)
                if found is None or found.size <= GONE_NBYTES:
                    return False
                url = self._store.url(name)
                entry = self._sealer.entry(found.data, found.size, key, url)
                if entry is None or is_over(entry):
                    return False
                if entry.expires == expires:
                    return True
                entry.expires = expires
                sealed = self._sealer.amend(found.data, entry, name)
                self._announce(expires)
                new, _ = self._swap(key, sealed, found.tag)
                if new is None:
                    continue
                with self.lock:
                    # What memory has of another state of the object is asked for anew.
                    if self._follow(name, key, mine) and mine is not None:
                        if getattr(mine.entry, "etag", "") == found.tag.etag:
                            mine.entry = new
                        else:
                            self._memory.drop(mine)
                return True
        raise AssertionError

    def expires(self, key: Hashable) -> float | None:
        """When *key* ends, as Unix time [s]; None: never.

        Raises
        ------
        KeyError
            There is no such key.
        """
        if self._dirty(key) is not None:
            return None  # what was not published yet has no deadline
        entry = self._entry(key, self._name(key))
        if entry is None:
            raise KeyError(key)
        return entry.expires

    def transact(self, change: Callable[[Transaction], T]) -> T:
        """Call *change* with a mapping; what it did to one key is published at once.

        A store of objects has no lock: *change* is called again when somebody else was
        quicker, so it should have no effects of its own, and it may look at and change
        one key only.

        Parameters
        ----------
        change : callable
            Takes a `Transaction` and uses it like a dict. What it returns is returned.

        Raises
        ------
        UnsupportedError
            It used a second key, or asked for all; nothing happened.
        EncodingError, StoreError
            Something could not be written; nothing happened.
        """
        self._check_writable()
        for _ in _naps():
            seen: dict[Hashable, _State] = {}

            def look(key: Hashable, seen: dict[Hashable, _State] = seen) -> _State:
                if key not in seen:
                    self._one_key([*seen, key])
                    seen[key] = self._settled(key)
                return seen[key]

            def read(key: Hashable, look: Callable[..., _State] = look) -> Any:
                state = look(key)
                if state.entry is None:
                    raise KeyError(key)
                return state.value

            def has(key: Hashable, look: Callable[..., _State] = look) -> bool:
                return look(key).entry is not None

            work = Transaction(read, has, self._no_names)
            result = change(work)
            changed = work.gone | dict.fromkeys(work.written)
            self._one_key([*(seen.keys() | changed.keys())])
            if not changed or self._commit(work, look(next(iter(changed)))):
                return result
        raise AssertionError

    @contextlib.contextmanager
    def edit(self, key: Hashable) -> Iterator[Any]:
        """A copy of the value to change in a ``with`` block; stored at its end.

        On an exception nothing is stored.
        """
        self._check_writable()
        state = self._settled(key)
        if state.entry is None:
            raise KeyError(key)
        yield state.value
        options = (state.entry.format, state.entry.mapped)
        self._put(key, state.value, options, state.entry.expires)

    # -- for the floors above ----------------------------------------------------------

    def _put(
        self,
        key: Hashable,
        value: Any,
        options: Options | None = None,
        expires: float | None = None,
        cost: float = 0.0,
        made: int = 0,
    ) -> None:
        """Set *key* and publish it."""
        self._check_writable()
        job = self._job(key, value, options, expires)
        job = job._replace(cost=cost, made=made)
        with self._changing(key):
            mine = self._slots.get(key)
            self._accept(job, self._put_job(job), mine)

    def _set_expiring(self, pairs: Iterable[tuple[Any, Any]], ttl: float) -> None:
        """Set and publish pairs that end in *ttl* seconds."""
        expires, rest = expiry.deadline(ttl), iter(pairs)
        refused: list[errors.ChestError] = []

        def put(pair: tuple[Any, Any]) -> None:
            try:
                self._put(*pair, None, expires)
            except errors.ChestError as error:
                refused.append(error)

        while some := dict(islice(rest, WINDOW)):
            known = len(refused)
            self._at_once(put, [*some.items()])
            down = [isinstance(each, errors.StoreError) for each in refused[known:]]
            if sum(down) == len(some):
                break  # nobody answers: the others would wait for nothing
        if refused:
            raise refused[0]

    def _etag(self, key: Hashable) -> str:
        """The etag of the value that *key* has, which is put if need be; "": none."""
        self._settle(key)
        entry = self._entry(key, self._name(key))
        return entry.etag if entry is not None else ""

    def _tagged(self, key: Hashable) -> tuple[Any, str]:
        """A copy of *key*'s value and its etag; "" where there is none."""
        state = self._settled(key)
        return state.value, state.entry.etag if state.entry is not None else ""

    def _set_tagged(
        self,
        key: Hashable,
        etag: str,
        value: Any,
        deadline: Callable[[Stored | None], float | None],
    ) -> str:
        """Set *key* if its etag is *etag*; its new etag, or "" when it is another."""
        self._check_writable()
        with self._changing(key) as name:
            mine = self._settle(key)
            for _ in _naps():
                state = self._sight(key, name)
                if (state.entry.etag if state.entry else "") != etag:
                    return ""
                job = self._job(key, value, expires=deadline(state.entry))
                new, _ = self._swap(key, self._sealed(job), state.tag)
                if new is not None:
                    self._accept(job, new, mine)
                    return new.etag
                if etag:
                    return ""
        raise AssertionError

    def _discard_tagged(self, key: Hashable, etag: str) -> bool:
        """Delete *key* if its etag is *etag*; whether it is not there now."""
        self._check_writable()
        with self._changing(key) as name:
            mine = self._settle(key)
            state = self._sight(key, name)
            if (state.entry.etag if state.entry else "") != etag:
                return False
            if state.entry is not None and not self._bury(name, state):
                return False
            self._drop_all(key, mine)
            return True

    def _transform(
        self, key: Hashable, change: Callable[[Any], Any], absent: Any
    ) -> str:
        """Replace a value by what *change* makes of it; its etag, "" when it is gone.

        *absent* stands for no value, and when it is returned the key is removed.
        """
        self._check_writable()
        for _ in _naps():
            state = self._settled(key)
            value = change(absent if state.entry is None else state.value)
            if value is absent:
                if state.entry is None or self._remove_if(key, state):
                    return ""
                continue
            ends = state.entry.expires if state.entry is not None else None
            new = self._put_if(key, value, state, ends)
            if new is not None:
                return new.etag
        raise AssertionError

    def _there(self) -> Any:
        """What can be asked of many keys whether they are there: one listing."""
        return set(self._keys_by_name().values())

    def _copy_of(self, key: Hashable) -> Any:
        """A value that nobody else has."""
        state = self._settled(key)
        if state.entry is None:
            raise KeyError(key)
        return state.value

    def _view_of(self, key: Hashable) -> tuple[Any, str]:
        """A value that is not kept, and its etag."""
        value, entry = self._fetch(key, admit=False, fresh=True)
        return value, entry.etag

    # -- for memoized functions --------------------------------------------------------

    @property
    def _flight_home(self) -> _NoLocks:
        """Where the lock of a computation would lie: there is none between machines."""
        return _NoLocks(self.path)

    def _keep(
        self, key: Hashable, value: Any, seconds: float, ttl: float | None
    ) -> None:
        """Publish a value that took so many seconds to make, and leave it to the caller."""
        expires = None if ttl is None else expiry.deadline(ttl)
        self._put(key, value, None, expires, cost=seconds, made=int(time.time()))
        with self.lock:
            slot = self._slots.get(key)
            if slot is not None and not slot.fixed:
                self._memory.drop(slot)

    def _fresh_value(self, key: Hashable) -> tuple[Any, float]:
        """A value that nobody else can change, and the seconds it took to make.

        What is immutable comes from memory, anything else is got anew.
        """
        turn, slot = self._turn(self._name(key)), self._slots.get(key)
        if self._valid(key) is slot is not None and (slot.fixed or slot.dirty):
            with contextlib.suppress(KeyError):  # another thread has just let it go
                return self._values[key], slot.cost
        value, entry = self._fetch(key, admit=False, fresh=True)
        if is_readonly_array(value) or type(value) in SCALARS:
            value = self._admit(key, value, entry, slot, turn)
        return value, entry.cost

    # -- steps -------------------------------------------------------------------------

    @contextlib.contextmanager
    def _changing(self, key: Hashable) -> Iterator[str]:
        """Hold *key*'s lock, which gives its name, then bring memory within the budget.

        Not before: who spills needs the locks of other keys, and two that hold one each
        would wait for one another.
        """
        name = self._name(key)
        with about(key), self._key_lock(name):
            yield name
        self.shrink()

    def _dirty(self, key: Hashable) -> Slot | None:
        """The slot of *key* if its value was not put yet."""
        self._check_open()
        slot = self._slots.get(key)
        return slot if slot is not None and slot.dirty else None

    def _settle(self, key: Hashable) -> Slot | None:
        """Put the value of *key* if it is newer than the object, or was changed.

        What memory has of it then; what is set later is newer.
        """
        self._check_open()
        while (slot := self._slots.get(key)) is not None:
            self._raise_first(self._write_out([slot], keep=True))
            if not slot.dirty:
                return slot
        return None

    def _settled(self, key: Hashable) -> _State:
        """What *key* has in the store, with a copy of the value."""
        self._settle(key)
        return self._state(key, self._name(key))

    def _state(self, key: Hashable, name: str) -> _State:
        """What has the name now, with a copy of the value."""
        with about(key):
            found = self._store.get(name)
        if found is None:
            return _State(None)
        if found.size <= GONE_NBYTES:
            return _State(found.tag)
        value, entry = self._open(key, name, found, private=True)
        if is_over(entry):
            return _State(found.tag)
        return _State(found.tag, value, entry)

    def _sight(self, key: Hashable, name: str) -> _State:
        """What has the name now, without the value."""
        found, entry = self._find(key, name)
        return _State(found.tag if found is not None else None, MISSING, entry)

    def _sealed(self, job: Job) -> Sealed:
        sealed = self._sealer.seal(job, self._store.url(self._name(job.key)))
        self._announce(job.expires)
        return sealed

    def _swap(
        self, key: Hashable, sealed: Sealed, tag: Tag | None
    ) -> tuple[Stored | None, _State]:
        """Put an object in the place of the one with that tag, or where there is none.

        Its entry; or None, and what is there instead.
        """
        name, data, entry = sealed
        if tag is None:
            new = self._store.create(name, data)
        else:
            new = self._store.replace(name, data, tag)
        if new is not None:
            self._count_written(len(data))
            return self._stamped(entry, new), _State(new)
        state = self._sight(key, name)
        if state.entry is not None and state.entry.nonce == entry.nonce:
            return state.entry, state  # it was done, but the answer was lost
        return None, state

    def _add(self, name: str, job: Job, mine: Slot | None) -> bool:
        """Put a value where there is none, if there is none. The key's lock is held."""
        sealed, tag = self._sealed(job), None
        for _ in _naps():
            new, state = self._swap(job.key, sealed, tag)
            if new is not None:
                self._accept(job, new, mine)
                return True
            if state.entry is not None:
                return False
            tag = state.tag
        raise AssertionError

    def _change(
        self, key: Hashable, changed: Callable[[_State], Any], *, quick: bool = False
    ) -> tuple[Any, Stored]:
        """Put what *changed* makes of the present value, until nobody came in between.

        *quick*: a value in memory is taken to be the present one at first.
        """
        self._check_writable()
        with self._changing(key) as name:
            slot = self._settle(key)
            entry = slot.entry if slot is not None and quick else None
            state = None
            if slot is not None and isinstance(entry, Stored) and not is_over(entry):
                with self.lock:
                    if slot.alive:  # no other thread has let it go, or set it anew
                        tag = Tag(entry.etag, entry.version)
                        state = _State(tag, self._values[key], entry)
            for _ in _naps():
                guessed = state is not None
                if state is None:
                    state = self._state(key, name)
                try:
                    value = changed(state)
                except Exception:
                    if not guessed:
                        raise
                    state = None  # what memory has may be old: look
                    continue
                ends = state.entry.expires if state.entry is not None else None
                job = self._job(key, value, expires=ends)
                new, _ = self._swap(key, self._sealed(job), state.tag)
                if new is not None:
                    self._accept(job, new, slot)
                    return value, new
                state = None
        raise AssertionError

    def _bury(self, name: str, state: _State) -> bool:
        """Put the mark of a removed key in the place of its object, if that is still it."""
        assert state.tag is not None
        mark = gone()
        if self._store.replace(name, mark, state.tag) is not None:
            return True
        found = self._store.get(name)  # perhaps the answer was lost
        return found is not None and bytes(found.data) == mark

    def _commit(self, work: Transaction, state: _State) -> bool:
        """Publish what a transaction did to its one key; False: it has to run again."""
        for key in work.gone.keys() - work.written.keys():
            return self._remove_if(key, state)
        for key, value in work.written.items():
            return self._put_if(key, value, state) is not None
        return True

    def _remove_if(self, key: Hashable, state: _State) -> bool:
        """Remove *key* if it has that state still; whether it had."""
        with self._changing(key) as name:
            mine = self._slots.get(key)
            if mine is not None and mine.dirty:
                return False  # set by another thread meanwhile
            done = self._bury(name, state)
            if done:
                self._drop_all(key, mine)
            return done

    def _put_if(
        self, key: Hashable, value: Any, state: _State, expires: float | None = None
    ) -> Stored | None:
        """Set and publish *key* if it has that state still; None: it has not."""
        job = self._job(key, value, expires=expires)
        with self._changing(key):
            mine = self._slots.get(key)
            if mine is not None and mine.dirty:
                return None  # set by another thread meanwhile
            new, _ = self._swap(key, self._sealed(job), state.tag)
            if new is not None:
                self._accept(job, new, mine)
            return new

    def _one_key(self, used: list[Hashable]) -> None:
        if len(dict.fromkeys(used)) > 1:
            self._unsupported(
                "a transaction of several keys",
                "keep what changes together in one value, or the chest in a folder",
            )

    def _no_names(self) -> list[Any]:
        return self._unsupported(
            "a transaction that asks for all keys", "ask for one by its name"
        )

    def _accept(self, job: Job, entry: Stored, mine: Slot | None) -> None:
        """Have memory hold the value that was put just now. The key's lock is held.

        *mine* is what memory had when the change began.
        """
        memory, weight = self._memory, weigh(job.value)
        with self.lock:
            if not self._follow(self._name(job.key), job.key, mine):
                return
            known, options = self._slots.get(job.key), (job.format, job.mapped)
            slot = memory.put_clean(job.key, job.value, weight, entry, known, options)
            slot.cost = entry.cost

    def _drop_all(self, key: Hashable, mine: Slot | None) -> None:
        """Let the value of a removed key go, dirty or not, as `_accept`."""
        with self.lock:
            if self._follow(self._name(key), key, mine) and mine is not None:
                self._memory.drop(mine)


def refuse_objects(chest: object, what: str) -> None:
    """Raise `UnsupportedError` for a chest in a store of objects."""
    if isinstance(chest, ObjectAtomic):
        chest._unsupported(what, "use a chest in a folder: Chest('folder')")


def _naps() -> Iterator[int]:
    """Tries without end, with naps between them that grow and are not all the same."""
    longest, number = FIRST_NAP, 0
    while True:
        yield number
        time.sleep(_random.uniform(0, longest))
        longest, number = min(2 * longest, LONGEST_NAP), number + 1
