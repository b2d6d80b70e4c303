"""Queues of one process whose files vanish, refuse, or are another's."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from chest import DurableQueue
from chest.folder import Folder
from tests.unit.test_queues import files

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
