"""Queues of one process: what goes in comes out, leases, dead letters, and damage."""

from __future__ import annotations

import errno
import os
import pickle
import queue
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from chest import Chest, DurableQueue, FlushQueue, errors
from chest.queues.durable import ShutDown
from chest.queues.header import HEAD, Header
from chest.queues.items import SEGMENT_NBYTES
from chest.system import places


class Clock:
    """A clock that goes on while somebody waits."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.naps: list[float] = []

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.naps.append(seconds)
        self.now += seconds


class Point:
    def __init__(self, x: int) -> None:
        self.x = x

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Point) and other.x == self.x

    __hash__ = None  # type: ignore[assignment]


class Unreadable:
    def __reduce__(self) -> tuple[Any, ...]:
        return _refuse, ()


def _refuse() -> None:
    raise RuntimeError("not here")


def files(q: DurableQueue) -> set[str]:
    return {name for name in os.listdir(q.path) if not name.startswith(".holder-")}


def test_items_come_out_in_the_order_in_which_they_went_in(chest_dir: Path) -> None:
    items = [0, "a", b"b", None, {"x": [1]}, (1, 2), Point(3), 0]
    with DurableQueue(chest_dir) as q:
        for item in items:
            q.put(item)
    with DurableQueue(chest_dir) as q:
        assert q.qsize() == len(items)
        assert [q.get() for _ in items] == items
        assert q.empty()
        with pytest.raises(queue.Empty):
            q.get_nowait()


def test_a_function_of_the_program_itself_travels(chest_dir: Path) -> None:
    with DurableQueue(chest_dir) as q:
        q.put(lambda x: x + 1)
        assert q.get()(1) == 2


def test_a_large_item_has_a_file_and_its_array_may_be_changed(chest_dir: Path) -> None:
    array = np.arange(500_000.0)
    with DurableQueue(chest_dir) as q:
        q.put(array)
        q.put("x" * 100_000)
        assert files(q) == {"items-0000", "state", "value-0", "value-1"}
        got = q.get()
        got += 1
        assert np.array_equal(got, array + 1)
        assert q.get() == "x" * 100_000
        assert files(q) == {"items-0000", "state"}


def test_space_comes_back_as_items_are_taken(chest_dir: Path) -> None:
    with DurableQueue(chest_dir) as q:
        for number in range(100):
            for _ in range(3):
                q.put(bytes(20_000))
            for _ in range(3):
                q.get()
            if number % 20 == 0:
                taken = sum(os.stat(f"{q.path}/{name}").st_size for name in files(q))
                assert taken < 3 * SEGMENT_NBYTES


def test_many_segments_keep_the_order(chest_dir: Path) -> None:
    with DurableQueue(chest_dir) as q:
        q.put_many((i, bytes(1000)) for i in range(4000))
        assert len(files(q)) > 3
        assert [q.get()[0] for _ in range(4000)] == list(range(4000))


def test_put_many_puts_all_or_none(chest_dir: Path) -> None:
    with DurableQueue(chest_dir, maxsize=3) as q:
        with pytest.raises(TypeError):
            q.put_many([1, threading.Lock()])
        q.put_many([1, 2])
        with pytest.raises(queue.Full):
            q.put_many([3, 4], block=False)
        with pytest.raises(ValueError, match="never fit"):
            q.put_many(range(4))
        assert [q.get(), q.get(), q.qsize()] == [1, 2, 0]


def test_waiting_ends_with_the_timeout_and_looks_every_5_ms(chest_dir: Path) -> None:
    clock = Clock()
    with DurableQueue(chest_dir, 1, clock=clock, sleep=clock.sleep) as q:
        with pytest.raises(queue.Empty):
            q.get(timeout=2)
        assert clock.now == pytest.approx(1002)
        assert max(clock.naps) == 0.005
        q.put(1)
        assert q.full()
        with pytest.raises(queue.Full):
            q.put(2, timeout=3)
        assert clock.now == pytest.approx(1005)
        with pytest.raises(queue.Full):
            q.put_nowait(2)
        for wait in (q.get, lambda **options: q.put(1, **options)):
            with pytest.raises(ValueError, match="non-negative"):
                wait(timeout=-1)


def test_a_get_that_waits_is_given_what_comes(chest_dir: Path) -> None:
    with DurableQueue(chest_dir) as q:
        q._sleep = lambda seconds: q.put("came")
        assert q.get() == "came"


def test_closing_wakes_who_waits(chest_dir: Path) -> None:
    q = DurableQueue(chest_dir)
    q._sleep = lambda seconds: q.close()
    with pytest.raises(errors.ClosedError):
        q.get()
    q.close()
    for use in (q.qsize, q.get, lambda: q.put(1), q.__enter__):
        with pytest.raises(errors.ClosedError):
            use()
    assert "closed" in repr(q)


def test_join_waits_for_all_and_is_not_confused_by_an_earlier_run(
    chest_dir: Path,
) -> None:
    with DurableQueue(chest_dir) as q:
        q.put_many([1, 2, 3])
        q.get()  # and its process ends without a word
    with DurableQueue(chest_dir) as q:
        assert q.unfinished_tasks == 2
        q._sleep = lambda seconds: q.task_done()
        q.join()
        with pytest.raises(ValueError, match="too many times"):
            q.task_done()


def test_shutdown_holds_until_all_have_closed_and_keeps_the_items(
    chest_dir: Path,
) -> None:
    with DurableQueue(chest_dir) as q, DurableQueue(chest_dir) as other:
        q.put_many([1, 2])
        q.shutdown()
        with pytest.raises(ShutDown):
            other.put(3)
        assert other.get() == 1
        q.shutdown(immediate=True)
        with pytest.raises(ShutDown):
            other.get()
    with DurableQueue(chest_dir) as q:
        assert q.get() == 2
        q.put(3)


# -- leases ----------------------------------------------------------------------------


def leased(path: Path, clock: Clock, **options: Any) -> DurableQueue:
    return DurableQueue(path, lease=10, clock=clock, sleep=clock.sleep, **options)


def test_a_leased_item_is_gone_only_when_it_is_acknowledged(chest_dir: Path) -> None:
    clock = Clock()
    with leased(chest_dir, clock) as q:
        q.put_many(["a", "b"])
        first = q.get()
        assert (first, q.qsize(), q.unfinished_tasks) == ("a", 1, 2)
        assert q.ack(first)
        assert q.unfinished_tasks == 1
        assert q.get() == "b"
    with leased(chest_dir, clock) as q:
        assert (q.get(), q.qsize()) == ("b", 0)


def test_an_item_comes_back_first_when_its_lease_runs_out(chest_dir: Path) -> None:
    clock = Clock()
    with leased(chest_dir, clock) as q, leased(chest_dir, clock) as other:
        q.put_many([Point(1), Point(2), Point(3)])
        mine = q.get()
        clock.now += 9.9
        assert other.get() == Point(2)
        clock.now += 0.2
        theirs = other.get()
        assert theirs == Point(1)
        assert not q.ack(mine)
        assert other.ack(theirs)
        assert other.get() == Point(3)


def test_a_late_acknowledgement_counts_if_nobody_took_the_item(chest_dir: Path) -> None:
    clock = Clock()
    with leased(chest_dir, clock) as q:
        q.put("a")
        item = q.get()
        clock.now += 11
        assert q.ack(item)
        with pytest.raises(queue.Empty):
            q.get_nowait()


def test_a_get_that_waits_is_given_what_comes_back(chest_dir: Path) -> None:
    clock = Clock()
    with leased(chest_dir, clock) as q:
        q.put("a")
        q.get()
        assert q.get() == "a"
        assert clock.now == pytest.approx(1010, abs=0.01)


def test_extending_keeps_an_item(chest_dir: Path) -> None:
    clock = Clock()
    with leased(chest_dir, clock) as q:
        q.put("a")
        item = q.get()
        clock.now += 9
        assert q.extend(item, 10)
        clock.now += 9
        assert q.qsize() == 0
        clock.now += 2
        assert q.qsize() == 1


def test_an_item_that_is_given_back_waits_for_its_delay(chest_dir: Path) -> None:
    clock = Clock()
    with leased(chest_dir, clock) as q:
        q.put_many(["a", "b"])
        assert q.nack(q.get(), delay=5)
        item = q.get()
        assert item == "b"
        clock.now += 5
        assert q.get() == "a"
        with pytest.raises(ValueError, match="non-negative"):
            q.nack(item, delay=-1)


def test_closing_gives_back_and_a_plain_handle_takes_it(chest_dir: Path) -> None:
    with DurableQueue(chest_dir) as plain:
        with DurableQueue(chest_dir, lease=1000) as q:
            plain.put_many(["a", "b"])
            assert q.get() == "a"
            assert plain.qsize() == 1
        plain._leases._looked = 0  # it looks every 0.1 s who has died
        assert [plain.get(), plain.get()] == ["a", "b"]
        assert plain._header.read()[7] == 0  # no lease is left


def test_what_was_not_leased_here_is_refused(chest_dir: Path) -> None:
    with DurableQueue(chest_dir, lease=1) as q:
        q.put([1])
        item = q.get()
        for use in (q.ack, q.nack):
            with pytest.raises(ValueError, match="was not returned"):
                use([2])
        q.ack(item)
        with pytest.raises(ValueError, match="was not returned"):
            q.ack(item)


def test_an_equal_item_stands_for_the_one_that_was_leased(chest_dir: Path) -> None:
    with DurableQueue(chest_dir, lease=60) as q:
        q.put_many([[1], np.arange(3), np.arange(3)])
        q.get()
        first, second = q.get(), q.get()
        assert q.ack([1])
        assert q.ack(second)
        assert q.nack(first)
        with pytest.raises(ValueError, match="was not returned"):
            q.ack(np.arange(3))


def test_a_block_acknowledges_or_gives_back(chest_dir: Path) -> None:
    with DurableQueue(chest_dir, lease=60) as q:
        q.put("a")
        with pytest.raises(ZeroDivisionError), q.taking():
            _ = 1 / 0
        with q.taking() as item:
            assert item == "a"
        assert (q.qsize(), q.unfinished_tasks) == (0, 0)


@pytest.mark.parametrize("item", ["small", "x" * 100_000], ids=["record", "file"])
def test_an_item_that_is_tried_too_often_is_a_dead_letter(
    chest_dir: Path, item: str
) -> None:
    clock = Clock()
    with leased(chest_dir, clock, tries=2) as q:
        q.put(item)
        q.nack(q.get())
        q.nack(q.get())
        with pytest.raises(queue.Empty):
            q.get_nowait()
        assert [(each.item, each.tries) for each in q.dead_letters()] == [(item, 2)]
        q.join()
    with leased(chest_dir, clock, tries=2) as q:
        assert q.revive() == 1
        assert q.dead_letters() == []
        assert q.get() == item
        clock.now += 11
        assert q.get() == item
        clock.now += 11
        with pytest.raises(queue.Empty):
            q.get_nowait()
        assert q.clear_dead_letters() == 1
        assert q.dead_letters() == []
        assert not any(name.startswith("value") for name in files(q))


@pytest.mark.parametrize("lease", [None, 60])
def test_an_item_that_cannot_be_read_is_a_dead_letter(
    chest_dir: Path, lease: float | None
) -> None:
    with DurableQueue(chest_dir, lease=lease) as q:
        q.put_many([Unreadable(), "next"])
        with pytest.raises(errors.DecodingError, match="not here"):
            q.get()
        assert q.get() == "next"
        (letter,) = q.dead_letters()
        assert isinstance(letter.error, errors.DecodingError)


def test_many_leases_are_rewritten_and_segments_go_when_nobody_needs_them(
    chest_dir: Path,
) -> None:
    with DurableQueue(chest_dir, lease=60) as q:
        q.put_many((i, bytes(500)) for i in range(5000))
        kept = q.get()
        for _ in range(4999):
            q.ack(q.get())
        assert "items-0000" in files(q)
        assert os.stat(f"{q.path}/leases-0").st_size < 200_000
        with DurableQueue(chest_dir) as other:
            assert other.qsize() == 0
        q.ack(kept)
        assert "items-0000" not in files(q)


# -- where it lies -----------------------------------------------------------------------


def test_a_chest_and_its_queues_do_not_see_each_other(chest_dir: Path) -> None:
    with Chest(chest_dir) as c:
        jobs, more = DurableQueue(c), DurableQueue(c, name="more")
        with jobs, more:
            c["x"] = 1
            jobs.put(np.zeros(200_000))
            more.put("other")
            c.flush()
            c.compact()
            c.clear()
            assert c.verify() == []
            assert (len(c), jobs.qsize()) == (0, 1)
            assert len(jobs.get()) == 200_000
            with c.snapshot(chest_dir.parent / "copy") as copy:
                assert copy._spill.store.home.queues() == []
            c.drop()
            assert not chest_dir.exists()
            with pytest.raises(errors.DroppedError):
                jobs.put(1)


def test_a_chest_may_come_to_a_queue_that_is_there(chest_dir: Path) -> None:
    with DurableQueue(chest_dir) as q:
        q.put("x" * 100_000)
        with Chest(chest_dir) as c:
            c["x"] = 1
        assert q.get() == "x" * 100_000


def test_a_temporary_chest_lives_as_long_as_its_queue() -> None:
    q = DurableQueue(Chest())
    q.put(1)
    assert q.get() == 1
    q._chest.close()
    q.close()


@pytest.mark.parametrize("anew", [False, True], ids=["gone", "made anew"])
def test_dropping_tells_the_others(anew: bool, chest_dir: Path) -> None:
    large = "x" * 100_000
    with DurableQueue(chest_dir, lease=60) as other:
        other.put_many([1, 2])
        item = other.get()
        DurableQueue(chest_dir).drop()
        made = [DurableQueue(chest_dir)] if anew else []
        for each in made:
            each.put("of the new one")
        uses: list[Callable[[], object]] = [
            other.get,
            other.qsize,
            lambda: other.put(1),
            lambda: other.put(large),
            lambda: other.put_many([1, large]),
            lambda: other.ack(item),
            other.drop,
        ]
        for use in uses:
            with pytest.raises(errors.DroppedError):
                use()
        assert repr(other).endswith(": dropped>")
    for each in made:
        each.close()
    with DurableQueue(chest_dir) as q:
        assert [q.get() for _ in range(q.qsize())] == ["of the new one"] * anew


def test_a_handle_travels_by_pickle(chest_dir: Path) -> None:
    with DurableQueue(chest_dir, 5, lease=60, tries=2, name="n") as q:
        q.put(1)
        with pickle.loads(pickle.dumps(q)) as other:
            assert (other.maxsize, other.lease, other.tries) == (5, 60, 2)
            assert other.get() == 1


@pytest.mark.parametrize(
    "options",
    [
        {"name": "../x"},
        {"name": ""},
        {"lease": 0},
        {"lease": "1m"},
        {"tries": 0},
        {"tries": 3},  # of leases, and there are none
    ],
)
def test_options_that_make_no_sense_are_refused(
    chest_dir: Path, options: dict[str, Any]
) -> None:
    with pytest.raises(ValueError, match="="):
        DurableQueue(chest_dir, **options)
    assert os.listdir(chest_dir) == []


def test_a_read_only_chest_has_no_queue(chest_dir: Path) -> None:
    Chest(chest_dir).close()
    with Chest(chest_dir, readonly=True) as c, pytest.raises(errors.ReadOnlyError):
        DurableQueue(c)


# -- trust -----------------------------------------------------------------------------


def test_a_folder_that_others_can_write_is_refused(chest_dir: Path) -> None:
    chest_dir.chmod(0o777)
    with pytest.raises(errors.UntrustedError):
        DurableQueue(chest_dir)
    chest_dir.chmod(0o700)
    DurableQueue(chest_dir).close()
    os.chmod(chest_dir / ".queue-queue", 0o777)
    with pytest.raises(errors.UntrustedError):
        DurableQueue(chest_dir)


def test_data_only_queues_never_load_a_pickle(chest_dir: Path) -> None:
    with DurableQueue(chest_dir, trust="data") as q:
        q.put_many([[1, "a"], np.arange(100_000)])
        assert q.get() == [1, "a"]
        assert len(q.get()) == 100_000
        with pytest.raises(errors.EncodingError):
            q.put(Point(1))
    with DurableQueue(chest_dir) as q:
        q.put(Point(1))
    with DurableQueue(chest_dir, trust="data") as q:
        with pytest.raises(errors.UntrustedError):
            q.get()
        assert len(q.dead_letters()) == 1


def test_a_segment_that_somebody_else_could_write_is_not_read(chest_dir: Path) -> None:
    with DurableQueue(chest_dir) as q:
        q.put("a")
        os.chmod(f"{q.path}/items-0000", 0o666)
    with DurableQueue(chest_dir) as q, pytest.raises(errors.UntrustedError):
        q.get()


def test_signed_items_are_read_with_the_key_alone(chest_dir: Path) -> None:
    key, other = b"k" * 32, b"o" * 32
    items = ["a", np.arange(100_000)]
    with DurableQueue(chest_dir, sign_key=key) as q:
        q.put_many(items)
    for wrong in (other, None):
        with DurableQueue(chest_dir, sign_key=wrong) as q:
            with pytest.raises(errors.SignatureError):
                q.get()
            assert q.qsize() == 2
    with DurableQueue(chest_dir, sign_key=key) as q:
        assert q.get() == "a"
        assert np.array_equal(q.get(), items[1])


def test_an_unsigned_item_is_not_read_with_a_key(chest_dir: Path) -> None:
    with DurableQueue(chest_dir) as q:
        q.put("a")
    with (
        DurableQueue(chest_dir, sign_key=b"k" * 32) as q,
        pytest.raises(errors.SignatureError),
    ):
        q.get()


# -- damage ------------------------------------------------------------------------------


def damage(path: str, at: int) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        byte = file.read(1)
        file.seek(at)
        file.write(bytes([byte[0] ^ 0x40]))


@pytest.mark.parametrize("at", [2, 12, 18, 30])
def test_a_damaged_item_is_reported_once_and_never_read(
    chest_dir: Path, at: int
) -> None:
    with DurableQueue(chest_dir) as q:
        q.put("a" * 50)
        first = q._header.glimpse()[HEAD]
        q.put_many(["b" * 50, "c"])
        damage(f"{q.path}/items-0000", first + at)
        assert q.get() == "a" * 50
        with pytest.raises(errors.CorruptValueError, match="1 items"):
            q.get()
        assert q.get() == "c"
        assert q.unfinished_tasks == 2


@pytest.mark.parametrize("sign_key", [None, b"k" * 32], ids=["", "signed"])
def test_items_of_all_sizes_come_in_order_wherever_the_window_is(
    chest_dir: Path, sign_key: bytes | None
) -> None:
    sizes = [0, 100, 4_000, 4_100, 30_000, 65_000]
    items = [bytes(sizes[number * 7 % 31 % 6]) for number in range(300)]
    with (
        DurableQueue(chest_dir, sign_key=sign_key) as one,
        DurableQueue(chest_dir, sign_key=sign_key) as other,
    ):
        for number, item in enumerate(items):
            (one, other)[number // 3 % 2].put((number, item))
        assert [other.get() for _ in items[:100]] == [*enumerate(items[:100])]
    with DurableQueue(chest_dir, sign_key=sign_key) as one:
        assert [one.get()[1] for _ in items[100:]] == items[100:]
        assert one.empty()


@pytest.mark.parametrize(
    ("copied", "everything"), [(10, False), (0, True)], ids=["a part", "all of it"]
)
def test_a_record_whose_writer_died_before_it_was_published_is_nobodys(
    chest_dir: Path, copied: int, everything: bool
) -> None:
    with DurableQueue(chest_dir) as q:
        q.put("first")
        child = os.fork()
        if not child:
            try:
                Header.write = None  # no more than the record is written
                head = q._header.read()[HEAD] - q._items._window_at
                q._items._window[head : head + copied] = b"x" * copied
                if everything:
                    q.put("x" * 100)
            finally:
                os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
        q.put("second")
        assert (q.qsize(), q.get(), q.get(), q.empty()) == (2, "first", "second", True)
    with DurableQueue(chest_dir) as q:
        q.put("third")
        assert (q.get(), q.empty()) == ("third", True)


@pytest.mark.parametrize("error", [errno.ENOSPC, errno.EOPNOTSUPP])
def test_where_no_room_can_be_had_ahead_items_are_written_one_by_one(
    chest_dir: Path, error: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(os, "posix_fallocate", refuse)
    with DurableQueue(chest_dir) as q:
        for number in range(3):
            q.put(number)
        size = os.stat(f"{q.path}/items-0000").st_size
        assert size == q._header.glimpse()[HEAD]
        assert [q.get() for _ in range(3)] == [0, 1, 2]


def test_nothing_is_mapped_to_append_where_room_on_the_disk_does_not_stay(
    chest_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "filesystem", lambda path: "btrfs")
    with DurableQueue(chest_dir) as q:
        for number in range(3):
            q.put(number)
        assert q._items._window is None
        assert [q.get() for _ in range(3)] == [0, 1, 2]


def test_a_missing_segment_is_reported_once(chest_dir: Path) -> None:
    with DurableQueue(chest_dir) as q:
        q.put_many((i, bytes(1000)) for i in range(3000))
    os.unlink(f"{q.path}/items-0001")
    with DurableQueue(chest_dir) as q:
        got = []
        with pytest.raises(errors.CorruptValueError):
            got.extend(q.get()[0] for _ in range(3000))
        rest = [q.get()[0] for _ in range(q.qsize())]
        assert got == list(range(len(got)))
        assert rest == list(range(3000 - len(rest), 3000))


@pytest.mark.parametrize("how", ["missing", "damaged"])
def test_a_lost_state_is_rebuilt_from_the_items(chest_dir: Path, how: str) -> None:
    with DurableQueue(chest_dir) as q:
        q.put_many((i, bytes(1000)) for i in range(2500))
    state = f"{q.path}/state"
    if how == "missing":
        os.unlink(state)
    else:
        for at in (70, 200):
            damage(state, at)
    with DurableQueue(chest_dir) as q:
        assert [q.get()[0] for _ in range(q.qsize())] == list(range(2500))
        q.put("on")
        assert q.get() == "on"


def test_lost_leases_let_the_items_come_once_more(
    chest_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with DurableQueue(chest_dir, lease=60) as q:
        q.put_many(range(3))
        q.get()
        damage(f"{q.path}/leases-0", 20)
    with DurableQueue(chest_dir, lease=60) as q:
        assert [q.get() for _ in range(3)] == [0, 1, 2]
    assert "damaged" in caplog.text


def test_what_had_reached_the_disk_before_a_power_cut_is_found(
    chest_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state on the disk may be older than the items, never newer."""
    with DurableQueue(chest_dir, durability="power") as q:
        q.put(1)
        old = Path(q.path, "state").read_bytes()
        q.put_many([2, 3])
    Path(q.path, "state").write_bytes(old)
    monkeypatch.setattr("chest.system.boot", lambda: 5)
    with DurableQueue(chest_dir, durability="power") as q:
        assert [q.get() for _ in range(q.qsize())] == [1, 2, 3]


# -- FlushQueue --------------------------------------------------------------------------


class NewQueue(queue.Queue, FlushQueue):  # type: ignore[type-arg]
    """As iodict's README has it."""

    def __init__(self, path: Any, lock: Any = None, semaphore: Any = None) -> None:
        super().__init__()
        self.path = path
        self.lock = lock
        self.semaphore = semaphore


def test_the_program_of_iodicts_readme_runs(chest_dir: Path) -> None:
    q = NewQueue(path=str(chest_dir))
    q.put("test")
    assert q.qsize() == 1
    q.flush()
    assert q.qsize() == 0
    q.ingest()
    assert q.qsize() == 1
    assert q.get() == "test"
    q.task_done()
    q.join()
    assert os.listdir(chest_dir) == []


def test_saved_items_come_back_in_order_before_the_live_ones(chest_dir: Path) -> None:
    q = NewQueue(chest_dir)
    q.ingest()
    q.flush()
    for i in range(6):
        q.put(i)
        if i in (1, 3):
            q.flush()
    q.ingest()
    assert [q.get() for _ in range(6)] == list(range(6))


@pytest.mark.parametrize("kind", [queue.LifoQueue, queue.PriorityQueue])
def test_other_orders_are_kept_too(chest_dir: Path, kind: Any) -> None:
    class Other(FlushQueue, kind):
        path = chest_dir

    q, twin = Other(), kind()
    for i in (3, 1, 2, 5, 4):
        q.put(i)
        twin.put(i)
    q.flush()
    q.ingest()
    assert [q.get() for _ in range(5)] == [twin.get() for _ in range(5)]


def test_what_cannot_be_saved_stays_live(chest_dir: Path) -> None:
    q = NewQueue(chest_dir)
    q.put(1)
    q.put(threading.Lock())
    with pytest.raises(errors.EncodingError):
        q.flush()
    assert q.qsize() == 2
    q.ingest()
    assert q.qsize() == 2


def test_what_cannot_be_read_stays_saved(chest_dir: Path) -> None:
    q = NewQueue(chest_dir)
    q.put(1)
    q.put(Unreadable())
    q.flush()
    q.put(2)
    with pytest.raises(errors.DecodingError):
        q.ingest()
    assert q.qsize() == 1
    with DurableQueue(chest_dir, name="flushed") as saved:
        assert saved.get() == 1
