"""One pass over one value.

Owns: the walk, the sampling, which handler serves which type.
Does not own: what the types hold.

A value is walked level by level. Of a level with more objects than it may have, a
sample is visited, and each visited object stands for several (its *weight*). Samples
are spread evenly with a fixed irregularity, so that a pattern in the data does not
coincide with one in the sample; no random numbers are drawn.
"""

from __future__ import annotations

import functools
import math
from collections import Counter
from collections.abc import Callable
from numbers import Real
from sys import getsizeof
from typing import TYPE_CHECKING, Any, Final

from chest.sizing import kinds, libraries

if TYPE_CHECKING:
    from collections.abc import Iterable

__all__ = ["Walk", "measure", "register"]

SCALARS: Final = frozenset({str, bytes, int, float, complex, bool, type(None)})
"""Immutable types that hold nothing, whose size is ``sys.getsizeof``."""

SMALL_BUFFER: Final = 4096  # bytes; below, sharing is not worth remembering
VISITS: Final = 1000  # objects looked at in one value, about
SHARE: Final = 4  # a level may have a quarter of the visits left …
NARROWEST: Final = 64  # … or this many
CLUSTER: Final = 16  # of a large level, so many brothers are visited, or none
TYPES_REMEMBERED: Final = 4096
GOLDEN: Final = 0.6180339887498949

Picker = Callable[["Walk", int], list[Any]]
Handler = Callable[["Walk", Any], None]


def measure(value: object) -> tuple[int, dict[int, int]]:
    """Plain bytes of *value*, and address → bytes of the buffers it keeps alive."""
    walk = Walk()
    walk.run(value)
    return walk.result()


def register(kind: type | str, size: Callable[[Any], float]) -> None:
    """Let *size* tell the bytes of values of *kind*, a type or its dotted name."""
    _REGISTERED[kind if isinstance(kind, str) else _dotted(kind)] = size
    _HANDLERS.clear()


class Walk:
    """One pass over one value."""

    def __init__(self) -> None:
        self.plain = self.least = 0.0
        self.weight = 1.0  # how many objects the one being visited stands for
        self.branch: object = None  # the sampled object it was reached through
        self.top = True
        # Address → [bytes, weight, branch].
        self._held: dict[int, list[Any]] = {}
        # id → object; held, because the id of an object that died means nothing.
        self._seen: dict[int, object] = {}
        # Children to come: count, picker, weight, branch.
        self._pending: list[tuple[int, Picker, float, object]] = []
        self._phase = 0.0

    def run(self, value: object) -> None:
        """Visit *value* and what it holds."""
        self._seen[id(value)] = value
        self._visit(value)
        self.top = False
        left = VISITS
        while self._pending and left > 0:
            level = self._next_level(max(NARROWEST, left // SHARE))
            left -= len(level)
            for child, self.weight, self.branch in level:
                if type(child) in SCALARS:
                    self.plain += self.weight * getsizeof(child)
                else:
                    self._visit(child)

    def result(self) -> tuple[int, dict[int, int]]:
        """Plain bytes, and the buffers worth telling apart."""
        plain, buffers = self.plain, {}
        for address, (size, weight, _) in self._held.items():
            plain += (weight - 1) * size
            if size < SMALL_BUFFER:
                plain += size
            else:
                buffers[address] = size
        plain = max(plain, self.least - sum(buffers.values()))
        return round(plain), buffers

    def own(self, size: float) -> None:
        """Count bytes of the object being visited."""
        self.plain += self.weight * size

    def at_least(self, size: float) -> None:
        """Take it from the value itself that all of it is no less."""
        self.least = size

    def buffer(self, address: int, size: int) -> None:
        """Count a buffer, once for all who reach it."""
        held = self._held.get(address)
        if held is None:
            self._held[address] = [size, self.weight, self.branch]
            return
        held[0] = max(held[0], size)
        if held[2] is not self.branch:
            held[1] = 1.0  # several sampled objects share it: so do the others

    def children(self, count: int, pick: Picker) -> None:
        """Announce what the object being visited holds."""
        if count:
            self._pending.append((count, pick, self.weight, self.branch))

    def positions(self, count: int, wanted: int) -> Iterable[int]:
        """Spread *wanted* indices evenly, but irregularly, over *count*."""
        if wanted >= count:
            return range(count)
        self._phase = phase = (self._phase + GOLDEN) % 1
        step = count / wanted
        return [int((i + (i * GOLDEN + phase) % 1) * step) for i in range(wanted)]

    def _visit(self, value: object) -> None:
        kind = type(value)
        try:
            (_HANDLERS.get(kind) or _resolve(kind, value))(self, value)
        except Exception:  # noqa: BLE001
            # Foreign code: a closed map, a broken property, a hook with a bug. A value
            # that cannot tell its size must be storable all the same.
            self.own(kinds.shallow(value))

    def _next_level(self, widest: int) -> list[tuple[Any, float, object]]:
        """Take the pending children, or a sample: (object, weight, branch)."""
        families, self._pending = self._pending, []
        if sum(family[0] for family in families) <= widest:
            return [
                (child, weight, branch)
                for count, pick, weight, branch in families
                for child in self._unseen(self._picked(pick, count))
            ]
        mass = sum(count * weight for count, _, weight, _ in families)
        level: list[tuple[Any, float, object]] = []
        for number, (count, pick, weight, branch) in enumerate(families):
            share = min(count, widest * count * weight / mass)
            wanted = min(count, max(CLUSTER, round(share)))
            if (number * GOLDEN) % 1 * wanted >= share:
                continue  # its brothers that are visited stand for it as well
            weight *= max(1.0, wanted / share)
            found = self._picked(pick, wanted)
            if wanted == count:
                origin = branch or pick
                level += [(child, weight, origin) for child in self._unseen(found)]
            else:
                level += self._sampled(found, count, weight, branch)
        return level

    def _picked(self, pick: Picker, wanted: int) -> list[Any]:
        try:
            return pick(self, wanted)
        except Exception:  # noqa: BLE001
            # Another thread changed the container under our hands, or the library it
            # belongs to refused. What was counted of it so far has to do.
            return []

    def _sampled(
        self, found: list[Any], count: int, weight: float, branch: object
    ) -> list[tuple[Any, float, object]]:
        """Let the children found stand for all *count*, judging how many repeat."""
        times = Counter(map(id, found))
        shape = Counter(times.values())
        once, twice = shape[1], shape[2]  # how many were met once, and twice
        often = len(times) - once
        stands_for = 1.0
        if once and not twice:
            stands_for = max(1.0, count / len(found))
        elif once:
            # Chao's estimate of how many kinds there are, from how many were met once
            # and twice.
            unmet = min(once * once / (2 * twice), count - often - once)
            stands_for = 1 + max(0.0, unmet) / once
        return [
            (
                child,
                weight * (stands_for if times[id(child)] == 1 else 1.0),
                branch or child,
            )
            for child in self._unseen(found)
        ]

    def _unseen(self, found: list[Any]) -> Iterable[Any]:
        seen = self._seen
        for child in found:
            if id(child) not in seen:
                seen[id(child)] = child
                yield child


_REGISTERED: Final[dict[str, Callable[[Any], float]]] = {}

_HANDLERS: Final[dict[type, Handler]] = {}
"""Type → handler, remembered; emptied when it grows or a hook is registered."""


def _resolve(kind: type, value: object) -> Handler:
    """Find what handles a type, and remember it."""
    handler = _find(kind, value)
    if len(_HANDLERS) >= TYPES_REMEMBERED:
        _HANDLERS.clear()  # classes made in a loop must not be kept alive for ever
    _HANDLERS[kind] = handler
    return handler


def _find(kind: type, value: object) -> Handler:
    for base in kind.__mro__:
        if _dotted(base) in _REGISTERED:
            return functools.partial(_told, _REGISTERED[_dotted(base)])
    if hasattr(kind, "__chest_nbytes__"):
        return functools.partial(_told, lambda value: value.__chest_nbytes__())
    if issubclass(kind, kinds.OPAQUE):
        return kinds.opaque
    if not SCALARS.isdisjoint(kind.__mro__):
        return kinds.instance
    for base in kind.__mro__:
        handler = kinds.HANDLERS.get(base) or libraries.HANDLERS.get(base)
        library = libraries.CHOOSERS.get(base.__module__.partition(".")[0])
        if handler is None and library is not None:
            handler = library(value)
        if handler is not None:
            return handler
    try:
        memoryview(value).release()  # type: ignore[arg-type]
    except (TypeError, BufferError):
        return kinds.instance
    return libraries.bytes_like


def _told(size: Callable[[Any], float], walk: Walk, value: Any) -> None:
    """Count what the value, or a registered function, tells."""
    told: Any = size(value)
    if not isinstance(told, Real) or not 0 <= float(told) < math.inf:
        # A size that is no number would poison every sum that it enters.
        told = kinds.shallow(value)
    walk.own(float(told))


def _dotted(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
