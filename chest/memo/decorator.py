"""Memoized functions.

Owns: what a call's key is, when a result is computed, what is known about it. Does not
own: fingerprints, the arguments (`calls`), who computes (`flights`), the values
themselves, which are the chest's.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import logging
import pickle
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Generic, NamedTuple, ParamSpec, TypeVar, cast

from chest import errors, expiry, reprs
from chest.core import Chest
from chest.fingerprint import (
    HANDLERS,
    Code,
    Walk,
    fingerprint,
    plain_function,
    sealed,
)
from chest.memo import elsewhere, flights
from chest.memo.calls import Calls, check_kind
from chest.memo.elsewhere import MISSING
from chest.sizing import SCALARS

__all__ = ["CacheInfo", "Counts", "Failure", "Memo", "memoize"]

log = logging.getLogger("chest")

P = ParamSpec("P")
R = TypeVar("R")

MOST_QUICK = 1 << 16  # calls whose key is remembered
LONGEST_QUICK = 256  # characters of a text among their arguments


class CacheInfo(NamedTuple):
    """What a memoized function did in this process, and what the chest has of it.

    Attributes
    ----------
    hits, misses : int
        Calls that found their result, and those that computed it.
    currsize : int
        Results in the chest, of all versions of the code.
    computed, saved : float
        Seconds spent computing, and seconds that hits did not have to.
    """

    hits: int
    misses: int
    currsize: int
    computed: float
    saved: float


class Failure(NamedTuple):
    """An exception that was kept, with ``on_error="cache"``."""

    error: Exception


class _Tally:
    """What one thread counted."""

    __slots__ = ("computed", "hit", "hits", "misses", "saved", "thread")

    def __init__(self) -> None:
        self.hits = self.misses = 0
        self.computed = self.saved = 0.0
        self.hit: bool | None = None
        self.thread: Any = threading.current_thread()


class _Tallies(threading.local):
    """The present thread's tally."""

    def __init__(self, enter: Callable[[_Tally], None]) -> None:
        self.mine = _Tally()
        enter(self.mine)


class Counts:
    """What all threads counted. No thread waits for another to count."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._living: list[_Tally] = []
        self._ended = _Tally()  # the sums of threads that are no more
        self.local = _Tallies(self._enter)

    def _enter(self, tally: _Tally) -> None:
        with self._lock:
            for each in [each for each in self._living if not each.thread.is_alive()]:
                self._living.remove(each)
                for name in ("hits", "misses", "computed", "saved"):
                    total = getattr(self._ended, name) + getattr(each, name)
                    setattr(self._ended, name, total)
            self._living.append(tally)

    def sum(self, name: str) -> float:
        """One figure of all threads."""
        with self._lock:
            total: float = sum(
                getattr(each, name) for each in [*self._living, self._ended]
            )
        return total

    @property
    def saved(self) -> float:
        """Seconds that hits did not have to compute."""
        return self.sum("saved")


class Memo(Generic[P, R]):
    """A function whose results are kept; made by `memoize`.

    Call it like the function. Beside what ``functools.wraps`` gives it has

    Attributes
    ----------
    name : str
        ``module.function``, the second part of the results' keys.
    chest : Chest
        Where the results are.
    """

    name: str
    chest: Chest
    __wrapped__: Callable[P, R]
    __name__: str
    __qualname__: str

    def __init__(
        self, chest: Chest, function: Any, options: dict[str, Any], name: str = ""
    ) -> None:
        plain = plain_function(function)
        functools.update_wrapper(self, plain)  # first: it brings the other's attributes
        if isinstance(function, staticmethod):
            function = plain
        self.name = name or _name(plain)
        check_kind(function, plain, self.name)
        self.__wrapped__ = function
        self.chest = chest
        self._options = options
        self._function = function
        self._ttl, self._make_key = options["ttl"], options["key"]
        self._version = options["version"]
        if self._version is not None:
            self.__memo_version__ = self.name, self._version
        self._catches = options["on_error"] == "cache"
        self._submits = options.get("submit", True)  # not in pickles of older versions
        self._calls = Calls(
            function, self.name, options["ignore"], code=self._version is None
        )
        self._code: Code | None = None
        # There is no code yet, or there will be none.
        self._holds: Callable[[], bool] = bool if self._version is None else _always
        # Types of the arguments → arguments → (key, seconds, whether the result is
        # plain), for plain arguments: they need no fingerprint to be found again.
        self._quick: dict[Any, dict[Any, Any]] = {}
        self._quick_size = 0
        self._counts = Counts()
        self._local = self._counts.local
        chest._savers.append(self._counts)
        if inspect.iscoroutinefunction(plain):
            _mark_coroutine(self)

    # -- the call ----------------------------------------------------------------------

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The result of the call: from the chest, or computed and kept.

        Raises
        ------
        FingerprintError
            An argument has no lasting fingerprint; the function was not called.
        EncodingError
            The result cannot be stored; it is lost.
        """
        if not kwargs:
            known = self._quick.get(tuple(map(type, args)))
            if known is not None and args in known and self._holds():
                key, seconds, plain = known[args]
                try:
                    value = self.chest[key] if plain else self._fresh(key)
                    if plain and type(value) not in SCALARS:
                        value = self._fresh(key)  # it was computed anew, otherwise
                except (KeyError, errors.CorruptError, errors.DecodingError):
                    pass  # it was deleted, or has to be computed again
                else:
                    mine = self._local.mine
                    mine.hit = True
                    mine.hits += 1
                    mine.saved += seconds
                    return cast("R", value)
        result: R = self._answer(args, kwargs)
        return result

    def _fresh(self, key: tuple[str, str, str]) -> Any:
        """A result that can be changed, for this caller alone."""
        value, _ = self.chest._fresh_value(key)
        if type(value) is Failure:
            raise value.error
        return value

    def _answer(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        # Taken before the code is looked at: should that change from now on, what is
        # remembered here is thrown away with it.
        quick = self._quick
        key = self.key(*args, **kwargs)
        found = self._find(key)
        if found is MISSING:
            self.chest._check_writable()  # before it was computed in vain
            if self._submits:
                value = elsewhere.answer(self, key, args, kwargs)
                if value is not MISSING:
                    return value
            return self._answer_here(key, args, kwargs)
        value, seconds = found
        if not kwargs:
            self._remember(quick, args, (key, seconds, type(value) in SCALARS))
        return value

    def _answer_here(
        self, key: tuple[str, str, str], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Compute the result in this process, unless another one does."""
        with flights.alone(self._home, _file(key)):
            found = self._find(key)  # somebody else was quicker
            if found is MISSING:
                return self._compute(key, args, kwargs)
            return found[0]

    def _compute(
        self, key: tuple[str, str, str], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Call the function, keep the result."""
        start = time.perf_counter()
        value: Any
        try:
            value = self._function(*args, **kwargs)
        except Exception as error:
            seconds = self._computed(start)
            if self._catches:
                self._keep_failure(key, error, seconds)
            raise
        self._keep(key, value, self._computed(start))
        return value

    def _computed(self, start: float) -> float:
        """Count a computation that began then, and log it."""
        seconds = time.perf_counter() - start
        mine = self._local.mine
        mine.hit = False
        mine.misses += 1
        mine.computed += seconds
        log.info("%s was computed in %s", self.name, reprs.seconds_text(seconds))
        return seconds

    def _keep(self, key: tuple[str, str, str], value: Any, seconds: float) -> None:
        try:
            self.chest._keep(key, value, seconds, self._ttl)
        except (errors.StoreError, errors.LockTimeout, errors.DroppedError) as error:
            # What was computed is worth more than that it is kept.
            warnings.warn(
                f"a result of {self.name} could not be written: {error}",
                errors.SpillWarning,
                stacklevel=5,
            )
        except errors.EncodingError as error:
            msg = (
                f"the result of {self.name}, a {type(value).__name__}, cannot be kept: "
                f"{error}"
            )
            raise errors.EncodingError(msg, key=key, path=error.path) from error

    def _keep_failure(
        self, key: tuple[str, str, str], error: Exception, seconds: float
    ) -> None:
        """Keep an exception; the caller gets it in any case."""
        try:
            self._keep(key, Failure(error), seconds)
        except errors.EncodingError as why:
            warnings.warn(
                f"the {type(error).__name__} that {self.name} raised cannot be kept: "
                f"{why.__cause__}",
                RuntimeWarning,
                stacklevel=5,
            )

    def _find(self, key: tuple[str, str, str]) -> Any:
        """The result and its seconds, counted as a hit; or that it is missing."""
        try:
            value, seconds = self.chest._fresh_value(key)
        except KeyError:
            return MISSING
        except (errors.CorruptValueError, errors.DecodingError) as error:
            warnings.warn(
                f"a result of {self.name} is computed again: {error}",
                RuntimeWarning,
                stacklevel=4,
            )
            return MISSING
        mine = self._local.mine
        mine.hit = True
        mine.hits += 1
        mine.saved += seconds
        if type(value) is Failure:
            raise value.error
        return value, seconds

    def _remember(
        self,
        quick: dict[Any, dict[Any, Any]],
        args: tuple[Any, ...],
        found: tuple[Any, float, bool],
    ) -> None:
        """Find this call by its arguments from now on."""
        kinds = tuple(map(type, args))
        if self._make_key or not self._calls.settled or not SCALARS.issuperset(kinds):
            return
        for each in args:
            if type(each) is complex or (type(each) is float and not each):
                return  # 0.0 is equal to -0.0, and not the same
            if type(each) in (str, bytes) and len(each) > LONGEST_QUICK:
                return
        if self._quick_size >= MOST_QUICK:
            self._quick, self._quick_size = {}, 0
        quick.setdefault(kinds, {})[args] = found
        self._quick_size += 1

    # -- knowing -----------------------------------------------------------------------

    def key(self, *args: P.args, **kwargs: P.kwargs) -> tuple[str, str, str]:
        """The chest's key for the result of this call, whether it is there or not.

        ``("memo", "module.function", fingerprint)``.
        """
        if self._make_key is not None:
            made = self._make_key(*args, **kwargs)
            call: Any = fingerprint(made, code=False)
        else:
            call = self._calls.token(args, kwargs)
        return "memo", self.name, fingerprint((self._what(), call))

    def _what(self) -> Any:
        """What stands for the code."""
        if self._version is not None:
            return "version", fingerprint(self._version, code=False)
        code = self._code
        if code is None or not code.holds():
            code = Code(self._function)
            # Whoever comes in between finds nothing, or that the old code does not hold.
            self._quick, self._quick_size = {}, 0
            self._code, self._holds = code, code.holds
        return "code", code.token

    def check(self, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Whether the result of this call is there; nothing is read or computed."""
        return self.key(*args, **kwargs) in self.chest

    def call(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Compute the result whether it is there or not, and keep it."""
        return cast("R", self._compute(self.key(*args, **kwargs), args, kwargs))

    @property
    def was_hit(self) -> bool | None:
        """Whether this thread's latest call found its result; None: there was none."""
        return self._local.mine.hit

    def cache_info(self) -> CacheInfo:
        """Counts of this process, and how many results are there. O(keys)."""
        total = self._counts.sum
        return CacheInfo(
            int(total("hits")),
            int(total("misses")),
            sum(1 for _ in self.keys()),
            total("computed"),
            self._counts.saved,
        )

    def keys(self) -> Iterator[tuple[str, str, str]]:
        """The keys of this function's results, also of older versions. O(keys)."""
        for key in self.chest:
            if type(key) is tuple and len(key) == 3 and key[:2] == ("memo", self.name):
                yield key

    def forget(self, *args: Any, older_than: float | None = None, **kwargs: Any) -> int:
        """Delete the result of a call; or all results that are old.

        Parameters
        ----------
        *args, **kwargs
            The call.
        older_than : float, optional
            Instead of a call: seconds since the results were computed, by whatever
            version of the code; 0: all of them.

        Returns
        -------
        int
            How many results were deleted, for everyone.
        """
        if older_than is None:
            try:
                wanted = [self.key(*args, **kwargs)]
            except TypeError as error:
                if not args and not kwargs:
                    error.add_note("forget(older_than=0) forgets all results")
                raise
        elif args or kwargs:
            msg = "forget() takes the arguments of a call, or older_than=, not both"
            raise TypeError(msg)
        else:
            wanted = self.chest._written_before(self.keys(), older_than)
        gone = 0
        for key in wanted:
            with contextlib.suppress(KeyError):  # another process was quicker
                del self.chest[key]
                gone += 1
        return gone

    # -- what it is --------------------------------------------------------------------

    @property
    def _home(self) -> Any:
        return self.chest._flight_home

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        """As a method of *instance*, which is the first argument."""
        return self if instance is None else _Bound(self, instance)

    def __repr__(self) -> str:
        return f"<memoized {self.name} in {self.chest.path}>"

    def __reduce__(self) -> tuple[Any, ...] | str:
        """Travel by name if it can be imported, else as its parts."""
        module, name = self.__module__, self.__qualname__
        if module not in ("__main__", "__mp_main__"):
            found: Any = sys.modules.get(module)
            for part in name.split("."):
                found = getattr(found, part, None)
            if found is self:
                return name
        import cloudpickle

        function = cloudpickle.dumps(self._function)
        return _rebuild, (type(self), self.chest, function, self._options, self.name)


class _AsyncMemo(Memo[P, R]):
    """A coroutine function whose results are kept."""

    async def __call__(  # type: ignore[override]
        self, *args: P.args, **kwargs: P.kwargs
    ) -> Any:
        # docstring inherited
        key = self.key(*args, **kwargs)
        found = self._find(key)
        if found is not MISSING:
            return found[0]
        self.chest._check_writable()
        async with flights.alone_async(self._home, _file(key)):
            found = self._find(key)
            if found is not MISSING:
                return found[0]
            return await self._compute(key, args, kwargs)

    async def _compute(
        self, key: tuple[str, str, str], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Any:
        """Await the function, keep the result; the disk keeps no other task waiting."""
        import asyncio

        start = time.perf_counter()
        value: Any
        try:
            value = await self._function(*args, **kwargs)
        except Exception as error:
            seconds = self._computed(start)
            if self._catches:
                await asyncio.to_thread(self._keep_failure, key, error, seconds)
            raise
        await asyncio.to_thread(self._keep, key, value, self._computed(start))
        return value


class _Bound:
    """A memoized method of one object."""

    def __init__(self, memo: Memo[Any, Any], instance: object) -> None:
        self.__func__, self.__self__ = memo, instance

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.__func__(self.__self__, *args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.__func__, name)
        if name in ("call", "check", "forget", "key"):
            if name == "forget":
                return functools.partial(_forget, found, self.__self__)
            return functools.partial(found, self.__self__)
        return found

    def __reduce__(self) -> tuple[Any, ...]:
        return _Bound, (self.__func__, self.__self__)

    def __repr__(self) -> str:
        return f"<bound {self.__func__!r} of {self.__self__!r}>"


def _forget(
    forget: Callable[..., int],
    instance: object,
    *args: Any,
    older_than: float | None = None,
    **kwargs: Any,
) -> int:
    """`Memo.forget` of a method: of all objects, when it is by age."""
    if older_than is not None:
        return forget(*args, older_than=older_than, **kwargs)
    return forget(instance, *args, **kwargs)


def memoize(
    chest: Chest,
    *,
    ignore: str | Iterable[str] = (),
    ttl: float | None = None,
    version: object = None,
    key: Callable[..., Any] | None = None,
    on_error: str = "raise",
    submit: bool = True,
) -> Callable[[Callable[P, R]], Memo[P, R]]:
    """Keep the results of a function in *chest*, and compute none of them twice.

    The results are values of the chest like others: under its budget, spilled, mapped,
    shared with other processes, kept between runs. Each is published when its call
    returns, under the key ``("memo", "module.function", fingerprint)``.

    Parameters
    ----------
    chest : Chest
        Where the results go.
    ignore : str or iterable of str
        Parameters that do not change the result, such as ``verbose``.
    ttl : float, optional
        Seconds after which a result counts as absent.
    version : object, optional
        Stands for the function's code: results are found as long as it is the same,
        whatever the code. Without it the code itself counts.
    key : callable, optional
        Called with the arguments; what it returns stands for them.
    on_error : {"raise", "cache"}
        Whether an exception is computed again next time, or kept and raised again.
    submit : bool
        Whether a result that is missing is computed on the dask cluster of the client
        that this process has, if it has one. False: always here.

    Returns
    -------
    callable
        A decorator. It takes functions, methods, partials and coroutine functions, and
        returns a `Memo`.

    Raises
    ------
    TypeError
        At the decoration: a generator function, whose result only one caller could use,
        or something that cannot be called.
    ValueError
        An option has a value that it does not take.

    Notes
    -----
    Two calls are one when their arguments, bound to the signature with its defaults, have
    equal content: see `chest.fingerprint`. A large array costs the time to hash it, one
    that the chest has mapped only once.

    The code that counts is that of the function and of the user's own functions,
    classes and constants that it refers to, through modules of the user's own as well;
    of what is installed, only the name. Captured data counts where it is immutable.
    **Captured lists, dicts, arrays and frames do not count: pass them as arguments.**
    Older versions' results stay until `Memo.forget`; undoing a change finds them again.

    Whoever asks for a result that is being computed waits for it, in any thread or
    process; when the one that computes dies or raises, another takes over. A result that
    could be changed is read anew for each caller; arrays are read-only maps.

    With a dask client running, the worker that computes a result keeps it in the chest,
    whose folder or bucket it must see; the caller reads it there. What cannot be sent,
    or is in a temporary chest or one of ``durability="memory"``, is computed here; so are
    coroutine functions, and calls within a task, which are computed in that.

    A hit with plain arguments and a plain result takes 1 to 2 µs and no lock.

    Examples
    --------
    >>> from chest import Chest, memoize
    >>> c = Chest()
    >>> @memoize(c)
    ... def double(x, verbose=False):
    ...     print("computing")
    ...     return 2 * x
    >>> double(21)
    computing
    42
    >>> double(x=21)
    42
    >>> double.was_hit, double.cache_info().hits
    (True, 1)
    >>> c.close()
    """
    if not isinstance(cast("object", chest), Chest):
        msg = f"memoize() needs a Chest: @memoize(c), not {errors.short(chest)}"
        raise TypeError(msg)
    if on_error not in ("raise", "cache"):
        msg = f"on_error must be 'raise' or 'cache', not {on_error!r}"
        raise ValueError(msg)
    if not (key is None or callable(cast("object", key))):
        msg = f"key={errors.short(key)}: a function of the call's arguments is needed"
        raise TypeError(msg)
    if ttl is not None:
        expiry.deadline(ttl)  # which refuses what is no time
    options = {
        "ignore": (ignore,) if isinstance(ignore, str) else tuple(ignore),
        "ttl": ttl,
        "version": version,
        "key": key,
        "on_error": on_error,
        "submit": submit,
    }

    def decorate(function: Callable[P, R]) -> Memo[P, R]:
        is_async = inspect.iscoroutinefunction(plain_function(function))
        kind = _AsyncMemo if is_async else Memo
        return kind(chest, function, options)

    return decorate


def _memo(walk: Walk, value: Memo[Any, Any]) -> bytes:
    """A memoized function as an argument: what it does, whatever chest it has."""
    fixed = walk.tokens(value._calls.fixed)
    return sealed(b"memo", walk.token(value.name), walk.token(value._what()), fixed)


def _bound(walk: Walk, value: _Bound) -> bytes:
    """A memoized method as an argument."""
    return sealed(b"method", walk.tokens([value.__self__, value.__func__]))


HANDLERS[Memo] = _memo
HANDLERS[_Bound] = _bound


def _name(plain: Any) -> str:
    """``module.function`` of a function, the same however its script is run."""
    if not hasattr(plain, "__qualname__"):
        plain = type(plain)
    module = plain.__module__
    if module == "__mp_main__":  # what multiprocessing calls the script in a child
        module = "__main__"
    if module == "__main__":
        spec = getattr(sys.modules["__main__"], "__spec__", None)
        module = getattr(spec, "name", None) or module
    return f"{module}.{plain.__qualname__}"


def _always() -> bool:
    """A version holds as long as the program runs."""
    return True


def _file(key: tuple[str, str, str]) -> str:
    """A name for the lock of a computation."""
    return fingerprint(key)


def _mark_coroutine(memo: Any) -> None:
    """Have ``inspect`` and asyncio take it for a coroutine function."""
    if sys.version_info >= (3, 12):
        inspect.markcoroutinefunction(memo)
    else:
        from asyncio import coroutines

        memo._is_coroutine = coroutines._is_coroutine  # type: ignore[attr-defined]


def _rebuild(
    kind: type[Memo[Any, Any]],
    chest: Chest,
    function: bytes,
    options: dict[str, Any],
    name: str,
) -> Memo[Any, Any]:
    """A memoized function that travelled as its parts."""
    return kind(chest, pickle.loads(function), options, name)
