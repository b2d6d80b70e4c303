"""Queues between processes: exactly once, woken at once, nothing lost with the dead."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from chest import DurableQueue
from chest.queues import ShutDown
from tests.processes import helpers

pytestmark = pytest.mark.filterwarnings(
    "ignore:This process .* is multi-threaded:DeprecationWarning"
)


def produce(q: DurableQueue, me: int, count: int) -> None:
    """Put numbered items."""
    for i in range(count):
        q.put((me, i))
    q.close()


def consume(q: DurableQueue, results: Any, stop_after: int) -> None:
    """Get until there is None; with a lease, and killed in the middle of one."""
    got = []
    while True:
        item = q.get()
        if item is None:
            if q.lease:
                q.ack(item)
            break
        got.append(item)
        if len(got) == stop_after:
            results.put((os.getpid(), got))
            results.close()
            results.join_thread()
            os.kill(os.getpid(), signal.SIGKILL)
        if q.lease:
            q.ack(item)
    results.put((os.getpid(), got))
    q.close()


def run_many(
    path: Path, count: int, *, lease: float | None, method: str = "fork"
) -> Counter[Any]:
    """4 producers, 4 consumers; with a lease one of these is killed. What was got."""
    context: Any = multiprocessing.get_context(method)
    results = context.Queue()
    with DurableQueue(path, lease=lease) as q:
        producers = [
            context.Process(target=produce, args=(q, me, count)) for me in range(4)
        ]
        stops = [count // 8 if lease and me == 0 else 0 for me in range(4)]
        consumers = [
            context.Process(target=consume, args=(q, results, stop)) for stop in stops
        ]
        for process in [*producers, *consumers]:
            process.start()
        for process in producers:
            process.join(100)
            assert process.exitcode == 0
        first = [results.get(timeout=100)] if lease else []
        # What the dead one held comes back before these, which are put last.
        if lease:
            consumers[0].join(100)
            assert consumers[0].exitcode == -signal.SIGKILL
            q.join()
        for _ in range(4):
            q.put(None)
        lists = first + [results.get(timeout=100) for _ in range(4 - len(first))]
        for process in consumers:
            process.join(100)
            process.close()
        for process in producers:
            process.close()
    results.close()
    results.join_thread()
    for _, got in lists:
        for me in range(4):
            if not lease:
                mine = [i for who, i in got if who == me]
                assert mine == sorted(mine)  # first in, first out
    return Counter(item for _, got in lists for item in got)


def check_exactly_once(path: Path, count: int, method: str = "fork") -> None:
    got = run_many(path, count, lease=None, method=method)
    assert set(got.values()) == {1}
    assert len(got) == 4 * count


def check_at_least_once(path: Path, count: int) -> None:
    got = run_many(path, count, lease=300)
    assert len(got) == 4 * count
    twice = [item for item, times in got.items() if times > 1]
    assert len(twice) == 1  # what the dead one held, and nothing else


def test_four_producers_and_four_consumers_pass_each_item_once(
    chest_dir: Path,
) -> None:
    check_exactly_once(chest_dir, 100)


def test_what_a_killed_consumer_held_comes_to_another(chest_dir: Path) -> None:
    check_at_least_once(chest_dir, 100)


@pytest.mark.slow
def test_ten_thousand_items_pass_once(chest_dir: Path) -> None:
    check_exactly_once(chest_dir, 2_500, "spawn")


@pytest.mark.slow
def test_ten_thousand_items_and_a_kill(chest_dir: Path) -> None:
    check_at_least_once(chest_dir, 2_500)


def test_a_get_is_woken_by_another_process_and_hardly_works_meanwhile(
    chest_dir: Path,
) -> None:
    """Measured in looks, because seconds depend on the day: 5 ms between two."""
    put = "import chest, sys; chest.DurableQueue(sys.argv[1]).put('hello')"
    naps: list[float] = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 20:
            helpers.run(put, chest_dir)

    with DurableQueue(chest_dir, sleep=sleep) as q:
        assert q.get() == "hello"
    assert len(naps) == 20
    assert max(naps) <= 0.005
    assert naps[-10:] == [0.005] * 10


def test_a_forked_child_takes_part_and_its_death_gives_back(chest_dir: Path) -> None:
    with DurableQueue(chest_dir, lease=1000) as q:
        q.put_many(["a", "b"])
        mine = q.get()

        def child() -> None:
            assert q.get() == "b"
            q.put("c")
            os.kill(os.getpid(), signal.SIGKILL)

        assert helpers.forked(child) == -signal.SIGKILL
        q._leases._looked = 0
        assert q.get() == "b"
        assert q.get() == "c"
        assert q.ack(mine)


def test_a_forked_child_does_not_end_its_parents_leases(chest_dir: Path) -> None:
    with DurableQueue(chest_dir, lease=1000) as q:
        q.put("a")
        item = q.get()

        def child() -> None:
            with pytest.raises(ValueError, match="was not returned"):
                q.ack(item)
            q.close()

        assert helpers.forked(child) == 0
        q._leases._looked = 0
        with pytest.raises(queue.Empty):
            q.get_nowait()
        assert q.ack(item)


def take_when_told(path: str, orders: Any) -> None:
    """Do one thing with the queue for each word, and say that it is done."""
    with DurableQueue(path, maxsize=2) as q:
        while (order := orders.recv()) is not None:
            try:
                orders.send(getattr(q, order[0])(*order[1:]))
            except (queue.Empty, queue.Full, ValueError) as error:
                orders.send(type(error))


@pytest.fixture(params=["fork", "spawn", "forkserver"])
def other(request: pytest.FixtureRequest, chest_dir: Path) -> Iterator[Any]:
    """Another process that has the queue open, and does what it is sent."""
    context: Any = multiprocessing.get_context(request.param)
    mine, theirs = context.Pipe()
    process = context.Process(target=take_when_told, args=(str(chest_dir), theirs))
    process.start()
    theirs.close()

    def do(*order: Any) -> Any:
        mine.send(order)
        return mine.recv()

    do.send = mine.send  # type: ignore[attr-defined]
    do.result = mine.recv  # type: ignore[attr-defined]
    yield do
    mine.send(None)
    process.join(60)
    assert process.exitcode == 0
    process.close()
    mine.close()


def test_a_queue_is_full_for_all_processes_at_once(chest_dir: Path, other: Any) -> None:
    with DurableQueue(chest_dir, maxsize=2) as q:
        q.put("a")
        assert other("put", "b") is None
        assert q.full()
        assert other("full")
        with pytest.raises(queue.Full):
            q.put("c", timeout=0.001)
        assert other("put_nowait", "c") is queue.Full
        other.send(("get",))  # lets this put go on
        q.put("c", timeout=60)
        assert other.result() == "a"
        assert [other("get"), q.get()] == ["b", "c"]
        assert other("get_nowait") is queue.Empty


def test_join_waits_for_what_another_process_does(chest_dir: Path, other: Any) -> None:
    with DurableQueue(chest_dir) as q:
        q.put_many(["a", "b"])
        assert [other("get"), other("get")] == ["a", "b"]
        assert q.empty()
        assert other("task_done") is None
        assert q.unfinished_tasks == 1
        other.send(("join",))
        q.task_done()
        assert other.result() is None
        assert other("task_done") is ValueError
        q.join()
        assert other("shutdown") is None
        with pytest.raises(ShutDown):
            q.put("c")
