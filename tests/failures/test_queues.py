"""Queues: whoever is killed, at whichever call, nothing is lost or doubled."""

from __future__ import annotations

import os
import queue
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chest import DurableQueue, FlushQueue
from chest.queues.header import Header
from tests.failures import faults

LARGE = "x" * 100_000
START = ["a", LARGE, "b"]


def putting(path: str) -> Iterator[list[Any]]:
    """Yields what must be in the queue."""
    with DurableQueue(path, durability="power") as q:
        q.put("c")
        yield [*START, "c"]
        q.put(LARGE)
        yield [*START, "c", LARGE]
        q.put_many(["d", "e"])
        yield [*START, "c", LARGE, "d", "e"]


def getting(path: str) -> Iterator[list[Any]]:
    with DurableQueue(path, durability="power") as q:
        q.get()
        yield START[1:]
        q.get()
        yield START[2:]


def leasing(path: str) -> Iterator[list[Any]]:
    with DurableQueue(path, lease=60) as q:
        first, second = q.get(), q.get()
        yield START
        q.ack(first)
        yield START[1:]
        q.nack(second)
        yield START[1:]


def flushing(path: str) -> Iterator[list[Any]]:
    class Q(FlushQueue, queue.Queue):  # type: ignore[type-arg]
        pass

    q = Q()
    q.path = path
    for item in START:
        q.put(item)
    q.flush()
    yield START
    q.ingest()
    yield []


SCENES: dict[str, tuple[Callable[[str], Iterator[list[Any]]], str]] = {
    "put": (putting, "queue"),
    "get": (getting, "queue"),
    "lease": (leasing, "queue"),
    "flush": (flushing, "flushed"),
}


def states(scene: Callable[[str], Iterator[list[Any]]], path: str, name: str) -> Any:
    before = START if name == "queue" else []
    return [before, *scene(path)]


def all_of(path: str, name: str) -> list[Any]:
    with DurableQueue(path, name=name) as q:
        found = [q.get() for _ in range(q.qsize())]
        q.put("on")
        assert q.get() == "on"
        assert q.dead_letters() == []
        left = {n for n in os.listdir(q.path) if not n.startswith("leases-")}
        assert {n for n in left if not n.startswith(".holder-")} == {
            "state",
            *(n for n in left if n.startswith("items-")),
        }
    return found


@pytest.mark.parametrize(
    "torn",
    [
        pytest.param(False, id="whole", marks=pytest.mark.slow),
        pytest.param(True, id="torn"),
    ],
)
@pytest.mark.parametrize("name", SCENES)
def test_killed_at_any_call_loses_and_doubles_nothing(
    name: str, torn: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene, queue_name = SCENES[name]
    template = tmp_path / "template"
    template.mkdir(mode=0o700)
    if queue_name == "queue":
        with DurableQueue(template) as q:
            q.put_many(START)
    path, acks = tmp_path / "work", tmp_path / "acks"
    shutil.copytree(template, path)
    expected = states(scene, str(path), queue_name)
    status, at = faults.DIED, 0
    while status == faults.DIED:
        at += 1
        shutil.rmtree(path)
        shutil.copytree(template, path)
        acks.write_bytes(b"")

        def work(at: int = at) -> None:
            fd = os.open(acks, os.O_WRONLY | os.O_APPEND)
            with faults.acting(faults.dying(at, torn=torn), faults.WRITES) as system:
                word = system.wrap("word", Header.write)
                monkeypatch.setattr(Header, "write", lambda *args: word(*args))
                for _ in scene(str(path)):
                    os.write(fd, b"!")

        status = faults.in_child(work, tmp_path / "error")
        assert status in (0, faults.DIED), (tmp_path / "error").read_text()
        acked = acks.stat().st_size
        allowed = [expected[acked], expected[min(acked + 1, len(expected) - 1)]]
        assert all_of(str(path), queue_name) in allowed
    assert at > 10


@pytest.mark.parametrize("number", [28, 5], ids=["ENOSPC", "EIO"])
def test_a_put_that_fails_leaves_the_queue_as_it_was(
    number: int, chest_dir: Path
) -> None:
    with DurableQueue(chest_dir, durability="power") as q:
        for item in ("small", LARGE):
            at = 0
            while True:
                at += 1
                q.put("before")
                act = faults.failing(number, at, forever=False)
                with faults.acting(act, faults.WRITES) as system:
                    try:
                        q.put(item)
                        done = True
                    except OSError:
                        done = False
                assert q.get() == "before"
                if done:
                    assert q.get() == item
                assert q.empty()
                if done and system.count < at:
                    break
