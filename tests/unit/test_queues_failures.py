"""Queues of one process whose files vanish, refuse, or are another's."""

from __future__ import annotations

import os
import queue
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chest import DurableQueue, FlushQueue, errors
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
