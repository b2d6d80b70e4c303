"""Histories of operations on one key, and whether they fit one order.

Owns: what each operation does to a value (`effect`), the search for an order, workers that
record what they do. Does not own: who kills them, or when.

The search is that of Wing and Gong (1993) with the memory of Lowe (2017): an operation may
come next if none that is left had returned before it was called.
"""

from __future__ import annotations

import bisect
import contextlib
import json
import math
import os
import random
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

from chest import Chest
from chest.conditional import ABSENT, get_with_etag, set_if

KEYS = ("a", "b", "c")
OPERATIONS = ("set", "get", "get", "del", "incr", "add", "transact", "swap", "swap")
PENDING = "pending"  # the result of an operation whose caller was killed


class Operation(NamedTuple):
    """What somebody asked for, and was told; None is a key that is not there."""

    called: int
    returned: float
    kind: str
    given: Any
    result: Any


def effect(op: Operation, value: Any) -> tuple[bool, Any]:
    """Whether *op* may have its result when the key has *value*, and the value then."""
    kind, given, result = op.kind, op.given, op.result
    told, then = None, value
    if kind == "get":
        told = value
    elif kind == "set":
        then = given
    elif kind == "del":
        told, then = value is not None, None
    elif kind == "incr":
        then = told = (given if value is None else value) + 1
    elif kind == "add":
        told, then = value is None, given if value is None else value
    elif kind == "transact":
        told, then = value, given
    elif kind == "swap":  # compare and set: [seen, new]; what was in the way
        seen, new = given
        told, then = ([True, new], new) if value == seen else ([False, value], value)
    else:
        raise ValueError(kind)
    return result in (PENDING, told), then


def fits(operations: Iterable[Operation]) -> bool:
    """Whether there is an order of all operations that explains every result.

    One that is pending may come at any time after its call, or never.
    """
    ops = sorted(operations)
    needed = sum(1 << n for n, op in enumerate(ops) if op.result != PENDING)
    start: tuple[int, Any] = (0, None)
    todo, seen = [start], {start}
    while todo:
        done, value = todo.pop()
        if not needed & ~done:
            return True
        first = (~done & (done + 1)).bit_length() - 1
        deadline = math.inf
        for number in range(first, len(ops)):
            if done >> number & 1:
                continue
            op = ops[number]
            if op.called > deadline:
                break
            deadline = min(deadline, op.returned)
            possible, then = effect(op, value)
            after = (done | 1 << number, then)
            if possible and after not in seen:
                seen.add(after)
                todo.append(after)
    return False


def trouble(operations: list[Operation]) -> str:
    """The last operations before the first answer that nothing explains."""

    def until(time: float) -> list[Operation]:
        return [
            op
            if op.returned <= time
            else op._replace(returned=math.inf, result=PENDING)
            for op in operations
            if op.called <= time
        ]

    times = sorted({op.returned for op in operations} - {math.inf})
    first = bisect.bisect_left(times, True, key=lambda time: not fits(until(time)))
    near = sorted(
        op for op in until(times[first]) if op.returned >= times[max(0, first - 10)]
    )
    return "\n".join(["no order explains", *map(str, near)])


def perform(c: Chest, key: str, kind: str, given: Any) -> Any:
    """Do one operation; its result as `effect` states it."""
    if kind == "get":
        return c.get(key)
    if kind == "set":
        c[key] = given
    elif kind == "del":
        try:
            del c[key]
        except KeyError:
            return False
        return True
    elif kind == "incr":
        return c.incr(key, default=given)
    elif kind == "add":
        return c.add(key, given)
    elif kind == "transact":

        def exchange(t: Any) -> Any:
            old, t[key] = t.get(key), given
            return old

        return c.transact(exchange)
    return None


class Worker:
    """One thread of one process, which does operations at random and writes them down."""

    def __init__(self, path: str, log: str, seed: int) -> None:
        self.path, self.log, self.luck = path, log, random.Random(seed)
        self.seed, self.number = seed, 0

    def work(self, c: Chest, turns: int) -> None:
        """Do *turns* operations."""
        fd = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            for _ in range(turns):
                self.turn(c, fd)
        finally:
            os.close(fd)

    def turn(self, c: Chest, fd: int) -> None:
        """One operation."""
        luck = self.luck
        if luck.random() < 0.02:
            luck.choice((c.flush, c.compact, c.refresh))()
        key, kind = luck.choice(KEYS), luck.choice(OPERATIONS)
        # No value comes twice, so that an etag and its value are the same thing.
        self.number += 1
        given: Any = (self.seed << 24 | self.number) << 16
        tag: Any = ABSENT
        if kind == "swap":
            seen, tag = get_with_etag(c, key)
            given = [None if seen is ABSENT else seen, given]
        self.note(fd, [time.monotonic_ns(), key, kind, given])
        if kind == "swap":
            done, _, value = set_if(c, key, given[1], tag)
            result: Any = [done, None if value is ABSENT else value]
        else:
            result = perform(c, key, kind, given)
        self.note(fd, [time.monotonic_ns(), result])

    @staticmethod
    def note(fd: int, what: list[Any]) -> None:
        """One write, which a kill leaves whole."""
        os.write(fd, json.dumps(what).encode() + b"\n")


def work(path: str, log: str, seed: int, turns: int, threads: int = 1) -> None:
    """A process of some threads on one handle."""
    with Chest(path, publish="each") as c:
        workers = [
            threading.Thread(
                target=Worker(path, f"{log}-{n}", seed + n).work, args=(c, turns)
            )
            for n in range(1, threads)
        ]
        for worker in workers:
            worker.start()
        Worker(path, f"{log}-0", seed).work(c, turns)
        for worker in workers:
            worker.join()


def histories(folder: Path) -> dict[str, list[Operation]]:
    """What all workers wrote down, by key."""
    found: dict[str, list[Operation]] = {key: [] for key in KEYS}
    for log in folder.iterdir():
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        for number in range(0, len(lines), 2):
            called, key, kind, given = lines[number]
            returned, result = math.inf, PENDING
            with contextlib.suppress(IndexError):
                returned, result = lines[number + 1]
            found[key].append(Operation(called, returned, kind, given, result))
    return found
