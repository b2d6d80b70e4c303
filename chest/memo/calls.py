"""A call's arguments as the function gets them, and their fingerprint.

Owns: what can be called and kept, binding to the signature, naming the argument without
a fingerprint. Does not own: fingerprints of values, the function's code.
"""

from __future__ import annotations

import functools
import inspect
import keyword
import types
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from chest.errors import FingerprintError, short
from chest.fingerprint import token
from chest.sizing import SCALARS

__all__ = ["Calls", "check_kind"]

ANYTHING = inspect.Signature(
    [
        inspect.Parameter("args", inspect.Parameter.VAR_POSITIONAL),
        inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD),
    ]
)

FUNCTIONS = types.FunctionType | types.BuiltinFunctionType | type  # and "no default"


class Calls:
    """How one function may be called.

    Parameters
    ----------
    function : callable
    name : str
        For messages.
    ignore : iterable of str
        Parameters that do not matter.
    code : bool
        Whether the code of arguments' classes counts.

    Raises
    ------
    ValueError
        A name in *ignore* is no parameter.
    """

    def __init__(
        self, function: Any, name: str, ignore: Iterable[str], *, code: bool
    ) -> None:
        self._name, self._code = name, code
        self._ignored = frozenset(ignore)
        self.fixed = _fixed(function)
        own, wrapped = _signatures(function)
        # Whether equal arguments make equal calls always: no default, and nothing that a
        # partial or a bound method adds, can be another later.
        self.settled = not self.fixed and all(
            _is_settled(each.default)
            for signature in (own, wrapped or own)
            for each in signature.parameters.values()
        )
        last = name.rpartition(".")[2]
        self._shape = _Shape(wrapped or own, last, self._ignored)
        # What a wrapper takes may be more or less than what it wraps does.
        self._wrapper = _Shape(own, last, self._ignored) if wrapped else None
        unknown = self._ignored - set(self._shape.names)
        if unknown and self._shape.more < 0:
            msg = (
                f"{name} has no parameter {min(unknown)!r} to ignore; it has "
                f"{', '.join(self._shape.names) or 'none'}"
            )
            raise ValueError(msg)

    def token(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
        """Bytes that stand for a call, however its arguments are spelled.

        Raises
        ------
        TypeError
            The function does not take these arguments.
        FingerprintError
            One of them has no fingerprint; the message has the ways out.
        """
        shape = self._shape
        try:
            values = shape.bind(*args, **kwargs)
        except TypeError:
            if self._wrapper is None:
                raise
            shape = self._wrapper
            values = shape.bind(*args, **kwargs)
        parts: list[Any] = [self._part(each, "self") for each in self.fixed]
        for place, name in shape.kept:
            value = values[place]
            if place == shape.more and self._ignored:
                value = {k: v for k, v in value.items() if k not in self._ignored}
            parts += [name, self._part(value, name)]
        return token(parts)

    def _part(self, value: Any, name: str) -> bytes:
        try:
            return token(value, code=self._code)
        except FingerprintError as error:
            msg = (
                f"{self._name}: the argument {name!r} has no fingerprint that would be "
                f"the same next time: {error}. Leave it out with ignore={name!r}, or say "
                f"with key= what tells one call from another"
            )
            raise FingerprintError(msg, key=name) from error


def _is_settled(default: Any) -> bool:
    if type(default) is tuple:
        return all(map(_is_settled, default))
    return type(default) in SCALARS or isinstance(default, FUNCTIONS)


class _Shape:
    """One signature.

    Attributes
    ----------
    bind : callable
        Arguments → values, in the order of the parameters.
    names : list of str
    kept : list of (int, str)
        Places and names of the parameters that matter.
    more : int
        Place of ``**kwargs``; -1: it has none.
    """

    def __init__(
        self, signature: inspect.Signature, name: str, ignored: frozenset[str]
    ) -> None:
        self.bind = _binder(signature, name)
        self.names = [*signature.parameters]
        kinds = [each.kind for each in signature.parameters.values()]
        more = inspect.Parameter.VAR_KEYWORD
        self.more = kinds.index(more) if more in kinds else -1
        self.kept = [
            (place, each)
            for place, each in enumerate(self.names)
            if each not in ignored
        ]


def _signatures(function: Any) -> tuple[inspect.Signature, inspect.Signature | None]:
    """What a function takes itself; and what it wraps, if it passes all of that on."""
    try:
        own = inspect.signature(function, follow_wrapped=False)
    except ValueError:  # some builtins have none
        own = ANYTHING
    kinds = [each.kind for each in own.parameters.values()]
    if kinds != [each.kind for each in ANYTHING.parameters.values()]:
        return own, None
    try:
        wrapped = inspect.signature(function)
    except ValueError:
        return own, None
    return own, None if wrapped == own else wrapped


def _fixed(function: Any) -> list[Any]:
    """What a partial or a bound method adds to each call."""
    if isinstance(function, functools.partial):
        return [function.args, dict(function.keywords), *_fixed(function.func)]
    if isinstance(function, types.MethodType):
        return [function.__self__, *_fixed(function.__func__)]
    return []


def _binder(signature: inspect.Signature, name: str) -> Callable[..., tuple[Any, ...]]:
    """A function of the same signature that returns its arguments, defaults filled in.

    ``Signature.bind`` takes ten times as long.
    """
    kinds = inspect.Parameter
    space: dict[str, Any] = {}
    before: list[str] = []
    last: Any = None
    for number, each in enumerate(signature.parameters.values()):
        if last is kinds.POSITIONAL_ONLY and each.kind is not last:
            before.append("/")
        if each.kind is kinds.KEYWORD_ONLY and last not in (
            kinds.KEYWORD_ONLY,
            kinds.VAR_POSITIONAL,
        ):
            before.append("*")
        stars: dict[Any, str] = {kinds.VAR_POSITIONAL: "*", kinds.VAR_KEYWORD: "**"}
        text = stars.get(each.kind, "") + each.name
        if each.default is not kinds.empty:
            space[f"_default{number}"] = each.default
            text += f"=_default{number}"
        before.append(text)
        last = each.kind
    if last is kinds.POSITIONAL_ONLY:
        before.append("/")
    if not name.isidentifier() or keyword.iskeyword(name):
        name = "function"  # <lambda>
    held = "".join(f"{each}, " for each in signature.parameters)
    exec(f"def {name}({', '.join(before)}):\n    return ({held})", space)
    bound: Callable[..., tuple[Any, ...]] = space[name]
    return bound


def check_kind(function: Any, plain: Any, name: str) -> None:
    """Refuse what cannot be memoized, by name."""
    if isinstance(function, classmethod):
        msg = f"{name}: put @classmethod above @memoize, not below it"
        raise TypeError(msg)
    if inspect.isgeneratorfunction(plain) or inspect.isasyncgenfunction(plain):
        msg = (
            f"{name} is a generator function: what it yields is used up by the first "
            f"caller. Return a list, or memoize what it calls for each item"
        )
        raise TypeError(msg)
    if not callable(function):
        msg = f"memoize() takes a function, not {short(function)}"
        raise TypeError(msg)
