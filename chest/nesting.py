"""Values that are pickled within one another.

Owns: which values each thread is writing, and how deep that may go. Does not own: what a
value's ``__reduce__`` does; it may use the chest that it is written to.
"""

from __future__ import annotations

import threading
from collections.abc import Hashable

from chest import errors

__all__ = ["Nesting", "Pickling"]

DEEPEST = 2  # a handler of signals may flush while a value is being pickled


class Nesting:
    """The keys whose values each thread is pickling for one chest, the last one inmost.

    Parameters
    ----------
    path : str
        The chest's, for messages.
    deepest : int
        How many values a thread may be in the middle of.
    """

    def __init__(self, path: str, deepest: int = DEEPEST) -> None:
        self._path, self._deepest = path, deepest
        self.keys: dict[int, list[Hashable]] = {}
        self._endless: set[int] = set()  # threads that were refused

    @property
    def depth(self) -> int:
        """How many values this thread is in the middle of."""
        return len(self.keys.get(threading.get_ident(), ()))

    def begin(self) -> None:
        """Begin with some values; what was refused before is forgotten."""
        if not self.depth:
            self._endless.discard(threading.get_ident())

    def refusal(self) -> errors.EncodingError | None:
        """Why this thread may begin with no further value, if it may not."""
        thread = threading.get_ident()
        keys = self.keys.get(thread, ())
        if not keys or (len(keys) < self._deepest and thread not in self._endless):
            return None
        self._endless.add(thread)  # or each value would try it with all the others
        msg = (
            f"pickling the value of {errors.short(keys[0])} asks for values of "
            f"{self._path} to be written, and so on without end: its __reduce__, or what "
            f"that calls, must not flush, sync or close the chest"
        )
        return errors.EncodingError(msg, key=keys[0], path=self._path)

    def pickling(self, key: Hashable = None) -> Pickling:
        """A block in which this thread pickles the value of *key*.

        Or one value after the other: the last place of the list is for the key of each.

        Raises
        ------
        EncodingError
            It is in the middle of too many.
        """
        return Pickling(self, key)

    def after_fork(self) -> None:
        """Forget the threads that a child does not have."""
        thread = threading.get_ident()
        self.keys = {each: keys for each, keys in self.keys.items() if each == thread}


class Pickling:
    """`Nesting.pickling`; every value that gets a file goes through one."""

    # A class, because a generator would take longer.
    __slots__ = ("_key", "_nesting", "_outer", "_thread")

    def __init__(self, nesting: Nesting, key: Hashable) -> None:
        self._nesting, self._key = nesting, key

    def __enter__(self) -> list[Hashable]:
        keys, self._thread = self._nesting.keys, threading.get_ident()
        self._outer = keys.get(self._thread)
        if self._outer is None:
            keys[self._thread] = known = [self._key]
            return known
        refusal = self._nesting.refusal()
        if refusal is not None:
            raise refusal
        keys[self._thread] = known = [*self._outer, self._key]
        return known

    def __exit__(self, *exception: object) -> None:
        # A signal's handler may have come and gone meanwhile.
        if self._outer is None:
            self._nesting.keys.pop(self._thread, None)
        else:
            self._nesting.keys[self._thread] = self._outer
