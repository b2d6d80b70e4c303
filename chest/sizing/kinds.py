"""What Python's own types hold: containers, functions, instances.

Owns: one handler per builtin type, and the one for objects nobody knows.
Does not own: which handler serves a type, the walk.
"""

from __future__ import annotations

import gc
import itertools
import types
import weakref
from collections import deque
from sys import getsizeof
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from chest.sizing.walk import Handler, Walk

__all__ = ["attributes", "handle", "instance", "opaque", "reachable", "shallow"]

REACH: Final = 4096  # entries of a dict, set or deque within which a sample is drawn
GC_HEADER: Final = 16  # bytes before each object the collector tracks
POINTER: Final = 8

OPAQUE: Final = (
    type,
    types.ModuleType,
    types.CodeType,
    types.FrameType,
    types.TracebackType,
    types.BuiltinFunctionType,
    types.GetSetDescriptorType,
    types.MemberDescriptorType,
    types.WrapperDescriptorType,
    types.MethodDescriptorType,
    weakref.ref,
)
"""Types of what belongs to the program, not to a value that refers to it."""


def _indexed(base: Any) -> Handler:
    """Make the handler of lists and tuples, and of their subclasses."""
    item = base.__getitem__

    def handler(walk: Walk, value: Any) -> None:
        walk.own(shallow(value, base))
        count = base.__len__(value)
        walk.children(
            count,
            lambda walk, wanted: [
                item(value, i) for i in walk.positions(count, wanted)
            ],
        )
        if type(value) is not base:
            attributes(walk, value)

    return handler


def _pooled(
    base: Any,
    forward: Callable[[Any], Iterable[Any]],
    backward: Callable[[Any], Iterable[Any]] | None,
    width: int,
) -> Handler:
    """Make the handler of what can only be walked: *width* objects an entry."""

    def handler(walk: Walk, value: Any) -> None:
        walk.own(shallow(value, base))
        entries = base.__len__(value)

        def pick(walk: Walk, wanted: int) -> list[Any]:
            if entries <= REACH or backward is None:
                pool = list(itertools.islice(forward(value), REACH))
            else:
                pool = list(itertools.islice(forward(value), REACH // 2))
                pool += itertools.islice(backward(value), REACH // 2)
            chosen = walk.positions(len(pool), -(-wanted // width))
            picked = [pool[i] for i in chosen]
            return list(itertools.chain(*picked)) if width > 1 else picked

        walk.children(entries * width, pick)
        if type(value) is not base:
            attributes(walk, value)

    return handler


def attributes(walk: Walk, value: Any) -> None:
    """Announce the ``__dict__`` of an instance whose type is handled otherwise."""
    held = getattr(value, "__dict__", None)
    if type(held) is dict and held:
        walk.children(1, lambda walk, wanted: [held])


def instance(walk: Walk, value: Any) -> None:
    """Count an object of which nobody knows anything."""
    reachable(walk, value)
    if walk.top and _tells(value):
        # Of memory that the collector knows nothing of, as a library's or a device's.
        walk.at_least(getsizeof(value))


def reachable(walk: Walk, value: Any) -> None:
    """Count an object by what the garbage collector knows that it holds."""
    held = [child for child in gc.get_referents(value) if not isinstance(child, type)]
    # Attributes that have not been made a dict lie in an array of their own.
    inline = POINTER * (len(held) + 1) if type(value).__dictoffset__ else 0
    walk.own(shallow(value) + inline)
    walk.children(
        len(held),
        lambda walk, wanted: [held[i] for i in walk.positions(len(held), wanted)],
    )


def _function(walk: Walk, value: Any) -> None:
    """Count a function with its closure and defaults, never its globals."""
    walk.own(getsizeof(value))
    held = (value.__closure__, value.__defaults__, value.__kwdefaults__, value.__dict__)
    walk.children(4, lambda walk, wanted: [part for part in held if part])


def opaque(walk: Walk, value: Any) -> None:
    """Count nothing for what belongs to the program, unless it is the value itself."""
    if walk.top:
        walk.own(shallow(value))


def handle(walk: Walk, value: Any) -> None:
    """Count only the object: what it stands for is elsewhere."""
    walk.own(shallow(value))


def shallow(value: object, base: Any = object) -> int:
    """Bytes of the object alone; *base* is asked where a subclass is not trusted."""
    if _tells(value):
        # Written in Python, it may well count what we are going to visit (pandas does).
        return int(base.__sizeof__(value)) + GC_HEADER
    return getsizeof(value)


def _tells(value: object) -> bool:
    """Whether the size of the object alone is somebody's code in Python."""
    return isinstance(type(value).__sizeof__, types.FunctionType)


HANDLERS: Final[dict[type, Handler]] = {
    list: _indexed(list),
    tuple: _indexed(tuple),
    dict: _pooled(dict, dict.items, lambda held: reversed(dict.items(held)), 2),
    set: _pooled(set, set.__iter__, None, 1),
    frozenset: _pooled(frozenset, frozenset.__iter__, None, 1),
    deque: _pooled(deque, deque.__iter__, deque.__reversed__, 1),
    types.FunctionType: _function,
}
"""Builtin type → handler of its values and of its subclasses'."""
