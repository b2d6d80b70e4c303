"""Changes on a condition: only if nobody has changed the key meanwhile.

Owns: etags as users see them, compare and set, the optimistic loop. Does not own: how a
value is published.

An etag is the number of the record that published the key's value. It never comes back,
and stays with a value that moves: into a pack, by compaction, by `Chest.touch`. In a store
of objects it is the object's, a text; there `Chest.touch` makes a new one.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from chest import expiry
from chest.index import AnyEntry
from chest.ledger import generation
from chest.objects.atomic import ObjectAtomic

if TYPE_CHECKING:
    from chest.core import Chest

__all__ = [
    "ABSENT",
    "Absent",
    "Etag",
    "Outcome",
    "Tagged",
    "discard_if",
    "etag",
    "get_with_etag",
    "set_if",
    "transform",
]

MOST_TRIES = 8  # of `transform` without the lock; then it takes it, and is the last


class Absent(enum.Enum):
    """The type of `ABSENT`, which is false."""

    ABSENT = enum.auto()

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        return "ABSENT"


ABSENT: Final = Absent.ABSENT  # the etag, and the value, of a key that is not there

Etag = int | str | Absent


class Tagged(NamedTuple):
    """A value and the etag it was published with; `ABSENT` both, where there is none."""

    value: Any
    etag: Etag


class Outcome(NamedTuple):
    """What became of a conditional operation.

    Attributes
    ----------
    done : bool
        The condition held and the change is published; else nothing was changed.
    etag : int, str or ABSENT
        What the key has now: of the new value, or of the one that was in the way.
    value : object
        That value; `ABSENT` where there is none.
    """

    done: bool
    etag: Etag
    value: Any


def etag(c: Chest, key: Hashable) -> Etag:
    """The etag of *key*'s value, or `ABSENT`; compare it, or hand it to `set_if`.

    Parameters
    ----------
    c : Chest
    key : Hashable

    Raises
    ------
    EncodingError, StoreError
        The value was not published yet and cannot be; it stays in memory.

    Notes
    -----
    A value that this process has not published yet is published first. One that was
    changed in place is compared and published too, with a new etag. Otherwise nothing is
    read.

    Examples
    --------
    >>> from chest import Chest
    >>> with Chest() as c:
    ...     etag(c, "x"), c.incr("x"), etag(c, "x"), c.touch("x"), etag(c, "x")
    (ABSENT, 1, 1, True, 1)
    """
    return c._etag(key) or ABSENT


def get_with_etag(c: Chest, key: Hashable) -> Tagged:
    """A copy of *key*'s value with its etag; both `ABSENT` when it is not there.

    Parameters
    ----------
    c : Chest
    key : Hashable

    Returns
    -------
    Tagged
        The value is the caller's own, unless nobody can change it (a number, a text, a
        mapped array of a chest with ``mapped="r"``): it may be changed and given to
        `set_if`.

    Raises
    ------
    CorruptValueError, DecodingError, UntrustedError
        As reading it.
    EncodingError, StoreError
        As `etag`.

    Examples
    --------
    >>> from chest import Chest
    >>> with Chest({"x": [1]}) as c:
    ...     value, tag = get_with_etag(c, "x")
    ...     value.append(2)
    ...     set_if(c, "x", value, tag)
    Outcome(done=True, etag=2, value=[1, 2])
    """
    if (objects := _in_objects(c)) is not None:
        value, tag = objects._tagged(key)
        return Tagged(value, tag) if tag else Tagged(ABSENT, ABSENT)
    c._etag(key)
    with c.lock:
        slot = c._slots.get(key)
        if slot is not None and slot.fixed and slot.entry and not slot.dirty:
            return Tagged(c._values[key], slot.entry.generation)
    try:
        value, entry, _ = c._read(key, mapped="copy")
    except KeyError:
        return Tagged(ABSENT, ABSENT)
    return Tagged(value, entry.generation)


def set_if(
    c: Chest, key: Hashable, value: Any, etag: Etag, *, ttl: float | None = None
) -> Outcome:
    """Set and publish *key* if its etag is *etag*; of several that try, one succeeds.

    Parameters
    ----------
    c : Chest
    key : Hashable
    value : object
    etag : int, str or ABSENT
        What the key must have; `ABSENT`: it must not be there.
    ttl : float, optional
        Seconds after which the key counts as absent.

    Returns
    -------
    Outcome
        Where it was not done: with what the key has instead.

    Raises
    ------
    EncodingError, StoreError
        The value cannot be written; the key is as it was.

    Notes
    -----
    The value is encoded before any lock is taken, and only if the etag fits so far.

    Examples
    --------
    >>> from chest import Chest
    >>> with Chest() as c:
    ...     set_if(c, "leader", "me", ABSENT)
    ...     set_if(c, "leader", "you", ABSENT)
    Outcome(done=True, etag=1, value='me')
    Outcome(done=False, etag=1, value='me')
    """
    expires = None if ttl is None else expiry.deadline(ttl)
    return _set_if(c, key, value, etag, lambda _: expires)


def discard_if(c: Chest, key: Hashable, etag: Etag) -> Outcome:
    """Delete *key* for everyone if its etag is *etag*.

    Parameters
    ----------
    c : Chest
    key : Hashable
    etag : int, str or ABSENT
        `ABSENT`: it must not be there, and nothing is changed.

    Returns
    -------
    Outcome
        Done: the key is not there. Else with what it has.

    Raises
    ------
    StoreError
        The disk refused; the key is as it was.

    Examples
    --------
    >>> from chest import Chest
    >>> with Chest({"x": 1}) as c:
    ...     old = etag(c, "x")
    ...     c["x"] = 2
    ...     discard_if(c, "x", old).done, discard_if(c, "x", etag(c, "x")).done
    (False, True)
    """
    if (objects := _in_objects(c)) is not None:
        if objects._discard_tagged(key, str(etag or "")):
            return Outcome(True, ABSENT, ABSENT)
        found = get_with_etag(c, key)
        return Outcome(False, found.etag, found.value)
    while True:
        if (c._etag(key) or ABSENT) == etag:
            with c._publishing():
                fits = _fits(c, key, c._manifest.index.get(key), etag)
                names = c._delete([key])[1] if fits else []
            c._spill.delete(names)
            if fits:
                return Outcome(True, ABSENT, ABSENT)
        found = get_with_etag(c, key)
        if found.etag != etag:
            return Outcome(False, found.etag, found.value)


def transform(c: Chest, key: Hashable, change: Callable[[Any], Any]) -> Outcome:
    """Replace *key*'s value by what *change* makes of it; no other change is lost.

    Parameters
    ----------
    c : Chest
    key : Hashable
    change : callable
        Takes a copy of the value, or `ABSENT`, and returns the new value; `ABSENT`
        deletes the key, or leaves it absent. It is called again when somebody else was
        quicker, so it should have no effects of its own. What it raises is passed on,
        and nothing was changed.

    Returns
    -------
    Outcome
        Always done, with the new value and its etag.

    Raises
    ------
    EncodingError, StoreError
        The new value cannot be written; the key is as it was.

    Notes
    -----
    No lock is held while *change* runs and its value is encoded. After eight times in
    which others were quicker it is done once more holding both locks. A deadline that
    the key has stays.

    Examples
    --------
    >>> from chest import Chest
    >>> with Chest({"x": [1, 2]}) as c:
    ...     transform(c, "x", lambda value: [*value, 3]).value
    ...     transform(c, "y", lambda value: 0 if value is ABSENT else value + 1).value
    ...     transform(c, "x", lambda value: ABSENT).value, "x" in c
    [1, 2, 3]
    0
    (ABSENT, False)
    """
    if (objects := _in_objects(c)) is not None:
        return _transform_object(objects, key, change)
    for _ in range(MOST_TRIES):
        outcome = _transform(c, key, change)
        if outcome.done:
            return outcome
    with c._publishing():
        while not (outcome := _transform(c, key, change)).done:
            pass  # its deadline passed meanwhile
    return outcome


def _in_objects(c: object) -> ObjectAtomic | None:
    """The chest, if it lies in a store of objects, which has no lock."""
    return c if isinstance(c, ObjectAtomic) else None


def _transform(c: Chest, key: Hashable, change: Callable[[Any], Any]) -> Outcome:
    """One try."""
    value, tag = get_with_etag(c, key)
    new = change(value)
    if new is ABSENT:
        return discard_if(c, key, tag)
    return _set_if(c, key, new, tag, lambda entry: entry.expires if entry else None)


def _transform_object(
    c: ObjectAtomic, key: Hashable, change: Callable[[Any], Any]
) -> Outcome:
    """`transform` where there is no lock: until nobody was quicker."""
    result: list[Any] = []

    def changed(value: Any) -> Any:
        result[:] = [change(value)]
        return result[0]

    etag = c._transform(key, changed, ABSENT)
    return Outcome(True, etag or ABSENT, result[0])


def _set_if(
    c: Chest,
    key: Hashable,
    value: Any,
    etag: Etag,
    deadline: Callable[[AnyEntry | None], float | None],
) -> Outcome:
    """`set_if`, with a deadline that may depend on the entry that is replaced."""
    if (objects := _in_objects(c)) is not None:
        new_etag = objects._set_tagged(key, str(etag or ""), value, deadline)
        if new_etag:
            return Outcome(True, new_etag, value)
        found = get_with_etag(c, key)
        return Outcome(False, found.etag, found.value)
    while True:
        if (c._etag(key) or ABSENT) == etag:
            new = c._encoded(key, value)

            def allowed(entry: AnyEntry | None, new: Any = new) -> bool:
                new.written.entry.expires = deadline(entry)
                return _fits(c, key, entry, etag)

            if c._put_if(new, allowed):
                return Outcome(True, new.written.entry.generation, value)
        found = get_with_etag(c, key)
        # It may have come back to what was asked for: absent, that is. Then again.
        if found.etag != etag:
            return Outcome(False, found.etag, found.value)


def _fits(c: Chest, key: Hashable, entry: AnyEntry | None, etag: Etag) -> bool:
    """Whether *key* has that etag, and no newer value of another thread. Locks held."""
    slot = c._slots.get(key)
    is_dirty = slot is not None and slot.dirty
    return not is_dirty and (generation(entry) or ABSENT) == etag
