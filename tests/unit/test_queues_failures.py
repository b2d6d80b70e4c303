"""Queues of one process whose files vanish, refuse, or are another's."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from chest import DurableQueue
from tests.unit.test_queues import files

LARGE = "x" * 100_000


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
