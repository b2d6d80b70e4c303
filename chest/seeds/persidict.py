"""FileDirDict and S3Dict of persidict: one plain file, or object, per key.

Owns: which keys are safe, parts of the tree as dicts, and keys by age. Does not own: how
values are written or found.
"""

from __future__ import annotations

import heapq
import os
import re
import secrets
from collections.abc import ItemsView, Iterator, MutableMapping, Sequence, ValuesView
from typing import Any, Self

from chest.core import Chest
from chest.errors import short

__all__ = ["FileDirDict", "S3Dict"]

LONGEST_PART = 253  # characters of one part of a key
MOST_LOOKS = 5  # times a value's file is looked for while others replace it

Parts = tuple[str, ...]
MISSING: Any = object()

_is_safe = re.compile(r"[A-Za-z0-9()_\-~.=]+").fullmatch


class FileDirDict(MutableMapping[Any, Any]):
    """A dict with one file per value, for keys that are good file names.

    A key is a string of the characters ``A-Z a-z 0-9 ( ) _ - ~ . =``, or a sequence of
    such strings, of up to 253 characters each. ``"a"`` and ``("a",)`` are one key, and
    sequences within sequences are flattened. Iteration gives tuples. What is set is
    published at once.

    Parameters
    ----------
    dir_name : str or PathLike
        The folder; made where there is none.

    Raises
    ------
    TypeError
        From every operation: a key is neither a string nor a sequence of strings.
    ValueError
        From every operation: a key is empty, too long, ``.`` or ``..``, or has other
        characters.

    Notes
    -----
    Each file is a plain pickle, named after its key: ``_Eliza/year`` for
    ``("Eliza", "year")``. The same folder can be opened as `chest.Chest`.

    Examples
    --------
    >>> d = FileDirDict(dir_name="machines")
    >>> d["Eliza"] = "MIT"
    >>> d["Eliza", "year"] = 1965
    >>> list(d), d[["Eliza", "year"]]
    ([('Eliza',), ('Eliza', 'year')], 1965)
    >>> d.close()
    """

    def __init__(self, dir_name: str | os.PathLike[str] = "__file_dir_dict__") -> None:
        self._chest = Chest(path=dir_name, pack=False, publish="each")
        self._prefix: Parts = ()

    @property
    def dir_name(self) -> str:
        """Full path of the folder."""
        return self._chest.path

    # -- one key -----------------------------------------------------------------------

    def __getitem__(self, key: Any) -> Any:
        return self._chest[self._key(key)]

    def __setitem__(self, key: Any, value: Any) -> None:
        self._chest[self._key(key)] = value

    def __delitem__(self, key: Any) -> None:
        del self._chest[self._key(key)]

    def __contains__(self, key: Any) -> bool:
        """Whether *key* is there; O(1), nothing is read."""
        return self._key(key) in self._chest

    def setdefault(self, key: Any, default: Any = None) -> Any:
        """The value of *key*, which is *default* from now on if there was none.

        Of several processes that ask at once, all get the value of the first.
        """
        return self._chest.setdefault(self._key(key), default)

    def pop(self, key: Any, default: Any = MISSING) -> Any:
        """Remove *key* and return its value; only one of several callers gets it."""
        if default is MISSING:
            return self._chest.pop(self._key(key))
        return self._chest.pop(self._key(key), default)

    def popitem(self) -> tuple[Parts, Any]:
        """Remove the key that came last, and return it with its value. O(keys)."""
        for key in reversed([*self]):
            value = self.pop(key, MISSING)
            if value is not MISSING:  # else somebody else took it: the one before
                return key, value
        msg = "popitem(): the dictionary is empty"
        raise KeyError(msg)

    def timestamp(self, key: Any) -> float:
        """When the value of *key* was written, as Unix time [s].

        Raises
        ------
        KeyError
            There is no such key.
        """
        return self._age(self._key(key))[0] / 1e9

    def _age(self, stored: str | Parts) -> tuple[int, int]:
        """When a value was written [ns]; values of one instant in their order."""
        for _ in range(MOST_LOOKS):
            entry = self._chest.entry(stored)
            try:
                return os.stat(entry.path).st_mtime_ns, entry.generation
            except FileNotFoundError:
                # It was replaced since, or set through a chest that writes its small
                # values into its log: then it gets its file now.
                self._chest.unpack(stored)
        return os.stat(self._chest.unpack(stored)).st_mtime_ns, entry.generation

    def _key(self, key: Any) -> str | Parts:
        """The chest's key."""
        parts = (*self._prefix, *_parts(key))
        return parts[0] if len(parts) == 1 else parts

    # -- all keys ----------------------------------------------------------------------

    def __iter__(self) -> Iterator[Parts]:
        """The keys as tuples, in the order in which they were first set. O(keys)."""
        depth = len(self._prefix)
        for stored in self._chest:
            parts = (stored,) if isinstance(stored, str) else stored
            if len(parts) > depth and parts[:depth] == self._prefix:
                yield parts[depth:]

    def __len__(self) -> int:
        """How many keys there are; O(1), of a part of the tree O(keys)."""
        return sum(1 for _ in self) if self._prefix else len(self._chest)

    def values(self) -> ValuesView[Any]:
        """A view of the values; keys that others delete meanwhile are passed over."""
        return _Values(self)

    def items(self) -> ItemsView[Any, Any]:
        """A view of the pairs; keys that others delete meanwhile are passed over."""
        return _Items(self)

    def clear(self) -> None:
        """Remove all keys for everyone, at once; of a part of the tree only its own."""
        if self._prefix:
            self._chest.delete_many([self._key(key) for key in self])
        else:
            self._chest.clear()

    def oldest_keys(self, max_n: int | None = None) -> list[Parts]:
        """The keys whose values were written first, the oldest first.

        Parameters
        ----------
        max_n : int, optional
            At most so many; None: all.

        Notes
        -----
        Asks for the time of every file, and reads none.
        """
        aged = self._aged()
        return [key for *_, key in heapq.nsmallest(_count(max_n, aged), aged)]

    def newest_keys(self, max_n: int | None = None) -> list[Parts]:
        """The keys whose values were written last, the newest first.

        Parameters
        ----------
        max_n : int, optional
            At most so many; None: all.

        Notes
        -----
        As `oldest_keys`.
        """
        aged = self._aged()
        return [key for *_, key in heapq.nlargest(_count(max_n, aged), aged)]

    def _aged(self) -> list[tuple[int, int, Parts]]:
        found = []
        for key in self:
            try:
                found.append((*self._age(self._key(key)), key))
            except KeyError:
                continue  # deleted since
        return found

    def random_key(self) -> Parts | None:
        """Any key, each as likely as the others; None when there is none. O(keys)."""
        keys = [*self]
        # Not from `random`: that would change the numbers of a program that seeds it.
        return secrets.choice(keys) if keys else None

    # -- parts of the tree -------------------------------------------------------------

    def get_subdict(self, prefix: Any) -> Self:
        """The keys that begin with *prefix*, without it, as a dict of their own.

        It shares the files: what is changed in one is seen in the other.

        Parameters
        ----------
        prefix : str or sequence of str
            As a key; the key that is just the prefix is not in it.

        Examples
        --------
        >>> with FileDirDict("machines") as d:
        ...     d["Eliza", "year"] = 1965
        ...     dict(d.get_subdict("Eliza"))
        {('year',): 1965}
        """
        new = type(self).__new__(type(self))
        new.__dict__.update(self.__dict__)
        new._prefix = (*self._prefix, *_parts(prefix))
        return new

    def subdicts(self) -> dict[str, Self]:
        """The dicts of all folders right below, by name. O(keys)."""
        names = dict.fromkeys(key[0] for key in self if len(key) > 1)
        return {name: self.get_subdict(name) for name in names}

    # -- lifetime ----------------------------------------------------------------------

    def __repr__(self) -> str:
        part = f".get_subdict({self._prefix!r})" if self._prefix else ""
        return f"{type(self).__name__}(dir_name={self.dir_name!r}){part}"

    def close(self) -> None:
        """Release the folder, also for the dicts of its parts. Safe to call twice."""
        self._chest.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """`close`."""
        self.close()


class S3Dict(FileDirDict):
    """A `FileDirDict` in a bucket of S3, for any number of machines.

    Parameters
    ----------
    bucket_name : str
        The bucket, which must be there.
    dir_name : str or PathLike, optional
        Taken, and not used: persidict keeps a copy of the values there, here they are
        kept in memory.
    region : str, optional
        Of the bucket, where the environment does not say it.
    root_prefix : str
        Begins the names of all objects.
    trust : {"data", "any"}
        ``"data"``: arrays, tables and plain containers, no pickles, because who wrote an
        object cannot be told. ``"any"``: pickles, from whoever can write there.
    **options
        As `chest.Chest`: ``sign_key=``, ``storage=``, ``available_memory=``.

    Notes
    -----
    The objects are those of ``chest.Chest("s3://bucket_name/root_prefix")``. Keys come in
    the order of their objects' names; ages are those that the bucket has, in whole
    seconds.
    """

    _chest: Any

    def __init__(
        self,
        bucket_name: str = "my_bucket",
        dir_name: str | os.PathLike[str] = "__s3_dict__",
        region: str | None = None,
        root_prefix: str = "",
        *,
        trust: str = "data",
        **options: Any,
    ) -> None:
        if region is not None:
            options["storage"] = {"region": region, **(options.get("storage") or {})}
        address = f"s3://{bucket_name}/{root_prefix}".rstrip("/")
        if options.get("sign_key") is not None and trust == "data":
            trust = "owner"
        self._chest = Chest(address, publish="each", trust=trust, **options)
        self._prefix = ()

    @property
    def dir_name(self) -> str:
        """The address of the place in the bucket."""
        return str(self._chest.path)

    def _age(self, stored: str | Parts) -> tuple[int, int]:
        return int(self._chest.modified(stored) * 1e9), 0

    def _aged(self) -> list[tuple[int, int, Parts]]:
        ages = self._chest.modified_all()
        keys = ((self._key(key), key) for key in self)
        return [(int(ages[at] * 1e9), 0, key) for at, key in keys if at in ages]

    def __repr__(self) -> str:
        part = f".get_subdict({self._prefix!r})" if self._prefix else ""
        return f"S3Dict({self.dir_name!r}){part}"


class _Values(ValuesView[Any]):
    """Values in the order of their keys."""

    __slots__ = ()
    _mapping: FileDirDict

    def __iter__(self) -> Iterator[Any]:
        yield from (value for _, value in self._mapping.items())


class _Items(ItemsView[Any, Any]):
    """Pairs in the order of their keys."""

    __slots__ = ()
    _mapping: FileDirDict

    def __iter__(self) -> Iterator[tuple[Parts, Any]]:
        for key in self._mapping:
            try:
                value = self._mapping[key]
            except KeyError:
                continue  # deleted since
            yield key, value


def _parts(key: Any) -> Parts:
    """A key as a tuple of safe strings."""
    if isinstance(key, str):
        if not _is_safe(key) or key in (".", "..") or len(key) > LONGEST_PART:
            msg = (
                f"{short(key)} is no safe key: 1 to {LONGEST_PART} characters of "
                "A-Z a-z 0-9 ( ) _ - ~ . = are, but for '.' and '..'"
            )
            raise ValueError(msg)
        return (str(key),)
    if not isinstance(key, Sequence) or isinstance(key, bytes | bytearray | memoryview):
        msg = f"a key is a string or a sequence of strings, not {type(key).__name__}"
        raise TypeError(msg)
    parts = tuple(part for each in key for part in _parts(each))
    if not parts:
        msg = "a key is a sequence of at least one string"
        raise ValueError(msg)
    return parts


def _count(max_n: int | None, found: Sequence[object]) -> int:
    return len(found) if max_n is None else max_n
