"""Queues of one process whose files vanish, refuse, or are another's."""

from __future__ import annotations

import os
import queue
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chest import Chest, DurableQueue, FlushQueue, errors
from chest.folder import Folder
from tests.unit.test_queues import damage, files

LARGE = "x" * 100_000


@pytest.fixture
def undeletable(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A folder that lets no value, segment or holder be deleted."""
    unlink = Folder.unlink

    def refuse(home: Folder, name: str, *, missing_ok: bool = False) -> None:
        if name.startswith(("value-", "items-", "dead-", ".holder-")):
            raise PermissionError(13, "refused", name)
        unlink(home, name, missing_ok=missing_ok)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "unlink", refuse)
        yield


def test_a_lost_state_keeps_dead_letters_whose_numbers_have_gaps(
    chest_dir: Path,
) -> None:
    with DurableQueue(chest_dir, lease=60, tries=1) as q:
        q.put_many([LARGE + str(i) for i in range(8)])
        for number in range(8):
            item = q.get()
            if number in (1, 3, 5, 6):
                q.nack(item)
            else:
                q.ack(item)
    os.unlink(f"{q.path}/state")
    os.unlink(f"{q.path}/items-0000")
    with DurableQueue(chest_dir, lease=60) as q:
        q.put_many([LARGE] * 8)
        letters = [letter.item for letter in q.dead_letters()]
        assert letters == [LARGE + str(i) for i in (1, 3, 5, 6)]
        assert [q.get() for _ in range(q.qsize())] == [LARGE] * 8


@pytest.mark.parametrize("item", [LARGE, bytes(60_000)], ids=["value", "segment"])
@pytest.mark.parametrize("lease", [None, 60], ids=["taken", "leased"])
def test_a_file_that_cannot_be_deleted_costs_no_item(
    chest_dir: Path, item: object, lease: float | None, request: pytest.FixtureRequest
) -> None:
    q = DurableQueue(chest_dir, lease=lease)
    q.put_many([item] * 20)
    request.getfixturevalue("undeletable")
    for _ in range(20):
        assert q.get() == item
        assert lease is None or q.ack(item)
    assert (q.qsize(), q.unfinished_tasks) == (0, 0 if lease else 20)
    q.close()


@pytest.mark.usefixtures("undeletable")
def test_the_end_of_a_process_gives_back_where_nothing_can_be_deleted(
    chest_dir: Path,
) -> None:
    q = DurableQueue(chest_dir, lease=60)
    q.put("a")
    assert q.get() == "a"
    q.at_exit()
    with DurableQueue(chest_dir, lease=60) as other:
        assert other.get() == "a"


# -- FlushQueue --------------------------------------------------------------------------


class Jobs(queue.Queue, FlushQueue):  # type: ignore[type-arg]
    def __init__(self, path: Path, *items: object) -> None:
        super().__init__()
        self.path = path
        for item in items:
            self.put(item)

    def all_of(self) -> list[object]:
        return [self.get() for _ in range(self.qsize())]


def test_bringing_back_leaves_dead_letters_and_leased_items(chest_dir: Path) -> None:
    Jobs(chest_dir, "dead", LARGE, "leased", LARGE, "last").flush()
    jobs = Jobs(chest_dir, "live")
    with DurableQueue(chest_dir, name="flushed", lease=60, tries=1) as q:
        q.nack(q.get())
        q.nack(q.get())
        item = q.get()
        jobs.ingest()
        assert jobs.all_of() == [LARGE, "last", "live"]
        assert [letter.item for letter in q.dead_letters()] == ["dead", LARGE]
        assert "value-3" not in files(q)
        assert q.ack(item)
        assert q.unfinished_tasks == 0
        assert q.clear_dead_letters() == 2
    jobs.ingest()
    assert os.listdir(chest_dir) == []


def test_no_lock_is_held_while_saved_items_are_decoded(chest_dir: Path) -> None:
    Jobs(chest_dir, Watching(), "b").flush()
    jobs = Jobs(chest_dir)
    with DurableQueue(chest_dir, name="flushed", timeout=0) as q:
        seen.clear()
        looks.append(lambda: (q.put("c"), q.qsize()))
        try:
            jobs.ingest()
        finally:
            looks.clear()
    assert seen == [(None, 3)]
    assert jobs.all_of()[1:] == ["b", "c"]


looks: list[Callable[[], object]] = []
seen: list[object] = []


class Watching:
    def __reduce__(self) -> tuple[object, ...]:
        return look, ()


class Encoded:
    """Looks when it is encoded."""

    def __reduce__(self) -> tuple[object, ...]:
        look()
        return int, ()


def look() -> None:
    seen.extend(each() for each in looks)


def test_what_another_process_takes_meanwhile_is_not_brought_back(
    chest_dir: Path,
) -> None:
    Jobs(chest_dir, "a", Watching(), LARGE).flush()
    jobs = Jobs(chest_dir, "live")
    with DurableQueue(chest_dir, name="flushed") as q:
        looks.append(lambda: (looks.clear(), q.get()))
        jobs.ingest()
    assert jobs.all_of() == [None, LARGE, "live"]


def test_a_flush_goes_on_where_another_takes_all_and_leaves(chest_dir: Path) -> None:
    """The folder goes while a large item is on its way to a file of its own."""
    Jobs(chest_dir, "a").flush()
    other = Jobs(chest_dir)
    looks.append(lambda: (looks.clear(), other.ingest()))
    Jobs(chest_dir, Encoded(), LARGE).flush()
    assert other.all_of() == ["a"]
    other.ingest()
    assert other.all_of() == [0, LARGE]


def test_items_around_a_damaged_one_are_brought_back(chest_dir: Path) -> None:
    Jobs(chest_dir, "a", "b" * 50, "c").flush()
    jobs = Jobs(chest_dir, "live")
    path = chest_dir / ".queue-flushed" / "items-0000"
    damage(str(path), path.read_bytes().index(b"bbb"))
    with pytest.raises(errors.CorruptValueError, match="1 items"):
        jobs.ingest()
    assert jobs.all_of() == ["a", "live"]
    jobs.ingest()
    assert jobs.all_of() == ["c"]


# -- leases and dead letters -------------------------------------------------------------


def bury(path: Path, *items: object) -> None:
    with DurableQueue(path, lease=60, tries=1) as q:
        q.put_many(items)
        for _ in items:
            q.nack(q.get())


def test_a_dead_letter_without_its_file_does_not_hold_up_the_others(
    chest_dir: Path,
) -> None:
    bury(chest_dir, LARGE, LARGE + "b", "c")
    with DurableQueue(chest_dir) as q:
        os.unlink(f"{q.path}/value-0")
        assert q.revive() == 3
        with pytest.raises(errors.CorruptValueError, match="missing"):
            q.get()
        assert [q.get(), q.get()] == [LARGE + "b", "c"]
        assert len(q.dead_letters()) == 1


def test_dead_letters_can_be_revived_after_an_attempt_that_failed(
    chest_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bury(chest_dir, LARGE, LARGE + "b")
    link = Folder.link

    def refuse(home: Folder, source: str, new: str) -> None:
        if new.endswith("-3"):
            raise OSError(28, "refused")
        link(home, source, new)

    with DurableQueue(chest_dir) as q:
        with monkeypatch.context() as patch:
            patch.setattr(Folder, "link", refuse)
            with pytest.raises(errors.StoreError, match="refused"):
                q.revive()
        assert q.revive() == 2
        assert [q.get(), q.get()] == [LARGE, LARGE + "b"]


def test_times_of_leases_that_ended_are_forgotten(chest_dir: Path) -> None:
    with DurableQueue(chest_dir, lease=60) as q:
        q.put_many(range(3000))
        q.get()
        for _ in range(2999):
            q.ack(q.get())
        assert len(q._leases._timers) < 1100


@pytest.mark.parametrize("how", ["nack", "close", "unreadable", "damaged"])
def test_a_segment_goes_with_the_last_item_that_is_given_up(
    chest_dir: Path, how: str
) -> None:
    with DurableQueue(chest_dir, lease=60, tries=1) as q:
        first = LARGE if how == "unreadable" else "first"
        q.put_many([first, *[bytes(60_000)] * 20, "last"])
        q.put_many([bytes(60_000)] * 20)
        other = DurableQueue(chest_dir, lease=60, tries=1)
        item = other.get()
        for _ in range(40):
            q.ack(q.get())
        assert "items-0000" in files(q)
        if how == "nack":
            other.nack(item)
        elif how == "unreadable":
            record, tries = other._mine[id(item)][0][1:]
            other._give_up(record, tries)
        else:
            other.close()
            q._leases._looked = 0
            if how == "damaged":
                damage(f"{q.path}/items-0000", 30)
                q._items._ahead_end = 0
                with pytest.raises(errors.CorruptValueError):
                    q.get_nowait()
            assert len(q.get()) == 60_000
        other.close()
        assert "items-0000" not in files(q)


def test_threads_of_one_handle_end_equal_leases_at_once(chest_dir: Path) -> None:
    """One thread compares, which lets another end what it is about to look at."""
    with DurableQueue(chest_dir, lease=60) as q:
        q.put_many([Meeting(1), Meeting(2), Meeting(3)])
        items = [q.get() for _ in range(3)]
        wanted = Meeting(3)
        wanted.meet = lambda: q.ack(items.pop()) if len(items) == 3 else None
        with pytest.raises(ValueError, match="was not returned"):
            q.ack(wanted)
        assert [q.ack(item) for item in items] == [True, True]


class Meeting:
    meet: Callable[[], object] | None = None

    def __init__(self, number: int) -> None:
        self.number = number

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Meeting)
        if other.meet is not None:
            other.meet()
        return self.number == other.number

    __hash__ = None  # type: ignore[assignment]


def test_a_thread_may_keep_an_item_while_another_ends_it(
    chest_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with DurableQueue(chest_dir, lease=60) as q:
        q.put("a")
        item = q.get()
        still = q._still_mine
        ended = []

        def meanwhile(*args: Any) -> Any:
            if not ended:
                ended.append(q._find(id(item), keep=True) is not None)
            return still(*args)

        monkeypatch.setattr(q, "_still_mine", meanwhile)
        assert q.extend(item, 60)
        assert q.ack(item)
    assert ended == [True]


# -- a chest that goes with its queues ---------------------------------------------------


def test_dropping_a_chest_leaves_what_is_not_its_queues(chest_dir: Path) -> None:
    with Chest(chest_dir) as c:
        c["x"] = 1
        with DurableQueue(c) as q:
            q.put(LARGE)
        Path(q.path, "notes.txt").write_text("mine")
        Path(q.path, "sub").mkdir()
        Path(q.path, "sub", "state").write_text("mine")
        c.drop()
        assert c._closed
    assert sorted(os.listdir(q.path)) == ["notes.txt", "sub"]
    assert os.listdir(f"{q.path}/sub") == ["state"]
    assert os.listdir(chest_dir) == [".queue-queue"]


def test_a_chest_whose_queue_is_locked_is_not_dropped_by_half(chest_dir: Path) -> None:
    with Chest(chest_dir, timeout=0.01) as c, DurableQueue(c) as q:
        c["x"] = 1
        q.put("a")
        other = Folder(q.path)
        assert other.lock()
        with pytest.raises(errors.LockTimeout, match="a queue in the chest's folder"):
            c.drop()
        other.close()
        assert c["x"] == 1
        assert q.get() == "a"
        c.drop()
    assert not chest_dir.exists()
